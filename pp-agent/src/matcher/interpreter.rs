//! How interpreters read their arguments: which word is the script, and the walk there.
//!
//! Of each family: what its programs are called, and what each word before the
//! script is. The words were taken from the programs' own help texts (Node 22,
//! Bun 1.2, Deno 2, CPython 3.13, Ruby 3.3, Perl 5.40, PHP 8.4, bash 5.2).

use regex_automata::hybrid::{BuildError, LazyStateID};

use super::{Part, TooMuch, glob};

/// What a word on an interpreter's command line is. The first pattern of its
/// family that matches the whole word decides; no pattern: it is the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Word {
    /// An option whose value is the next word.
    Value,
    /// An option after which comes the name of a module.
    Module,
    /// The program comes from elsewhere: there is no script.
    Stop,
    /// No options from here on.
    End,
    /// An option that stands alone, or a subcommand before the script.
    Skip,
}

/// A family of interpreters with one command line.
pub(crate) struct Family {
    /// Regular expression for their file names.
    pub(crate) names: &'static str,
    /// Words, as regular expressions, most particular first.
    pub(crate) words: &'static [(&'static str, Word)],
}

use Word::{End, Module, Skip, Stop, Value};

/// Every known interpreter.
pub(crate) const FAMILIES: &[Family] = &[
    Family {
        names: r"(?:node|nodejs|node-?[0-9]+|tsx|ts-node)",
        words: &[
            (r"-(?:r|C)", Value),
            (r"--(?:require|import|loader|experimental-loader|conditions)", Value),
            (r"--(?:env-file|env-file-if-exists|title|inspect-port|input-type)", Value),
            (r"--(?:icu-data-dir|openssl-config|redirect-warnings|diagnostic-dir)", Value),
            (r"--(?:disable-warning|watch-path|experimental-config-file|test-reporter)", Value),
            (r"-(?:e|p|pe)|--eval|--print|-", Stop),
            (r"--", End),
            (r"-[^\x00]*", Skip),
        ],
    },
    Family {
        names: r"bun",
        words: &[
            (r"-[rdlc]|--(?:preload|require|import|config|cwd|env-file|define|loader)", Value),
            (r"-[ep]|--eval|--print|-", Stop),
            (r"--", End),
            (r"run|-[^\x00]*", Skip),
        ],
    },
    Family {
        names: r"deno",
        words: &[
            (r"-c|--(?:config|import-map|lock|location|seed|cert|env-file|ext|preload)", Value),
            (r"eval|repl|-", Stop),
            (r"--", End),
            (r"run|serve|-[^\x00]*", Skip),
        ],
    },
    Family {
        names: r"(?:python|pypy)[0-9.]*t?",
        words: &[
            (r"-[bBdEhiIOPqRsSuvVx]*m", Module),
            (r"-[bBdEhiIOPqRsSuvVx]*c[^\x00]*|-", Stop),
            (r"-[bBdEhiIOPqRsSuvVx]*[WX]|--check-hash-based-pycs", Value),
            (r"--", End),
            (r"-[^\x00]*", Skip),
        ],
    },
    Family {
        names: r"ruby[0-9.]*",
        words: &[
            (r"-[a-zA-Z0]*e|-", Stop),
            (r"-[IrC]|--(?:encoding|external-encoding|internal-encoding)", Value),
            (r"--", End),
            (r"-[^\x00]*", Skip),
        ],
    },
    Family { names: r"perl[0-9.]*", words: &[(r"-[a-zA-Z0]*[eE]|-", Stop), (r"-I", Value), (r"--", End), (r"-[^\x00]*", Skip)] },
    Family {
        names: r"php[0-9.]*",
        words: &[
            (r"-[rSBRE]|--(?:run|server)|-", Stop),
            (r"-[cdztO]|--(?:php-ini|define|zend-extension|docroot)", Value),
            (r"--", End),
            (r"-[^\x00]*", Skip),
        ],
    },
    Family {
        names: r"(?:sh|bash|dash|zsh|ksh|mksh|ash)",
        words: &[(r"-[a-zA-Z]*[cs][a-zA-Z]*|-", Stop), (r"[-+][oO]|--(?:rcfile|init-file)", Value), (r"--", End), (r"[-+][^\x00]*", Skip)],
    },
];

/// The dynamic loader, `ld.so(8)`: what comes before the program that it runs.
pub(crate) const LOADER: Family = Family {
    names: r"ld(?:-linux|-musl|64|\.so|-)[^\x00/]*",
    words: &[(r"--(?:library-path|preload|argv0|inhibit-rpath|audit|glibc-hwcaps-prepend|glibc-hwcaps-mask)", Value), (r"-[^\x00]*", Skip)],
};

/// Where the walk over an interpreter's arguments stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum At<T> {
    /// In `argv[0]`, or in the value of an option.
    Value { family: usize },
    /// In a word that may be an option, a subcommand or the script. `found` is what it is as the script, as far as that is known.
    Word { family: usize, word: LazyStateID, script: LazyStateID, found: Option<T> },
    /// In the script.
    Script { script: LazyStateID },
}

/// Where one byte of these arguments leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next<T> {
    /// On.
    Go(At<T>),
    /// To the name of a module, which begins with the next byte.
    Module,
    /// The script is one of those that are looked for.
    Found(T),
    /// There is none.
    Dead,
}

/// The automata of some families.
pub(crate) struct Interpreters {
    /// What a path may end in, up to and with its NUL; which family that is.
    pub(crate) names: Part<usize>,
    words: Vec<Part<Word>>,
}

impl Interpreters {
    pub(crate) fn new(families: impl IntoIterator<Item = &'static Family>) -> Result<Self, Box<BuildError>> {
        let families: Vec<&Family> = families.into_iter().collect();
        let words = |family: &&Family| Part::new(family.words.iter().map(|(regex, word)| (format!(r"(?:{regex})\x00"), *word)));
        Ok(Self {
            names: Part::new(families.iter().enumerate().map(|(index, family)| (glob::file_named(family.names), index)))?,
            words: families.iter().map(words).collect::<Result<_, _>>()?,
        })
    }

    /// See [`Walk::class`](super::Walk::class).
    pub(crate) fn class(&self, byte: u8) -> Vec<u8> {
        self.words.iter().map(|words| words.class(byte)).chain([self.names.class(byte)]).collect()
    }

    /// One byte further; `scripts` are those that are looked for.
    pub(crate) fn step<T: Copy>(&mut self, at: At<T>, byte: u8, scripts: &mut Part<T>) -> Result<Next<T>, TooMuch> {
        Ok(match at {
            At::Value { family } if byte == 0 => Next::Go(self.next_word(family, scripts)?),
            At::Value { .. } => Next::Go(at),
            At::Word { family, word, script, found } => match self.words[family].step(word, byte)? {
                (_, Some(Stop)) => Next::Dead,
                (_, Some(Skip)) => Next::Go(self.next_word(family, scripts)?),
                (_, Some(Value)) => Next::Go(At::Value { family }),
                (_, Some(Module)) => Next::Module,
                (_, Some(End)) => Next::Go(At::Script { script: scripts.start()? }),
                (word, None) => {
                    // What ends in `*` is found before the word is known to be no option, and not a second time.
                    let (script, now) = scripts.step(script, byte)?;
                    match found.or(now) {
                        found if !word.is_dead() && byte != 0 => Next::Go(At::Word { family, word, script, found }),
                        Some(found) => Next::Found(found),
                        None if script.is_dead() => Next::Dead,
                        None => Next::Go(At::Script { script }),
                    }
                }
            },
            At::Script { script } => match scripts.step(script, byte)? {
                (_, Some(found)) => Next::Found(found),
                (script, None) if script.is_dead() => Next::Dead,
                (script, None) => Next::Go(At::Script { script }),
            },
        })
    }

    fn next_word<T: Copy>(&mut self, family: usize, scripts: &mut Part<T>) -> Result<At<T>, TooMuch> {
        Ok(At::Word { family, word: self.words[family].start()?, script: scripts.start()?, found: None })
    }
}
