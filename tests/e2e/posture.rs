//! What the gate says of itself, and what it does about hooks that are gone, replaced or undone by others.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use pp_tests::agent::Daemon;
use pp_tests::attack;
use pp_tests::coverage::At;
use pp_tests::harness::{self, By, Refusal, is_block};
use pp_tests::lab::{PLC, Place, fresh_target};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run::{self, Running};
use pp_tests::wait;
use serde_json::Value;

use crate::coverage::fresh;
use crate::world::{World, skip, tests};

tests![
    hook_that_was_detached_is_put_back_within_a_period,
    hook_that_was_given_another_program_is_put_back_within_a_period,
    pin_that_was_removed_is_put_back_within_a_period,
    pin_of_a_table_that_was_removed_is_put_back_within_a_period,
    every_hook_that_this_kernel_takes_is_in_place,
    program_behind_ours_is_told_once,
    status_has_an_exit_code_for_the_posture_that_is_required,
    metrics_carry_posture_gaps_and_what_the_canary_found,
    canary_sends_no_packet_over_any_interface_of_the_host,
    without_hooks_the_daemon_is_not_ready_and_its_canary_sends_nothing,
    every_hook_refuses_what_no_other_does,
];

/// A daemon that looks at its hooks every second.
fn watchful(world: &mut World) -> Result<Daemon> {
    let mut daemon = world.prepared(&Policy::standard(world.lab()))?;
    daemon.add_arguments(&["--watch-period", "1"]);
    daemon.spawn()?;
    Ok(daemon)
}

/// The pin of one program.
pub(crate) fn pin(daemon: &Daemon, program: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(daemon.bpffs().join("links"))?;
    let found = entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().split('@').next() == Some(program)));
    found.with_context(|| format!("{program} has no pin"))
}

/// Harms the connect hook so, and checks that it is told and refuses again.
fn is_mended(world: &mut World, how: &str, reason: &str) -> Result<()> {
    let daemon = watchful(world)?;
    let pin = pin(&daemon, "pp_connect4")?;
    let mark = daemon.events().mark();
    if how == "unpin" {
        fs::remove_file(&pin)?;
    } else {
        let words = attack::workload(daemon.lab(), &["harm-link", &pin.display().to_string(), how], PLC).words;
        let _harmed = run::run(&mut daemon.lab().command(Place::Engineering, &words))?.success()?;
    }
    let event = daemon.events().wait_since(mark, "the event of its repair", |event| {
        event["kind"] == "posture" && event["reason"] == reason && event["hook"] == "pp_connect4"
    })?;
    ensure!(event["detail"].as_str().is_some_and(|detail| detail.contains("put back")), "{event}");
    ensure!(pin.exists(), "its pin is not there");
    // The connect hook itself refuses again: egress alone would be heard as another error.
    let refusal = Refusal::of(attack::tcp(daemon.lab(), fresh_target()), By::run(AGENT)).with_control(By::Nobody);
    let event = refusal.assert(&daemon)?;
    ensure!(event["hook"] != "cgroup_skb/egress" && event["hook"] != "egress", "{event}");
    let hooks = daemon.client()?.status()?["watch"]["hooks"].clone();
    ensure!(hooks["mended"].as_u64().is_some_and(|mended| mended >= 1) && hooks["beyond_repair"] == 0, "{hooks}");
    // Its end must remove what was attached anew as well, which the harness checks.
    drop(daemon);
    Ok(())
}

fn hook_that_was_detached_is_put_back_within_a_period(world: &mut World) -> Result<()> {
    is_mended(world, "detach", "hook_detached")
}

fn hook_that_was_given_another_program_is_put_back_within_a_period(world: &mut World) -> Result<()> {
    is_mended(world, "replace", "hook_replaced")
}

fn pin_that_was_removed_is_put_back_within_a_period(world: &mut World) -> Result<()> {
    is_mended(world, "unpin", "hook_unpinned")
}

fn pin_of_a_table_that_was_removed_is_put_back_within_a_period(world: &mut World) -> Result<()> {
    let mut daemon = watchful(world)?;
    let is_table = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("TASKS@"));
    let pins = fs::read_dir(daemon.bpffs().join("maps"))?.flatten().map(|entry| entry.path());
    let pin = pins.into_iter().find(is_table).context("TASKS has no pin")?;
    let id = || -> Result<u32> { Ok(aya::maps::MapInfo::from_pin(&pin)?.id()) };
    let (mark, before) = (daemon.events().mark(), id()?);
    fs::remove_file(&pin)?;
    let is_told = |event: &Value| event["kind"] == "posture" && event["reason"] == "hook_unpinned" && event["hook"] == "TASKS";
    let event = daemon.events().wait_since(mark, "the event of its repair", is_told)?;
    ensure!(event["detail"].as_str().is_some_and(|detail| detail.contains("put back")), "{event}");
    ensure!(id()? == before, "another table took its place");
    // The next start goes on with it.
    daemon.crash()?;
    daemon.spawn()?;
    ensure!(id()? == before, "the next start made another table");
    Ok(())
}

fn program_behind_ours_is_told_once(world: &mut World) -> Result<()> {
    let daemon = watchful(world)?;
    let mark = daemon.events().mark();
    let root = crate::coverage::root()?;
    let words = ["override-connect", "--cgroup", &root, "--only", "203.0.113.250", "--to", "203.0.113.251"];
    let words = attack::workload(daemon.lab(), &words, PLC).words;
    let mut other = Running::start(&mut daemon.lab().command(Place::Engineering, &words))?;
    if other.line_with("ready").is_err() {
        return Err(skip(&format!("this kernel does not take the other program: {}", other.stderr().trim())));
    }
    let is_told = |event: &Value| event["kind"] == "posture" && event["reason"] == "foreign_program";
    let event = daemon.events().wait_since(mark, "the other program's event", is_told)?;
    ensure!(event["hook"] == "pp_connect4" && event["detail"].as_str().is_some_and(|text| text.contains("lab_undo")), "{event}");
    let runs = || -> Result<u64> { Ok(daemon.client()?.status()?["watch"]["canary"]["runs"].as_u64().unwrap_or(0)) };
    let before = runs()?;
    wait::until_true("two more looks", wait::SOON, || runs().is_ok_and(|now| now >= before + 2))?;
    ensure!(daemon.events().since(mark).iter().filter(|event| is_told(event)).count() == 1, "told more than once");
    ensure!(daemon.client()?.status()?["watch"]["hooks"]["foreign"] == 1, "not counted");
    Ok(())
}

fn status_has_an_exit_code_for_the_posture_that_is_required(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let posture = daemon.client()?.status()?["posture"].clone();
    let code = |required: &str| -> Result<i32> { Ok(daemon.cli(&["status", "--require", required])?.code()) };
    ensure!(code("partial")? == 0, "posture {posture}");
    ensure!((code("enforcing")? == 0) == (posture == "enforcing"), "posture {posture}");
    Ok(())
}

fn metrics_carry_posture_gaps_and_what_the_canary_found(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let status = daemon.client()?.status()?;
    let metrics = daemon.client()?.get("/metrics")?.body.as_str().unwrap_or_default().to_owned();
    let posture = status["posture"].as_str().unwrap_or_default();
    let mut lines = vec![format!("pp_posture{{posture=\"{posture}\"}} 1"), "pp_canary_refused{technique=\"tcp-connect\"} 1".to_owned()];
    for gap in status["gaps"].as_array().context("no gaps")? {
        lines.push(format!("pp_gap{{gap=\"{}\"}} 1", gap.as_str().unwrap_or_default()));
    }
    for line in lines {
        ensure!(metrics.lines().any(|found| found == line), "{line}: not in\n{metrics}");
    }
    Ok(())
}

fn every_hook_that_this_kernel_takes_is_in_place(world: &mut World) -> Result<()> {
    let status = world.daemon()?.client()?.status()?;
    let hooks = &status["watch"]["hooks"];
    ensure!(hooks["missing"] == serde_json::json!([]) && status["posture"] != "degraded", "{status}");
    // Nine programs hang with every backend, and one that marks what begins.
    ensure!(hooks["watched"].as_u64().is_some_and(|number| number >= 10), "{hooks}");
    Ok(())
}

/// Packets and bytes of every interface, as the kernel counts them in that place.
fn counters(daemon: &Daemon, place: Place) -> Result<String> {
    Ok(run::run(&mut daemon.lab().command(place, &["/bin/cat", "/proc/net/dev"]))?.success()?.stdout)
}

fn canary_sends_no_packet_over_any_interface_of_the_host(world: &mut World) -> Result<()> {
    let daemon = watchful(world)?;
    let runs = || -> Result<u64> { Ok(daemon.client()?.status()?["watch"]["canary"]["runs"].as_u64().unwrap_or(0)) };
    let places = [Place::Engineering, Place::Router, Place::Plant];
    let read = || places.iter().map(|place| counters(&daemon, *place)).collect::<Result<Vec<_>>>();
    // What the lab's own protocols send now and then is not the canary's: one quiet stretch with three canaries in it is enough.
    for _ in 0..5 {
        let (before, first) = (read()?, runs()?);
        wait::until_true("three canaries", wait::SOON, || runs().is_ok_and(|now| now >= first + 3))?;
        if read()? == before {
            return Ok(());
        }
    }
    anyhow::bail!("packets passed while nothing but the canary ran: {:?}", read()?)
}

/// The programs that refuse or mark sockets.
pub(crate) const SOCKET_HOOKS: [&str; 7] =
    ["pp_sock_create", "pp_egress", "pp_ingress", "pp_connect4", "pp_connect6", "pp_sendmsg4", "pp_sendmsg6"];
pub(crate) const MORE_HOOKS: [&str; 12] = [
    "pp_lsm_fork",
    "pp_lsm_connect",
    "pp_lsm_sendmsg",
    "pp_lsm_create",
    "pp_lsm_receive",
    "pp_lsm_graft",
    "pp_entry_connect",
    "pp_entry_sendmsg",
    "pp_entry_receive",
    "pp_entry_graft",
    "pp_fmod_connect",
    "pp_fmod_sendmsg",
];

fn left_out(world: &mut World, hooks: &[&str]) -> Result<Daemon> {
    let mut daemon = world.prepared(&Policy::standard(world.lab()))?;
    for hook in hooks {
        daemon.add_arguments(&["--without-hook", hook]);
    }
    Ok(daemon)
}

fn without_hooks_the_daemon_is_not_ready_and_its_canary_sends_nothing(world: &mut World) -> Result<()> {
    let mut daemon = left_out(world, &[SOCKET_HOOKS.as_slice(), &MORE_HOOKS].concat())?;
    let read = |daemon: &Daemon| -> Result<Vec<String>> {
        [Place::Engineering, Place::Router, Place::Plant].iter().map(|place| counters(daemon, *place)).collect()
    };
    let before = read(&daemon)?;
    let started = daemon.spawn();
    let after = read(&daemon)?;
    let Err(error) = started else { anyhow::bail!("READY without a hook that refuses") };
    let text = format!("{error:#}");
    ensure!(text.contains("posture is open") && text.contains("tcp-connect"), "it says {text}");
    ensure!(before == after, "packets passed: {before:?}, {after:?}");
    Ok(())
}

/// What is attempted without one hook, and that it then arrives or is refused later: the row that only this hook closes.
fn every_hook_refuses_what_no_other_does(world: &mut World) -> Result<()> {
    let cgroup_alone = world.backend()? == "cgroup";
    let mut wrong = Vec::new();
    // With another backend the calls are refused before these programs see them.
    let calls = ["pp_connect4", "pp_connect6", "pp_sendmsg4", "pp_sendmsg6"];
    for hook in SOCKET_HOOKS.iter().filter(|hook| cgroup_alone || !calls.contains(hook)) {
        let (daemon, found) = match *hook {
            "pp_connect4" | "pp_connect6" | "pp_sendmsg4" | "pp_sendmsg6" => {
                // The canary must find it by itself, or egress must be what refuses in its place.
                let mut daemon = left_out(world, &[hook])?;
                if let Err(error) = daemon.spawn() {
                    let text = format!("{error:#}");
                    ensure!(text.contains("posture is open"), "{hook}: {text}");
                    (daemon, true)
                } else {
                    let technique = if hook.starts_with("pp_connect") { "tcp-connect" } else { "udp-sendto" };
                    let target = if hook.ends_with('6') { fresh(At::V6).0 } else { fresh_target() };
                    let event = attempt(&daemon, technique, target)?;
                    let found = event.as_ref().is_some_and(|event| event["hook"] == "egress");
                    (daemon, found)
                }
            }
            "pp_sock_create" | "pp_egress" => {
                let mut daemon = left_out(world, &[hook])?;
                match daemon.spawn() {
                    Err(error) => {
                        let text = format!("{error:#}");
                        ensure!(text.contains("posture is open"), "{hook}: {text}");
                        (daemon, true)
                    }
                    Ok(()) => {
                        let arrived = arrives(&daemon, "udplite", fresh_target())? || arrives(&daemon, "raw-hdrincl", fresh_target())?;
                        (daemon, arrived)
                    }
                }
            }
            _ => continue,
        };
        drop(daemon);
        if !found {
            wrong.push(*hook);
        }
    }
    ensure!(wrong.is_empty(), "nothing is missing without {wrong:?}");
    Ok(())
}

/// The event of an agent's attempt, if one comes.
fn attempt(daemon: &Daemon, technique: &str, target: std::net::SocketAddr) -> Result<Option<Value>> {
    let plain = std::net::SocketAddr::new(target.ip().to_canonical(), target.port());
    let attempt = attack::workload(daemon.lab(), &["try", technique, &target.to_string()], plain);
    let mark = daemon.events().mark();
    let _answer = By::run(AGENT).run_words(daemon, &attempt.words)?;
    Ok(daemon.events().wait_since(mark, "its event", |event| is_block(event, plain)).ok())
}

/// Whether an agent's attempt arrives.
fn arrives(daemon: &Daemon, technique: &str, target: std::net::SocketAddr) -> Result<bool> {
    harness::catch_up(daemon.lab())?;
    let plant = daemon.lab().plant().from_now();
    let attempt = attack::workload(daemon.lab(), &["try", technique, &target.to_string()], target);
    let _answer = By::run(AGENT).run_words(daemon, &attempt.words)?;
    harness::catch_up(daemon.lab())?;
    let portless = std::net::SocketAddr::new(target.ip(), 0);
    Ok(!plant.packets_to(portless).is_empty())
}
