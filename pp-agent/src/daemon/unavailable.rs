//! What happens when the state cannot be opened. Everything is enforced, nothing is granted and nothing can be registered. `status` says
//! why and what to do. The daemon tries again every 10 seconds.

use std::path::Path;
use std::time::{Duration, Instant};

use super::in_force::{Admission, PolicyOrigin};
use super::load::{admit_again, keep};
use super::wall::is_behind;
use super::writer::Writer;
use super::{Daemon, DaemonError, names_of, went_back};
use crate::clock::Now;
use crate::config::Config;
use crate::events::{Body, PostureChange};
use crate::kernel::TAKEOVER;
use crate::keyring::Keyring;
use crate::policy::LearnedPlaces;
use crate::state::{Book, State, StateError};

/// Opens the state, and waits for a daemon that was killed and is still ending. A state that cannot be opened is shut.
///
/// # Errors
/// Another daemon has it open: that one enforces, and two would undo each other's tables.
pub(super) fn open_state(path: &Path) -> Result<State, DaemonError> {
    let deadline = Instant::now() + TAKEOVER;
    loop {
        match State::open(path) {
            Ok(state) => return Ok(state),
            Err(error) if error.is_locked() && Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            Err(error) if error.is_locked() => return Err(error.into()),
            Err(error) => {
                log_unavailable(&error);
                return Ok(State::shut(path, &error));
            }
        }
    }
}

/// What loaded receipts are checked against.
pub(super) struct Terms<'a> {
    pub(super) config: &'a Config,
    pub(super) keyring: &'a Keyring,
    pub(super) learned: &'a LearnedPlaces,
    pub(super) boot_id: &'a str,
    /// Whether the kernel's counts started from zero with this daemon.
    pub(super) counts_lost: bool,
}

/// Loads the receipts from the state. Returns the highest wall time seen; zero while the state is shut.
///
/// # Errors
/// They cannot be read. The state is shut then.
pub(super) fn load(state: &State, receipts: &mut Book<Admission>, terms: &Terms<'_>, now: Now) -> Result<i64, StateError> {
    if state.is_shut() {
        return Ok(0);
    }
    let mut read = || -> Result<i64, StateError> {
        state.read_version()?;
        let highest_ms = state.highest_wall()?;
        let carry_over = |stored: &mut crate::state::StoredReceipt| stored.carry_over(now, terms.boot_id, terms.counts_lost);
        receipts.load(state, carry_over, |stored| admit_again(stored, terms.config, terms.keyring, terms.learned))?;
        Ok(highest_ms)
    };
    read().inspect_err(|error| state.shut_again(error))
}

/// Logs why the state is shut, and what that means.
pub(super) fn log_unavailable(error: &StateError) {
    tracing::error!("{error}; until then everything is enforced, no receipt is in force and none can be registered");
}

impl Daemon {
    /// Reports once that the state is shut.
    pub(super) fn report_unavailable(&self) {
        let force = self.rules.now();
        if let Some(problem) = force.state_problem(&self.state).filter(|_| force.receipts_unknown) {
            self.report_state(PostureChange::StateUnavailable, problem);
        }
    }

    fn report_state(&self, change: PostureChange, detail: String) {
        self.reports.publish(self.reports.event(Body::Posture { change, hook: None }).detail(detail));
    }

    /// Records the wall time and removes expired receipts, unless the state is shut.
    pub(super) fn note_wall(&self) {
        self.rules.change(|writer| {
            if !writer.force.receipts_unknown {
                writer.note_wall();
            }
        });
    }

    /// Tries to open a state that is shut.
    pub(super) fn open_state_again(&self) {
        if !self.rules.now().receipts_unknown {
            return;
        }
        if let Some(count) = self.rules.change(Writer::open_state_again) {
            tracing::warn!("state: it could be opened, {count} receipts are known again");
            self.report_state(PostureChange::StateRestored, format!("{count} receipts are known again"));
            self.report_went_back();
            self.wake.changed.notify_one();
        }
    }
}

impl Writer {
    /// Tries to open a state that is shut, and puts its receipts in force. Returns how many there are.
    fn open_state_again(&mut self) -> Option<usize> {
        // Most tries fail for the reason of the one before, which is in the log.
        let known = self.state.problem();
        let log = |error: &StateError| {
            if known != Some(error.to_string()) {
                log_unavailable(error);
            }
        };
        if let Err(error) = self.state.retry() {
            log(&error);
            return None;
        }
        let now = Now::read();
        let force = &mut self.force;
        let terms = Terms {
            config: &force.config,
            keyring: &force.keyring,
            learned: &force.learned,
            boot_id: &self.boot_id,
            counts_lost: self.gate.fresh(),
        };
        let highest_ms = load(&self.state, &mut force.receipts, &terms, now).inspect_err(log).ok()?;
        self.highest.note(highest_ms);
        force.receipts_unknown = false;
        force.went_back = went_back::find(&self.gate, self.reports.hub.store(), &self.state, &force.receipts);
        force.withheld = is_behind(now.wall_ms, highest_ms);
        if let Err(error) = self.publish() {
            tracing::error!("receipts: {error}");
            // The kernel's tables are still those without the receipts.
            self.force.receipts = Book::default();
            self.force.receipts_unknown = true;
            self.force.went_back = None;
            self.state.shut_again(&StateError::Shut(format!("receipts: {error}")));
            return None;
        }
        let force = &self.force;
        if force.origin == PolicyOrigin::Files {
            keep(&self.state, &force.config);
        }
        let names = names_of(&force.config, &self.state);
        let mut builder = self.reports.builder();
        builder.names.names.extend(names);
        builder.names.receipts.extend(force.receipts.iter().map(|kept| (kept.stored.serial, kept.stored.id.clone())));
        drop(builder);
        if force.went_back.is_none() {
            self.note_state_version();
        }
        Some(force.receipts.iter().count())
    }
}
