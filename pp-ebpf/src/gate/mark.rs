//! Whose doing is it: the mark of the running process and of a socket.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    btf_maps::lpm_trie::Key,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_sk_storage_get},
};
use pp_common::{
    abi::{Control, Counter, PREFIX_HEAD_BITS, PrefixKey, SOCK_CANARY, SOCK_REFUSED, SockMark, TASK_CANARY, TaskMark, UserKey, off_flag},
    decide::Subject,
    dest::Addr,
    trouble::Trouble,
};

use super::{
    event::{count, now_ns},
    kernel::{current_task, offset, read, start_ns},
    log::{Program, program, warn},
    maps::{CONTROL, DOOMED, OFF, PLACES, SOCKS, TASKS, USER_BITS},
    pids::may_be_marked,
};

/// Ancestors looked at while the task table has overflowed.
const ANCESTORS: usize = 8;

/// The running process's tgid.
#[inline(always)]
pub(crate) fn current_tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// What is in force. An array of one entry always has it; were it missing, nothing would observe.
#[inline(always)]
pub(crate) fn control() -> Control {
    match CONTROL.get(0) {
        Some(control) => *control,
        None => Control { generation: 0, flags: 0, daemon: 0, overflow: 0 },
    }
}

/// What is in force for verdicts on destinations: with `CONTROL_OFF` while protection is off.
#[inline(always)]
pub(crate) fn in_force() -> Control {
    let control = control();
    Control { flags: control.flags | off(), ..control }
}

/// `CONTROL_OFF` while protection is off, else zero. Were the map's one entry missing, protection would be on.
#[inline(always)]
pub(crate) fn off() -> u32 {
    match OFF.get(0) {
        Some(deadline_ns) if *deadline_ns != 0 => off_flag(*deadline_ns, now_ns()),
        Some(_) | None => 0,
    }
}

/// The mark of the running process: `None` allows.
#[inline(always)]
pub(crate) fn current() -> Option<&'static TaskMark> {
    let tgid = current_tgid();
    if !may_be_marked(tgid) {
        return if cfg!(feature = "bench-extra") { extra(tgid) } else { None };
    }
    match TASKS.get_ptr_mut(tgid) {
        Some(mark) => verified(tgid, mark),
        None => match CONTROL.get(0) {
            Some(control) if control.overflow != 0 => overflowed(tgid),
            Some(_) | None => None,
        },
    }
}

/// What `cargo xtask bench` must notice: one more hash and one more prefix lookup for everybody.
#[inline(always)]
fn extra(tgid: u32) -> Option<&'static TaskMark> {
    let addr = Addr::v4(tgid.to_be_bytes());
    let key = Key::new(PREFIX_HEAD_BITS + 128, PrefixKey { generation: 1, pad: 0, addr });
    match (USER_BITS.get_ptr(UserKey { generation: 1, uid: tgid }), PLACES.get(&key)) {
        (Some(_), Some(_)) => ancestor(),
        _ => None,
    }
}

/// The mark, unless it was another process's that had this pid before.
#[inline(always)]
fn verified(tgid: u32, mark: *mut TaskMark) -> Option<&'static TaskMark> {
    // SAFETY: a map value; it stays readable while this program runs.
    let mark = unsafe { &mut *mark };
    match start_ns(current_task()) {
        Some(start) if start == mark.start_ns => Some(mark),
        Some(start) if mark.start_ns == 0 => {
            mark.start_ns = start;
            Some(mark)
        }
        Some(_) => {
            count(Counter::StaleMarks);
            // RACE: a miss means somebody else removed it, which is as well.
            if TASKS.remove(tgid).is_err() {
                count(Counter::ReadErrors);
            }
            None
        }
        None => {
            count(Counter::ReadErrors);
            warn(program!(programs), Trouble::Unreadable);
            Some(mark)
        }
    }
}

/// The mark of a process that may be one for which there was no room: its own
/// beside the table, else an ancestor's.
#[inline(always)]
fn overflowed(tgid: u32) -> Option<&'static TaskMark> {
    let Some(mark) = DOOMED.get_ptr(tgid) else { return ancestor() };
    // SAFETY: as in `verified`.
    let mark = unsafe { &*mark };
    match start_ns(current_task()) {
        // Left by a process that had this pid before.
        Some(start) if start != mark.start_ns => ancestor(),
        Some(_) | None => Some(mark),
    }
}

#[inline(always)]
fn ancestor() -> Option<&'static TaskMark> {
    let mut task = current_task();
    for _ in 0..ANCESTORS {
        task = read(task, offset!(task_real_parent))?;
        let tgid: u32 = read(task, offset!(task_tgid))?;
        if let Some(mark) = TASKS.get_ptr(tgid) {
            // SAFETY: as in `verified`.
            let mark = unsafe { &*mark };
            if start_ns(task) == Some(mark.start_ns) {
                return Some(mark);
            }
        }
    }
    None
}

/// The mark of another process, given its `task_struct`. `None`: it has none, or cannot be read.
#[inline(always)]
pub(crate) fn mark_of(task: u64) -> Option<&'static TaskMark> {
    let tgid: u32 = read(task, offset!(task_tgid))?;
    let mark = TASKS.get_ptr(tgid)?;
    // SAFETY: as in `verified`.
    let mark = unsafe { &*mark };
    match start_ns(task) {
        // Zero until its first hook: nobody else can have the number yet.
        Some(start) if start == mark.start_ns || mark.start_ns == 0 => Some(mark),
        Some(_) | None => None,
    }
}

/// The subject of a task's mark.
#[inline(always)]
pub(crate) fn subject(mark: &TaskMark) -> Subject {
    Subject { session: mark.session, agent: mark.agent, owner: mark.owner }
}

/// The subject of a socket's mark.
#[inline(always)]
pub(crate) fn sock_subject(mark: &SockMark) -> Subject {
    Subject { session: mark.session, agent: mark.agent, owner: mark.owner }
}

/// The mark of a socket, if it has one.
///
/// # Safety
///
/// `sk` must be a pointer the verifier knows as a socket.
#[inline(always)]
pub(crate) unsafe fn sock_mark(sk: *mut c_void) -> Option<&'static mut SockMark> {
    // SAFETY: the caller's; a storage value stays readable while the program runs.
    unsafe {
        let mark = bpf_sk_storage_get(SOCKS.as_ptr(), sk, core::ptr::null_mut(), 0);
        mark.cast::<SockMark>().as_mut()
    }
}

/// Gives the socket the mark of the task that uses it, setting `flags`. A socket that belonged to
/// another session changes hands with nothing it was allowed before. `None`: it has no mark, and
/// the attempt must be refused.
///
/// # Safety
///
/// `sk` must be a pointer the verifier knows as a socket.
#[inline(always)]
pub(crate) unsafe fn tag(program: &'static Program, sk: *mut c_void, task: &TaskMark, flags: u32) -> Option<&'static mut SockMark> {
    let canary = if task.flags & TASK_CANARY != 0 { SOCK_CANARY } else { 0 };
    // SAFETY: the caller's.
    let found = unsafe { sock_mark(sk) };
    if let Some(mark) = found {
        if mark.session != task.session {
            mark.session = task.session;
            mark.agent = task.agent;
            mark.owner = task.owner;
            // What was refused before it changed hands is in its queue still.
            mark.flags = canary | mark.flags & SOCK_REFUSED;
            mark.flows[0].serial = 0;
            mark.flows[1].serial = 0;
        }
        mark.tgid = current_tgid();
        mark.flags |= flags;
        return Some(mark);
    }
    // SAFETY: the caller's; without a value the helper makes one of zeros.
    let made = unsafe {
        bpf_sk_storage_get(SOCKS.as_ptr(), sk, core::ptr::null_mut(), u64::from(BPF_SK_STORAGE_GET_F_CREATE)).cast::<SockMark>().as_mut()
    };
    let Some(mark) = made else {
        count(Counter::SockMarkFull);
        warn(program, Trouble::SocketUnmarked);
        return None;
    };
    mark.session = task.session;
    mark.agent = task.agent;
    mark.owner = task.owner;
    mark.tgid = current_tgid();
    mark.flags = flags | canary;
    Some(mark)
}
