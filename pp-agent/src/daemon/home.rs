//! The cgroups the daemon was started in, and its way back when a session has moved it.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::kernel::host;

/// Where the daemon belongs.
#[derive(Debug)]
pub(super) struct Home {
    procs: Vec<PathBuf>,
}

impl Home {
    /// Notes where this process is.
    pub(super) fn note() -> io::Result<Self> {
        Ok(Self { procs: host::own_cgroups()? })
    }

    /// Goes back there. What fails is logged: somebody removed the cgroup, or it takes no processes any more.
    pub(super) fn go_back(&self) {
        for procs in &self.procs {
            match fs::write(procs, "0") {
                Ok(()) => {}
                Err(error) => tracing::error!("{}: {error}; the daemon stays where a session has moved it", procs.display()),
            }
        }
    }
}
