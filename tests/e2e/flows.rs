//! Flows that are open when a receipt ends: they end with it, in both directions, and their program hears it at once.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::attack;
use pp_tests::forge::Draft;
use pp_tests::harness::By;
use pp_tests::lab::{Journal, Place, STREAM};
use pp_tests::policy::AGENT;
use pp_tests::run::{self, Running};
use serde_json::{Value, json};

use crate::receipts::{Registered, opening};
use crate::world::{World, tests};

tests![open_flow_ends_when_its_receipt_is_revoked, open_flow_ends_when_its_receipt_expires, flows_of_others_go_on];

/// How much later than the end of the receipt a byte may still be seen, in milliseconds.
const GRACE_MS: u64 = 1_000;

fn stream() -> Draft {
    opening(STREAM)
}

/// A flow that is held open.
struct Flow {
    near: Running,
    /// The address of the near end, and what the far end has told since before it was opened: an earlier flow may have had that address too.
    local: String,
    far: Journal,
}

fn hold(daemon: &Daemon, by: &By, for_ms: &str) -> Result<Flow> {
    let far = daemon.lab().servers().from_now();
    let command = attack::workload(daemon.lab(), &["hold", &STREAM.to_string(), "--for-ms", for_ms], STREAM);
    let mut near = Running::start(&mut daemon.lab().command(Place::Engineering, &by.words(daemon, &command.words)))?;
    let opened = near.line_with("connected")?;
    ensure!(opened["connected"] == true, "the flow was not opened: {opened}");
    let _flowing = near.line_with("flowing")?;
    let local = opened["local"].as_str().context("no local address")?.to_owned();
    Ok(Flow { near, local, far })
}

fn now_ms() -> Result<u64> {
    Ok(u64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis())?)
}

/// Checks both ends of a flow that had to end at that moment.
fn ended_in_time(flow: Flow, end_ms: u64) -> Result<()> {
    let Flow { near, local, far } = flow;
    let near = near.finish(run::PATIENCE)?.success()?.json()?;
    let at = |value: &Value| value.as_u64().unwrap_or(u64::MAX);
    ensure!(near["ended"] == true && near["errno"] == libc::ECONNABORTED, "the program did not hear ECONNABORTED: {near}");
    ensure!(at(&near["sent"]) > 0 && at(&near["received"]) > 0, "nothing flowed before: {near}");
    ensure!(
        at(&near["last_received_ms"]) <= end_ms + GRACE_MS,
        "a byte came in {} ms after the end",
        at(&near["last_received_ms"]) - end_ms
    );
    ensure!(at(&near["ended_ms"]) <= end_ms + GRACE_MS, "the program heard it {} ms after the end", at(&near["ended_ms"]) - end_ms);
    let far = far.wait_for("the far end's account", |line| line["event"] == "closed" && line["peer"] == local.as_str())?;
    ensure!(at(&far["last_ms"]) <= end_ms + GRACE_MS, "a byte arrived {} ms after the end", at(&far["last_ms"]) - end_ms);
    Ok(())
}

fn open_flow_ends_when_its_receipt_is_revoked(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let receipt = Registered::new(daemon, &stream())?;
    let flow = hold(daemon, &By::run(AGENT), "30000")?;
    let bytes = |direction: &str| flow.near.stdout().contains(direction);
    ensure!(!bytes("ended_ms"), "the flow ended by itself: {}", flow.near.stdout());
    let mark = daemon.events().mark();
    receipt.revoke()?;
    ended_in_time(flow, now_ms()?)?;
    let event = daemon.events().wait_since(mark, "the flow's event", |event| event["kind"] == "flow_ended")?;
    ensure!(event["receipt"] == receipt.id.as_str(), "{event}");
    Ok(())
}

fn open_flow_ends_when_its_receipt_expires(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let mark = daemon.events().mark();
    // Long enough for an emulated machine to start the program; its end is counted from the registration.
    let window = Duration::from_secs(6);
    let receipt = Registered::new(daemon, &stream().parameter("accessSeconds", json!(window.as_secs())))?;
    let end_ms = now_ms()? + u64::try_from(window.as_millis())?;
    let flow = hold(daemon, &By::run(AGENT), "30000")?;
    ended_in_time(flow, end_ms)?;
    let event = daemon.events().wait_since(mark, "the flow's event", |event| event["kind"] == "flow_ended")?;
    ensure!(event["receipt"] == receipt.id.as_str(), "{event}");
    Ok(())
}

fn flows_of_others_go_on(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let receipt = Registered::new(daemon, &stream())?;
    let theirs = hold(daemon, &By::Nobody, "3000")?;
    let agents = hold(daemon, &By::run(AGENT), "30000")?;
    receipt.revoke()?;
    ended_in_time(agents, now_ms()?)?;
    let near = theirs.near.finish(run::PATIENCE)?.success()?.json()?;
    ensure!(near["ended"] == false, "somebody else's flow to the same server ended too: {near}");
    Ok(())
}
