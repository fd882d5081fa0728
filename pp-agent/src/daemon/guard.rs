//! Keeps what is guarded, and who acts for others, current in the kernel.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::{Daemon, DaemonError};
use crate::delegates::{Action, Delegate};
use crate::guarded::{self, Own, Target};
use crate::kernel::canary;

/// A socket that the table of delegates names, for the canary, in the state directory.
pub(super) const CANARY_SOCKET: &str = "canary.sock";

/// Makes it anew.
pub(super) fn canary_socket(state: &Path) -> Result<UnixListener, DaemonError> {
    let path = state.join(CANARY_SOCKET);
    let what = || path.display().to_string();
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(DaemonError::io(what())(error)),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(&path).map_err(DaemonError::io(what()))
}

impl Daemon {
    /// Brings it up to date with what lies at the paths now.
    pub(super) fn refresh_guard(&self) {
        let targets = self.targets();
        let canary = self.args.state.join(CANARY_SOCKET).display().to_string();
        let canary = Delegate {
            name: canary::AGENT.to_owned(),
            action: Action::Refuse,
            paths: vec![canary],
            listeners: Vec::new(),
            ports: Vec::new(),
        };
        // First, so that no policy opens it.
        let delegates: Vec<Delegate> = std::iter::once(canary).chain(self.inner().config.delegates.iter().cloned()).collect();
        let mut problems = Vec::new();
        for result in [self.gate.guard(&targets), self.gate.set_delegates(&delegates)] {
            if let Err(error) = result {
                tracing::error!("{error}");
                problems.push(error.to_string());
            }
        }
        self.inner().guard_problems = problems;
    }

    fn targets(&self) -> Vec<Target> {
        let homes = std::fs::read_to_string("/etc/passwd").map_or(Vec::new(), |passwd| guarded::homes(&passwd));
        let own = Own {
            policy: &self.args.policy,
            keys: &self.args.keys,
            state: &self.args.state,
            bpffs: &self.args.bpffs,
            socket: &self.socket,
            program: std::env::current_exe().ok(),
            cgroup: self.cgroup_root.clone().and_then(|root| Some((root.clone(), root.join(own_cgroup()?)))),
        };
        guarded::targets(&own, &homes)
    }
}

/// The daemon's cgroup, relative to the root of cgroup2.
fn own_cgroup() -> Option<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(PathBuf::from(path.trim_start_matches('/')))
}
