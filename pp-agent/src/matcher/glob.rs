//! Turns globs into regular expressions over bytes. `*` is any run, `?` any byte except `/`; nothing else is special. No glob matches a
//! NUL.

use std::fmt::Write;

/// The part of the kernel's input that a glob is about; see [`over_path`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The path given to `execve`.
    Exec,
    /// A script, which never starts with `-`, since that is an option.
    Script,
}

/// A path glob, including the NUL that ends the path. Without `/` it is compared with the last component only. If it ends in `*`, the rest
/// of the path does not matter, so the match ends there.
pub(crate) fn over_path(glob: &str, place: Place) -> String {
    let any = match place {
        Place::Exec => r"[^\x00]*",
        Place::Script => r"(?:[^\x00\-][^\x00]*)?",
    };
    if !glob.contains('/') {
        return format!(r"(?:{any}/)?{}\x00", part(glob, r"[^\x00/]*"));
    }
    let (head, rest) = match glob.strip_prefix("*/") {
        Some(rest) => (format!("(?:{any}/)?"), rest),
        None => match glob.strip_prefix('*') {
            Some(rest) => (any.to_owned(), rest),
            None => (String::new(), glob),
        },
    };
    let body = part(rest.trim_end_matches('*'), r"[^\x00]*");
    if !rest.ends_with('*') {
        return format!(r"{head}{body}\x00");
    }
    // A match ends with a byte, so a glob that matches every path needs at least one.
    match (body.is_empty(), place) {
        (true, Place::Exec) => r"[^\x00]".to_owned(),
        (true, Place::Script) => r"[^\x00\-]".to_owned(),
        (false, _) => format!("{head}{body}"),
    }
}

/// A glob over a single word, including the NUL after it.
pub(crate) fn over_word(glob: &str) -> String {
    format!(r"{}\x00", part(glob, r"[^\x00]*"))
}

/// A glob over a whole text, without a NUL.
pub(crate) fn over_text(glob: &str) -> String {
    part(glob, r"[^\x00]*")
}

/// A path whose last component matches this regular expression, including the NUL that ends it.
pub(crate) fn file_named(regex: &str) -> String {
    format!(r"(?:[^\x00]*/)?{regex}\x00")
}

fn part(glob: &str, any: &str) -> String {
    let mut regex = String::new();
    for byte in glob.bytes() {
        match byte {
            b'*' => regex.push_str(any),
            b'?' => regex.push_str(r"[^\x00/]"),
            b if b.is_ascii_alphanumeric() => regex.push(char::from(b)),
            b => write!(regex, r"\x{b:02X}").unwrap_or_default(),
        }
    }
    regex
}

/// What is wrong with a glob, and what to do.
pub(crate) fn problem(glob: &str, path: bool) -> Option<&'static str> {
    if glob.is_empty() {
        return Some("it is empty; remove it");
    }
    if glob.len() > 256 {
        return Some("it is longer than 256 bytes; the kernel sees 511 bytes of a path");
    }
    if glob.chars().any(char::is_control) {
        return Some("it has a control character; remove that");
    }
    if glob.bytes().filter(|b| *b == b'*').count() > 6 {
        return Some("it has more than six *; write fewer");
    }
    if path && glob.contains('/') && !glob.starts_with(['/', '*']) {
        return Some("with a / it is compared with the whole path; begin it with / or */");
    }
    None
}
