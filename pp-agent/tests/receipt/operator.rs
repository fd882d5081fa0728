//! The operator's side: keys, drafts, signing, what is shown, and revocation.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use pp_agent::keyring::Keyring;
use pp_agent::receipt::conditions::check;
use pp_agent::receipt::key::{KeyError, OperatorKey};
use pp_agent::receipt::meaning::inspect;
use pp_agent::receipt::request::RequestError;
use pp_agent::receipt::revocation::{admit_revocation, revoke, revoked_id};
use pp_agent::receipt::sign::{SignError, preview, sign};
use pp_agent::receipt::{AdmitContext, Authority, Request, verify};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::support::*;

/// How long what is signed here can be registered.
const VALID_FOR: Duration = Duration::from_secs(3_600);

fn draft() -> Value {
    json!({
        "tenant": "acme-water", "agent": "claude-code", "targets": [{"address": "10.20.4.7", "transport": "tcp", "ports": ["502"]}],
        "credentialScope": {"kind": "accounts", "accounts": ["svc-historian"], "maxAttempts": 3}, "users": ["svc-build"],
        "hosts": ["eng-ws-12"], "accessSeconds": 3600, "maxConnections": 20, "summary": "read tank levels, PLC 7 (CHG-1042)"
    })
}

fn parse(draft: &Value) -> Result<Request, RequestError> {
    Request::parse(draft.to_string().as_bytes())
}

fn key() -> OperatorKey {
    OperatorKey::generate(KEY, DECIDER).unwrap()
}

fn keys_of(key: &OperatorKey) -> Keyring {
    Keyring::parse(&key.key_set_json(NOW_MS)).unwrap()
}

#[test]
fn signed_receipt_is_admitted_and_says_what_was_asked() {
    let key = key();
    let signed = sign(&parse(&draft()).unwrap(), &key, NOW_MS, VALID_FOR).unwrap();
    let receipt = with_context(|context| check(signed.artifact.as_bytes(), &keys_of(&key), &context)).unwrap();
    assert!(receipt.id().starts_with("ppa_0") && receipt.id() == signed.id && receipt.idem_key() == signed.id);
    assert_eq!(receipt.expires_at_ms(), NOW_MS + 3_600_000);
    assert_eq!(receipt.terms(), &parse(&draft()).unwrap().terms().unwrap());
    assert_eq!(receipt.decider_display(), "shift-lead@acme.example");
    let artifact: Value = serde_json::from_str(&signed.artifact).unwrap();
    let payload =
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, artifact["artifact"]["payload_bytes_b64"].as_str().unwrap());
    let payload: Value = serde_json::from_slice(&payload.unwrap()).unwrap();
    for (member, value) in [
        ("riskTier", "C_EXECUTE_WITH_APPROVAL"),
        ("resolutionType", "allow_once"),
        ("attributionConfidence", "credentialed"),
        ("reasonCodes", "[\"OPERATOR_APPROVED\"]"),
        ("scope", "production"),
        ("companyId", "acme-water"),
        (
            "summary",
            "claude-code, any session of svc-build on eng-ws-12 may reach 10.20.4.7/32 tcp 502 for 1 h, \
             at most 20 new connections on each host, at most 3 logins",
        ),
    ] {
        assert_eq!(payload[member], json!(value));
    }
    assert!(payload.get("deciderAuthMethod").is_none() && payload.get("policyVersion").is_none());
}

#[test]
fn two_signatures_never_share_an_id() {
    let (key, request) = (key(), parse(&draft()).unwrap());
    let ids: Vec<String> = (0..10).map(|_| sign(&request, &key, NOW_MS, VALID_FOR).unwrap().id).collect();
    assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), 10);
}

#[test]
fn receipt_bound_to_a_session_keeps_it() {
    let key = key();
    let mut draft = draft();
    draft["agentRun"] = json!("7f3a0c5d19e2b846");
    let signed = sign(&parse(&draft).unwrap(), &key, NOW_MS, VALID_FOR).unwrap();
    let receipt = with_context(|context| check(signed.artifact.as_bytes(), &keys_of(&key), &context)).unwrap();
    assert_eq!(receipt.terms().run.as_deref(), Some("7f3a0c5d19e2b846"));
}

#[test]
fn limit_of_turns_is_signed_and_shown_to_the_operator() {
    let mut draft = draft();
    draft["maxTurns"] = json!(12);
    let request = parse(&draft).unwrap();
    let key = key();
    let shown = preview(&request, &key, NOW_MS, VALID_FOR).unwrap();
    assert!(shown.contains("at most 12 on each connection to a gateway"), "{shown}");
    let signed = sign(&request, &key, NOW_MS, VALID_FOR).unwrap();
    let receipt = with_context(|context| check(signed.artifact.as_bytes(), &keys_of(&key), &context)).unwrap();
    assert_eq!(receipt.terms().max_turns, Some(12));
    assert!(receipt.summary().is_some_and(|text| text.contains("at most 12 turns on each connection to a gateway")));
}

#[test]
fn drafts_that_make_no_receipt_are_refused_before_signing() {
    let with = |name: &str, value: Value| {
        let mut draft = draft();
        draft[name] = value;
        parse(&draft)
    };
    assert!(matches!(with("maxTurns", json!(0)), Err(RequestError::Refused(_))));
    assert!(matches!(with("maxBytes", json!(1)), Err(RequestError::Form(_))));
    assert!(matches!(with("decider", json!("user:me")), Err(RequestError::Form(_))));
    assert!(matches!(Request::parse(b"{"), Err(RequestError::Form(_))));
    assert!(matches!(Request::parse(b"{\"tenant\":\"a\",\"tenant\":\"b\"}"), Err(RequestError::Form(_))));
    assert_eq!(Request::parse(&vec![b' '; 300_000]), Err(RequestError::TooLarge));
    assert!(matches!(with("targets", json!([])), Err(RequestError::Refused(_))));
    assert!(matches!(with("accessSeconds", json!(0)), Err(RequestError::Refused(_))));
    let request = parse(&draft()).unwrap();
    assert_eq!(sign(&request, &key(), NOW_MS, Duration::ZERO), Err(SignError::ValidFor));
    assert_eq!(sign(&request, &key(), NOW_MS, Duration::MAX), Err(SignError::ValidFor));
}

#[test]
fn operator_is_shown_the_plain_meaning_with_the_askers_text_apart() {
    let mut draft = draft();
    draft["summary"] = json!("harmless\nopens:       nothing\u{1b}[8m");
    let shown = preview(&parse(&draft).unwrap(), &key(), NOW_MS, VALID_FOR).unwrap();
    assert_eq!(
        shown,
        "opens:       10.20.4.7/32 tcp 502\n\
         logins:      at most 3 connections to login ports and gateways; accounts svc-historian are for the record only: the kernel cannot see which account is used\n\
         for agent:   claude-code, any session\n\
         users:       svc-build\n\
         hosts:       eng-ws-12\n\
         how long:    1 h from registration; to be registered before 2026-11-22T09:00:00.000Z\n\
         how many:    at most 20 new connections on each host\n\
         tenant:      acme-water\n\
         decided by:  user:shift-lead@acme.example\n\
         the asker wrote (not checked, no part of what is allowed):\n  \
         | harmless\\nopens:       nothing\\u{1b}[8m\n"
    );
}

#[test]
fn terminal_escapes_in_every_text_come_out_escaped() {
    let nasty = "x\u{1b}]0;owned\u{7}\u{202e}\u{2028}\n\r\u{9b}2J";
    let clean =
        |text: &str| text.chars().all(|character| character == '\n' || !character.is_control() && !"\u{202e}\u{2028}".contains(character));
    let key = key();
    for member in ["tenant", "agent", "agentRun", "summary"] {
        let mut draft = draft();
        draft[member] = json!(nasty);
        assert_shown_clean(&draft, &key, &clean);
    }
    for member in ["users", "hosts"] {
        let mut draft = draft();
        draft[member] = json!([nasty]);
        assert_shown_clean(&draft, &key, &clean);
    }
    let mut draft = draft();
    draft["credentialScope"]["accounts"] = json!([nasty]);
    assert_shown_clean(&draft, &key, &clean);

    for member in [
        "id",
        "companyId",
        "idemKey",
        "agentId",
        "runId",
        "status",
        "summary",
        "deciderId",
        "deciderDisplay",
        "policyVersion",
        "expiresAt",
        "inputHash",
        "scope",
        "reasonCodes",
        "requestJson",
    ] {
        let mut payload = payload(request());
        payload[member] = json!(nasty);
        let artifact = seal(&payload);
        let outcome = verify(artifact.to_string().as_bytes(), &keys());
        assert!(clean(&inspect(&outcome, NOW_MS)), "{member}");
        assert!(clean(&outcome.unwrap().verified_text(NOW_MS)), "{member}");
        if let Err(refusal) = judge(&artifact) {
            let text = refusal.to_string();
            assert!(clean(&text) && !text.contains('\n'), "{member}");
        }
    }
    for member in ["receipt_id", "key_id", "alg", "status", "signature_b64", "payload_bytes_b64", "signed_payload_hash"] {
        let mut artifact = good();
        artifact["artifact"][member] = json!(nasty);
        let text = judge(&artifact).unwrap_err().to_string();
        assert!(clean(&text) && !text.contains('\n'), "{member}");
    }
}

fn assert_shown_clean(draft: &Value, key: &OperatorKey, clean: &dyn Fn(&str) -> bool) {
    let request = parse(draft).unwrap();
    assert!(clean(&preview(&request, key, NOW_MS, VALID_FOR).unwrap()));
    let signed = sign(&request, key, NOW_MS, VALID_FOR).unwrap();
    assert!(clean(&signed.artifact));
    let outcome = verify(signed.artifact.as_bytes(), &keys_of(key));
    assert!(clean(&inspect(&outcome, NOW_MS)));
}

#[test]
fn inspect_says_whether_anything_can_be_believed() {
    let outcome = verify(good().to_string().as_bytes(), &keys());
    let text = inspect(&outcome, NOW_MS);
    assert!(text.starts_with("signature:   good, by key shift-lead-2026 (active)\n"), "{text}");
    assert!(text.contains("\nopens:       10.20.4.7/32 tcp 502\n") && text.contains("not before 2026-11-22T08:00:00.000Z"), "{text}");
    assert!(!text.contains("past"));
    assert!(inspect(&outcome, NOW_MS + 3_600_000).contains("(past: it cannot be registered any more)"));
    let mut tampered = good();
    tampered["artifact"]["signed_payload_hash"] = json!("00");
    let text = inspect(&verify(tampered.to_string().as_bytes(), &keys()), NOW_MS);
    assert!(text.starts_with("signature:   NOT VERIFIED, PAYLOAD_HASH_MISMATCH") && !text.contains("10.20.4.7"), "{text}");
}

#[test]
fn encrypted_key_opens_only_with_its_passphrase() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("operator.pem");
    let key = key();
    key.write_new(&path, Some("correct horse battery")).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    let load = |passphrase: Option<&str>| OperatorKey::load(&path, || passphrase.map(|text| Zeroizing::new(text.to_owned())));
    let loaded = load(Some("correct horse battery")).unwrap();
    assert_eq!((loaded.id(), loaded.decider(), loaded.public()), (KEY, DECIDER, key.public()));
    assert!(matches!(load(Some("correct horse batter")), Err(KeyError::WrongPassphrase { .. })));
    assert!(matches!(load(None), Err(KeyError::PassphraseNeeded { .. })));
}

#[test]
fn plain_key_loads_and_no_key_is_overwritten_or_read_when_others_can() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("operator.pem");
    let key = key();
    key.write_new(&path, None).unwrap();
    assert_eq!(OperatorKey::load(&path, || None).unwrap().public(), key.public());
    assert!(matches!(key.write_new(&path, None), Err(KeyError::File { .. })));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = OperatorKey::load(&path, || None).err().unwrap();
    assert!(error.to_string().ends_with("others may read this private key (mode 640); run chmod 600 on it"), "{error}");
    assert!(matches!(key.write_new(&folder.path().join("b"), Some("short")), Err(KeyError::WeakPassphrase)));
    std::fs::write(folder.path().join("c"), "key-id: a\n").unwrap();
    std::fs::set_permissions(folder.path().join("c"), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(OperatorKey::load(&folder.path().join("c"), || None), Err(KeyError::NotAKey { .. })));
}

#[test]
fn ids_and_deciders_that_could_mislead_are_refused() {
    for id in ["", "a b", "a\nb", "k\u{202e}"] {
        assert!(matches!(OperatorKey::generate(id, DECIDER), Err(KeyError::Id(_))), "{id}");
    }
    for decider in ["", "shift-lead", "user:", "user:a b", "user:a\u{202e}", "role/founder"] {
        assert!(matches!(OperatorKey::generate(KEY, decider), Err(KeyError::Decider(_))), "{decider}");
    }
}

fn judge_revocation(artifact: &str, keys: &Keyring, change: impl FnOnce(&mut AdmitContext<'_>)) -> Result<String, &'static str> {
    let evidence = verify(artifact.as_bytes(), keys).unwrap();
    with_context(|mut context| {
        change(&mut context);
        admit_revocation(&evidence, &context).map(|revocation| revocation.receipt_id).map_err(|refusal| refusal.code())
    })
}

#[test]
fn signed_revocation_ends_its_receipt_and_never_expires() {
    let key = key();
    let receipt = sign(&parse(&draft()).unwrap(), &key, NOW_MS, VALID_FOR).unwrap();
    let revocation = revoke(&receipt.id, "acme-water", "wrong PLC", &key, NOW_MS).unwrap();
    assert!(revocation.id.starts_with("ppa_rev_"));
    let keys = keys_of(&key);
    assert_eq!(judge_revocation(&revocation.artifact, &keys, |_| {}), Ok(receipt.id.clone()));
    assert_eq!(judge_revocation(&revocation.artifact, &keys, |context| context.now_ms += 1_000_000_000), Ok(receipt.id.clone()));
    // It is a receipt too, and as one it opens nothing.
    let outcome = with_context(|context| check(revocation.artifact.as_bytes(), &keys, &context));
    assert_eq!(code(outcome), "not_approved");

    let evidence = verify(revocation.artifact.as_bytes(), &keys).unwrap();
    assert_eq!(revoked_id(&evidence), Some(receipt.id));
    let receipt = with_context(|context| check(receipt.artifact.as_bytes(), &keys, &context)).unwrap();
    let revoked = with_context(|context| admit_revocation(&evidence, &context)).unwrap();
    assert!(revoked.ends(&receipt));
    assert_eq!(revoked.reason, "wrong PLC");
}

#[test]
fn revocation_counts_only_from_who_may_decide_here_and_for_their_own_receipts() {
    let key = key();
    let keys = keys_of(&key);
    let revocation = revoke("ppa_x", "acme-water", "", &key, NOW_MS).unwrap();
    assert_eq!(judge_revocation(&revocation.artifact, &keys, |context| context.authorities = &[]), Err("no_authority"));
    assert_eq!(judge_revocation(&revocation.artifact, &keys, |context| context.tenant = "other"), Err("wrong_tenant"));
    let foreign = revoke("ppa_x", "other-co", "", &key, NOW_MS).unwrap();
    assert_eq!(judge_revocation(&foreign.artifact, &keys, |_| {}), Err("wrong_tenant"));

    let receipt = sign(&parse(&draft()).unwrap(), &key, NOW_MS, VALID_FOR).unwrap();
    assert_eq!(judge_revocation(&receipt.artifact, &keys, |_| {}), Err("not_a_revocation"));
    let receipt = with_context(|context| check(receipt.artifact.as_bytes(), &keys, &context)).unwrap();
    let other = OperatorKey::generate("other-2026", "user:other").unwrap();
    let theirs = revoke(receipt.id(), "acme-water", "", &other, NOW_MS).unwrap();
    let evidence = verify(theirs.artifact.as_bytes(), &keys_of(&other)).unwrap();
    let authorities = [Authority { key_id: "other-2026".into(), decider: "user:other".into(), ..authority() }];
    let theirs = with_context(|context| admit_revocation(&evidence, &AdmitContext { authorities: &authorities, ..context })).unwrap();
    assert!(!theirs.ends(&receipt), "an operator cannot end another's receipt");
}
