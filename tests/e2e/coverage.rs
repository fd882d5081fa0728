//! The coverage table: every way around, tried by an agent and by nobody, judged row by row.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use nix::libc;
use pp_tests::attack::Answer;
use pp_tests::coverage::{At, How, Line, State, TABLE, note};
use pp_tests::harness::{self, By, is_block};
use pp_tests::lab::{FRESH_PORT_V6, fresh_target};
use pp_tests::policy::AGENT;
use pp_tests::{paths, run, wait};
use serde_json::Value;

use crate::coverage_sockets;
use crate::coverage_sweep::{self, Sweep};
use crate::identity::Cgroup;
use crate::world::{World, skip};

/// The rows whose tests are made here.
pub(crate) fn own() -> impl Iterator<Item = &'static Line> {
    TABLE.iter().filter(|line| !matches!(line.how, How::Test(_)))
}

/// What both runs of one row came to.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Nobody's attempt arrived.
    pub(crate) control_arrived: bool,
    /// What the agent was told.
    pub(crate) answer: Option<Answer>,
    /// The agent's attempt arrived.
    pub(crate) arrived: bool,
    /// The refusal's event came.
    pub(crate) told: bool,
}

/// One row.
pub(crate) fn row(world: &mut World, line: &'static Line) -> Result<()> {
    let outcome = match line.how {
        How::Try(..) => Sweep::of(world)?.outcome(line)?,
        How::Process(words) => process(world, words, None)?,
        How::InCgroup(words) => {
            let cgroup = Cgroup::new(&format!("pplab-{}-elsewhere", std::process::id()))?;
            process(world, words, Some(cgroup.path()))?
        }
        How::Held(via, state, way) => coverage_sockets::held(world, via, state, way)?,
        How::Override(rewrite) => coverage_sockets::overridden(world, rewrite)?,
        How::NewNetwork => new_network(world)?,
        How::Test(name) => bail!("{name}: a test of another group"),
    };
    judge(world, line, &outcome)
}

/// Says what the outcome means for the row. Only a refusal that was told, after a control run that arrived, closes it.
fn judge(world: &mut World, line: &'static Line, outcome: &Outcome) -> Result<()> {
    if !outcome.control_arrived {
        note(line, State::Undeliverable);
        return Err(skip("it does not arrive on this kernel, whoever makes it"));
    }
    if outcome.arrived {
        let gaps = world.daemon()?.client()?.status()?["gaps"].clone();
        let stated = line.gap.is_some_and(|gap| gaps.as_array().is_some_and(|gaps| gaps.iter().any(|stated| stated == gap)));
        note(line, if stated { State::Gap } else { State::Open });
        ensure!(stated, "it arrived (answer {:?}), and the daemon states no such gap: {gaps}", outcome.answer);
        return Ok(());
    }
    note(line, State::Open);
    match outcome.answer {
        Some(Answer::Refused(libc::EPERM | libc::ECONNABORTED)) => {}
        // The daemon had dissolved it before its program could write.
        Some(Answer::Refused(libc::EDESTADDRREQ)) if matches!(line.how, How::Held(_, "udp-connected", _)) => {}
        // Where egress alone refuses, these protocols go on trying until their own time is over.
        Some(_) | None if is_silent(line) => {}
        other => bail!("nothing arrived, but its program was told {other:?}"),
    }
    ensure!(outcome.told, "it was refused without an event");
    note(line, State::Closed);
    Ok(())
}

/// The protocols whose sockets the daemon cannot end at once when egress drops their packets; ICMPv6, which does not tell its caller; and
/// what TCP takes into its queue past every send hook, as before 6.5 whole pages: egress drops it after the caller was told.
fn is_silent(line: &Line) -> bool {
    matches!(
        line.how,
        How::Try("sctp" | "sctp-many" | "sctp-connectx" | "dccp" | "rxrpc", _)
            | How::Try("ping", At::V6)
            | How::Held(_, "tcp-connected", "sendfile" | "splice")
    )
}

/// What a process of an odd kind tries.
const CORE: [(&str, At); 6] = [
    ("tcp-connect", At::V4),
    ("tcp-connect", At::V6),
    ("fastopen", At::Mapped),
    ("udp-sendto", At::V4),
    ("uring-connect-worker", At::V4),
    ("raw-icmp", At::V4),
];

/// An address of the zone that nothing has gone to yet, and how it is dialled.
pub(crate) fn fresh(at: At) -> (SocketAddr, SocketAddr) {
    let target = fresh_target();
    let IpAddr::V4(v4) = target.ip() else { return (target, target) };
    match at {
        At::V6 => {
            let [_, _, high, low] = v4.octets();
            let v6 = Ipv6Addr::new(0xfd00, 0x20, 0, 1, 1, 0, high.into(), low.into());
            let target = SocketAddr::new(v6.into(), FRESH_PORT_V6);
            (target, target)
        }
        At::Mapped => (target, SocketAddr::new(v4.to_ipv6_mapped().into(), target.port())),
        _ => (target, target),
    }
}

/// One run of the core: its targets, which of them something arrived at, what the program was told.
struct Tried {
    targets: Vec<SocketAddr>,
    arrived: Vec<bool>,
    heard: Vec<Option<Answer>>,
}

/// The core of techniques, by a process that these words make: all of it is refused, or the row is not.
fn process(world: &mut World, words: &[&str], cgroup: Option<&Path>) -> Result<Outcome> {
    let daemon = world.daemon()?;
    let lab = daemon.lab();
    let workload = lab.program("pp-workload").display().to_string();
    let mut command = vec![workload.clone()];
    command.extend(words.iter().map(|word| (*word).to_owned()));
    command.extend(cgroup.map(|path| path.display().to_string()));
    if words != ["leader-gone"] {
        command.extend(["--", &workload, "batch", "--here"].map(str::to_owned));
    }
    // Targets of its own for each run: what the first one opened may still be closing.
    let run = |by: &By| -> Result<Tried> {
        let (targets, dialled): (Vec<_>, Vec<_>) = CORE.iter().map(|(_, at)| fresh(*at)).unzip();
        let list = daemon.path(&format!("core-{}", targets[0].ip()));
        let lines: Vec<String> = CORE.iter().zip(dialled).map(|((name, _), dialled)| format!("{name} {dialled}")).collect();
        fs::write(&list, lines.join("\n"))?;
        let plant = lab.plant().from_now();
        let mut command = command.clone();
        command.push(list.display().to_string());
        let running = by.start_words(daemon, &command)?;
        let done = wait::until("the end of its attempts", run::PATIENCE, || running.stdout().contains("\"done\":true").then_some(()));
        done.with_context(|| format!("{}{}", running.stdout(), running.stderr()))?;
        harness::catch_up(lab)?;
        let arrived = targets.iter().map(|target| !plant.packets_to(*target).is_empty()).collect();
        Ok(Tried { targets, arrived, heard: answers(&running.stdout(), CORE.len()) })
    };
    let control = run(&By::Nobody)?.arrived;
    ensure!(control[0], "control run: a plain connection did not arrive");
    let mark = daemon.events().mark();
    let Tried { targets, arrived, heard } = run(&By::run(AGENT))?;
    let tried = || (0..CORE.len()).filter(|index| control[*index]);
    let told = tried().all(|index| {
        daemon.events().wait_since(mark, CORE[index].0, |event| is_block(event, targets[index]) && event["agent"] == AGENT).is_ok()
    });
    let not_refused = |index: &usize| !matches!(heard[*index], Some(Answer::Refused(libc::EPERM | libc::ECONNABORTED)));
    let answer = match tried().find(not_refused) {
        Some(index) => heard[index],
        None => Some(Answer::Refused(libc::EPERM)),
    };
    Ok(Outcome { control_arrived: true, answer, arrived: tried().any(|index| arrived[index]), told })
}

/// The answers of a batch, by their place in its list.
pub(crate) fn answers(stdout: &str, count: usize) -> Vec<Option<Answer>> {
    let mut answers = vec![None; count];
    for line in stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let Some(slot) = line["index"].as_u64().and_then(|index| answers.get_mut(usize::try_from(index).ok()?)) else { continue };
        *slot = coverage_sweep::read(&line);
    }
    answers
}

fn new_network(world: &mut World) -> Result<Outcome> {
    let daemon = world.daemon()?;
    let target = fresh_target();
    let attempt = pp_tests::attack::workload(daemon.lab(), &["new-network", &target.to_string()], target);
    let answer = |by: &By| by.run_words(daemon, &attempt.words)?.json();
    let control = answer(&By::Nobody)?;
    let mark = daemon.events().mark();
    let agent = answer(&By::run(AGENT))?;
    let told = daemon.events().wait_since(mark, "its event", |event| is_block(event, target)).is_ok();
    Ok(Outcome {
        control_arrived: control["ok"] == true && control["arrived"] == true,
        answer: coverage_sweep::read(&agent),
        arrived: agent["arrived"] == true,
        told,
    })
}

/// The root of cgroup2, where the daemon's programs hang.
pub(crate) fn root() -> Result<String> {
    Ok(paths::cgroup2()?.display().to_string())
}
