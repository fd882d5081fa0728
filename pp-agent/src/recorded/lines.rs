//! Event records from a file, as `pp-agent events --json` writes them: one JSON object a line.

use std::io::{self, BufRead, Read};

use serde::Deserialize;
use serde_json::error::Category;

use crate::events::{Event, Kind};

/// Most bytes of one line; the longest event, with the longest arguments, has less than half of it.
const MAX_LINE: u64 = 1 << 20;
/// The first bytes of the daemon's store of events.
const STORE_MAGIC: &[u8] = b"redb";

/// Why a file of events is not read. It names the line; earlier lines do not count either.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinesError {
    /// The file or pipe cannot be read.
    #[error("{name}: {source}")]
    Read {
        /// The file.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// It is the database in which the daemon keeps events.
    #[error("{name}: is the daemon's store, not lines of events; write them with pp-agent events --json")]
    Store {
        /// The file.
        name: String,
    },
    /// One line is no event of this version.
    #[error("{name}: line {line}: {why}; write one event a line, as pp-agent events --json does")]
    Line {
        /// The file.
        name: String,
        /// The line, from 1 on.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
}

/// How many events a file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Events.
    pub(crate) events: u64,
    /// Events that are missing, as lines without an id say.
    pub(crate) missing: u64,
}

/// A line of the stream that stands for events its reader missed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Gap {
    kind: GapKind,
    count: u64,
    /// Present if the missing events are refusals.
    #[serde(default, rename = "verdict")]
    _verdict: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum GapKind {
    Lost,
}

/// Hands each event of a file to `take`, which says what is wrong with an event it cannot use. Empty lines and members that this
/// version does not know are skipped.
///
/// # Errors
/// The first line that is no event, or that `take` refuses; the file cannot be read, or is none of text.
pub(crate) fn each(name: &str, input: impl BufRead, mut take: impl FnMut(Event) -> Result<(), String>) -> Result<Contents, LinesError> {
    let mut input = input;
    let mut found = Contents::default();
    let mut bytes = Vec::new();
    let mut line = 0;
    loop {
        bytes.clear();
        let length = input.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes);
        if length.map_err(|source| LinesError::Read { name: name.to_owned(), source })? == 0 {
            return Ok(found);
        }
        line += 1;
        if line == 1 && bytes.starts_with(STORE_MAGIC) {
            return Err(LinesError::Store { name: name.to_owned() });
        }
        let wrong = |why: String| LinesError::Line { name: name.to_owned(), line, why };
        if bytes.len() as u64 == MAX_LINE && !bytes.ends_with(b"\n") {
            return Err(wrong(format!("longer than {MAX_LINE} bytes")));
        }
        let text = std::str::from_utf8(&bytes).ok().filter(|text| !text.contains('\0'));
        let text = text.ok_or_else(|| wrong("is not text".to_owned()))?.trim();
        if text.is_empty() {
            continue;
        }
        match serde_json::from_str::<Event>(text) {
            Ok(event) if event.kind().is_none() => return Err(wrong(no_kind(event.kind_name()))),
            Ok(event) => {
                found.events += 1;
                take(event).map_err(wrong)?;
            }
            Err(error) => match serde_json::from_str::<Gap>(text) {
                Ok(Gap { kind: GapKind::Lost, count, .. }) => found.missing = found.missing.saturating_add(count),
                Err(_) => return Err(wrong(say(&error))),
            },
        }
    }
}

/// What is wrong with a kind.
fn no_kind(name: &str) -> String {
    let known: Vec<_> = Kind::ALL.iter().map(|kind| format!("`{}`", kind.name())).collect();
    format!("is no event of this version: unknown variant `{name}`, expected one of {}", known.join(", "))
}

/// What is wrong with a line, without the line number that the parser gives.
fn say(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let fact = text.rsplit_once(" at line ").map_or(text.as_str(), |(fact, _)| fact);
    match error.classify() {
        Category::Syntax => format!("is no JSON at column {}: {fact}", error.column()),
        Category::Eof => format!("ends in the middle of a JSON value: {fact}"),
        Category::Data => format!("is no event of this version: {fact}"),
        Category::Io => fact.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<(Vec<Event>, Contents), String> {
        let mut events = Vec::new();
        let found = each("events.jsonl", text, |event| {
            events.push(event);
            Ok(())
        });
        found.map(|found| (events, found)).map_err(|error| error.to_string())
    }

    fn line() -> String {
        serde_json::to_string(&Event::of_attempt("block", "no_receipt", "10.20.4.7", 502)).unwrap()
    }

    #[test]
    fn every_line_is_an_event_or_a_gap() {
        let text = format!("{}\n\n{{\"kind\":\"lost\",\"count\":7}}\n{}", line(), line());
        let (events, found) = read(text.as_bytes()).unwrap();
        assert_eq!((events.len(), found), (2, Contents { events: 2, missing: 7 }));
        assert_eq!(read(b"").unwrap().1, Contents::default());
    }

    #[test]
    fn members_of_a_later_version_are_passed_over() {
        let text = line().replacen('{', "{\"colour\":\"red\",", 1);
        assert_eq!(read(text.as_bytes()).unwrap().0.len(), 1);
    }

    #[test]
    fn bad_line_is_named_with_its_number() {
        let good = line();
        let long = format!("{good}\n{}", "x".repeat(2 << 20));
        let kind = good.replace("\"kind\":\"verdict", "\"kind\":\"teleport");
        for (text, wanted) in [
            (format!("{good}\n{{\"id\":1,").into_bytes(), "line 2: ends in the middle"),
            (format!("{good}\n\nplain words\n").into_bytes(), "line 3: is no JSON at column 1"),
            (
                format!("{good}\n{kind}").into_bytes(),
                "line 2: is no event of this version: unknown variant `teleport`, expected one of `verdict`, `session_start`, `session_end`, `receipt`, `revocation`, `lost`, `posture`, `policy`, `canary`, `flow_ended`, `exec`, `tamper`, `neighbour`, `protection`; write one",
            ),
            (b"{\"id\":1}\n".to_vec(), "line 1: is no event of this version: missing field"),
            (b"{\n  \"id\": 1\n}\n".to_vec(), "line 1: ends in the middle"),
            (b"\x7fELF\x02\x01\x01\0\0\0\n".to_vec(), "line 1: is not text"),
            (b"\xff\xfe{}\n".to_vec(), "line 1: is not text"),
            (b"redb\x1a\x0a\xa9\x0d\x0a".to_vec(), "is the daemon's store"),
            (long.into_bytes(), "line 2: longer than"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(wanted) && error.starts_with("events.jsonl: "), "{error}");
        }
    }

    #[test]
    fn line_that_its_reader_refuses_is_named() {
        let error = each("-", line().as_bytes(), |_| Err("no".to_owned())).unwrap_err();
        assert_eq!(error.to_string(), "-: line 1: no; write one event a line, as pp-agent events --json does");
    }
}
