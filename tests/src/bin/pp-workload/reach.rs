//! What a session could do to other processes without a debugger, one attempt each: type into their terminals, open their files, limit them.

#![allow(unsafe_code, reason = "system calls that no library offers; each has its SAFETY line")]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::num::ParseIntError;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::outcome::Outcome;

/// One attempt.
#[derive(Subcommand)]
pub(crate) enum ReachArg {
    /// Type `x` and Enter into a terminal
    Type {
        path: PathBuf,
        /// As a 32-bit program does
        #[arg(long)]
        compat: bool,
    },
    /// Make an `ioctl(2)` with an argument of zeros on a file that is opened for reading
    Ioctl {
        path: PathBuf,
        /// In hexadecimal digits
        #[arg(value_parser = hexadecimal)]
        command: u32,
        /// As a 32-bit program does
        #[arg(long)]
        compat: bool,
    },
    /// Set the flags of a file by `file_setattr(2)`
    FileSetattr { path: PathBuf },
    /// Open a file for writing and write a line to it
    Say { path: PathBuf },
    /// Open a file by its path alone, then open that again for writing, and write a line
    SayInTwo { path: PathBuf },
    /// Open a file for reading
    Hear { path: PathBuf },
    /// Truncate a file by its path
    Cut { path: PathBuf },
    /// Look where a link leads
    Look { path: PathBuf },
    /// Open again what this process has open itself, and what it may open of others
    Own,
    /// Set a limit of a process to what it is
    Limit { pid: i32, resource: u32 },
    /// Set the nice value of a process to what it is
    Nice { pid: u32 },
    /// Set the priority of a process at disks to what it is
    DiskPriority { pid: i32 },
    /// Set the scheduler of a process to what it is
    Scheduler { pid: i32 },
    /// Set the processors of a process to what they are
    Processors { pid: i32 },
    /// Move the memory of a process from the first node to the first node
    Nodes { pid: i32 },
}

fn hexadecimal(text: &str) -> Result<u32, ParseIntError> {
    u32::from_str_radix(text, 16)
}

/// Makes one attempt.
pub(crate) fn attempt(attempt: &ReachArg) -> Outcome {
    Outcome(tried(attempt).map(|()| 0))
}

fn tried(attempt: &ReachArg) -> io::Result<()> {
    match attempt {
        ReachArg::Type { path, compat } => {
            // Not the terminal of this process.
            let terminal = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path)?;
            b"x\n".iter().try_for_each(|key| ioctl(&terminal, TIOCSTI, &mut [*key; ARGUMENT], *compat))
        }
        ReachArg::Ioctl { path, command, compat } => {
            let file = OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path)?;
            ioctl(&file, *command, &mut [0; ARGUMENT], *compat)
        }
        ReachArg::FileSetattr { path } => {
            const SYS_FILE_SETATTR: i64 = 469;
            // `struct file_attr`.
            let attributes = [0_u64; 3];
            let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
            // SAFETY: a path that ends in NUL, and a structure of that size.
            done(unsafe {
                libc::syscall(SYS_FILE_SETATTR, libc::AT_FDCWD, name.as_ptr(), attributes.as_ptr(), size_of_val(&attributes), 0)
            })
        }
        ReachArg::Say { path } => say(path),
        ReachArg::SayInTwo { path } => {
            let by_path = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
            say(Path::new(&format!("/proc/self/fd/{}", by_path.as_raw_fd())))
        }
        ReachArg::Hear { path } => OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path).map(drop),
        ReachArg::Cut { path } => Ok(nix::unistd::truncate(path, 0)?),
        ReachArg::Look { path } => {
            fs::read_link(path)?;
            fs::metadata(path).map(drop)
        }
        ReachArg::Own => own(),
        ReachArg::Limit { pid, resource } => {
            let mut limit = [0_u64; 2];
            // SAFETY: numbers, no new limit, and room for the present one.
            done(unsafe { libc::syscall(libc::SYS_prlimit64, *pid, *resource, 0, limit.as_mut_ptr()) })?;
            // SAFETY: numbers and a limit, and nothing to write to.
            done(unsafe { libc::syscall(libc::SYS_prlimit64, *pid, *resource, limit.as_ptr(), 0) })
        }
        ReachArg::Nice { pid } => {
            // SAFETY: numbers only. The call itself answers 20 less the value.
            let value = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, *pid) };
            done(value)?;
            // SAFETY: numbers only.
            done(unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, *pid, 20 - value) })
        }
        ReachArg::DiskPriority { pid } => {
            const PROCESS: i32 = 1;
            // SAFETY: numbers only.
            let value = unsafe { libc::syscall(libc::SYS_ioprio_get, PROCESS, *pid) };
            done(value)?;
            // SAFETY: numbers only.
            done(unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, *pid, value) })
        }
        ReachArg::Scheduler { pid } => {
            let mut parameter = [0_i32; 4];
            // SAFETY: numbers only.
            let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, *pid) };
            done(policy)?;
            // SAFETY: a number and room for the one number of the structure.
            done(unsafe { libc::syscall(libc::SYS_sched_getparam, *pid, parameter.as_mut_ptr()) })?;
            // SAFETY: numbers and that structure.
            done(unsafe { libc::syscall(libc::SYS_sched_setscheduler, *pid, policy, parameter.as_ptr()) })
        }
        ReachArg::Processors { pid } => {
            let mut mask = [0_u64; 128];
            // SAFETY: a mask of that size.
            done(unsafe { libc::syscall(libc::SYS_sched_getaffinity, *pid, size_of_val(&mask), mask.as_mut_ptr()) })?;
            // SAFETY: as above.
            done(unsafe { libc::syscall(libc::SYS_sched_setaffinity, *pid, size_of_val(&mask), mask.as_ptr()) })
        }
        ReachArg::Nodes { pid } => {
            let first = [1_u64];
            // SAFETY: two masks of 64 nodes.
            done(unsafe { libc::syscall(libc::SYS_migrate_pages, *pid, 64, first.as_ptr(), first.as_ptr()) })
        }
    }
}

/// The line is what a shell at the other end would run.
fn say(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path)?.write_all(b"echo said\n")
}

/// Pipes and memory files of this process, by their links and otherwise, and what the kernel opens on mounts of its own for everybody.
fn own() -> io::Result<()> {
    let link = |file: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let memory = memfd_create(c"own", MFdFlags::MFD_CLOEXEC)?;
    nix::unistd::ftruncate(&memory, 4096)?;
    say(&link(&memory))?;
    File::open(link(&memory))?;
    nix::unistd::truncate(&link(&memory), 0)?;
    let (_reads, writes) = nix::unistd::pipe()?;
    say(&link(&writes))?;
    File::open("/proc/self/ns/net")?;
    // SAFETY: numbers only.
    done(unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) })?;
    let name = c"pp-e2e-own";
    // SAFETY: a name that ends in NUL, numbers, and no attributes.
    let queue = unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600, 0) };
    match done(queue) {
        // A kernel without message queues.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        Err(error) => Err(error),
        // SAFETY: a name that ends in NUL.
        Ok(()) => done(unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) }),
    }
}

fn done(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const TIOCSTI: u32 = 0x5412;
/// As much as any of these commands reads or writes.
const ARGUMENT: usize = 64;

fn ioctl(file: &File, command: u32, argument: &mut [u8; ARGUMENT], compat: bool) -> io::Result<()> {
    if compat {
        return compat_ioctl(file, command, argument);
    }
    // SAFETY: a descriptor of ours, and room for the argument.
    done(unsafe { libc::syscall(libc::SYS_ioctl, file.as_raw_fd(), command, argument.as_mut_ptr()) })
}

/// The same by the interface of 32-bit programs.
#[cfg(target_arch = "x86_64")]
fn compat_ioctl(file: &File, command: u32, argument: &[u8; ARGUMENT]) -> io::Result<()> {
    const IOCTL: u64 = 54;
    const PAGE: usize = 4096;
    // SAFETY: new memory at an address of 32 bits.
    let low = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    if low == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: that memory is larger than the argument, and nobody else's.
    unsafe { std::ptr::copy_nonoverlapping(argument.as_ptr(), low.cast::<u8>(), ARGUMENT) };
    let descriptor = u64::from(file.as_raw_fd().cast_unsigned());
    let result: u64;
    // SAFETY: a descriptor of ours and that memory, by the interrupt of 32-bit programs. The compiler lends no `rbx`, so it is exchanged
    // and put back; the registers that the interrupt may clear are given up.
    unsafe {
        std::arch::asm!(
            "xchg {descriptor}, rbx", "int 0x80", "xchg {descriptor}, rbx",
            descriptor = inout(reg) descriptor => _,
            inlateout("rax") IOCTL => result,
            in("rcx") u64::from(command),
            in("rdx") low,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    // The interface answers in 32 bits: an error is a negative number.
    #[expect(clippy::cast_possible_truncation, reason = "the half that holds the answer")]
    match (result as u32).cast_signed() {
        answer if answer < 0 => Err(io::Error::from_raw_os_error(-answer)),
        _ => Ok(()),
    }
}

/// There is none here.
#[cfg(not(target_arch = "x86_64"))]
fn compat_ioctl(_file: &File, _command: u32, _argument: &[u8; ARGUMENT]) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}
