//! The reading ends of the two ring buffers: of verdicts, and of the life of processes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};
use tokio::sync::Notify;

use super::KernelError;

/// Records of the kernel programs, in the order of their times.
pub(crate) struct Records {
    verdicts: AsyncFd<RingBuf<MapData>>,
    lifecycle: AsyncFd<RingBuf<MapData>>,
    waiting: Waiting,
}

impl Records {
    pub(super) fn new(verdicts: RingBuf<MapData>, lifecycle: RingBuf<MapData>) -> Result<Self, KernelError> {
        Ok(Self { verdicts: watched(verdicts)?, lifecycle: watched(lifecycle)?, waiting: Waiting::default() })
    }

    /// The next record. If both buffers are empty, it answers `reader`, calls `idle`, and waits.
    pub(crate) async fn next(&mut self, reader: &Reader, mut idle: impl FnMut()) -> Vec<u8> {
        loop {
            // RACE: read before the buffers are looked at, so that an answer is about a look after the question.
            let asked = reader.asked.load(Ordering::Acquire);
            let (verdicts, lifecycle) = (self.verdicts.get_mut(), self.lifecycle.get_mut());
            let take = |ring: &mut RingBuf<MapData>| ring.next().map(|record| record.to_vec());
            if let Some(record) = self.waiting.next(|| take(verdicts), || take(lifecycle)) {
                return record;
            }
            reader.answered.store(asked, Ordering::Release);
            idle();
            let ready = tokio::select! {
                ready = self.verdicts.readable_mut() => ready.map(|mut ready| ready.clear_ready()),
                ready = self.lifecycle.readable_mut() => ready.map(|mut ready| ready.clear_ready()),
                () = reader.wake.notified() => Ok(()),
            };
            if let Err(error) = ready {
                tracing::error!("ring buffer: {error}");
                std::future::pending::<()>().await;
            }
        }
    }
}

fn watched(ring: RingBuf<MapData>) -> Result<AsyncFd<RingBuf<MapData>>, KernelError> {
    // SAFETY: the ring owns its descriptor for as long as it lives, and it is only dropped
    // with the `AsyncFd` around it.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(|error| KernelError::io("ring buffer")(error.into()))
}

/// Asks the task that reads the records whether none is left.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    asked: AtomicU64,
    answered: AtomicU64,
    wake: Notify,
}

impl Reader {
    /// Waits until the buffers were seen empty and every earlier record was handled. `false`: not in this time. Blocking.
    #[must_use]
    pub(crate) fn is_done(&self, within: Duration) -> bool {
        const LOOK_EVERY: Duration = Duration::from_millis(2);
        let question = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let until = Instant::now() + within;
        self.wake.notify_one();
        while self.answered.load(Ordering::Acquire) < question {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        true
    }
}

/// How many records of one buffer may come before a waiting, younger record of the other.
const IN_A_ROW: u32 = 64;
/// How many verdicts without an empty buffer are a backlog. From then on every second record is a verdict.
const BACKLOG: u32 = 256;

/// The oldest record of each buffer. They are returned by time. So the start of a session comes before its first verdict, and the end of a
/// process after its last. But a storm in one buffer delays no record of the other for long.
#[derive(Debug, Default)]
struct Waiting {
    verdict: Option<Vec<u8>>,
    lifecycle: Option<Vec<u8>>,
    /// Verdicts returned while a record of the other buffer waited.
    verdicts_in_a_row: u32,
    /// Records of processes returned while a verdict waited.
    lifecycle_in_a_row: u32,
    /// Verdicts since their buffer was last seen empty.
    backlog: u32,
}

impl Waiting {
    fn next(&mut self, mut verdicts: impl FnMut() -> Option<Vec<u8>>, mut lifecycle: impl FnMut() -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        self.verdict = self.verdict.take().or_else(&mut verdicts);
        self.lifecycle = self.lifecycle.take().or_else(&mut lifecycle);
        // RACE: a verdict that is older than the other record may have come after the first look.
        self.verdict = self.verdict.take().or_else(&mut verdicts);
        self.backlog = if self.verdict.is_some() { self.backlog.saturating_add(1) } else { 0 };
        let verdict_first = match (&self.verdict, &self.lifecycle) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(verdict), Some(lifecycle)) => {
                let most = if self.backlog > BACKLOG { 1 } else { IN_A_ROW };
                let by_time = time_ns(verdict) < time_ns(lifecycle);
                if by_time { self.verdicts_in_a_row < IN_A_ROW } else { self.lifecycle_in_a_row >= most }
            }
        };
        if verdict_first {
            self.lifecycle_in_a_row = 0;
            self.verdicts_in_a_row = if self.lifecycle.is_some() { self.verdicts_in_a_row + 1 } else { 0 };
            self.verdict.take()
        } else {
            self.verdicts_in_a_row = 0;
            self.lifecycle_in_a_row = if self.verdict.is_some() { self.lifecycle_in_a_row + 1 } else { 0 };
            self.lifecycle.take()
        }
    }
}

/// When a record was written; zero for bytes that are no record.
fn time_ns(record: &[u8]) -> u64 {
    const AT: usize = std::mem::offset_of!(pp_common::record::RecordHeader, time_ns);
    record.get(AT..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const VERDICT: u32 = 1;
    const FORK: u32 = 4;

    fn record(kind: u32, time_ns: u64) -> Vec<u8> {
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(time_ns.to_ne_bytes());
        bytes
    }

    fn kind(record: &[u8]) -> u32 {
        u32::from_ne_bytes(*record.first_chunk().unwrap())
    }

    fn drain(verdicts: &mut VecDeque<Vec<u8>>, lifecycle: &mut VecDeque<Vec<u8>>, most: usize) -> Vec<(u32, u64)> {
        let mut waiting = Waiting::default();
        let mut next = || waiting.next(|| verdicts.pop_front(), || lifecycle.pop_front());
        std::iter::from_fn(&mut next).take(most).map(|record| (kind(&record), time_ns(&record))).collect()
    }

    #[test]
    fn records_of_both_buffers_come_in_the_order_of_their_times() {
        let mut verdicts: VecDeque<_> = [2, 3, 7].map(|time| record(VERDICT, time)).into();
        let mut lifecycle: VecDeque<_> = [1, 5, 9].map(|time| record(FORK, time)).into();
        let taken = drain(&mut verdicts, &mut lifecycle, usize::MAX);
        assert_eq!(taken, [(FORK, 1), (VERDICT, 2), (VERDICT, 3), (FORK, 5), (VERDICT, 7), (FORK, 9)]);
    }

    #[test]
    fn verdict_that_came_between_the_looks_goes_first() {
        let mut waiting = Waiting::default();
        let mut late = vec![Some(record(VERDICT, 1)), None];
        let first = waiting.next(|| late.pop().flatten(), || Some(record(FORK, 2)));
        assert_eq!(first.map(|first| kind(&first)), Some(VERDICT));
    }

    #[test]
    fn storm_of_forks_gives_verdicts_half_of_the_reader() {
        let mut verdicts: VecDeque<_> = (0..10_000).map(|time| record(VERDICT, 1_000_000 + time)).collect();
        let mut lifecycle: VecDeque<_> = (0..100_000).map(|time| record(FORK, time)).collect();
        let taken = drain(&mut verdicts, &mut lifecycle, 22_000);
        let verdicts = taken.iter().filter(|(kind, _)| *kind == VERDICT).count();
        // Fewer than half, since it takes a while to detect the backlog.
        assert!(verdicts > 2_000, "{verdicts}");
        let first = taken.iter().position(|(kind, _)| *kind == VERDICT).unwrap();
        assert!(first <= IN_A_ROW as usize + 1, "{first}");
    }

    #[test]
    fn storm_of_verdicts_lets_no_process_wait_for_long() {
        let mut verdicts: VecDeque<_> = (0..10_000).map(|time| record(VERDICT, time)).collect();
        let mut lifecycle: VecDeque<_> = (0..10).map(|time| record(FORK, 1_000_000 + time)).collect();
        let taken = drain(&mut verdicts, &mut lifecycle, 11 * (IN_A_ROW as usize + 1));
        assert_eq!(taken.iter().filter(|(kind, _)| *kind == FORK).count(), 10);
    }
}
