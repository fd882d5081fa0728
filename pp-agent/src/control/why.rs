//! The refusals of a session, in words that an agent can act on.

use std::borrow::Cow;

use pp_common::decide::Reason;
use pp_common::tamper::Tamper;

use super::access::Standing;
use super::{ApiError, Caller, Governor};
use crate::api::{Draft, Place, RefusalView, Refusals, Requestable};
use crate::events::hub::Hub;
use crate::events::{Event, Filter, Kind, Members, Verdict, Why};

/// Most refusals in an answer.
const MAX_REFUSALS: usize = 10;
/// Most stored events that are read for an answer, however many there are.
const MAX_READ: usize = 1_000;

/// The answer to `GET /v1/why`: the caller's last refusals, newest first, one for each pair of destination and reason, with the request to
/// hand over. They are among the last [`MAX_READ`] refusals that the caller may see.
///
/// # Errors
/// The events cannot be read.
pub(crate) fn answer(governor: &dyn Governor, caller: &Caller, session: Option<String>) -> Result<Refusals, ApiError> {
    let (listed, read) = last_refusals(governor.hub(), caller.standing, session)?;
    tracing::debug!("why: read {read} stored events for {} refusals", listed.len());
    Ok(Refusals { refusals: listed.iter().map(|event| refusal(governor, caller, event, Members::from(event))).collect() })
}

/// The refusals for an answer, and how many events were read for it.
fn last_refusals(hub: &Hub, standing: Standing, session: Option<String>) -> Result<(Vec<Event>, usize), ApiError> {
    let filter = Filter { kind: Some(Kind::Verdict.name().to_owned()), session, refusals: true, ..Filter::default() };
    let mut listed: Vec<Event> = Vec::new();
    let read = hub.newest(&filter, super::stream::whose(standing), MAX_READ, |event| {
        let is_wanted = super::stream::sees(standing, &event) && !event.is_of_many();
        if is_wanted && !listed.iter().any(|other| is_same(other, &event)) {
            listed.push(event);
        }
        listed.len() < MAX_REFUSALS
    })?;
    Ok((listed, read))
}

/// Whether two refusals are of the same pair.
fn is_same(one: &Event, other: &Event) -> bool {
    let (one, other) = (Members::from(one), Members::from(other));
    one.destination == other.destination && one.object == other.object && one.reason == other.reason
}

fn refusal(governor: &dyn Governor, caller: &Caller, event: &Event, members: Members<'_>) -> RefusalView {
    let words = words(event, &members);
    let text = |member: Option<Cow<'_, str>>| member.map(Cow::into_owned);
    let requestable = event.is_requestable().then(|| {
        let draft = Draft { event: Some(event.id), ..Draft::default() };
        Requestable { command: text(members.request), request: governor.draft(caller, &draft).ok() }
    });
    // Agents must not learn the layout of the plant, so only people see zone and service.
    let is_person = !matches!(caller.standing, Standing::Agent(_));
    RefusalView {
        event: event.id,
        time: members.time.into_owned(),
        verdict: text(members.verdict),
        reason: text(members.reason),
        destination: members.destination,
        object: text(members.object),
        words,
        requestable,
        server: governor.server_behind(caller, event),
        place: is_person.then(|| Place { zone: text(members.zone), service: text(members.service) }),
    }
}

/// What to do about the refusal of a rate rule.
const RULES: &str =
    "this looks like a scan and is blocked for a while; stop, and if the work needs it ask your human for an exemption in the policy";

/// What a refusal means and what to do about it.
#[must_use]
fn words(event: &Event, members: &Members<'_>) -> String {
    let to = members.destination.as_ref().map_or_else(
        || "this kind of socket".to_owned(),
        |to| match to.port {
            Some(port) => format!("{} port {port}/{}", to.address, to.transport),
            None => format!("{} ({})", to.address, to.transport),
        },
    );
    let ask = format!(
        "ask your human for a receipt with `{}`, do not look for another way",
        members.request.as_deref().unwrap_or("pp-agent receipt request")
    );
    let undecided = || format!("the gate could not judge {to} and refused it: tell the operators");
    if event.attempt().and_then(|attempt| attempt.reason) == Some(Why::Tried(Tamper::UnknownDelegate)) {
        return unlisted(members.object.as_deref().unwrap_or("that server"), event.verdict());
    }
    let Some(Why::Decided(reason)) = event.attempt().and_then(|attempt| attempt.reason) else { return undecided() };
    match reason {
        Reason::Delegate => {
            let server = members.object.as_deref().unwrap_or("that server");
            format!("{server} would act for you in a process that is not yours: do it yourself, or ask your human to run it")
        }
        Reason::NoReceipt => format!("{to} is protected and no receipt names it: {ask}"),
        Reason::ReceiptOtherAgent => format!("the receipt for {to} is for another agent or session: {ask}"),
        Reason::ReceiptOtherUser => format!("the receipt for {to} is for other users: {ask}"),
        Reason::ReceiptOtherPort => format!("the receipt for this address does not name {to}: {ask}"),
        Reason::ReceiptRevoked => format!("the receipt for {to} was revoked: stop, and {ask}"),
        Reason::ReceiptExpired => format!("the receipt for {to} has run out: {ask}"),
        Reason::ReceiptNotYet => format!("the receipt for {to} holds from a later time on: wait for it"),
        Reason::CredentialScope => format!("the receipt for {to} allows no logins: {ask}, with the accounts to be used"),
        Reason::ReceiptExhausted => format!("the receipt for {to} is used up: {ask}"),
        Reason::TurnsExhausted => format!("this connection to {to} has had as many requests as one may have and was cut: stop, and {ask}"),
        Reason::BytesExhausted => format!("this connection to {to} has sent as much as one may send and was cut: stop, and {ask}"),
        Reason::FlowRefused => format!("a packet of this connection to {to} was refused before: close it and connect anew"),
        Reason::Tamper => "that would have changed the gate you are governed by, or what acts later for you: leave it alone".to_owned(),
        Reason::SprayTarget => format!("too many connections to {to}: {RULES}"),
        Reason::SprayHosts => format!("too many hosts for logins, {to} among them: {RULES}"),
        Reason::ScanHosts => format!("too many hosts on one port, {to} among them: {RULES}"),
        Reason::ScanPorts => format!("too many ports of one host, {to} among them: {RULES}"),
        Reason::ScanPairs => format!("too many hosts and ports, {to} among them: {RULES}"),
        Reason::SocketFamily => "this kind of socket escapes judgement by destination and is not open to agents".to_owned(),
        Reason::Probe => format!("{to} is where pp-agent run finds out whether it is governed, and refused to every session"),
        Reason::Malformed => format!("the packet to {to} could not be read whole: send it in another form"),
        Reason::GateError | Reason::NotProtected | Reason::Receipt => undecided(),
    }
}

/// What the event of a server that no list names means.
fn unlisted(server: &str, verdict: Option<Verdict>) -> String {
    match verdict {
        Some(Verdict::Observe) => format!("{server} is a server of your user that no list names: the call was let through and reported"),
        _ => format!("{server} is a server of your user that no list names, and policy refuses those: do it yourself, or ask your human"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::store::Store;

    #[test]
    fn every_refusal_has_words_of_its_own() {
        let mut seen = std::collections::HashSet::new();
        for reason in Reason::ALL.iter().filter(|reason| **reason as u8 >= 10) {
            let event = Event::of_attempt("block", reason.name(), "10.20.4.7", 502);
            assert!(seen.insert(words(&event, &Members::from(&event))), "{}", reason.name());
        }
    }

    #[test]
    fn call_to_a_server_that_no_list_names_says_whether_it_was_let_through() {
        let words = |verdict| {
            let event = Event::of_attempt(verdict, "unknown_delegate", "10.20.4.7", 502);
            words(&event, &Members::from(&event))
        };
        assert!(words("observe").contains("let through and reported") && words("block").contains("policy refuses"));
    }

    /// A refusal of one of these sessions at one of a thousand ports.
    fn refused(session: u64, at: u64) -> Event {
        let mut event = Event::of_attempt("block", "no_receipt", "10.20.4.7", u16::try_from(1 + at % 1_000).unwrap());
        event.who.session = Some(session);
        event
    }

    #[test]
    fn answer_reads_few_events_however_many_are_stored() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::new(Store::open(&dir.path().join("events.redb"), "boot"), "h");
        hub.publish(refused(1, 1));
        for session in 2..22 {
            (0..1_000).for_each(|at| drop(hub.publish(refused(session, at))));
            // Waits until they are stored.
            hub.find(1).unwrap();
        }
        for _ in 0..700 {
            hub.publish(refused(1, 1));
            hub.publish(refused(1, 2));
        }
        hub.publish_summaries();
        // What was allowed later hides no refusal.
        let mut allowed = Event::of_attempt("allow", "receipt", "10.20.4.7", 502);
        allowed.who.session = Some(5);
        (0..2 * MAX_READ).for_each(|_| drop(hub.publish(allowed.clone())));
        let last = |standing, session: Option<&str>| {
            let (listed, read) = last_refusals(&hub, standing, session.map(str::to_owned)).unwrap();
            (listed.len(), read)
        };
        // The summary of the flood is no refusal of one destination, and not listed.
        let (listed, read) = last(Standing::Agent(Some(1)), None);
        assert!(listed == 2 && (1_000..=MAX_READ).contains(&read), "{listed} listed, {read} read");
        assert_eq!(last(Standing::Agent(Some(2)), None), (10, 10));
        assert_eq!(last(Standing::Agent(Some(5)), None), (10, 10));
        assert_eq!(last(Standing::Agent(Some(77)), None), (0, 0));
        assert_eq!(last(Standing::Agent(None), None), (0, 0));
        assert_eq!(last(Standing::Operator, Some("0000000000000003")), (10, 10));
        assert_eq!(last(Standing::Operator, None), (2, MAX_READ));
        assert_eq!(last(Standing::User(1000), None), (0, MAX_READ));
    }

    #[test]
    fn refusal_of_another_version_says_where_it_went() {
        let json = serde_json::to_string(&Event::of_attempt("block", "no_receipt", "10.20.4.7", 502)).unwrap();
        let event: Event = serde_json::from_str(&json.replace("no_receipt", "tuesday").replace("\"tcp\"", "\"quic\"")).unwrap();
        let words = words(&event, &Members::from(&event));
        assert_eq!(words, "the gate could not judge 10.20.4.7 port 502/quic and refused it: tell the operators");
    }
}
