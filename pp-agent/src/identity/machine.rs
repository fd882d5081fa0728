//! The walk over one program's path and arguments, byte by byte: first the path, then the script or module of an interpreter.

use super::IdentityError;
use super::never::NEVER;
use crate::matcher::glob::{self, Place};
use crate::matcher::interpreter::{At, FAMILIES, Interpreters, Next};
use crate::matcher::{Part, Step, TooMuch, Walk};
use crate::name::name_id;
use pp_common::abi::NameId;
use regex_automata::hybrid::{BuildError, LazyStateID};

/// What a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Exec,
    Script,
    Module,
}

impl Kind {
    const fn key(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Script => "script",
            Self::Module => "module",
        }
    }
}

/// A rule of the automaton, with its position in the list as its index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) kind: Kind,
    pub(super) target: NameId,
    pub(super) label: String,
    agent: String,
    globs: Vec<String>,
}

impl Rule {
    pub(super) fn new(kind: Kind, agent: &str, globs: &[String]) -> Self {
        Self { kind, target: name_id(agent), label: format!("{agent} {}", kind.key()), agent: agent.to_owned(), globs: globs.to_vec() }
    }

    /// The programs that are never marked.
    pub(super) fn never() -> Self {
        Self {
            kind: Kind::Exec,
            target: 0,
            label: "never marked".to_owned(),
            agent: String::new(),
            globs: NEVER.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn regex(&self) -> Result<String, IdentityError> {
        let mut parts = Vec::with_capacity(self.globs.len());
        for pattern in &self.globs {
            if let Some(why) = glob::problem(pattern, self.kind != Kind::Module) {
                return Err(self.error(pattern, why.to_owned()));
            }
            parts.push(match self.kind {
                Kind::Exec => glob::over_path(pattern, Place::Exec),
                Kind::Script => glob::over_path(pattern, Place::Script),
                Kind::Module => glob::over_word(pattern),
            });
        }
        Ok(parts.join("|"))
    }

    fn error(&self, pattern: &str, why: String) -> IdentityError {
        IdentityError::Pattern { agent: self.agent.clone(), kind: self.kind.key(), pattern: pattern.to_owned(), why }
    }
}

/// The position of the walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// In the path. If a rule has matched, only the never-list can override it.
    Path { never: LazyStateID, exec: Result<usize, LazyStateID>, names: LazyStateID },
    /// In the arguments of an interpreter.
    Interpreter(At<usize>),
    /// In the name of a module.
    Module { module: LazyStateID },
}

/// The automata of one set of rules. Each match is the index of a rule.
pub(super) struct Machine {
    never: Part<usize>,
    exec: Part<usize>,
    script: Part<usize>,
    module: Part<usize>,
    interpreters: Interpreters,
}

impl Machine {
    pub(super) fn new(rules: &[Rule]) -> Result<Self, IdentityError> {
        Ok(Self {
            never: part(rules, |rule| rule.target == 0)?,
            exec: part(rules, |rule| rule.target != 0 && rule.kind == Kind::Exec)?,
            script: part(rules, |rule| rule.kind == Kind::Script)?,
            module: part(rules, |rule| rule.kind == Kind::Module)?,
            interpreters: Interpreters::new(FAMILIES).map_err(|error| in_all("interpreters", "built-in", &error))?,
        })
    }

    fn path(&mut self, never: LazyStateID, exec: Result<usize, LazyStateID>, names: LazyStateID, byte: u8) -> Result<Step<State>, TooMuch> {
        let (never, refused) = self.never.step(never, byte)?;
        if let Some(rule) = refused {
            return Ok(Step::Accept(rule));
        }
        let exec = match exec {
            Ok(rule) => Ok(rule),
            Err(id) => match self.exec.step(id, byte)? {
                (_, Some(rule)) => Ok(rule),
                (id, None) => Err(id),
            },
        };
        // After a match it does not matter whether the program is an interpreter.
        let (names, family) = match exec {
            Ok(_) => (self.interpreters.names.start()?, None),
            Err(_) => self.interpreters.names.step(names, byte)?,
        };
        Ok(match (byte, exec, family) {
            (0, Ok(rule), _) => Step::Accept(rule),
            (0, Err(_), Some(family)) => Step::Go(State::Interpreter(At::Value { family })),
            (0, Err(_), None) => Step::Dead,
            (_, exec, _) => Step::Go(State::Path { never, exec, names }),
        })
    }

    fn module_name(&mut self, module: LazyStateID, byte: u8) -> Result<Step<State>, TooMuch> {
        Ok(match self.module.step(module, byte)? {
            (_, Some(rule)) => Step::Accept(rule),
            (module, None) if module.is_dead() => Step::Dead,
            (module, None) => Step::Go(State::Module { module }),
        })
    }
}

impl Walk for Machine {
    type State = State;

    fn class(&self, byte: u8) -> Vec<u8> {
        let parts = [&self.never, &self.exec, &self.script, &self.module];
        parts.into_iter().map(|part| part.class(byte)).chain(self.interpreters.class(byte)).collect()
    }

    fn start(&mut self) -> Result<State, TooMuch> {
        Ok(State::Path { never: self.never.start()?, exec: Err(self.exec.start()?), names: self.interpreters.names.start()? })
    }

    fn step(&mut self, state: State, byte: u8) -> Result<Step<State>, TooMuch> {
        Ok(match state {
            State::Path { never, exec, names } => self.path(never, exec, names, byte)?,
            State::Interpreter(at) => match self.interpreters.step(at, byte, &mut self.script)? {
                Next::Go(at) => Step::Go(State::Interpreter(at)),
                Next::Module => Step::Go(State::Module { module: self.module.start()? }),
                Next::JoinedModule => {
                    let module = self.module.start()?;
                    self.module_name(module, byte)?
                }
                Next::Found(rule) => Step::Accept(rule),
                Next::Dead => Step::Dead,
            },
            State::Module { module } => self.module_name(module, byte)?,
        })
    }
}

/// The automaton of some of the rules.
fn part(rules: &[Rule], wanted: impl Fn(&Rule) -> bool) -> Result<Part<usize>, IdentityError> {
    let mut regexes = Vec::new();
    for (index, rule) in rules.iter().enumerate().filter(|(_, rule)| wanted(rule)) {
        let regex = rule.regex()?;
        // Compiled alone first, so that an error names this rule.
        Part::new([(regex.clone(), index)]).map_err(|error| rule.error(&rule.globs.join(" "), error.to_string()))?;
        regexes.push((regex, index));
    }
    Part::new(regexes).map_err(|error| in_all("all rules together", "rule", &error))
}

fn in_all(agent: &str, kind: &'static str, error: &BuildError) -> IdentityError {
    IdentityError::Pattern { agent: agent.to_owned(), kind, pattern: String::new(), why: error.to_string() }
}
