//! Processes by the kernel's handles for them, and what this process sets for itself.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

/// A descriptor for a process.
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    owned_result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// A copy of another process's file descriptor.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    owned_result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// Has an open file closed by the next exec.
pub fn close_at_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: numbers only; whoever owns the descriptor keeps it until then.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ignores signals that the kernel may be made to send on behalf of a file's owner, which no hook
/// judges by their receiver: SIGIO and the real-time ones. Nothing here uses them.
pub fn ignore_stray_signals() {
    for number in std::iter::once(libc::SIGIO).chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        // SAFETY: no handler is set, and an unknown number is refused.
        if unsafe { libc::signal(number, libc::SIG_IGN) } == libc::SIG_ERR {
            tracing::warn!("signal {number}: cannot be ignored: {}", io::Error::last_os_error());
        }
    }
}

/// The descriptor that a call returned.
fn owned_result(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
