//! What a session may not do to other processes without a debugger: type in a person's place.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::unistd::{read, ttyname};
use nix::{errno::Errno, libc};
use pp_tests::agent::Daemon;
use pp_tests::attack::{Answer, Attempt, workload};
use pp_tests::harness::By;
use pp_tests::lab::{PLC, Place};
use pp_tests::run;

use crate::tamper::{is_stated_gap, refused_attempt, tamper, text};
use crate::world::{World, tests};

tests![terminal_of_a_person_cannot_be_typed_into, keyboard_cannot_be_made_or_typed_on];

/// An attempt of the workload.
pub(crate) fn reach(daemon: &Daemon, words: &[&str]) -> Attempt {
    let arguments: Vec<&str> = std::iter::once("reach").chain(words.iter().copied()).collect();
    workload(daemon.lab(), &arguments, PLC)
}

/// Nobody's process may do it.
pub(crate) fn control(daemon: &Daemon, words: &[&str]) -> Result<()> {
    let answer = By::Nobody.attempt(daemon, &reach(daemon, words))?;
    ensure!(answer == Answer::Delivered, "control run of {words:?}: {answer:?}");
    Ok(())
}

/// A session may not, and its event says so.
pub(crate) fn refused(daemon: &Daemon, words: &[&str], reason: &str, object: Option<&str>) -> Result<()> {
    let _event = refused_attempt(daemon, &reach(daemon, words), libc::EPERM, reason, object)?;
    Ok(())
}

/// A terminal with nobody at it.
struct Terminal {
    /// The side that programs read from.
    end: OwnedFd,
    path: PathBuf,
    /// The side of whoever types.
    _keyboard: OwnedFd,
}

impl Terminal {
    fn new() -> Result<Self> {
        let made = openpty(None, None)?;
        Ok(Self { path: ttyname(&made.slave)?, end: made.slave, _keyboard: made.master })
    }

    /// What a program in it would read now.
    fn typed(&self) -> Result<Vec<u8>> {
        let mut input = [PollFd::new(self.end.as_fd(), PollFlags::POLLIN)];
        if poll(&mut input, PollTimeout::ZERO)? == 0 {
            return Ok(Vec::new());
        }
        let mut line = vec![0; 64];
        let length = read(&self.end, &mut line)?;
        line.truncate(length);
        Ok(line)
    }
}

fn terminal_of_a_person_cannot_be_typed_into(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "ptrace")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let terminal = Terminal::new()?;
    let path = text(&terminal.path);
    let name = terminal.path.file_name().and_then(|name| name.to_str());
    for ways in [&["type", &path][..], &["type", &path, "--compat"]] {
        control(daemon, ways)?;
        ensure!(terminal.typed()? == b"x\n", "control run of {ways:?}: nothing was typed");
        refused(daemon, ways, "terminal", name)?;
        ensure!(terminal.typed()?.is_empty(), "{ways:?}: something was typed");
    }
    // TIOCLINUX, KDSKBSENT, KDSKBENT: of a console, which this terminal is not, as nobody's process is told.
    for command in ["541c", "4b49", "4b47"] {
        for ways in [&["ioctl", &path, command][..], &["ioctl", &path, command, "--compat"]] {
            let answer = By::Nobody.attempt(daemon, &reach(daemon, ways))?;
            ensure!(answer == Answer::Refused(Errno::ENOTTY as i32), "control run of {ways:?}: {answer:?}");
            refused(daemon, ways, "terminal", name)?;
        }
    }
    // TIOCGWINSZ, as any program asks its terminal.
    let answer = By::LAB_AGENT.attempt(daemon, &reach(daemon, &["ioctl", &path, "5413"]))?;
    ensure!(answer == Answer::Delivered, "the size of a terminal: {answer:?}");
    Ok(())
}

fn keyboard_cannot_be_made_or_typed_on(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    for (major, minor) in [("10", "223"), ("10", "239"), ("13", "64")] {
        let device = daemon.path(&format!("device-c-{major}-{minor}"));
        let path = text(&device);
        let _made = run::run(&mut daemon.lab().command(Place::Engineering, &["mknod", path.as_str(), "c", major, minor]))?.success()?;
        // Whether the machine has such a device is another question: the kernel asks it later.
        let answer = By::Nobody.attempt(daemon, &tamper(daemon, &["write", &path]))?;
        ensure!(answer != Answer::Refused(libc::EPERM), "control run with {major}:{minor}: {answer:?}");
        let name = device.file_name().and_then(|name| name.to_str());
        let _event = refused_attempt(daemon, &tamper(daemon, &["write", &path]), libc::EPERM, "terminal", name)?;
        std::fs::remove_file(&device)?;
    }
    Ok(())
}
