//! The grammar of what a receipt may say; what is not in it refuses the receipt and is named.

use pp_agent::receipt::Refusal;
use pp_agent::receipt::terms::{CredentialScope, PortRange, Terms, Transport};
use serde_json::{Value, json};

use crate::support::*;

fn parse(change: impl FnOnce(&mut Value)) -> Result<Terms, Refusal> {
    let mut request = hashed(request());
    change(&mut request);
    Terms::parse(request.as_object().unwrap())
}

fn with_parameter(name: &str, value: Value) -> Result<Terms, Refusal> {
    parse(|request| request["action"]["parameters"][name] = value)
}

fn with_target(target: Value) -> Result<Terms, Refusal> {
    with_parameter("targets", json!([target]))
}

fn named(outcome: Result<Terms, Refusal>) -> (&'static str, String) {
    match outcome {
        Err(Refusal::TermNotEnforced { term }) => ("term_not_enforced", term),
        Err(Refusal::TermInvalid { term, .. }) => ("term_invalid", term),
        Err(Refusal::MissingTerm { member, .. }) => ("missing_term", member.to_owned()),
        Err(other) => (other.code(), String::new()),
        Ok(_) => ("accepted", String::new()),
    }
}

#[test]
fn whole_grammar_is_read() {
    let terms = parse(|request| {
        request["actor"]["runId"] = json!("s-1");
        request["action"]["parameters"]["targets"] = json!([
            {"address": "10.20.4.7/32", "transport": "tcp", "ports": ["502", "500-510", "*"]},
            {"address": "fd00:20::/32", "transport": "udp", "ports": ["1"]},
            {"address": "10.20.0.0/16", "transport": "sctp", "ports": ["65535"]},
            {"address": "10.20.0.0/16", "transport": "udplite", "ports": ["1-65535"]},
        ]);
    })
    .unwrap();
    assert_eq!(terms.agent, "claude-code");
    assert_eq!(terms.run.as_deref(), Some("s-1"));
    assert_eq!(terms.users.as_deref().unwrap(), ["svc-build"]);
    assert_eq!((terms.access_seconds, terms.max_connections, terms.not_before_ms), (Some(3600), Some(20), Some(NOW_MS)));
    assert_eq!(terms.credential_scope, CredentialScope::Accounts { accounts: vec!["svc-historian".into()], max_attempts: 3 });
    let range = |first, last| PortRange { first, last };
    assert_eq!(terms.targets[0].ports, [range(502, 502), range(500, 510), range(0, 65535)]);
    assert_eq!(terms.targets[3].ports, [range(1, 65535)]);
    let transports: Vec<u8> = terms.targets.iter().map(|target| target.transport.protocol()).collect();
    assert_eq!(transports, [6, 17, 132, 136]);
    assert_eq!(Transport::parse("tcp"), Some(Transport::Tcp));
}

#[test]
fn turns_are_a_term_of_their_own() {
    assert_eq!(parse(|_| {}).unwrap().max_turns, None);
    assert_eq!(with_parameter("maxTurns", json!(3)).unwrap().max_turns, Some(3));
}

#[test]
fn anything_unknown_is_named_and_not_enforced() {
    for (path, outcome) in [
        ("constraints", parse(|request| request["constraints"] = json!({}))),
        ("metadata", parse(|request| request["metadata"] = json!({}))),
        ("receiptBinding", parse(|request| request["receiptBinding"] = json!({}))),
        ("actor.host", parse(|request| request["actor"]["host"] = json!("x"))),
        ("action.approver", parse(|request| request["action"]["approver"] = json!("x"))),
        ("context.metadata", parse(|request| request["context"]["metadata"] = json!({}))),
        ("context.environment", parse(|request| request["context"]["environment"] = json!("staging"))),
        ("action.parameters.maxBytes", with_parameter("maxBytes", json!(3))),
        ("action.parameters.credentialScope.kind", with_parameter("credentialScope", json!({"kind": "vault"}))),
        ("action.parameters.credentialScope.until", with_parameter("credentialScope", json!({"kind": "none", "until": 1}))),
        (
            "action.parameters.targets[0].readOnly",
            with_target(json!({"address": "10.20.4.7/32", "transport": "tcp", "ports": ["1"], "readOnly": true})),
        ),
        ("action.parameters.targets[0].transport", with_target(json!({"address": "10.20.4.7/32", "transport": "icmp", "ports": ["1"]}))),
    ] {
        assert_eq!(named(outcome), ("term_not_enforced", path.to_owned()));
    }
}

#[test]
fn terms_without_a_meaning_are_named_and_invalid() {
    for (name, value) in [
        ("accessSeconds", json!(0)),
        ("accessSeconds", json!(604_801)),
        ("accessSeconds", json!("60")),
        ("accessSeconds", json!(1.5)),
        ("accessSeconds", Value::Null),
        ("maxConnections", json!(0)),
        ("maxConnections", json!(-1)),
        ("maxConnections", json!(1u64 << 32)),
        ("maxTurns", json!(0)),
        ("maxTurns", json!("3")),
        ("maxTurns", json!(1u64 << 32)),
        ("notBefore", json!("2026-11-22")),
        ("notBefore", json!("2026-02-29T00:00:00.000Z")),
        ("users", json!([])),
        ("users", json!([""])),
        ("users", json!("root")),
        ("users", json!(vec!["u"; 17])),
        ("hosts", json!([])),
        ("hosts", json!(["h".repeat(257)])),
        ("hosts", json!(vec!["h"; 257])),
        ("targets", json!(vec![json!({"address": "10.20.4.7/32", "transport": "tcp", "ports": ["1"]}); 65])),
    ] {
        assert_eq!(named(with_parameter(name, value.clone())), ("term_invalid", format!("action.parameters.{name}")), "{value}");
    }
    for scope in [
        json!({}),
        json!("none"),
        json!({"kind": "accounts"}),
        json!({"kind": "accounts", "accounts": [], "maxAttempts": 1}),
        json!({"kind": "accounts", "accounts": ["a"]}),
        json!({"kind": "accounts", "accounts": ["a"], "maxAttempts": 0}),
        json!({"kind": "accounts", "accounts": ["a"], "maxAttempts": 10_001}),
        json!({"kind": "accounts", "accounts": ["a".repeat(129)], "maxAttempts": 1}),
    ] {
        assert_eq!(named(with_parameter("credentialScope", scope)).0, "term_invalid");
    }
}

#[test]
fn addresses_are_exact_networks() {
    for address in [
        "10.20.4.7",
        "10.20.4.7/33",
        "10.20.4.7/24",
        "fd00::1/64",
        "plc7/32",
        "",
        "::ffff:10.20.4.7/128",
        "::ffff:10.20.0.0/112",
        "010.20.4.7/32",
        "10.20.4.7/032",
        "10.20.4.7/+32",
    ] {
        let outcome = with_target(json!({"address": address, "transport": "tcp", "ports": ["502"]}));
        assert_eq!(named(outcome), ("term_invalid", "action.parameters.targets[0].address".into()), "{address}");
    }
}

#[test]
fn ports_are_exact() {
    for ports in [
        json!([]),
        json!(["0"]),
        json!(["0502"]),
        json!(["65536"]),
        json!(["510-500"]),
        json!(["1-"]),
        json!(["-1"]),
        json!(["+5"]),
        json!([502]),
        json!(["1-2-3"]),
        json!([" 5"]),
        json!(vec!["1"; 17]),
    ] {
        let outcome = with_target(json!({"address": "10.20.4.7/32", "transport": "tcp", "ports": ports}));
        assert_eq!(named(outcome), ("term_invalid", "action.parameters.targets[0].ports".into()), "{ports}");
    }
}

#[test]
fn refusals_escape_what_the_receipt_says() {
    let message = with_parameter("max\u{1b}[2J\u{202e}", json!(1)).unwrap_err().to_string();
    assert!(message.contains("max\\u{1b}[2J\\u{202e}"), "{message}");
}
