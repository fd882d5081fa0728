//! Somebody whom the gate has nothing to do with: a process without a mark that makes ordinary connections all the time.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::libc;
use uuid::Uuid;

use crate::agent::Daemon;
use crate::attack;
use crate::harness::By;
use crate::lab::STRAY_OTHER;
use crate::run::{self, Running};

/// Longer than any test that has one.
const LONGEST: Duration = Duration::from_secs(2 * 3600);

/// The running process. Dropping it ends it.
pub struct Bystander {
    running: Running,
    enough: PathBuf,
}

impl Bystander {
    /// Starts it: about thirty connections a second to a server that nobody protects.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(daemon: &Daemon) -> Result<Self> {
        let enough = daemon.path(&format!("bystander-{}", Uuid::new_v4()));
        let (target, until, for_ms) = (STRAY_OTHER.to_string(), enough.display().to_string(), LONGEST.as_millis().to_string());
        let words = ["spin", &target, "--every-ms", "30", "--for-ms", &for_ms, "--until", &until];
        let running = By::Nobody.start_words(daemon, &attack::workload(daemon.lab(), &words, STRAY_OTHER).words)?;
        Ok(Self { running, enough })
    }

    /// Ends it and checks that it has connected and was not refused once. Returns how many connections it made.
    ///
    /// # Errors
    /// It was refused, or never connected.
    pub fn finish(self) -> Result<u64> {
        fs::write(&self.enough, "")?;
        let answers = self.running.finish(run::PATIENCE)?.success()?.json()?["answers"].clone();
        let count = |errno: i32| answers[errno.to_string()].as_u64().unwrap_or(0);
        ensure!(count(libc::EPERM) == 0, "a process without a mark was refused: answers by error number {answers}");
        ensure!(count(0) > 0, "a process without a mark never connected: answers by error number {answers}");
        Ok(count(0))
    }
}
