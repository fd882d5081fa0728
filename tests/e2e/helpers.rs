//! Programs that the kernel runs as root for whoever asks: a session may neither make nor change them, nor name others.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Result, ensure};
use nix::libc;
use nix::mount::{MntFlags, umount2};
use pp_tests::attack::Answer;
use pp_tests::harness::By;
use pp_tests::policy::AGENT;
use pp_tests::wait;

use crate::tamper::{allowed, free, is_stated_gap, refused, tamper, text};
use crate::world::{World, skip, tests};

tests![
    program_that_the_kernel_runs_for_a_key_cannot_be_a_sessions,
    programs_that_the_kernel_runs_cannot_be_made_or_changed,
    mount_that_names_a_program_for_the_kernel_is_refused,
];

/// What the kernel runs to make a key.
const REQUEST_KEY: &str = "/sbin/request-key";

/// A helper that leaves a mark.
fn script(marker: &Path) -> String {
    format!("#!/bin/sh\necho ran > {}\n", marker.display())
}

fn program_that_the_kernel_runs_for_a_key_cannot_be_a_sessions(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let helper = Path::new(REQUEST_KEY);
    if helper.symlink_metadata().is_ok() {
        return Err(skip("this machine has a request-key of its own"));
    }
    let marker = daemon.path("request-key-ran");
    // The control run: one that nobody made runs when a session asks, outside the session.
    fs::write(helper, script(&marker))?;
    fs::set_permissions(helper, fs::Permissions::from_mode(0o755))?;
    let asked = By::LAB_AGENT.attempt(daemon, &tamper(daemon, &["request-key", "pp-e2e-control"]));
    let ran = wait::until_true("the kernel to run the helper", wait::SOON, || marker.exists());
    fs::remove_file(helper)?;
    ensure!(matches!(asked?, Answer::Refused(errno) if errno != libc::ENOSYS), "a key that nobody has was found");
    ran?;
    fs::remove_file(&marker)?;
    // The attack: a session makes it, and asks.
    let made = Path::new("/sbin/pp-e2e-made");
    fs::write(made, script(&marker))?;
    fs::set_permissions(made, fs::Permissions::from_mode(0o755))?;
    for what in [
        &["create", REQUEST_KEY][..],
        &["rename", &text(made), REQUEST_KEY],
        &["link", &text(made), REQUEST_KEY],
        &["symlink", &text(made), REQUEST_KEY],
    ] {
        let _event = refused(daemon, what, "later_file", Some("request-key"))?;
    }
    let _asked = By::LAB_AGENT.attempt(daemon, &tamper(daemon, &["request-key", "pp-e2e-attack"]))?;
    ensure!(helper.symlink_metadata().is_err() && !marker.exists(), "a session's helper is there, or ran");
    fs::remove_file(made)?;
    Ok(())
}

fn programs_that_the_kernel_runs_cannot_be_made_or_changed(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    for helper in ["/sbin/bridge-stp", "/sbin/modprobe", "/sbin/poweroff", "/sbin/reboot", "/sbin/nfs_cache_getent", "/sbin/mount.nfs"] {
        let path = Path::new(helper);
        let name = path.file_name().and_then(|name| name.to_str());
        let what = if path.symlink_metadata().is_ok() { "unlink" } else { "create" };
        let before = path.symlink_metadata().is_ok();
        let _event = refused(daemon, &[what, helper], "later_file", name)?;
        ensure!(path.symlink_metadata().is_ok() == before, "{helper} was made or removed");
    }
    // Beside them a session may do as before, and so may nobody there.
    let beside = "/sbin/pp-e2e-beside";
    free(daemon, &["create", beside])?;
    fs::remove_file(beside)?;
    let stp = Path::new("/sbin/bridge-stp");
    if !stp.exists() {
        allowed(daemon, &["create", "/sbin/bridge-stp"])?;
        fs::remove_file(stp)?;
    }
    // What they obey.
    for path in ["/etc/request-key.d", "/etc/request-key.conf"] {
        if !Path::new(path).exists() {
            let _event = refused(daemon, &["create", path], "later_file", path.rsplit('/').next())?;
        }
    }
    let run = By::run(AGENT).run_words(daemon, &["/bin/bash".into(), "-c".into(), "ls /sbin > /dev/null".into()])?;
    ensure!(run.status.success(), "{run}");
    Ok(())
}

fn mount_that_names_a_program_for_the_kernel_is_refused(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let folder = daemon.path("cgroup-v1");
    fs::create_dir_all(&folder)?;
    let path = text(&folder);
    allowed(daemon, &["release-agent", &path])?;
    umount2(&folder, MntFlags::MNT_DETACH)?;
    let _event = refused(daemon, &["release-agent", &path], "kernel_setting", Some("release_agent"))?;
    ensure!(fs::read_dir(&folder)?.next().is_none(), "it was mounted");
    fs::remove_dir(&folder)?;
    Ok(())
}
