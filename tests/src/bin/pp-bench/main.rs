//! What the hooks cost, measured: the calls that a program makes, with no program at the hooks, with empty ones and with the gate's, in
//! alternating order, within one run. `docs/performance.md` says how to read it.
//!
//! Objects: `PP_BENCH_OBJECT` and `PP_BENCH_EMPTY_OBJECT`, else the ones that `cargo xtask build-ebpf` made. `PP_BENCH_EXTRA_OBJECT` is a
//! build with one more hash and one more prefix lookup for unmarked callers: the limits must notice it. Exit code 0 if every limit holds, 1
//! if one is exceeded or the limits let that build pass, 2 if measuring was not possible. Needs root.
#![forbid(unsafe_code)]

mod calls;
mod control;
mod hooks;
mod limits;
mod measure;
mod place;
mod report;
mod rows;
mod stats;
mod tables;

use std::env;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use pp_agent::os::host::kernel_release;

use hooks::Hooks;
use measure::{Bench, ROUNDS};
use place::Place;
use report::{LEGEND, Line, Report, head, markdown};
use rows::Row;

/// Measure what the hooks cost
#[derive(Debug, Parser)]
#[command(name = "pp-bench")]
struct Options {
    /// Rounds of each row; rows with a limit take more where the machine is not quiet
    #[arg(long, default_value_t = ROUNDS)]
    rounds: usize,
    /// Only rows whose call, hooks or caller contain this
    #[arg(long, default_value = "")]
    only: String,
    /// Only rows that have a limit
    #[arg(long)]
    limits: bool,
    /// Measure although programs of others hang at the hooks: the empty ones then seem to cost less than they do
    #[arg(long)]
    beside_others: bool,
    /// Measure how soon an operator is answered beside slow and idle callers, instead of the hooks
    #[arg(long, conflicts_with_all = ["only", "limits", "beside_others"])]
    control: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Print nothing but the table, in Markdown
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
}

impl Options {
    /// Nothing but the result is printed, at the end.
    fn is_quiet(&self) -> bool {
        self.json || self.markdown
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.control {
        return control::bench(options.json);
    }
    match bench(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pp-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn bench(options: &Options) -> Result<bool> {
    ensure!(options.rounds >= 11, "--rounds {}: medians and quartiles need 11 at least", options.rounds);
    let object = object("PP_BENCH_OBJECT", "pp-ebpf");
    let extra = env::var_os("PP_BENCH_EXTRA_OBJECT").map(PathBuf::from);
    let others = if options.beside_others { hooks::loaded() } else { 0 };
    let mut rows = rows::all();
    rows.retain(|row| [row.call, row.hooks, row.caller.name()].iter().any(|text| text.contains(&options.only)));
    rows.retain(|row| row.limit.is_some() || !options.limits);
    ensure!(!rows.is_empty(), "--only {}: no row contains that", options.only);

    let place = Place::enter()?;
    let mut bench = Bench {
        cgroup: place.open_cgroup()?,
        place: &place,
        empty: Hooks::empty(&self::object("PP_BENCH_EMPTY_OBJECT", "pp-ebpf-bench-empty"))?,
        gate: gate(&object)?,
        rounds: options.rounds,
        others,
    };
    let lines = table(&mut bench, &rows, options.is_quiet())?;
    let mut with_extra = Vec::new();
    if let Some(extra) = extra {
        say(options.is_quiet(), "\nthe limits, tried on a build with one more hash and one more prefix lookup for unmarked callers:")?;
        rows.retain(|row| row.limit.is_some());
        bench.gate = gate(&extra)?;
        with_extra = table(&mut bench, &rows, options.is_quiet())?;
    }
    drop(bench);
    drop(place);
    let report = Report { kernel: kernel_release(), object: object.display().to_string(), others, lines, with_extra };
    conclude(&report, options)?;
    Ok(report.passes())
}

/// A build of the gate, with its tables in force.
fn gate(object: &Path) -> Result<Hooks> {
    let mut gate = Hooks::of_gate(object)?;
    tables::publish(&mut gate.ebpf)?;
    Ok(gate)
}

/// Measures the rows and shows each as soon as it is known.
fn table(bench: &mut Bench<'_>, rows: &[Row], is_quiet: bool) -> Result<Vec<Line>> {
    say(is_quiet, &head())?;
    let mut lines = Vec::new();
    for row in rows {
        let cost = bench.measure(row).with_context(|| format!("{} at {}, {}", row.call, row.hooks, row.caller.name()))?;
        let line = Line::new(row, &cost);
        say(is_quiet, &line.to_string())?;
        lines.push(line);
    }
    Ok(lines)
}

fn conclude(report: &Report, options: &Options) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, report)?;
        return Ok(writeln!(out)?);
    }
    if options.markdown {
        return Ok(write!(out, "{}", markdown(&report.lines))?);
    }
    let exceeded = report.lines.iter().filter(|line| line.exceeds()).count();
    writeln!(out, "\n{LEGEND}\nkernel {}, {}", report.kernel, report.object)?;
    if exceeded > 0 {
        writeln!(out, "{exceeded} limits EXCEEDED")?;
    } else {
        writeln!(out, "every limit holds")?;
    }
    if !report.limits_bite() {
        writeln!(out, "the build that does too much was NOT noticed: the limits prove nothing on this machine now")?;
    }
    Ok(())
}

/// A line of the table, unless nothing but the result is printed.
fn say(is_quiet: bool, line: &str) -> Result<()> {
    if !is_quiet {
        writeln!(std::io::stdout().lock(), "{line}")?;
    }
    Ok(())
}

fn object(variable: &str, name: &str) -> PathBuf {
    env::var_os(variable).map_or_else(|| pp_tests::paths::repository().join("target/pp-cache/ebpf").join(name), PathBuf::from)
}
