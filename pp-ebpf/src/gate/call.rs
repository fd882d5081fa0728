//! What a call on a socket reaches for, from the arguments that an LSM hook and the function that calls it have alike.

use core::ffi::c_void;

use aya_ebpf::programs::LsmContext;
use pp_common::{abi::TaskMark, decide::Verdict, dest::Addr};

use super::{
    hook::for_session_after,
    near::number,
    net_admin::forget,
    remote::{Remote, named, remote_of, sent_to, sk_of},
};

/// Bit of the mask of `file_permission`: the file is written.
pub(crate) const MAY_WRITE: u32 = 2;

/// A session's call.
pub(crate) struct Call {
    pub(crate) task: &'static TaskMark,
    /// The `struct sock`, as a pointer the verifier knows; may be null.
    pub(crate) sk: *mut c_void,
    /// The remote end.
    pub(crate) addr: Addr,
    pub(crate) port: u16,
    /// It is the one that the socket is connected to.
    pub(crate) connected: bool,
    /// A kernel copy of the address that the call names; zero: none.
    pub(crate) name: u64,
}

/// `socket_connect`: what has no address of the internet protocols goes through, what cannot be read does not.
#[inline(always)]
pub(crate) fn connect(ctx: &LsmContext, enforce: impl FnOnce(Call) -> Verdict) -> i32 {
    for_session_after(ctx.arg(3), |task| {
        let sock: *const c_void = ctx.arg(0);
        let address: *const c_void = ctx.arg(1);
        let length: i32 = ctx.arg(2);
        match remote_of(address as u64, length as u32 as usize) {
            Remote::Inet(addr, port) => enforce(Call { task, sk: sk_of(sock), addr, port, connected: false, name: number(address) }),
            Remote::Unspecified(..) | Remote::Other => Verdict::Allow,
            Remote::Unreadable => Verdict::Block,
        }
    })
}

/// `socket_sendmsg`: the same of a message, whose socket may be connected.
#[inline(always)]
pub(crate) fn sendmsg(ctx: &LsmContext, enforce: impl FnOnce(Call) -> Verdict) -> i32 {
    for_session_after(ctx.arg(3), |task| {
        forget();
        let sock: *const c_void = ctx.arg(0);
        let message: *const c_void = ctx.arg(1);
        let sk = sk_of(sock);
        if sk.is_null() {
            return Verdict::Allow;
        }
        match sent_to(sk as u64, message as u64) {
            (Remote::Inet(addr, port), connected) => {
                enforce(Call { task, sk, addr, port, connected, name: named(message as u64, connected) })
            }
            (Remote::Unspecified(..) | Remote::Other, _) => Verdict::Allow,
            (Remote::Unreadable, _) => Verdict::Block,
        }
    })
}
