//! `docs/performance/`: what a run of the bench came to, as pages. `docs/performance.md` explains the columns.

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::{coverage, docs, paths, paths::Paths};

/// A median with its quartiles.
#[derive(Debug, Deserialize)]
struct Spread {
    low: f64,
    median: f64,
    high: f64,
}

impl Spread {
    fn text(&self) -> String {
        format!("{:+.0} [{:+.0}..{:+.0}]", self.median, self.low, self.high)
    }
}

/// The parts of `pp-bench --json` that the page shows.
#[derive(Debug, Deserialize)]
struct Hooks {
    kernel: String,
    lines: Vec<Line>,
}

#[derive(Debug, Deserialize)]
struct Line {
    call: String,
    hooks: String,
    caller: String,
    rounds: usize,
    call_ns: Spread,
    empty_ns: Spread,
    gate_ns: Spread,
    gate_over_empty_ns: Spread,
    hook_ratio: Option<f64>,
    call_ratio: Spread,
    allowance_ns: Option<f64>,
    within: Option<bool>,
}

/// One line of `pp-bench --control --json`; milliseconds.
#[derive(Debug, Deserialize)]
struct Answer {
    call: String,
    beside: String,
    median: f64,
    late: f64,
    last: f64,
}

/// Writes the page of a run from the JSON that it printed.
pub(crate) fn write(paths: &Paths, json: &str, control: bool) -> Result<()> {
    let date = coverage::say(paths, "date", &["-u", "+%F"])?;
    let commit = coverage::say(paths, "git", &["rev-parse", "--short=12", "HEAD"])?;
    let head = format!("`{commit}`, {date}");
    let (name, page) = if control {
        let rows: Vec<Answer> = serde_json::from_str(json).context("not what pp-bench --control --json prints")?;
        ("answers", answers(&rows, &head))
    } else {
        let run: Hooks = serde_json::from_str(json).context("not what pp-bench --json prints")?;
        ("hooks", hooks(&run, &head))
    };
    paths::write_if_changed(&paths.root.join(format!("docs/performance/{name}.md")), &page).map(|_| ())
}

fn hooks(run: &Hooks, head: &str) -> String {
    let mut table = "| call | hooks | caller | rounds | call, ns | empty, ns | gate, ns | gate - empty, ns | hook x | call x | limit |\n\
                     | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for line in &run.lines {
        let limit = match (line.within, line.allowance_ns) {
            (Some(within), Some(most)) => format!("{} +{most:.0}", if within { "within" } else { "EXCEEDS" }),
            _ => String::new(),
        };
        table.push_str(&format!(
            "| {} | {} | {} | {} | {:.0} | {} | {} | {} | {} | {:.2} | {limit} |\n",
            line.call,
            line.hooks,
            caller(&line.caller),
            line.rounds,
            line.call_ns.median,
            line.empty_ns.text(),
            line.gate_ns.text(),
            line.gate_over_empty_ns.text(),
            line.hook_ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
            line.call_ratio.median,
        ));
    }
    page("What the hooks cost, measured", "", &format!("Kernel {}, {head}.", run.kernel), &table)
}

fn answers(rows: &[Answer], head: &str) -> String {
    let mut table = "| call | beside | median, ms | 99 of 100, ms | last, ms |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for Answer { call, beside, median, late, last } in rows {
        table.push_str(&format!("| {call} | {beside} | {median:.1} | {late:.1} | {last:.1} |\n"));
    }
    page("How soon an operator is answered, measured", "#how-soon-an-operator-is-answered", &format!("{head}."), &table)
}

fn page(title: &str, anchor: &str, head: &str, table: &str) -> String {
    let written = format!("{}cargo xtask bench --page -->", docs::WRITTEN);
    let explained = format!("[Performance](../performance.md{anchor}) says what is measured and how.");
    format!("# {title}\n\n{explained}\n\n{written}\n\n{head}\n\n{table}\n{}\n", docs::WRITTEN_END)
}

/// A caller of the JSON, in the words of the page that explains it.
fn caller(name: &str) -> &str {
    match name {
        "allowed" => "marked, not protected",
        "granted" => "marked, by receipt",
        "refused" => "marked, refused",
        "counted_new" => "marked, counted first",
        "counted_again" => "marked, counted again",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_of_hooks_has_a_row_for_each_line_and_names_what_exceeds() {
        let spread = r#"{"low": -1.4, "median": 2.0, "high": 3.0}"#;
        let json = format!(
            r#"{{"kernel": "6.18", "object": "x", "others": 0, "with_extra": [], "lines": [{{"call": "udp connect", "hooks": "connect4",
            "caller": "counted_new", "rounds": 12, "call_ns": {spread}, "empty_ns": {spread}, "gate_ns": {spread}, "gate_over_empty_ns": {spread},
            "hook_ratio": null, "call_ratio": {spread}, "limit": null, "allowance_ns": 15.0, "within": false}}]}}"#
        );
        let page = hooks(&serde_json::from_str(&json).expect("a run"), "`abc`, 2026-11-26");
        let row = "| udp connect | connect4 | marked, counted first | 12 | 2 | +2 [-1..+3] | +2 [-1..+3] | +2 [-1..+3] | - | 2.00 | EXCEEDS +15 |";
        assert!(page.contains(row) && page.contains("Kernel 6.18, `abc`, 2026-11-26."), "{page}");
    }

    #[test]
    fn page_of_answers_has_a_row_for_each_call() {
        let json = r#"[{"call": "status", "beside": "nobody", "median": 2.41, "late": 3.5, "last": 3.8}]"#;
        let page = answers(&serde_json::from_str::<Vec<Answer>>(json).expect("rows"), "`abc`");
        assert!(page.contains("| status | nobody | 2.4 | 3.5 | 3.8 |"), "{page}");
    }
}
