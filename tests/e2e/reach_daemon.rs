//! What a session may not do to the daemon without a signal or a write: limit it, starve it, freeze it, make its files immutable.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use pp_agent::os::mounts::cgroup2_root;
use pp_tests::attack::Answer;
use pp_tests::harness::By;
use pp_tests::policy::Policy;
use pp_tests::wait;

use crate::moves::Cgroup;
use crate::reach::{control, reach, refused};
use crate::tamper::{free, is_stated_gap, refused_attempt, tamper, text, victim};
use crate::world::{World, tests};

tests![
    daemon_cannot_be_limited_or_starved,
    daemons_cgroup_cannot_be_frozen_or_limited,
    guarded_file_cannot_be_changed_by_its_file_system,
    files_of_boot_and_login_cannot_be_changed,
    files_that_act_later_are_a_choice_of_policy,
];

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
    // By one of its threads as well: the oldest of the others, since younger ones come and go.
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let thread = threads.filter(|thread| thread.to_string() != pid).min().context("the daemon has one thread")?.to_string();
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

fn guarded_file_cannot_be_changed_by_its_file_system(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let spare = daemon.path("spare");
    fs::write(&spare, "spare")?;
    let spare = text(&spare);
    // FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR, FS_IOC_SETVERSION, FS_IOC_ENABLE_VERITY, a command that no file system has
    let of_64_bits = ["40086602", "401c5820", "40087602", "40806685", "400866ff"].map(|command| (command, false));
    let of_32_bits = ["40046602", "401c5820", "40047602"].map(|command| (command, true));
    for (command, compat) in of_64_bits.into_iter().chain(of_32_bits) {
        let on = |path: &str| {
            let words = ["ioctl", path, command, "--compat"];
            reach(daemon, if compat { &words } else { &words[..3] })
        };
        // Whether this file system has the command is another question: the gate is asked before.
        let answer = By::Nobody.attempt(daemon, &on(&spare))?;
        ensure!(answer != Answer::Refused(libc::EPERM), "control run of {command}: {answer:?}");
        let by_session = By::LAB_AGENT.attempt(daemon, &on(&spare))?;
        ensure!(by_session == answer, "{command} on a session's own file: {by_session:?}, not {answer:?}");
        for file in [daemon.path("policy.toml"), daemon.path("keys.json"), daemon.path("state"), daemon.path("state").join("state.redb")] {
            let name = file.file_name().and_then(|name| name.to_str());
            let _event = refused_attempt(daemon, &on(&text(&file)), libc::EPERM, "own_file", name)?;
        }
        for folder in ["/etc/pam.d", "/etc/cron.d", "/etc/udev/rules.d", "/etc/systemd/system"] {
            if fs::exists(folder)? {
                let name = folder.rsplit('/').next();
                let _event = refused_attempt(daemon, &on(folder), libc::EPERM, "later_file", name)?;
            }
        }
    }
    let policy = text(&daemon.path("policy.toml"));
    // FS_IOC_GETFLAGS and TCGETS, as `lsattr` and `cat` ask.
    for command in ["80086601", "5401"] {
        let answer = By::Nobody.attempt(daemon, &reach(daemon, &["ioctl", &policy, command]))?;
        let by_session = By::LAB_AGENT.attempt(daemon, &reach(daemon, &["ioctl", &policy, command]))?;
        ensure!(by_session == answer, "{command} on the policy: {by_session:?}, not {answer:?}");
    }
    let answer = By::Nobody.attempt(daemon, &reach(daemon, &["file-setattr", &spare]))?;
    let attempt = reach(daemon, &["file-setattr", &policy]);
    if answer == Answer::Refused(libc::ENOSYS) {
        // A kernel without the call.
        ensure!(By::LAB_AGENT.attempt(daemon, &attempt)? == answer, "file_setattr(2) by a session alone");
    } else {
        ensure!(answer != Answer::Refused(libc::EPERM), "control run of file_setattr(2): {answer:?}");
        let _event = refused_attempt(daemon, &attempt, libc::EPERM, "own_file", Some("policy.toml"))?;
    }
    Ok(())
}

fn files_of_boot_and_login_cannot_be_changed(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    // A small system lacks most: what is made here is guarded within seconds, and is removed again.
    let mut made = Vec::new();
    for folder in ["/boot", "/etc/profile.d", "/etc/apt", "/etc/apt/apt.conf.d", "/etc/ssh", "/etc/ssh/sshd_config.d"] {
        if !fs::exists(folder)? {
            fs::create_dir(folder)?;
            made.push(folder);
        }
    }
    let done = (|| -> Result<()> {
        for folder in ["/boot", "/etc/profile.d", "/etc/apt/apt.conf.d", "/etc/ssh/sshd_config.d"] {
            let file = format!("{folder}/pp-e2e");
            let make = tamper(daemon, &["create", &file]);
            ensure!(By::Nobody.attempt(daemon, &make)? == Answer::Delivered, "control run with {file}");
            fs::remove_file(&file)?;
            wait::until_true("the folder to be guarded", wait::SOON, || {
                let answer = By::LAB_AGENT.attempt(daemon, &make);
                let _gone = fs::remove_file(&file);
                answer.is_ok_and(|answer| answer == Answer::Refused(libc::EPERM))
            })?;
            let _event = refused_attempt(daemon, &make, libc::EPERM, "later_file", Some("pp-e2e"))?;
            ensure!(!fs::exists(&file)?, "{file} was made");
        }
        for file in ["/etc/passwd", "/etc/shadow", "/etc/profile", "/usr/bin/getent"] {
            let name = file.rsplit('/').next();
            if fs::exists(file)? {
                // Opened, and not written to.
                ensure!(By::Nobody.attempt(daemon, &tamper(daemon, &["write", file]))? == Answer::Delivered, "control run with {file}");
                let _event = refused_attempt(daemon, &tamper(daemon, &["write", file]), libc::EPERM, "later_file", name)?;
                let answer = By::LAB_AGENT.attempt(daemon, &tamper(daemon, &["read", file]))?;
                ensure!(answer == Answer::Delivered, "a session may read {file}, but: {answer:?}");
            } else {
                let _event = refused_attempt(daemon, &tamper(daemon, &["create", file]), libc::EPERM, "later_file", name)?;
            }
        }
        // What package managers rewrite with every library lies beside these.
        let beside = "/etc/pp-e2e.so.cache";
        let answer = By::LAB_AGENT.attempt(daemon, &tamper(daemon, &["create", beside]))?;
        fs::remove_file(beside)?;
        ensure!(answer == Answer::Delivered, "{beside} by a session: {answer:?}");
        Ok(())
    })();
    for folder in made.into_iter().rev() {
        fs::remove_dir(folder)?;
    }
    done
}

fn files_that_act_later_are_a_choice_of_policy(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let later = ["write", "/etc/passwd"];
    let standard = Policy::standard(world.lab());
    let allowing = standard.clone().with("[tamper]\nlater_files = \"allow\"\n");
    let daemon = world.sharing(&allowing)?;
    free(daemon, &later)?;
    let off = daemon.client()?.status()?["off"].to_string();
    ensure!(off.contains("[tamper] later_files"), "{off}");
    // The gate's own stay guarded.
    let own = text(&daemon.path("policy.toml"));
    let _event = refused_attempt(daemon, &tamper(daemon, &["write", &own]), libc::EPERM, "own_file", Some("policy.toml"))?;
    // Control: by what is shipped it is refused, at once after the reload.
    let daemon = world.daemon()?;
    let _event = refused_attempt(daemon, &tamper(daemon, &later), libc::EPERM, "later_file", Some("passwd"))?;
    Ok(())
}
