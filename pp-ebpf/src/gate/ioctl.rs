//! `ioctl(2)`: typing in a person's place, changing a guarded file by what its file system offers beside `write` and `chmod`, and changing
//! the host's network by a socket. One program asks all, since each program costs every caller of the hook.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use pp_common::{
    abi::TaskMark,
    decide::Verdict,
    net_admin::device_call,
    protect::{GuardHook, S_IFDIR, S_IFREG, Tamper, Touch, file_type, leaves_file, types},
};

use super::{
    guard::{Object, at},
    hook::for_session_after,
    kernel::read,
    net_admin::called,
    protect::{named, touched, unreadable},
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
    if device_call(command) {
        match called(task, hook, file, command) {
            Verdict::Allow => {}
            judged => return judged,
        }
    }
    if leaves_file(command) {
        return Verdict::Allow;
    }
    match on_disk(file) {
        Some(None) => Verdict::Allow,
        Some(Some(dentry)) => touched(task, hook, Touch::Attributes, dentry),
        None => unreadable(task, hook),
    }
}

/// The entry of what is asked, if that is a file or a folder: nothing else is guarded.
#[inline(always)]
fn on_disk(file: u64) -> Option<Option<u64>> {
    let node: u64 = read(file, at!(file_f_inode))?;
    let kind = file_type(read(node, at!(inode_i_mode))?);
    if kind != S_IFREG && kind != S_IFDIR {
        return Some(None);
    }
    Some(Some(read(file, at!(file_dentry))?))
}

/// Refuses the same by `file_setattr(2)`, which came with this hook (6.17).
#[lsm(hook = "inode_file_setattr")]
pub(crate) fn pp_lsm_file_setattr(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(2), |task| touched(task, GuardHook::FileSetattr, Touch::Attributes, ctx.arg(0)))
}
