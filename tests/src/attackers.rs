//! What each attacker of the suite got through before it was blocked: the rows of `docs/attackers.md`.

use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// One attacker on one kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The tool, and what it does.
    pub attacker: String,
    /// Its command line; paths of the lab are left out.
    pub command: String,
    /// The reason of the block as events name it, the gap that lets it through, or `nothing`.
    pub stopped_by: String,
    /// What is counted: `hosts and ports`, `connections` (in what time, where it is over a day), `turns`.
    pub counted: &'static str,
    /// How many the policy allows; `None` where nothing counts it.
    pub allowed: Option<usize>,
    /// How many arrived when nobody's process ran it; `None` where that was not tried.
    pub control: Option<usize>,
    /// How many arrived of the agent's.
    pub through: usize,
    /// Passwords that the server was asked about in the agent's run, where it is a login.
    pub guesses: Option<usize>,
    /// What the limits are, where they are not the shipped ones, or the clock, where it is not the kernel's.
    pub note: String,
}

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

/// Notes what came of an attacker.
pub fn record(line: Line) {
    LINES.lock().unwrap_or_else(PoisonError::into_inner).push(line);
}

/// Everything noted so far, in order.
#[must_use]
pub fn lines() -> Vec<Line> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
