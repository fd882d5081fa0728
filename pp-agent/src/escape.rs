//! Escapes untrusted text for display: argv, paths, summaries and every field of a receipt.

use std::path::Path;

/// Returns `text` with each character that could move the cursor, hide, reorder or break a line written as an escape.
///
/// Control and format characters are escaped (all bidi controls and zero-width ones), such as `\u{202e}`, `\n` and `\t`. So are line and
/// paragraph separators, unusual spaces, unassigned and private characters, and combining marks. The backslash is doubled, so that no text
/// can look as if it were escaped. Quotes and printable characters of any script stay as they are.
#[must_use]
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            // `char::escape_debug` escapes these two for Rust literals.
            '"' | '\'' => out.push(character),
            other => out.extend(other.escape_debug()),
        }
    }
    out
}

/// A path for a message of one line. As with `ls`, a `?` stands for the end of a line in it.
#[must_use]
pub(crate) fn one_line(path: &Path) -> String {
    path.display().to_string().replace(['\n', '\r'], "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_with_a_line_end_stays_on_one_line() {
        assert_eq!(one_line(Path::new("/run/x\npp-agent: healthy\r\n")), "/run/x?pp-agent: healthy??");
        assert_eq!(one_line(Path::new("/run/größe")), "/run/größe");
    }

    #[test]
    fn ordinary_text_is_unchanged() {
        for text in ["read tank levels, PLC 7 (CHG-1042)", "it's \"fine\"", "Größe 水位", ""] {
            assert_eq!(escape(text), text);
        }
    }

    #[test]
    fn nothing_that_moves_hides_or_reorders_survives() {
        for (text, shown) in [
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{202e}fdp", "\\u{202e}fdp"),
            ("\u{2066}x\u{2069}", "\\u{2066}x\\u{2069}"),
            ("\u{2028}\u{2029}\u{85}", "\\u{2028}\\u{2029}\\u{85}"),
            ("\u{200b}\u{feff}\u{ad}", "\\u{200b}\\u{feff}\\u{ad}"),
            ("\u{9b}31m\u{7f}\0", "\\u{9b}31m\\u{7f}\\0"),
            ("\u{a0}\u{3000}\u{e000}", "\\u{a0}\\u{3000}\\u{e000}"),
            ("e\u{301}", "e\\u{301}"),
            ("\\n", "\\\\n"),
        ] {
            assert_eq!(escape(text), shown);
        }
    }
}
