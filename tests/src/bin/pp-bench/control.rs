//! How soon an operator is answered beside callers who want to keep operators out: slow and idle connections of sessions and users.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pp_tests::agent::Daemon;
use pp_tests::forge::{self, Draft};
use pp_tests::harness::By;
use pp_tests::lab::{Lab, leave_the_network};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run::Running;
use serde::Serialize;

use crate::stats::Spread;

/// Most that an answer may take, milliseconds.
const LIMIT_MS: f64 = 100.0;
/// How often each is asked, with nobody else there and beside the crowd.
const CALLS: u32 = 100;
/// Uid of the user who calls; no session of the lab is theirs.
const USER: &str = "9";
/// A crowd looks that often for what was closed, and opens it anew.
const ANEW_MS: &str = "1000";

/// One call, asked again and again. All but the name: milliseconds.
#[derive(Debug, Serialize)]
struct Row {
    call: &'static str,
    beside: &'static str,
    median: f64,
    /// 99 of 100 were answered by then.
    late: f64,
    /// All were answered by then.
    last: f64,
}

impl Row {
    fn new(call: &'static str, beside: &'static str, mut took: Vec<f64>) -> Self {
        took.sort_by(f64::total_cmp);
        let last = took.last().copied().unwrap_or(f64::NAN);
        let late = took.iter().rev().nth(took.len() / 100).copied().unwrap_or(f64::NAN);
        Self { call, beside, median: Spread::of(took).median, late, last }
    }

    fn holds(&self) -> bool {
        self.late <= LIMIT_MS
    }
}

/// Measures, prints, and says whether the limit holds.
pub(crate) fn bench(json: bool) -> ExitCode {
    match rows(json) {
        Ok(rows) if rows.iter().all(Row::holds) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pp-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn rows(json: bool) -> Result<Vec<Row>> {
    let _outside = leave_the_network()?;
    let lab = Arc::new(Lab::start()?);
    let daemon = Daemon::start(&lab, &Policy::standard(&lab))?;
    let mut rows = measured(&daemon, "nobody")?;
    let as_user = By::Words([&lab.program("pp-workload").display().to_string(), "in", "--uid", USER, "--"].map(str::to_owned).to_vec());
    let mut crowds =
        [crowd(&daemon, &By::run(AGENT), 240, 0)?, crowd(&daemon, &By::run(AGENT), 0, 500)?, crowd(&daemon, &as_user, 16, 500)?];
    rows.extend(measured(&daemon, "256 slow, 1,000 idle")?);
    ensure!(crowds.iter_mut().all(Running::is_running), "a crowd has left: the operator was not beside it");
    drop(crowds);
    drop(daemon);
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &rows)?;
        writeln!(out)?;
        return Ok(rows);
    }
    writeln!(out, "| call | beside | median, ms | 99 of 100, ms | last, ms |\n| --- | --- | --- | --- | --- |")?;
    for row in &rows {
        let verdict = if row.holds() { "" } else { " EXCEEDED" };
        writeln!(out, "| {} | {} | {:.1} | {:.1}{verdict} | {:.1} |", row.call, row.beside, row.median, row.late, row.last)?;
    }
    Ok(rows)
}

fn crowd(daemon: &Daemon, by: &By, slow: u32, idle: u32) -> Result<Running> {
    let (program, socket) = (daemon.lab().program("pp-workload"), daemon.path("control.sock"));
    let (slow, idle) = (slow.to_string(), idle.to_string());
    let words =
        [&program.display().to_string(), "crowd", &socket.display().to_string(), "--slow", &slow, "--idle", &idle, "--every-ms", ANEW_MS];
    let mut running = by.start_words(daemon, &words.map(str::to_owned))?;
    let _ready = running.line_with("ready")?;
    Ok(running)
}

fn measured(daemon: &Daemon, beside: &'static str) -> Result<Vec<Row>> {
    let client = daemon.client()?;
    let (mut status, mut revoke) = (Vec::new(), Vec::new());
    for call in 0..CALLS {
        status.push(timed(|| client.status().map(drop))?);
        // One of its own each time, since a revocation is kept and ends flows only once.
        let artifact = Draft::opening(&format!("10.20.77.{}/32", call % 250 + 1), "tcp", 502).sign(daemon.operator());
        let _registered = daemon.register(&artifact)?;
        let path = format!("/v1/receipts/{}", forge::id(&artifact));
        revoke.push(timed(|| client.delete(&path)?.ok().map(drop))?);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(vec![Row::new("status", beside, status), Row::new("revoke", beside, revoke)])
}

fn timed(call: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    call()?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}
