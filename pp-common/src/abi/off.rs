//! Protection that is switched off for a time: its deadline, and who did it.

use super::CONTROL_OFF;

/// In `OFF`: protection is off until somebody switches it on.
pub const OFF_UNTIL_ON: u64 = i64::MAX as u64;

/// [`CONTROL_OFF`] if protection is off at this instant, by the deadline in `OFF`; zero otherwise. Both are boot time in nanoseconds. A
/// deadline beyond [`OFF_UNTIL_ON`] is none: protection stays on.
///
/// VERIFIER: without a branch.
#[must_use]
#[inline(always)]
pub const fn off_flag(deadline_ns: u64, now_ns: u64) -> u32 {
    let before = now_ns.wrapping_sub(deadline_ns) & !deadline_ns;
    ((before >> 63) as u32) * CONTROL_OFF
}

/// Most bytes of the reason for switching protection off.
pub const MAX_OFF_REASON: usize = 200;

/// Who switched protection off, when and why.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffNote {
    /// When, boot time. Zero: nobody did, or its end has been reported.
    pub since_ns: u64,
    /// The deadline, as in `OFF` at the time.
    pub until_ns: u64,
    /// The uid of whoever did it.
    pub uid: u32,
    /// Bytes of `reason` that are used.
    pub reason_len: u32,
    /// The reason, UTF-8.
    pub reason: [u8; MAX_OFF_REASON],
}

const _: () = assert!(size_of::<OffNote>() == 2 * 8 + 2 * 4 + MAX_OFF_REASON);
