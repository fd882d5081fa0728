//! Which of the kernel's records are accounted for: read, and stored or told as lost. What a daemon had read and not stored when it was
//! killed is found out by the next one, from the kernel's own count.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After this the smallest number that was seen is taken for the true one.
const SETTLE: Duration = Duration::from_secs(2);

/// Counts the records of one boot, beginning where the last daemon left off.
#[derive(Debug)]
pub struct Tally {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Records accounted for before this daemon; `None` where nobody has counted yet.
    before: Option<u64>,
    /// Records that this daemon read.
    read: u64,
    /// How many were read before this daemon, at most.
    least: Option<u64>,
    settled: bool,
    since: Instant,
}

impl Tally {
    /// Begins after the records that are accounted for.
    #[must_use]
    pub fn new(before: Option<u64>, now: Instant) -> Self {
        Self { inner: Mutex::new(Inner { before, read: 0, least: None, settled: false, since: now }) }
    }

    /// One more was read. Returns how many are accounted for once it is stored; `None` while that is not known.
    pub fn read(&self) -> Option<u64> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.read += 1;
        let read = inner.read;
        inner.before.map(|before| before.saturating_add(read))
    }

    /// The ring buffer is empty; `written` says how many records the kernel has begun to write by then, asked only where it matters.
    ///
    /// RACE: one that is begun and not there yet makes the number too great, never too small.
    pub fn idle(&self, written: impl FnOnce() -> Option<u64>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.settled {
            return;
        }
        if let Some(before) = written().map(|written| written.saturating_sub(inner.read)) {
            inner.least = Some(inner.least.map_or(before, |least| least.min(before)));
        }
    }

    /// Once it is known: how many records were read before this daemon and are not accounted for. Says it once.
    pub fn lost(&self, now: Instant) -> Option<u64> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let least = inner.least.filter(|_| !inner.settled && now.duration_since(inner.since) >= SETTLE)?;
        inner.settled = true;
        let lost = inner.before.map(|before| least.saturating_sub(before));
        inner.before = Some(least);
        lost.filter(|lost| *lost > 0)
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
        let tally = Tally::new(Some(10), start);
        // Of 17 that the kernel wrote this daemon reads 3: 14 were read before, of which 10 are accounted for.
        (0..3).for_each(|_| assert!(tally.read().is_some()));
        tally.idle(|| Some(17));
        assert_eq!(tally.lost(start), None);
        assert_eq!(tally.lost(later(start)), Some(4));
        assert_eq!(tally.lost(later(start)), None);
        assert_eq!(tally.read(), Some(18));
    }

    #[test]
    fn record_on_its_way_is_not_lost() {
        let start = Instant::now();
        let tally = Tally::new(Some(10), start);
        tally.idle(|| Some(11));
        assert_eq!(tally.read(), Some(11));
        tally.idle(|| Some(11));
        assert_eq!(tally.lost(later(start)), None);
        assert_eq!(tally.read(), Some(12));
    }

    #[test]
    fn nothing_is_numbered_or_told_where_nobody_counted_before() {
        let start = Instant::now();
        let tally = Tally::new(None, start);
        assert_eq!(tally.read(), None);
        tally.idle(|| Some(900));
        assert_eq!(tally.lost(later(start)), None);
        assert_eq!(tally.read(), Some(901));
        tally.idle(|| panic!("it is known by now"));
    }
}
