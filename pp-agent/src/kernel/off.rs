//! Protection switched off and on. One word in a pinned map is the deadline that the programs compare with the clock, so that it passes
//! without a daemon, too. A note beside it has who did it and why.

use std::path::Path;

use aya::maps::{Array, Map, MapData};
use pp_common::abi::{CONTROL_OFF, MAX_OFF_REASON, OFF_UNTIL_ON, OffNote, off_flag};
use pp_common::maps::OFF;

use super::{Gate, KernelError, maps::Locked, maps::Maps, pinned};
use crate::os::host;

/// Since when protection is off, until when, by whom and why. Times are boot time in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Off {
    pub(crate) since_ns: u64,
    /// `None`: until somebody switches it on.
    pub(crate) until_ns: Option<u64>,
    pub(crate) uid: u32,
    pub(crate) reason: String,
}

impl Off {
    fn of(note: &OffNote) -> Self {
        let length = usize::try_from(note.reason_len).unwrap_or(MAX_OFF_REASON).min(MAX_OFF_REASON);
        Self {
            since_ns: note.since_ns,
            until_ns: (note.until_ns < OFF_UNTIL_ON).then_some(note.until_ns),
            uid: note.uid,
            reason: String::from_utf8_lossy(note.reason.get(..length).unwrap_or_default()).into_owned(),
        }
    }

    fn note(&self) -> OffNote {
        let mut reason = [0; MAX_OFF_REASON];
        let mut length = 0;
        for (to, from) in reason.iter_mut().zip(self.reason.bytes()) {
            *to = from;
            length += 1;
        }
        // Zero would say that nobody did.
        OffNote { since_ns: self.since_ns.max(1), until_ns: self.deadline_ns(), uid: self.uid, reason_len: length, reason }
    }

    fn deadline_ns(&self) -> u64 {
        self.until_ns.unwrap_or(OFF_UNTIL_ON).min(OFF_UNTIL_ON)
    }
}

/// `CONTROL_OFF` while protection is off. What cannot be read keeps it on, as in the programs.
pub(super) fn flag(maps: &Maps) -> u32 {
    let (Ok(deadline_ns), Ok(now_ns)) = (maps.off.get(0), host::boot_ns()) else { return 0 };
    off_flag(deadline_ns, now_ns)
}

impl Gate {
    /// Whether protection is off at this instant.
    #[must_use]
    pub(crate) fn is_off(&self) -> bool {
        flag(&self.maps) & CONTROL_OFF != 0
    }

    /// What is noted of the last time that protection was switched off; `None`: nothing, or its end is reported.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn off_note(&self) -> Result<Option<Off>, KernelError> {
        let note = self.maps.off_note.get(0)?;
        Ok((note.since_ns != 0).then(|| Off::of(&note)))
    }

    /// Switches protection off. Only the owner of what is in force calls it, as the others below.
    ///
    /// # Errors
    /// A map cannot be written. Protection is then on.
    pub(crate) fn switch_off(&self, off: &Off) -> Result<(), KernelError> {
        self.maps.off_note.set(0, off.note())?;
        self.maps.off.set(0, off.deadline_ns())
    }

    /// Switches protection on.
    ///
    /// # Errors
    /// The map cannot be written.
    pub(crate) fn switch_on(&self) -> Result<(), KernelError> {
        self.maps.off.set(0, 0)
    }

    /// Whether somebody switched protection on, or nobody switched it off; `false`: its time is over, or not yet.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn was_switched_on(&self) -> Result<bool, KernelError> {
        Ok(self.maps.off.get(0)? == 0)
    }

    /// Removes the note, once the end is reported.
    ///
    /// # Errors
    /// The map cannot be written.
    pub(crate) fn forget_off(&self) -> Result<(), KernelError> {
        self.maps.off_note.set(0, OffNote { since_ns: 0, until_ns: 0, uid: 0, reason_len: 0, reason: [0; MAX_OFF_REASON] })
    }
}

/// Switches protection on without a daemon. Returns whether it was off.
///
/// # Errors
/// Nothing is pinned there, or the map cannot be written.
pub(crate) fn switch_on_pinned(bpffs: &Path) -> Result<bool, KernelError> {
    let off: Locked<Array<MapData, u64>> = pinned::open(bpffs, &OFF, Map::Array)?;
    let now_ns = host::boot_ns().map_err(KernelError::io("the clock"))?;
    let was_off = off_flag(off.get(0)?, now_ns) != 0;
    off.set(0, 0)?;
    Ok(was_off)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_says_what_was_noted() {
        let reasons = ["pump 3 has to go on", "é".repeat(MAX_OFF_REASON / 2).as_str(), ""].map(str::to_owned);
        for (reason, until_ns) in reasons.into_iter().zip([Some(77), None, Some(OFF_UNTIL_ON - 1)]) {
            let off = Off { since_ns: 5, until_ns, uid: 1000, reason };
            assert_eq!(Off::of(&off.note()), off);
        }
        let endless = Off { since_ns: 5, until_ns: None, uid: 0, reason: String::new() };
        assert_eq!(off_flag(endless.deadline_ns(), 6), CONTROL_OFF);
    }

    #[test]
    fn damaged_note_is_read_within_its_bounds() {
        let note = OffNote { since_ns: 1, until_ns: u64::MAX, uid: 1, reason_len: u32::MAX, reason: [0xff; MAX_OFF_REASON] };
        let off = Off::of(&note);
        assert!(off.until_ns.is_none() && off.reason.chars().count() == MAX_OFF_REASON);
    }
}
