//! Counts which of the kernel's records are accounted for: read, and stored or reported as lost. If a daemon is killed, the next one finds
//! what it had read but not stored, from the kernel's own count.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After this time, the smallest number that was seen counts as the true one.
const DECIDE_AFTER: Duration = Duration::from_secs(2);

/// Counts the records of one boot, across daemons.
#[derive(Debug)]
pub(crate) struct Tally {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Records accounted for before this daemon; `None` if that is unknown.
    before: Option<u64>,
    /// Records that this daemon read.
    read: u64,
    /// The smallest number seen of records that were read before this daemon, and how many this daemon had read by then.
    least: Option<(u64, u64)>,
    /// Whether that number counts as the true one.
    decided: bool,
    /// When the ring buffer was first seen empty.
    since: Option<Instant>,
    /// How many records are accounted for, if the last made no event and the number is not stored yet.
    silent: Option<u64>,
}

/// The records that an earlier daemon lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    /// How many records.
    pub(crate) count: u64,
    /// How many records are accounted for once that is reported.
    pub(crate) accounted: u64,
}

impl Tally {
    /// Starts after the records that are accounted for.
    #[must_use]
    pub(crate) fn new(before: Option<u64>) -> Self {
        Self { inner: Mutex::new(Inner { before, read: 0, least: None, decided: false, since: None, silent: None }) }
    }

    /// Counts one more record. Returns how many are accounted for once it is stored; `None` while that is unknown.
    pub(crate) fn read(&self) -> Option<u64> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.read += 1;
        let read = inner.read;
        inner.before.map(|before| before.saturating_add(read))
    }

    /// Called when the ring buffer is empty. `written` returns how many records the kernel has reserved; it is called only if needed.
    ///
    /// RACE: a record that is reserved but not submitted makes the number too large, never too small.
    pub(crate) fn idle(&self, now: Instant, written: impl FnOnce() -> Option<u64>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.decided {
            return;
        }
        if let Some(before) = written().map(|written| written.saturating_sub(inner.read)) {
            let least = inner.least.map_or(before, |(least, _)| least.min(before));
            inner.least = Some((least, inner.read));
            inner.since.get_or_insert(now);
        }
    }

    /// Sets how many records are accounted for, when the last made no event.
    pub(crate) fn silent(&self, accounted: u64) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).silent = Some(accounted);
    }

    /// Takes the number of the last [`Tally::silent`]: one number for many records, so that they use no room for events.
    pub(crate) fn take_silent(&self) -> Option<u64> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).silent.take()
    }

    /// The records that an earlier daemon read but did not account for. Returned once, when it is known.
    pub(crate) fn lost(&self, now: Instant) -> Option<Loss> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = inner.since.is_some_and(|since| now.duration_since(since) >= DECIDE_AFTER);
        let (least, handled) = inner.least.filter(|_| is_time && !inner.decided)?;
        inner.decided = true;
        let count = inner.before.map(|before| least.saturating_sub(before)).filter(|count| *count > 0);
        inner.before = Some(least);
        count.map(|count| Loss { count, accounted: least.saturating_add(handled) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later(start: Instant) -> Instant {
        start + DECIDE_AFTER
    }

    #[test]
    fn what_was_read_and_not_stored_is_lost_and_reported_once() {
        let start = Instant::now();
        let tally = Tally::new(Some(10));
        // The kernel wrote 17 and this daemon read 3, so 14 were read before. Of those, 10 are accounted for.
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
        // Even if the ring buffer is first seen empty after a long time.
        tally.idle(later(start), || Some(11));
        assert_eq!(tally.lost(later(start)), None);
        assert_eq!(tally.read(), Some(11));
        tally.idle(later(start), || Some(11));
        assert_eq!(tally.lost(later(later(start))), None);
        assert_eq!(tally.read(), Some(12));
    }

    #[test]
    fn nothing_is_numbered_or_reported_without_an_earlier_count() {
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
