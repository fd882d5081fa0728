//! What a draft would change: the past and the new decision on each reported attempt, summed up.

use std::collections::{BTreeMap, BTreeSet};

use pp_common::behaviour::Rule;
use pp_common::decide::{Decision, Verdict};
use serde::Serialize;

use super::counted;
use super::draft::{Draft, is_open};
use super::past::{Past, PastAttempt, Undecided};
use crate::clock::rfc3339;
use crate::events::{Destination, Event, Place};
use crate::policy::PolicyError;

/// How the decision on an attempt would change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Change {
    /// It was allowed, and would be refused.
    NewlyRefused,
    /// It was refused, and would be allowed.
    NewlyAllowed,
    /// It was allowed, and would still be, but without an event.
    NoLongerReported,
    /// It was refused, and still would be.
    Refused,
    /// It was allowed with an event, and still would be.
    LetThrough,
}

impl Change {
    fn of(then: Verdict, now: &Decision) -> Self {
        match (then, now.verdict) {
            (Verdict::Allow | Verdict::Observe, Verdict::Block) => Self::NewlyRefused,
            // A draft is never off. What went through meanwhile is compared with what policy said of it.
            (Verdict::Block | Verdict::Off, Verdict::Allow | Verdict::Observe | Verdict::Off) => Self::NewlyAllowed,
            (Verdict::Block | Verdict::Off, Verdict::Block) => Self::Refused,
            (Verdict::Allow | Verdict::Observe, _) if is_open(now) => Self::NoLongerReported,
            (Verdict::Allow | Verdict::Observe, Verdict::Allow | Verdict::Observe | Verdict::Off) => Self::LetThrough,
        }
    }
}

/// Attempts that are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    /// The agent.
    pub(crate) agent: String,
    /// The destination; absent for kinds of sockets.
    pub(crate) to: Option<Destination>,
    /// Verdict and reason in the event.
    pub(crate) then: (&'static str, &'static str),
    /// Verdict and reason under the draft.
    pub(crate) now: (&'static str, &'static str),
    /// The zone, gateway and service that would protect it.
    pub(crate) place: Place,
}

/// How many of them, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Attempts, repeats included.
    pub(crate) attempts: u64,
    /// Events.
    pub(crate) events: u64,
    /// The first, milliseconds since 1970.
    pub(crate) first_ms: i64,
    /// The last.
    pub(crate) last_ms: i64,
}

impl Tally {
    /// The tally of one event.
    #[must_use]
    pub(crate) const fn of(past: &PastAttempt<'_>) -> Self {
        let time_ms = past.event.time_ms;
        Self { attempts: past.attempts(), events: 1, first_ms: time_ms, last_ms: time_ms }
    }

    /// Adds another tally.
    pub(crate) fn add(&mut self, other: &Self) {
        self.attempts = self.attempts.saturating_add(other.attempts);
        self.events = self.events.saturating_add(other.events);
        self.first_ms = self.first_ms.min(other.first_ms);
        self.last_ms = self.last_ms.max(other.last_ms);
    }
}

/// The sum so far.
#[derive(Debug)]
pub(crate) struct Comparison<'a> {
    draft: Draft<'a>,
    rows: BTreeMap<(Change, Row), Tally>,
    undecided: BTreeMap<Undecided, u64>,
    hosts: BTreeSet<String>,
    /// Whether a rate rule refused some of them.
    tripped: bool,
    missing: u64,
    other: u64,
}

impl<'a> Comparison<'a> {
    /// Nothing yet.
    #[must_use]
    pub(crate) const fn new(draft: Draft<'a>) -> Self {
        Self { draft, rows: BTreeMap::new(), undecided: BTreeMap::new(), hosts: BTreeSet::new(), tripped: false, missing: 0, other: 0 }
    }

    /// Adds one event.
    ///
    /// # Errors
    /// What is wrong with it, or that the tables are too small, in words.
    pub(crate) fn take(&mut self, event: &Event) -> Result<(), String> {
        match Past::read(event)? {
            Past::Missing(count) => self.miss(count),
            Past::Other => self.other += 1,
            Past::Unlisted(_) => *self.undecided.entry(Undecided::Delegate).or_default() += 1,
            Past::Undecided(undecided) => *self.undecided.entry(undecided).or_default() += 1,
            Past::Attempt(past) => {
                self.hosts.insert(event.host.clone());
                match self.draft.decide(&past).map_err(|error: PolicyError| error.to_string())? {
                    Err(undecided) => *self.undecided.entry(undecided).or_default() += 1,
                    Ok(now) => self.count(&past, &now),
                }
            }
        }
        Ok(())
    }

    /// Adds to the number of missing events.
    pub(crate) fn miss(&mut self, count: u64) {
        self.missing = self.missing.saturating_add(count);
    }

    fn count(&mut self, past: &PastAttempt<'_>, now: &Decision) {
        let name = |id| self.draft.name(id).map(str::to_owned);
        let row = Row {
            agent: past.agent().to_owned(),
            to: past.attempt.destination,
            then: (past.verdict.name(), past.reason.name()),
            now: (now.verdict.name(), now.reason.name()),
            place: Place { zone: name(now.zone), gateway: name(now.gateway), service: name(now.service) },
        };
        let one = Tally::of(past);
        self.tripped |= Rule::of(past.reason).is_some();
        self.rows.entry((Change::of(past.verdict, now), row)).and_modify(|tally| tally.add(&one)).or_insert(one);
    }

    /// The attempts of one kind, in order.
    pub(crate) fn rows(&self, change: Change) -> impl Iterator<Item = (&Row, &Tally)> {
        self.rows.iter().filter(move |((found, _), _)| *found == change).map(|((_, row), tally)| (row, tally))
    }

    /// How many attempts of one kind, repeats included.
    #[must_use]
    pub(crate) fn attempts(&self, change: Change) -> u64 {
        self.rows(change).fold(0, |sum, (_, tally)| sum.saturating_add(tally.attempts))
    }

    /// The whole comparison.
    #[must_use]
    pub(crate) fn summary(&self) -> Summary {
        let rows = |change| self.rows(change).map(|(row, tally)| RowView::of(row, tally)).collect();
        Summary {
            newly_refused: rows(Change::NewlyRefused),
            newly_allowed: rows(Change::NewlyAllowed),
            no_longer_told: rows(Change::NoLongerReported),
            unchanged: Unchanged { refused: self.attempts(Change::Refused), let_through: self.attempts(Change::LetThrough) },
            not_judged: self
                .undecided
                .iter()
                .map(|(what, events)| UndecidedView { what: *what, events: *events, why: what.why() })
                .collect(),
            missing: self.missing,
            other: self.other,
            notes: self.notes(),
        }
    }

    /// What limits the comparison, one sentence each.
    #[must_use]
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = vec![
            "traffic that nothing protected made no event: what the draft would refuse of it is not here".to_owned(),
            "receipts are not read: what one allowed is judged as if one of the same login terms held, all else as if none did".to_owned(),
        ];
        if self.tripped {
            notes.push(
                "behaviour rules are judged by the number each event recorded; what a session would have done next is not known".to_owned(),
            );
        }
        if let Some(own) = &self.draft.config().host {
            let others: Vec<&str> = self.hosts.iter().filter(|host| *host != own).map(String::as_str).take(4).collect();
            if !others.is_empty() {
                notes.push(format!("events of {} are judged by the policy of {own}", others.join(", ")));
            }
        }
        if self.missing > 0 {
            notes.push(format!("{} missing: the attempts they would tell of are not here", counted(self.missing, "event")));
        }
        if self.rows.is_empty() {
            notes.push("no attempt was judged".to_owned());
        }
        notes
    }
}

/// The whole comparison, as `pp-agent policy check --against --json` writes it.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) newly_refused: Vec<RowView>,
    pub(crate) newly_allowed: Vec<RowView>,
    pub(crate) no_longer_told: Vec<RowView>,
    pub(crate) unchanged: Unchanged,
    pub(crate) not_judged: Vec<UndecidedView>,
    pub(crate) missing: u64,
    pub(crate) other: u64,
    pub(crate) notes: Vec<String>,
}

/// Attempts whose decision would not change.
#[derive(Debug, Serialize)]
pub(crate) struct Unchanged {
    pub(crate) refused: u64,
    pub(crate) let_through: u64,
}

/// Events that say too little to be decided.
#[derive(Debug, Serialize)]
pub(crate) struct UndecidedView {
    /// Why, by its name.
    pub(crate) what: Undecided,
    /// How many.
    pub(crate) events: u64,
    /// Why, in words.
    pub(crate) why: &'static str,
}

/// Attempts that are alike, with how many there are.
#[derive(Debug, Serialize)]
pub(crate) struct RowView {
    agent: String,
    then: DecisionView,
    now: DecisionView,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<Destination>,
    attempts: u64,
    events: u64,
    first: String,
    last: String,
}

#[derive(Debug, Default, Serialize)]
struct DecisionView {
    verdict: &'static str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
}

impl RowView {
    fn of(row: &Row, tally: &Tally) -> Self {
        let view = |(verdict, reason)| DecisionView { verdict, reason, ..DecisionView::default() };
        let Place { zone, gateway, service } = row.place.clone();
        Self {
            agent: row.agent.clone(),
            then: view(row.then),
            now: DecisionView { zone, gateway, service, ..view(row.now) },
            destination: row.to,
            attempts: tally.attempts,
            events: tally.events,
            first: rfc3339(tally.first_ms),
            last: rfc3339(tally.last_ms),
        }
    }
}
