//! Writes data to stdout and messages to stderr. Text for people is escaped, since an attacker can choose paths, arguments and summaries.

use std::io::{ErrorKind, Write};

use serde::Serialize;
use unicode_width::UnicodeWidthStr as _;

use super::CliError;
use crate::escape::escape;

/// Where data goes, and in which form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Whether to write JSON instead of text.
    pub(crate) json: bool,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// One line of text, escaped.
    pub(crate) fn line(self, text: &str) -> Result<(), CliError> {
        self.raw(format!("{}\n", escape(text)).as_bytes())
    }

    /// A value as indented JSON, with the members of each object in alphabetical order.
    pub(crate) fn value(self, value: &impl Serialize) -> Result<(), CliError> {
        let json = serde_json::to_value(value).map_err(CliError::message)?;
        self.raw(format!("{}\n", harmless(&format!("{json:#}"))).as_bytes())
    }

    /// Bytes without escaping: JSON lines, files.
    pub(crate) fn raw(self, bytes: &[u8]) -> Result<(), CliError> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => CliError::Closed,
            _ => CliError::message(format!("stdout: {error}")),
        })
    }

    /// A value as JSON, or as lines of text.
    pub(crate) fn show(self, value: &impl Serialize, lines: impl FnOnce() -> Vec<String>) -> Result<(), CliError> {
        if self.json {
            return self.value(value);
        }
        lines().iter().try_for_each(|line| self.line(line))
    }
}

/// JSON in which characters that could move a cursor, or hide or reorder text, are escaped. Every JSON reader decodes them.
fn harmless(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() || escape(character.encode_utf8(&mut [0; 4])).starts_with(character) {
            out.push(character);
        } else {
            out.extend(character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    out
}

/// Writes a message to stderr, escaped. A closed stderr is no error.
pub(crate) fn talk(text: &str) {
    let mut stderr = std::io::stderr().lock();
    for line in text.lines() {
        if writeln!(stderr, "{}", escape(line)).is_err() {
            return;
        }
    }
}

/// Prints the warnings of an answer.
pub(crate) fn warn(warnings: &[String]) {
    warnings.iter().for_each(|warning| talk(&format!("warning: {warning}")));
}

/// The members that are present, each after its name: `zone plant-7, gateway field`.
pub(crate) fn named<'a>(members: impl IntoIterator<Item = (&'a str, &'a Option<String>)>) -> Vec<String> {
    members.into_iter().filter_map(|(name, text)| text.as_ref().map(|text| format!("{name} {text}"))).collect()
}

/// Rows in columns, two spaces apart. The first row has the titles.
pub(crate) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell}{}", " ".repeat(width.saturating_sub(cell.width())))).collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["id".to_owned(), "agent".to_owned()], vec!["12345".to_owned(), "x".to_owned()]];
        assert_eq!(table(&rows), ["id     agent", "12345  x"]);
        let rows = [vec!["水位".to_owned(), "a".to_owned()], vec!["Größe".to_owned(), "b".to_owned()]];
        assert_eq!(table(&rows), ["水位   a", "Größe  b"]);
    }
}
