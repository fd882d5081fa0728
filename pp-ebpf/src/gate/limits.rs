//! What keeps the daemon from running without a signal: limits that end it, priorities and processors that starve it, memory moved from
//! under it.
//!
//! `task_prlimit` is not among these hooks: it knows users and no process, and everything that changes a limit passes `task_setrlimit` next.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use pp_common::{
    abi::TaskMark,
    decide::Verdict,
    protect::{GuardHook, limits},
};

use super::{
    guard::{Object, refuse_nameless},
    hook::for_session_after,
    kernel::{offset, read},
    mark::{control, mark_of},
    protect::unreadable,
};

/// Refuses `prlimit(2)` on the daemon.
#[lsm(hook = "task_setrlimit")]
pub(crate) fn pp_lsm_setrlimit(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(3), |task| limited(task, GuardHook::Rlimit, ctx.arg(0), ctx.arg(1)))
}

/// Refuses `setpriority(2)` on the daemon.
#[lsm(hook = "task_setnice")]
pub(crate) fn pp_lsm_setnice(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(2), |task| limited(task, GuardHook::Nice, ctx.arg(0), ctx.arg(1)))
}

/// Refuses `ioprio_set(2)` on the daemon.
#[lsm(hook = "task_setioprio")]
pub(crate) fn pp_lsm_setioprio(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(2), |task| limited(task, GuardHook::Ioprio, ctx.arg(0), ctx.arg(1)))
}

/// Refuses `sched_setscheduler(2)`, `sched_setattr(2)` and `sched_setaffinity(2)` on the daemon.
#[lsm(hook = "task_setscheduler")]
pub(crate) fn pp_lsm_setscheduler(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(1), |task| limited(task, GuardHook::Scheduler, ctx.arg(0), 0))
}

/// Refuses `migrate_pages(2)` and `move_pages(2)` on the daemon.
#[lsm(hook = "task_movememory")]
pub(crate) fn pp_lsm_movememory(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(1), |task| limited(task, GuardHook::MoveMemory, ctx.arg(0), 0))
}

/// `target` is one of its process's threads, `number` what the call names.
#[inline(always)]
fn limited(task: &TaskMark, hook: GuardHook, target: u64, number: u32) -> Verdict {
    let Some(tgid) = read::<u32>(target, offset!(task_tgid)) else { return unreadable(task, hook) };
    let daemon = control().daemon;
    match limits(daemon != 0 && tgid == daemon, mark_of(target).is_some()) {
        Some(what) => refuse_nameless(task, hook, what, Object { target_tgid: tgid, ..Object::number(number) }),
        None => Verdict::Allow,
    }
}
