//! Finds and ends TCP sockets with a mark by `sock_diag`, whether or not a process has them open.
//!
//! `netlink-packet-sock-diag` writes the requests, including `SOCK_DESTROY`. It lacks the attributes for marks
//! (`INET_DIAG_REQ_SK_BPF_STORAGES`), so they are written and read here.

use std::{
    fs, io,
    mem::offset_of,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use netlink_packet_core::{Emitable as _, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NetlinkSerializable as _, Parseable as _};
use netlink_packet_sock_diag::{
    SOCK_DIAG_BY_FAMILY, SockDiagDestroy, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};
use nix::sys::{
    socket::{
        setsockopt,
        sockopt::{RcvBuf, ReceiveTimeout},
    },
    time::{TimeVal, TimeValLike as _},
};
use pp_common::{abi::SockMark, decide::transport};

use super::{
    netlink::{attributes, messages, outcome, request},
    netns::within,
};

/// `linux/inet_diag.h`, `linux/sock_diag.h`.
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;
/// `linux/netlink.h`.
const NLA_F_NESTED: u16 = 1 << 15;
/// `inet_diag_msg`.
const MESSAGE: usize = 72;
/// Every state except listeners and the two states without a full socket: `net/tcp_states.h`.
const STATES: u32 = !(1 << 6 | 1 << 10 | 1 << 12);
/// Size of the buffer for an answer. The kernel sends less at once.
const ANSWER: usize = 64 * 1024;
/// How long to wait for the kernel, in seconds.
const PATIENCE_S: i64 = 10;

/// A TCP socket with a mark.
#[derive(Clone, Debug)]
pub(crate) struct Marked {
    /// Its mark.
    pub(crate) mark: SockMark,
    /// Its own address.
    pub(crate) local: SocketAddr,
    /// The remote end.
    pub(crate) peer: SocketAddr,
    /// The link it is bound to; zero: none.
    pub(crate) ifindex: u32,
    /// The number of the socket, unique until the next boot.
    pub(crate) cookie: u64,
    /// Whether no process has it open any more.
    pub(crate) orphan: bool,
    id: SocketId,
}

/// Every TCP socket of a network namespace that has a mark in this map.
///
/// # Errors
/// The kernel has no `sock_diag` for TCP, or the namespace cannot be entered.
pub(crate) fn marked(namespace: BorrowedFd<'_>, socks: BorrowedFd<'_>) -> io::Result<Vec<Marked>> {
    within(namespace, || {
        let netlink = open()?;
        let mut found = Vec::new();
        for id in [SocketId::new_v4(), SocketId::new_v6()] {
            dump(&netlink, id, socks, &mut found)?;
        }
        Ok(found)
    })
}

/// Ends a connection at once, and discards its queue.
///
/// # Errors
/// The kernel cannot do it, or the connection has ended by itself.
pub(crate) fn destroy(namespace: BorrowedFd<'_>, found: &Marked) -> io::Result<()> {
    destroy_one(namespace, transport::TCP, found.id.clone())
}

/// Ends the connection of this protocol, addresses and cookie.
///
/// # Errors
/// As for [`destroy`].
pub(super) fn destroy_one(namespace: BorrowedFd<'_>, transport: u8, id: SocketId) -> io::Result<()> {
    let destroy = SockDiagDestroy::new(SockDiagMessage::InetRequest(about(transport, u32::MAX, id)?));
    let mut payload = vec![0; destroy.buffer_len()];
    destroy.serialize(&mut payload);
    let request = request(destroy.message_type(), NLM_F_REQUEST | NLM_F_ACK, &payload)?;
    within(namespace, || {
        let netlink = open()?;
        netlink.send(&request, 0)?;
        let mut answer = Vec::with_capacity(ANSWER);
        netlink.recv(&mut answer, 0)?;
        let first = messages(&answer).next().transpose()?;
        first.and_then(|message| outcome(&message)).unwrap_or_else(|| Err(io::Error::other("sock_diag: an answer that is none")))
    })
}

fn open() -> io::Result<Socket> {
    let netlink = Socket::new(NETLINK_SOCK_DIAG)?;
    setsockopt(&netlink, RcvBuf, &(1 << 20))?;
    setsockopt(&netlink, ReceiveTimeout, &TimeVal::seconds(PATIENCE_S))?;
    Ok(netlink)
}

/// The part of a request that selects sockets.
fn about(transport: u8, states: u32, id: SocketId) -> io::Result<InetRequest> {
    let family = if id.source_address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    Ok(InetRequest {
        family: u8::try_from(family).map_err(io::Error::other)?,
        protocol: transport,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::from_bits_retain(states),
        socket_id: id,
    })
}

fn dump(netlink: &Socket, id: SocketId, socks: BorrowedFd<'_>, found: &mut Vec<Marked>) -> io::Result<()> {
    let head = about(transport::TCP, STATES, id)?;
    let mut payload = vec![0; head.buffer_len()];
    head.emit(&mut payload);
    // A nested attribute: the map whose values to return.
    payload.extend(12_u16.to_ne_bytes());
    payload.extend((INET_DIAG_REQ_SK_BPF_STORAGES | NLA_F_NESTED).to_ne_bytes());
    payload.extend(8_u16.to_ne_bytes());
    payload.extend(SK_DIAG_BPF_STORAGE_REQ_MAP_FD.to_ne_bytes());
    payload.extend(socks.as_raw_fd().cast_unsigned().to_ne_bytes());
    netlink.send(&request(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, &payload)?, 0)?;
    let mut answer = Vec::with_capacity(ANSWER);
    loop {
        answer.clear();
        netlink.recv(&mut answer, 0)?;
        if answer.is_empty() {
            return Err(io::Error::other("sock_diag: no answer"));
        }
        for message in messages(&answer) {
            let message = message?;
            if message.kind == NLMSG_DONE {
                return Ok(());
            }
            match outcome(&message) {
                Some(ended) => return ended,
                None => found.extend(read(message.payload)),
            }
        }
    }
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// One socket of a dump; `None`: it has no mark.
fn read(body: &[u8]) -> Option<Marked> {
    let storages = attribute(body.get(MESSAGE..)?, INET_DIAG_SK_BPF_STORAGES)?;
    let value = attribute(attribute(storages, SK_DIAG_BPF_STORAGE)?, SK_DIAG_BPF_STORAGE_MAP_VALUE)?;
    let mark = mark(value)?;
    let InetResponseHeader { socket_id: id, inode, .. } = InetResponseHeader::parse(body).ok()?;
    Some(Marked {
        mark,
        local: SocketAddr::new(id.source_address, id.source_port),
        peer: SocketAddr::new(id.destination_address, id.destination_port),
        ifindex: id.interface_id,
        cookie: u64::from_ne_bytes(id.cookie),
        orphan: inode == 0,
        id,
    })
}

/// Reads a mark. Other layouts share only the first members with this one. `None`: the socket was released.
fn mark(value: &[u8]) -> Option<SockMark> {
    const COMMON: usize = offset_of!(SockMark, tgid) + size_of::<u32>();
    let length = if value.len() == size_of::<SockMark>() { value.len() } else { COMMON };
    let bytes = value.get(..length)?;
    let mut mark = SockMark::default();
    // SAFETY: both are valid for that many bytes, and integers take any.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut mark).cast::<u8>(), length) };
    (mark.session != 0).then_some(mark)
}

/// Identifies a network namespace: the device and inode of its file.
pub(crate) type Id = (u64, u64);

/// Opens the network namespace at this path.
pub(crate) fn namespace(path: &str) -> io::Result<(Id, fs::File)> {
    use std::os::unix::fs::MetadataExt as _;
    let file = fs::File::open(path)?;
    let about = file.metadata()?;
    Ok(((about.dev(), about.ino()), file))
}

/// Checks that this kernel can find and end sockets this way, by asking for a socket that cannot exist.
///
/// # Errors
/// It cannot, with the kernel's error.
pub(crate) fn works(socks: BorrowedFd<'_>) -> io::Result<()> {
    let (_, own) = namespace("/proc/self/ns/net")?;
    let _found = marked(own.as_fd(), socks)?;
    let nobody = SocketId {
        source_port: 0xfefe,
        destination_port: 0xfefe,
        source_address: [0xfe; 4].into(),
        destination_address: [0xfe; 4].into(),
        interface_id: 0xfefe_fefe,
        cookie: [0; 8],
    };
    match destroy_one(own.as_fd(), transport::TCP, nobody) {
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
        // A released socket, a short message, one without a mark, and one of another layout.
        assert!(read(&message(0, &vec![0; size_of::<SockMark>()])).is_none());
        assert!(read(&message(0, &value[..20])).is_none());
        let other = [&value[..], &[7; 8]].concat();
        assert_eq!(read(&message(0, &other)).unwrap().mark.session, 5);
        assert!(read(&message(0, &value)[..MESSAGE]).is_none());
        assert!((0..MESSAGE + 60).all(|length| read(&message(0, &value)[..length]).is_none()));
    }

    #[test]
    fn request_to_end_a_connection_names_it_as_the_kernel_does() {
        let id = SocketId {
            source_port: 40_000,
            destination_port: 502,
            source_address: [10, 99, 0, 2].into(),
            destination_address: [10, 20, 4, 7].into(),
            interface_id: 3,
            cookie: 77_u64.to_ne_bytes(),
        };
        let mut bytes = vec![0; 56];
        about(transport::TCP, u32::MAX, id).unwrap().emit(&mut bytes);
        let mut expected = vec![2, transport::TCP, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x9c, 0x40, 0x01, 0xf6];
        for address in [[10, 99, 0, 2], [10, 20, 4, 7]] {
            expected.extend(address);
            expected.extend([0; 12]);
        }
        expected.extend(3_u32.to_ne_bytes());
        expected.extend(77_u64.to_ne_bytes());
        assert_eq!(bytes, expected);
    }
}
