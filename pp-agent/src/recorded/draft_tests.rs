use super::*;
use crate::events::{Body, Event, Loss, Tool, Trip, Usage, Verdict, Why};
use crate::recorded::compare::{Change, Comparison};
use crate::recorded::past::Past;

const ZONE: &str = "[[zone]]\nname = 'plant-7'\nnetworks = ['10.20.0.0/16']\n";
const OFFICE: &str = "10.50.0.21";

/// The first refusal by a rate rule.
fn tripped(reason: &str, port: u16, count: u64, window_s: u64) -> Event {
    let mut event = Event::of_attempt("block", reason, OFFICE, port);
    event.attempt_mut().trip = Some(Trip { count, window_s, ..Trip::default() });
    event
}

fn compared<T>(policy: &str, events: &[Event], look: impl Fn(&Comparison<'_>) -> T) -> T {
    let config = Config::of_text(policy);
    let mut comparison = Comparison::new(Draft::new(&config).unwrap());
    for event in events {
        comparison.take(event).unwrap();
    }
    look(&comparison)
}

/// The one change that these events result in, and the new reason.
fn change(policy: &str, events: &[Event]) -> (Change, &'static str) {
    let all = [Change::NewlyRefused, Change::NewlyAllowed, Change::NoLongerReported, Change::Refused, Change::LetThrough];
    compared(policy, events, |comparison| {
        let found: Vec<_> = all.iter().flat_map(|change| comparison.rows(*change).map(|(row, _)| (*change, row.now.1))).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0]
    })
}

#[test]
fn attempt_that_was_observed_is_refused_once_the_draft_enforces() {
    let seen = [Event::of_attempt("observe", "no_receipt", "10.20.4.7", 8080)];
    assert_eq!(change(ZONE, &seen), (Change::NewlyRefused, "no_receipt"));
    assert_eq!(change(&format!("mode = 'observe'\n{ZONE}"), &seen), (Change::LetThrough, "no_receipt"));
    assert_eq!(change("", &seen), (Change::NoLongerReported, "not_protected"));
}

#[test]
fn attempt_that_was_refused_goes_through_where_the_draft_opens_it() {
    let seen = [Event::of_attempt("block", "no_receipt", "10.40.0.5", 502)];
    assert_eq!(change("", &seen), (Change::Refused, "no_receipt"));
    assert_eq!(change("[services]\nexempt = ['10.40.0.5/32']", &seen), (Change::NewlyAllowed, "not_protected"));
    assert_eq!(change("[services]\nmode = 'observe'", &seen), (Change::NewlyAllowed, "no_receipt"));
    // The address that is really reached is what counts, as in the kernel.
    let embedded = [Event::of_attempt("block", "no_receipt", "64:ff9b::10.20.4.7", 9)];
    assert_eq!(change(ZONE, &embedded), (Change::Refused, "no_receipt"));
}

#[test]
fn packet_without_a_port_is_decided_by_its_address() {
    let mut ping = Event::of_attempt("observe", "no_receipt", "10.20.4.7", 0);
    ping.attempt_mut().destination = Some(Destination { address: "10.20.4.7".parse().unwrap(), port: None, transport: 1 });
    assert_eq!(change(ZONE, &[ping.clone()]), (Change::NewlyRefused, "no_receipt"));
    let attempt = ping.attempt_mut();
    (attempt.verdict, attempt.reason) = (Some(Verdict::Allow), Some(Why::Decided(Reason::Receipt)));
    assert_eq!(change(ZONE, &[ping]), (Change::LetThrough, "receipt"));
}

#[test]
fn what_a_receipt_allowed_goes_on_unless_the_draft_makes_it_a_login() {
    let mut allowed = Event::of_attempt("allow", "receipt", "10.20.4.7", 8443);
    allowed.attempt_mut().receipt = Some("r-1".into());
    allowed.attempt_mut().budget = Some(Usage::default());
    let gateway = format!("{ZONE}[[gateway]]\nname = 'g'\naddress = '10.20.4.7'\n");
    assert_eq!(change(ZONE, &[allowed.clone()]), (Change::LetThrough, "receipt"));
    assert_eq!(change(&gateway, &[allowed.clone()]), (Change::NewlyRefused, "credential_scope"));
    assert_eq!(change("", &[allowed.clone()]), (Change::NoLongerReported, "not_protected"));
    allowed.attempt_mut().budget = Some(Usage { max_attempts: Some(3), ..Usage::default() });
    assert_eq!(change(&gateway, &[allowed]), (Change::LetThrough, "receipt"));
}

#[test]
fn rate_rules_are_decided_by_the_number_that_was_recorded() {
    let seen = [tripped("spray_target", 21, 11, 60), Event::of_attempt("block", "spray_target", OFFICE, 21)];
    assert_eq!(change("", &seen), (Change::Refused, "spray_target"));
    assert_eq!(change("[behaviour]\ntarget_per_minute = 11", &seen), (Change::NewlyAllowed, "not_protected"));
    assert_eq!(change("[behaviour]\ntarget_per_half_hour = 60", &seen), (Change::Refused, "spray_target"));
    assert_eq!(change("[behaviour]\nexempt = ['10.50.0.0/24:21']", &seen), (Change::NewlyAllowed, "not_protected"));
    assert_eq!(change("[behaviour]\nmode = 'observe'", &seen), (Change::NewlyAllowed, "spray_target"));
    // What the draft protects is refused for that.
    let zone = "[[zone]]\nname = 'office'\nnetworks = ['10.50.0.0/16']\n";
    assert_eq!(change(zone, &seen), (Change::Refused, "no_receipt"));
    for (reason, port, count, window_s, key) in [
        ("spray_target", 22, 21, 60, "ssh_per_minute"),
        ("spray_target", 22, 61, 1800, "ssh_per_half_hour"),
        ("spray_hosts", 21, 6, 60, "login_hosts"),
        ("spray_hosts", 21, 20, 1800, "login_targets"),
        ("scan_hosts", 80, 26, 300, "hosts_per_port"),
        ("scan_ports", 80, 16, 300, "ports_per_host"),
        ("scan_pairs", 80, 101, 300, "pairs"),
    ] {
        let seen = [tripped(reason, port, count, window_s)];
        assert_eq!(change(&format!("[behaviour]\n{key} = {}", count - 1), &seen), (Change::Refused, reason), "{key}");
        assert_eq!(change(&format!("[behaviour]\n{key} = {count}"), &seen), (Change::NewlyAllowed, "not_protected"), "{key}");
    }
}

#[test]
fn blocked_pattern_without_its_first_event_is_not_decided() {
    compared("", &[Event::of_attempt("block", "spray_target", OFFICE, 21)], |comparison| {
        assert_eq!(comparison.summary().not_judged[0].what, Undecided::Pattern);
        assert!(comparison.notes().contains(&"no attempt was judged".to_owned()));
    });
}

#[test]
fn kinds_of_sockets_follow_the_hosts_mode() {
    let mut socket = Event::of_attempt("observe", "socket_family", "10.0.0.1", 17);
    socket.attempt_mut().destination = None;
    assert_eq!(change("", &[socket.clone()]), (Change::NewlyRefused, "socket_family"));
    assert_eq!(change("mode = 'observe'", &[socket]), (Change::LetThrough, "socket_family"));
}

#[test]
fn what_an_event_does_not_say_is_counted_and_never_guessed() {
    let mut delegate = Event::of_attempt("block", "delegate", "10.0.0.1", 1);
    delegate.attempt_mut().destination = None;
    let mut nothing = Event::of_attempt("block", "no_receipt", "10.0.0.1", 1);
    nothing.attempt_mut().reason = None;
    let flow = Event::of_attempt("block", "turns_exhausted", "10.20.4.7", 443);
    let tool = Body::Exec(Tool { verdict: Verdict::Block, tool: None, shape: None, attack: Vec::new(), repeats: 0 });
    let tool = Event::new(tool, "h", 0);
    let gate = Event::of_attempt("block", "gate_error", "10.0.0.1", 1);
    let events = [delegate, nothing, flow, tool, gate, Event::new(Body::SessionStart(None), "h", 0)];
    compared(ZONE, &events, |comparison| {
        let summary = comparison.summary();
        let names: Vec<_> = summary.not_judged.iter().map(|undecided| undecided.what.to_string()).collect();
        assert_eq!(names, ["tool", "delegate", "gate", "flow", "unknown"]);
        assert_eq!((summary.other, summary.unchanged.refused), (1, 0));
    });
}

#[test]
fn repeats_count_as_attempts_and_missing_events_are_reported() {
    let mut first = Event::of_attempt("block", "no_receipt", "10.20.4.7", 502);
    first.attempt_mut().repeats = 4;
    let mut repeats = Event::of_attempt("block", "no_receipt", "10.20.4.7", 502);
    repeats.who.process = None;
    repeats.attempt_mut().repeats = 7;
    let lost = Event::new(Body::Lost(Loss { count: 3, refusals: true, not_stored: false }), "eng-ws-12", 0);
    compared(&format!("host = 'plc-host'\n{ZONE}"), &[first, repeats, lost], |comparison| {
        assert_eq!(comparison.attempts(Change::Refused), 12);
        let notes = comparison.notes().join("; ");
        assert!(
            notes.contains("3 events missing") && notes.contains("events of eng-ws-12 are judged by the policy of plc-host"),
            "{notes}"
        );
    });
}

#[test]
fn values_that_no_event_has_are_refused_by_name() {
    let good = serde_json::to_value(Event::of_attempt("block", "no_receipt", "10.20.4.7", 502)).unwrap();
    let to = |address: &str, transport: &str| serde_json::json!({ "address": address, "transport": transport });
    for (member, value, wanted) in [
        ("verdict", "maybe".into(), "its verdict is `maybe`"),
        ("verdict", "report".into(), "its verdict is `report`"),
        ("reason", "tuesday".into(), "its reason is `tuesday`"),
        ("time", "yesterday".into(), "its time is `yesterday`"),
        ("destination", to("plc7", "tcp"), "its address is `plc7`"),
        ("destination", to("10.0.0.1", "quic"), "its transport is `quic`"),
        ("targets", vec!["10.0.0.1:80"].into(), "its target is `10.0.0.1:80`"),
        ("targets", vec!["10.0.0.1:80/quic"].into(), "its transport is `quic`"),
    ] {
        let mut event = good.clone();
        event[member] = value;
        let event: Event = serde_json::from_value(event).unwrap();
        assert_eq!(Past::read(&event), Err(format!("is no event of this version: {wanted}")));
    }
    let unknown = Event::of_attempt("block", "unknown", "10.20.4.7", 502);
    assert_eq!(Past::read(&unknown), Ok(Past::Undecided(Undecided::Unknown)));
}
