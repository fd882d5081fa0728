//! What is in force: policy, keys, receipts, and what they are judged by. Its owner (`writer.rs`) alone changes it, and shows it to everybody
//! else, who reads the last one shown and waits for nothing.

use std::sync::{Arc, PoisonError, RwLock};

use pp_common::abi::{NameId, Serial};
use pp_common::dest::Addr;
use serde_json::Value;

use crate::api::Remarks;
use crate::clock::Now;
use crate::config::Config;
use crate::control::ApiError;
use crate::events::PolicyChange;
use crate::keyring::Keyring;
use crate::policy::{self, Beside, Counts, GrantSource, KernelTables, PolicyError};
use crate::receipt::{Receipt, verify};
use crate::state::{Book, Kept, State, StoredReceipt};

/// What a receipt's signed text allows under the policy in force, or why it allows nothing.
pub(super) type Judged = Result<Receipt, String>;
/// A registered receipt.
pub(super) type LiveReceipt = Kept<Judged>;

/// Where the policy in force came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PolicyOrigin {
    /// The files.
    Files,
    /// There are no files.
    BuiltIn,
    /// The files are refused for this reason; the last good policy holds.
    LastGood(String),
    /// The files are refused for this reason, and there is no last good policy: the built-in one holds.
    Fallback(String),
}

impl PolicyOrigin {
    /// Its name in status.
    pub(super) const fn name(&self) -> &'static str {
        self.change().name()
    }

    /// What the start of a daemon with it tells.
    pub(super) const fn change(&self) -> PolicyChange {
        match self {
            Self::Files => PolicyChange::Files,
            Self::BuiltIn | Self::Fallback(_) => PolicyChange::BuiltIn,
            Self::LastGood(_) => PolicyChange::LastGood,
        }
    }
}

/// What is in force. A clone shares what is large.
#[derive(Clone)]
pub(super) struct InForce {
    pub(super) config: Arc<Config>,
    pub(super) origin: PolicyOrigin,
    pub(super) keyring: Arc<Keyring>,
    pub(super) keyring_problem: Option<String>,
    pub(super) receipts: Book<Judged>,
    pub(super) cgroups: Vec<(u64, NameId)>,
    pub(super) generation: u32,
    /// State could not be opened, so that nobody knows which receipts there are.
    pub(super) receipts_unknown: bool,
    /// The clock was behind the highest time seen when receipts were loaded.
    pub(super) withheld: bool,
    /// The host's own addresses.
    pub(super) own: Vec<Addr>,
    /// What is protected that policy does not name.
    pub(super) beside: Arc<Beside>,
}

impl InForce {
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
    pub(super) fn registered(&self, artifact: &[u8]) -> Option<&StoredReceipt> {
        let value: Value = serde_json::from_slice(artifact).ok()?;
        let text = |member: &str| value["artifact"][member].as_str();
        let stored = &self.receipts.find(text("receipt_id")?)?.stored;
        let is_same = text("signed_payload_hash")? == stored.payload_hash
            && (stored.artifact.as_bytes() == artifact || verify(artifact, &self.keyring).is_ok());
        is_same.then_some(stored)
    }

    /// Whether the tables would hold one more receipt: one that does not fit
    /// must not be used up.
    pub(super) fn check_room(&self, stored: &StoredReceipt, receipt: &Receipt) -> Result<(), PolicyError> {
        let stored = StoredReceipt { serial: Serial::MAX, ..stored.clone() };
        let further = LiveReceipt { stored, admitted: Ok(receipt.clone()) };
        self.tables_with(Some(&further)).map(drop)
    }

    /// Whether what one of them admits the other admits too: nothing that receipts are judged by has changed between them.
    pub(super) fn judges_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && Arc::ptr_eq(&self.keyring, &other.keyring) && Arc::ptr_eq(&self.beside, &other.beside)
    }

    /// Why receipts and revocations cannot be kept, and what to do.
    pub(super) fn state_problem(&self, state: &State) -> Option<String> {
        let problem = state.problem()?;
        let effect = if self.receipts_unknown { "no receipt is in force and none can be registered" } else { "nothing can be registered" };
        Some(format!("{effect}: {problem}"))
    }

    /// Whether a receipt can be registered at all.
    pub(super) fn check_state(&self, state: &State) -> Result<(), ApiError> {
        match self.state_problem(state) {
            Some(problem) if self.receipts_unknown => Err(ApiError::StateUnavailable(problem)),
            _ => Ok(()),
        }
    }

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

/// Where what is in force can be read.
pub(super) struct Shown(RwLock<Arc<InForce>>);

impl Shown {
    pub(super) fn new(force: &InForce) -> Self {
        Self(RwLock::new(Arc::new(force.clone())))
    }

    /// What is in force now.
    pub(super) fn now(&self) -> Arc<InForce> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn show(&self, force: &InForce) {
        let fresh = Arc::new(force.clone());
        // The one before is dropped when the lock is free again.
        let _before = std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), fresh);
    }
}
