//! `ioctl(2)`: typing in a person's place.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use pp_common::{
    abi::TaskMark,
    decide::Verdict,
    protect::{GuardHook, Tamper, types},
};

use super::{
    guard::{Object, at},
    hook::for_session_after,
    kernel::read,
    protect::named,
};

/// Refuses commands by what they do.
#[lsm(hook = "file_ioctl")]
pub(crate) fn pp_lsm_ioctl(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(3), |task| ioctl(task, GuardHook::Ioctl, ctx.arg(0), ctx.arg(1)))
}

/// The same of 32-bit programs. Kernels without this hook call the other one for them.
#[lsm(hook = "file_ioctl_compat")]
pub(crate) fn pp_lsm_ioctl_compat(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(3), |task| ioctl(task, GuardHook::IoctlCompat, ctx.arg(0), ctx.arg(1)))
}

#[inline(always)]
fn ioctl(task: &TaskMark, hook: GuardHook, file: u64, command: u32) -> Verdict {
    if types(command) {
        // The session's own terminal too: whoever started the session reads from it next.
        return named(task, hook, Tamper::Terminal, read(file, at!(file_dentry)), Object::number(command));
    }
    Verdict::Allow
}
