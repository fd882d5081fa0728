//! The table that the demonstration prints: what each stage should come to, and what it came to.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Result;

/// One stage as it went.
struct Row {
    stage: &'static str,
    expected: &'static str,
    seen: String,
    milliseconds: u128,
}

/// The stages so far.
#[derive(Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    /// Runs one stage; it is right if what is seen is exactly what is expected. An error counts as seen.
    pub(crate) fn stage(&mut self, stage: &'static str, expected: &'static str, run: impl FnOnce() -> Result<String>) {
        eprintln!("{:2}. {stage}", self.0.len() + 1);
        let start = Instant::now();
        let seen = run().unwrap_or_else(|error| format!("error: {error:#}"));
        self.0.push(Row { stage, expected, seen, milliseconds: start.elapsed().as_millis() });
    }

    /// True if every stage went as expected.
    pub(crate) fn is_right(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|row| row.seen == row.expected)
    }

    /// The stages as JSON.
    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        self.0.iter().map(|row| serde_json::json!({"stage": row.stage, "seen": row.seen})).collect()
    }

    /// The table as text.
    pub(crate) fn text(&self) -> String {
        let width = |of: fn(&Row) -> &str, least: usize| {
            self.0.iter().map(|row| of(row).lines().next().unwrap_or_default().chars().count()).max().unwrap_or(0).max(least)
        };
        let (stage, expected, seen) = (width(|row| row.stage, 5), width(|row| row.expected, 8), width(|row| &row.seen, 4));
        let mut text = format!("    {:stage$}  {:expected$}  {:seen$}  ok\n", "stage", "expected", "seen");
        for (index, row) in self.0.iter().enumerate() {
            let ok = if row.seen == row.expected { "yes" } else { "NO" };
            let mut lines = row.seen.lines();
            let first = lines.next().unwrap_or_default();
            // Writing to a string cannot fail.
            let _row = writeln!(
                text,
                "{:2}. {:stage$}  {:expected$}  {first:seen$}  {ok:3} {:>5} ms",
                index + 1,
                row.stage,
                row.expected,
                row.milliseconds
            );
            for line in lines {
                let _row = writeln!(text, "      {line}");
            }
        }
        text
    }
}
