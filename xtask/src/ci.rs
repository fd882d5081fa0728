//! `ci`: every check there is, in the order that fails fastest, with one table and one line of counts at the end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    build_ebpf::{self, Variant},
    coverage, e2e, house,
    kernels::{Matrix, Row, Share},
    paths::Paths,
    setup, sh,
    side_by_side::{self, Piece},
    systemd,
};

/// One line of the table.
struct Line {
    what: String,
    passed: usize,
    failed: usize,
    skipped: usize,
    took: Duration,
}

/// Runs everything; true when all of it passed.
pub(crate) fn run(paths: &Paths) -> Result<bool> {
    setup::native(paths)?;
    setup::vm_tools()?;
    let matrix = Matrix::load(paths)?;
    // Kernels and agents come over the network while this machine compiles.
    let (mut table, bin, fetched) = thread::scope(|scope| {
        let fetching = scope.spawn(|| {
            let start = Instant::now();
            let fetched = setup::run(paths, Some(setup::Part::Agents)).and_then(|()| setup::run(paths, Some(setup::Part::Kernels)));
            verdict("agents and kernels", &fetched, start)
        });
        let (table, bin) = compiled(paths)?;
        let fetched = fetching.join().map_err(|_| anyhow!("agents and kernels: the thread that fetches them panicked"))?;
        Ok::<_, anyhow::Error>((table, bin, fetched))
    })?;
    table.push(fetched);
    if let Some(bin) = bin {
        table.extend(in_machines(paths, &matrix, &bin));
    }
    let (line, stale) = committed_coverage(paths);
    table.push(line);
    Ok(print(&table, &stale))
}

/// The committed coverage: rows that are of this tree, what must not be, and the stale rows, which are named below the table.
fn committed_coverage(paths: &Paths) -> (Line, Vec<String>) {
    let start = Instant::now();
    let what = "committed coverage";
    match coverage::check(paths, coverage::Demand::Native, true) {
        Ok(checked) => {
            checked.complaints.iter().for_each(|complaint| sh::say(format!("{what}: {complaint}")));
            let (passed, failed, skipped) = (checked.current, checked.complaints.len(), checked.stale.len());
            (Line { what: what.to_owned(), passed, failed, skipped, took: start.elapsed() }, checked.stale)
        }
        Err(err) => (verdict(what, &Err::<(), _>(err), start), Vec::new()),
    }
}

/// What needs nothing but the compiler, and the directory of the suite's binaries if they could be built.
fn compiled(paths: &Paths) -> Result<(Vec<Line>, Option<PathBuf>)> {
    let mut table = vec![check(paths, "format", &["fmt", "--all", "--check"])?];
    let start = Instant::now();
    table.push(verdict("house", &house::for_ci(paths), start));
    let start = Instant::now();
    let object = build_ebpf::run(paths, Variant::Shipped);
    table.push(verdict("ebpf object", &object, start));
    table.push(check(paths, "lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?);
    if sh::run_quiet(&mut sh::cmd("cargo", ["deny", "--version"])).is_ok() {
        table.push(check(paths, "dependencies", &["deny", "--all-features", "check"])?);
    } else {
        // It takes as long to build as all of this; whoever has it, has the check.
        let what = "dependencies (no cargo-deny here)".to_owned();
        table.push(Line { what, passed: 0, failed: 0, skipped: 1, took: Duration::ZERO });
    }
    table.push(unit(paths, "unit tests", &["test", "--no-fail-fast"])?);
    table.push(unit(paths, "unit tests of the harness", &["test", "--no-fail-fast", "--package", "pp-tests", "--lib"])?);
    let start = Instant::now();
    let bin = object.and_then(|_| e2e::build_all(paths));
    table.push(verdict("build of agent and suite", &bin, start));
    Ok((table, bin.ok()))
}

/// The rows of the matrix and the installed service. Each virtual machine keeps one processor busy; this machine's own row waits now and then
/// and measures time, so it runs beside them and goes first where both want a processor.
fn in_machines(paths: &Paths, matrix: &Matrix, bin: &Path) -> Vec<Line> {
    let agent = bin.join("pp-agent");
    let agent = &agent;
    let tried = |mode| -> Piece<'_, Line> { Box::new(move || installed_line(paths, matrix, mode, agent)) };
    let (here, emulated): (Vec<_>, Vec<_>) = matrix.rows.iter().filter(|row| row.ci != Share::None).partition(|row| row.kernel.is_none());
    let mut pieces: Vec<Piece<'_, Line>> = Vec::new();
    // The longest first, so that no processor waits for one at the end.
    let (long, short): (Vec<_>, Vec<_>) = emulated.into_iter().partition(|row| row.ci != Share::Part);
    for row in long.into_iter().chain(short) {
        pieces.push(Box::new(move || e2e_line(paths, matrix, row, bin)));
    }
    pieces.push(tried(systemd::Mode::Lifetime));
    pieces.push(tried(systemd::Mode::Off));
    thread::scope(|scope| {
        let machines = scope.spawn(|| side_by_side::run(pieces));
        let mut lines: Vec<Line> = here.into_iter().map(|row| e2e_line(paths, matrix, row, bin)).collect();
        let machines = machines.join().unwrap_or_else(|_| {
            let what = "virtual machines (the thread that runs them panicked)".to_owned();
            vec![Line { what, passed: 0, failed: 1, skipped: 0, took: Duration::ZERO }]
        });
        lines.extend(machines);
        lines
    })
}

fn e2e_line(paths: &Paths, matrix: &Matrix, row: &Row, bin: &Path) -> Line {
    sh::say(format!("e2e {} ...", row.name));
    let only = match row.ci {
        Share::Part => vec!["--groups".to_owned(), matrix.ci_groups.join(",")],
        Share::Kernel => vec!["--groups".to_owned(), [matrix.ci_groups.join(","), matrix.ci_kernel_groups.join(",")].join(",")],
        Share::Whole | Share::None => Vec::new(),
    };
    let cell = e2e::run_row(paths, matrix, row, bin, &only, false);
    for complaint in &cell.complaints {
        sh::say(format!("e2e {}: {complaint}", cell.row));
    }
    sh::say(format!("e2e {}: done in {:.0} s", cell.row, cell.took.as_secs_f64()));
    Line {
        what: format!("e2e {} ({})", cell.row, cell.kernel),
        passed: cell.passed,
        failed: cell.failed,
        skipped: cell.skipped,
        took: cell.took,
    }
}

fn installed_line(paths: &Paths, matrix: &Matrix, mode: systemd::Mode, agent: &Path) -> Line {
    sh::say(format!("installed service, {} ...", mode.name()));
    let tried = systemd::try_installed(paths, matrix, systemd::KERNEL, mode, agent);
    if let Some(complaint) = &tried.complaint {
        sh::say(format!("{}: {complaint}", tried.what));
    }
    sh::say(format!("{}: done in {:.0} s", tried.what, tried.took.as_secs_f64()));
    Line { what: tried.what, passed: tried.held, failed: tried.complaint.is_some().into(), skipped: 0, took: tried.took }
}

/// A cargo command that passes or fails as one.
fn check(paths: &Paths, what: &str, args: &[&str]) -> Result<Line> {
    let start = Instant::now();
    let (ok, _) = logged(paths, what, args)?;
    Ok(Line { what: what.to_owned(), passed: ok.into(), failed: (!ok).into(), skipped: 0, took: start.elapsed() })
}

/// A cargo test run, counted test by test.
fn unit(paths: &Paths, what: &str, args: &[&str]) -> Result<Line> {
    let start = Instant::now();
    let (ok, text) = logged(paths, what, args)?;
    let (passed, mut failed, skipped) = counts(&text);
    // A crate that does not compile, or a run without a single test, is a failure too.
    if failed == 0 && (!ok || passed == 0) {
        failed = 1;
    }
    Ok(Line { what: what.to_owned(), passed, failed, skipped, took: start.elapsed() })
}

fn verdict<T>(what: &str, result: &Result<T>, start: Instant) -> Line {
    if let Err(err) = result {
        sh::say(format!("{what}: {err:#}"));
    }
    let ok = result.is_ok();
    Line { what: what.to_owned(), passed: ok.into(), failed: (!ok).into(), skipped: 0, took: start.elapsed() }
}

/// Runs cargo with its output in a log; on failure the end of the log is shown.
fn logged(paths: &Paths, what: &str, args: &[&str]) -> Result<(bool, String)> {
    sh::say(format!("{what} ..."));
    let dir = paths.cache.join("ci");
    fs::create_dir_all(&dir)?;
    let log = dir.join(format!("{}.log", what.replace(' ', "-")));
    let file = fs::File::create(&log).with_context(|| format!("{}: not creatable", log.display()))?;
    let status = paths
        .cargo()
        .args(args)
        .env("CARGO_TERM_COLOR", "never")
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .context("cargo: did not start")?;
    let text = fs::read_to_string(&log)?;
    if !status.success() {
        let lines: Vec<_> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(60)..].join("\n");
        sh::say(format!("{what}: failed; end of {}:\n{tail}", log.display()));
    }
    Ok((status.success(), text))
}

/// Passed, failed and ignored over every `test result:` line.
fn counts(text: &str) -> (usize, usize, usize) {
    let mut sum = (0, 0, 0);
    for line in text.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        let of = |word: &str| {
            let part = line.split([';', '.']).find(|part| part.trim_end().ends_with(word))?;
            part.trim().split(' ').next()?.parse::<usize>().ok()
        };
        sum.0 += of(" passed").unwrap_or(0);
        sum.1 += of(" failed").unwrap_or(0);
        sum.2 += of(" ignored").unwrap_or(0);
    }
    sum
}

#[expect(clippy::print_stdout, reason = "the table is this command's result")]
fn print(table: &[Line], stale: &[String]) -> bool {
    println!("{:<40} {:>7} {:>7} {:>7} {:>9}", "check", "passed", "failed", "skipped", "seconds");
    for line in table {
        let (passed, failed, skipped) = (line.passed, line.failed, line.skipped);
        println!("{:<40} {passed:>7} {failed:>7} {skipped:>7} {:>9.1}", line.what, line.took.as_secs_f64());
    }
    for row in stale {
        println!("committed coverage of {row}");
    }
    let sum = |of: fn(&Line) -> usize| table.iter().map(of).sum::<usize>();
    let failed = sum(|line| line.failed);
    println!("\n{} passed, {failed} failed, {} skipped", sum(|line| line.passed), sum(|line| line.skipped));
    failed == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_test_output_is_counted_over_all_binaries() {
        let text = "running 2 tests\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                    test result: FAILED. 5 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s\n";
        assert_eq!(counts(text), (7, 3, 1));
    }

    #[test]
    fn output_without_results_counts_nothing() {
        assert_eq!(counts("error: could not compile\n"), (0, 0, 0));
    }
}
