//! Rows about sockets that somebody else opened, servers that act for whoever asks, and another program at the same hook.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::coverage::{Rewrite, Via};
use pp_tests::harness::{self, By, is_block};
use pp_tests::lab::{Journal, Place, fresh_target};
use pp_tests::policy::AGENT;
use pp_tests::run::Running;
use pp_tests::wait;
use serde_json::Value;

use crate::coverage::{Outcome, root};
use crate::coverage_sweep::read;
use crate::world::{World, skip};

/// The longest packet of a handshake over IPv4: 20 bytes of IP header, 40 of TCP header with all its options.
const HANDSHAKE: u64 = 60;

/// A socket that was opened for the agent, then written to by it.
pub(crate) fn held(world: &mut World, via: Via, state: &str, way: &str) -> Result<Outcome> {
    let daemon = world.daemon()?;
    let connected = state.ends_with("-connected");
    let target = fresh_target();
    let control = attempt(daemon, via, state, way, target, false)?;
    let control_arrived = arrived(&control.plant, target, connected && via != Via::Relay);
    ensure!(!control_arrived || control.answer == Some(Answer::Delivered), "control run: {:?}", control.answer);
    // Another target: the control's connection may still end after the agent's has begun.
    let target = fresh_target();
    let mark = daemon.events().mark();
    let agent = attempt(daemon, via, state, way, target, true)?;
    let arrived = arrived(&agent.plant, target, connected && via != Via::Relay);
    // A socket that was open already is ended by the daemon, which tells that, or refused by a hook, which tells that.
    let is_told = |event: &Value| {
        let ended = event["kind"] == "flow_ended" && event["destination"]["address"] == target.ip().to_string();
        // Refused before there is a destination: copying the socket out of its process, and asking the server.
        let earlier = match via {
            Via::Copied => event["kind"] == "tamper" && event["reason"] == "ptrace",
            Via::Relay => event["kind"] == "verdict" && event["reason"] == "delegate",
            Via::Run | Via::Exec | Via::Passed => false,
        };
        (ended || earlier || is_block(event, target)) && event["agent"] == AGENT
    };
    let told = arrived || daemon.events().wait_since(mark, "its event", is_told).is_ok();
    Ok(Outcome { control_arrived, answer: agent.answer, arrived, told })
}

/// True if something arrived; on a socket that was connected before, something beside its handshake.
pub(crate) fn arrived(plant: &Journal, target: SocketAddr, connected: bool) -> bool {
    let data = |packet: &pp_tests::lab::Packet| !connected || packet.protocol != 6 || packet.bytes > HANDSHAKE;
    plant.packets_to(target).iter().any(data)
}

struct Attempted {
    answer: Option<Answer>,
    plant: Journal,
}

fn attempt(daemon: &Daemon, via: Via, state: &str, way: &str, target: SocketAddr, by_agent: bool) -> Result<Attempted> {
    let lab = daemon.lab();
    harness::catch_up(lab)?;
    let plant = lab.plant().from_now();
    let text = target.to_string();
    let path = daemon.path(&format!("pass-{}-{by_agent}", target.ip())).display().to_string();
    let giver = |words: &[&str]| -> Result<(Running, Value)> {
        let mut running = Running::start(&mut lab.command(Place::Engineering, &attack::workload(lab, words, target).words))?;
        let line = running.line_with("ready")?;
        Ok((running, line))
    };
    let mut write = vec!["--way", way];
    if !state.ends_with("-connected") {
        write.extend(["--connect", &text]);
    }
    let with = |first: &[&str]| attack::workload(lab, &[first, &write].concat(), target).words;
    let by = if by_agent { By::run(AGENT) } else { By::Nobody };
    let (by, words, giver) = match via {
        Via::Run | Via::Exec => {
            let mut before = vec![lab.program("pp-workload").display().to_string()];
            before.extend(["open-then-exec", &text, "--state", state, "--"].map(str::to_owned));
            if by_agent {
                let program = lab.program("lab-claude").display().to_string();
                before.extend(if via == Via::Run { daemon.cli_words(&["run", "--agent", AGENT, "--"]) } else { vec![program] });
            }
            (By::Words(before), with(&["use-stdin"]), None)
        }
        Via::Passed => (by, with(&["recv-fd", &path]), Some(giver(&["pass-fd", &path, &text, "--state", state])?)),
        Via::Copied => {
            let giver = giver(&["hold-fd", &text, "--state", state])?;
            let (pid, fd) = (giver.1["pid"].to_string(), giver.1["fd"].to_string());
            (by, with(&["take-fd", &pid, &fd]), Some(giver))
        }
        Via::Relay => {
            let giver = giver(&["relay", &path, &text])?;
            (by, attack::workload(lab, &["ask-relay", &path], target).words, Some(giver))
        }
    };
    let answer = read(&by.run_words(daemon, &words)?.json()?);
    drop(giver);
    harness::catch_up(lab)?;
    Ok(Attempted { answer, plant })
}

/// A plain connect while another program hangs at the same place, behind the daemon's.
pub(crate) fn overridden(world: &mut World, rewrite: Rewrite) -> Result<Outcome> {
    let daemon = world.daemon()?;
    let lab = daemon.lab();
    let target = fresh_target();
    let harmless = SocketAddr::new([198, 51, 100, 99].into(), target.port());
    let (dialled, to) = match rewrite {
        Rewrite::Allow => (target, None),
        Rewrite::Address => (harmless, Some(target.ip().to_string())),
    };
    let (root, only) = (root()?, dialled.ip().to_string());
    let mut words = vec!["override-connect", "--cgroup", &root, "--only", &only];
    if let Some(to) = &to {
        words.extend(["--to", to]);
    }
    let mut other = Running::start(&mut lab.command(Place::Engineering, &attack::workload(lab, &words, target).words))?;
    if other.line_with("ready").is_err() {
        return Err(skip(&format!("this kernel does not take the other program: {}", other.stderr().trim())));
    }
    let attempt = attack::workload(lab, &["try", "tcp-connect", &dialled.to_string()], target);
    let run = |by: &By| -> Result<(Answer, bool)> {
        harness::catch_up(lab)?;
        let plant = lab.plant().from_now();
        let answer = by.attempt(daemon, &attempt)?;
        harness::catch_up(lab)?;
        Ok((answer, !plant.new_packets_to(target).is_empty()))
    };
    let (answer, control_arrived) = run(&By::Nobody)?;
    ensure!(answer == Answer::Delivered, "control run: {answer:?}");
    let mark = daemon.events().mark();
    let (answer, arrived) = run(&By::run(AGENT))?;
    let told =
        wait::until_true("its event", wait::SOON, || daemon.events().since(mark).iter().any(|event| is_block(event, target))).is_ok();
    ensure!(answer != Answer::Refused(libc::ETIMEDOUT), "the program was left waiting");
    Ok(Outcome { control_arrived, answer: Some(answer), arrived, told })
}
