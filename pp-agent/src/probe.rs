//! Finds out whether this process is marked, from what the kernel refuses it.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use pp_common::decide::{PROBE, PROBE_PORT};

/// Whether a connect to [`PROBE`] is refused to this process. It is refused to marked processes in every mode and by every backend.
/// Unmarked ones connect to their own host, where nothing listens. It does not wait for an answer.
///
/// # Errors
/// No socket can be made.
pub(crate) fn is_refused() -> io::Result<bool> {
    let [a, b, c, d] = PROBE.as_v4().unwrap_or_default();
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    Ok(connect(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, PROBE_PORT)) == Err(Errno::EPERM))
}
