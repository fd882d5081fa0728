//! What the kernel programs say in the daemon's log: that a table has no room, and at debug each attempt that they block.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use nix::sys::signal::Signal;
use pp_common::abi::{CONTROL_LOG, Control, MAX_REPEATS};
use pp_common::maps::{AYA_LOGS, CONTROL, Map};
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::harness::{By, Refusal};
use pp_tests::lab::{PLC, Place};
use pp_tests::policy::Policy;
use pp_tests::{run, wait};

use crate::world::{World, tests};

tests![
    full_table_is_in_the_log_once_a_second,
    each_blocked_attempt_is_in_the_log_while_the_daemon_logs_at_debug,
    lines_are_read_from_the_map_of_the_attached_programs_though_its_pin_was_removed,
    bytes_that_are_no_line_are_skipped_and_a_few_in_a_row_end_the_reading,
];

const NOBODY: By = By::Program("lab-shim");
/// The first pair of a storm; every pair is in the zone.
const FIRST_PAIR: &str = "10.20.64.0:7000";
/// Pairs beyond what the table of repeats has room for, and the last of so many.
const BEYOND: u32 = 500;
const LAST_PAIR: &str = "10.20.65.243";

const REPEATS_FULL: &str = "no room in REPEATS";

/// The lines of the log that have this text.
fn lines(daemon: &Daemon, text: &str) -> Vec<String> {
    daemon.log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}

/// Tries so many pairs once each. The daemon stands still meanwhile, so that it takes none out of the table.
fn try_pairs(daemon: &Daemon, count: u32) -> Result<()> {
    let words = attack::workload(daemon.lab(), &["storm", "pairs", FIRST_PAIR, "--count", &count.to_string()], PLC).words;
    daemon.signal(Signal::SIGSTOP)?;
    let output = By::LAB_AGENT.run_words(daemon, &words);
    daemon.signal(Signal::SIGCONT)?;
    let answers = output?.success()?.json()?["answers"].clone();
    ensure!(answers[libc::EPERM.to_string()] == count, "answers by error number: {answers}");
    Ok(())
}

fn full_table_is_in_the_log_once_a_second(world: &mut World) -> Result<()> {
    let daemon = world.own(&Policy::standard(world.lab()))?;
    try_pairs(&daemon, BEYOND)?;
    let _event = daemon.events().wait_since(0, "the last pair that has room", |event| event["destination"]["address"] == LAST_PAIR)?;
    ensure!(lines(&daemon, REPEATS_FULL).is_empty(), "there was room:\n{}", daemon.log());

    let begun = Instant::now();
    try_pairs(&daemon, MAX_REPEATS + BEYOND)?;
    wait::until_true("the line about the full table", run::PATIENCE, || !lines(&daemon, REPEATS_FULL).is_empty())
        .with_context(|| daemon.log())?;
    Refusal::of(attack::tcp(daemon.lab(), PLC), By::LAB_AGENT).with_control(NOBODY).assert(&daemon).map(drop)?;
    let found = lines(&daemon, REPEATS_FULL);
    let most = usize::try_from(begun.elapsed().as_secs())? + 1;
    ensure!(found.len() <= most, "more than {most} lines for {BEYOND} attempts: {found:?}");
    ensure!(found.iter().all(|line| line.contains("WARN pp_")), "{found:?}");
    Ok(())
}

/// A daemon that logs at debug, of the test's own.
fn at_debug(world: &mut World) -> Result<Daemon> {
    let mut daemon = world.prepared(&Policy::standard(world.lab()))?;
    daemon.set_log_level(Some("debug"));
    daemon.spawn()?;
    Ok(daemon)
}

/// Where a map of the daemon is pinned.
fn pin(daemon: &Daemon, map: &Map) -> PathBuf {
    daemon.bpffs().join(format!("maps/{}@{}", map.name, map.layout))
}

/// Whether the programs write a line for each attempt that they block.
fn asked_for_lines(daemon: &Daemon) -> Result<bool> {
    let control = aya::maps::MapData::from_pin(pin(daemon, &CONTROL))?;
    let control: aya::maps::Array<_, Control> = aya::maps::Map::Array(control).try_into()?;
    Ok(control.get(&0, 0)?.flags & CONTROL_LOG != 0)
}

/// The agent's attempt is refused.
fn is_refused(daemon: &Daemon) -> Result<()> {
    let answer = By::LAB_AGENT.attempt(daemon, &attack::tcp(daemon.lab(), PLC))?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{answer:?}");
    Ok(())
}

/// Waits until the log has so many lines about refused attempts, and returns them.
fn blocked_lines(daemon: &Daemon, count: usize) -> Result<Vec<String>> {
    let line = format!("blocked: ::ffff:{} port {}, transport 6, of session ", PLC.ip(), PLC.port());
    wait::until("a line for each attempt", run::PATIENCE, || Some(lines(daemon, &line)).filter(|found| found.len() == count))
        .with_context(|| daemon.log())
}

fn each_blocked_attempt_is_in_the_log_while_the_daemon_logs_at_debug(world: &mut World) -> Result<()> {
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    is_refused(&daemon)?;
    ensure!(!asked_for_lines(&daemon)?, "the programs write lines");
    daemon.stop()?;
    daemon.set_log_level(Some("debug"));
    // Two daemons of one build: the second finds the programs that the first attached, and the map that they write to.
    for times in 1..=2 {
        daemon.spawn()?;
        ensure!(asked_for_lines(&daemon)?, "the programs write no lines");
        is_refused(&daemon)?;
        is_refused(&daemon)?;
        let answer = NOBODY.attempt(&daemon, &attack::tcp(daemon.lab(), PLC))?;
        ensure!(answer == Answer::Delivered, "the control: {answer:?}");
        let found = blocked_lines(&daemon, 2 * times)?;
        ensure!(found.iter().all(|line| line.contains("DEBUG pp_") && line.ends_with("with reason no_receipt")), "{found:?}");
        daemon.stop()?;
        // The next daemon would find lines of now.
        ensure!(!asked_for_lines(&daemon)?, "the programs write lines that nobody reads");
        is_refused(&daemon)?;
    }
    daemon.set_log_level(None);
    daemon.spawn()?;
    is_refused(&daemon)?;
    ensure!(!asked_for_lines(&daemon)?, "the programs write lines");
    daemon.stop()?;
    ensure!(lines(&daemon, "blocked: ").len() == 4, "lines that nobody asked for:\n{}", daemon.log());
    Ok(())
}

fn lines_are_read_from_the_map_of_the_attached_programs_though_its_pin_was_removed(world: &mut World) -> Result<()> {
    let mut daemon = at_debug(world)?;
    daemon.stop()?;
    fs::remove_file(pin(&daemon, &AYA_LOGS))?;
    // The first start pins another map, which the second finds.
    for times in 1..=2 {
        daemon.spawn()?;
        is_refused(&daemon)?;
        let _found = blocked_lines(&daemon, times)?;
        daemon.stop()?;
    }
    ensure!(lines(&daemon, "are not logged").is_empty(), "{}", daemon.log());
    Ok(())
}

fn bytes_that_are_no_line_are_skipped_and_a_few_in_a_row_end_the_reading(world: &mut World) -> Result<()> {
    const SKIPPED: &str = "AYA_LOGS: a line cannot be read";
    const ENDED: &str = "AYA_LOGS: 5 lines in a row cannot be read; lines of the kernel programs are not logged any more";
    let mut daemon = at_debug(world)?;
    let buffer = pin(&daemon, &AYA_LOGS).display().to_string();
    let spoil = |daemon: &Daemon, times: &str| -> Result<()> {
        let words = attack::workload(daemon.lab(), &["spoil-log", &buffer, times], PLC).words;
        run::run(&mut daemon.lab().command(Place::Engineering, &words))?.success().map(drop)
    };
    spoil(&daemon, "1")?;
    is_refused(&daemon)?;
    let _found = blocked_lines(&daemon, 1)?;
    ensure!(lines(&daemon, SKIPPED).len() == 1 && lines(&daemon, ENDED).is_empty(), "{}", daemon.log());

    spoil(&daemon, "8")?;
    wait::until_true("the end of the reading", run::PATIENCE, || !lines(&daemon, ENDED).is_empty()).with_context(|| daemon.log())?;
    is_refused(&daemon)?;
    daemon.stop()?;
    ensure!(lines(&daemon, ENDED).len() == 1 && lines(&daemon, "blocked: ").len() == 1, "{}", daemon.log());

    // The next daemon reads what this one left, and goes on.
    daemon.spawn()?;
    let _found = blocked_lines(&daemon, 2)?;
    Ok(())
}
