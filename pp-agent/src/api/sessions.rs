//! Sessions: the processes that are governed.

use serde::{Deserialize, Serialize};

use crate::events::Owner;

/// `POST /v1/sessions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StartSession {
    /// The agent's name.
    pub(crate) agent: String,
    /// The process to adopt; absent: the caller itself, for `run`.
    pub(crate) pid: Option<u32>,
}

/// The answer of `POST /v1/sessions`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Started {
    pub(crate) session: String,
    pub(crate) agent: String,
    pub(crate) pid: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) warnings: Vec<String>,
}

/// `DELETE /v1/sessions/{id}`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Released {
    /// Absent if no daemon answered and the marks were removed without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<String>,
    /// How many processes were released.
    pub(crate) processes: usize,
}

/// `GET /v1/sessions`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Sessions {
    pub(crate) sessions: Vec<SessionView>,
}

/// One session.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SessionView {
    pub(crate) session: String,
    pub(crate) agent: Option<String>,
    pub(crate) owner: Owner,
    pub(crate) started: String,
    pub(crate) processes: Vec<ProcessView>,
}

/// One process of a session.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ProcessView {
    pub(crate) pid: u32,
    pub(crate) executable: String,
    /// Its arguments, with known secrets masked.
    pub(crate) argv: Vec<String>,
}

/// `GET /v1/self`: the caller.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct OwnSession {
    /// Whether it has an agent's rights.
    pub(crate) marked: bool,
    /// Absent also if it is unknown.
    pub(crate) session: Option<String>,
    pub(crate) uid: u32,
}
