//! The gate in the kernel. Only this module uses aya and `bpf(2)`.

#![allow(unsafe_code, reason = "bpf(2) and memory that is shared with the kernel; each place has its SAFETY line")]

mod backend;
mod behaviour;
mod bpffs;
pub mod canary;
mod canary_cgroup;
mod earlier;
mod error;
mod fmod;
mod foreign;
mod guard;
pub(crate) mod hooks;
mod links;
mod live;
mod load;
mod log;
mod maps;
mod near;
mod off;
pub mod offsets;
mod pids;
mod pin_lock;
mod pinned;
mod programs;
mod publish;
mod records;
mod sockets;
mod sys;
mod uninstall;
pub(crate) mod version;

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use aya::maps::{HashMap, MapData, MapInfo, RingBuf};
use pp_common::{
    abi::{Control, NameId, RepeatKey, Repeats, Serial, Spent, TaskMark},
    decide::{Attempt, Decision, Kind, Reason, Subject, decide, nearest_receipt, transport},
    dest::Addr,
    maps::{DOOMED, EVENTS, LIFECYCLE, PIDS, SOCKS, TASKS},
    net_admin::NetAdmin,
};

pub(crate) use backend::{Backend, Candidate, Gap};
pub(crate) use bpffs::BPFFS;
pub use error::KernelError;
pub use guard::PROGRAMS as GUARD_PROGRAMS;
pub(crate) use load::GateOptions;
pub(crate) use off::{Off, switch_on_pinned};
pub(crate) use pin_lock::{PinLock, TAKEOVER};
pub(crate) use pinned::{marks as pinned_marks, release as release_pinned};
pub(crate) use publish::Publisher;
pub(crate) use records::{Reader, Records};
pub(crate) use uninstall::uninstall;

use crate::{
    delegates::{Delegate, Unknown},
    guarded::Target,
    os::{diag, namespaces::Namespaces},
};
use earlier::EarlierSocks;
use live::Live;
use log::ProgramLog;
use maps::{Locked, Maps, map_error};
use pids::Pids;

/// The gate: programs attached, maps open. Dropping it leaves everything in force.
pub(crate) struct Gate {
    maps: Maps,
    pids: Pids,
    records: Mutex<Option<Records>>,
    fresh: bool,
    max_tasks: u32,
    choice: backend::Choice,
    /// Whether the last canary was refused what no cgroup program can refuse.
    refuses: AtomicBool,
    /// Whether writes by `splice` and `sendfile` pass the hook of messages.
    splices_by_message: bool,
    /// See [`load::Loader`].
    hookless: Vec<&'static str>,
    /// What the guard maps hold.
    guarded: Mutex<guard::Table>,
    /// Present only while this build takes over from one with another layout.
    earlier_socks: Option<EarlierSocks>,
    /// The host's own addresses, as the map has them.
    own: Mutex<Option<Vec<Addr>>>,
    /// Addresses that were removed from `CLAIMED` the last time.
    unclaimed: Mutex<Vec<Addr>>,
    /// The map of the marks of sockets, for `sock_diag`.
    socks: OwnedFd,
    /// Why `sock_diag` cannot be used, if it cannot.
    sock_diag_problem: Option<String>,
    namespaces: Mutex<Namespaces>,
    /// The cgroup that programs are attached to.
    cgroup: PathBuf,
    _links: Vec<OwnedFd>,
}

impl Gate {
    /// Attaches this build's programs, or replaces another build's without a gap, and opens the maps that are there. If another build had
    /// another layout for the marks of sockets, `mark_again` is called before the programs are replaced. It is called again afterwards, for
    /// sockets that were opened in between.
    ///
    /// # Errors
    /// This kernel, user or file system does not allow it, or `mark_again` failed. The message says what to change.
    pub(crate) fn start(options: &GateOptions, mark_again: impl Fn(&Self) -> Result<(), KernelError>) -> Result<Self, KernelError> {
        let mut loader = load::Loader::open(options)?;
        let mut ring = |name: &'static str| -> Result<RingBuf<MapData>, KernelError> {
            let map = loader.ebpf.take_map(name).ok_or_else(|| KernelError::Load(format!("the object has no map {name}")))?;
            RingBuf::try_from(map).map_err(|error| map_error(name, &error))
        };
        let records = Records::new(ring(EVENTS.name)?, ring(LIFECYCLE.name)?)?;
        let maps = Maps::open(&mut loader.ebpf)?;
        // A map that was pinned before keeps the size that it was made with.
        let tasks = MapInfo::from_pin(load::map_pin(&options.bpffs, &TASKS)).map_err(|error| map_error(TASKS.name, &error))?;
        let earlier_socks = loader.earlier_socks.take().map(EarlierSocks::open).transpose()?;
        let other_layout = earlier_socks.is_some();
        let pids = load::map_pin(&options.bpffs, &PIDS);
        let pids = sys::object(&pids).map_err(KernelError::io(pids.display().to_string()))?;
        let socks = load::map_pin(&options.bpffs, &SOCKS);
        let socks = sys::object(&socks).map_err(KernelError::io(socks.display().to_string()))?;
        canary_cgroup::sweep(&loader.cgroup_path);
        let sock_diag_problem = diag::works(socks.as_fd()).err().map(|error| error.to_string());
        let mut gate = Self {
            maps,
            socks,
            sock_diag_problem,
            namespaces: Mutex::new(Namespaces::begin()),
            pids: Pids::open(&pids, loader.fresh, loader.doubtful)?,
            earlier_socks,
            records: Mutex::new(Some(records)),
            fresh: loader.fresh,
            splices_by_message: loader.splices_by_message,
            hookless: loader.hookless.clone(),
            max_tasks: tasks.max_entries(),
            choice: backend::Choice::default(),
            refuses: AtomicBool::new(false),
            guarded: Mutex::new(guard::Table::default()),
            own: Mutex::new(None),
            unclaimed: Mutex::new(Vec::new()),
            cgroup: loader.cgroup_path.clone(),
            _links: Vec::new(),
        };
        if other_layout {
            mark_again(&gate)?;
            gate.end_left_behind(&options.bpffs);
        }
        let refused = loader.attach_first()?;
        gate.choice = backend::choose(&gate, &mut loader)?;
        gate.choice.refused.extend(refused);
        gate.refuses.store(gate.choice.proven, Ordering::Relaxed);
        let links = loader.close()?;
        let log = ProgramLog::open(&links);
        gate._links = links;
        if other_layout {
            mark_again(&gate)?;
            gate.earlier_socks = None;
        }
        load::drop_other_layouts(&options.bpffs)?;
        gate.ask_for_lines()?;
        if let Some(log) = log {
            log.follow();
        }
        Ok(gate)
    }

    /// Ends flows to protected places that no process has open. Without a descriptor their marks cannot be carried over.
    fn end_left_behind(&self, bpffs: &Path) {
        let ended = pinned::end_where(&load::other_layouts(bpffs, &SOCKS), |socket| {
            let subject = Subject { session: socket.mark.session, agent: socket.mark.agent, owner: socket.mark.owner };
            let addr = match socket.peer.ip() {
                std::net::IpAddr::V4(v4) => Addr::v4(v4.octets()),
                std::net::IpAddr::V6(v6) => Addr::v6(v6.octets()),
            };
            let attempt = Attempt { addr, port: socket.peer.port(), transport: transport::TCP, kind: Kind::Open, counted: 0 };
            socket.orphan && self.decide(&subject, &attempt).reason != Reason::NotProtected
        });
        match ended {
            Ok(0) => {}
            Ok(ended) => tracing::info!("{ended} flows ended that nobody had open: their marks cannot be carried over"),
            Err(error) => tracing::warn!("flows that nobody has open lose their marks and cannot be ended: {error}"),
        }
    }

    /// Whether this start made the maps. Then earlier counts are lost.
    #[must_use]
    pub(crate) const fn fresh(&self) -> bool {
        self.fresh
    }

    /// How many marked processes the task table in force has room for.
    #[must_use]
    pub(crate) const fn max_tasks(&self) -> u32 {
        self.max_tasks
    }

    /// The backend that refused the last canary.
    #[must_use]
    pub(crate) fn backend(&self) -> Backend {
        self.choice.backend.filter(|_| self.refuses.load(Ordering::Relaxed)).unwrap_or(Backend::Cgroup)
    }

    /// The result of trying each backend at start.
    #[must_use]
    pub(crate) fn candidates(&self) -> &[Candidate] {
        &self.choice.candidates
    }

    /// Sends the canary, and records whether the backend refused it. Blocking.
    ///
    /// # Errors
    /// It could not be sent.
    pub(crate) fn send_canary(&self, aim: &canary::Aim) -> std::io::Result<Vec<canary::Finding>> {
        let findings = canary::send(self, aim)?;
        let refuses = findings.iter().any(|found| found.technique == canary::PACKET && found.refused());
        self.refuses.store(refuses, Ordering::Relaxed);
        Ok(findings)
    }

    /// The pins of the programs that must be attached with the backend in use: all but those that this kernel refused or does not need.
    #[must_use]
    pub(crate) fn expected_hooks(&self) -> Vec<String> {
        let idle = |program: &programs::Program| {
            program.in_place_of.is_some_and(|other| self.has(other))
                || program.for_splices && self.splices_by_message
                || self.hookless.contains(&program.name)
        };
        let hanging = programs::of(self.choice.backend).filter(|(program, _)| self.has(program.name) && !idle(program));
        hanging.map(|(_, stem)| stem).collect()
    }

    /// Whether this kernel accepted the program of this name, or a program that replaces it.
    #[must_use]
    pub(crate) fn covers(&self, program: &str) -> bool {
        self.has(program) || programs::stand_ins(program).any(|other| self.has(other.name))
    }

    /// Whether this kernel accepted the program of this name.
    #[must_use]
    pub(crate) fn has(&self, program: &str) -> bool {
        self.choice.refused.iter().all(|(name, _)| *name != program)
    }

    /// Whether sockets that are passed or inherited get their mark before they can be written to.
    #[must_use]
    pub(crate) fn sees_passed(&self) -> bool {
        match self.backend() {
            Backend::Lsm => ["pp_lsm_receive", "pp_lsm_write"].iter().all(|name| self.has(name)),
            Backend::FmodRet => ["pp_entry_receive", "pp_entry_sendmsg", "pp_entry_write"].iter().all(|name| self.has(name)),
            Backend::Cgroup => false,
        }
    }

    /// Updates the guarded files with what is at these paths now.
    ///
    /// # Errors
    /// The kernel refused an entry, or there are too many.
    pub(crate) fn guard(&self, targets: &[Target], net_admin: NetAdmin) -> Result<(), KernelError> {
        let mut held = self.guarded.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = guard::find(targets, net_admin)?;
        if *held != wanted {
            guard::write(&self.maps, &wanted)?;
            *held = wanted;
        }
        Ok(())
    }

    /// Updates the delegates with the sockets that exist now.
    ///
    /// # Errors
    /// The kernel refused an entry, or there are too many.
    pub(crate) fn set_delegates(&self, delegates: &[Delegate], unknown: Unknown) -> Result<(), KernelError> {
        guard::write_delegates(&self.maps, delegates, unknown)
    }

    /// The generation, flags and overflow that are in force.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn control(&self) -> Result<Control, KernelError> {
        self.maps.control()
    }

    /// The mark of a process.
    ///
    /// # Errors
    /// The map cannot be read. The caller must then treat the process as marked.
    pub(crate) fn mark(&self, tgid: u32) -> Result<Option<TaskMark>, KernelError> {
        self.maps.tasks.get(&tgid)
    }

    /// The mark of a process, also if the task table had no room for it.
    ///
    /// # Errors
    /// As for [`Self::mark`].
    pub(crate) fn mark_or_doomed(&self, tgid: u32) -> Result<Option<TaskMark>, KernelError> {
        match self.mark(tgid)? {
            Some(mark) => Ok(Some(mark)),
            None => self.maps.doomed.get(&tgid),
        }
    }

    /// Every marked process.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn marks(&self) -> Result<Vec<(u32, TaskMark)>, KernelError> {
        self.maps.tasks.entries()
    }

    /// The cgroups whose processes are marked, each with its agent.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn cgroups(&self) -> Result<Vec<(u64, NameId)>, KernelError> {
        self.maps.cgroups.entries()
    }

    /// Marks a process. `false`: it has a mark already.
    ///
    /// # Errors
    /// The table is full or cannot be written.
    pub(crate) fn insert_mark(&self, tgid: u32, mark: TaskMark) -> Result<bool, KernelError> {
        self.pids.enter(tgid);
        let entered = self.maps.tasks.insert_new(&tgid, &mark)?;
        // RACE: an exit that found no mark yet may have cleared the byte.
        self.pids.enter(tgid);
        if entered {
            self.maps.doomed.remove(&tgid)?;
        }
        Ok(entered)
    }

    /// Has every hook look for a mark of this process, or of its ancestors while the task table has overflowed.
    pub(crate) fn expect_mark(&self, tgid: u32) {
        self.pids.enter(tgid);
    }

    /// Removes the mark of a process.
    ///
    /// # Errors
    /// The map cannot be written.
    pub(crate) fn remove_mark(&self, tgid: u32) -> Result<(), KernelError> {
        self.maps.tasks.remove(&tgid)
    }

    /// Decides as the kernel would now, from its own tables, without charging a budget.
    pub(crate) fn decide(&self, subject: &Subject, attempt: &Attempt) -> Decision {
        decide(&Live::new(&self.maps), subject, attempt)
    }

    /// The receipt that came nearest to allowing a refused attempt.
    #[must_use]
    pub(crate) fn nearest(&self, subject: &Subject, attempt: &Attempt, decision: &Decision) -> Option<Serial> {
        nearest_receipt(&Live::new(&self.maps), subject, attempt, decision)
    }

    /// What is used of a receipt.
    #[must_use]
    pub(crate) fn spent(&self, serial: Serial) -> Option<Spent> {
        use pp_common::decide::Tables as _;
        Live::new(&self.maps).budget(serial).map(|budget| budget.spent)
    }

    /// The newest version of the state that was on the disk in this boot; zero: none yet.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn state_seen(&self) -> Result<u64, KernelError> {
        self.maps.state_seen.get(0)
    }

    /// Records a version of the state that the disk has. Only the owner of what is in force calls it.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub(crate) fn note_state_seen(&self, version: u64) -> Result<(), KernelError> {
        let seen = self.maps.state_seen.get(0)?;
        if version > seen { self.maps.state_seen.set(0, version) } else { Ok(()) }
    }

    /// The first serial above all that the kernel counts for.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn serial_above_all(&self) -> Result<Serial, KernelError> {
        Ok(self.maps.budgets.keys()?.into_iter().max().map_or(1, |serial| serial.saturating_add(1)))
    }

    /// The counters of [`pp_common::abi::Counter`], by index.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn counters(&self) -> Result<Vec<u64>, KernelError> {
        self.maps.counters()
    }

    /// Repeats that the programs count instead of writing records.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn repeats(&self) -> Result<Vec<(RepeatKey, Repeats)>, KernelError> {
        self.maps.repeats.entries()
    }

    /// Removes a pair, if it is still as it was `seen`. `false`: it has changed.
    ///
    /// RACE: what a program adds between the check and the removal is missing from the sum of refusals.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub(crate) fn remove_repeats(&self, key: &RepeatKey, seen: &Repeats) -> Result<bool, KernelError> {
        if self.maps.repeats.get(key)?.as_ref() != Some(seen) {
            return Ok(false);
        }
        self.maps.repeats.remove(key)?;
        self.maps.reported.remove(&seen.id)?;
        Ok(true)
    }

    /// How many repeats are reported, by the ids of their entries.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn reported_repeats(&self) -> Result<Vec<(u64, u64)>, KernelError> {
        self.maps.reported.entries()
    }

    /// Stores how many repeats of an entry are reported, for the next daemon.
    ///
    /// # Errors
    /// The map cannot be written.
    pub(crate) fn keep_reported(&self, id: u64, count: u64) -> Result<(), KernelError> {
        self.maps.reported.insert(&id, &count)
    }

    /// Removes the number of reported repeats of an entry that is gone.
    ///
    /// # Errors
    /// The map cannot be written.
    pub(crate) fn remove_reported(&self, id: u64) -> Result<(), KernelError> {
        self.maps.reported.remove(&id)
    }

    /// Waits until every program that runs now has returned, and every program that had reserved a record before one of these.
    pub(crate) fn grace_periods(&self) {
        sys::grace_period();
        // The reader of a buffer stops at a record that is reserved but not submitted, even if later ones are complete.
        sys::grace_period();
    }

    /// The reading ends of the ring buffers. Only the first call returns them.
    #[must_use]
    pub(crate) fn take_records(&self) -> Option<Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The mark of a process, read from the pins, for commands that work without the daemon. `None`: it is not marked, or nothing is installed.
///
/// # Errors
/// The pinned map cannot be read.
pub(crate) fn pinned_mark(bpffs: &Path, tgid: u32) -> Result<Option<TaskMark>, KernelError> {
    for map in [&TASKS, &DOOMED] {
        let path = load::map_pin(bpffs, map);
        if !path.exists() {
            continue;
        }
        if nix::unistd::geteuid().is_root()
            && let Err(error) = sys::object(&path)
            && error.raw_os_error() == Some(libc::EPERM)
        {
            // Only the gate refuses `bpf(2)` to root, and only in a session.
            return Ok(Some(TaskMark::default()));
        }
        let map: Locked<HashMap<MapData, u32, TaskMark>> = pinned::open(bpffs, map, aya::maps::Map::HashMap)?;
        if let Some(mark) = map.get(&tgid)? {
            return Ok(Some(mark));
        }
    }
    Ok(None)
}
