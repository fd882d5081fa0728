//! How interpreters read their arguments: which word is the script, and the walk to it.
//!
//! Each family has the names of its programs, and the words that may come before the script. They are from the programs' help texts (Node
//! 22, Bun 1.2, Deno 2, CPython 3.13, Ruby 3.3, Perl 5.40, PHP 8.4, bash 5.2).

use regex_automata::hybrid::{BuildError, LazyStateID};

use super::{Part, TooMuch, glob};

/// The meaning of a word on an interpreter's command line. The first pattern of the family that matches the whole word decides. If none
/// does, the word is the script. A module's pattern matches the start of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Word {
    /// An option whose value is the next word.
    Value,
    /// An option that is followed by the name of a module, in the same word or the next. It matches where the name starts.
    Module,
    /// The program comes from elsewhere, so there is no script.
    Stop,
    /// The end of the options.
    End,
    /// An option without a value, or a subcommand before the script.
    Skip,
}

/// A family of interpreters with one command line.
pub(crate) struct Family {
    /// Regular expression for their file names.
    pub(crate) names: &'static str,
    /// Words, as regular expressions, most specific first.
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
            (r"-[bBdEhiIJOPqRsStuvVx3]*m", Module),
            (r"-[bBdEhiIJOPqRsStuvVx3]*c[^\x00]*|-", Stop),
            (r"-[bBdEhiIJOPqRsStuvVx3]*[QWX]|--check-hash-based-pycs", Value),
            (r"--", End),
            (r"-[^\x00]*", Skip),
        ],
    },
    Family {
        names: r"ruby[0-9.]*",
        words: &[
            (r"-(?:[acdlnpsSUvwy]|[WT][0-9]?|0[0-7]*)*e[^\x00]*|-", Stop),
            (r"-(?:[acdlnpsSUvwy]|[WT][0-9]?|0[0-7]*)*[CEIrX]", Value),
            (r"--(?:encoding|external-encoding|internal-encoding|enable|disable|parser|dump|backtrace-limit)", Value),
            (r"--", End),
            (r"-[^\x00]*", Skip),
        ],
    },
    Family {
        names: r"perl[0-9.]*",
        words: &[
            (r"-(?:[acfgnpsStTuUwWX]|dt?|[0l][0-7]*|0x[0-9a-fA-F]+)*[eE][^\x00]*|-", Stop),
            (r"-(?:[acfgnpsStTuUwWX]|dt?|[0l][0-7]*|0x[0-9a-fA-F]+)*I", Value),
            (r"--", End),
            (r"-[^\x00]*", Skip),
        ],
    },
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
        words: &[
            (r"-[a-zA-Z]*[cs][a-zA-Z]*|-", Stop),
            (r"[-+][a-zA-Z]*[oO][a-zA-Z]*|--(?:rcfile|init-file)", Value),
            (r"--", End),
            (r"[-+][^\x00]*", Skip),
        ],
    },
];

/// The dynamic loader, `ld.so(8)`, with the words before the program that it runs.
pub(crate) const LOADER: Family = Family {
    names: r"ld(?:-linux|-musl|64|\.so|-)[^\x00/]*",
    words: &[(r"--(?:library-path|preload|argv0|inhibit-rpath|audit|glibc-hwcaps-prepend|glibc-hwcaps-mask)", Value), (r"-[^\x00]*", Skip)],
};

/// The position of the walk in an interpreter's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum At<T> {
    /// In `argv[0]`, or in the value of an option.
    Value { family: usize },
    /// In a word that may be an option, a subcommand or the script. `found` is what it matched as the script so far.
    Word { family: usize, word: LazyStateID, script: LazyStateID, found: Option<T> },
    /// Behind an option that a module follows.
    BeforeModule,
    /// In the script.
    Script { script: LazyStateID },
}

/// The step that one byte of these arguments makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next<T> {
    /// To this position.
    Go(At<T>),
    /// To the name of a module, which starts with the next byte.
    Module,
    /// To the name of a module, which starts with this byte.
    JoinedModule,
    /// The script matches.
    Found(T),
    /// There is no script.
    Dead,
}

/// The automata of some families.
pub(crate) struct Interpreters {
    /// The names that a path may end in, including its NUL, each with its family.
    pub(crate) names: Part<usize>,
    words: Vec<Part<Word>>,
}

impl Interpreters {
    pub(crate) fn new(families: impl IntoIterator<Item = &'static Family>) -> Result<Self, Box<BuildError>> {
        let families: Vec<&Family> = families.into_iter().collect();
        let whole = |regex: &str, word| if word == Module { regex.to_owned() } else { format!(r"(?:{regex})\x00") };
        let words = |family: &&Family| Part::new(family.words.iter().map(|(regex, word)| (whole(regex, *word), *word)));
        Ok(Self {
            names: Part::new(families.iter().enumerate().map(|(index, family)| (glob::file_named(family.names), index)))?,
            words: families.iter().map(words).collect::<Result<_, _>>()?,
        })
    }

    /// See [`Walk::class`](super::Walk::class).
    pub(crate) fn class(&self, byte: u8) -> Vec<u8> {
        self.words.iter().map(|words| words.class(byte)).chain([self.names.class(byte)]).collect()
    }

    /// Makes one step; `scripts` are the scripts to look for.
    pub(crate) fn step<T: Copy>(&mut self, at: At<T>, byte: u8, scripts: &mut Part<T>) -> Result<Next<T>, TooMuch> {
        Ok(match at {
            At::Value { family } if byte == 0 => Next::Go(self.next_word(family, scripts)?),
            At::Value { .. } => Next::Go(at),
            At::Word { family, word, script, found } => match self.words[family].step(word, byte)? {
                (_, Some(Stop)) => Next::Dead,
                (_, Some(Skip)) => Next::Go(self.next_word(family, scripts)?),
                (_, Some(Value)) => Next::Go(At::Value { family }),
                (_, Some(Module)) => Next::Go(At::BeforeModule),
                (_, Some(End)) => Next::Go(At::Script { script: scripts.start()? }),
                (word, None) => {
                    // A pattern that ends in `*` matches before it is known that the word is no option, and only once.
                    let (script, now) = scripts.step(script, byte)?;
                    match found.or(now) {
                        found if !word.is_dead() && byte != 0 => Next::Go(At::Word { family, word, script, found }),
                        Some(found) => Next::Found(found),
                        None if script.is_dead() => Next::Dead,
                        None => Next::Go(At::Script { script }),
                    }
                }
            },
            At::BeforeModule if byte == 0 => Next::Module,
            At::BeforeModule => Next::JoinedModule,
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
