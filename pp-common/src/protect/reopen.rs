//! Opening again what another process has open, by the links in `/proc/PID/fd` and their like.
//!
//! Such a link leads to the file itself, not to a name. So it opens what has no name at all, pipes, memory files and deleted ones, and lets
//! bytes into them that their readers take for those of whoever made them. The hook of links notes whose link a thread follows and where it leads, and the
//! hook of opened files asks for that note. A link of the session's own may lead to a file that was opened by its path alone (`O_PATH`) by
//! another's link: that counts as the other's.

use super::{S_IFCHR, S_IFIFO, S_IFREG, Tamper, file_type, hash_text, magic};

/// Most threads whose last link is known.
pub const MAX_FOLLOWED: u32 = 4_096;

/// The last link of a process in `/proc` that a thread of a session has followed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FollowedLink {
    /// Address of the inode it led to, when it was followed; zero: not known.
    pub inode: u64,
    /// When, boot time.
    pub time_ns: u64,
    /// The process that the link is about; zero: not known.
    pub tgid: u32,
    /// A constant of [`link`].
    pub kind: u32,
}

/// Whose a link is.
pub mod link {
    /// Of a process of the session, to a file that it has open for reading or writing.
    pub const OWN: u32 = 1;
    /// Of any other process.
    pub const FOREIGN: u32 = 2;
    /// Of a process of the session, to a file that it opened by its path alone.
    pub const BY_PATH: u32 = 3;
}

/// A file as the hook of opened files sees it.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Address of its inode.
    pub inode: u64,
    /// The inode's mode.
    pub mode: u16,
    /// The inode's device number.
    pub device: u32,
    /// How many names it has.
    pub names: u32,
    /// Magic number of its file system.
    pub file_system: u64,
    /// Flags of the mount that it was opened on.
    pub mount_flags: u32,
    /// `O_*` and the kernel's own flags.
    pub flags: u32,
    /// Whether it is opened. Else it is truncated, maybe by a descriptor, to which no link leads.
    pub opens: bool,
    /// Now, boot time.
    pub now_ns: u64,
}

/// The kernel's own mount of a file system, to which no path leads.
const MNT_INTERNAL: u32 = 0x4000;
/// The kernel opens the file to run it; no caller can set this.
const FMODE_EXEC: u32 = 0x20;
/// How long ago a link can have been followed that this open goes through. Between the two the kernel only walks on, so this is long. What
/// has a name can be opened by that as well, so a thread that is kept from running for longer wins nothing.
const SAME_OPEN_NS: u64 = 100_000_000;
/// Memory, null, zero, random and their like: the same for everybody who opens them.
const MEMORY_DEVICES: u32 = 1;

/// Whether files of this file system can be without any name, given the mount.
#[must_use]
#[inline(always)]
pub const fn may_be_nameless(file_system: u64) -> bool {
    matches!(file_system, magic::PIPE | magic::TMPFS | magic::HUGETLBFS | magic::SECRETMEM)
}

/// Whether a link in a folder of this name in `/proc` leads to a descriptor's file.
#[must_use]
#[inline(always)]
pub const fn is_link_to_descriptor(folder: u64) -> bool {
    folder == const { hash_text("fd") }
}

/// Whether the link of this name in `/proc` leads to the program that a process runs.
#[must_use]
#[inline(always)]
pub const fn is_link_to_program(name: u64) -> bool {
    name == const { hash_text("exe") }
}

/// Whether a session may open this, having followed this link last.
#[must_use]
#[inline(always)]
pub const fn reopen(opened: &Opened, followed: Option<&FollowedLink>) -> Option<Tamper> {
    // To run a program reaches nobody.
    if opened.flags & FMODE_EXEC != 0 {
        return None;
    }
    let nameless = may_be_nameless(opened.file_system) && opened.mount_flags & MNT_INTERNAL != 0;
    if nameless && opened.opens {
        // Nothing but a link, or a handle, leads here: without a note of the session's own it is another's.
        return match followed {
            Some(link) if link.kind == link::OWN && link.inode == opened.inode => None,
            Some(_) | None => Some(Tamper::Reopen),
        };
    }
    let shared = match file_type(opened.mode) {
        S_IFIFO => true,
        S_IFCHR => opened.device >> 20 != MEMORY_DEVICES,
        // Deleted, or made without a name: what a shell keeps of a here-document.
        S_IFREG => opened.names == 0,
        _ => false,
    };
    match followed {
        Some(link)
            if shared
                && link.kind != link::OWN
                && link.inode == opened.inode
                && opened.now_ns.wrapping_sub(link.time_ns) < SAME_OPEN_NS =>
        {
            Some(Tamper::Reopen)
        }
        Some(_) | None => None,
    }
}

const _: () = assert!(size_of::<FollowedLink>() == 2 * 8 + 2 * 4);

#[cfg(test)]
mod tests {
    use super::*;

    const PIPE: Opened = Opened {
        inode: 7,
        mode: S_IFIFO,
        device: 0,
        names: 1,
        file_system: magic::PIPE,
        mount_flags: MNT_INTERNAL,
        flags: 1,
        opens: true,
        now_ns: 1_000_000_000,
    };

    fn followed(kind: u32, inode: u64) -> FollowedLink {
        FollowedLink { inode, time_ns: PIPE.now_ns - 1, tgid: 9, kind }
    }

    #[test]
    fn what_has_no_name_is_opened_by_a_link_of_the_sessions_own_alone() {
        let memory = Opened { mode: S_IFREG, file_system: magic::TMPFS, names: 0, ..PIPE };
        for opened in [PIPE, memory] {
            assert_eq!(reopen(&opened, Some(&followed(link::OWN, 7))), None);
            for other in [followed(link::FOREIGN, 7), followed(link::BY_PATH, 7), followed(link::OWN, 8), followed(link::OWN, 0)] {
                assert_eq!(reopen(&opened, Some(&other)), Some(Tamper::Reopen), "{other:?}");
            }
            assert_eq!(reopen(&opened, None), Some(Tamper::Reopen));
            assert_eq!(reopen(&Opened { flags: FMODE_EXEC, ..opened }, None), None);
            let truncated = Opened { opens: false, ..opened };
            assert_eq!(reopen(&truncated, None), None);
            assert_eq!(reopen(&truncated, Some(&followed(link::FOREIGN, 7))), Some(Tamper::Reopen));
        }
    }

    #[test]
    fn what_has_a_name_is_refused_by_anothers_link_alone() {
        let terminal = Opened { mode: S_IFCHR, device: 136 << 20, file_system: 0x1cd1, mount_flags: 0, ..PIPE };
        let named_pipe = Opened { mount_flags: 0, file_system: magic::TMPFS, ..PIPE };
        let deleted = Opened { mode: S_IFREG, names: 0, mount_flags: 0, file_system: 0xef53, ..PIPE };
        for opened in [terminal, named_pipe, deleted] {
            assert_eq!(reopen(&opened, None), None);
            assert_eq!(reopen(&opened, Some(&followed(link::OWN, 7))), None);
            assert_eq!(reopen(&opened, Some(&followed(link::FOREIGN, 8))), None);
            assert_eq!(reopen(&opened, Some(&followed(link::FOREIGN, 7))), Some(Tamper::Reopen));
            assert_eq!(reopen(&opened, Some(&followed(link::BY_PATH, 7))), Some(Tamper::Reopen));
            let later = Opened { now_ns: PIPE.now_ns + SAME_OPEN_NS, ..opened };
            assert_eq!(reopen(&later, Some(&followed(link::FOREIGN, 7))), None);
        }
        let null = Opened { device: 1 << 20 | 3, ..terminal };
        let file = Opened { mode: S_IFREG, ..terminal };
        // The kernel's own mount of what other calls open: mqueue, nsfs, pidfs.
        let queue = Opened { mount_flags: MNT_INTERNAL, file_system: 0x1980_0202, ..file };
        for opened in [null, file, queue] {
            assert_eq!(reopen(&opened, Some(&followed(link::FOREIGN, 7))), None);
        }
    }
}
