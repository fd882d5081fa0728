//! Which events make room for new ones. Events are in several logs, and only make room within their own, so that traffic never pushes out a
//! decision.
//!
//! Within a log, whoever holds most makes room: the oldest event of the largest group of the largest share. In the log of traffic a share is
//! a user's, and a group is what one of the user's sessions made of one kind. So a session that makes very many events loses its own.
//!
//! The index of all this is in memory. It is made of the stored events when the file is opened, so it cannot differ from them for long.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::hash::{BuildHasher as _, Hash};
use std::ops::RangeInclusive;

use foldhash::fast::FixedState;

use super::tables::Table;
use crate::events::build::parse_session;
use crate::events::{Body, Event, Filter, Kind, ReceiptChange};

/// Events that only make room for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Log {
    /// What people and the daemon decided: receipts, revocations, policy, posture, releases.
    Decisions,
    /// What sessions tried on the gate.
    Tampering,
    /// Registrations that were refused. Anybody can cause them.
    NotRegistered,
    /// Everything else: what sessions did.
    Traffic,
}

impl Log {
    const ALL: [Self; 4] = [Self::Decisions, Self::Tampering, Self::NotRegistered, Self::Traffic];

    /// The table that has its events.
    pub(super) const fn table(self) -> Table {
        match self {
            Self::Decisions | Self::Tampering | Self::NotRegistered => Table::Decisions,
            Self::Traffic => Table::Events,
        }
    }
}

/// How many events each log keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rooms {
    /// Of [`Log::Decisions`] and of [`Log::Tampering`].
    pub(super) decisions: usize,
    /// Of [`Log::NotRegistered`].
    pub(super) not_registered: usize,
    /// Of [`Log::Traffic`].
    pub(super) traffic: usize,
}

impl Rooms {
    const fn of(&self, log: Log) -> usize {
        match log {
            Log::Decisions | Log::Tampering => self.decisions,
            Log::NotRegistered => self.not_registered,
            Log::Traffic => self.traffic,
        }
    }
}

/// Who makes room first: a user, or a kind of event that is no user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Share {
    owner: Option<u32>,
    kind: Option<Kind>,
}

/// What makes room first within a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    kind: Option<Kind>,
    session: Option<u64>,
    /// Distinguishes groups of one kind: by verdict, receipt, hook, owner, reason or code.
    part: u64,
}

/// The part of a session's attempts that were refused or would have been.
const REFUSED: u64 = 1;

/// The place of an event in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Its log.
    pub(super) log: Log,
    share: Share,
    group: Group,
}

impl Key {
    /// The place of an event. It only depends on what is stored of the event.
    pub(super) fn of(event: &Event) -> Self {
        let (owner, session) = (event.who.owner.as_ref().map(|owner| owner.uid), event.who.session);
        let kind = event.kind();
        let refused = if event.is_refusal() { REFUSED } else { 0 };
        // An event of a later version whose kind is known is in the log of its kind.
        match &event.body {
            _ if event.canary => Self::traffic(None, kind, None, 0),
            Body::Verdict(_) => Self::traffic(owner, kind, session, refused),
            Body::Tamper(attempt) => Self {
                log: Log::Tampering,
                share: Share { owner, kind: None },
                group: Group { kind, session, part: part(&attempt.reason.map(crate::events::Why::name)) },
            },
            Body::Receipt(_, ReceiptChange::Refused(code)) => {
                Self { log: Log::NotRegistered, share: Share { owner: None, kind }, group: Group { kind, session: None, part: part(code) } }
            }
            Body::Receipt(receipt, _) | Body::Revocation(receipt) => Self::decision(kind, part(receipt)),
            Body::Posture { hook, .. } => Self::decision(kind, part(hook)),
            Body::SessionEnd { released: true } => Self::decision(kind, part(&owner)),
            Body::Policy(_) | Body::Protection(_) => Self::decision(kind, 0),
            Body::Unknown if matches!(kind, Some(Kind::Posture | Kind::Policy | Kind::Protection)) => Self::decision(kind, 0),
            // A session makes one of each. The user's together are one group.
            Body::SessionStart(_) | Body::SessionEnd { released: false } => Self::traffic(owner, kind, None, 0),
            Body::FlowEnded(_) | Body::Exec(_) => Self::traffic(owner, kind, session, 0),
            Body::Unknown => Self::traffic(owner, kind, session, refused),
            Body::Lost(_) | Body::Neighbour { .. } => Self::traffic(None, kind, None, 0),
        }
    }

    /// The place of bytes that are no event of this layout.
    pub(super) const fn unreadable() -> Self {
        Self::traffic(None, None, None, 0)
    }

    const fn traffic(owner: Option<u32>, kind: Option<Kind>, session: Option<u64>, part: u64) -> Self {
        let share = match owner {
            Some(_) => Share { owner, kind: None },
            None => Share { owner, kind },
        };
        Self { log: Log::Traffic, share, group: Group { kind, session, part } }
    }

    const fn decision(kind: Option<Kind>, part: u64) -> Self {
        Self { log: Log::Decisions, share: Share { owner: None, kind }, group: Group { kind, session: None, part } }
    }
}

fn part(of: &impl Hash) -> u64 {
    FixedState::default().hash_one(of)
}

/// Whose events a caller may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// All.
    All,
    /// Those of a user's sessions, and those that are nobody's.
    User(u32),
    /// Those of a session.
    Session(u64),
    /// None.
    Nobody,
}

/// The groups that have the events a caller wants, and perhaps others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Select {
    owner: Option<u32>,
    session: Option<u64>,
    kind: Option<Kind>,
    /// No attempts that were allowed.
    refusals: bool,
}

impl Select {
    /// All groups.
    pub(super) const ALL: Self = Self { owner: None, session: None, kind: None, refusals: false };

    /// The groups that may have events that the filter wants and the caller may see; `None`: none does.
    pub(super) fn of(filter: &Filter, whose: Whose) -> Option<Self> {
        let wanted = filter.session.as_deref().and_then(parse_session);
        let (owner, session) = match whose {
            Whose::All => (None, wanted),
            Whose::User(uid) => (Some(uid), wanted),
            Whose::Session(session) => (None, Some(session)),
            Whose::Nobody => return None,
        };
        Some(Self { owner, session, kind: filter.kind.as_deref().and_then(Kind::of_name), refusals: filter.refusals })
    }

    fn takes_share(&self, share: Share) -> bool {
        self.owner.is_none_or(|uid| share.owner.is_none_or(|owner| owner == uid))
    }

    fn takes(&self, group: Group) -> bool {
        let is_allowed = group.kind == Some(Kind::Verdict) && group.part != REFUSED;
        !(self.refusals && is_allowed)
            && self.kind.is_none_or(|kind| group.kind == Some(kind))
            && self.session.is_none_or(|session| group.session.is_none_or(|of| of == session))
    }
}

/// All stored events by log, share and group.
#[derive(Debug)]
pub(super) struct Index {
    rooms: Rooms,
    logs: [Kept; Log::ALL.len()],
    /// Whether it named an event that is not stored.
    is_wrong: bool,
}

/// The events of a log.
#[derive(Debug, Default)]
struct Kept {
    len: usize,
    shares: BTreeMap<Share, Holding>,
    /// The shares by how many events they have.
    largest: BTreeSet<(usize, Share)>,
}

/// The events of a share.
#[derive(Debug, Default)]
struct Holding {
    len: usize,
    /// Ids in ascending order.
    groups: BTreeMap<Group, VecDeque<u64>>,
    /// The groups by how many events they have; of equal ones, that with the oldest is greatest.
    largest: BTreeSet<(usize, Reverse<u64>, Group)>,
}

impl Index {
    /// An index of no events.
    pub(super) fn new(rooms: Rooms) -> Self {
        Self { rooms, logs: Default::default(), is_wrong: false }
    }

    /// Adds a stored event. Ids must ascend within a group.
    pub(super) fn add(&mut self, key: Key, id: u64) {
        self.logs[key.log as usize].add(key.share, key.group, id);
    }

    /// Removes an event of this log from the index if the log has too many. Returns it.
    pub(super) fn make_room(&mut self, log: Log) -> Option<u64> {
        let kept = &mut self.logs[log as usize];
        if kept.len > self.rooms.of(log) { kept.remove_oldest() } else { None }
    }

    /// The newest ids of a selection from `first_id` on, newest first, at most `max`.
    pub(super) fn newest(&self, select: &Select, first_id: u64, max: usize) -> Vec<(u64, Log)> {
        let mut groups: Vec<_> = self.groups(select).map(|(log, ids)| (log, ids.iter().rev())).collect();
        let mut heads: BinaryHeap<(u64, usize)> = BinaryHeap::new();
        for (at, (_, ids)) in groups.iter_mut().enumerate() {
            heads.extend(ids.next().map(|id| (*id, at)));
        }
        let mut newest = Vec::new();
        while newest.len() < max
            && let Some((id, at)) = heads.pop()
            && id >= first_id
        {
            let (log, ids) = &mut groups[at];
            newest.push((id, *log));
            heads.extend(ids.next().map(|id| (*id, at)));
        }
        newest
    }

    /// The oldest ids of a selection within a range, oldest first, at most `max`.
    pub(super) fn oldest(&self, select: &Select, range: &RangeInclusive<u64>, max: usize) -> Vec<(u64, Log)> {
        let within = |ids: &VecDeque<u64>| ids.partition_point(|id| id < range.start());
        let mut groups: Vec<_> = self.groups(select).map(|(log, ids)| (log, ids.range(within(ids)..))).collect();
        let mut heads: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
        for (at, (_, ids)) in groups.iter_mut().enumerate() {
            heads.extend(ids.next().map(|id| Reverse((*id, at))));
        }
        let mut oldest = Vec::new();
        while oldest.len() < max
            && let Some(Reverse((id, at))) = heads.pop()
            && id <= *range.end()
        {
            let (log, ids) = &mut groups[at];
            oldest.push((id, *log));
            heads.extend(ids.next().map(|id| Reverse((*id, at))));
        }
        oldest
    }

    /// The groups of a selection, with the ids of each in ascending order.
    fn groups<'a>(&'a self, select: &'a Select) -> impl Iterator<Item = (Log, &'a VecDeque<u64>)> {
        self.logs.iter().zip(Log::ALL).flat_map(move |(kept, log)| {
            let shares = kept.shares.iter().filter(move |(share, _)| select.takes_share(**share));
            let taken = shares.flat_map(move |(_, holding)| holding.groups.iter().filter(move |(group, _)| select.takes(**group)));
            taken.map(move |(_, ids)| (log, ids))
        })
    }

    /// Notes that the index named an event that is not stored, so that it is made anew.
    pub(super) fn doubt(&mut self) {
        self.is_wrong = true;
    }

    /// Whether it must be made anew.
    pub(super) const fn is_wrong(&self) -> bool {
        self.is_wrong
    }
}

impl Kept {
    fn add(&mut self, share: Share, group: Group, id: u64) {
        let holding = self.shares.entry(share).or_default();
        self.largest.remove(&(holding.len, share));
        holding.add(group, id);
        self.largest.insert((holding.len, share));
        self.len += 1;
    }

    fn remove_oldest(&mut self) -> Option<u64> {
        let (_, share) = self.largest.pop_last()?;
        let holding = self.shares.get_mut(&share)?;
        let removed = holding.remove_oldest();
        if holding.len == 0 {
            self.shares.remove(&share);
        } else {
            self.largest.insert((holding.len, share));
        }
        self.len -= 1;
        removed
    }
}

impl Holding {
    fn add(&mut self, group: Group, id: u64) {
        let ids = self.groups.entry(group).or_default();
        if let Some(oldest) = ids.front() {
            self.largest.remove(&(ids.len(), Reverse(*oldest), group));
        }
        ids.push_back(id);
        self.largest.insert((ids.len(), Reverse(ids[0]), group));
        self.len += 1;
    }

    fn remove_oldest(&mut self) -> Option<u64> {
        let (_, _, group) = self.largest.pop_last()?;
        let ids = self.groups.get_mut(&group)?;
        let removed = ids.pop_front();
        match ids.front() {
            Some(oldest) => drop(self.largest.insert((ids.len(), Reverse(*oldest), group))),
            None => drop(self.groups.remove(&group)),
        }
        self.len -= 1;
        removed
    }
}

#[cfg(test)]
#[path = "shares_tests.rs"]
mod tests;
