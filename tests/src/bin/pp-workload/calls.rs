//! System calls that no library makes in this way, one attempt each, and a launcher that is not allowed to set up filters.

#![allow(unsafe_code, reason = "system calls that no library offers; each has its SAFETY line")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use anyhow::Result;
use clap::ValueEnum;
use nix::libc;
use nix::pty::openpty;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::launch;
use crate::outcome::Outcome;

/// One call.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum CallArg {
    /// The number of this process, asked for as an x32 program does
    X32,
    /// The same, as a 32-bit program does
    Compat,
    /// A child in a user namespace of its own, by `clone`
    CloneUserNamespace,
    /// A child, by `clone3`
    Clone3,
    /// The user namespace that this process is in already
    EnterNamespace,
    /// A character typed into a terminal
    Typing,
    /// A socket for the kernel's ciphers
    Ciphers,
    /// A ring of requests
    Ring,
}

/// Makes one call.
pub(crate) fn attempt(call: CallArg) -> Outcome {
    Outcome(made(call).and_then(|result| usize::try_from(result).map_err(io::Error::other)))
}

fn made(call: CallArg) -> io::Result<i64> {
    match call {
        CallArg::X32 => {
            const X32: i64 = 0x4000_0000;
            // SAFETY: a call without arguments.
            done(unsafe { libc::syscall(X32 | libc::SYS_getpid) })
        }
        CallArg::Compat => compat(),
        CallArg::CloneUserNamespace => {
            // SAFETY: without CLONE_VM the child has a copy of everything, as after fork.
            ended(done(unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0) })?)
        }
        CallArg::Clone3 => {
            // SAFETY: plain numbers, all zero is a value.
            let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
            arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
            // SAFETY: a valid structure of that size; without CLONE_VM the child has a copy of everything, as after fork.
            ended(done(unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) })?)
        }
        CallArg::EnterNamespace => {
            let own = File::open("/proc/self/ns/net")?;
            // SAFETY: a descriptor of ours and a number.
            done(unsafe { libc::syscall(libc::SYS_setns, own.as_raw_fd(), libc::CLONE_NEWNET) })
        }
        CallArg::Typing => {
            let terminal = openpty(None, None)?;
            // SAFETY: a terminal of ours and one character.
            done(unsafe { libc::ioctl(terminal.slave.as_raw_fd(), libc::TIOCSTI, c"x".as_ptr()) }.into())
        }
        CallArg::Ciphers => {
            // SAFETY: numbers only.
            done(unsafe { libc::socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0) }.into())
        }
        CallArg::Ring => {
            // Of `struct io_uring_params` the kernel reads the first words and fills in the rest.
            let mut parameters = [0_u64; 15];
            // SAFETY: room for the structure, all zero.
            done(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) })
        }
    }
}

fn done(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The child ends at once, and its parent waits for it.
fn ended(child: i64) -> io::Result<i64> {
    if child == 0 {
        std::process::exit(0);
    }
    let child = libc::pid_t::try_from(child).map_err(io::Error::other)?;
    // SAFETY: a child of ours; no status is asked for.
    done(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }.into())
}

/// `getpid` of the 32-bit interface.
#[cfg(target_arch = "x86_64")]
fn compat() -> io::Result<i64> {
    const GETPID: u64 = 20;
    let result: u64;
    // SAFETY: a call without arguments, by the interrupt of 32-bit programs; the registers that it may clear are given up.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("rax") GETPID => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    i64::try_from(result).map_err(io::Error::other)
}

/// There is none here.
#[cfg(not(target_arch = "x86_64"))]
fn compat() -> io::Result<i64> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// Becomes the command where the kernel takes no filter of system calls any more.
pub(crate) fn without_filters(command: &[String]) -> Result<()> {
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let rules = BTreeMap::from([(libc::SYS_seccomp, Vec::new())]);
    let filter: BpfProgram = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64)?.try_into()?;
    seccompiler::apply_filter(&filter)?;
    launch::exec(command)
}
