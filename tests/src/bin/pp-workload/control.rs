//! The attack on the control socket that judging a peer once would miss: a child connects, hands the connection to its parent and exits.

use std::io::{IoSlice, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use nix::unistd::dup2_stdin;
use serde_json::json;
use socket2::SockRef;

use crate::{fds, outcome};

/// Starts the child, takes its connection after it has exited, sends the request and prints the first line of the answer.
pub(crate) fn peer_fd(socket: &Path, request: &str) -> Result<()> {
    let (mine, theirs) = UnixStream::pair()?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("peer-fd-child")
        .arg(socket)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()?;
    let status = child.wait()?;
    ensure!(status.success(), "the child could not connect");
    let mut stream = UnixStream::from(fds::receive(&mine)?);
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(request.replace("\\r\\n", "\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0_u8; 4096];
    while !answer.contains(&b'\n') {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
        }
    }
    let first = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
    outcome::print(&json!({"answer": first}))
}

/// Connects to the control socket, passes the connection over standard input, and exits.
pub(crate) fn peer_fd_child(socket: &Path) -> Result<()> {
    let control = UnixStream::connect(socket)?;
    let stdin = std::io::stdin();
    let parent = SockRef::from(&stdin);
    let fds = [control.as_raw_fd()];
    let _sent =
        sendmsg::<UnixAddr>(parent.as_raw_fd(), &[IoSlice::new(b"x")], &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None)?;
    // The other end is the parent's alone from here on.
    dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(())
}
