//! The remote end of a call, from the arguments of the kernel's functions: what the
//! LSM hooks and the functions that call them have in common.

use core::ffi::c_void;

use pp_common::{dest::Addr, protect::file_type};

use super::kernel::{offset, read};

const AF_UNSPEC: u16 = 0;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;
const IPPROTO_MPTCP: u16 = 262;
/// `include/uapi/linux/stat.h`.
const S_IFSOCK: u16 = 0o140_000;
const SOCKADDR_IN_LEN: usize = 8;
const SOCKADDR_IN6_LEN: usize = 24;

/// The remote end that an address or a socket names.
pub(crate) enum Remote {
    Inet(Addr, u16),
    /// Without a family, which UDP takes for IPv4.
    Unspecified(Addr, u16),
    Other,
    /// Memory that cannot be read: the attempt is refused.
    Unreadable,
}

/// The remote end of a message on a socket, and whether it is the one that the socket is connected to.
#[inline(always)]
pub(crate) fn sent_to(sk: u64, message: u64) -> (Remote, bool) {
    match read::<u64>(message, offset!(msghdr_name)) {
        Some(0) => (connected(sk), true),
        // TCP ignores the address of a message once it is connected or connecting.
        Some(_) if stream_to_somewhere(sk) => (connected(sk), true),
        // UDP takes an address without a family for IPv4.
        Some(name) => match remote_of(name, SOCKADDR_IN6_LEN) {
            Remote::Unspecified(addr, port) if port != 0 => (Remote::Inet(addr, port), false),
            Remote::Unspecified(..) => (Remote::Other, false),
            remote => (remote, false),
        },
        None => (Remote::Unreadable, false),
    }
}

/// The address that a message names, as the kernel holds it; zero: none, or that of the connection.
#[inline(always)]
pub(crate) fn named(message: u64, connected: bool) -> u64 {
    if connected {
        return 0;
    }
    match read::<u64>(message, offset!(msghdr_name)) {
        Some(name) => name,
        None => 0,
    }
}

/// Whether a TCP socket has a remote end, or that cannot be read.
#[inline(always)]
fn stream_to_somewhere(sk: u64) -> bool {
    match (protocol(sk), read::<u16>(sk, offset!(sk_dport_be))) {
        (Some(IPPROTO_TCP | IPPROTO_MPTCP), Some(port)) => port != 0,
        (Some(_), Some(_)) => false,
        (None, _) | (_, None) => true,
    }
}

/// The remote end that a kernel copy of a socket address names.
#[inline(always)]
pub(crate) fn remote_of(address: u64, length: usize) -> Remote {
    let Some(family) = read::<u16>(address, 0) else { return Remote::Unreadable };
    match family {
        AF_INET | AF_UNSPEC => {
            if length < SOCKADDR_IN_LEN {
                return Remote::Other;
            }
            let (Some(port), Some(octets)) = (read::<[u8; 2]>(address, 2), read(address, 4)) else {
                return Remote::Unreadable;
            };
            let (addr, port) = (Addr::v4(octets), u16::from_be_bytes(port));
            if family == AF_INET { Remote::Inet(addr, port) } else { Remote::Unspecified(addr, port) }
        }
        AF_INET6 => {
            if length < SOCKADDR_IN6_LEN {
                return Remote::Other;
            }
            let (Some(port), Some(octets)) = (read::<[u8; 2]>(address, 2), read(address, 8)) else {
                return Remote::Unreadable;
            };
            Remote::Inet(Addr::v6_words(octets), u16::from_be_bytes(port))
        }
        _ => Remote::Other,
    }
}

/// The `struct sock` behind a file, as a number. The outer `None`: it cannot be read; the inner: it is no socket.
#[inline(always)]
pub(crate) fn sock_behind(file: u64) -> Option<Option<u64>> {
    let inode: u64 = read(file, offset!(file_inode))?;
    if file_type(read::<u16>(inode, offset!(inode_mode))?) != S_IFSOCK {
        return Some(None);
    }
    let sock: u64 = read(file, offset!(file_private))?;
    let sk: u64 = read(sock, offset!(socket_sk))?;
    Some((sk != 0).then_some(sk))
}

/// The remote end that a socket is connected to.
#[inline(always)]
pub(crate) fn connected(sk: u64) -> Remote {
    let Some(family) = read::<u16>(sk, offset!(sk_family)) else { return Remote::Unreadable };
    let Some(port) = read::<[u8; 2]>(sk, offset!(sk_dport_be)).map(u16::from_be_bytes) else {
        return Remote::Unreadable;
    };
    let addr = match family {
        AF_INET => read(sk, offset!(sk_daddr)).map(Addr::v4),
        AF_INET6 => read(sk, offset!(sk_v6_daddr)).map(Addr::v6_words),
        _ => return Remote::Other,
    };
    match addr {
        // Not connected: the address, if any, comes with each message.
        Some(_) if port == 0 => Remote::Other,
        Some(addr) => Remote::Inet(addr, port),
        None => Remote::Unreadable,
    }
}

/// The `sk` of a `struct socket`, as a pointer the verifier knows; null where there is none.
#[inline(always)]
pub(crate) fn sk_of(sock: *const c_void) -> *mut c_void {
    let at = offset!(socket_sk);
    // SAFETY: a member of a kernel structure that the verifier knows by its BTF; volatile, so
    // that the load keeps that type.
    unsafe { core::ptr::read_volatile(sock.cast::<u8>().add(at).cast::<*mut c_void>()) }
}

#[inline(always)]
pub(crate) fn inet(sk: u64) -> bool {
    matches!(read::<u16>(sk, offset!(sk_family)), Some(AF_INET | AF_INET6))
}

/// The local port of a socket; zero: none yet, or it cannot be read.
#[inline(always)]
pub(crate) fn port_of(sk: u64) -> u16 {
    match read(sk, offset!(sk_num)) {
        Some(port) => port,
        None => 0,
    }
}

/// The protocol number of a socket.
#[inline(always)]
pub(crate) fn protocol(sk: u64) -> Option<u16> {
    read(sk, offset!(sk_protocol))
}
