//! Revokes a receipt, also on hosts where it is not registered: by a new DENIED receipt that names the one it ends.

use serde_json::{Map, Value, json};

use super::Refusal;
use super::conditions::{AdmitContext, Receipt, authority, canonical_request, genuine, not_from_the_future, same_input_hash, same_tenant};
use super::key::OperatorKey;
use super::payload::{Payload, Status};
use super::request::with_input_hash;
use super::sign::{Decision, SignError, Signed, new_id, seal};
use super::verify::Evidence;
use crate::escape::escape;
use crate::json as strict;

/// The agent that a revocation names, since it has no agent of its own.
const ACTOR: &str = "pp-agent";

/// A verified revocation by a decider of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// Its own id.
    pub id: String,
    /// The receipt it ends.
    pub receipt_id: String,
    /// The key that signed it.
    pub key_id: String,
    /// Who decided, as `user:NAME`.
    pub decider: String,
    /// Why, in the decider's words; escape before showing.
    pub reason: String,
    /// When it was made (wall clock, ms since 1970).
    pub created_at_ms: i64,
}

/// Signs the revocation of a receipt at `now_ms` (wall clock, ms since 1970). `reason` is for people.
///
/// # Errors
/// [`SignError`] when it cannot be encoded.
pub fn revoke(receipt_id: &str, tenant: &str, reason: &str, key: &OperatorKey, now_ms: i64) -> Result<Signed, SignError> {
    let request = with_input_hash(Map::from_iter([
        ("action".to_owned(), json!({"tool": "network", "operation": "revoke"})),
        ("actor".to_owned(), json!({"agentId": ACTOR})),
        ("context".to_owned(), json!({"environment": "production", "reversibility": "IRREVERSIBLE"})),
        ("intent".to_owned(), json!({"category": "revocation", "name": "network:revoke", "summary": reason})),
        ("metadata".to_owned(), json!({"revokedReceiptId": receipt_id})),
        ("tenantId".to_owned(), json!(tenant)),
    ]));
    let decision = Decision {
        id: new_id("ppa_rev_", now_ms),
        status: "DENIED",
        resolution: "deny",
        reason: "OPERATOR_REVOKED",
        tenant,
        agent: ACTOR,
        run: None,
        summary: format!("revokes receipt {}", escape(receipt_id)),
        request,
        created_at_ms: now_ms,
        // A revocation does not expire, but the format requires a date.
        expires_at_ms: now_ms,
    };
    seal(decision, key)
}

/// The receipt that verified evidence revokes; `None` if it is no revocation. It does not check who may revoke.
#[must_use]
pub fn revoked_id(evidence: &Evidence) -> Option<String> {
    let denied = evidence.text("status") == Some("DENIED") && evidence.text("resolutionType") == Some("deny");
    let request: Value = strict::parse_strict(evidence.text("requestJson")?.as_bytes()).ok()?;
    let named = request.get("metadata")?.get("revokedReceiptId")?.as_str()?;
    (denied && !named.is_empty()).then(|| named.to_owned())
}

/// Checks a revocation against this host's policy: it must be unaltered, for our tenant, and signed by a key that may decide here. It never
/// expires.
///
/// # Errors
/// The first condition that is not met.
pub fn admit_revocation(evidence: &Evidence, context: &AdmitContext<'_>) -> Result<Revocation, Refusal> {
    let payload = Payload::read(evidence)?;
    if payload.status != Status::Denied || payload.resolution_type.as_deref() != Some("deny") {
        return Err(Refusal::NotARevocation { why: "its decision is not deny" });
    }
    genuine(evidence, &payload)?;
    authority(evidence, &payload, context)?;
    same_tenant(&payload.company_id, context)?;
    not_from_the_future(&payload, context)?;
    let request = canonical_request(&payload)?;
    let tenant = request.get("tenantId").and_then(Value::as_str).unwrap_or_default();
    same_tenant(tenant, context)?;
    let reason = request.get("intent").and_then(|intent| intent.get("summary")).and_then(Value::as_str);
    let reason = reason.unwrap_or_default().to_owned();
    let receipt_id = revoked_id(evidence).ok_or(Refusal::NotARevocation { why: "it names no receipt to revoke" })?;
    same_input_hash(&payload, request)?;
    Ok(Revocation {
        id: payload.id,
        receipt_id,
        key_id: evidence.key_id().to_owned(),
        decider: payload.decider_id,
        reason,
        created_at_ms: payload.created_at_ms,
    })
}

impl Revocation {
    /// Whether it ends this receipt: it names the receipt and has the same decider. An operator cannot end another operator's receipt.
    #[must_use]
    pub fn ends(&self, receipt: &Receipt) -> bool {
        self.receipt_id == receipt.id() && self.decider == receipt.decider()
    }
}
