//! The daemon. It owns all state and every task. The kernel enforces without it; the daemon provides policy, receipts and events.

mod admission;
mod args;
mod check;
mod claim;
mod governor;
mod guard;
mod health;
mod housekeeping;
mod in_force;
mod load;
mod neighbour_words;
mod neighbours;
mod off;
mod operators;
mod own_cgroup;
mod owner;
mod posture;
mod receipts;
mod records;
mod refusals;
mod reports;
mod servers;
mod sessions;
mod unavailable;
mod wall;
mod went_back;
mod writer;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pp_common::abi::NameId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::api::{Opening, Posture};
use crate::config::Config;
use crate::control::counters::ControlCounters;
use crate::control::server;
use crate::kernel::{Gate, Reader};
use crate::name::name_id;
use crate::os::isolation::{Isolation, Kind};
use crate::os::{host, process};
use crate::policy::canary;
use crate::session::Released;
use crate::state::State;
use crate::{journal, notify};
use claim::Claim;
use neighbours::Neighbours;
use owner::Owner;
use reports::Reports;
use wall::HighestWall;
use writer::{Rules, Wake};

pub(crate) use args::DaemonArgs;

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// It is in namespaces of its own, and the command line does not accept that.
    #[error("{}", claim::isolated(.0))]
    Isolated(Vec<Isolation>),
    /// The kernel cannot run the gate.
    #[error(transparent)]
    Kernel(#[from] crate::kernel::KernelError),
    /// Another daemon has the state.
    #[error(transparent)]
    State(#[from] crate::state::StateError),
    /// The socket cannot be made.
    #[error(transparent)]
    Listen(#[from] server::ListenError),
    /// The built-in policy or the first tables are refused.
    #[error(transparent)]
    Policy(#[from] crate::policy::PolicyError),
    /// The policy is refused, and so is everything to fall back to.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The canary found less than the policy requires.
    #[error("posture is {found}, ready is only {required}: {gaps}; see pp-agent doctor")]
    Posture {
        /// What was found.
        found: Posture,
        /// What is required.
        required: &'static str,
        /// What is missing.
        gaps: String,
    },
    /// A directory, a signal or the runtime failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl DaemonError {
    /// Whether hooks and tables of this start stay although it failed. They enforce all but gaps that the policy does not accept.
    const fn leaves_enforced(&self) -> bool {
        matches!(self, Self::Posture { found: Posture::Partial, .. })
    }

    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// What the canary found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Measured {
    posture: Posture,
    gaps: Vec<Opening>,
}

impl Measured {
    fn gaps(&self) -> String {
        self.gaps.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}

/// The parts of the daemon. Each has its own state. None is locked during a disk access, a grace period of the kernel or a signature check.
pub(crate) struct Daemon {
    gate: Arc<Gate>,
    state: Arc<State>,
    /// Events, and what is needed to build them.
    reports: Arc<Reports>,
    /// Policy, keys and receipts, and the tables that are made of them.
    rules: Rules,
    /// The processes that an operator released. Its thread also marks running processes.
    released: Owner<Released>,
    /// What is learned from the network.
    neighbours: Arc<Neighbours>,
    /// The guarded files.
    guard: guard::Guard,
    /// The watch over the hooks, with the last findings of the canary.
    watch: posture::Watch,
    /// The cgroups that the daemon belongs in.
    own_cgroup: own_cgroup::OwnCgroup,
    highest: Arc<HighestWall>,
    wake: Arc<Wake>,
    reader: Reader,
    counters: ControlCounters,
    operators: Arc<operators::Operators>,
    site: Site,
}

/// Where and when the daemon runs.
struct Site {
    args: DaemonArgs,
    socket: PathBuf,
    cgroup_root: Option<PathBuf>,
    /// The namespaces of its own that it runs in.
    namespaces: Vec<Kind>,
    boot_id: String,
    /// Milliseconds since 1970.
    started_ms: i64,
}

/// Runs until a signal ends it.
///
/// # Errors
/// It cannot start. What was enforced before stays in force, and if nothing was, nothing is left in the kernel.
pub(crate) fn run(args: &DaemonArgs, socket: &Path) -> Result<(), DaemonError> {
    journal::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(DaemonError::io("runtime"))?;
    if host::switched_off() {
        return runtime.block_on(stay_off());
    }
    runtime.block_on(serve(args, socket))
}

async fn stay_off() -> Result<(), DaemonError> {
    tracing::warn!("pp_agent=off on the kernel command line: nothing is started and nothing is enforced");
    notify::ready("off: pp_agent=off on the kernel command line");
    Signals::new()?.stop().await;
    Ok(())
}

async fn serve(args: &DaemonArgs, socket: &Path) -> Result<(), DaemonError> {
    let mut signals = Signals::new()?;
    process::ignore_stray_signals();
    let mut claim = Claim::make(args, socket)?;
    let daemon = Arc::new(load::start(args.clone(), socket, claim.namespaces())?);
    if claim.found_one_killed() {
        daemon.report_killed();
    }
    let listener = claim.listen()?;
    let (stop, stopping) = watch::channel(false);
    let mut tasks = Vec::new();
    if let Some(records) = daemon.gate.take_records() {
        tasks.push(tokio::spawn(records::pump(Arc::clone(&daemon), records)));
    }
    let governor: Arc<dyn crate::control::Governor> = Arc::clone(&daemon) as _;
    tasks.push(tokio::spawn(server::serve(listener, governor, stopping)));
    tasks.push(tokio::spawn(housekeeping::seconds(Arc::clone(&daemon))));
    tasks.push(tokio::spawn(housekeeping::deadlines(Arc::clone(&daemon))));
    tasks.push(tokio::spawn(housekeeping::refused_flows(Arc::clone(&daemon))));
    let up = load::bring_up(&daemon);
    if up.as_ref().map_or_else(DaemonError::leaves_enforced, |()| true) {
        claim.keep();
    }
    up?;
    tasks.push(tokio::spawn(posture::watch(Arc::clone(&daemon))));
    notify::ready(&daemon.status_line());
    while signals.next().await == Asked::Reload {
        let reloading = Arc::clone(&daemon);
        let reloaded = tokio::task::spawn_blocking(move || {
            if let Err(error) = reloading.reload_policy() {
                tracing::error!("policy: {error}; the old one stays in force");
            }
            notify::status(&reloading.status_line());
        });
        if let Err(error) = reloaded.await {
            tracing::error!("policy: reloading ended by a panic: {error}");
        }
    }
    notify::stopping();
    if stop.send(true).is_err() {
        tracing::debug!("control: nobody listens any more");
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    let off = daemon.off_view();
    let end = move || {
        if let Some(accounted) = daemon.reports.tally.take_silent() {
            daemon.reports.hub.read(accounted);
        }
        daemon.reports.hub.stop();
        // Closed explicitly, since other owners of it may live longer.
        daemon.state.close();
        if let Err(error) = daemon.rules.change(|writer| writer.publisher.end_lines()) {
            tracing::warn!("{error}; the programs go on writing a line for each attempt that they block");
        }
    };
    let ending = tokio::task::spawn_blocking(end).await;
    if let Err(error) = ending {
        tracing::error!("events: {error}");
    }
    drop(claim);
    match off {
        Some(off) => tracing::warn!("stopped; protection is off {}, and `pp-agent on` (as root) ends that", off.words()),
        None => tracing::info!("stopped; what was enforced stays enforced by the kernel; `pp-agent uninstall-hooks` (as root) ends that"),
    }
    Ok(())
}

/// The signals that the daemon handles.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, DaemonError> {
        let on = |kind| signal(kind).map_err(DaemonError::io("signals"));
        Ok(Self { terminate: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())?, hangup: on(SignalKind::hangup())? })
    }
}

impl Signals {
    /// The next thing that a signal asks for.
    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    async fn stop(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Stop,
    Reload,
}

/// Names for events: those of this policy and of earlier ones.
fn names_of(config: &Config, state: &State) -> HashMap<NameId, String> {
    let mut names = state.names().unwrap_or_else(|error| {
        tracing::warn!("{error}");
        HashMap::new()
    });
    names.extend(config.names());
    names.insert(name_id(canary::AGENT), canary::AGENT.to_owned());
    if let Err(error) = state.keep_names(&names) {
        tracing::warn!("{error}");
    }
    names
}
