//! What a receipt opens, in plain words. It is computed from the terms only, never from a description in the request.

use std::fmt::Write;

use serde_json::Value;

use super::conditions::canonical_request;
use super::payload::Payload;
use super::terms::{CredentialScope, Terms};
use super::verify::{Evidence, VerifyError};
use super::{instant, revocation};
use crate::escape::escape;

/// The plain meaning of terms, one fact a line, with escaped values. The text of who asks is separate, at the end.
///
/// `expires_at_ms` is the end of registration (wall clock, ms since 1970).
#[must_use]
pub fn plain_meaning(terms: &Terms, decider: &str, expires_at_ms: i64) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        // Writing to a `String` cannot fail.
        writeln!(text, "{label:<12} {value}").ok();
    };
    for target in &terms.targets {
        line("opens:", &target.to_string());
    }
    line("logins:", &logins(&terms.credential_scope));
    line("for agent:", &agent(terms));
    line("users:", &users(terms));
    line("hosts:", &list(&terms.hosts));
    line("how long:", &how_long(terms, expires_at_ms));
    line("how many:", &how_many(terms));
    if let Some(turns) = terms.max_turns {
        line("turns:", &format!("at most {turns} on each connection to a gateway, fewer where the host's policy says so"));
    }
    line("tenant:", &escape(&terms.tenant));
    line("decided by:", &escape(decider));
    if !terms.asker_text.is_empty() {
        text.push_str("the asker wrote (not checked, no part of what is allowed):\n");
        writeln!(text, "  | {}", escape(&terms.asker_text)).ok();
    }
    text
}

/// The plain meaning in one line, for the signed `summary`.
#[must_use]
pub fn summary_line(terms: &Terms) -> String {
    let targets: Vec<String> = terms.targets.iter().map(ToString::to_string).collect();
    let logins = match &terms.credential_scope {
        CredentialScope::None => "no logins".to_owned(),
        CredentialScope::Accounts { max_attempts, .. } => format!("at most {max_attempts} logins"),
    };
    let long = terms.access_seconds.map_or_else(|| "until expiry".to_owned(), |seconds| format!("for {}", duration(seconds)));
    let turns = terms.max_turns.map_or_else(String::new, |turns| format!(", at most {turns} turns on each connection to a gateway"));
    format!(
        "{} of {} on {} may reach {} {long}, {}{turns}, {logins}",
        agent(terms),
        users(terms),
        list(&terms.hosts),
        targets.join("; "),
        how_many(terms),
    )
}

/// What `receipt inspect` shows of an artifact: whether it verifies, and what it says.
///
/// `now_ms` (wall clock, ms since 1970) only decides whether the expiry is mentioned.
#[must_use]
pub fn inspect(outcome: &Result<Evidence, VerifyError>, now_ms: i64) -> String {
    let evidence = match outcome {
        Ok(evidence) => evidence,
        Err(error) => return format!("signature:   NOT VERIFIED, {}: {error}\nnothing in this artifact can be believed\n", error.code()),
    };
    let mut text = format!("signature:   good, by key {} ({})\n", escape(evidence.key_id()), evidence.key_status());
    let payload = match Payload::read(evidence) {
        Ok(payload) => payload,
        Err(refusal) => return text + &format!("opens nothing: {refusal}\n"),
    };
    let late = if now_ms >= payload.expires_at_ms { " (past: it cannot be registered any more)" } else { "" };
    for (label, value) in [
        ("receipt:", escape(&payload.id)),
        ("decision:", payload.status.to_string()),
        ("scope:", escape(&payload.scope)),
        ("created:", instant::format(payload.created_at_ms)),
        ("register by:", format!("{}{late}", instant::format(payload.expires_at_ms))),
        ("decider:", format!("{} ({})", escape(&payload.decider_display), escape(&payload.decider_id))),
    ] {
        writeln!(text, "{label:<12} {value}").ok();
    }
    if let Some(revoked) = revocation::revoked_id(evidence) {
        writeln!(text, "revokes:     {}", escape(&revoked)).ok();
        return text;
    }
    match canonical_request(&payload).and_then(|request| Terms::parse(&request)) {
        Ok(terms) => text += &plain_meaning(&terms, &payload.decider_id, payload.expires_at_ms),
        Err(refusal) => {
            writeln!(text, "opens nothing: {refusal}").ok();
        }
    }
    if let Some(Value::String(summary)) = evidence.payload.get("summary") {
        text.push_str("the signer's summary (the lines above are computed from what is allowed; they hold):\n");
        writeln!(text, "  | {}", escape(summary)).ok();
    }
    text
}

fn agent(terms: &Terms) -> String {
    match &terms.run {
        Some(run) => format!("{}, session {} only", escape(&terms.agent), escape(run)),
        None => format!("{}, any session", escape(&terms.agent)),
    }
}

fn users(terms: &Terms) -> String {
    terms.users.as_deref().map_or_else(|| "any user (only a host with any_user takes this)".to_owned(), list)
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| escape(name)).collect::<Vec<_>>().join(", ")
}

fn logins(scope: &CredentialScope) -> String {
    match scope {
        CredentialScope::None => "none: login ports and gateways stay closed, even inside the targets".to_owned(),
        CredentialScope::Accounts { accounts, max_attempts } => format!(
            "at most {max_attempts} connections to login ports and gateways; accounts {} are for the record only: the kernel cannot see which account is used",
            list(accounts)
        ),
    }
}

fn how_long(terms: &Terms, expires_at_ms: i64) -> String {
    let expires = instant::format(expires_at_ms);
    let not_before = terms.not_before_ms.map_or_else(String::new, |ms| format!(", not before {}", instant::format(ms)));
    match terms.access_seconds {
        Some(seconds) => format!("{} from registration{not_before}; to be registered before {expires}", duration(seconds)),
        None => format!("from registration{not_before} until {expires}"),
    }
}

fn how_many(terms: &Terms) -> String {
    match terms.max_connections {
        Some(most) => format!("at most {most} new connections on each host"),
        None => "any number of connections".to_owned(),
    }
}

fn duration(seconds: u32) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds % 60, "s")];
    parts.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count} {unit}")).collect::<Vec<_>>().join(" ")
}
