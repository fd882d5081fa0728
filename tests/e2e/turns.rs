//! Guesses inside a connection: a flow to a gateway is cut after as many turns, or bytes, as it may have, and not one guess later.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::forge::Draft;
use pp_tests::harness::By;
use pp_tests::lab::{GATEWAY_WEST, Journal};
use pp_tests::paths;
use pp_tests::policy::{AGENT, Policy};
use pp_tests::wait;
use serde_json::{Value, json};

use crate::receipts::{Registered, opening};
use crate::world::{World, tests};

tests![
    flow_to_a_gateway_is_cut_after_exactly_its_turns,
    receipts_own_lower_limit_of_turns_holds,
    higher_limit_of_a_receipt_widens_nothing,
    flow_to_a_gateway_is_cut_after_its_bytes,
    each_connection_has_its_turns_and_a_socket_that_connects_again_is_another,
    observed_gateway_cuts_nothing_and_tells_it,
];

/// Turns that the tests' policy allows on a flow.
const TURNS: u64 = 12;

fn policy(world: &World, keys: &str) -> Policy {
    let west = "address = \"10.30.4.10\"\n";
    Policy::standard(world.lab()).replacing(west, &format!("{west}{keys}\n"))
}

fn logins(attempts: u64) -> Draft {
    let scope = json!({"kind": "accounts", "accounts": ["operator"], "maxAttempts": attempts});
    opening(GATEWAY_WEST).parameter("credentialScope", scope)
}

/// What a spray came to.
struct Spray {
    answered: Vec<u64>,
    errno: Option<i64>,
    /// Guesses that the gateway saw.
    arrived: usize,
}

pub(crate) fn guesses(servers: &Journal, target: SocketAddr) -> usize {
    servers.arrivals_at(target).iter().filter(|line| line["event"] == "guess").count()
}

fn spray(daemon: &Daemon, by: &By, arguments: &[&str]) -> Result<Spray> {
    let servers = daemon.lab().servers().from_now();
    let script = daemon.lab().directory().join("spray.py");
    let mut words = vec![paths::python()?.display().to_string(), "-B".into(), script.display().to_string()];
    words.extend([GATEWAY_WEST.ip().to_string(), GATEWAY_WEST.port().to_string()]);
    words.extend(arguments.iter().map(|word| (*word).to_owned()));
    let answer = by.run_words(daemon, &words)?.success()?.json()?;
    let answered: Vec<u64> = answer["answered"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let all = usize::try_from(answered.iter().sum::<u64>())?;
    // A guess is in the journal before its answer is sent.
    wait::until_true("the gateway's journal", wait::SOON, || guesses(&servers, GATEWAY_WEST) >= all)?;
    Ok(Spray { answered, errno: answer["errno"].as_i64(), arrived: guesses(&servers, GATEWAY_WEST) })
}

/// The same spray by nobody gets through.
fn control(daemon: &Daemon, arguments: &[&str], guesses: u64) -> Result<()> {
    let free = spray(daemon, &By::Nobody, arguments)?;
    ensure!(free.errno.is_none() && free.answered.iter().sum::<u64>() == guesses, "control run: {:?} then {:?}", free.answered, free.errno);
    Ok(())
}

/// The agent's spray is cut after so many guesses, for this reason, at once.
fn cut_after(daemon: &Daemon, receipt: &str, arguments: &[&str], guesses: u64, reason: &str) -> Result<()> {
    let mark = daemon.events().mark();
    let cut = spray(daemon, &By::run(AGENT), arguments)?;
    ensure!(cut.answered == [guesses], "answered: {:?}, then {:?}", cut.answered, cut.errno);
    ensure!(cut.arrived == usize::try_from(guesses)?, "{} guesses arrived", cut.arrived);
    let heard = [i64::from(libc::ECONNABORTED), i64::from(libc::ECONNRESET)];
    ensure!(cut.errno.is_some_and(|errno| heard.contains(&errno)), "the program heard {:?}", cut.errno);
    let event = daemon.events().wait_since(mark, "its event", |event| event["kind"] == "verdict" && event["reason"] == reason)?;
    ensure!(event["verdict"] == "block" && event["hook"] == "egress" && event["receipt"] == receipt, "{event}");
    ensure!(event["gateway"] == "vnode-west" && event.get("request").is_none(), "{event}");
    let ended = daemon.events().wait_since(mark, "the end of the flow", |event| event["kind"] == "flow_ended")?;
    ensure!(ended["reason"] == reason && ended["verdict"] == "block", "{ended}");
    Ok(())
}

fn flow_to_a_gateway_is_cut_after_exactly_its_turns(world: &mut World) -> Result<()> {
    let daemon = world.own(&policy(world, &format!("max_turns = {TURNS}")))?;
    let receipt = Registered::new(&daemon, &logins(5))?;
    control(&daemon, &["30"], 30)?;
    cut_after(&daemon, &receipt.id, &["30"], TURNS, "turns_exhausted")?;
    // As many as it may have, and no more, are never cut.
    let within = spray(&daemon, &By::run(AGENT), &[&TURNS.to_string()])?;
    ensure!(within.errno.is_none() && within.answered == [TURNS], "{:?} then {:?}", within.answered, within.errno);
    Ok(())
}

fn receipts_own_lower_limit_of_turns_holds(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let receipt = Registered::new(daemon, &logins(5).parameter("maxTurns", json!(4)))?;
    let shown = daemon.client()?.get(&format!("/v1/receipts/{}", receipt.id))?.ok()?;
    ensure!(shown["max_turns"] == 4, "{shown}");
    control(daemon, &["9"], 9)?;
    cut_after(daemon, &receipt.id, &["9"], 4, "turns_exhausted")
}

fn higher_limit_of_a_receipt_widens_nothing(world: &mut World) -> Result<()> {
    let daemon = world.own(&policy(world, "max_turns = 3"))?;
    let receipt = Registered::new(&daemon, &logins(5).parameter("maxTurns", json!(1_000)))?;
    cut_after(&daemon, &receipt.id, &["9"], 3, "turns_exhausted")
}

fn flow_to_a_gateway_is_cut_after_its_bytes(world: &mut World) -> Result<()> {
    let daemon = world.own(&policy(world, "max_bytes_out = 40000"))?;
    let receipt = Registered::new(&daemon, &logins(5))?;
    control(&daemon, &["10", "9000"], 10)?;
    // Four requests of a little over 9,000 bytes fit.
    cut_after(&daemon, &receipt.id, &["10", "9000"], 4, "bytes_exhausted")
}

fn each_connection_has_its_turns_and_a_socket_that_connects_again_is_another(world: &mut World) -> Result<()> {
    let daemon = world.own(&policy(world, &format!("max_turns = {TURNS}")))?;
    let receipt = Registered::new(&daemon, &logins(3))?;
    control(&daemon, &["10", "0", "5"], 50)?;
    let mark = daemon.events().mark();
    let sprayed = spray(&daemon, &By::run(AGENT), &["10", "0", "5"])?;
    ensure!(sprayed.answered == [10, 10, 10, 0], "answered: {:?}", sprayed.answered);
    ensure!(sprayed.errno == Some(i64::from(libc::EPERM)), "the fourth connect: {:?}", sprayed.errno);
    let event = daemon.events().wait_since(mark, "its event", |event| event["verdict"] == "block")?;
    ensure!(event["reason"] == "receipt_exhausted" && event["receipt"] == receipt.id.as_str(), "{event}");
    Ok(())
}

fn observed_gateway_cuts_nothing_and_tells_it(world: &mut World) -> Result<()> {
    let daemon = world.own(&policy(world, "max_turns = 3\nmode = \"observe\""))?;
    let _receipt = Registered::new(&daemon, &logins(5))?;
    let mark = daemon.events().mark();
    let sprayed = spray(&daemon, &By::run(AGENT), &["9"])?;
    ensure!(sprayed.errno.is_none() && sprayed.answered == [9], "{:?} then {:?}", sprayed.answered, sprayed.errno);
    let event = daemon.events().wait_since(mark, "its event", |event| event["reason"] == "turns_exhausted")?;
    ensure!(event["verdict"] == "observe", "{event}");
    Ok(())
}
