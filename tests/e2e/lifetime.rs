//! The life of the daemon: killed, stopped, restarted, upgraded, it never leaves a moment in which a protected connection goes through.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::forge;
use pp_tests::harness::{By, Quiet, is_block};
use pp_tests::lab::{PLC, PLC_NEIGHBOUR, Place};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run;
use pp_tests::wait;
use serde_json::{Value, json};

use crate::behaviour::reach;
use crate::receipts::plc;
use crate::soak::told_lost;
use crate::world::{World, skip, tests};

tests![
    killing_the_daemon_in_a_connect_loop_opens_nothing,
    stopping_the_daemon_leaves_enforcement_on,
    daemon_that_was_killed_is_told_of_and_one_that_was_stopped_is_not,
    receipt_expires_while_the_daemon_is_down,
    budget_is_counted_once_across_restarts,
    budget_whose_count_is_lost_is_over,
    receipts_revocations_and_event_ids_survive_a_restart,
    what_a_killed_daemon_had_not_stored_is_told,
    bad_policy_at_start_leaves_the_last_good_one_in_force,
    upgrade_to_another_abi_opens_nothing,
    upgrade_from_a_build_without_the_map_of_pids_opens_nothing,
    agents_that_start_during_an_upgrade_are_agents,
    start_without_a_map_of_the_attached_programs_is_refused,
    uninstalled_hooks_refuse_nothing,
];

/// How often an agent tries while a test waits for its refusal.
const ATTEMPTS: Duration = Duration::from_millis(200);

/// The agent is refused and nothing arrives; no event is asked for, since the daemon may be down.
fn silently_refused(daemon: &Daemon) -> Result<()> {
    let attempt = attack::tcp(daemon.lab(), PLC);
    let control = By::Program("lab-shim").attempt(daemon, &attempt)?;
    ensure!(control == Answer::Delivered, "control run: {control:?}");
    let quiet = Quiet::begin(daemon.lab())?;
    let answer = By::LAB_AGENT.attempt(daemon, &attempt)?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{answer:?}");
    quiet.assert_nothing_at(PLC)
}

/// Runs `change` while an agent connects as fast as it can, and checks that not one attempt got through.
fn not_one_gets_through(daemon: &mut Daemon, change: impl FnOnce(&mut Daemon) -> Result<()>) -> Result<()> {
    let control = attack::workload(daemon.lab(), &["spin", &PLC.to_string(), "--for-ms", "100"], PLC);
    let connected = By::Program("lab-shim").run_words(daemon, &control.words)?.json()?["answers"]["0"].as_u64().unwrap_or(0);
    ensure!(connected > 0, "control run: the loop never connected");
    let quiet = Quiet::begin(daemon.lab())?;
    let enough = daemon.path(&format!("enough-{}", daemon.pid()?));
    let until = enough.display().to_string();
    let spin = attack::workload(daemon.lab(), &["spin", &PLC.to_string(), "--for-ms", "50000", "--until", &until], PLC);
    let mark = daemon.events().mark();
    let running = By::LAB_AGENT.start_words(daemon, &spin.words)?;
    let _spinning = daemon.events().wait_since(mark, "the loop's first refusal", |event| is_block(event, PLC))?;
    change(daemon)?;
    fs::write(&enough, "")?;
    let answers = running.finish(run::PATIENCE)?.success()?.json()?["answers"].clone();
    let refused = answers[libc::EPERM.to_string()].as_u64().unwrap_or(0);
    ensure!(answers.as_object().is_some_and(|answers| answers.len() == 1) && refused > 100, "answers by error number: {answers}");
    quiet.assert_nothing_at(PLC)
}

/// The last refusals and allowances, for a message.
fn recent(daemon: &Daemon) -> String {
    let told = daemon.events().all();
    let verdicts = told.iter().filter(|event| event["kind"] == "verdict").rev().take(3);
    verdicts.map(|event| format!("{} for {}", event["verdict"], event["reason"])).collect::<Vec<_>>().join(", then before it ")
}

fn own(world: &mut World) -> Result<Daemon> {
    let policy = Policy::standard(world.lab());
    world.own(&policy)
}

fn killing_the_daemon_in_a_connect_loop_opens_nothing(world: &mut World) -> Result<()> {
    let rounds = if world.soak { 20 } else { 3 };
    let mut daemon = own(world)?;
    for _ in 0..rounds {
        not_one_gets_through(&mut daemon, |daemon| {
            daemon.crash()?;
            daemon.spawn()
        })?;
    }
    Ok(())
}

fn stopping_the_daemon_leaves_enforcement_on(world: &mut World) -> Result<()> {
    let mut daemon = own(world)?;
    daemon.stop()?;
    silently_refused(&daemon)?;
    ensure!(daemon.log().contains("uninstall-hooks"), "the log does not say how to end enforcement:\n{}", daemon.log());
    daemon.spawn()?;
    silently_refused(&daemon)
}

fn daemon_that_was_killed_is_told_of_and_one_that_was_stopped_is_not(world: &mut World) -> Result<()> {
    let mut daemon = own(world)?;
    let is_start =
        |event: &Value| event["kind"] == "policy" && event["detail"].as_str().is_some_and(|detail| detail.starts_with("daemon started"));
    let is_told = |event: &Value| event["kind"] == "posture" && event["reason"] == "daemon_killed";
    // Control: one that ends by itself.
    let mark = daemon.events().mark();
    daemon.stop()?;
    daemon.spawn()?;
    let _started = daemon.events().wait_since(mark, "the start", is_start)?;
    ensure!(!daemon.events().since(mark).iter().any(is_told), "a daemon that was stopped is told of as killed");
    daemon.crash()?;
    daemon.spawn()?;
    let told = daemon.events().wait_since(mark, "the killed daemon", is_told)?;
    ensure!(told["detail"].as_str().is_some_and(|detail| detail.contains("stayed in force")), "{told}");
    Ok(())
}

fn receipt_expires_while_the_daemon_is_down(world: &mut World) -> Result<()> {
    let mut daemon = own(world)?;
    let attempt = attack::tcp(daemon.lab(), PLC);
    let _answer = daemon.register(&plc().parameter("accessSeconds", json!(5)).sign(daemon.operator()))?;
    ensure!(By::LAB_AGENT.attempt(&daemon, &attempt)? == Answer::Delivered, "the receipt opens nothing");
    daemon.crash()?;
    wait::until_every(ATTEMPTS, "the receipt's end with the daemon down", wait::SOON, || {
        By::LAB_AGENT.attempt(&daemon, &attempt).ok().filter(|answer| *answer == Answer::Refused(libc::EPERM))
    })?;
    silently_refused(&daemon)?;
    daemon.spawn()?;
    let mark = daemon.events().mark();
    silently_refused(&daemon)?;
    let event = daemon.events().wait_since(mark, "the refusal's event", |event| is_block(event, PLC))?;
    ensure!(event["reason"] == "receipt_expired", "{event}");
    Ok(())
}

fn budget_is_counted_once_across_restarts(world: &mut World) -> Result<()> {
    let mut daemon = own(world)?;
    let attempt = attack::tcp(daemon.lab(), PLC);
    let connects = |daemon: &Daemon, when: &str| -> Result<()> {
        let answer = By::LAB_AGENT.attempt(daemon, &attempt)?;
        ensure!(answer == Answer::Delivered, "{when}: {answer:?}\n{}", recent(daemon));
        Ok(())
    };
    let artifact = plc().parameter("maxConnections", json!(4)).sign(daemon.operator());
    let _answer = daemon.register(&artifact)?;
    connects(&daemon, "before")?;
    daemon.crash()?;
    connects(&daemon, "with the daemon down")?;
    daemon.spawn()?;
    connects(&daemon, "after the first restart")?;
    let _again = daemon.client()?.post("/v1/receipts", &artifact)?;
    daemon.stop()?;
    daemon.spawn()?;
    connects(&daemon, "after the second restart")?;
    let mark = daemon.events().mark();
    silently_refused(&daemon)?;
    let event = daemon.events().wait_since(mark, "the refusal's event", |event| is_block(event, PLC))?;
    ensure!(event["reason"] == "receipt_exhausted", "{event}");
    Ok(())
}

/// As after a power cut: the receipt is in the store, the maps with its count are gone.
fn budget_whose_count_is_lost_is_over(world: &mut World) -> Result<()> {
    let mut daemon = own(world)?;
    let attempt = attack::tcp(daemon.lab(), PLC);
    let _counted = daemon.register(&plc().parameter("maxConnections", json!(9)).sign(daemon.operator()))?;
    let unlimited = forge::Draft::opening("10.20.4.8/32", "tcp", 502).sign(daemon.operator());
    let _answer = daemon.register(&unlimited)?;
    ensure!(By::LAB_AGENT.attempt(&daemon, &attempt)? == Answer::Delivered, "the receipt opens nothing");
    daemon.crash()?;
    fs::remove_dir_all(daemon.bpffs())?;
    daemon.spawn()?;
    let mark = daemon.events().mark();
    silently_refused(&daemon)?;
    let event = daemon.events().wait_since(mark, "the refusal's event", |event| is_block(event, PLC))?;
    ensure!(event["reason"] == "receipt_exhausted", "{event}");
    let answer = By::LAB_AGENT.attempt(&daemon, &attack::tcp(daemon.lab(), PLC_NEIGHBOUR))?;
    ensure!(answer == Answer::Delivered, "a receipt without a budget was ended too: {answer:?}");
    Ok(())
}

fn receipts_revocations_and_event_ids_survive_a_restart(world: &mut World) -> Result<()> {
    let mut daemon = own(world)?;
    let kept = plc().sign(daemon.operator());
    let ended = forge::Draft::opening("10.20.4.8/32", "tcp", 502).sign(daemon.operator());
    for artifact in [&kept, &ended] {
        let _answer = daemon.register(artifact)?;
    }
    let _answer = daemon.client()?.delete(&format!("/v1/receipts/{}", forge::id(&ended)))?.ok()?;
    let before = daemon.client()?.get("/v1/events")?.body;
    let last = last_id(&before)?;
    daemon.stop()?;
    daemon.spawn()?;
    let stored = daemon.client()?.get("/v1/events")?.body;
    ensure!(ids(&stored).contains(&last), "stored events were lost: {last} is not in {:?}", ids(&stored));
    daemon.crash()?;
    daemon.spawn()?;
    let answer = By::LAB_AGENT.attempt(&daemon, &attack::tcp(daemon.lab(), PLC))?;
    ensure!(answer == Answer::Delivered, "the receipt was lost: {answer:?}");
    let answer = By::LAB_AGENT.attempt(&daemon, &attack::tcp(daemon.lab(), PLC_NEIGHBOUR))?;
    ensure!(answer == Answer::Refused(libc::EPERM), "the revocation was lost: {answer:?}");
    let _again = daemon.client()?.post("/v1/receipts", &ended)?;
    let answer = By::LAB_AGENT.attempt(&daemon, &attack::tcp(daemon.lab(), PLC_NEIGHBOUR))?;
    ensure!(answer == Answer::Refused(libc::EPERM), "registering a revoked receipt again opened it: {answer:?}");
    let after = daemon.client()?.get("/v1/events")?.body;
    ensure!(last_id(&after)? > last, "ids went back");
    Ok(())
}

/// The ids of an answer in NDJSON or in one array.
fn ids(body: &Value) -> Vec<u64> {
    let lines = body.as_str().unwrap_or_default().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let listed = body.as_array().cloned().unwrap_or_default();
    let alone = body.get("id").is_some().then(|| body.clone());
    lines.chain(listed).chain(alone).filter_map(|event| event["id"].as_u64()).collect()
}

fn last_id(body: &Value) -> Result<u64> {
    ids(body).into_iter().max().with_context(|| format!("no event has an id: {body}"))
}

fn what_a_killed_daemon_had_not_stored_is_told(world: &mut World) -> Result<()> {
    const REFUSED: u64 = 400;
    let mut daemon = own(world)?;
    // What was told in the last two seconds is not on the disk yet, unless it was written down just now: then once more.
    for host in 1..=5 {
        let host = format!("10.20.64.{host}");
        let is_refusal = |event: &Value| event["kind"] == "verdict" && event["destination"]["address"] == host.as_str();
        let before = lost_refusals(&stored(&daemon)?);
        let mark = daemon.events().mark();
        let words = reach(&daemon, "tcp", 1, &[&format!("{host}:1-{REFUSED}")])?;
        let answer = By::run(AGENT).run_words(&daemon, &words)?.json()?;
        ensure!(answer["refused"] == REFUSED, "{answer}");
        let told = |events: &[Value]| events.iter().filter(|event| is_refusal(event)).count() as u64;
        wait::until_true("every refusal's event", wait::SOON, || told(&daemon.events().since(mark)) == REFUSED)?;
        daemon.crash()?;
        daemon.spawn()?;
        let count = |daemon: &Daemon| -> Result<(u64, u64)> {
            let events = stored(daemon)?;
            Ok((told(&events), lost_refusals(&events) - before))
        };
        wait::until_true("its refusals, stored or counted", wait::SOON, || {
            count(&daemon).is_ok_and(|(stored, lost)| stored + lost >= REFUSED)
        })
        .with_context(|| format!("stored and lost: {:?}", count(&daemon)))?;
        let (stored, lost) = count(&daemon)?;
        ensure!(stored + lost == REFUSED, "{stored} stored, {lost} told as lost, {REFUSED} refused");
        if lost == 0 {
            continue;
        }
        // Told once: a clean restart afterwards has lost nothing.
        daemon.stop()?;
        daemon.spawn()?;
        let begun = std::time::Instant::now();
        wait::until_true("the time after which a loss would be told", wait::SOON, || begun.elapsed() > Duration::from_secs(4))?;
        let again = count(&daemon)?;
        ensure!(again == (stored, lost), "{again:?} after a clean restart, {stored} and {lost} before");
        return Ok(());
    }
    anyhow::bail!("five daemons that were killed had stored everything: nothing was shown")
}

/// How many refusals the events say were lost; of a session's begin and end they say so apart.
fn lost_refusals(events: &[Value]) -> u64 {
    let refusals: Vec<Value> = events.iter().filter(|event| event["verdict"] == "block").cloned().collect();
    told_lost(&refusals)
}

/// The events that are on the disk.
fn stored(daemon: &Daemon) -> Result<Vec<Value>> {
    let body = daemon.client()?.get("/v1/events")?.body;
    Ok(body.as_str().unwrap_or_default().lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn bad_policy_at_start_leaves_the_last_good_one_in_force(world: &mut World) -> Result<()> {
    let mut daemon = own(world)?;
    daemon.stop()?;
    fs::write(daemon.path("policy.toml"), "host = \"eng-ws-12\"\nzones = 3\n")?;
    daemon.spawn()?;
    silently_refused(&daemon)?;
    let status = daemon.client()?.status()?;
    ensure!(status.to_string().contains("degraded"), "the status does not say so: {status}");
    let output = daemon.cli(&["status"])?;
    ensure!(output.code() != 0, "{output}");
    Ok(())
}

/// A build with another ABI, installed beside the one under test.
fn next_build(daemon: &Daemon) -> Result<PathBuf> {
    let Some(next) = std::env::var_os("PP_AGENT_NEXT_BIN").map(PathBuf::from) else {
        return Err(skip("PP_AGENT_NEXT_BIN names no build with another ABI_VERSION"));
    };
    let installed = daemon.lab().directory().join("bin/pp-agent-next");
    fs::copy(&next, &installed).with_context(|| next.display().to_string())?;
    Ok(installed)
}

fn upgrade_to_another_abi_opens_nothing(world: &mut World) -> Result<()> {
    let mut daemon = own(world)?;
    let installed = next_build(&daemon)?;
    not_one_gets_through(&mut daemon, |daemon| {
        daemon.stop()?;
        daemon.set_binary(installed);
        daemon.spawn()
    })?;
    silently_refused(&daemon)
}

/// The sessions that run are older than the map by which hooks tell them from everybody else.
fn upgrade_from_a_build_without_the_map_of_pids_opens_nothing(world: &mut World) -> Result<()> {
    let mut daemon = own(world)?;
    let installed = next_build(&daemon)?;
    not_one_gets_through(&mut daemon, |daemon| {
        daemon.stop()?;
        fs::remove_file(daemon.bpffs().join("maps/PIDS@1"))?;
        daemon.set_binary(installed);
        daemon.spawn()
    })?;
    silently_refused(&daemon)
}

fn start_without_a_map_of_the_attached_programs_is_refused(world: &mut World) -> Result<()> {
    let mut daemon = own(world)?;
    silently_refused(&daemon)?;
    daemon.stop()?;
    fs::remove_file(daemon.bpffs().join("maps/TASKS@1"))?;
    let Err(error) = daemon.spawn() else { bail!("it started without the map of marks that the programs use") };
    let log = format!("{error:#}");
    ensure!(log.contains("maps/TASKS@1: gone") && log.contains("run pp-agent uninstall-hooks"), "it does not say what to do:\n{log}");
    silently_refused(&daemon)
}

fn agents_that_start_during_an_upgrade_are_agents(world: &mut World) -> Result<()> {
    /// Starts the command over and over until the file is there, ten answers at the least.
    const LOOP: &str = "enough=$1; shift; n=0; until [ -e \"$enough\" ] && [ $n -ge 10 ]; do \"$@\"; n=$((n+1)); done";
    let mut daemon = own(world)?;
    let installed = next_build(&daemon)?;
    silently_refused(&daemon)?;
    let enough = daemon.path("enough-starts");
    let mut words: Vec<String> = ["/bin/bash", "-c", LOOP, "loop"].map(str::to_owned).into();
    words.push(enough.display().to_string());
    words.extend(By::LAB_AGENT.words(&daemon, &attack::tcp(daemon.lab(), PLC).words));
    let quiet = Quiet::begin(daemon.lab())?;
    let running = By::Nobody.start_words(&daemon, &words)?;
    daemon.stop()?;
    daemon.set_binary(installed);
    daemon.spawn()?;
    fs::write(&enough, "")?;
    let output = running.finish(run::PATIENCE)?.stdout;
    let answers: Vec<Value> = output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    ensure!(answers.len() >= 10 && answers.iter().all(|answer| answer["errno"] == libc::EPERM), "answers: {output}");
    quiet.assert_nothing_at(PLC)
}

fn uninstalled_hooks_refuse_nothing(world: &mut World) -> Result<()> {
    let mut daemon = own(world)?;
    silently_refused(&daemon)?;
    let bpffs = daemon.bpffs().display().to_string();
    let uninstall = daemon.cli_words(&["uninstall-hooks", "--yes", "--bpffs", &bpffs]);
    let inside = By::run(AGENT).run_words(&daemon, &uninstall)?;
    ensure!(!inside.status.success(), "an agent removed the hooks: {inside}");
    silently_refused(&daemon)?;
    daemon.crash()?;
    silently_refused(&daemon)?;
    let inside = By::LAB_AGENT.run_words(&daemon, &uninstall)?;
    ensure!(!inside.status.success(), "an agent removed the hooks of a dead daemon: {inside}");
    let _removed = run::run(&mut daemon.lab().command(Place::Engineering, &uninstall))?.success()?;
    let attempt = attack::tcp(daemon.lab(), PLC);
    wait::until_true("connections after uninstall-hooks", wait::SOON, || {
        By::LAB_AGENT.attempt(&daemon, &attempt).is_ok_and(|answer| answer == Answer::Delivered)
    })
}
