//! `coverage`: the table of ways around the gate, tried on every row of `tests/kernels.toml`; its committed results and the page made of them.
//!
//! `docs/coverage/ROW.json` is what one run found, with the commit, the date and a hash of the sources that decide and refuse.
//! `docs/coverage.md` is made of all of them. [`check`] keeps both honest.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    e2e,
    kernels::{Matrix, Row},
    paths::{self, Paths},
    setup, sh, wrappers,
};

/// What one run of the table found.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Found {
    row: String,
    kernel: String,
    backend: String,
    commit: String,
    date: String,
    /// Hash of the sources of pp-ebpf and pp-common that it ran with.
    sources: String,
    /// Closed rows as a part of those that can be delivered.
    score: f64,
    rows: Vec<Technique>,
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Technique {
    technique: String,
    address_form: String,
    state: String,
    gap: Option<String>,
    test: String,
}

/// The parts of the suite's result file that matter here.
#[derive(Debug, Deserialize)]
struct Report {
    kernel_release: String,
    backend: String,
    tests: Vec<Test>,
    coverage: Vec<Technique>,
}

#[derive(Debug, Deserialize)]
struct Test {
    name: String,
    state: String,
}

/// Runs the table on rows, or takes the result files of the suite's last run there (`recorded`, after `ci` or `e2e` on this very tree),
/// writes what it found and the page; true when no row of it is open.
pub(crate) fn run(paths: &Paths, rows: &[String], json: bool, recorded: bool) -> Result<bool> {
    let matrix = Matrix::load(paths)?;
    let rows: Vec<&Row> =
        if rows.is_empty() { matrix.rows.iter().collect() } else { rows.iter().map(|name| matrix.row(name)).collect::<Result<_>>()? };
    let bin = if recorded { None } else { Some(prepare(paths, &rows)?) };
    let mut all = Vec::new();
    let mut green = true;
    for row in rows {
        if let Some(bin) = &bin {
            sh::say(format!("coverage on {} ...", row.name));
            let cell = e2e::run_row(paths, &matrix, row, bin, &["--coverage".to_owned()], false);
            if !json {
                wrappers::show(&format!("coverage, {}", row.name), &cell);
            }
            green &= cell.complaints.is_empty();
        }
        let found = found(paths, row)?;
        green &= wrong(&found).is_empty();
        write(paths, &found)?;
        all.push(found);
    }
    write_page(paths)?;
    if json {
        print(&serde_json::to_string_pretty(&all)?);
    }
    Ok(green)
}

/// What running rows needs.
fn prepare(paths: &Paths, rows: &[&Row]) -> Result<PathBuf> {
    setup::native(paths)?;
    if rows.iter().any(|row| row.kernel.is_some()) {
        setup::run(paths, Some(setup::Part::Kernels))?;
    }
    e2e::build(paths, false)
}

/// Everything that keeps the committed results from being true of this tree; empty when they are. `after_a_run`: the suite's result files
/// are of this tree, and must not contradict them.
pub(crate) fn check(paths: &Paths, after_a_run: bool) -> Result<Vec<String>> {
    let matrix = Matrix::load(paths)?;
    let committed = committed(paths)?;
    let sources = sources(paths)?;
    let mut complaints = Vec::new();
    for row in &matrix.rows {
        let Some(found) = committed.get(&row.name) else {
            // The page says which rows have none; this machine's own kernel must have one.
            if row.kernel.is_none() {
                complaints.push(format!("{}: no result in docs/coverage; run cargo xtask coverage --rows {0}", row.name));
            }
            continue;
        };
        if found.sources != sources {
            complaints.push(format!("{}: older than pp-ebpf or pp-common; run cargo xtask coverage --rows {0}", row.name));
        }
        if found.backend != row.backend {
            complaints.push(format!("{}: found on backend {}, {} is expected", row.name, found.backend, row.backend));
        }
        complaints.extend(wrong(found).into_iter().map(|what| format!("{}: {what}", row.name)));
        if after_a_run && let Ok(report) = report(paths, row) {
            complaints.extend(differences(found, &report).into_iter().map(|what| format!("{}: {what}", row.name)));
        }
    }
    let page = page(&committed.into_values().collect::<Vec<_>>(), &matrix);
    if paths::read(&page_file(paths)).ok().as_deref() != Some(page.as_str()) {
        complaints.push("docs/coverage.md: not what docs/coverage/*.json give; run cargo xtask coverage".to_owned());
    }
    Ok(complaints)
}

/// [`check`] as one verdict.
pub(crate) fn verdict(paths: &Paths) -> Result<()> {
    let complaints = check(paths, true)?;
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(())
}

/// What no result may have: an open row, a row whose test did not run, a gap that is none of the named ones.
fn wrong(found: &Found) -> Vec<String> {
    const GAPS: [&str; 6] = ["packet", "vsock", "unix", "ptrace", "passed", "tamper"];
    let mut wrong = Vec::new();
    for row in &found.rows {
        let what = format!("{} ({})", row.technique, row.address_form);
        match (row.state.as_str(), row.gap.as_deref()) {
            ("closed" | "undeliverable", None) => {}
            ("gap", Some(gap)) if GAPS.contains(&gap) => {}
            (state, gap) => wrong.push(format!("{what}: {state}, gap {gap:?}")),
        }
    }
    if !found.rows.iter().any(|row| row.state == "closed") {
        wrong.push("no row is closed".to_owned());
    }
    wrong
}

/// Rows of the committed result that a fresh run contradicts. A row that is closed must have had its test run and pass.
fn differences(found: &Found, report: &Report) -> Vec<String> {
    let fresh: BTreeMap<&str, &Technique> = report.coverage.iter().map(|row| (row.test.as_str(), row)).collect();
    let passed: BTreeSet<&str> = report.tests.iter().filter(|test| test.state == "passed").map(|test| test.name.as_str()).collect();
    let ran: BTreeSet<&str> = report.tests.iter().map(|test| test.name.as_str()).collect();
    let mut wrong = Vec::new();
    for row in &found.rows {
        let what = format!("{} ({})", row.technique, row.address_form);
        match fresh.get(row.test.as_str()) {
            None => wrong.push(format!("{what}: {} is no test of this tree", row.test)),
            // Groups that a short run leaves out say nothing.
            Some(_) if !ran.contains(row.test.as_str()) => {}
            Some(_) if row.state == "closed" && !passed.contains(row.test.as_str()) => {
                wrong.push(format!("{what}: closed, but {} did not pass", row.test));
            }
            // Another kernel than the committed result's may have other protocols.
            Some(now) if now.state != row.state && report.kernel_release == found.kernel => {
                wrong.push(format!("{what}: {}, but {} just now", row.state, now.state))
            }
            Some(_) => {}
        }
    }
    let known: BTreeSet<&str> = found.rows.iter().map(|row| row.test.as_str()).collect();
    wrong.extend(fresh.keys().filter(|test| !known.contains(*test)).map(|test| format!("{test}: not in the committed result")));
    wrong
}

/// Where the suite left the result of its last run on a row.
pub(crate) fn result_file(paths: &Paths, row: &Row) -> PathBuf {
    match row.kernel {
        None => paths.cache.join("e2e/native/result.json"),
        Some(_) => paths.cache.join("vm").join(format!("e2e-{}", row.name)).join("out/result.json"),
    }
}

fn report(paths: &Paths, row: &Row) -> Result<Report> {
    let file = result_file(paths, row);
    serde_json::from_str(&paths::read(&file)?).with_context(|| format!("{}: not a result file", file.display()))
}

fn found(paths: &Paths, row: &Row) -> Result<Found> {
    let report = report(paths, row)?;
    let count = |state: &str| report.coverage.iter().filter(|row| row.state == state).count();
    let deliverable = report.coverage.len() - count("undeliverable");
    ensure!(deliverable > 0, "{}: nothing could be delivered", row.name);
    #[expect(clippy::cast_precision_loss, reason = "numbers of rows")]
    let score = (count("closed") as f64 / deliverable as f64 * 1000.0).round() / 1000.0;
    Ok(Found {
        row: row.name.clone(),
        kernel: report.kernel_release,
        backend: report.backend,
        commit: say(paths, "git", &["rev-parse", "--short=12", "HEAD"])?,
        date: say(paths, "date", &["-u", "+%F"])?,
        sources: sources(paths)?,
        score,
        rows: report.coverage,
    })
}

/// What a program says, without the space around it.
pub(crate) fn say(paths: &Paths, program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).current_dir(&paths.root).output().with_context(|| program.to_owned())?;
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A hash over what decides and refuses: a commit that leaves it alone leaves the results true.
fn sources(paths: &Paths) -> Result<String> {
    let mut files = Vec::new();
    for folder in ["pp-common/src", "pp-ebpf/src"] {
        collect(&paths.root.join(folder), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let name = file.strip_prefix(&paths.root)?.display().to_string();
        let text = fs::read(&file).with_context(|| name.clone())?;
        for part in [name.as_bytes(), &text] {
            hash.update(u64::try_from(part.len())?.to_le_bytes());
            hash.update(part);
        }
    }
    Ok(hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect())
}

/// Every Rust source below the folder, but for those of tests.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|end| end == "rs") && !path.to_string_lossy().ends_with("_tests.rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn folder(paths: &Paths) -> PathBuf {
    paths.root.join("docs/coverage")
}

fn page_file(paths: &Paths) -> PathBuf {
    paths.root.join("docs/coverage.md")
}

fn write(paths: &Paths, found: &Found) -> Result<()> {
    fs::create_dir_all(folder(paths))?;
    let file = folder(paths).join(format!("{}.json", found.row));
    fs::write(&file, serde_json::to_string_pretty(found)? + "\n").with_context(|| file.display().to_string())
}

fn committed(paths: &Paths) -> Result<BTreeMap<String, Found>> {
    let mut all = BTreeMap::new();
    let Ok(entries) = fs::read_dir(folder(paths)) else { return Ok(all) };
    for entry in entries {
        let file = entry?.path();
        let found: Found = serde_json::from_str(&paths::read(&file)?).with_context(|| file.display().to_string())?;
        if all.insert(found.row.clone(), found).is_some() {
            bail!("{}: a second result of its row", file.display());
        }
    }
    Ok(all)
}

fn write_page(paths: &Paths) -> Result<()> {
    let matrix = Matrix::load(paths)?;
    let all: Vec<Found> = committed(paths)?.into_values().collect();
    paths::write_if_changed(&page_file(paths), &page(&all, &matrix)).map(|_| ())
}

const INTRODUCTION: &str = "# Coverage

Every known way around the gate, tried on every kernel of `tests/kernels.toml`. This page is made by `cargo xtask coverage` from the files in
`docs/coverage/`, which it writes; `cargo xtask ci` fails when they are older than the programs in the kernel or contradict a fresh run.
What the gaps mean is in `kernels.md`, who the attacker is in `threat-model.md`.

Each row is an attempt made twice: by nobody's process, which must arrive, and by an agent.

- **closed**: the agent's was refused, had its event, and nothing arrived.
- **gap** and its name: it arrived, and `pp-agent status` names this gap on that host.
- **–**: it does not arrive on that kernel whoever makes it (the protocol is not there).
- **OPEN**: it arrived, or its test failed.

Address forms: `mapped` is `::ffff:a.b.c.d`; `service` is a protected port outside every zone; `all` is a core of six techniques over IPv4,
IPv6 and mapped addresses. NAT64, 6to4 and IPv4-compatible addresses are folded before any lookup (`pp-common/src/dest.rs`, with its tests).

";

fn page(all: &[Found], matrix: &Matrix) -> String {
    let order = |found: &&Found| matrix.rows.iter().position(|row| row.name == found.row);
    let mut all: Vec<&Found> = all.iter().filter(|found| order(found).is_some()).collect();
    all.sort_by_key(order);
    let mut text = INTRODUCTION.to_owned();
    let mut put = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    put("| row | kernel | backend | closed | gaps | score | commit | date |".to_owned());
    put("| --- | --- | --- | --- | --- | --- | --- | --- |".to_owned());
    for found in &all {
        let count = |state: &str| found.rows.iter().filter(|row| row.state == state).count();
        let (closed, gaps) = (count("closed"), count("gap"));
        put(format!(
            "| `{}` | {} | `{}` | {closed} of {} | {gaps} | {:.1} % | `{}` | {} |",
            found.row,
            found.kernel,
            found.backend,
            found.rows.len() - count("undeliverable"),
            found.score * 100.0,
            found.commit,
            found.date
        ));
    }
    put(String::new());
    let missing: Vec<String> =
        matrix.rows.iter().filter(|row| all.iter().all(|found| found.row != row.name)).map(|row| format!("`{}`", row.name)).collect();
    if !missing.is_empty() {
        put(format!("Without a result: {}.", missing.join(", ")));
        put(String::new());
    }
    let names: Vec<String> = all.iter().map(|found| format!("`{}`", found.row)).collect();
    put(format!("| technique | address | {} |", names.join(" | ")));
    put(format!("| --- | --- |{}", " --- |".repeat(all.len())));
    let mut seen = BTreeSet::new();
    for row in all.iter().flat_map(|found| &found.rows) {
        if !seen.insert(&row.test) {
            continue;
        }
        let mut line = format!("| {} | {} |", row.technique, row.address_form);
        for found in &all {
            let state = found.rows.iter().find(|other| other.test == row.test).map_or_else(|| "OPEN".to_owned(), shown);
            // Writing to a string cannot fail.
            let _written = write!(line, " {state} |");
        }
        put(line);
    }
    text
}

fn shown(row: &Technique) -> String {
    match (row.state.as_str(), &row.gap) {
        ("closed", _) => "closed".to_owned(),
        ("gap", Some(gap)) => format!("**gap** `{gap}`"),
        ("undeliverable", _) => "–".to_owned(),
        _ => "OPEN".to_owned(),
    }
}

#[expect(clippy::print_stdout, reason = "the results are this command's output")]
fn print(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn technique(state: &str, gap: Option<&str>) -> Technique {
        Technique {
            technique: "TCP connect".into(),
            address_form: "v4".into(),
            state: state.into(),
            gap: gap.map(str::to_owned),
            test: "coverage::tcp_connect_v4_is_refused".into(),
        }
    }

    fn found(rows: Vec<Technique>) -> Found {
        Found {
            row: "native".into(),
            kernel: "6.18".into(),
            backend: "cgroup".into(),
            commit: String::new(),
            date: String::new(),
            sources: String::new(),
            score: 1.0,
            rows,
        }
    }

    fn report(state: &str, test: &str) -> Report {
        let name = technique(state, None).test;
        Report {
            kernel_release: "6.18".into(),
            backend: "cgroup".into(),
            tests: vec![Test { name, state: test.into() }],
            coverage: vec![technique(state, None)],
        }
    }

    #[test]
    fn open_rows_unnamed_gaps_and_tests_that_did_not_run_are_refused() {
        assert_eq!(wrong(&found(vec![technique("closed", None)])), Vec::<String>::new());
        for row in [technique("open", None), technique("not_run", None), technique("gap", None), technique("gap", Some("other"))] {
            assert_ne!(wrong(&found(vec![technique("closed", None), row.clone()])), Vec::<String>::new(), "{row:?}");
        }
        assert_ne!(wrong(&found(vec![technique("undeliverable", None)])), Vec::<String>::new());
    }

    #[test]
    fn a_closed_row_needs_its_test_to_have_passed() {
        let committed = found(vec![technique("closed", None)]);
        assert_eq!(differences(&committed, &report("closed", "passed")), Vec::<String>::new());
        assert_ne!(differences(&committed, &report("open", "failed")), Vec::<String>::new());
        assert_ne!(differences(&committed, &report("undeliverable", "skipped")), Vec::<String>::new());
        let gone = Report { coverage: Vec::new(), ..report("closed", "passed") };
        assert_ne!(differences(&committed, &gone), Vec::<String>::new());
    }

    #[test]
    fn a_row_that_the_committed_result_does_not_have_is_told() {
        assert_ne!(differences(&found(Vec::new()), &report("closed", "passed")), Vec::<String>::new());
    }
}
