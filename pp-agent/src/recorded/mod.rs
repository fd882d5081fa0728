//! What recorded events say of a policy: what a draft would change (`policy check --against`), and what a policy could say
//! more (`policy suggest`).

pub(crate) mod compare;
pub(crate) mod draft;
pub(crate) mod lines;
pub(crate) mod suggest;
pub(crate) mod told;

/// A number with its word.
#[must_use]
pub(crate) fn counted(count: u64, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}
