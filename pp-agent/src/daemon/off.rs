//! Switching protection off and on. Only verdicts change: marks, tamper rules, counts and events go on, so that every process and flow of the
//! time between is known and judged once protection is on again.

use super::Daemon;
use super::reports::{self, MAX_REASON};
use super::writer::Writer;
use crate::api::{OffView, SwitchOff, Switched};
use crate::clock::{Now, rfc3339};
use crate::control::{ApiError, Caller};
use crate::events::{Body, ProtectionChange};
use crate::kernel::{KernelError, Off};
use crate::notify;
use pp_common::abi::MAX_OFF_REASON;

/// The longest time for which protection can be switched off with an end, in seconds.
const MAX_SECONDS: u64 = 24 * 3_600;

const _: () = assert!(MAX_REASON == MAX_OFF_REASON);

impl Daemon {
    /// Since when protection is off, until when, by whom and why; `None`: it is on.
    pub(super) fn off_view(&self) -> Option<OffView> {
        if !self.gate.is_off() {
            return None;
        }
        let now = Now::read();
        let note = self.gate.off_note().unwrap_or_else(|error| {
            tracing::error!("{error}");
            None
        });
        // Without a note, somebody else has written the deadline.
        Some(note.map_or_else(OffView::default, |off| view(&off, now)))
    }

    /// Switches protection off, for a time if the caller is not root.
    pub(super) fn switch_off(&self, caller: &Caller, asked: &SwitchOff) -> Result<Switched, ApiError> {
        let reason = reports::reason(&asked.reason)?.to_owned();
        let now = Now::read();
        let until_ns = end(caller.uid, asked.seconds, now)?;
        let off = Off { since_ns: now.boot_ns, until_ns, uid: caller.uid, reason };
        let view = view(&off, now);
        let words = view.words();
        self.rules.change(move |writer| -> Result<(), KernelError> {
            // The time before ends here, and is reported as such.
            writer.report_on()?;
            writer.gate.switch_off(&off)
        })?;
        tracing::warn!("protection is off {words}");
        self.reports.publish(self.reports.event(Body::Protection(ProtectionChange::Off)).detail(words));
        notify::status(&self.status_line());
        Ok(Switched { off: Some(view), was_off: false })
    }

    /// Switches protection on, and ends the flows that were opened meanwhile and that nothing allows.
    pub(super) fn switch_on(&self, caller: &Caller) -> Result<Switched, ApiError> {
        let by = reports::caller(caller);
        let was_off = self.rules.change(move |writer| -> Result<bool, KernelError> {
            let was_off = writer.gate.is_off();
            writer.gate.switch_on()?;
            if was_off {
                writer.reports.publish(writer.reports.event(Body::Protection(ProtectionChange::On)).detail(format!("by {by}")));
                writer.gate.forget_off()?;
            }
            Ok(was_off)
        })?;
        if was_off {
            self.is_on_again();
        }
        Ok(Switched { off: None, was_off })
    }

    /// Reports that protection is on again, if its time was over or if `pp-agent on` was run while no daemon did.
    pub(super) fn watch_off(&self) {
        let noted = self.gate.off_note();
        if matches!(noted, Ok(None)) || self.gate.is_off() {
            return;
        }
        match noted.and_then(|_| self.rules.change(Writer::report_on)) {
            Ok(true) => self.is_on_again(),
            Ok(false) => {}
            Err(error) => tracing::error!("{error}"),
        }
    }

    fn is_on_again(&self) {
        tracing::info!("protection is on again");
        notify::status(&self.status_line());
        self.end_flows();
    }
}

impl Writer {
    /// Reports that protection is on again, if it was off before and is not now. Returns whether it did.
    fn report_on(&mut self) -> Result<bool, KernelError> {
        let Some(off) = self.gate.off_note()?.filter(|_| !self.gate.is_off()) else { return Ok(false) };
        let (change, how) = if self.gate.was_switched_on()? {
            (ProtectionChange::On, "by pp-agent on, while no daemon ran".to_owned())
        } else {
            (ProtectionChange::Over, format!("its time is over; it was off {}", view(&off, Now::read()).words()))
        };
        self.reports.publish(self.reports.event(Body::Protection(change)).detail(how));
        self.gate.switch_on()?;
        self.gate.forget_off()?;
        Ok(true)
    }
}

/// When protection is on again by itself; `None`: never. Only root may ask for that.
fn end(uid: u32, seconds: Option<u64>, now: Now) -> Result<Option<u64>, ApiError> {
    match seconds {
        None if uid == 0 => Ok(None),
        None => Err(ApiError::NoRights("off: only root may switch protection off without an end; say for how long: --for 30m".to_owned())),
        Some(seconds @ 1..=MAX_SECONDS) => Ok(Some(now.boot_ns.saturating_add(seconds * 1_000_000_000))),
        Some(_) => Err(ApiError::bad_request(format!("off: at least 1 second and at most {} hours", MAX_SECONDS / 3_600))),
    }
}

fn view(off: &Off, now: Now) -> OffView {
    OffView {
        since: rfc3339(now.wall_of(off.since_ns)),
        until: off.until_ns.map(|until_ns| rfc3339(now.wall_of(until_ns))),
        by: reports::user(off.uid),
        reason: off.reason.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_switches_off_without_an_end_and_nobody_for_more_than_a_day() {
        let now = Now { boot_ns: 5, wall_ms: 0 };
        assert!(matches!(end(0, None, now), Ok(None)));
        assert!(matches!(end(1000, None, now), Err(ApiError::NoRights(_))));
        for uid in [0, 1000] {
            assert!(matches!(end(uid, Some(3), now), Ok(Some(3_000_000_005))));
            assert!(matches!(end(uid, Some(MAX_SECONDS), now), Ok(Some(_))));
            for seconds in [0, MAX_SECONDS + 1, u64::MAX] {
                assert!(matches!(end(uid, Some(seconds), now), Err(ApiError::BadRequest(_))), "{seconds}");
            }
        }
    }

    #[test]
    fn end_is_told_in_wall_time() {
        let off = Off { since_ns: 0, until_ns: Some(60_000_000_000), uid: 4_294_967_294, reason: "pump 3".to_owned() };
        let now = Now { boot_ns: 0, wall_ms: 0 };
        let words = view(&off, now).words();
        assert_eq!(words, "until 1970-01-01T00:01:00.000Z, since 1970-01-01T00:00:00.000Z, by uid 4294967294: pump 3");
        assert!(view(&Off { until_ns: None, ..off }, now).words().starts_with("until pp-agent on, since "));
    }
}
