//! The highest wall time that was seen. No receipt is loaded or registered while the clock is behind it.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::clock::Now;

/// How far a good clock may be behind: two readings may be stored in either order, and time servers make small corrections.
const TOLERANCE_MS: i64 = 1_000;

/// The time in memory; it is written to disk from time to time.
#[derive(Debug)]
pub(super) struct HighestWall(AtomicI64);

impl HighestWall {
    pub(super) const fn new(wall_ms: i64) -> Self {
        Self(AtomicI64::new(wall_ms))
    }

    /// Whether the clock is behind what was seen before; notes it if not.
    pub(super) fn clock_is_behind(&self) -> bool {
        let wall_ms = Now::read().wall_ms;
        is_behind(wall_ms, self.note(wall_ms))
    }

    /// Notes a wall time. Returns the highest one before it.
    pub(super) fn note(&self, wall_ms: i64) -> i64 {
        self.0.fetch_max(wall_ms, Ordering::AcqRel)
    }

    /// Milliseconds since 1970.
    pub(super) fn ms(&self) -> i64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Whether a clock that says `wall_ms` was set back.
pub(super) const fn is_behind(wall_ms: i64, highest_ms: i64) -> bool {
    wall_ms.saturating_add(TOLERANCE_MS) < highest_ms
}
