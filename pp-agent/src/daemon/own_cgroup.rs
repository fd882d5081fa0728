//! The cgroups the daemon was started in, and its way back when a session has moved it.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pp_common::abi::REPEAT_WINDOW_NS;

use crate::os::mounts;

/// Where the daemon belongs.
#[derive(Debug)]
pub(super) struct OwnCgroup {
    procs: Vec<PathBuf>,
    /// Until then further moves may come without a record of their own.
    until: Mutex<Option<Instant>>,
}

impl OwnCgroup {
    /// Notes where this process is.
    pub(super) fn note() -> io::Result<Self> {
        Ok(Self { procs: mounts::own_cgroups()?, until: Mutex::new(None) })
    }

    /// A session has moved the daemon, or may have and the record was lost. Repeats within the window are only counted in the kernel: the way back is
    /// taken until it is over.
    pub(super) fn moved(&self) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now().checked_add(Duration::from_nanos(2 * REPEAT_WINDOW_NS));
        self.go_back();
    }

    /// Each second.
    pub(super) fn look(&self) {
        if self.until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until) {
            self.go_back();
        }
    }

    /// Goes back there. What fails is logged: somebody removed the cgroup, or it takes no processes any more.
    fn go_back(&self) {
        for procs in &self.procs {
            match fs::write(procs, "0") {
                Ok(()) => {}
                Err(error) => tracing::error!("{}: {error}; the daemon stays where a session has moved it", procs.display()),
            }
        }
    }
}
