//! The public test vectors give the outcomes the specification's reference verifier gives.
use std::path::{Path, PathBuf};

use pp_agent::keyring::Keyring;
use pp_agent::receipt::{Evidence, VerifyError, verify};

/// 2026-09-01T14:00:00.000Z: before every vector of the second version expires.
const BEFORE_EXPIRY_MS: i64 = 1_788_271_200_000;

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/receipt-spec/test-vectors")
}

fn outcome(file: &str) -> Result<Evidence, VerifyError> {
    let keys = Keyring::load(&vectors().join("keys.json"), pp_agent::trusted::FileCheck::Anybody).unwrap();
    verify(&std::fs::read(vectors().join(file)).unwrap(), &keys)
}

#[test]
fn approved_and_denied_vectors_verify_with_the_reference_text() {
    for (file, text) in [
        (
            "approve-human-deploy-gate.json",
            "VERIFIED rcpt_dg_vec01humanapprove00000001\ndecision: APPROVED\ndecider: alice-example (user:usr_vec_alice_00000001)\npolicy: deploy-gate-v1\n",
        ),
        (
            "approve-policy-execute-lane.json",
            "VERIFIED cmvec02policyclear00000000001\ndecision: APPROVED\n\
             decider: Permission Protocol permission router (policy) (system/pp-permission-router)\npolicy: pol_v1_hardcoded\n",
        ),
        (
            "approve-human-execute-lane-refund.json",
            "VERIFIED cmvec05humanrefund00000000001\ndecision: APPROVED\ndecider: alice-example (user:usr_vec_alice_00000001)\npolicy: pol_v1_hardcoded\n",
        ),
        (
            "approve-human-execute-lane-create-pr.json",
            "VERIFIED cmvec06humancreatepr000000001\ndecision: APPROVED\ndecider: alice-example (user:usr_vec_alice_00000001)\npolicy: pol_v1_hardcoded\n",
        ),
        (
            "deny-kill-switch-execute-lane.json",
            "VERIFIED cmvec03killswitchdeny0000001\ndecision: DENIED\n\
             decider: Permission Protocol permission router (policy) (system/pp-permission-router)\npolicy: none\n",
        ),
    ] {
        let evidence = outcome(file).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(evidence.verified_text(BEFORE_EXPIRY_MS), text, "{file}");
        let late = evidence.verified_text(BEFORE_EXPIRY_MS + 86_400_000);
        assert!(late.lines().nth(1).unwrap().ends_with(" (expired for redemption; signature still valid)"), "{file}");
    }
}

#[test]
fn tampered_vector_has_a_good_hash_and_a_bad_signature() {
    let error = outcome("tampered-approve-human-deploy-gate.json").unwrap_err();
    assert_eq!((error.code(), error.exit_code()), ("SIGNATURE_INVALID", 1));
    assert_eq!(error.to_string(), "Ed25519 signature does not verify over the digest");
}

#[test]
fn third_version_is_genuine_and_not_implemented() {
    for file in [
        "v3/approve-human-execute-lane-refund.json",
        "v3/no-binding-approve-human-execute-lane-refund.json",
        "v3/outside-allowlist-approve-human-execute-lane-refund.json",
    ] {
        let error = outcome(file).unwrap_err();
        assert_eq!((error.code(), error.exit_code()), ("CANONICALIZATION_UNSUPPORTED", 8), "{file}");
    }
}

#[test]
fn every_vector_here_has_its_outcome_above() {
    let count = |folder: PathBuf| std::fs::read_dir(folder).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_file()).count();
    assert_eq!(count(vectors()), 7, "six vectors of the second version and the key set");
    assert_eq!(count(vectors().join("v3")), 3);
}
