//! A flood of one session leaves what was decided and what others did, and no store is so full that `why` has much to read.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::forge;
use pp_tests::harness::{By, is_block};
use pp_tests::lab::{PLC, fresh_target, is_emulated};
use pp_tests::policy::{AGENT, OTHER_AGENT, Policy};
use pp_tests::refused::{account, stored};
use pp_tests::run;
use pp_tests::wait;
use serde_json::Value;

use crate::accounts::settled;
use crate::receipts::opening;
use crate::world::{World, tests};

tests![
    flood_of_an_ordinary_users_agent_leaves_decisions_and_the_events_of_others,
    flood_of_refused_registrations_leaves_the_receipts,
    why_reads_few_events_however_many_are_stored,
];

/// The first pair of a flood; all are in the zone.
const FIRST: &str = "10.20.64.0:7000";
/// An ordinary user.
const USER: &str = "9";
/// More than the store has room for, told one by one.
const FLOOD: u64 = 300_000;
const EMULATED_FLOOD: u64 = 45_000;
/// Most events that a flood may have of its own: a thousand, ten a second, and summaries.
const ROWS: usize = 6_000;

/// An agent's session of an ordinary user.
fn session_of_a_user(daemon: &Daemon) -> By {
    let workload = daemon.lab().program("pp-workload").display().to_string();
    let mut words = vec![workload, "in".to_owned(), "--uid".to_owned(), USER.to_owned(), "--".to_owned()];
    words.extend(daemon.cli_words(&["run", "--agent", AGENT, "--"]));
    By::Words(words)
}

fn storm(daemon: &Daemon, count: u64, processes: u32) -> Vec<String> {
    let (count, processes) = (count.to_string(), processes.to_string());
    attack::workload(daemon.lab(), &["storm", "mixed", FIRST, "--count", &count, "--processes", &processes], PLC).words
}

/// What `pp-agent events` lists.
fn listed(daemon: &Daemon, filter: &[&str]) -> Result<Vec<Value>> {
    let output = daemon.cli(&[&["events", "--json"], filter].concat())?.success()?;
    output.stdout.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// A receipt that was registered and then revoked; its id.
fn decided(daemon: &Daemon) -> Result<String> {
    let artifact = opening(fresh_target()).sign(daemon.operator());
    let _registered = daemon.register(&artifact)?;
    let id = forge::id(&artifact);
    let _revoked = daemon.cli(&["receipt", "revoke", &id])?.success()?;
    Ok(id)
}

/// The registration and the revocation are listed, for whoever asks for all that is stored: without `--since` the newest 1,000 are.
fn decision_is_listed(daemon: &Daemon, id: &str) -> Result<()> {
    for kind in ["receipt", "revocation"] {
        let events = listed(daemon, &["--kind", kind, "--since", "0"])?;
        ensure!(events.iter().any(|event| event["receipt"] == id), "{kind} {id} is not among {} that are listed", events.len());
    }
    Ok(())
}

fn flood_of_an_ordinary_users_agent_leaves_decisions_and_the_events_of_others(world: &mut World) -> Result<()> {
    let daemon = world.own(&Policy::standard(world.lab()))?;
    let id = decided(&daemon)?;
    let mark = daemon.events().mark();
    let answer = By::run(OTHER_AGENT).attempt(&daemon, &attack::tcp(daemon.lab(), PLC))?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{answer:?}");
    let other = daemon.events().wait_since(mark, "the other session's refusal", |event| is_block(event, PLC))?;
    decision_is_listed(&daemon, &id)?;
    daemon.events().let_go();

    let before = account(&daemon.client()?)?;
    let count = if is_emulated() { EMULATED_FLOOD } else { FLOOD };
    let flood = session_of_a_user(&daemon).start_words(&daemon, &storm(&daemon, count, 8))?;
    let output = flood.finish(Duration::from_secs(1_500))?.success()?.json()?;
    ensure!(output["refused"] == count, "of {count} attempts: {output}");
    let after = settled(&daemon)?;
    ensure!(after.refused == before.refused + count, "{after:?}, before {before:?}");

    decision_is_listed(&daemon, &id)?;
    let session = other["session"].as_str().context("the other session")?;
    let events = listed(&daemon, &["--session", session, "--kind", "verdict"])?;
    ensure!(events.contains(&other), "{other} is not among {events:?}");
    let rows = listed(&daemon, &["--agent", AGENT, "--kind", "verdict", "--since", &other["id"].to_string()])?;
    let summaries = rows.iter().filter(|event| event.get("pid").is_none() && event.get("destination").is_none()).count();
    ensure!(rows.len() < ROWS && summaries > 0, "{} events for {count} refusals, {summaries} of them summaries", rows.len());
    // And none of it is missing.
    wait::until_every(Duration::from_secs(1), "all that was refused, in the store", run::PATIENCE, || {
        stored(&daemon.client().ok()?).ok().filter(|sums| sums.stored() == after.refused)
    })
    .map(drop)
}

fn flood_of_refused_registrations_leaves_the_receipts(world: &mut World) -> Result<()> {
    let daemon = world.own(&Policy::standard(world.lab()))?;
    let id = decided(&daemon)?;
    daemon.events().let_go();
    let client = daemon.client()?;
    let count = if is_emulated() { 1_500 } else { 6_000 };
    let begun = Instant::now();
    for _ in 0..count {
        let answer = client.post_bytes("/v1/receipts", b"{}".to_vec())?;
        ensure!((400..500).contains(&answer.status), "{} {}", answer.status, answer.body);
    }
    // At once, then ten a second and a summary now and then.
    let most = 1_000 + usize::try_from(begun.elapsed().as_secs())? * 11 + 20;
    decision_is_listed(&daemon, &id)?;
    let refused = listed(&daemon, &["--kind", "receipt", "--limit", "10000"])?;
    let refused =
        refused.iter().filter(|event| event["detail"].as_str().is_some_and(|detail| detail.starts_with("not registered"))).count();
    ensure!((1_000..=most).contains(&refused), "{refused} events for {count} refused registrations, {most} at most");
    Ok(())
}

/// How many stored events each call of `why` read, from the daemon's log.
fn reads(daemon: &Daemon) -> Vec<usize> {
    let log = daemon.log();
    let counts = log.lines().filter_map(|line| line.split_once("why: read ")?.1.split(' ').next()?.parse().ok());
    counts.collect()
}

fn why_reads_few_events_however_many_are_stored(world: &mut World) -> Result<()> {
    /// Most that the daemon reads for an answer.
    const MOST: usize = 1_000;
    /// Pairs of one session: each is told, since no session may tell more than a thousand at once and the kernel's buffer holds more.
    const PAIRS: u64 = 900;
    let sessions = if is_emulated() { 5 } else { 100 };
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    daemon.stop()?;
    daemon.set_log_level(Some("info,pp_agent::control::why=debug"));
    daemon.spawn()?;
    daemon.events().let_go();
    let client = daemon.client()?;
    let mut told = settled(&daemon)?.told;
    let pairs = attack::workload(daemon.lab(), &["storm", "pairs", FIRST, "--count", &PAIRS.to_string()], PLC).words;
    for session in 1..=sessions {
        let output = By::run(AGENT).run_words(&daemon, &pairs)?.json()?;
        ensure!(output["answers"][libc::EPERM.to_string()] == PAIRS, "{output}");
        // The next session waits until this one is told, so that none is only counted.
        told += PAIRS;
        wait::until_true(&format!("events of session {session}"), run::PATIENCE, || account(&client).is_ok_and(|now| now.told >= told))
            .with_context(|| format!("{:?}, {told} expected", account(&client)))?;
    }
    let told = stored(&client)?.told;
    ensure!(told >= sessions * PAIRS, "{told} events are stored of {sessions} sessions");

    let attempt = attack::tcp(daemon.lab(), PLC).words.join(" ");
    let why = daemon.cli_words(&["why", "--json"]).join(" ");
    let address = PLC.ip();
    // The event comes a moment after the refusal.
    let script = format!(
        "{attempt} > /dev/null; for _ in $(seq 200); do answer=$({why}); case \"$answer\" in *{address}*) echo \"$answer\"; exit 0;; esac; \
         sleep 0.05; done; exit 1"
    );
    let answer = By::run(OTHER_AGENT).run_words(&daemon, &["/bin/bash".to_owned(), "-c".to_owned(), script])?.success()?.json()?;
    let refusals = answer["refusals"].as_array().context("refusals")?;
    ensure!(refusals.len() == 1 && refusals[0]["destination"]["address"] == address.to_string(), "{answer}");
    let of_session = reads(&daemon);
    ensure!(of_session.iter().all(|read| *read <= 10) && of_session.last() == Some(&1), "events read: {of_session:?}");
    // Whoever may see all of them reads no more than that.
    let answer = daemon.cli(&["why", "--json"])?.success()?.json()?;
    ensure!(answer["refusals"].as_array().is_some_and(|refusals| refusals.len() == 10), "{answer}");
    let of_all = reads(&daemon).last().copied().unwrap_or(usize::MAX);
    ensure!((10..=MOST).contains(&of_all), "{of_all} events were read");
    Ok(())
}
