//! What is kept of a receipt and of a revocation.

use pp_common::abi::Serial;
use serde::{Deserialize, Serialize};

use crate::clock::Now;

/// Why a receipt ended before its window did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EndReason {
    /// Someone with the right to revoked it.
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
    /// The signed artifact as it came in: every load verifies it again.
    pub(crate) artifact: String,
    /// SHA-256 of the signed bytes, as the artifact writes it.
    pub(crate) payload_hash: String,
    /// Its number on this host; given by [`State::register`].
    pub(crate) serial: Serial,
    /// The company whose idempotency keys it counts among.
    pub(crate) company: String,
    /// Its idempotency key.
    pub(crate) idem_key: String,
    /// Who decided: only that person's revocation ends it from elsewhere.
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
    /// Carries the receipt over to the running kernel: deadlines only shrink,
    /// and a budget whose count is gone is spent. Returns whether it changed.
    pub(crate) fn carry_over(&mut self, now: Now, boot_id: &str, counts_lost: bool) -> bool {
        let before = self.clone();
        let same_boot = self.boot_id == boot_id;
        if self.ended.is_none() && self.budget && (counts_lost || !same_boot) {
            self.ended = Some(EndReason::CountLost);
        }
        let (from_ns, until_ns) = (now.boot_of(self.from_ms), now.boot_of(self.until_ms));
        if same_boot {
            // The beginning stays: a clock that steps back must not close what has begun.
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

    /// Whether nothing can come of it any more, by the highest wall time seen.
    pub(super) fn is_over(&self, highest_ms: i64, now: Now) -> bool {
        self.expires_ms < highest_ms && self.until_ms < highest_ms && !self.is_open(now)
    }
}

/// A revocation, also of a receipt that was not seen yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tombstone {
    /// The receipt.
    pub(crate) id: String,
    /// Why, in the revoker's words.
    pub(crate) reason: String,
    /// Who, where a signed revocation says so: it ends only that decider's
    /// receipts. Absent: an operator of this host, who ends any.
    pub(crate) decider: Option<String>,
    /// When, wall milliseconds.
    pub(crate) revoked_ms: i64,
    /// When the receipt itself runs out, wall milliseconds, if known: the
    /// tombstone stays until then, else for ever.
    pub(crate) expires_ms: Option<i64>,
}

impl Tombstone {
    /// Whether it ends receipts of this decider.
    #[must_use]
    pub(crate) fn binds(&self, decider: &str) -> bool {
        self.decider.as_deref().is_none_or(|revoker| revoker == decider)
    }
}
