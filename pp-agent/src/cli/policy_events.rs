//! `policy check --against` and `policy suggest`: what recorded events say about a policy.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use serde::Serialize;

use super::output::{named, table};
use super::{CliError, Context, DONE, Outcome, REFUSED, policy};
use crate::config::{Config, FileCheck, NotRead, Off, Paths};
use crate::events::Event;
use crate::recorded::compare::{Change, Comparison, Row, Summary, Tally};
use crate::recorded::counted;
use crate::recorded::draft::Draft;
use crate::recorded::lines::{self, Contents, LinesError};
use crate::recorded::suggest::Observed;

/// Stands for standard input.
const STDIN: &str = "-";

/// `policy check --against --json`.
#[derive(Serialize)]
struct Against<'a> {
    #[serde(flatten)]
    summary: Summary,
    files: Vec<String>,
    events: u64,
    off: &'a [Off],
    warnings: &'a [String],
    not_read: &'a [NotRead],
}

/// Prints what a draft would have changed. Exit code 1 if it would refuse what was allowed.
pub(super) fn against(context: &Context, config: &Config, events: &Path) -> Outcome {
    let mut comparison = Comparison::new(Draft::new(config).map_err(CliError::message)?);
    let read = each(events, |event| comparison.take(&event))?;
    comparison.miss(read.missing);
    let answer = Against {
        summary: comparison.summary(),
        files: policy::files(config),
        events: read.events,
        off: &config.off,
        warnings: &config.warnings,
        not_read: &config.not_read,
    };
    context.out.show(&answer, || {
        let mut lines = vec![counted(read.events, "event")];
        for change in [Change::NewlyRefused, Change::NewlyAllowed, Change::NoLongerReported] {
            lines.extend(section(&comparison, change));
        }
        let unchanged = |change| comparison.attempts(change);
        lines.push(format!("unchanged: {} refused, {} let through", unchanged(Change::Refused), unchanged(Change::LetThrough)));
        for group in &answer.summary.not_judged {
            lines.push(format!("not judged: {} ({}): {}", counted(group.events, "event"), group.what, group.why));
        }
        lines.extend(answer.summary.notes.iter().map(|note| format!("note: {note}")));
        lines
    })?;
    Ok(if comparison.rows(Change::NewlyRefused).next().is_some() { REFUSED } else { DONE })
}

fn section(comparison: &Comparison<'_>, change: Change) -> Vec<String> {
    let words = match change {
        Change::NewlyRefused => "let through, would be refused",
        Change::NewlyAllowed => "refused, would be let through",
        Change::NoLongerReported => "let through, would be without an event",
        Change::Refused => "refused, would be",
        Change::LetThrough => "let through, would be",
    };
    let rows: Vec<Vec<String>> = comparison.rows(change).map(|(row, tally)| cells(row, tally)).collect();
    let mut lines = vec![format!("{} {words}", counted(comparison.attempts(change), "attempt"))];
    lines.extend(table(&rows).into_iter().map(|line| format!("  {line}")));
    lines
}

fn cells(row: &Row, tally: &Tally) -> Vec<String> {
    let names = [("zone", &row.place.zone), ("gateway", &row.place.gateway), ("service", &row.place.service)];
    let place = named(names);
    let verdict = |(verdict, reason): (&str, &str)| format!("{verdict} {reason}");
    vec![
        row.to.map_or_else(|| "no destination".to_owned(), |to| to.to_string()),
        row.agent.clone(),
        format!("{} -> {}", verdict(row.then), verdict(row.now)),
        counted(tally.attempts, "attempt"),
        place.join(", "),
    ]
}

/// Prints a proposed drop-in.
pub(super) fn suggest(context: &Context, file: &Path, events: &Path) -> Outcome {
    let config = Config::load(&Paths::beside(file), FileCheck::Anybody).map_err(CliError::message)?;
    policy::print_remarks(&config);
    let mut observed = Observed::new(Draft::new(&config).map_err(CliError::message)?);
    let read = each(events, |event| observed.take(&event))?;
    observed.miss(read.missing);
    let proposal = observed.propose().map_err(CliError::message)?;
    if context.out.json {
        context.out.value(&proposal)?;
    } else {
        // Text from events is escaped already. The output is a TOML file, so its backslashes must stay.
        context.out.raw(proposal.toml.as_bytes())?;
    }
    Ok(DONE)
}

fn each(events: &Path, take: impl FnMut(Event) -> Result<(), String>) -> Result<Contents, CliError> {
    let name = events.display().to_string();
    let found = if events == Path::new(STDIN) {
        lines::each("standard input", io::stdin().lock(), take)
    } else {
        match File::open(events) {
            Ok(file) => lines::each(&name, BufReader::new(file), take),
            Err(source) => Err(LinesError::Read { name, source }),
        }
    };
    found.map_err(CliError::message)
}
