//! What a session may not do to other processes without a debugger: type in a person's place, open what they have open.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::{mkfifo, pipe2, read, ttyname};
use nix::{errno::Errno, libc};
use pp_tests::agent::Daemon;
use pp_tests::attack::{Answer, Attempt, workload};
use pp_tests::harness::By;
use pp_tests::lab::{PLC, Place};
use pp_tests::policy::AGENT;
use pp_tests::run;

use crate::tamper::{is_stated_gap, refused_attempt, tamper, text};
use crate::world::{World, tests};

tests![
    terminal_of_a_person_cannot_be_typed_into,
    keyboard_cannot_be_made_or_typed_on,
    pipe_of_a_person_cannot_be_written_into,
    memory_file_of_a_person_cannot_be_opened,
    terminal_of_a_person_cannot_be_opened_by_its_link,
    own_files_are_opened_again_as_before,
    looking_at_other_processes_is_free,
];

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

/// The links in `/proc` to a descriptor of this process, which is nobody's.
fn links(file: &OwnedFd) -> [String; 2] {
    let (pid, number) = (std::process::id(), file.as_raw_fd());
    [format!("/proc/{pid}/fd/{number}"), format!("/proc/{pid}/task/{pid}/fd/{number}")]
}

/// Tries to have a line arrive by these links, in one step and in two; `arrived` says what did since it was asked last.
fn cannot_be_said(daemon: &Daemon, links: &[String], mut arrived: impl FnMut() -> Result<Vec<u8>>) -> Result<()> {
    for link in links {
        for way in ["say", "say-in-two"] {
            let words = [way, link];
            control(daemon, &words)?;
            let line = arrived()?;
            ensure!(line == b"echo said\n", "control run of {words:?}: {line:?} arrived");
            refused(daemon, &words, "reopen", None)?;
            let line = arrived()?;
            ensure!(line.is_empty(), "{words:?}: {line:?} arrived");
        }
    }
    Ok(())
}

fn pipe_of_a_person_cannot_be_written_into(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "ptrace")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let (reads, writes) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let arrived = || {
        let mut line = vec![0; 64];
        match read(&reads, &mut line) {
            Err(Errno::EAGAIN) => Ok(Vec::new()),
            length => {
                line.truncate(length?);
                Ok(line)
            }
        }
    };
    // By the end that a shell reads from, and by that which somebody else writes to.
    cannot_be_said(daemon, &[links(&reads), links(&writes)].concat(), arrived)?;
    let pid = format!("pid {}", std::process::id());
    refused(daemon, &["say", &links(&reads)[0]], "reopen", Some(&pid))?;
    refused(daemon, &["hear", &links(&reads)[0]], "reopen", Some(&pid))?;
    // What has a name is asked for by that name.
    let path = daemon.path("named-pipe");
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let named: OwnedFd = std::fs::OpenOptions::new().read(true).write(true).open(&path)?.into();
    refused(daemon, &["say", &links(&named)[0]], "reopen", Some("named-pipe"))?;
    refused(daemon, &["say-in-two", &links(&named)[0]], "reopen", Some("named-pipe"))?;
    free(daemon, &["say", &text(&path)])?;
    std::fs::remove_file(&path)?;
    Ok(())
}

fn memory_file_of_a_person_cannot_be_opened(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "ptrace")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let memory = std::fs::File::from(memfd_create(c"person", MFdFlags::MFD_CLOEXEC)?);
    let file = memory.try_clone()?.into();
    let arrived = || {
        let mut line = Vec::new();
        let mut from_start = &memory;
        from_start.seek(SeekFrom::Start(0))?;
        from_start.read_to_end(&mut line)?;
        memory.set_len(0)?;
        Ok(line)
    };
    cannot_be_said(daemon, &links(&file), arrived)?;
    let link = links(&file)[0].clone();
    memory.set_len(3)?;
    refused(daemon, &["hear", &link], "reopen", Some("memfd:person"))?;
    refused(daemon, &["cut", &link], "reopen", Some("memfd:person"))?;
    // A deleted file, such as a shell's here-document, has no name any more.
    let path = daemon.path("deleted");
    let deleted: OwnedFd = std::fs::File::create_new(&path)?.into();
    let link_to_deleted = links(&deleted)[0].clone();
    free(daemon, &["hear", &link_to_deleted])?;
    std::fs::remove_file(&path)?;
    for way in ["hear", "say", "say-in-two"] {
        control(daemon, &[way, &link_to_deleted])?;
        refused(daemon, &[way, &link_to_deleted], "reopen", Some("deleted"))?;
    }
    ensure!(memory.metadata()?.len() == 3, "the file was truncated");
    control(daemon, &["cut", &link])?;
    ensure!(memory.metadata()?.len() == 0, "control run: the file was not truncated");
    Ok(())
}

fn terminal_of_a_person_cannot_be_opened_by_its_link(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "ptrace")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let terminal = Terminal::new()?;
    let name = terminal.path.file_name().and_then(|name| name.to_str());
    for link in links(&terminal.end) {
        for way in ["say", "say-in-two", "hear"] {
            control(daemon, &[way, &link])?;
            refused(daemon, &[way, &link], "reopen", name)?;
        }
    }
    Ok(())
}

/// A session may do it.
fn free(daemon: &Daemon, words: &[&str]) -> Result<()> {
    let answer = By::LAB_AGENT.attempt(daemon, &reach(daemon, words))?;
    ensure!(answer == Answer::Delivered, "a session may {words:?}, but: {answer:?}");
    Ok(())
}

/// Nothing that a session of this test did made an event.
fn without_events(daemon: &Daemon, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let mark = daemon.events().mark();
    act()?;
    let told: Vec<_> = daemon.events().of_sessions_since(mark).into_iter().filter(|event| event["kind"] == "tamper").collect();
    ensure!(told.is_empty(), "ordinary work made events: {told:?}");
    Ok(())
}

fn own_files_are_opened_again_as_before(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let script = "set -e; exec 2>&1
        test \"$(cat <(echo a))\" = a
        echo b > >(cat > /dev/null)
        test \"$(echo c | cat /proc/self/fd/0)\" = c
        test \"$(echo d > /proc/self/fd/1)\" = d
        test \"$(echo e | (echo f > /proc/self/fd/2; cat /proc/self/fd/0))\" = e
        coproc cat
        until [ \"$(readlink /proc/$COPROC_PID/fd/0)\" != /dev/null ]; do sleep 0.02; done
        echo g > /proc/$COPROC_PID/fd/0
        read -t 60 -r line <&${COPROC[0]}
        test \"$line\" = g
        kill $COPROC_PID
        read -t 0.02 <> <(:) || true
        echo done";
    without_events(daemon, || {
        free(daemon, &["own"])?;
        let output = By::run(AGENT).run_words(daemon, &["/bin/bash".into(), "-c".into(), script.into()])?.success()?;
        ensure!(output.stdout.ends_with("done\n"), "{output}");
        Ok(())
    })
}

fn looking_at_other_processes_is_free(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let (reads, _writes) = pipe2(OFlag::O_CLOEXEC)?;
    let file: OwnedFd = std::fs::File::create(daemon.path("ordinary"))?.into();
    let terminal = Terminal::new()?;
    without_events(daemon, || {
        for open in [&reads, &file, &terminal.end] {
            for link in links(open) {
                free(daemon, &["look", &link])?;
            }
        }
        // What has a name and is nobody's to listen at.
        free(daemon, &["hear", &links(&file)[0]])?;
        let script = "set -e; ps aux; pgrep -l . || true; ls -lL /proc/$PPID/fd /proc/self/fd || true; ls -l /proc/[0-9]*/exe || true
            if command -v lsof; then lsof -n -p $PPID || true; fi; if command -v ss; then ss -p; fi; cat /proc/$PPID/cmdline";
        let _looked = By::run(AGENT).run_words(daemon, &["/bin/bash".into(), "-c".into(), script.into()])?.success()?;
        Ok(())
    })
}
