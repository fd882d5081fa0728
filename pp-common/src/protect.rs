//! Tampering: what a session may not do to its own gate, and to what acts in its stead later. Layouts, and the decisions, which are pure: a
//! hook gathers what they ask for and carries out what they say.
//!
//! Layouts as in [`crate::abi`]: integers and byte arrays only, named padding.

mod ioctl;
mod names;
mod reopen;

pub use ioctl::{leaves_file, types};
use names::hash_text;
pub use names::{NAME_WORDS, TEXT_WORDS, hash, hash_bound, hash_name};
pub use reopen::{FollowedLink, MAX_FOLLOWED, Opened, is_link_to_descriptor, is_link_to_program, link, may_be_nameless, reopen};

pub use crate::tamper::{GuardHook, Tamper};

use crate::record::RecordHeader;

/// Most inodes that are guarded.
pub const MAX_GUARDED: u32 = 4_096;
/// Most names that are guarded in some folder.
pub const MAX_GUARDED_NAMES: u32 = 4_096;
/// Folders above a file that are looked at.
pub const GUARD_DEPTH: usize = 6;
/// Bytes of a name that are compared, the NUL included.
pub const NAME_LEN: usize = 64;
/// Bytes of a text in a [`GuardRecord`].
pub const TEXT_LEN: usize = 128;

/// A file, as the kernel itself names it: what `stat` says of the device is
/// not that on every file system.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeKey {
    /// Inode number.
    pub ino: u64,
    /// `super_block.s_dev`.
    pub dev: u32,
    /// One for a folder: on overlayfs files and folders are numbered apart.
    pub folder: u32,
}

/// What is guarded about an inode.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// `GUARD_*` flags.
    pub flags: u32,
    /// The inode's generation, which tells a recycled number apart; zero: not known.
    pub generation: u32,
}

/// It may not be written, truncated, renamed, removed, linked or covered.
pub const GUARD_SELF: u32 = 1;
/// The same holds for everything below it, and nothing may be made there.
pub const GUARD_TREE: u32 = 2;
/// It lies above something guarded: it may not be renamed, removed or covered.
pub const GUARD_PATH: u32 = 4;
/// The root of a mount that holds something guarded: it may not be unmounted or moved.
pub const GUARD_MOUNT: u32 = 8;
/// Names in this folder are guarded.
pub const GUARD_NAMES: u32 = 16;
/// Not the gate's own, but something that acts later, for whoever wrote it.
pub const GUARD_LATER: u32 = 32;
/// Files directly in this folder may not be written: a cgroup the daemon is in.
pub const GUARD_FILES: u32 = 64;

/// Key of the table of guarded names.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameKey {
    /// The folder.
    pub dir: InodeKey,
    /// [`hash`] of the name.
    pub hash: u64,
}

/// What the programs know of the daemon beside [`crate::abi::Control`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Inode number of the daemon's mount namespace; zero: not known.
    pub mount_namespace: u32,
    /// The same of its network namespace, which is the host's.
    pub network_namespace: u32,
    /// A code of [`crate::net_admin::NetAdmin`].
    pub net_admin: u32,
    /// Major numbers of the devices whose bytes are frames of another link (`macvtap`, `ipvtap`); zero: there is none.
    pub taps: [u32; 2],
    /// Zero.
    pub pad: u32,
}

/// Offsets of the members that these programs read, as [`crate::abi::Offsets`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after its structure and member")]
pub struct GuardOffsets {
    pub file_f_mode: u32,
    pub file_f_inode: u32,
    /// `file.f_path.dentry`
    pub file_dentry: u32,
    pub path_mnt: u32,
    pub path_dentry: u32,
    pub dentry_d_inode: u32,
    pub dentry_d_parent: u32,
    /// `dentry.d_name.name`
    pub dentry_name: u32,
    pub inode_i_mode: u32,
    pub inode_i_rdev: u32,
    pub inode_i_ino: u32,
    pub inode_i_generation: u32,
    pub inode_i_sb: u32,
    pub super_s_dev: u32,
    pub super_s_magic: u32,
    pub vfsmount_mnt_root: u32,
    /// `mount.mnt`
    pub mount_mnt: u32,
    pub mount_mnt_parent: u32,
    pub mount_mnt_group_id: u32,
    pub task_nsproxy: u32,
    pub nsproxy_mnt_ns: u32,
    /// `mnt_namespace.ns.inum`
    pub mnt_namespace_inum: u32,
    pub task_cred: u32,
    pub cred_euid: u32,
    pub task_comm: u32,
    pub task_pid_links: u32,
    pub pid_tasks: u32,
    /// `proc_inode.pid` less `proc_inode.vfs_inode`, modulo 2^32.
    pub inode_to_proc_pid: u32,
    pub sk_peer_pid: u32,
    pub unix_sock_addr: u32,
    /// `unix_sock.path.dentry`
    pub unix_sock_dentry: u32,
    pub unix_address_len: u32,
    pub unix_address_name: u32,
    pub file_f_flags: u32,
    /// `file.f_path.mnt`
    pub file_mnt: u32,
    pub vfsmount_mnt_flags: u32,
    /// `proc_inode.fd` less `proc_inode.vfs_inode`, modulo 2^32.
    pub inode_to_proc_fd: u32,
    pub task_files: u32,
    pub files_fdt: u32,
    pub fdtable_fd: u32,
    pub mm_exe_file: u32,
    pub inode_i_nlink: u32,
    pub sk_peer_cred: u32,
    pub fs_parameter_key: u32,
    pub nsproxy_net_ns: u32,
    pub cred_cap_effective: u32,
    pub cred_user_ns: u32,
    /// `user_namespace.level`, zero of the first one.
    pub user_ns_level: u32,
    pub sk_buff_data: u32,
    pub sk_buff_len: u32,
    /// `sk_buff.cb`, as netlink's `dst_group`.
    pub sk_buff_group: u32,
    /// `net.netns_ids`: whether it has any.
    pub net_numbers: u32,
    pub task_stack: u32,
    /// `task_struct.thread_info.status`
    pub task_status: u32,
    /// Which argument of the hooks of extended attributes is the entry: no offset.
    pub xattr_dentry: u32,
    pub pad: u32,
}

/// A refusal that is not about an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardRecord {
    /// The header.
    pub header: RecordHeader,
    /// The file, if it was one.
    pub ino: u64,
    /// As in [`crate::record::VerdictRecord`].
    pub repeats: u64,
    /// As in [`crate::record::VerdictRecord`].
    pub repeats_id: u64,
    /// The file's device.
    pub dev: u32,
    /// The process that was meant, if it was one.
    pub target_tgid: u32,
    /// Signal, command, kind of access or device, by what was tried.
    pub number: u32,
    /// [`Tamper`] code.
    pub what: u8,
    /// [`GuardHook`] code.
    pub hook: u8,
    /// Verdict code.
    pub verdict: u8,
    /// Zero.
    pub pad: u8,
    /// The file's own name, or the name a socket is bound to; ends in NULs.
    pub text: [u8; TEXT_LEN],
}

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Opened for writing, or truncated.
    Write,
    /// Given other rights or another owner.
    Attributes,
    /// Removed, renamed away, or replaced by a rename.
    Remove,
    /// Made.
    Create,
    /// Given another name.
    Link,
    /// Mounted over.
    Cover,
}

/// What was found about a file: the flags of its own inode, of the folder it
/// lies in, and of all folders above it that were looked at, the nearest
/// included; and of its name in that folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Of the inode; zero where there is none yet.
    pub own: u32,
    /// Of the folder.
    pub parent: u32,
    /// Of every folder above.
    pub above: u32,
    /// Of the name.
    pub named: u32,
}

/// Whether a session may touch a file so.
#[must_use]
#[inline(always)]
pub const fn touch(touch: Touch, place: &Place) -> Option<Tamper> {
    let own = match touch {
        Touch::Write | Touch::Link => GUARD_SELF,
        Touch::Attributes => GUARD_SELF | GUARD_TREE,
        Touch::Remove | Touch::Cover => GUARD_SELF | GUARD_TREE | GUARD_PATH | GUARD_FILES,
        Touch::Create => 0,
    };
    let later = GUARD_LATER;
    if place.own & own != 0 {
        // What is above something of our own may be above other things too.
        return Some(if place.own & later != 0 { Tamper::LaterFile } else { Tamper::OwnFile });
    }
    if place.named & GUARD_SELF != 0 {
        return Some(if place.named & later != 0 { Tamper::LaterFile } else { Tamper::OwnFile });
    }
    if place.above & GUARD_TREE != 0 {
        return Some(if place.above & later != 0 { Tamper::LaterFile } else { Tamper::OwnFile });
    }
    if matches!(touch, Touch::Write) && place.parent & GUARD_FILES != 0 {
        return Some(Tamper::DaemonFile);
    }
    None
}

/// Whether a session may send this signal. Signal 0 sends nothing.
#[must_use]
#[inline(always)]
pub const fn signal(signal: u32, to_daemon: bool, to_marked: bool) -> Option<Tamper> {
    // The daemon's number may long be another's, even a process of the session.
    if signal != 0 && to_daemon && !to_marked { Some(Tamper::Signal) } else { None }
}

/// Whether a session may change how much a process may use, and when it runs.
#[must_use]
#[inline(always)]
pub const fn limits(of_daemon: bool, of_marked: bool) -> Option<Tamper> {
    // The daemon's number may long be another's, as in `signal`.
    if of_daemon && !of_marked { Some(Tamper::Limits) } else { None }
}

/// `PTRACE_MODE_ATTACH`: to write its memory, take its descriptors, stop it.
pub const TRACE_ATTACH: u32 = 2;

/// Whether a session may reach into a process: only into its own, except to look.
#[must_use]
#[inline(always)]
pub const fn trace(mode: u32, own_session: bool) -> Option<Tamper> {
    if mode & TRACE_ATTACH != 0 && !own_session { Some(Tamper::Trace) } else { None }
}

/// `kernel_read_file_id` and `kernel_load_data_id` of firmware, which device
/// drivers ask for in the name of whoever uses the device.
const FIRMWARE: u32 = 1;

/// Whether the kernel may take code or rules from a session: firmware alone.
/// The numbers of the others differ between kernels.
#[must_use]
#[inline(always)]
pub const fn kernel_code(id: u32) -> Option<Tamper> {
    if id == FIRMWARE { None } else { Some(Tamper::KernelCode) }
}

const S_IFMT: u16 = 0o170_000;
const S_IFIFO: u16 = 0o010_000;
const S_IFCHR: u16 = 0o020_000;
const S_IFBLK: u16 = 0o060_000;
/// A regular file in an inode's mode.
pub const S_IFREG: u16 = 0o100_000;
/// The same of a folder.
pub const S_IFDIR: u16 = 0o040_000;

/// The kind of file in an inode's mode.
#[must_use]
#[inline(always)]
pub const fn file_type(mode: u16) -> u16 {
    mode & S_IFMT
}

/// A device number as the kernel holds it.
#[must_use]
pub const fn device_number(major: u32, minor: u32) -> u32 {
    (major << 20) | minor
}

/// `/dev/net/tun`, which makes devices of the network that the caller is in.
pub const TUN: u32 = 0x00a0_00c8;

/// Whether a session may open this device. `taps`: as in [`Watch`].
#[must_use]
#[inline(always)]
pub const fn device(mode: u16, number: u32, write: bool, taps: [u32; 2]) -> Option<Tamper> {
    let major = number >> 20;
    match file_type(mode) {
        S_IFCHR => match number {
            // /dev/mem, /dev/kmem, /dev/port
            0x0010_0001 | 0x0010_0002 | 0x0010_0004 => Some(Tamper::KernelMemory),
            // /dev/net/tun and /dev/ppp
            TUN | 0x06c0_0000 => Some(Tamper::Tun),
            // /dev/tapN. Whoever has it open sends and hears what the link below does, without any capability.
            _ if major != 0 && (major == taps[0] || major == taps[1]) => Some(Tamper::Tun),
            // /dev/uinput and /dev/uhid, which make keyboards.
            0x00a0_00df | 0x00a0_00ef => Some(Tamper::Terminal),
            // What is written to an input device counts as typed on it.
            _ if major == 13 && write => Some(Tamper::Terminal),
            // SCSI by its generic device.
            _ if major == 21 && write => Some(Tamper::RawDisk),
            _ => None,
        },
        // Not ram, loop and network disks, which hold files of somebody's making.
        S_IFBLK if write && !matches!(major, 1 | 7 | 43) => Some(Tamper::RawDisk),
        _ => None,
    }
}

/// `super_block.s_magic` of file systems whose files are the kernel's own.
pub mod magic {
    /// procfs
    pub const PROC: u64 = 0x9fa0;
    /// sysfs
    pub const SYSFS: u64 = 0x6265_6572;
    /// `binfmt_misc`
    pub const BINFMT: u64 = 0x4249_4e4d;
    /// cgroup version 1
    pub const CGROUP: u64 = 0x0027_e0eb;
    /// Pipes without a name.
    pub const PIPE: u64 = 0x5049_5045;
    /// tmpfs, of which the kernel has one for itself: `memfd_create(2)`, System V shared memory.
    pub const TMPFS: u64 = 0x0102_1994;
    /// The same of huge pages.
    pub const HUGETLBFS: u64 = 0x9584_58f6;
    /// `memfd_secret(2)`
    pub const SECRETMEM: u64 = 0x5345_434d;
}

/// Whether a session may write this file of the kernel's own: not where that
/// starts a program as root, or turns hooks or the host off.
#[must_use]
#[inline(always)]
pub const fn setting(file_system: u64, name: u64, folder: u64) -> Option<Tamper> {
    const KERNEL: u64 = hash_text("kernel");
    const IN_KERNEL: [u64; 6] = [
        hash_text("core_pattern"),
        hash_text("modprobe"),
        hash_text("hotplug"),
        hash_text("poweroff_cmd"),
        // Without it no program on a trampoline runs any more.
        hash_text("ftrace_enabled"),
        hash_text("sysrq"),
    ];
    let refused = match file_system {
        magic::PROC => {
            let in_kernel = name == IN_KERNEL[0]
                || name == IN_KERNEL[1]
                || name == IN_KERNEL[2]
                || name == IN_KERNEL[3]
                || name == IN_KERNEL[4]
                || name == IN_KERNEL[5];
            in_kernel && folder == KERNEL
                || name == const { hash_text("sysrq-trigger") }
                || name == const { hash_text("hb_ctl_path") }
                || folder == const { hash_text("usermodehelper") }
                // Sends any frame by any interface of the network that the file is of.
                || folder == const { hash_text("pktgen") }
        }
        magic::SYSFS => {
            let helper = name == const { hash_text("cache_getent") }
                || name == const { hash_text("cltrack_prog") }
                || name == const { hash_text("usermode_helper") };
            helper && folder == const { hash_text("parameters") } || name == const { hash_text("uevent_helper") }
        }
        magic::CGROUP => name == RELEASE_AGENT,
        magic::BINFMT => true,
        _ => false,
    };
    if refused { Some(Tamper::KernelSetting) } else { None }
}

/// The program that cgroup version 1 runs when a cgroup has no process left.
const RELEASE_AGENT: u64 = hash_text("release_agent");

/// Whether a session may give a file system this option: not where it names a program that the kernel runs as root.
#[must_use]
#[inline(always)]
pub const fn mount_option(name: u64) -> Option<Tamper> {
    if name == RELEASE_AGENT { Some(Tamper::KernelSetting) } else { None }
}

/// Whether this file lets people in by key: a name that counts in any home.
#[must_use]
#[inline(always)]
pub const fn is_login_file(name: u64, folder: u64) -> bool {
    (name == const { hash_text("authorized_keys") } || name == const { hash_text("authorized_keys2") })
        && folder == const { hash_text(".ssh") }
}

/// `mount(2)` flags that only say how mounts propagate.
const PROPAGATION: u64 = 0x001e_0000;
const MS_MOVE: u64 = 0x2000;

/// Whether a session may mount over this place. `seen_by_others`: other processes of the
/// daemon's mount namespace would see it.
#[must_use]
#[inline(always)]
pub const fn mount(flags: u64, place: &Place, seen_by_others: bool) -> Option<Tamper> {
    if flags & PROPAGATION != 0 || !seen_by_others {
        return None;
    }
    // What is moved is named by a path that this hook cannot follow.
    if flags & MS_MOVE != 0 || touch(Touch::Cover, place).is_some() { Some(Tamper::Mount) } else { None }
}

/// Whether a session may take away the mount whose root has these flags.
#[must_use]
#[inline(always)]
pub const fn unmount(root: u32, seen_by_others: bool) -> Option<Tamper> {
    if root & GUARD_MOUNT != 0 && seen_by_others { Some(Tamper::Unmount) } else { None }
}

const _: () = {
    assert!(size_of::<InodeKey>() == 8 + 2 * 4);
    assert!(size_of::<Guard>() == 2 * 4);
    assert!(size_of::<NameKey>() == 16 + 8);
    assert!(size_of::<Watch>() == 6 * 4);
    assert!(size_of::<GuardOffsets>() == 56 * 4);
    assert!(size_of::<GuardRecord>() == 40 + 3 * 8 + 3 * 4 + 4 + TEXT_LEN);
};

#[cfg(feature = "user")]
mod pod {
    use super::{Guard, GuardOffsets, InodeKey, NameKey, Watch};
    macro_rules! pod {
        ($($t:ty),*) => { $(
            // SAFETY: as in `abi`: repr(C) of integers with named padding.
            unsafe impl aya::Pod for $t {}
        )* };
    }
    pod!(InodeKey, Guard, NameKey, Watch, GuardOffsets);
}

#[cfg(test)]
#[path = "protect_tests.rs"]
mod tests;
