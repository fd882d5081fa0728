//! Sockets that a process did not make itself: opened before it was marked, inherited, or passed to it.

use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::Result;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use nix::unistd::dup2_stdin;
use serde_json::json;
use socket2::{Domain, SockRef, Socket, Type};

use crate::args::SocketState;
use crate::outcome::{self, Outcome};
use crate::techniques::PAYLOAD;

/// Opens a socket as told, makes it standard input and becomes the command.
pub(crate) fn open_then_exec(target: SocketAddr, state: SocketState, command: &[String]) -> Result<()> {
    let kind = match state {
        SocketState::Tcp | SocketState::TcpConnected => Type::STREAM,
        SocketState::Udp | SocketState::UdpConnected => Type::DGRAM,
    };
    let socket = Socket::new(Domain::for_address(target), kind, None)?;
    if matches!(state, SocketState::TcpConnected | SocketState::UdpConnected) {
        socket.connect(&target.into())?;
    }
    dup2_stdin(&socket)?;
    crate::launch::exec(command)
}

/// Connects the socket that is standard input and writes to it.
pub(crate) fn connect_stdin(target: SocketAddr) -> Outcome {
    let stdin = io::stdin();
    let socket = SockRef::from(&stdin);
    Outcome(socket.connect(&target.into()).and_then(|()| socket.send(PAYLOAD)))
}

/// Writes to the connected socket that is standard input.
pub(crate) fn write_stdin(to: Option<SocketAddr>) -> Outcome {
    let stdin = io::stdin();
    let socket = SockRef::from(&stdin);
    Outcome(match to {
        Some(to) => socket.send_to(PAYLOAD, &to.into()),
        None => socket.send(PAYLOAD),
    })
}

/// Connects to the target, says so, waits for one client on the unix socket `path` and gives it the connection.
pub(crate) fn pass_fd(path: &Path, target: SocketAddr) -> Result<()> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.connect(&target.into())?;
    let listener = UnixListener::bind(path)?;
    outcome::print(&json!({"ready": true}))?;
    let (mut peer, _) = listener.accept()?;
    let fds = [socket.as_raw_fd()];
    let message = [IoSlice::new(b"x")];
    let _sent = sendmsg::<UnixAddr>(peer.as_raw_fd(), &message, &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None)?;
    // Held open until the receiver has tried: its close ends the read.
    let _end = io::copy(&mut peer, &mut io::sink())?;
    peer.flush()?;
    Ok(())
}

/// Receives a socket over the stream, or the reason why none came.
pub(crate) fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0_u8; 1];
    let mut slices = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([std::os::fd::RawFd; 1]);
    let message = recvmsg::<UnixAddr>(stream.as_fd().as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(&fd) = fds.first()
        {
            // SAFETY: the kernel has just installed this descriptor for us, and nothing else in this process knows it.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(io::Error::other("no socket arrived with the message"))
}

/// Takes a connected socket from the unix socket `path` and writes to it.
pub(crate) fn recv_fd(path: &Path) -> Outcome {
    Outcome(UnixStream::connect(path).and_then(|stream| {
        let socket = Socket::from(receive(&stream)?);
        socket.send(PAYLOAD)
    }))
}
