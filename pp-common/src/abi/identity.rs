//! What identity rules come to in the maps: the automaton that reads an `execve`, users and cgroups.

use super::NameId;

/// Most users that a user rule names, counting two generations.
pub const MAX_USERS: u32 = 4_096;
/// Most cgroups that cgroup and unit rules resolve to.
pub const MAX_CGROUPS: u32 = 8_192;
/// Most ancestors a cgroup rule is looked for in.
pub const MAX_CGROUP_DEPTH: usize = 16;
/// States of the identity automaton in one generation.
pub const DFA_STATES: usize = 4_096;
/// Byte classes of the identity automaton.
pub const DFA_CLASSES: usize = 128;
/// Most identity rules in one generation.
pub const MAX_RULES: usize = 512;
/// Bytes of the path given to `execve` that rules can see, the NUL included.
pub const EXEC_PATH_LEN: usize = 512;
/// Bytes of the argument vector that rules can see.
pub const EXEC_ARGV_LEN: usize = 512;
/// In a [`DfaRow`]: this transition ends in the rule named by the low bits.
pub const DFA_ACCEPT: u16 = 0x8000;
/// The state from which nothing matches any more.
pub const DFA_DEAD: u16 = 0;
/// The state an automaton begins in.
pub const DFA_START: u16 = 1;

/// One state of the identity automaton: where each byte class leads. See
/// [`DFA_ACCEPT`]. State `s` of generation `g` is row `(g & 1) * DFA_STATES + s`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DfaRow {
    /// The next state, by byte class.
    pub next: [u16; DFA_CLASSES],
}

/// The byte classes of one generation, at index `g & 1`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DfaClasses {
    /// Class of each byte.
    pub class: [u8; 256],
}

/// What a matched identity rule means, at index `(g & 1) * MAX_RULES + rule`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleTarget {
    /// The agent to mark with; zero: this process is never marked.
    pub agent: NameId,
}

/// Key of the table of user rules.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserKey {
    /// Generation of the tables.
    pub generation: u32,
    /// The uid of the process.
    pub uid: u32,
}

const _: () = {
    assert!(size_of::<DfaRow>() == 2 * DFA_CLASSES);
    assert!(size_of::<UserKey>() == 2 * 4);
};
