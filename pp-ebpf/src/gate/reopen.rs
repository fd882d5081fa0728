//! Opening again what another process has open: the decisions are `pp_common::protect::reopen`.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::lsm, programs::LsmContext};
use pp_common::{
    abi::{Counter, TaskMark},
    decide::Verdict,
    protect::{
        FollowedLink, GuardHook, InodeKey, NAME_WORDS, Opened, is_link_to_descriptor, is_link_to_program, link, magic, may_be_nameless,
        reopen,
    },
};

use super::{
    event::{count, now_ns},
    guard::{BY_PID, Name, Object, at, file_system, inode, name_hash, read_name, refuse, task_of},
    hook::for_session_after,
    kernel::{offset, read},
    maps::FOLLOWED,
    mark::mark_of,
    protect::unreadable,
};

/// Opened by its path alone: for neither reading nor writing.
const FMODE_PATH: u32 = 0x4000;

/// Notes whose link in `/proc` a session follows. To look where it leads (`stat`) stays free, so nothing is refused here.
#[lsm(hook = "inode_follow_link")]
pub(crate) fn pp_lsm_follow(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(3), |task| {
        let (dentry, node): (u64, u64) = (ctx.arg(0), ctx.arg(1));
        if let Some(followed) = followed(task, dentry, node) {
            // Without a note nothing can be opened by it that has no name.
            if FOLLOWED.insert(bpf_get_current_pid_tgid(), &followed, 0).is_err() {
                count(Counter::ReadErrors);
            }
        }
        Verdict::Allow
    })
}

/// Refuses to open what another process has open. A program of its own: with the other rules for opened files it would be too large to be
/// one function, and two need more stack than programs have.
#[lsm(hook = "file_open")]
pub(crate) fn pp_lsm_reopen(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(1), |task| match opened(task, ctx.arg(0)) {
        Some(verdict) => verdict,
        None => unreadable(task, GuardHook::Open),
    })
}

#[inline(always)]
fn opened(task: &TaskMark, file: u64) -> Option<Verdict> {
    let node: u64 = read(file, at!(file_f_inode))?;
    let asked = Asked {
        inode: node,
        mode: read(node, at!(inode_i_mode))?,
        vfsmount: read(file, at!(file_mnt))?,
        dentry: read(file, at!(file_dentry))?,
        flags: read(file, at!(file_f_flags))?,
        opens: true,
    };
    reopened(task, GuardHook::Open, &asked)
}

/// `None`: not the link of a process.
#[inline(always)]
fn followed(task: &TaskMark, dentry: u64, node: u64) -> Option<FollowedLink> {
    let unknown = FollowedLink { inode: 0, time_ns: now_ns(), tgid: 0, kind: link::FOREIGN };
    match file_system(node) {
        Some(magic::PROC) => {}
        Some(_) => return None,
        None => return Some(unknown),
    }
    let around = node.wrapping_add(at!(inode_to_proc_pid) as u32 as i32 as i64 as u64);
    let owner = match read::<u64>(around, 0) {
        // `/proc/self` and its like are names, and what they lead to comes next.
        Some(0) => return None,
        Some(pid) => task_of(pid, BY_PID),
        None => None,
    };
    let Some(owner) = owner else { return Some(unknown) };
    let tgid = read::<u32>(owner, offset!(task_tgid)).unwrap_or_default();
    let own = mark_of(owner).is_some_and(|mark| mark.session == task.session);
    let (inode, by_path) = match target(dentry, node, owner) {
        Some(target) => target,
        None => (0, false),
    };
    let kind = match (own, by_path) {
        (false, _) => link::FOREIGN,
        (true, true) => link::BY_PATH,
        (true, false) => link::OWN,
    };
    // By path alone it has a file of another process, which is not known any more.
    let tgid = if kind == link::BY_PATH { 0 } else { tgid };
    Some(FollowedLink { inode, tgid, kind, ..unknown })
}

/// The inode that a link leads to, and whether it leads to a file that was opened by its path alone. `None`: another kind of link, or it
/// cannot be read.
///
/// RACE: before the kernel looks itself, another thread can put another file there. Its inode is another one then, which is not what was
/// noted.
#[inline(always)]
fn target(dentry: u64, node: u64, owner: u64) -> Option<(u64, bool)> {
    let file: u64 = if is_link_to_descriptor(name_hash(read(dentry, at!(dentry_d_parent))?)?) {
        let around = node.wrapping_add(at!(inode_to_proc_fd) as u32 as i32 as i64 as u64);
        let number: u32 = read(around, 0)?;
        let files: u64 = read(owner, at!(task_files))?;
        let table: u64 = read(files, at!(files_fdt))?;
        let first: u64 = read(table, at!(fdtable_fd))?;
        read(first.wrapping_add(8 * u64::from(number)), 0)?
    } else if is_link_to_program(name_hash(dentry)?) {
        let memory: u64 = read(owner, offset!(task_mm))?;
        read(memory, at!(mm_exe_file))?
    } else {
        return None;
    };
    let mode: u32 = read(file, at!(file_f_mode))?;
    Some((read(file, at!(file_f_inode))?, mode & FMODE_PATH != 0))
}

/// What the hook of opened files, or that of truncation, asks.
pub(crate) struct Asked {
    pub(crate) inode: u64,
    pub(crate) mode: u16,
    pub(crate) vfsmount: u64,
    pub(crate) dentry: u64,
    pub(crate) flags: u32,
    pub(crate) opens: bool,
}

/// Refuses what is another process's. `None`: it cannot be read.
#[inline(always)]
pub(crate) fn reopened(task: &TaskMark, hook: GuardHook, asked: &Asked) -> Option<Verdict> {
    let file_system = file_system(asked.inode)?;
    // Only these are looked at closer: everything else has a name.
    let mount_flags: u32 = if may_be_nameless(file_system) { read(asked.vfsmount, at!(vfsmount_mnt_flags))? } else { 0 };
    let opened = Opened {
        inode: asked.inode,
        mode: asked.mode,
        device: read(asked.inode, at!(inode_i_rdev))?,
        names: read(asked.inode, at!(inode_i_nlink))?,
        file_system,
        mount_flags,
        flags: asked.flags,
        opens: asked.opens,
        now_ns: now_ns(),
    };
    // VERIFIER: "R2 !read_ok" where there may be none: a link of zeros is of no kind and leads nowhere, which says the same.
    let followed = match FOLLOWED.get_ptr(bpf_get_current_pid_tgid()) {
        // SAFETY: a map value; it stays readable while this program runs.
        Some(link) => unsafe { *link },
        None => FollowedLink::default(),
    };
    let Some(what) = reopen(&opened, Some(&followed)) else { return Some(Verdict::Allow) };
    let mut name: Name = [0; NAME_WORDS];
    // A pipe has none.
    if read_name(asked.dentry, &mut name).is_none() {
        name = [0; NAME_WORDS];
    }
    let key = inode(asked.inode).map_or(InodeKey::default(), |(key, _)| key);
    Some(refuse(task, hook, what, Object { target_tgid: followed.tgid, ..Object::file(key) }, &name))
}
