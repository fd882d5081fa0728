//! The lab itself: every target is up and every technique works when nobody refuses it. Without this a refusal would say nothing.

use anyhow::{Context as _, Result, ensure};
use pp_tests::attack::{Answer, TECHNIQUES};
use pp_tests::lab::{GATEWAY, GATEWAY_443, GATEWAY_OTHER_PORT, OPCUA, PLC, PLC_NEIGHBOUR, PLC_OTHER_PORT, PLC_V6, Place};
use pp_tests::lab::{STRAY_MODBUS, STRAY_OTHER, STREAM, WEB};
use pp_tests::{attack, harness, run, wait};

use crate::world::{World, tests};

tests![every_server_answers_an_ordinary_program, every_technique_reaches_its_target, nothing_outside_the_lab_has_a_route];

fn every_server_answers_an_ordinary_program(world: &mut World) -> Result<()> {
    let lab = world.lab();
    for target in [
        PLC,
        PLC_OTHER_PORT,
        PLC_NEIGHBOUR,
        PLC_V6,
        STREAM,
        OPCUA,
        GATEWAY,
        GATEWAY_443,
        GATEWAY_OTHER_PORT,
        STRAY_MODBUS,
        STRAY_OTHER,
        WEB,
    ] {
        let servers = if target == WEB { lab.it_servers() } else { lab.servers() }.from_now();
        let attempt = attack::tcp(lab, target);
        let output = run::run(&mut lab.command(Place::Engineering, &attempt.words))?;
        ensure!((attempt.read)(&output)? == Answer::Delivered, "{target}: {output}");
        wait::until_true("the server's log", wait::SOON, || !servers.arrivals_at(target).is_empty()).with_context(|| target.to_string())?;
    }
    Ok(())
}

fn every_technique_reaches_its_target(world: &mut World) -> Result<()> {
    let lab = world.lab();
    for technique in &TECHNIQUES {
        let attempt = technique.attempt(lab);
        let plant = lab.plant().from_now();
        let output = run::run(&mut lab.command(Place::Engineering, &attempt.words))?;
        match ((attempt.read)(&output).with_context(|| attempt.name.clone())?, technique.needs) {
            (Answer::Delivered, _) => {}
            (Answer::Refused(errno), Some(need)) if errno == need.errno() => continue,
            (other, _) => anyhow::bail!("{}: {other:?}", attempt.name),
        }
        wait::until_true("packets in the plant", wait::SOON, || !plant.packets_to(attempt.target).is_empty())
            .with_context(|| attempt.name.clone())?;
    }
    harness::catch_up(lab)
}

fn nothing_outside_the_lab_has_a_route(_: &mut World) -> Result<()> {
    let routes = std::fs::read_to_string("/proc/self/net/route")?;
    ensure!(routes.lines().count() <= 1, "the runner's own namespace has routes: {routes}");
    Ok(())
}
