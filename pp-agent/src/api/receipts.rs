//! Receipts of this host, and drafts of new ones.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `POST /v1/requests`: a draft for an operator to sign. The answer is a [`crate::receipt::Request`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Draft {
    /// The event of the refusal to ask a receipt for.
    pub(crate) event: Option<u64>,
    /// The agent; the caller's own if it is one.
    pub(crate) agent: Option<String>,
    /// The owner's name; the caller if absent.
    pub(crate) user: Option<String>,
    /// `ADDRESS[/LEN]:PORT[/TRANSPORT]`, any number.
    pub(crate) targets: Vec<String>,
    /// How long access is asked for, in seconds.
    pub(crate) access_seconds: Option<u64>,
    /// Accounts the agent will log in with; none: no logins.
    pub(crate) accounts: Vec<String>,
    /// Most login attempts, with `accounts`.
    pub(crate) max_attempts: Option<u64>,
    /// Most new connections.
    pub(crate) max_connections: Option<u64>,
    /// Most turns on each connection to a gateway.
    pub(crate) max_turns: Option<u64>,
    /// The purpose, in the words of who asks.
    pub(crate) summary: Option<String>,
}

/// `GET /v1/receipts`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Receipts {
    pub(crate) receipts: Vec<ReceiptView>,
}

/// Whether a receipt opens anything now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReceiptStatus {
    /// Its window has not started.
    Pending,
    Active,
    /// Its window is over.
    Expired,
    Revoked,
    /// Its connections are used up, or their count is lost.
    Exhausted,
    /// The policy or the keys in force do not admit it.
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
pub(crate) struct ReceiptView {
    pub(crate) id: String,
    pub(crate) status: ReceiptStatus,
    pub(crate) registered: String,
    pub(crate) from: String,
    pub(crate) until: String,
    pub(crate) uids: Vec<u32>,
    /// Absent if it is void.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) terms: Option<TermsView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) void_because: Option<String>,
    /// Absent if the kernel counts nothing for it.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) used: Option<UsedView>,
    /// Whether it was registered before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) again: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) warnings: Vec<String>,
    /// The signed artifact; only in the answer for a single receipt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) artifact: Option<Value>,
}

/// The signed terms.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct TermsView {
    pub(crate) agent: String,
    pub(crate) session: Option<String>,
    pub(crate) users: Option<Vec<String>>,
    pub(crate) decider: String,
    pub(crate) key: String,
    pub(crate) summary: Option<String>,
    pub(crate) targets: Vec<String>,
    pub(crate) max_connections: Option<u32>,
    /// Zero: no logins.
    pub(crate) max_attempts: u32,
    /// The accounts of those logins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) accounts: Vec<String>,
    pub(crate) max_turns: Option<u32>,
}

/// What is used of a receipt.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct UsedView {
    pub(crate) used_connections: u64,
    pub(crate) used_attempts: u64,
}

/// `POST /v1/receipts`: the registered receipt or revocation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum RegisterAnswer {
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
pub(crate) struct Revoked {
    pub(crate) id: String,
    pub(crate) status: ReceiptStatus,
    /// Whether it was registered here. If not, it cannot be registered any more.
    pub(crate) was_registered: bool,
}
