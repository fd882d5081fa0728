//! Servers that take whatever comes and write one JSON line about it: the far ends that a test asks what really arrived.
//!
//! Lines: `{"event":"accept"|"datagram"|"closed","local","peer","at_ms","bytes","last_ms"}`, in order, flushed one by one. A `stream`
//! listener also sends without end, and says in `closed` when the last byte came in and how many it could hand over.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::flows::now_ms;
use crate::outcome;

type Log = Arc<Mutex<File>>;

fn write(log: &Log, line: &Value) {
    let mut file = log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // In one call: several servers write to this file.
    if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
        eprintln!("pp-workload sink: {error}");
    }
}

/// Serves every listener until it is killed.
pub(crate) fn run(listen: &[String], log: &Path) -> Result<()> {
    let log: Log = Arc::new(Mutex::new(OpenOptions::new().create(true).append(true).open(log)?));
    let mut threads = Vec::new();
    for spec in listen {
        let (kind, address) = spec.split_once(':').with_context(|| format!("{spec}: not KIND:ADDRESS"))?;
        let log = Arc::clone(&log);
        threads.push(match kind {
            "tcp" | "stream" => {
                let listener = TcpListener::bind(address).with_context(|| spec.clone())?;
                let streaming = kind == "stream";
                thread::spawn(move || accept(&listener, &log, streaming))
            }
            "mptcp" => {
                let listener = mptcp(address.parse()?).with_context(|| spec.clone())?;
                thread::spawn(move || accept(&listener, &log, false))
            }
            "udp" => {
                let socket = UdpSocket::bind(address).with_context(|| spec.clone())?;
                thread::spawn(move || datagrams(&socket, &log))
            }
            other => bail!("{other}: not a kind of listener"),
        });
    }
    outcome::print(&json!({"ready": true}))?;
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a listener ended"))?;
    }
    Ok(())
}

/// A listener that takes MPTCP connections, and TCP ones.
fn mptcp(address: SocketAddr) -> std::io::Result<TcpListener> {
    /// `IPPROTO_MPTCP` of `linux/in.h`.
    const MPTCP: i32 = 262;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::from(MPTCP)))?;
    socket.bind(&address.into())?;
    socket.listen(16)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, log: &Log, streaming: bool) {
    while let Ok((stream, peer)) = listener.accept() {
        let local = stream.local_addr().map(|address| address.to_string()).unwrap_or_default();
        write(log, &json!({"event": "accept", "local": local, "peer": peer.to_string(), "at_ms": now_ms()}));
        let log = Arc::clone(log);
        let _detached = thread::spawn(move || drain(stream, &local, &peer.to_string(), &log, streaming));
    }
}

fn drain(mut stream: TcpStream, local: &str, peer: &str, log: &Log, streaming: bool) {
    let _set = stream.set_read_timeout(Some(Duration::from_millis(if streaming { 10 } else { 5_000 })));
    let _set = stream.set_write_timeout(Some(Duration::from_millis(50)));
    let (mut bytes, mut last_ms, mut sent) = (0_usize, 0, 0_usize);
    let mut buffer = [0_u8; 4096];
    loop {
        if streaming && let Ok(wrote) = stream.write(b"answer") {
            sent += wrote;
        }
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => (bytes, last_ms) = (bytes + read, now_ms()),
            Err(error) if streaming && error.kind() == std::io::ErrorKind::WouldBlock => {
                // A peer that went silent sends no end of stream: five seconds are the end of its flow.
                if last_ms != 0 && now_ms() - last_ms > 5_000 {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    write(
        log,
        &json!({"event": "closed", "local": local, "peer": peer, "at_ms": now_ms(), "bytes": bytes, "last_ms": last_ms, "sent": sent}),
    );
}

fn datagrams(socket: &UdpSocket, log: &Log) {
    let mut buffer = [0_u8; 65_536];
    while let Ok((bytes, peer)) = socket.recv_from(&mut buffer) {
        let local = socket.local_addr().map(|address| address.to_string()).unwrap_or_default();
        write(log, &json!({"event": "datagram", "local": local, "peer": peer.to_string(), "at_ms": now_ms(), "bytes": bytes}));
    }
}
