//! `attackers`: what real tools got through before they were blocked, for each row of `tests/kernels.toml`.
//!
//! `docs/attackers/ROW.json` is the record of one run. `docs/attackers.md` is generated from all of them.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    coverage, e2e,
    kernels::{Matrix, Row},
    paths::{self, Paths},
};

/// The suite's tests whose names contain this record the results of their attacker.
const FILTER: &str = "attackers";

/// The record of one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Recorded {
    row: String,
    kernel: String,
    backend: String,
    commit: String,
    date: String,
    attackers: Vec<Attacker>,
}

/// One attacker, as `tests/src/attackers.rs` describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Attacker {
    attacker: String,
    command: String,
    stopped_by: String,
    counted: String,
    allowed: Option<usize>,
    control: Option<usize>,
    through: usize,
    guesses: Option<usize>,
    note: String,
}

/// The parts of the suite's result file that matter here.
#[derive(Debug, Deserialize)]
struct Report {
    kernel_release: String,
    backend: String,
    attackers: Vec<Attacker>,
    tests: Vec<Test>,
}

#[derive(Debug, Deserialize)]
struct Test {
    name: String,
    state: String,
}

/// Runs the attackers on rows, or on this machine's own kernel if none is named, and writes their results and the page. With `soak` it also
/// runs those that take half an hour. With `already` it uses the result files of the suite's last run. True if every test passed.
pub(crate) fn run(paths: &Paths, rows: &[String], soak: bool, already: bool) -> Result<bool> {
    let matrix = Matrix::load(paths)?;
    let mut more = vec![FILTER.to_owned()];
    if soak {
        more.push("--soak".to_owned());
    }
    let native = ["native".to_owned()];
    let mut green = true;
    for name in if rows.is_empty() { &native } else { rows } {
        if !already {
            let cell = e2e::run(paths, Some(name), &more)?;
            crate::wrappers::show(&format!("attackers, {name}"), &cell);
            if !cell.complaints.is_empty() {
                green = false;
                continue;
            }
        }
        write(paths, &recorded(paths, matrix.row(name)?)?)?;
    }
    write_page(paths)?;
    Ok(green)
}

/// Writes the page from the records.
pub(crate) fn write_page(paths: &Paths) -> Result<()> {
    let page = page(&committed(paths)?, &Matrix::load(paths)?);
    paths::write_if_changed(&paths.root.join("docs/attackers.md"), &page).map(|_| ())
}

fn recorded(paths: &Paths, row: &Row) -> Result<Recorded> {
    let file = coverage::result_file(paths, row);
    let report: Report = serde_json::from_str(&paths::read(&file)?).with_context(|| format!("{}: not a result file", file.display()))?;
    ensure!(!report.attackers.is_empty(), "{}: no attacker is recorded in it", file.display());
    let mut attackers = report.tests.iter().filter(|test| test.name.contains(FILTER));
    if let Some(test) = attackers.find(|test| test.state != "passed") {
        bail!("{}: {}: {}", file.display(), test.name, test.state);
    }
    Ok(Recorded {
        row: row.name.clone(),
        kernel: report.kernel_release,
        backend: report.backend,
        commit: coverage::say(paths, "git", &["rev-parse", "--short=12", "HEAD"])?,
        date: coverage::say(paths, "date", &["-u", "+%F"])?,
        attackers: report.attackers,
    })
}

fn folder(paths: &Paths) -> PathBuf {
    paths.root.join("docs/attackers")
}

fn write(paths: &Paths, recorded: &Recorded) -> Result<()> {
    fs::create_dir_all(folder(paths))?;
    let file = folder(paths).join(format!("{}.json", recorded.row));
    fs::write(&file, serde_json::to_string_pretty(recorded)? + "\n").with_context(|| file.display().to_string())
}

fn committed(paths: &Paths) -> Result<Vec<Recorded>> {
    let entries = fs::read_dir(folder(paths)).context("docs/attackers: no row was run yet; run cargo xtask attackers")?;
    let read = |file: PathBuf| -> Result<Recorded> {
        serde_json::from_str(&paths::read(&file)?).with_context(|| format!("{}: not what attackers writes", file.display()))
    };
    entries.map(|entry| read(entry?.path())).collect()
}

const INTRODUCTION: &str = "# Attackers

What real tools got through before they were blocked. An agent ran them against hosts that no zone, gateway or service protects, under the
shipped policy (`dist/policy.toml`, [behaviour rules](policy.md#behaviour-rules)). Tools are not refused by name here (`[exec] mode = \"observe\"`),
since a renamed copy would not be. `cargo xtask attackers` writes this page from `docs/attackers/`. The tests are `tests/e2e/attackers*.rs`; they
fail when one more attempt gets through.

- **allowed**: what the rule allows within its window.
- **through**: what arrived of the agent's run, counted by packet at the far end.
- **alone**: what arrived of the same command line without an agent, where that was tried.
- **guesses**: passwords that the server was asked. The rules count connections. The lab's servers hang up after three wrong passwords, as
  common ones do; others would be asked more.
- **simulated clock**: the kernel's decision (`pp_common::behaviour`) with the shipped limits, asked at the moments of a whole day.
- **gap `packet`**: frames that a program writes itself ([kernels](kernels.md#the-gaps)).

A spray that is slower than the long window goes on: one guess each 75 s is 1152 a day, at SSH one a minute.

";

fn page(all: &[Recorded], matrix: &Matrix) -> String {
    let mut text = INTRODUCTION.to_owned();
    let all: Vec<&Recorded> = matrix.rows.iter().filter_map(|row| all.iter().find(|recorded| recorded.row == row.name)).collect();
    for recorded in &all {
        let Recorded { row, kernel, backend, commit, date, .. } = recorded;
        let head = format!("## Row `{row}`: kernel {kernel}, backend `{backend}`\n\nOf `{commit}`, {date}.\n\n");
        text.push_str(&head);
        text.push_str("| attacker | allowed | through | alone | guesses | stopped by |\n| --- | --- | --- | --- | --- | --- |\n");
        let number = |number: Option<usize>| number.map_or_else(|| "–".to_owned(), |number| number.to_string());
        for it in &recorded.attackers {
            let note = if it.note.is_empty() { String::new() } else { format!(" ({})", it.note) };
            text.push_str(&format!(
                "| {}{note} | {} {} | {} | {} | {} | {} |\n",
                it.attacker,
                number(it.allowed),
                it.counted,
                it.through,
                number(it.control),
                number(it.guesses),
                it.stopped_by
            ));
        }
        text.push('\n');
    }
    text.push_str("## Command lines\n\n```console\n");
    let mut shown = BTreeSet::new();
    for it in all.iter().flat_map(|recorded| &recorded.attackers) {
        if !it.command.is_empty() && shown.insert(&it.command) {
            text.push_str(&format!("$ {}\n", it.command));
        }
    }
    text.push_str("```\n\n");
    let missing: Vec<String> =
        matrix.rows.iter().filter(|row| all.iter().all(|other| other.row != row.name)).map(|row| format!("`{}`", row.name)).collect();
    if !missing.is_empty() {
        text.push_str(&format!("Without a result: {}.\n", missing.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_says_what_got_through_and_which_rows_have_no_result() {
        let matrix = Matrix::load(&Paths::find().expect("the workspace")).expect("the matrix");
        let attacker = Attacker {
            attacker: "masscan".into(),
            command: "masscan 10.50.0.12".into(),
            stopped_by: "gap `packet`".into(),
            counted: "hosts and ports".into(),
            allowed: None,
            control: Some(100),
            through: 99,
            guesses: None,
            note: "as it comes".into(),
        };
        let recorded = Recorded {
            row: "native".into(),
            kernel: "6.18".into(),
            backend: "cgroup".into(),
            commit: "abc".into(),
            date: "2026-11-26".into(),
            attackers: vec![attacker],
        };
        let text = page(&[recorded], &matrix);
        assert!(text.contains("| masscan (as it comes) | – hosts and ports | 99 | 100 | – | gap `packet` |"), "{text}");
        assert!(text.contains("$ masscan 10.50.0.12\n") && text.contains("Without a result: ") && text.contains("`6.12`"), "{text}");
        assert!(!text.split("Without a result: ").nth(1).expect("the rows").contains("native"), "{text}");
    }
}
