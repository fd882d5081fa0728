//! Ordinary work of a session under the policy as it is shipped: it is done, and nothing is told of it.
//!
//! A gate that sees nothing would let it pass as well. So the same work runs again, as said for each: while a zone that is everything
//! observes, which tells each host and port that it reaches for, and under numbers of the behaviour rules that it must trip.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::agent::Daemon;
use crate::harness::{By, is_verdict};
use crate::lab::{DNS_INSIDE, Outside, Place};
use crate::policy::{AGENT, OTHER_AGENT, Policy};
use crate::run::{PATIENCE, Running};

/// The zone that is everything.
const EVERYTHING: &str = "everything";
/// What each script may use: `expect WHAT FOUND WANTED`.
const PREAMBLE: &str = r#"expect() { [ "$2" = "$3" ] || { echo "$1: $2, not $3" >&2; exit 1; }; }"#;
/// Gives what follows it another resolver file.
const RESOLVER: &str = r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#;

/// A piece of ordinary work.
pub struct Work<'a> {
    /// What the table calls it.
    pub name: &'static str,
    /// The bash script of it, given an empty directory, which is also where it begins. It succeeds when the work is done.
    pub script: &'a dyn Fn(&Path) -> String,
    /// Where it runs.
    pub at: At<'a>,
    /// Keys of `[behaviour]` that this work needs beside the shipped policy; empty for nearly all.
    pub needs: &'static str,
    /// How it is shown that the gate saw it.
    pub shown: Shown,
}

/// How it is shown that the gate saw some work.
#[derive(Clone, Copy)]
pub enum Shown {
    /// It reaches for so many hosts and ports at least, each of which is told where everything is observed.
    Reaches(usize),
    /// It trips a rule under other numbers.
    Trips(Trip),
    /// Both.
    Both(usize, Trip),
}

/// The network that a piece of work runs in.
#[derive(Clone, Copy)]
pub enum At<'a> {
    /// The lab's engineering network, with the office's name server.
    Lab,
    /// The machine's own.
    Machine(&'a Outside),
}

/// What work trips.
#[derive(Clone, Copy)]
pub struct Trip {
    /// Under these keys of `[behaviour]`, which replace those that the work needs.
    pub keys: &'static str,
    /// The reason that is told.
    pub reason: &'static str,
}

/// What one piece of work came to.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// What the table calls it.
    pub work: &'static str,
    /// Keys of `[behaviour]` that it needs.
    pub needs: &'static str,
    /// Hosts that it reached for, and pairs of host and port, of all protocols; `None` where that was not observed.
    pub reached: Option<(usize, usize)>,
    /// How long it took under the shipped policy, in milliseconds.
    pub milliseconds: u128,
    /// Events that were told of it under the shipped policy.
    pub told: usize,
    /// What it trips under other numbers: the reason, how many there were, how many were allowed.
    pub trips: Option<(&'static str, u64, u64)>,
}

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

/// Everything noted so far, in order.
#[must_use]
pub fn lines() -> Vec<Line> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The work succeeds as a session under the shipped policy and nothing is told of it; and each of its attempts was judged. `shipped` is the
/// daemon's policy, before and after.
///
/// # Errors
/// The work did not succeed, something was told of it, or nothing judged it.
pub fn trips_nothing(daemon: &Daemon, shipped: &Policy, work: &Work<'_>) -> Result<()> {
    let with_rules = |keys: &str| if keys.is_empty() { shipped.clone() } else { shipped.clone().with(&format!("[behaviour]\n{keys}")) };
    daemon.reload(&with_rules(work.needs))?;
    let quiet = Session::of(daemon, work).with_context(|| work.name)?;
    ensure!(quiet.told.is_empty(), "{}: {} events, the first of them: {}", work.name, quiet.told.len(), quiet.told[0]);

    let (reaches, trip) = match work.shown {
        Shown::Reaches(reaches) => (Some(reaches), None),
        Shown::Trips(trip) => (None, Some(trip)),
        Shown::Both(reaches, trip) => (Some(reaches), Some(trip)),
    };
    let reached = reaches.map(|least| observed(daemon, shipped, work, least)).transpose()?;
    let rules = |trip: Trip| with_rules(&format!("mode = \"observe\"\n{}", trip.keys));
    let trips = trip.map(|trip| tripped(daemon, &rules(trip), work, trip)).transpose()?;
    daemon.reload(shipped)?;
    LINES.lock().unwrap_or_else(PoisonError::into_inner).push(Line {
        work: work.name,
        needs: work.needs,
        reached,
        milliseconds: quiet.took.as_millis(),
        told: quiet.told.len(),
        trips,
    });
    Ok(())
}

/// The work where everything is observed: the hosts, and the pairs of host and port, that it was told to reach for.
fn observed(daemon: &Daemon, shipped: &Policy, work: &Work<'_>, least: usize) -> Result<(usize, usize)> {
    let zone = format!("[[zone]]\nname = \"{EVERYTHING}\"\nnetworks = [\"::/0\"]\nmode = \"observe\"\n");
    daemon.reload(&shipped.clone().with(&zone))?;
    let seen = Session::of(daemon, work).with_context(|| format!("{}, observed", work.name))?;
    let told = seen.told.iter().filter(|event| is_verdict(event, "observe") && event["zone"] == EVERYTHING);
    let destinations: Vec<&Value> = told.map(|event| &event["destination"]).collect();
    let pairs: BTreeSet<String> = destinations.iter().map(ToString::to_string).collect();
    let hosts: BTreeSet<String> = destinations.iter().map(|destination| destination["address"].to_string()).collect();
    ensure!(pairs.len() >= least, "{}: {} hosts and ports were judged, {least} at least", work.name, pairs.len());
    Ok((hosts.len(), pairs.len()))
}

/// The work under numbers that it must trip: the reason, how many there would have been, how many are allowed.
fn tripped(daemon: &Daemon, policy: &Policy, work: &Work<'_>, trip: Trip) -> Result<(&'static str, u64, u64)> {
    daemon.reload(policy)?;
    let session = Session::of(daemon, work).with_context(|| format!("{} with {}", work.name, trip.keys))?;
    let event = session.told.iter().find(|event| event["limit"].is_u64() && event["reason"] == trip.reason);
    let event = event.with_context(|| format!("{} with {}: no {} but {:?}", work.name, trip.keys, trip.reason, session.told.first()))?;
    let (count, limit) = (event["count"].as_u64(), event["limit"].as_u64());
    let (count, limit) = count.zip(limit).with_context(|| event.to_string())?;
    ensure!(is_verdict(event, "observe") && count == limit + 1, "{event}");
    Ok((trip.reason, count, limit))
}

/// One run of some work, as the session that it was.
struct Session {
    /// Every event of the session but its beginning and its end.
    told: Vec<Value>,
    took: Duration,
}

impl Session {
    /// Runs the work by an agent's program, to its end.
    fn of(daemon: &Daemon, work: &Work<'_>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let directory = daemon.path(&format!("work-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&directory)?;
        let script = format!("{PREAMBLE}\n{}", (work.script)(&directory));
        let words = By::LAB_AGENT.words(daemon, &["/bin/bash", "-euo", "pipefail", "-c", script.as_str()].map(str::to_owned));
        let mut command = match work.at {
            At::Lab => {
                let resolver = daemon.path("resolv.conf");
                fs::write(&resolver, format!("nameserver {}\n", DNS_INSIDE.ip()))?;
                // In a mount namespace that nobody made before the session began.
                let before = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", RESOLVER].map(str::to_owned);
                let all: Vec<String> = before.into_iter().chain([resolver.display().to_string()]).chain(words).collect();
                daemon.lab().command(Place::Engineering, &all)
            }
            At::Machine(outside) => outside.command(daemon.lab(), &words),
        };
        let mark = daemon.events().mark();
        let begin = Instant::now();
        let _output = Running::start(command.current_dir(&directory))?.finish(PATIENCE)?.success()?;
        let took = begin.elapsed();
        // The kernel's records come in order: what was told of this session stands before the beginning of a later one that the kernel, not
        // the daemon, has marked.
        let _later = By::Program("lab-codex").run_words(daemon, &["/bin/true".into()])?.success()?;
        let begins = |event: &Value, agent: &str| event["kind"] == "session_start" && event["agent"] == agent;
        let _begun = daemon.events().wait_since(mark, "a later session", |event| begins(event, OTHER_AGENT))?;
        let events = daemon.events().since(mark);
        ensure!(!events.iter().any(|event| event["kind"] == "lost"), "events are missing");
        let sessions: Vec<&Value> = events.iter().filter(|event| begins(event, AGENT)).map(|event| &event["session"]).collect();
        ensure!(sessions.len() == 1, "{} sessions instead of one", sessions.len());
        let is_frame = |event: &Value| event["kind"] == "session_start" || event["kind"] == "session_end";
        let told = events.iter().filter(|event| event["session"] == *sessions[0] && !is_frame(event)).cloned().collect();
        fs::remove_dir_all(&directory).with_context(|| directory.display().to_string())?;
        Ok(Self { told, took })
    }
}
