//! Which of the kernel's records are accounted for: read, and stored or told as lost. What a daemon had read and not stored when it was
//! killed is found out by the next one, from the kernel's own count.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After this the smallest number that was seen is taken for the true one.
const SETTLE: Duration = Duration::from_secs(2);

/// Counts the records of one boot, beginning where the last daemon left off.
#[derive(Debug)]
pub(crate) struct Tally {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Records accounted for before this daemon; `None` where nobody has counted yet.
    before: Option<u64>,
    /// Records that this daemon read.
    read: u64,
    /// How many were read before this daemon, at most, and how many of this daemon's were handled by then.
    least: Option<(u64, u64)>,
    settled: bool,
    /// When the ring buffer was first seen empty.
    since: Option<Instant>,
    /// Accounted for, the last of them without an event: not stored yet.
    silent: Option<u64>,
}

/// What a daemon before this one took with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    /// How many records.
    pub(crate) count: u64,
    /// How many are accounted for once that is told.
    pub(crate) accounted: u64,
}

impl Tally {
    /// Begins after the records that are accounted for.
    #[must_use]
    pub(crate) fn new(before: Option<u64>) -> Self {
        Self { inner: Mutex::new(Inner { before, read: 0, least: None, settled: false, since: None, silent: None }) }
    }

    /// One more was read. Returns how many are accounted for once it is stored; `None` while that is not known.
    pub(crate) fn read(&self) -> Option<u64> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.read += 1;
        let read = inner.read;
        inner.before.map(|before| before.saturating_add(read))
    }

    /// The ring buffer is empty; `written` says how many records the kernel has begun to write by then, asked only where it matters.
    ///
    /// RACE: one that is begun and not there yet makes the number too great, never too small.
    pub(crate) fn idle(&self, now: Instant, written: impl FnOnce() -> Option<u64>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.settled {
            return;
        }
        if let Some(before) = written().map(|written| written.saturating_sub(inner.read)) {
            let least = inner.least.map_or(before, |(least, _)| least.min(before));
            inner.least = Some((least, inner.read));
            inner.since.get_or_insert(now);
        }
    }

    /// So many are accounted for, and the last made no event.
    pub(crate) fn silent(&self, accounted: u64) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).silent = Some(accounted);
    }

    /// What [`Tally::silent`] said last, once: one number for however many records, so that they take no room from events.
    pub(crate) fn take_silent(&self) -> Option<u64> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).silent.take()
    }

    /// Once it is known: the records that were read before this daemon and are not accounted for. Says it once.
    pub(crate) fn lost(&self, now: Instant) -> Option<Loss> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = inner.since.is_some_and(|since| now.duration_since(since) >= SETTLE);
        let (least, handled) = inner.least.filter(|_| is_time && !inner.settled)?;
        inner.settled = true;
        let count = inner.before.map(|before| least.saturating_sub(before)).filter(|count| *count > 0);
        inner.before = Some(least);
        count.map(|count| Loss { count, accounted: least.saturating_add(handled) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later(start: Instant) -> Instant {
        start + SETTLE
    }

    #[test]
    fn what_was_read_and_not_stored_is_lost_and_told_once() {
        let start = Instant::now();
        let tally = Tally::new(Some(10));
        // Of 17 that the kernel wrote this daemon reads 3: 14 were read before, of which 10 are accounted for.
        (0..3).for_each(|_| assert!(tally.read().is_some()));
        tally.idle(start, || Some(17));
        assert_eq!(tally.lost(start), None);
        assert_eq!(tally.lost(later(start)), Some(Loss { count: 4, accounted: 17 }));
        assert_eq!(tally.lost(later(start)), None);
        assert_eq!(tally.read(), Some(18));
    }

    #[test]
    fn record_on_its_way_is_not_lost() {
        let start = Instant::now();
        let tally = Tally::new(Some(10));
        // However late it is that the ring buffer is first seen empty.
        tally.idle(later(start), || Some(11));
        assert_eq!(tally.lost(later(start)), None);
        assert_eq!(tally.read(), Some(11));
        tally.idle(later(start), || Some(11));
        assert_eq!(tally.lost(later(later(start))), None);
        assert_eq!(tally.read(), Some(12));
    }

    #[test]
    fn nothing_is_numbered_or_told_where_nobody_counted_before() {
        let start = Instant::now();
        let tally = Tally::new(None);
        assert_eq!(tally.read(), None);
        tally.idle(start, || Some(900));
        assert_eq!(tally.lost(later(start)), None);
        assert_eq!(tally.read(), Some(901));
        tally.idle(start, || panic!("it is known by now"));
    }

    #[test]
    fn records_without_events_are_stored_as_one_number() {
        let tally = Tally::new(Some(0));
        (0..3).for_each(|_| tally.silent(tally.read().expect("it is known")));
        assert_eq!((tally.take_silent(), tally.take_silent()), (Some(3), None));
    }
}
