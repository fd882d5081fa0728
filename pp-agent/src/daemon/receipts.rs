//! The life of a receipt on this host: registered, in force, over.

use serde_json::Value;

use super::{Daemon, Inner, LiveReceipt, admission};
use crate::api::{ReceiptStatus, ReceiptView, Receipts, RegisterAnswer, Revoked, TermsView, UsedView};
use crate::clock::{Now, rfc3339};
use crate::control::ApiError;
use crate::events::build::session_text;
use crate::events::{Body, ReceiptChange, Usage, Who};
use crate::name::name_id;
use crate::policy::{self, Counts, GrantSource, KernelTables, PolicyError};
use crate::receipt::revocation::Revocation;
use crate::receipt::{Receipt, Refusal, verify};
use crate::state::{EndReason, Registered, StoredReceipt, Tombstone};
use pp_common::abi::{GRANT_EXHAUSTED, GRANT_REVOKED, Serial, Spent};

impl Inner {
    /// The tables of all this. Ended receipts are in it, so that a refusal can
    /// name them, unless the tables are too small for that.
    pub(super) fn tables(&self) -> Result<KernelTables, PolicyError> {
        self.tables_with(None)
    }

    /// The same with one more receipt.
    fn tables_with(&self, further: Option<&LiveReceipt>) -> Result<KernelTables, PolicyError> {
        let now = Now::read();
        let shown: Vec<&LiveReceipt> = self.receipts.iter().chain(further).filter(|_| !self.withheld).collect();
        let all: Vec<GrantSource> = shown.iter().filter_map(|receipt| receipt.grant_source()).collect();
        let tables = policy::compile(&self.config, &all, &self.cgroups, &self.own).or_else(|full| {
            let open = shown.iter().filter(|receipt| receipt.stored.is_open(now));
            let open: Vec<GrantSource> = open.filter_map(|receipt| receipt.grant_source()).collect();
            if open.len() == all.len() {
                return Err(full);
            }
            policy::compile(&self.config, &open, &self.cgroups, &self.own)
        })?;
        // A count outlives the time in which its receipt opens nothing: it must not begin anew when that is over.
        let counts =
            if self.receipts_unknown { Counts::All } else { Counts::Of(self.receipts.iter().map(|kept| kept.stored.serial).collect()) };
        Ok(KernelTables { counts, ..tables })
    }

    /// The registration of this very artifact, also where its key or the policy
    /// have changed since.
    fn registered(&self, artifact: &[u8]) -> Option<&StoredReceipt> {
        let value: Value = serde_json::from_slice(artifact).ok()?;
        let text = |member: &str| value["artifact"][member].as_str();
        let stored = &self.find(text("receipt_id")?)?.stored;
        let is_same = text("signed_payload_hash")? == stored.payload_hash
            && (stored.artifact.as_bytes() == artifact || verify(artifact, &self.keyring).is_ok());
        is_same.then_some(stored)
    }

    /// Whether the tables would hold one more receipt: one that does not fit
    /// must not be used up.
    fn check_room(&self, stored: &StoredReceipt, receipt: &Receipt) -> Result<(), ApiError> {
        let stored = StoredReceipt { serial: Serial::MAX, ..stored.clone() };
        let further = LiveReceipt { stored, admitted: Ok(receipt.clone()) };
        self.tables_with(Some(&further)).map(drop).map_err(no_room)
    }

    fn find(&self, id: &str) -> Option<&LiveReceipt> {
        self.receipts.find(id)
    }
}

impl LiveReceipt {
    fn grant_source(&self) -> Option<GrantSource> {
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
            from: rfc3339(told_instant(now, stored.from_ns, stored.from_ms)),
            until: rfc3339(told_instant(now, stored.until_ns, stored.until_ms)),
            uids: stored.uids.clone(),
            terms: self.admitted.as_ref().ok().map(TermsView::of),
            void_because: self.admitted.as_ref().err().cloned(),
            used: spent.map(|spent| UsedView { used_connections: spent.connections, used_attempts: spent.attempts }),
            ..ReceiptView::default()
        }
    }
}

impl Daemon {
    /// Compiles and publishes what is in force now.
    pub(super) fn publish(&self, inner: &mut Inner) -> Result<(), ApiError> {
        inner.generation = self.gate.apply(&inner.tables().map_err(no_room)?)?;
        Ok(())
    }

    /// Registers a receipt, or takes in a signed revocation.
    pub(super) fn take_artifact(&self, artifact: &[u8]) -> Result<RegisterAnswer, ApiError> {
        self.turn_down_unsigned(artifact)?;
        let mut inner = self.inner();
        let now = Now::read();
        if let Some(first) = inner.registered(artifact) {
            return self.registered_before(&inner, first, now).map(RegisterAnswer::from);
        }
        let judged = admission::judge(artifact, &inner.config, &inner.keyring, &inner.beside, now.wall_ms);
        let receipt = match judged {
            Ok(admission::Artifact::Revocation(revocation)) => {
                return self.take_revocation(inner, &revocation).map(RegisterAnswer::Revocation);
            }
            // To a clock that was set back, what is genuine is from the future.
            Ok(_) | Err(ApiError::Receipt(Refusal::CreatedInFuture { .. })) if self.clock_behind() => {
                let highest = rfc3339(self.highest_ms.load(std::sync::atomic::Ordering::Acquire));
                return Err(Refusal::ClockBehind { highest }.into());
            }
            Err(error) => return Err(error),
            Ok(admission::Artifact::Receipt(receipt)) => *receipt,
        };
        self.check_state(&inner)?;
        let window = receipt.window(now.wall_ms);
        let stored = StoredReceipt {
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
            boot_id: self.boot_id.clone(),
            from_ns: now.boot_of(window.from_ms),
            until_ns: now.boot_of(window.until_ms),
            uids: admission::uids_of(&receipt)?,
            budget: receipt.terms().max_connections.is_some() || receipt.terms().credential_scope.max_attempts() != 0,
            ended: None,
        };
        inner.check_room(&stored, &receipt)?;
        let name = receipt.terms().agent.clone();
        let names = std::collections::HashMap::from([(name_id(&name), name)]);
        let stored = match inner.receipts.register(&self.state, stored, Ok(receipt))? {
            Registered::New(stored) => stored,
            Registered::Again(first) => return self.registered_before(&inner, &first, now).map(RegisterAnswer::from),
        };
        let id = stored.id.clone();
        self.builder().names.receipts.insert(stored.serial, id.clone());
        if let Err(error) = self.state.keep_names(&names) {
            tracing::warn!("{error}");
        }
        self.builder().names.names.extend(names);
        if let Err(error) = self.publish(&mut inner) {
            self.take_back(&mut inner, &id);
            return Err(error);
        }
        let mut answer = self.describe(&inner, &id, now)?;
        let agent = answer.terms.as_ref().map(|terms| terms.agent.clone());
        let unknown = agent.as_deref().and_then(|agent| inner.config.unknown_agent(agent)).map(|unknown| unknown.to_string());
        answer.warnings.extend(unknown.clone());
        drop(inner);
        self.changed.notify_one();
        let mut event = self.event(Body::Receipt(Some(id), ReceiptChange::Registered)).about(Who { agent, ..Who::default() });
        event.detail = unknown;
        self.hub.publish(event);
        Ok(answer.into())
    }

    /// Turns down what no trusted key signed before it asks for the lock that every call needs: anybody may send it.
    fn turn_down_unsigned(&self, artifact: &[u8]) -> Result<(), ApiError> {
        let keyring = self.inner().keyring.clone();
        let Err(error) = verify(artifact, &keyring) else { return Ok(()) };
        // The very bytes of a registered receipt are answered, also where its key is not trusted any more.
        if self.inner().receipts.iter().any(|receipt| receipt.stored.artifact.as_bytes() == artifact) {
            return Ok(());
        }
        Err(Refusal::from(error).into())
    }

    /// A registration that could not be put in force ends at once.
    fn take_back(&self, inner: &mut Inner, id: &str) {
        if let Err(error) = inner.receipts.end(&self.state, id, EndReason::NotApplied) {
            tracing::error!("{error}");
        }
        if let Err(error) = self.publish(inner) {
            tracing::error!("tables without receipt {id}: {error}");
        }
    }

    fn registered_before(&self, inner: &Inner, first: &StoredReceipt, now: Now) -> Result<ReceiptView, ApiError> {
        let answer = ReceiptView { again: true, ..self.describe(inner, &first.id, now)? };
        match answer.status {
            ReceiptStatus::Active | ReceiptStatus::Pending => Ok(answer),
            status => Err(ApiError::Over { id: answer.id, registered: answer.registered, status }),
        }
    }

    /// A revocation ends what the same decider allowed, here or not yet here.
    fn take_revocation(&self, inner: std::sync::MutexGuard<'_, Inner>, revocation: &Revocation) -> Result<Revoked, ApiError> {
        if let Some(receipt) = inner.find(&revocation.receipt_id)
            && receipt.stored.decider != revocation.decider
        {
            let (by, id) = (revocation.decider.clone(), revocation.receipt_id.clone());
            return Err(ApiError::OtherDecider { by, id, decider: receipt.stored.decider.clone() });
        }
        let decider = Some(revocation.decider.clone());
        self.bury(inner, &revocation.receipt_id, &revocation.reason, decider)
    }

    /// Revokes a receipt, also one that was never seen here.
    pub(super) fn revoke_receipt(&self, id: &str, reason: &str) -> Result<Revoked, ApiError> {
        if id.is_empty() || id.len() > 256 || id.chars().any(char::is_control) {
            return Err(ApiError::bad_request("receipt: an id has 1 to 256 printable characters"));
        }
        self.bury(self.inner(), id, reason, None)
    }

    fn bury(
        &self,
        mut inner: std::sync::MutexGuard<'_, Inner>,
        id: &str,
        reason: &str,
        decider: Option<String>,
    ) -> Result<Revoked, ApiError> {
        let now = Now::read();
        let tombstone = Tombstone { id: id.to_owned(), reason: reason.to_owned(), decider, revoked_ms: now.wall_ms, expires_ms: None };
        let known = inner.find(id).is_some();
        // A full disk must not keep a receipt open: it ends now, kept or not.
        let kept = inner.receipts.revoke(&self.state, tombstone);
        self.publish(&mut inner)?;
        drop(inner);
        self.changed.notify_one();
        self.hub.publish(self.event(Body::Revocation(Some(id.to_owned()))).detail(reason));
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
        let inner = self.inner();
        let now = Now::read();
        let receipts = inner.receipts.iter().map(|receipt| receipt.view(now, self.gate.spent(receipt.stored.serial)));
        Receipts { receipts: receipts.collect() }
    }

    /// One receipt, with its artifact.
    pub(super) fn show_receipt(&self, id: &str) -> Result<ReceiptView, ApiError> {
        let inner = self.inner();
        let answer = self.describe(&inner, id, Now::read())?;
        let artifact = inner.find(id).map(|receipt| serde_json::from_str(&receipt.stored.artifact).unwrap_or_default());
        Ok(ReceiptView { artifact, ..answer })
    }

    /// What is used of the receipt of this serial, as an event tells it.
    pub(super) fn usage(&self, serial: Serial) -> Option<Usage> {
        if serial == 0 {
            return None;
        }
        let spent = self.gate.spent(serial)?;
        let inner = self.inner();
        let receipt = inner.receipts.iter().find(|receipt| receipt.stored.serial == serial)?;
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

    fn describe(&self, inner: &Inner, id: &str, now: Now) -> Result<ReceiptView, ApiError> {
        let receipt = inner.find(id);
        let receipt =
            receipt.ok_or_else(|| ApiError::not_found(format!("receipt {id}: is not registered here; see pp-agent receipt list")))?;
        Ok(receipt.view(now, self.gate.spent(receipt.stored.serial)))
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

/// The wall instant that was signed, unless a clock step has moved the deadline
/// that the kernel goes by.
fn told_instant(now: Now, boot_ns: u64, wall_ms: i64) -> i64 {
    let in_force_ms = now.wall_of(boot_ns);
    if in_force_ms.abs_diff(wall_ms) < 1_000 { wall_ms } else { in_force_ms }
}

fn no_room(error: PolicyError) -> ApiError {
    ApiError::NoRoom(error.to_string())
}
