//! Protection that is off: what would be refused goes through, and says so.

use super::*;
use crate::abi::{OFF_UNTIL_ON, off_flag};

#[test]
fn while_protection_is_off_every_refusal_goes_through_and_keeps_its_reason() {
    let mut tables = Memory { flags: CONTROL_OFF, ..plant() }.with(terms(1), PLC, (500, 510));
    let off = |attempt| (Verdict::Off, plant().judge(attempt).reason, plant().judge(attempt).zone);
    for attempt in [tcp([10, 20, 4, 8], 502), tcp([10, 20, 4, 9], 443), tcp([192, 0, 2, 1], 502), tcp([10, 20, 9, 1], 80)] {
        let decision = tables.judge(attempt);
        assert_eq!((decision.verdict, decision.reason, decision.zone), off(attempt));
    }
    // What is allowed anyway stays allowed, by its receipt, and what nothing protects makes no event.
    let allowed = tables.judge(tcp(PLC, 502));
    assert_eq!((allowed.verdict, allowed.reason), (Verdict::Allow, Reason::Receipt));
    assert_eq!(tables.judge(tcp([192, 0, 2, 9], 443)), Decision::PASS);
    assert_eq!(allowed.exhausted().verdict, Verdict::Off);
    assert_eq!(allowed.cut(Reason::TurnsExhausted).verdict, Verdict::Off);
    assert_eq!(Decision::PASS.by_rule(Reason::ScanHosts, CONTROL_OFF).verdict, Verdict::Off);
    // A flow of which a packet was refused before does not go on.
    assert_eq!(allowed.over().verdict, Verdict::Block);
    // It is what explains that something went through, also where policy observes.
    tables.flags = CONTROL_OFF | CONTROL_OBSERVE;
    assert_eq!(tables.judge(tcp([10, 20, 4, 8], 502)).verdict, Verdict::Off);
}

#[test]
fn protection_is_off_before_the_deadline_alone() {
    const LATE: u64 = 100 * 365 * 86_400 * 1_000_000_000;
    for now in [1, 5_000, LATE] {
        assert_eq!(off_flag(0, now), 0);
        assert_eq!(off_flag(now, now), 0, "at the deadline it is on");
        assert_eq!(off_flag(now - 1, now), 0);
        assert_eq!(off_flag(now + 1, now), CONTROL_OFF);
        assert_eq!(off_flag(OFF_UNTIL_ON, now), CONTROL_OFF);
        // What nobody writes there keeps protection on.
        for damaged in [OFF_UNTIL_ON + 1, OFF_UNTIL_ON + 2 + now, u64::MAX - now, u64::MAX] {
            assert_eq!(off_flag(damaged, now), 0, "{damaged}");
        }
    }
}
