//! Receipts made by hand: an implementation of the signed artifact that shares no code with the one under test, so that the suite can also
//! sign what a good signer never would.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::policy::{AGENT, HOST, TENANT};

/// A person with a key.
#[derive(Clone)]
pub struct Operator {
    /// The key's id.
    pub key_id: String,
    /// Whom the key speaks for.
    pub decider: String,
    key: SigningKey,
}

impl Operator {
    /// An operator with a fresh key of this id.
    #[must_use]
    pub fn new(key_id: &str, decider: &str) -> Self {
        let mut seed = [0_u8; 32];
        seed[..16].copy_from_slice(Uuid::new_v4().as_bytes());
        seed[16..].copy_from_slice(Uuid::new_v4().as_bytes());
        Self { key_id: key_id.to_owned(), decider: decider.to_owned(), key: SigningKey::from_bytes(&seed) }
    }

    /// The key's public half in a key set, with that status.
    #[must_use]
    pub fn public(&self, status: &str) -> Value {
        let revoked = (status == "revoked").then(|| stamp(Duration::ZERO));
        json!({"key_id": self.key_id, "alg": "ed25519", "public_key_b64": STANDARD.encode(self.key.verifying_key().as_bytes()),
            "status": status, "created_at": "2026-01-01T00:00:00.000Z", "revoked_at": revoked})
    }
}

/// A key set with these keys and their statuses.
#[must_use]
pub fn key_set(keys: &[(&Operator, &str)]) -> Value {
    json!({"issuer": "acme-water", "keys": keys.iter().map(|(operator, status)| operator.public(status)).collect::<Vec<_>>()})
}

/// A moment that far from now, as receipts write it.
#[must_use]
pub fn stamp(ahead: Duration) -> String {
    format!("{:.3}", Timestamp::now().checked_add(ahead).unwrap_or(Timestamp::MAX))
}

/// A moment that long ago, as receipts write it.
#[must_use]
pub fn stamp_ago(behind: Duration) -> String {
    format!("{:.3}", Timestamp::now().checked_sub(behind).unwrap_or(Timestamp::MIN))
}

/// A receipt before it is signed: the request, and what the payload says beside it.
#[derive(Clone, Debug)]
pub struct Draft {
    request: Value,
    payload: Map<String, Value>,
}

impl Draft {
    /// A receipt that would open this one address and port to the tests' agent, run by root, for an hour.
    #[must_use]
    pub fn opening(address: &str, transport: &str, port: u16) -> Self {
        let parameters = json!({
            "targets": [{"address": address, "transport": transport, "ports": [port.to_string()]}],
            "credentialScope": {"kind": "none"}, "users": ["root"], "hosts": [HOST], "accessSeconds": 3600,
        });
        let request = json!({
            "action": {"tool": "network", "operation": "connect", "parameters": parameters},
            "actor": {"agentId": AGENT},
            "context": {"environment": "production", "reversibility": "IRREVERSIBLE"},
            "intent": {"category": "ot_access", "name": "network:connect", "summary": "read tank levels (invented, for a test)"},
            "tenantId": TENANT,
        });
        Self { request, payload: Map::new() }
    }

    /// The same with this parameter.
    #[must_use]
    pub fn parameter(mut self, name: &str, value: Value) -> Self {
        self.request["action"]["parameters"][name] = value;
        self
    }

    /// The same without this parameter.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        if let Some(parameters) = self.request["action"]["parameters"].as_object_mut() {
            let _old = parameters.remove(name);
        }
        self
    }

    /// The same with this member of the request, by JSON pointer; the member must exist.
    #[must_use]
    pub fn request(mut self, pointer: &str, value: Value) -> Self {
        match self.request.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => self.request[pointer.trim_start_matches('/')] = value,
        }
        self
    }

    /// The same for sessions of this agent.
    #[must_use]
    pub fn agent(self, agent: &str) -> Self {
        self.request("/actor/agentId", json!(agent))
    }

    /// The same with this member of the payload; null leaves it out.
    #[must_use]
    pub fn payload(mut self, name: &str, value: Value) -> Self {
        let _old = self.payload.insert(name.to_owned(), value);
        self
    }

    /// Signs it: the artifact as a file would hold it.
    ///
    /// # Panics
    /// The request has no canonical form, which no test makes.
    #[must_use]
    pub fn sign(&self, operator: &Operator) -> Value {
        let canonical = |value: &Value| serde_json_canonicalizer::to_string(value).expect("canonical form");
        let mut request = self.request.clone();
        let input_hash = format!("sha256:{}", hex::encode(Sha256::digest(canonical(&request))));
        request["hashes"] = json!({"inputHash": input_hash});
        let id = format!("ppa_{}", Uuid::now_v7());
        let mut payload = json!({
            "id": id, "companyId": TENANT, "idemKey": id, "agentId": request["actor"]["agentId"], "requestJson": canonical(&request),
            "inputHash": input_hash, "status": "APPROVED", "riskTier": "C_EXECUTE_WITH_APPROVAL", "reasonCodes": "[\"OPERATOR_APPROVED\"]",
            "summary": "opens one target (made for a test)", "receiptVersion": 2, "canonicalization": "jcs_v2", "signatureAlg": "ed25519",
            "signatureKeyId": operator.key_id, "expiresAt": stamp(Duration::from_secs(3600)), "createdAt": stamp(Duration::ZERO),
            "deciderId": operator.decider, "deciderDisplay": operator.decider.trim_start_matches("user:"), "resolutionType": "allow_once",
            "attributionConfidence": "credentialed", "scope": "production",
        });
        for (name, value) in &self.payload {
            payload[name] = value.clone();
        }
        if let Some(members) = payload.as_object_mut() {
            members.retain(|_, value| !value.is_null());
        }
        seal(&payload, operator)
    }
}

/// Signs a payload and puts it in its envelope.
///
/// # Panics
/// The payload has no canonical form, which no test makes.
#[must_use]
pub fn seal(payload: &Value, operator: &Operator) -> Value {
    let bytes = serde_json_canonicalizer::to_vec(payload).expect("canonical form");
    let digest = Sha256::digest(&bytes);
    json!({"artifact": {
        "receipt_id": payload["id"], "key_id": operator.key_id, "alg": "ed25519", "signed_payload_hash": hex::encode(&digest[..]),
        "signature_b64": STANDARD.encode(operator.key.sign(&digest).to_bytes()), "payload_bytes_b64": STANDARD.encode(&bytes),
        "status": payload["status"], "receipt_version": payload["receiptVersion"], "canonicalization": payload["canonicalization"],
        "issued_at": payload["createdAt"], "expires_at": payload["expiresAt"],
    }})
}

/// The id in an artifact.
#[must_use]
pub fn id(artifact: &Value) -> String {
    artifact["artifact"]["receipt_id"].as_str().unwrap_or_default().to_owned()
}

/// The artifact with one bit of a base64 member flipped.
///
/// # Panics
/// The member is not base64.
#[must_use]
pub fn flip_bit(artifact: &Value, member: &str) -> Value {
    let mut copy = artifact.clone();
    let mut bytes = STANDARD.decode(copy["artifact"][member].as_str().unwrap_or_default()).expect("base64");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    copy["artifact"][member] = json!(STANDARD.encode(bytes));
    copy
}
