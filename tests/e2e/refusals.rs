//! What is refused, and what the refusal says: every kind of protected target. Every way to reach one is in `coverage.rs`.

use anyhow::{Result, ensure};
use pp_tests::attack::{self, Answer};
use pp_tests::harness::{By, Refusal, is_verdict};
use pp_tests::lab::{GATEWAY, GATEWAY_443, GATEWAY_OTHER_PORT, OPCUA, PLC, PLC_NEIGHBOUR, PLC_OTHER_PORT, STRAY_MODBUS, STRAY_OTHER};
use pp_tests::policy::{AGENT, HOST, Policy};

use crate::world::{World, tests};

tests![
    event_says_who_what_where_and_why,
    any_port_of_a_zone_is_protected,
    gateway_is_protected_on_the_ports_that_policy_names,
    ot_service_is_protected_outside_every_zone,
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
