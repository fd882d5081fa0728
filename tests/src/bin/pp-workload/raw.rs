//! Techniques below the socket calls that the standard library knows: raw and packet sockets, and addresses of an odd family.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use etherparse::{IcmpEchoHeader, Icmpv4Type, PacketBuilder};
use nix::libc;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::techniques::PAYLOAD;

/// `ETH_P_IP` of `linux/if_ether.h`.
const ETH_P_IP: u16 = 0x0800;
/// The hardware address that the lab gives its router on the engineering network.
const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x63, 0x01];

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

/// An ICMP echo request through a raw socket.
pub(crate) fn icmp_echo(target: SocketAddr) -> io::Result<usize> {
    let address = v4(target)?;
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    let mut message = Vec::new();
    let header = etherparse::Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(IcmpEchoHeader { id: 7, seq: 1 }), PAYLOAD);
    header.write(&mut message).map_err(io::Error::other)?;
    message.extend_from_slice(PAYLOAD);
    socket.send_to(&message, &SocketAddr::new(address.into(), 0).into())
}

fn forged_datagram(target: SocketAddr) -> io::Result<Vec<u8>> {
    let builder = PacketBuilder::ipv4([10, 99, 0, 2], v4(target)?.octets(), 64).udp(40_000, target.port());
    let mut packet = Vec::with_capacity(builder.size(PAYLOAD.len()));
    builder.write(&mut packet, PAYLOAD).map_err(io::Error::other)?;
    Ok(packet)
}

/// A forged UDP datagram through a raw socket with `IP_HDRINCL`.
pub(crate) fn header_included(target: SocketAddr) -> io::Result<usize> {
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
