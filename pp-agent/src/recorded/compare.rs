//! What a draft would change: each attempt that events tell of, then and now, summed up.

use std::collections::{BTreeMap, BTreeSet};

use pp_common::behaviour::Rule;
use pp_common::decide::{Decision, Verdict};
use serde::Serialize;

use super::counted;
use super::draft::{Draft, is_open};
use super::told::{Blind, Then, Told};
use crate::clock::rfc3339;
use crate::events::{Destination, Event, Place};
use crate::policy::PolicyError;

/// What would become of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Change {
    /// It went through, and would be refused.
    NewlyRefused,
    /// It was refused, and would go through.
    NewlyAllowed,
    /// It went through, and would do so without an event.
    NoLongerTold,
    /// It was refused, and would be.
    Refused,
    /// It went through with an event, and would do so.
    LetThrough,
}

impl Change {
    fn of(then: Verdict, now: &Decision) -> Self {
        match (then, now.verdict) {
            (Verdict::Allow | Verdict::Observe, Verdict::Block) => Self::NewlyRefused,
            (Verdict::Block, Verdict::Allow | Verdict::Observe) => Self::NewlyAllowed,
            (Verdict::Block, Verdict::Block) => Self::Refused,
            (Verdict::Allow | Verdict::Observe, Verdict::Allow | Verdict::Observe) if is_open(now) => Self::NoLongerTold,
            (Verdict::Allow | Verdict::Observe, Verdict::Allow | Verdict::Observe) => Self::LetThrough,
        }
    }
}

/// Attempts that are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    /// The agent.
    pub(crate) agent: String,
    /// Where to; absent for kinds of sockets.
    pub(crate) to: Option<Destination>,
    /// Verdict and reason of then.
    pub(crate) then: (&'static str, &'static str),
    /// Verdict and reason of now.
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
    /// One event's.
    #[must_use]
    pub(crate) const fn of(told: &Told<'_>) -> Self {
        let time_ms = told.event.time_ms;
        Self { attempts: told.attempts(), events: 1, first_ms: time_ms, last_ms: time_ms }
    }

    /// Takes in another.
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
    blind: BTreeMap<Blind, u64>,
    hosts: BTreeSet<String>,
    /// A behaviour rule refused some of them.
    tripped: bool,
    missing: u64,
    other: u64,
}

impl<'a> Comparison<'a> {
    /// Nothing yet.
    #[must_use]
    pub(crate) const fn new(draft: Draft<'a>) -> Self {
        Self { draft, rows: BTreeMap::new(), blind: BTreeMap::new(), hosts: BTreeSet::new(), tripped: false, missing: 0, other: 0 }
    }

    /// Takes in one event.
    ///
    /// # Errors
    /// What is wrong with it, or that the tables are too small, in words.
    pub(crate) fn take(&mut self, event: &Event) -> Result<(), String> {
        match Then::read(event)? {
            Then::Missing(count) => self.miss(count),
            Then::Other => self.other += 1,
            Then::Blind(blind) => *self.blind.entry(blind).or_default() += 1,
            Then::Attempt(told) => {
                self.hosts.insert(event.host.clone());
                match self.draft.judge(&told).map_err(|error: PolicyError| error.to_string())? {
                    Err(blind) => *self.blind.entry(blind).or_default() += 1,
                    Ok(now) => self.count(&told, &now),
                }
            }
        }
        Ok(())
    }

    /// So many events are missing.
    pub(crate) fn miss(&mut self, count: u64) {
        self.missing = self.missing.saturating_add(count);
    }

    fn count(&mut self, told: &Told<'_>, now: &Decision) {
        let name = |id| self.draft.name(id).map(str::to_owned);
        let row = Row {
            agent: told.agent().to_owned(),
            to: told.attempt.destination,
            then: (told.verdict.name(), told.reason.name()),
            now: (now.verdict.name(), now.reason.name()),
            place: Place { zone: name(now.zone), gateway: name(now.gateway), service: name(now.service) },
        };
        let one = Tally::of(told);
        self.tripped |= Rule::of(told.reason).is_some();
        self.rows.entry((Change::of(told.verdict, now), row)).and_modify(|tally| tally.add(&one)).or_insert(one);
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

    /// Everything.
    #[must_use]
    pub(crate) fn summary(&self) -> Summary {
        let rows = |change| self.rows(change).map(|(row, tally)| RowView::of(row, tally)).collect();
        Summary {
            newly_refused: rows(Change::NewlyRefused),
            newly_allowed: rows(Change::NewlyAllowed),
            no_longer_told: rows(Change::NoLongerTold),
            unchanged: Unchanged { refused: self.attempts(Change::Refused), let_through: self.attempts(Change::LetThrough) },
            not_judged: self.blind.iter().map(|(what, events)| NotJudged { what: *what, events: *events, why: what.why() }).collect(),
            missing: self.missing,
            other: self.other,
            notes: self.notes(),
        }
    }

    /// What the sum does not say, one sentence each.
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

/// Everything, as `pp-agent policy check --against --json` writes it.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) newly_refused: Vec<RowView>,
    pub(crate) newly_allowed: Vec<RowView>,
    pub(crate) no_longer_told: Vec<RowView>,
    pub(crate) unchanged: Unchanged,
    pub(crate) not_judged: Vec<NotJudged>,
    pub(crate) missing: u64,
    pub(crate) other: u64,
    pub(crate) notes: Vec<String>,
}

/// Attempts that stay as they were.
#[derive(Debug, Serialize)]
pub(crate) struct Unchanged {
    pub(crate) refused: u64,
    pub(crate) let_through: u64,
}

/// Events that say too little to be judged.
#[derive(Debug, Serialize)]
pub(crate) struct NotJudged {
    /// Why, by its name.
    pub(crate) what: Blind,
    /// How many.
    pub(crate) events: u64,
    /// Why, in words.
    pub(crate) why: &'static str,
}

/// Attempts that are alike, with how many there are.
#[derive(Debug, Serialize)]
pub(crate) struct RowView {
    agent: String,
    then: Judgement,
    now: Judgement,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<Destination>,
    attempts: u64,
    events: u64,
    first: String,
    last: String,
}

#[derive(Debug, Default, Serialize)]
struct Judgement {
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
        let judgement = |(verdict, reason)| Judgement { verdict, reason, ..Judgement::default() };
        let Place { zone, gateway, service } = row.place.clone();
        Self {
            agent: row.agent.clone(),
            then: judgement(row.then),
            now: Judgement { zone, gateway, service, ..judgement(row.now) },
            destination: row.to,
            attempts: tally.attempts,
            events: tally.events,
            first: rfc3339(tally.first_ms),
            last: rfc3339(tally.last_ms),
        }
    }
}
