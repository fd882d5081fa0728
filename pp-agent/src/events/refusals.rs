//! Accounts for refusals: `with_event` + `repeats` + `lost` = refused. Each refused attempt that the kernel counted has its own event, is
//! among the `repeats` of an event, or is in a `lost` event.

use std::collections::HashMap;

use super::{Body, Event, Verdict};

/// How many refusals events report, by how they report them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refusals {
    /// With their own event.
    pub(crate) with_event: u64,
    /// As repeats of another attempt.
    pub(crate) repeats: u64,
    /// As lost.
    pub(crate) lost: u64,
    /// By events that could not be stored. Followers received those events.
    pub(crate) not_stored: u64,
}

impl Refusals {
    /// The refusals that one event reports.
    #[must_use]
    pub(crate) fn of(event: &Event) -> Self {
        if event.canary || event.verdict() != Some(Verdict::Block) {
            return Self::default();
        }
        match &event.body {
            Body::Verdict(attempt) | Body::Tamper(attempt) => {
                Self { with_event: event.own_attempts(attempt.repeats), repeats: attempt.repeats, ..Self::default() }
            }
            Body::Exec(tool) => Self { with_event: event.own_attempts(tool.repeats), repeats: tool.repeats, ..Self::default() },
            Body::Lost(loss) if loss.not_stored => Self { not_stored: loss.count, ..Self::default() },
            Body::Lost(loss) => Self { lost: loss.count, ..Self::default() },
            Body::FlowEnded(_)
            | Body::SessionStart(_)
            | Body::SessionEnd { .. }
            | Body::Receipt(..)
            | Body::Revocation(_)
            | Body::Posture { .. }
            | Body::Policy(_)
            | Body::Protection(_)
            | Body::Neighbour { .. }
            | Body::Unknown => Self::default(),
        }
    }

    /// How many refusals a follower of all events has received.
    #[must_use]
    pub(crate) const fn published(&self) -> u64 {
        self.with_event + self.repeats + self.lost
    }

    /// How many refusals stored events report.
    #[must_use]
    pub(crate) const fn stored(&self) -> u64 {
        self.published() + self.not_stored
    }

    /// Adds the refusals of another event.
    #[must_use]
    pub(crate) const fn and(self, other: Self) -> Self {
        Self {
            with_event: self.with_event + other.with_event,
            repeats: self.repeats + other.repeats,
            lost: self.lost + other.lost,
            not_stored: self.not_stored + other.not_stored,
        }
    }
}

/// Events that a follower or the store missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Missed {
    /// Refusals that they report.
    pub(crate) refusals: u64,
    /// Events that report no refusal.
    pub(crate) others: u64,
}

impl Missed {
    /// One event that a follower missed.
    #[must_use]
    pub(crate) fn follower(event: &Event) -> Self {
        Self::by(Refusals::of(event).published())
    }

    /// One event that the store missed.
    #[must_use]
    pub(crate) fn store(event: &Event) -> Self {
        Self::by(Refusals::of(event).stored())
    }

    fn by(refusals: u64) -> Self {
        Self { refusals, others: u64::from(refusals == 0) }
    }

    /// Adds others.
    #[must_use]
    pub(crate) const fn and(self, other: Self) -> Self {
        Self { refusals: self.refusals + other.refusals, others: self.others + other.others }
    }

    /// Subtracts those that were found later.
    #[must_use]
    pub(crate) const fn without(self, found: Self) -> Self {
        Self { refusals: self.refusals.saturating_sub(found.refusals), others: self.others.saturating_sub(found.others) }
    }
}

/// The account of the refusals of one boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Refusals that events report.
    pub(crate) refusals: Refusals,
    /// Refusals before this account started; `None` while that is unknown.
    pub(crate) before: Option<u64>,
    /// Refusals that wait for the summary of their flood, which will report them as repeats. Zero in the store.
    pub(crate) held: u64,
}

/// How many refusals no event reports, and none will: those that the kernel counted and that are neither `published` nor `pending`. Pending
/// refusals wait to be reported as repeats, in the kernel or for the summary of a flood.
///
/// RACE: the result is never too large if the numbers are read in this order. First `refused` is read, then every program has returned and
/// every record is handled, and the others are read last. Refusals in between can only be in the others. So the result can be reported as
/// lost at any time.
#[must_use]
pub(crate) const fn missing(refused: u64, before: u64, pending: u64, published: u64) -> u64 {
    refused.saturating_sub(before).saturating_sub(pending).saturating_sub(published)
}

/// How many of the repeats that the kernel counts are reported, by the id of their entry. The kernel's counts only grow.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    reported: HashMap<u64, u64>,
}

impl Ledger {
    /// Starts with what earlier daemons reported.
    #[must_use]
    pub(crate) fn new(reported: impl IntoIterator<Item = (u64, u64)>) -> Self {
        Self { reported: reported.into_iter().collect() }
    }

    /// The repeats of an entry in the kernel's table that are not reported yet, and whether the entry is seen for the first time.
    pub(crate) fn due(&mut self, id: u64, count: u64) -> (u64, bool) {
        let mut is_new = false;
        let reported = self.reported.entry(id).or_insert_with(|| {
            is_new = true;
            0
        });
        (count.saturating_sub(*reported), is_new)
    }

    /// The repeats that a record's event should report. None if the entry was not seen in the table yet, or is gone from it: those repeats
    /// are, or were, reported from the table.
    #[must_use]
    pub(crate) fn due_by_record(&self, id: u64, count: u64) -> u64 {
        self.reported.get(&id).map_or(0, |reported| count.saturating_sub(*reported))
    }

    /// Records how many repeats of an entry are reported.
    pub(crate) fn report(&mut self, id: u64, count: u64) {
        self.reported.insert(id, count);
    }

    /// Removes an entry that is gone from the table.
    pub(crate) fn remove(&mut self, id: u64) {
        self.reported.remove(&id);
    }

    /// Removes entries that are not in the table. Returns their ids.
    pub(crate) fn keep_only(&mut self, alive: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let alive: std::collections::HashSet<u64> = alive.into_iter().collect();
        self.reported.extract_if(|id, _| !alive.contains(id)).map(|(id, _)| id).collect()
    }
}

#[cfg(test)]
#[path = "refusals_tests.rs"]
mod tests;
