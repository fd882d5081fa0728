//! Processes around a command: the namespace, the user and the cgroup it runs in, and the shape of the tree above it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, getpid, getppid, setgid, setgroups, setsid, setuid};
use serde_json::json;

use crate::args::LaunchOptions;
use crate::outcome;

/// Enters what the options name and becomes the command. Returns only with an error.
pub(crate) fn run_in(options: &LaunchOptions) -> Result<()> {
    let parent = getppid();
    if options.with_parent {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != parent {
            bail!("the parent died before the command could start");
        }
    }
    if let Some(cgroup) = &options.cgroup {
        fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("{}: could not be entered", cgroup.display()))?;
    }
    if let Some(netns) = &options.netns {
        let namespace = File::open(netns).with_context(|| netns.display().to_string())?;
        setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| netns.display().to_string())?;
    }
    if let Some(uid) = options.uid {
        setgroups(&[])?;
        setgid(Gid::from_raw(uid))?;
        setuid(Uid::from_raw(uid))?;
        // The kernel clears the death signal when the user changes.
        if options.with_parent {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
        }
    }
    exec(&options.command)
}

/// Becomes the command. Returns only with an error.
pub(crate) fn exec(command: &[String]) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else { bail!("no command given") };
    Err(Command::new(program).args(arguments).exec()).with_context(|| program.clone())
}

fn me() -> Result<Command> {
    Ok(Command::new(std::env::current_exe()?))
}

fn pass_on(status: std::process::ExitStatus) -> ! {
    std::process::exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// Runs the command below `depth` processes, each the child of the one before, and passes its exit code up.
pub(crate) fn tree(depth: u32, command: &[String]) -> Result<()> {
    if depth == 0 {
        return exec(command);
    }
    let status = me()?.args(["tree", "--depth", &(depth - 1).to_string(), "--"]).args(command).status()?;
    pass_on(status)
}

/// Leaves the caller's session and its parent, as a daemon does, then becomes the command in a process that nobody waits for.
///
/// The command keeps standard output, which is how its answer is read.
pub(crate) fn daemonize(command: &[String]) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else { bail!("no command given") };
    let _session = setsid().or_else(|error| if error == Errno::EPERM { Ok(getpid()) } else { Err(error) })?;
    let _orphan = Command::new(program).args(arguments).stdin(Stdio::null()).spawn().with_context(|| program.clone())?;
    Ok(())
}

/// Runs the command `times` times, one after the other, and counts its exit codes.
pub(crate) fn repeat(times: u32, command: &[String]) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else { bail!("no command given") };
    let mut codes = BTreeMap::<String, u32>::new();
    for _ in 0..times {
        let status = Command::new(program).args(arguments).status().with_context(|| program.clone())?;
        let code = status.code().map_or_else(|| format!("signal {}", status.signal().unwrap_or(0)), |code| code.to_string());
        *codes.entry(code).or_default() += 1;
    }
    outcome::print(&json!({"times": times, "exit_codes": codes}))
}
