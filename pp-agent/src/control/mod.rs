//! The control socket: HTTP/1.1 with JSON over a unix socket, with the
//! caller's rights judged for every request.

pub mod access;
pub mod client;
pub mod routes;
pub mod seats;
pub mod server;
pub mod stream;
pub mod trust;
pub mod why;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::events::hub::Hub;
use crate::metrics::ControlCounters;

/// An answer that says no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// What went wrong, for programs: `no_rights`, `term_not_enforced`, ...
    pub code: String,
    /// Permission Protocol's code, where it has one.
    pub pp_code: Option<String>,
    /// What went wrong and what to do, for people.
    pub message: String,
}

impl ApiError {
    /// An error without a Permission Protocol code.
    #[must_use]
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), pp_code: None, message: message.into() }
    }

    /// 400: the request itself is wrong.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "bad_request", message)
    }

    /// 404.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, "not_found", message)
    }

    /// 500: something of the daemon's own failed.
    #[must_use]
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(500, "internal", message.to_string())
    }

    /// As the body of an answer.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut error = serde_json::json!({ "code": self.code, "message": self.message });
        if let Some(pp_code) = &self.pp_code {
            error["pp_code"] = Value::String(pp_code.clone());
        }
        serde_json::json!({ "error": error })
    }
}

/// `POST /v1/sessions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartSession {
    /// The agent's name.
    pub agent: String,
    /// The process to adopt; absent: the caller itself, for `run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// `POST /v1/check`: what would happen to this connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Where to.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The link of a link-local address, by name or index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// `tcp`, `udp`, `udplite` or `sctp`; `tcp` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// As this agent; absent: `pid` or `session` says who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Owner of the session: a uid or a user's name; the caller if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// As this session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// As this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// `POST /v1/requests`: a draft for an operator to sign.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draft {
    /// From this refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<u64>,
    /// The agent; the caller's own if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The owner's name; the caller if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `ADDRESS[/LEN]:PORT[/TRANSPORT]`, any number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// How long access is asked for, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_seconds: Option<u64>,
    /// Accounts the agent will log in with; none: no logins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<String>,
    /// Most login attempts, with `accounts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u64>,
    /// Most new connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u64>,
    /// Most turns on each connection to a gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_turns: Option<u64>,
    /// What for, in the asker's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
}

/// Who asks, after its rights were judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its uid when it connected.
    pub uid: u32,
    /// Its pid; zero: it is gone.
    pub pid: u32,
    /// What it may do.
    pub standing: access::Standing,
}

/// What the socket needs of the daemon. Every call may block; the server
/// keeps them off its own threads.
pub trait Governor: Send + Sync + 'static {
    /// The session of a process; an error means that it cannot be known.
    ///
    /// # Errors
    /// When the kernel's table cannot be read.
    fn session_of(&self, pid: u32) -> Result<Option<u64>, ApiError>;
    /// The gid of the operators' group, if the host has one.
    fn operators(&self) -> Option<u32>;
    /// The events.
    fn hub(&self) -> &Hub;
    /// Counters of the socket itself.
    fn counters(&self) -> &ControlCounters;
    /// `GET /v1/status`.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read.
    fn status(&self) -> Result<Value, ApiError>;
    /// `GET /metrics`.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read.
    fn metrics(&self) -> Result<String, ApiError>;
    /// `GET /v1/sessions`, of one owner or of all.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read.
    fn sessions(&self, owner: Option<u32>) -> Result<Value, ApiError>;
    /// `POST /v1/sessions`.
    ///
    /// # Errors
    /// When the process cannot be marked, or not by this caller.
    fn start_session(&self, caller: &Caller, start: &StartSession) -> Result<Value, ApiError>;
    /// `DELETE /v1/sessions/{id}`.
    ///
    /// # Errors
    /// When there is no such session.
    fn release(&self, session: u64) -> Result<Value, ApiError>;
    /// `POST /v1/receipts`: an artifact of a receipt or of a revocation.
    ///
    /// # Errors
    /// When any condition of registration is not met.
    fn register(&self, artifact: &[u8]) -> Result<Value, ApiError>;
    /// `GET /v1/receipts`.
    ///
    /// # Errors
    /// When state cannot be read.
    fn receipts(&self) -> Result<Value, ApiError>;
    /// `GET /v1/receipts/{id}`.
    ///
    /// # Errors
    /// When there is none.
    fn receipt(&self, id: &str) -> Result<Value, ApiError>;
    /// `DELETE /v1/receipts/{id}`.
    ///
    /// # Errors
    /// When state cannot be written.
    fn revoke(&self, id: &str, reason: &str) -> Result<Value, ApiError>;
    /// `POST /v1/check`.
    ///
    /// # Errors
    /// When the request names nobody, or nothing that can be judged.
    fn check(&self, caller: &Caller, check: &Check) -> Result<Value, ApiError>;
    /// `POST /v1/requests`.
    ///
    /// # Errors
    /// When the draft would be incomplete, or the event is not the caller's.
    fn draft(&self, caller: &Caller, draft: &Draft) -> Result<Value, ApiError>;
    /// `GET /v1/policy`.
    ///
    /// # Errors
    /// Never by itself; the trait leaves room.
    fn policy(&self) -> Result<Value, ApiError>;
    /// `GET /v1/neighbours`.
    ///
    /// # Errors
    /// Never by itself; the trait leaves room.
    fn neighbours(&self) -> Result<Value, ApiError>;
    /// `DELETE /v1/neighbours/{address}`.
    ///
    /// # Errors
    /// When it was not learned.
    fn forget_neighbour(&self, address: &str) -> Result<Value, ApiError>;
    /// `POST /v1/policy/reload`.
    ///
    /// # Errors
    /// When the policy on disk is refused; the old one stays.
    fn reload(&self) -> Result<Value, ApiError>;
}
