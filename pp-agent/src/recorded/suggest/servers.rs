//! Servers that no list names, of the events that report calls to them. They are proposed as comments only: what a server does for its
//! callers is known to people alone.
//!
//! The name of a socket comes from an event, so only names of plain characters are proposed. What else is in them cannot be a pattern, a
//! second line or a quote.

use std::collections::{BTreeMap, BTreeSet};

use super::{Seen, free_name, note};
use crate::config::Config;
use crate::recorded::past::PastAttempt;

/// Longest name of a socket, in bytes.
const LONGEST: usize = 107;
/// So many digits in a row are a number that changes: a pid, a uid.
const DIGITS: usize = 3;

/// What was seen of servers, by the pattern of their sockets' names.
#[derive(Debug, Default)]
pub(super) struct Servers(BTreeMap<String, Seen>);

/// A server to decide on, and the evidence.
#[derive(Debug)]
pub(super) struct ServerIdea {
    pub(super) name: String,
    pub(super) path: String,
    pub(super) seen: Seen,
}

impl Servers {
    /// Adds one event. `false`: it names no socket that can be proposed.
    pub(super) fn take(&mut self, past: &PastAttempt<'_>) -> bool {
        let Some(pattern) = past.attempt.object.as_deref().and_then(pattern) else { return false };
        note(&mut self.0, pattern, &Seen::of(past, BTreeSet::new()));
        true
    }

    /// One for each pattern that no delegate of the policy has.
    pub(super) fn ideas(&self, config: &Config) -> Vec<ServerIdea> {
        let mut names: BTreeSet<&str> = config.delegates.iter().map(|delegate| delegate.name.as_str()).collect();
        let new = self.0.iter().filter(|(path, _)| config.delegates.iter().all(|delegate| !delegate.paths.contains(path)));
        let all: Vec<(&String, &Seen)> = new.collect();
        let numbered: Vec<String> = (1..=all.len()).map(|number| format!("seen-server-{number}")).collect();
        let mut ideas = Vec::new();
        for ((path, seen), name) in all.into_iter().zip(&numbered) {
            ideas.push(ServerIdea { name: free_name(name, &names), path: path.clone(), seen: seen.clone() });
            names.insert(name);
        }
        ideas
    }
}

/// The name of a socket with a `*` for each number that changes. `None`: it has other than plain characters, and is not proposed.
fn pattern(object: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._@:+-,=~".contains(&byte);
    if object.len() < 2 || object.len() > LONGEST || !object.bytes().all(plain) {
        return None;
    }
    // Abstract names are compared as a whole.
    if object.starts_with('@') {
        return Some(object.to_owned());
    }
    if !object.starts_with('/') {
        return None;
    }
    let parts: Vec<&str> = object.split('/').collect();
    let general = parts.iter().enumerate().map(|(at, part)| general(part, at > 1 && parts[at - 1] == "user")).collect::<Vec<_>>();
    Some(general.join("/"))
}

/// One part of a path, with a `*` for its first long number. A part that is nothing but a number stays, or else every folder would do,
/// unless it is a `user`.
fn general(part: &str, user: bool) -> String {
    let bytes = part.as_bytes();
    let run = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let starts = (0..bytes.len()).filter(|at| bytes[*at].is_ascii_digit() && (*at == 0 || !bytes[at - 1].is_ascii_digit()));
    match starts.map(|at| (at, run(at))).find(|(_, digits)| *digits >= DIGITS) {
        Some((_, digits)) if digits == bytes.len() && !user => part.to_owned(),
        Some((at, digits)) => format!("{}*{}", &part[..at], &part[at + digits..]),
        None => part.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_change_become_stars_and_other_names_are_left_out() {
        for (object, wanted) in [
            ("/run/user/1000/vscode-ipc-4711.sock", Some("/run/user/*/vscode-ipc-*.sock")),
            ("/tmp/1234/x", Some("/tmp/1234/x")),
            ("/tmp/a12/b.345.678", Some("/tmp/a12/b.*.678")),
            ("@abstract-1234", Some("@abstract-1234")),
            ("/tmp/with space", None),
            ("/tmp/\"]\naction = \"allow", None),
            ("/tmp/*", None),
            ("relative", None),
            ("/", None),
            ("/tmp/caf\u{e9}", None),
        ] {
            assert_eq!(pattern(object).as_deref(), wanted, "{object}");
        }
    }
}
