//! The ways to reach an address, one attempt each.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrStorage, sendmmsg, sendmsg, setsockopt, socket,
    sockopt::TcpFastOpenConnect,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::args::TechniqueArg;
use crate::families;
use crate::outcome::Outcome;
use crate::raw;
use crate::uring::{self, Mode};

/// What every technique sends.
pub(crate) const PAYLOAD: &[u8] = b"pp-workload";
/// How long one attempt may wait for the far end.
pub(crate) const DEADLINE: Duration = Duration::from_secs(4);
/// The lab's name server: nothing that anybody protects.
const HARMLESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 53), 53);
/// The lab's web site, likewise.
const WEB: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), 80);
/// The interface of the engineering network, for addresses with a scope.
const INTERFACE: &str = "eth0";
/// `IPPROTO_MPTCP` and `IPPROTO_UDPLITE` of `linux/in.h`.
const MPTCP: i32 = 262;
const UDPLITE: i32 = 136;
/// `MSG_FASTOPEN` of `linux/socket.h`.
const MSG_FASTOPEN: i32 = 0x2000_0000;

/// Makes one attempt at the target.
pub(crate) fn attempt(technique: TechniqueArg, target: SocketAddr) -> Outcome {
    use TechniqueArg as T;
    Outcome(match technique {
        T::TcpConnect => connect(target, None),
        T::TcpScoped => scoped(target).and_then(|target| connect(target, None)),
        T::TcpReconnect => reconnect(target),
        T::Mptcp => connect(target, Some(Protocol::from(MPTCP))),
        T::MptcpFastopen => fastopen(target, Some(Protocol::from(MPTCP))),
        T::Fastopen => fastopen(target, None),
        T::FastopenSendmsg => fastopen_sendmsg(target),
        T::FastopenConnect => fastopen_connect(target),
        T::UdpSendto => datagram(target).and_then(|s| s.send_to(PAYLOAD, &target.into())),
        T::UdpScoped => scoped(target).and_then(|target| datagram(target)?.send_to(PAYLOAD, &target.into())),
        T::UdpSendmsg => udp_sendmsg(target, &[]),
        T::UdpSegmented => udp_sendmsg(target, &[ControlMessage::UdpGsoSegments(&4)]),
        T::UdpConnectSend => connected(target).and_then(|s| s.send(PAYLOAD)),
        T::UdpConnectWrite => connected(target).and_then(|mut s| s.write(PAYLOAD)),
        T::UdpUnspec => datagram(target).and_then(|s| raw::send_unspecified_family(&s, target)),
        T::UdpInetOnV6 => Socket::new(Domain::IPV6, Type::DGRAM, None).and_then(|s| s.send_to(PAYLOAD, &target.into())),
        T::UdpConnectedElsewhere => connected_elsewhere(target),
        T::UdpBroadcast => datagram(target).and_then(|s| {
            s.set_broadcast(true)?;
            s.send_to(PAYLOAD, &target.into())
        }),
        T::Sendmmsg => send_many(target),
        T::Udplite => udplite(target).and_then(|s| s.connect(&target.into()).and_then(|()| s.send(PAYLOAD))),
        T::UdpliteSendto => udplite(target).and_then(|s| s.send_to(PAYLOAD, &target.into())),
        T::Ping => raw::ping(target),
        T::RawIcmp => raw::icmp_echo(target),
        T::RawProtocol => raw::other_protocol(target),
        T::RawHdrincl => raw::header_included(target),
        T::RawSourceRoute => raw::source_route(target),
        T::PingSourceRoute => raw::ping_by_route(target),
        T::Packet => raw::packet_socket(target),
        T::PacketOldName => raw::old_packet_socket(target),
        T::Vsock => families::vsock(),
        T::Sctp => families::stream_of(target, Type::STREAM, families::SCTP),
        T::SctpMany => families::sctp_many(target),
        T::SctpConnectx => families::sctp_connectx(target),
        T::Dccp => families::dccp(target),
        T::Smc => families::smc(target),
        T::Rxrpc => families::rxrpc(target),
        T::UringConnect => uring::connect(target, Mode::Inline),
        T::UringConnectWorker => uring::connect(target, Mode::Worker),
        T::UringConnectPoll => uring::connect(target, Mode::Poll),
        T::UringSendmsg => uring::sendmsg(target, Mode::Inline),
        T::UringSendmsgWorker => uring::sendmsg(target, Mode::Worker),
        T::UringSendmsgPoll => uring::sendmsg(target, Mode::Poll),
    })
}

/// A connection and its first bytes.
pub(crate) fn connect(target: SocketAddr, protocol: Option<Protocol>) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, protocol)?;
    socket.connect_timeout(&target.into(), DEADLINE)?;
    socket.send(PAYLOAD)
}

/// The same IPv6 address, with the interface that it is to be reached by.
fn scoped(target: SocketAddr) -> io::Result<SocketAddr> {
    match target {
        SocketAddr::V6(v6) => Ok(SocketAddrV6::new(*v6.ip(), v6.port(), 0, if_nametoindex(INTERFACE)?).into()),
        SocketAddr::V4(_) => Err(io::Error::other("only ipv6 addresses have a scope")),
    }
}

/// A connection elsewhere that is dissolved, and the same socket connected again.
fn reconnect(target: SocketAddr) -> io::Result<usize> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.connect_timeout(&WEB.into(), DEADLINE)?;
    raw::dissolve(&socket)?;
    socket.connect_timeout(&target.into(), DEADLINE)?;
    socket.send(PAYLOAD)
}

fn fastopen(target: SocketAddr, protocol: Option<Protocol>) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, protocol)?;
    socket.set_write_timeout(Some(DEADLINE))?;
    socket.send_to_with_flags(PAYLOAD, &target.into(), MSG_FASTOPEN)
}

fn fastopen_sendmsg(target: SocketAddr) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_write_timeout(Some(DEADLINE))?;
    let flags = MsgFlags::from_bits_retain(MSG_FASTOPEN);
    Ok(sendmsg(socket.as_raw_fd(), &[io::IoSlice::new(PAYLOAD)], &[], flags, Some(&SockaddrStorage::from(target)))?)
}

fn fastopen_connect(target: SocketAddr) -> io::Result<usize> {
    let mut socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    setsockopt(&socket, TcpFastOpenConnect, &true)?;
    socket.set_write_timeout(Some(DEADLINE))?;
    socket.connect(&target.into())?;
    socket.write(PAYLOAD)
}

fn datagram(target: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(target), Type::DGRAM, None)
}

fn connected(target: SocketAddr) -> io::Result<Socket> {
    let socket = datagram(target)?;
    socket.connect(&target.into())?;
    Ok(socket)
}

fn udp_sendmsg(target: SocketAddr, control: &[ControlMessage<'_>]) -> io::Result<usize> {
    let socket = datagram(target)?;
    let address = SockaddrStorage::from(target);
    Ok(sendmsg(socket.as_raw_fd(), &[io::IoSlice::new(PAYLOAD)], control, MsgFlags::empty(), Some(&address))?)
}

/// A UDP socket connected to the lab's name server that then names another address.
fn connected_elsewhere(target: SocketAddr) -> io::Result<usize> {
    let socket = datagram(target)?;
    let harmless = match target {
        SocketAddr::V4(_) => SocketAddr::V4(HARMLESS),
        SocketAddr::V6(_) => SocketAddr::new(HARMLESS.ip().to_ipv6_mapped().into(), HARMLESS.port()),
    };
    socket.connect(&harmless.into())?;
    socket.send_to(PAYLOAD, &target.into())
}

fn send_many(target: SocketAddr) -> io::Result<usize> {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Datagram, SockFlag::empty(), None)?;
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(3, None);
    let slices = [[io::IoSlice::new(PAYLOAD)], [io::IoSlice::new(PAYLOAD)], [io::IoSlice::new(PAYLOAD)]];
    let addresses = [Some(SockaddrStorage::from(target)); 3];
    let sent = sendmmsg(fd.as_raw_fd(), &mut headers, &slices, addresses, [], MsgFlags::empty())?;
    Ok(sent.map(|message| message.bytes).sum())
}

fn udplite(target: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(target), Type::DGRAM, Some(Protocol::from(UDPLITE)))
}
