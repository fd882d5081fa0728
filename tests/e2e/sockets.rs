//! Sockets that were there before the mark, came from elsewhere, or lead somewhere else than they say; and clients of an agent's own server.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use nix::libc;
use pp_tests::attack::{self, Answer, Attempt};
use pp_tests::harness::{By, Refusal, is_block, is_verdict};
use pp_tests::lab::{Journal, PLC, Place, STRAY_MODBUS, STRAY_OTHER, UDP};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run::{self, Running};
use pp_tests::{agent::Daemon, harness, wait};
use serde_json::Value;

use crate::world::{World, skip, tests};

tests![
    socket_opened_before_the_mark_cannot_connect,
    udp_socket_opened_before_the_mark_cannot_send,
    connected_socket_that_was_inherited_cannot_be_written,
    connected_socket_that_was_inherited_cannot_be_written_under_another_address,
    connected_socket_that_was_passed_in_cannot_be_written,
    dnat_into_a_zone_is_refused,
    client_of_an_agents_server_is_served_whatever_its_source_port,
    device_that_dials_an_mptcp_listener_gets_nothing,
    device_that_dials_an_mptcp_listener_by_ipv6_gets_nothing,
    device_that_dials_an_mptcp_listener_without_a_bind_gets_nothing,
    zero_address_is_refused_where_a_zone_covers_loopback,
];

/// The words that open a socket as told before what follows them.
fn opened(daemon: &Daemon, target: SocketAddr, state: &str) -> Vec<String> {
    let program = daemon.lab().program("pp-workload").display().to_string();
    vec![program, "open-then-exec".into(), target.to_string(), "--state".into(), state.into(), "--".into()]
}

/// The same made by an agent: the socket is opened outside its session.
fn opened_for_agent(daemon: &Daemon, target: SocketAddr, state: &str) -> By {
    let mut words = opened(daemon, target, state);
    words.extend(daemon.cli_words(&["run", "--agent", AGENT, "--"]));
    By::Words(words)
}

fn socket_opened_before_the_mark_cannot_connect(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let attempt = attack::workload(daemon.lab(), &["use-stdin", "--connect", &PLC.to_string()], PLC);
    let control = By::Words(opened(daemon, PLC, "tcp"));
    let _event = Refusal::of(attempt, opened_for_agent(daemon, PLC, "tcp")).with_control(control).assert(daemon)?;
    Ok(())
}

fn udp_socket_opened_before_the_mark_cannot_send(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let attempt = attack::workload(daemon.lab(), &["use-stdin", "--connect", &UDP.to_string()], UDP);
    let control = By::Words(opened(daemon, UDP, "udp"));
    let _event = Refusal::of(attempt, opened_for_agent(daemon, UDP, "udp")).with_control(control).assert(daemon)?;
    Ok(())
}

/// True if a packet with data has arrived there. A handshake has none, and the end of a refused socket never leaves the host.
fn data_at(target: SocketAddr, daemon: &Daemon, plant: &Journal) -> Result<bool> {
    /// The longest packet of a handshake over IPv4: 20 bytes of IP header, 40 of TCP header with all its options.
    const HANDSHAKE: u64 = 60;
    harness::catch_up(daemon.lab())?;
    Ok(plant.packets_to(target).iter().any(|packet| packet.bytes > HANDSHAKE))
}

fn passed_is_a_gap(world: &mut World) -> Result<bool> {
    let gaps = world.daemon()?.client()?.status()?["gaps"].clone();
    Ok(gaps.as_array().is_some_and(|gaps| gaps.iter().any(|gap| gap == "passed")))
}

/// With cgroup programs alone nothing sees these writes before the packet is made: the daemon must say so itself.
fn is_stated_gap(world: &mut World) -> Result<bool> {
    if world.backend()? != "cgroup" {
        return Ok(false);
    }
    ensure!(passed_is_a_gap(world)?, "no gap is stated for connected sockets that are passed on");
    Ok(true)
}

fn connected_socket_that_was_inherited_cannot_be_written(world: &mut World) -> Result<()> {
    if is_stated_gap(world)? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let attempt = attack::workload(daemon.lab(), &["use-stdin"], PLC);
    let plant = daemon.lab().plant().from_now();
    ensure!(By::Words(opened(daemon, PLC, "tcp-connected")).attempt(daemon, &attempt)? == Answer::Delivered, "control run");
    ensure!(data_at(PLC, daemon, &plant)?, "control run: no data arrived");

    let (plant, mark) = (daemon.lab().plant().from_now(), daemon.events().mark());
    let answer = opened_for_agent(daemon, PLC, "tcp-connected").attempt(daemon, &attempt)?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{answer:?}");
    ensure!(!data_at(PLC, daemon, &plant)?, "data arrived");
    let _event = daemon.events().wait_since(mark, "its event", |event| is_block(event, PLC))?;
    Ok(())
}

/// To a service outside every zone, with a harmless address in the message: a connected stream goes where it goes all the same. With
/// fmod_ret only egress judges services, which lets the write succeed and nothing leave.
fn connected_socket_that_was_inherited_cannot_be_written_under_another_address(world: &mut World) -> Result<()> {
    // fmod_ret on 5.10 has nothing that could give the socket its mark.
    if is_stated_gap(world)? || world.backend()? == "fmod_ret" && passed_is_a_gap(world)? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let attempt = attack::workload(daemon.lab(), &["write-stdin", "--to", &STRAY_OTHER.to_string()], STRAY_MODBUS);
    let write = |by: &By| -> Result<(Answer, bool)> {
        let plant = daemon.lab().plant().from_now();
        let answer = by.attempt(daemon, &attempt)?;
        Ok((answer, data_at(STRAY_MODBUS, daemon, &plant)?))
    };
    let (answer, arrived) = write(&By::Words(opened(daemon, STRAY_MODBUS, "tcp-connected")))?;
    ensure!(answer == Answer::Delivered && arrived, "control run: {answer:?}, data arrived: {arrived}");
    let mark = daemon.events().mark();
    let (answer, arrived) = write(&opened_for_agent(daemon, STRAY_MODBUS, "tcp-connected"))?;
    ensure!(!arrived, "data arrived, the answer was {answer:?}");
    let _event = daemon.events().wait_since(mark, "its event", |event| is_block(event, STRAY_MODBUS))?;
    Ok(())
}

fn connected_socket_that_was_passed_in_cannot_be_written(world: &mut World) -> Result<()> {
    if is_stated_gap(world)? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let lab = daemon.lab();
    let pass = |by: &By, name: &str| -> Result<(Answer, bool)> {
        let socket = daemon.path(name).display().to_string();
        let plant = lab.plant().from_now();
        let giver = attack::workload(lab, &["pass-fd", &socket, &PLC.to_string()], PLC);
        let mut giver = Running::start(&mut lab.command(Place::Engineering, &giver.words))?;
        let _ready = giver.line_with("ready")?;
        let answer = by.attempt(daemon, &attack::workload(lab, &["recv-fd", &socket], PLC))?;
        drop(giver);
        Ok((answer, data_at(PLC, daemon, &plant)?))
    };
    let (answer, arrived) = pass(&By::Nobody, "pass-control")?;
    ensure!(answer == Answer::Delivered && arrived, "control run: {answer:?}, data arrived: {arrived}");
    let mark = daemon.events().mark();
    let (answer, arrived) = pass(&By::run(AGENT), "pass-agent")?;
    ensure!(answer == Answer::Refused(libc::EPERM) && !arrived, "{answer:?}, data arrived: {arrived}");
    let _event = daemon.events().wait_since(mark, "its event", |event| is_block(event, PLC))?;
    Ok(())
}

fn dnat_into_a_zone_is_refused(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let lab = daemon.lab();
    let rules = format!(
        "add table ip pplab; add chain ip pplab out {{ type nat hook output priority -100; }}; \
         add rule ip pplab out ip daddr 198.51.100.99 tcp dport 8502 dnat to {PLC}"
    );
    let output = run::run(&mut lab.command(Place::Engineering, &["nft", &rules]))?;
    if !output.status.success() {
        return Err(skip(&format!("nftables are not to be had here: {}", output.stderr.trim())));
    }
    let mut attempt = attack::workload(lab, &["try", "tcp-connect", "198.51.100.99:8502"], PLC);
    attempt.name = "connect that is translated into the zone".to_owned();
    let refusal = Refusal::of(attempt, By::run(AGENT)).with_control(By::Nobody).heard_as(&[libc::EPERM, libc::ECONNABORTED]);
    let shown = refusal.assert(daemon);
    let _removed = run::run(&mut lab.command(Place::Engineering, &["nft", "delete table ip pplab"]))?.success()?;
    shown.map(drop)
}

fn client_of_an_agents_server_is_served_whatever_its_source_port(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let lab = daemon.lab();
    let mark = daemon.events().mark();
    let server = attack::workload(lab, &["serve", "0.0.0.0:9000", "--accept", "3"], PLC);
    let mut server = Running::start(&mut lab.command(Place::Engineering, &By::run(AGENT).words(daemon, &server.words)))?;
    let _ready = server.line_with("ready")?;
    for port in [502, 4840, 44818] {
        let source = format!("10.97.0.2:{port}");
        let client = attack::workload(lab, &["dial", "10.99.0.2:9000", "--source", &source], PLC);
        let answer = run::run(&mut lab.command(Place::It, &client.words))?.json()?;
        ensure!(answer["ok"] == true && answer["answer"] == "served\n", "from source port {port}: {answer}");
    }
    let _served = server.finish(run::PATIENCE)?.success()?;
    // What a socket of an earlier test still tries to send is none of this one's.
    let to_client = |event: &Value| is_verdict(event, "block") && event["destination"]["address"] == "10.97.0.2";
    let told: Vec<Value> = daemon.events().since(mark).into_iter().filter(to_client).collect();
    ensure!(told.is_empty(), "serving made events: {told:?}");
    Ok(())
}

/// Nobody's MPTCP listener greets a device that dials it by MPTCP or TCP. An agent's gets no connection, has an event, and still serves a
/// client that nothing protects.
fn is_not_served(world: &mut World, listen: &str, options: &[&str], [own, device, client]: [&str; 3]) -> Result<()> {
    /// Each dial has a port of its own, so that no packet of an earlier one is taken for its.
    static PORT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(41_000);
    let daemon = world.daemon()?;
    let lab = daemon.lab();
    let serve = |by: &By| -> Result<(Running, SocketAddr)> {
        let words = attack::workload(lab, &[&["serve", listen, "--mptcp", "--accept", "2"], options].concat(), PLC).words;
        let mut server = Running::start(&mut lab.command(Place::Engineering, &by.words(daemon, &words)))?;
        let ready = server.line_with("ready").map_err(|error| skip(&format!("no MPTCP on this kernel: {error:#}")))?;
        let port = ready["port"].as_u64().unwrap_or_default();
        Ok((server, SocketAddr::new(own.parse()?, u16::try_from(port)?)))
    };
    let dial = |place: Place, from: &str, to: SocketAddr, options: &[&str]| -> Result<(SocketAddr, Value)> {
        let source = SocketAddr::new(from.parse()?, PORT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let (to, from) = (to.to_string(), source.to_string());
        let words = [&["dial", &to, "--source", &from], options].concat();
        Ok((source, run::run(&mut lab.command(place, &attack::workload(lab, &words, source).words))?.json()?))
    };
    const WAYS: [&[&str]; 2] = [&["--mptcp"], &[]];

    let (server, to) = serve(&By::Nobody)?;
    for way in WAYS {
        let plant = lab.plant().from_now();
        let (source, answer) = dial(Place::Plant, device, to, way)?;
        ensure!(answer["answer"] == "served\n", "control run {way:?}: {answer}");
        wait::until_true("control run: its packets", wait::SOON, || !plant.packets_to(source).is_empty())?;
    }
    let _served = server.finish(run::PATIENCE)?.success()?;

    let (server, to) = serve(&By::run(AGENT))?;
    for way in WAYS {
        harness::catch_up(lab)?;
        let (plant, mark) = (lab.plant().from_now(), daemon.events().mark());
        let (source, answer) = dial(Place::Plant, device, to, way)?;
        ensure!(answer["ok"] == false && answer["answer"] == "", "{way:?}: {answer}");
        harness::catch_up(lab)?;
        let packets = plant.packets_to(source);
        ensure!(packets.is_empty(), "{way:?}: the device got {packets:?}");
        let event = daemon.events().wait_since(mark, "its event", |event| is_block(event, source))?;
        ensure!(event["hook"] == "ingress" && event["reason"] == "no_receipt", "{event}");
    }
    let mark = daemon.events().mark();
    for way in WAYS {
        let (_, answer) = dial(Place::It, client, to, way)?;
        ensure!(answer["answer"] == "served\n", "client of an agent's server, {way:?}: {answer}");
    }
    let _served = server.finish(run::PATIENCE)?.success()?;
    let to_client = |event: &Value| is_verdict(event, "block") && event["destination"]["address"] == client;
    let told: Vec<Value> = daemon.events().since(mark).into_iter().filter(to_client).collect();
    ensure!(told.is_empty(), "serving made events: {told:?}");
    Ok(())
}

fn device_that_dials_an_mptcp_listener_gets_nothing(world: &mut World) -> Result<()> {
    is_not_served(world, "0.0.0.0:9002", &[], ["10.99.0.2", "10.20.4.7", "10.97.0.2"])
}

fn device_that_dials_an_mptcp_listener_by_ipv6_gets_nothing(world: &mut World) -> Result<()> {
    is_not_served(world, "[::]:9003", &[], ["fd00:99::2", "fd00:20::7", "fd00:97::2"])
}

/// Nothing but `listen` itself is called: no hook of `bind` can know of it.
fn device_that_dials_an_mptcp_listener_without_a_bind_gets_nothing(world: &mut World) -> Result<()> {
    is_not_served(world, "0.0.0.0:0", &["--unbound"], ["10.99.0.2", "10.20.4.7", "10.97.0.2"])
}

fn zero_address_is_refused_where_a_zone_covers_loopback(world: &mut World) -> Result<()> {
    let standard = Policy::standard(world.lab());
    // A reload instead of a daemon of its own, which would take a minute to start in a test machine.
    let daemon = world.daemon()?;
    daemon.reload(&standard.clone().with("[[zone]]\nname = \"loopback\"\nnetworks = [\"127.0.0.0/8\"]\n"))?;
    let lab = daemon.lab();
    let log = daemon.path("local.jsonl");
    let sink = attack::workload(lab, &["sink", "--log", &log.display().to_string(), "tcp:127.0.0.1:5555"], PLC);
    let mut sink = Running::start(&mut lab.command(Place::Engineering, &sink.words))?;
    let _ready = sink.line_with("ready")?;
    let local: SocketAddr = "127.0.0.1:5555".parse()?;
    let attempt: Attempt = attack::workload(lab, &["try", "tcp-connect", "0.0.0.0:5555"], local);
    let journal = Journal::new(log);
    ensure!(By::Nobody.attempt(daemon, &attempt)? == Answer::Delivered, "control run");
    wait::until_true("the control run's connection", wait::SOON, || journal.arrivals_at(local).len() == 1)?;

    let mark = daemon.events().mark();
    let answer = By::run(AGENT).attempt(daemon, &attempt)?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{answer:?}");
    let _event = daemon.events().wait_since(mark, "its event", |event| is_verdict(event, "block") && event["zone"] == "loopback")?;
    // Connections are accepted in order: behind one more of nobody's, the refused one would have been seen.
    ensure!(By::Nobody.attempt(daemon, &attempt)? == Answer::Delivered, "control run after it");
    wait::until_true("the second control run's connection", wait::SOON, || journal.arrivals_at(local).len() >= 2)?;
    ensure!(journal.arrivals_at(local).len() == 2, "the refused connection arrived");
    daemon.reload(&standard)
}
