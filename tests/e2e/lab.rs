//! The lab itself: every target is up. Without this a refusal would say nothing; that each way to reach one works is the control run of its row in `coverage`.

use anyhow::{Context as _, Result, ensure};
use pp_tests::attack::Answer;
use pp_tests::lab::{GATEWAY, GATEWAY_443, GATEWAY_OTHER_PORT, OPCUA, PLC, PLC_NEIGHBOUR, PLC_OTHER_PORT, PLC_V6, Place};
use pp_tests::lab::{STRAY_MODBUS, STRAY_OTHER, STREAM, WEB};
use pp_tests::{attack, run, wait};

use crate::world::{World, tests};

tests![every_server_answers_an_ordinary_program, nothing_outside_the_lab_has_a_route];

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

fn nothing_outside_the_lab_has_a_route(_: &mut World) -> Result<()> {
    let routes = std::fs::read_to_string("/proc/self/net/route")?;
    ensure!(routes.lines().count() <= 1, "the runner's own namespace has routes: {routes}");
    Ok(())
}
