//! Start-up: state, policy, kernel, receipts, processes that already run; and
//! taking a policy in later.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::DaemonArgs;
use super::neighbours::{self, Neighbours};
use super::{Daemon, DaemonError, Inner, LiveReceipt, Measured, PolicyOrigin, admission, guard, is_behind, names_of, shut};
use crate::api::{Posture, Reloaded, Remarks};
use crate::clock::{Now, boot_id};
use crate::config::{Config, FileCheck, Paths, Require, Source};
use crate::control::ApiError;
use crate::control::counters::ControlCounters;
use crate::events::build::Builder;
use crate::events::hub::Hub;
use crate::events::refusals::Ledger;
use crate::events::store::Store;
use crate::events::tally::Tally;
use crate::events::{Body, PolicyChange};
use crate::kernel::{Gate, GateOptions, KernelError, Reader};
use crate::keyring::{KeyFileError, Keyring};
use crate::os::mounts;
use crate::policy::Beside;
use crate::session::Released;
use crate::session::adopt;
use crate::state::{Book, STATE_FILE, State};
use crate::{compiled, identity};

/// The events' file, in the daemon's state directory.
const EVENTS_FILE: &str = "events.redb";
/// The folder of compiled rules, in the daemon's state directory.
const COMPILED_FOLDER: &str = "compiled";

/// Puts everything in place: when this returns, the kernel enforces.
pub(super) fn start(args: DaemonArgs, socket: &Path) -> Result<Daemon, DaemonError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(KernelError::NotRoot.into());
    }
    make_state_dir(&args.state);
    compiled::keep_in(args.state.join(COMPILED_FOLDER));
    let state = shut::open_state(&args.state.join(STATE_FILE))?;
    let boot_id = boot_id();
    let store = Store::open(&args.state.join(EVENTS_FILE), &boot_id);
    let (config, origin) = first_policy(&args.policy, &state)?;
    let (keyring, keyring_problem) = read_keys(&args.keys);
    let options =
        GateOptions { bpffs: args.bpffs.clone(), cgroup: args.cgroup.clone(), max_tasks: config.max_tasks, without: args.without() };
    let gate = Gate::start(&options, adopt::mark_sockets_again)?;
    // New tables count from zero.
    if gate.fresh()
        && let Err(error) = store.count_from_zero()
    {
        tracing::warn!("{error}; what this daemon has read will not be told as lost if it is killed before it has stored an event");
    }
    let tally = Tally::new(if gate.fresh() { Some(0) } else { store.records() });
    let now = Now::read();
    // What an earlier daemon learned goes on counting, for receipts too.
    let neighbours = Neighbours::restore(gate.links()?, gate.learned()?);
    let beside = neighbours.beside();
    let terms = shut::Terms { config: &config, keyring: &keyring, beside: &beside, boot_id: &boot_id, counts_lost: gate.fresh() };
    let mut receipts = Book::default();
    let highest_ms = shut::load(&state, &mut receipts, &terms, now);
    let keyring_problem = keyring_problem.or_else(|| missed_keys(&args.keys, &keyring, receipts.iter().count()));
    let withheld = is_behind(now.wall_ms, highest_ms);
    if withheld {
        tracing::error!("clock: it is behind the highest time seen; no receipt is loaded until it has caught up");
    }
    let released = state.released().unwrap_or_else(|error| {
        tracing::error!("{error}; whoever is an agent by the rules is governed, released or not");
        None
    });
    let cgroup_root = args.cgroup.clone().or_else(|| mounts::cgroup2_root().ok());
    let cgroups = resolve_cgroups(cgroup_root.as_deref(), &config);
    let host_name = host_name(&config);
    let mut builder = Builder::new(&host_name, gate.backend().name());
    builder.names.names = names_of(&config, &state);
    builder.names.rules.clone_from(&config.identity.rules);
    builder.names.tools.clone_from(&config.tools.rules);
    builder.names.receipts = receipts.iter().map(|receipt| (receipt.stored.serial, receipt.stored.id.clone())).collect();
    for (pid, mark) in gate.marks()? {
        builder.processes.adopt(pid, mark.session);
    }
    let mut inner = Inner {
        config,
        origin,
        keyring,
        keyring_problem,
        receipts,
        cgroups,
        generation: 0,
        measured: Measured::default(),
        guard_problems: Vec::new(),
        receipts_unknown: state.is_shut(),
        withheld,
        own: gate.refresh_own()?.unwrap_or_default(),
        beside,
    };
    log_remarks(&inner);
    let tables = inner.tables()?;
    inner.generation = gate.apply(&tables)?;
    let ledger = told_before(&gate)?;
    let daemon = Daemon {
        gate,
        state,
        hub: Hub::new(store, &host_name),
        home: super::home::Home::note().map_err(DaemonError::io("/proc/self/cgroup"))?,
        tally,
        ledger: Mutex::new(ledger),
        reader: Reader::default(),
        neighbours,
        counters: ControlCounters::default(),
        operators: super::operators::Operators::find(),
        builder: Mutex::new(builder),
        inner: Mutex::new(inner),
        reloading: Mutex::new(()),
        released: Mutex::new(Released::of_boot(released, &boot_id)),
        highest_ms: AtomicI64::new(highest_ms.max(now.wall_ms)),
        changed: Notify::new(),
        flow_refused: Notify::new(),
        watch: super::posture::Watch::default(),
        decoy: guard::Decoy::make(&args.state, socket),
        args,
        socket: socket.to_path_buf(),
        cgroup_root,
        boot_id,
        started_ms: now.wall_ms,
    };
    if let Some(problem) = daemon.task_table_differs(&daemon.inner().config) {
        tracing::error!("policy: {problem}");
    }
    Ok(daemon)
}

/// How many repeats of the pairs that the kernel counts now daemons before this one told.
fn told_before(gate: &Gate) -> Result<Ledger, KernelError> {
    let mut ledger = Ledger::new(gate.told()?);
    let gone = ledger.keep_only(gate.repeats()?.into_iter().map(|(_, repeats)| repeats.id));
    gone.into_iter().try_for_each(|id| gate.forget_told(id))?;
    Ok(ledger)
}

/// What follows once records are read: the walk over what runs, the canary,
/// and whether that is enough.
pub(super) fn settle(daemon: &Arc<Daemon>) -> Result<(), DaemonError> {
    daemon.walk();
    neighbours::watch(daemon).map_err(DaemonError::io("neighbours"))?;
    daemon.refresh_guard();
    let measured = daemon.measure_posture();
    let required = match daemon.inner().config.require {
        Some(Require::Enforcing) if measured.posture != Posture::Enforcing => Some("enforcing"),
        None if measured.posture == Posture::Open => Some("partial or enforcing"),
        Some(Require::Enforcing) | None => None,
    };
    if let Some(required) = required {
        return Err(DaemonError::Posture { found: measured.posture, required, gaps: measured.gaps() });
    }
    daemon.begin_watch();
    let origin = daemon.inner().origin.change();
    daemon.hub.publish(daemon.event(Body::Policy(origin)).detail("daemon started"));
    daemon.tell_shut_state();
    daemon.note_wall();
    daemon.end_flows();
    Ok(())
}

impl PolicyOrigin {
    /// Its name in status.
    pub(super) const fn name(&self) -> &'static str {
        self.change().name()
    }

    /// What the start of a daemon with it tells.
    const fn change(&self) -> PolicyChange {
        match self {
            Self::Files => PolicyChange::Files,
            Self::BuiltIn | Self::Fallback(_) => PolicyChange::BuiltIn,
            Self::LastGood(_) => PolicyChange::LastGood,
        }
    }
}

impl Inner {
    /// What there is to say of policy and keys.
    pub(super) fn remarks(&self) -> Remarks {
        let config = &self.config;
        let signers = config.authorities.iter().map(|authority| authority.key_id.as_str());
        Remarks {
            off: config.off.clone(),
            warnings: [config.warnings.clone(), self.keyring.comes_to_nothing(signers)].concat(),
            not_read: config.not_read.clone(),
            notes: config.notes.clone(),
        }
    }
}

impl Daemon {
    /// Marks what runs already and is an agent by the rules.
    pub(super) fn walk(&self) {
        // RACE: held first and to the end, so that one walk follows another, each by the rules in force when it begins.
        let released = self.released();
        let identity = {
            let inner = self.inner();
            let mut identity = inner.config.identity.clone();
            identity.cgroups.clone_from(&inner.cgroups);
            identity
        };
        let walked = adopt::walk(&self.gate, &identity, &released);
        drop(released);
        match walked {
            Ok(report) => {
                for (pid, session) in &report.marked {
                    self.tell_session_start(*pid, *session, "found running");
                }
                for (pid, why) in &report.unjudged {
                    tracing::warn!("process {pid}: cannot be judged: {why}");
                }
            }
            Err(error) => tracing::error!("processes that already run: {error}"),
        }
    }

    /// Reads the policy and the keys again and puts them in force, all or nothing.
    pub(super) fn reload_policy(&self) -> Result<Reloaded, ApiError> {
        let refused = |error: String| {
            self.hub.publish(self.event(Body::Policy(PolicyChange::Refused)).detail(error.clone()));
            ApiError::PolicyRefused(error)
        };
        let _one = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let config = Config::load(&Paths::beside(&self.args.policy), FileCheck::ROOT).map_err(|error| refused(error.to_string()))?;
        let mut inner = self.inner();
        let keyring = match Keyring::load(&self.args.keys, FileCheck::ROOT) {
            Ok(keyring) => keyring,
            // Keys that were never there are not missed; keys that vanish are.
            Err(KeyFileError::Missing { .. }) if inner.keyring.is_empty() => Keyring::default(),
            Err(error) => return Err(refused(error.to_string())),
        };
        let cgroups = resolve_cgroups(self.cgroup_root.as_deref(), &config);
        let receipts = inner.receipts.judge_again(|stored| admit_again(stored, &config, &keyring, &inner.beside));
        let fresh = Inner {
            origin: if config.sources.is_empty() { PolicyOrigin::BuiltIn } else { PolicyOrigin::Files },
            config,
            keyring,
            keyring_problem: None,
            receipts,
            cgroups,
            generation: inner.generation,
            measured: inner.measured.clone(),
            guard_problems: Vec::new(),
            receipts_unknown: inner.receipts_unknown,
            withheld: inner.withheld && self.clock_behind(),
            own: inner.own.clone(),
            beside: inner.beside.clone(),
        };
        let tables = fresh.tables().map_err(|error| refused(error.to_string()))?;
        let generation = self.gate.apply(&tables).map_err(|error| refused(error.to_string()))?;
        *inner = Inner { generation, ..fresh };
        keep(&self.state, &inner.config);
        {
            let mut builder = self.builder();
            builder.host = host_name(&inner.config);
            // Added to: a name that came meanwhile stays.
            builder.names.names.extend(names_of(&inner.config, &self.state));
            builder.names.rules.clone_from(&inner.config.identity.rules);
            builder.names.tools.clone_from(&inner.config.tools.rules);
        }
        log_remarks(&inner);
        let mut remarks = inner.remarks();
        remarks.notes.extend(inner.config.adds.clone());
        remarks.notes.extend(self.task_table_differs(&inner.config));
        drop(inner);
        self.learn(None);
        self.refresh_guard();
        let mut event = self.event(Body::Policy(PolicyChange::Reloaded));
        if !remarks.off.is_empty() {
            let parts: Vec<&str> = remarks.off.iter().map(|off| off.text.as_str()).collect();
            event = event.detail(format!("off: {}", parts.join("; ")));
        }
        self.hub.publish(event);
        self.walk();
        self.end_flows();
        Ok(Reloaded { generation, remarks })
    }
}

/// Says in the log what a policy that is put in force leaves off, and what of it is not read or probably not meant.
fn log_remarks(inner: &Inner) {
    let remarks = inner.remarks();
    remarks.off.iter().for_each(|off| tracing::warn!("policy: off: {}", off.text));
    remarks.warnings.iter().for_each(|warning| tracing::warn!("policy: {warning}"));
    remarks.not_read.iter().for_each(|entry| tracing::warn!("policy: {entry}"));
    remarks.notes.iter().chain(&inner.config.adds).for_each(|note| tracing::info!("policy: {note}"));
}

/// Where it cannot be made, what lies in it cannot be opened, and says why.
fn make_state_dir(dir: &Path) {
    if let Err(error) = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        tracing::error!("state directory {}: {error}", dir.display());
    }
}

/// The policy on disk, else the last good one, else the built-in one.
fn first_policy(file: &Path, state: &State) -> Result<(Config, PolicyOrigin), DaemonError> {
    let error = match Config::load(&Paths::beside(file), FileCheck::ROOT) {
        Ok(config) => {
            let origin = if config.sources.is_empty() { PolicyOrigin::BuiltIn } else { PolicyOrigin::Files };
            keep(state, &config);
            return Ok((config, origin));
        }
        Err(error) => error.to_string(),
    };
    let kept = state.last_policy::<Vec<(String, String)>>().unwrap_or_else(|unreadable| {
        tracing::error!("last good policy: {unreadable}");
        None
    });
    let not_read = Config::not_read(&Paths::beside(file));
    let kept = kept.map(|kept| Config::from_sources(kept.into_iter().map(|(name, text)| Source { name, text }).collect()));
    match kept {
        Some(Ok(config)) => {
            tracing::error!("policy: {error}; the last good one is put in force");
            return Ok((Config { not_read, ..config }, PolicyOrigin::LastGood(error)));
        }
        Some(Err(stale)) => tracing::error!("last good policy: {stale}"),
        None => {}
    }
    tracing::error!("policy: {error}; no last good one is known, the built-in one is put in force");
    Ok((Config { not_read, ..Config::builtin()? }, PolicyOrigin::Fallback(error)))
}

pub(super) fn keep(state: &State, config: &Config) {
    let sources: Vec<(&str, &str)> = config.sources.iter().map(|source| (source.name.as_str(), source.text.as_str())).collect();
    if let Err(error) = state.keep_policy(&sources) {
        tracing::error!("{error}; the last good policy is an older one");
    }
}

/// The keys; none where the file is missing or refused.
fn read_keys(file: &Path) -> (Keyring, Option<String>) {
    match Keyring::load(file, FileCheck::ROOT) {
        Ok(keyring) => (keyring, None),
        Err(error @ KeyFileError::Missing { .. }) => {
            tracing::info!("{error}; no receipt can be registered without keys");
            (Keyring::default(), None)
        }
        Err(error) => {
            tracing::error!("{error}; no receipt holds until it is mended");
            (Keyring::default(), Some(error.to_string()))
        }
    }
}

/// Keys that were never there are not missed; keys that receipts were registered with are.
fn missed_keys(file: &Path, keyring: &Keyring, receipts: usize) -> Option<String> {
    if receipts == 0 || !keyring.is_empty() || file.exists() {
        return None;
    }
    let problem =
        format!("keys {}: no such file, so that none of {receipts} registered receipts holds; put it back and restart", file.display());
    tracing::error!("{problem}");
    Some(problem)
}

/// Verifies a stored receipt under this policy: a store is no authority.
pub(super) fn admit_again(stored: crate::state::StoredReceipt, config: &Config, keyring: &Keyring, beside: &Beside) -> LiveReceipt {
    let admitted = admission::judge_again(stored.artifact.as_bytes(), config, keyring, beside, stored.registered_ms)
        .map_err(|error| error.to_string());
    if let Err(reason) = &admitted {
        tracing::warn!("receipt {}: opens nothing any more: {reason}", stored.id);
    }
    LiveReceipt { stored, admitted }
}

/// The cgroups that rules name now; none where they cannot be read.
pub(super) fn resolve_cgroups(root: Option<&Path>, config: &Config) -> Vec<(u64, pp_common::abi::NameId)> {
    let Some(root) = root else { return Vec::new() };
    identity::resolve_cgroups(root, &config.cgroup_rules).unwrap_or_else(|error| {
        tracing::error!("cgroups below {}: {error}", root.display());
        Vec::new()
    })
}

/// The host as policy calls it; in events alone the host's own name otherwise.
fn host_name(config: &Config) -> String {
    config
        .host
        .clone()
        .unwrap_or_else(|| nix::unistd::gethostname().map_or_else(|_| "unnamed".to_owned(), |name| name.to_string_lossy().into_owned()))
}
