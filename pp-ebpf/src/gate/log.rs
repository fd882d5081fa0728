//! Lines for the daemon's log: what goes wrong in a program, at most one of a kind in [`TROUBLE_EVERY_NS`], and, while the daemon logs at debug,
//! each attempt and packet that is blocked. A line that finds no room is lost, and changes nothing else.

use core::{arch::asm, hint::cold_path};

use pp_common::{
    abi::CONTROL_LOG,
    decide::{Attempt, Decision},
    line::{Blocked, Warning, WarningProgram},
    trouble::{TROUBLE_EVERY_NS, Trouble},
};

use super::{
    event::{Scene, now_ns},
    maps::{AYA_LOGS, WARNED},
    mark::control,
};

/// A program's lines, by which it is named in the log.
pub(crate) struct Program {
    warning: WarningProgram,
    blocked: Blocked,
}

impl Program {
    pub(crate) const fn new(name: &str) -> Self {
        Self { warning: WarningProgram::new(name), blocked: Blocked::new(name) }
    }
}

/// `program!(name)`: the program of this name.
macro_rules! program {
    ($name:ident) => {
        &const { $crate::gate::log::Program::new(stringify!($name)) }
    };
}
pub(crate) use program;

/// Writes a line about this, unless there was one of its kind a moment ago.
#[inline(always)]
pub(crate) fn warn(program: &'static Program, trouble: Trouble) {
    cold_path();
    let Some(last_ns) = WARNED.get_ptr_mut(trouble as u32) else { return };
    let now = now_ns();
    // SAFETY: a map value, one word. RACE: programs that run at the same time may each write the line.
    if now < unsafe { last_ns.read_volatile() }.wrapping_add(TROUBLE_EVERY_NS) {
        return;
    }
    if let Some(mut entry) = AYA_LOGS.reserve_untyped::<Warning>(0) {
        // SAFETY: as above, and reserved memory of this size.
        unsafe {
            last_ns.write_volatile(now);
            Warning::write(entry.as_mut_ptr(), &program.warning, opaque(trouble));
        }
        entry.submit(0);
    }
}

/// The code, which the compiler no longer knows.
///
/// VERIFIER: the bound must be in the program, whatever the compiler knows. `black_box` goes by way of the stack, and `pp_egress` takes
/// 120,000 instructions more.
#[inline(always)]
fn opaque(trouble: Trouble) -> usize {
    let mut code = trouble as usize;
    // SAFETY: moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) code, options(pure, nomem, nostack)) };
    code
}

/// Writes a line about an attempt or a packet that is blocked, where the daemon wants them.
#[inline(always)]
pub(crate) fn blocked(scene: &Scene<'_>, attempt: &Attempt, decision: &Decision) {
    if control().flags & CONTROL_LOG == 0 {
        return;
    }
    cold_path();
    if let Some(mut entry) = AYA_LOGS.reserve_untyped::<Blocked>(0) {
        // SAFETY: reserved memory of this size.
        unsafe { scene.program.blocked.write(entry.as_mut_ptr(), attempt, scene.subject, scene.tgid, decision.reason) };
        entry.submit(0);
    }
}
