//! Running a command of a test: bounded in time, its output kept in files so that a test can look at it while it runs.

use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::wait;

/// How long a command of a test may take, emulated machines included.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// What a command left behind.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// The exit code; 128 and more for a signal's death, as a shell says it.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// The whole standard output as JSON, or the last line of it that is.
    ///
    /// # Errors
    /// There is none; the error shows both outputs.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout)
            .ok()
            .or_else(|| self.stdout.lines().rev().find_map(|line| serde_json::from_str(line).ok()))
            .with_context(|| format!("no JSON in the output: {self}"))
    }

    /// The output itself if the command exited with 0.
    ///
    /// # Errors
    /// It did not; the error shows both outputs.
    pub fn success(self) -> Result<Self> {
        ensure!(self.status.success(), "{self}");
        Ok(self)
    }

    /// Both outputs, one after the other.
    #[must_use]
    pub fn both(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "exit {}\nstdout: {}\nstderr: {}", self.code(), self.stdout, self.stderr)
    }
}

/// A command that runs beside the test, in a process group of its own that is killed when this is dropped.
pub struct Running {
    child: Child,
    stdout: NamedTempFile,
    stderr: NamedTempFile,
}

impl Running {
    /// Starts the command.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let (stdout, stderr) = (NamedTempFile::new()?, NamedTempFile::new()?);
        let text = format!("{command:?}");
        let child = command
            .stdin(Stdio::null())
            .stdout(File::options().append(true).open(stdout.path())?)
            .stderr(File::options().append(true).open(stderr.path())?)
            .process_group(0)
            .spawn()
            .context(text)?;
        Ok(Self { child, stdout, stderr })
    }

    /// The process id of the command itself.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        std::fs::read(self.stdout.path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// What it has complained about so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        std::fs::read(self.stderr.path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// True until it has ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until standard output has a line of JSON with this member, and returns the line.
    ///
    /// # Errors
    /// None came in time, or the command ended without it.
    pub fn line_with(&mut self, member: &str) -> Result<Value> {
        self.line_within(member, PATIENCE)
    }

    /// The same with a deadline of its own.
    ///
    /// # Errors
    /// None came in time, or the command ended without it.
    pub fn line_within(&mut self, member: &str, deadline: Duration) -> Result<Value> {
        let found = wait::until(&format!("a line with `{member}`"), deadline, || {
            let line =
                self.stdout().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find(|line| line.get(member).is_some());
            match line {
                Some(line) => Some(Some(line)),
                None if self.is_running() => None,
                // It may have printed between the two looks.
                None => Some(
                    self.stdout()
                        .lines()
                        .filter_map(|line| serde_json::from_str(line).ok())
                        .find(|line: &Value| line.get(member).is_some()),
                ),
            }
        })?;
        found.with_context(|| format!("ended without a line with `{member}`: {}{}", self.stdout(), self.stderr()))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It did not end in time; it is killed then, and the error shows its outputs.
    pub fn finish(mut self, deadline: Duration) -> Result<Output> {
        let mut ended = None;
        wait::until_true("the command's end", deadline, || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some()
        })
        .with_context(|| format!("stdout: {}\nstderr: {}", self.stdout(), self.stderr()))?;
        let status = ended.context("no exit status")?;
        Ok(Output { status, stdout: self.stdout(), stderr: self.stderr() })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The group may outlive its leader: children of a command that has ended belong to it too.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _gone = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _reaped = self.child.wait();
    }
}

/// Runs the command to its end.
///
/// # Errors
/// It cannot be started or takes longer than [`PATIENCE`].
pub fn run(command: &mut Command) -> Result<Output> {
    Running::start(command)?.finish(PATIENCE)
}
