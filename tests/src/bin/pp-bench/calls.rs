//! The calls that are timed. Each is one that a program makes, to loopback, and ends as it began: what was sent is received, what was
//! opened is closed.

use std::cell::Cell;
use std::io::{Error, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

const PAYLOAD: [u8; 64] = [0x55; 64];
/// A datagram that has not arrived by then was lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a number of calls came to.
pub(crate) struct Tally {
    pub(crate) took: Duration,
    pub(crate) refused: u32,
}

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `socket` and `close`.
    Socket,
    /// `connect` of a UDP socket, again and again.
    Connect,
    /// `sendto` from a socket that is not connected, and the `recv` at the far end.
    Sendto,
    /// `send` on a connected socket, and the `recv` at the far end.
    Send,
    /// `socket`, `connect` and `close` of TCP, with the far end's `accept` and `close`.
    Tcp,
    /// `connect` of one TCP socket to hosts that no route leads to, one after the other, each on a port of its own: the hook is all that
    /// happens, and nothing is sent.
    NoRoute {
        /// How many.
        targets: u16,
    },
}

/// A call, with the sockets it works with.
pub(crate) enum Call {
    Socket,
    Connect { from: UdpSocket, to: SocketAddr },
    Sendto { from: UdpSocket, at: UdpSocket, to: SocketAddr },
    Send { from: UdpSocket, at: UdpSocket },
    Tcp { at: TcpListener, to: SocketAddr },
    NoRoute { from: Socket, to: Vec<SockAddr>, next: Cell<usize> },
}

/// The first port of those targets.
const FIRST_PORT: u16 = 20_000;

impl Call {
    /// Makes the sockets for calls to `host`. They must be made in the run's cgroup: a socket keeps the one it was made in.
    ///
    /// # Errors
    /// This host has no such loopback address.
    pub(crate) fn prepare(kind: Kind, host: IpAddr) -> Result<Self> {
        let near: IpAddr = match host {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let udp = |host: IpAddr| UdpSocket::bind((host, 0));
        let far = || {
            let socket = udp(host)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok::<_, Error>((socket.local_addr()?, socket))
        };
        Ok(match kind {
            Kind::Socket => Self::Socket,
            Kind::Connect => Self::Connect { from: udp(near)?, to: far()?.0 },
            Kind::Sendto => {
                let (to, at) = far()?;
                Self::Sendto { from: udp(near)?, at, to }
            }
            Kind::Send => {
                let (to, at) = far()?;
                let from = udp(near)?;
                from.connect(to)?;
                Self::Send { from, at }
            }
            Kind::Tcp => {
                let at = TcpListener::bind((host, 0))?;
                Self::Tcp { to: at.local_addr()?, at }
            }
            Kind::NoRoute { targets } => {
                let IpAddr::V4(first) = host else { return Err(Errno::EAFNOSUPPORT.into()) };
                let target = |i| SocketAddr::from((Ipv4Addr::from_bits(first.to_bits() + u32::from(i)), FIRST_PORT + i)).into();
                let from = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                Self::NoRoute { from, to: (0..targets).map(target).collect(), next: Cell::new(0) }
            }
        })
    }

    /// The sockets that live through the run, the far end's last; true where the caller connected it.
    pub(crate) fn sockets(&self) -> Vec<(BorrowedFd<'_>, bool)> {
        match self {
            Self::Socket | Self::Tcp { .. } => Vec::new(),
            Self::Connect { from, .. } => vec![(from.as_fd(), false)],
            Self::Sendto { from, at, .. } => vec![(from.as_fd(), false), (at.as_fd(), false)],
            Self::Send { from, at } => vec![(from.as_fd(), true), (at.as_fd(), false)],
            Self::NoRoute { from, .. } => vec![(from.as_fd(), false)],
        }
    }

    /// The number of calls that reach for each target once; `None`: there is only one.
    pub(crate) fn targets(&self) -> Option<u32> {
        match self {
            Self::NoRoute { to, .. } => u32::try_from(to.len()).ok(),
            Self::Socket | Self::Connect { .. } | Self::Sendto { .. } | Self::Send { .. } | Self::Tcp { .. } => None,
        }
    }

    /// Makes the call `count` times. A refusal counts as an outcome.
    ///
    /// # Errors
    /// It went wrong in any other way.
    pub(crate) fn run(&self, count: u32) -> Result<Tally> {
        match self {
            Self::Socket => time(count, || Socket::new(Domain::IPV4, Type::DGRAM, None).map(drop)),
            Self::Connect { from, to } => time(count, || from.connect(to)),
            Self::Sendto { from, at, to } => time(count, || from.send_to(&PAYLOAD, to).and_then(|_| receive(at))),
            Self::Send { from, at } => time(count, || from.send(&PAYLOAD).and_then(|_| receive(at))),
            Self::Tcp { at, to } => time(count, || {
                let near = TcpStream::connect(to)?;
                let far = at.accept()?;
                // The port is free again at once, and no connection lingers on.
                SockRef::from(&near).set_linger(Some(Duration::ZERO))?;
                drop((near, far));
                Ok(())
            }),
            Self::NoRoute { from, to, next } => time(count, || {
                let i = next.get();
                next.set(if i + 1 == to.len() { 0 } else { i + 1 });
                match from.connect(&to[i]) {
                    Err(error) if error.raw_os_error() == Some(Errno::ENETUNREACH as i32) => Ok(()),
                    Ok(()) => Err(Errno::EISCONN.into()),
                    Err(error) => Err(error),
                }
            }),
        }
    }
}

fn receive(at: &UdpSocket) -> Result<()> {
    at.recv(&mut [0; PAYLOAD.len()]).map(drop)
}

#[inline]
fn time(count: u32, call: impl Fn() -> Result<()>) -> Result<Tally> {
    let mut refused = 0;
    let begin = Instant::now();
    for _ in 0..count {
        match call() {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => refused += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(Tally { took: begin.elapsed(), refused })
}
