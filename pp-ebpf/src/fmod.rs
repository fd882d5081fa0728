//! Entry points of the fmod_ret backend that take the place of those in
//! `lsm.rs` which need the mark of the socket: fmod_ret programs cannot have it.
//! The others of `lsm.rs` are loaded as they are.
//!
//! So these judge by destination alone. They ask no budget, since they cannot
//! know whether the flow was counted; the cgroup programs, which run after
//! them, do. And a message is judged as an answer, by zones and gateways: who
//! opened its flow is known at egress, which judges services. The marks that
//! egress judges by are written by `entry.rs`, before these run.
//!
//! Loaded as LSM programs they would do the same; the loader knows which is for
//! which backend.

use core::ffi::c_void;

use aya_ebpf::{macros::lsm, programs::LsmContext};
use pp_common::{abi::TaskMark, decide::Kind, dest::Addr, record::Hook};

use crate::{
    far::{Dialled, connected, dialled, named, protocol, sent_to, sk_of, sock_behind},
    lsm::{EPERM, MAY_WRITE, ear, lsm_return},
    mark::{control, current, current_tgid, subject},
    near::{Near, number},
    reach::{attempt, connects, judge_alone, scene},
};

/// Refuses a connect of any transport.
#[lsm(hook = "socket_connect")]
pub(crate) fn pp_fmod_connect(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    let Some(task) = current() else { return 0 };
    let sock: *const c_void = ctx.arg(0);
    let address: *const c_void = ctx.arg(1);
    let length: i32 = ctx.arg(2);
    match dialled(address as u64, length as u32 as usize) {
        Dialled::Inet(addr, port) => reach(sk_of(sock), task, addr, port, Hook::LsmConnect, number(address)),
        Dialled::Unspecified(..) | Dialled::Other => 0,
        Dialled::Unreadable => -EPERM,
    }
}

/// Refuses datagrams with an address, TCP Fast Open, and writes on a socket
/// that is connected into a zone, whoever connected it.
#[lsm(hook = "socket_sendmsg")]
pub(crate) fn pp_fmod_sendmsg(ctx: LsmContext) -> i32 {
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
        (Dialled::Inet(addr, port), connected) => reach(sk, task, addr, port, Hook::LsmSendmsg, named(message as u64, connected)),
        (Dialled::Unspecified(..) | Dialled::Other, _) => 0,
        (Dialled::Unreadable, _) => -EPERM,
    }
}

/// Refuses what is written into a zone by `sendfile` and `splice` on 5.10.
#[lsm(hook = "file_permission")]
pub(crate) fn pp_fmod_splice(ctx: LsmContext) -> i32 {
    written(&ctx)
}

/// What is written to a file, if that is a connected socket.
#[inline(always)]
pub(crate) fn written(ctx: &LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    if earlier != 0 {
        return earlier;
    }
    let Some(task) = current() else { return 0 };
    let (file, mask): (u64, u32) = (ctx.arg(0), ctx.arg(1));
    if mask & MAY_WRITE == 0 {
        return 0;
    }
    let sk = match sock_behind(file) {
        Some(Some(sk)) => sk,
        Some(None) => return 0,
        None => return -EPERM,
    };
    match connected(sk) {
        Dialled::Inet(addr, port) => reach(sk as *const c_void, task, addr, port, Hook::LsmWrite, 0),
        Dialled::Unspecified(..) | Dialled::Other => 0,
        Dialled::Unreadable => -EPERM,
    }
}

#[inline(always)]
fn reach(sk: *const c_void, task: &TaskMark, addr: Addr, port: u16, hook: Hook, name: u64) -> i32 {
    if sk.is_null() {
        return -EPERM;
    }
    let Some(protocol) = protocol(sk as u64) else { return -EPERM };
    let mut attempt = attempt(addr, port, u32::from(protocol), Kind::Answer);
    if hook as u8 == Hook::LsmConnect as u8 {
        attempt.kind = Kind::Open;
        // The mark was written on entry.
        let _flags = connects(&mut attempt, ear(sk, task));
    }
    let control = control();
    let subject = subject(task);
    let scene = scene(hook, &subject, current_tgid(), task.flags, &control).near(Near::call(number(sk), name));
    lsm_return(judge_alone(&scene, control, attempt))
}
