//! Which tool a session's program is: the shipped rules, compiled by the daemon
//! into one automaton over path and arguments, walked to the end of both.

use pp_common::tools::{TOOL_ARGV_LEN, ToolEnd};

use super::{
    maps::{ExecInput, TOOL_BYTES, TOOL_ENDS, TOOL_ROWS},
    mark::control,
    walker::Automaton,
};

/// The code of the rule that the program matches; zero: none.
#[inline(always)]
pub(crate) fn tool_rule(input: &ExecInput, argv_len: usize, cut: bool) -> u16 {
    match end(input, argv_len) {
        Some(ToolEnd { cut: code, .. }) if cut => *code,
        Some(ToolEnd { whole, .. }) => *whole,
        // No rule can match it.
        None => 0,
    }
}

/// What the state means in which the input ends.
#[inline(always)]
fn end(input: &ExecInput, argv_len: usize) -> Option<&'static ToolEnd> {
    let half = control().generation & 1;
    let automaton = Automaton { rows: &TOOL_ROWS, classes: TOOL_BYTES.get(half)?, half };
    let state = automaton.walk::<TOOL_ARGV_LEN, false>(input, argv_len)?;
    TOOL_ENDS.get(automaton.index(state))
}
