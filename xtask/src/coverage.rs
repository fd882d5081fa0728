//! `coverage`: tries the table of ways around the gate on every row of `tests/kernels.toml`, and manages the committed results.
//!
//! `docs/coverage/ROW.json` is the result of one run, with the commit, the date and a hash of the sources that decide and refuse.
//! `docs/coverage.md` is generated from all of them (`coverage_page.rs`). [`check`] compares both with this tree.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    coverage_page, e2e,
    kernels::{Matrix, Row, Share},
    output::Output,
    parallel::{self, Piece},
    paths::{self, Paths},
    setup, sh, wrappers,
};

/// What one run of the table found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) row: String,
    pub(crate) kernel: String,
    pub(crate) backend: String,
    pub(crate) commit: String,
    pub(crate) date: String,
    /// Hash of the sources of pp-ebpf and pp-common that it ran with.
    pub(crate) sources: String,
    /// Hash of the sources of the suite that tried them.
    #[serde(default)]
    pub(crate) suite: String,
    /// The share of closed rows among those that can be delivered.
    pub(crate) score: f64,
    pub(crate) rows: Vec<Technique>,
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Technique {
    pub(crate) technique: String,
    pub(crate) address_form: String,
    pub(crate) state: String,
    pub(crate) gap: Option<String>,
    pub(crate) test: String,
}

/// Which committed results must be current, that is, of this tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    /// All of them.
    All,
    /// That of this machine's own kernel. The others may be stale and are listed.
    Native,
}

/// What [`check`] found.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// What must be fixed.
    pub(crate) complaints: Vec<String>,
    /// Rows whose results are not of this tree, if that is allowed.
    pub(crate) stale: Vec<String>,
    /// Rows whose results are of this tree.
    pub(crate) current: usize,
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

/// Runs the table on rows and writes the results and the page. With `recorded` it uses the result files of the suite's last run, which
/// must have been of this tree. With `json` it prints the results there. True if no row is open.
pub(crate) fn run(paths: &Paths, rows: &[String], recorded: bool, json: Option<&Output>) -> Result<bool> {
    let matrix = Matrix::load(paths)?;
    let rows: Vec<&Row> =
        if rows.is_empty() { matrix.rows.iter().collect() } else { rows.iter().map(|name| matrix.row(name)).collect::<Result<_>>()? };
    let bin = if recorded { None } else { Some(prepare(paths, &rows)?) };
    // This machine's own row measures time. Therefore it runs alone, before the virtual machines.
    let (here, emulated): (Vec<&Row>, Vec<&Row>) = rows.into_iter().partition(|row| row.kernel.is_none());
    let try_row = |row| one_row(paths, &matrix, row, bin.as_deref(), json.is_some());
    let mut tried: Vec<Result<(bool, Found)>> = here.into_iter().map(try_row).collect();
    let machines = emulated.into_iter().map(|row| Box::new(move || try_row(row)) as Piece<'_, _>);
    tried.extend(parallel::run(machines.collect()));
    let mut all = Vec::new();
    let mut green = true;
    for row in tried {
        let (row_is_green, found) = row?;
        green &= row_is_green;
        all.push(found);
    }
    write_page(paths)?;
    if let Some(output) = json {
        output.write(&serde_json::to_string_pretty(&all)?)?;
    }
    Ok(green)
}

/// Runs one row, or takes the result of its last run, and writes it. Returns whether it was green.
fn one_row(paths: &Paths, matrix: &Matrix, row: &Row, bin: Option<&Path>, json: bool) -> Result<(bool, Found)> {
    let mut green = true;
    if let Some(bin) = bin {
        sh::say(format!("coverage on {} ...", row.name));
        let cell = e2e::run_row(paths, matrix, row, bin, &["--coverage".to_owned()], false);
        if !json {
            wrappers::show(&format!("coverage, {}", row.name), &cell);
        }
        green = cell.complaints.is_empty();
    }
    let found = found(paths, row)?;
    let wrong = wrong(&found);
    // A run of a part of the suite does not cover the whole table.
    ensure!(bin.is_some() || wrong.is_empty(), "{}: the run that is recorded cannot be taken: {}", row.name, wrong.join("; "));
    green &= wrong.is_empty();
    write(paths, &found)?;
    Ok((green, found))
}

/// Sets up and builds what running the rows needs. Returns the directory of the binaries.
fn prepare(paths: &Paths, rows: &[&Row]) -> Result<PathBuf> {
    setup::native(paths)?;
    if rows.iter().any(|row| row.kernel.is_some()) {
        setup::run(paths, Some(setup::Part::Kernels))?;
    }
    e2e::build(paths, false)
}

/// Compares the committed results with this tree. With `after_a_run` the suite's result files are of this tree and must agree with them.
pub(crate) fn check(paths: &Paths, demand: Demand, after_a_run: bool) -> Result<Checked> {
    let matrix = Matrix::load(paths)?;
    let committed = committed(paths)?;
    let sources = sources(paths)?;
    let fresh = |row: &Row| -> Result<Option<Report>> {
        match row.ci {
            // `ci` has just run this machine's own row, so its result must exist.
            _ if after_a_run && row.kernel.is_none() => report(paths, row).map(Some),
            // A result file may be of an earlier tree.
            Share::None => Ok(None),
            _ => Ok(report(paths, row).ok().filter(|_| after_a_run)),
        }
    };
    let mut checked = compare(&committed, &matrix, &sources, demand, fresh)?;
    let page = coverage_page::page(&committed.into_values().collect::<Vec<_>>(), &matrix, &sources);
    if paths::read(&page_file(paths)).ok().as_deref() != Some(page.as_str()) {
        checked
            .complaints
            .push("docs/coverage.md: not what docs/coverage/*.json and these sources give; run cargo xtask coverage --page".to_owned());
    }
    Ok(checked)
}

/// A key of the kernel programs and the suite, if the committed result of the row is of both.
///
/// # Errors
///
/// Results or sources cannot be read.
pub(crate) fn of_this_tree(paths: &Paths, row: &Row) -> Result<Option<String>> {
    let (committed, matrix) = (committed(paths)?, Matrix::load(paths)?);
    let (sources, suite) = (sources(paths)?, suite(paths)?);
    let native = native(&matrix, committed.values());
    let current = committed.get(&row.name).filter(|found| native.is_some() && stale(found, native, &sources).is_none());
    let current = current.filter(|found| found.suite == suite && found.backend == row.backend && wrong(found).is_empty());
    Ok(current.map(|_| format!("{sources}+{suite}")))
}

/// The part of [`check`] without the page. `fresh` returns the suite's result of a row, if there is one of this tree.
fn compare(
    committed: &BTreeMap<String, Found>,
    matrix: &Matrix,
    sources: &str,
    demand: Demand,
    fresh: impl Fn(&Row) -> Result<Option<Report>>,
) -> Result<Checked> {
    let mut checked = Checked::default();
    let native = native(matrix, committed.values());
    for row in &matrix.rows {
        let Some(found) = committed.get(&row.name) else {
            // The page lists rows without a result. This machine's own kernel must have one.
            if row.kernel.is_none() {
                checked.complaints.push(format!("{}: no result in docs/coverage; run cargo xtask coverage --rows {0}", row.name));
            }
            continue;
        };
        let mut complain = |what: String| checked.complaints.push(format!("{}: {what}", row.name));
        if found.backend != row.backend {
            complain(format!("found on backend {}, {} is expected", found.backend, row.backend));
        }
        wrong(found).into_iter().for_each(&mut complain);
        if let Some(why) = stale(found, native, sources) {
            let text = format!("{why}; run cargo xtask coverage --rows {}", row.name);
            match demand {
                Demand::Native if row.kernel.is_some() => checked.stale.push(format!("{}: {text}", row.name)),
                Demand::Native | Demand::All => complain(text),
            }
            continue;
        }
        checked.current += 1;
        if let Some(report) = fresh(row)? {
            differences(found, &report).into_iter().for_each(&mut complain);
        }
    }
    Ok(checked)
}

/// The result of this machine's own kernel.
pub(crate) fn native<'a>(matrix: &Matrix, mut all: impl Iterator<Item = &'a Found>) -> Option<&'a Found> {
    let row = matrix.rows.iter().find(|row| row.kernel.is_none())?;
    all.find(|found| found.row == row.name)
}

/// Why a result is not of this tree; `None` if it is. The table of ways is taken from the native row, which a fresh run checks.
pub(crate) fn stale(found: &Found, native: Option<&Found>, sources: &str) -> Option<&'static str> {
    let tests = |found: &Found| found.rows.iter().map(|row| row.test.clone()).collect::<BTreeSet<_>>();
    if found.sources != sources {
        return Some("stale: measured on other kernel programs");
    }
    native.is_some_and(|native| tests(native) != tests(found)).then_some("stale: measured with another table of ways")
}

/// What no result may contain: an open row, a row whose test did not run, an unknown gap.
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

/// Rows of the committed result that a fresh run contradicts. The test of a closed row must have run and passed.
fn differences(found: &Found, report: &Report) -> Vec<String> {
    let fresh: BTreeMap<&str, &Technique> = report.coverage.iter().map(|row| (row.test.as_str(), row)).collect();
    let passed: BTreeSet<&str> = report.tests.iter().filter(|test| test.state == "passed").map(|test| test.name.as_str()).collect();
    let ran: BTreeSet<&str> = report.tests.iter().map(|test| test.name.as_str()).collect();
    let mut wrong = Vec::new();
    for row in &found.rows {
        let what = format!("{} ({})", row.technique, row.address_form);
        match fresh.get(row.test.as_str()) {
            None => wrong.push(format!("{what}: {} is no test of this tree", row.test)),
            // A short run skips groups. Their rows are not compared.
            Some(_) if !ran.contains(row.test.as_str()) => {}
            Some(_) if row.state == "closed" && !passed.contains(row.test.as_str()) => {
                wrong.push(format!("{what}: closed, but {} did not pass", row.test));
            }
            // Another kernel than that of the committed result may have other protocols.
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

/// The file in which the suite wrote the result of its last run on a row.
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
        suite: suite(paths)?,
        score,
        rows: report.coverage,
    })
}

/// The output of a program, trimmed.
pub(crate) fn say(paths: &Paths, program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).current_dir(&paths.root).output().with_context(|| program.to_owned())?;
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A hash of the sources that decide and refuse. While they do not change, the results stay valid.
fn sources(paths: &Paths) -> Result<String> {
    hash(paths, &["pp-common/src", "pp-ebpf/src"])
}

/// A hash of the sources that try the ways.
fn suite(paths: &Paths) -> Result<String> {
    hash(paths, &["tests/src", "tests/e2e"])
}

fn hash(paths: &Paths, folders: &[&str]) -> Result<String> {
    let mut files = Vec::new();
    for folder in folders {
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
    Ok(hex::encode(&hash.finalize()[..12]))
}

/// Every Rust source below the folder, except tests.
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

/// Writes the page of the committed results.
pub(crate) fn write_page(paths: &Paths) -> Result<()> {
    let matrix = Matrix::load(paths)?;
    let all: Vec<Found> = committed(paths)?.into_values().collect();
    paths::write_if_changed(&page_file(paths), &coverage_page::page(&all, &matrix, &sources(paths)?)).map(|_| ())
}

#[cfg(test)]
#[path = "coverage_tests.rs"]
mod tests;
