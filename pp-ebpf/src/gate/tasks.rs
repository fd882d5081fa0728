//! Descent: a child has its parent's mark before it can run, and a process
//! loses its mark when its last thread ends.

use aya_ebpf::{EbpfContext as _, helpers::bpf_send_signal, macros::raw_tracepoint, programs::RawTracePointContext};
use pp_common::{
    abi::{Counter, TASK_ROOT, TaskMark},
    record::{RecordHeader, TaskRecord, kind},
    trouble::Trouble,
};

use super::{
    event::{NEW_ONLY, begin_lifecycle, count, now_ns},
    kernel::{offset, read, start_ns},
    log::{Program, program, warn},
    maps::{CONTROL, DOOMED, TASKS},
    mark::{current, current_tgid},
    pids::{enter, leave, may_be_marked},
};

pub(crate) const SIGKILL: u32 = 9;

/// Marks the child of a marked process. It runs in the parent, before the child can.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub(crate) fn pp_fork(ctx: RawTracePointContext) -> i32 {
    const PROGRAM: &Program = program!(pp_fork);
    let Some(parent) = current() else { return 0 };
    let child: u64 = ctx.arg(1);
    let _ = ctx.as_ptr();
    let (Some(tgid), Some(start)) = (read::<u32>(child, offset!(task_tgid)), start_ns(child)) else {
        count(Counter::ReadErrors);
        warn(PROGRAM, Trouble::Unreadable);
        kill_current();
        return 0;
    };
    if tgid == current_tgid() {
        return 0;
    }
    let mark = TaskMark { start_ns: start, flags: parent.flags & !TASK_ROOT, ..*parent };
    if insert(PROGRAM, tgid, &mark) {
        task_record(PROGRAM, kind::FORK, &mark, tgid, current_tgid());
    } else {
        let kept = DOOMED.insert(tgid, &mark, 0);
        // RACE: the daemon may have cleared the word since `insert`, and looked before there was this entry (`Maps::keep_overflow`).
        set_overflow();
        if kept.is_err() {
            count(Counter::TaskTableFull);
            warn(PROGRAM, Trouble::DoomedFull);
        }
        task_record(PROGRAM, kind::TABLE_FULL, &mark, tgid, current_tgid());
        kill_current();
    }
    0
}

/// Removes the mark of a process whose last thread ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn pp_exit(ctx: RawTracePointContext) -> i32 {
    let tgid = current_tgid();
    if !may_be_marked(tgid) {
        return 0;
    }
    match threads_left(ctx.arg(0)) {
        Some(0) => remove_mark(tgid),
        // Other threads go on.
        Some(_) => {}
        // The mark stays; its start time tells the next process of this pid apart.
        None => {
            count(Counter::ReadErrors);
            warn(program!(pp_exit), Trouble::Unreadable);
        }
    }
    0
}

/// Removes what is known of a process that has ended.
#[inline(always)]
fn remove_mark(tgid: u32) {
    if let Some(found) = TASKS.get_ptr(tgid) {
        // SAFETY: a map value, copied before it is removed.
        let mark = unsafe { *found };
        if TASKS.remove(tgid).is_err() {
            count(Counter::ReadErrors);
        }
        task_record(program!(pp_exit), kind::EXIT, &mark, tgid, 0);
    } else if DOOMED.get_ptr(tgid).is_some() && DOOMED.remove(tgid).is_err() {
        count(Counter::ReadErrors);
    }
    leave(tgid);
}

/// How many threads of an ending task's process go on.
#[inline(always)]
fn threads_left(task: u64) -> Option<i32> {
    read::<u64>(task, offset!(task_signal)).and_then(|signal| read(signal, offset!(signal_live)))
}

/// Enters a mark; `false` when there is no room, which from then on makes hooks look at ancestors.
#[inline(always)]
pub(crate) fn insert(program: &'static Program, tgid: u32, mark: &TaskMark) -> bool {
    enter(tgid);
    // An entry of this tgid can only be a stale one of a process that has ended.
    if TASKS.insert(tgid, mark, 0).is_ok() {
        return true;
    }
    set_overflow();
    count(Counter::TaskTableFull);
    warn(program, Trouble::TasksFull);
    false
}

/// Has every hook look for marks beside the task table: in [`DOOMED`] and among ancestors.
#[inline(always)]
fn set_overflow() {
    if let Some(control) = CONTROL.get_ptr_mut(0) {
        // SAFETY: the one entry of the control map; one word. Volatile, since it is written twice on purpose.
        unsafe { (&raw mut (*control).overflow).write_volatile(1) };
    }
}

/// Ends the running process before it goes on.
#[inline(always)]
pub(crate) fn kill_current() {
    // SAFETY: plain numbers.
    if unsafe { bpf_send_signal(SIGKILL) } != 0 {
        count(Counter::ReadErrors);
    }
}

#[inline(always)]
pub(crate) fn task_record(program: &'static Program, kind: u32, mark: &TaskMark, tgid: u32, parent_tgid: u32) {
    let Some(mut entry) = begin_lifecycle::<TaskRecord>(program) else { return };
    entry.write(TaskRecord {
        header: RecordHeader {
            kind,
            flags: mark.flags,
            time_ns: now_ns(),
            session: mark.session,
            agent: mark.agent,
            owner: mark.owner,
            tgid,
        },
        parent_tgid,
        pad: 0,
    });
    entry.submit(0);
}

/// `NEW_ONLY` re-exported where a mark must not replace another.
pub(crate) const FIRST_MARK: u64 = NEW_ONLY;
