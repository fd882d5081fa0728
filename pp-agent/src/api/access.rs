//! The calls that say what would happen to a connection, and why one was refused.

use std::net::IpAddr;

use pp_common::decide::{Reason, Verdict};
use serde::{Deserialize, Serialize};

use crate::events::Endpoint;
use crate::receipt::Request;

/// `POST /v1/check`: what would happen to this connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Check {
    /// The destination.
    pub(crate) address: IpAddr,
    /// The port.
    pub(crate) port: u16,
    /// The link of a link-local address, by name or index.
    pub(crate) link: Option<String>,
    /// `tcp`, `udp`, `udplite` or `sctp`; `tcp` if absent.
    pub(crate) transport: Option<String>,
    /// The agent; absent if `pid` or `session` is given.
    pub(crate) agent: Option<String>,
    /// Owner of the session: a uid or a user's name; the caller if absent.
    pub(crate) user: Option<String>,
    /// The session.
    pub(crate) session: Option<String>,
    /// The process.
    pub(crate) pid: Option<u32>,
}

/// The answer of `POST /v1/check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CheckAnswer {
    #[serde(with = "verdict")]
    pub(crate) verdict: Verdict,
    #[serde(with = "reason")]
    pub(crate) reason: Reason,
    /// The receipt that allows it, or that came nearest.
    pub(crate) receipt: Option<String>,
    /// How the rate rules apply to it, in words.
    pub(crate) behaviour: Option<String>,
    /// Why an address that policy does not name is protected, in words.
    pub(crate) learned: Option<String>,
    pub(crate) zone: Option<String>,
    pub(crate) gateway: Option<String>,
    pub(crate) service: Option<String>,
    #[serde(default)]
    pub(crate) destination: Endpoint,
}

/// `GET /v1/why`: the caller's last refusals, newest first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Refusals {
    pub(crate) refusals: Vec<RefusalView>,
}

/// One refusal.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RefusalView {
    pub(crate) event: u64,
    pub(crate) time: String,
    pub(crate) verdict: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) destination: Option<Endpoint>,
    pub(crate) object: Option<String>,
    /// What it means, and what to do.
    pub(crate) words: String,
    /// Absent if no receipt could have allowed it.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) requestable: Option<Requestable>,
    /// Absent for agents, which must not learn the layout of the plant.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) place: Option<Place>,
    /// The server of a session that did it, for whoever asked that server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<ServerView>,
}

/// A server that a session started, and that may serve others.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ServerView {
    pub(crate) pid: u32,
    /// Its command name.
    pub(crate) name: String,
    /// The session that it is of.
    pub(crate) session: String,
    /// What that means, and how to end or release it.
    pub(crate) words: String,
}

/// How to ask for a receipt.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Requestable {
    /// The command line that drafts the request.
    pub(crate) command: Option<String>,
    /// The request itself, if it can be drafted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request: Option<Request>,
}

/// What protects a destination.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Place {
    pub(crate) zone: Option<String>,
    pub(crate) service: Option<String>,
}

/// Serialises codes of the kernel by their names.
macro_rules! by_name {
    ($module:ident, $code:ty, $all:expr) => {
        mod $module {
            use serde::{Deserialize, Deserializer, Serializer, de::Error};

            pub(super) fn serialize<S: Serializer>(code: &$code, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(code.name())
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<$code, D::Error> {
                let name = String::deserialize(from)?;
                let found = $all.iter().find(|code| code.name() == name);
                found.copied().ok_or_else(|| D::Error::custom(format!("{name} is not known to this version")))
            }
        }
    };
}

by_name!(verdict, pp_common::decide::Verdict, super::Verdict::ALL);
by_name!(reason, pp_common::decide::Reason, super::Reason::ALL);

/// The body of a decision that an operator gives a reason for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Because {
    pub(crate) reason: String,
}
