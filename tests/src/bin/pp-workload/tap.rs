//! A packet tap: one JSON line for every IP packet that arrives in this network namespace, whatever protocol it is and whether or not
//! anybody listens. "Nothing arrived" is asserted against this log, so it holds for raw sockets and half-open connections too.
//!
//! Lines: `{"source","destination","protocol","port","source_port","syn","rst","bytes","text","at_ms"}`; `port` is 0 where the protocol has none,
//! `syn` and `rst` are TCP's flags, `text` is the payload of datagrams to port 9, which the suite sends as marks in the log.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use etherparse::{IpNumber, NetSlice, SlicedPacket, TransportSlice};
use nix::libc;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::flows::now_ms;
use crate::outcome;

/// `ETH_P_ALL` of `linux/if_ether.h`.
const ETH_P_ALL: u16 = 3;
/// Datagrams to this port are marks in the log.
const MARK_PORT: u16 = 9;
/// Type of an ICMPv6 echo request, RFC 4443.
const ECHO_REQUEST_V6: u8 = 128;

/// Logs until it is killed.
pub(crate) fn run(log: &Path) -> Result<()> {
    let mut log = OpenOptions::new().create(true).append(true).open(log)?;
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(ETH_P_ALL.to_be()))))?;
    let _grown = socket.set_recv_buffer_size(8 << 20);
    outcome::print(&json!({"ready": true}))?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 65_536];
    loop {
        let (length, address) = socket.recv_from(&mut buffer)?;
        // SAFETY: a packet socket returns a `sockaddr_ll`, which is smaller than the storage behind this pointer.
        let link = unsafe { &*address.as_ptr().cast::<libc::sockaddr_ll>() };
        if link.sll_pkttype == libc::PACKET_OUTGOING {
            continue;
        }
        // SAFETY: `recv_from` has initialized the first `length` bytes.
        let packet = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
        if let Some(line) = describe(packet) {
            // In one call: a reader never sees half a line.
            log.write_all(format!("{line}\n").as_bytes())?;
        }
    }
}

fn describe(packet: &[u8]) -> Option<Value> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let (source, destination, payload): (IpAddr, IpAddr, _) = match sliced.net.as_ref()? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.payload()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.payload()),
        NetSlice::Arp(_) => return None,
    };
    let protocol = payload.ip_number;
    // Neighbour discovery and multicast reports are the network's own; echo requests are somebody's.
    if protocol == IpNumber::IPV6_ICMP && payload.payload.first() != Some(&ECHO_REQUEST_V6) {
        return None;
    }
    let syn = matches!(&sliced.transport, Some(TransportSlice::Tcp(tcp)) if tcp.syn());
    let rst = matches!(&sliced.transport, Some(TransportSlice::Tcp(tcp)) if tcp.rst());
    let (source_port, port, text) = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port(), None),
        Some(TransportSlice::Udp(udp)) => {
            let mark = (udp.destination_port() == MARK_PORT).then(|| String::from_utf8_lossy(udp.payload()).into_owned());
            (udp.source_port(), udp.destination_port(), mark)
        }
        // UDP-Lite and SCTP headers begin with the two ports, as UDP's does.
        None if matches!(protocol, IpNumber::UDP_LITE | IpNumber::SCTP) => {
            let ports = payload.payload.first_chunk::<4>()?;
            (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]]), None)
        }
        _ => (0, 0, None),
    };
    Some(json!({
        "source": source.to_string(), "destination": destination.to_string(), "protocol": protocol.0, "source_port": source_port, "port": port, "syn": syn, "rst": rst,
        "bytes": packet.len(), "text": text, "at_ms": u64::try_from(now_ms()).ok()?,
    }))
}
