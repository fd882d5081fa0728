//! The artifact envelope: what is in the file, before anything in it is verified.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::verify::{Malformed, VerifyError};
use crate::json;

/// The largest artifact that is read, in bytes. A receipt with 64 targets and 256 hosts is much smaller.
pub const MAX_ARTIFACT_BYTES: usize = 256 * 1024;

/// The parts of the envelope. Only `payload` and `signature` can be authenticated; the copies cannot.
#[derive(Debug, Clone)]
pub(crate) struct Artifact {
    pub(crate) receipt_id: String,
    pub(crate) key_id: String,
    pub(crate) signed_payload_hash: String,
    pub(crate) signature_b64: String,
    pub(crate) payload: Vec<u8>,
    /// The whole `artifact` object, for comparing its unsigned copies with what was signed.
    pub(crate) members: Map<String, Value>,
}

impl Artifact {
    /// Reads an envelope: strict JSON, the six required strings, `alg`, strict base64 of the payload.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, VerifyError> {
        if bytes.len() > MAX_ARTIFACT_BYTES {
            return Err(Malformed::TooLarge.into());
        }
        let file: Value = json::parse_strict(bytes).map_err(|error| Malformed::NotJson(error.to_string()))?;
        let Some(Value::Object(members)) = file.get("artifact") else { return Err(Malformed::NoArtifact.into()) };
        let text = |name: &'static str| match members.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            _ => Err(VerifyError::from(Malformed::Missing(name))),
        };
        let receipt_id = text("receipt_id")?;
        let key_id = text("key_id")?;
        let alg = text("alg")?;
        let signed_payload_hash = text("signed_payload_hash")?;
        let signature_b64 = text("signature_b64")?;
        let payload_b64 = text("payload_bytes_b64")?;
        if alg != "ed25519" {
            return Err(Malformed::Alg(alg).into());
        }
        let payload = decode("payload_bytes_b64", &payload_b64)?;
        Ok(Self { receipt_id, key_id, signed_payload_hash, signature_b64, payload, members: members.clone() })
    }
}

/// Decodes padded standard base64 strictly. `name` is the member, for the message.
pub(crate) fn decode(name: &'static str, text: &str) -> Result<Vec<u8>, VerifyError> {
    STANDARD.decode(text).map_err(|_| Malformed::Base64(name).into())
}
