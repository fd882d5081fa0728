//! Verifies the signature of an artifact: the checks of the specification, in its order and with its names.
//!
//! A verified artifact is evidence, not permission: a DENIED receipt verifies too. `conditions` decides what it opens.

use ed25519_dalek::Signature;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::artifact::{Artifact, MAX_ARTIFACT_BYTES, decode};
use super::instant;
use crate::escape::escape;
use crate::json;
use crate::keyring::{KeyStatus, Keyring};

/// The canonicalization this build implements.
pub const CANONICALIZATION: &str = "jcs_v2";

/// The members `jcs_v2` signs (specification, section 3). Any other member, or a null, is not canonical.
const JCS_V2: [&str; 24] = [
    "id",
    "companyId",
    "idemKey",
    "agentId",
    "runId",
    "requestJson",
    "inputHash",
    "status",
    "riskTier",
    "policyVersion",
    "reasonCodes",
    "summary",
    "receiptVersion",
    "canonicalization",
    "signatureAlg",
    "signatureKeyId",
    "expiresAt",
    "createdAt",
    "deciderId",
    "deciderDisplay",
    "deciderAuthMethod",
    "resolutionType",
    "attributionConfidence",
    "scope",
];

/// A payload with a good signature by a key that is not revoked. Only [`verify`] makes one.
#[derive(Debug, Clone)]
pub struct Evidence {
    pub(super) artifact: Artifact,
    pub(super) payload: Map<String, Value>,
    key_status: KeyStatus,
}

/// Why an artifact does not verify. `Display` is the reference verifier's message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VerifyError {
    /// The file or the payload does not have the required form.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The payload was changed, or its stated hash was.
    #[error("sha256(payload_bytes) does not equal signed_payload_hash")]
    PayloadHashMismatch,
    /// No key of that id is trusted here.
    #[error("key {} is not in the key set", escape(.0))]
    KeyNotFound(String),
    /// The key is in the set and is of another algorithm.
    #[error("key {} is not ed25519", escape(.0))]
    KeyNotEd25519(String),
    /// The key is in the set and is revoked.
    #[error("key {} is revoked", escape(.0))]
    KeyRevoked(String),
    /// Another key signed, or the signature was changed.
    #[error("Ed25519 signature does not verify over the digest")]
    SignatureInvalid,
    /// A genuine signature over a form this build does not implement.
    #[error("canonicalization {} is not implemented; this build implements {CANONICALIZATION}", escape(.0))]
    CanonicalizationUnsupported(String),
    /// A genuine signature over bytes that are not the one encoding of what they say.
    #[error("payload bytes are not the canonical encoding of the payload")]
    CanonicalMismatch,
}

/// What is wrong with the form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Malformed {
    /// Larger than any receipt.
    #[error("artifact is larger than {MAX_ARTIFACT_BYTES} bytes")]
    TooLarge,
    /// Not UTF-8, not JSON, cut off, followed by more, or with a member named twice.
    #[error("artifact is not strict JSON: {}", escape(.0))]
    NotJson(String),
    /// No `artifact` object.
    #[error("no artifact object")]
    NoArtifact,
    /// A required member is absent or not a string.
    #[error("artifact.{0} missing")]
    Missing(&'static str),
    /// Another signature algorithm.
    #[error("unsupported alg {}", escape(.0))]
    Alg(String),
    /// Not standard padded base64.
    #[error("artifact.{0} is not base64")]
    Base64(&'static str),
    /// The payload is not JSON.
    #[error("payload bytes are not JSON")]
    PayloadNotJson,
    /// The payload is JSON of another kind.
    #[error("payload bytes are not a JSON object")]
    PayloadNotObject,
    /// The envelope names another key than the signed payload.
    #[error("artifact.key_id disagrees with the signed signatureKeyId")]
    KeyIdDisagrees,
    /// The signature has another size.
    #[error("signature is not 64 bytes")]
    SignatureSize,
    /// `canonicalization` is absent or not a string.
    #[error("canonicalization is not a string")]
    Canonicalization,
}

/// Checks an artifact against the trusted keys.
///
/// # Errors
/// The first check that fails, in the order of the specification's sections 6.2 and 6.7.
pub fn verify(artifact_bytes: &[u8], keys: &Keyring) -> Result<Evidence, VerifyError> {
    let artifact = Artifact::parse(artifact_bytes)?;
    let digest = Sha256::digest(&artifact.payload);
    if hex::encode(&digest[..]) != artifact.signed_payload_hash {
        return Err(VerifyError::PayloadHashMismatch);
    }

    // A member named twice keeps its last value here; the canonical comparison below refuses such bytes.
    let payload: Value = serde_json::from_slice(&artifact.payload).map_err(|_| Malformed::PayloadNotJson)?;
    let Value::Object(payload) = payload else { return Err(Malformed::PayloadNotObject.into()) };
    if payload.get("signatureKeyId") != Some(&Value::String(artifact.key_id.clone())) {
        return Err(Malformed::KeyIdDisagrees.into());
    }

    let key = keys.find(&artifact.key_id).ok_or_else(|| VerifyError::KeyNotFound(artifact.key_id.clone()))?;
    let verifying = key.verifying().ok_or_else(|| VerifyError::KeyNotEd25519(artifact.key_id.clone()))?;
    if key.status() == KeyStatus::Revoked {
        return Err(VerifyError::KeyRevoked(artifact.key_id));
    }

    let signature = decode("signature_b64", &artifact.signature_b64)?;
    let signature = Signature::from_slice(&signature).map_err(|_| Malformed::SignatureSize)?;
    verifying.verify_strict(&digest, &signature).map_err(|_| VerifyError::SignatureInvalid)?;

    match payload.get("canonicalization") {
        Some(Value::String(name)) if name == CANONICALIZATION => {}
        Some(Value::String(name)) => return Err(VerifyError::CanonicalizationUnsupported(name.clone())),
        _ => return Err(Malformed::Canonicalization.into()),
    }
    let listed = |(name, value): &(&String, &Value)| JCS_V2.contains(&name.as_str()) && !value.is_null();
    let signed: Map<String, Value> = payload.iter().filter(listed).map(|(name, value)| (name.clone(), value.clone())).collect();
    let canonical = json::canonical(&Value::Object(signed));
    if canonical.as_deref().map(str::as_bytes) != Some(artifact.payload.as_slice()) {
        return Err(VerifyError::CanonicalMismatch);
    }
    Ok(Evidence { key_status: key.status(), artifact, payload })
}

impl VerifyError {
    /// The specification's error name.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "MALFORMED",
            Self::PayloadHashMismatch => "PAYLOAD_HASH_MISMATCH",
            Self::KeyNotFound(_) | Self::KeyNotEd25519(_) => "KEY_NOT_FOUND",
            Self::KeyRevoked(_) => "KEY_REVOKED",
            Self::SignatureInvalid => "SIGNATURE_INVALID",
            Self::CanonicalizationUnsupported(_) => "CANONICALIZATION_UNSUPPORTED",
            Self::CanonicalMismatch => "CANONICAL_MISMATCH",
        }
    }

    /// The reference verifier's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::SignatureInvalid => 1,
            Self::KeyNotFound(_) | Self::KeyNotEd25519(_) | Self::KeyRevoked(_) => 2,
            Self::Malformed(_) => 3,
            Self::PayloadHashMismatch | Self::CanonicalMismatch => 4,
            Self::CanonicalizationUnsupported(_) => 8,
        }
    }
}

impl Evidence {
    /// The signed `id`, or an empty text when the payload has none.
    #[must_use]
    pub fn id(&self) -> &str {
        self.text("id").unwrap_or_default()
    }

    /// The id of the key that signed.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.artifact.key_id
    }

    /// Whether that key is active, or only verifies what it signed before.
    #[must_use]
    pub fn key_status(&self) -> KeyStatus {
        self.key_status
    }

    /// A signed member that is a string.
    #[must_use]
    pub fn text(&self, member: &str) -> Option<&str> {
        self.payload.get(member).and_then(Value::as_str)
    }

    /// What `receipt verify` prints on success: the reference verifier's lines, each ended by a line feed, values escaped.
    ///
    /// `now_ms` (wall clock, ms since 1970) only decides whether the expiry is mentioned.
    #[must_use]
    pub fn verified_text(&self, now_ms: i64) -> String {
        let expired = self.text("expiresAt").and_then(instant::parse).is_some_and(|expires_ms| expires_ms < now_ms);
        let note = if expired { " (expired for redemption; signature still valid)" } else { "" };
        let decider = self.shown("deciderId");
        let display = self.shown("deciderDisplay").or_else(|| decider.clone());
        format!(
            "VERIFIED {}\ndecision: {}{note}\ndecider: {} ({})\npolicy: {}\n",
            self.shown("id").as_deref().unwrap_or("undefined"),
            self.shown("status").as_deref().unwrap_or("undefined"),
            display.as_deref().unwrap_or("null"),
            decider.as_deref().unwrap_or("undefined"),
            self.shown("policyVersion").as_deref().unwrap_or("none"),
        )
    }

    fn shown(&self, member: &str) -> Option<String> {
        match self.payload.get(member)? {
            Value::String(text) => Some(escape(text)),
            other => Some(escape(&other.to_string())),
        }
    }
}
