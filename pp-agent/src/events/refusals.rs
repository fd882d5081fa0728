//! What events tell of refusals. told + repeats + lost = refused: each attempt that the kernel counted as refused has an event of its own,
//! is among the `repeats` of one, or is counted in a `lost` event.

use std::collections::HashMap;

use super::{Body, Event, Verdict};

/// How many refusals events tell, by how they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refusals {
    /// By an event of their own.
    pub(crate) told: u64,
    /// As repeats of another.
    pub(crate) repeats: u64,
    /// As lost.
    pub(crate) lost: u64,
    /// As events that could not be stored: whoever followed was told them before.
    pub(crate) not_stored: u64,
}

impl Refusals {
    /// What one event tells.
    #[must_use]
    pub(crate) fn of(event: &Event) -> Self {
        if event.canary || event.verdict() != Some(Verdict::Block) {
            return Self::default();
        }
        match &event.body {
            Body::Verdict(attempt) | Body::Tamper(attempt) => {
                Self { told: event.told(attempt.repeats), repeats: attempt.repeats, ..Self::default() }
            }
            Body::Exec(_) => Self { told: 1, ..Self::default() },
            Body::Lost(loss) if loss.not_stored => Self { not_stored: loss.count, ..Self::default() },
            Body::Lost(loss) => Self { lost: loss.count, ..Self::default() },
            Body::FlowEnded(_)
            | Body::SessionStart(_)
            | Body::SessionEnd { .. }
            | Body::Receipt(..)
            | Body::Revocation(_)
            | Body::Posture { .. }
            | Body::Policy(_)
            | Body::Neighbour { .. }
            | Body::Unknown => Self::default(),
        }
    }

    /// How many refusals a follower of all events was told of.
    #[must_use]
    pub(crate) const fn published(&self) -> u64 {
        self.told + self.repeats + self.lost
    }

    /// How many refusals stored events tell of.
    #[must_use]
    pub(crate) const fn stored(&self) -> u64 {
        self.published() + self.not_stored
    }

    /// With those of another event.
    #[must_use]
    pub(crate) const fn and(self, other: Self) -> Self {
        Self {
            told: self.told + other.told,
            repeats: self.repeats + other.repeats,
            lost: self.lost + other.lost,
            not_stored: self.not_stored + other.not_stored,
        }
    }
}

/// Events that somebody missed, by what they tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Missed {
    /// Refusals of which they tell.
    pub(crate) refusals: u64,
    /// Events that tell of none.
    pub(crate) others: u64,
}

impl Missed {
    /// One event, for a follower.
    #[must_use]
    pub(crate) fn follower(event: &Event) -> Self {
        Self::by(Refusals::of(event).published())
    }

    /// One event, for the store.
    #[must_use]
    pub(crate) fn store(event: &Event) -> Self {
        Self::by(Refusals::of(event).stored())
    }

    fn by(refusals: u64) -> Self {
        Self { refusals, others: u64::from(refusals == 0) }
    }

    /// With others.
    #[must_use]
    pub(crate) const fn and(self, other: Self) -> Self {
        Self { refusals: self.refusals + other.refusals, others: self.others + other.others }
    }

    /// Without those that were found after all.
    #[must_use]
    pub(crate) const fn without(self, found: Self) -> Self {
        Self { refusals: self.refusals.saturating_sub(found.refusals), others: self.others.saturating_sub(found.others) }
    }
}

/// What is accounted for of the refusals of one boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// By events.
    pub(crate) refusals: Refusals,
    /// Refused before anybody kept this account; `None` while that is not known.
    pub(crate) before: Option<u64>,
}

/// How many refusals no event tells of, and none will: of those that the kernel had counted, those neither `published` nor `pending`, which is
/// what waits in the kernel to be told as repeats.
///
/// It is never too great where `refused` was read first, then every program had returned and every record been handled, and the others were
/// read last: what is refused meanwhile can only be among the others. So it may be told as lost at any time.
#[must_use]
pub(crate) const fn missing(refused: u64, before: u64, pending: u64, published: u64) -> u64 {
    refused.saturating_sub(before).saturating_sub(pending).saturating_sub(published)
}

/// How many of the repeats that the kernel counts were told, by the id of their entry. The kernel's counts only ever grow.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    told: HashMap<u64, u64>,
}

impl Ledger {
    /// What daemons before this one told.
    #[must_use]
    pub(crate) fn new(told: impl IntoIterator<Item = (u64, u64)>) -> Self {
        Self { told: told.into_iter().collect() }
    }

    /// Repeats of an entry that is in the kernel's table, not told yet, and whether the entry is seen for the first time.
    pub(crate) fn due(&mut self, id: u64, count: u64) -> (u64, bool) {
        let mut is_new = false;
        let told = self.told.entry(id).or_insert_with(|| {
            is_new = true;
            0
        });
        (count.saturating_sub(*told), is_new)
    }

    /// The same where a record says how often its pair was counted. None where the table has not shown the entry yet, or shows it no more:
    /// it tells them, or has.
    #[must_use]
    pub(crate) fn due_by_record(&self, id: u64, count: u64) -> u64 {
        self.told.get(&id).map_or(0, |told| count.saturating_sub(*told))
    }

    /// So many were told.
    pub(crate) fn report(&mut self, id: u64, count: u64) {
        self.told.insert(id, count);
    }

    /// The entry is gone from the table.
    pub(crate) fn forget(&mut self, id: u64) {
        self.told.remove(&id);
    }

    /// Forgets what is not in the table. Returns the ids.
    pub(crate) fn keep_only(&mut self, alive: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let alive: std::collections::HashSet<u64> = alive.into_iter().collect();
        self.told.extract_if(|id, _| !alive.contains(id)).map(|(id, _)| id).collect()
    }
}

#[cfg(test)]
#[path = "refusals_tests.rs"]
mod tests;
