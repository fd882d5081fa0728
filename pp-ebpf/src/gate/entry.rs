//! Entry points that give sockets their mark where `fmod.rs` refuses: on entry
//! of the same functions, before it. They cannot refuse.

use core::ffi::c_void;

use aya_ebpf::{macros::fentry, programs::FEntryContext};
use pp_common::{
    abi::{SOCK_OPENED, TaskMark},
    decide::Kind,
    dest::Addr,
};

use super::{
    call::MAY_WRITE,
    inherited::{accepted, received, sender},
    log::{Program, program},
    lsm::ear,
    mark::{current, tag},
    reach::{attempt, connects},
    remote::{Remote, inet, protocol, remote_of, sent_to, sk_of},
    tasks::kill_current,
};

/// Marks a socket that is connected, whoever made it.
#[fentry(function = "security_socket_connect")]
pub(crate) fn pp_entry_connect(ctx: FEntryContext) -> i32 {
    let Some(task) = current() else { return 0 };
    let sock: *const c_void = ctx.arg(0);
    let address: *const c_void = ctx.arg(1);
    let length: i32 = ctx.arg(2);
    match remote_of(address as u64, length as u32 as usize) {
        Remote::Inet(addr, port) => marked_or_killed(connecting(program!(pp_entry_connect), sock, task, addr, port)),
        // Refused, or of no socket that egress sees.
        Remote::Unspecified(..) | Remote::Other | Remote::Unreadable => 0,
    }
}

/// Marks a socket that is written, whoever made or connected it.
#[fentry(function = "security_socket_sendmsg")]
pub(crate) fn pp_entry_sendmsg(ctx: FEntryContext) -> i32 {
    let Some(task) = current() else { return 0 };
    let sock: *const c_void = ctx.arg(0);
    let message: *const c_void = ctx.arg(1);
    let sk = sk_of(sock);
    if sk.is_null() || !inet(sk as u64) {
        return 0;
    }
    match sent_to(sk as u64, message as u64) {
        // SAFETY: checked just now.
        (Remote::Inet(..), connected) => marked_or_killed(unsafe { sender(program!(pp_entry_sendmsg), sk, task, connected) }.is_some()),
        (Remote::Unspecified(..) | Remote::Other | Remote::Unreadable, _) => 0,
    }
}

/// Marks a socket that is handed over.
#[fentry(function = "security_file_receive")]
pub(crate) fn pp_entry_receive(ctx: FEntryContext) -> i32 {
    let Some(task) = current() else { return 0 };
    let file: *mut c_void = ctx.arg(0);
    // SAFETY: the function's own argument, which the verifier knows as a file.
    marked_or_killed(unsafe { received(program!(pp_entry_receive), file, task) })
}

/// Marks a socket that is written, before 6.5: there `sendfile` and `splice` pass no other function.
#[fentry(function = "security_file_permission")]
pub(crate) fn pp_entry_write(ctx: FEntryContext) -> i32 {
    let Some(task) = current() else { return 0 };
    let mask: u32 = ctx.arg(1);
    if mask & MAY_WRITE == 0 {
        return 0;
    }
    let file: *mut c_void = ctx.arg(0);
    // SAFETY: the function's own argument, which the verifier knows as a file.
    marked_or_killed(unsafe { received(program!(pp_entry_write), file, task) })
}

/// Marks what is accepted on a listener that the session did not make itself.
#[fentry(function = "security_sock_graft")]
pub(crate) fn pp_entry_graft(ctx: FEntryContext) -> i32 {
    let Some(task) = current() else { return 0 };
    let sk: *mut c_void = ctx.arg(0);
    // SAFETY: the function's own argument.
    marked_or_killed(unsafe { accepted(program!(pp_entry_graft), sk, task) })
}

#[inline(always)]
fn connecting(program: &'static Program, sock: *const c_void, task: &TaskMark, addr: Addr, port: u16) -> bool {
    let sk = sk_of(sock);
    if sk.is_null() || !inet(sk as u64) {
        return true;
    }
    let flags = match protocol(sk as u64) {
        Some(protocol) => connects(&mut attempt(addr, port, u32::from(protocol), Kind::Open), ear(sk, task)),
        None => SOCK_OPENED,
    };
    // SAFETY: checked just now.
    unsafe { tag(program, sk, task, flags) }.is_some()
}

/// A socket without a mark would send unseen. Nothing here can refuse, and without the memory for
/// a mark nothing else will: the process is ended.
#[inline(always)]
fn marked_or_killed(marked: bool) -> i32 {
    if !marked {
        kill_current();
    }
    0
}
