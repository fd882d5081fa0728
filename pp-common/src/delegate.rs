//! Delegates: servers on this host that act for whoever asks them, so that
//! what they do is not the session's doing in the kernel's eyes.

use crate::codes::codes;

/// Most delegates that are known.
pub const MAX_DELEGATES: u32 = 1_024;

/// Key of the table of delegates.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DelegateKey {
    /// Hash of the name, or the inode number.
    pub number: u64,
    /// `super_block.s_dev` of an inode, else zero.
    pub dev: u32,
    /// A constant of [`by`].
    pub by: u32,
}

codes! {
    /// What a delegate is known by.
    mod by: u32 {
        /// The command name of the process that listens ([`crate::protect::hash_name`]).
        LISTENER = 1, "listener";
        /// The name the socket is bound to ([`crate::protect::hash_bound`]).
        NAME = 2, "name";
        /// The inode of the socket's path.
        INODE = 3, "inode";
        /// Nothing: one entry, of number zero, says what happens to calls of servers that no other entry is about.
        UNLISTED = 4, "unlisted";
    }
}

codes! {
    /// What happens to a session that calls a delegate; the names are the words of policy.
    enum Action: u32 {
        /// It may not.
        Refuse = 2, "refuse";
        /// It may not as root; others have to convince the server.
        RefuseRoot = 3, "refuse-root";
        /// It may.
        Allow = 1, "allow";
    }
}

codes! {
    /// What happens to a session that calls a server of the kind [`is_of_kind`] and that no row is about; the names are the words of
    /// `[delegates] unknown`.
    enum Unknown: u32 {
        /// It may, and nothing is reported.
        Allow = 1, "allow";
        /// It may not.
        Refuse = 2, "refuse";
        /// It may, and that is reported.
        Report = 4, "report";
    }
}

impl Unknown {
    /// What is shipped.
    pub const SHIPPED: Self = Self::Report;

    /// From its number in the table; an unknown one refuses.
    #[must_use]
    #[inline(always)]
    pub const fn or_refuse(code: u32) -> Self {
        match Self::from_code(code) {
            Some(unknown) => unknown,
            None => Self::Refuse,
        }
    }
}

/// Whether a server is of the kind that acts for its callers, as far as a program can see that: it listens in a process that no session
/// governs, and as the caller's own user, so that it may do whatever the caller may. A server of another user checks its callers itself.
///
/// `marked`: it is a session's; its own session decides what it does. `same_user`: `None`, it cannot be read, which counts as the same.
#[must_use]
#[inline(always)]
pub const fn is_of_kind(marked: bool, same_user: Option<bool>) -> bool {
    match same_user {
        Some(false) => false,
        Some(true) | None => !marked,
    }
}

impl Action {
    /// From its number in the table; an unknown one refuses.
    #[must_use]
    #[inline(always)]
    pub const fn or_refuse(code: u32) -> Self {
        match Self::from_code(code) {
            Some(action) => action,
            None => Self::Refuse,
        }
    }
}

/// A command name as two little-endian words of `task_struct.comm`, without what follows its end: kernels before 5.17 leave
/// the rest of an earlier, longer name there.
#[must_use]
#[inline(always)]
pub const fn command_name([low, high]: [u64; 2]) -> [u64; 2] {
    match (up_to_nul(low), up_to_nul(high)) {
        (Some(low), _) => [low, 0],
        (None, Some(high)) => [low, high],
        // Too long for a name.
        (None, None) => [low, high],
    }
}

/// The bytes before the first NUL; `None`: there is none.
#[inline(always)]
const fn up_to_nul(word: u64) -> Option<u64> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const TOPS: u64 = ONES << 7;
    // The top bit of the lowest byte that is zero; those above it may be wrong.
    let nul = word.wrapping_sub(ONES) & !word & TOPS;
    if nul == 0 {
        return None;
    }
    let lowest = nul & nul.wrapping_neg();
    Some(word & ((lowest >> 7) - 1))
}

/// Whether a session may call this server. What the operator said of the bound
/// name or of the path comes before what its program is called.
#[must_use]
#[inline(always)]
pub const fn refuses(name: Option<Action>, inode: Option<Action>, listener: Option<Action>, root: bool) -> bool {
    let action = match (name, inode, listener) {
        (Some(action), _, _) | (None, Some(action), _) | (None, None, Some(action)) => action,
        (None, None, None) => Action::Allow,
    };
    match action {
        Action::Allow => false,
        Action::Refuse => true,
        Action::RefuseRoot => root,
    }
}

const _: () = assert!(size_of::<DelegateKey>() == 8 + 2 * 4);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: as in `abi`: repr(C) of integers.
    unsafe impl aya::Pod for super::DelegateKey {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_ends_where_it_ends() {
        let words = |bytes: &[u8; 16]| {
            let (low, high) = bytes.split_at(8);
            [low, high].map(|half| u64::from_le_bytes(half.try_into().unwrap()))
        };
        for (held, meant) in [
            (b"dockerd\0oad\0\0\0\0\0", b"dockerd\0\0\0\0\0\0\0\0\0"),
            (b"containerd\0him\0\0", b"containerd\0\0\0\0\0\0"),
            (b"\0ockerd\0\x01\x80\xff\0\0\0\0\0", &[0; 16]),
            (b"\x01\0\x01\x80\xff\0\x7f\xff\x01\0\0\0\0\0\0\0", b"\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            (b"eight888\0rest\0\0\0", b"eight888\0\0\0\0\0\0\0\0"),
            (b"fifteen-letters\0", b"fifteen-letters\0"),
            (b"nowhere-an-end!!", b"nowhere-an-end!!"),
        ] {
            assert_eq!(command_name(words(held)), words(meant), "{held:?}");
        }
    }

    #[test]
    fn nobodys_server_is_never_touched() {
        assert!(!refuses(None, None, None, true));
    }

    #[test]
    fn what_policy_says_of_the_path_beats_what_the_program_is_called() {
        assert!(!refuses(Some(Action::Allow), None, Some(Action::Refuse), false));
        assert!(refuses(None, Some(Action::Refuse), Some(Action::Allow), false));
    }

    #[test]
    fn the_system_bus_is_closed_to_root_alone() {
        assert!(refuses(None, Some(Action::RefuseRoot), None, true));
        assert!(!refuses(None, Some(Action::RefuseRoot), None, false));
    }

    #[test]
    fn an_unknown_action_refuses() {
        assert_eq!((Action::from_code(77), Action::or_refuse(77)), (None, Action::Refuse));
        assert_eq!((Unknown::from_code(77), Unknown::or_refuse(77)), (None, Unknown::Refuse));
    }

    #[test]
    fn kind_is_an_unmarked_server_of_the_same_user() {
        assert!(is_of_kind(false, Some(true)) && is_of_kind(false, None));
        assert!(!is_of_kind(false, Some(false)) && !is_of_kind(true, Some(true)) && !is_of_kind(true, None));
    }
}
