//! What recorded events say about a policy: what a draft would change (`policy check --against`), and what a policy could add
//! (`policy suggest`).

pub(crate) mod compare;
pub(crate) mod draft;
pub(crate) mod lines;
pub(crate) mod past;
pub(crate) mod suggest;

/// A number with its noun, in the plural where needed.
#[must_use]
pub(crate) fn counted(count: u64, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}
