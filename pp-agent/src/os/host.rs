//! Facts about this host: kernel, active LSMs, the boot.

use std::{fs, io};

/// The kernel's release, as `uname -r` prints it.
#[must_use]
pub fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(|_| "unknown".to_owned(), |name| name.release().to_string_lossy().into_owned())
}

/// The active LSMs; `None` (unknown) if securityfs is not mounted.
#[must_use]
pub(crate) fn active_lsms() -> Option<Vec<String>> {
    let text = fs::read_to_string("/sys/kernel/security/lsm").ok()?;
    Some(text.trim().split(',').map(str::to_owned).collect())
}

/// Whether the kernel command line says `pp_agent=off`.
#[must_use]
pub(crate) fn switched_off() -> bool {
    fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.split_whitespace().any(|word| word == "pp_agent=off"))
}

/// The time since boot in nanoseconds. Every deadline in the kernel uses this clock.
///
/// # Errors
/// Never on a kernel this runs on.
pub(crate) fn boot_ns() -> io::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
    let seconds = u64::try_from(now.tv_sec()).map_err(io::Error::other)?;
    let nanos = u64::try_from(now.tv_nsec()).map_err(io::Error::other)?;
    Ok(seconds * 1_000_000_000 + nanos)
}
