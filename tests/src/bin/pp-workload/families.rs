//! Sockets of other families and protocols that carry IP traffic or leave the machine: SCTP, DCCP, SMC, RxRPC and vsock.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;

use nix::libc;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::techniques::{DEADLINE, PAYLOAD};

/// `IPPROTO_SCTP` and `IPPROTO_DCCP` of `linux/in.h`.
pub(crate) const SCTP: i32 = 132;
const DCCP: i32 = 33;
/// `SOCK_DCCP` of `linux/net.h`.
const SOCK_DCCP: i32 = 6;
/// `SCTP_SOCKOPT_CONNECTX` of `linux/sctp.h`.
const SCTP_CONNECTX: i32 = 110;
/// `SOL_DCCP` of `linux/socket.h`, `DCCP_SOCKOPT_SERVICE` of `linux/dccp.h`.
const SOL_DCCP: i32 = 269;
const DCCP_SERVICE: i32 = 2;
/// `AF_SMC` and `AF_RXRPC` of `linux/socket.h`.
const AF_SMC: i32 = 43;
const AF_RXRPC: i32 = 33;
/// `SOL_RXRPC` of `linux/socket.h`, `RXRPC_USER_CALL_ID` of `linux/rxrpc.h`.
const SOL_RXRPC: i32 = 272;
const RXRPC_USER_CALL_ID: i32 = 1;
/// `VMADDR_CID_LOCAL` of `linux/vm_sockets.h`.
const LOCAL_CID: u32 = 1;
const VSOCK_PORT: u32 = 50_020;

/// A connection by another protocol, and its first bytes.
pub(crate) fn stream_of(target: SocketAddr, kind: Type, protocol: i32) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(target), kind, Some(Protocol::from(protocol)))?;
    socket.connect_timeout(&target.into(), DEADLINE)?;
    socket.send(PAYLOAD)
}

/// A message on a one-to-many socket, which connects by itself.
pub(crate) fn sctp_many(target: SocketAddr) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(target), Type::SEQPACKET, Some(Protocol::from(SCTP)))?;
    socket.set_nonblocking(true)?;
    socket.send_to(PAYLOAD, &target.into())
}

/// A connection by the call that takes several addresses.
pub(crate) fn sctp_connectx(target: SocketAddr) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::from(SCTP)))?;
    socket.set_nonblocking(true)?;
    let address = SockAddr::from(target);
    // SAFETY: the address is valid for its own length, which the kernel reads.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), SCTP, SCTP_CONNECTX, address.as_ptr().cast(), address.len()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(0) }
}

/// A DCCP connection.
pub(crate) fn dccp(target: SocketAddr) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(target), Type::from(SOCK_DCCP), Some(Protocol::from(DCCP)))?;
    let service = 1_u32.to_be();
    let length = libc::socklen_t::try_from(size_of::<u32>()).map_err(io::Error::other)?;
    // SAFETY: a word of that length.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), SOL_DCCP, DCCP_SERVICE, (&raw const service).cast(), length) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    socket.connect_timeout(&target.into(), DEADLINE)?;
    socket.send(PAYLOAD)
}

/// A connection of shared-memory sockets, which the kernel makes over TCP.
pub(crate) fn smc(target: SocketAddr) -> io::Result<usize> {
    let protocol = i32::from(target.is_ipv6());
    let socket = Socket::new(Domain::from(AF_SMC), Type::STREAM, Some(Protocol::from(protocol)))?;
    socket.connect_timeout(&target.into(), DEADLINE)?;
    socket.send(PAYLOAD)
}

#[repr(C)]
struct RxrpcAddress {
    family: u16,
    service: u16,
    transport_type: u16,
    transport_length: u16,
    transport: libc::sockaddr_in,
}

#[repr(C)]
struct CallId {
    header: libc::cmsghdr,
    id: u64,
}

/// The first packet of a remote call, which the kernel sends over a UDP socket of its own.
pub(crate) fn rxrpc(target: SocketAddr) -> io::Result<usize> {
    let IpAddr::V4(address) = target.ip() else { return Err(io::Error::other("this technique is for ipv4 only")) };
    let socket = Socket::new(Domain::from(AF_RXRPC), Type::DGRAM, Some(Protocol::from(libc::AF_INET)))?;
    // SAFETY: plain bytes, all zero is a value.
    let mut transport: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    transport.sin_family = libc::sa_family_t::try_from(libc::AF_INET).map_err(io::Error::other)?;
    transport.sin_port = target.port().to_be();
    transport.sin_addr.s_addr = u32::from_ne_bytes(address.octets());
    let short = |number: usize| u16::try_from(number).map_err(io::Error::other);
    let mut name = RxrpcAddress {
        family: u16::try_from(AF_RXRPC).map_err(io::Error::other)?,
        service: 1,
        transport_type: u16::try_from(libc::SOCK_DGRAM).map_err(io::Error::other)?,
        transport_length: short(size_of::<libc::sockaddr_in>())?,
        transport,
    };
    // SAFETY: plain bytes, all zero is a value.
    let mut call: CallId = unsafe { std::mem::zeroed() };
    call.header.cmsg_len = size_of::<CallId>();
    call.header.cmsg_level = SOL_RXRPC;
    call.header.cmsg_type = RXRPC_USER_CALL_ID;
    call.id = 7;
    let mut slice = libc::iovec { iov_base: PAYLOAD.as_ptr().cast_mut().cast(), iov_len: PAYLOAD.len() };
    // SAFETY: plain bytes, all zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = libc::socklen_t::try_from(size_of::<RxrpcAddress>()).map_err(io::Error::other)?;
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut call).cast();
    message.msg_controllen = size_of::<CallId>();
    // SAFETY: everything the message points to is valid for the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    // The kernel sends it in its own time, and drops it with the socket: its answer, an error, ends the wait.
    socket.set_read_timeout(Some(std::time::Duration::from_millis(500)))?;
    let mut buffer = [0_u8; 64];
    match (&socket).read(&mut buffer) {
        Ok(_) | Err(_) => usize::try_from(sent).map_err(io::Error::other),
    }
}

fn vsock_address() -> io::Result<SockAddr> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a `sockaddr_vm` is smaller than the storage, aligned for it, and valid for every bit pattern.
    let vm = unsafe { storage.view_as::<libc::sockaddr_vm>() };
    vm.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).map_err(io::Error::other)?;
    vm.svm_cid = LOCAL_CID;
    vm.svm_port = VSOCK_PORT;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_vm>()).map_err(io::Error::other)?;
    // SAFETY: the storage was zeroed and then filled as a `sockaddr_vm`, whose length is given.
    Ok(unsafe { SockAddr::new(storage, length) })
}

/// Bytes from one vsock socket to another on this machine.
pub(crate) fn vsock() -> io::Result<usize> {
    let address = vsock_address()?;
    let listener = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    listener.bind(&address)?;
    listener.listen(1)?;
    let mut client = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    client.set_write_timeout(Some(DEADLINE))?;
    client.connect(&address)?;
    let (mut server, _) = listener.accept()?;
    client.write_all(PAYLOAD)?;
    let mut buffer = [0_u8; PAYLOAD.len()];
    server.read_exact(&mut buffer)?;
    Ok(buffer.len())
}
