//! `ioctl(2)` commands by what they do.

const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
/// What a key of a virtual console types, by key, by function key, by accent, by number of the key.
const KDSKBENT: u32 = 0x4b47;
const KDSKBSENT: u32 = 0x4b49;
const KDSKBDIACR: u32 = 0x4b4b;
const KDSKBDIACRUC: u32 = 0x4bfb;
const KDSETKEYCODE: u32 = 0x4b4d;
/// The same of an input device, in two layouts.
const EVIOCSKEYCODE: u32 = 0x4008_4504;
const EVIOCSKEYCODE_V2: u32 = 0x4028_4504;

/// Whether this command types in a person's place: what it puts into the input of a terminal, or gives a key to type, is read as typed by
/// whoever sits there, also after the session has ended. The numbers are those of 32-bit programs, too.
///
/// `TIOCLINUX` is several commands: one pastes the selection of a console, others choose it. Which one it is lies in the caller's memory,
/// where another thread can change it, so all are refused. What else they do is of use to a console's own programs (`setterm`, `gpm`).
#[must_use]
#[inline(always)]
pub const fn types(command: u32) -> bool {
    matches!(
        command,
        TIOCSTI | TIOCLINUX | KDSKBENT | KDSKBSENT | KDSKBDIACR | KDSKBDIACRUC | KDSETKEYCODE | EVIOCSKEYCODE | EVIOCSKEYCODE_V2
    )
}

/// `FS_IOC_GETFLAGS`, `FS_IOC_GETVERSION` and ext4's older name of that, in 64 and 32 bits.
const GETFLAGS: [u32; 2] = [0x8008_6601, 0x8004_6601];
const GETVERSION: [u32; 2] = [0x8008_7601, 0x8004_7601];
const EXT4_GETVERSION: [u32; 2] = [0x8008_6603, 0x8004_6603];
const FSGETXATTR: u32 = 0x801c_581f;
const FIEMAP: u32 = 0xc020_660b;
const GETFSLABEL: u32 = 0x8100_9431;
const GETFSUUID: u32 = 0x8011_1500;
const GETFSSYSFSPATH: u32 = 0x8081_1501;
const MEASURE_VERITY: u32 = 0xc004_6686;
const READ_VERITY_METADATA: u32 = 0xc028_6687;
const GET_ENCRYPTION_POLICY: u32 = 0x400c_6615;
const GET_ENCRYPTION_POLICY_EX: u32 = 0xc009_6616;

/// Whether this command may be made on a guarded file: it is known to change nothing about the file.
///
/// A file system has commands that change a file though it is open for reading alone: flags (`chattr`), generation, project, verity, its
/// blocks. Each file system has its own and gets new ones, so what reads is listed, not what writes. The directions in a command's number do
/// not tell: `FS_IOC_SET_ENCRYPTION_POLICY` claims to read.
#[must_use]
#[inline(always)]
pub const fn leaves_file(command: u32) -> bool {
    // What the kernel answers itself for any file, and what programs ask of what may be a terminal (`isatty`).
    if command < 3 || command >> 8 == 0x54 {
        return true;
    }
    command == GETFLAGS[0]
        || command == GETFLAGS[1]
        || command == GETVERSION[0]
        || command == GETVERSION[1]
        || command == EXT4_GETVERSION[0]
        || command == EXT4_GETVERSION[1]
        || matches!(
            command,
            FSGETXATTR
                | FIEMAP
                | GETFSLABEL
                | GETFSUUID
                | GETFSSYSFSPATH
                | MEASURE_VERITY
                | READ_VERITY_METADATA
                | GET_ENCRYPTION_POLICY
                | GET_ENCRYPTION_POLICY_EX
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_types_is_told_from_what_programs_ask_of_their_terminal() {
        assert!(types(TIOCSTI) && types(TIOCLINUX) && types(KDSKBSENT));
        // TCGETS, TCSETS, TIOCSCTTY, TIOCGWINSZ, TIOCSWINSZ, TIOCSPGRP, FIONREAD, TIOCGPTPEER, KDGKBENT
        for command in [0x5401, 0x5402, 0x540e, 0x5413, 0x5414, 0x5410, 0x541b, 0x5441, 0x4b46] {
            assert!(!types(command), "{command:#x}");
        }
    }

    #[test]
    fn what_changes_a_file_is_told_from_what_reads_of_it() {
        // TCGETS, FIONREAD, FIOCLEX, FIGETBSZ
        for command in [0x5401, 0x541b, 0x5451, 2, GETFLAGS[0], GETFLAGS[1], FIEMAP] {
            assert!(leaves_file(command), "{command:#x}");
        }
        // FS_IOC_SETFLAGS and FS_IOC_SETVERSION in both sizes, FS_IOC_FSSETXATTR, FS_IOC_ENABLE_VERITY, FS_IOC_SET_ENCRYPTION_POLICY,
        // FICLONE, EXT4_IOC_SWAP_BOOT, EXT4_IOC_MOVE_EXT, XFS_IOC_SWAPEXT, BTRFS_IOC_SNAP_DESTROY
        for command in [
            0x4008_6602,
            0x4004_6602,
            0x4008_7602,
            0x4004_7602,
            0x401c_5820,
            0x4080_6685,
            0x800c_6613,
            0x4004_9409,
            0x6611,
            0xc028_660f,
            0xc0c0_586d,
            0x5000_940f,
        ] {
            assert!(!leaves_file(command), "{command:#x}");
        }
    }
}
