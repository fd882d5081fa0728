//! Receipts of this host, and drafts of new ones.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `POST /v1/requests`: a draft for an operator to sign. The answer is a [`crate::receipt::Request`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Draft {
    /// From this refusal.
    pub event: Option<u64>,
    /// The agent; the caller's own if it is one.
    pub agent: Option<String>,
    /// The owner's name; the caller if absent.
    pub user: Option<String>,
    /// `ADDRESS[/LEN]:PORT[/TRANSPORT]`, any number.
    pub targets: Vec<String>,
    /// How long access is asked for, seconds.
    pub access_seconds: Option<u64>,
    /// Accounts the agent will log in with; none: no logins.
    pub accounts: Vec<String>,
    /// Most login attempts, with `accounts`.
    pub max_attempts: Option<u64>,
    /// Most new connections.
    pub max_connections: Option<u64>,
    /// Most turns on each connection to a gateway.
    pub max_turns: Option<u64>,
    /// What for, in the asker's words.
    pub summary: Option<String>,
}

/// `GET /v1/receipts`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Receipts {
    pub receipts: Vec<ReceiptView>,
}

/// Whether a receipt opens anything now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReceiptStatus {
    /// Its window has not begun.
    Pending,
    Active,
    /// Its window is over.
    Expired,
    Revoked,
    /// Its connections are used up, or nobody knows how many are.
    Exhausted,
    /// The policy or the keys in force do not let it in.
    #[default]
    Void,
}

impl std::fmt::Display for ReceiptStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

/// `GET /v1/receipts/{id}`, and a registered receipt.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReceiptView {
    pub id: String,
    pub status: ReceiptStatus,
    pub registered: String,
    pub from: String,
    pub until: String,
    pub uids: Vec<u32>,
    /// Absent where it is void.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub terms: Option<TermsView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub void_because: Option<String>,
    /// Absent where the kernel counts nothing of it.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub used: Option<UsedView>,
    /// It was registered before, and nothing changed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// As it was signed; only where one receipt is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact: Option<Value>,
}

/// What was signed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TermsView {
    pub agent: String,
    pub session: Option<String>,
    pub users: Option<Vec<String>>,
    pub decider: String,
    pub key: String,
    pub summary: Option<String>,
    pub targets: Vec<String>,
    pub max_connections: Option<u32>,
    /// Zero: no logins.
    pub max_attempts: u32,
    /// The accounts of those logins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<String>,
    pub max_turns: Option<u32>,
}

/// What is used of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct UsedView {
    pub used_connections: u64,
    pub used_attempts: u64,
}

/// `POST /v1/receipts`: what an artifact turned out to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RegisterAnswer {
    Revocation(Revoked),
    Receipt(Box<ReceiptView>),
}

impl From<ReceiptView> for RegisterAnswer {
    fn from(receipt: ReceiptView) -> Self {
        Self::Receipt(Box::new(receipt))
    }
}

/// `DELETE /v1/receipts/{id}`, and a registered revocation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Revoked {
    pub id: String,
    pub status: ReceiptStatus,
    /// Else it was never seen here, and cannot be registered any more.
    pub was_registered: bool,
}
