//! Marks a socket when it begins to listen, by whoever makes it listen. What it accepts inherits the mark.
//!
//! An MPTCP listener is two sockets: the one that the process has, and a TCP one that the kernel makes for it without a call of the creation
//! hook. Packets and accepted connections belong to the second. This hook sees it before the first packet can reach it.

use core::ffi::c_void;

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use super::{
    log::program,
    mark::{current, tag},
    tasks::kill_current,
};

/// `include/net/tcp_states.h`; DCCP and SCTP use the same number.
const TCP_LISTEN: i32 = 10;

/// Runs in the process that listens, before the socket can be found by a packet. A listener without a mark would answer unseen, and nothing
/// here can refuse: without the memory for a mark the process is ended.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn pp_listen(ctx: BtfTracePointContext) -> i32 {
    let state: i32 = ctx.arg(2);
    if state != TCP_LISTEN {
        return 0;
    }
    let Some(task) = current() else { return 0 };
    let sk: *mut c_void = ctx.arg(0);
    if sk.is_null() {
        return 0;
    }
    // SAFETY: the tracepoint's own argument, checked just now.
    if unsafe { tag(program!(pp_listen), sk, task, 0) }.is_none() {
        kill_current();
    }
    0
}
