//! What the tamper and delegate hooks share: files, mounts and processes as
//! the kernel holds them, and the record of a refusal.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use pp_common::{
    abi::{Counter, RepeatKey, TASK_CANARY, TaskMark},
    decide::{Reason, Verdict},
    dest::Addr,
    protect::{
        GUARD_DEPTH, GUARD_LATER, GUARD_NAMES, GUARD_SELF, GuardHook, GuardOffsets, GuardRecord, InodeKey, NAME_WORDS, NameKey, Place,
        S_IFDIR, TEXT_WORDS, Tamper, file_type, hash, is_login_file,
    },
    record::kind,
};

use super::{
    event::{begin_attempt, count, count_refusal, now_ns},
    kernel::{current_task, offset, read},
    log::{program, warn},
    maps::{GUARDED, NAMES, WATCH},
    mark::current_tgid,
};

/// Filled in by the loader before the object is loaded, read-only afterwards.
#[unsafe(no_mangle)]
static GUARD_OFFSETS: GuardOffsets = GuardOffsets {
    file_f_mode: 0,
    file_f_inode: 0,
    file_dentry: 0,
    path_mnt: 0,
    path_dentry: 0,
    dentry_d_inode: 0,
    dentry_d_parent: 0,
    dentry_name: 0,
    inode_i_mode: 0,
    inode_i_rdev: 0,
    inode_i_ino: 0,
    inode_i_generation: 0,
    inode_i_sb: 0,
    super_s_dev: 0,
    super_s_magic: 0,
    vfsmount_mnt_root: 0,
    mount_mnt: 0,
    mount_mnt_parent: 0,
    mount_mnt_group_id: 0,
    task_nsproxy: 0,
    nsproxy_mnt_ns: 0,
    mnt_namespace_inum: 0,
    task_cred: 0,
    cred_euid: 0,
    task_comm: 0,
    task_pid_links: 0,
    pid_tasks: 0,
    inode_to_proc_pid: 0,
    sk_peer_pid: 0,
    unix_sock_addr: 0,
    unix_sock_dentry: 0,
    unix_address_len: 0,
    unix_address_name: 0,
    file_f_flags: 0,
    file_mnt: 0,
    vfsmount_mnt_flags: 0,
    inode_to_proc_fd: 0,
    task_files: 0,
    files_fdt: 0,
    fdtable_fd: 0,
    mm_exe_file: 0,
    inode_i_nlink: 0,
    sk_peer_cred: 0,
    fs_parameter_key: 0,
    nsproxy_net_ns: 0,
    cred_cap_effective: 0,
    cred_user_ns: 0,
    user_ns_level: 0,
    sk_buff_data: 0,
    sk_buff_len: 0,
    sk_buff_group: 0,
    net_numbers: 0,
    task_stack: 0,
    task_status: 0,
    xattr_dentry: 0,
    pad: 0,
};

/// The offset that `pick` selects.
#[inline(always)]
pub(crate) fn member(pick: impl FnOnce(*const GuardOffsets) -> *const u32) -> u32 {
    // SAFETY: `pick` returns a member of a static; volatile, since the loader changed it after
    // the compiler saw it.
    unsafe { core::ptr::read_volatile(pick(&raw const GUARD_OFFSETS)) }
}

/// `at!(member)`: the offset of that member of [`GuardOffsets`].
macro_rules! at {
    ($member:ident) => {
        $crate::gate::guard::member(|offsets| {
            // SAFETY: the address of a member of the static that was passed in.
            unsafe { &raw const (*offsets).$member }
        }) as usize
    };
}
pub(crate) use at;

/// A file name, filled up with NULs.
pub(crate) type Name = [u64; NAME_WORDS];
/// The text of a record, filled up with NULs.
pub(crate) type Text = [u64; TEXT_WORDS];

/// What a refusal is about.
#[derive(Clone, Copy)]
pub(crate) struct Object {
    pub(crate) key: InodeKey,
    pub(crate) target_tgid: u32,
    pub(crate) number: u32,
}

impl Object {
    pub(crate) const NONE: Self = Self { key: InodeKey { ino: 0, dev: 0, folder: 0 }, target_tgid: 0, number: 0 };

    #[inline(always)]
    pub(crate) const fn number(number: u32) -> Self {
        Self { number, ..Self::NONE }
    }

    #[inline(always)]
    pub(crate) const fn file(key: InodeKey) -> Self {
        Self { key, ..Self::NONE }
    }
}

/// A file as the hooks see it: what is guarded about it, and what it is.
pub(crate) struct Seen {
    pub(crate) place: Place,
    pub(crate) key: InodeKey,
}

/// The inode's number, and its `GUARD_*` flags. `None`: it cannot be read.
#[inline(always)]
pub(crate) fn inode(inode: u64) -> Option<(InodeKey, u32)> {
    let super_block: u64 = read(inode, at!(inode_i_sb))?;
    let folder = (file_type(read::<u16>(inode, at!(inode_i_mode))?) == S_IFDIR) as u32;
    let key = InodeKey { ino: read(inode, at!(inode_i_ino))?, dev: read(super_block, at!(super_s_dev))?, folder };
    let Some(guard) = GUARDED.get_ptr(&key) else { return Some((key, 0)) };
    // SAFETY: a map value; it stays readable while this program runs.
    let (flags, generation) = unsafe { ((*guard).flags, (*guard).generation) };
    let own: u32 = read(inode, at!(inode_i_generation))?;
    Some((key, if generation == 0 || generation == own { flags } else { 0 }))
}

/// What is guarded about a directory entry, whether a file is behind it or not. `None`: it cannot
/// be read.
#[inline(always)]
pub(crate) fn look(dentry: u64, name: &mut Name) -> Option<Seen> {
    let node: u64 = read(dentry, at!(dentry_d_inode))?;
    let (key, own) = if node == 0 { (InodeKey { ino: 0, dev: 0, folder: 0 }, 0) } else { inode(node)? };
    let mut place = Place { own, parent: 0, above: 0, named: 0 };
    let mut folder = InodeKey { ino: 0, dev: 0, folder: 0 };
    let mut folder_dentry = dentry;
    let mut at = dentry;
    for level in 0..GUARD_DEPTH {
        let up: u64 = read(at, at!(dentry_d_parent))?;
        // The root of a file system is its own parent: looking at it again changes nothing.
        if up == at && level > 0 {
            break;
        }
        let node: u64 = read(up, at!(dentry_d_inode))?;
        let (up_key, flags) = inode(node)?;
        if level == 0 {
            folder = up_key;
            folder_dentry = up;
            // The root lies in no folder.
            place.parent = if up == at { 0 } else { flags };
        }
        place.above |= if up == at { 0 } else { flags };
        at = up;
    }
    read_name(dentry, name)?;
    let hashed = hash(name);
    if place.parent & GUARD_NAMES != 0
        && let Some(flags) = NAMES.get_ptr(&NameKey { dir: folder, hash: hashed })
    {
        // SAFETY: as in `inode`.
        place.named = unsafe { *flags };
    }
    if is_login_file(hashed, name_hash(folder_dentry)?) {
        place.named |= GUARD_SELF | GUARD_LATER;
    }
    Some(Seen { place, key })
}

/// Reads the name of a directory entry.
#[inline(always)]
pub(crate) fn read_name(dentry: u64, into: &mut Name) -> Option<()> {
    read_text(read(dentry, at!(dentry_name))?, into)
}

/// Reads a text of the kernel's that ends in a NUL.
#[inline(always)]
pub(crate) fn read_text(from: u64, into: &mut Name) -> Option<()> {
    *into = [0; NAME_WORDS];
    // SAFETY: the helper writes at most the buffer's size, and checks the address itself.
    let length = unsafe { bpf_probe_read_kernel_str(into.as_mut_ptr().cast(), (NAME_WORDS * 8) as u32, from as *const _) };
    if length < 0 { None } else { Some(()) }
}

/// The hash of a directory entry's name.
#[inline(always)]
pub(crate) fn name_hash(dentry: u64) -> Option<u64> {
    let mut name: Name = [0; NAME_WORDS];
    read_name(dentry, &mut name)?;
    Some(hash(&name))
}

/// The magic number of the inode's file system.
#[inline(always)]
pub(crate) fn file_system(inode: u64) -> Option<u64> {
    let super_block: u64 = read(inode, at!(inode_i_sb))?;
    read(super_block, at!(super_s_magic))
}

/// The directory entry and the mount of a `struct path`.
#[inline(always)]
pub(crate) fn path(path: u64) -> Option<(u64, u64)> {
    Some((read(path, at!(path_dentry))?, read(path, at!(path_mnt))?))
}

/// The `struct mount` around a `struct vfsmount`.
#[inline(always)]
pub(crate) fn mount(vfsmount: u64) -> u64 {
    vfsmount.wrapping_sub(at!(mount_mnt) as u64)
}

/// Whether others feel what happens to this mount: the caller is in the daemon's mount namespace,
/// or the mount has peers in other namespaces.
#[inline(always)]
pub(crate) fn affects_others(mount: u64) -> Option<bool> {
    let group: u32 = read(mount, at!(mount_mnt_group_id))?;
    Some(group != 0 || in_daemon_namespace()?)
}

/// Whether the caller is in the daemon's mount namespace, or it is not known which that is.
#[inline(always)]
pub(crate) fn in_daemon_namespace() -> Option<bool> {
    let proxy: u64 = read(current_task(), at!(task_nsproxy))?;
    let namespace: u64 = read(proxy, at!(nsproxy_mnt_ns))?;
    let number: u32 = read(namespace, at!(mnt_namespace_inum))?;
    Some(match WATCH.get(0) {
        Some(watch) if watch.mount_namespace != 0 => watch.mount_namespace == number,
        Some(_) | None => true,
    })
}

/// `PIDTYPE_PID` and `PIDTYPE_TGID`.
pub(crate) const BY_PID: usize = 0;
pub(crate) const BY_TGID: usize = 1;

/// The first task of a `struct pid`; `None`: there is none any more.
#[inline(always)]
pub(crate) fn task_of(pid: u64, by: usize) -> Option<u64> {
    if pid == 0 {
        return None;
    }
    // An `hlist_head` is one pointer, an `hlist_node` two.
    let first: u64 = read(pid, at!(pid_tasks) + 8 * by)?;
    if first == 0 {
        return None;
    }
    Some(first.wrapping_sub((at!(task_pid_links) + 16 * by) as u64))
}

/// The process a file of procfs is about; zero: none.
#[inline(always)]
pub(crate) fn proc_owner(inode: u64) -> u32 {
    let around = inode.wrapping_add(at!(inode_to_proc_pid) as u32 as i32 as i64 as u64);
    let Some(pid) = read::<u64>(around, 0) else { return 0 };
    let Some(task) = task_of(pid, BY_PID) else { return 0 };
    read(task, offset!(task_tgid)).unwrap_or_default()
}

/// The user as whom the caller acts.
#[inline(always)]
pub(crate) fn euid() -> Option<u32> {
    read::<u64>(current_task(), at!(task_cred)).and_then(|cred| read(cred, at!(cred_euid)))
}

/// Whether the caller acts as root.
#[inline(always)]
pub(crate) fn is_root() -> bool {
    // For a marked task an error counts against it.
    match euid() {
        Some(euid) => euid == 0,
        None => true,
    }
}

/// Refuses, and reports it.
#[inline(always)]
pub(crate) fn refuse(task: &TaskMark, hook: GuardHook, what: Tamper, object: Object, name: &Name) -> Verdict {
    report(task, kind::TAMPER, hook, what, Verdict::Block, object, name);
    Verdict::Block
}

/// The same where there is no name to report.
#[inline(always)]
pub(crate) fn refuse_nameless(task: &TaskMark, hook: GuardHook, what: Tamper, object: Object) -> Verdict {
    refuse(task, hook, what, object, &[0; NAME_WORDS])
}

/// Writes a record; the first of a pair at once, its repeats within the window as a number.
#[inline(always)]
pub(crate) fn report<const WORDS: usize>(
    task: &TaskMark,
    record_kind: u32,
    hook: GuardHook,
    what: Tamper,
    verdict: Verdict,
    object: Object,
    text: &[u64; WORDS],
) {
    count(Counter::Judged);
    let refusal = count_refusal(verdict, task.flags);
    let now = now_ns();
    let number = u64::from(object.dev_or_number()) ^ hash(text);
    let key = RepeatKey {
        session: task.session,
        addr: Addr([object.key.ino ^ u64::from(object.target_tgid), number]),
        port: what as u16,
        transport: hook as u8,
        verdict: verdict as u8,
        reason: if record_kind == kind::TAMPER { Reason::Tamper as u8 } else { Reason::Delegate as u8 },
        packet: 0,
        canary: u8::from(task.flags & TASK_CANARY != 0),
        pad: 0,
    };
    let mut trouble = None;
    if let Some((mut entry, due)) = begin_attempt::<GuardRecord>(&key, now, false, refusal, &mut trouble) {
        let record = entry.as_mut_ptr();
        // SAFETY: reserved memory of this size, every member of which is written here.
        unsafe {
            (*record).header.kind = record_kind;
            (*record).header.flags = task.flags;
            (*record).header.time_ns = now;
            (*record).header.session = task.session;
            (*record).header.agent = task.agent;
            (*record).header.owner = task.owner;
            (*record).header.tgid = current_tgid();
            (*record).ino = object.key.ino;
            (*record).repeats = due.repeats;
            (*record).repeats_id = due.id;
            (*record).dev = object.key.dev;
            (*record).target_tgid = object.target_tgid;
            (*record).number = object.number;
            (*record).what = what as u8;
            (*record).hook = hook as u8;
            (*record).verdict = verdict as u8;
            (*record).pad = 0;
            let into = (&raw mut (*record).text).cast::<u64>();
            for i in 0..TEXT_WORDS {
                into.add(i).write_volatile(if i < WORDS { text[i] } else { 0 });
            }
        }
        entry.submit(0);
    }
    // VERIFIER: "Unreleased reference" on 5.10 where the record is not submitted before.
    if let Some(trouble) = trouble {
        warn(program!(programs), trouble);
    }
}

impl Object {
    #[inline(always)]
    const fn dev_or_number(&self) -> u32 {
        self.key.dev ^ self.number
    }
}
