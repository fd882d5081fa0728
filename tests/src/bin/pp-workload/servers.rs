//! Attacks on the control socket from both of its ends: a server that says yes to everything, and a crowd of callers that are slow.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::outcome;

/// What each call of the control socket wants to hear; `MARKED`: who asked for a mark is told that it has one.
const YES: &str = r#"{"session":"00000000000000aa","agent":"x","marked":MARKED,"uid":0,"pid":1,"processes":1,"id":"ppa_x","status":"revoked","was_registered":true,"healthy":true,"posture":"enforcing","verdict":"allow","reason":"not_protected","generation":1,"notes":[],"sessions":[],"receipts":[],"refusals":[],"targets":[],"toml":""}"#;

/// Serves `socket`, prints a line for each request and answers it with 200.
pub(crate) fn false_server(socket: &Path) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| socket.display().to_string())?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666))?;
    outcome::print(&json!({"ready": true}))?;
    let mut marked = false;
    for stream in listener.incoming() {
        let mut stream = stream?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut buffer = [0_u8; 65_536];
        // Whoever finds out whom it talks to leaves without a word.
        let Ok(read @ 1..) = stream.read(&mut buffer) else { continue };
        let head = String::from_utf8_lossy(&buffer[..read]).lines().next().unwrap_or_default().to_owned();
        outcome::print(&json!({"request": head}))?;
        marked |= head.starts_with("POST /v1/sessions");
        let yes = YES.replace("MARKED", if marked { "true" } else { "false" });
        let length = yes.len();
        let answer =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{yes}");
        // One that has left meanwhile is no error.
        let _gone = stream.write_all(answer.as_bytes());
    }
    Ok(())
}

/// Keeps connections open that never finish a request (`slow`) or never begin one (`idle`), opens anew what was closed, and tells once a
/// second how many the daemon closed.
pub(crate) fn crowd(socket: &Path, slow: usize, idle: usize, every: Duration) -> Result<()> {
    let mut guests: Vec<Guest> = (0..slow + idle).map(|index| Guest { stream: None, slow: index < slow }).collect();
    let (mut closed, mut told, mut is_ready) = (0_u64, Instant::now(), false);
    loop {
        for guest in &mut guests {
            closed += u64::from(guest.was_closed());
            if guest.stream.is_none() {
                guest.call(socket)?;
            }
        }
        if !is_ready || told.elapsed() >= Duration::from_secs(1) {
            (told, is_ready) = (Instant::now(), true);
            outcome::print(&json!({"ready": true, "closed": closed}))?;
        }
        std::thread::sleep(every);
    }
}

struct Guest {
    stream: Option<UnixStream>,
    slow: bool,
}

impl Guest {
    fn call(&mut self, socket: &Path) -> Result<()> {
        let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        stream.set_nonblocking(true)?;
        if self.slow {
            let head = "POST /v1/receipts HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n{";
            // One that was turned away is opened anew.
            let _gone = stream.write_all(head.as_bytes());
        }
        self.stream = Some(stream);
        Ok(())
    }

    /// Sends one more byte of a slow body; true if the daemon has closed the connection.
    fn was_closed(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let wrote = if self.slow { stream.write(b" ").map(drop) } else { Ok(()) };
        let read = stream.read(&mut [0; 1024]);
        let waits = |error: &std::io::Error| error.kind() == ErrorKind::WouldBlock;
        let is_open = wrote.as_ref().err().is_none_or(waits) && read.as_ref().err().is_some_and(waits);
        if !is_open {
            self.stream = None;
        }
        !is_open
    }
}
