//! Connects and sends that io_uring makes for its caller: at once, by one of its workers, or by its polling thread.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, Timespec};
use io_uring::{IoUring, opcode};
use nix::libc;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::techniques::{DEADLINE, PAYLOAD};

/// How long the polling thread stays awake, in milliseconds.
const POLL_IDLE_MS: u32 = 2_000;

/// Who makes the call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The caller, as it submits.
    Inline,
    /// A worker thread of the ring.
    Worker,
    /// The ring's polling thread.
    Poll,
}

/// A connection through a ring, and its first bytes.
pub(crate) fn connect(target: SocketAddr, mode: Mode) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    let address = SockAddr::from(target);
    let entry = opcode::Connect::new(Fixed(0), address.as_ptr().cast(), address.len()).build();
    run(&socket, entry, mode)?;
    socket.send(PAYLOAD)
}

/// A datagram through a ring.
pub(crate) fn sendmsg(target: SocketAddr, mode: Mode) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(target), Type::DGRAM, None)?;
    let address = SockAddr::from(target);
    let mut slice = libc::iovec { iov_base: PAYLOAD.as_ptr().cast_mut().cast(), iov_len: PAYLOAD.len() };
    // SAFETY: plain bytes, all zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = address.as_ptr().cast_mut().cast();
    message.msg_namelen = address.len();
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    run(&socket, opcode::SendMsg::new(Fixed(0), &raw const message).build(), mode)
}

/// Writes on a connected socket through a ring.
pub(crate) fn write(socket: &impl AsFd, mode: Mode) -> io::Result<usize> {
    let length = u32::try_from(PAYLOAD.len()).map_err(io::Error::other)?;
    run(socket, opcode::Write::new(Fixed(0), PAYLOAD.as_ptr(), length).build(), mode)
}

/// Hands one entry to a ring whose one registered file is the socket, and waits for its end.
fn run(socket: &impl AsFd, entry: Entry, mode: Mode) -> io::Result<usize> {
    let mut ring = match mode {
        Mode::Inline | Mode::Worker => IoUring::new(4)?,
        Mode::Poll => IoUring::builder().setup_sqpoll(POLL_IDLE_MS).build(4)?,
    };
    ring.submitter().register_files(&[socket.as_fd().as_raw_fd()])?;
    let entry = if mode == Mode::Worker { entry.flags(Flags::ASYNC) } else { entry };
    // A far end that never answers must not hold the attempt up for ever.
    let limit = Timespec::new().sec(DEADLINE.as_secs());
    let timeout = opcode::LinkTimeout::new(&raw const limit).build();
    // SAFETY: what the entries point to outlives this call, which returns only after both have completed.
    unsafe {
        let mut queue = ring.submission();
        queue.push(&entry.flags(Flags::IO_LINK).user_data(1)).map_err(io::Error::other)?;
        queue.push(&timeout.user_data(2)).map_err(io::Error::other)?;
    }
    let (mut answer, mut completed) = (None, 0);
    while completed < 2 {
        ring.submit_and_wait(1)?;
        while let Some(done) = ring.completion().next() {
            completed += 1;
            if done.user_data() == 1 {
                answer = Some(done.result());
            }
        }
    }
    let answer = answer.ok_or_else(|| io::Error::other("the ring gave no answer"))?;
    usize::try_from(answer).map_err(|_| io::Error::from_raw_os_error(-answer))
}
