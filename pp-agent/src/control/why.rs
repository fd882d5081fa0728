//! A session's own refusals, in words that an agent can act on.

use super::access::Standing;
use super::{ApiError, Caller, Governor};
use crate::api::{Draft, Place, RefusalView, Refusals, Requestable};
use crate::events::{Event, Filter};

/// Most refusals told.
const MAX_REFUSALS: usize = 10;

/// The answer to `GET /v1/why`: the caller's last refusals, newest first, one
/// for each pair of destination and reason, with the request to hand over.
///
/// # Errors
/// When the events cannot be read.
pub(crate) fn answer(governor: &dyn Governor, caller: &Caller, session: Option<String>) -> Result<Refusals, ApiError> {
    let filter = Filter { kind: Some("verdict".to_owned()), session, limit: Some(1_000), ..Filter::default() };
    let standing = caller.standing;
    let events = governor.hub().query(&filter, |event| is_refusal(event) && super::stream::sees(standing, event))?;
    let mut told: Vec<&Event> = Vec::new();
    for event in events.iter().rev() {
        let is_told =
            told.iter().any(|other| other.destination == event.destination && other.object == event.object && other.reason == event.reason);
        if !is_told && told.len() < MAX_REFUSALS {
            told.push(event);
        }
    }
    Ok(Refusals { refusals: told.into_iter().map(|event| refusal(governor, caller, event)).collect() })
}

fn is_refusal(event: &Event) -> bool {
    matches!(event.verdict.as_deref(), Some("block" | "observe"))
}

fn refusal(governor: &dyn Governor, caller: &Caller, event: &Event) -> RefusalView {
    let requestable = event.is_requestable().then(|| {
        let draft = Draft { event: Some(event.id), ..Draft::default() };
        Requestable { command: event.request.clone(), request: governor.draft(caller, &draft).ok() }
    });
    // A plant's map is not for agents: zone and service only for people.
    let is_person = !matches!(caller.standing, Standing::Agent(_));
    RefusalView {
        event: event.id,
        time: event.time.clone(),
        verdict: event.verdict.clone(),
        reason: event.reason.clone(),
        destination: event.destination.clone(),
        object: event.object.clone(),
        words: words(event),
        requestable,
        place: is_person.then(|| Place { zone: event.zone.clone(), service: event.service.clone() }),
    }
}

/// What to do about the refusal of a behaviour rule.
const RULES: &str =
    "this looks like a scan and is blocked for a while; stop, and if the work needs it ask your human for an exemption in the policy";

/// What a refusal means and what to do about it.
#[must_use]
pub(crate) fn words(event: &Event) -> String {
    if event.reason.as_deref() == Some("delegate") {
        let server = event.object.as_deref().unwrap_or("that server");
        return format!("{server} would act for you in a process that is not yours: do it yourself, or ask your human to run it");
    }
    let to = event.destination.as_ref().map_or_else(
        || "this kind of socket".to_owned(),
        |to| match to.port {
            Some(port) => format!("{} port {port}/{}", to.address, to.transport),
            None => format!("{} ({})", to.address, to.transport),
        },
    );
    let ask = format!(
        "ask your human for a receipt with `{}`, do not look for another way",
        event.request.as_deref().unwrap_or("pp-agent receipt request")
    );
    match event.reason.as_deref().unwrap_or_default() {
        "no_receipt" => format!("{to} is protected and no receipt names it: {ask}"),
        "receipt_other_agent" => format!("the receipt for {to} is for another agent or session: {ask}"),
        "receipt_other_user" => format!("the receipt for {to} is for other users: {ask}"),
        "receipt_other_port" => format!("the receipt for this address does not name {to}: {ask}"),
        "receipt_revoked" => format!("the receipt for {to} was revoked: stop, and {ask}"),
        "receipt_expired" => format!("the receipt for {to} has run out: {ask}"),
        "receipt_not_yet" => format!("the receipt for {to} holds from a later time on: wait for it"),
        "credential_scope" => format!("the receipt for {to} allows no logins: {ask}, with the accounts to be used"),
        "receipt_exhausted" => format!("the receipt for {to} is used up: {ask}"),
        "turns_exhausted" => format!("this connection to {to} has had as many requests as one may have and was cut: stop, and {ask}"),
        "bytes_exhausted" => format!("this connection to {to} has sent as much as one may send and was cut: stop, and {ask}"),
        "flow_refused" => format!("a packet of this connection to {to} was refused before: close it and connect anew"),
        "tamper" => "that would have changed the gate you are governed by, or what acts later for you: leave it alone".to_owned(),
        "spray_target" => format!("too many connections to {to}: {RULES}"),
        "spray_hosts" => format!("too many hosts for logins, {to} among them: {RULES}"),
        "scan_hosts" => format!("too many hosts on one port, {to} among them: {RULES}"),
        "scan_ports" => format!("too many ports of one host, {to} among them: {RULES}"),
        "scan_pairs" => format!("too many hosts and ports, {to} among them: {RULES}"),
        "socket_family" => "this kind of socket escapes judgement by destination and is not open to agents".to_owned(),
        "probe" => format!("{to} is where pp-agent run finds out whether it is governed, and refused to every session"),
        "malformed" => format!("the packet to {to} could not be read whole: send it in another form"),
        _ => format!("the gate could not judge {to} and refused it: tell the operators"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Destination, Kind};
    use pp_common::decide::Reason;

    #[test]
    fn every_refusal_has_words_of_its_own() {
        let mut event = Event::new(Kind::Verdict, "h", 0);
        event.destination = Some(Destination { address: "10.20.4.7".into(), port: Some(502), transport: "tcp".into() });
        let mut seen = std::collections::HashSet::new();
        for reason in Reason::ALL.iter().filter(|reason| **reason as u8 >= 10) {
            event.reason = Some(reason.name().to_owned());
            assert!(seen.insert(words(&event)), "{}", reason.name());
        }
    }
}
