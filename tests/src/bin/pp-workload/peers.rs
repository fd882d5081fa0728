//! Far ends that speak first: a device that sends by itself, an agent that hears it and writes back, an agent that forges what it hears,
//! and a server with thousands of clients.

#![allow(unsafe_code, reason = "a socket option that no library offers; it has its SAFETY line")]

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::{Subcommand, ValueEnum};
use etherparse::PacketBuilder;
use nix::libc;
use nix::net::if_::if_nametoindex;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::outcome::{self, Outcome};
use crate::techniques::{DEADLINE, PAYLOAD};

/// The group that a looped multicast goes to: link-local, of nobody's.
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 200);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0x7070, 0x200);
const INTERFACE: &str = "eth0";
/// Two further interfaces on one link, for what is forged over the one and heard by the other.
const LINKS: [&str; 2] = ["mv0", "mv1"];
/// `IPV6_FREEBIND` of `linux/in6.h`.
const IPV6_FREEBIND: i32 = 78;
/// How many clients ask before the first of them is answered.
const WINDOW: usize = 100;
/// How long a question is waited for before those that are held back are answered.
const PAUSE: Duration = Duration::from_millis(300);

/// One end of a conversation over UDP.
#[derive(Subcommand)]
pub(crate) enum Peers {
    /// Send from this address to that one, again and again, until killed
    Speak { from: SocketAddr, to: SocketAddr },
    /// Wait for a datagram from PEER at LISTEN, then write to PEER
    Hear {
        listen: SocketAddr,
        peer: SocketAddr,
        /// Make that datagram oneself, to this host's own address
        #[arg(long)]
        forge: Option<Forge>,
        /// This host's address, for what is forged
        #[arg(long)]
        own: Option<IpAddr>,
    },
    /// Wait at a raw socket for a datagram from PEER, whoever it is for, then write to PEER
    HearRaw { peer: SocketAddr },
    /// Listen at an address of this host and connect to it over TCP in the name of PEER
    Dial { listen: SocketAddr, peer: SocketAddr },
    /// Answer everybody on these addresses, each only after a hundred others have asked or nobody has for a while
    Answer { listen: Vec<SocketAddr> },
    /// Answer one client as TLS over UDP does: by a socket that is connected to it
    Accept {
        listen: SocketAddr,
        /// By a socket of its own on the same port
        #[arg(long)]
        sibling: bool,
    },
    /// Ask from each of these ports of so many addresses from FIRST on, and count the answers
    Ask {
        server: SocketAddr,
        first: IpAddr,
        #[arg(long)]
        hosts: u32,
        #[arg(long, value_delimiter = ',')]
        ports: Vec<u16>,
    },
}

/// How a datagram is given a source that is not this host's.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Forge {
    /// A socket that may be bound to any address: `IPV6_FREEBIND`, `IP_TRANSPARENT`
    Bound,
    /// The same, to a multicast group whose packets the interface hands back
    Looped,
    /// A raw socket
    Raw,
    /// As `bound`, to a multicast group over one of two interfaces on the same link
    Link,
}

/// Plays that end.
pub(crate) fn run(peers: &Peers) -> Result<()> {
    match peers {
        Peers::Speak { from, to } => speak(*from, *to),
        Peers::Hear { listen, peer, forge, own } => hear(*listen, *peer, forge.zip(*own)),
        Peers::HearRaw { peer } => hear_raw(*peer),
        Peers::Dial { listen, peer } => dial(*listen, *peer),
        Peers::Answer { listen } => answer(listen),
        Peers::Accept { listen, sibling } => accept(*listen, *sibling),
        Peers::Ask { server, first, hosts, ports } => ask(*server, *first, *hosts, ports),
    }
}

fn speak(from: SocketAddr, to: SocketAddr) -> Result<()> {
    // The lab's networks are this host's by a route, which IPv6 takes for nobody's address.
    let socket = anywhere(from)?;
    socket.set_broadcast(true)?;
    outcome::print(&json!({"ready": true}))?;
    loop {
        // Nobody may listen yet.
        let _sent = socket.send_to(PAYLOAD, &to.into());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn hear(listen: SocketAddr, peer: SocketAddr, forged: Option<(Forge, IpAddr)>) -> Result<()> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind(&listen.into())?;
    socket.set_read_timeout(Some(DEADLINE))?;
    let socket = UdpSocket::from(socket);
    if let Some((forge, own)) = forged {
        make(&socket, forge, peer, SocketAddr::new(own, listen.port()))?;
    }
    let mut buffer = [0_u8; 2048];
    let until = Instant::now() + DEADLINE;
    loop {
        let (_, from) = socket.recv_from(&mut buffer)?;
        if SocketAddr::new(from.ip().to_canonical(), from.port()) == peer {
            return Outcome(socket.send_to(PAYLOAD, from)).print();
        }
        ensure!(Instant::now() < until, "nothing was heard from {peer}");
    }
}

fn hear_raw(peer: SocketAddr) -> Result<()> {
    let IpAddr::V4(address) = peer.ip() else { bail!("for ipv4 only") };
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP))?;
    socket.set_read_timeout(Some(DEADLINE))?;
    let until = Instant::now() + DEADLINE;
    let mut buffer = [std::mem::MaybeUninit::new(0_u8); 2048];
    while socket.recv_from(&mut buffer)?.1.as_socket_ipv4().map(|from| *from.ip()) != Some(address) {
        ensure!(Instant::now() < until, "nothing was heard from {peer}");
    }
    // A UDP header of one's own behind the kernel's IP header; no checksum.
    let length = u16::try_from(8 + PAYLOAD.len())?;
    let mut message = Vec::from(40_000_u16.to_be_bytes());
    message.extend(peer.port().to_be_bytes());
    message.extend(length.to_be_bytes());
    message.extend([0, 0]);
    message.extend(PAYLOAD);
    Outcome(socket.send_to(&message, &SocketAddr::new(peer.ip(), 0).into())).print()
}

/// Sends a datagram from `from`, which is another host's, to this host.
fn make(listener: &UdpSocket, forge: Forge, from: SocketAddr, own: SocketAddr) -> Result<()> {
    match (forge, from, own) {
        (Forge::Bound, ..) => {
            anywhere(from)?.send_to(PAYLOAD, &own.into())?;
        }
        (Forge::Looped, SocketAddr::V4(_), SocketAddr::V4(at)) => {
            listener.join_multicast_v4(&GROUP_V4, at.ip())?;
            let socket = anywhere(from)?;
            socket.set_multicast_if_v4(at.ip())?;
            socket.send_to(PAYLOAD, &SocketAddr::new(GROUP_V4.into(), own.port()).into())?;
        }
        (Forge::Looped, ..) => {
            let interface = if_nametoindex(INTERFACE)?;
            listener.join_multicast_v6(&GROUP_V6, interface)?;
            let socket = anywhere(from)?;
            socket.set_multicast_if_v6(interface)?;
            socket.send_to(PAYLOAD, &SocketAddr::new(GROUP_V6.into(), own.port()).into())?;
        }
        (Forge::Raw, SocketAddr::V4(source), SocketAddr::V4(at)) => {
            let packet = udp(PacketBuilder::ipv4(source.ip().octets(), at.ip().octets(), 64).udp(source.port(), at.port()))?;
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
            socket.set_header_included_v4(true)?;
            socket.send_to(&packet, &SocketAddr::new(own.ip(), 0).into())?;
        }
        (Forge::Raw, SocketAddr::V6(source), SocketAddr::V6(at)) => {
            let packet = udp(PacketBuilder::ipv6(source.ip().octets(), at.ip().octets(), 64).udp(source.port(), at.port()))?;
            let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
            socket.send_to(&packet, &SocketAddr::new(own.ip(), 0).into())?;
        }
        (Forge::Link, ..) => {
            let [out, back] = LINKS;
            let index = if_nametoindex(back)?;
            socket2::SockRef::from(listener).bind_device(Some(back.as_bytes()))?;
            let socket = anywhere(from)?;
            socket.bind_device(Some(out.as_bytes()))?;
            let group = if from.is_ipv4() {
                socket2::SockRef::from(listener).join_multicast_v4_n(&GROUP_V4, &socket2::InterfaceIndexOrAddress::Index(index))?;
                IpAddr::V4(GROUP_V4)
            } else {
                listener.join_multicast_v6(&GROUP_V6, index)?;
                IpAddr::V6(GROUP_V6)
            };
            socket.send_to(PAYLOAD, &SocketAddr::new(group, own.port()).into())?;
        }
        (Forge::Raw, ..) => bail!("both addresses are of one family"),
    }
    Ok(())
}

fn udp(builder: etherparse::PacketBuilderStep<etherparse::UdpHeader>) -> io::Result<Vec<u8>> {
    let mut packet = Vec::with_capacity(builder.size(PAYLOAD.len()));
    builder.write(&mut packet, PAYLOAD).map_err(io::Error::other)?;
    Ok(packet)
}

/// A UDP socket bound to an address that need not be this host's.
fn anywhere(from: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(from), Type::DGRAM, None)?;
    if from.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        let on = 1_i32;
        let size = libc::socklen_t::try_from(size_of::<i32>()).map_err(io::Error::other)?;
        // SAFETY: the kernel reads that many bytes of the value.
        let done = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IPV6, IPV6_FREEBIND, (&raw const on).cast(), size) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    Ok(socket)
}

/// The listener answers whom the connection seems to come from.
fn dial(listen: SocketAddr, peer: SocketAddr) -> Result<()> {
    let _listener = std::net::TcpListener::bind(listen)?;
    let client = Socket::new(Domain::for_address(peer), Type::STREAM, None)?;
    client.set_ip_transparent_v4(true)?;
    client.bind(&peer.into())?;
    let connected = client.connect_timeout(&listen.into(), Duration::from_millis(1_500));
    outcome::print(&json!({"ok": connected.is_ok(), "errno": connected.err().and_then(|error| error.raw_os_error())}))
}

fn answer(listen: &[SocketAddr]) -> Result<()> {
    let mut threads = Vec::new();
    for address in listen {
        let socket = Socket::new(Domain::for_address(*address), Type::DGRAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&(*address).into())?;
        socket.set_read_timeout(Some(PAUSE))?;
        let socket = UdpSocket::from(socket);
        threads.push(std::thread::spawn(move || serve(&socket)));
    }
    outcome::print(&json!({"ready": true}))?;
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a server ended"))??;
    }
    Ok(())
}

fn accept(listen: SocketAddr, sibling: bool) -> Result<()> {
    let socket = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, None)?;
        socket.set_reuse_port(true)?;
        socket.bind(&listen.into())?;
        Ok(socket)
    };
    let server = socket()?;
    outcome::print(&json!({"ready": true}))?;
    let server = UdpSocket::from(server);
    let (_, from) = server.recv_from(&mut [0_u8; 2048])?;
    let session = if sibling { UdpSocket::from(socket()?) } else { server.try_clone()? };
    let sent = session.connect(from).and_then(|()| session.send(PAYLOAD));
    Outcome(sent).print()
}

/// The oldest question is answered when a hundred others have come behind it.
fn serve(socket: &UdpSocket) -> io::Result<()> {
    let mut waiting = std::collections::VecDeque::new();
    let mut refused = HashMap::<i32, u32>::new();
    let mut buffer = [0_u8; 2048];
    loop {
        let heard = socket.recv_from(&mut buffer);
        let keep = if heard.is_ok() { WINDOW - 1 } else { 0 };
        waiting.extend(heard.ok().map(|(_, from)| from));
        while waiting.len() > keep {
            let Some(to) = waiting.pop_front() else { break };
            if let Err(error) = socket.send_to(PAYLOAD, to) {
                let seen = refused.entry(error.raw_os_error().unwrap_or(-1)).or_default();
                *seen += 1;
                if *seen == 1 {
                    eprintln!("to {to}: {error}");
                }
            }
        }
    }
}

fn ask(server: SocketAddr, first: IpAddr, hosts: u32, ports: &[u16]) -> Result<()> {
    let (mut asked, mut answered) = (0_usize, 0_usize);
    let clients: Vec<SocketAddr> =
        ports.iter().flat_map(|port| (0..hosts).map(move |host| SocketAddr::new(beyond(first, host), *port))).collect();
    for window in clients.chunks(WINDOW) {
        let mut sockets = Vec::with_capacity(window.len());
        for client in window {
            let socket = anywhere(*client)?;
            socket.set_read_timeout(Some(DEADLINE))?;
            socket.send_to(PAYLOAD, &server.into())?;
            sockets.push(UdpSocket::from(socket));
        }
        asked += sockets.len();
        let mut buffer = [0_u8; 64];
        let silent = sockets.iter().position(|socket| socket.recv_from(&mut buffer).is_err());
        match silent {
            None => answered += sockets.len(),
            Some(at) => {
                // The others are not waited for: one is enough to fail.
                answered += at;
                outcome::print(&json!({"asked": asked, "answered": answered, "silent": window[at].to_string()}))?;
                return Ok(());
            }
        }
    }
    outcome::print(&json!({"asked": asked, "answered": answered}))
}

/// The address so far behind the first.
fn beyond(first: IpAddr, by: u32) -> IpAddr {
    match first {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) + by).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) + u128::from(by)).into(),
    }
}
