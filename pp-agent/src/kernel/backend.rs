//! Finds the backend that refuses on this kernel. Backends are tried in order. One counts only after it has refused a canary something
//! that no cgroup program can refuse.

use serde::{Deserialize, Serialize};

use super::{Gate, KernelError, canary, load::Loader, load::Refused};
use crate::os::host;

/// How refusals happen on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// BPF LSM, in addition to the cgroup programs.
    Lsm,
    /// Programs at the functions that call the LSM hooks, where BPF LSM is not active.
    FmodRet,
    /// The cgroup programs alone.
    Cgroup,
}

impl Backend {
    /// Its name in events and status.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Lsm => "lsm",
            Self::FmodRet => "fmod_ret",
            Self::Cgroup => "cgroup",
        }
    }
}

/// What a backend leaves open on a kernel; `docs/kernels.md` explains each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Gap {
    /// Raw frames from processes with the capability.
    Packet,
    /// Sockets to the hypervisor and other virtual machines.
    Vsock,
    /// Servers on this host that act for their callers.
    Unix,
    /// A debugger's calls on other processes of the same user, their open pipes and memory files, and typing in their terminals.
    Ptrace,
    /// Connected sockets that another process passes.
    Passed,
    /// The gate itself, for an agent that runs as root.
    Tamper,
    /// Refused flows that their program closed.
    Orphans,
}

impl Gap {
    /// Its name in status and metrics.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Vsock => "vsock",
            Self::Unix => "unix",
            Self::Ptrace => "ptrace",
            Self::Passed => "passed",
            Self::Tamper => "tamper",
            Self::Orphans => "orphans",
        }
    }
}

/// The result of trying a backend at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Which.
    pub(crate) backend: Backend,
    /// Why it is in use or not, in words.
    pub(crate) found: String,
}

/// The chosen backend, and why.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// None: the cgroup programs alone.
    pub(super) backend: Option<Backend>,
    /// Whether it refused a canary.
    pub(super) proven: bool,
    /// Its programs, and optional ones of every backend, that this kernel refused.
    pub(super) refused: Vec<Refused>,
    pub(super) candidates: Vec<Candidate>,
}

enum Outcome {
    /// It refuses, without these programs.
    Refuses(Vec<Refused>),
    /// It is attached, but it is unknown whether it refuses.
    Unproven(Vec<Refused>, String),
    /// It is not available, or refuses nothing, and is detached.
    Useless(String),
    /// It is not available to this build, but programs of an earlier build are still attached.
    Earlier(String),
}

/// Tries one backend after the other and keeps the first that refuses. A backend that is pinned already is tried first, so that no hook is
/// ever missing.
///
/// An error never detaches what refuses. Only a canary that went through does.
pub(super) fn choose(gate: &Gate, loader: &mut Loader) -> Result<Choice, KernelError> {
    let mut order = [Backend::Lsm, Backend::FmodRet];
    if loader.was_attached(Backend::FmodRet) && !loader.was_attached(Backend::Lsm) {
        order.reverse();
    }
    let mut choice = Choice::default();
    let mut sweep = true;
    for backend in order {
        let found = match choice.backend {
            Some(chosen) => format!("not tried: {} refuses", chosen.name()),
            None => match attempt(gate, loader, backend)? {
                Outcome::Refuses(refused) => {
                    choice.backend = Some(backend);
                    choice.proven = true;
                    choice.refused = refused;
                    "in use: a canary was refused".to_owned()
                }
                Outcome::Unproven(refused, why) => {
                    choice.backend = Some(backend);
                    choice.refused = refused;
                    sweep = false;
                    format!("attached, but not proven: {why}")
                }
                Outcome::Useless(why) => why,
                Outcome::Earlier(why) => {
                    sweep = false;
                    format!("{why}; the programs of an earlier build are still attached")
                }
            },
        };
        tracing::info!("backend {}: {found}", backend.name());
        choice.candidates.push(Candidate { backend, found });
    }
    let beneath = choice.backend.map_or_else(|| "in use, alone".to_owned(), |chosen| format!("in use, beneath {}", chosen.name()));
    choice.candidates.push(Candidate { backend: Backend::Cgroup, found: beneath });
    if sweep {
        loader.sweep()?;
    }
    Ok(choice)
}

fn attempt(gate: &Gate, loader: &mut Loader, backend: Backend) -> Result<Outcome, KernelError> {
    if let Some(why) = excluded(backend) {
        return Ok(Outcome::Useless(why));
    }
    let before = loader.was_attached(backend);
    let refused = match loader.attach(backend) {
        Ok(refused) => refused,
        Err((program, words)) => {
            tracing::debug!("{program}: {words}");
            loader.detach(backend)?;
            let why = format!("not to be had: this kernel refuses {program}: {}", words.lines().next().unwrap_or_default());
            return Ok(if before { Outcome::Earlier(why) } else { Outcome::Useless(why) });
        }
    };
    for (program, words) in &refused {
        tracing::debug!("{program}: {words}");
        tracing::info!("{program} is not to be had here: {}", words.lines().next().unwrap_or_default());
    }
    // Repeated after programs of other builds or backends were removed, since those may have refused the canary.
    loop {
        match canary::probe(gate) {
            Ok(0) => {
                loader.detach(backend)?;
                return Ok(Outcome::Useless("of no use: its programs can be attached, but a canary was not refused".to_owned()));
            }
            Ok(libc::EPERM) if loader.sweep()? == 0 => return Ok(Outcome::Refuses(refused)),
            Ok(libc::EPERM) => {}
            Ok(errno) => return Ok(Outcome::Unproven(refused, std::io::Error::from_raw_os_error(errno).to_string())),
            Err(error) => return Ok(Outcome::Unproven(refused, format!("the canary could not be sent: {error}"))),
        }
    }
}

/// Why a backend cannot refuse here, if that is known without a try.
fn excluded(backend: Backend) -> Option<String> {
    let active = host::active_lsms().filter(|_| backend == Backend::Lsm)?;
    let known = active.iter().any(|name| name == "bpf");
    (!known).then(|| format!("not active: bpf is not among the LSMs of this boot ({})", active.join(",")))
}
