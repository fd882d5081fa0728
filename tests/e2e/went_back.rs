//! A state that went back: an earlier copy of `state.redb`, or none, revives nothing that was revoked. It opens nothing and takes no receipt until an
//! operator accepts it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::forge::{self, Draft};
use pp_tests::harness::{By, Refusal};
use pp_tests::lab::{PLC, PLC_V6};
use pp_tests::policy::{AGENT, Policy};
use serde_json::Value;

use crate::golden::another_user;
use crate::receipts::plc;
use crate::world::{World, tests};

tests![
    earlier_copy_of_state_revives_no_receipt_in_the_same_boot,
    earlier_copy_of_state_revives_no_receipt_after_a_boot,
    state_that_was_removed_takes_no_revoked_receipt,
    earlier_copy_while_the_state_was_broken_revives_no_receipt,
];

/// What a daemon had before a receipt was revoked, and afterwards.
struct Gone {
    daemon: Daemon,
    earlier: Vec<u8>,
    newest: Vec<u8>,
    revoked: [Value; 2],
}

/// A draft for the PLC by IPv6.
fn plc_v6() -> Draft {
    Draft::opening(&format!("{}/128", PLC_V6.ip()), "tcp", PLC_V6.port())
}

fn state_file(daemon: &Daemon) -> PathBuf {
    daemon.path("state/state.redb")
}

fn targets(daemon: &Daemon) -> [attack::Attempt; 2] {
    [attack::tcp(daemon.lab(), PLC), attack::tcp(daemon.lab(), PLC_V6)]
}

fn all(daemon: &Daemon, wanted: &Answer) -> Result<()> {
    for attempt in targets(daemon) {
        let answer = By::LAB_AGENT.attempt(daemon, &attempt)?;
        ensure!(answer == *wanted, "{}: {answer:?}", attempt.target);
    }
    Ok(())
}

/// Refused for this reason, with its event and nothing at the far end; an ordinary program arrives.
fn refused(daemon: &Daemon, reason: &'static str) -> Result<()> {
    for attempt in targets(daemon) {
        let refusal = Refusal::of(attempt, By::LAB_AGENT).with_control(By::Program("lab-shim"));
        let _event = refusal.for_reason(reason).assert(daemon).with_context(|| format!("not {reason}; the daemon:\n{}", daemon.log()))?;
    }
    Ok(())
}

/// A daemon with two receipts that opened their targets and were revoked, stopped. Control: its own state starts well and revives nothing.
fn gone(world: &mut World) -> Result<Gone> {
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    let revoked = [plc().sign(daemon.operator()), plc_v6().sign(daemon.operator())];
    for receipt in &revoked {
        let _answer = daemon.register(receipt)?;
    }
    all(&daemon, &Answer::Delivered)?;
    daemon.stop()?;
    let earlier = fs::read(state_file(&daemon))?;
    daemon.spawn()?;
    all(&daemon, &Answer::Delivered)?;
    for receipt in &revoked {
        let _revoked = daemon.cli(&["receipt", "revoke", &forge::id(receipt), "--reason", "work is done"])?.success()?;
    }
    refused(&daemon, "receipt_revoked")?;
    daemon.stop()?;
    daemon.spawn()?;
    refused(&daemon, "receipt_revoked").context("control: its own state")?;
    let status = daemon.cli(&["status"])?;
    ensure!(status.code() == 0, "control: its own state: {status}");
    daemon.stop()?;
    // Not before the control run, which may change it too.
    let newest = fs::read(state_file(&daemon))?;
    Ok(Gone { daemon, earlier, newest, revoked })
}

/// Nothing is open and nothing can be registered, and status, event and exit codes say why and what to do.
fn opens_nothing_and_says_so(daemon: &Daemon, said: &str) -> Result<()> {
    refused(daemon, "no_receipt")?;
    let status = daemon.cli(&["status"])?;
    ensure!(status.code() == 2 && status.stdout.contains("the state went back") && status.stdout.contains(said), "{said}: {status}");
    ensure!(status.stdout.contains("pp-agent receipt accept-state"), "{status}");
    let events = daemon.client()?.get("/v1/events?kind=posture&limit=50")?.body.to_string();
    ensure!(events.contains("state_went_back") && events.contains("the state went back"), "no event: {events}");
    let answer = daemon.client()?.post("/v1/receipts", &plc().sign(daemon.operator()))?;
    ensure!(answer.status == 503 && answer.body["error"]["code"] == "state_unavailable", "{}", answer.body);
    Ok(())
}

/// Neither an agent nor an ordinary user accepts it.
fn is_accepted_by_operators_alone(daemon: &Daemon) -> Result<()> {
    let words = daemon.cli_words(&["receipt", "accept-state", "--reason", "it will do"]);
    for by in [By::run(AGENT), another_user(daemon)] {
        let output = by.run_words(daemon, &words)?;
        ensure!(output.code() == 2 && output.stderr.contains("this call"), "{by:?} accepted a state: {output}");
    }
    let output = daemon.cli(&["receipt", "accept-state", "--reason", " "])?;
    ensure!(output.code() == 2 && output.stderr.contains("reason"), "without a reason: {output}");
    refused(daemon, "no_receipt")
}

/// An operator accepts it: what is revoked stays revoked, and new receipts open their targets.
fn accepted(daemon: &mut Daemon, gone: &[Value; 2]) -> Result<()> {
    let output = daemon.cli(&["receipt", "accept-state", "--reason", "restored from the backup of Sunday"])?.success()?;
    ensure!(output.stdout.contains("the state is accepted"), "{output}");
    let events = daemon.client()?.get("/v1/events?kind=posture&limit=50")?.body.to_string();
    ensure!(events.contains("state_accepted") && events.contains("restored from the backup of Sunday"), "no event: {events}");
    for receipt in gone {
        let answer = daemon.client()?.post("/v1/receipts", receipt)?;
        ensure!(answer.body["status"] == "revoked" || answer.status == 409, "{}", answer.body);
    }
    all(daemon, &Answer::Refused(libc::EPERM))?;
    for receipt in [plc().sign(daemon.operator()), plc_v6().sign(daemon.operator())] {
        let _answer = daemon.register(&receipt)?;
    }
    all(daemon, &Answer::Delivered)?;
    let status = daemon.cli(&["status"])?;
    ensure!(status.code() == 0, "{status}");
    let again = daemon.cli(&["receipt", "accept-state", "--reason", "twice"])?;
    ensure!(again.code() == 2 && again.stderr.contains("nothing to accept"), "{again}");
    daemon.stop()?;
    daemon.spawn()?;
    all(daemon, &Answer::Delivered).context("after a restart")
}

fn earlier_copy_of_state_revives_no_receipt_in_the_same_boot(world: &mut World) -> Result<()> {
    let Gone { mut daemon, earlier, revoked, .. } = gone(world)?;
    fs::write(state_file(&daemon), &earlier)?;
    daemon.spawn()?;
    opens_nothing_and_says_so(&daemon, "the kernel knows of")?;
    is_accepted_by_operators_alone(&daemon)?;
    // Neither a reload nor another start loads them, nor revocations that make it look newer.
    let _reloaded = daemon.cli(&["policy", "reload"])?.success()?;
    for number in 0..6 {
        let _revoked = daemon.cli(&["receipt", "revoke", &format!("unknown-{number}")])?.success()?;
    }
    refused(&daemon, "no_receipt")?;
    daemon.crash()?;
    daemon.spawn()?;
    opens_nothing_and_says_so(&daemon, "the kernel knows of")?;
    accepted(&mut daemon, &revoked)
}

fn earlier_copy_of_state_revives_no_receipt_after_a_boot(world: &mut World) -> Result<()> {
    let Gone { mut daemon, earlier, revoked, newest } = gone(world)?;
    let boot = |daemon: &Daemon| fs::remove_dir_all(daemon.bpffs()).with_context(|| daemon.bpffs().display().to_string());
    boot(&daemon)?;
    fs::write(state_file(&daemon), &earlier)?;
    daemon.spawn()?;
    opens_nothing_and_says_so(&daemon, "the event store knows of")?;
    // Put back, it is the newest again.
    daemon.stop()?;
    fs::write(state_file(&daemon), &newest)?;
    boot(&daemon)?;
    daemon.spawn()?;
    refused(&daemon, "receipt_revoked")?;
    let status = daemon.cli(&["status"])?;
    ensure!(status.code() == 0, "{status}");
    daemon.stop()?;
    fs::write(state_file(&daemon), &earlier)?;
    boot(&daemon)?;
    daemon.spawn()?;
    opens_nothing_and_says_so(&daemon, "the event store knows of")?;
    accepted(&mut daemon, &revoked)
}

fn state_that_was_removed_takes_no_revoked_receipt(world: &mut World) -> Result<()> {
    let Gone { mut daemon, revoked, .. } = gone(world)?;
    fs::remove_file(state_file(&daemon))?;
    daemon.spawn()?;
    opens_nothing_and_says_so(&daemon, "state.redb has 0 changes")?;
    for receipt in &revoked {
        let answer = daemon.client()?.post("/v1/receipts", receipt)?;
        ensure!(answer.status == 503, "{}", answer.body);
    }
    all(&daemon, &Answer::Refused(libc::EPERM))?;
    accepted(&mut daemon, &revoked)
}

/// Restored by somebody while the daemon runs.
fn earlier_copy_while_the_state_was_broken_revives_no_receipt(world: &mut World) -> Result<()> {
    let Gone { mut daemon, earlier, revoked, .. } = gone(world)?;
    fs::write(state_file(&daemon), "")?;
    daemon.spawn()?;
    refused(&daemon, "no_receipt")?;
    fs::write(state_file(&daemon), &earlier)?;
    pp_tests::wait::until_every(
        std::time::Duration::from_secs(1),
        "the state to be read again",
        std::time::Duration::from_secs(100),
        || {
            let events = daemon.client().ok()?.get("/v1/events?kind=posture&limit=50").ok()?.body.to_string();
            events.contains("state_restored").then_some(())
        },
    )?;
    opens_nothing_and_says_so(&daemon, "the kernel knows of")?;
    accepted(&mut daemon, &revoked)
}
