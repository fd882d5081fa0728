//! Techniques below the socket calls that the standard library knows: raw and packet sockets, and addresses of an odd family.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use etherparse::{IcmpEchoHeader, Icmpv4Type, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options, PacketBuilder};
use nix::libc;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::techniques::PAYLOAD;

/// `ETH_P_IP` of `linux/if_ether.h`.
const ETH_P_IP: u16 = 0x0800;
/// The hardware address that the lab gives its router on the engineering network.
const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x63, 0x01];
/// Its address there, and the engineering host's own.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const ENGINEERING_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 2);
/// The IP option of RFC 791 that names further hosts to go by.
const LOOSE_ROUTE: u8 = 131;
/// An IP protocol kept free for experiments (RFC 3692).
const EXPERIMENT: i32 = 253;
/// `SOCK_PACKET` of `linux/net.h`.
const SOCK_PACKET: i32 = 10;

fn v4(target: SocketAddr) -> io::Result<Ipv4Addr> {
    match target.ip() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(io::Error::other("this technique is for ipv4 only")),
    }
}

fn family(number: i32) -> io::Result<libc::sa_family_t> {
    libc::sa_family_t::try_from(number).map_err(io::Error::other)
}

fn length<T>() -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)
}

/// A socket address with the bytes of `target` and the family `AF_UNSPEC`.
fn unspecified_family(target: SocketAddr) -> io::Result<SockAddr> {
    let address = v4(target)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a `sockaddr_in` is smaller than the storage, aligned for it, and valid for every bit pattern.
    let inet = unsafe { storage.view_as::<libc::sockaddr_in>() };
    inet.sin_family = family(libc::AF_UNSPEC)?;
    inet.sin_port = target.port().to_be();
    inet.sin_addr.s_addr = u32::from_ne_bytes(address.octets());
    // SAFETY: the storage was zeroed and then filled as a `sockaddr_in`, whose length is given.
    Ok(unsafe { SockAddr::new(storage, length::<libc::sockaddr_in>()?) })
}

/// Sends a datagram whose address says `AF_UNSPEC`, which the kernel reads as IPv4.
pub(crate) fn send_unspecified_family(socket: &Socket, target: SocketAddr) -> io::Result<usize> {
    socket.send_to(PAYLOAD, &unspecified_family(target)?)
}

/// Dissolves a connection by connecting to no address at all.
pub(crate) fn dissolve(socket: &Socket) -> io::Result<()> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a `sockaddr` is smaller than the storage, aligned for it, and valid for every bit pattern.
    let nowhere = unsafe { storage.view_as::<libc::sockaddr>() };
    nowhere.sa_family = family(libc::AF_UNSPEC)?;
    // SAFETY: the storage was zeroed, and its length as a `sockaddr` is given.
    socket.connect(&unsafe { SockAddr::new(storage, length::<libc::sockaddr>()?) })
}

fn echo_request() -> io::Result<Vec<u8>> {
    let mut message = Vec::new();
    let header = etherparse::Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(IcmpEchoHeader { id: 7, seq: 1 }), PAYLOAD);
    header.write(&mut message).map_err(io::Error::other)?;
    message.extend_from_slice(PAYLOAD);
    Ok(message)
}

/// The type of an ICMPv6 echo request; the kernel fills in the checksum.
const ECHO_REQUEST_V6: [u8; 8] = [128, 0, 0, 0, 0, 7, 0, 1];

/// An echo request through a ping socket, which needs no privilege.
pub(crate) fn ping(target: SocketAddr) -> io::Result<usize> {
    let portless: SockAddr = SocketAddr::new(target.ip(), 0).into();
    if target.is_ipv4() {
        return Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4))?.send_to(&echo_request()?, &portless);
    }
    Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::ICMPV6))?.send_to(&ECHO_REQUEST_V6, &portless)
}

/// An echo request that is to go to the lab's router first, and from there to the target: the destination in its header is the router.
pub(crate) fn ping_by_route(target: SocketAddr) -> io::Result<usize> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4))?;
    let [a, b, c, d] = ROUTER.octets();
    set_option(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &[LOOSE_ROUTE, 7, 4, a, b, c, d, 0])?;
    socket.send_to(&echo_request()?, &SocketAddr::new(target.ip(), 0).into())
}

fn set_option(socket: &Socket, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let size = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads that many bytes of the value.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), size) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A packet of a protocol that has no ports, through a raw socket.
pub(crate) fn other_protocol(target: SocketAddr) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(target), Type::RAW, Some(Protocol::from(EXPERIMENT)))?;
    socket.send_to(PAYLOAD, &SocketAddr::new(target.ip(), 0).into())
}

/// A forged UDP datagram to the lab's router, whose options ask it to go on to the target.
pub(crate) fn source_route(target: SocketAddr) -> io::Result<usize> {
    let [a, b, c, d] = v4(target)?.octets();
    let options = Ipv4Options::try_from([LOOSE_ROUTE, 7, 4, a, b, c, d, 0].as_slice()).map_err(io::Error::other)?;
    let mut ip = Ipv4Header::new(0, 64, IpNumber::UDP, [10, 99, 0, 2], ROUTER.octets()).map_err(io::Error::other)?;
    ip.options = options;
    let builder = PacketBuilder::ip(IpHeaders::Ipv4(ip, Ipv4Extensions::default())).udp(40_000, target.port());
    let mut packet = Vec::with_capacity(builder.size(PAYLOAD.len()));
    builder.write(&mut packet, PAYLOAD).map_err(io::Error::other)?;
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.set_header_included_v4(true)?;
    socket.send_to(&packet, &SocketAddr::new(ROUTER.into(), 0).into())
}

/// A forged UDP datagram over IPv6, header and all.
fn header_included_v6(target: SocketAddr) -> io::Result<usize> {
    let IpAddr::V6(address) = target.ip() else { return Err(io::Error::other("this technique is for ipv6 only")) };
    let builder = PacketBuilder::ipv6(ENGINEERING_V6.octets(), address.octets(), 64).udp(40_000, target.port());
    let mut packet = Vec::with_capacity(builder.size(PAYLOAD.len()));
    builder.write(&mut packet, PAYLOAD).map_err(io::Error::other)?;
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.send_to(&packet, &SocketAddr::new(target.ip(), 0).into())
}

/// A packet socket by its old name, `SOCK_PACKET` of `AF_INET`: a whole frame, to the interface of this name.
pub(crate) fn old_packet_socket(target: SocketAddr) -> io::Result<usize> {
    let socket = Socket::new(Domain::IPV4, Type::from(SOCK_PACKET), Some(Protocol::from(i32::from(ETH_P_IP.to_be()))))?;
    let mut frame = ROUTER_MAC.to_vec();
    frame.extend_from_slice(&[0x02, 0, 0, 0, 0, 1]);
    frame.extend_from_slice(&ETH_P_IP.to_be_bytes());
    frame.extend(forged_datagram(target)?);
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a `sockaddr` is smaller than the storage, aligned for it, and valid for every bit pattern.
    let device = unsafe { storage.view_as::<libc::sockaddr>() };
    device.sa_family = family(libc::AF_PACKET)?;
    for (to, from) in device.sa_data.iter_mut().zip(b"eth0") {
        *to = from.cast_signed();
    }
    // SAFETY: the storage was zeroed and then filled as a `sockaddr`, whose length is given.
    socket.send_to(&frame, &unsafe { SockAddr::new(storage, length::<libc::sockaddr>()?) })
}

/// An ICMP echo request through a raw socket.
pub(crate) fn icmp_echo(target: SocketAddr) -> io::Result<usize> {
    let portless: SockAddr = SocketAddr::new(target.ip(), 0).into();
    if target.is_ipv4() {
        return Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?.send_to(&echo_request()?, &portless);
    }
    Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?.send_to(&ECHO_REQUEST_V6, &portless)
}

fn forged_datagram(target: SocketAddr) -> io::Result<Vec<u8>> {
    let builder = PacketBuilder::ipv4([10, 99, 0, 2], v4(target)?.octets(), 64).udp(40_000, target.port());
    let mut packet = Vec::with_capacity(builder.size(PAYLOAD.len()));
    builder.write(&mut packet, PAYLOAD).map_err(io::Error::other)?;
    Ok(packet)
}

/// A forged UDP datagram through a raw socket with `IP_HDRINCL`.
pub(crate) fn header_included(target: SocketAddr) -> io::Result<usize> {
    if target.is_ipv6() {
        return header_included_v6(target);
    }
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.set_header_included_v4(true)?;
    socket.send_to(&forged_datagram(target)?, &SocketAddr::new(target.ip(), 0).into())
}

/// A forged UDP datagram through a packet socket on the first interface that is not loopback.
pub(crate) fn packet_socket(target: SocketAddr) -> io::Result<usize> {
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(ETH_P_IP.to_be()))))?;
    let interface = nix::net::if_::if_nameindex()?
        .iter()
        .find(|interface| interface.name().to_bytes() != b"lo")
        .map(|interface| interface.index())
        .ok_or_else(|| io::Error::other("no interface besides lo"))?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a `sockaddr_ll` is smaller than the storage, aligned for it, and valid for every bit pattern.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = family(libc::AF_PACKET)?;
    link.sll_protocol = ETH_P_IP.to_be();
    link.sll_ifindex = i32::try_from(interface).map_err(io::Error::other)?;
    link.sll_halen = 6;
    link.sll_addr[..6].copy_from_slice(&ROUTER_MAC);
    // SAFETY: the storage was zeroed and then filled as a `sockaddr_ll`, whose length is given.
    let address = unsafe { SockAddr::new(storage, length::<libc::sockaddr_ll>()?) };
    socket.send_to(&forged_datagram(target)?, &address)
}
