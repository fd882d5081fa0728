//! TCP sockets that carry a mark, whoever has them open or nobody: found by `sock_diag`, which tells the mark of each, and ended by it.
//!
//! Written by hand: no crate knows the attribute that asks for marks (`netlink-packet-sock-diag` has none of `INET_DIAG_REQ_*`).

use std::{
    fs, io,
    mem::offset_of,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
            sockopt::{RcvBuf, ReceiveTimeout},
        },
        time::{TimeVal, TimeValLike as _},
    },
};
use pp_common::{abi::SockMark, decide::transport};

/// `linux/sock_diag.h`, `linux/inet_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;
/// `linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;
/// `nlmsghdr`; `inet_diag_req_v2`; `inet_diag_msg`; `inet_diag_sockid` and where it is in the latter two.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const MESSAGE: usize = 72;
const IDENTITY: usize = 48;
const IDENTITY_IN_MESSAGE: usize = 4;
/// Connections in every state but the two of which no socket is left, and listeners: `net/tcp_states.h`.
const STATES: u32 = !(1 << 6 | 1 << 10 | 1 << 12);
/// More than the kernel puts into one answer.
const ANSWER: usize = 64 * 1024;
/// How long the kernel may think.
const PATIENCE_S: i64 = 10;

/// A TCP socket with a mark.
#[derive(Clone, Debug)]
pub struct Marked {
    /// Its mark.
    pub mark: SockMark,
    /// Its own address.
    pub local: SocketAddr,
    /// The far end.
    pub peer: SocketAddr,
    /// The link it is bound to; zero: none.
    pub ifindex: u32,
    /// Number of the socket, never used again while the host is up.
    pub cookie: u64,
    /// No process has it open any more.
    pub orphan: bool,
    family: u8,
    identity: [u8; IDENTITY],
}

/// Every TCP socket of a network namespace that has a mark in this map.
///
/// # Errors
/// The kernel has no `sock_diag` for TCP, or the namespace cannot be entered.
pub fn marked(namespace: BorrowedFd<'_>, socks: BorrowedFd<'_>) -> io::Result<Vec<Marked>> {
    within(namespace, || {
        let netlink = open()?;
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            dump(&netlink, u8::try_from(family).map_err(io::Error::other)?, socks, &mut found)?;
        }
        Ok(found)
    })
}

/// Ends a connection at once, with all that is in its queue.
///
/// # Errors
/// The kernel cannot, or it has ended by itself.
pub fn destroy(namespace: BorrowedFd<'_>, found: &Marked) -> io::Result<()> {
    let mut request = header(SOCK_DESTROY, libc::NLM_F_REQUEST | libc::NLM_F_ACK)?;
    request.extend([found.family, transport::TCP, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(found.identity);
    finish(&mut request)?;
    within(namespace, || {
        let netlink = open()?;
        send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut answer = vec![0; ANSWER];
        let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        match messages(&answer[..length]).next() {
            Some((NLMSG_ERROR, body)) => told(body),
            Some(_) | None => Err(io::Error::other("sock_diag: an answer that is none")),
        }
    })
}

/// Does it in that namespace, by a thread of its own: one that entered a namespace stays there.
fn within<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        there.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
    })
}

fn open() -> io::Result<OwnedFd> {
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    setsockopt(&netlink, RcvBuf, &(1 << 20))?;
    setsockopt(&netlink, ReceiveTimeout, &TimeVal::seconds(PATIENCE_S))?;
    Ok(netlink)
}

fn header(kind: u16, flags: i32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(u16::try_from(flags).map_err(io::Error::other)?.to_ne_bytes());
    bytes.extend([0; 8]);
    Ok(bytes)
}

/// Writes its length into a message.
fn finish(bytes: &mut [u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    Ok(())
}

fn dump(netlink: &OwnedFd, family: u8, socks: BorrowedFd<'_>, found: &mut Vec<Marked>) -> io::Result<()> {
    let mut request = header(SOCK_DIAG_BY_FAMILY, libc::NLM_F_REQUEST | libc::NLM_F_DUMP)?;
    request.extend([family, transport::TCP, 0, 0]);
    request.extend(STATES.to_ne_bytes());
    request.extend([0; IDENTITY]);
    debug_assert_eq!(request.len(), HEADER + REQUEST);
    // One attribute in another: the map whose values are asked for.
    request.extend(12_u16.to_ne_bytes());
    request.extend((INET_DIAG_REQ_SK_BPF_STORAGES | NLA_F_NESTED).to_ne_bytes());
    request.extend(8_u16.to_ne_bytes());
    request.extend(SK_DIAG_BPF_STORAGE_REQ_MAP_FD.to_ne_bytes());
    request.extend(socks.as_raw_fd().cast_unsigned().to_ne_bytes());
    finish(&mut request)?;
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = vec![0; ANSWER];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        if length == 0 {
            return Err(io::Error::other("sock_diag: no answer"));
        }
        for (kind, body) in messages(&answer[..length]) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return told(body),
                _ => found.extend(read(body)),
            }
        }
    }
}

/// The errno of an `nlmsgerr`, which is its negative.
fn told(body: &[u8]) -> io::Result<()> {
    match body.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::Error::other("sock_diag: a short answer")),
    }
}

/// The messages of one answer: their type and what is behind their header.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(4..6)?.first_chunk()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The attributes in some bytes: their type and value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..4)?.first_chunk()?) & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// One socket of a dump; `None`: it has no mark.
fn read(body: &[u8]) -> Option<Marked> {
    let storages = attribute(body.get(MESSAGE..)?, INET_DIAG_SK_BPF_STORAGES)?;
    let value = attribute(attribute(storages, SK_DIAG_BPF_STORAGE)?, SK_DIAG_BPF_STORAGE_MAP_VALUE)?;
    let mark = mark(value)?;
    let identity: [u8; IDENTITY] = *body.get(IDENTITY_IN_MESSAGE..)?.first_chunk()?;
    let family = *body.first()?;
    let end = |port: usize, address: usize| -> Option<SocketAddr> {
        let port = u16::from_be_bytes(*identity.get(port..)?.first_chunk()?);
        let address = identity.get(address..)?;
        let ip = match i32::from(family) {
            libc::AF_INET => IpAddr::from(*address.first_chunk::<4>()?),
            _ => IpAddr::from(*address.first_chunk::<16>()?),
        };
        Some(SocketAddr::new(ip, port))
    };
    Some(Marked {
        mark,
        local: end(0, 4)?,
        peer: end(2, 20)?,
        ifindex: u32::from_ne_bytes(*identity.get(36..)?.first_chunk()?),
        cookie: u64::from_ne_bytes(*identity.get(40..)?.first_chunk()?),
        orphan: u32::from_ne_bytes(*body.get(MESSAGE - 4..)?.first_chunk()?) == 0,
        family,
        identity,
    })
}

/// A mark from its bytes, of which other layouts have the first members alone in common; `None`: the socket was released.
fn mark(value: &[u8]) -> Option<SockMark> {
    const COMMON: usize = offset_of!(SockMark, tgid) + size_of::<u32>();
    let length = if value.len() == size_of::<SockMark>() { value.len() } else { COMMON };
    let bytes = value.get(..length)?;
    let mut mark = SockMark::default();
    // SAFETY: both are valid for that many bytes, and integers take any.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut mark).cast::<u8>(), length) };
    (mark.session != 0).then_some(mark)
}

/// What tells a network namespace from others: the device and inode of its file.
pub type Id = (u64, u64);

/// The network namespace at this path: its file, and what tells it from others.
pub(crate) fn namespace(path: &str) -> io::Result<(Id, fs::File)> {
    use std::os::unix::fs::MetadataExt as _;
    let file = fs::File::open(path)?;
    let about = file.metadata()?;
    Ok(((about.dev(), about.ino()), file))
}

/// Whether this kernel can find and end sockets so: it is asked for a socket that cannot be.
///
/// # Errors
/// It cannot; what it said.
pub fn works(socks: BorrowedFd<'_>) -> io::Result<()> {
    let (_, own) = namespace("/proc/self/ns/net")?;
    let _found = marked(own.as_fd(), socks)?;
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut identity = [0; IDENTITY];
    identity[..40].fill(0xfe);
    let nobody = Marked {
        mark: SockMark::default(),
        local: nowhere,
        peer: nowhere,
        ifindex: 0,
        cookie: 0,
        orphan: true,
        family: u8::try_from(libc::AF_INET).map_err(io::Error::other)?,
        identity,
    };
    match destroy(own.as_fd(), &nobody) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Err(io::Error::other("sock_diag ended a socket that cannot be")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute_of(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(inode: u32, value: &[u8]) -> Vec<u8> {
        let mut body = vec![0; MESSAGE];
        body[0] = u8::try_from(libc::AF_INET).unwrap();
        body[4..8].copy_from_slice(&[0x9c, 0x40, 0x01, 0xf6]);
        body[8..12].copy_from_slice(&[10, 99, 0, 2]);
        body[24..28].copy_from_slice(&[10, 20, 4, 7]);
        body[44..52].copy_from_slice(&77_u64.to_ne_bytes());
        body[MESSAGE - 4..].copy_from_slice(&inode.to_ne_bytes());
        body.extend(attribute_of(8, &[1, 0]));
        let value = attribute_of(SK_DIAG_BPF_STORAGE_MAP_VALUE, value);
        let storage = attribute_of(SK_DIAG_BPF_STORAGE | NLA_F_NESTED, &[attribute_of(2, &[9; 4]), value].concat());
        body.extend(attribute_of(INET_DIAG_SK_BPF_STORAGES | NLA_F_NESTED, &storage));
        body
    }

    #[test]
    fn socket_with_a_mark_is_read_and_others_are_left_out() {
        let mut value = vec![0; size_of::<SockMark>()];
        value[..8].copy_from_slice(&5_u64.to_ne_bytes());
        let found = read(&message(0, &value)).unwrap();
        assert_eq!((found.mark.session, found.cookie, found.orphan), (5, 77, true));
        assert_eq!((found.local, found.peer), ("10.99.0.2:40000".parse().unwrap(), "10.20.4.7:502".parse().unwrap()));
        assert!(!read(&message(3, &value)).unwrap().orphan);
        // Released; cut short; without a mark; of another layout.
        assert!(read(&message(0, &vec![0; size_of::<SockMark>()])).is_none());
        assert!(read(&message(0, &value[..20])).is_none());
        let other = [&value[..], &[7; 8]].concat();
        assert_eq!(read(&message(0, &other)).unwrap().mark.session, 5);
        assert!(read(&message(0, &value)[..MESSAGE]).is_none());
        assert!((0..MESSAGE + 60).all(|length| read(&message(0, &value)[..length]).is_none()));
    }

    #[test]
    fn messages_end_where_their_lengths_say() {
        let mut bytes = header(NLMSG_DONE, 2).unwrap();
        bytes.extend([1, 2, 3]);
        finish(&mut bytes).unwrap();
        bytes.push(0);
        let second = bytes.clone();
        bytes.extend(second);
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(all, [(NLMSG_DONE, &[1_u8, 2, 3][..]); 2]);
        assert_eq!(messages(&bytes[..18]).count(), 0);
        assert_eq!(messages(&[0; 40]).count(), 0);
    }
}
