//! The backend that the canary found: its own programs refuse before the cgroup programs see anything, it is told why the others are not
//! in use, and an upgrade changes neither it nor leaves a program of the earlier build behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use pp_tests::agent::Daemon;
use pp_tests::attack;
use pp_tests::coverage::At;
use pp_tests::harness::{By, Refusal};
use pp_tests::policy::AGENT;
use pp_tests::wait;

use crate::coverage::fresh;
use crate::soak::metric;
use crate::world::{Test, World, skip, tests};

tests![programs_of_the_backend_refuse_first, canaries_leave_no_mark_behind];

/// What takes minutes on an emulated processor.
pub(crate) const LONG: &[Test] = &[
    Test { name: "status_says_why_each_backend_is_or_is_not_in_use", run: status_says_why_each_backend_is_or_is_not_in_use },
    Test { name: "upgrade_keeps_the_backend_and_one_pin_of_each_program", run: upgrade_keeps_the_backend_and_one_pin_of_each_program },
];

/// The event names the hook that refused. Were a program of the backend not attached, or inert, the cgroup programs would be named.
fn programs_of_the_backend_refuse_first(world: &mut World) -> Result<()> {
    let backend = world.backend()?;
    refused_first(world.daemon()?, &backend)
}

fn refused_first(daemon: &Daemon, backend: &str) -> Result<()> {
    let refused_at = |attempt, cgroup: &str, function: &str| -> Result<()> {
        let event = Refusal::of(attempt, By::run(AGENT)).with_control(By::Nobody).assert(daemon)?;
        let hook = if backend == "cgroup" { cgroup.to_owned() } else { format!("{backend}_{function}") };
        ensure!(event["hook"] == hook.as_str(), "{hook} did not refuse it: {event}");
        Ok(())
    };
    // Where nothing went before: what an earlier test left open may still be told.
    for at in [At::V4, At::V6] {
        refused_at(attack::tcp(daemon.lab(), fresh(at).0), "connect", "socket_connect")?;
        let target = fresh(at).0;
        let datagram = attack::workload(daemon.lab(), &["try", "udp-sendto", &target.to_string()], target);
        refused_at(datagram, "sendmsg", "socket_sendmsg")?;
    }
    Ok(())
}

/// The one that finds the backend out runs before the kernel forgets the marks of those that end.
fn canaries_leave_no_mark_behind(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let marked = || -> Result<(u64, u64)> {
        let answer = daemon.client()?.get("/v1/sessions")?.ok()?;
        let sessions = answer["sessions"].as_array().context("no sessions")?;
        let of_sessions = sessions.iter().filter_map(|session| Some(session["processes"].as_array()?.len() as u64)).sum();
        Ok((metric(daemon, "pp_marked_processes")?, of_sessions))
    };
    wait::until_true("marked processes are those of sessions", wait::SOON, || marked().is_ok_and(|(all, of_sessions)| all == of_sessions))
        .with_context(|| format!("marked processes, and those of sessions: {:?}", marked()))
}

fn status_says_why_each_backend_is_or_is_not_in_use(world: &mut World) -> Result<()> {
    let backend = world.backend()?;
    let daemon = world.daemon()?;
    let told = daemon.client()?.status()?["backends"].clone();
    let found: BTreeMap<&str, &str> =
        told.as_array().into_iter().flatten().filter_map(|one| Some((one["name"].as_str()?, one["found"].as_str()?))).collect();
    ensure!(found.keys().copied().collect::<Vec<_>>() == ["cgroup", "fmod_ret", "lsm"], "{told}");
    for (name, words) in &found {
        let in_use = *name == backend || *name == "cgroup";
        ensure!(words.starts_with("in use") == in_use, "{name}: {words}");
    }
    let doctor = daemon.cli(&["doctor"])?.stdout;
    for (name, words) in &found {
        ensure!(doctor.contains(&format!("{name}: {words}")), "doctor does not say it of {name}: {doctor}");
    }
    Ok(())
}

/// The builds whose programs are pinned, by program.
fn pins(daemon: &Daemon) -> Result<BTreeMap<String, Vec<String>>> {
    let mut pins = BTreeMap::<String, Vec<String>>::new();
    for entry in fs::read_dir(daemon.bpffs().join("links"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let (program, build) = name.split_once('@').with_context(|| name.clone())?;
        pins.entry(program.to_owned()).or_default().push(build.to_owned());
    }
    Ok(pins)
}

fn upgrade_keeps_the_backend_and_one_pin_of_each_program(world: &mut World) -> Result<()> {
    let Some(next) = std::env::var_os("PP_AGENT_NEXT_BIN").map(PathBuf::from) else {
        return Err(skip("PP_AGENT_NEXT_BIN names no build with another ABI_VERSION"));
    };
    let mut daemon = world.taken()?;
    let (backend, before) = (daemon.backend()?, pins(&daemon)?);
    let installed = daemon.lab().directory().join("bin/pp-agent-next");
    fs::copy(&next, &installed).with_context(|| next.display().to_string())?;
    daemon.stop()?;
    daemon.set_binary(installed);
    daemon.spawn()?;
    let after = pins(&daemon)?;
    ensure!(daemon.backend()? == backend, "{backend} before, {} after", daemon.backend()?);
    ensure!(before.keys().eq(after.keys()), "other programs: {before:?}, then {after:?}");
    for (program, builds) in &after {
        ensure!(builds.len() == 1 && before[program] != *builds, "{program}: {:?}, then {builds:?}", before[program]);
    }
    refused_first(&daemon, &backend)
}
