//! Delegates: servers on this host that act for whoever asks them over a unix
//! socket. A server is known by the name its socket is bound to, by the inode
//! of its path, and by the process that listens; never by what the caller wrote.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{helpers::generated::bpf_probe_read_kernel, macros::lsm, programs::LsmContext};
use pp_common::{
    abi::{CONTROL_OBSERVE, TASK_CANARY, TaskMark},
    decide::Verdict,
    delegate::{Action, DelegateKey, Unknown, by, command_name, is_of_kind, refuses},
    protect::{GuardHook, NAME_WORDS, TEXT_LEN, TEXT_WORDS, Tamper, hash},
    record::kind,
};

use super::{
    guard::{BY_TGID, Name, Object, Text, at, euid, inode, is_root, report, task_of},
    hook::for_session_after,
    kernel::{offset, read},
    maps::DELEGATES,
    mark::{control, mark_of},
};

/// Refuses to connect to a delegate.
#[lsm(hook = "unix_stream_connect")]
pub(crate) fn pp_lsm_unix_connect(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(3), |task| call(task, GuardHook::UnixConnect, ctx.arg(1)))
}

/// Refuses datagrams to a delegate.
#[lsm(hook = "unix_may_send")]
pub(crate) fn pp_lsm_unix_send(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(2), |task| {
        let other: *const c_void = ctx.arg(1);
        match read::<u64>(other as u64, offset!(socket_sk)) {
            // Closed on that side.
            Some(0) => Verdict::Allow,
            Some(sk) => call(task, GuardHook::UnixSend, sk),
            None => refused(task, GuardHook::UnixSend, Tamper::Unreadable, 0, &no_text()),
        }
    })
}

#[inline(always)]
fn call(task: &TaskMark, hook: GuardHook, sk: u64) -> Verdict {
    let mut text = no_text();
    let Some(pid) = read::<u64>(sk, at!(sk_peer_pid)) else {
        return refused(task, hook, Tamper::Unreadable, 0, &text);
    };
    let listener = task_of(pid, BY_TGID);
    let tgid = match listener {
        Some(listener) => read::<u32>(listener, offset!(task_tgid)).unwrap_or_default(),
        None => 0,
    };
    // A server of the session's own acts as the session.
    if listener.and_then(mark_of).is_some_and(|mark| mark.session == task.session) {
        return Verdict::Allow;
    }
    let (Some(name), Some(path)) = (by_name(sk, &mut text), by_inode(sk)) else {
        return refused(task, hook, Tamper::Unreadable, tgid, &text);
    };
    // The daemon itself is asked for receipts, also by sessions.
    let comm = if tgid == control().daemon { None } else { listener.and_then(by_comm) };
    if refuses(name, path, comm, is_root()) {
        return refused(task, hook, Tamper::Delegate, tgid, &text);
    }
    let listed = name.is_some() || path.is_some() || comm.is_some();
    if listed || tgid != 0 && tgid == control().daemon {
        return Verdict::Allow;
    }
    // A datagram socket does not say who reads from it.
    if hook as u8 != GuardHook::UnixConnect as u8 {
        return Verdict::Allow;
    }
    unlisted(task, hook, sk, listener, tgid, &text)
}

/// What becomes of a call to a server that no row is about.
#[inline(always)]
fn unlisted(task: &TaskMark, hook: GuardHook, sk: u64, listener: Option<u64>, tgid: u32, text: &Text) -> Verdict {
    let unknown = match DELEGATES.get_ptr(&DelegateKey { number: 0, dev: 0, by: by::UNLISTED }) {
        // SAFETY: a map value; it stays readable while this program runs.
        Some(unknown) => Unknown::or_refuse(unsafe { *unknown }),
        // Of a table that is not written yet, or is damaged.
        None => Unknown::Refuse,
    };
    if matches!(unknown, Unknown::Allow) || !is_of_kind(listener.and_then(mark_of).is_some(), same_user(sk)) {
        return Verdict::Allow;
    }
    let verdict = if matches!(unknown, Unknown::Refuse) { refusal(task) } else { Verdict::Observe };
    report(task, kind::DELEGATE, hook, Tamper::UnknownDelegate, verdict, Object { target_tgid: tgid, ..Object::NONE }, text);
    verdict
}

/// Whether the server listens as the user as whom the caller acts. What it was when it began to listen is kept with the socket, also
/// when that process has ended. `None`: it cannot be read.
#[inline(always)]
fn same_user(sk: u64) -> Option<bool> {
    let cred: u64 = read(sk, at!(sk_peer_cred))?;
    Some(read::<u32>(cred, at!(cred_euid))? == euid()?)
}

/// An empty text. VERIFIER: word by word; `memset`, which the compiler would call for so many bytes,
/// does arithmetic on the pointer that is "prohibited".
#[inline(always)]
fn no_text() -> Text {
    let mut text = MaybeUninit::<Text>::uninit();
    let first = text.as_mut_ptr().cast::<u64>();
    for i in 0..TEXT_WORDS {
        // SAFETY: within the array.
        unsafe { first.add(i).write_volatile(0) };
    }
    // SAFETY: each word was written.
    unsafe { text.assume_init() }
}

#[inline(always)]
fn known(number: u64, dev: u32, by: u32) -> Option<Action> {
    let action = DELEGATES.get_ptr(&DelegateKey { number, dev, by })?;
    // SAFETY: a map value; it stays readable while this program runs.
    Some(Action::or_refuse(unsafe { *action }))
}

/// What is said of the name the server's socket is bound to. The outer `None`: it cannot be read.
#[inline(always)]
fn by_name(sk: u64, text: &mut Text) -> Option<Option<Action>> {
    let address: u64 = read(sk, at!(unix_sock_addr))?;
    if address == 0 {
        return Some(None);
    }
    let length: i32 = read(address, at!(unix_address_len))?;
    // Without the family; VERIFIER: the bound must be seen on the register that is passed.
    let length = (length as u32).wrapping_sub(2) & (TEXT_LEN as u32 - 1);
    let from = address as usize + at!(unix_address_name) + 2;
    // SAFETY: at most the buffer's size; the helper checks the address itself.
    let result = unsafe { bpf_probe_read_kernel(text.as_mut_ptr().cast(), length, from as *const _) };
    if result != 0 {
        return None;
    }
    Some(known(hash(text), 0, by::NAME))
}

/// What is said of the inode of the server's path. The outer `None`: it cannot be read.
#[inline(always)]
fn by_inode(sk: u64) -> Option<Option<Action>> {
    let dentry: u64 = read(sk, at!(unix_sock_dentry))?;
    if dentry == 0 {
        return Some(None);
    }
    let node: u64 = read(dentry, at!(dentry_d_inode))?;
    if node == 0 {
        // Removed, and still open: its name said what there is to say.
        return Some(None);
    }
    let (key, _) = inode(node)?;
    Some(known(key.ino, key.dev, by::INODE))
}

/// What is said of the program that listens.
#[inline(always)]
fn by_comm(listener: u64) -> Option<Action> {
    let [low, high] = command_name(read(listener, at!(task_comm))?);
    let mut name = MaybeUninit::<Name>::uninit();
    let first = name.as_mut_ptr().cast::<u64>();
    for i in 0..NAME_WORDS {
        let word = match i {
            0 => low,
            1 => high,
            _ => 0,
        };
        // SAFETY: within the array. VERIFIER: as in `no_text`.
        unsafe { first.add(i).write_volatile(word) };
    }
    // SAFETY: each word was written.
    known(hash(unsafe { name.assume_init_ref() }), 0, by::LISTENER)
}

#[inline(always)]
fn refused(task: &TaskMark, hook: GuardHook, what: Tamper, tgid: u32, text: &Text) -> Verdict {
    let verdict = refusal(task);
    report(task, kind::DELEGATE, hook, what, verdict, Object { target_tgid: tgid, ..Object::NONE }, text);
    verdict
}

/// What a refusal is while the host observes, and otherwise.
#[inline(always)]
fn refusal(task: &TaskMark) -> Verdict {
    let observes = control().flags & CONTROL_OBSERVE != 0 && task.flags & TASK_CANARY == 0;
    if observes { Verdict::Observe } else { Verdict::Block }
}
