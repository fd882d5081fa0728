//! What LSM hooks begin and end with: what others have answered, whose call it is, and what a verdict is called there.

use core::hint::black_box;

use pp_common::{abi::TaskMark, decide::Verdict};

use super::mark::current;

const EPERM: i32 = 1;

/// What a hook answers that runs after others: their refusal stands, and for a session's process `enforce` decides.
#[inline(always)]
pub(crate) fn for_session_after(earlier: i32, enforce: impl FnOnce(&'static TaskMark) -> Verdict) -> i32 {
    if earlier != 0 {
        return earlier;
    }
    for_session(enforce)
}

/// What a hook answers: 0, unless its caller is a session's process and `enforce` refuses.
#[inline(always)]
pub(crate) fn for_session(enforce: impl FnOnce(&'static TaskMark) -> Verdict) -> i32 {
    match current() {
        Some(task) => lsm_return(enforce(task)),
        None => 0,
    }
}

/// What LSM hooks return for a verdict.
#[inline(always)]
fn lsm_return(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Allow | Verdict::Observe | Verdict::Off => 0,
        // VERIFIER: "R0 has unknown scalar value should have been in [-4095, 0]" where the compiler negates a flag.
        Verdict::Block => black_box(-EPERM),
    }
}
