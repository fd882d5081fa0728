//! Compiles rules over a program's path and arguments to the table that the kernel walks. This is the common part of all kinds of rules.
//!
//! A kind of rules has a [`Walk`], made of [`Part`]s and, if it looks at scripts, of [`interpreter`]s. [`compile`] explores every reachable
//! state and makes the smallest equivalent table.

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

/// The source of this folder; see [`Kind::code`].
pub(crate) const CODE: [&str; 7] = [
    include_str!("mod.rs"),
    include_str!("explore.rs"),
    include_str!("glob.rs"),
    include_str!("interpreter.rs"),
    include_str!("minimize.rs"),
    include_str!("part.rs"),
    include_str!("table.rs"),
];

/// One kind of rules, apart from its [`Walk`].
#[derive(Debug)]
pub(crate) struct Kind {
    /// Its name, which the names of its files start with.
    pub(crate) name: &'static str,
    /// The source of its walk. It is part of the key of a cached table, since another build may make another table.
    pub(crate) code: &'static [&'static str],
    /// States that the kernel's table holds.
    pub(crate) most_states: usize,
    /// Most states to explore before the table is minimised.
    pub(crate) most_explored: usize,
}

/// The step that one byte makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step<S> {
    /// To this state.
    Go(S),
    /// This rule matches, independent of what follows.
    Accept(usize),
    /// No rule can match any more.
    Dead,
}

impl<S> Step<S> {
    /// The step with other names for the states.
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
    /// A state of the walk.
    type State: Copy + Eq + Hash;

    /// The class of a byte in every part. Bytes of the same classes always lead to the same state, except NUL.
    fn class(&self, byte: u8) -> Vec<u8>;

    /// The first state.
    fn start(&mut self) -> Result<Self::State, TooMuch>;

    /// The step that a byte makes.
    fn step(&mut self, state: Self::State, byte: u8) -> Result<Step<Self::State>, TooMuch>;

    /// The result if the input ends in this state.
    fn end(&mut self, _: Self::State) -> Result<ToolEnd, TooMuch> {
        Ok(ToolEnd::default())
    }

    /// Walks over a whole input, without a table.
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

/// Rules exceed a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMuch {
    /// What is too large.
    pub(crate) what: &'static str,
    /// How much is needed.
    pub(crate) need: usize,
    /// How much there is.
    pub(crate) most: usize,
}
