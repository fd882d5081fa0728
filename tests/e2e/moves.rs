//! Moving the daemon to another cgroup, where it could be starved or stopped.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use nix::libc::SIGKILL;
use pp_agent::os::mounts::cgroup2_root;
use pp_tests::agent::Daemon;
use pp_tests::attack::{Answer, workload};
use pp_tests::harness::By;
use pp_tests::lab::PLC;
use pp_tests::policy::AGENT;
use pp_tests::wait;

use crate::world::{World, tests};

tests![daemon_that_a_session_moves_goes_back];

/// A cgroup of the test's own, without processes when it is dropped.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let path = cgroup2_root()?.join(name);
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn procs(&self) -> String {
        self.0.join("cgroup.procs").display().to_string()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _gone = fs::remove_dir(&self.0);
    }
}

fn cgroups_of(pid: u32) -> Result<String> {
    Ok(fs::read_to_string(format!("/proc/{pid}/cgroup"))?)
}

/// Moves the daemon by writing its number.
fn mover(daemon: &Daemon, to: &str, pid: u32) -> pp_tests::attack::Attempt {
    workload(daemon.lab(), &["tamper", "move-process", &pid.to_string(), to], PLC)
}

fn daemon_that_a_session_moves_goes_back(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let pid = daemon.pid()?;
    let (home, there) = (Cgroup::new("pp-e2e-home")?, Cgroup::new("pp-e2e-there")?);
    let start = cgroups_of(pid)?;
    let start_procs = pp_agent::os::mounts::own_cgroups()?;
    // Nobody's process may: the daemon stays, and goes where it is moved next.
    let mark = daemon.events().mark();
    for to in [&home, &there] {
        ensure!(By::Nobody.attempt(daemon, &mover(daemon, &to.procs(), pid))? == Answer::Delivered, "control run");
        let name = to.0.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ensure!(cgroups_of(pid)?.contains(&name), "control run: the daemon was not moved to {name}");
    }
    // The daemon runs where this suite does, until somebody moves it.
    for procs in &start_procs {
        fs::write(procs, pid.to_string())?;
    }
    ensure!(cgroups_of(pid)? == start, "not back: {}", cgroups_of(pid)?);
    ensure!(daemon.events().since(mark).iter().all(|event| event["kind"] != "tamper"), "an operator's move made an event");

    let mark = daemon.events().mark();
    let output = By::run(AGENT).run_words(daemon, &mover(daemon, &there.procs(), pid).words)?;
    ensure!(output.status.signal() == Some(SIGKILL), "the process that moved the daemon: {output}");
    let event = daemon.events().wait_since(mark, "the event of the move", |event| event["reason"] == "cgroup_move")?;
    ensure!(event["kind"] == "tamper" && event["verdict"] == "block" && event["agent"] == AGENT, "{event}");
    ensure!(event["object"] == format!("pid {pid}"), "{event}");
    let back = || cgroups_of(pid).is_ok_and(|now| now == start);
    wait::until_true("the daemon's way back", wait::SOON, back)?;
    // Again and again by one session, which the kernel tells once in its window.
    let once = mover(daemon, &there.procs(), pid).words.join(" ");
    let _moved = By::run(AGENT).run_words(daemon, &["/bin/bash".into(), "-c".into(), format!("{once}; sleep 2; {once}; {once}; true")])?;
    wait::until_true("the daemon's way back from the last", wait::SOON, back)
}
