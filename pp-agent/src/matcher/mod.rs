//! Rules over a program's path and arguments, compiled to the table that the kernel walks: all that kinds of rules have in common.
//!
//! A kind of rules brings a [`Walk`], made of [`Part`]s and, where it looks at scripts, of [`interpreter`]s. [`compile`] follows it to
//! every state that can be reached and makes the smallest table that behaves alike.

mod explore;
pub(crate) mod glob;
pub(crate) mod interpreter;
mod minimize;
mod part;
mod table;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use explore::compile;
pub(crate) use part::Part;
pub(crate) use table::Table;

use std::hash::Hash;

use pp_common::tools::ToolEnd;

/// The text of this folder's code; see [`Kind::code`].
pub(crate) const CODE: [&str; 7] = [
    include_str!("mod.rs"),
    include_str!("explore.rs"),
    include_str!("glob.rs"),
    include_str!("interpreter.rs"),
    include_str!("minimize.rs"),
    include_str!("part.rs"),
    include_str!("table.rs"),
];

/// One kind of rules: what is not in its [`Walk`].
#[derive(Debug)]
pub(crate) struct Kind {
    /// Its name, which the files of its tables begin with.
    pub(crate) name: &'static str,
    /// The text of the code that makes its walk: another build's table may be another one.
    pub(crate) code: &'static [&'static str],
    /// States that the kernel's table holds.
    pub(crate) most_states: usize,
    /// States explored before the table is made small; more is refused.
    pub(crate) most_explored: usize,
}

/// Where one byte leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step<S> {
    /// On, to this state.
    Go(S),
    /// This rule matches, whatever follows.
    Accept(usize),
    /// No rule can match any more.
    Dead,
}

impl<S> Step<S> {
    /// The same step between states that are called otherwise.
    pub(crate) fn map<T>(self, name: impl FnOnce(S) -> T) -> Step<T> {
        match self {
            Self::Go(state) => Step::Go(name(state)),
            Self::Accept(rule) => Step::Accept(rule),
            Self::Dead => Step::Dead,
        }
    }
}

/// A walk over what the kernel reads of a program: its path, NUL, and each argument with its NUL.
pub(crate) trait Walk {
    /// Where it stands.
    type State: Copy + Eq + Hash;

    /// What every part makes of a byte: bytes of which this is equal always lead to the same place, but for NUL.
    fn class(&self, byte: u8) -> Vec<u8>;

    /// Where it begins.
    fn start(&mut self) -> Result<Self::State, TooMuch>;

    /// One byte further.
    fn step(&mut self, state: Self::State, byte: u8) -> Result<Step<Self::State>, TooMuch>;

    /// What it means that the input ends here.
    fn end(&mut self, _: Self::State) -> Result<ToolEnd, TooMuch> {
        Ok(ToolEnd::default())
    }

    /// Where a whole input leads, without a table.
    fn follow(&mut self, input: &[u8]) -> Result<Step<Self::State>, TooMuch> {
        let mut state = self.start()?;
        for byte in input {
            match self.step(state, *byte)? {
                Step::Go(next) => state = next,
                over => return Ok(over),
            }
        }
        Ok(Step::Go(state))
    }
}

/// Rules need more of something than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMuch {
    /// What there is too much of.
    pub(crate) what: &'static str,
    /// How much is needed.
    pub(crate) need: usize,
    /// How much there is.
    pub(crate) most: usize,
}
