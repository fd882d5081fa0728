//! The cgroups that the daemon was started in, and its return to them after a session has moved it.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pp_common::abi::REPEAT_WINDOW_NS;

use crate::os::mounts;

/// The cgroups that the daemon belongs in.
#[derive(Debug)]
pub(super) struct OwnCgroup {
    procs: Vec<PathBuf>,
    /// Until then the daemon may be moved again without a record.
    until: Mutex<Option<Instant>>,
}

impl OwnCgroup {
    /// Finds the cgroups of this process.
    pub(super) fn note() -> io::Result<Self> {
        Ok(Self { procs: mounts::own_cgroups()?, until: Mutex::new(None) })
    }

    /// Handles a record that says a session has moved the daemon, or a lost record that may have said so. Within the window the kernel only
    /// counts repeats, so the daemon keeps going back until the window is over.
    pub(super) fn moved(&self) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now().checked_add(Duration::from_nanos(2 * REPEAT_WINDOW_NS));
        self.go_back();
    }

    /// Goes back if it may have been moved again; called each second.
    pub(super) fn look(&self) {
        if self.until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until) {
            self.go_back();
        }
    }

    /// Goes back. It fails if the cgroup was removed or accepts no processes; that is logged.
    fn go_back(&self) {
        for procs in &self.procs {
            match fs::write(procs, "0") {
                Ok(()) => {}
                Err(error) => tracing::error!("{}: {error}; the daemon stays where a session has moved it", procs.display()),
            }
        }
    }
}
