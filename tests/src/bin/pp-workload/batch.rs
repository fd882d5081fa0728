//! Many attempts by one process, each in a child of its own, or all in this one: a table's rows in the time of one.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use std::io::Read as _;
use std::os::fd::AsFd as _;

use crate::args::TechniqueArg;
use crate::{outcome, techniques};

/// How many attempts run at once.
const TOGETHER: usize = 6;
/// After this an attempt that has not ended is ended, and counts as one without an answer.
const LIMIT: Duration = Duration::from_secs(90);

/// One line of the list: a technique and its target.
fn attempts(list: &Path) -> Result<Vec<(String, String)>> {
    let text = fs::read_to_string(list).with_context(|| list.display().to_string())?;
    text.lines().map(|line| line.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).with_context(|| line.to_owned())).collect()
}

/// Makes every attempt of the list in a child of its own; prints `{"index":i, ...}` for each, then `{"done":true}`.
pub(crate) fn run(list: &Path) -> Result<()> {
    let mut rows = attempts(list)?.into_iter().enumerate();
    let mut running: Vec<(usize, Child, Instant)> = Vec::new();
    loop {
        while running.len() < TOGETHER
            && let Some((index, (technique, target))) = rows.next()
        {
            let child =
                Command::new("/proc/self/exe").args(["try", &technique, &target]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
            running.push((index, child, Instant::now()));
        }
        if running.is_empty() {
            return outcome::print(&json!({"done": true}));
        }
        let mut waiting = Vec::new();
        for (index, mut child, since) in running {
            if child.try_wait()?.is_none() && since.elapsed() < LIMIT {
                waiting.push((index, child, since));
                continue;
            }
            child.kill()?;
            report(index, &mut child)?;
        }
        // Until one of them has said something, or a moment has passed.
        let mut pipes: Vec<PollFd<'_>> =
            waiting.iter().filter_map(|(_, child, _)| Some(PollFd::new(child.stdout.as_ref()?.as_fd(), PollFlags::POLLHUP))).collect();
        let _ready = poll(&mut pipes, PollTimeout::from(20_u8))?;
        running = waiting;
    }
}

fn report(index: usize, child: &mut Child) -> Result<()> {
    let mut text = String::new();
    if let Some(stdout) = child.stdout.as_mut() {
        let _read = stdout.read_to_string(&mut text)?;
    }
    let _status = child.wait()?;
    let mut answer: Value = serde_json::from_str(text.trim()).unwrap_or_else(|_| json!({"ok": false, "errno": null}));
    answer["index"] = index.into();
    outcome::print(&answer)
}

/// Makes every attempt of the list in this very process, one after the other.
pub(crate) fn run_here(list: &Path) -> Result<()> {
    for (index, (technique, target)) in attempts(list)?.into_iter().enumerate() {
        let technique = TechniqueArg::from_str(&technique, false).map_err(anyhow::Error::msg)?;
        let mut answer = techniques::attempt(technique, target.parse()?).json();
        answer["index"] = index.into();
        outcome::print(&answer)?;
    }
    outcome::print(&json!({"done": true}))
}
