//! What the kernel answered, as one line of JSON.

use std::io::{self, Write as _};

use serde_json::{Value, json};

/// The answer to one attempt: bytes handed over, or the error.
pub(crate) struct Outcome(pub(crate) io::Result<usize>);

impl Outcome {
    /// The answer as the suite reads it.
    pub(crate) fn json(&self) -> Value {
        match &self.0 {
            Ok(bytes) => json!({"ok": true, "bytes": bytes}),
            Err(error) => json!({"ok": false, "errno": error.raw_os_error(), "error": error.to_string()}),
        }
    }

    /// Prints the answer.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        print(&self.json())
    }
}

/// Prints one line of JSON and flushes it, so that a reader at a pipe has it at once.
pub(crate) fn print(value: &Value) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()?;
    Ok(())
}
