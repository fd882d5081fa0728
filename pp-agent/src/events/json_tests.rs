use super::*;

/// As it is stored, with one member of another version.
fn line(event: &Event, member: &str, value: &str) -> String {
    let members = serde_json::to_value(event).unwrap();
    let mut members = members.as_object().unwrap().clone();
    members.insert(member.to_owned(), serde_json::from_str(value).unwrap());
    let written = Members::deserialize(serde_json::Value::from(members)).unwrap();
    serde_json::to_string(&written).unwrap()
}

fn refusal() -> Event {
    Event { id: 7, ..Event::of_attempt("block", "no_receipt", "10.20.4.7", 502) }
}

#[test]
fn what_another_version_wrote_is_shown_as_it_was_written() {
    let of = |body| Event::new(body, "h", 0);
    let to = "{\"address\":\"plc7\",\"transport\":\"tcp\"}";
    let tool = Tool { verdict: Verdict::Report, tool: Some("nmap".into()), shape: None, attack: vec!["T1046".into()], repeats: 0 };
    let neighbour = Body::Neighbour { change: NeighbourChange::Full, address: [10, 0, 0, 1].into(), place: Place::default() };
    for (event, member, value) in [
        (refusal(), "kind", "\"teleport\""),
        (refusal(), "verdict", "\"maybe\""),
        (refusal(), "verdict", "\"report\""),
        (refusal(), "reason", "\"tuesday\""),
        (refusal(), "time", "\"yesterday\""),
        (refusal(), "time", "\"2026-11-18T11:06:60.999Z\""),
        (refusal(), "time", "\"2026-13-18T11:06:39.999Z\""),
        (refusal(), "session", "\"abc\""),
        (refusal(), "session", "\"0000000000000ABC\""),
        (refusal(), "request", "\"ask somebody\""),
        (refusal(), "rule", "\"claude-code exec\""),
        (refusal(), "tool", "\"nmap\""),
        (refusal(), "count", "9"),
        (refusal(), "destination", to),
        (refusal(), "destination", "{\"address\":\"10.0.0.1\",\"transport\":\"quic\"}"),
        (refusal(), "destination", "{\"address\":\"::ffff:10.0.0.1\",\"transport\":\"tcp\"}"),
        (refusal(), "targets", "[\"10.0.0.1:80\"]"),
        (of(Body::Exec(tool.clone())), "verdict", "\"maybe\""),
        (of(Body::Exec(tool.clone())), "reason", "\"tuesday\""),
        (of(Body::Exec(tool)), "hook", "\"connect\""),
        (of(Body::SessionStart(None)), "reason", "\"tuesday\""),
        (of(Body::SessionStart(None)), "executable", "\"/usr/bin/claude\""),
        (of(Body::SessionEnd { released: true }), "reason", "\"tuesday\""),
        (of(Body::Receipt(None, ReceiptChange::Registered)), "reason", "\"tuesday\""),
        (of(Body::Receipt(None, ReceiptChange::Registered)), "zone", "\"plant-7\""),
        (of(Body::Revocation(None)), "reason", "\"tuesday\""),
        (of(Body::Posture { change: PostureChange::Open, hook: None }), "reason", "\"tuesday\""),
        (of(Body::Policy(PolicyChange::Files)), "reason", "\"tuesday\""),
        (of(Body::Policy(PolicyChange::Files)), "repeats", "3"),
        (of(neighbour.clone()), "reason", "\"tuesday\""),
        (of(neighbour), "destination", to),
        (of(Body::Lost(Loss { count: 1, refusals: true, not_stored: true })), "reason", "\"tuesday\""),
        (of(Body::Lost(Loss { count: 1, refusals: true, not_stored: true })), "verdict", "\"allow\""),
    ] {
        let line = line(&event, member, value);
        let again: Event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(serde_json::to_string(&again).unwrap(), line);
        assert_ne!(again, event, "{line}");
    }
}

#[test]
fn what_is_known_of_an_event_of_another_version_is_read() {
    let again = |member, value| serde_json::from_str::<Event>(&line(&refusal(), member, value)).unwrap();
    let kind = again("kind", "\"teleport\"");
    assert_eq!((kind.kind(), kind.kind_name(), kind.verdict()), (None, "teleport", Some(Verdict::Block)));
    assert_eq!(kind.who, refusal().who);
    let reason = again("reason", "\"tuesday\"");
    assert_eq!((reason.kind(), reason.verdict()), (Some(Kind::Verdict), Some(Verdict::Block)));
    assert_eq!(reason.attempt().unwrap().destination, refusal().attempt().unwrap().destination);
    assert!(super::super::journal::sentence(&reason).contains("10.20.4.7:502/tcp: tuesday agent claude-code"));
    let verdict = again("verdict", "\"maybe\"");
    assert_eq!((verdict.verdict(), verdict.verdict_name()), (Some(Verdict::Unknown), Some("maybe")));
}

#[test]
fn what_this_version_wrote_is_not_kept_twice() {
    let again: Event = serde_json::from_str(&serde_json::to_string(&refusal()).unwrap()).unwrap();
    assert!(again.written.is_none());
    assert_eq!(again, refusal());
}

/// Every member of every kind: also those that a kind does not have.
#[test]
fn every_event_is_shown_with_all_that_was_written() {
    let members = r#""session":"0000000000000abc","owner":{"uid":0,"name":"root"},"parents":[{"pid":7,"executable":"/bin/sh"}],
        "argv":["a"],"budget":{"connections":1,"attempts":2,"accounts":["b"]},"attack":["T1046"],"detail":"\"c\"""#;
    let reasons = ["tool", "released", "files", "open", "learned"].map(|name| format!("\"reason\":\"{name}\","));
    let reasons = reasons.iter().map(String::as_str).chain(["", "\"pid\":1,", "\"verdict\":\"block\","]);
    for kind in Kind::ALL.iter().map(|kind| kind.name()).chain(["teleport"]) {
        for more in reasons.clone() {
            let line = format!("{{\"id\":1,\"time\":\"2026-11-18T11:06:39.999Z\",\"host\":\"h\",\"kind\":\"{kind}\",{more}{members}}}");
            let wanted: serde_json::Value = serde_json::from_str(&line).unwrap();
            let text: Event = serde_json::from_str(&line).unwrap();
            let value: Event = serde_json::from_value(wanted.clone()).unwrap();
            assert_eq!(serde_json::to_value(&text).unwrap(), wanted);
            assert_eq!(text, value);
        }
    }
}

#[test]
fn texts_are_not_copied_to_be_read() {
    let line = serde_json::to_string(&refusal()).unwrap();
    let members: Members<'_> = serde_json::from_str(&line).unwrap();
    let texts = [Some(&members.time), Some(&members.host), Some(&members.kind), members.verdict.as_ref(), members.agent.as_ref()];
    assert!(texts.iter().all(|text| matches!(text, Some(Cow::Borrowed(_)))), "{texts:?}");
}

proptest::proptest! {
    #[test]
    fn a_plain_time_is_written_as_it_was_read(time in "[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:(60|[0-5][0-9])\\.[0-9]{3}Z") {
        if let Some(time_ms) = parse_rfc3339(&time) {
            assert_eq!(rfc3339(time_ms) == time, is_plain(&time));
        }
    }
}

#[test]
fn event_leaves_out_what_it_lacks() {
    let json = serde_json::to_string(&Event::of_attempt("block", "no_receipt", "10.20.4.7", 502)).unwrap();
    assert!(!json.contains("zone") && !json.contains("null"), "{json}");
}
