//! What a session may not do to the daemon without a signal: limit it, starve it, freeze it.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use pp_agent::os::mounts::cgroup2_root;
use pp_tests::attack::Answer;
use pp_tests::harness::By;
use pp_tests::wait;

use crate::moves::Cgroup;
use crate::reach::{control, reach, refused};
use crate::tamper::{is_stated_gap, refused_attempt, tamper, victim};
use crate::world::{World, tests};

tests![daemon_cannot_be_limited_or_starved, daemons_cgroup_cannot_be_frozen_or_limited];

fn daemon_cannot_be_limited_or_starved(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let pid = daemon.pid()?.to_string();
    let object = format!("pid {pid}");
    // RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_NOFILE
    for resource in ["0", "1", "7"] {
        let words = ["limit", &pid, resource];
        control(daemon, &words)?;
        refused(daemon, &words, "limits", Some(&object))?;
    }
    // By one of its threads as well.
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let thread = threads.filter(|thread| *thread != pid).last().context("the daemon has one thread")?;
    for what in ["nice", "disk-priority", "scheduler", "processors", "nodes"] {
        for number in [&pid, &thread] {
            let words = [what, number];
            control(daemon, &words)?;
            refused(daemon, &words, "limits", Some(&object))?;
        }
    }
    // What is not the daemon may still be given another priority.
    let victim = victim(daemon)?;
    let other = victim.pid().to_string();
    for words in [&["limit", &other, "7"][..], &["nice", &other], &["processors", &other]] {
        let answer = By::LAB_AGENT.attempt(daemon, &reach(daemon, words))?;
        ensure!(answer == Answer::Delivered, "{words:?} by a session: {answer:?}");
    }
    for file in ["oom_score_adj", "oom_adj", "autogroup", "timerslack_ns", "coredump_filter", &format!("task/{thread}/comm")] {
        let path = format!("/proc/{pid}/{file}");
        if fs::exists(&path)? {
            let answer = By::Nobody.attempt(daemon, &tamper(daemon, &["write", &path]))?;
            ensure!(answer == Answer::Delivered, "control run with {path}: {answer:?}");
            let attempt = tamper(daemon, &["write", &path]);
            let _event = refused_attempt(daemon, &attempt, libc::EPERM, "daemon_file", file.rsplit('/').next())?;
        }
    }
    ensure!(daemon.client()?.status()?["pid"].as_u64() == Some(daemon.pid()?.into()), "it is another daemon now");
    Ok(())
}

fn daemons_cgroup_cannot_be_frozen_or_limited(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let pid = daemon.pid()?;
    let start = pp_agent::os::mounts::own_cgroups()?;
    let home = Cgroup::new("pp-e2e-limits")?;
    let root = cgroup2_root()?;
    // What a container runtime would write for a cgroup of its own; each as far as this machine has the controller.
    fs::write(home.0.join("cgroup.procs"), pid.to_string())?;
    let done = (|| -> Result<()> {
        let write = |file: &str| tamper(daemon, &["write", &format!("{}/{file}", home.0.display())]);
        // The table follows the daemon within seconds.
        let by_session = || By::LAB_AGENT.attempt(daemon, &write("cgroup.freeze"));
        wait::until_true("the cgroup to be guarded", wait::SOON, || by_session().is_ok_and(|answer| answer != Answer::Delivered))?;
        let mut tried = 0;
        let of_every_cgroup = ["cgroup.freeze", "cgroup.procs", "cgroup.threads", "cgroup.type", "cgroup.kill"];
        for file in of_every_cgroup.into_iter().chain(["cpu.max", "memory.max", "memory.high", "pids.max", "io.max"]) {
            if !fs::exists(home.0.join(file))? {
                continue;
            }
            let answer = By::Nobody.attempt(daemon, &write(file))?;
            ensure!(answer == Answer::Delivered, "control run with {file}: {answer:?}");
            let _event = refused_attempt(daemon, &write(file), libc::EPERM, "daemon_file", Some(file))?;
            tried += 1;
        }
        ensure!(tried > 3, "this machine has {tried} such files");
        // The cgroups above have a say, too.
        let above = tamper(daemon, &["write", &format!("{}/cgroup.subtree_control", root.display())]);
        let _event = refused_attempt(daemon, &above, libc::EPERM, "daemon_file", Some("cgroup.subtree_control"))?;
        Ok(())
    })();
    for procs in &start {
        fs::write(procs, pid.to_string())?;
    }
    done
}
