//! A state that went back: an earlier copy of `state.redb`, or a new and empty one, is in the place of the newest. It does not know
//! every revocation, end and used id, so its receipts would open again what was closed. No receipt is in force then, and none can be registered,
//! until an operator accepts the state.
//!
//! Three things outlive the file: the version in the kernel (until a reboot), the version in the event store, and the revocations there.

use std::collections::HashMap;

use super::Daemon;
use super::in_force::Admission;
use super::writer::Writer;
use crate::api::StateAccepted;
use crate::clock::Now;
use crate::control::{ApiError, Caller};
use crate::events::store::Store;
use crate::events::{Body, PostureChange};
use crate::kernel::{Gate, KernelError};
use crate::state::{Book, State, StateError, Tombstone};

/// How an operator accepts the state.
const ACCEPT: &str = "restore the newest state.redb and restart, or accept this one: pp-agent receipt accept-state --reason TEXT";
/// Most receipts that are named in a message.
const NAMED: usize = 5;

/// Finds out whether the state went back. Returns why no receipt may be in force; `None`: it is the newest.
pub(super) fn find(gate: &Gate, store: &Store, state: &State, receipts: &Book<Admission>) -> Option<String> {
    if state.is_shut() {
        return None;
    }
    let why = seek(gate, store, state, receipts)
        .unwrap_or_else(|error| Some(format!("whether it is the newest cannot be found out: {error}")))?;
    state.mark_as_gone_back();
    let why = format!("the state went back: {why}; {ACCEPT}");
    tracing::error!("{why}");
    Some(why)
}

/// Why it could not be found out.
#[derive(Debug, thiserror::Error)]
enum SeekError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    State(#[from] StateError),
}

fn seek(gate: &Gate, store: &Store, state: &State, receipts: &Book<Admission>) -> Result<Option<String>, SeekError> {
    let own = state.version();
    let (kernel, events) = (gate.state_seen()?, store.state_version());
    let seen = kernel.max(events);
    if own < seen {
        let by = if kernel >= events { "the kernel" } else { "the event store" };
        return Ok(Some(format!("state.redb has {own} changes of receipts, and {by} knows of {seen}")));
    }
    let revived = receipts.revived(&state.unknown_revocations(revocations(store))?);
    if revived.is_empty() {
        return Ok(None);
    }
    let more = revived.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let named: Vec<&str> = revived.iter().take(NAMED).map(String::as_str).collect();
    Ok(Some(format!("state.redb does not know that these receipts were revoked, as events tell: {}{more}", named.join(", "))))
}

/// The revocations in the event store; none if it cannot be read, which `status` shows.
fn revocations(store: &Store) -> HashMap<String, String> {
    store.revocations().unwrap_or_else(|error| {
        tracing::error!("{error}; revocations in it are not compared with the state");
        HashMap::new()
    })
}

impl Daemon {
    /// Reports once that the state went back.
    pub(super) fn report_went_back(&self) {
        if let Some(why) = &self.rules.now().went_back {
            self.reports
                .publish(self.reports.event(Body::Posture { change: PostureChange::StateWentBack, hook: None }).detail(why.clone()));
        }
    }

    /// Puts the receipts of a state that went back in force, because an operator says so. What events know as revoked stays revoked.
    pub(super) fn accept_state(&self, caller: &Caller, reason: &str) -> Result<StateAccepted, ApiError> {
        let reason = super::reports::reason(reason)?;
        let accepted = self.rules.change(Writer::accept_state)?;
        let again = if accepted.revoked.is_empty() { String::new() } else { format!("; revoked again: {}", accepted.revoked.join(", ")) };
        let who = super::reports::caller(caller);
        let detail = format!("by {who}: {reason}; {} receipts are known{again}", accepted.receipts);
        tracing::warn!("state: accepted although it went back, {detail}");
        self.reports.publish(self.reports.event(Body::Posture { change: PostureChange::StateAccepted, hook: None }).detail(detail));
        self.wake.changed.notify_one();
        self.end_flows();
        Ok(accepted)
    }
}

impl Writer {
    /// Records the version of the state where it outlives the file, after a change of receipts.
    pub(super) fn note_state_version(&self) {
        note_version(&self.gate, self.reports.hub.store(), &self.state);
    }

    fn accept_state(&mut self) -> Result<StateAccepted, ApiError> {
        let Some(why) = self.force.went_back.clone() else {
            return Err(ApiError::bad_request("state: it is the newest; there is nothing to accept"));
        };
        let mut revoked = Vec::new();
        let store = self.reports.hub.store();
        for (id, reason) in self.state.unknown_revocations(revocations(store))? {
            let tombstone = Tombstone { id: id.clone(), reason, decider: None, revoked_ms: Now::read().wall_ms, expires_ms: None };
            let _was_registered = self.force.receipts.revoke(&self.state, tombstone)?;
            revoked.push(id);
        }
        revoked.sort_unstable();
        let seen = self.gate.state_seen()?.max(store.state_version());
        self.state.accept_as_newest(seen, self.gate.serial_above_all()?)?;
        self.force.went_back = None;
        if let Err(error) = self.publish() {
            self.force.went_back = Some(why);
            return Err(error);
        }
        self.note_state_version();
        Ok(StateAccepted { receipts: self.force.receipts.iter().count(), revoked })
    }
}

/// Records the version of the state in the kernel and in the event store.
pub(super) fn note_version(gate: &Gate, store: &Store, state: &State) {
    let version = state.version();
    if let Err(error) = gate.note_state_seen(version) {
        tracing::error!("{error}; an earlier copy of the state is found out by the event store only");
    }
    store.note_state_version(version);
}
