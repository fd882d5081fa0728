//! Receipts: a good one opens exactly what it names, and every other one opens nothing and says why.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::forge::{self, Draft, Operator, stamp, stamp_ago};
use pp_tests::harness::{By, Quiet, Refusal, is_verdict};
use pp_tests::lab::{GATEWAY_WEST, OTHER_FRESH_PORT, PLC, PLC_NEIGHBOUR, STRAY_OTHER, fresh_target};
use pp_tests::policy::{AGENT, DECIDER, KEY, OTHER_AGENT, Policy};
use pp_tests::wait;
use serde_json::{Value, json};

use crate::world::{World, tests};

tests![
    receipt_opens_the_server_it_names_for_its_agent_and_nothing_else,
    receipt_for_another_user_opens_nothing,
    receipt_before_its_time_opens_nothing,
    receipt_after_its_time_opens_nothing,
    receipt_is_exhausted_after_its_connections,
    reconnecting_one_socket_is_counted_each_time,
    login_needs_a_credential_scope,
    login_attempts_are_counted,
    revoked_receipt_opens_nothing_and_stays_revoked,
    registering_twice_changes_nothing,
    receipts_that_are_not_right_are_refused_by_name_and_open_nothing,
    receipts_of_keys_that_are_not_right_are_refused_by_name,
    operators_flow_from_event_to_access_works_by_cli,
];

/// A receipt for the PLC that ends with the value.
pub(crate) struct Registered<'a> {
    daemon: &'a Daemon,
    /// Its id.
    pub(crate) id: String,
}

impl<'a> Registered<'a> {
    /// Signs the draft with the trusted key and registers it.
    pub(crate) fn new(daemon: &'a Daemon, draft: &Draft) -> Result<Self> {
        let artifact = draft.sign(daemon.operator());
        let _answer = daemon.register(&artifact)?;
        Ok(Self { daemon, id: forge::id(&artifact) })
    }

    /// Revokes it over the control socket.
    pub(crate) fn revoke(&self) -> Result<()> {
        let _answer = self.daemon.client()?.delete(&format!("/v1/receipts/{}", self.id))?.ok()?;
        Ok(())
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.revoke() {
            eprintln!("{}: not revoked: {error:#}", self.id);
        }
    }
}

/// A draft for the PLC's Modbus port: only for receipts that are refused, and for daemons of the test's own.
pub(crate) fn plc() -> Draft {
    opening(PLC)
}

/// A draft for one address and port.
pub(crate) fn opening(target: SocketAddr) -> Draft {
    Draft::opening(&format!("{}/32", target.ip()), "tcp", target.port())
}

/// The agent reaches the address.
fn reaches(daemon: &Daemon, agent: &str, target: SocketAddr) -> Result<()> {
    let answer = By::run(agent).attempt(daemon, &attack::tcp(daemon.lab(), target))?;
    ensure!(answer == Answer::Delivered, "{agent} to {target}: {answer:?}");
    Ok(())
}

/// The agent is refused for this reason, and nobody else is.
fn refused(daemon: &Daemon, agent: &str, target: SocketAddr, reason: &'static str) -> Result<Value> {
    let refusal = Refusal::of(attack::tcp(daemon.lab(), target), By::run(agent)).with_control(By::Nobody);
    refusal.for_reason(reason).assert(daemon).with_context(|| format!("{agent} to {target} for {reason}"))
}

fn receipt_opens_the_server_it_names_for_its_agent_and_nothing_else(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let (target, neighbour) = (fresh_target(), fresh_target());
    let other_port = SocketAddr::new(target.ip(), OTHER_FRESH_PORT);
    let _before = refused(daemon, AGENT, target, "no_receipt")?;
    let receipt = Registered::new(daemon, &opening(target))?;
    let mark = daemon.events().mark();
    reaches(daemon, AGENT, target)?;
    let event = daemon.events().wait_since(mark, "the allowed attempt's event", |event| is_verdict(event, "allow"))?;
    ensure!(event["receipt"] == receipt.id.as_str() && event["reason"] == "receipt", "{event}");
    let _port = refused(daemon, AGENT, other_port, "receipt_other_port")?;
    let _host = refused(daemon, AGENT, neighbour, "no_receipt")?;
    let _agent = refused(daemon, OTHER_AGENT, target, "receipt_other_agent")?;
    drop(receipt);
    let _after = refused(daemon, AGENT, target, "receipt_revoked")?;
    Ok(())
}

fn receipt_for_another_user_opens_nothing(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let target = fresh_target();
    let _receipt = Registered::new(daemon, &opening(target).parameter("users", json!(["games"])))?;
    refused(daemon, AGENT, target, "receipt_other_user").map(drop)
}

fn receipt_before_its_time_opens_nothing(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let target = fresh_target();
    let _receipt = Registered::new(daemon, &opening(target).parameter("notBefore", json!(stamp(Duration::from_secs(1800)))))?;
    refused(daemon, AGENT, target, "receipt_not_yet").map(drop)
}

fn receipt_after_its_time_opens_nothing(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let target = fresh_target();
    let _receipt = Registered::new(daemon, &opening(target).parameter("accessSeconds", json!(1)))?;
    wait::until_every(Duration::from_millis(200), "the end of a window of one second", wait::SOON, || {
        By::run(AGENT).attempt(daemon, &attack::tcp(daemon.lab(), target)).ok().filter(|answer| *answer == Answer::Refused(libc::EPERM))
    })?;
    refused(daemon, AGENT, target, "receipt_expired").map(drop)
}

fn receipt_is_exhausted_after_its_connections(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let target = fresh_target();
    let _receipt = Registered::new(daemon, &opening(target).parameter("maxConnections", json!(3)))?;
    for _ in 0..3 {
        reaches(daemon, AGENT, target)?;
    }
    refused(daemon, AGENT, target, "receipt_exhausted").map(drop)
}

/// Connects one socket again and again, dissolving each connection with an address of no family (connect(2)).
const RECONNECT: &str = "
import ctypes, json, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
one = socket.socket()
one.settimeout(10)
answers = []
for _ in range(4):
    answers.append(one.connect_ex((sys.argv[1], int(sys.argv[2]))))
    libc.connect(one.fileno(), bytes(16), 16)
print(json.dumps(answers))
";

fn reconnecting_one_socket_is_counted_each_time(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let target = fresh_target();
    let python = pp_tests::paths::python()?.display().to_string();
    let words = [python, "-c".into(), RECONNECT.into(), target.ip().to_string(), target.port().to_string()];
    let answers = |by: &By| by.run_words(daemon, &words)?.success()?.json();
    let control = answers(&By::Nobody)?;
    ensure!(control == json!([0, 0, 0, 0]), "control run: {control}");
    let _receipt = Registered::new(daemon, &opening(target).parameter("maxConnections", json!(2)))?;
    let (mark, seen) = (daemon.events().mark(), daemon.lab().servers().from_now());
    let counted = answers(&By::run(AGENT))?;
    ensure!(counted == json!([0, 0, libc::EPERM, libc::EPERM]), "two connections were allowed: {counted}");
    let exhausted = |event: &Value| event["reason"] == "receipt_exhausted";
    let _event = daemon.events().wait_since(mark, "the event of the third", exhausted)?;
    let arrived = seen.arrivals_at(target).len();
    ensure!(arrived <= 2, "{arrived} connections arrived");
    Ok(())
}

fn gateway(scope: Value) -> Draft {
    opening(GATEWAY_WEST).parameter("credentialScope", scope)
}

fn login_needs_a_credential_scope(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let _receipt = Registered::new(daemon, &gateway(json!({"kind": "none"})))?;
    let event = refused(daemon, AGENT, GATEWAY_WEST, "credential_scope")?;
    ensure!(event["attack"].as_array().is_some_and(|ids| ids.iter().any(|id| id == "T0859")), "{event}");
    Ok(())
}

fn login_attempts_are_counted(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let scope = json!({"kind": "accounts", "accounts": ["svc-historian"], "maxAttempts": 2});
    let _receipt = Registered::new(daemon, &gateway(scope))?;
    for _ in 0..2 {
        reaches(daemon, AGENT, GATEWAY_WEST)?;
    }
    refused(daemon, AGENT, GATEWAY_WEST, "receipt_exhausted").map(drop)
}

fn revoked_receipt_opens_nothing_and_stays_revoked(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let target = fresh_target();
    let artifact = opening(target).sign(daemon.operator());
    let id = forge::id(&artifact);
    let _answer = daemon.register(&artifact)?;
    reaches(daemon, AGENT, target)?;
    let revoked = daemon.cli(&["receipt", "revoke", &id])?.success()?;
    ensure!(revoked.both().contains(&id), "{revoked}");
    let _event = refused(daemon, AGENT, target, "receipt_revoked")?;
    // Whatever is answered, registering it again opens nothing.
    let _answer = daemon.client()?.post("/v1/receipts", &artifact)?;
    refused(daemon, AGENT, target, "receipt_revoked").map(drop)
}

fn registering_twice_changes_nothing(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let target = fresh_target();
    let artifact = opening(target).parameter("maxConnections", json!(2)).sign(daemon.operator());
    let first = daemon.register(&artifact)?;
    reaches(daemon, AGENT, target)?;
    let again = daemon.register(&artifact)?;
    ensure!(first["id"] == again["id"] && first["until"] == again["until"], "first {first}, then {again}");
    reaches(daemon, AGENT, target)?;
    let _event = refused(daemon, AGENT, target, "receipt_exhausted")?;
    let _answer = daemon.client()?.delete(&format!("/v1/receipts/{}", forge::id(&artifact)))?;
    Ok(())
}

/// Registers what must be refused with this code, in words that say more than the code.
fn refused_receipt(daemon: &Daemon, what: &str, artifact: &Value, code: &str) -> Result<()> {
    let answer = daemon.client()?.post("/v1/receipts", artifact)?;
    let error = &answer.body["error"];
    ensure!((400..500).contains(&answer.status) && error["code"] == code, "{what}: not {code} but {} {}", answer.status, answer.body);
    let message = error["message"].as_str().unwrap_or_default();
    ensure!(message.split_whitespace().count() > 5, "{what}: the message does not say what to do: {message}");
    Ok(())
}

fn receipts_that_are_not_right_are_refused_by_name_and_open_nothing(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let hour = Duration::from_secs(3600);
    let decider = |decider: &str| plc().payload("deciderId", json!(decider));
    let named: [(&str, Draft, &str); 22] = [
        ("denied", plc().payload("status", json!("DENIED")), "not_approved"),
        ("demo scope", plc().payload("scope", json!("demo")), "demo_scope"),
        ("another tenant", plc().request("/tenantId", json!("other-water")).payload("companyId", json!("other-water")), "wrong_tenant"),
        ("another tenant in the request", plc().request("/tenantId", json!("other-water")), "wrong_tenant"),
        ("another decider", decider("user:somebody@acme.example"), "decider_not_allowed"),
        ("a decider that is no person", decider("system/pp-policy-engine"), "decider_not_a_person"),
        ("window over max_ttl", plc().parameter("accessSeconds", json!(9 * 3600)), "window_over_max_ttl"),
        ("another host", plc().parameter("hosts", json!(["eng-ws-13"])), "host_not_named"),
        ("a term that no build knows", plc().parameter("weekdays", json!(["monday"])), "term_not_enforced"),
        ("constraints", plc().request("/constraints", json!({"idempotencyKey": "k"})), "term_not_enforced"),
        ("no targets", plc().without("targets"), "missing_term"),
        ("no credential scope", plc().without("credentialScope"), "missing_term"),
        ("no decider", plc().payload("deciderId", Value::Null), "missing_term"),
        ("no hosts", plc().without("hosts"), "missing_term"),
        ("no users", plc().without("users"), "missing_term"),
        ("over", plc().payload("expiresAt", json!(stamp_ago(hour))).payload("createdAt", json!(stamp_ago(2 * hour))), "expired"),
        ("from the future", plc().payload("createdAt", json!(stamp(hour / 2))), "created_in_future"),
        ("an address that needs none", Draft::opening("10.40.0.5/32", "tcp", 5502), "target_not_protected"),
        ("wider than what is protected", Draft::opening("10.0.0.0/8", "tcp", 5000), "target_too_wide"),
        ("a service that the key may not open", Draft::opening("10.40.0.5/32", "tcp", 4840), "service_not_allowed"),
        ("input hash of another request", plc().payload("inputHash", json!(format!("sha256:{}", "0".repeat(64)))), "input_hash_mismatch"),
        ("an unknown canonical form", plc().payload("canonicalization", json!("jcs_v9")), "canonicalization_unsupported"),
    ];
    let mut wrong = Vec::new();
    for (what, draft, code) in &named {
        wrong.extend(refused_receipt(daemon, what, &draft.sign(daemon.operator()), code).err().map(|error| format!("{error:#}")));
    }
    let good = plc().sign(daemon.operator());
    let with = |member: &str, value: Value| {
        let mut copy = good.clone();
        copy["artifact"][member] = value;
        copy
    };
    let edited: [(&str, Value, &str); 7] = [
        ("one bit of the payload", forge::flip_bit(&good, "payload_bytes_b64"), "payload_hash_mismatch"),
        ("one bit of the signature", forge::flip_bit(&good, "signature_b64"), "signature_invalid"),
        ("another hash", with("signed_payload_hash", json!("0".repeat(64))), "payload_hash_mismatch"),
        ("another key id", with("key_id", json!("shift-lead-2027")), "malformed"),
        ("no signature", with("signature_b64", Value::Null), "malformed"),
        ("another status outside", with("status", json!("DENIED")), "copies_disagree"),
        ("another end outside", with("expires_at", json!(stamp(100 * hour))), "copies_disagree"),
    ];
    for (what, artifact, code) in &edited {
        wrong.extend(refused_receipt(daemon, what, artifact, code).err().map(|error| format!("{error:#}")));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let quiet = Quiet::begin(daemon.lab())?;
    for target in [PLC, PLC_NEIGHBOUR] {
        let answer = By::run(AGENT).attempt(daemon, &attack::tcp(daemon.lab(), target))?;
        ensure!(answer == Answer::Refused(libc::EPERM), "{target} was opened: {answer:?}");
        quiet.assert_nothing_at(target)?;
    }
    let elsewhere = By::run(AGENT).attempt(daemon, &attack::tcp(daemon.lab(), STRAY_OTHER))?;
    ensure!(elsewhere == Answer::Delivered, "an ordinary address was closed: {elsewhere:?}");
    Ok(())
}

fn receipts_of_keys_that_are_not_right_are_refused_by_name(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab())
        .with(&format!("[[authority]]\nkey_id = \"left-2025\"\ndecider = \"{DECIDER}\"\nzones = [\"plant-7\"]\nmax_ttl = \"1h\"\n"));
    let mut daemon = world.prepared(&policy)?;
    let left = Operator::new("left-2025", DECIDER);
    let idle = Operator::new("no-authority", DECIDER);
    let keys = forge::key_set(&[(daemon.operator(), "active"), (&left, "revoked"), (&idle, "active")]);
    std::fs::write(daemon.path("keys.json"), keys.to_string())?;
    daemon.spawn()?;
    refused_receipt(&daemon, "revoked key", &plc().sign(&left), "key_revoked")?;
    refused_receipt(&daemon, "unknown key", &plc().sign(&Operator::new("nobody", DECIDER)), "key_unknown")?;
    refused_receipt(&daemon, "another key of the same id", &plc().sign(&Operator::new(KEY, DECIDER)), "signature_invalid")?;
    refused_receipt(&daemon, "key without authority", &plc().sign(&idle), "no_authority")?;
    let quiet = Quiet::begin(daemon.lab())?;
    let answer = By::run(AGENT).attempt(&daemon, &attack::tcp(daemon.lab(), PLC))?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{answer:?}");
    quiet.assert_nothing_at(PLC)
}

fn operators_flow_from_event_to_access_works_by_cli(world: &mut World) -> Result<()> {
    let mut daemon = world.prepared(&Policy::standard(world.lab()))?;
    let directory = daemon.path("");
    let file = |name: &str| directory.join(name).display().to_string();
    let (key, request, receipt) = (file("operator.pem"), file("req.json"), file("receipt.json"));
    let keygen = ["receipt", "keygen", "--id", KEY, "--decider", DECIDER, "--out", &key, "--unencrypted"];
    let public = daemon.cli(&keygen)?.success()?;
    std::fs::write(daemon.path("keys.json"), public.stdout)?;
    daemon.spawn()?;
    let event = refused(&daemon, AGENT, PLC, "no_receipt")?;
    let id = event["id"].as_str().map_or_else(|| event["id"].to_string(), str::to_owned);
    let drafted = daemon.cli(&["receipt", "request", "--from-event", &id])?.success()?;
    std::fs::write(&request, drafted.stdout)?;
    let signed = daemon.cli(&["receipt", "sign", &request, "--key", &key, "--yes"])?.success()?;
    std::fs::write(&receipt, signed.stdout)?;
    let _verified = daemon.cli(&["receipt", "verify", &receipt, "--keys", &file("keys.json")])?.success()?;
    let _registered = daemon.cli(&["receipt", "register", &receipt])?.success()?;
    reaches(&daemon, AGENT, PLC)?;
    refused(&daemon, AGENT, PLC_NEIGHBOUR, "no_receipt").map(drop)
}
