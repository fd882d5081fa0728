//! Tamper rules: what a session may not do to its own gate, and to the files
//! by which others would act for it later. Only marked tasks are checked; the
//! decisions are `pp_common::protect`.
//!
//! These programs use arguments and task marks alone, so that they can hang at
//! an LSM hook and at the kernel's `security_*` function of the same name. The
//! earlier result is looked at where both have it in one place; elsewhere an
//! earlier refusal ends the call before this program runs.

use core::hint::black_box;

use aya_ebpf::{macros::lsm, programs::LsmContext};
use pp_common::{
    abi::TaskMark,
    decide::Verdict,
    protect::{
        GuardHook, InodeKey, NAME_WORDS, S_IFREG, TUN, Tamper, Touch, device, file_type, hash, kernel_code, magic, mount as check_mount,
        mount_option, setting, signal, touch, trace, unmount,
    },
};

use super::{
    guard::{
        Name, Object, affects_others, at, file_system, in_daemon_namespace, inode, look, mount, name_hash, path, proc_owner, read_text,
        refuse, refuse_nameless,
    },
    hook::{for_session, for_session_after},
    kernel::{offset, read},
    maps::WATCH,
    mark::{control, mark_of},
    net_admin::in_hosts_network,
    reopen::{Asked, reopened},
};

const FMODE_WRITE: u32 = 2;
const F_SETOWN: u32 = 8;
const F_SETSIG: u32 = 10;
const F_SETOWN_EX: u32 = 15;
const ATTR_UID: u32 = 2;
const ATTR_GID: u32 = 4;
const SIGURG: u64 = 23;
const SIGIO: u64 = 29;

/// Refuses signals to the daemon.
#[lsm(hook = "task_kill")]
pub(crate) fn pp_lsm_kill(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(4), |task| {
        let (target, number): (u64, i32) = (ctx.arg(0), ctx.arg(2));
        let Some(tgid) = read::<u32>(target, offset!(task_tgid)) else {
            return unreadable(task, GuardHook::Kill);
        };
        if tgid != control().daemon {
            return Verdict::Allow;
        }
        let object = Object { target_tgid: tgid, ..Object::number(number as u32) };
        match signal(number as u32, true, mark_of(target).is_some()) {
            Some(what) => refuse_nameless(task, GuardHook::Kill, what, object),
            None => Verdict::Allow,
        }
    })
}

/// Refuses to have the kernel send the daemon a signal when something happens to a file. The owner
/// may be given as one of its threads, which is not looked for here: so no file gets a signal that
/// ends or stops a process, and the daemon ignores those that are left (SIGIO, real-time signals).
#[lsm(hook = "file_fcntl")]
pub(crate) fn pp_lsm_fcntl(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(3), |task| {
        let (command, argument): (u32, u64) = (ctx.arg(1), ctx.arg(2));
        let daemon = control().daemon;
        let refused = match command {
            // A process, or a group by its negative number.
            F_SETOWN => daemon != 0 && (argument as u32 == daemon || (argument as u32).wrapping_neg() == daemon),
            F_SETOWN_EX => match owner_ex(argument) {
                Some(pid) => daemon != 0 && pid == daemon,
                None => false,
            },
            F_SETSIG => (1..32).contains(&argument) && argument != SIGIO && argument != SIGURG,
            _ => false,
        };
        if refused {
            refuse_nameless(task, GuardHook::Fcntl, Tamper::Signal, Object { target_tgid: daemon, ..Object::number(command) })
        } else {
            Verdict::Allow
        }
    })
}

/// The process in a `struct f_owner_ex`; `None`: the kernel will not be able to read it either.
#[inline(always)]
fn owner_ex(address: u64) -> Option<u32> {
    // SAFETY: the helper checks the user address itself.
    unsafe { aya_ebpf::helpers::bpf_probe_read_user((address as usize + 4) as *const u32) }.ok()
}

/// Refuses to reach into processes of no session or another one.
#[lsm(hook = "ptrace_access_check")]
pub(crate) fn pp_lsm_ptrace(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(2), |task| {
        let (target, mode): (u64, u32) = (ctx.arg(0), ctx.arg(1));
        let own = mark_of(target).is_some_and(|mark| mark.session == task.session);
        match trace(mode, own) {
            Some(what) => {
                let object = Object { target_tgid: read(target, offset!(task_tgid)).unwrap_or_default(), ..Object::number(mode) };
                refuse_nameless(task, GuardHook::Trace, what, object)
            }
            None => Verdict::Allow,
        }
    })
}

/// Refuses `bpf(2)` altogether: every command either makes, finds, reads or attaches what the
/// gate is made of, and a session has no other use for it.
#[lsm(hook = "bpf")]
pub(crate) fn pp_lsm_bpf(ctx: LsmContext) -> i32 {
    for_session(|task| {
        let command: u32 = ctx.arg(0);
        refuse_nameless(task, GuardHook::Bpf, Tamper::Bpf, Object::number(command))
    })
}

/// Refuses to unmount what holds pins, policy or state.
#[lsm(hook = "sb_umount")]
pub(crate) fn pp_lsm_umount(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(2), |task| {
        let vfsmount: u64 = ctx.arg(0);
        let mut name: Name = [0; NAME_WORDS];
        match umount(vfsmount, &mut name) {
            Some((_, None)) => Verdict::Allow,
            Some((key, Some(what))) => refuse(task, GuardHook::Unmount, what, Object::file(key), &name),
            None => unreadable(task, GuardHook::Unmount),
        }
    })
}

#[inline(always)]
fn umount(vfsmount: u64, name: &mut Name) -> Option<(InodeKey, Option<Tamper>)> {
    let root: u64 = read(vfsmount, at!(vfsmount_mnt_root))?;
    let (key, flags) = inode(read(root, at!(dentry_d_inode))?)?;
    // The end of a mount reaches the peers of the mount below it.
    let parent: u64 = read(mount(vfsmount), at!(mount_mnt_parent))?;
    super::guard::read_name(root, name)?;
    Some((key, unmount(flags, affects_others(parent)?)))
}

/// Refuses to mount over what is guarded, where the daemon would see it.
#[lsm(hook = "sb_mount")]
pub(crate) fn pp_lsm_mount(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(5), |task| {
        let (to, flags): (u64, u64) = (ctx.arg(1), ctx.arg(3));
        mount_at(task, GuardHook::Mount, to, flags)
    })
}

/// Refuses the same by the newer calls, and to move what holds something guarded.
#[lsm(hook = "move_mount")]
pub(crate) fn pp_lsm_move_mount(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(2), |task| {
        let (from, to): (u64, u64) = (ctx.arg(0), ctx.arg(1));
        match moved(from) {
            Some(None) => mount_at(task, GuardHook::MoveMount, to, 0),
            Some(Some(key)) => refuse_nameless(task, GuardHook::MoveMount, Tamper::Mount, Object::file(key)),
            None => unreadable(task, GuardHook::MoveMount),
        }
    })
}

/// The root of the guarded mount that is taken away from where it is, if it is one.
#[inline(always)]
fn moved(from: u64) -> Option<Option<InodeKey>> {
    let (dentry, vfsmount) = path(from)?;
    let above: u64 = read(mount(vfsmount), at!(mount_mnt_parent))?;
    // A new mount, or a copy, has nothing above it yet.
    if above == mount(vfsmount) {
        return Some(None);
    }
    let (key, flags) = inode(read(dentry, at!(dentry_d_inode))?)?;
    Some(unmount(flags, affects_others(above)?).map(|_| key))
}

#[inline(always)]
fn mount_at(task: &TaskMark, hook: GuardHook, to: u64, flags: u64) -> Verdict {
    let Some((dentry, vfsmount)) = path(to) else { return unreadable(task, hook) };
    let mut name: Name = [0; NAME_WORDS];
    let (Some(seen), Some(seen_by_others)) = (look(dentry, &mut name), affects_others(mount(vfsmount))) else {
        return unreadable(task, hook);
    };
    match check_mount(flags, &seen.place, seen_by_others) {
        Some(what) => refuse(task, hook, what, Object::file(seen.key), &name),
        None => Verdict::Allow,
    }
}

/// Refuses to exchange the root of the daemon's mount namespace.
#[lsm(hook = "sb_pivotroot")]
pub(crate) fn pp_lsm_pivot(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(2), |task| match in_daemon_namespace() {
        Some(false) => Verdict::Allow,
        Some(true) => refuse_nameless(task, GuardHook::Pivot, Tamper::Mount, Object::NONE),
        None => unreadable(task, GuardHook::Pivot),
    })
}

/// Refuses to open for writing what is guarded, and devices that lead around the gate.
#[lsm(hook = "file_open")]
pub(crate) fn pp_lsm_open(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(1), |task| {
        let file: u64 = ctx.arg(0);
        let (Some(mode), Some(node)) = (read::<u32>(file, at!(file_f_mode)), read::<u64>(file, at!(file_f_inode))) else {
            return unreadable(task, GuardHook::Open);
        };
        let Some(kind) = read::<u16>(node, at!(inode_i_mode)) else { return unreadable(task, GuardHook::Open) };
        let write = mode & FMODE_WRITE != 0;
        if file_type(kind) != S_IFREG {
            let Some(number) = read::<u32>(node, at!(inode_i_rdev)) else { return unreadable(task, GuardHook::Open) };
            let taps = match WATCH.get(0) {
                Some(watch) => watch.taps,
                None => [0; 2],
            };
            return match device(kind, number, write, taps) {
                // Its devices are of the caller's network: slirp4netns and its like need it in one of their own.
                Some(Tamper::Tun) if number == TUN && in_hosts_network() == Some(false) => Verdict::Allow,
                Some(what) => named(task, GuardHook::Open, what, read(file, at!(file_dentry)), Object::number(number)),
                None => Verdict::Allow,
            };
        }
        if !write {
            return Verdict::Allow;
        }
        let Some(dentry) = read::<u64>(file, at!(file_dentry)) else { return unreadable(task, GuardHook::Open) };
        match kernels_own(node, dentry) {
            Some(None) => touched(task, GuardHook::Open, Touch::Write, dentry),
            Some(Some(what)) => named(task, GuardHook::Open, what, Some(dentry), Object::NONE),
            None => unreadable(task, GuardHook::Open),
        }
    })
}

/// Whether this is a file of the kernel's own that a session may not write. `None`: unreadable.
#[inline(always)]
fn kernels_own(node: u64, dentry: u64) -> Option<Option<Tamper>> {
    let kind = file_system(node)?;
    if kind == magic::PROC {
        let daemon = control().daemon;
        if daemon != 0 && proc_owner(node) == daemon {
            return Some(Some(Tamper::DaemonFile));
        }
    }
    if !matches!(kind, magic::PROC | magic::SYSFS | magic::CGROUP | magic::BINFMT) {
        return Some(None);
    }
    let folder: u64 = read(dentry, at!(dentry_d_parent))?;
    Some(setting(kind, name_hash(dentry)?, name_hash(folder)?))
}

/// Refuses to make files where none may be made.
#[lsm(hook = "inode_create")]
pub(crate) fn pp_lsm_inode_create(ctx: LsmContext) -> i32 {
    for_session(|task| touched(task, GuardHook::Create, Touch::Create, ctx.arg(1)))
}

/// Refuses to make folders there.
#[lsm(hook = "inode_mkdir")]
pub(crate) fn pp_lsm_mkdir(ctx: LsmContext) -> i32 {
    for_session(|task| touched(task, GuardHook::Mkdir, Touch::Create, ctx.arg(1)))
}

/// Refuses to make devices, pipes and sockets there.
#[lsm(hook = "inode_mknod")]
pub(crate) fn pp_lsm_mknod(ctx: LsmContext) -> i32 {
    for_session(|task| touched(task, GuardHook::Mknod, Touch::Create, ctx.arg(1)))
}

/// Refuses to make symbolic links there.
#[lsm(hook = "inode_symlink")]
pub(crate) fn pp_lsm_symlink(ctx: LsmContext) -> i32 {
    for_session(|task| touched(task, GuardHook::Symlink, Touch::Create, ctx.arg(1)))
}

/// Refuses other names for what is guarded, and guarded names for others.
#[lsm(hook = "inode_link")]
pub(crate) fn pp_lsm_link(ctx: LsmContext) -> i32 {
    for_session(|task| {
        let (old, new): (u64, u64) = (ctx.arg(0), ctx.arg(2));
        match touched(task, GuardHook::Link, Touch::Link, old) {
            Verdict::Allow => touched(task, GuardHook::Link, Touch::Create, new),
            refused => refused,
        }
    })
}

/// Refuses to remove what is guarded.
#[lsm(hook = "inode_unlink")]
pub(crate) fn pp_lsm_unlink(ctx: LsmContext) -> i32 {
    for_session(|task| touched(task, GuardHook::Unlink, Touch::Remove, ctx.arg(1)))
}

/// Refuses to remove folders that are guarded.
#[lsm(hook = "inode_rmdir")]
pub(crate) fn pp_lsm_rmdir(ctx: LsmContext) -> i32 {
    for_session(|task| touched(task, GuardHook::Rmdir, Touch::Remove, ctx.arg(1)))
}

/// Refuses to rename what is guarded, and to replace it by something else.
#[lsm(hook = "inode_rename")]
pub(crate) fn pp_lsm_rename(ctx: LsmContext) -> i32 {
    for_session(|task| rename(task, ctx.arg(1), ctx.arg(3)))
}

/// The same for the function that calls the hook, which takes one more argument.
#[lsm(hook = "inode_rename")]
pub(crate) fn pp_fmod_rename(ctx: LsmContext) -> i32 {
    for_session(|task| rename(task, ctx.arg(1), ctx.arg(3)))
}

#[inline(always)]
fn rename(task: &TaskMark, old: u64, new: u64) -> Verdict {
    match touched(task, GuardHook::Rename, Touch::Remove, old) {
        Verdict::Allow => touched(task, GuardHook::Rename, Touch::Remove, new),
        refused => refused,
    }
}

/// Refuses to truncate what is guarded.
#[lsm(hook = "path_truncate")]
pub(crate) fn pp_lsm_truncate(ctx: LsmContext) -> i32 {
    for_session(|task| match truncated(task, ctx.arg(0)) {
        Some(Verdict::Allow) => touched_path(task, GuardHook::Truncate, Touch::Write, ctx.arg(0)),
        Some(refused) => refused,
        None => unreadable(task, GuardHook::Truncate),
    })
}

/// Refuses what another process has open, if it comes by that process's link: `truncate(2)` opens nothing.
#[inline(always)]
fn truncated(task: &TaskMark, at: u64) -> Option<Verdict> {
    let (dentry, vfsmount) = path(at)?;
    let node: u64 = read(dentry, at!(dentry_d_inode))?;
    let mode: u16 = read(node, at!(inode_i_mode))?;
    reopened(task, GuardHook::Truncate, &Asked { inode: node, mode, vfsmount, dentry, flags: 0, opens: false })
}

/// Refuses to change the rights of what is guarded.
#[lsm(hook = "path_chmod")]
pub(crate) fn pp_lsm_chmod(ctx: LsmContext) -> i32 {
    for_session(|task| touched_path(task, GuardHook::Chmod, Touch::Attributes, ctx.arg(0)))
}

/// Refuses to give away what is guarded.
#[lsm(hook = "path_chown")]
pub(crate) fn pp_lsm_chown(ctx: LsmContext) -> i32 {
    for_session(|task| touched_path(task, GuardHook::Chown, Touch::Attributes, ctx.arg(0)))
}

/// The same on kernels whose programs cannot have the new owner, a structure passed by value (5.10). Newer kernels pass
/// something else first.
#[lsm(hook = "inode_setattr")]
pub(crate) fn pp_lsm_setattr(ctx: LsmContext) -> i32 {
    for_session(|task| {
        let (dentry, change): (u64, u64) = (ctx.arg(0), ctx.arg(1));
        // What changes is the first member of `struct iattr`.
        match read::<u32>(change, 0) {
            Some(valid) if valid & (ATTR_UID | ATTR_GID) == 0 => Verdict::Allow,
            Some(_) => touched(task, GuardHook::Chown, Touch::Attributes, dentry),
            None => unreadable(task, GuardHook::Chown),
        }
    })
}

/// Refuses to give what is guarded an extended attribute, which before 6.2 an access list is, too.
#[lsm(hook = "inode_setxattr")]
pub(crate) fn pp_lsm_setxattr(ctx: LsmContext) -> i32 {
    for_session(|task| touched(task, GuardHook::SetXattr, Touch::Attributes, with_xattr(&ctx)))
}

/// Refuses to take one away.
#[lsm(hook = "inode_removexattr")]
pub(crate) fn pp_lsm_removexattr(ctx: LsmContext) -> i32 {
    for_session(|task| touched(task, GuardHook::RemoveXattr, Touch::Attributes, with_xattr(&ctx)))
}

/// The entry whose attributes change.
#[inline(always)]
fn with_xattr(ctx: &LsmContext) -> u64 {
    // VERIFIER: "dereference of modified ctx ptr" where one load is made of both.
    let (first, second): (u64, u64) = (black_box(ctx.arg(0)), black_box(ctx.arg(1)));
    if at!(xattr_dentry) == 0 { first } else { second }
}

/// Refuses to give what is guarded an access list.
#[lsm(hook = "inode_set_acl")]
pub(crate) fn pp_lsm_set_acl(ctx: LsmContext) -> i32 {
    for_session(|task| touched(task, GuardHook::SetAcl, Touch::Attributes, ctx.arg(1)))
}

/// Refuses to take it away.
#[lsm(hook = "inode_remove_acl")]
pub(crate) fn pp_lsm_remove_acl(ctx: LsmContext) -> i32 {
    for_session(|task| touched(task, GuardHook::RemoveAcl, Touch::Attributes, ctx.arg(1)))
}

/// Refuses to mount what has the kernel run a program: `mount(2)` and `fsconfig(2)` alike, and the same when it is mounted again.
///
/// An answer of 0 passes the option on to the file system, as if no program ran here.
#[lsm(hook = "fs_context_parse_param")]
pub(crate) fn pp_lsm_fs_param(ctx: LsmContext) -> i32 {
    for_session(|task| {
        let parameter: u64 = ctx.arg(1);
        let mut name: Name = [0; NAME_WORDS];
        match read::<u64>(parameter, at!(fs_parameter_key)).and_then(|key| read_text(key, &mut name)) {
            Some(()) => match mount_option(hash(&name)) {
                Some(what) => refuse(task, GuardHook::FsParam, what, Object::NONE, &name),
                None => Verdict::Allow,
            },
            None => unreadable(task, GuardHook::FsParam),
        }
    })
}

/// Refuses modules, kernels and rules that the kernel would read from a file.
#[lsm(hook = "kernel_read_file")]
pub(crate) fn pp_lsm_read_file(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(3), |task| {
        let (file, id): (u64, u32) = (ctx.arg(0), ctx.arg(1));
        match kernel_code(id) {
            Some(what) => named(task, GuardHook::ReadFile, what, read(file, at!(file_dentry)), Object::number(id)),
            None => Verdict::Allow,
        }
    })
}

/// Refuses modules and kernels that come from the caller's memory.
#[lsm(hook = "kernel_load_data")]
pub(crate) fn pp_lsm_load_data(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(2), |task| {
        let id: u32 = ctx.arg(0);
        match kernel_code(id) {
            Some(what) => refuse_nameless(task, GuardHook::LoadData, what, Object::number(id)),
            None => Verdict::Allow,
        }
    })
}

#[inline(always)]
fn touched_path(task: &TaskMark, hook: GuardHook, what: Touch, at: u64) -> Verdict {
    match path(at) {
        Some((dentry, _)) => touched(task, hook, what, dentry),
        None => unreadable(task, hook),
    }
}

#[inline(always)]
pub(crate) fn touched(task: &TaskMark, hook: GuardHook, what: Touch, dentry: u64) -> Verdict {
    let mut name: Name = [0; NAME_WORDS];
    let Some(seen) = look(dentry, &mut name) else { return unreadable(task, hook) };
    match touch(what, &seen.place) {
        Some(what) => refuse(task, hook, what, Object::file(seen.key), &name),
        None => Verdict::Allow,
    }
}

/// A refusal with the name of a directory entry, if that can be read.
#[inline(always)]
pub(crate) fn named(task: &TaskMark, hook: GuardHook, what: Tamper, dentry: Option<u64>, object: Object) -> Verdict {
    let mut name: Name = [0; NAME_WORDS];
    match dentry.and_then(|dentry| super::guard::read_name(dentry, &mut name)) {
        // The refusal stands without a name.
        Some(()) | None => refuse(task, hook, what, object, &name),
    }
}

/// For a marked task an error denies.
#[inline(always)]
pub(crate) fn unreadable(task: &TaskMark, hook: GuardHook) -> Verdict {
    refuse_nameless(task, hook, Tamper::Unreadable, Object::NONE)
}
