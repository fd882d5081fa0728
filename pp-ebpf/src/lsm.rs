//! Entry points of the lsm backend: what no cgroup hook sees, refused before
//! the kernel acts. New flows are counted by the cgroup programs, which run
//! after these.

use core::ffi::c_void;

use aya_ebpf::{macros::lsm, programs::LsmContext};
use pp_common::{
    abi::{SOCK_OPENED, TaskMark},
    decide::{Kind, Reason, Verdict},
    dest::Addr,
    family::is_judged,
    record::Hook,
};

use crate::{
    count::{Ear, heard_from},
    far::{Dialled, dialled, named, port_of, protocol, sent_to, sk_of},
    fmod::written,
    mark::{control, current, subject, tag},
    near::{Near, number},
    passed::{accepted, received, sender},
    reach::{Counting, attempt, connects, judge, refuse, scene},
};

pub(crate) const EPERM: i32 = 1;
pub(crate) const MAY_WRITE: u32 = 2;

/// Refuses a connect of any transport.
#[lsm(hook = "socket_connect")]
pub(crate) fn pp_lsm_connect(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    let Some(task) = current() else { return 0 };
    let sock: *const c_void = ctx.arg(0);
    let address: *const c_void = ctx.arg(1);
    let length: i32 = ctx.arg(2);
    match dialled(address as u64, length as u32 as usize) {
        Dialled::Inet(addr, port) => connect(sock, task, addr, port, number(address)),
        Dialled::Unspecified(..) | Dialled::Other => 0,
        Dialled::Unreadable => -EPERM,
    }
}

/// Refuses datagrams with an address, TCP Fast Open, and writes on a socket
/// that is connected to a protected far end, whoever connected it.
#[lsm(hook = "socket_sendmsg")]
pub(crate) fn pp_lsm_sendmsg(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    let Some(task) = current() else { return 0 };
    let sock: *const c_void = ctx.arg(0);
    let message: *const c_void = ctx.arg(1);
    let sk = sk_of(sock);
    if sk.is_null() {
        return 0;
    }
    match sent_to(sk as u64, message as u64) {
        (Dialled::Inet(addr, port), connected) => send(sk, task, addr, port, connected, named(message as u64, connected)),
        (Dialled::Unspecified(..) | Dialled::Other, _) => 0,
        (Dialled::Unreadable, _) => -EPERM,
    }
}

/// Refuses sockets whose traffic no hook can judge by destination.
#[lsm(hook = "socket_create")]
pub(crate) fn pp_lsm_create(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(4);
    if earlier != 0 {
        return earlier;
    }
    let Some(task) = current() else { return 0 };
    let (family, kind, kern): (i32, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(3));
    if kern != 0 || is_judged(family, kind) {
        return 0;
    }
    let control = control();
    let subject = subject(task);
    let scene = scene(Hook::LsmCreate, &subject, crate::mark::current_tgid(), task.flags, &control);
    let nowhere = attempt(Addr([0; 2]), family as u16, 0, Kind::Portless);
    lsm_return(refuse(&scene, control, &nowhere, Reason::SocketFamily))
}

/// Marks a socket that is handed over, so that egress and the next send judge it.
#[lsm(hook = "file_receive")]
pub(crate) fn pp_lsm_receive(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(1);
    if earlier != 0 {
        return earlier;
    }
    let Some(task) = current() else { return 0 };
    let file: *mut c_void = ctx.arg(0);
    // SAFETY: the hook's own argument, which the verifier knows as a file.
    if unsafe { received(file, task) } { 0 } else { -EPERM }
}

/// Marks a socket that is written, before 6.5: there `sendfile` and `splice` pass no other hook.
#[lsm(hook = "file_permission")]
pub(crate) fn pp_lsm_write(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    if earlier != 0 {
        return earlier;
    }
    let Some(task) = current() else { return 0 };
    let mask: u32 = ctx.arg(1);
    if mask & MAY_WRITE == 0 {
        return 0;
    }
    let file: *mut c_void = ctx.arg(0);
    // SAFETY: the hook's own argument, which the verifier knows as a file.
    if unsafe { received(file, task) } { 0 } else { -EPERM }
}

/// The same on 5.10, which gives programs no socket of a file: what is written is judged there and then, by destination alone.
#[lsm(hook = "file_permission")]
pub(crate) fn pp_lsm_splice(ctx: LsmContext) -> i32 {
    written(&ctx)
}

/// Marks what is accepted on a listener that the session did not make itself.
#[lsm(hook = "sock_graft")]
pub(crate) fn pp_lsm_graft(ctx: LsmContext) -> i32 {
    let Some(task) = current() else { return 0 };
    let sk: *mut c_void = ctx.arg(0);
    // SAFETY: the hook's own argument. Without a mark the first send tries again and is refused if
    // that fails too.
    match unsafe { accepted(sk, task) } {
        true | false => 0,
    }
}

/// Refuses to fork while the task table has no room for the child's mark.
#[lsm(hook = "task_alloc")]
pub(crate) fn pp_lsm_fork(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    if earlier != 0 {
        return earlier;
    }
    match current() {
        Some(_) if control().overflow != 0 => -EPERM,
        Some(_) | None => 0,
    }
}

#[inline(always)]
fn connect(sock: *const c_void, task: &TaskMark, addr: Addr, port: u16, name: u64) -> i32 {
    let sk = sk_of(sock);
    if sk.is_null() {
        return -EPERM;
    }
    let Some(protocol) = protocol(sk as u64) else { return -EPERM };
    let mut attempt = attempt(addr, port, u32::from(protocol), Kind::Open);
    let flags = connects(&mut attempt, ear(sk, task));
    // SAFETY: checked just now.
    let Some(mark) = (unsafe { tag(sk, task, flags) }) else { return -EPERM };
    let control = control();
    let subject = subject(task);
    let scene = scene(Hook::LsmConnect, &subject, mark.tgid, task.flags, &control).near(Near::call(number(sk.cast_const()), name));
    lsm_return(judge(&scene, control, mark, attempt, Counting::Later))
}

#[inline(always)]
fn send(sk: *mut c_void, task: &TaskMark, addr: Addr, port: u16, connected: bool, name: u64) -> i32 {
    let Some(protocol) = protocol(sk as u64) else { return -EPERM };
    let mut attempt = attempt(addr, port, u32::from(protocol), Kind::Open);
    // SAFETY: the caller's pointer, checked there.
    let Some(mark) = (unsafe { sender(sk, task, connected) }) else { return -EPERM };
    let answer = if connected { mark.flags & SOCK_OPENED == 0 } else { heard_from(ear(sk, task), &attempt) };
    attempt.kind = if answer { Kind::Answer } else { Kind::Open };
    let control = control();
    let subject = subject(task);
    let scene = scene(Hook::LsmSendmsg, &subject, mark.tgid, task.flags, &control).near(Near::call(number(sk.cast_const()), name));
    lsm_return(judge(&scene, control, mark, attempt, Counting::Later))
}

/// Where the session hears by this socket.
#[inline(always)]
pub(crate) fn ear(sk: *const c_void, task: &TaskMark) -> Ear {
    Ear { session: task.session, sk: number(sk), port: port_of(sk as u64) }
}

#[inline(always)]
pub(crate) fn lsm_return(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Allow | Verdict::Observe => 0,
        Verdict::Block => -EPERM,
    }
}
