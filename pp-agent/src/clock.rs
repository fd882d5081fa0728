//! The two clocks: boot time, which the kernel uses for deadlines, and wall time, which receipts and people use.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo, Timestamp};
use nix::time::{ClockId, clock_gettime};

/// Nanoseconds in a millisecond.
pub(crate) const NS_PER_MS: u64 = 1_000_000;

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub(crate) boot_ns: u64,
    /// Wall time, milliseconds since 1970.
    pub(crate) wall_ms: i64,
}

impl Now {
    /// Reads both.
    #[must_use]
    pub(crate) fn read() -> Self {
        let boot_ns = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
            let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
            seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
        });
        Self { boot_ns, wall_ms: Timestamp::now().as_millisecond() }
    }

    /// Wall minus boot time in milliseconds: a jump in it is a clock step.
    #[must_use]
    pub(crate) fn offset_ms(&self) -> i64 {
        self.wall_ms - ms(self.boot_ns)
    }

    /// The wall time of an instant of this boot.
    #[must_use]
    pub(crate) fn wall_of(&self, boot_ns: u64) -> i64 {
        self.offset_ms().saturating_add(ms(boot_ns))
    }

    /// The boot time of a wall instant; zero if it is before this boot.
    #[must_use]
    pub(crate) fn boot_of(&self, wall_ms: i64) -> u64 {
        let ahead_ms = wall_ms.saturating_sub(self.wall_ms);
        let distance_ns = ahead_ms.unsigned_abs().saturating_mul(NS_PER_MS);
        if ahead_ms >= 0 { self.boot_ns.saturating_add(distance_ns) } else { self.boot_ns.saturating_sub(distance_ns) }
    }
}

fn ms(boot_ns: u64) -> i64 {
    i64::try_from(boot_ns / NS_PER_MS).unwrap_or(i64::MAX)
}

/// RFC 3339 with milliseconds, UTC: `2026-11-22T08:00:00.000Z`.
#[must_use]
pub(crate) fn rfc3339(wall_ms: i64) -> String {
    let time = Timestamp::from_millisecond(wall_ms).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{time:.3}")
}

/// The milliseconds of an RFC 3339 instant.
#[must_use]
pub(crate) fn parse_rfc3339(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(|time| time.as_millisecond())
}

/// A duration in jiff's friendly format: `90s`, `1h 30m`, `1d`. A day has 24 hours.
#[must_use]
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let span: Span = text.parse().ok()?;
    span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?.try_into().ok()
}

/// Identifies this boot of the kernel; empty if `/proc` does not have it.
#[must_use]
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_convert_there_and_back() {
        let now = Now { boot_ns: 5_000 * NS_PER_MS, wall_ms: 1_000_000 };
        assert_eq!(now.boot_of(1_002_000), 7_000 * NS_PER_MS);
        assert_eq!(now.boot_of(0), 0);
        assert_eq!(now.wall_of(7_000 * NS_PER_MS), 1_002_000);
    }

    #[test]
    fn lengths_of_time_are_read_in_every_form_of_jiff() {
        for (text, seconds) in
            [("90s", 90), ("30m", 1_800), ("1h 30m", 5_400), ("1h30m", 5_400), ("1d", 86_400), ("8784h", 31_622_400), ("PT1H", 3_600)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse_duration("1500ms"), Some(Duration::from_millis(1_500)));
        for bad in ["", "h", "45", "-1h", "1h ago", "1 month", "99999999999999999999d"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_are_written_with_milliseconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(parse_rfc3339("1970-01-01T00:00:01.500Z"), Some(1_500));
    }
}
