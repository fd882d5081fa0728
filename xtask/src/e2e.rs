//! `e2e`: runs the suite on one row of `tests/kernels.toml`, here or in a virtual machine, and checks the result file that it wrote.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::{
    build_ebpf::{self, Variant},
    kernels::{Matrix, Row, in_series},
    next_agent,
    paths::{self, Paths},
    setup, sh, vm,
};

/// The longest time for one row. The slowest kernel needs about half of it.
const DEADLINE: Duration = Duration::from_secs(60 * 60);
/// The longest time with the long tests: attackers that take half an hour, the search for races, and in a virtual machine harmful tests.
const SOAK_DEADLINE: Duration = Duration::from_secs(150 * 60);

/// The suite's report on one row.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Report {
    kernel_release: String,
    row: String,
    backend: String,
    tests: Vec<Test>,
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// One test of the report.
#[derive(Debug, Clone, Deserialize)]
struct Test {
    name: String,
    state: String,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    milliseconds: u32,
}

/// The result of one row.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    /// The row's name.
    pub(crate) row: String,
    /// The kernel that ran it, `?` if unknown.
    pub(crate) kernel: String,
    /// Tests that passed.
    pub(crate) passed: usize,
    /// Tests that failed. At least 1 if there are complaints.
    pub(crate) failed: usize,
    /// Tests that were skipped, allowed or not.
    pub(crate) skipped: usize,
    /// Why the row is not green. Empty if it is.
    pub(crate) complaints: Vec<String>,
    /// Seconds of its tests, by their group.
    pub(crate) groups: BTreeMap<String, f64>,
    pub(crate) took: Duration,
}

/// Builds the suite's binaries. Returns their directory.
pub(crate) fn build(paths: &Paths, release: bool) -> Result<PathBuf> {
    build_ebpf::run(paths, Variant::Shipped)?;
    build_user_side(paths, release)
}

/// Builds the suite's binaries and the agent of the upgrade test.
pub(crate) fn build_all(paths: &Paths) -> Result<PathBuf> {
    let bin = build(paths, false)?;
    next_agent::make(paths, &bin.join("pp-agent"))?;
    Ok(bin)
}

/// Builds the agent, with the existing eBPF object, and the tests.
fn build_user_side(paths: &Paths, release: bool) -> Result<PathBuf> {
    let profile = if release { "--profile=release" } else { "--profile=dev" };
    sh::say("build agent and tests ...");
    sh::run(paths.cargo().args(["build", "--quiet", "--package", "pp-tests", profile]))?;
    link_agent(paths, profile)?;
    Ok(paths.target.join(if release { "release" } else { "debug" }))
}

/// Builds the agent as it is installed: it loads no library, which a session could replace.
fn link_agent(paths: &Paths, profile: &str) -> Result<()> {
    let args = ["rustc", "--quiet", "--package", "pp-agent", "--bin", "pp-agent", profile, "--", "-C", "target-feature=+crt-static"];
    sh::run(paths.cargo().args(args))
}

/// Builds the agent alone, for installation. Returns its path.
pub(crate) fn build_agent(paths: &Paths) -> Result<PathBuf> {
    build_ebpf::run(paths, Variant::Shipped)?;
    link_agent(paths, "--profile=release")?;
    Ok(paths.target.join("release/pp-agent"))
}

/// Sets up, builds and runs one row. `more` are further arguments of the suite (a filter, `--soak`).
pub(crate) fn run(paths: &Paths, row: Option<&str>, more: &[String]) -> Result<Cell> {
    let matrix = Matrix::load(paths)?;
    let row = matrix.row(row.unwrap_or("native"))?;
    setup::native(paths)?;
    let part = if row.kernel.is_some() { setup::Part::Kernels } else { setup::Part::Agents };
    setup::run(paths, Some(part))?;
    if row.kernel.is_none() && more.iter().any(|word| word == "--soak") {
        setup::run(paths, Some(setup::Part::Browser))?;
    }
    let bin = build_all(paths)?;
    Ok(run_row(paths, &matrix, row, &bin, more, true))
}

/// Runs one row with the binaries in `bin`. Every error becomes a complaint. With `show` the suite's output is this command's output.
pub(crate) fn run_row(paths: &Paths, matrix: &Matrix, row: &Row, bin: &Path, more: &[String], show: bool) -> Cell {
    let start = Instant::now();
    let place = match &row.kernel {
        Some(kernel) => in_vm(paths, matrix, row, kernel, bin, more, show),
        None => here(paths, row, bin, more, show),
    };
    let checked = place.and_then(|place| {
        let report = serde_json::from_str::<Report>(&paths::read(&place.file)?)
            .with_context(|| format!("{}: not a result file", place.file.display()))?;
        Ok((complaints(&report, row, &place, more.is_empty()), report))
    });
    let mut cell = Cell {
        row: row.name.clone(),
        kernel: "?".to_owned(),
        passed: 0,
        failed: 0,
        skipped: 0,
        complaints: Vec::new(),
        groups: BTreeMap::new(),
        took: start.elapsed(),
    };
    match checked {
        Ok((complaints, report)) => {
            cell.groups = groups(&report);
            cell.kernel = report.kernel_release;
            (cell.passed, cell.failed, cell.skipped) = (report.passed, report.failed, report.skipped);
            cell.complaints = complaints;
        }
        Err(err) => cell.complaints.push(format!("{err:#}")),
    }
    if cell.failed == 0 && !cell.complaints.is_empty() {
        cell.failed = 1;
    }
    cell
}

/// Seconds of each group of tests. The name of a test is `group::claim`.
fn groups(report: &Report) -> BTreeMap<String, f64> {
    let mut milliseconds: BTreeMap<&str, u32> = BTreeMap::new();
    for test in &report.tests {
        *milliseconds.entry(test.name.split("::").next().unwrap_or_default()).or_default() += test.milliseconds;
    }
    milliseconds.into_iter().map(|(group, sum)| (group.to_owned(), f64::from(sum) / 1000.0)).collect()
}

/// The result file of a run, and what it must contain.
struct Place {
    file: PathBuf,
    release: String,
    series: Option<String>,
    exit_code: i32,
}

fn arguments(bin: &Path, file: &str, row: &Row, more: &[String]) -> Vec<String> {
    let mut words = vec![bin.join("pp-e2e").display().to_string()];
    words.extend(["--result", file, "--row", &row.name].map(str::to_owned));
    words.extend_from_slice(more);
    words
}

fn deadline(more: &[String]) -> Duration {
    if more.iter().any(|word| word == "--soak") { SOAK_DEADLINE } else { DEADLINE }
}

/// The variables that tell the suite where its programs are.
pub(crate) fn environment(paths: &Paths, bin: &Path) -> Vec<(String, String)> {
    vec![
        ("PP_AGENT_BIN".to_owned(), bin.join("pp-agent").display().to_string()),
        ("PP_AGENT_NEXT_BIN".to_owned(), next_agent::file(paths).display().to_string()),
        ("PP_VENV".to_owned(), paths.venv().display().to_string()),
        ("PP_AGENTS".to_owned(), paths.agents().display().to_string()),
        ("RUST_BACKTRACE".to_owned(), "1".to_owned()),
    ]
}

fn here(paths: &Paths, row: &Row, bin: &Path, more: &[String], show: bool) -> Result<Place> {
    let dir = paths.cache.join("e2e/native");
    // A file of an earlier run must not be taken for the result of this one.
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    let file = dir.join("result.json");
    let words = arguments(bin, &file.display().to_string(), row, more);
    let deadline = deadline(more);
    let mut command = sh::cmd("timeout", ["--kill-after=10", &deadline.as_secs().to_string()]);
    command.args(&words).envs(environment(paths, bin)).current_dir(&paths.root);
    if !show {
        // Our standard output is for the result of the command.
        command.stdout(std::io::stderr());
    }
    let status = command.status().context("pp-e2e")?;
    let release = paths::read(Path::new("/proc/sys/kernel/osrelease"))?.trim().to_owned();
    Ok(Place { file, release, series: None, exit_code: status.code().unwrap_or(-1) })
}

fn in_vm(paths: &Paths, matrix: &Matrix, row: &Row, kernel: &str, bin: &Path, more: &[String], show: bool) -> Result<Place> {
    let job = vm::Job {
        kernel,
        append: &row.append,
        run: &format!("e2e-{}", row.name),
        command: &arguments(bin, "/out/result.json", row, more),
        env: &environment(paths, bin),
        systemd: false,
        deadline: deadline(more),
        show,
    };
    let outcome = vm::run(paths, matrix, &job)?;
    Ok(Place {
        file: outcome.out.join("result.json"),
        release: outcome.release,
        series: Some(matrix.kernel(kernel)?.series.clone()),
        exit_code: outcome.exit_code,
    })
}

/// Every reason why a row is not green. In a filtered run (`whole` is false) allowed skips may be unused.
fn complaints(report: &Report, row: &Row, place: &Place, whole: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut expect = |holds: bool, text: String| {
        if !holds {
            wrong.push(text);
        }
    };
    expect(report.row == row.name, format!("the result is of row {}", report.row));
    expect(report.kernel_release == place.release, format!("ran on kernel {}, {} was booted", report.kernel_release, place.release));
    if let Some(series) = &place.series {
        expect(in_series(&report.kernel_release, series), format!("kernel {} is not of series {series}", report.kernel_release));
    }
    expect(report.backend == row.backend, format!("backend {} found, {} expected", report.backend, row.backend));
    let count = |state: &str| report.tests.iter().filter(|test| test.state == state).count();
    let counts = [count("passed"), count("failed"), count("skipped")];
    expect(
        counts == [report.passed, report.failed, report.skipped] && counts.iter().sum::<usize>() == report.tests.len(),
        "the counts are not those of the tests listed".to_owned(),
    );
    expect(report.passed > 0, "no test passed".to_owned());
    expect(report.failed > 0 || place.exit_code == 0, format!("the suite ended with exit code {}", place.exit_code));
    for test in &report.tests {
        let reason = test.reason.as_deref().unwrap_or("no reason given");
        match test.state.as_str() {
            "passed" => {}
            "skipped" => expect(row.allowed_skips.contains(&test.name), format!("{}: skipped without leave: {reason}", test.name)),
            _ => expect(false, format!("{}: {}: {reason}", test.name, test.state)),
        }
    }
    if whole {
        for name in &row.allowed_skips {
            let used = report.tests.iter().any(|test| test.name == *name);
            expect(used, format!("{name}: allowed to be skipped, but there is no such test"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            name: "6.1".into(),
            kernel: Some("6.1".into()),
            append: String::new(),
            backend: "lsm".into(),
            ci: crate::kernels::Share::Whole,
            allowed_skips: vec!["b".into()],
        }
    }

    fn place() -> Place {
        Place { file: PathBuf::new(), release: "6.1.0-56-amd64".into(), series: Some("6.1".into()), exit_code: 0 }
    }

    fn report() -> Report {
        let test = |name: &str, state: &str| Test { name: name.into(), state: state.into(), reason: None, milliseconds: 700 };
        Report {
            kernel_release: "6.1.0-56-amd64".into(),
            row: "6.1".into(),
            backend: "lsm".into(),
            tests: vec![test("a", "passed"), test("b", "skipped")],
            passed: 1,
            failed: 0,
            skipped: 1,
        }
    }

    #[test]
    fn a_row_that_is_what_it_must_be_is_green() {
        assert_eq!(complaints(&report(), &row(), &place(), true), Vec::<String>::new());
    }

    #[test]
    fn seconds_are_summed_by_group() {
        let mut report = report();
        for (test, name) in report.tests.iter_mut().zip(["lab::a", "lab::b"]) {
            test.name = name.into();
        }
        assert_eq!(groups(&report), BTreeMap::from([("lab".to_owned(), 1.4)]));
    }

    #[test]
    fn every_deviation_makes_the_row_red() {
        let cases: [fn(&mut Report); 8] = [
            |report| report.kernel_release = "6.12.1".into(),
            |report| report.backend = "cgroup".into(),
            |report| report.row = "7.x".into(),
            |report| report.tests[1].name = "c".into(),
            |report| report.tests[1].state = "failed".into(),
            |report| report.passed = 2,
            |report| report.tests[0].state = "ignored".into(),
            |report| report.tests.remove(0).name.clear(),
        ];
        for (index, change) in cases.iter().enumerate() {
            let mut changed = report();
            change(&mut changed);
            assert_ne!(complaints(&changed, &row(), &place(), true), Vec::<String>::new(), "case {index}");
        }
    }

    #[test]
    fn a_suite_that_dies_after_its_report_is_red() {
        let died = Place { exit_code: 139, ..place() };
        assert_ne!(complaints(&report(), &row(), &died, true), Vec::<String>::new());
    }
}
