//! Entry points of the lsm backend: what no cgroup hook sees, refused before
//! the kernel acts. New flows are counted by the cgroup programs, which run
//! after these.

use core::ffi::c_void;

use aya_ebpf::{macros::lsm, programs::LsmContext};
use pp_common::{
    abi::{SOCK_OPENED, TaskMark},
    decide::{Kind, Reason, Verdict},
    dest::Addr,
    family::is_allowed,
    record::Hook,
};

use super::{
    call::{self, Call, MAY_WRITE},
    fmod::written,
    hook::{for_session, for_session_after},
    inherited::{accepted, received, sender},
    log::{Program, program},
    mark::{control, in_force, subject, tag},
    near::{Near, number},
    peers::{Ear, heard_from},
    reach::{Charging, attempt, connects, enforce, refuse, scene},
    remote::{port_of, protocol},
};

/// Refuses a connect of any transport.
#[lsm(hook = "socket_connect")]
pub(crate) fn pp_lsm_connect(ctx: LsmContext) -> i32 {
    call::connect(&ctx, connect)
}

/// Refuses datagrams with an address, TCP Fast Open, and writes on a socket
/// that is connected to a protected remote end, whoever connected it.
#[lsm(hook = "socket_sendmsg")]
pub(crate) fn pp_lsm_sendmsg(ctx: LsmContext) -> i32 {
    call::sendmsg(&ctx, send)
}

/// Refuses sockets whose traffic no hook can check by destination.
#[lsm(hook = "socket_create")]
pub(crate) fn pp_lsm_create(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(4), |task| {
        let (family, kind, kern): (i32, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(3));
        if kern != 0 || is_allowed(family, kind) {
            return Verdict::Allow;
        }
        // Also while protection is off: no hook could judge such a socket once it is on again.
        let control = control();
        let subject = subject(task);
        let scene = scene(program!(pp_lsm_create), Hook::LsmCreate, &subject, super::mark::current_tgid(), task.flags, &control);
        let nowhere = attempt(Addr([0; 2]), family as u16, 0, Kind::Portless);
        refuse(&scene, control, &nowhere, Reason::SocketFamily)
    })
}

/// Marks a socket that is handed over, so that egress and the next send check it.
#[lsm(hook = "file_receive")]
pub(crate) fn pp_lsm_receive(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(1), |task| {
        let file: *mut c_void = ctx.arg(0);
        // SAFETY: the hook's own argument, which the verifier knows as a file.
        if unsafe { received(program!(pp_lsm_receive), file, task) } { Verdict::Allow } else { Verdict::Block }
    })
}

/// Marks a socket that is written, before 6.5: there `sendfile` and `splice` pass no other hook.
#[lsm(hook = "file_permission")]
pub(crate) fn pp_lsm_write(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(2), |task| {
        let mask: u32 = ctx.arg(1);
        if mask & MAY_WRITE == 0 {
            return Verdict::Allow;
        }
        let file: *mut c_void = ctx.arg(0);
        // SAFETY: the hook's own argument, which the verifier knows as a file.
        if unsafe { received(program!(pp_lsm_write), file, task) } { Verdict::Allow } else { Verdict::Block }
    })
}

/// The same on 5.10, which gives programs no socket of a file: what is written is checked there and then, by destination alone.
#[lsm(hook = "file_permission")]
pub(crate) fn pp_lsm_splice(ctx: LsmContext) -> i32 {
    written(&ctx, program!(pp_lsm_splice))
}

/// Marks what is accepted on a listener that the session did not make itself.
#[lsm(hook = "sock_graft")]
pub(crate) fn pp_lsm_graft(ctx: LsmContext) -> i32 {
    for_session(|task| {
        let sk: *mut c_void = ctx.arg(0);
        // SAFETY: the hook's own argument. Without a mark the first send tries again and is refused if
        // that fails too.
        match unsafe { accepted(program!(pp_lsm_graft), sk, task) } {
            true | false => Verdict::Allow,
        }
    })
}

/// Refuses to fork while the task table has no room for the child's mark.
#[lsm(hook = "task_alloc")]
pub(crate) fn pp_lsm_fork(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(2), |_task| if control().overflow != 0 { Verdict::Block } else { Verdict::Allow })
}

#[inline(always)]
fn connect(call: Call) -> Verdict {
    const PROGRAM: &Program = program!(pp_lsm_connect);
    let Call { task, sk, addr, port, name, .. } = call;
    if sk.is_null() {
        return Verdict::Block;
    }
    let Some(protocol) = protocol(sk as u64) else { return Verdict::Block };
    let mut attempt = attempt(addr, port, u32::from(protocol), Kind::Open);
    let flags = connects(&mut attempt, ear(sk, task));
    // SAFETY: checked just now.
    let Some(mark) = (unsafe { tag(PROGRAM, sk, task, flags) }) else { return Verdict::Block };
    let control = in_force();
    let subject = subject(task);
    let scene = scene(PROGRAM, Hook::LsmConnect, &subject, mark.tgid, task.flags, &control).near(Near::call(number(sk.cast_const()), name));
    enforce(&scene, control, mark, attempt, Charging::Later)
}

#[inline(always)]
fn send(call: Call) -> Verdict {
    const PROGRAM: &Program = program!(pp_lsm_sendmsg);
    let Call { task, sk, addr, port, connected, name } = call;
    let Some(protocol) = protocol(sk as u64) else { return Verdict::Block };
    let mut attempt = attempt(addr, port, u32::from(protocol), Kind::Open);
    // SAFETY: checked where the call was read.
    let Some(mark) = (unsafe { sender(PROGRAM, sk, task, connected) }) else { return Verdict::Block };
    let answer = if connected { mark.flags & SOCK_OPENED == 0 } else { heard_from(ear(sk, task), &attempt) };
    attempt.kind = if answer { Kind::Answer } else { Kind::Open };
    let control = in_force();
    let subject = subject(task);
    let scene = scene(PROGRAM, Hook::LsmSendmsg, &subject, mark.tgid, task.flags, &control).near(Near::call(number(sk.cast_const()), name));
    enforce(&scene, control, mark, attempt, Charging::Later)
}

/// Where the session hears by this socket.
#[inline(always)]
pub(crate) fn ear(sk: *const c_void, task: &TaskMark) -> Ear {
    Ear { session: task.session, sk: number(sk), port: port_of(sk as u64) }
}
