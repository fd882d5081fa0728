//! The daemon: owns all state and every task. Enforcement does not need it
//! alive; it brings policy, receipts and words to what the kernel does.

mod admission;
mod args;
mod check;
mod governor;
mod guard;
mod health;
mod home;
mod load;
mod neighbours;
mod operators;
mod posture;
mod receipts;
mod records;
mod refusals;
mod sessions;
mod shut;
mod ticks;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pp_common::{abi::NameId, dest::Addr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::api::{Opening, Posture};
use crate::clock::Now;
use crate::config::Config;
use crate::control::counters::ControlCounters;
use crate::control::server;
use crate::events::build::Builder;
use crate::events::hub::Hub;
use crate::events::refusals::Ledger;
use crate::events::tally::Tally;
use crate::events::{Body, Event};
use crate::kernel::{Gate, Reader};
use crate::keyring::Keyring;
use crate::name::name_id;
use crate::os::{host, process};
use crate::policy::{Beside, canary};
use crate::session::Released;
use crate::state::{Book, Kept, State};
use crate::{journal, notify};

pub(crate) use args::DaemonArgs;

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// The kernel cannot carry the gate.
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
    /// A directory, a signal, the runtime.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl DaemonError {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Where the policy in force came from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PolicyOrigin {
    /// The files.
    Files,
    /// There are no files.
    BuiltIn,
    /// The files are refused for this reason; the last good policy holds.
    LastGood(String),
    /// The files are refused for this reason, and there is no last good policy: the built-in one holds.
    Fallback(String),
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

/// What a receipt's signed text allows under the policy in force, or why it allows nothing.
type Judged = Result<crate::receipt::Receipt, String>;
/// A registered receipt.
type LiveReceipt = Kept<Judged>;

/// What changes together, under one lock.
struct Inner {
    config: Config,
    origin: PolicyOrigin,
    keyring: Keyring,
    keyring_problem: Option<String>,
    receipts: Book<Judged>,
    cgroups: Vec<(u64, NameId)>,
    generation: u32,
    measured: Measured,
    /// What of the guarded files and delegates is not as it should be in the kernel.
    guard_problems: Vec<String>,
    /// State could not be opened, so that nobody knows which receipts there are.
    receipts_unknown: bool,
    /// The clock was behind the highest time seen when receipts were loaded.
    withheld: bool,
    /// The host's own addresses.
    own: Vec<Addr>,
    /// What is protected that policy does not name.
    beside: Beside,
}

/// The daemon.
pub(crate) struct Daemon {
    gate: Gate,
    state: State,
    hub: Hub,
    counters: ControlCounters,
    operators: Arc<operators::Operators>,
    builder: Mutex<Builder>,
    inner: Mutex<Inner>,
    /// Held while a policy is read and put in force: the one that was read last must be the one that holds.
    reloading: Mutex<()>,
    /// The processes that an operator released. Held while a walk marks what runs, so that none marks what is released meanwhile. Taken before `inner`.
    released: Mutex<Released>,
    /// The highest wall time seen; on disk now and then, here always.
    highest_ms: AtomicI64,
    /// A deadline or a table changed: look again.
    changed: Notify,
    /// A packet of an open TCP flow was refused: its program should hear of it.
    flow_refused: Notify,
    watch: posture::Watch,
    home: home::Home,
    /// Which of the kernel's records are accounted for.
    tally: Tally,
    /// How many repeats of each pair were told.
    ledger: Mutex<Ledger>,
    reader: Reader,
    neighbours: neighbours::Neighbours,
    args: DaemonArgs,
    socket: PathBuf,
    decoy: guard::Decoy,
    cgroup_root: Option<PathBuf>,
    boot_id: String,
    started_ms: i64,
}

impl Daemon {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn builder(&self) -> MutexGuard<'_, Builder> {
        self.builder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event(&self, body: Body) -> Event {
        Event::new(body, &self.builder().host, Now::read().wall_ms)
    }

    /// Whether the clock is behind what was seen before; notes it if not.
    fn clock_behind(&self) -> bool {
        let wall_ms = Now::read().wall_ms;
        let highest_ms = self.highest_ms.fetch_max(wall_ms, Ordering::AcqRel);
        is_behind(wall_ms, highest_ms)
    }
}

/// Runs until a signal ends it.
///
/// # Errors
/// When it cannot start; what the kernel already enforces stays in force.
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
    let daemon = Arc::new(load::start(args.clone(), socket)?);
    let listener = server::listen(socket)?;
    let (stop, stopping) = watch::channel(false);
    let mut tasks = Vec::new();
    if let Some(records) = daemon.gate.take_records() {
        tasks.push(tokio::spawn(records::pump(Arc::clone(&daemon), records)));
    }
    let governor: Arc<dyn crate::control::Governor> = Arc::clone(&daemon) as _;
    tasks.push(tokio::spawn(server::serve(listener, governor, stopping)));
    tasks.push(tokio::spawn(ticks::seconds(Arc::clone(&daemon))));
    tasks.push(tokio::spawn(ticks::deadlines(Arc::clone(&daemon))));
    tasks.push(tokio::spawn(ticks::refused_flows(Arc::clone(&daemon))));
    load::settle(&daemon)?;
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
    let end = move || {
        if let Some(accounted) = daemon.tally.take_silent() {
            daemon.hub.read(accounted);
        }
        daemon.hub.stop();
    };
    let ending = tokio::task::spawn_blocking(end).await;
    if let Err(error) = ending {
        tracing::error!("events: {error}");
    }
    if let Err(error) = std::fs::remove_file(socket) {
        tracing::debug!("control socket: {error}");
    }
    tracing::info!("stopped; what was enforced stays enforced by the kernel; `pp-agent uninstall-hooks` (as root) ends that");
    Ok(())
}

/// The signals that the daemon heeds.
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

/// Two readings of a good clock may be taken in either order, and time
/// servers correct by less than this all the time.
const CLOCK_TOLERANCE_MS: i64 = 1_000;

/// Whether a clock that says `wall_ms` was set back.
const fn is_behind(wall_ms: i64, highest_ms: i64) -> bool {
    wall_ms.saturating_add(CLOCK_TOLERANCE_MS) < highest_ms
}

/// Names for events: those of the policy and those that older ones had.
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
