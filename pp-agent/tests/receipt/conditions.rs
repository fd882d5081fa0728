//! Each condition of the gate has its own name, and a receipt that misses one grants nothing.

use std::time::Duration;

use pp_agent::receipt::conditions::{admit, check};
use pp_agent::receipt::{AdmitContext, Authority, Refusal, verify};
use serde_json::{Value, json};

use crate::support::*;

/// The code for a good receipt with one member of the payload set (null: taken out).
fn with(member: &str, value: Value) -> Result<&'static str, String> {
    let mut payload = payload(request());
    match value {
        Value::Null => {
            payload.as_object_mut().unwrap().remove(member);
        }
        value => payload[member] = value,
    }
    let refusal = judge(&seal(&payload)).err().ok_or("admitted")?;
    assert!(!refusal.to_string().contains('\n'));
    Ok(refusal.code())
}

/// The code for a receipt over a changed request.
fn with_request(change: impl FnOnce(&mut Value)) -> &'static str {
    let mut request = request();
    change(&mut request);
    code(judge(&seal(&payload(request))))
}

#[test]
fn good_receipt_is_admitted_with_exactly_its_terms() {
    let receipt = judge(&good()).unwrap();
    assert_eq!((receipt.id(), receipt.key_id(), receipt.decider()), ("ppa_0199-test", KEY, DECIDER));
    assert_eq!((receipt.company_id(), receipt.idem_key()), ("acme-water", "ppa_0199-test"));
    assert_eq!(receipt.payload_hash(), good()["artifact"]["signed_payload_hash"].as_str().unwrap());
    assert_eq!(receipt.terms().targets[0].to_string(), "10.20.4.7/32 tcp 502");
    assert_eq!(receipt.touched().zones, ["plant-7"]);
}

#[test]
fn each_payload_condition_has_its_own_name() {
    for (member, value, expected) in [
        ("status", json!("DENIED"), "not_approved"),
        ("resolutionType", json!("deny"), "not_approved"),
        ("riskTier", json!("D_PROHIBITED"), "not_approved"),
        ("scope", json!("demo"), "demo_scope"),
        ("scope", json!("staging"), "demo_scope"),
        ("signatureKeyId", json!("pp-demo-k1"), "demo_scope"),
        ("signatureKeyId", json!("nobody"), "no_authority"),
        ("signatureKeyId", json!("unheard-of"), "key_unknown"),
        ("deciderId", json!("user:somebody-else"), "decider_not_allowed"),
        ("deciderId", json!("user:shift-lead@acme.example2"), "decider_not_allowed"),
        ("deciderId", json!("user:"), "decider_not_a_person"),
        ("deciderId", json!("role/founder"), "decider_not_a_person"),
        ("deciderId", json!("api_key:x"), "decider_not_a_person"),
        ("deciderId", json!("system/pp-permission-router"), "decider_not_a_person"),
        ("deciderAuthMethod", json!("api_key"), "decider_not_a_person"),
        ("attributionConfidence", json!("unattributed"), "decider_not_a_person"),
        ("deciderId", Value::Null, "missing_term"),
        ("deciderId", json!(""), "missing_term"),
        ("companyId", json!("other-co"), "wrong_tenant"),
        ("expiresAt", json!("2026-11-22T08:00:00.000Z"), "expired"),
        ("createdAt", json!("2026-11-22T08:02:00.001Z"), "created_in_future"),
        ("inputHash", json!(format!("sha256:{}", "0".repeat(64))), "input_hash_mismatch"),
        ("agentId", json!("codex"), "agent_ids_disagree"),
        ("runId", json!("run_1"), "agent_ids_disagree"),
        ("requestJson", json!("{} "), "request_not_canonical"),
        ("requestJson", json!("[]"), "request_not_canonical"),
        ("requestJson", json!("{\"a\":1,\"a\":1}"), "request_not_canonical"),
        ("receiptVersion", json!(3), "payload_malformed"),
        ("signatureAlg", json!("ed448"), "payload_malformed"),
        ("expiresAt", json!("2026-11-22"), "payload_malformed"),
        ("createdAt", json!("2026-02-30T00:00:00.000Z"), "payload_malformed"),
        ("reasonCodes", json!("[1]"), "payload_malformed"),
        ("status", json!("PENDING"), "payload_malformed"),
        ("summary", json!(7), "payload_malformed"),
    ] {
        assert_eq!(with(member, value.clone()).as_deref(), Ok(expected), "{member} {value}");
    }
    for member in
        ["companyId", "idemKey", "agentId", "requestJson", "inputHash", "status", "deciderDisplay", "scope", "expiresAt", "createdAt"]
    {
        assert_eq!(with(member, Value::Null).as_deref(), Ok("payload_malformed"), "{member}");
    }
}

#[test]
fn created_up_to_two_minutes_ahead_is_admitted() {
    assert_eq!(with("createdAt", json!("2026-11-22T08:02:00.000Z")), Err("admitted".into()));
}

#[test]
fn key_status_and_revocation_decide() {
    let artifact = good().to_string();
    let outcome = |status| with_context(|context| code(check(artifact.as_bytes(), &keys_with_status(status), &context)));
    assert_eq!(outcome("active"), "admitted");
    assert_eq!(outcome("rotated"), "admitted");
    assert_eq!(outcome("revoked"), "key_revoked");
}

#[test]
fn each_request_condition_has_its_own_name() {
    assert_eq!(with_request(|_| {}), "admitted");
    assert_eq!(with_request(|request| request["tenantId"] = json!("other-co")), "wrong_tenant");
    assert_eq!(with_request(|request| request["action"]["parameters"]["hosts"] = json!(["eng-ws-13"])), "host_not_named");
    assert_eq!(with_request(|request| request["action"]["parameters"]["hosts"] = json!(["*"])), "host_not_named");
    assert_eq!(with_request(|request| request["action"]["operation"] = json!("listen")), "other_action");
    assert_eq!(with_request(|request| request["action"]["tool"] = json!("github")), "other_action");
    assert_eq!(with_request(|request| request["constraints"] = json!({"idempotencyKey": "x"})), "term_not_enforced");
    assert_eq!(with_request(|request| request["action"]["parameters"]["accessSeconds"] = json!(8 * 3600)), "admitted");
    assert_eq!(with_request(|request| request["action"]["parameters"]["accessSeconds"] = json!(8 * 3600 + 1)), "window_over_max_ttl");
}

#[test]
fn envelope_of_another_company_or_request_is_refused() {
    for (member, value) in
        [("company_id", "other-co"), ("idem_key", "x"), ("input_hash", "x"), ("request_json", "{}"), ("summary", "harmless")]
    {
        let mut artifact = good();
        artifact["artifact"][member] = json!(value);
        assert_eq!(code(judge(&artifact)), "copies_disagree", "{member}");
    }
}

#[test]
fn redeemed_at_is_believed_in_neither_direction() {
    for value in [json!("2026-11-22T07:59:00.000Z"), Value::Null, json!(1)] {
        let mut artifact = good();
        artifact["artifact"]["redeemed_at"] = value;
        assert_eq!(code(judge(&artifact)), "admitted");
    }
}

#[test]
fn receipt_without_one_of_the_three_says_which() {
    let message = |spoil: &dyn Fn(&mut Value)| {
        let mut request = request();
        spoil(&mut request);
        judge(&seal(&payload(request))).unwrap_err().to_string()
    };
    let parameters = |request: &mut Value, name: &str| {
        request["action"]["parameters"].as_object_mut().unwrap().remove(name);
    };
    assert!(message(&|request| parameters(request, "targets")).starts_with("receipt names no target surface (action.parameters.targets)"));
    assert!(message(&|request| request["action"]["parameters"]["targets"] = json!([])).starts_with("receipt names no target surface"));
    assert!(message(&|request| parameters(request, "credentialScope")).starts_with("receipt names no credential scope"));
    assert!(message(&|request| parameters(request, "users")).starts_with("receipt names no users"));
    assert!(message(&|request| parameters(request, "hosts")).starts_with("receipt names no hosts"));
    let mut payload = payload(request());
    payload.as_object_mut().unwrap().remove("deciderId");
    assert!(judge(&seal(&payload)).unwrap_err().to_string().starts_with("receipt names no operator (deciderId)"));
}

#[test]
fn users_may_be_left_out_only_where_policy_says_any_user() {
    let mut request = request();
    request["action"]["parameters"].as_object_mut().unwrap().remove("users");
    let artifact = seal(&payload(request)).to_string();
    with_context(|context| {
        let outcome = check(artifact.as_bytes(), &keys(), &context);
        assert_eq!(outcome.unwrap_err(), Refusal::MissingTerm { what: "users", member: "action.parameters.users" });
    });
    with_context(|mut context| {
        context.any_user = true;
        assert_eq!(check(artifact.as_bytes(), &keys(), &context).unwrap().terms().users, None);
        // A receipt that names users stays bound to them.
        let named = check(good().to_string().as_bytes(), &keys(), &context).unwrap();
        assert_eq!(named.terms().users.as_deref().unwrap(), ["svc-build"]);
    });
}

#[test]
fn every_place_a_target_touches_must_be_the_authoritys() {
    let target = |address: &str, ports: &[&str]| {
        let mut request = request();
        let second = json!({"address": address, "transport": "tcp", "ports": ports});
        request["action"]["parameters"]["targets"].as_array_mut().unwrap().push(second);
        judge(&seal(&payload(request)))
    };
    for (address, ports, expected) in [
        ("10.20.9.0/24", ["*"], "admitted"),
        ("10.30.4.9/32", ["443"], "admitted"),
        ("192.168.1.1/32", ["502"], "admitted"),
        ("10.21.0.1/32", ["502"], "zone_not_allowed"),
        ("10.20.0.0/15", ["502"], "zone_not_allowed"),
        ("10.30.4.10/32", ["443"], "gateway_not_allowed"),
        ("10.30.4.8/30", ["443"], "gateway_not_allowed"),
        ("192.168.1.1/32", ["20000"], "service_not_allowed"),
        ("192.168.1.1/32", ["500-510"], "target_too_wide"),
        ("10.30.4.9/32", ["*"], "service_not_allowed"),
        ("192.168.1.1/32", ["80"], "target_not_protected"),
        ("0.0.0.0/0", ["*"], "zone_not_allowed"),
    ] {
        assert_eq!(code(target(address, &ports)), expected, "{address} {ports:?}");
    }
    let refusal = target("10.21.0.1/32", &["502", "510-515"]).unwrap_err();
    assert_eq!(refusal.pp_code(), Some("PP_SCOPE_MISMATCH"));
    assert_eq!(
        refusal.to_string(),
        "target 10.21.0.1/32 tcp 502,510-515 touches zone plant-8, which key shift-lead-2026 may not open; ask an operator who may"
    );
}

#[test]
fn window_starts_at_registration_or_not_before_and_is_bounded_by_max_ttl() {
    let receipt = judge(&good()).unwrap();
    let window = receipt.window(NOW_MS - 60_000);
    assert_eq!((window.from_ms, window.until_ms), (NOW_MS, NOW_MS + 3_600_000), "notBefore is NOW");
    let window = receipt.window(NOW_MS + 60_000);
    assert_eq!((window.from_ms, window.until_ms), (NOW_MS + 60_000, NOW_MS + 3_660_000));

    let until_expiry = |expires: &str, not_before: &str| {
        let mut request = request();
        let parameters = request["action"]["parameters"].as_object_mut().unwrap();
        parameters.remove("accessSeconds");
        parameters.insert("notBefore".into(), json!(not_before));
        let mut payload = payload(request);
        payload["expiresAt"] = json!(expires);
        judge(&seal(&payload))
    };
    let receipt = until_expiry("2026-11-22T16:00:00.000Z", "2026-11-22T08:00:00.000Z").unwrap();
    assert_eq!(receipt.window(NOW_MS).until_ms, NOW_MS + 8 * 3_600_000);
    assert_eq!(code(until_expiry("2026-11-22T16:00:00.001Z", "2026-11-22T08:00:00.000Z")), "window_over_max_ttl");
    assert_eq!(code(until_expiry("2026-11-22T16:00:00.001Z", "2026-11-22T09:00:00.000Z")), "admitted");
    assert_eq!(code(until_expiry("2026-11-22T09:00:00.000Z", "2026-11-22T09:00:00.000Z")), "window_empty");
}

#[test]
fn stored_receipt_is_judged_by_its_registration_and_by_todays_policy() {
    let artifact = good().to_string();
    with_context(|mut context| {
        context.now_ms += 3_600_000;
        assert_eq!(code(check(artifact.as_bytes(), &keys(), &context)), "expired");
        context.now_ms = NOW_MS;
        assert_eq!(code(check(artifact.as_bytes(), &keys(), &context)), "admitted");
        let shorter = [Authority { max_ttl: Duration::from_secs(60), ..authority() }];
        let context = AdmitContext { authorities: &shorter, ..context };
        assert_eq!(code(check(artifact.as_bytes(), &keys(), &context)), "window_over_max_ttl");
    });
}

#[test]
fn errors_carry_the_issuers_codes() {
    let pp_code = |artifact: &Value| judge(artifact).unwrap_err().pp_code();
    let mut unsigned = good();
    unsigned["artifact"].as_object_mut().unwrap().remove("signature_b64");
    assert_eq!(pp_code(&unsigned), Some("PP_UNSIGNED_RECEIPT"));
    let mut tampered = good();
    tampered["artifact"]["signed_payload_hash"] = json!("0");
    assert_eq!(pp_code(&tampered), Some("PP_INVALID_SIGNATURE"));
    let mut expired = payload(request());
    expired["expiresAt"] = json!("2026-11-22T07:59:00.000Z");
    assert_eq!(pp_code(&seal(&expired)), Some("PP_EXPIRED"));
    assert_eq!(Refusal::Redeemed { id: "x".into() }.pp_code(), Some("PP_REDEEMED"));
    assert_eq!(pp_code(&json!({})), None);
}

#[test]
fn public_vectors_open_nothing_here() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/receipt-spec/test-vectors");
    let keys = pp_agent::keyring::Keyring::load(&folder.join("keys.json"), pp_agent::trusted::FileCheck::Anybody).unwrap();
    for (file, expected) in [
        ("approve-human-execute-lane-refund.json", "other_action"),
        ("approve-human-execute-lane-create-pr.json", "other_action"),
        ("approve-policy-execute-lane.json", "decider_not_a_person"),
        ("deny-kill-switch-execute-lane.json", "not_approved"),
        ("approve-human-deploy-gate.json", "term_not_enforced"),
    ] {
        let evidence = verify(&std::fs::read(folder.join(file)).unwrap(), &keys).unwrap();
        let alice = [Authority { key_id: "pp-test-2026-q2".into(), decider: "user:usr_vec_alice_00000001".into(), ..authority() }];
        // 14:13 on 2026-09-01; the pull request was created at 14:28.
        let now_ms = 1_788_271_980_000 + if file.ends_with("create-pr.json") { 16 * 60_000 } else { 0 };
        let outcome = with_context(|context| {
            admit(evidence, &AdmitContext { tenant: "co_vector_tenant_0001", authorities: &alice, now_ms, ..context })
        });
        assert_eq!(code(outcome), expected, "{file}");
    }
}

#[test]
fn input_hash_is_computed_again_and_not_only_compared() {
    let mut signed_over = hashed(request());
    signed_over["action"]["parameters"]["maxConnections"] = json!(2000);
    let mut payload = payload(request());
    payload["requestJson"] = json!(canonical(&signed_over));
    let refusal = judge(&seal(&payload)).unwrap_err();
    assert_eq!(refusal, Refusal::InputHashMismatch { which: "it does not match when computed again" });
}
