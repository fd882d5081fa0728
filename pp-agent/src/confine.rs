//! `run --confine`: what a launcher can take from the command it starts.
//!
//! Capabilities, the way to new ones, the system calls of [`filter`], and open files. All of it holds for the command and what it starts,
//! whatever the backend of the gate is. Nothing here can be undone by them, and each step that fails keeps the command from being started.

mod filter;

use std::io;
use std::os::fd::RawFd;

use rustix::thread::{self, CapabilitySet, CapabilitySets};

use crate::os::process::close_at_exec;

/// What stops working, in a line for who starts the command.
pub(crate) const STOPS: &str = "no sudo and no other privileges, no containers, namespaces or mounts, no debuggers, no io_uring, no 32-bit programs, \
                         no sockets but unix, IP and netlink";

/// The first file descriptor that is not standard.
pub(crate) const FIRST_OWN: RawFd = 3;

/// Why a command cannot be confined. It is not started then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    /// The filter knows the system calls of one architecture.
    #[cfg(not(target_arch = "x86_64"))]
    #[error("--confine: not available on {0}, only on x86_64; run without it")]
    Architecture(&'static str),
    /// The filter cannot be made.
    #[error("--confine: the filter of system calls cannot be made: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The kernel does not take the filter.
    #[error("--confine: the kernel does not take the filter of system calls: {0}; nothing was started")]
    Install(#[from] seccompiler::Error),
    /// A step that the kernel refused.
    #[error("--confine: {step}: {error}; nothing was started")]
    Step {
        /// What was to be done.
        step: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// The kernel said yes to each step, and it is not so.
    #[error("--confine: {0} after it was taken away; nothing was started")]
    NotTaken(&'static str),
    /// `--keep-fd` names what is not there.
    #[error("--keep-fd {0}: no such file descriptor is open")]
    NotOpen(RawFd),
}

/// A confinement that is ready to be entered.
#[derive(Debug)]
pub(crate) struct Confinement {
    filters: Vec<seccompiler::BpfProgram>,
    keep: Vec<RawFd>,
}

impl Confinement {
    /// Prepares it; nothing has changed yet. `keep` are file descriptors above 2 that the command is to have.
    ///
    /// # Errors
    /// This architecture has no filter, or a descriptor of `keep` is not open.
    pub(crate) fn prepare(keep: &[RawFd]) -> Result<Self, ConfineError> {
        let open = open_descriptors()?;
        if let Some(missing) = keep.iter().find(|fd| !open.contains(fd)) {
            return Err(ConfineError::NotOpen(*missing));
        }
        Ok(Self { filters: filter::programs()?, keep: keep.to_vec() })
    }

    /// Confines the calling thread and the program that it becomes. It must be the only thread, and what comes next is the exec: other
    /// open files are closed by that.
    ///
    /// # Errors
    /// A step failed, after others were taken already: the caller may only report it and end.
    pub(crate) fn enter(&self) -> Result<(), ConfineError> {
        drop_capabilities()?;
        thread::set_no_new_privs(true).map_err(step("no_new_privs"))?;
        close_others(&self.keep)?;
        for filter in &self.filters {
            seccompiler::apply_filter(filter)?;
        }
        confirm()
    }
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> ConfineError {
    move |error| ConfineError::Step { step, error: error.into() }
}

/// The bounding set first, which takes a capability to change. Without that one the set stays, and `no_new_privs` keeps it from mattering.
fn drop_capabilities() -> Result<(), ConfineError> {
    let held = thread::capabilities(None).map_err(step("capabilities"))?;
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in bounding_set() {
            thread::remove_capability_from_bounding_set(capability).map_err(step("bounding set of capabilities"))?;
        }
    }
    thread::clear_ambient_capability_set().map_err(step("ambient capabilities"))?;
    let none = CapabilitySets { effective: CapabilitySet::empty(), permitted: CapabilitySet::empty(), inheritable: CapabilitySet::empty() };
    thread::set_capabilities(None, none).map_err(step("capabilities"))
}

/// The capabilities in the bounding set, also those that only a newer kernel knows. A number that the kernel does not know is an error to it.
fn bounding_set() -> impl Iterator<Item = CapabilitySet> {
    let all = (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
    all.filter(|capability| thread::capability_is_in_bounding_set(*capability).unwrap_or(false))
}

/// The numbers of this process's open files.
fn open_descriptors() -> Result<Vec<RawFd>, ConfineError> {
    let listing = || -> io::Result<Vec<RawFd>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc/self/fd")? {
            let number = entry?.file_name().to_str().and_then(|name| name.parse().ok());
            found.push(number.ok_or_else(|| io::Error::other("an entry that is no number"))?);
        }
        Ok(found)
    };
    listing().map_err(step("/proc/self/fd"))
}

/// Has the exec close everything that is neither standard nor to be kept.
fn close_others(keep: &[RawFd]) -> Result<(), ConfineError> {
    let others = open_descriptors()?.into_iter().filter(|fd| *fd >= FIRST_OWN && !keep.contains(fd));
    for fd in others {
        match close_at_exec(fd) {
            Ok(()) => {}
            // The folder that was just read.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => {}
            Err(error) => return Err(step("open files")(error)),
        }
    }
    Ok(())
}

/// What the kernel says of this thread now.
fn confirm() -> Result<(), ConfineError> {
    let held = thread::capabilities(None).map_err(step("capabilities"))?;
    if !(held.effective | held.permitted | held.inheritable).is_empty() {
        return Err(ConfineError::NotTaken("a capability is held"));
    }
    if !thread::no_new_privs().map_err(step("no_new_privs"))? {
        return Err(ConfineError::NotTaken("new privileges can be had"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_kept_must_be_open() {
        let error = Confinement::prepare(&[0, 1_000_000]).unwrap_err();
        assert!(matches!(error, ConfineError::NotOpen(1_000_000)), "{error}");
    }

    #[test]
    fn open_files_are_found_by_their_numbers() {
        let file = tempfile::tempfile().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        assert!(open_descriptors().unwrap().contains(&number));
    }
}
