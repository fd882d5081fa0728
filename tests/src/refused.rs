//! Whether events tell of every refusal: told + repeats + lost = refused, added up from the stream and from the store, each by itself.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::client::Client;

/// How many refusals events tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// By events of their own.
    pub told: u64,
    /// As repeats.
    pub repeats: u64,
    /// As lost.
    pub lost: u64,
    /// As told and not stored: among those that a follower was told.
    pub not_stored: u64,
    /// The last event's id.
    pub last_id: u64,
}

impl Sums {
    /// Adds one line of the stream.
    pub fn add(&mut self, event: &Value) {
        self.last_id = event["id"].as_u64().unwrap_or(self.last_id);
        if event["verdict"] != "block" {
            return;
        }
        let repeats = event["repeats"].as_u64().unwrap_or(0);
        match (event["kind"].as_str(), event["reason"].as_str()) {
            (Some("verdict" | "tamper" | "exec"), _) => {
                self.told += u64::from(event.get("pid").is_some() || repeats == 0);
                self.repeats += repeats;
            }
            (Some("lost"), Some("not_stored")) => self.not_stored += event["count"].as_u64().unwrap_or(0),
            (Some("lost"), _) => self.lost += event["count"].as_u64().unwrap_or(0),
            _ => {}
        }
    }

    /// What a follower was told of.
    #[must_use]
    pub const fn followed(&self) -> u64 {
        self.told + self.repeats + self.lost
    }

    /// What stored events tell of.
    #[must_use]
    pub const fn stored(&self) -> u64 {
        self.followed() + self.not_stored
    }
}

/// Events after each of which a slow follower pauses: twice as many as may wait for it in the daemon.
const SLOW_EVENTS: u32 = 2_048;

/// Adds up what a follower of all events is told.
pub struct Counting {
    sums: Arc<Mutex<Sums>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Counting {
    /// Follows from now on; `pause` after each of its first events makes a slow follower, which then reads on as it can.
    ///
    /// # Errors
    /// No client can be built.
    pub fn start(socket: &Path, pause: Duration) -> Result<Self> {
        let (sums, stop) = (Arc::new(Mutex::new(Sums::default())), Arc::new(AtomicBool::new(false)));
        let client = Client::new(socket)?;
        let thread = {
            let (sums, stop) = (Arc::clone(&sums), Arc::clone(&stop));
            thread::spawn(move || {
                let go_on = || !stop.load(Ordering::Relaxed);
                let mut slow = SLOW_EVENTS;
                client.follow("/v1/events?follow=true&limit=0", Duration::from_millis(200), go_on, |event| {
                    sums.lock().unwrap_or_else(PoisonError::into_inner).add(&event);
                    if slow > 0 && !pause.is_zero() {
                        slow -= 1;
                        thread::sleep(pause);
                    }
                })
            })
        };
        Ok(Self { sums, stop, thread: Some(thread) })
    }

    /// The sums so far.
    #[must_use]
    pub fn sums(&self) -> Sums {
        *self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it.
    ///
    /// # Errors
    /// The stream could not be followed.
    pub fn finish(mut self) -> Result<Sums> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow::anyhow!("the follower panicked"))??;
        }
        Ok(self.sums())
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// How long it may take to read every stored event.
const READING: Duration = Duration::from_secs(600);

/// Adds up the stored events.
///
/// # Errors
/// They cannot be read.
pub fn stored(client: &Client) -> Result<Sums> {
    let mut sums = Sums::default();
    // Line by line: on an emulated processor all of a full store takes minutes.
    let begun = Instant::now();
    client.follow("/v1/events?since=0", Duration::from_secs(1), || begun.elapsed() < READING, |event| sums.add(&event))?;
    ensure!(begun.elapsed() < READING, "the stored events were not read within {READING:?}");
    Ok(sums)
}

/// The daemon's own account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// By the kernel's count.
    pub refused: u64,
    /// By events of their own.
    pub told: u64,
    /// As repeats.
    pub repeats: u64,
    /// As lost.
    pub lost: u64,
    /// Not yet.
    pub untold: u64,
}

/// What `status` says of refusals.
///
/// # Errors
/// No answer came, or it says nothing of them.
pub fn account(client: &Client) -> Result<Account> {
    let status = client.status()?;
    let number = |name: &str| status["refusals"][name].as_u64().with_context(|| format!("no refusals.{name} in {status}"));
    Ok(Account {
        refused: number("refused")?,
        told: number("told")?,
        repeats: number("repeats")?,
        lost: number("lost")?,
        untold: number("untold")?,
    })
}
