//! The daemon's events as the tests follow them: a thread reads the stream, tests wait for the event they mean.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::Value;

use crate::client::Client;
use crate::wait;

/// One event and when it was read, in milliseconds since the epoch.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When it was read.
    pub at_ms: i64,
    /// The event.
    pub event: Value,
}

/// Every event since the log was opened, in order.
pub struct EventLog {
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    idle: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How often the reader looks whether it should stop.
const TICK: Duration = Duration::from_millis(200);

impl EventLog {
    /// Follows the events of this control socket until dropped, through restarts of the daemon.
    ///
    /// # Errors
    /// No client can be built.
    pub fn follow(socket: &Path) -> Result<Self> {
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let idle = Arc::new(AtomicBool::new(false));
        let client = Client::new(socket)?;
        let thread = {
            let (seen, stop, idle) = (Arc::clone(&seen), Arc::clone(&stop), Arc::clone(&idle));
            thread::spawn(move || {
                let mut last: Option<Value> = None;
                while !stop.load(Ordering::Relaxed) {
                    // A stream that was idle or cut is taken up where it ended.
                    let path = match last.as_ref().map(id_text) {
                        Some(id) => format!("/v1/events?follow=true&since={id}"),
                        None => "/v1/events?follow=true".to_owned(),
                    };
                    if idle.load(Ordering::Relaxed) {
                        thread::sleep(TICK);
                        continue;
                    }
                    let go_on = || !stop.load(Ordering::Relaxed) && !idle.load(Ordering::Relaxed);
                    let followed = client.follow(&path, TICK, go_on, |event| {
                        if event.get("id").is_some() {
                            last = event.get("id").cloned();
                        }
                        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        // The daemon may repeat the event it was asked to go on from.
                        let is_old = |old: &Seen| old.event["id"] == event["id"] && old.event == event;
                        if event.get("id").is_none() || !seen.iter().rev().take(64).any(is_old) {
                            seen.push(Seen { at_ms: Timestamp::now().as_millisecond(), event });
                        }
                    });
                    if followed.is_err() {
                        thread::sleep(Duration::from_millis(20));
                    }
                }
            })
        };
        Ok(Self { seen, stop, idle, thread: Some(thread) })
    }

    /// Follows no more: a storm makes more events than are worth keeping.
    pub fn let_go(&self) {
        self.idle.store(true, Ordering::Relaxed);
    }

    /// The events so far.
    #[must_use]
    pub fn all(&self) -> Vec<Value> {
        self.seen_since(0).into_iter().map(|seen| seen.event).collect()
    }

    /// The events after the mark, with the times at which they were read.
    #[must_use]
    pub fn seen_since(&self, mark: usize) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(mark..).unwrap_or_default().to_vec()
    }

    /// How many events there are so far: a mark for [`EventLog::since`].
    #[must_use]
    pub fn mark(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The events after the mark.
    #[must_use]
    pub fn since(&self, mark: usize) -> Vec<Value> {
        self.seen_since(mark).into_iter().map(|seen| seen.event).collect()
    }

    /// The events after the mark of sessions that began after it: the count of an earlier test's repeats may come at any time.
    #[must_use]
    pub fn of_sessions_since(&self, mark: usize) -> Vec<Value> {
        let events = self.since(mark);
        let begun: Vec<Value> =
            events.iter().filter(|event| event["kind"] == "session_start").map(|event| event["session"].clone()).collect();
        events.into_iter().filter(|event| begun.contains(&event["session"])).collect()
    }

    /// Waits for an event after the mark that the probe accepts.
    ///
    /// # Errors
    /// None came in time; the error shows those that did.
    pub fn wait_since(&self, mark: usize, what: &str, probe: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut from = mark;
        let found = || {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let later = seen.get(from..).unwrap_or_default();
            let event = later.iter().find(|seen| probe(&seen.event)).map(|seen| seen.event.clone());
            from = seen.len().max(from);
            event
        };
        wait::until(what, wait::SOON, found).with_context(|| {
            let seen = self.since(mark);
            let last: Vec<String> = seen.iter().rev().take(8).map(brief).collect();
            format!("{} events since, the last of them: {}", seen.len(), if last.is_empty() { "none".to_owned() } else { last.join("; ") })
        })
    }
}

/// What a message says of an event.
fn brief(event: &Value) -> String {
    let members = ["kind", "verdict", "reason", "agent", "destination", "detail"];
    members.iter().filter_map(|name| event.get(name)).map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn id_text(id: &Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
}

impl Drop for EventLog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the event reader panicked");
        }
    }
}
