//! What is in force: policy, keys, receipts, and what receipts are checked against. Only its owner (`writer.rs`) changes it. Everybody else
//! reads the last version that it showed, without waiting.

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
use crate::policy::{self, Counts, GrantSource, KernelTables, LearnedPlaces, PolicyError};
use crate::receipt::{Receipt, verify};
use crate::state::{Book, Kept, State, StoredReceipt};

/// A receipt that the policy in force admits, or why it does not.
pub(super) type Admission = Result<Receipt, String>;
/// A registered receipt.
pub(super) type LiveReceipt = Kept<Admission>;

/// Where the policy in force came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PolicyOrigin {
    /// The files.
    Files,
    /// The built-in policy, since there are no files.
    BuiltIn,
    /// The last good policy, since the files are refused for this reason.
    LastGood(String),
    /// The built-in policy, since the files are refused for this reason and there is no last good policy.
    Fallback(String),
}

impl PolicyOrigin {
    /// Its name in status.
    pub(super) const fn name(&self) -> &'static str {
        self.change().name()
    }

    /// What the event of the daemon's start says of it.
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
    pub(super) receipts: Book<Admission>,
    pub(super) cgroups: Vec<(u64, NameId)>,
    pub(super) generation: u32,
    /// Whether it is unknown which receipts there are, because the state could not be opened.
    pub(super) receipts_unknown: bool,
    /// Why no receipt is in force, if the state is an earlier copy.
    pub(super) went_back: Option<String>,
    /// Whether no receipt is in force, because the clock was behind the highest time seen when receipts were loaded.
    pub(super) withheld: bool,
    /// The host's own addresses.
    pub(super) own: Vec<Addr>,
    /// What is protected although policy does not name it.
    pub(super) learned: Arc<LearnedPlaces>,
    /// Whether the kernel enforces older tables than these, because it refused them.
    pub(super) unpublished: bool,
}

impl InForce {
    /// The kernel's tables. Ended receipts are in them, so that a refusal can name them, unless the tables are too small for that.
    pub(super) fn tables(&self) -> Result<KernelTables, PolicyError> {
        self.tables_with(None)
    }

    /// The same with one more receipt.
    fn tables_with(&self, further: Option<&LiveReceipt>) -> Result<KernelTables, PolicyError> {
        let now = Now::read();
        let shown: Vec<&LiveReceipt> = self.receipts.iter().chain(further).filter(|_| !self.withheld && self.went_back.is_none()).collect();
        let all: Vec<GrantSource> = shown.iter().filter_map(|receipt| receipt.grant_source()).collect();
        let tables = policy::compile(&self.config, &all, &self.cgroups, &self.own).or_else(|full| {
            let open = shown.iter().filter(|receipt| receipt.stored.is_open(now));
            let open: Vec<GrantSource> = open.filter_map(|receipt| receipt.grant_source()).collect();
            if open.len() == all.len() {
                return Err(full);
            }
            policy::compile(&self.config, &open, &self.cgroups, &self.own)
        })?;
        // Counts are kept while their receipt opens nothing, so that they do not start again from zero afterwards.
        let counts = if self.receipts_unknown || self.went_back.is_some() {
            Counts::All
        } else {
            Counts::Of(self.receipts.iter().map(|kept| kept.stored.serial).collect())
        };
        Ok(KernelTables { counts, ..tables })
    }

    /// The registration of this very artifact, even if its key or the policy have changed since.
    pub(super) fn registered(&self, artifact: &[u8]) -> Option<&StoredReceipt> {
        let value: Value = serde_json::from_slice(artifact).ok()?;
        let text = |member: &str| value["artifact"][member].as_str();
        let stored = &self.receipts.find(text("receipt_id")?)?.stored;
        let is_same = text("signed_payload_hash")? == stored.payload_hash
            && (stored.artifact.as_bytes() == artifact || verify(artifact, &self.keyring).is_ok());
        is_same.then_some(stored)
    }

    /// Checks that the tables have room for one more receipt. It happens before registration, so that a receipt that does not fit is not
    /// used up.
    pub(super) fn check_room(&self, stored: &StoredReceipt, receipt: &Receipt) -> Result<(), PolicyError> {
        let stored = StoredReceipt { serial: Serial::MAX, ..stored.clone() };
        let further = LiveReceipt { stored, admitted: Ok(receipt.clone()) };
        self.tables_with(Some(&further)).map(drop)
    }

    /// Whether both admit the same receipts: policy, keys and learned places are the same.
    pub(super) fn admits_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && Arc::ptr_eq(&self.keyring, &other.keyring) && Arc::ptr_eq(&self.learned, &other.learned)
    }

    /// Why receipts and revocations cannot be kept, and what to do.
    pub(super) fn state_problem(&self, state: &State) -> Option<String> {
        if let Some(why) = &self.went_back {
            return Some(format!("no receipt is in force and none can be registered: {why}"));
        }
        let problem = state.problem()?;
        let effect = if self.receipts_unknown { "no receipt is in force and none can be registered" } else { "nothing can be registered" };
        Some(format!("{effect}: {problem}"))
    }

    /// Whether a receipt can be registered at all.
    pub(super) fn check_state(&self, state: &State) -> Result<(), ApiError> {
        match self.state_problem(state) {
            Some(problem) if self.receipts_unknown || self.went_back.is_some() => Err(ApiError::StateUnavailable(problem)),
            _ => Ok(()),
        }
    }

    /// Remarks on policy and keys.
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

/// The last shown version of what is in force, for everybody to read.
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
        // The previous version is dropped after the lock is released.
        let _before = std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), fresh);
    }
}
