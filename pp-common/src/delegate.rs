//! Delegates: servers on this host that act for whoever asks them, so that
//! what they do is not the session's doing in the kernel's eyes.

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

/// What a delegate is known by.
pub mod by {
    /// The command name of the process that listens ([`crate::protect::hash_name`]).
    pub const LISTENER: u32 = 1;
    /// The name the socket is bound to ([`crate::protect::hash_bound`]).
    pub const NAME: u32 = 2;
    /// The inode of the socket's path.
    pub const INODE: u32 = 3;
}

/// What happens to a session that calls a delegate.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It may.
    Allow = 1,
    /// It may not.
    Refuse = 2,
    /// It may not as root; others have to convince the server.
    RefuseRoot = 3,
}

impl Action {
    /// From its number in the table; an unknown one refuses.
    #[must_use]
    #[inline(always)]
    pub const fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Allow,
            3 => Self::RefuseRoot,
            _ => Self::Refuse,
        }
    }
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
        assert_eq!(Action::from_code(77), Action::Refuse);
    }
}
