//! The result, for a person and for a program.

use std::fmt::{self, Write as _};

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

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.within, self.allowance_ns) {
            (Some(within), Some(most)) => format!("{} +{most:.0}", if within { "within" } else { "EXCEEDS" }),
            _ => String::new(),
        };
        let hook_ratio = self.hook_ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let Self { call, hooks, rounds, call_ns, empty_ns, gate_ns, gate_over_empty_ns, call_ratio, .. } = self;
        write!(
            f,
            "{call:<18} {hooks:<15} {:<22} {rounds:>3} {:>7.0} {:>21} {:>21} {:>21} {hook_ratio:>6} {:>18} {verdict}",
            self.caller.name(),
            call_ns.median,
            ns(empty_ns),
            ns(gate_ns),
            ns(gate_over_empty_ns),
            format!("{:.2} [{:.2}..{:.2}]", call_ratio.median, call_ratio.low, call_ratio.high),
        )
    }
}

/// Above the lines of a table.
pub(crate) fn head() -> String {
    format!(
        "{:<18} {:<15} {:<22} {:>3} {:>7} {:>21} {:>21} {:>21} {:>6} {:>18} limit",
        "call", "hooks", "caller", "n", "call ns", "empty, ns", "gate, ns", "gate - empty, ns", "hook x", "call x"
    )
}

/// Below the lines of a table.
pub(crate) const LEGEND: &str = "n: rounds. call ns: with no program. empty, gate: over no program. Medians [quartiles] of differences within a round.\n\
     Counted connects: in place of the empty programs, the gate on a connect that its behaviour rules do not count.";

fn ns(spread: &Spread) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    write!(text, "{:+.0} [{:+.0}..{:+.0}]", spread.median, spread.low, spread.high).unwrap_or_default();
    text
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
