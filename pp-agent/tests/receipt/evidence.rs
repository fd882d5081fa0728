//! What does not verify is refused by the check that the specification puts first, and grants nothing.
use crate::support::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pp_agent::keyring::Keyring;
use pp_agent::receipt::{MAX_ARTIFACT_BYTES, VerifyError, verify};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn error_of(artifact: &Value) -> VerifyError {
    verify(artifact.to_string().as_bytes(), &keys()).unwrap_err()
}

fn assert_error(artifact: &Value, code: &str, exit: u8, message: &str) {
    let error = error_of(artifact);
    assert_eq!((error.code(), error.exit_code(), error.to_string().as_str()), (code, exit, message));
}

#[test]
fn good_receipt_verifies_under_an_active_and_a_rotated_key() {
    let artifact = good().to_string();
    for status in ["active", "rotated"] {
        assert!(verify(artifact.as_bytes(), &keys_with_status(status)).is_ok());
    }
}

#[test]
fn malformed_envelopes_exit_3() {
    for (file, message) in
        [(json!({}), "no artifact object"), (json!([]), "no artifact object"), (json!({"artifact": 1}), "no artifact object")]
    {
        assert_error(&file, "MALFORMED", 3, message);
    }
    for member in ["receipt_id", "key_id", "alg", "signed_payload_hash", "signature_b64", "payload_bytes_b64"] {
        for spoiled in [Value::Null, json!(5)] {
            let mut artifact = good();
            artifact["artifact"][member] = spoiled;
            assert_error(&artifact, "MALFORMED", 3, &format!("artifact.{member} missing"));
        }
    }
    let mut artifact = good();
    artifact["artifact"]["alg"] = json!("rsa\n");
    assert_error(&artifact, "MALFORMED", 3, "unsupported alg rsa\\n");
}

#[test]
fn sloppy_base64_is_malformed() {
    for member in ["payload_bytes_b64", "signature_b64"] {
        let whole = good()["artifact"][member].as_str().unwrap().to_owned();
        for spoiled in [format!("{whole}="), format!(" {whole}"), format!("{whole}\n"), whole.replace('=', ""), "!".into()] {
            if spoiled == whole {
                continue;
            }
            let mut artifact = good();
            artifact["artifact"][member] = json!(spoiled);
            assert_error(&artifact, "MALFORMED", 3, &format!("artifact.{member} is not base64"));
        }
    }
}

#[test]
fn signature_of_another_size_is_malformed() {
    let mut artifact = good();
    artifact["artifact"]["signature_b64"] = json!(STANDARD.encode([0; 63]));
    assert_error(&artifact, "MALFORMED", 3, "signature is not 64 bytes");
}

#[test]
fn payload_that_is_no_object_is_malformed() {
    let id = json!({"id": "x", "signatureKeyId": KEY});
    assert_error(&seal_bytes(b"{", &id), "MALFORMED", 3, "payload bytes are not JSON");
    assert_error(&seal_bytes(b"\xff", &id), "MALFORMED", 3, "payload bytes are not JSON");
    assert_error(&seal_bytes(b"[1]", &id), "MALFORMED", 3, "payload bytes are not a JSON object");
    let mut payload = payload(request());
    payload["canonicalization"] = json!(2);
    assert_error(&seal(&payload), "MALFORMED", 3, "canonicalization is not a string");
}

#[test]
fn unknown_foreign_and_revoked_keys_exit_2() {
    let artifact = good();
    let bytes = artifact.to_string();
    let outcome = |keys: &Keyring| verify(bytes.as_bytes(), keys).unwrap_err();
    let error = outcome(&Keyring::default());
    assert_eq!((error.code(), error.exit_code()), ("KEY_NOT_FOUND", 2));
    assert_eq!(error.to_string(), format!("key {KEY} is not in the key set"));
    let error = outcome(&keys_with_status("revoked"));
    assert_eq!((error.code(), error.exit_code()), ("KEY_REVOKED", 2));
    assert_eq!(error.to_string(), format!("key {KEY} is revoked"));
    let foreign = format!(r#"{{"keys":[{{"key_id":"{KEY}","alg":"p256","public_key_b64":"","status":"active"}}]}}"#);
    let error = outcome(&Keyring::parse(&foreign).unwrap());
    assert_eq!((error.code(), error.exit_code()), ("KEY_NOT_FOUND", 2));
    assert_eq!(error.to_string(), format!("key {KEY} is not ed25519"));
}

#[test]
fn signature_over_the_bytes_instead_of_the_digest_is_invalid() {
    use ed25519_dalek::Signer;
    let mut artifact = good();
    let bytes = canonical(&payload(request()));
    artifact["artifact"]["signature_b64"] = json!(STANDARD.encode(signing().sign(bytes.as_bytes()).to_bytes()));
    assert_error(&artifact, "SIGNATURE_INVALID", 1, "Ed25519 signature does not verify over the digest");
}

#[test]
fn genuine_signature_over_other_encodings_is_a_canonical_mismatch() {
    let good = payload(request());
    let text = canonical(&good);
    let with = |member: &str, value: Value| {
        let mut payload = good.clone();
        payload[member] = value;
        canonical(&payload)
    };
    let twice = text.replacen("\"status\":\"APPROVED\"", "\"status\":\"DENIED\",\"status\":\"APPROVED\"", 1);
    for bytes in [format!("{text} "), text.replacen(':', ": ", 1), with("runId", Value::Null), with("extra", json!("x")), twice] {
        let artifact = seal_bytes(bytes.as_bytes(), &good);
        assert_error(&artifact, "CANONICAL_MISMATCH", 4, "payload bytes are not the canonical encoding of the payload");
    }
}

#[test]
fn other_canonicalizations_are_unsupported_and_never_read_as_this_one() {
    for name in ["jcs_v1", "jcs_v3", "jcs_v4", "JCS_V2", ""] {
        let mut payload = payload(request());
        payload["canonicalization"] = json!(name);
        let error = error_of(&seal(&payload));
        assert_eq!((error.code(), error.exit_code()), ("CANONICALIZATION_UNSUPPORTED", 8), "{name}");
    }
}

#[test]
fn first_failure_wins_in_the_order_of_the_specification() {
    let mut artifact = good();
    artifact["artifact"]["signature_b64"] = json!("!");
    artifact["artifact"]["key_id"] = json!("other");
    let hash = artifact["artifact"]["signed_payload_hash"].as_str().unwrap().to_uppercase();
    let true_hash = std::mem::replace(&mut artifact["artifact"]["signed_payload_hash"], json!(hash));
    assert_error(&artifact, "PAYLOAD_HASH_MISMATCH", 4, "sha256(payload_bytes) does not equal signed_payload_hash");
    artifact["artifact"]["signed_payload_hash"] = true_hash;
    assert_error(&artifact, "MALFORMED", 3, "artifact.key_id disagrees with the signed signatureKeyId");
    artifact["artifact"]["key_id"] = json!(KEY);
    assert_eq!(verify(artifact.to_string().as_bytes(), &Keyring::default()).unwrap_err().code(), "KEY_NOT_FOUND");
    assert_error(&artifact, "MALFORMED", 3, "artifact.signature_b64 is not base64");
}

#[test]
fn one_flipped_bit_in_the_payload_grants_nothing() {
    let artifact = good();
    let bytes = STANDARD.decode(artifact["artifact"]["payload_bytes_b64"].as_str().unwrap()).unwrap();
    for position in 0..bytes.len() {
        let mut spoiled = bytes.clone();
        spoiled[position] ^= 1 << (position % 8);
        let mut flipped = artifact.clone();
        flipped["artifact"]["payload_bytes_b64"] = json!(STANDARD.encode(&spoiled));
        assert_eq!(code(judge(&flipped)), "payload_hash_mismatch");
        // Also when the one who flipped it fixes the hash: nobody signed that.
        flipped["artifact"]["signed_payload_hash"] = json!(hex::encode(Sha256::digest(&spoiled)));
        assert!(judge(&flipped).is_err());
    }
}

#[test]
fn one_flipped_bit_in_hash_or_signature_grants_nothing() {
    let artifact = good();
    let signature = STANDARD.decode(artifact["artifact"]["signature_b64"].as_str().unwrap()).unwrap();
    for bit in (0..512).step_by(5) {
        let mut spoiled = signature.clone();
        spoiled[bit / 8] ^= 1 << (bit % 8);
        let mut flipped = artifact.clone();
        flipped["artifact"]["signature_b64"] = json!(STANDARD.encode(&spoiled));
        assert_eq!(code(judge(&flipped)), "signature_invalid");
    }
    let hash = artifact["artifact"]["signed_payload_hash"].as_str().unwrap().to_owned();
    for position in 0..hash.len() {
        let mut spoiled = hash.clone().into_bytes();
        spoiled[position] ^= 1;
        let mut flipped = artifact.clone();
        flipped["artifact"]["signed_payload_hash"] = json!(String::from_utf8(spoiled).unwrap());
        assert_eq!(code(judge(&flipped)), "payload_hash_mismatch");
    }
}

#[test]
fn one_flipped_bit_in_key_id_or_an_unsigned_copy_grants_nothing() {
    for (member, refusal) in [
        ("key_id", "malformed"),
        ("receipt_id", "ids_disagree"),
        ("status", "copies_disagree"),
        ("canonicalization", "copies_disagree"),
        ("issued_at", "copies_disagree"),
        ("expires_at", "copies_disagree"),
    ] {
        let whole = good()["artifact"][member].as_str().unwrap().to_owned();
        let untouched = good();
        for position in 0..whole.len() {
            let mut spoiled = whole.clone().into_bytes();
            spoiled[position] ^= 1;
            let mut artifact = untouched.clone();
            artifact["artifact"][member] = json!(String::from_utf8(spoiled).unwrap());
            assert_eq!(code(judge(&artifact)), refusal, "{member}");
        }
    }
    let mut artifact = good();
    artifact["artifact"]["receipt_version"] = json!(3);
    assert_eq!(code(judge(&artifact)), "copies_disagree");
}

#[test]
fn every_truncation_of_a_good_artifact_is_refused() {
    let text = good().to_string();
    for length in 0..text.len() {
        let error = verify(&text.as_bytes()[..length], &keys()).unwrap_err();
        assert_eq!(error.code(), "MALFORMED");
    }
}

#[test]
fn duplicate_keys_trailing_data_and_bad_text_are_malformed() {
    let text = good().to_string();
    let deep = format!("{{\"artifact\":{}", "[".repeat(100_000));
    for spoiled in [
        format!("{text}{text}"),
        format!("{text} x"),
        format!("\u{feff}{text}"),
        text.replacen("\"alg\"", "\"status\":\"DENIED\",\"alg\"", 1),
        text.replacen("{\"artifact\":", "{\"artifact\":{},\"artifact\":", 1),
        deep,
        String::new(),
    ] {
        assert_eq!(verify(spoiled.as_bytes(), &keys()).unwrap_err().code(), "MALFORMED");
    }
    let mut bytes = text.into_bytes();
    bytes[20] = 0xff;
    assert_eq!(verify(&bytes, &keys()).unwrap_err().code(), "MALFORMED");
}

#[test]
fn huge_artifact_is_refused_unread() {
    let mut artifact = good();
    artifact["padding"] = json!("x".repeat(MAX_ARTIFACT_BYTES));
    assert_error(&artifact, "MALFORMED", 3, "artifact is larger than 262144 bytes");
}
