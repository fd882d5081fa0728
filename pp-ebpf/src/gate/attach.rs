//! Guards the daemon's cgroup. No hook can refuse a move to another one: it is a number written to a file. A process of a session that moves
//! the daemon, to starve or to stop it, is killed, and the move is reported. The daemon then goes back.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use pp_common::{
    decide::Verdict,
    tamper::{GuardHook, Tamper},
};

use super::{
    guard::{Object, refuse_nameless},
    kernel::{offset, read},
    mark::{control, current},
    tasks::kill_current,
};

/// Runs in the process that moved another, after the move.
#[raw_tracepoint(tracepoint = "cgroup_attach_task")]
pub(crate) fn pp_attach(ctx: RawTracePointContext) -> i32 {
    let Some(task) = current() else { return 0 };
    let moved: u64 = ctx.arg(2);
    let daemon = control().daemon;
    if daemon == 0 {
        return 0;
    }
    let what = match read::<u32>(moved, offset!(task_tgid)) {
        Some(tgid) if tgid != daemon => return 0,
        Some(_) => Tamper::CgroupMove,
        None => Tamper::Unreadable,
    };
    kill_current();
    // What a tracepoint returns says nothing.
    let _refused: Verdict = refuse_nameless(task, GuardHook::Attach, what, Object { target_tgid: daemon, ..Object::NONE });
    0
}
