//! The kernel's table, and its walk.

use pp_common::abi::{DFA_ACCEPT, DFA_CLASSES, DFA_DEAD, DFA_START};
use pp_common::tools::ToolEnd;

use super::Step;

/// A finished automaton in the kernel's form. Row 0 is the dead state, row 1 the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// Class of each byte.
    pub(crate) classes: [u8; 256],
    /// The next state of each state, by byte class; see [`DFA_ACCEPT`].
    pub(crate) rows: Vec<[u16; DFA_CLASSES]>,
    /// The result if the input ends in each state.
    pub(crate) ends: Vec<ToolEnd>,
}

impl Default for Table {
    /// A table that matches nothing.
    fn default() -> Self {
        Self { classes: [0; 256], rows: vec![[DFA_DEAD; DFA_CLASSES]; 2], ends: vec![ToolEnd::default(); 2] }
    }
}

impl Table {
    /// Walks over an input. It is the same walk as in the kernel.
    pub(crate) fn follow(&self, input: impl IntoIterator<Item = u8>) -> Step<u16> {
        let mut state = DFA_START;
        for byte in input {
            let class = usize::from(self.classes[usize::from(byte)]);
            match self.rows.get(usize::from(state)).map_or(DFA_DEAD, |row| row[class]) {
                DFA_DEAD => return Step::Dead,
                next if next & DFA_ACCEPT != 0 => return Step::Accept(usize::from(next & !DFA_ACCEPT)),
                next => state = next,
            }
        }
        Step::Go(state)
    }
}
