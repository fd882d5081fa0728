//! The few `bpf(2)` commands that aya keeps to itself, and their neighbours.

use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_UPDATE: libc::c_long = 29;
const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;

#[repr(C)]
#[derive(Default)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a `union bpf_attr` prefix of the stated size, valid for the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a pinned map, program or link.
pub(super) fn object(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let attr = ObjGet { pathname: name.as_ptr() as u64, ..ObjGet::default() };
    owned(bpf(BPF_OBJ_GET, &attr)?)
}

/// Puts another program behind a link, in one step.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr =
        LinkUpdate { link_fd: link.as_raw_fd().cast_unsigned(), new_prog_fd: program.as_raw_fd().cast_unsigned(), ..LinkUpdate::default() };
    bpf(BPF_LINK_UPDATE, &attr).map(drop)
}

/// Waits until every program that runs now has returned (an RCU grace period).
/// Where the kernel has no such call (booted with `nohz_full`), long enough.
pub(super) fn grace_period() {
    const LONG_ENOUGH: std::time::Duration = std::time::Duration::from_secs(1);
    // SAFETY: numbers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 {
        std::thread::sleep(LONG_ENOUGH);
    }
}

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

/// Disables this process's memory lock limit, which counts maps before 5.11.
pub(super) fn lift_memlock() -> io::Result<()> {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a valid structure for the call.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn owned_result(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 { Err(io::Error::last_os_error()) } else { owned(result) }
}
