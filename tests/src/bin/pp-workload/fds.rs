//! Sockets that a process did not make itself: opened before it was marked, inherited, or passed to it.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::Result;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use nix::unistd::{dup2_stdin, pipe};
use nix::{cmsg_space, libc};
use serde_json::json;
use socket2::{Domain, SockRef, Socket, Type};

use crate::args::{SocketState, WriteBy};
use crate::outcome::{self, Outcome};
use crate::techniques::PAYLOAD;
use crate::uring::{self, Mode};

/// Opens a socket as told, makes it standard input and becomes the command.
pub(crate) fn open_then_exec(target: SocketAddr, state: SocketState, command: &[String]) -> Result<()> {
    dup2_stdin(&opened(target, state)?)?;
    crate::launch::exec(command)
}

fn opened(target: SocketAddr, state: SocketState) -> io::Result<Socket> {
    let kind = match state {
        SocketState::Tcp | SocketState::TcpConnected => Type::STREAM,
        SocketState::Udp | SocketState::UdpConnected => Type::DGRAM,
    };
    let socket = Socket::new(Domain::for_address(target), kind, None)?;
    if matches!(state, SocketState::TcpConnected | SocketState::UdpConnected) {
        socket.connect(&target.into())?;
    }
    Ok(socket)
}

/// Writes to a socket that came from elsewhere, connecting it first if it is not connected yet.
fn write_by(socket: &SockRef<'_>, way: WriteBy, connect: Option<SocketAddr>) -> io::Result<usize> {
    if let Some(target) = connect {
        socket.connect(&target.into())?;
    }
    match way {
        WriteBy::Send => socket.send(PAYLOAD),
        WriteBy::Write => {
            // SAFETY: a buffer of that length.
            returned(unsafe { libc::write(socket.as_raw_fd(), PAYLOAD.as_ptr().cast(), PAYLOAD.len()) })
        }
        WriteBy::Sendfile => {
            let mut file = File::from(memfd_create("payload", MFdFlags::empty())?);
            file.write_all(PAYLOAD)?;
            let mut from = 0;
            // SAFETY: valid descriptors and an offset of this function's own.
            returned(unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &raw mut from, PAYLOAD.len()) })
        }
        WriteBy::Splice => {
            let (read, write) = pipe()?;
            File::from(write).write_all(PAYLOAD)?;
            let null = std::ptr::null_mut();
            // SAFETY: valid descriptors; no offsets are given.
            returned(unsafe { libc::splice(read.as_raw_fd(), null, socket.as_raw_fd(), null, PAYLOAD.len(), 0) })
        }
        WriteBy::Uring => uring::write(&**socket, Mode::Inline),
        WriteBy::UringWorker => uring::write(&**socket, Mode::Worker),
    }
}

fn returned(bytes: isize) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_| io::Error::last_os_error())
}

/// Writes to the connected socket that is standard input, with an address that it ignores.
pub(crate) fn write_stdin(to: SocketAddr) -> Outcome {
    Outcome(SockRef::from(&io::stdin()).send_to(PAYLOAD, &to.into()))
}

/// Writes to the socket that is standard input.
pub(crate) fn use_stdin(way: WriteBy, connect: Option<SocketAddr>) -> Outcome {
    Outcome(write_by(&SockRef::from(&io::stdin()), way, connect))
}

/// Opens a socket, says so, waits for one client on the unix socket `path` and gives it the socket.
pub(crate) fn pass_fd(path: &Path, target: SocketAddr, state: SocketState) -> Result<()> {
    let socket = opened(target, state)?;
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

/// Takes a socket from the unix socket `path` and writes to it.
pub(crate) fn recv_fd(path: &Path, way: WriteBy, connect: Option<SocketAddr>) -> Outcome {
    Outcome(UnixStream::connect(path).and_then(|stream| write_by(&SockRef::from(&receive(&stream)?), way, connect)))
}

/// Opens a socket, says where it is, and holds it until it is killed.
pub(crate) fn hold_fd(target: SocketAddr, state: SocketState) -> Result<()> {
    let socket = opened(target, state)?;
    outcome::print(&json!({"ready": true, "pid": std::process::id(), "fd": socket.as_raw_fd()}))?;
    loop {
        nix::unistd::pause();
    }
}

/// Copies a socket out of another process and writes to it.
pub(crate) fn take_fd(pid: i32, fd: i32, way: WriteBy, connect: Option<SocketAddr>) -> Outcome {
    Outcome(copied(pid, fd).and_then(|socket| write_by(&SockRef::from(&socket), way, connect)))
}

fn copied(pid: i32, fd: i32) -> io::Result<OwnedFd> {
    let descriptor = |result: libc::c_long| {
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(result).map_err(io::Error::other)?;
        // SAFETY: the kernel has just installed this descriptor for us, and nothing else in this process knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: numbers only.
    let process = descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: numbers only.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

/// Waits for one client on the unix socket `path` and connects to the target for it: a server that acts for whoever asks. It stands in
/// for a container runtime and has that one's name, by which such servers are known.
pub(crate) fn relay(path: &Path, target: SocketAddr) -> Result<()> {
    // SAFETY: a name that ends in NUL.
    let named = unsafe { libc::prctl(libc::PR_SET_NAME, c"dockerd".as_ptr()) };
    if named != 0 {
        return Err(io::Error::last_os_error().into());
    }
    let listener = UnixListener::bind(path)?;
    outcome::print(&json!({"ready": true}))?;
    let (mut client, _) = listener.accept()?;
    let outcome = Outcome(crate::techniques::connect(target, None));
    writeln!(client, "{}", outcome.json())?;
    Ok(())
}

/// Asks the server at the unix socket `path` and passes on what it says.
pub(crate) fn ask_relay(path: &Path) -> Result<()> {
    match UnixStream::connect(path) {
        Ok(stream) => outcome::print(&serde_json::from_reader(stream)?),
        Err(error) => Outcome(Err(error)).print(),
    }
}
