//! How interpreters read their arguments: which word is the script.
//!
//! Of each family: what its programs are called, and what each word before the
//! script is. The words were taken from the programs' own help texts (Node 22,
//! Bun 1.2, Deno 2, CPython 3.13, Ruby 3.3, Perl 5.40, PHP 8.4, bash 5.2).

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
