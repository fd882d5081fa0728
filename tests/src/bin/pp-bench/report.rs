//! The result: a table in a terminal and on a page, and JSON.

use std::fmt;

use serde::Serialize;

use crate::limits::Limit;
use crate::measure::Cost;
use crate::rows::{Caller, Row};
use crate::stats::Spread;

/// A row and what it came to.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    call: &'static str,
    hooks: &'static str,
    caller: Caller,
    rounds: usize,
    call_ns: Spread,
    empty_ns: Spread,
    gate_ns: Spread,
    gate_over_empty_ns: Spread,
    /// Of the medians: what the gate costs over no program, to what the empty ones cost.
    /// Not of a refused call: it is cut short.
    hook_ratio: Option<f64>,
    /// The whole call with the gate, to the same with the empty programs.
    call_ratio: Spread,
    limit: Option<Limit>,
    allowance_ns: Option<f64>,
    within: Option<bool>,
}

impl Line {
    pub(crate) fn new(row: &Row, cost: &Cost) -> Self {
        let allowance_ns = row.limit.map(|limit| limit.allowance_ns(cost.empty.median));
        Self {
            call: row.call,
            hooks: row.hooks,
            caller: row.caller,
            rounds: cost.rounds,
            call_ns: cost.without,
            empty_ns: cost.empty,
            gate_ns: cost.gate,
            gate_over_empty_ns: cost.excess,
            hook_ratio: (row.caller != Caller::Refused).then(|| cost.gate.median / cost.empty.median),
            call_ratio: cost.ratio,
            limit: row.limit,
            allowance_ns,
            within: allowance_ns.map(|allowance| cost.excess.median <= allowance),
        }
    }

    /// It has a limit and costs more.
    pub(crate) fn exceeds(&self) -> bool {
        self.within == Some(false)
    }
}

/// A column of the table, in a terminal and on the page of a run.
struct Column {
    head: &'static str,
    page_head: &'static str,
    /// Characters in a terminal.
    width: usize,
    /// In a terminal it ends at the right.
    is_number: bool,
    cell: fn(&Line) -> String,
    page_cell: fn(&Line) -> String,
}

impl Column {
    const fn text(head: &'static str, width: usize, cell: fn(&Line) -> String) -> Self {
        Self { head, page_head: head, width, is_number: false, cell, page_cell: cell }
    }

    const fn number(head: &'static str, page_head: &'static str, width: usize, cell: fn(&Line) -> String) -> Self {
        Self { head, page_head, width, is_number: true, cell, page_cell: cell }
    }

    fn padded(&self, text: &str) -> String {
        let width = self.width;
        if self.is_number { format!("{text:>width$}") } else { format!("{text:<width$}") }
    }
}

/// The table, from left to right.
const COLUMNS: [Column; 11] = [
    Column::text("call", 18, |line| line.call.to_owned()),
    Column::text("hooks", 15, |line| line.hooks.to_owned()),
    Column::text("caller", 22, |line| line.caller.name().to_owned()),
    Column::number("n", "rounds", 3, |line| line.rounds.to_string()),
    Column::number("call ns", "call, ns", 7, |line| format!("{:.0}", line.call_ns.median)),
    Column::number("empty, ns", "empty, ns", 21, |line| ns(&line.empty_ns)),
    Column::number("gate, ns", "gate, ns", 21, |line| ns(&line.gate_ns)),
    Column::number("gate - empty, ns", "gate - empty, ns", 21, |line| ns(&line.gate_over_empty_ns)),
    Column::number("hook x", "hook x", 6, |line| line.hook_ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))),
    Column {
        page_cell: |line| format!("{:.2}", line.call_ratio.median),
        ..Column::number("call x", "call x", 18, |line| {
            let Spread { low, median, high } = line.call_ratio;
            format!("{median:.2} [{low:.2}..{high:.2}]")
        })
    },
    Column::text("limit", 0, |line| match (line.within, line.allowance_ns) {
        (Some(within), Some(most)) => format!("{} +{most:.0}", if within { "within" } else { "EXCEEDS" }),
        _ => String::new(),
    }),
];

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&COLUMNS.map(|column| column.padded(&(column.cell)(self))).join(" "))
    }
}

/// Above the lines of a table.
pub(crate) fn head() -> String {
    COLUMNS.map(|column| column.padded(column.head)).join(" ")
}

/// The table in Markdown, for the page of a run.
pub(crate) fn markdown(lines: &[Line]) -> String {
    let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut table = row(&COLUMNS.map(|column| column.page_head.to_owned())) + &row(&COLUMNS.map(|_| "---".to_owned()));
    table.extend(lines.iter().map(|line| row(&COLUMNS.map(|column| (column.page_cell)(line)))));
    table
}

/// Below the lines of a table.
pub(crate) const LEGEND: &str = "n: rounds. call ns: with no program. empty, gate: over no program. Medians [quartiles] of differences within a round.\n\
     Counted connects: in place of the empty programs, the gate on a connect that its behaviour rules do not count.";

fn ns(spread: &Spread) -> String {
    format!("{:+.0} [{:+.0}..{:+.0}]", spread.median, spread.low, spread.high)
}

/// The whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) kernel: String,
    pub(crate) object: String,
    /// Programs of others at the host's cgroup hooks that were put up with.
    pub(crate) others: usize,
    pub(crate) lines: Vec<Line>,
    /// The rows with a limit once more, with the build that does too much; empty without one.
    pub(crate) with_extra: Vec<Line>,
}

impl Report {
    /// No row costs more than it may, and the build that does too much, where there was one, does not pass for a good one.
    pub(crate) fn passes(&self) -> bool {
        !self.lines.iter().any(Line::exceeds) && self.limits_bite()
    }

    /// The limits notice the build that does too much.
    pub(crate) fn limits_bite(&self) -> bool {
        self.with_extra.is_empty() || self.with_extra.iter().any(Line::exceeds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(within: Option<bool>) -> Line {
        let spread = Spread { low: -1.4, median: 2.0, high: 3.0 };
        Line {
            call: "udp connect",
            hooks: "connect4",
            caller: Caller::CountedNew,
            rounds: 12,
            call_ns: Spread { median: 1543.2, ..spread },
            empty_ns: spread,
            gate_ns: spread,
            gate_over_empty_ns: spread,
            hook_ratio: within.map(|_| 1.38),
            call_ratio: spread,
            limit: None,
            allowance_ns: within.map(|_| 15.0),
            within,
        }
    }

    #[test]
    fn columns_of_a_terminal_stand_below_each_other() {
        let head = "call               hooks           caller                   n call ns             empty, ns              gate, ns      gate - empty, ns hook x             call x limit";
        let row = "udp connect        connect4        marked, counted first   12    1543           +2 [-1..+3]           +2 [-1..+3]           +2 [-1..+3]   1.38 2.00 [-1.40..3.00] within +15";
        assert_eq!(super::head(), head);
        assert_eq!(line(Some(true)).to_string(), row);
    }

    #[test]
    fn page_has_a_row_for_each_line_and_names_what_exceeds() {
        let page = markdown(&[line(Some(false)), line(None)]);
        let rows: Vec<&str> = page.lines().collect();
        let expected = [
            "| call | hooks | caller | rounds | call, ns | empty, ns | gate, ns | gate - empty, ns | hook x | call x | limit |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            "| udp connect | connect4 | marked, counted first | 12 | 1543 | +2 [-1..+3] | +2 [-1..+3] | +2 [-1..+3] | 1.38 | 2.00 | EXCEEDS +15 |",
            "| udp connect | connect4 | marked, counted first | 12 | 1543 | +2 [-1..+3] | +2 [-1..+3] | +2 [-1..+3] | - | 2.00 |  |",
        ];
        assert_eq!(rows, expected);
    }
}
