//! The draft that an operator signs: what an agent or its human asks for. Its contents are unverified.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::conditions::input_hash;
use super::{MAX_ARTIFACT_BYTES, Refusal, Terms};
use crate::escape::escape;
use crate::json as strict;

/// A request for a receipt, as `pp-agent receipt request` writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// The tenant of the host's policy.
    pub tenant: String,
    /// The agent whose sessions it is for.
    pub agent: String,
    /// The one session it is for; absent: any session of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_run: Option<String>,
    /// The targets.
    pub targets: Vec<RequestTarget>,
    /// `{"kind":"none"}`, or `{"kind":"accounts","accounts":[...],"maxAttempts":N}`.
    pub credential_scope: Value,
    /// Owners of the sessions; empty asks for any user, which few hosts allow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    /// Hosts, as their policies name them.
    pub hosts: Vec<String>,
    /// Length of the window, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_seconds: Option<u32>,
    /// Most new connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Most request/response turns on each connection to a gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_turns: Option<u32>,
    /// Opens nothing before this, as `YYYY-MM-DDTHH:mm:ss.sssZ`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// The purpose, in the words of who asks.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub summary: String,
}

/// How many login attempts to ask for by default.
const DEFAULT_ATTEMPTS: u64 = 3;

/// The `credential_scope` of a request for logins as these accounts; none: no logins.
#[must_use]
pub fn credential_scope(accounts: &[String], max_attempts: Option<u64>) -> Value {
    match accounts {
        [] => json!({ "kind": "none" }),
        accounts => json!({ "kind": "accounts", "accounts": accounts, "maxAttempts": max_attempts.unwrap_or(DEFAULT_ATTEMPTS) }),
    }
}

/// One target of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestTarget {
    /// A CIDR, or a bare address, which means that one address.
    pub address: String,
    /// `tcp`, `udp`, `udplite` or `sctp`.
    pub transport: String,
    /// `502`, `500-510` or `*`.
    pub ports: Vec<String>,
}

/// Why a draft cannot be signed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RequestError {
    /// Larger than any receipt.
    #[error("request is larger than {MAX_ARTIFACT_BYTES} bytes")]
    TooLarge,
    /// Not JSON, or not of this form.
    #[error("request is not in the form that pp-agent receipt request writes: {}", escape(.0))]
    Form(String),
    /// A receipt made from it would open nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Request {
    /// Reads a draft and checks that a receipt could be made of it.
    ///
    /// # Errors
    /// [`RequestError`], with the first thing that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, RequestError> {
        if bytes.len() > MAX_ARTIFACT_BYTES {
            return Err(RequestError::TooLarge);
        }
        let request: Self = strict::parse_strict(bytes).map_err(|error| RequestError::Form(error.to_string()))?;
        request.terms()?;
        Ok(request)
    }

    /// What a receipt made from it would say.
    ///
    /// # Errors
    /// [`Refusal`] of the first term that is not in the grammar or not enforced.
    pub fn terms(&self) -> Result<Terms, Refusal> {
        Terms::parse(&self.to_request_object())
    }

    /// The `requestJson` object of a receipt for it, with its input hash.
    pub(super) fn to_request_object(&self) -> Map<String, Value> {
        let mut parameters = Map::new();
        let targets = self.targets.iter().map(RequestTarget::to_value).collect();
        parameters.insert("targets".into(), Value::Array(targets));
        parameters.insert("credentialScope".into(), self.credential_scope.clone());
        parameters.insert("hosts".into(), json!(self.hosts));
        if !self.users.is_empty() {
            parameters.insert("users".into(), json!(self.users));
        }
        for (name, value) in [
            ("accessSeconds", self.access_seconds.map(Value::from)),
            ("maxConnections", self.max_connections.map(Value::from)),
            ("maxTurns", self.max_turns.map(Value::from)),
            ("notBefore", self.not_before.clone().map(Value::from)),
        ] {
            if let Some(value) = value {
                parameters.insert(name.into(), value);
            }
        }
        let mut actor = Map::from_iter([("agentId".to_owned(), json!(self.agent))]);
        if let Some(run) = &self.agent_run {
            actor.insert("runId".into(), json!(run));
        }
        with_input_hash(Map::from_iter([
            ("action".to_owned(), json!({"tool": "network", "operation": "connect", "parameters": parameters})),
            ("actor".to_owned(), Value::Object(actor)),
            ("context".to_owned(), json!({"environment": "production", "reversibility": "IRREVERSIBLE"})),
            ("intent".to_owned(), json!({"category": "ot_access", "name": "network:connect", "summary": self.summary})),
            ("tenantId".to_owned(), json!(self.tenant)),
        ]))
    }
}

/// Adds `hashes.inputHash` to a request.
pub(super) fn with_input_hash(mut request: Map<String, Value>) -> Map<String, Value> {
    let hash = input_hash(request.clone()).unwrap_or_default();
    request.insert("hashes".into(), json!({ "inputHash": hash }));
    request
}

impl RequestTarget {
    fn to_value(&self) -> Value {
        let address = match self.address.parse::<std::net::IpAddr>() {
            Ok(bare) => ipnet::IpNet::from(bare).to_string(),
            Err(_) => self.address.clone(),
        };
        json!({"address": address, "transport": self.transport, "ports": self.ports})
    }
}
