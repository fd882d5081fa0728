//! Golden files: what users and programs see, byte for byte, below `tests/golden`.
//!
//! A test hands its text to [`golden`], which compares it with the file of that name. A change that is meant is written with
//! `PP_GOLDEN=write` in the environment of the same test run, and reviewed as part of the commit:
//!
//! ```text
//! PP_GOLDEN=write cargo test -p pp-agent golden                          # events, tables, the command line without a daemon
//! sudo env PP_GOLDEN=write target/debug/pp-e2e --row native --groups golden   # the control socket, the command line with one
//! ```
//!
//! Commit the code and its golden files together. A change that nobody meant is a bug in the code, not in the file.
//!
//! What must vary between machines and runs is replaced first, by `normal.rs` alone. It is narrow: everything else is compared.

use std::path::{Path, PathBuf};

/// The variable that has golden files written.
const VARIABLE: &str = "PP_GOLDEN";
/// Its only value.
const WRITE: &str = "write";

/// Compares a text with the golden file of this name, such as `events/kernel.jsonl`, or writes the file where that is asked for.
///
/// # Errors
/// They differ, the message showing how; or there is no such file, or the variable has another value than `write`.
pub fn golden(name: &str, text: &str) -> Result<(), String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    match std::env::var_os(VARIABLE) {
        None => compare(&file, name, text),
        Some(value) if value == WRITE => write(&file, text),
        Some(value) => Err(format!("{VARIABLE}={}: only {WRITE} is known", value.display())),
    }
}

fn compare(file: &Path, name: &str, text: &str) -> Result<(), String> {
    let wanted = std::fs::read_to_string(file)
        .map_err(|error| format!("golden file {name}: {error}; make it with {VARIABLE}={WRITE} and commit it"))?;
    if wanted == text {
        return Ok(());
    }
    let diff = similar::TextDiff::from_lines(&wanted, text);
    let shown = diff.unified_diff().context_radius(3).header(&format!("golden/{name}"), "as it is now").to_string();
    Err(format!("golden file {name} differs; if that is meant, write it with {VARIABLE}={WRITE}:\n{shown}"))
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", file.display());
    let folder: PathBuf = file.parent().map(Path::to_path_buf).unwrap_or_default();
    std::fs::create_dir_all(folder).map_err(failed)?;
    if std::fs::read_to_string(file).is_ok_and(|found| found == text) {
        return Ok(());
    }
    std::fs::write(file, text).map_err(failed)
}

/// JSON with a line for each member and element, for readable diffs. No byte of it is lost or moved: only line breaks and leading spaces
/// are added, outside of strings, so that the order of members and the form of numbers and escapes are compared too.
#[must_use]
pub fn spread(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut characters = json.chars().peekable();
    while let Some(character) = characters.next() {
        if in_string {
            out.push(character);
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
            continue;
        }
        let newline = |out: &mut String, depth: usize| {
            out.push('\n');
            out.push_str(&"  ".repeat(depth));
        };
        match character {
            '{' | '[' if characters.peek().is_none_or(|next| !matches!(next, '}' | ']')) => {
                out.push(character);
                depth += 1;
                newline(&mut out, depth);
            }
            '}' | ']' if !out.ends_with(['{', '[']) => {
                depth = depth.saturating_sub(1);
                newline(&mut out, depth);
                out.push(character);
            }
            ',' => {
                out.push(character);
                newline(&mut out, depth);
            }
            other => {
                in_string = other == '"';
                out.push(other);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_file_that_differs_by_one_byte_fails_and_shows_where() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "first\nsecond\nthird\n").unwrap();
        assert_eq!(compare(file.path(), "x", "first\nsecond\nthird\n"), Ok(()));
        for (now, shown) in [
            ("first\nsecund\nthird\n", "-second\n+secund\n"),
            ("first\nsecond\nthird", "-third\n+third\n\\ No newline at end of file"),
            ("first\nsecond\nthird\n\n", "+\n"),
            ("", "-first\n"),
        ] {
            let error = compare(file.path(), "x", now).unwrap_err();
            assert!(error.contains(shown) && error.contains("PP_GOLDEN=write"), "{error}");
        }
    }

    #[test]
    fn missing_golden_file_fails() {
        assert!(compare(Path::new("/nonexistent/golden"), "x", "").unwrap_err().contains("make it with PP_GOLDEN=write"));
    }

    #[test]
    fn written_golden_file_is_equal_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/text.txt");
        write(&file, "now\n").unwrap();
        assert_eq!(compare(&file, "x", "now\n"), Ok(()));
    }

    #[test]
    fn spread_json_has_the_same_bytes_and_a_line_for_each_member() {
        let json = r#"{"a":{},"b":[1,-2.50e3,"{,}\"[\\"],"c":[],"é":null}"#;
        let spread_out = spread(json);
        assert_eq!(spread_out, "{\n  \"a\":{},\n  \"b\":[\n    1,\n    -2.50e3,\n    \"{,}\\\"[\\\\\"\n  ],\n  \"c\":[],\n  \"é\":null\n}");
        let joined: String = spread_out.lines().map(str::trim_start).collect();
        assert_eq!(joined, json);
        assert_ne!(spread(r#"{"b":1,"a":2}"#), spread(r#"{"a":2,"b":1}"#));
    }
}
