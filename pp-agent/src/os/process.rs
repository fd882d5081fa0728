//! Processes: pidfds, what `/proc` says about them, and settings of this process.

use std::{
    fs, io,
    os::fd::{BorrowedFd, OwnedFd, RawFd},
};

use procfs_core::{
    FromBufRead as _, FromRead as _, ProcessCGroups,
    process::{Stat, StatFlags, Status},
};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, PidfdGetfdFlags},
};

/// A descriptor for a process.
///
/// # Errors
/// There is no such process, or no descriptor is left.
pub(crate) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::INVAL)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// A copy of another process's file descriptor.
///
/// # Errors
/// The process has ended or may not be accessed, or the file is closed.
pub(crate) fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty())?)
}

/// A process as `/proc/PID/stat` shows it, with any bytes in its name.
///
/// # Errors
/// It has ended, or may not be accessed.
pub(crate) fn stat(pid: u32) -> io::Result<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat"))?)
}

pub(crate) fn parse_stat(bytes: &[u8]) -> io::Result<Stat> {
    Stat::from_read(bytes).map_err(io::Error::other)
}

/// The parent of a process; zero: none that is visible here.
pub(crate) fn parent(stat: &Stat) -> u32 {
    u32::try_from(stat.ppid).unwrap_or(0)
}

/// Whether it is a thread of the kernel.
pub(crate) fn is_kernel_thread(stat: &Stat) -> bool {
    StatFlags::from_bits_truncate(stat.flags).contains(StatFlags::PF_KTHREAD)
}

/// Whether some thread of it is not exiting. The kernel sets the flag of a thread before its exit hook runs.
pub(crate) fn has_a_thread(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads
        .flatten()
        .any(|thread| fs::read(thread.path().join("stat")).and_then(|bytes| parse_stat(&bytes)).is_ok_and(|stat| !is_ending(&stat)))
}

fn is_ending(thread: &Stat) -> bool {
    StatFlags::from_bits_truncate(thread.flags).contains(StatFlags::PF_EXITING)
}

/// A process as `/proc/PID/status` shows it, with any bytes in its name.
///
/// # Errors
/// It has ended, or may not be accessed.
pub(crate) fn status(pid: u32) -> io::Result<Status> {
    let text = fs::read(format!("/proc/{pid}/status"))?;
    Status::from_buf_read(String::from_utf8_lossy(&text).as_bytes()).map_err(io::Error::other)
}

/// The cgroups of a process, one for each hierarchy. `None`: of this process.
///
/// # Errors
/// It has ended, or may not be accessed.
pub(crate) fn cgroups(pid: Option<u32>) -> io::Result<ProcessCGroups> {
    let pid = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    ProcessCGroups::from_buf_read(&fs::read(format!("/proc/{pid}/cgroup"))?[..]).map_err(io::Error::other)
}

/// The path of a process's cgroup2 from the root of that hierarchy. `None`: of this process.
pub(crate) fn cgroup2(pid: Option<u32>) -> Option<String> {
    cgroups(pid).ok()?.0.into_iter().find(|cgroup| cgroup.hierarchy == 0).map(|cgroup| cgroup.pathname)
}

/// Marks a descriptor to be closed at the next exec.
pub(crate) fn close_at_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: numbers only; the owner of the descriptor keeps it.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ignores SIGIO and the real-time signals, which this program does not use. A process can make the kernel send them for a file, and no
/// hook checks their receiver.
pub(crate) fn ignore_stray_signals() {
    for number in std::iter::once(libc::SIGIO).chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        // SAFETY: no handler is set, and an unknown number is refused.
        if unsafe { libc::signal(number, libc::SIG_IGN) } == libc::SIG_ERR {
            tracing::warn!("signal {number}: cannot be ignored: {}", io::Error::last_os_error());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The line of a process in `/proc/PID/stat`.
    pub(crate) fn stat_line(pid: u32, name: &str, parent: u32, flags: u32, start_ticks: u64) -> String {
        format!(
            "{pid} ({name}) S {parent} 1 1 0 -1 {flags} 1 0 0 0 0 0 0 0 20 0 1 0 {start_ticks} 1 1 {} 0 0 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0",
            u64::MAX
        )
    }

    #[test]
    fn name_of_a_process_cannot_forge_what_follows_it() {
        for name in ["a) S 1 1 1 0 -1 4 (", "a (b) c", "a\nb", ""] {
            let stat = parse_stat(stat_line(41, name, 7, 0x40_0000, 8812).as_bytes()).unwrap();
            assert_eq!((parent(&stat), stat.starttime, is_ending(&stat)), (7, 8812, false), "{name}");
        }
        let bytes = [&b"41 (\xff\xfe) "[..], &stat_line(41, "", 7, 4, 1).into_bytes()[6..]].concat();
        let stat = parse_stat(&bytes).unwrap();
        assert_eq!((parent(&stat), is_ending(&stat)), (7, true));
    }

    #[test]
    fn thread_that_has_begun_to_end_is_told_from_one_that_goes_on() {
        let stat = |flags| parse_stat(stat_line(77, "cat", 1, flags, 1).as_bytes()).unwrap();
        assert!(is_ending(&stat(0x40_0004)) && !is_ending(&stat(0x40_0100)));
        assert!(is_kernel_thread(&stat(0x20_8040)) && !is_kernel_thread(&stat(0x40_0100)));
        assert!(parse_stat(b"nothing of the kind").is_err());
        assert!(has_a_thread(std::process::id()) && !has_a_thread(u32::MAX));
    }

    #[test]
    fn own_process_is_read() {
        let own = std::process::id();
        let stat = stat(own).unwrap();
        assert!(parent(&stat) != 0 && !is_kernel_thread(&stat));
        assert_eq!(status(own).unwrap().euid, nix::unistd::geteuid().as_raw());
        assert_eq!(cgroup2(None), cgroup2(Some(own)));
        assert!(pidfd(own).is_ok());
        for none in [0, u32::MAX, 4_194_305] {
            assert!(pidfd(none).is_err());
        }
    }
}
