//! Limits connections and simultaneous calls by standing, so that callers of one standing cannot block those of another.
//!
//! Agents, users and operators have separate seats. Within a standing, each session or user has a share. If no seat is left, the oldest
//! connection of the session or user with the most connections is closed, unless the daemon is answering it. So a slow or greedy peer only
//! harms itself, and a new connection is turned away only while every seat is in a call.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::ApiError;
use super::access::Standing;
use super::counters::ControlCounters;

/// The groups of callers with separate seats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Sessions, and callers that may belong to one.
    Agents,
    /// Users of this host.
    Users,
    /// Root and the operators' group.
    Operators,
}

impl Class {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 3] = [Self::Agents, Self::Users, Self::Operators];

    /// The class of a standing.
    #[must_use]
    pub(crate) const fn of(standing: Standing) -> Self {
        match standing {
            Standing::Agent(_) => Self::Agents,
            Standing::User(_) => Self::Users,
            Standing::Operator => Self::Operators,
        }
    }

    /// Its name in metrics and messages.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Agents => "agent",
            Self::Users => "user",
            Self::Operators => "operator",
        }
    }

    const fn bounds(self) -> Bounds {
        match self {
            Self::Agents => Bounds { seats: 64, share: 16, calls: 2 },
            Self::Users => Bounds { seats: 128, share: 16, calls: 4 },
            Self::Operators => Bounds { seats: 64, share: 64, calls: 16 },
        }
    }
}

struct Bounds {
    /// Most connections at once.
    seats: usize,
    /// Most connections of one session or user.
    share: usize,
    /// Most calls that the daemon works on at once.
    calls: usize,
}

/// How long a call may wait for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often to log that a standing has too few seats.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Session(u64),
    /// It is unknown whether it is an agent's.
    Unknown(u32),
    User(u32),
    Operator(u32),
}

impl Whose {
    const fn of(standing: Standing, uid: u32) -> Self {
        match standing {
            Standing::Agent(Some(session)) => Self::Session(session),
            Standing::Agent(None) => Self::Unknown(uid),
            Standing::User(uid) => Self::User(uid),
            Standing::Operator => Self::Operator(uid),
        }
    }
}

impl std::fmt::Display for Whose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Session(session) => write!(f, "session {}", crate::events::build::session_text(*session)),
            Self::Unknown(uid) => write!(f, "uid {uid}, whose mark cannot be read,"),
            Self::User(uid) | Self::Operator(uid) => write!(f, "uid {uid}"),
        }
    }
}

/// What a connection is doing. Connections with smaller numbers are closed first.
const WAITING: u8 = 0;
const STREAMING: u8 = 1;
const IN_CALL: u8 = 2;

/// All seats.
#[derive(Debug)]
pub(crate) struct Seats {
    rows: [Row; 3],
    next: AtomicU64,
}

#[derive(Debug)]
struct Row {
    taken: Mutex<Vec<Arc<Taken>>>,
    calls: Arc<Semaphore>,
    logged: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Taken {
    class: Class,
    whose: Whose,
    /// Grows with each connection.
    number: u64,
    stage: AtomicU8,
    closed: Notify,
}

impl Default for Seats {
    fn default() -> Self {
        let row =
            |class: Class| Row { taken: Mutex::default(), calls: Arc::new(Semaphore::new(class.bounds().calls)), logged: Mutex::default() };
        Self { rows: Class::ALL.map(row), next: AtomicU64::new(0) }
    }
}

impl Seats {
    fn row(&self, class: Class) -> &Row {
        &self.rows[class as usize]
    }

    /// Takes a seat for a connection of this standing and uid. `None`: no seat of its standing can be freed for it.
    pub(crate) fn take(self: &Arc<Self>, standing: Standing, uid: u32, counters: &ControlCounters) -> Option<Seat> {
        let whose = Whose::of(standing, uid);
        let class = Class::of(standing);
        let row = self.row(class);
        let mut taken = row.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = count(&taken, whose);
        let bounds = class.bounds();
        if taken.len() >= bounds.seats || own >= bounds.share {
            let Some(index) = least_needed(&taken, whose, own, own >= bounds.share) else {
                counters.turned_away(class);
                return None;
            };
            let closed = taken.swap_remove(index);
            closed.closed.notify_one();
            counters.closed_early(class);
            row.log(class, closed.whose);
        }
        counters.connection();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let seat = Arc::new(Taken { class, whose, number, stage: AtomicU8::new(WAITING), closed: Notify::new() });
        taken.push(Arc::clone(&seat));
        drop(taken);
        Some(Seat { seats: Arc::clone(self), taken: seat })
    }
}

impl Row {
    fn log(&self, class: Class, of: Whose) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            *logged = Some(Instant::now());
            tracing::warn!("control: {of} has too many connections for {} callers; its oldest are closed for new ones", class.name());
        }
    }
}

fn count(taken: &[Arc<Taken>], whose: Whose) -> usize {
    taken.iter().filter(|seat| seat.whose == whose).count()
}

/// The seat to free for a new connection of a caller with `own` seats: one of its own, or of a caller with more.
fn least_needed(taken: &[Arc<Taken>], whose: Whose, own: usize, only_own: bool) -> Option<usize> {
    let candidates = taken.iter().enumerate().filter_map(|(index, seat)| {
        let (stage, is_own) = (seat.stage.load(Ordering::Acquire), seat.whose == whose);
        if stage == IN_CALL || only_own && !is_own {
            return None;
        }
        let has = if is_own { own } else { count(taken, seat.whose) };
        (is_own || has > own).then_some((std::cmp::Reverse(has), stage, seat.number, index))
    });
    candidates.min().map(|(.., index)| index)
}

/// The seat of one connection. Dropping it frees the seat.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    taken: Arc<Taken>,
}

/// The right to have the daemon work on a call, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    taken: Arc<Taken>,
    /// What the connection was doing before.
    before: u8,
    _permit: OwnedSemaphorePermit,
}

impl Seat {
    /// Returns when the seat was given to another connection. This one must then be closed.
    pub(crate) async fn closed(&self) {
        self.taken.closed.notified().await;
    }

    /// Waits for a turn among those of the same standing.
    ///
    /// # Errors
    /// 503 `busy`: none came in time.
    pub(crate) async fn turn(&self) -> Result<Turn, ApiError> {
        let class = self.taken.class;
        tokio::time::timeout(TURN_TIMEOUT, self.any_turn()).await.ok().flatten().ok_or(ApiError::Busy(class))
    }

    /// Waits for a turn without a time limit; for streams.
    pub(crate) async fn any_turn(&self) -> Option<Turn> {
        let calls = Arc::clone(&self.seats.row(self.taken.class).calls);
        let permit = calls.acquire_owned().await.ok()?;
        let before = self.taken.stage.swap(IN_CALL, Ordering::AcqRel);
        Some(Turn { taken: Arc::clone(&self.taken), before, _permit: permit })
    }

    /// Marks the connection as a stream, which keeps its seat until another connection needs it.
    pub(crate) fn streams(&self) {
        self.taken.stage.store(STREAMING, Ordering::Release);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.taken.stage.store(self.before, Ordering::Release);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let row = self.seats.row(self.taken.class);
        row.taken.lock().unwrap_or_else(PoisonError::into_inner).retain(|seat| seat.number != self.taken.number);
    }
}

#[cfg(test)]
#[path = "seats_tests.rs"]
mod tests;
