//! What a session that runs as root may not do to its own gate, and to the files by which others would act for it.
//!
//! Nobody's process makes each attempt first, on something that may be broken; there it must work. Where no hook sees it, `status` says so.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use nix::sys::signal::Signal;
use pp_tests::agent::Daemon;
use pp_tests::attack::{Answer, Attempt, workload};
use pp_tests::coverage;
use pp_tests::harness::By;
use pp_tests::lab::{PLC, Place};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run::{self, Running};
use pp_tests::wait;
use serde_json::Value;

use crate::world::{Test, World, tests};

tests![
    gaps_of_this_kernel_are_named,
    daemon_cannot_be_signalled,
    process_of_nobodys_session_cannot_be_taken_over,
    session_can_debug_its_own_processes,
    bpf_is_closed,
    pins_cannot_be_removed_or_joined,
    policy_keys_and_state_cannot_be_changed,
    access_lists_and_attributes_of_guarded_files_cannot_be_changed,
    program_and_socket_cannot_be_replaced,
    bpffs_cannot_be_unmounted_moved_or_covered,
    sandbox_of_a_sessions_own_may_unmount_what_it_likes,
    code_cannot_be_loaded_into_the_kernel,
    memory_disks_and_tun_cannot_be_opened,
    settings_that_start_programs_cannot_be_written,
    files_that_act_later_cannot_be_changed,
    ordinary_files_can_be_changed_as_before,
];

/// What ends the shared daemon, behind those that ask for it.
pub(crate) const ALONE: &[Test] = &[Test { name: "operator_keeps_every_right", run: operator_keeps_every_right }];

/// The error that counts as refused.
const EPERM: i32 = libc::EPERM;

/// An attempt of the workload.
pub(crate) fn tamper(daemon: &Daemon, words: &[&str]) -> Attempt {
    let arguments: Vec<&str> = std::iter::once("tamper").chain(words.iter().copied()).collect();
    workload(daemon.lab(), &arguments, PLC)
}

pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}

/// True where no hook sees any of this, after `status` has said so.
pub(crate) fn is_stated_gap(world: &mut World, gap: &str) -> Result<bool> {
    let alone = world.backend()? == "cgroup";
    let status = world.daemon()?.client()?.status()?;
    let named = status["gaps"].as_array().is_some_and(|gaps| gaps.iter().any(|name| name == gap));
    ensure!(named == alone, "cgroup programs alone: {alone}, and the gap {gap} is {named} in {}", status["gaps"]);
    if alone {
        coverage::meet(gap);
    }
    Ok(alone)
}

fn gaps_of_this_kernel_are_named(world: &mut World) -> Result<()> {
    for gap in ["tamper", "ptrace", "unix"] {
        let _named = is_stated_gap(world, gap)?;
    }
    let status = world.daemon()?.client()?.status()?;
    let complete = status["gaps"].as_array().is_some_and(Vec::is_empty);
    ensure!(status["posture"] == if complete { "enforcing" } else { "partial" }, "{status}");
    Ok(())
}

/// Nobody's process may do it.
pub(crate) fn allowed(daemon: &Daemon, words: &[&str]) -> Result<()> {
    let answer = By::Nobody.attempt(daemon, &tamper(daemon, words))?;
    ensure!(answer == Answer::Delivered, "control run of {words:?}: {answer:?}");
    Ok(())
}

/// A session may do it, and no event tells of it.
pub(crate) fn free(daemon: &Daemon, words: &[&str]) -> Result<()> {
    let answer = By::LAB_AGENT.attempt(daemon, &tamper(daemon, words))?;
    ensure!(answer == Answer::Delivered, "a session may {words:?}, but: {answer:?}");
    Ok(())
}

/// A session may not, and its event says so. Returns the event.
pub(crate) fn refused(daemon: &Daemon, words: &[&str], reason: &str, object: Option<&str>) -> Result<Value> {
    refused_as(daemon, words, EPERM, reason, object)
}

fn refused_as(daemon: &Daemon, words: &[&str], errno: i32, reason: &str, object: Option<&str>) -> Result<Value> {
    refused_attempt(daemon, &tamper(daemon, words), errno, reason, object)
}

/// The same of any attempt.
pub(crate) fn refused_attempt(daemon: &Daemon, attempt: &Attempt, errno: i32, reason: &str, object: Option<&str>) -> Result<Value> {
    let name = &attempt.name;
    let mark = daemon.events().mark();
    let answer = By::LAB_AGENT.attempt(daemon, attempt)?;
    ensure!(answer == Answer::Refused(errno), "{name} by a session: {answer:?}");
    let event = daemon
        .events()
        .wait_since(mark, &format!("the event of {name}"), |event| event["kind"] == "tamper" && event["reason"] == reason)?;
    ensure!(event["verdict"] == "block" && event["agent"] == AGENT, "{event}");
    if let Some(object) = object {
        ensure!(event["object"] == object, "{event}");
    }
    Ok(event)
}

fn daemon_cannot_be_signalled(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let pid = daemon.pid()?.to_string();
    let object = format!("pid {pid}");
    // A signal that says nothing to a process that runs.
    let harmless = (Signal::SIGCONT as i32).to_string();
    allowed(daemon, &["signal", &pid, &harmless])?;
    for signal in [Signal::SIGCONT, Signal::SIGTERM, Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGHUP] {
        let number = (signal as i32).to_string();
        let _event = refused(daemon, &["signal", &pid, &number], "signal", Some(&object))?;
    }
    free(daemon, &["signal", &pid, "0"])?;
    // What a file's owner may be sent.
    allowed(daemon, &["file-signal", "9"])?;
    let _event = refused(daemon, &["file-signal", "9"], "signal", None)?;
    free(daemon, &["file-signal", "40"])?;
    // Its files in /proc, by which the kernel could be told to end it first.
    let score = format!("/proc/{pid}/oom_score_adj");
    allowed(daemon, &["write", &score])?;
    let _event = refused(daemon, &["write", &score], "daemon_file", Some("oom_score_adj"))?;
    ensure!(daemon.client()?.status()?["pid"].as_u64() == Some(daemon.pid()?.into()), "it is another daemon now");
    Ok(())
}

/// A process of nobody's.
pub(crate) fn victim(daemon: &Daemon) -> Result<Running> {
    Running::start(&mut daemon.lab().command(Place::Engineering, &["/bin/sleep", "1000"]))
}

fn process_of_nobodys_session_cannot_be_taken_over(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "ptrace")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let victim = victim(daemon)?;
    let pid = victim.pid().to_string();
    let object = format!("pid {pid}");
    // Until it is `sleep`, its stack may move.
    wait::until_true("the start of the victim", wait::SOON, || {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep")
    })?;
    for (words, errno) in [
        (["seize", &pid], EPERM),
        (["take-descriptor", &pid], EPERM),
        (["write-memory", &pid], EPERM),
        (["open-memory", &pid], libc::EACCES),
    ] {
        allowed(daemon, &words)?;
        let _event = refused_as(daemon, &words, errno, "ptrace", Some(&object))?;
    }
    // Looking is free: `ps`, `lsof` and the like.
    free(daemon, &["read", &format!("/proc/{pid}/environ")])?;
    let daemon_pid = daemon.pid()?.to_string();
    let _event = refused(daemon, &["take-descriptor", &daemon_pid], "ptrace", None)?;
    Ok(())
}

fn session_can_debug_its_own_processes(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let workload = text(&daemon.lab().program("pp-workload"));
    let script = format!("sleep 1000 & \"{workload}\" tamper seize $!; kill $!");
    let output = By::run(AGENT).run_words(daemon, &["/bin/bash".into(), "-c".into(), script])?;
    ensure!(output.json()?["ok"] == true, "{output}");
    Ok(())
}

fn bpf_is_closed(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let next_program = "11";
    allowed(daemon, &["bpf", next_program])?;
    let _event = refused(daemon, &["bpf", next_program], "bpf", Some("command 11"))?;
    let pin = text(&pin(daemon)?);
    allowed(daemon, &["bpf-get", &pin])?;
    let _event = refused(daemon, &["bpf-get", &pin], "bpf", Some("command 7"))?;
    Ok(())
}

/// One of the daemon's pinned links.
fn pin(daemon: &Daemon) -> Result<PathBuf> {
    let mut entries = fs::read_dir(daemon.bpffs().join("links"))?.flatten();
    Ok(entries.next().context("nothing is pinned")?.path())
}

fn pins_cannot_be_removed_or_joined(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let bpffs = daemon.bpffs();
    let beside = bpffs.with_file_name("pp-e2e-beside");
    let pin = pin(daemon)?;
    let name = pin.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for folder in [&beside, &bpffs.join("mine")] {
        allowed(daemon, &["mkdir", &text(folder)])?;
        allowed(daemon, &["rmdir", &text(folder)])?;
    }
    // Beside the daemon's folder a session may do the same.
    free(daemon, &["mkdir", &text(&beside)])?;
    free(daemon, &["rmdir", &text(&beside)])?;
    let _event = refused(daemon, &["unlink", &text(&pin)], "own_file", Some(&name))?;
    let _event = refused(daemon, &["rename", &text(&pin), &text(&beside)], "own_file", Some(&name))?;
    let _event = refused(daemon, &["mkdir", &text(&bpffs.join("mine"))], "own_file", Some("mine"))?;
    let _event = refused(daemon, &["rename", &text(bpffs), &text(&beside)], "own_file", None)?;
    let _event = refused(daemon, &["rmdir", &text(&bpffs.join("links"))], "own_file", Some("links"))?;
    ensure!(pin.exists(), "the pin is gone");
    Ok(())
}

fn policy_keys_and_state_cannot_be_changed(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let spare = daemon.path("spare");
    for file in [daemon.path("policy.toml"), daemon.path("keys.json"), daemon.path("state").join("state.redb")] {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let before = fs::read(&file)?;
        let path = text(&file);
        // Opened, and not written to.
        allowed(daemon, &["write", &path])?;
        for what in ["write", "truncate", "unlink", "chmod", "chown"] {
            if what != "write" {
                fs::write(&spare, "spare")?;
                allowed(daemon, &[what, &text(&spare)])?;
            }
            let _event = refused(daemon, &[what, &path], "own_file", Some(&name))?;
        }
        for what in ["rename", "exchange", "link"] {
            let (one, other) = (daemon.path("one"), daemon.path("other"));
            fs::write(&one, "one")?;
            if what == "exchange" {
                fs::write(&other, "other")?;
            }
            allowed(daemon, &[what, &text(&one), &text(&other)])?;
            for left in [&one, &other] {
                let _gone = fs::remove_file(left);
            }
            if what == "exchange" {
                fs::write(&other, "other")?;
            }
            let _event = refused(daemon, &[what, &path, &text(&other)], "own_file", Some(&name))?;
            let _gone = fs::remove_file(&other);
        }
        // Something else in its place.
        fs::write(&spare, "mine")?;
        let _event = refused(daemon, &["rename", &text(&spare), &path], "own_file", Some(&name))?;
        ensure!(fs::read(&file)? == before || name == "state.redb", "{path} was changed");
        ensure!(file.exists(), "{path} is gone");
    }
    // A drop-in that is not there yet.
    let drop_ins = daemon.path("policy.d");
    let _event = refused(daemon, &["mkdir", &text(&drop_ins)], "own_file", Some("policy.d"))?;
    let _event = refused(daemon, &["symlink", "/tmp", &text(&drop_ins)], "own_file", Some("policy.d"))?;
    let _event = refused(daemon, &["create", &text(&daemon.path("state").join("new"))], "own_file", Some("new"))?;
    // The folder above.
    let moved = text(&daemon.path("state").with_file_name("moved"));
    let _event = refused(daemon, &["rename", &text(&daemon.path("state")), &moved], "own_file", Some("state"))?;
    Ok(())
}

fn access_lists_and_attributes_of_guarded_files_cannot_be_changed(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let spare = daemon.path("spare");
    fs::write(&spare, "spare")?;
    for what in ["set-acl", "remove-acl", "set-xattr", "remove-xattr"] {
        allowed(daemon, &[what, &text(&spare)])?;
        // Of a file of its own a session may.
        free(daemon, &["set-xattr", &text(&spare)])?;
        free(daemon, &[what, &text(&spare)])?;
        allowed(daemon, &["set-xattr", &text(&spare)])?;
        for file in [daemon.path("policy.toml"), daemon.path("keys.json"), daemon.path("state")] {
            let before = fs::metadata(&file)?.permissions();
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let _event = refused(daemon, &[what, &text(&file)], "own_file", Some(&name))?;
            ensure!(fs::metadata(&file)?.permissions() == before, "{name} has other rights now");
        }
    }
    fs::remove_file(&spare)?;
    Ok(())
}

fn program_and_socket_cannot_be_replaced(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let program = daemon.lab().program("pp-agent");
    let mine = daemon.path("mine");
    for (what, name) in [(program, "pp-agent"), (daemon.path("control.sock"), "control.sock")] {
        fs::write(&mine, "mine")?;
        let _event = refused(daemon, &["unlink", &text(&what)], "own_file", Some(name))?;
        let _event = refused(daemon, &["rename", &text(&mine), &text(&what)], "own_file", Some(name))?;
        ensure!(what.exists(), "{} is gone", what.display());
    }
    Ok(())
}

fn bpffs_cannot_be_unmounted_moved_or_covered(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let (one, other) = (daemon.path("one"), daemon.path("other"));
    for folder in [&one, &other] {
        fs::create_dir_all(folder)?;
    }
    let (one, other) = (text(&one), text(&other));
    // Nobody's process, and a session away from the daemon's places.
    allowed(daemon, &["mount", &one])?;
    allowed(daemon, &["unmount", &one])?;
    free(daemon, &["mount", &one])?;
    free(daemon, &["unmount", &one])?;
    let _event = refused(daemon, &["unmount", "/sys/fs/bpf"], "unmount", None)?;
    let _event = refused(daemon, &["unmount", "/sys"], "unmount", None)?;
    for covered in
        ["/sys/fs/bpf", "/sys/fs", "/sys", &text(daemon.bpffs()), &text(&daemon.path("state")), &text(&daemon.path("policy.toml"))]
    {
        if covered.ends_with(".toml") {
            let mine = daemon.path("mine");
            fs::write(&mine, "mine")?;
            let _event = refused(daemon, &["bind", &text(&mine), covered], "mount", None)?;
        } else {
            let _event = refused(daemon, &["mount", covered], "mount", None)?;
        }
    }
    let _event = refused(daemon, &["move", "/sys/fs/bpf", &other], "mount", None)?;
    ensure!(pin(daemon)?.exists(), "the pins are gone");
    for folder in [one, other] {
        fs::remove_dir(folder)?;
    }
    Ok(())
}

fn sandbox_of_a_sessions_own_may_unmount_what_it_likes(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    free(daemon, &["unmount-alone", "/sys/fs/bpf"])?;
    free(daemon, &["unmount-alone", "/sys"])?;
    ensure!(pin(daemon)?.exists(), "the pins are gone");
    Ok(())
}

fn code_cannot_be_loaded_into_the_kernel(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    // Zeros are no module, but that is found out later than who may load one.
    let answer = By::Nobody.attempt(daemon, &tamper(daemon, &["load-module"]))?;
    ensure!(answer == Answer::Refused(libc::ENOEXEC), "control run of a module of zeros: {answer:?}");
    let _event = refused(daemon, &["load-module"], "kernel_code", None)?;
    let file = daemon.path("zeros.ko");
    fs::write(&file, [0; 4096])?;
    let file = text(&file);
    let answer = By::Nobody.attempt(daemon, &tamper(daemon, &["load-module-file", &file]))?;
    ensure!(answer == Answer::Refused(libc::ENOEXEC), "control run of a file of zeros: {answer:?}");
    let _event = refused(daemon, &["load-module-file", &file], "kernel_code", Some("zeros.ko"))?;
    allowed(daemon, &["kexec"])?;
    let _event = refused(daemon, &["kexec"], "kernel_code", None)?;
    Ok(())
}

fn memory_disks_and_tun_cannot_be_opened(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    for (kind, major, minor, reason) in [
        ("c", "1", "1", "kernel_memory"),
        ("c", "1", "2", "kernel_memory"),
        ("c", "1", "4", "kernel_memory"),
        ("c", "10", "200", "tun"),
        ("c", "108", "0", "tun"),
        ("b", "8", "0", "raw_disk"),
    ] {
        let device = daemon.path(&format!("device-{kind}-{major}-{minor}"));
        let path = text(&device);
        let _made = run::run(&mut daemon.lab().command(Place::Engineering, &["mknod", path.as_str(), kind, major, minor]))?.success()?;
        // Whether the machine has such a device is another question: the kernel asks it later.
        let answer = By::Nobody.attempt(daemon, &tamper(daemon, &["write", &path]))?;
        ensure!(answer != Answer::Refused(EPERM), "control run with {kind} {major}:{minor}: {answer:?}");
        let _event = refused(daemon, &["write", &path], reason, device.file_name().and_then(|name| name.to_str()))?;
        fs::remove_file(&device)?;
    }
    let _event = refused(daemon, &["read", "/dev/mem"], "kernel_memory", Some("mem"))?;
    free(daemon, &["write", "/dev/null"])?;
    Ok(())
}

fn settings_that_start_programs_cannot_be_written(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    // Opened, and not written to.
    for setting in ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger"] {
        if !Path::new(setting).exists() {
            continue;
        }
        allowed(daemon, &["write", setting])?;
        let _event = refused(daemon, &["write", setting], "kernel_setting", setting.rsplit('/').next())?;
    }
    free(daemon, &["write", "/proc/sys/vm/swappiness"])?;
    Ok(())
}

fn files_that_act_later_cannot_be_changed(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    for file in ["/etc/ld.so.preload", "/etc/cron.d/pp-e2e", "/etc/systemd/system/pp-e2e.service", "/etc/udev/rules.d/pp-e2e.rules"] {
        let path = Path::new(file);
        ensure!(!path.exists(), "{file} is there already");
        if path.parent().is_some_and(Path::exists) {
            allowed(daemon, &["create", file])?;
            fs::remove_file(path)?;
        }
        // A small system lacks some folders: then the first that is missing may not be made.
        let missing = path.ancestors().take_while(|path| !path.exists()).last().context("nothing is missing")?;
        let what = if missing == path { "create" } else { "mkdir" };
        let _event = refused(daemon, &[what, &text(missing)], "later_file", None)?;
        ensure!(!missing.exists(), "{} was made", missing.display());
    }
    let _event = refused(daemon, &["chmod", "/etc/systemd/system"], "later_file", Some("system"))?;
    // Keys that let people in, in whosoever's home.
    let home = daemon.path("home").join(".ssh");
    fs::create_dir_all(&home)?;
    let keys = home.join("authorized_keys");
    let _event = refused(daemon, &["create", &text(&keys)], "later_file", Some("authorized_keys"))?;
    allowed(daemon, &["create", &text(&keys)])?;
    let _event = refused(daemon, &["write", &text(&keys)], "later_file", Some("authorized_keys"))?;
    let mine = home.join("mine");
    free(daemon, &["create", &text(&mine)])?;
    let _event = refused(daemon, &["rename", &text(&mine), &text(&keys)], "later_file", Some("authorized_keys"))?;
    free(daemon, &["create", &text(&home.join("known_hosts"))])?;
    fs::remove_dir_all(daemon.path("home"))?;
    Ok(())
}

fn ordinary_files_can_be_changed_as_before(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let mark = daemon.events().mark();
    let folder = daemon.path("work");
    let script = format!(
        "set -e; mkdir -p {0}/a/b; cd {0}; echo x > a/b/f; ln a/b/f g; ln -s g h; mv g i; chmod 755 i; chown 65534 i; mknod p p; \
         truncate -s 0 i; sed -i s/x/y/ a/b/f; mv a c; rm -r c i h p; rmdir {0}; sleep 0.1 & kill $!; ps aux > /dev/null",
        folder.display()
    );
    let output = By::run(AGENT).run_words(daemon, &["/bin/bash".into(), "-c".into(), script])?;
    let _done = output.success()?;
    let told: Vec<Value> = daemon.events().of_sessions_since(mark).into_iter().filter(|event| event["kind"] == "tamper").collect();
    ensure!(told.is_empty(), "ordinary work made events: {told:?}");
    Ok(())
}

fn operator_keeps_every_right(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab());
    let mut daemon = world.own(&policy)?;
    let (bpffs, state) = (text(daemon.bpffs()), text(&daemon.path("state")));
    let mut held = By::run(AGENT).start_words(&daemon, &["/bin/sleep".into(), "1000".into()])?;
    let session = wait::until("the session", wait::SOON, || {
        let sessions = daemon.client().ok()?.get("/v1/sessions").ok()?.body;
        let listed = sessions.as_array().or_else(|| sessions["sessions"].as_array())?.first()?.clone();
        listed["session"].as_str().or_else(|| listed["id"].as_str()).map(str::to_owned)
    })?;
    // Policy is edited as editors do, taken in, and guarded again at once.
    let edited = daemon.path("policy.toml.new");
    policy.clone().with_top("any_user = true").write(&edited)?;
    fs::rename(&edited, daemon.path("policy.toml"))?;
    let _done = daemon.cli(&["policy", "reload"])?.success()?;
    if daemon.backend()? != "cgroup" {
        let _event = refused(&daemon, &["write", &text(&daemon.path("policy.toml"))], "own_file", Some("policy.toml"))?;
    }
    // A session can end neither itself nor the gate, with the daemon alive or dead.
    let inside = |daemon: &Daemon, arguments: &[&str]| -> Result<()> {
        let words = daemon.cli_words(arguments);
        let output = By::LAB_AGENT.run_words(daemon, &words)?;
        ensure!(!output.status.success(), "inside a session {arguments:?} worked: {output}");
        Ok(())
    };
    inside(&daemon, &["release", &session, "--bpffs", &bpffs])?;
    inside(&daemon, &["uninstall-hooks", "--yes", "--bpffs", &bpffs])?;
    daemon.stop()?;
    inside(&daemon, &["release", &session, "--bpffs", &bpffs])?;
    inside(&daemon, &["uninstall-hooks", "--yes", "--bpffs", &bpffs])?;
    ensure!(held.is_running(), "the session's process ended");
    ensure!(pin(&daemon)?.exists(), "the pins are gone");
    let _done = daemon.cli(&["release", &session, "--bpffs", &bpffs, "--state", &state])?.success()?;
    daemon.spawn()?;
    let sessions = daemon.client()?.get("/v1/sessions")?.body;
    ensure!(!sessions.to_string().contains(&session), "the session was not released: {sessions}");
    daemon.stop()?;
    let _done = daemon.cli(&["uninstall-hooks", "--yes", "--bpffs", &bpffs])?.success()?;
    ensure!(!daemon.bpffs().exists(), "uninstall-hooks left something");
    Ok(())
}
