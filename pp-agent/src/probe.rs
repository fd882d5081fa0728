//! Whether the kernel sees this process as marked, found out from what it refuses, without asking anybody.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use pp_common::decide::{PROBE, PROBE_PORT};

/// Whether a connect to [`PROBE`] is refused to this process: to marked ones it is, in every mode and by every backend. Unmarked ones
/// connect to their own host, where nobody listens; nothing waits for an answer.
///
/// # Errors
/// There is no socket to try it with.
pub(crate) fn is_refused() -> io::Result<bool> {
    let [a, b, c, d] = PROBE.as_v4().unwrap_or_default();
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    Ok(connect(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, PROBE_PORT)) == Err(Errno::EPERM))
}
