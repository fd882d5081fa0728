//! Makes a receipt: an operator's decision on a request, signed with the operator's own key.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use uuid::{NoContext, Timestamp, Uuid};

use super::key::OperatorKey;
use super::meaning::{plain_meaning, summary_line};
use super::request::{Request, RequestError};
use super::verify::CANONICALIZATION;
use super::{MAX_ARTIFACT_BYTES, instant};
use crate::json as strict;

/// A signed artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The receipt's id.
    pub id: String,
    /// The artifact: JSON text, ended by a line feed.
    pub artifact: String,
}

/// Why a receipt cannot be signed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SignError {
    /// No receipt can be made of the request.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The receipt could never be registered, or its dates would not be valid.
    #[error("receipt would be valid for no time; give --valid-for a length of at least 1 s that ends before the year 9999")]
    ValidFor,
    /// The artifact would be larger than any host reads.
    #[error("receipt would be larger than {MAX_ARTIFACT_BYTES} bytes; ask for fewer targets or hosts")]
    TooLarge,
    /// The payload has no canonical form.
    #[error("receipt payload has no canonical form")]
    NotCanonical,
}

/// What the operator is shown before signing: the plain meaning, computed from the request.
///
/// # Errors
/// [`SignError`] if no receipt can be made of the request.
pub fn preview(request: &Request, key: &OperatorKey, now_ms: i64, valid_for: Duration) -> Result<String, SignError> {
    let terms = request.terms().map_err(RequestError::from)?;
    Ok(plain_meaning(&terms, key.decider(), expires_at(now_ms, valid_for)?))
}

/// Signs a request at `now_ms` (wall clock, ms since 1970); it can be registered for `valid_for`.
///
/// # Errors
/// [`SignError`] if no receipt can be made of the request.
pub fn sign(request: &Request, key: &OperatorKey, now_ms: i64, valid_for: Duration) -> Result<Signed, SignError> {
    let terms = request.terms().map_err(RequestError::from)?;
    let mut decision = Decision {
        id: new_id("ppa_", now_ms),
        status: "APPROVED",
        resolution: "allow_once",
        reason: "OPERATOR_APPROVED",
        tenant: &request.tenant,
        agent: &request.agent,
        run: request.agent_run.as_deref(),
        summary: summary_line(&terms),
        request: request.to_request_object(),
        created_at_ms: now_ms,
        expires_at_ms: expires_at(now_ms, valid_for)?,
    };
    decision.summary.truncate(decision.summary.floor_char_boundary(1000));
    seal(decision, key)
}

fn expires_at(now_ms: i64, valid_for: Duration) -> Result<i64, SignError> {
    let length_ms = i64::try_from(valid_for.as_millis()).ok().filter(|ms| *ms >= 1000).ok_or(SignError::ValidFor)?;
    let expires_at_ms = now_ms.checked_add(length_ms).ok_or(SignError::ValidFor)?;
    match instant::parse(&instant::format(expires_at_ms)) {
        Some(same) if same == expires_at_ms => Ok(expires_at_ms),
        _ => Err(SignError::ValidFor),
    }
}

/// An id that sorts by time and is never used twice.
pub(super) fn new_id(prefix: &str, now_ms: i64) -> String {
    let now_ms = now_ms.unsigned_abs();
    let nanos = u32::try_from(now_ms % 1000).unwrap_or(0) * 1_000_000;
    let uuid = Uuid::new_v7(Timestamp::from_unix(NoContext, now_ms / 1000, nanos));
    format!("{prefix}{uuid}")
}

/// The contents of a decision, before it is signed.
pub(super) struct Decision<'a> {
    pub(super) id: String,
    pub(super) status: &'static str,
    pub(super) resolution: &'static str,
    pub(super) reason: &'static str,
    pub(super) tenant: &'a str,
    pub(super) agent: &'a str,
    pub(super) run: Option<&'a str>,
    pub(super) summary: String,
    pub(super) request: Map<String, Value>,
    pub(super) created_at_ms: i64,
    pub(super) expires_at_ms: i64,
}

/// Encodes and signs a decision; the envelope's copies are taken from what is signed.
pub(super) fn seal(decision: Decision<'_>, key: &OperatorKey) -> Result<Signed, SignError> {
    let input_hash = decision.request.get("hashes").and_then(|hashes| hashes.get("inputHash")).cloned();
    let request_json = strict::canonical(&Value::Object(decision.request)).ok_or(SignError::NotCanonical)?;
    let (created_at, expires_at) = (instant::format(decision.created_at_ms), instant::format(decision.expires_at_ms));
    let mut payload = json!({
        "id": decision.id,
        "companyId": decision.tenant,
        "idemKey": decision.id,
        "agentId": decision.agent,
        "requestJson": request_json,
        "inputHash": input_hash.ok_or(SignError::NotCanonical)?,
        "status": decision.status,
        "riskTier": "C_EXECUTE_WITH_APPROVAL",
        "reasonCodes": json!([decision.reason]).to_string(),
        "summary": decision.summary,
        "receiptVersion": 2,
        "canonicalization": CANONICALIZATION,
        "signatureAlg": "ed25519",
        "signatureKeyId": key.id(),
        "expiresAt": expires_at,
        "createdAt": created_at,
        "deciderId": key.decider(),
        "deciderDisplay": key.decider().trim_start_matches("user:"),
        "resolutionType": decision.resolution,
        "attributionConfidence": "credentialed",
        "scope": "production",
    });
    if let Some(run) = decision.run {
        payload["runId"] = json!(run);
    }
    let bytes = strict::canonical(&payload).ok_or(SignError::NotCanonical)?;
    let digest = Sha256::digest(&bytes);
    let signature = key.signing().sign(&digest);
    let artifact = json!({ "artifact": {
        "receipt_id": decision.id,
        "status": decision.status,
        "receipt_version": 2,
        "canonicalization": CANONICALIZATION,
        "key_id": key.id(),
        "alg": "ed25519",
        "signed_payload_hash": hex::encode(&digest[..]),
        "signature_b64": STANDARD.encode(signature.to_bytes()),
        "payload_bytes_b64": STANDARD.encode(&bytes),
        "issued_at": created_at,
        "expires_at": expires_at,
    }});
    let artifact = format!("{artifact:#}\n");
    if artifact.len() > MAX_ARTIFACT_BYTES {
        return Err(SignError::TooLarge);
    }
    Ok(Signed { id: decision.id, artifact })
}
