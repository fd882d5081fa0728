//! A state that cannot be opened: the gate comes before it. Everything is enforced and nothing granted, nothing is registered, `status` says why
//! and what to do, and each minute the daemon tries again.

use std::path::Path;
use std::time::{Duration, Instant};

use super::load::{admit_again, keep};
use super::{Daemon, DaemonError, Inner, Judged, PolicyOrigin, is_behind, names_of};
use crate::clock::Now;
use crate::config::Config;
use crate::control::ApiError;
use crate::events::{Body, PostureChange};
use crate::keyring::Keyring;
use crate::policy::Beside;
use crate::state::{Book, State, StateError};

/// For how long a predecessor's lock on the state is waited for.
const TAKEOVER: Duration = Duration::from_secs(10);

/// Opens the state; waits for a daemon that was killed and is still ending. One that cannot be opened is shut.
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
                tracing::error!("{error}; until then everything is enforced, no receipt is in force and none can be registered");
                return Ok(State::shut(path, &error));
            }
        }
    }
}

/// By what the receipts that are loaded are judged.
pub(super) struct Terms<'a> {
    pub(super) config: &'a Config,
    pub(super) keyring: &'a Keyring,
    pub(super) beside: &'a Beside,
    pub(super) boot_id: &'a str,
    /// The kernel's counts began anew with this daemon.
    pub(super) counts_lost: bool,
}

/// Takes the receipts out of the state. Returns the highest wall time seen; zero where nobody knows, and the state is shut then.
pub(super) fn load(state: &State, receipts: &mut Book<Judged>, terms: &Terms<'_>, now: Now) -> i64 {
    if state.is_shut() {
        return 0;
    }
    let mut read = || -> Result<i64, StateError> {
        let highest_ms = state.highest_wall()?;
        let carry_over = |stored: &mut crate::state::StoredReceipt| stored.carry_over(now, terms.boot_id, terms.counts_lost);
        receipts.load(state, carry_over, |stored| admit_again(stored, terms.config, terms.keyring, terms.beside))?;
        Ok(highest_ms)
    };
    read().unwrap_or_else(|error| {
        tracing::error!("{error}; until then everything is enforced, no receipt is in force and none can be registered");
        state.shut_again(&error);
        0
    })
}

impl Daemon {
    /// Why receipts and revocations cannot be kept, and what to do.
    pub(super) fn state_problem(&self, inner: &Inner) -> Option<String> {
        let problem = self.state.problem()?;
        let effect = if inner.receipts_unknown { "no receipt is in force and none can be registered" } else { "nothing can be registered" };
        Some(format!("{effect}: {problem}"))
    }

    /// Whether a receipt can be registered at all.
    pub(super) fn check_state(&self, inner: &Inner) -> Result<(), ApiError> {
        match self.state_problem(inner) {
            Some(problem) if inner.receipts_unknown => Err(ApiError::StateUnavailable(problem)),
            _ => Ok(()),
        }
    }

    /// Says once that the state is shut.
    pub(super) fn tell_shut_state(&self) {
        let problem = {
            let inner = self.inner();
            inner.receipts_unknown.then(|| self.state_problem(&inner)).flatten()
        };
        if let Some(problem) = problem {
            self.tell_state(PostureChange::StateUnavailable, problem);
        }
    }

    fn tell_state(&self, change: PostureChange, detail: String) {
        self.hub.publish(self.event(Body::Posture { change, hook: None }).detail(detail));
    }

    /// Tries a state that is shut once more, and puts in force what is in it.
    pub(super) fn open_state_again(&self) {
        let mut inner = self.inner();
        if !inner.receipts_unknown {
            return;
        }
        if let Err(error) = self.state.retry() {
            tracing::error!("{error}");
            return;
        }
        let now = Now::read();
        let Inner { config, keyring, beside, receipts, .. } = &mut *inner;
        let terms = Terms { config, keyring, beside, boot_id: &self.boot_id, counts_lost: self.gate.fresh() };
        let highest_ms = load(&self.state, receipts, &terms, now);
        if self.state.is_shut() {
            return;
        }
        self.highest_ms.fetch_max(highest_ms, std::sync::atomic::Ordering::AcqRel);
        inner.receipts_unknown = false;
        inner.withheld = is_behind(now.wall_ms, highest_ms);
        if let Err(error) = self.publish(&mut inner) {
            tracing::error!("receipts: {error}");
            // What the kernel has is still what it was without them.
            inner.receipts = Book::default();
            inner.receipts_unknown = true;
            self.state.shut_again(&StateError::Shut(format!("receipts: {error}")));
            return;
        }
        if inner.origin == PolicyOrigin::Files {
            keep(&self.state, &inner.config);
        }
        {
            let mut builder = self.builder();
            builder.names.names.extend(names_of(&inner.config, &self.state));
            builder.names.receipts.extend(inner.receipts.iter().map(|kept| (kept.stored.serial, kept.stored.id.clone())));
        }
        let count = inner.receipts.iter().count();
        drop(inner);
        tracing::warn!("state: it could be opened, {count} receipts are known again");
        self.tell_state(PostureChange::StateRestored, format!("{count} receipts are known again"));
        self.changed.notify_one();
    }
}
