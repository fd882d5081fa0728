//! One good receipt and the tools to spoil it, for the other files.

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer, SigningKey};
use ipnet::IpNet;
use pp_agent::keyring::Keyring;
use pp_agent::receipt::conditions::check;
use pp_agent::receipt::terms::{PortRange, Transport};
use pp_agent::receipt::{AdmitContext, Authority, Receipt, Refusal, Surface, Touched};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// 2026-11-22T08:00:00.000Z, the time on every clock of these tests.
pub(crate) const NOW_MS: i64 = 1_795_334_400_000;
pub(crate) const KEY: &str = "shift-lead-2026";
pub(crate) const DECIDER: &str = "user:shift-lead@acme.example";

pub(crate) fn signing() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

pub(crate) fn key_entry(id: &str, status: &str) -> String {
    let public = STANDARD.encode(signing().verifying_key().as_bytes());
    format!(r#"{{"key_id":"{id}","alg":"ed25519","public_key_b64":"{public}","status":"{status}"}}"#)
}

pub(crate) fn keys() -> Keyring {
    static KEYS: LazyLock<Keyring> = LazyLock::new(|| {
        let entries = [KEY, "nobody", "pp-demo-k1"].map(|id| key_entry(id, "active"));
        Keyring::parse(&format!(r#"{{"keys":[{}]}}"#, entries.join(","))).unwrap()
    });
    KEYS.clone()
}

pub(crate) fn keys_with_status(status: &str) -> Keyring {
    Keyring::parse(&format!(r#"{{"keys":[{}]}}"#, key_entry(KEY, status))).unwrap()
}

/// The request of the good receipt, without its hash.
pub(crate) fn request() -> Value {
    json!({
        "action": {"tool": "network", "operation": "connect", "parameters": {
            "targets": [{"address": "10.20.4.7/32", "transport": "tcp", "ports": ["502"]}],
            "credentialScope": {"kind": "accounts", "accounts": ["svc-historian"], "maxAttempts": 3},
            "users": ["svc-build"], "hosts": ["eng-ws-12"], "accessSeconds": 3600, "maxConnections": 20,
            "notBefore": "2026-11-22T08:00:00.000Z"}},
        "actor": {"agentId": "claude-code"},
        "context": {"environment": "production", "reversibility": "IRREVERSIBLE"},
        "intent": {"category": "ot_access", "name": "network:connect", "summary": "read tank levels, PLC 7 (CHG-1042)"},
        "tenantId": "acme-water"
    })
}

pub(crate) fn canonical(value: &Value) -> String {
    serde_json_canonicalizer::to_string(value).unwrap()
}

pub(crate) fn hashed(mut request: Value) -> Value {
    request.as_object_mut().unwrap().remove("hashes");
    let hash = format!("sha256:{}", hex::encode(Sha256::digest(canonical(&request))));
    request["hashes"] = json!({ "inputHash": hash });
    request
}

/// The payload of a receipt for `request` (whose hash is filled in).
pub(crate) fn payload(request: Value) -> Value {
    let request = hashed(request);
    json!({
        "id": "ppa_0199-test", "companyId": "acme-water", "idemKey": "ppa_0199-test", "agentId": "claude-code",
        "requestJson": canonical(&request), "inputHash": request["hashes"]["inputHash"], "status": "APPROVED",
        "riskTier": "C_EXECUTE_WITH_APPROVAL", "reasonCodes": "[\"OPERATOR_APPROVED\"]", "summary": "reads PLC 7",
        "receiptVersion": 2, "canonicalization": "jcs_v2", "signatureAlg": "ed25519", "signatureKeyId": KEY,
        "createdAt": "2026-11-22T07:55:00.000Z", "expiresAt": "2026-11-22T09:00:00.000Z", "deciderId": DECIDER,
        "deciderDisplay": "shift-lead@acme.example", "resolutionType": "allow_once", "attributionConfidence": "credentialed",
        "scope": "production"
    })
}

/// Signs exactly these bytes; the envelope's copies are the payload's.
pub(crate) fn seal_bytes(bytes: &[u8], payload: &Value) -> Value {
    let digest = Sha256::digest(bytes);
    json!({ "artifact": {
        "receipt_id": payload["id"], "status": payload["status"], "receipt_version": payload["receiptVersion"],
        "canonicalization": payload["canonicalization"], "key_id": payload["signatureKeyId"], "alg": "ed25519",
        "signed_payload_hash": hex::encode(&digest[..]), "signature_b64": STANDARD.encode(signing().sign(&digest).to_bytes()),
        "payload_bytes_b64": STANDARD.encode(bytes), "issued_at": payload["createdAt"], "expires_at": payload["expiresAt"],
        "redeemed_at": null
    }})
}

pub(crate) fn seal(payload: &Value) -> Value {
    seal_bytes(canonical(payload).as_bytes(), payload)
}

pub(crate) fn good() -> Value {
    static GOOD: LazyLock<Value> = LazyLock::new(|| seal(&payload(request())));
    GOOD.clone()
}

pub(crate) fn authority() -> Authority {
    let names = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    Authority {
        key_id: KEY.into(),
        decider: DECIDER.into(),
        zones: names(&["plant-7"]),
        gateways: names(&["vnode-east"]),
        services: names(&["modbus"]),
        max_ttl: Duration::from_secs(8 * 3600),
    }
}

/// plant-7 is 10.20/16, plant-8 is 10.21/16, gateways vnode-east and vnode-west listen on 443 of 10.30.4.9 and 10.30.4.10,
/// modbus (502) and dnp3 (20000) are services.
pub(crate) struct Plant;

impl Surface for Plant {
    fn touches(&self, network: IpNet, _transport: Transport, ports: &[PortRange]) -> Touched {
        let overlaps = |text: &str| {
            let place: IpNet = text.parse().unwrap();
            place.contains(&network) || network.contains(&place)
        };
        let inside = |text: &str| text.parse::<IpNet>().unwrap().contains(&network);
        let has = |port: u16| ports.iter().any(|range| (range.first..=range.last).contains(&port));
        let only = |port: u16| ports.iter().all(|range| *range == PortRange { first: port, last: port });
        let named = |pairs: &[(bool, &str)]| pairs.iter().filter(|(yes, _)| *yes).map(|(_, name)| (*name).to_owned()).collect::<Vec<_>>();
        let in_zone = inside("10.20.0.0/16") || inside("10.21.0.0/16");
        let gateways =
            named(&[(overlaps("10.30.4.9/32") && has(443), "vnode-east"), (overlaps("10.30.4.10/32") && has(443), "vnode-west")]);
        Touched {
            zones: named(&[(overlaps("10.20.0.0/16"), "plant-7"), (overlaps("10.21.0.0/16"), "plant-8")]),
            services_outside: if in_zone { Vec::new() } else { named(&[(has(502), "modbus"), (has(20000), "dnp3")]) },
            unprotected_part: !(in_zone || only(502) || only(20000) || (!gateways.is_empty() && only(443) && network.prefix_len() == 32)),
            gateways,
        }
    }
}

pub(crate) fn with_context<T>(run: impl FnOnce(AdmitContext<'_>) -> T) -> T {
    let authorities = [authority()];
    run(AdmitContext {
        tenant: "acme-water",
        host: "eng-ws-12",
        authorities: &authorities,
        any_user: false,
        now_ms: NOW_MS,
        surface: &Plant,
    })
}

/// Verifies and judges an artifact on the host of these tests.
pub(crate) fn judge(artifact: &Value) -> Result<Receipt, Refusal> {
    judge_bytes(artifact.to_string().as_bytes())
}

pub(crate) fn judge_bytes(artifact: &[u8]) -> Result<Receipt, Refusal> {
    with_context(|context| check(artifact, &keys(), &context))
}

pub(crate) fn code(outcome: Result<Receipt, Refusal>) -> &'static str {
    match outcome {
        Ok(_) => "admitted",
        Err(refusal) => refusal.code(),
    }
}
