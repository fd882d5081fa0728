//! Every answer of the control socket, and every error that can be provoked on any machine, against `tests/golden/socket`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use pp_tests::attack;
use pp_tests::forge::{self, Draft, Operator, stamp, stamp_ago};
use pp_tests::harness::{By, is_block};
use pp_tests::lab::{GATEWAY_WEST, PLC, Place};
use pp_tests::policy::{AGENT, DECIDER, KEY, OTHER_AGENT, Policy};
use pp_tests::run::Running;
use pp_tests::wait;
use serde_json::{Value, json};

use crate::golden::{Transcript, another_user};
use crate::receipts::{opening, plc};
use crate::world::{World, tests};

tests![answers_of_the_control_socket_are_as_the_golden_files_have_them, receipts_are_refused_as_the_golden_file_has_it];

/// No process: greater than any pid of a kernel.
const NO_PID: &str = "5000001";
/// No session: marks are random, and none has been given this number.
const NO_SESSION: &str = "00000000000000ff";
const NO_RECEIPT: &str = "ppa_00000000-0000-0000-0000-000000000000";

fn answers_of_the_control_socket_are_as_the_golden_files_have_them(world: &mut World) -> Result<()> {
    let daemon = world.own(&Policy::standard(world.lab()))?;
    let mut said = Transcript::new(&daemon);
    status(&mut said)?;
    rights(&mut said)?;
    paths(&mut said)?;
    let released = sessions(&mut said)?;
    checks(&mut said)?;
    receipts(&mut said)?;
    refusals(&mut said)?;
    neighbours(&mut said)?;
    policy(&mut said)?;
    events(&mut said, &released)?;
    metrics(&mut said)?;
    said.end()
}

fn status(said: &mut Transcript<'_>) -> Result<()> {
    let _own = said.ask("GET", "/v1/self", "")?;
    let _status = said.ask("GET", "/v1/status", "")?;
    said.note("another user");
    said.ask_as(&another_user(said.daemon), &[("GET", "/v1/self", ""), ("GET", "/v1/status", "")])?;
    said.file("socket/status.txt");
    Ok(())
}

/// Every call, by those who may not make each.
const CALLS: [(&str, &str, &str); 18] = [
    ("GET", "/v1/self", ""),
    ("GET", "/v1/status", ""),
    ("GET", "/v1/sessions", ""),
    ("POST", "/v1/sessions", "{\"agent\":\"claude-code\",\"pid\":1}"),
    ("DELETE", "/v1/sessions/00000000000000ff", ""),
    ("GET", "/v1/receipts", ""),
    ("POST", "/v1/receipts", "{}"),
    ("GET", "/v1/receipts/ppa_x", ""),
    ("DELETE", "/v1/receipts/ppa_x", ""),
    ("POST", "/v1/requests", "{}"),
    ("GET", "/v1/events?kind=lost", ""),
    ("POST", "/v1/check", "{\"address\":\"10.20.4.7\",\"port\":502,\"agent\":\"claude-code\"}"),
    ("GET", "/v1/why", ""),
    ("GET", "/v1/neighbours", ""),
    ("DELETE", "/v1/neighbours/10.20.4.7", ""),
    ("GET", "/v1/policy", ""),
    ("POST", "/v1/policy/reload", ""),
    ("GET", "/metrics", ""),
];

fn rights(said: &mut Transcript<'_>) -> Result<()> {
    said.note("another user");
    let theirs: Vec<_> = CALLS.into_iter().filter(|(_, path, _)| *path != "/v1/status").collect();
    said.ask_as(&another_user(said.daemon), &theirs)?;
    said.note("an agent");
    said.ask_as(&By::run(AGENT), &CALLS)?;
    said.file("socket/rights.txt");
    Ok(())
}

fn paths(said: &mut Transcript<'_>) -> Result<()> {
    for (method, path, body) in [
        ("GET", "/v1/nothing", ""),
        ("GET", "/", ""),
        ("DELETE", "/v1/status", ""),
        ("PUT", "/v1/receipts", "{}"),
        ("GET", "/v1/policy/reload", ""),
        ("GET", "/v1/events?colour=red", ""),
        ("GET", "/v1/events?since=yesterday", ""),
        ("GET", "/v1/events?limit=many", ""),
        ("GET", "/v1/why?colour=red", ""),
        ("DELETE", "/v1/receipts/ppa_x?colour=red", ""),
        ("POST", "/v1/check", ""),
        ("POST", "/v1/check", "{"),
        ("POST", "/v1/check", "[]"),
        ("POST", "/v1/check", "{\"address\":\"plc7\",\"port\":502}"),
        ("POST", "/v1/check", "{\"address\":\"10.20.4.7\",\"port\":70000}"),
        ("POST", "/v1/check", "{\"address\":\"10.20.4.7\",\"port\":502,\"colour\":\"red\"}"),
        ("POST", "/v1/requests", "{\"targets\":7}"),
        ("POST", "/v1/sessions", "{\"pid\":1}"),
        ("POST", "/v1/receipts", ""),
    ] {
        let _answer = said.ask(method, path, body)?;
    }
    said.ask_with_length("POST", "/v1/receipts", 1024 * 1024 + 1)?;
    said.ask_with_length("POST", "/v1/requests", 1024 * 1024 + 1)?;
    said.file("socket/paths.txt");
    Ok(())
}

/// Returns a session that was released.
fn sessions(said: &mut Transcript<'_>) -> Result<String> {
    let daemon = said.daemon;
    let server = attack::workload(daemon.lab(), &["serve", "127.0.0.1:9100"], PLC);
    let mut running = Running::start(&mut daemon.lab().command(Place::Engineering, &server.words))?;
    let _ready = running.line_with("ready")?;
    let pid = running.pid();
    said.varies(&format!("\"pid\":{pid}"), "its pid");
    said.varies(&format!("process {pid}"), "its process");
    let adopt = format!("{{\"agent\":\"{AGENT}\",\"pid\":{pid}}}");
    let _list = said.ask("GET", "/v1/sessions", "")?;
    let adopted = said.ask("POST", "/v1/sessions", &adopt)?;
    let session = adopted["session"].as_str().context("no session")?.to_owned();
    let _again = said.ask("POST", "/v1/sessions", &adopt)?;
    let _list = said.ask("GET", "/v1/sessions", "")?;
    for by in [format!("\"session\":\"{session}\""), format!("\"pid\":{pid}")] {
        let _check = said.ask("POST", "/v1/check", &format!("{{\"address\":\"10.20.4.7\",\"port\":502,{by}}}"))?;
    }
    said.note("another user");
    said.varies(&format!("process {}", std::process::id()), "root's process");
    said.varies(&format!("\"pid\":{}}}", std::process::id()), "root's pid");
    let theirs = format!("{{\"agent\":\"{AGENT}\",\"pid\":{}}}", std::process::id());
    said.ask_as(&another_user(daemon), &[("GET", "/v1/sessions", ""), ("POST", "/v1/sessions", &theirs)])?;
    said.note("root");
    for agent in ["", "two words", &"a".repeat(65)] {
        let _error = said.ask("POST", "/v1/sessions", &format!("{{\"agent\":\"{agent}\",\"pid\":{pid}}}"))?;
    }
    let _error = said.ask("POST", "/v1/sessions", &format!("{{\"agent\":\"{AGENT}\",\"pid\":{NO_PID}}}"))?;
    let _error = said.ask("POST", "/v1/sessions", &format!("{{\"agent\":\"{AGENT}\",\"pid\":1}}"))?;
    let _released = said.ask("DELETE", &format!("/v1/sessions/{session}"), "")?;
    let _error = said.ask("DELETE", &format!("/v1/sessions/{session}"), "")?;
    let _error = said.ask("DELETE", "/v1/sessions/abc", "")?;
    let unknown = "an agent that policy does not know";
    let _adopted = said.ask_for(unknown, "POST", "/v1/sessions", &format!("{{\"agent\":\"claude-cod\",\"pid\":{pid}}}"))?;
    said.file("socket/sessions.txt");
    Ok(session)
}

fn checks(said: &mut Transcript<'_>) -> Result<()> {
    for question in [
        json!({ "address": "10.20.4.7", "port": 502, "agent": AGENT }),
        json!({ "address": "10.20.4.7", "port": 47808, "transport": "udp", "agent": AGENT, "user": "root" }),
        json!({ "address": "10.20.4.7", "port": 9, "transport": "udplite", "agent": AGENT, "user": "0" }),
        json!({ "address": "10.20.4.7", "port": 9, "transport": "sctp", "agent": OTHER_AGENT }),
        json!({ "address": "fd00:20::7", "port": 502, "agent": AGENT }),
        json!({ "address": "::ffff:10.20.4.7", "port": 502, "agent": AGENT }),
        json!({ "address": "10.30.4.9", "port": 8443, "agent": AGENT }),
        json!({ "address": "10.30.4.9", "port": 8080, "agent": AGENT }),
        json!({ "address": "10.40.0.5", "port": 502, "agent": AGENT }),
        json!({ "address": "10.40.0.5", "port": 5502, "agent": AGENT }),
        json!({ "address": "10.50.0.23", "port": 22, "agent": AGENT }),
        json!({ "address": "198.51.100.10", "port": 80, "agent": AGENT }),
        json!({ "address": "198.51.100.22", "port": 22, "agent": AGENT }),
        json!({ "address": "fe80::7", "port": 443, "agent": AGENT }),
        json!({ "address": "10.20.4.7", "port": 502, "agent": "nobody-s-agent" }),
        json!({ "address": "10.20.4.7", "port": 502 }),
        json!({ "address": "10.20.4.7", "port": 502, "agent": AGENT, "transport": "icmp" }),
        json!({ "address": "10.20.4.7", "port": 502, "agent": AGENT, "user": "no such user" }),
        json!({ "address": "10.20.4.7", "port": 502, "session": "abc" }),
        json!({ "address": "10.20.4.7", "port": 502, "session": NO_SESSION }),
        json!({ "address": "10.20.4.7", "port": 502, "pid": 1 }),
        json!({ "address": "fe80::7", "port": 443, "agent": AGENT, "link": "no-such-link" }),
    ] {
        let _answer = said.ask("POST", "/v1/check", &question.to_string())?;
    }
    said.file("socket/check.txt");
    Ok(())
}

/// A receipt from its request to its end.
fn receipts(said: &mut Transcript<'_>) -> Result<()> {
    let operator = said.daemon.operator().clone();
    let _empty = said.ask("GET", "/v1/receipts", "")?;
    let accounts = json!({"kind": "accounts", "accounts": ["svc-historian"], "maxAttempts": 2});
    let gateway = opening(GATEWAY_WEST).parameter("credentialScope", accounts).parameter("maxConnections", json!(5));
    let drafts = [("one target", plc()), ("with accounts", gateway), ("an agent that policy does not know", plc().agent("claude-cod"))];
    let mut ids = Vec::new();
    for (what, draft) in &drafts {
        let artifact = draft.sign(&operator);
        ids.push(forge::id(&artifact));
        let _answer = said.ask_for(&format!("POST /v1/receipts ({what})"), "POST", "/v1/receipts", &artifact.to_string())?;
        let _again = said.ask_for("POST /v1/receipts (the same again)", "POST", "/v1/receipts", &artifact.to_string())?;
    }
    let later = plc().parameter("notBefore", json!(stamp(Duration::from_secs(900)))).sign(&operator);
    let _pending = said.ask_for("POST /v1/receipts (from a later time on)", "POST", "/v1/receipts", &later.to_string())?;
    let [first, ..] = ids.as_slice() else { anyhow::bail!("no receipts") };
    let _list = said.ask("GET", "/v1/receipts", "")?;
    let shown = said.ask("GET", &format!("/v1/receipts/{first}"), "")?;
    let _missing = said.ask("GET", &format!("/v1/receipts/{NO_RECEIPT}"), "")?;
    let _check = said.ask("POST", "/v1/check", &json!({ "address": "10.20.4.7", "port": 502, "agent": AGENT }).to_string())?;
    let _check = said.ask("POST", "/v1/check", &json!({ "address": "10.20.4.7", "port": 502, "agent": OTHER_AGENT }).to_string())?;
    let _revoked = said.ask("DELETE", &format!("/v1/receipts/{first}?reason=the%20pump%20is%20back"), "")?;
    let _again = said.ask("DELETE", &format!("/v1/receipts/{first}"), "")?;
    let _unseen = said.ask("DELETE", &format!("/v1/receipts/{NO_RECEIPT}"), "")?;
    let _error =
        said.ask_for("DELETE /v1/receipts (an id of 257 characters)", "DELETE", &format!("/v1/receipts/{}", "x".repeat(257)), "")?;
    let artifact = json!({ "artifact": shown["artifact"]["artifact"] }).to_string();
    let _error = said.ask_for("POST /v1/receipts (the revoked one)", "POST", "/v1/receipts", &artifact)?;
    let _list = said.ask("GET", "/v1/receipts", "")?;
    let _check = said.ask("POST", "/v1/check", &json!({ "address": "10.20.4.7", "port": 502, "agent": AGENT }).to_string())?;
    let requests = [
        json!({ "agent": AGENT, "user": "root", "targets": ["10.20.4.7:502"] }),
        json!({ "agent": AGENT, "user": "root", "targets": ["10.20.4.0/24:500-510/udp", "[fd00:20::7]:*"], "access_seconds": 1800,
            "accounts": ["svc-historian"], "max_attempts": 2, "max_connections": 5, "max_turns": 100, "summary": "read tank levels" }),
        json!({}),
        json!({ "targets": ["10.20.4.7:502"] }),
        json!({ "agent": AGENT, "targets": ["plc7:502"] }),
        json!({ "agent": AGENT, "targets": ["10.20.4.7:502"], "max_turns": 4_294_967_296_u64 }),
        json!({ "agent": AGENT, "targets": ["10.20.4.7:502"], "access_seconds": 360_000 }),
        json!({ "agent": "claude-cod", "user": "nobody-here", "targets": ["198.51.100.10:80"] }),
        json!({ "event": 99_999_999 }),
    ];
    for request in requests {
        let _answer = said.ask("POST", "/v1/requests", &request.to_string())?;
    }
    said.file("socket/receipts.txt");
    Ok(())
}

/// What is said of a refused attempt: its event, why, and the request made of it.
fn refusals(said: &mut Transcript<'_>) -> Result<()> {
    let daemon = said.daemon;
    let mark = daemon.events().mark();
    let _answer = By::run(AGENT).attempt(daemon, &attack::tcp(daemon.lab(), pp_tests::lab::PLC_NEIGHBOUR))?;
    let event = daemon.events().wait_since(mark, "the refusal", |event| is_block(event, pp_tests::lab::PLC_NEIGHBOUR))?;
    let session = event["session"].as_str().context("no session")?.to_owned();
    let path = format!("/v1/events?session={session}");
    wait::until_true("the session's end in the store", wait::SOON, || {
        let stored = daemon.client().and_then(|client| client.exchange(hyper::Method::GET, &path, ""));
        stored.is_ok_and(|(_, _, lines)| lines.contains("\"kind\":\"session_end\""))
    })?;
    let _events = said.ask("GET", &path, "")?;
    let _why = said.ask("GET", &format!("/v1/why?session={session}"), "")?;
    let _none = said.ask("GET", &format!("/v1/why?session={NO_SESSION}"), "")?;
    let _request = said.ask("POST", "/v1/requests", &json!({ "event": event["id"] }).to_string())?;
    said.file("socket/refusals.txt");
    Ok(())
}

fn neighbours(said: &mut Transcript<'_>) -> Result<()> {
    let _list = said.ask("GET", "/v1/neighbours", "")?;
    let _error = said.ask("DELETE", "/v1/neighbours/10.20.4.7", "")?;
    let _error = said.ask("DELETE", "/v1/neighbours/plc7", "")?;
    said.file("socket/neighbours.txt");
    Ok(())
}

fn policy(said: &mut Transcript<'_>) -> Result<()> {
    let daemon = said.daemon;
    let standard = Policy::standard(daemon.lab());
    let file = daemon.path("policy.toml");
    let _policy = said.ask("GET", "/v1/policy", "")?;
    let _reloaded = said.ask("POST", "/v1/policy/reload", "")?;
    for (what, policy) in [
        ("a part of what is shipped is off", standard.clone().with("[exec]\nmode = \"observe\"\n\n[behaviour]\nmode = \"observe\"\n")),
        ("a key that nobody knows", standard.clone().with_top("colour = \"red\"")),
        ("not TOML", standard.clone().with("[zone")),
    ] {
        policy.write(&file)?;
        let _answer = said.ask_for(&format!("POST /v1/policy/reload ({what})"), "POST", "/v1/policy/reload", "")?;
    }
    said.note("the last good one is in force");
    let _policy = said.ask("GET", "/v1/policy", "")?;
    standard.write(&file)?;
    let _reloaded = said.ask("POST", "/v1/policy/reload", "")?;
    said.file("socket/policy.txt");
    Ok(())
}

/// The stored events of the kinds that nothing else on the machine makes, in the order in which the steps before this made them.
fn events(said: &mut Transcript<'_>, released: &str) -> Result<()> {
    for kind in
        ["receipt", "revocation", "policy", &format!("session_start&session={released}"), &format!("session_end&session={released}")]
    {
        let _lines = said.ask("GET", &format!("/v1/events?kind={kind}"), "")?;
    }
    let _last = said.ask("GET", "/v1/events?kind=policy&limit=1", "")?;
    let _none = said.ask("GET", "/v1/events?kind=nothing", "")?;
    let _none = said.ask("GET", "/v1/events?kind=policy&since=2999-01-01T00:00:00Z", "")?;
    said.file("socket/events.txt");
    Ok(())
}

/// Names, help, types and labels; the values are the machine's.
fn metrics(said: &mut Transcript<'_>) -> Result<()> {
    let (status, content, text) = said.daemon.client()?.exchange(hyper::Method::GET, "/metrics", "")?;
    said.raw(&format!("> GET /metrics\n{status} {content}\n"));
    for line in text.lines().filter(|line| !line.starts_with("pp_gap{")) {
        let name = if line.starts_with('#') { line } else { line.rsplit_once(' ').map_or(line, |(name, _)| name) };
        said.raw(&format!("{name}\n"));
    }
    said.file("socket/metrics.txt");
    Ok(())
}

/// Receipts that are not right, each with the error it gets.
fn receipts_are_refused_as_the_golden_file_has_it(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab())
        .with(&format!("[[authority]]\nkey_id = \"left-2025\"\ndecider = \"{DECIDER}\"\nzones = [\"plant-7\"]\nmax_ttl = \"1h\"\n"));
    let mut daemon = world.prepared(&policy)?;
    let left = Operator::new("left-2025", DECIDER);
    let idle = Operator::new("no-authority", DECIDER);
    let keys = forge::key_set(&[(daemon.operator(), "active"), (&left, "revoked"), (&idle, "active")]);
    std::fs::write(daemon.path("keys.json"), keys.to_string())?;
    daemon.spawn()?;
    let mut said = Transcript::new(&daemon);
    let operator = daemon.operator().clone();
    for (what, draft) in wrong_drafts() {
        let _error = said.ask_for(what, "POST", "/v1/receipts", &draft.sign(&operator).to_string())?;
    }
    for (what, by) in [
        ("revoked key", &left),
        ("unknown key", &Operator::new("nobody", DECIDER)),
        ("another key of the same id", &Operator::new(KEY, DECIDER)),
        ("key without authority", &idle),
    ] {
        let _error = said.ask_for(what, "POST", "/v1/receipts", &plc().sign(by).to_string())?;
    }
    let good = plc().sign(&operator);
    let with = |member: &str, value: Value| {
        let mut copy = good.clone();
        copy["artifact"][member] = value;
        copy
    };
    for (what, artifact) in [
        ("one bit of the payload", forge::flip_bit(&good, "payload_bytes_b64")),
        ("one bit of the signature", forge::flip_bit(&good, "signature_b64")),
        ("another hash", with("signed_payload_hash", json!("0".repeat(64)))),
        ("another key id", with("key_id", json!("shift-lead-2027"))),
        ("no signature", with("signature_b64", Value::Null)),
        ("another algorithm", with("alg", json!("rsa"))),
        ("another status outside", with("status", json!("DENIED"))),
        ("another end outside", with("expires_at", json!(stamp(Duration::from_secs(360_000))))),
        ("another id outside", with("receipt_id", json!(NO_RECEIPT))),
        ("no artifact", json!({})),
        ("an array", json!([])),
    ] {
        let _error = said.ask_for(what, "POST", "/v1/receipts", &artifact.to_string())?;
    }
    let first = plc().payload("idemKey", json!("the-same-key")).sign(&operator);
    let second = plc().payload("idemKey", json!("the-same-key")).sign(&operator);
    let _registered = said.ask_for("the first of two with one key", "POST", "/v1/receipts", &first.to_string())?;
    let _error = said.ask_for("the second of two with one key", "POST", "/v1/receipts", &second.to_string())?;
    let other = plc().payload("id", json!(forge::id(&first))).payload("idemKey", json!("another-key")).sign(&operator);
    let _error = said.ask_for("another receipt of the same id", "POST", "/v1/receipts", &other.to_string())?;
    said.file("socket/refused_receipts.txt");
    said.end()
}

fn wrong_drafts() -> Vec<(&'static str, Draft)> {
    let hour = Duration::from_secs(3600);
    let decider = |decider: &str| plc().payload("deciderId", json!(decider));
    vec![
        ("denied", plc().payload("status", json!("DENIED"))),
        ("demo scope", plc().payload("scope", json!("demo"))),
        ("another tenant", plc().request("/tenantId", json!("other-water")).payload("companyId", json!("other-water"))),
        ("another tenant in the request", plc().request("/tenantId", json!("other-water"))),
        ("another decider", decider("user:somebody@acme.example")),
        ("a decider that is no person", decider("system/pp-policy-engine")),
        ("window over max_ttl", plc().parameter("accessSeconds", json!(9 * 3600))),
        ("another host", plc().parameter("hosts", json!(["eng-ws-13"]))),
        ("a user that this host has not", plc().parameter("users", json!(["no-such-user"]))),
        ("a term that no build knows", plc().parameter("weekdays", json!(["monday"]))),
        ("constraints", plc().request("/constraints", json!({"idempotencyKey": "k"}))),
        ("no targets", plc().without("targets")),
        ("no credential scope", plc().without("credentialScope")),
        ("no decider", plc().payload("deciderId", Value::Null)),
        ("no hosts", plc().without("hosts")),
        ("no users", plc().without("users")),
        ("targets that are none", plc().parameter("targets", json!("everything"))),
        ("over", plc().payload("expiresAt", json!(stamp_ago(hour))).payload("createdAt", json!(stamp_ago(2 * hour)))),
        ("from the future", plc().payload("createdAt", json!(stamp(hour / 2)))),
        ("a time that is none", plc().payload("createdAt", json!("yesterday"))),
        ("another action", plc().request("/action/operation", json!("reboot"))),
        ("another agent in the payload", plc().payload("agentId", json!(OTHER_AGENT))),
        ("an address that needs none", Draft::opening("10.40.0.5/32", "tcp", 5502)),
        ("wider than what is protected", Draft::opening("10.0.0.0/8", "tcp", 5000)),
        ("a service that the key may not open", Draft::opening("10.40.0.5/32", "tcp", 4840)),
        ("input hash of another request", plc().payload("inputHash", json!(format!("sha256:{}", "0".repeat(64))))),
        ("an unknown canonical form", plc().payload("canonicalization", json!("jcs_v9"))),
        ("an unknown version", plc().payload("receiptVersion", json!(9))),
    ]
}
