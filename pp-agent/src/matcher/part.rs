//! One automaton of `regex-automata` that grows as it is walked.

use foldhash::{HashMap, HashMapExt as _};
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::hybrid::{BuildError, LazyStateID};
use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};

use super::TooMuch;

/// Memory for one automaton. It is never cleared: the walk keeps state ids.
const CACHE_BYTES: usize = 96 << 20;
const FULL: TooMuch = TooMuch { what: "bytes of automaton", need: CACHE_BYTES + 1, most: CACHE_BYTES };

/// Patterns over bytes that are searched at once. Each has a `T`.
pub(crate) struct Part<T> {
    dfa: DFA,
    cache: Cache,
    meanings: Vec<T>,
    /// The results of [`Part::matched`].
    known: HashMap<LazyStateID, Option<T>>,
}

impl<T: Copy> Part<T> {
    /// Compiles patterns. They are regular expressions, in order of priority. `.` is any byte except NUL.
    pub(crate) fn new(patterns: impl IntoIterator<Item = (String, T)>) -> Result<Self, Box<BuildError>> {
        let (regexes, meanings): (Vec<String>, Vec<T>) = patterns.into_iter().unzip();
        let dfa = DFA::builder()
            .syntax(syntax::Config::new().unicode(false).utf8(false).line_terminator(0))
            .thompson(thompson::Config::new().utf8(false).nfa_size_limit(Some(16 << 20)))
            .configure(DFA::config().match_kind(MatchKind::All).cache_capacity(CACHE_BYTES).minimum_cache_clear_count(Some(0)))
            .build_many(&regexes)?;
        let cache = dfa.create_cache();
        Ok(Self { dfa, cache, meanings, known: HashMap::new() })
    }

    /// Bytes of one class lead to the same states.
    pub(crate) fn class(&self, byte: u8) -> u8 {
        self.dfa.byte_classes().get(byte)
    }

    pub(crate) fn start(&mut self) -> Result<LazyStateID, TooMuch> {
        let input = Input::new("").anchored(Anchored::Yes);
        self.dfa.start_state_forward(&mut self.cache, &input).map_err(|_| FULL)
    }

    /// The next state, and the first pattern whose match ends with this byte.
    pub(crate) fn step(&mut self, id: LazyStateID, byte: u8) -> Result<(LazyStateID, Option<T>), TooMuch> {
        if id.is_dead() {
            return Ok((id, None));
        }
        let next = self.dfa.next_state(&mut self.cache, id, byte).map_err(|_| FULL)?;
        Ok((next, self.matched(next)?))
    }

    /// The first pattern that matches what was read up to this state.
    pub(crate) fn matched(&mut self, id: LazyStateID) -> Result<Option<T>, TooMuch> {
        if id.is_dead() {
            return Ok(None);
        }
        if let Some(known) = self.known.get(&id) {
            return Ok(*known);
        }
        // The automaton reports matches one step late, so the end of input is simulated.
        let end = self.dfa.next_eoi_state(&mut self.cache, id).map_err(|_| FULL)?;
        let count = if end.is_match() { self.dfa.match_len(&self.cache, end) } else { 0 };
        let first = (0..count).map(|index| self.dfa.match_pattern(&self.cache, end, index).as_usize()).min();
        let meaning = first.and_then(|pattern| self.meanings.get(pattern).copied());
        self.known.insert(id, meaning);
        Ok(meaning)
    }
}
