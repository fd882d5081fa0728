//! Exec: an unmarked process that becomes an agent is marked before its first
//! instruction; a marked one is reported, its mark stays as it is.

use aya_ebpf::{
    helpers::{
        bpf_get_current_uid_gid, bpf_get_prandom_u32,
        generated::{bpf_probe_read_kernel_str, bpf_probe_read_user},
    },
    macros::raw_tracepoint,
    maps::ring_buf::RingBufEntry,
    programs::RawTracePointContext,
};
use pp_common::{
    abi::{Counter, EXEC_PATH_LEN, TASK_ROOT, TaskMark},
    decide::Verdict,
    record::{EXEC_RECORD_ARGV, EXEC_RECORD_PATH, ExecRecord, RecordHeader, kind},
    tools::{TOOL_ARGV_LEN, TOOL_OFF, TOOL_REFUSE},
    trouble::Trouble,
};

use super::{
    event::{begin_lifecycle, begin_verdict, count, count_refusal, now_ns},
    identity::{Match, identify},
    kernel::{current_task, offset, read, start_ns},
    log::{Program, program, warn},
    maps::{EXEC_INPUT, ExecInput, TASKS},
    mark::{current, current_tgid, off},
    pids::enter,
    tasks::{FIRST_MARK, insert, kill_current, task_record},
    tools::tool_rule,
};

const PROGRAM: &Program = program!(pp_exec);

/// Runs once an exec can no longer fail, before the program's first instruction.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn pp_exec(ctx: RawTracePointContext) -> i32 {
    let bprm: u64 = ctx.arg(2);
    let Some(input) = EXEC_INPUT.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own element; a tracepoint program does not nest in itself.
    let input = unsafe { &mut *input };
    gather(bprm, input);
    let marked = match current() {
        Some(mark) => Some(mark),
        None => match identify(input, input.argv_len as usize) {
            Some(found) => begin(&found, input),
            None => None,
        },
    };
    if let Some(mark) = marked {
        enforce_tool_rules(mark, input);
    }
    0
}

/// Tells what a session runs, and ends what its rules refuse before the first instruction.
#[inline(always)]
fn enforce_tool_rules(mark: &TaskMark, input: &ExecInput) {
    // VERIFIER: lengths and flags lie in the map, so that nothing is known of them here, and the
    // walk is followed once for both ways to get here.
    let code = tool_rule(input, input.argv_len as usize, input.cut != 0);
    let code = if code & TOOL_REFUSE != 0 && off() != 0 { code ^ (TOOL_REFUSE | TOOL_OFF) } else { code };
    if code & TOOL_REFUSE != 0 {
        let refusal = count_refusal(Verdict::Block, mark.flags);
        match begin_verdict::<ExecRecord>(refusal) {
            Some(entry) => fill(entry, kind::TOOL, mark, input, u32::from(code)),
            None => {
                warn(PROGRAM, Trouble::EventsFull);
                count(if refusal { Counter::LostRefusals } else { Counter::LostRecords });
            }
        }
        kill_current();
    } else if code != 0 {
        exec_record(kind::TOOL, mark, input, u32::from(code));
    } else if input.begun == 0 {
        exec_record(kind::EXEC, mark, input, 0);
    }
}

/// Begins a session with the running process; `None`: there is no room, and it ends.
#[inline(always)]
fn begin(found: &Match, input: &mut ExecInput) -> Option<&'static TaskMark> {
    let tgid = current_tgid();
    // SAFETY: no arguments.
    let (high, low) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
    let now = now_ns();
    let mark = TaskMark {
        // Never zero: zero means none.
        session: (u64::from(high) << 32) | u64::from(low) | 1,
        agent: found.agent,
        // Zero is filled in by the first hook that sees the process.
        start_ns: start_ns(current_task()).unwrap_or_default(),
        session_start_ns: now,
        owner: bpf_get_current_uid_gid() as u32,
        flags: TASK_ROOT,
    };
    enter(tgid);
    if TASKS.insert(tgid, &mark, FIRST_MARK).is_ok() || insert(PROGRAM, tgid, &mark) {
        input.begun = 1;
        exec_record(kind::SESSION_START, &mark, input, found.rule);
        // SAFETY: a map value, readable while this program runs.
        TASKS.get_ptr(tgid).map(|mark| unsafe { &*mark })
    } else {
        task_record(PROGRAM, kind::TABLE_FULL, &mark, tgid, 0);
        kill_current();
        None
    }
}

/// Reads the path given to `execve`, and the arguments.
#[inline(always)]
fn gather(bprm: u64, input: &mut ExecInput) {
    let path_len = match read::<u64>(bprm, offset!(bprm_filename)) {
        // SAFETY: a buffer of that size; the helper checks the kernel address.
        Some(filename) => unsafe { bpf_probe_read_kernel_str(input.path.as_mut_ptr().cast(), EXEC_PATH_LEN as u32, filename as *const _) },
        None => -1,
    };
    if path_len <= 0 {
        count(Counter::ReadErrors);
        input.path[0] = 0;
    }
    input.begun = 0;
    // What cannot be read is arguments that were not seen.
    input.cut = 1;
    let argv_len = match argv(current_task()) {
        Some((start, whole)) => {
            let most = TOOL_ARGV_LEN as u64 - 1;
            let len = if whole > most { most } else { whole };
            // VERIFIER: the bound must be seen on the register that is passed.
            let len = (len as u32) & (TOOL_ARGV_LEN as u32 - 1);
            // SAFETY: at most the buffer's size; the helper checks the user address.
            let read = unsafe { bpf_probe_read_user(input.argv.as_mut_ptr().cast(), len, start as *const _) };
            if read == 0 {
                input.cut = u32::from(whole > most);
                len as usize
            } else {
                count(Counter::ReadErrors);
                0
            }
        }
        None => 0,
    };
    // The byte after the last argument, which ends the automaton's input.
    input.argv[argv_len & (TOOL_ARGV_LEN - 1)] = 0;
    input.argv_len = argv_len as u64;
    let path_len = if path_len > 0 { path_len as u64 - 1 } else { 0 };
    input.path_len = path_len & (EXEC_PATH_LEN as u64 - 1);
}

/// Where the argument vector is, and its length.
#[inline(always)]
fn argv(task: u64) -> Option<(u64, u64)> {
    let mm: u64 = read(task, offset!(task_mm))?;
    let start: u64 = read(mm, offset!(mm_arg_start))?;
    let end: u64 = read(mm, offset!(mm_arg_end))?;
    Some((start, end.wrapping_sub(start)))
}

#[inline(always)]
fn exec_record(kind: u32, mark: &TaskMark, input: &ExecInput, rule: u32) {
    if let Some(entry) = begin_lifecycle::<ExecRecord>(PROGRAM) {
        fill(entry, kind, mark, input, rule);
    }
}

#[inline(always)]
fn fill(mut entry: RingBufEntry<ExecRecord>, kind: u32, mark: &TaskMark, input: &ExecInput, rule: u32) {
    let parent = read::<u64>(current_task(), offset!(task_real_parent)).and_then(|parent| read::<u32>(parent, offset!(task_tgid)));
    let record = entry.as_mut_ptr();
    // SAFETY: reserved memory of this size; every member is written before it is submitted.
    unsafe {
        (*record).header = RecordHeader {
            kind,
            flags: mark.flags,
            time_ns: now_ns(),
            session: mark.session,
            agent: mark.agent,
            owner: mark.owner,
            tgid: current_tgid(),
        };
        (*record).parent_tgid = parent.unwrap_or_default();
        // VERIFIER: not cut to what the record holds: a comparison here would make the two loops
        // over the input multiply.
        (*record).path_len = input.path_len as u32;
        (*record).argv_len = input.argv_len as u32;
        (*record).rule = rule;
        let path = (&raw mut (*record).path).cast::<u64>();
        let from = input.path.as_ptr().cast::<u64>();
        for i in 0..EXEC_RECORD_PATH / 8 {
            path.add(i).write_volatile(from.add(i).read_volatile());
        }
        let argv = (&raw mut (*record).argv).cast::<u64>();
        let from = input.argv.as_ptr().cast::<u64>();
        for i in 0..EXEC_RECORD_ARGV / 8 {
            argv.add(i).write_volatile(from.add(i).read_volatile());
        }
    }
    entry.submit(0);
}
