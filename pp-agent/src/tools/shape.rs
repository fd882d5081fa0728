//! Patterns of the table as regular expressions over the arguments after a tool's name: each argument with its NUL, and another NUL at the
//! end.

use std::fmt::Write as _;

use super::{Shape, Tool, ToolError};
use crate::matcher::glob;

/// Any number of arguments.
const WORDS: &str = r"(?:[^\x00]*\x00)*";

/// The regular expression of a shape, up to the end of what must match. If a pattern ends in `.*`, the rest of its word does not matter, so
/// it ends before that.
pub(super) fn regex(shape: &Shape) -> String {
    let word = |word: &String| match word.strip_suffix(".*") {
        Some(begin) => sequence(begin),
        None => format!(r"(?:{})\x00", sequence(word)),
    };
    format!("{WORDS}(?:{})", shape.words.iter().map(word).collect::<Vec<_>>().join("|"))
}

/// A line of `allow`: the index of its tool, and the regular expression of the allowed arguments.
pub(super) fn allowed(line: &str, tools: &[Tool]) -> Result<(usize, String), ToolError> {
    let bad = |why| ToolError::Allow { line: line.to_owned(), why };
    if line.len() > 256 || line.chars().any(char::is_control) {
        return Err(bad("a line has at most 256 printable characters; shorten it"));
    }
    let mut words = line.split_whitespace();
    let name = words.next().ok_or_else(|| bad("it is empty; begin with the name of a tool"))?;
    let index = tools.iter().position(|tool| tool.name == name).ok_or_else(|| ToolError::UnknownTool {
        line: line.to_owned(),
        tool: name.to_owned(),
        known: tools.iter().map(|tool| tool.name.clone()).collect(),
    })?;
    let mut regex = String::new();
    for word in words {
        match word {
            "**" => regex.push_str(WORDS),
            _ if word.contains("**") => return Err(bad("** stands for whole arguments; leave a space on both sides")),
            _ => write!(regex, r"{}\x00", glob::over_text(word)).unwrap_or_default(),
        }
    }
    if regex.is_empty() {
        regex.push_str(WORDS);
    }
    regex.push_str(r"\x00");
    Ok((index, regex))
}

/// A pattern over arguments. A space ends an argument, ` ... ` is any number of them.
fn sequence(pattern: &str) -> String {
    pattern.replace(" ... ", &format!(r"\x00{WORDS}")).replace(' ', r"\x00")
}
