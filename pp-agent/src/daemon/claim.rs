//! What a daemon checks and takes for itself before it changes anything on the host: that it is on the host at all, the pins, and the control
//! socket. A start that fails later gives all of it back.

use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use super::{DaemonArgs, DaemonError};
use crate::control::server::{self, Bound};
use crate::kernel::{KernelError, PinLock, TAKEOVER};
use crate::os::isolation::{self, Isolation, Kind};
use crate::os::mounts;

/// What this daemon has taken for itself. Dropping it removes the socket, and takes back the start unless [`Self::keep`] was called.
pub(super) struct Claim {
    pins: PinLock,
    bound: Option<Bound>,
    socket: PathBuf,
    namespaces: Vec<Kind>,
}

impl Claim {
    /// Checks first what can be checked without a change, then takes pins and socket.
    ///
    /// # Errors
    /// The daemon is not root or not on the host, or another daemon has the pins or the socket.
    pub(super) fn make(args: &DaemonArgs, socket: &Path) -> Result<Self, DaemonError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(KernelError::NotRoot.into());
        }
        let cgroup = args.cgroup.clone().or_else(|| mounts::cgroup2_root().ok());
        let namespaces = accepted(isolation::found(cgroup.as_deref(), &args.bpffs), &args.namespace)?;
        // Before the pins, since a daemon that answers is known at once.
        server::check_free(socket)?;
        let pins = PinLock::take(&args.bpffs, TAKEOVER)?;
        let bound = Some(server::bind(socket)?);
        Ok(Self { pins, bound, socket: socket.to_owned(), namespaces })
    }

    /// The namespaces of its own that the command line accepts.
    pub(super) fn namespaces(&self) -> &[Kind] {
        &self.namespaces
    }

    /// Whether the daemon before this one was killed or crashed: it has left its socket.
    pub(super) fn found_one_killed(&self) -> bool {
        self.bound.as_ref().is_some_and(|bound| bound.left_behind)
    }

    /// Accepts connections on the socket from now on.
    ///
    /// # Errors
    /// The kernel refuses it, or this was called before.
    pub(super) fn listen(&mut self) -> Result<UnixListener, DaemonError> {
        let bound =
            self.bound.take().ok_or(std::io::ErrorKind::AlreadyExists).map_err(|kind| DaemonError::io("control socket")(kind.into()))?;
        Ok(bound.listen()?)
    }

    /// The start has succeeded. What it attached stays in force without this daemon.
    pub(super) fn keep(&mut self) {
        self.pins.keep();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!("control socket: {error}");
        }
    }
}

/// The kinds of the namespaces that were found, if the command line accepts all of them.
fn accepted(found: Vec<Isolation>, wanted: &[Kind]) -> Result<Vec<Kind>, DaemonError> {
    let (accepted, refused): (Vec<Isolation>, Vec<Isolation>) = found.into_iter().partition(|isolation| wanted.contains(&isolation.kind));
    if !refused.is_empty() {
        return Err(DaemonError::Isolated(refused));
    }
    accepted.iter().for_each(|isolation| tracing::warn!("accepted by --namespace: {isolation}"));
    Ok(accepted.into_iter().map(|isolation| isolation.kind).collect())
}

/// The words of a refusal to start in namespaces of its own.
pub(super) fn isolated(found: &[Isolation]) -> String {
    let all: Vec<String> = found.iter().map(ToString::to_string).collect();
    let names: Vec<&str> = found.iter().map(|isolation| isolation.kind.name()).collect();
    format!(
        "{}; start the daemon on the host itself, as its systemd unit does, or accept the part with --namespace {}",
        all.join("; "),
        names.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kinds: &[Kind]) -> Vec<Isolation> {
        kinds.iter().map(|kind| Isolation { kind: *kind, why: "it is its own".to_owned() }).collect()
    }

    #[test]
    fn every_namespace_must_be_accepted_by_its_name() {
        assert_eq!(accepted(Vec::new(), &[]).unwrap(), []);
        assert_eq!(accepted(found(&[Kind::Network]), &[Kind::Pid, Kind::Network]).unwrap(), [Kind::Network]);
        let refused = accepted(found(&[Kind::Pid, Kind::Mount, Kind::Network]), &[Kind::Network]).unwrap_err().to_string();
        assert!(refused.starts_with("pid namespace: it is its own, so that agents outside are not found"), "{refused}");
        assert!(refused.ends_with("or accept the part with --namespace pid,mount"), "{refused}");
    }
}
