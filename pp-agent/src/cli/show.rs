//! `status`, `sessions`, `events` and `why`.

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum as _};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::output::table;
use super::policy::remarks;
use super::{Context, DONE, ERROR, Outcome, wait};
use crate::api::{Neighbours, Posture, Refusals, Sessions, Status};
use crate::events::journal::sentence;
use crate::events::{Event, Kind, Members};
use crate::os::isolation;

/// `events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Stay and show new ones as they happen.
    #[arg(long, short)]
    follow: bool,
    /// Only `allow`, `block`, `observe` or `off`.
    #[arg(long, value_parser = ["allow", "block", "observe", "off"])]
    verdict: Option<String>,
    /// Only this kind: `verdict`, `session_start`, `receipt`, ...
    #[arg(long, value_parser = PossibleValuesParser::new(Kind::ALL.iter().map(|kind| kind.name())), hide_possible_values = true)]
    kind: Option<String>,
    /// Only of this agent.
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Only of this session.
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Only after this event id, or since this RFC 3339 instant.
    #[arg(long, value_name = "ID|TIME")]
    since: Option<String>,
    /// Only so many of the stored ones, the newest.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Fail unless at least this much is enforced right now.
    #[arg(long, value_name = "POSTURE", value_parser = ["enforcing", "partial"])]
    require: Option<String>,
}

/// `why`.
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// Of this session; an agent gets its own.
    #[arg(long, value_name = "ID")]
    session: Option<String>,
}

/// Shows the state of the gate. Exits with an error code if there is any problem.
pub(crate) fn status(context: &Context, args: &StatusArgs) -> Outcome {
    let status = wait(context.client.get::<Status>("/v1/status"))?;
    context.out.show(&status, || status_lines(&status))?;
    let enough = args.require.as_deref().is_none_or(|required| meets(status.posture, required));
    Ok(if status.healthy && enough { DONE } else { ERROR })
}

fn status_lines(status: &Status) -> Vec<String> {
    let mut lines: Vec<String> = status.switched_off.iter().map(|off| format!("OFF       {}", off.words())).collect();
    lines.push(format!("version   {}", status.version));
    lines.extend(status.host.iter().map(|host| format!("host      {host}")));
    lines.extend([
        format!("kernel    {}", status.kernel),
        format!("backend   {}", status.backend),
        format!("posture   {}", status.posture),
        format!("mode      {}", status.mode.name()),
        format!("policy    {}", status.policy),
        format!("sessions  {}", status.sessions),
        format!("receipts  {}", status.receipts),
    ]);
    lines.extend(status.refusals.map(|counts| {
        let parts = format!("{} told, {} repeats, {} lost", counts.told, counts.repeats, counts.lost);
        format!("refused   {} ({parts})", counts.refused)
    }));
    lines.extend(status.gaps.iter().map(|gap| format!("gap       {gap}")));
    lines.extend(status.namespaces.iter().map(|name| format!("namespace {}", namespace(name))));
    lines.extend(status.problems.iter().map(|problem| format!("problem   {problem}")));
    lines.extend(neighbours(&status.neighbours));
    lines.extend(remarks(&status.remarks).into_iter().map(|(kind, words)| format!("{kind:9} {words}")));
    lines
}

/// A namespace that is not the host's, and what follows from that.
pub(super) fn namespace(name: &str) -> String {
    let effect = isolation::Kind::from_str(name, false).map_or("this version does not know what is outside", isolation::Kind::effect);
    format!("{name}: not the host's, as --namespace accepts: {effect}")
}

/// What is protected although policy does not name it, in a few lines.
fn neighbours(found: &Neighbours) -> Vec<String> {
    let counts = found.counts();
    let mut lines = Vec::new();
    if counts.links + counts.learned + counts.conflicts > 0 {
        lines.push(format!(
            "neighbour {} links carry a protected place, {} addresses learned, {} conflicts",
            counts.links, counts.learned, counts.conflicts
        ));
    }
    if let Neighbours::List(list) = found {
        lines.extend(list.learned.iter().map(|known| format!("learned   {}: {}", known.address, known.why)));
        lines.extend(list.conflicts.iter().map(|conflict| format!("conflict  {conflict}")));
    }
    lines
}

/// Whether the posture is at least the required one. A policy that observes does not enforce, even if the hooks could.
fn meets(posture: Posture, required: &str) -> bool {
    posture == Posture::Enforcing || posture == Posture::Partial && required == "partial"
}

/// Lists the sessions.
pub(crate) fn sessions(context: &Context) -> Outcome {
    let answer = wait(context.client.get::<Sessions>("/v1/sessions"))?;
    context.out.show(&answer, || {
        let mut rows = vec![["SESSION", "AGENT", "OWNER", "SINCE", "PROCESSES"].map(str::to_owned).to_vec()];
        for session in &answer.sessions {
            let owner = session.owner.name.clone().unwrap_or_else(|| session.owner.uid.to_string());
            let agent = session.agent.clone().unwrap_or_default();
            let processes: Vec<String> =
                session.processes.iter().map(|process| format!("{} {}", process.pid, process.executable)).collect();
            rows.push(vec![session.session.clone(), agent, owner, session.started.clone(), processes.join(", ")]);
        }
        table(&rows)
    })?;
    Ok(DONE)
}

/// Shows events line by line; with `--json` exactly as the daemon sends them.
pub(crate) fn events(context: &Context, args: &EventsArgs) -> Outcome {
    let path = format!("/v1/events?{}", query(args));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(super::CliError::message)?;
    runtime.block_on(async {
        let mut lines = context.client.lines(&path).await?;
        while let Some(line) = lines.next().await? {
            if context.out.json {
                context.out.raw(&line)?;
                context.out.raw(b"\n")?;
            } else {
                context.out.line(&human(&line))?;
            }
        }
        Ok(DONE)
    })
}

fn query(args: &EventsArgs) -> String {
    let mut parts = Vec::new();
    if args.follow {
        parts.push("follow=true".to_owned());
    }
    let mut add = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            parts.push(format!("{name}={}", percent(value)));
        }
    };
    add("verdict", args.verdict.as_deref());
    add("kind", args.kind.as_deref());
    add("agent", args.agent.as_deref());
    add("session", args.session.as_deref());
    add("since", args.since.as_deref());
    add("limit", args.limit.map(|limit| limit.to_string()).as_deref());
    parts.join("&")
}

/// All characters except the unreserved ones of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Text as a part of a path or query.
pub(crate) fn percent(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// A line that says how many events its reader missed.
#[derive(Deserialize)]
struct Lost {
    kind: String,
    count: u64,
}

fn human(line: &[u8]) -> String {
    // An event whose kind is from another version may have members that this version would leave out.
    match serde_json::from_slice::<Event>(line).ok().filter(|event| event.kind().is_some()) {
        Some(event) => format!("{} {:>6} {}", Members::from(&event).time, event.id, sentence(&event)),
        None => match serde_json::from_slice::<Lost>(line) {
            Ok(lost) => format!("- {} {}", lost.kind, lost.count),
            Err(_) => String::from_utf8_lossy(line).into_owned(),
        },
    }
}

/// Explains refusals.
pub(crate) fn why(context: &Context, args: &WhyArgs) -> Outcome {
    let path = match &args.session {
        Some(session) => format!("/v1/why?session={}", percent(session)),
        None => "/v1/why".to_owned(),
    };
    let answer = wait(context.client.get::<Refusals>(&path))?;
    context.out.show(&answer, || {
        if answer.refusals.is_empty() {
            return vec!["nothing was refused".to_owned()];
        }
        let mut lines = Vec::new();
        for refusal in &answer.refusals {
            lines.push(format!("{} {}", refusal.time, refusal.words));
            let command = refusal.requestable.as_ref().and_then(|asking| asking.command.as_ref());
            lines.extend(command.map(|command| format!("    {command}")));
            lines.extend(refusal.server.as_ref().map(|server| format!("    {}", server.words)));
        }
        lines
    })?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_values_are_percent_encoded() {
        assert_eq!(percent("2026-11-22T08:00:00+01:00&x"), "2026-11-22T08%3A00%3A00%2B01%3A00%26x");
        assert_eq!(percent("a-._~Z9 /%ü"), "a-._~Z9%20%2F%25%C3%BC");
    }

    #[test]
    fn misspelt_kind_is_an_error_with_the_nearest_one() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            events: EventsArgs,
        }
        let parse = |kind: &str| <Command as clap::Parser>::try_parse_from(["events", "--kind", kind]).map(|command| command.events.kind);
        for kind in Kind::ALL {
            assert_eq!(parse(kind.name()).unwrap().as_deref(), Some(kind.name()));
        }
        let error = parse("verdct").unwrap_err().to_string();
        assert!(error.contains("invalid value 'verdct'") && error.contains("'verdict'"), "{error}");
    }

    #[test]
    fn namespace_is_shown_with_what_follows_from_it() {
        assert_eq!(namespace("pid"), format!("pid: not the host's, as --namespace accepts: {}", isolation::Kind::Pid.effect()));
        assert_eq!(namespace("later"), "later: not the host's, as --namespace accepts: this version does not know what is outside");
    }

    #[test]
    fn a_required_posture_is_met_by_itself_and_by_more() {
        assert!(meets(Posture::Enforcing, "enforcing") && meets(Posture::Enforcing, "partial"));
        assert!(meets(Posture::Partial, "partial") && !meets(Posture::Partial, "enforcing"));
        for posture in [Posture::Observe, Posture::Off, Posture::Open, Posture::Degraded, Posture::Unmeasured] {
            assert!(!meets(posture, "partial"), "{posture}");
        }
    }

    #[test]
    fn loss_is_shown_to_people_too() {
        assert_eq!(human(br#"{"kind":"lost","count":7}"#), "- lost 7");
    }
}
