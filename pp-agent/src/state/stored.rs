//! What is stored of a receipt and of a revocation.

use pp_common::abi::Serial;
use serde::{Deserialize, Serialize};

use crate::clock::Now;

/// Why a receipt ended before its window did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EndReason {
    /// It was revoked.
    Revoked,
    /// Its count was lost with the kernel's tables.
    CountLost,
    /// It could not be put into force when it was registered.
    NotApplied,
}

/// A registered receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredReceipt {
    /// Its id.
    pub(crate) id: String,
    /// The signed artifact as it was received. Every load verifies it again.
    pub(crate) artifact: String,
    /// SHA-256 of the signed bytes, in the form of the artifact.
    pub(crate) payload_hash: String,
    /// Its number on this host; given by [`State::register`].
    pub(crate) serial: Serial,
    /// The company that its idempotency key belongs to.
    pub(crate) company: String,
    /// Its idempotency key.
    pub(crate) idem_key: String,
    /// Who decided. Only a signed revocation by the same person ends the receipt.
    pub(crate) decider: String,
    /// When it was registered, wall milliseconds.
    pub(crate) registered_ms: i64,
    /// The first instant of its window, wall milliseconds.
    pub(crate) from_ms: i64,
    /// The first instant after its window, wall milliseconds.
    pub(crate) until_ms: i64,
    /// `expiresAt` of the artifact, wall milliseconds.
    pub(crate) expires_ms: i64,
    /// The boot that the two instants below belong to.
    pub(crate) boot_id: String,
    /// The first instant, boot nanoseconds.
    pub(crate) from_ns: u64,
    /// The first instant after, boot nanoseconds.
    pub(crate) until_ns: u64,
    /// The uids that its user names meant at registration.
    pub(crate) uids: Vec<u32>,
    /// Whether it has a budget that the kernel counts.
    pub(crate) budget: bool,
    /// Why it ended early, if it did.
    #[serde(default)]
    pub(crate) ended: Option<EndReason>,
}

impl StoredReceipt {
    /// Adapts the receipt to the running kernel and clock. Deadlines only become earlier, and a budget whose count is lost is exhausted.
    /// Returns whether the receipt changed.
    pub(crate) fn carry_over(&mut self, now: Now, boot_id: &str, counts_lost: bool) -> bool {
        let before = self.clone();
        let same_boot = self.boot_id == boot_id;
        if self.ended.is_none() && self.budget && (counts_lost || !same_boot) {
            self.ended = Some(EndReason::CountLost);
        }
        let (from_ns, until_ns) = (now.boot_of(self.from_ms), now.boot_of(self.until_ms));
        if same_boot {
            // The start stays the same: a clock that steps back must not close an open receipt.
            self.until_ns = self.until_ns.min(until_ns);
        } else {
            boot_id.clone_into(&mut self.boot_id);
            (self.from_ns, self.until_ns) = (from_ns, until_ns);
        }
        *self != before
    }

    /// Whether it may still allow something now or later.
    #[must_use]
    pub(crate) fn is_open(&self, now: Now) -> bool {
        self.ended.is_none() && now.boot_ns < self.until_ns
    }

    /// Whether it can be removed, by the highest wall time seen: it allows nothing and cannot be registered again.
    pub(super) fn is_over(&self, highest_ms: i64, now: Now) -> bool {
        self.expires_ms < highest_ms && self.until_ms < highest_ms && !self.is_open(now)
    }
}

/// A revocation, also of a receipt that is not registered yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tombstone {
    /// The receipt.
    pub(crate) id: String,
    /// Why, in the revoker's words.
    pub(crate) reason: String,
    /// The decider, if the revocation was signed: it ends only receipts of that decider. Absent: an operator of this host, who ends any.
    pub(crate) decider: Option<String>,
    /// When, wall milliseconds.
    pub(crate) revoked_ms: i64,
    /// When the receipt itself expires, wall milliseconds, if known. The tombstone is kept until then, or else for ever.
    pub(crate) expires_ms: Option<i64>,
}

impl Tombstone {
    /// Whether it ends receipts of this decider.
    #[must_use]
    pub(crate) fn binds(&self, decider: &str) -> bool {
        self.decider.as_deref().is_none_or(|revoker| revoker == decider)
    }
}
