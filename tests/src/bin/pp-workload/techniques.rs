//! The ways to reach an address, one attempt each.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrStorage, sendmmsg, setsockopt, socket, sockopt::TcpFastOpenConnect,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::args::TechniqueArg;
use crate::outcome::Outcome;
use crate::raw;

/// What every technique sends.
pub(crate) const PAYLOAD: &[u8] = b"pp-workload";
const DEADLINE: Duration = Duration::from_secs(4);
/// The lab's name server: nothing that anybody protects.
const HARMLESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 53), 53);
/// `IPPROTO_MPTCP` and `IPPROTO_UDPLITE` of `linux/in.h`.
const MPTCP: i32 = 262;
const UDPLITE: i32 = 136;
/// `MSG_FASTOPEN` of `linux/socket.h`.
const MSG_FASTOPEN: i32 = 0x2000_0000;

/// Makes one attempt at the target.
pub(crate) fn attempt(technique: TechniqueArg, target: SocketAddr) -> Outcome {
    Outcome(match technique {
        TechniqueArg::TcpConnect => connect(target, None),
        TechniqueArg::TcpMapped => connect(mapped(target), None),
        TechniqueArg::Mptcp => connect(target, Some(Protocol::from(MPTCP))),
        TechniqueArg::Fastopen => fastopen(target),
        TechniqueArg::FastopenMapped => fastopen(mapped(target)),
        TechniqueArg::FastopenConnect => fastopen_connect(target),
        TechniqueArg::UdpSendto => datagram(target).and_then(|s| s.send_to(PAYLOAD, &target.into())),
        TechniqueArg::UdpMapped => datagram(mapped(target)).and_then(|s| s.send_to(PAYLOAD, &mapped(target).into())),
        TechniqueArg::UdpConnectSend => datagram(target).and_then(|s| s.connect(&target.into()).and_then(|()| s.send(PAYLOAD))),
        TechniqueArg::UdpUnspec => datagram(target).and_then(|s| raw::send_unspecified_family(&s, target)),
        TechniqueArg::UdpConnectedElsewhere => connected_elsewhere(target),
        TechniqueArg::Sendmmsg => send_many(target),
        TechniqueArg::Udplite => udplite(target),
        TechniqueArg::RawIcmp => raw::icmp_echo(target),
        TechniqueArg::RawHdrincl => raw::header_included(target),
        TechniqueArg::Packet => raw::packet_socket(target),
    })
}

/// The address as an IPv4-mapped IPv6 one.
pub(crate) fn mapped(target: SocketAddr) -> SocketAddr {
    match target.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), target.port()),
        IpAddr::V6(_) => target,
    }
}

fn connect(target: SocketAddr, protocol: Option<Protocol>) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, protocol)?;
    socket.connect_timeout(&target.into(), DEADLINE)?;
    socket.send(PAYLOAD)
}

fn fastopen(target: SocketAddr) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_write_timeout(Some(DEADLINE))?;
    socket.send_to_with_flags(PAYLOAD, &target.into(), MSG_FASTOPEN)
}

fn fastopen_connect(target: SocketAddr) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    setsockopt(&socket, TcpFastOpenConnect, &true)?;
    socket.set_write_timeout(Some(DEADLINE))?;
    socket.connect(&target.into())?;
    socket.send(PAYLOAD)
}

fn datagram(target: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(target), Type::DGRAM, None)
}

/// A UDP socket connected to the lab's name server that then names another address.
fn connected_elsewhere(target: SocketAddr) -> io::Result<usize> {
    let socket = datagram(target)?;
    socket.connect(&HARMLESS.into())?;
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

fn udplite(target: SocketAddr) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(target), Type::DGRAM, Some(Protocol::from(UDPLITE)))?;
    socket.connect(&target.into())?;
    socket.send(PAYLOAD)
}
