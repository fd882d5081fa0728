//! `status`, `sessions`, `events` and `why`.

use clap::Args;
use serde_json::Value;

use super::output::{list, table, text};
use super::policy::remarks;
use super::{Context, DONE, ERROR, Outcome, wait};
use crate::events::Event;
use crate::journal::sentence;

/// `events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Stay and show new ones as they happen.
    #[arg(long, short)]
    follow: bool,
    /// Only `allow`, `block` or `observe`.
    #[arg(long, value_parser = ["allow", "block", "observe"])]
    verdict: Option<String>,
    /// Only this kind: `verdict`, `session_start`, `receipt`, ...
    #[arg(long)]
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

/// Shows the gate's health. Anything but full health is an error code.
pub(crate) fn status(context: &Context, args: &StatusArgs) -> Outcome {
    let status = wait(context.client.get("/v1/status"))?;
    context.out.show(&status, |status| {
        let mut lines = Vec::new();
        for name in ["version", "host", "kernel", "backend", "posture", "mode", "policy", "sessions", "receipts"] {
            if !status[name].is_null() {
                lines.push(format!("{name:9} {}", text(status, name)));
            }
        }
        let refusals = &status["refusals"];
        if !refusals.is_null() {
            let number = |name| text(refusals, name);
            let told = format!("{} told, {} repeats, {} lost", number("told"), number("repeats"), number("lost"));
            lines.push(format!("refused   {} ({told})", number("refused")));
        }
        let say = |name: &str| list(status, name).iter().filter_map(Value::as_str).map(move |t| t.to_owned());
        lines.extend(say("gaps").map(|gap| format!("gap       {gap}")));
        lines.extend(say("problems").map(|problem| format!("problem   {problem}")));
        lines.extend(neighbours(&status["neighbours"]));
        lines.extend(remarks(status).into_iter().map(|(kind, words)| format!("{kind:9} {words}")));
        lines
    })?;
    let enough = args.require.as_deref().is_none_or(|required| meets(&status, required));
    Ok(if status["healthy"] == true && enough { DONE } else { ERROR })
}

/// What is protected beside what policy names, in a line or two.
fn neighbours(found: &Value) -> Vec<String> {
    let count = |name: &str| found[name].as_u64().unwrap_or_else(|| list(found, name).len() as u64);
    let known = list(found, "learned").iter().map(|known| format!("learned   {}: {}", text(known, "address"), text(known, "why")));
    let conflicts = list(found, "conflicts").iter().filter_map(Value::as_str).map(|conflict| format!("conflict  {conflict}"));
    let all = format!(
        "neighbour {} links carry a protected place, {} addresses learned, {} conflicts",
        count("links"),
        count("learned"),
        count("conflicts")
    );
    let any = count("links") + count("learned") + count("conflicts") > 0;
    any.then_some(all).into_iter().chain(known).chain(conflicts).collect()
}

/// Whether what is enforced is what was asked for: a policy that observes does not enforce, whatever the hooks could.
fn meets(status: &Value, required: &str) -> bool {
    match status["posture"].as_str() {
        Some("enforcing") => true,
        Some("partial") => required == "partial",
        Some(_) | None => false,
    }
}

/// Lists the sessions.
pub(crate) fn sessions(context: &Context) -> Outcome {
    let sessions = wait(context.client.get("/v1/sessions"))?;
    context.out.show(&sessions, |sessions| {
        let mut rows = vec![["SESSION", "AGENT", "OWNER", "SINCE", "PROCESSES"].map(str::to_owned).to_vec()];
        for session in list(sessions, "sessions") {
            let owner = &session["owner"];
            let owner = if owner["name"].is_null() { text(owner, "uid") } else { text(owner, "name") };
            let mut row = vec![text(session, "session"), text(session, "agent"), owner, text(session, "started")];
            let processes =
                list(session, "processes").iter().map(|process| format!("{} {}", text(process, "pid"), text(process, "executable")));
            row.push(processes.collect::<Vec<_>>().join(", "));
            rows.push(row);
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

/// Percent-encodes everything but the unreserved characters of RFC 3986.
pub(crate) fn percent(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else if write!(out, "%{byte:02X}").is_err() {
            out.push('_');
        }
        out
    })
}

fn human(line: &[u8]) -> String {
    match serde_json::from_slice::<Event>(line) {
        Ok(event) => format!("{} {:>6} {}", event.time, event.id, sentence(&event)),
        Err(_) => match serde_json::from_slice::<Value>(line) {
            Ok(value) => format!("{} {} {}", "-", text(&value, "kind"), text(&value, "count")),
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
    let answer = wait(context.client.get(&path))?;
    context.out.show(&answer, |answer| {
        let refusals = list(answer, "refusals");
        if refusals.is_empty() {
            return vec!["nothing was refused".to_owned()];
        }
        let mut lines = Vec::new();
        for refusal in refusals {
            lines.push(format!("{} {}", text(refusal, "time"), text(refusal, "words")));
            if !refusal["command"].is_null() {
                lines.push(format!("    {}", text(refusal, "command")));
            }
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
    }

    #[test]
    fn a_required_posture_is_met_by_itself_and_by_more() {
        let status = |posture: &str| serde_json::json!({ "posture": posture });
        assert!(meets(&status("enforcing"), "enforcing") && meets(&status("enforcing"), "partial"));
        assert!(meets(&status("partial"), "partial") && !meets(&status("partial"), "enforcing"));
        for posture in ["observe", "open", "degraded"] {
            assert!(!meets(&status(posture), "partial"), "{posture}");
        }
    }

    #[test]
    fn loss_is_shown_to_people_too() {
        assert_eq!(human(br#"{"kind":"lost","count":7}"#), "- lost 7");
    }
}
