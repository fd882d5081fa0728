//! The walk over one program's path and arguments, a byte at a time.
//!
//! The parts are automata of `regex-automata`, built lazily; this module says
//! in which order they see the input. [`super::automaton`] walks it over every
//! byte at every state and so turns it into the kernel's table.

use super::IdentityError;
use super::glob::{self, Place};
use super::interpreter::{FAMILIES, Word};
use super::never::NEVER;
use crate::name::name_id;
use pp_common::abi::NameId;
use regex_automata::hybrid::LazyStateID;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};

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

/// A rule of the automaton; its index is its place in the list.
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

/// Where the walk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// In the path. `rule` matched already; only the never-list can undo it.
    Path { never: LazyStateID, exec: Result<usize, LazyStateID>, names: LazyStateID },
    /// In `argv[0]` of an interpreter.
    Argv0 { family: usize },
    /// In a word that may be an option, a subcommand or the script.
    Word { family: usize, word: LazyStateID, script: LazyStateID },
    /// In the value of an option.
    Value { family: usize },
    /// In the script.
    Script { script: LazyStateID },
    /// In the name of a module.
    Module { module: LazyStateID },
}

/// Where one byte leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Go(State),
    Accept(usize),
    Dead,
}

/// The automata of one set of rules.
pub(super) struct Machine {
    never: Part,
    exec: Part,
    names: Part,
    words: Vec<Part>,
    script: Part,
    module: Part,
}

impl Machine {
    pub(super) fn new(rules: &[Rule]) -> Result<Self, IdentityError> {
        Ok(Self {
            never: Part::of_rules(rules, |rule| rule.target == 0)?,
            exec: Part::of_rules(rules, |rule| rule.target != 0 && rule.kind == Kind::Exec)?,
            script: Part::of_rules(rules, |rule| rule.kind == Kind::Script)?,
            module: Part::of_rules(rules, |rule| rule.kind == Kind::Module)?,
            names: Part::fixed(FAMILIES.iter().map(|family| format!(r"(?:[^\x00]*/)?{}\x00", family.names)))?,
            words: FAMILIES
                .iter()
                .map(|family| Part::fixed(family.words.iter().map(|(re, _)| format!(r"(?:{re})\x00"))))
                .collect::<Result<_, _>>()?,
        })
    }

    /// What every part makes of a byte. Bytes of which this is equal always lead
    /// to the same place; NUL, which ends words, is alone.
    pub(super) fn class(&self, byte: u8) -> Vec<u8> {
        let fixed = [&self.never, &self.exec, &self.names, &self.script, &self.module];
        let parts = fixed.into_iter().chain(&self.words);
        let of_parts = parts.map(|part| part.dfa.byte_classes().get(byte));
        of_parts.chain([u8::from(byte == 0)]).collect()
    }

    pub(super) fn start(&mut self) -> Result<State, IdentityError> {
        Ok(State::Path { never: self.never.start()?, exec: Err(self.exec.start()?), names: self.names.start()? })
    }

    pub(super) fn step(&mut self, state: State, byte: u8) -> Result<Step, IdentityError> {
        Ok(match state {
            State::Path { never, exec, names } => self.path(never, exec, names, byte)?,
            State::Argv0 { family } if byte == 0 => self.next_word(family)?,
            State::Value { family } if byte == 0 => self.next_word(family)?,
            State::Argv0 { .. } | State::Value { .. } => Step::Go(state),
            State::Word { family, word, script } => self.word(family, word, script, byte)?,
            State::Script { script } => match self.script.step(script, byte)? {
                (_, Some(rule)) => Step::Accept(rule),
                (script, None) if script.is_dead() => Step::Dead,
                (script, None) => Step::Go(State::Script { script }),
            },
            State::Module { module } => match self.module.step(module, byte)? {
                (_, Some(rule)) => Step::Accept(rule),
                (module, None) if module.is_dead() => Step::Dead,
                (module, None) => Step::Go(State::Module { module }),
            },
        })
    }

    fn path(&mut self, never: LazyStateID, exec: Result<usize, LazyStateID>, names: LazyStateID, byte: u8) -> Result<Step, IdentityError> {
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
        // Once a rule matched, whether the program is an interpreter does not matter.
        let (names, family) = match exec {
            Ok(_) => (self.names.start()?, None),
            Err(_) => self.names.step(names, byte)?,
        };
        Ok(match (byte, exec, family) {
            (0, Ok(rule), _) => Step::Accept(rule),
            (0, Err(_), Some(family)) => Step::Go(State::Argv0 { family }),
            (0, Err(_), None) => Step::Dead,
            (_, exec, _) => Step::Go(State::Path { never, exec, names }),
        })
    }

    fn next_word(&mut self, family: usize) -> Result<Step, IdentityError> {
        let word = self.words[family].start()?;
        Ok(Step::Go(State::Word { family, word, script: self.script.start()? }))
    }

    fn word(&mut self, family: usize, word: LazyStateID, script: LazyStateID, byte: u8) -> Result<Step, IdentityError> {
        let (word, class) = self.words[family].step(word, byte)?;
        if let Some(index) = class {
            return match FAMILIES[family].words[index].1 {
                Word::Stop => Ok(Step::Dead),
                Word::Skip => self.next_word(family),
                Word::Value => Ok(Step::Go(State::Value { family })),
                Word::Module => Ok(Step::Go(State::Module { module: self.module.start()? })),
                Word::End => Ok(Step::Go(State::Script { script: self.script.start()? })),
            };
        }
        let (script, rule) = self.script.step(script, byte)?;
        Ok(match rule {
            // An option may match a rule that ends in `*` before it is known to be one.
            Some(rule) if word.is_dead() || byte == 0 => Step::Accept(rule),
            Some(_) | None if !word.is_dead() => Step::Go(State::Word { family, word, script }),
            Some(_) | None if !script.is_dead() => Step::Go(State::Script { script }),
            Some(_) | None => Step::Dead,
        })
    }
}

/// One automaton that grows as it is walked. Matches are numbered by rule.
struct Part {
    dfa: DFA,
    cache: Cache,
    rules: Vec<usize>,
}

/// Memory for one automaton. It is never cleared: the walk keeps state ids.
const CACHE_BYTES: usize = 96 << 20;

impl Part {
    fn of_rules(rules: &[Rule], wanted: impl Fn(&Rule) -> bool) -> Result<Self, IdentityError> {
        let mut regexes = Vec::new();
        let mut indexes = Vec::new();
        for (index, rule) in rules.iter().enumerate().filter(|(_, rule)| wanted(rule)) {
            let regex = rule.regex()?;
            // On its own first, so that an error names this rule.
            Self::build(&[&regex], Vec::new()).map_err(|why| rule.error(&rule.globs.join(" "), why))?;
            regexes.push(regex);
            indexes.push(index);
        }
        let whole = "all rules together";
        Self::build(&regexes, indexes).map_err(|why| IdentityError::Pattern {
            agent: whole.to_owned(),
            kind: "rule",
            pattern: String::new(),
            why,
        })
    }

    fn fixed(regexes: impl Iterator<Item = String>) -> Result<Self, IdentityError> {
        let regexes: Vec<String> = regexes.collect();
        let rules = (0..regexes.len()).collect();
        Self::build(&regexes, rules).map_err(|why| IdentityError::Pattern {
            agent: "interpreters".to_owned(),
            kind: "built-in",
            pattern: regexes.join(" "),
            why,
        })
    }

    fn build<P: AsRef<str>>(regexes: &[P], rules: Vec<usize>) -> Result<Self, String> {
        let dfa = DFA::builder()
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .thompson(regex_automata::nfa::thompson::Config::new().utf8(false).nfa_size_limit(Some(16 << 20)))
            .configure(DFA::config().match_kind(MatchKind::All).cache_capacity(CACHE_BYTES).minimum_cache_clear_count(Some(0)))
            .build_many(regexes)
            .map_err(|error| error.to_string())?;
        let cache = dfa.create_cache();
        Ok(Self { dfa, cache, rules })
    }

    fn start(&mut self) -> Result<LazyStateID, IdentityError> {
        let input = Input::new("").anchored(Anchored::Yes);
        self.dfa
            .start_state_forward(&mut self.cache, &input)
            .map_err(|_| super::too_complex("bytes of automaton", CACHE_BYTES + 1, CACHE_BYTES))
    }

    /// The next state, and the first rule whose match ends with this byte.
    fn step(&mut self, id: LazyStateID, byte: u8) -> Result<(LazyStateID, Option<usize>), IdentityError> {
        let full = |_| super::too_complex("bytes of automaton", CACHE_BYTES + 1, CACHE_BYTES);
        if id.is_dead() {
            return Ok((id, None));
        }
        let next = self.dfa.next_state(&mut self.cache, id, byte).map_err(full)?;
        if next.is_dead() {
            return Ok((next, None));
        }
        // Matches show one step late, so the end of input tells them now.
        let end = self.dfa.next_eoi_state(&mut self.cache, next).map_err(full)?;
        if !end.is_match() {
            return Ok((next, None));
        }
        let first = (0..self.dfa.match_len(&self.cache, end)).map(|i| self.dfa.match_pattern(&self.cache, end, i).as_usize()).min();
        Ok((next, first.and_then(|pattern| self.rules.get(pattern).copied())))
    }
}
