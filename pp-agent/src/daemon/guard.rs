//! Keeps the kernel's tables of guarded files and of delegates up to date.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::Daemon;
use crate::config::LaterFiles;
use crate::delegates::{Action, Delegate};
use crate::guarded::{self, Own, Target};
use crate::helpers;
use crate::kernel::canary;
use crate::os::{mounts, process};
use crate::policy::canary::AGENT;

/// A socket in the table of delegates, for the canary.
const CANARY_SOCKET: &str = "canary.sock";
/// A file next to the control socket that the canary tries to open while the state is not writable.
const CANARY_FILE: &str = "canary";

/// The guarded files, and the problems with their table.
pub(super) struct Guard {
    pub(super) decoy: Decoy,
    problems: Mutex<Vec<String>>,
}

impl Guard {
    pub(super) const fn new(decoy: Decoy) -> Self {
        Self { decoy, problems: Mutex::new(Vec::new()) }
    }

    pub(super) fn problems(&self) -> Vec<String> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, problems: Vec<String>) {
        *self.problems.lock().unwrap_or_else(PoisonError::into_inner) = problems;
    }
}

/// What the canary tries to reach, apart from what is in use.
pub(super) struct Decoy {
    socket: PathBuf,
    file: PathBuf,
    /// It answers nobody: the canary must be refused before.
    #[expect(dead_code, reason = "held so that there is something to connect to")]
    listener: Option<UnixListener>,
}

impl Decoy {
    /// Makes the socket in the state directory, or, if that disk is full or read-only, next to the control socket. Without a socket the
    /// canary finds the gate open there.
    pub(super) fn make(state: &Path, control: &Path) -> Self {
        let beside = control.parent().unwrap_or(Path::new("/run"));
        let file = beside.join(CANARY_FILE);
        for folder in [state, beside] {
            let socket = folder.join(CANARY_SOCKET);
            match bind(&socket) {
                Ok(listener) => return Self { socket, file, listener: Some(listener) },
                Err(error) => tracing::error!("{}: {error}", socket.display()),
            }
        }
        Self { socket: state.join(CANARY_SOCKET), file, listener: None }
    }

    /// The targets for the canary now. A file that nobody can write to would prove nothing about the gate.
    pub(super) fn aim(&self, bpffs: &Path, state: PathBuf) -> canary::Aim {
        let writable = |path: &Path, create| std::fs::OpenOptions::new().write(true).create(create).truncate(false).open(path);
        let file = match writable(&state, false) {
            Ok(_) => state,
            Err(_) => {
                if let Err(error) = writable(&self.file, true) {
                    tracing::error!("{}: {error}", self.file.display());
                }
                self.file.clone()
            }
        };
        canary::Aim { bpffs: bpffs.to_owned(), file, socket: self.socket.clone() }
    }
}

fn bind(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(path)
}

impl Daemon {
    /// Updates both tables with what is at their paths now.
    pub(super) fn refresh_guard(&self) {
        let mut targets = self.targets();
        let canary = self.guard.decoy.socket.display().to_string();
        let canary =
            Delegate { name: AGENT.to_owned(), action: Action::Refuse, paths: vec![canary], listeners: Vec::new(), ports: Vec::new() };
        // It comes first, so that no policy opens it.
        let force = self.rules.now();
        if force.config.later_files == LaterFiles::Allow {
            targets.retain(|target| !target.later);
        }
        let delegates: Vec<Delegate> = std::iter::once(canary).chain(force.config.delegates.iter().cloned()).collect();
        let mut problems = Vec::new();
        let guarded = self.gate.guard(&targets, force.config.net_admin);
        for result in [guarded, self.gate.set_delegates(&delegates, force.config.unknown_delegates)] {
            if let Err(error) = result {
                tracing::error!("{error}");
                problems.push(error.to_string());
            }
        }
        self.guard.note(problems);
    }

    fn targets(&self) -> Vec<Target> {
        let homes = std::fs::read_to_string("/etc/passwd").map_or(Vec::new(), |passwd| guarded::homes(&passwd));
        let own = Own {
            policy: &self.site.args.policy,
            keys: &self.site.args.keys,
            state: &self.site.args.state,
            bpffs: &self.site.args.bpffs,
            socket: &self.site.socket,
            decoys: [&self.guard.decoy.socket, &self.guard.decoy.file],
            program: std::env::current_exe().ok(),
            cgroups: self.own_cgroups(),
        };
        let mut targets = guarded::targets(&own, &homes, Path::exists);
        targets.extend(helpers::targets());
        targets
    }

    /// The daemon's cgroups, each with the root of its hierarchy.
    fn own_cgroups(&self) -> Vec<(PathBuf, PathBuf)> {
        let unified = self.site.cgroup_root.clone().and_then(|root| Some((root.clone(), root.join(own_cgroup()?))));
        let others = mounts::own_folders_of_version_1().unwrap_or_else(|error| {
            tracing::error!("cgroups of version 1: {error}");
            Vec::new()
        });
        unified.into_iter().chain(others).collect()
    }
}

/// The daemon's cgroup, relative to the root of cgroup2.
fn own_cgroup() -> Option<PathBuf> {
    Some(PathBuf::from(process::cgroup2(None)?.trim_start_matches('/')))
}
