//! Who is governed.

use serde::{Deserialize, Serialize};

use crate::events::Owner;

/// `POST /v1/sessions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartSession {
    /// The agent's name.
    pub agent: String,
    /// The process to adopt; absent: the caller itself, for `run`.
    pub pid: Option<u32>,
}

/// Its answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Started {
    pub session: String,
    pub agent: String,
    pub pid: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// `DELETE /v1/sessions/{id}`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Released {
    /// Absent where no daemon answered and the marks were taken away without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// How many are no longer governed.
    pub processes: usize,
}

/// `GET /v1/sessions`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sessions {
    pub sessions: Vec<SessionView>,
}

/// One session.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionView {
    pub session: String,
    pub agent: Option<String>,
    pub owner: Owner,
    pub started: String,
    pub processes: Vec<ProcessView>,
}

/// One process of a session.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessView {
    pub pid: u32,
    pub executable: String,
    /// Without the secrets that are known by their form.
    pub argv: Vec<String>,
}

/// `GET /v1/self`: the caller.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OwnSession {
    /// It has an agent's rights.
    pub marked: bool,
    /// Absent also where it cannot be known.
    pub session: Option<String>,
    pub uid: u32,
}
