//! The walk over one program's path and arguments, byte by byte. It first finds the tool: by path or `argv[0]`, as the script or module of
//! an interpreter, or as the program of the loader. Then it matches the shapes of that tool.

use pp_common::tools::ToolEnd;
use regex_automata::hybrid::LazyStateID;

use super::{Tool, ToolError};
use crate::matcher::glob;
use crate::matcher::interpreter::{At, FAMILIES, Interpreters, LOADER, Next};
use crate::matcher::{Part, Step, TooMuch, Walk};

/// A tool for the walk. Its rules are numbers plus one.
pub(super) struct Walked {
    /// Its shapes over the arguments after the name. The first that matches is reported.
    pub(super) shapes: Vec<(String, usize)>,
    /// Command lines that policy allows.
    pub(super) allowed: Vec<String>,
    /// The rule for arguments that are too long to be read.
    pub(super) unseen: Option<usize>,
    /// The rule for the name alone.
    pub(super) alone: usize,
}

/// A tool with its automata.
struct ToolParts {
    shapes: Part<usize>,
    allowed: Part<()>,
    unseen: Option<usize>,
    alone: usize,
}

/// A tool, and whether it was called by a name that is reported without a shape.
type Called = (usize, bool);

/// The position of the walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// In the path.
    Path { files: LazyStateID, families: LazyStateID },
    /// In `argv[0]` of a tool.
    OwnArgv0 { called: Called },
    /// In the arguments of an interpreter, or in `argv[0]` of another program, which counts as its script.
    Interpreter(At<Called>),
    /// In the arguments of a tool; `Err`: its shape matched, by this rule.
    Arguments { called: Called, shape: Result<LazyStateID, usize>, allowed: LazyStateID },
}

/// The automata of one table.
pub(super) struct Machine {
    files: Part<Called>,
    interpreters: Interpreters,
    tools: Vec<ToolParts>,
    refused: u16,
}

impl Machine {
    /// Makes the automata. `refused` is the flag of codes whose program is refused.
    pub(super) fn new(table: &[Tool], rules: Vec<Walked>, refused: u16) -> Result<Self, ToolError> {
        let files = table.iter().enumerate().flat_map(|(index, tool)| {
            let named = |file| tool.named.as_ref().is_none_or(|named| named.contains(file));
            tool.files.iter().map(move |file| (glob::file_named(&glob::over_text(file)), (index, named(file))))
        });
        let parts = |tool: Walked| {
            Ok(ToolParts {
                shapes: Part::new(tool.shapes)?,
                allowed: Part::new(tool.allowed.into_iter().map(|line| (line, ())))?,
                unseen: tool.unseen,
                alone: tool.alone,
            })
        };
        Ok(Self {
            files: Part::new(files)?,
            interpreters: Interpreters::new(FAMILIES.iter().chain([&LOADER]))?,
            tools: rules.into_iter().map(parts).collect::<Result<_, ToolError>>()?,
            refused,
        })
    }

    fn arguments(&mut self, called: Called) -> Result<Step<State>, TooMuch> {
        let tool = &mut self.tools[called.0];
        Ok(Step::Go(State::Arguments { called, shape: Ok(tool.shapes.start()?), allowed: tool.allowed.start()? }))
    }

    fn argument(
        &mut self,
        called: Called,
        shape: Result<LazyStateID, usize>,
        allowed: LazyStateID,
        byte: u8,
    ) -> Result<Step<State>, TooMuch> {
        let tool = &mut self.tools[called.0];
        let shape = match shape {
            Err(rule) => Err(rule),
            Ok(shape) => match tool.shapes.step(shape, byte)? {
                (_, Some(rule)) => Err(rule),
                (shape, None) => Ok(shape),
            },
        };
        let (allowed, _) = tool.allowed.step(allowed, byte)?;
        Ok(Step::Go(State::Arguments { called, shape, allowed }))
    }
}

impl Walk for Machine {
    type State = State;

    fn class(&self, byte: u8) -> Vec<u8> {
        let mut class = self.interpreters.class(byte);
        class.push(self.files.class(byte));
        for tool in &self.tools {
            class.extend([tool.shapes.class(byte), tool.allowed.class(byte)]);
        }
        class
    }

    fn start(&mut self) -> Result<State, TooMuch> {
        Ok(State::Path { files: self.files.start()?, families: self.interpreters.names.start()? })
    }

    fn step(&mut self, state: State, byte: u8) -> Result<Step<State>, TooMuch> {
        let end = byte == 0;
        Ok(match state {
            State::Path { files, families } => {
                let (files, file) = self.files.step(files, byte)?;
                let (families, family) = self.interpreters.names.step(families, byte)?;
                Step::Go(match (file, family) {
                    _ if !end => State::Path { files, families },
                    (Some(called), _) => State::OwnArgv0 { called },
                    (None, Some(family)) => State::Interpreter(At::Value { family }),
                    (None, None) => State::Interpreter(At::Script { script: self.files.start()? }),
                })
            }
            State::OwnArgv0 { called } if end => self.arguments(called)?,
            State::OwnArgv0 { .. } => Step::Go(state),
            State::Interpreter(at) => match self.interpreters.step(at, byte, &mut self.files)? {
                Next::Go(at) => Step::Go(State::Interpreter(at)),
                Next::Module => Step::Go(State::Interpreter(At::Script { script: self.files.start()? })),
                Next::JoinedModule => {
                    let script = self.files.start()?;
                    self.step(State::Interpreter(At::Script { script }), byte)?
                }
                Next::Found(called) => self.arguments(called)?,
                Next::Dead => Step::Dead,
            },
            State::Arguments { called, shape, allowed } => self.argument(called, shape, allowed, byte)?,
        })
    }

    fn end(&mut self, state: State) -> Result<ToolEnd, TooMuch> {
        let ((tool, named), shape, is_allowed) = match state {
            State::OwnArgv0 { called } => (called, None, false),
            State::Arguments { called, shape, allowed } => (called, shape.err(), self.tools[called.0].allowed.matched(allowed)?.is_some()),
            State::Path { .. } | State::Interpreter(_) => return Ok(ToolEnd::default()),
        };
        let tool = &self.tools[tool];
        let code = |rule: Option<usize>, flag: u16| rule.and_then(|rule| u16::try_from(rule).ok()).map(|rule| rule | flag);
        let by_shape = code(shape, self.refused);
        let alone = code(named.then_some(tool.alone), 0);
        // Allowed lines come first, then shapes, then names. Arguments that were not read are not allowed.
        Ok(ToolEnd {
            whole: if is_allowed { 0 } else { by_shape.or(alone).unwrap_or(0) },
            cut: by_shape.or(code(tool.unseen, self.refused)).or(alone).unwrap_or(0),
        })
    }
}
