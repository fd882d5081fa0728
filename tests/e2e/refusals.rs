//! What is refused, and what the refusal says: every kind of protected target. Every way to reach one is in `coverage.rs`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use pp_tests::attack::{self, Answer};
use pp_tests::harness::{By, Refusal, catch_up, is_block, is_verdict};
use pp_tests::lab::{
    GATEWAY, GATEWAY_443, GATEWAY_OTHER_PORT, OPCUA, PLC, PLC_NEIGHBOUR, PLC_OTHER_PORT, STRAY_MODBUS, STRAY_OTHER, STRAY_PORT,
};
use pp_tests::lab::{Lab, Place};
use pp_tests::policy::{AGENT, HOST, Policy};
use pp_tests::run::Running;
use pp_tests::services::{self, ServicePort};
use pp_tests::wait;

use crate::coverage::answers;
use crate::world::{World, tests};

tests![
    event_says_who_what_where_and_why,
    any_port_of_a_zone_is_protected,
    gateway_is_protected_on_the_ports_that_policy_names,
    ot_service_is_protected_outside_every_zone,
    each_port_of_each_service_is_refused_over_each_of_its_transports,
    other_ports_outside_every_zone_are_not,
    repeats_of_one_pair_are_told_once_at_first,
    observed_places_let_through_and_tell,
];

fn event_says_who_what_where_and_why(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let attempt = attack::tcp(daemon.lab(), PLC);
    let program = daemon.lab().program("pp-workload").display().to_string();
    let event = Refusal::of(attempt, By::run(AGENT)).with_control(By::Nobody).assert(daemon)?;
    ensure!(event["host"] == HOST, "host: {event}");
    ensure!(event["agent"] == AGENT, "agent: {event}");
    ensure!(event["owner"]["uid"] == 0 && event["owner"]["name"] == "root", "owner: {event}");
    ensure!(event["zone"] == "plant-7" && event["service"] == "modbus", "zone and service: {event}");
    ensure!(event["destination"]["transport"] == "tcp", "transport: {event}");
    ensure!(event["executable"] == program.as_str(), "executable: {event}");
    ensure!(event["argv"][1] == "try", "argv: {event}");
    ensure!(event["session"].as_str().is_some_and(|session| !session.is_empty()), "session: {event}");
    ensure!(event["parents"].as_array().is_some_and(|parents| !parents.is_empty()), "parents: {event}");
    ensure!(event["attack"].as_array().is_some_and(|ids| ids.iter().any(|id| id == "T0886")), "technique: {event}");
    ensure!(event["time"].as_str().is_some_and(|time| time.ends_with('Z')) && !event["id"].is_null(), "time and id: {event}");
    Ok(())
}

fn any_port_of_a_zone_is_protected(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    for target in [PLC_OTHER_PORT, PLC_NEIGHBOUR, OPCUA] {
        let event = Refusal::of(attack::tcp(daemon.lab(), target), By::LAB_AGENT).with_control(By::Nobody).assert(daemon)?;
        ensure!(event["zone"] == "plant-7", "{event}");
    }
    Ok(())
}

fn gateway_is_protected_on_the_ports_that_policy_names(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    for target in [GATEWAY, GATEWAY_443] {
        let event = Refusal::of(attack::tcp(daemon.lab(), target), By::LAB_AGENT).with_control(By::Nobody).assert(daemon)?;
        ensure!(event["gateway"] == "vnode-east", "{event}");
    }
    let elsewhere = attack::tcp(daemon.lab(), GATEWAY_OTHER_PORT);
    ensure!(By::LAB_AGENT.attempt(daemon, &elsewhere)? == Answer::Delivered, "a port that policy does not name was refused");
    Ok(())
}

fn ot_service_is_protected_outside_every_zone(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let event = Refusal::of(attack::tcp(daemon.lab(), STRAY_MODBUS), By::run(AGENT)).with_control(By::Nobody).assert(daemon)?;
    ensure!(event["service"] == "modbus" && event.get("zone").is_none_or(serde_json::Value::is_null), "{event}");
    Ok(())
}

/// Hosts outside every zone, of which no other test asks for these ports.
const SERVERS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(10, 40, 1, 254)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, 0xfe))];

/// Servers that take whatever comes at these ports.
fn serve(lab: &Lab, ports: &[(SocketAddr, ServicePort)]) -> Result<Running> {
    let log = lab.directory().join("servers.jsonl").display().to_string();
    let mut words = vec![lab.program("pp-workload").display().to_string(), "sink".into(), "--log".into(), log];
    // The lab has a server on this port of every IPv4 address.
    let is_served = |target: SocketAddr, transport: &str| target.is_ipv4() && target.port() == STRAY_PORT && transport == "tcp";
    let missing = ports.iter().filter(|(target, port)| !is_served(*target, &port.transport));
    words.extend(missing.map(|(target, port)| format!("{}:{target}", port.transport)));
    let mut running = Running::start(&mut lab.command(Place::Plant, &words))?;
    let _ready = running.line_within("ready", wait::SOON)?;
    Ok(running)
}

/// Outside every zone the port and the transport alone say what is protected. Both are those of the page about policy.
fn each_port_of_each_service_is_refused_over_each_of_its_transports(world: &mut World) -> Result<()> {
    let policy = Policy::shipped(world.lab());
    let daemon = world.sharing(&policy)?;
    let lab = daemon.lab();
    let ports = services::by_default()?;
    let ports: Vec<(SocketAddr, ServicePort)> =
        SERVERS.iter().flat_map(|host| ports.iter().map(|port| (SocketAddr::new(*host, port.port), port.clone()))).collect();
    let _servers = serve(lab, &ports)?;
    let line = |(target, port): &(SocketAddr, ServicePort)| {
        let technique = if port.transport == "tcp" { "tcp-connect" } else { "udp-sendto" };
        format!("{technique} {target}")
    };
    let list = daemon.path("services");
    fs::write(&list, ports.iter().map(line).collect::<Vec<_>>().join("\n"))?;
    let batch = attack::workload(lab, &["batch", "--here", &list.display().to_string()], STRAY_MODBUS).words;
    let run = |by: &By| -> Result<Vec<Option<Answer>>> {
        let output = by.run_words(daemon, &batch)?.success()?;
        catch_up(lab)?;
        Ok(answers(&output.stdout, ports.len()))
    };
    // The ports that are not as they should be, as the test reports them.
    let wrong = |is_right: &dyn Fn(usize) -> bool| -> Vec<String> {
        let wrong = ports.iter().enumerate().filter(|(index, _)| !is_right(*index));
        wrong.map(|(_, (target, port))| format!("{} {target}/{}", port.service, port.transport)).collect()
    };
    let protocol = |port: &ServicePort| u64::from(if port.transport == "tcp" { 6_u8 } else { 17 });

    let plant = lab.plant().from_now();
    let control = run(&By::Nobody)?;
    let lost = wrong(&|index| control.get(index) == Some(&Some(Answer::Delivered)));
    ensure!(lost.is_empty(), "control run: not delivered: {}", lost.join(", "));
    let arrived = || -> Vec<(SocketAddr, u64)> { plant.new_packets().iter().map(|packet| (packet.destination, packet.protocol)).collect() };
    wait::until_true("control run: a packet at each port", wait::SOON, || {
        let arrived = arrived();
        ports.iter().all(|(target, port)| arrived.contains(&(*target, protocol(port))))
    })?;

    let (plant, mark) = (lab.plant().from_now(), daemon.events().mark());
    let agent = run(&By::LAB_AGENT)?;
    let passed = wrong(&|index| agent.get(index) == Some(&Some(Answer::Refused(libc::EPERM))));
    ensure!(passed.is_empty(), "not refused: {}", passed.join(", "));
    let packets: Vec<_> = plant.new_packets().into_iter().filter(|packet| SERVERS.contains(&packet.destination.ip())).collect();
    ensure!(packets.is_empty(), "arrived: {packets:?}");
    let silent = || {
        let events = daemon.events().since(mark);
        wrong(&|index| {
            let Some((target, port)) = ports.get(index) else { return false };
            events.iter().any(|event| {
                let is_of_port = is_block(event, *target) && event["destination"]["transport"] == port.transport.as_str();
                is_of_port && event["service"] == port.service.as_str() && event.get("zone").is_none_or(serde_json::Value::is_null)
            })
        })
    };
    wait::until_true("an event for each port", wait::SOON, || silent().is_empty()).with_context(|| silent().join(", "))
}

fn other_ports_outside_every_zone_are_not(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let mark = daemon.events().mark();
    ensure!(By::run(AGENT).attempt(daemon, &attack::tcp(daemon.lab(), STRAY_OTHER))? == Answer::Delivered, "an ordinary port was refused");
    let told: Vec<_> = daemon.events().of_sessions_since(mark).into_iter().filter(|event| event["kind"] == "verdict").collect();
    ensure!(told.is_empty(), "ordinary traffic made events: {told:?}");
    Ok(())
}

fn repeats_of_one_pair_are_told_once_at_first(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let mark = daemon.events().mark();
    let spin = attack::workload(daemon.lab(), &["spin", &PLC.to_string(), "--for-ms", "500"], PLC);
    let answers = By::run(AGENT).run_words(daemon, &spin.words)?.json()?["answers"].clone();
    let refused = answers["1"].as_u64().unwrap_or(0);
    ensure!(refused > 20 && answers.as_object().is_some_and(|answers| answers.len() == 1), "not refused every time: {answers}");
    let first = daemon.events().wait_since(mark, "the first refusal's event", |event| pp_tests::harness::is_block(event, PLC))?;
    let told = daemon.events().since(mark).iter().filter(|event| pp_tests::harness::is_block(event, PLC)).count();
    ensure!(u64::try_from(told)? < refused / 4, "{told} events for {refused} refusals of one pair; the first was {first}");
    Ok(())
}

fn observed_places_let_through_and_tell(world: &mut World) -> Result<()> {
    let standard = Policy::standard(world.lab());
    // A reload instead of a daemon of its own, which would take a minute to start in a test machine.
    let daemon = world.daemon()?;
    daemon.reload(&standard.clone().replacing("name = \"plant-7\"", "name = \"plant-7\"\nmode = \"observe\""))?;
    let mark = daemon.events().mark();
    let answer = By::run(AGENT).attempt(daemon, &attack::tcp(daemon.lab(), PLC))?;
    ensure!(answer == Answer::Delivered, "refused in an observed zone: {answer:?}");
    let event = daemon.events().wait_since(mark, "what would have been refused", |event| is_verdict(event, "observe"))?;
    ensure!(event["zone"] == "plant-7" && event["reason"] == "no_receipt", "{event}");
    // The rest of the policy is enforced as ever.
    let _gateway = Refusal::of(attack::tcp(daemon.lab(), GATEWAY), By::run(AGENT)).with_control(By::Nobody).assert(daemon)?;

    let everything = standard.clone().replacing("mode = \"enforce\"", "mode = \"observe\"");
    daemon.reload(&everything)?;
    let mark = daemon.events().mark();
    let answer = By::run(AGENT).attempt(daemon, &attack::tcp(daemon.lab(), GATEWAY))?;
    ensure!(answer == Answer::Delivered, "refused on an observing host: {answer:?}");
    let _event = daemon.events().wait_since(mark, "what would have been refused", |event| is_verdict(event, "observe"))?;

    daemon.reload(&standard)?;
    let _again = Refusal::of(attack::tcp(daemon.lab(), PLC), By::run(AGENT)).with_control(By::Nobody).assert(daemon)?;
    Ok(())
}
