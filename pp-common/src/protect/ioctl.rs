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
}
