//! Entry points of the fmod_ret backend that take the place of those in
//! `lsm.rs` which need the mark of the socket: fmod_ret programs cannot have it.
//! The others of `lsm.rs` are loaded as they are.
//!
//! So these check by destination alone. They ask no budget, since they cannot
//! know whether the flow was counted; the cgroup programs, which run after
//! them, do. And a message is checked as an answer, by zones and gateways: who
//! opened its flow is known at egress, which checks services. The marks that
//! egress checks by are written by `entry.rs`, before these run.
//!
//! Loaded as LSM programs they would do the same; the loader knows which is for
//! which backend.

use core::ffi::c_void;

use aya_ebpf::{macros::lsm, programs::LsmContext};
use pp_common::{
    decide::{Kind, Verdict},
    record::Hook,
};

use super::{
    call::{self, Call, MAY_WRITE},
    hook::for_session_after,
    log::{Program, program},
    lsm::ear,
    mark::{current_tgid, in_force, subject},
    near::{Near, number},
    reach::{attempt, connects, enforce_by_destination, scene},
    remote::{Remote, connected, protocol, sock_behind},
};

/// Refuses a connect of any transport.
#[lsm(hook = "socket_connect")]
pub(crate) fn pp_fmod_connect(ctx: LsmContext) -> i32 {
    call::connect(&ctx, |call| reach(program!(pp_fmod_connect), call, Hook::LsmConnect))
}

/// Refuses datagrams with an address, TCP Fast Open, and writes on a socket
/// that is connected into a zone, whoever connected it.
#[lsm(hook = "socket_sendmsg")]
pub(crate) fn pp_fmod_sendmsg(ctx: LsmContext) -> i32 {
    call::sendmsg(&ctx, |call| reach(program!(pp_fmod_sendmsg), call, Hook::LsmSendmsg))
}

/// Refuses what is written into a zone by `sendfile` and `splice` on 5.10.
#[lsm(hook = "file_permission")]
pub(crate) fn pp_fmod_splice(ctx: LsmContext) -> i32 {
    written(&ctx, program!(pp_fmod_splice))
}

/// What is written to a file, if that is a connected socket.
#[inline(always)]
pub(crate) fn written(ctx: &LsmContext, program: &'static Program) -> i32 {
    for_session_after(ctx.arg(2), |task| {
        let (file, mask): (u64, u32) = (ctx.arg(0), ctx.arg(1));
        if mask & MAY_WRITE == 0 {
            return Verdict::Allow;
        }
        let sk = match sock_behind(file) {
            Some(Some(sk)) => sk as *mut c_void,
            Some(None) => return Verdict::Allow,
            None => return Verdict::Block,
        };
        match connected(sk as u64) {
            Remote::Inet(addr, port) => reach(program, Call { task, sk, addr, port, connected: true, name: 0 }, Hook::LsmWrite),
            Remote::Unspecified(..) | Remote::Other => Verdict::Allow,
            Remote::Unreadable => Verdict::Block,
        }
    })
}

#[inline(always)]
fn reach(program: &'static Program, call: Call, hook: Hook) -> Verdict {
    let Call { task, sk, addr, port, name, .. } = call;
    if sk.is_null() {
        return Verdict::Block;
    }
    let Some(protocol) = protocol(sk as u64) else { return Verdict::Block };
    let mut attempt = attempt(addr, port, u32::from(protocol), Kind::Answer);
    if hook as u8 == Hook::LsmConnect as u8 {
        attempt.kind = Kind::Open;
        // The mark was written on entry.
        let _flags = connects(&mut attempt, ear(sk, task));
    }
    let control = in_force();
    let subject = subject(task);
    let scene = scene(program, hook, &subject, current_tgid(), task.flags, &control).near(Near::call(number(sk), name));
    enforce_by_destination(&scene, control, attempt)
}
