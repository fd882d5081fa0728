//! The life of a receipt on this host: registered, in force, ended.

use std::collections::HashMap;
use std::sync::Arc;

use super::in_force::{InForce, LiveReceipt};
use super::writer::Writer;
use super::{Daemon, admission};
use crate::api::{ReceiptStatus, ReceiptView, Receipts, RegisterAnswer, Revoked, TermsView, UsedView};
use crate::clock::{Now, rfc3339};
use crate::control::ApiError;
use crate::events::build::session_text;
use crate::events::{Body, ReceiptChange, Usage, Who};
use crate::kernel::Gate;
use crate::name::name_id;
use crate::policy::{GrantSource, PolicyError};
use crate::receipt::revocation::Revocation;
use crate::receipt::{Receipt, Refusal};
use crate::state::{EndReason, Registered, StateError, StoredReceipt, Tombstone};
use pp_common::abi::{GRANT_EXHAUSTED, GRANT_REVOKED, Serial, Spent};

impl LiveReceipt {
    /// What it opens or opened, for the kernel's tables; `None`: it never opened anything.
    pub(super) fn grant_source(&self) -> Option<GrantSource> {
        let receipt = self.admitted.as_ref().ok()?;
        let ended = match self.stored.ended {
            None => 0,
            Some(EndReason::Revoked) => GRANT_REVOKED,
            Some(EndReason::CountLost) => GRANT_EXHAUSTED,
            Some(EndReason::NotApplied) => return None,
        };
        let terms = receipt.terms();
        Some(GrantSource {
            serial: self.stored.serial,
            agent: name_id(&terms.agent),
            session: receipt.session(),
            uids: terms.users.is_some().then(|| self.stored.uids.clone()),
            targets: terms.targets.clone(),
            from_ns: self.stored.from_ns,
            until_ns: self.stored.until_ns,
            max_connections: terms.max_connections.map_or(0, u64::from),
            max_attempts: u64::from(terms.credential_scope.max_attempts()),
            max_turns: terms.max_turns.unwrap_or(0),
            ended,
        })
    }

    fn status(&self, now: Now, spent: Option<Spent>) -> ReceiptStatus {
        let Ok(receipt) = &self.admitted else { return ReceiptStatus::Void };
        let most = receipt.terms().max_connections.map(u64::from);
        let used_up = most.is_some_and(|most| spent.is_some_and(|spent| spent.connections >= most));
        match self.stored.ended {
            Some(EndReason::Revoked) => ReceiptStatus::Revoked,
            Some(EndReason::CountLost) => ReceiptStatus::Exhausted,
            Some(EndReason::NotApplied) => ReceiptStatus::Void,
            None if now.boot_ns >= self.stored.until_ns => ReceiptStatus::Expired,
            None if now.boot_ns < self.stored.from_ns => ReceiptStatus::Pending,
            None if used_up => ReceiptStatus::Exhausted,
            None => ReceiptStatus::Active,
        }
    }

    fn view(&self, now: Now, spent: Option<Spent>) -> ReceiptView {
        let stored = &self.stored;
        ReceiptView {
            id: stored.id.clone(),
            status: self.status(now, spent),
            registered: rfc3339(stored.registered_ms),
            from: rfc3339(shown_instant(now, stored.from_ns, stored.from_ms)),
            until: rfc3339(shown_instant(now, stored.until_ns, stored.until_ms)),
            uids: stored.uids.clone(),
            terms: self.admitted.as_ref().ok().map(TermsView::of),
            void_because: self.admitted.as_ref().err().cloned(),
            used: spent.map(|spent| UsedView { used_connections: spent.connections, used_attempts: spent.attempts }),
            ..ReceiptView::default()
        }
    }
}

impl Daemon {
    /// Registers a receipt, or takes in a signed revocation.
    pub(super) fn take_artifact(&self, artifact: &[u8]) -> Result<RegisterAnswer, ApiError> {
        loop {
            // Anybody may send an artifact, so it is checked here. Only admitted ones reach the writer.
            let by = self.rules.now();
            let now = Now::read();
            if let Some(first) = by.registered(artifact) {
                return registered_before(&by, &self.gate, &first.id, now).map(RegisterAnswer::from);
            }
            let admitted = admission::admit_artifact(artifact, &by.config, &by.keyring, &by.learned, now.wall_ms);
            let answer = match admitted {
                Ok(admission::Artifact::Revocation(revocation)) => {
                    self.revoke_by(by, revocation).map(|done| done.map(RegisterAnswer::Revocation))?
                }
                // To a clock that was set back, a genuine receipt seems to be from the future.
                Ok(_) | Err(ApiError::Receipt(Refusal::CreatedInFuture { .. })) if self.highest.clock_is_behind() => {
                    return Err(Refusal::ClockBehind { highest: rfc3339(self.highest.ms()) }.into());
                }
                Err(error) => return Err(error),
                Ok(admission::Artifact::Receipt(receipt)) => {
                    by.check_state(&self.state)?;
                    let stored = self.to_store(artifact, &receipt, now)?;
                    self.register(by, stored, *receipt)?.map(RegisterAnswer::from)
                }
            };
            // Without an answer, policy, keys or learned places have changed since, and it must be checked again.
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
    }

    /// What to store of a receipt that was admitted now.
    fn to_store(&self, artifact: &[u8], receipt: &Receipt, now: Now) -> Result<StoredReceipt, ApiError> {
        let window = receipt.window(now.wall_ms);
        Ok(StoredReceipt {
            id: receipt.id().to_owned(),
            artifact: String::from_utf8_lossy(artifact).into_owned(),
            payload_hash: receipt.payload_hash().to_owned(),
            serial: 0,
            company: receipt.company_id().to_owned(),
            idem_key: receipt.idem_key().to_owned(),
            decider: receipt.decider().to_owned(),
            registered_ms: now.wall_ms,
            from_ms: window.from_ms,
            until_ms: window.until_ms,
            expires_ms: receipt.expires_at_ms(),
            boot_id: self.site.boot_id.clone(),
            from_ns: now.boot_of(window.from_ms),
            until_ns: now.boot_of(window.until_ms),
            uids: admission::uids_of(receipt)?,
            budget: receipt.terms().max_connections.is_some() || receipt.terms().credential_scope.max_attempts() != 0,
            ended: None,
        })
    }

    /// Has the writer register a receipt. `None`: it must be checked again.
    fn register(&self, by: Arc<InForce>, stored: StoredReceipt, receipt: Receipt) -> Result<Option<ReceiptView>, ApiError> {
        let register = move |writer: &mut Writer| writer.admits_as(&by).then(|| writer.register(stored, receipt));
        let Some(registered) = self.rules.change(register) else { return Ok(None) };
        let (answer, unknown) = match registered? {
            Entry::New(answer, unknown) => (*answer, unknown),
            Entry::Again(id) => return registered_before(&self.rules.now(), &self.gate, &id, Now::read()).map(Some),
        };
        self.wake.changed.notify_one();
        let agent = answer.terms.as_ref().map(|terms| terms.agent.clone());
        let event = self.reports.event(Body::Receipt(Some(answer.id.clone()), ReceiptChange::Registered));
        let mut event = event.about(Who { agent, ..Who::default() });
        event.detail = unknown;
        self.reports.publish(event);
        Ok(Some(answer))
    }

    /// Has the writer revoke a receipt of the same decider, also one that is not registered yet. `None`: it must be checked again.
    fn revoke_by(&self, by: Arc<InForce>, revocation: Revocation) -> Result<Option<Revoked>, ApiError> {
        let Revocation { receipt_id: id, decider, reason, .. } = revocation;
        let tombstone = tombstone(&id, &reason, Some(decider));
        let revoke = move |writer: &mut Writer| writer.admits_as(&by).then(|| writer.revoke_by_decider(tombstone));
        self.rules.change(revoke).map(|outcome| self.report_revocation(&id, &reason, outcome?)).transpose()
    }

    /// Revokes a receipt, also one that was never seen here.
    pub(super) fn revoke_receipt(&self, id: &str, reason: &str) -> Result<Revoked, ApiError> {
        if id.is_empty() || id.len() > 256 || id.chars().any(char::is_control) {
            return Err(ApiError::bad_request("receipt: an id has 1 to 256 printable characters"));
        }
        let tombstone = tombstone(id, reason, None);
        let outcome = self.rules.change(move |writer| writer.revoke(tombstone))?;
        self.report_revocation(id, reason, outcome)
    }

    /// Reports the revocation of a receipt, and ends its flows.
    fn report_revocation(&self, id: &str, reason: &str, RevokeOutcome { known, kept }: RevokeOutcome) -> Result<Revoked, ApiError> {
        self.wake.changed.notify_one();
        self.reports.publish(self.reports.event(Body::Revocation(Some(id.to_owned()))).detail(reason));
        self.end_flows();
        match kept {
            Ok(was_registered) => Ok(Revoked { id: id.to_owned(), status: ReceiptStatus::Revoked, was_registered }),
            Err(error) => {
                let kept = if known { "is ended until the daemon restarts, but that" } else { "its revocation" };
                let message = format!("receipt {id}: {kept} could not be kept; revoke it again when this is mended: {error}");
                Err(ApiError::StateUnavailable(message))
            }
        }
    }

    /// Every receipt.
    pub(super) fn list_receipts(&self) -> Receipts {
        let force = self.rules.now();
        let now = Now::read();
        let receipts = force.receipts.iter().map(|receipt| receipt.view(now, self.gate.spent(receipt.stored.serial)));
        Receipts { receipts: receipts.collect() }
    }

    /// One receipt, with its artifact.
    pub(super) fn show_receipt(&self, id: &str) -> Result<ReceiptView, ApiError> {
        let force = self.rules.now();
        let answer = describe(&force, &self.gate, id, Now::read())?;
        let artifact = force.receipts.find(id).map(|receipt| serde_json::from_str(&receipt.stored.artifact).unwrap_or_default());
        Ok(ReceiptView { artifact, ..answer })
    }

    /// What is used of the receipt of this serial, for an event.
    pub(super) fn usage(&self, serial: Serial) -> Option<Usage> {
        if serial == 0 {
            return None;
        }
        let spent = self.gate.spent(serial)?;
        let force = self.rules.now();
        let receipt = force.receipts.iter().find(|receipt| receipt.stored.serial == serial)?;
        let terms = receipt.admitted.as_ref().ok()?.terms();
        let scope = &terms.credential_scope;
        let max_attempts = scope.max_attempts();
        Some(Usage {
            connections: spent.connections,
            max_connections: terms.max_connections.map(u64::from),
            attempts: spent.attempts,
            max_attempts: (max_attempts != 0).then_some(u64::from(max_attempts)),
            accounts: scope.accounts().to_vec(),
        })
    }
}

/// The result of a registration.
enum Entry {
    /// It is in force; with a warning if policy does not know its agent.
    New(Box<ReceiptView>, Option<String>),
    /// The receipt of this id was registered before.
    Again(String),
}

/// The result of a revocation.
struct RevokeOutcome {
    /// Whether the receipt was registered here.
    known: bool,
    /// Whether the disk had the receipt; an error if the revocation could not be written.
    kept: Result<bool, StateError>,
}

fn tombstone(id: &str, reason: &str, decider: Option<String>) -> Tombstone {
    Tombstone { id: id.to_owned(), reason: reason.to_owned(), decider, revoked_ms: Now::read().wall_ms, expires_ms: None }
}

impl Writer {
    /// Whether receipts that were admitted under `by` are admitted now.
    fn admits_as(&self, by: &InForce) -> bool {
        self.force.admits_as(by)
    }

    /// Registers a receipt on the disk, then in the kernel. A receipt that cannot be put in force ends at once.
    fn register(&mut self, stored: StoredReceipt, receipt: Receipt) -> Result<Entry, ApiError> {
        self.force.check_state(&self.state)?;
        self.force.check_room(&stored, &receipt).map_err(no_room)?;
        let name = receipt.terms().agent.clone();
        let unknown = self.force.config.unknown_agent(&name).map(|unknown| unknown.to_string());
        let names = HashMap::from([(name_id(&name), name)]);
        let stored = match self.force.receipts.register(&self.state, stored, Ok(receipt))? {
            Registered::New(stored) => stored,
            Registered::Again(first) => return Ok(Entry::Again(first.id)),
        };
        if let Err(error) = self.state.keep_names(&names) {
            tracing::warn!("{error}");
        }
        {
            let mut builder = self.reports.builder();
            builder.names.receipts.insert(stored.serial, stored.id.clone());
            builder.names.names.extend(names);
        }
        if let Err(error) = self.publish() {
            self.take_back(&stored.id);
            return Err(error);
        }
        let mut answer = describe(&self.force, &self.gate, &stored.id, Now::read())?;
        answer.warnings.extend(unknown.clone());
        Ok(Entry::New(Box::new(answer), unknown))
    }

    fn take_back(&mut self, id: &str) {
        if let Err(error) = self.force.receipts.end(&self.state, id, EndReason::NotApplied) {
            tracing::error!("{error}");
        }
        if let Err(error) = self.publish() {
            tracing::error!("tables without receipt {id}: {error}");
        }
    }

    /// Revokes a receipt in the tables that are in force, where new ones could not be published.
    fn revoke_in_place(&mut self, serial: Option<Serial>, error: ApiError) -> Result<(), ApiError> {
        let Some(serial) = serial else { return Err(error) };
        tracing::error!("{error}; the receipt is revoked in the tables in force, and new ones are tried again");
        Ok(self.publisher.revoke(serial)?)
    }

    fn revoke_by_decider(&mut self, tombstone: Tombstone) -> Result<RevokeOutcome, ApiError> {
        if let (Some(receipt), Some(by)) = (self.force.receipts.find(&tombstone.id), &tombstone.decider)
            && receipt.stored.decider != *by
        {
            return Err(ApiError::OtherDecider { by: by.clone(), id: tombstone.id, decider: receipt.stored.decider.clone() });
        }
        self.revoke(tombstone)
    }

    fn revoke(&mut self, tombstone: Tombstone) -> Result<RevokeOutcome, ApiError> {
        let known = self.force.receipts.find(&tombstone.id).is_some();
        // The receipt ends now, before the disk is written, so that a disk that is full or hangs keeps nothing open.
        self.force.receipts.end_by(&tombstone);
        let ended = self.force.receipts.find(&tombstone.id).filter(|receipt| receipt.stored.ended.is_some());
        let serial = ended.map(|receipt| receipt.stored.serial);
        let published = self.publish().or_else(|error| self.revoke_in_place(serial, error));
        let kept = self.force.receipts.revoke(&self.state, tombstone);
        published.map(|()| RevokeOutcome { known, kept })
    }
}

fn describe(force: &InForce, gate: &Gate, id: &str, now: Now) -> Result<ReceiptView, ApiError> {
    let receipt = force.receipts.find(id);
    let receipt = receipt.ok_or_else(|| ApiError::not_found(format!("receipt {id}: is not registered here; see pp-agent receipt list")))?;
    Ok(receipt.view(now, gate.spent(receipt.stored.serial)))
}

fn registered_before(force: &InForce, gate: &Gate, id: &str, now: Now) -> Result<ReceiptView, ApiError> {
    let answer = ReceiptView { again: true, ..describe(force, gate, id, now)? };
    match answer.status {
        ReceiptStatus::Active | ReceiptStatus::Pending => Ok(answer),
        status => Err(ApiError::Over { id: answer.id, registered: answer.registered, status }),
    }
}

impl TermsView {
    fn of(receipt: &Receipt) -> Self {
        let terms = receipt.terms();
        Self {
            agent: terms.agent.clone(),
            session: (receipt.session() != 0).then(|| session_text(receipt.session())),
            users: terms.users.clone(),
            decider: receipt.decider().to_owned(),
            key: receipt.key_id().to_owned(),
            summary: receipt.summary().map(str::to_owned),
            targets: terms.targets.iter().map(ToString::to_string).collect(),
            max_connections: terms.max_connections,
            max_attempts: terms.credential_scope.max_attempts(),
            accounts: terms.credential_scope.accounts().to_vec(),
            max_turns: terms.max_turns,
        }
    }
}

/// The signed wall instant, unless a step of the clock has moved the deadline that the kernel uses.
fn shown_instant(now: Now, boot_ns: u64, wall_ms: i64) -> i64 {
    let in_force_ms = now.wall_of(boot_ns);
    if in_force_ms.abs_diff(wall_ms) < 1_000 { wall_ms } else { in_force_ms }
}

pub(super) fn no_room(error: PolicyError) -> ApiError {
    ApiError::NoRoom(error.to_string())
}
