//! The signed payload of a `jcs_v2` receipt, with the types of its schema.

use std::fmt;

use serde_json::{Map, Value};

use super::verify::Evidence;
use super::{Refusal, instant};
use crate::json;

/// The members this gate reads. All come from the signed bytes.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    pub(super) id: String,
    pub(super) company_id: String,
    pub(super) idem_key: String,
    pub(super) agent_id: String,
    pub(super) run_id: Option<String>,
    pub(super) request_json: String,
    pub(super) input_hash: String,
    pub(super) status: Status,
    pub(super) risk_tier: Option<String>,
    pub(super) decider_id: String,
    pub(super) decider_display: String,
    pub(super) decider_auth_method: Option<String>,
    pub(super) resolution_type: Option<String>,
    pub(super) attribution_confidence: String,
    pub(super) scope: String,
    pub(super) summary: Option<String>,
    pub(super) created_at_ms: i64,
    pub(super) expires_at_ms: i64,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Approved,
    Denied,
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Approved => "APPROVED",
            Self::Denied => "DENIED",
        })
    }
}

impl Payload {
    /// Reads the payload of evidence; refuses what the schema of `jcs_v2` refuses.
    pub(super) fn read(evidence: &Evidence) -> Result<Self, Refusal> {
        let members = &evidence.payload;
        // A missing decider has its own message.
        if !matches!(members.get("deciderId"), Some(Value::String(decider)) if !decider.is_empty()) {
            return Err(Refusal::MissingTerm { what: "operator", member: "deciderId" });
        }
        if members.get("receiptVersion").and_then(Value::as_u64) != Some(2) {
            return Err(bad("receiptVersion", "it must be the integer 2"));
        }
        if required(members, "signatureAlg")? != "ed25519" {
            return Err(bad("signatureAlg", "it must be ed25519"));
        }
        if let Some(codes) = optional(members, "reasonCodes")?
            && json::parse_strict::<Vec<String>>(codes.as_bytes()).is_err()
        {
            return Err(bad("reasonCodes", "it must be the text of a JSON array of strings"));
        }
        Ok(Self {
            id: required(members, "id")?,
            company_id: required(members, "companyId")?,
            idem_key: required(members, "idemKey")?,
            agent_id: required(members, "agentId")?,
            run_id: non_empty(members, "runId")?,
            request_json: required(members, "requestJson")?,
            input_hash: required(members, "inputHash")?,
            status: match required(members, "status")?.as_str() {
                "APPROVED" => Status::Approved,
                "DENIED" => Status::Denied,
                _ => return Err(bad("status", "it must be APPROVED or DENIED")),
            },
            risk_tier: one_of(members, "riskTier", &["A_READONLY", "B_DRAFT", "C_EXECUTE_WITH_APPROVAL", "D_PROHIBITED"])?,
            decider_id: required(members, "deciderId")?,
            decider_display: required(members, "deciderDisplay")?,
            decider_auth_method: one_of(
                members,
                "deciderAuthMethod",
                &["session", "session_stepup_webauthn", "session_reauth", "api_key", "anonymous_demo", "policy"],
            )?,
            resolution_type: one_of(members, "resolutionType", &["allow_once", "allow_always", "deny"])?,
            attribution_confidence: one_of(members, "attributionConfidence", &["credentialed", "heuristic", "unattributed"])?
                .ok_or_else(|| bad("attributionConfidence", "it is required"))?,
            scope: required(members, "scope")?,
            summary: optional(members, "summary")?,
            created_at_ms: time(members, "createdAt")?,
            expires_at_ms: time(members, "expiresAt")?,
        })
    }
}

fn bad(member: &'static str, why: &'static str) -> Refusal {
    Refusal::PayloadMalformed { member, why }
}

fn optional(members: &Map<String, Value>, member: &'static str) -> Result<Option<String>, Refusal> {
    match members.get(member) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(bad(member, "it must be a string")),
    }
}

fn non_empty(members: &Map<String, Value>, member: &'static str) -> Result<Option<String>, Refusal> {
    match optional(members, member)? {
        Some(text) if text.is_empty() => Err(bad(member, "it must not be empty")),
        text => Ok(text),
    }
}

fn required(members: &Map<String, Value>, member: &'static str) -> Result<String, Refusal> {
    non_empty(members, member)?.ok_or_else(|| bad(member, "it is required"))
}

fn one_of(members: &Map<String, Value>, member: &'static str, known: &[&str]) -> Result<Option<String>, Refusal> {
    match optional(members, member)? {
        Some(text) if !known.contains(&text.as_str()) => Err(bad(member, "its value is not in the schema")),
        text => Ok(text),
    }
}

fn time(members: &Map<String, Value>, member: &'static str) -> Result<i64, Refusal> {
    instant::parse(&required(members, member)?).ok_or_else(|| bad(member, "it must be a real date as YYYY-MM-DDTHH:mm:ss.sssZ"))
}
