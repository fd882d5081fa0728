//! What takes long: the daemon killed two hundred times and started as often with registrations racing it, two dozen concurrency hunts, and
//! storms of a million refusals. It harms nothing, so it runs here as in test machines. `soak_machine` has what does.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::attack;
use pp_tests::bystander::Bystander;
use pp_tests::footprint::Footprint;
use pp_tests::harness::{By, catch_up, is_block};
use pp_tests::lab::{PLC, is_emulated};
use pp_tests::policy::Policy;
use pp_tests::run;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

use crate::accounts::{self, fork_storm_pushes_no_refusal_out};
use crate::hunt::{self, Plan};
use crate::world::{World, tests};

tests![
    daemon_killed_two_hundred_times_under_load_opens_nothing,
    registrations_that_race_two_hundred_starts_are_all_in_force,
    two_dozen_seeds_of_the_concurrency_hunt_find_no_unexplained_allow,
    a_million_refusals_three_times_over_are_told_repeated_or_lost,
    fork_storm_pushes_no_refusal_out,
];

/// Refusals of one of the storms.
const STORM: u64 = 1_000_000;
/// The same on an emulated processor.
const EMULATED_STORM: u64 = 200_000;

/// How often the daemon is killed, and after how many of these it may come up whole once.
const KILLS: u32 = 200;
const WHOLE_EVERY: u32 = 20;
/// How many seeds are hunted with, and for how long each.
const SEEDS: u64 = 24;
/// How many of them share a daemon: it keeps what is registered for as long as that could be registered again.
const SEEDS_OF_A_DAEMON: usize = 6;
const SEED_LENGTH: Duration = Duration::from_secs(30);
/// The same on an emulated processor, where a call takes a hundred times as long.
const EMULATED_SEEDS: u64 = 6;
/// How much a daemon may grow.
pub(crate) const RESIDENT_KIB: u64 = 64 * 1024;
pub(crate) const MAPS_KIB: u64 = 64 * 1024;

/// Does something to the gate, and checks that meanwhile no packet came into the zone but to what was opened, nobody without a mark was
/// refused, and that the daemon and the kernel's tables did not grow beyond bounds.
pub(crate) fn holds_under(
    daemon: &mut Daemon,
    what: &str,
    opened: &[SocketAddr],
    act: impl FnOnce(&mut Daemon) -> Result<()>,
) -> Result<()> {
    let lab = std::sync::Arc::clone(daemon.lab());
    let before = Footprint::of(daemon.pid()?)?;
    catch_up(&lab)?;
    let plant = lab.plant().from_now();
    let bystander = Bystander::start(daemon)?;
    act(daemon).with_context(|| what.to_owned())?;
    let connections = bystander.finish().with_context(|| what.to_owned())?;
    catch_up(&lab)?;
    let mut packets = plant.new_packets();
    packets.retain(|packet| packet.destination.ip().to_string().starts_with("10.20.") && !opened.contains(&packet.destination));
    ensure!(packets.is_empty(), "{what}: {} packets arrived in the zone, the first: {:?}", packets.len(), packets.first());
    let after = Footprint::of(daemon.pid()?)?;
    eprintln!(
        "{what}: the daemon has {} KiB, before {}; its maps {} KiB, before {}; {connections} connections of a bystander",
        after.resident_kib, before.resident_kib, after.maps_kib, before.maps_kib,
    );
    before.bounds(&after, RESIDENT_KIB, MAPS_KIB).with_context(|| what.to_owned())
}

/// One value of `/metrics`.
pub(crate) fn metric(daemon: &Daemon, name: &str) -> Result<u64> {
    let text = daemon.client()?.get("/metrics")?.body;
    let line = text.as_str().unwrap_or_default().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.with_context(|| format!("no metric {name}"))?.parse().with_context(|| name.to_owned())
}

/// How many records the events say were lost.
pub(crate) fn told_lost(events: &[Value]) -> u64 {
    events.iter().filter(|event| event["kind"] == "lost").filter_map(|event| event["count"].as_u64()).sum()
}

fn daemon_killed_two_hundred_times_under_load_opens_nothing(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab());
    let mut daemon = world.own(&policy)?;
    // A start that finds everything in place is what is cut short.
    daemon.crash()?;
    let start = Instant::now();
    daemon.spawn()?;
    let whole_ms = u64::try_from(start.elapsed().as_millis())?;
    let seed = world.hunts.seed.unwrap_or_else(hunt::new_seed);
    eprintln!("daemon is killed with --seed {seed}, a whole start takes {whole_ms} ms");
    let mut rng = SmallRng::seed_from_u64(seed);
    holds_under(&mut daemon, "daemon killed two hundred times", &[], |daemon| {
        let enough = daemon.path("enough-kills");
        let until = enough.display().to_string();
        let spin =
            attack::workload(daemon.lab(), &["spin", &PLC.to_string(), "--for-ms", "7200000", "--every-ms", "1", "--until", &until], PLC);
        let mark = daemon.events().mark();
        let running = By::LAB_AGENT.start_words(daemon, &spin.words)?;
        let _spinning = daemon.events().wait_since(mark, "the loop's first refusal", |event| is_block(event, PLC))?;
        daemon.crash()?;
        let mut ready = 0;
        for kill in 2..=KILLS {
            if kill % WHOLE_EVERY == 0 {
                daemon.spawn()?;
                ready += 1;
                daemon.crash()?;
            } else {
                ready += u32::from(daemon.spawn_and_crash(Duration::from_millis(rng.random_range(0..=whole_ms * 3 / 2)))?);
            }
        }
        daemon.spawn()?;
        std::fs::write(&enough, "")?;
        let answers = running.finish(run::PATIENCE)?.success()?.json()?["answers"].clone();
        let refused = answers[libc::EPERM.to_string()].as_u64().unwrap_or(0);
        eprintln!("daemon was killed {KILLS} times, {ready} of them ready; the agent was refused {refused} times");
        ensure!(answers.as_object().is_some_and(|answers| answers.len() == 1) && refused > 100, "answers by error number: {answers}");
        Ok(())
    })
}

fn registrations_that_race_two_hundred_starts_are_all_in_force(world: &mut World) -> Result<()> {
    crate::state::race_starts(world, 200)
}

fn a_million_refusals_three_times_over_are_told_repeated_or_lost(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab());
    let daemon = world.own(&policy)?;
    daemon.events().let_go();
    for _ in 0..3 {
        accounts::storm_on_a_busy_machine(&daemon, &policy, if is_emulated() { EMULATED_STORM } else { STORM })?;
    }
    Ok(())
}

fn two_dozen_seeds_of_the_concurrency_hunt_find_no_unexplained_allow(world: &mut World) -> Result<()> {
    let first = world.hunts.seed.unwrap_or_else(hunt::new_seed);
    let (usual_seeds, usual_length) = if is_emulated() { (EMULATED_SEEDS, hunt::EMULATED) } else { (SEEDS, SEED_LENGTH) };
    let length = world.hunts.seconds.map_or(usual_length, Duration::from_secs);
    let seeds = world.hunts.seeds.unwrap_or(usual_seeds);
    let policy = hunt::policy(world);
    let seeds: Vec<u64> = (first..).take(usize::try_from(seeds)?).collect();
    let mut wrong = Vec::new();
    for some in seeds.chunks(SEEDS_OF_A_DAEMON) {
        let daemon = world.own(&policy)?;
        wrong.extend(some.iter().filter_map(|seed| hunt::chase(&daemon, &policy, Plan { seed: *seed, length }).err()));
    }
    let wrong: Vec<String> = wrong.iter().map(|error| format!("{error:#}")).collect();
    ensure!(wrong.is_empty(), "{} of {} seeds: {}", wrong.len(), seeds.len(), wrong.join("\n"));
    Ok(())
}
