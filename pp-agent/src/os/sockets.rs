//! Sockets of other processes: finding, describing and ending them.

use std::{
    fs, io,
    mem::{size_of, zeroed},
    net::{IpAddr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use netlink_packet_sock_diag::inet::SocketId;
use pp_common::{
    abi::{SOCK_REFUSED, SockMark},
    decide::transport,
};

use super::{
    diag,
    netns::Namespace,
    process::{pidfd, pidfd_getfd},
};

const IPPROTO_MPTCP: i32 = 262;
/// `asm-generic/socket.h`
const SO_BINDTOIFINDEX: libc::c_int = 62;

/// An inet socket of another process.
#[derive(Debug)]
pub(crate) struct Socket {
    /// Our own descriptor for it.
    pub(crate) fd: OwnedFd,
    /// IP protocol number, MPTCP as TCP.
    pub(crate) transport: u8,
    /// Its own address.
    pub(crate) local: Option<SocketAddr>,
    /// The remote end, if it is connected.
    pub(crate) peer: Option<SocketAddr>,
    /// Whether it accepts connections.
    pub(crate) listening: bool,
    /// Inode number of its network namespace; zero: unknown, so that what depends on it is refused.
    pub(crate) netns: u32,
    /// The link it is bound to, as every connection to a link-local address is; zero: none.
    pub(crate) ifindex: u32,
}

/// The inet sockets of a process. Sockets that are closed at the same time may be left out.
///
/// # Errors
/// The process has ended, or may not be accessed.
pub(crate) fn of_process(pid: u32) -> io::Result<Vec<Socket>> {
    let process = pidfd(pid)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let is_socket = fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
        let number = entry.file_name().to_string_lossy().parse::<RawFd>();
        if let (true, Ok(number)) = (is_socket, number)
            && let Ok(fd) = pidfd_getfd(process.as_fd(), number)
            && let Some(socket) = describe(pid, fd)
        {
            found.push(socket);
        }
    }
    Ok(found)
}

fn describe(pid: u32, fd: OwnedFd) -> Option<Socket> {
    let family = option(&fd, libc::SO_DOMAIN)?;
    if family != libc::AF_INET && family != libc::AF_INET6 {
        return None;
    }
    let protocol = option(&fd, libc::SO_PROTOCOL)?;
    let transport = match protocol {
        IPPROTO_MPTCP => transport::TCP,
        other => u8::try_from(other).ok()?,
    };
    let listening = option(&fd, libc::SO_ACCEPTCONN)? != 0;
    let local = name(&fd, false);
    // `getpeername` fails for a socket that is still connecting.
    let peer = name(&fd, true).or_else(|| connecting_to(pid, &fd, transport, family));
    let netns = Namespace::of_socket(fd.as_fd()).map_or(0, |namespace| namespace.number());
    let bound = option(&fd, SO_BINDTOIFINDEX).and_then(|index| u32::try_from(index).ok()).filter(|index| *index != 0);
    let ifindex = bound.or_else(|| scope_id(peer?)).unwrap_or(0);
    Some(Socket { fd, transport, local, peer, listening, netns, ifindex })
}

/// The remote end of a TCP socket, from its line in `/proc/<pid>/net` (proc_net_tcp).
fn connecting_to(pid: u32, fd: &OwnedFd, transport: u8, family: i32) -> Option<SocketAddr> {
    if transport != transport::TCP {
        return None;
    }
    let inode = nix::sys::stat::fstat(fd).ok()?.st_ino.to_string();
    let table = if family == libc::AF_INET { "tcp" } else { "tcp6" };
    let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok()?;
    let line = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let (addr, port) = line.filter(|fields| fields.get(9) == Some(&inode.as_str())).find_map(|fields| fields.get(2)?.split_once(':'))?;
    // Words of four octets, each in the host's byte order.
    let words: Option<Vec<u32>> = (0..addr.len() / 8).map(|word| u32::from_str_radix(addr.get(word * 8..word * 8 + 8)?, 16).ok()).collect();
    let octets: Vec<u8> = words?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let ip = match <[u8; 4]>::try_from(octets.as_slice()) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(octets.as_slice()).ok()?),
    };
    let port = u16::from_str_radix(port, 16).ok().filter(|port| *port != 0)?;
    Some(SocketAddr::new(ip, port))
}

/// The link that an address names.
fn scope_id(address: SocketAddr) -> Option<u32> {
    match address {
        SocketAddr::V6(v6) => Some(v6.scope_id()),
        SocketAddr::V4(_) => None,
    }
}

fn option(fd: &OwnedFd, which: libc::c_int) -> Option<i32> {
    let mut value: i32 = 0;
    let mut length = libc::socklen_t::try_from(size_of::<i32>()).ok()?;
    // SAFETY: `value` is valid for `length` bytes.
    let result = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, which, (&raw mut value).cast(), &raw mut length) };
    (result == 0).then_some(value)
}

fn name(fd: &OwnedFd, peer: bool) -> Option<SocketAddr> {
    // SAFETY: plain bytes, all zero is a value.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::sockaddr_storage>()).ok()?;
    let address = (&raw mut storage).cast();
    // SAFETY: `storage` is valid for `length` bytes.
    let result = unsafe {
        if peer {
            libc::getpeername(fd.as_raw_fd(), address, &raw mut length)
        } else {
            libc::getsockname(fd.as_raw_fd(), address, &raw mut length)
        }
    };
    if result != 0 {
        return None;
    }
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which structure it is.
            let v4: libc::sockaddr_in = unsafe { *(&raw const storage).cast() };
            let ip = IpAddr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::new(ip, u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says which structure it is.
            let v6: libc::sockaddr_in6 = unsafe { *(&raw const storage).cast() };
            let scoped = SocketAddrV6::new(v6.sin6_addr.s6_addr.into(), u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id);
            Some(SocketAddr::V6(scoped))
        }
        _ => None,
    }
}

/// Ends a connection at once: its program gets `ECONNABORTED`. If the kernel has no `SOCK_DESTROY`, the socket is disconnected and its
/// program gets `ECONNRESET`.
///
/// # Errors
/// Neither way worked. Egress and ingress still refuse its packets.
pub(crate) fn destroy(socket: &Socket) -> io::Result<()> {
    match destroy_by_diag(socket) {
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::debug!("SOCK_DESTROY: {error}");
            disconnect(&socket.fd)
        }
    }
}

/// Ends a TCP flow that had a packet refused, before its mark is removed, since the refused data is still in its queue.
pub(crate) fn end_if_refused(socket: &Socket, mark: &SockMark) {
    if mark.flags & SOCK_REFUSED == 0 || socket.transport != transport::TCP {
        return;
    }
    if let Err(error) = destroy(socket) {
        tracing::warn!("a flow that was refused cannot be ended: {error}");
    }
}

fn disconnect(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain bytes, all zero is `AF_UNSPEC`.
    let address: libc::sockaddr = unsafe { zeroed() };
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr>()).map_err(io::Error::other)?;
    // SAFETY: a valid address of that length.
    let result = unsafe { libc::connect(fd.as_raw_fd(), &raw const address, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn destroy_by_diag(socket: &Socket) -> io::Result<()> {
    let missing = || io::Error::new(io::ErrorKind::NotConnected, "the socket has no far end");
    let (local, peer) = (socket.local.ok_or_else(missing)?, socket.peer.ok_or_else(missing)?);
    let id = SocketId {
        source_port: local.port(),
        destination_port: peer.port(),
        source_address: local.ip(),
        destination_address: peer.ip(),
        // A socket that is bound to a link is only found with its link.
        interface_id: socket.ifindex,
        cookie: cookie(&socket.fd)?.to_ne_bytes(),
    };
    diag::destroy_one(Namespace::of_socket(socket.fd.as_fd())?.as_fd(), socket.transport, id)
}

fn cookie(fd: &OwnedFd) -> io::Result<u64> {
    let mut value: u64 = 0;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: `value` is valid for `length` bytes.
    let result = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut value).cast(), &raw mut length) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// A descriptor borrowed from a socket.
impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
