//! Real tools that scan and guess, run by an agent under the policy as it is shipped: how much gets through before the block, never more
//! than the rule allows; what is told; and that the same command line by nobody arrives. What each came to is a row of `docs/attackers.md`.
//!
//! The rules about tools only tell here: a tool under another name is the attacker that the behaviour rules are for.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use pp_tests::agent::Daemon;
use pp_tests::attackers::{Line, record};
use pp_tests::harness::By;
use pp_tests::lab::{ENGINEERING, FTP, Journal, Place};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run::Running;
use serde_json::Value;

use crate::behaviour::{Run, reach, run};
use crate::world::{World, tests};

tests![
    nmap_connect_scan_of_ports,
    nmap_connect_scan_of_hosts,
    line_for_exempt_that_is_told_lets_the_scan_pass,
    nmap_syn_scan,
    masscan_is_refused_or_is_the_stated_gap,
    raw_syn_scan_in_python,
    connect_scan_in_python,
    diagonal_scan_in_python,
    tool_that_is_called_something_else,
];

/// What a rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Pairs of host and port.
    Pairs,
    /// Connections to a login.
    Connections,
}

impl Counted {
    const fn name(self) -> &'static str {
        match self {
            Self::Pairs => "hosts and ports",
            Self::Connections => "connections",
        }
    }
}

/// An attacker, and where it must stop.
pub(crate) struct Attack {
    /// What the table calls it.
    pub(crate) attacker: &'static str,
    /// Its command line.
    pub(crate) words: Vec<String>,
    /// The rule that stops it.
    pub(crate) reason: &'static str,
    /// What that rule counts.
    pub(crate) counted: Counted,
    /// How many it allows.
    pub(crate) allowed: usize,
    /// What the table says beside it.
    pub(crate) note: &'static str,
}

/// Words of a command line.
pub(crate) fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// The daemon with the policy as shipped, and more. Each session has a history of its own, so the tests can share it.
pub(crate) fn shipped<'a>(world: &'a mut World, more: &str) -> Result<&'a Daemon> {
    let policy = Policy::attacked(world.lab()).with(more);
    world.afresh(&policy)
}

/// What one run came to.
pub(crate) struct Seen {
    pub(crate) run: Run,
    /// When each of what is counted arrived, in milliseconds, in order.
    pub(crate) times: Vec<u64>,
    /// Passwords that servers were asked about.
    pub(crate) guesses: usize,
}

/// Runs the attacker so, and counts.
pub(crate) fn see(daemon: &Daemon, by: &By, attack: &Attack) -> Result<Seen> {
    let (servers, ssh) = (daemon.lab().servers().from_now(), daemon.lab().ssh_guesses());
    let run = run(daemon, by, &attack.words)?;
    let arrived = match attack.counted {
        Counted::Pairs => &run.arrived,
        Counted::Connections => &run.flows,
    };
    let mut times: Vec<u64> = arrived.values().copied().collect();
    times.sort_unstable();
    Ok(Seen { run, times, guesses: ftp_guesses(&servers) + daemon.lab().ssh_guesses() - ssh })
}

/// Passwords that the office's FTP server was asked about.
pub(crate) fn ftp_guesses(servers: &Journal) -> usize {
    servers.arrivals_at(FTP).iter().filter(|line| line["event"] == "guess").count()
}

/// The most of these moments that lie within one window of so many milliseconds. The clock is that of the far end's tap: half a second
/// is left for what lay on the way.
pub(crate) fn most_within(times: &[u64], window_ms: u64) -> usize {
    let window = window_ms.saturating_sub(500);
    let most = times.iter().enumerate().map(|(first, begin)| times[first..].iter().take_while(|time| **time < begin + window).count());
    most.max().unwrap_or(0)
}

/// The control arrives; of the agent's run exactly as much arrives as the rule allows, and what tripped is told. Returns the event.
pub(crate) fn stopped(daemon: &Daemon, attack: &Attack) -> Result<Value> {
    let (control, seen) = control_and_agent(daemon, attack)?;
    let event = seen.run.trip(attack.reason)?.clone();
    let window_s = event["window_s"].as_u64().context("no window")?;
    let through = seen.times.len();
    ensure!(through >= attack.allowed, "{through} got through, {} are allowed, and a rule tripped: {event}", attack.allowed);
    let most = most_within(&seen.times, window_s * 1000);
    ensure!(most <= attack.allowed, "{most} got through within {window_s} s, {} are allowed: {:?}", attack.allowed, seen.times);
    let last = seen.times.last().zip(seen.times.first()).map_or(0, |(last, first)| last - first);
    ensure!(
        through == attack.allowed || last >= window_s * 1000 - 500,
        "{through} got through in {last} ms, {} are allowed",
        attack.allowed
    );
    ensure!(event["count"] == attack.allowed + 1 && event["limit"] == attack.allowed, "{event}");
    let exempt = event["exempt"].as_str().is_some_and(|line| line.starts_with("exempt = [\"10.50."));
    ensure!(exempt && event["targets"].as_array().is_some_and(|targets| !targets.is_empty()), "{event}");
    note(daemon, attack, attack.reason, Some(attack.allowed), &control, &seen);
    Ok(event)
}

/// Runs the attacker by nobody, then by the agent.
fn control_and_agent(daemon: &Daemon, attack: &Attack) -> Result<(Seen, Seen)> {
    let control = see(daemon, &By::Nobody, attack)?;
    ensure!(control.times.len() > attack.allowed, "control: only {} arrived", control.times.len());
    Ok((control, see(daemon, &By::run(AGENT), attack)?))
}

fn note(daemon: &Daemon, attack: &Attack, stopped_by: &str, allowed: Option<usize>, control: &Seen, seen: &Seen) {
    record(Line {
        attacker: attack.attacker.to_owned(),
        command: shown(daemon, &attack.words),
        stopped_by: stopped_by.to_owned(),
        counted: attack.counted.name(),
        allowed,
        control: Some(control.times.len()),
        through: seen.times.len(),
        guesses: (attack.counted == Counted::Connections && control.guesses > 0).then_some(seen.guesses),
        note: attack.note.to_owned(),
    });
}

/// A command line without the paths of the lab.
pub(crate) fn shown(daemon: &Daemon, words: &[String]) -> String {
    let lab = daemon.lab().directory();
    let name = |word: &str| Path::new(word).file_name().map(|name| name.to_string_lossy().into_owned());
    let short = |word: &String| match word.rsplit_once('=') {
        Some((before, path)) if Path::new(path).starts_with(lab) => format!("{before}={}", name(path).unwrap_or_default()),
        _ if word.contains("/bin/python") || Path::new(word).starts_with(lab) => name(word).unwrap_or_default(),
        _ => word.clone(),
    };
    words.iter().map(short).collect::<Vec<_>>().join(" ")
}

fn nmap_ports() -> Attack {
    let words = words("nmap -sT -Pn -n --max-retries 0 -p 6000-6099 10.50.0.9");
    Attack { attacker: "nmap, ports of a host", words, reason: "scan_ports", counted: Counted::Pairs, allowed: 15, note: "" }
}

fn nmap_connect_scan_of_ports(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "")?;
    let event = stopped(daemon, &nmap_ports())?;
    ensure!(event["exempt"] == "exempt = [\"10.50.0.9/32\"]" && event["hook"] == "connect", "{event}");
    ensure!(event["attack"] == serde_json::json!(["T1046", "T0846"]) && event["window_s"] == 300, "{event}");
    ensure!(event["cool_down_s"] == 900 && event.get("request").is_none(), "{event}");
    ensure!(event["executable"].as_str().is_some_and(|path| path.ends_with("nmap")), "{event}");
    // The hint of its name and shape came first, and kept nothing.
    let told = daemon.events().all().into_iter().find(|event| event["kind"] == "exec" && event["tool"] == "nmap");
    ensure!(told.as_ref().is_some_and(|event| matches!(event["verdict"].as_str(), Some("observe" | "report"))), "{told:?}");
    Ok(())
}

fn nmap_connect_scan_of_hosts(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "")?;
    let words = words("nmap -sT -Pn -n --max-retries 0 -p 8080 10.50.1.0/25");
    let attack = Attack { attacker: "nmap, a port of hosts", words, reason: "scan_hosts", counted: Counted::Pairs, allowed: 25, note: "" };
    stopped(daemon, &attack).map(drop)
}

fn line_for_exempt_that_is_told_lets_the_scan_pass(world: &mut World) -> Result<()> {
    let line = {
        let daemon = shipped(world, "")?;
        let seen = see(daemon, &By::run(AGENT), &nmap_ports())?;
        seen.run.trip("scan_ports")?["exempt"].as_str().context("no line")?.to_owned()
    };
    let daemon = shipped(world, &format!("[behaviour]\n{line}"))?;
    let seen = see(daemon, &By::run(AGENT), &nmap_ports())?;
    ensure!(
        seen.times.len() == 100 && seen.run.events.is_empty(),
        "{} of 100 arrived with {line}: {:?}",
        seen.times.len(),
        seen.run.events
    );
    Ok(())
}

fn nmap_syn_scan(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "")?;
    let words = words("nmap -sS -Pn -n --max-retries 0 --host-timeout 20s -p 6000-6099 10.50.0.10");
    let attack = Attack { attacker: "nmap, SYN scan", words, reason: "scan_ports", counted: Counted::Pairs, allowed: 15, note: "" };
    if packet_gap(daemon)? {
        let event = stopped(daemon, &attack)?;
        ensure!(event["hook"] == "egress", "{event}");
        return Ok(());
    }
    refused_at_its_socket(daemon, &attack)
}

fn masscan_is_refused_or_is_the_stated_gap(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "")?;
    // It listens until a packet comes in, whoever sends it, and looks only then whether it is done.
    let script = format!("while :; do echo > /dev/udp/{ENGINEERING}/9; sleep 0.5; done");
    let _heard = Running::start(&mut daemon.lab().command(Place::It, &["/bin/bash", "-c", &script]))?;
    let words = words("masscan 10.50.0.12 -p6000-6099 --rate 500 --wait 0 --interface eth0");
    let attack = Attack { attacker: "masscan", words, reason: "scan_ports", counted: Counted::Pairs, allowed: 15, note: "" };
    if !packet_gap(daemon)? {
        return refused_at_its_socket(daemon, &attack);
    }
    // It writes whole frames, which no hook of this backend sees. The gap is as large as is said, and no larger: one that is closed must
    // not be stated any more.
    let (control, seen) = control_and_agent(daemon, &attack)?;
    ensure!(seen.times.len() == control.times.len(), "{} of {} arrived: is the gap closed?", seen.times.len(), control.times.len());
    ensure!(seen.run.events.is_empty(), "{:?}", seen.run.events);
    note(daemon, &attack, "gap `packet`", None, &control, &seen);
    Ok(())
}

/// Whether frames that programs write themselves pass, as the daemon says. That it says so on the `cgroup` backend, and there alone, is shown too.
fn packet_gap(daemon: &Daemon) -> Result<bool> {
    let status = daemon.client()?.status()?;
    let stated = status["gaps"].as_array().context("no gaps")?.iter().any(|gap| gap == "packet");
    ensure!(stated == (status["backend"] == "cgroup"), "backend {}, gaps {}", status["backend"], status["gaps"]);
    Ok(stated)
}

/// Its packet socket is refused before it can send anything.
fn refused_at_its_socket(daemon: &Daemon, attack: &Attack) -> Result<()> {
    let (control, seen) = control_and_agent(daemon, attack)?;
    ensure!(seen.times.is_empty(), "{} arrived", seen.times.len());
    ensure!(seen.run.events.iter().any(|event| event["reason"] == "socket_family"), "{:?}", seen.run.events);
    note(daemon, attack, "socket_family", Some(0), &control, &seen);
    Ok(())
}

fn raw_syn_scan_in_python(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "")?;
    let words = reach(daemon, "syn", 1, &["10.50.0.11:6000-6099"])?;
    let attack = Attack {
        attacker: "Python, SYN packets of a raw socket",
        words,
        reason: "scan_ports",
        counted: Counted::Pairs,
        allowed: 15,
        note: "",
    };
    let event = stopped(daemon, &attack)?;
    ensure!(event["hook"] == "egress", "{event}");
    Ok(())
}

fn connect_scan_in_python(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "")?;
    // All at once: the number holds however many race for it.
    let words = reach(daemon, "tcp", 100, &["10.50.2.[1-200]:8080"])?;
    let attack =
        Attack { attacker: "Python asyncio, a port of hosts", words, reason: "scan_hosts", counted: Counted::Pairs, allowed: 25, note: "" };
    stopped(daemon, &attack).map(drop)
}

fn diagonal_scan_in_python(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "")?;
    let words = reach(daemon, "tcp", 20, &["diagonal:300"])?;
    let attack = Attack {
        attacker: "Python asyncio, host number i on port number i",
        words,
        reason: "scan_pairs",
        counted: Counted::Pairs,
        allowed: 100,
        note: "",
    };
    stopped(daemon, &attack).map(drop)
}

fn tool_that_is_called_something_else(world: &mut World) -> Result<()> {
    // With the rules about tools in force: this name is none of theirs.
    let policy = Policy::attacked(world.lab()).replacing("[exec]\nmode = \"observe\"", "[exec]\nmode = \"enforce\"");
    let daemon = world.own(&policy)?;
    let tool = daemon.path("report");
    std::fs::copy("/usr/bin/hydra", &tool)?;
    let list = crate::attackers_logins::passwords(&daemon, 60)?;
    let words = words(&format!("{} -I -t 16 -W 0 -l operator -P {list} ftp://{}", tool.display(), FTP.ip()));
    let attack = Attack {
        attacker: "hydra under another name, FTP",
        words,
        reason: "spray_target",
        counted: Counted::Connections,
        allowed: 10,
        note: "with the rules about tools in force",
    };
    let _event = stopped(&daemon, &attack)?;
    let told = daemon.events().all().into_iter().find(|event| event["kind"] == "exec");
    ensure!(told.is_none(), "{told:?}");
    Ok(())
}
