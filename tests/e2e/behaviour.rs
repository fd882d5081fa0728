//! Scans and credential sprays are stopped in the kernel, whatever the tool is called: exactly the configured number of attempts arrives,
//! the event says what tripped, and nothing arrives afterwards. And the ordinary work that must not trip anything.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use pp_tests::agent::Daemon;
use pp_tests::harness::{By, catch_up, is_verdict};
use pp_tests::lab::{FTP, Journal, OFFICE, OFFICE_V6};
use pp_tests::paths;
use pp_tests::policy::{AGENT, Policy};
use serde_json::Value;

use crate::world::{World, tests};

tests![
    raw_syn_packets_stop_at_the_number_of_ports,
    sweep_of_one_port_stops_at_the_number_of_hosts,
    sweep_over_ipv6_stops_at_the_number_of_hosts,
    process_for_each_attempt_changes_nothing,
    diagonal_scan_stops_at_the_number_of_pairs,
    datagrams_and_pings_count_and_udp_connects_do_not,
    process_for_each_guess_changes_nothing,
    spray_over_hosts_stops_at_the_number_of_hosts,
    spray_over_hosts_elsewhere_is_stopped_too,
    slow_spray_is_stopped_by_the_long_window,
    low_and_wide_spray_is_stopped_by_the_number_of_targets,
    ssh_has_room_for_submodules_and_no_more,
    tripped_pattern_stays_blocked_without_the_daemon,
    policy_exempts_networks_and_ports,
    observed_rules_tell_and_block_nothing,
    check_says_what_is_judged,
    ordinary_work_trips_nothing,
];

/// What one session did: what it was told, and what arrived.
pub(crate) struct Run {
    out: u64,
    refused: u64,
    /// Host, protocol and port of what arrived, and when it first did, in milliseconds since the epoch.
    pub(crate) arrived: Arrivals,
    /// The same flow by flow: the host's address, its port, and the port it came from.
    pub(crate) flows: Arrivals,
    pub(crate) events: Vec<Value>,
}

/// When something first arrived, by where.
pub(crate) type Arrivals = BTreeMap<(String, u64, u64), u64>;

/// The words of a reach by the lab's script.
pub(crate) fn reach(daemon: &Daemon, how: &str, at_once: u32, targets: &[&str]) -> Result<Vec<String>> {
    let script = daemon.lab().directory().join("reach.py").display().to_string();
    let head = [paths::python()?.display().to_string(), "-B".into(), script, how.into(), at_once.to_string()];
    Ok(head.into_iter().chain(targets.iter().map(|target| (*target).to_owned())).collect())
}

/// What arrived in the office, by host and by flow. The rest of a connection that began before is no news.
pub(crate) fn arrivals(journal: &Journal) -> (Arrivals, Arrivals) {
    let (mut pairs, mut flows) = (Arrivals::new(), Arrivals::new());
    for packet in journal.new_packets() {
        let host = packet.destination.ip().to_string();
        if host.starts_with(OFFICE) || host.starts_with(OFFICE_V6) {
            let port = u64::from(packet.destination.port());
            pairs.entry((host.clone(), packet.protocol, port)).or_insert(packet.at_ms);
            flows.entry((host, port, packet.source.port().into())).or_insert(packet.at_ms);
        }
    }
    (pairs, flows)
}

/// Runs a command and looks at everything it came to.
pub(crate) fn run(daemon: &Daemon, by: &By, words: &[String]) -> Result<Run> {
    catch_up(daemon.lab())?;
    let plant = daemon.lab().plant().from_now();
    let mark = daemon.events().mark();
    let output = by.run_words(daemon, words)?;
    catch_up(daemon.lab())?;
    // The event of a session that began later would come behind any verdict of this one.
    let _later = By::run(AGENT).run_words(daemon, &["/bin/true".into()])?.success()?;
    let ended = |event: &Value| event["kind"] == "session_end";
    let _end = daemon.events().wait_since(mark, "the end of a session", ended)?;
    let mut events = daemon.events().since(mark);
    let sessions: Vec<Value> =
        events.iter().filter(|event| event["kind"] == "session_start").map(|event| event["session"].clone()).collect();
    // An earlier session's repeats are told when their time comes.
    events.retain(|event| event["kind"] == "verdict" && sessions.contains(&event["session"]));
    let (arrived, flows) = arrivals(&plant);
    let told = output.json().unwrap_or_default();
    Ok(Run { out: told["out"].as_u64().unwrap_or(0), refused: told["refused"].as_u64().unwrap_or(0), arrived, flows, events })
}

impl Run {
    /// The one event of the rule that tripped.
    pub(crate) fn trip(&self, reason: &str) -> Result<&Value> {
        let trips: Vec<_> = self.events.iter().filter(|event| event["limit"].is_u64()).collect();
        ensure!(trips.len() == 1, "{} events of a tripped rule: {:?}", trips.len(), self.events);
        ensure!(trips[0]["reason"] == reason && is_verdict(trips[0], "block"), "{}", trips[0]);
        Ok(trips[0])
    }
}

/// Runs the control, then the attack: exactly `allowed` targets are reached, and `reason` is told.
fn stopped_at(daemon: &Daemon, words: &[String], reason: &str, allowed: usize, all: usize) -> Result<Value> {
    let control = run(daemon, &By::Nobody, words)?;
    ensure!(control.arrived.len() == all, "control: {} of {all} targets were reached", control.arrived.len());
    let attack = run(daemon, &By::run(AGENT), words)?;
    ensure!(attack.arrived.len() == allowed, "{} targets were reached, {allowed} are allowed: {:?}", attack.arrived.len(), attack.arrived);
    let event = attack.trip(reason)?;
    let count = event["count"].as_u64().context("no count")?;
    ensure!(count == allowed as u64 + 1 && event["limit"] == allowed, "{event}");
    ensure!(event["targets"].as_array().is_some_and(|targets| targets.len() > 1), "no sample of targets: {event}");
    // However many were refused, they are told together.
    ensure!(attack.events.len() <= 3, "{} events of one pattern", attack.events.len());
    Ok(event.clone())
}

fn raw_syn_packets_stop_at_the_number_of_ports(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let event = stopped_at(daemon, &reach(daemon, "syn", 1, &["10.50.0.11:6000-6099"])?, "scan_ports", 15, 100)?;
    ensure!(event["hook"] == "egress", "{event}");
    Ok(())
}

fn sweep_of_one_port_stops_at_the_number_of_hosts(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    // Fifty at a time: the number holds however many race for it.
    let event = stopped_at(daemon, &reach(daemon, "tcp", 50, &["10.50.1.[1-200]:8080"])?, "scan_hosts", 25, 200)?;
    ensure!(event["exempt"].as_str().is_some_and(|line| line.starts_with("exempt = [\"10.50.1.") && line.ends_with(":8080\"]")), "{event}");
    Ok(())
}

fn sweep_over_ipv6_stops_at_the_number_of_hosts(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let script = "for i in $(seq 1 60); do (exec 3<>/dev/tcp/fd00:50::$i/8080) 2>/dev/null; done; true";
    let event = stopped_at(daemon, &["/bin/bash", "-c", script].map(str::to_owned), "scan_hosts", 25, 60)?;
    ensure!(
        event["hook"] == "connect" && event["destination"]["address"].as_str().is_some_and(|host| host.starts_with("fd00:50::")),
        "{event}"
    );
    Ok(())
}

fn process_for_each_attempt_changes_nothing(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let script = "for i in $(seq 1 60); do bash -c \"exec 3<>/dev/tcp/10.50.2.$i/8081\" 2>/dev/null & done; wait; true";
    let words = ["/bin/bash", "-c", script].map(str::to_owned);
    stopped_at(daemon, &words, "scan_hosts", 25, 60).map(drop)
}

fn diagonal_scan_stops_at_the_number_of_pairs(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    stopped_at(daemon, &reach(daemon, "tcp", 20, &["diagonal:300"])?, "scan_pairs", 100, 300).map(drop)
}

fn datagrams_and_pings_count_and_udp_connects_do_not(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let event = stopped_at(daemon, &reach(daemon, "udp", 1, &["10.50.3.[1-60]:9999"])?, "scan_hosts", 25, 60)?;
    ensure!(event["hook"] == "egress", "{event}");
    let event = stopped_at(daemon, &reach(daemon, "icmp", 1, &["10.50.4.[1-60]:0"])?, "scan_hosts", 25, 60)?;
    ensure!(event["destination"].get("port").is_none(), "{event}");
    let connects = run(daemon, &By::run(AGENT), &reach(daemon, "udp-connect", 1, &["10.50.3.[1-200]:9999"])?)?;
    ensure!(connects.out == 200 && connects.events.is_empty(), "{:?}", connects.events);
    Ok(())
}

/// Attempts at logins: how many flows arrive is what counts.
fn flows_stopped_at(daemon: &Daemon, words: &[String], reason: &str, allowed: usize) -> Result<Value> {
    let control = run(daemon, &By::Nobody, words)?;
    ensure!(control.flows.len() > allowed, "control: only {} flows arrived", control.flows.len());
    let attack = run(daemon, &By::run(AGENT), words)?;
    ensure!(attack.flows.len() == allowed, "{} flows arrived, {allowed} are allowed", attack.flows.len());
    let event = attack.trip(reason)?;
    ensure!(event["count"] == allowed + 1 && event["limit"] == allowed, "{event}");
    Ok(event.clone())
}

fn process_for_each_guess_changes_nothing(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let script = format!("for i in $(seq 1 30); do bash -c 'exec 3<>/dev/tcp/{}/21' 2>/dev/null; done; true", FTP.ip());
    let event = flows_stopped_at(daemon, &["/bin/bash".into(), "-c".into(), script], "spray_target", 10)?;
    ensure!(event["attack"] == serde_json::json!(["T1110.001"]) && event["window_s"] == 60, "{event}");
    ensure!(event["exempt"] == format!("exempt = [\"{}/32:21\"]", FTP.ip()), "{event}");
    Ok(())
}

fn spray_over_hosts_stops_at_the_number_of_hosts(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let event = stopped_at(daemon, &reach(daemon, "tcp", 10, &["10.50.5.[1-40]:3389"])?, "spray_hosts", 5, 40)?;
    ensure!(event["attack"] == serde_json::json!(["T1110.003"]), "{event}");
    Ok(())
}

fn spray_over_hosts_elsewhere_is_stopped_too(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let attack = run(daemon, &By::run(AGENT), &reach(daemon, "tcp", 10, &["203.0.113.[20-60]:22"])?)?;
    ensure!(attack.out == 5 && attack.refused == 36, "{} went out, {} were refused", attack.out, attack.refused);
    attack.trip("spray_hosts").map(drop)
}

/// The rules' windows are counted in minutes: tests of the long ones lower its number below that of the short one instead of waiting.
/// That windows end when they must is shown by the property tests of pp-common.
fn with_rules(world: &mut World, keys: &str) -> Result<Daemon> {
    let policy = Policy::standard(world.lab()).with(&format!("[behaviour]\n{keys}"));
    world.own(&policy)
}

fn slow_spray_is_stopped_by_the_long_window(world: &mut World) -> Result<()> {
    let daemon = with_rules(world, "target_per_minute = 64\ntarget_per_half_hour = 12")?;
    let event = flows_stopped_at(&daemon, &reach(&daemon, "tcp", 1, &["10.50.0.30:23x40"])?, "spray_target", 12)?;
    ensure!(event["window_s"] == 1800, "{event}");
    Ok(())
}

fn low_and_wide_spray_is_stopped_by_the_number_of_targets(world: &mut World) -> Result<()> {
    let daemon = with_rules(world, "login_hosts = 100\nhosts_per_port = 100\nlogin_targets = 9")?;
    let event = stopped_at(&daemon, &reach(&daemon, "tcp", 1, &["10.50.6.[1-40]:445"])?, "spray_hosts", 9, 40)?;
    ensure!(event["window_s"] == 1800, "{event}");
    Ok(())
}

fn ssh_has_room_for_submodules_and_no_more(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let submodules = run(daemon, &By::run(AGENT), &reach(daemon, "tcp", 4, &["10.50.0.22:22x16"])?)?;
    ensure!(submodules.flows.len() == 16 && submodules.events.is_empty(), "{} flows, {:?}", submodules.flows.len(), submodules.events);
    flows_stopped_at(daemon, &reach(daemon, "tcp", 8, &["10.50.0.22:22x50"])?, "spray_target", 20).map(drop)
}

fn tripped_pattern_stays_blocked_without_the_daemon(world: &mut World) -> Result<()> {
    let mut daemon = with_rules(world, "hosts_per_port = 3")?;
    let go = daemon.path("again");
    let reach_words = |targets: &[&str]| -> Result<String> { Ok(reach(&daemon, "tcp", 1, targets)?.join("' '")) };
    let script = format!(
        "'{}'; until [ -e {} ]; do read -t 0.02 <> <(:); done; '{}'; '{}'",
        reach_words(&["10.50.7.[1-9]:8082"])?,
        go.display(),
        reach_words(&["10.50.7.[1-9]:8082"])?,
        reach_words(&["10.50.7.1:8083"])?,
    );
    let mut session = By::run(AGENT).start_words(&daemon, &["/bin/bash".into(), "-c".into(), script])?;
    let first = session.line_with("out")?;
    ensure!(first["out"] == 3 && first["refused"] == 6, "{first}");
    daemon.crash()?;
    std::fs::write(&go, "")?;
    let output = session.finish(pp_tests::run::PATIENCE)?;
    let lines: Vec<Value> = output.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    ensure!(lines[1]["out"] == 0 && lines[2]["out"] == 1, "{lines:?}");
    daemon.spawn()
}

fn policy_exempts_networks_and_ports(world: &mut World) -> Result<()> {
    let daemon = with_rules(world, "exempt = [\"10.50.8.0/24:22\", \"10.50.9.0/24\"]")?;
    let fleet = run(&daemon, &By::run(AGENT), &reach(&daemon, "tcp", 10, &["10.50.8.[1-60]:22", "10.50.9.[1-60]:8084"])?)?;
    ensure!(fleet.arrived.len() == 120 && fleet.events.is_empty(), "{} reached, {:?}", fleet.arrived.len(), fleet.events);
    stopped_at(&daemon, &reach(&daemon, "tcp", 1, &["10.50.8.[1-60]:8084"])?, "scan_hosts", 25, 60).map(drop)
}

fn observed_rules_tell_and_block_nothing(world: &mut World) -> Result<()> {
    let daemon = with_rules(world, "mode = \"observe\"")?;
    let sweep = run(&daemon, &By::run(AGENT), &reach(&daemon, "tcp", 10, &["10.50.10.[1-60]:8085"])?)?;
    ensure!(sweep.arrived.len() == 60 && sweep.refused == 0, "{} reached, {} refused", sweep.arrived.len(), sweep.refused);
    let told: Vec<_> = sweep.events.iter().filter(|event| event["limit"].is_u64()).collect();
    ensure!(told.len() == 1 && told[0]["reason"] == "scan_hosts" && is_verdict(told[0], "observe"), "{told:?}");
    Ok(())
}

fn check_says_what_is_judged(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    for (target, wanted) in
        [("10.50.0.9:80", "judged"), ("198.51.100.10:443", "not judged"), ("127.0.0.1:80", "not judged"), ("10.99.0.2:80", "not judged")]
    {
        let answer = daemon.cli(&["check", target, "--agent", AGENT, "--json"])?.success()?.json()?;
        ensure!(answer["behaviour"] == wanted, "{target}: {answer}");
    }
    Ok(())
}

fn ordinary_work_trips_nothing(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let mut work = vec![
        // A crawl, loopback servers by the hundred, multicast names, an external git server's submodules, a page of many hosts.
        reach(daemon, "tcp", 60, &["203.0.113.[1-254]:443", "198.51.100.[1-60]:80"])?,
        reach(daemon, "tcp", 20, &["127.0.0.1:7000-7300", "127.0.0.[1-60]:21", "10.99.0.2:7000-7100"])?,
        reach(daemon, "udp", 1, &["224.0.0.251:5353x40", "198.51.100.53:53x300"])?,
        reach(daemon, "tcp", 4, &["203.0.113.10:22x60"])?,
        // A workstation's own services: a proxy, a registry, a database, one host each.
        reach(daemon, "tcp", 4, &["10.50.0.40:3128x80", "10.50.0.41:5000x80", "10.50.0.42:5432x80", "10.50.0.[43-60]:443"])?,
    ];
    for words in work.drain(..) {
        let done = run(daemon, &By::run(AGENT), &words)?;
        ensure!(done.refused == 0 && done.events.is_empty(), "{words:?}: {} refused, {:?}", done.refused, done.events);
    }
    Ok(())
}
