//! Rules about programs that a session runs: layouts of their automaton, and
//! what the number means that it ends with.
//!
//! The automaton reads the path given to `execve` and the argument vector to
//! their end; the state it stops in says which rule holds.

/// States of the automaton in one generation.
pub const TOOL_STATES: usize = 8_192;
/// Bytes of the argument vector that the rules can see, one less than this.
pub const TOOL_ARGV_LEN: usize = 2_048;
/// Most rules: their numbers are the low bits of a code.
pub const MAX_TOOL_RULES: usize = 0x0fff;

/// In a code: the program is refused.
pub const TOOL_REFUSE: u16 = 0x8000;
/// In a code: the program would be refused where the policy did not observe.
pub const TOOL_OBSERVE: u16 = 0x4000;

/// In the code of a record: the program would be refused if protection were not off. No table has it.
pub const TOOL_OFF: u16 = 0x2000;

/// What a state of the automaton means where the input ends in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ToolEnd {
    /// The code where all arguments were seen; zero: nothing to say.
    pub whole: u16,
    /// The code where there are more arguments than could be seen.
    pub cut: u16,
}

/// The index of a code's rule; `None`: no rule.
#[must_use]
pub const fn rule_of(code: u16) -> Option<usize> {
    let number = (code as usize) & MAX_TOOL_RULES;
    number.checked_sub(1)
}

const _: () = {
    assert!(size_of::<ToolEnd>() == 2 * 2);
    assert!(MAX_TOOL_RULES & (TOOL_REFUSE | TOOL_OBSERVE | TOOL_OFF) as usize == 0);
};

#[cfg(feature = "user")]
// SAFETY: repr(C) of two integers without padding (the assertion above), so every byte is
// initialised and every bit pattern is a value.
unsafe impl aya::Pod for ToolEnd {}
