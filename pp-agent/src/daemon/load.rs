//! Start-up: state, policy, kernel, receipts, processes that already run. Also reloads the policy later.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use super::in_force::{InForce, LiveReceipt, PolicyOrigin, Shown};
use super::neighbours::{self, Neighbours};
use super::owner::Owner;
use super::reports::Reports;
use super::wall::{HighestWall, is_behind};
use super::writer::{Rules, Sources, Wake, Writer};
use super::{Daemon, DaemonArgs, DaemonError, Site, admission, guard, health, names_of, unavailable, went_back};
use crate::api::{Posture, Reloaded};
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
use crate::kernel::{Gate, GateOptions, KernelError, Publisher, Reader};
use crate::keyring::{KeyFileError, Keyring};
use crate::os::isolation::Kind;
use crate::os::mounts;
use crate::policy::{self, LearnedPlaces};
use crate::session::{Released, adopt};
use crate::state::{Book, STATE_FILE, State, StoredReceipt};
use crate::{compiled, identity};
use pp_common::abi::NameId;

/// The events' file, in the daemon's state directory.
const EVENTS_FILE: &str = "events.redb";
/// The folder of compiled rules, in the daemon's state directory.
const COMPILED_FOLDER: &str = "compiled";

/// Starts the daemon. When this returns, the kernel enforces.
pub(super) fn start(args: DaemonArgs, socket: &Path, namespaces: &[Kind]) -> Result<Daemon, DaemonError> {
    make_state_dir(&args.state);
    compiled::keep_in(args.state.join(COMPILED_FOLDER));
    let state = unavailable::open_state(&args.state.join(STATE_FILE))?;
    let boot_id = boot_id();
    let store = Store::open(&args.state.join(EVENTS_FILE), &boot_id);
    let (config, origin) = first_policy(&args.policy, &state)?;
    let (keyring, keyring_problem) = read_keys(&args.keys);
    // A policy that is too large for the tables is known before anything is attached.
    policy::compile(&config, &[], &[], &[]).map(drop)?;
    let options =
        GateOptions { bpffs: args.bpffs.clone(), cgroup: args.cgroup.clone(), max_tasks: config.max_tasks, without: args.without() };
    let gate = Arc::new(Gate::start(&options, adopt::mark_sockets_again)?);
    // New kernel tables count from zero.
    if gate.fresh()
        && let Err(error) = store.count_from_zero()
    {
        tracing::warn!("{error}; what this daemon has read will not be told as lost if it is killed before it has stored an event");
    }
    let tally = Tally::new(if gate.fresh() { Some(0) } else { store.records() });
    let now = Now::read();
    // What an earlier daemon learned stays in force, for receipts too.
    let neighbours = Neighbours::restore(gate.links()?, gate.learned()?);
    let learned = neighbours.learned_places();
    let terms = unavailable::Terms { config: &config, keyring: &keyring, learned: &learned, boot_id: &boot_id, counts_lost: gate.fresh() };
    let mut receipts = Book::default();
    let loaded = unavailable::load(&state, &mut receipts, &terms, now);
    let highest_ms = loaded.inspect_err(unavailable::log_unavailable).unwrap_or_default();
    let went_back = went_back::find(&gate, &store, &state, &receipts);
    if went_back.is_none() && !state.is_shut() {
        went_back::note_version(&gate, &store, &state);
    }
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
    let cgroups = match resolve_cgroups(cgroup_root.as_deref(), &config) {
        Ok(cgroups) => cgroups,
        Err(error) => {
            tracing::error!("{error}; the cgroups of an earlier daemon stay in force");
            gate.cgroups()?
        }
    };
    let host_name = host_name(&config);
    let mut builder = Builder::new(&host_name, gate.backend().name());
    builder.names.names = names_of(&config, &state);
    builder.names.rules.clone_from(&config.identity.rules);
    builder.names.tools.clone_from(&config.tools.rules);
    builder.names.receipts = receipts.iter().map(|receipt| (receipt.stored.serial, receipt.stored.id.clone())).collect();
    for (pid, mark) in gate.marks()? {
        builder.processes.adopt(pid, mark.session);
    }
    let mut publisher = Publisher::of(Arc::clone(&gate));
    let mut force = InForce {
        config: Arc::new(config),
        origin,
        keyring: Arc::new(keyring),
        keyring_problem,
        receipts,
        cgroups,
        generation: 0,
        receipts_unknown: state.is_shut(),
        went_back,
        withheld,
        own: gate.refresh_own()?.unwrap_or_default(),
        learned: Arc::new(learned),
        unpublished: false,
    };
    log_remarks(&force);
    force.generation = publisher.apply(&force.tables()?)?;
    let ledger = reported_before(&gate)?;
    if let Some(problem) = health::task_table_differs(&gate, &force.config) {
        tracing::error!("policy: {problem}");
    }
    let state = Arc::new(state);
    let reports = Arc::new(Reports::new(Hub::new(store, &host_name), tally, builder, ledger));
    let neighbours = Arc::new(neighbours);
    let highest = Arc::new(HighestWall::new(highest_ms.max(now.wall_ms)));
    let wake = Arc::new(Wake::default());
    let shown = Arc::new(Shown::new(&force));
    let writer = Writer {
        force,
        publisher,
        gate: Arc::clone(&gate),
        state: Arc::clone(&state),
        reports: Arc::clone(&reports),
        neighbours: Arc::clone(&neighbours),
        highest: Arc::clone(&highest),
        wake: Arc::clone(&wake),
        sources: Sources { policy: args.policy.clone(), keys: args.keys.clone(), cgroup_root: cgroup_root.clone() },
        boot_id: boot_id.clone(),
        shown,
    };
    let released = Released::of_boot(released, &boot_id);
    Ok(Daemon {
        gate,
        state,
        reports,
        rules: Rules::begin(writer).map_err(DaemonError::io("a thread"))?,
        released: Owner::begin("released", released).map_err(DaemonError::io("a thread"))?,
        neighbours,
        guard: guard::Guard::new(guard::Decoy::make(&args.state, socket)),
        watch: super::posture::Watch::default(),
        own_cgroup: super::own_cgroup::OwnCgroup::note().map_err(DaemonError::io("/proc/self/cgroup"))?,
        highest,
        wake,
        reader: Reader::default(),
        counters: ControlCounters::default(),
        operators: super::operators::Operators::find(),
        site: Site { args, socket: socket.to_path_buf(), cgroup_root, namespaces: namespaces.to_vec(), boot_id, started_ms: now.wall_ms },
    })
}

/// How many repeats earlier daemons reported of the pairs that the kernel counts now.
fn reported_before(gate: &Gate) -> Result<Ledger, KernelError> {
    let mut ledger = Ledger::new(gate.reported_repeats()?);
    let gone = ledger.keep_only(gate.repeats()?.into_iter().map(|(_, repeats)| repeats.id));
    gone.into_iter().try_for_each(|id| gate.remove_reported(id))?;
    Ok(ledger)
}

/// The second part of the start, once records are read: the walk over running processes, the canary, and the check of the posture.
pub(super) fn bring_up(daemon: &Arc<Daemon>) -> Result<(), DaemonError> {
    daemon.walk();
    neighbours::watch(daemon).map_err(DaemonError::io("neighbours"))?;
    daemon.refresh_guard();
    let measured = daemon.measure_posture();
    let required = match daemon.rules.now().config.require {
        Some(Require::Enforcing) if measured.posture != Posture::Enforcing => Some("enforcing"),
        None if measured.posture == Posture::Open => Some("partial or enforcing"),
        Some(Require::Enforcing) | None => None,
    };
    if let Some(required) = required {
        return Err(DaemonError::Posture { found: measured.posture, required, gaps: measured.gaps() });
    }
    daemon.begin_watch();
    let origin = daemon.rules.now().origin.change();
    daemon.watch_off();
    let off = daemon.off_view().map(|off| off.words());
    let started = off.map_or_else(|| "daemon started".to_owned(), |words| format!("daemon started; protection is off {words}"));
    tracing::info!("{started}");
    daemon.reports.publish(daemon.reports.event(Body::Policy(origin)).detail(started));
    daemon.report_unavailable();
    daemon.report_went_back();
    daemon.note_wall();
    daemon.end_flows();
    Ok(())
}

impl Daemon {
    /// Marks running processes that the rules recognise as agents.
    pub(super) fn walk(&self) {
        // RACE: a release and a walk never run at the same time. Each walk uses the rules in force when it starts.
        let (gate, shown) = (Arc::clone(&self.gate), self.rules.shown());
        let walked = self.released.ask(move |released| {
            let force = shown.now();
            let mut identity = force.config.identity.clone();
            identity.cgroups.clone_from(&force.cgroups);
            adopt::walk(&gate, &identity, released)
        });
        match walked {
            Ok(report) => {
                for (pid, session) in &report.marked {
                    self.report_session_start(*pid, *session, "found running");
                }
                for (pid, why) in &report.undecided {
                    tracing::warn!("process {pid}: cannot be judged: {why}");
                }
            }
            Err(error) => tracing::error!("processes that already run: {error}"),
        }
    }

    /// Reads the policy and the keys again and puts them in force, all or nothing.
    pub(super) fn reload_policy(&self) -> Result<Reloaded, ApiError> {
        let reloaded = self.rules.change(Writer::reload).map_err(|error| {
            self.reports.publish(self.reports.event(Body::Policy(PolicyChange::Refused)).detail(error.clone()));
            ApiError::PolicyRefused(error)
        })?;
        self.refresh_guard();
        let off: Vec<&str> = reloaded.remarks.off.iter().map(|off| off.text.as_str()).collect();
        let mut event = self.reports.event(Body::Policy(PolicyChange::Reloaded));
        if !off.is_empty() {
            event = event.detail(format!("off: {}", off.join("; ")));
        }
        self.reports.publish(event);
        self.walk();
        self.end_flows();
        Ok(reloaded)
    }
}

impl Writer {
    /// Reads policy and keys and puts them in force in one job of the writer, so that the last read wins. The error says why they are
    /// refused.
    fn reload(&mut self) -> Result<Reloaded, String> {
        let Sources { policy, keys, cgroup_root } = &self.sources;
        let config = Config::load(&Paths::beside(policy), FileCheck::ROOT).map_err(|error| error.to_string())?;
        let before = &self.force;
        still_there(policy, before.config.sources.iter().map(|source| source.name.as_str()), &config)?;
        let keyring = match Keyring::load(keys, FileCheck::ROOT) {
            Ok(keyring) => keyring,
            // No file of keys is fine if there were no keys before. If there were, it is an error.
            Err(KeyFileError::Missing { .. }) if before.keyring.is_empty() => Keyring::default(),
            Err(error) => return Err(error.to_string()),
        };
        let fresh = InForce {
            origin: if config.sources.is_empty() { PolicyOrigin::BuiltIn } else { PolicyOrigin::Files },
            cgroups: resolve_cgroups(cgroup_root.as_deref(), &config)?,
            receipts: before.receipts.readmit(|stored| admit_again(stored, &config, &keyring, &before.learned)),
            config: Arc::new(config),
            keyring: Arc::new(keyring),
            keyring_problem: None,
            generation: before.generation,
            receipts_unknown: before.receipts_unknown,
            went_back: before.went_back.clone(),
            withheld: before.withheld && self.highest.clock_is_behind(),
            own: before.own.clone(),
            learned: Arc::clone(&before.learned),
            unpublished: false,
        };
        let tables = fresh.tables().map_err(|error| error.to_string())?;
        let generation = self.publisher.apply(&tables).map_err(|error| error.to_string())?;
        self.force = InForce { generation, ..fresh };
        let config = &self.force.config;
        keep(&self.state, config);
        {
            let names = names_of(config, &self.state);
            let mut builder = self.reports.builder();
            builder.host = host_name(config);
            // Extended and not replaced, so that a name that was added at the same time stays.
            builder.names.names.extend(names);
            builder.names.rules.clone_from(&config.identity.rules);
            builder.names.tools.clone_from(&config.tools.rules);
        }
        log_remarks(&self.force);
        let mut remarks = self.force.remarks();
        remarks.notes.extend(config.adds.clone());
        remarks.notes.extend(health::task_table_differs(&self.gate, config));
        self.learn(None);
        Ok(Reloaded { generation, remarks })
    }
}

/// Logs what a new policy turns off, what of it is not read, and what is probably a mistake.
fn log_remarks(force: &InForce) {
    let remarks = force.remarks();
    remarks.off.iter().for_each(|off| tracing::warn!("policy: off: {}", off.text));
    remarks.warnings.iter().for_each(|warning| tracing::warn!("policy: {warning}"));
    remarks.not_read.iter().for_each(|entry| tracing::warn!("policy: {entry}"));
    remarks.notes.iter().chain(&force.config.adds).for_each(|note| tracing::info!("policy: {note}"));
}

/// Makes the state directory. An error is logged only: opening the files in it fails with its own message.
fn make_state_dir(dir: &Path) {
    if let Err(error) = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        tracing::error!("state directory {}: {error}", dir.display());
    }
}

/// The policy on disk, else the last good one, else the built-in one.
fn first_policy(file: &Path, state: &State) -> Result<(Config, PolicyOrigin), DaemonError> {
    let kept = state.last_policy::<Vec<(String, String)>>().unwrap_or_else(|unreadable| {
        tracing::error!("last good policy: {unreadable}");
        None
    });
    let read = Config::load(&Paths::beside(file), FileCheck::ROOT).map_err(|error| error.to_string()).and_then(|config| {
        let names = kept.iter().flatten().map(|(name, _)| name.as_str());
        still_there(file, names, &config).map(|()| config)
    });
    let error = match read {
        Ok(config) => {
            let origin = if config.sources.is_empty() { PolicyOrigin::BuiltIn } else { PolicyOrigin::Files };
            keep(state, &config);
            return Ok((config, origin));
        }
        Err(error) => error,
    };
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

/// Checks that the policy file is still there if the last policy was read from it. Without it the zones in it would end, and nobody may have
/// meant that. Drop-ins are removed on purpose.
fn still_there<'a>(file: &Path, mut before: impl Iterator<Item = &'a str>, config: &Config) -> Result<(), String> {
    let name = file.display().to_string();
    if config.sources.iter().any(|source| source.name == name) || !before.any(|source| source == name) {
        return Ok(());
    }
    Err(format!("{name}: no such file, but the last policy was read from it; put it back, or make an empty file if what it says is to end"))
}

pub(super) fn keep(state: &State, config: &Config) {
    let sources: Vec<(&str, &str)> = config.sources.iter().map(|source| (source.name.as_str(), source.text.as_str())).collect();
    if let Err(error) = state.keep_policy(&sources) {
        tracing::error!("{error}; the last good policy is an older one");
    }
}

/// The keys; none if the file is missing or refused.
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

/// The problem if receipts are registered but the file of keys is gone.
fn missed_keys(file: &Path, keyring: &Keyring, receipts: usize) -> Option<String> {
    if receipts == 0 || !keyring.is_empty() || file.exists() {
        return None;
    }
    let problem =
        format!("keys {}: no such file, so that none of {receipts} registered receipts holds; put it back and restart", file.display());
    tracing::error!("{problem}");
    Some(problem)
}

/// Verifies a stored receipt under this policy. Being stored is no proof.
pub(super) fn admit_again(stored: StoredReceipt, config: &Config, keyring: &Keyring, learned: &LearnedPlaces) -> LiveReceipt {
    let admitted = admission::admit_stored(stored.artifact.as_bytes(), config, keyring, learned, stored.registered_ms)
        .map_err(|error| error.to_string());
    if let Err(reason) = &admitted {
        tracing::warn!("receipt {}: opens nothing any more: {reason}", stored.id);
    }
    LiveReceipt { stored, admitted }
}

/// The cgroups that rules name now.
///
/// # Errors
/// The tree cannot be read, or something else is mounted over it. What was known of it must stay in force then.
pub(super) fn resolve_cgroups(root: Option<&Path>, config: &Config) -> Result<Vec<(u64, NameId)>, String> {
    let Some(root) = root.filter(|_| !config.cgroup_rules.is_empty()) else { return Ok(Vec::new()) };
    let read = || {
        mounts::ensure_cgroup2(root)?;
        identity::resolve_cgroups(root, &config.cgroup_rules)
    };
    read().map_err(|error| format!("cgroups below {}: {error}", root.display()))
}

/// The name of the host in policy. Without one, events have the host's own name.
fn host_name(config: &Config) -> String {
    config
        .host
        .clone()
        .unwrap_or_else(|| nix::unistd::gethostname().map_or_else(|_| "unnamed".to_owned(), |name| name.to_string_lossy().into_owned()))
}
