//! `run --confine`: removes rights from the command that it starts.
//!
//! It removes capabilities, the way to new ones, the system calls of [`filter`], and open files. This applies to the command and everything
//! that it starts, with every backend of the gate, and cannot be undone. If a step fails, the command is not started.

mod filter;

use std::io;
use std::os::fd::RawFd;

use rustix::thread::{self, CapabilitySet, CapabilitySets};

use crate::os::process::close_at_exec;

/// What stops working, in one line for the user.
pub(crate) const STOPS: &str = "no sudo and no other privileges, no containers, namespaces or mounts, no debuggers, no io_uring, no 32-bit programs, \
                         no sockets but unix, IP and netlink";

/// The first file descriptor that is not standard.
pub(crate) const FIRST_OWN: RawFd = 3;

/// Why a command cannot be confined. It is then not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    /// There is a filter for one architecture only.
    #[cfg(not(target_arch = "x86_64"))]
    #[error("--confine: not available on {0}, only on x86_64; run without it")]
    Architecture(&'static str),
    /// The filter cannot be made.
    #[error("--confine: the filter of system calls cannot be made: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The kernel refuses the filter.
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
    /// A step succeeded but had no effect.
    #[error("--confine: {0} after it was taken away; nothing was started")]
    NotTaken(&'static str),
    /// `--keep-fd` names a descriptor that is not open.
    #[error("--keep-fd {0}: no such file descriptor is open")]
    NotOpen(RawFd),
}

/// A confinement that is prepared.
#[derive(Debug)]
pub(crate) struct Confinement {
    filters: Vec<seccompiler::BpfProgram>,
    keep: Vec<RawFd>,
}

impl Confinement {
    /// Prepares a confinement, without changing anything. `keep` are file descriptors above 2 that the command keeps.
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

    /// Confines the calling thread and the program that it executes. It must be the only thread and must execute next, which closes other
    /// open files.
    ///
    /// # Errors
    /// A step failed after others succeeded. The caller may only report it and exit.
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

/// Drops the bounding set first, which needs a capability. Without that capability the set stays, but `no_new_privs` makes it useless.
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

/// The capabilities in the bounding set, including those of newer kernels. The kernel returns an error for a number that it does not know.
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

/// Marks every descriptor that is neither standard nor kept, so that the exec closes it.
fn close_others(keep: &[RawFd]) -> Result<(), ConfineError> {
    let others = open_descriptors()?.into_iter().filter(|fd| *fd >= FIRST_OWN && !keep.contains(fd));
    for fd in others {
        match close_at_exec(fd) {
            Ok(()) => {}
            // The descriptor of the folder that was read is closed by now.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => {}
            Err(error) => return Err(step("open files")(error)),
        }
    }
    Ok(())
}

/// Checks the state of this thread with the kernel.
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
