//! Flows over time: one that never stops by itself, a loop of connects at full speed, and both ends of a development server.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use std::os::fd::AsFd as _;

use crate::outcome;

/// How a flow is opened and left.
#[derive(Args)]
pub(crate) struct LeaveOptions {
    target: SocketAddr,
    /// Write and close as soon as this file exists
    #[arg(long)]
    go: PathBuf,
    /// How many bytes to write; 0: only close
    #[arg(long, default_value_t = 11)]
    bytes: usize,
    /// Have close wait for what is unsent, this many seconds
    #[arg(long)]
    linger: Option<u64>,
    /// By MPTCP
    #[arg(long)]
    mptcp: bool,
}

/// How a server listens.
#[derive(Args)]
pub(crate) struct ServeOptions {
    listen: SocketAddr,
    /// How many clients to greet
    #[arg(long, default_value_t = 1)]
    accept: u32,
    /// By MPTCP
    #[arg(long)]
    mptcp: bool,
    /// Have the kernel choose the port, by a call of listen alone; only the family of the address counts
    #[arg(long)]
    unbound: bool,
}

/// `IPPROTO_MPTCP` of `linux/in.h`.
const MPTCP: i32 = 262;

/// What a development server answers.
const GREETING: &[u8] = b"served\n";

/// Milliseconds since the epoch, as every log of the lab counts.
pub(crate) fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis())
}

/// Sends and receives on one connection until it fails or the time is over; prints when each direction last moved and the final error.
pub(crate) fn hold(target: SocketAddr, for_ms: u64) -> Result<()> {
    let until = Instant::now() + Duration::from_millis(for_ms);
    let mut stream = match TcpStream::connect_timeout(&target, Duration::from_secs(4)) {
        Ok(stream) => stream,
        Err(error) => return outcome::print(&json!({"connected": false, "errno": error.raw_os_error()})),
    };
    outcome::print(&json!({"connected": true, "at_ms": now_ms(), "local": stream.local_addr()?.to_string()}))?;
    stream.set_nonblocking(true)?;
    let (mut sent, mut received, mut last_sent, mut last_received) = (0_u64, 0_u64, 0, 0);
    let mut buffer = [0_u8; 4096];
    let mut ended = None;
    while ended.is_none() && Instant::now() < until {
        match stream.write(b"poll") {
            Ok(bytes) => (sent, last_sent) = (sent + bytes as u64, now_ms()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => ended = Some(error.raw_os_error()),
        }
        if ended.is_some() {
            break;
        }
        match stream.read(&mut buffer) {
            Ok(0) => ended = Some(Some(0)),
            Ok(bytes) => {
                if received == 0 {
                    outcome::print(&json!({"flowing": true}))?;
                }
                (received, last_received) = (received + bytes as u64, now_ms());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => ended = Some(error.raw_os_error()),
        }
        // One turn every 10 ms at most: a flow, not a flood.
        let mut nothing = [PollFd::new(stream.as_fd(), PollFlags::POLLPRI)];
        let _events = poll(&mut nothing, PollTimeout::from(10_u8))?;
    }
    outcome::print(&json!({
        "ended_ms": now_ms(), "errno": ended.flatten(), "ended": ended.is_some(), "sent": sent, "received": received,
        "last_sent_ms": last_sent, "last_received_ms": last_received,
    }))
}

/// Opens a flow, writes on it when told to, closes it and is gone: what the kernel could not send stays in its queue.
pub(crate) fn leave(options: &LeaveOptions) -> Result<()> {
    let socket = stream(options.target, options.mptcp)?;
    socket.set_linger(options.linger.map(Duration::from_secs))?;
    socket.connect_timeout(&options.target.into(), Duration::from_secs(10))?;
    let local = socket.local_addr()?.as_socket().map(|local| local.to_string());
    outcome::print(&json!({"connected": true, "local": local}))?;
    let until = Instant::now() + Duration::from_secs(200);
    while !options.go.exists() {
        ensure!(Instant::now() < until, "{}: did not come", options.go.display());
        let _waited = poll(&mut [], PollTimeout::from(5_u8))?;
    }
    // More than the far end takes is left in the queue.
    socket.set_nonblocking(options.linger.is_none())?;
    let wrote = if options.bytes == 0 { Ok(0) } else { (&socket).write(&vec![b'x'; options.bytes]) };
    drop(socket);
    outcome::print(&json!({"left": true, "wrote": wrote.as_ref().ok(), "errno": wrote.err().and_then(|error| error.raw_os_error())}))
}

fn stream(address: SocketAddr, mptcp: bool) -> std::io::Result<Socket> {
    Socket::new(Domain::for_address(address), Type::STREAM, mptcp.then(|| Protocol::from(MPTCP)))
}

/// Accepts one connection, reads nothing of it until the file exists, and then all; prints how much that was.
pub(crate) fn deaf(listen: SocketAddr, until: &Path) -> Result<()> {
    let listener = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
    listener.set_recv_buffer_size(4_096)?;
    listener.bind(&listen.into())?;
    listener.listen(1)?;
    outcome::print(&json!({"ready": true}))?;
    let mut stream = TcpListener::from(listener).accept()?.0;
    outcome::print(&json!({"accepted": true}))?;
    while !until.exists() {
        let _waited = poll(&mut [], PollTimeout::from(5_u8))?;
    }
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let (mut read, mut buffer) = (0, [0_u8; 4096]);
    while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
        read += bytes;
    }
    outcome::print(&json!({"read": read}))
}

/// Connects until the time is over or the file `until` exists, with that pause after each; prints how often each answer came, 0 for a
/// connection.
pub(crate) fn spin(target: SocketAddr, for_ms: u64, every_ms: u16, until: Option<&Path>) -> Result<()> {
    let end = Instant::now() + Duration::from_millis(for_ms);
    let mut answers = BTreeMap::<String, u64>::new();
    let mut longest_gap = Duration::ZERO;
    let mut last = Instant::now();
    while Instant::now() < end && !until.is_some_and(Path::exists) {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        let answer = match socket.connect_timeout(&target.into(), Duration::from_secs(2)) {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(-1),
        };
        *answers.entry(answer.to_string()).or_default() += 1;
        longest_gap = longest_gap.max(last.elapsed());
        last = Instant::now();
        if every_ms > 0 {
            let _waited = poll(&mut [], PollTimeout::from(every_ms))?;
        }
    }
    outcome::print(&json!({"answers": answers, "longest_ms": longest_gap.as_millis()}))
}

/// Listens, says so, and greets that many clients.
pub(crate) fn serve(options: &ServeOptions) -> Result<()> {
    let socket = stream(options.listen, options.mptcp)?;
    socket.set_reuse_address(true)?;
    if !options.unbound {
        socket.bind(&options.listen.into())?;
    }
    socket.listen(128)?;
    let listener = TcpListener::from(socket);
    outcome::print(&json!({"ready": true, "port": listener.local_addr()?.port()}))?;
    for _ in 0..options.accept {
        let (mut client, peer) = listener.accept()?;
        let mut request = [0_u8; 64];
        let read = client.read(&mut request);
        let wrote = client.write_all(GREETING);
        outcome::print(&json!({"peer": peer.to_string(), "read": read.ok(), "served": wrote.is_ok()}))?;
    }
    Ok(())
}

/// Connects from `source`, asks, and prints the answer.
pub(crate) fn dial(target: SocketAddr, source: SocketAddr, mptcp: bool) -> Result<()> {
    let socket = stream(target, mptcp)?;
    socket.set_reuse_address(true)?;
    socket.bind(&source.into())?;
    socket.set_read_timeout(Some(Duration::from_secs(4)))?;
    let mut answer = String::new();
    let asked = socket.connect_timeout(&target.into(), Duration::from_secs(4)).and_then(|()| {
        let mut stream = TcpStream::from(socket);
        stream.write_all(b"hello\n")?;
        stream.read_to_string(&mut answer)
    });
    outcome::print(&json!({"ok": asked.is_ok(), "errno": asked.err().and_then(|error| error.raw_os_error()), "answer": answer}))
}
