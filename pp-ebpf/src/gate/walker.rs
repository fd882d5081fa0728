//! The walk over the input of an exec, byte by byte, by an automaton that the daemon compiled: that of the identity rules and that of the
//! rules about tools.

use core::hint::black_box;

use aya_ebpf::btf_maps::Array;
use pp_common::abi::{DFA_ACCEPT, DFA_CLASSES, DFA_DEAD, DFA_START, DfaClasses, DfaRow};
use pp_common::tools::TOOL_ARGV_LEN;

use super::maps::ExecInput;

/// An automaton of the generation in force.
pub(crate) struct Automaton<'a, const ROWS: usize> {
    /// The states of two generations.
    pub(crate) rows: &'a Array<DfaRow, ROWS>,
    pub(crate) classes: &'a DfaClasses,
    /// Which half of `rows` is in force.
    pub(crate) half: u32,
}

impl<const ROWS: usize> Automaton<'_, ROWS> {
    /// The row of this automaton's start.
    #[inline(always)]
    const fn base(&self) -> u32 {
        self.half * Self::STATES
    }

    /// How many states a generation has.
    const STATES: u32 = (ROWS / 2) as u32;

    /// The index of a state in tables that hold one entry for each.
    #[inline(always)]
    pub(crate) fn index(&self, state: u16) -> u32 {
        self.base() + (u32::from(state) & (Self::STATES - 1))
    }

    /// The state in which path and arguments end, of which the first `ARGV` bytes are read; with `ACCEPTS` the first on the way that accepts.
    /// `None`: there is none, or nothing can match any more.
    #[inline(always)]
    pub(crate) fn walk<const ARGV: usize, const ACCEPTS: bool>(&self, input: &ExecInput, argv_len: usize) -> Option<u16> {
        const { assert!(ARGV <= TOOL_ARGV_LEN && (Self::STATES as usize).is_power_of_two()) };
        let mut state = DFA_START;
        // VERIFIER: one way out of each loop beside the matches, by what was read and not by a length,
        // so that the second loop is followed once and not for every length of the first.
        for byte in &input.path {
            state = self.step(state, *byte)?;
            if ACCEPTS && state & DFA_ACCEPT != 0 {
                return Some(state);
            }
            if *byte == 0 {
                break;
            }
        }
        // VERIFIER: opaque, or the compiler drops the end of the buffer as a bound of the loop.
        let argv_len = black_box(argv_len);
        for (i, byte) in input.argv[..ARGV].iter().enumerate() {
            state = self.step(state, *byte)?;
            if ACCEPTS && state & DFA_ACCEPT != 0 {
                return Some(state);
            }
            if i >= argv_len {
                break;
            }
        }
        if ACCEPTS { None } else { Some(state) }
    }

    /// One byte further; `None` once nothing can match any more.
    #[inline(always)]
    fn step(&self, state: u16, byte: u8) -> Option<u16> {
        let row = self.rows.get(self.index(state))?;
        let class = usize::from(self.classes.class[usize::from(byte)]) & (DFA_CLASSES - 1);
        let next = row.next[class];
        if next == DFA_DEAD { None } else { Some(next) }
    }
}
