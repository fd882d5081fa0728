//! The walk over one program's path and arguments, a byte at a time: first whose
//! name it is, by the path, by `argv[0]`, as the script or module of an
//! interpreter or the program of the dynamic loader; then that tool's shapes.

use foldhash::{HashMap, HashMapExt as _};

use regex_automata::hybrid::LazyStateID;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};

use super::{Tool, ToolError, shape};
use crate::identity::interpreter::{FAMILIES, Word};

/// Memory for one automaton. It is never cleared: the walk keeps state ids.
const CACHE_BYTES: usize = 96 << 20;

/// `ld.so(8)`: what comes before the program.
const LOADER: &[(&str, Word)] = &[
    (r"--(?:library-path|preload|argv0|inhibit-rpath|audit|glibc-hwcaps-prepend|glibc-hwcaps-mask)", Word::Value),
    (r"-[^\x00]*", Word::Skip),
];
const LOADER_NAMES: &str = r"ld(?:-linux|-musl|64|\.so|-)[^\x00/]*";

/// A tool as the walk needs it.
pub(super) struct Walked {
    /// Its telling shapes over the arguments after the name, each with its rule's
    /// number plus one; the first that is seen is told.
    pub(super) shapes: Vec<(String, usize)>,
    /// Command lines that policy allows.
    pub(super) allowed: Vec<String>,
    /// The rule for arguments that cannot be seen, and the one for the name alone.
    pub(super) unseen: Option<usize>,
    pub(super) alone: Option<usize>,
}

/// A tool, and whether it was called by a name that is reported by itself.
type Called = (usize, bool);

/// Where the walk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    Path {
        files: LazyStateID,
        families: LazyStateID,
    },
    /// In `argv[0]` of a tool.
    OwnArgv0 {
        called: Called,
    },
    /// In `argv[0]` of something that is no interpreter.
    Argv0 {
        files: LazyStateID,
    },
    /// In a word that may be an option, or the script.
    Word {
        family: usize,
        word: LazyStateID,
        files: LazyStateID,
    },
    /// In the value of an option, or in `argv[0]` of an interpreter.
    Value {
        family: usize,
    },
    /// In the script or the name of a module.
    Script {
        files: LazyStateID,
    },
    /// In the arguments of a tool; `Err`: its shape was telling, by this rule.
    Arguments {
        called: Called,
        shape: Result<LazyStateID, usize>,
        allowed: Option<LazyStateID>,
    },
}

/// The automata of one table.
pub(super) struct Machine {
    files: Part,
    families: Part,
    words: Vec<Part>,
    shapes: Vec<Part>,
    allowed: Vec<Option<Part>>,
    owners: Vec<Called>,
    tools: Vec<Walked>,
}

impl Machine {
    pub(super) fn new(table: &[Tool], tools: Vec<Walked>) -> Result<Self, ToolError> {
        let mut owners = Vec::new();
        let mut files = Vec::new();
        for (index, tool) in table.iter().enumerate() {
            for file in &tool.files {
                let named = tool.named.as_ref().is_none_or(|named| named.contains(file));
                owners.push((index, named));
                files.push(format!(r"(?:[^\x00]*/)?{}\x00", shape::part(file)));
            }
        }
        let names = FAMILIES.iter().map(|family| family.names).chain([LOADER_NAMES]);
        let words = FAMILIES.iter().map(|family| family.words).chain([LOADER]);
        Ok(Self {
            files: Part::new(&files)?,
            families: Part::new(&names.map(|names| format!(r"(?:[^\x00]*/)?{names}\x00")).collect::<Vec<_>>())?,
            words: words
                .map(|words| Part::new(&words.iter().map(|(regex, _)| format!(r"(?:{regex})\x00")).collect::<Vec<_>>()))
                .collect::<Result<_, _>>()?,
            shapes: tools
                .iter()
                .map(|tool| Part::new(&tool.shapes.iter().map(|(regex, _)| regex.as_str()).collect::<Vec<_>>()))
                .collect::<Result<_, _>>()?,
            allowed: tools
                .iter()
                .map(|tool| (!tool.allowed.is_empty()).then(|| Part::new(&tool.allowed)).transpose())
                .collect::<Result<_, _>>()?,
            owners,
            tools,
        })
    }

    /// What every part makes of a byte. Bytes of which this is equal always lead
    /// to the same place; NUL, which ends words, is alone.
    pub(super) fn class(&self, byte: u8) -> Vec<u8> {
        let parts = [&self.files, &self.families].into_iter().chain(&self.words).chain(&self.shapes).chain(self.allowed.iter().flatten());
        parts.map(|part| part.dfa.byte_classes().get(byte)).chain([u8::from(byte == 0)]).collect()
    }

    pub(super) fn start(&mut self) -> Result<State, ToolError> {
        Ok(State::Path { files: self.files.start()?, families: self.families.start()? })
    }

    /// One byte further; `None`: no rule can match any more.
    pub(super) fn step(&mut self, state: State, byte: u8) -> Result<Option<State>, ToolError> {
        let end = byte == 0;
        Ok(match state {
            State::Path { files, families } => {
                let (files, file) = self.files.step(files, byte)?;
                let (families, family) = self.families.step(families, byte)?;
                Some(match (file, family) {
                    _ if !end => State::Path { files, families },
                    (Some(file), _) => State::OwnArgv0 { called: self.owners[file] },
                    (None, Some(family)) => State::Value { family },
                    (None, None) => State::Argv0 { files: self.files.start()? },
                })
            }
            State::OwnArgv0 { called } if end => Some(self.arguments(called)?),
            State::Value { family } if end => Some(self.next_word(family)?),
            State::OwnArgv0 { .. } | State::Value { .. } => Some(state),
            State::Argv0 { files } => match self.files.step(files, byte)? {
                (_, Some(file)) => Some(self.arguments(self.owners[file])?),
                (files, None) => (!files.is_dead() && !end).then_some(State::Argv0 { files }),
            },
            State::Word { family, word, files } => self.word(family, word, files, byte)?,
            State::Script { files } => match self.files.step(files, byte)? {
                (_, Some(file)) => Some(self.arguments(self.owners[file])?),
                (files, None) => (!files.is_dead() && !end).then_some(State::Script { files }),
            },
            State::Arguments { called, shape, allowed } => Some(self.argument(called, shape, allowed, byte)?),
        })
    }

    fn word(&mut self, family: usize, word: LazyStateID, files: LazyStateID, byte: u8) -> Result<Option<State>, ToolError> {
        let (word, class) = self.words[family].step(word, byte)?;
        let (files, file) = self.files.step(files, byte)?;
        if byte != 0 {
            // What is no option of any interpreter is the script, whichever runs it.
            return Ok(match (word.is_dead(), files.is_dead()) {
                (true, true) => None,
                (true, false) => Some(State::Script { files }),
                (false, _) => Some(State::Word { family, word, files }),
            });
        }
        let words = FAMILIES.get(family).map_or(LOADER, |family| family.words);
        Ok(match class.map(|class| words[class].1) {
            Some(Word::Stop) => None,
            Some(Word::Skip) => Some(self.next_word(family)?),
            Some(Word::Value) => Some(State::Value { family }),
            Some(Word::Module | Word::End) => Some(State::Script { files: self.files.start()? }),
            None => file.map(|file| self.arguments(self.owners[file])).transpose()?,
        })
    }

    fn next_word(&mut self, family: usize) -> Result<State, ToolError> {
        Ok(State::Word { family, word: self.words[family].start()?, files: self.files.start()? })
    }

    fn arguments(&mut self, called: Called) -> Result<State, ToolError> {
        let (tool, _) = called;
        let allowed = self.allowed[tool].as_mut().map(Part::start).transpose()?;
        Ok(State::Arguments { called, shape: Ok(self.shapes[tool].start()?), allowed })
    }

    fn argument(
        &mut self,
        called: Called,
        shape: Result<LazyStateID, usize>,
        allowed: Option<LazyStateID>,
        byte: u8,
    ) -> Result<State, ToolError> {
        let (tool, _) = called;
        let shape = match shape {
            Err(rule) => Err(rule),
            Ok(shape) => match self.shapes[tool].step(shape, byte)? {
                (_, Some(pattern)) => Err(self.tools[tool].shapes[pattern].1),
                (shape, None) => Ok(shape),
            },
        };
        // Once no line of policy can match any more, none is followed.
        let allowed = match (allowed, &mut self.allowed[tool]) {
            (Some(allowed), Some(part)) => Some(part.step(allowed, byte)?.0).filter(|id| !id.is_dead()),
            _ => None,
        };
        Ok(State::Arguments { called, shape, allowed })
    }

    /// What it means to end here.
    pub(super) fn end(&mut self, state: State) -> Result<End, ToolError> {
        let ((tool, named), shape, allowed) = match state {
            State::OwnArgv0 { called } => (called, None, None),
            State::Arguments { called, shape, allowed } => (called, shape.err(), allowed),
            _ => return Ok(End::default()),
        };
        let matches = match (allowed, &mut self.allowed[tool]) {
            (Some(allowed), Some(part)) => part.matched(allowed)?.is_some(),
            _ => false,
        };
        let walked = &self.tools[tool];
        Ok(End {
            allowed: matches,
            refused: shape,
            unseen: walked.unseen,
            alone: walked.alone.filter(|_| named),
            settles: allowed.is_none(),
        })
    }
}

/// See [`Machine::end`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct End {
    pub(super) allowed: bool,
    pub(super) refused: Option<usize>,
    pub(super) unseen: Option<usize>,
    pub(super) alone: Option<usize>,
    /// Once refused, nothing that follows changes it.
    pub(super) settles: bool,
}

/// One automaton that grows as it is walked.
struct Part {
    dfa: DFA,
    cache: Cache,
    /// What [`Part::matched`] found out.
    known: HashMap<LazyStateID, Option<usize>>,
}

impl Part {
    fn new<P: AsRef<str>>(regexes: &[P]) -> Result<Self, ToolError> {
        let dfa = DFA::builder()
            .syntax(syntax::Config::new().unicode(false).utf8(false).line_terminator(0))
            .thompson(regex_automata::nfa::thompson::Config::new().utf8(false).nfa_size_limit(Some(16 << 20)))
            .configure(DFA::config().match_kind(MatchKind::All).cache_capacity(CACHE_BYTES).minimum_cache_clear_count(Some(0)))
            .build_many(regexes)
            .map_err(|error| ToolError::Table(chain(&error)))?;
        let cache = dfa.create_cache();
        Ok(Self { dfa, cache, known: HashMap::new() })
    }

    fn start(&mut self) -> Result<LazyStateID, ToolError> {
        let input = Input::new("").anchored(Anchored::Yes);
        self.dfa.start_state_forward(&mut self.cache, &input).map_err(|_| full())
    }

    /// The next state, and the first pattern whose match ends with this byte.
    fn step(&mut self, id: LazyStateID, byte: u8) -> Result<(LazyStateID, Option<usize>), ToolError> {
        if id.is_dead() {
            return Ok((id, None));
        }
        let next = self.dfa.next_state(&mut self.cache, id, byte).map_err(|_| full())?;
        Ok((next, self.matched(next)?))
    }

    /// The first pattern that matches what was read up to this state.
    fn matched(&mut self, id: LazyStateID) -> Result<Option<usize>, ToolError> {
        if id.is_dead() {
            return Ok(None);
        }
        if let Some(known) = self.known.get(&id) {
            return Ok(*known);
        }
        // Matches show one step late, so the end of input tells them now.
        let end = self.dfa.next_eoi_state(&mut self.cache, id).map_err(|_| full())?;
        let count = if end.is_match() { self.dfa.match_len(&self.cache, end) } else { 0 };
        let first = (0..count).map(|index| self.dfa.match_pattern(&self.cache, end, index).as_usize()).min();
        self.known.insert(id, first);
        Ok(first)
    }
}

fn full() -> ToolError {
    ToolError::TooComplex { what: "bytes of automaton", need: CACHE_BYTES + 1, most: CACHE_BYTES }
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
