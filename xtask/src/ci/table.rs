//! The final table of `ci`: a line for each check, and the seconds of each group of tests by row. Both are also written as JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{coverage, paths::Paths};

/// One line of the table.
pub(super) struct Line {
    pub(super) what: String,
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
    pub(super) began: Instant,
    pub(super) took: Duration,
    /// Seconds of the suite's tests, by group.
    pub(super) groups: BTreeMap<String, f64>,
    /// The earlier run whose result this is. `None` if it ran now.
    pub(super) kept: Option<String>,
}

impl Line {
    /// A line that ends now.
    pub(super) fn new(what: &str, (passed, failed, skipped): (usize, usize, usize), began: Instant) -> Self {
        let (what, took) = (what.to_owned(), began.elapsed());
        Self { what, passed, failed, skipped, began, took, groups: BTreeMap::new(), kept: None }
    }

    /// The line of a check that passes or fails as a whole.
    pub(super) fn verdict(what: &str, ok: bool, began: Instant) -> Self {
        Self::new(what, (ok.into(), (!ok).into(), 0), began)
    }
}

/// The whole run.
#[derive(Debug, Serialize)]
pub(super) struct Times {
    commit: String,
    date: String,
    processors: usize,
    seconds: f64,
    passed: usize,
    failed: usize,
    skipped: usize,
    steps: Vec<Step>,
    /// Rows whose committed coverage is of other kernel programs.
    stale: Vec<String>,
}

/// One check of the run.
#[derive(Debug, Serialize)]
struct Step {
    what: String,
    /// Seconds from the start of the run.
    began: f64,
    seconds: f64,
    passed: usize,
    failed: usize,
    skipped: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    groups: BTreeMap<String, f64>,
}

impl Times {
    /// The result of a run that began at `start` and ends now.
    ///
    /// # Errors
    ///
    /// git cannot name the commit.
    pub(super) fn of(paths: &Paths, start: Instant, lines: Vec<Line>, stale: Vec<String>) -> Result<Self> {
        let steps = lines.into_iter().map(|line| Step {
            what: line.what,
            began: seconds(line.began.saturating_duration_since(start)),
            seconds: seconds(line.took),
            passed: line.passed,
            failed: line.failed,
            skipped: line.skipped,
            kept: line.kept,
            groups: line.groups,
        });
        let steps: Vec<Step> = steps.collect();
        let sum = |of: fn(&Step) -> usize| steps.iter().map(of).sum();
        Ok(Self {
            commit: coverage::say(paths, "git", &["describe", "--always", "--dirty", "--abbrev=12"])?,
            date: coverage::say(paths, "date", &["-u", "+%FT%TZ"])?,
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            seconds: seconds(start.elapsed()),
            passed: sum(|step| step.passed),
            failed: sum(|step| step.failed),
            skipped: sum(|step| step.skipped),
            steps,
            stale,
        })
    }

    /// True when nothing failed.
    pub(super) const fn green(&self) -> bool {
        self.failed == 0
    }

    /// Writes it next to the cache. Returns the file.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub(super) fn keep(&self, paths: &Paths) -> Result<PathBuf> {
        let file = paths.cache.join("ci/times.json");
        fs::write(&file, self.json()? + "\n").with_context(|| file.display().to_string())?;
        Ok(file)
    }

    /// As JSON.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// As text for a person.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let mut put = |line: std::fmt::Arguments<'_>| {
            let _written = writeln!(text, "{line}");
        };
        put(format_args!("{:<40} {:>7} {:>7} {:>7} {:>7} {:>8}", "check", "passed", "failed", "skipped", "began", "seconds"));
        for step in &self.steps {
            let Step { what, began, seconds, passed, failed, skipped, .. } = step;
            let kept = step.kept.as_ref().map_or_else(String::new, |kept| format!("  kept: {kept}"));
            put(format_args!("{what:<40} {passed:>7} {failed:>7} {skipped:>7} {began:>7.0} {seconds:>8.1}{kept}"));
        }
        let rows: Vec<&Step> = self.steps.iter().filter(|step| !step.groups.is_empty()).collect();
        if !rows.is_empty() {
            put(format_args!(""));
            put(format_args!(
                "{:<20}{}",
                "seconds by group",
                rows.iter().map(|row| format!(" {:>12}", short(&row.what))).collect::<String>()
            ));
            for (group, of) in groups(&rows) {
                put(format_args!("{group:<20}{of}"));
            }
            let rest = rows.iter().map(|row| format!(" {:>12.1}", row.rest()));
            put(format_args!("{:<20}{}", "all else of the row", rest.collect::<String>()));
        }
        for row in &self.stale {
            put(format_args!("committed coverage of {row}"));
        }
        put(format_args!(""));
        put(format_args!("{} passed, {} failed, {} skipped in {:.0} s", self.passed, self.failed, self.skipped, self.seconds));
        text
    }
}

impl Step {
    /// Seconds of the row outside its tests, such as boot and set-up of the lab. Zero for a row that did not run now.
    fn rest(&self) -> f64 {
        if self.kept.is_some() { 0.0 } else { self.seconds - self.groups.values().sum::<f64>() }
    }
}

/// A line for each group, the slowest first.
fn groups(rows: &[&Step]) -> Vec<(String, String)> {
    let names: BTreeSet<&String> = rows.iter().flat_map(|row| row.groups.keys()).collect();
    let all = |name: &String| rows.iter().filter_map(|row| row.groups.get(name)).sum::<f64>();
    let mut names: Vec<&String> = names.into_iter().collect();
    names.sort_by(|one, other| all(other).total_cmp(&all(one)));
    let of = |name: &String| {
        let cell = |row: &&Step| row.groups.get(name).map_or_else(|| format!(" {:>12}", "-"), |seconds| format!(" {seconds:>12.1}"));
        rows.iter().map(cell).collect()
    };
    names.into_iter().map(|name| (name.clone(), of(name))).collect()
}

/// `e2e 6.1 (6.1.0-56-amd64)`: the row's name.
fn short(what: &str) -> &str {
    what.strip_prefix("e2e ").and_then(|name| name.split(' ').next()).unwrap_or(what)
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(what: &str, groups: &[(&str, f64)], kept: Option<&str>) -> Step {
        let groups = groups.iter().map(|(name, seconds)| ((*name).to_owned(), *seconds)).collect();
        Step { what: what.into(), began: 0.0, seconds: 10.0, passed: 2, failed: 0, skipped: 1, kept: kept.map(str::to_owned), groups }
    }

    #[test]
    fn the_table_has_every_step_and_the_seconds_of_each_group_by_row() {
        let steps = vec![
            step("lints", &[], None),
            step("e2e 6.1 (6.1.0-56-amd64)", &[("lab", 1.0), ("tamper", 6.5)], None),
            step("e2e 7.x (7.3.4)", &[("lab", 2.0)], Some("key 00ff of 2026-11-30")),
        ];
        let times = Times {
            commit: "abc".into(),
            date: "2026-11-30T08:00:00Z".into(),
            processors: 2,
            seconds: 30.0,
            passed: 6,
            failed: 0,
            skipped: 3,
            steps,
            stale: vec!["5.10: stale".into()],
        };
        let text = times.text();
        let line =
            |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default().split_whitespace().collect::<Vec<_>>();
        assert_eq!(line("seconds by group"), ["seconds", "by", "group", "6.1", "7.x"]);
        assert_eq!(line("tamper"), ["tamper", "6.5", "-"]);
        assert_eq!(line("lab"), ["lab", "1.0", "2.0"]);
        assert_eq!(line("all else"), ["all", "else", "of", "the", "row", "2.5", "0.0"]);
        assert!(text.find("tamper") < text.find("lab  "), "{text}");
        assert!(text.contains("kept: key 00ff of 2026-11-30") && text.contains("committed coverage of 5.10: stale"), "{text}");
        assert!(text.ends_with("6 passed, 0 failed, 3 skipped in 30 s\n"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&times.json().expect("JSON")).expect("JSON");
        assert_eq!(json["steps"][1]["groups"]["tamper"], 6.5);
        assert!(json["steps"][0].get("groups").is_none() && json["steps"][0].get("kept").is_none());
    }
}
