//! Which tool a session's program is: the shipped rules, compiled by the daemon
//! into one automaton over path and arguments, walked to the end of both.

use core::hint::black_box;

use pp_common::{
    abi::{DFA_CLASSES, DFA_DEAD, DFA_START, DfaClasses},
    tools::{TOOL_STATES, ToolEnd},
};

use super::{
    maps::{ExecInput, TOOL_BYTES, TOOL_ENDS, TOOL_ROWS},
    mark::control,
};

/// The code of the rule that the program matches; zero: none.
#[inline(always)]
pub(crate) fn tool_rule(input: &ExecInput, argv_len: usize, cut: bool) -> u16 {
    let half = control().generation & 1;
    let base = half * TOOL_STATES as u32;
    match walk(half, base, input, argv_len).and_then(|state| TOOL_ENDS.get(base + row(state))) {
        Some(ToolEnd { cut: code, .. }) if cut => *code,
        Some(ToolEnd { whole, .. }) => *whole,
        // No rule can match it.
        None => 0,
    }
}

#[inline(always)]
fn walk(half: u32, base: u32, input: &ExecInput, argv_len: usize) -> Option<u16> {
    let classes = TOOL_BYTES.get(half)?;
    let mut state = DFA_START;
    // VERIFIER: as in `identity.rs`: each loop ends by what was read.
    for byte in &input.path {
        state = step(base, classes, state, *byte)?;
        if *byte == 0 {
            break;
        }
    }
    let argv_len = black_box(argv_len);
    for (i, byte) in input.argv.iter().enumerate() {
        state = step(base, classes, state, *byte)?;
        if i >= argv_len {
            break;
        }
    }
    Some(state)
}

#[inline(always)]
fn row(state: u16) -> u32 {
    u32::from(state) & (TOOL_STATES as u32 - 1)
}

/// One byte further; `None` once nothing can match any more.
#[inline(always)]
fn step(base: u32, classes: &DfaClasses, state: u16, byte: u8) -> Option<u16> {
    let row = TOOL_ROWS.get(base + row(state))?;
    let class = usize::from(classes.class[usize::from(byte)]) & (DFA_CLASSES - 1);
    let next = row.next[class];
    if next == DFA_DEAD { None } else { Some(next) }
}
