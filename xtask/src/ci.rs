//! `ci`: runs every check, the fastest to fail first, and prints a table of results and times.

mod table;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::mpsc,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{
    build_ebpf::{self, Variant},
    coverage, e2e, house,
    kept::{self, Common, Kept, Key, Store},
    kernels::{Matrix, Row, Share},
    output::Output,
    parallel::{self, Piece},
    paths::Paths,
    setup, sh, systemd,
};
use table::{Line, Times};

/// The options of the command.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Options {
    /// Run every row, also those of which nothing has changed since they were green
    #[arg(long)]
    fresh: bool,
    /// The run that a release is judged by: fresh, of a commit, and the coverage of every kernel must be of it
    #[arg(long)]
    release: bool,
    /// Print the table as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Runs everything. True if all of it passed.
pub(crate) fn run(paths: &Paths, options: Options, output: &Output) -> Result<bool> {
    let start = Instant::now();
    if options.release {
        let changed = coverage::say(paths, "git", &["status", "--porcelain"])?;
        ensure!(changed.is_empty(), "a release is of a commit, and these files are of none:\n{changed}");
    }
    let matrix = Matrix::load(paths)?;
    setup::run(paths, Some(setup::Part::Toolchain))?;
    // The rest is installed and fetched while this machine compiles.
    let (mut table, bin) = thread::scope(|scope| {
        let (lab_ready, lab) = mpsc::channel();
        let fetching = scope.spawn(move || fetched(paths, &lab_ready));
        let (mut table, bin) = compiled(paths, &lab)?;
        table.extend(fetching.join().map_err(|_| anyhow!("the thread that fetches panicked"))?);
        Ok::<_, anyhow::Error>((table, bin))
    })?;
    if let Some(bin) = bin {
        let rows = Rows::new(paths, &matrix, &bin, Store::new(paths, options.fresh || options.release));
        table.extend(rows.run());
    }
    let demand = if options.release { coverage::Demand::All } else { coverage::Demand::Native };
    let (line, stale) = committed_coverage(paths, demand);
    table.push(line);
    let times = Times::of(paths, start, table, stale)?;
    let file = times.keep(paths)?;
    output.write(if options.json { times.json()? } else { times.text() }.trim_end())?;
    sh::say(format!("the same as JSON: {}", file.display()));
    Ok(times.green())
}

/// Fetches and installs what other steps need. Sends through `lab_ready` once the lab is installed.
fn fetched(paths: &Paths, lab_ready: &mpsc::Sender<()>) -> Vec<Line> {
    let part = |what: &str, parts: &[setup::Part]| {
        let start = Instant::now();
        let done = parts.iter().try_for_each(|part| setup::run(paths, Some(*part)));
        verdict(what, &done, start)
    };
    let lab = part("lab", &[setup::Part::Lab]);
    if lab.failed == 0 {
        // The receiver is gone if an earlier step ended the run.
        let _sent = lab_ready.send(());
    }
    vec![lab, part("agents and kernels", &[setup::Part::Agents, setup::Part::Kernels])]
}

/// The line of the committed coverage, which counts current rows, complaints and stale rows, and the stale rows themselves.
fn committed_coverage(paths: &Paths, demand: coverage::Demand) -> (Line, Vec<String>) {
    let start = Instant::now();
    let what = "committed coverage";
    match coverage::check(paths, demand, true) {
        Ok(checked) => {
            checked.complaints.iter().for_each(|complaint| sh::say(format!("{what}: {complaint}")));
            let counts = (checked.current, checked.complaints.len(), checked.stale.len());
            (Line::new(what, counts, start), checked.stale)
        }
        Err(err) => (verdict(what, &Err::<(), _>(err), start), Vec::new()),
    }
}

/// The checks that need only the compiler, and the directory of the suite's binaries if they could be built. Unit tests start programs of
/// the lab, so they wait for `lab`.
fn compiled(paths: &Paths, lab: &mpsc::Receiver<()>) -> Result<(Vec<Line>, Option<PathBuf>)> {
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
        // cargo-deny takes as long to build as all of this, so it is not installed for the check.
        table.push(Line::new("dependencies (no cargo-deny here)", (0, 0, 1), Instant::now()));
    }
    if lab.recv().is_err() {
        // The line of the lab says why it failed.
        return Ok((table, None));
    }
    table.push(unit(paths, "unit tests", &["test", "--no-fail-fast"])?);
    table.push(unit(paths, "unit tests of the harness", &["test", "--no-fail-fast", "--package", "pp-tests", "--lib"])?);
    let start = Instant::now();
    let bin = object.and_then(|_| e2e::build_all(paths));
    table.push(verdict("build of agent and suite", &bin, start));
    Ok((table, bin.ok()))
}

/// The rows of the matrix and the installed service, and the store of their results.
struct Rows<'a> {
    paths: &'a Paths,
    matrix: &'a Matrix,
    bin: &'a Path,
    store: Store,
    /// `None` if an input of the keys is missing. Every row runs then.
    common: Option<Common>,
}

impl<'a> Rows<'a> {
    fn new(paths: &'a Paths, matrix: &'a Matrix, bin: &'a Path, store: Store) -> Self {
        let common = Common::read(paths, bin);
        if let Err(err) = &common {
            sh::say(format!("results are neither kept nor taken again: {err:#}"));
        }
        Self { paths, matrix, bin, store, common: common.ok() }
    }

    /// Each virtual machine uses one processor. This machine's own row often waits, and it measures time. Therefore it runs in parallel
    /// with them and has priority.
    fn run(&self) -> Vec<Line> {
        let (here, emulated): (Vec<_>, Vec<_>) =
            self.matrix.rows.iter().filter(|row| row.ci != Share::None).partition(|row| row.kernel.is_none());
        let mut pieces: Vec<Piece<'_, Line>> = Vec::new();
        // The longest first, so that no processor is idle at the end.
        let (long, short): (Vec<_>, Vec<_>) = emulated.into_iter().partition(|row| row.ci != Share::Part);
        for row in long {
            pieces.push(Box::new(move || self.row(row)));
        }
        for mode in systemd::Mode::ALL {
            pieces.push(Box::new(move || self.installed(mode)));
        }
        for row in short {
            pieces.push(Box::new(move || self.row(row)));
        }
        thread::scope(|scope| {
            let machines = scope.spawn(|| parallel::run(pieces));
            let mut lines: Vec<Line> = here.into_iter().map(|row| self.row(row)).collect();
            let machines = machines
                .join()
                .unwrap_or_else(|_| vec![Line::verdict("virtual machines (the thread that runs them panicked)", false, Instant::now())]);
            lines.extend(machines);
            lines
        })
    }

    fn row(&self, row: &Row) -> Line {
        let start = Instant::now();
        let what = format!("e2e {}", row.name);
        let only = match row.ci {
            Share::Part => vec!["--groups".to_owned(), self.matrix.ci_groups.join(",")],
            Share::Kernel => {
                let groups: Vec<&str> = self.matrix.ci_groups.iter().chain(&self.matrix.ci_kernel_groups).map(String::as_str).collect();
                let mut only = vec!["--groups".to_owned(), groups.join(",")];
                only.extend(self.covered(&what, row).then(|| "--uncovered".to_owned()));
                only
            }
            Share::Whole | Share::None => Vec::new(),
        };
        let result = kept::result(self.paths, row);
        let key = self.key(&what, |common| common.row(self.paths, self.matrix, row, &only));
        if let Some(line) = self.taken(&what, &row.name, key.as_ref(), Some(&result), start) {
            return line;
        }
        let cell = e2e::run_row(self.paths, self.matrix, row, self.bin, &only, false);
        for complaint in &cell.complaints {
            sh::say(format!("{what}: {complaint}"));
        }
        if let Some(key) = key.filter(|_| cell.complaints.is_empty()) {
            self.keep(&what, &row.name, |date| Kept::of_cell(key, date, &cell), Some(&result));
        }
        sh::say(format!("{what}: done in {:.0} s", cell.took.as_secs_f64()));
        let counts = (cell.passed, cell.failed, cell.skipped);
        Line { groups: cell.groups, ..Line::new(&format!("{what} ({})", cell.kernel), counts, start) }
    }

    /// Whether the row can skip the ways around the gate: its committed result is of the same kernel programs and the same tests. The
    /// daemon's part in them is tested on this machine, which tries them all.
    fn covered(&self, what: &str, row: &Row) -> bool {
        if self.store.is_fresh() {
            return false;
        }
        match coverage::of_this_tree(self.paths, row) {
            Ok(Some(key)) => sh::say(format!("{what}: docs/coverage/{}.json is of these programs and tests, key {key}", row.name)),
            Ok(None) => return false,
            Err(err) => {
                sh::say(format!("{what}: its committed coverage is not taken: {err:#}"));
                return false;
            }
        }
        true
    }

    fn installed(&self, mode: systemd::Mode) -> Line {
        let start = Instant::now();
        let (what, name) = (format!("installed service, {}", mode.name()), format!("installed-{}", mode.name()));
        let key = self.key(&what, |common| common.installed(self.paths, self.matrix, mode));
        if let Some(line) = self.taken(&what, &name, key.as_ref(), None, start) {
            return line;
        }
        let tried = systemd::try_installed(self.paths, self.matrix, systemd::KERNEL, mode, &self.bin.join("pp-agent"));
        if let Some(complaint) = &tried.complaint {
            sh::say(format!("{}: {complaint}", tried.what));
        }
        if let Some(key) = key.filter(|_| tried.complaint.is_none()) {
            self.keep(&what, &name, |date| Kept::of_tried(key, date, &tried), None);
        }
        sh::say(format!("{}: done in {:.0} s", tried.what, tried.took.as_secs_f64()));
        Line::new(&tried.what, (tried.held, tried.complaint.is_some().into(), 0), start)
    }

    fn key(&self, what: &str, of: impl FnOnce(&Common) -> Result<Key>) -> Option<Key> {
        let key = of(self.common.as_ref()?);
        match &key {
            Ok(key) => sh::say(format!("{what}: key {key} ...")),
            Err(err) => sh::say(format!("{what}: its result is neither kept nor taken again: {err:#}")),
        }
        key.ok()
    }

    /// The line of an earlier run with this key, if there is one.
    fn taken(&self, what: &str, name: &str, key: Option<&Key>, result: Option<&Path>, start: Instant) -> Option<Line> {
        let key = key?;
        let old = self.store.take(name, key, result)?;
        let kept = format!("key {key}, run of {}, {:.0} s", old.date, old.seconds);
        sh::say(format!("{what}: nothing has changed, {kept}"));
        let what = if old.kernel.contains(what) { old.kernel } else { format!("{what} ({})", old.kernel) };
        Some(Line { groups: old.groups, kept: Some(kept), ..Line::new(&what, (old.passed, 0, old.skipped), start) })
    }

    fn keep(&self, what: &str, name: &str, of: impl FnOnce(String) -> Kept, result: Option<&Path>) {
        let date = coverage::say(self.paths, "date", &["-u", "+%FT%TZ"]);
        if let Err(err) = date.and_then(|date| self.store.keep(name, &of(date), result)) {
            sh::say(format!("{what}: its result is not kept: {err:#}"));
        }
    }
}

/// The line of a cargo command that passes or fails as a whole.
fn check(paths: &Paths, what: &str, args: &[&str]) -> Result<Line> {
    let start = Instant::now();
    let (ok, _) = logged(paths, what, args)?;
    Ok(Line::verdict(what, ok, start))
}

/// The line of a cargo test run, with counts of its tests.
fn unit(paths: &Paths, what: &str, args: &[&str]) -> Result<Line> {
    let start = Instant::now();
    let (ok, text) = logged(paths, what, args)?;
    let (passed, mut failed, skipped) = counts(&text);
    // A crate that does not compile and a run without tests fail too.
    if failed == 0 && (!ok || passed == 0) {
        failed = 1;
    }
    Ok(Line::new(what, (passed, failed, skipped), start))
}

fn verdict<T>(what: &str, result: &Result<T>, start: Instant) -> Line {
    if let Err(err) = result {
        sh::say(format!("{what}: {err:#}"));
    }
    Line::verdict(what, result.is_ok(), start)
}

/// Runs cargo with its output in a log. On failure it shows the end of the log.
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

/// Sums of passed, failed and ignored tests over all `test result:` lines.
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
