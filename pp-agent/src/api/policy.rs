//! The policy in force.

use serde::{Deserialize, Serialize};

use crate::config::{NotRead, Off};

/// Remarks on a valid policy.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Remarks {
    /// Parts of the shipped protection that it turns off.
    pub(crate) off: Vec<Off>,
    /// What is probably a mistake.
    pub(crate) warnings: Vec<String>,
    /// Entries of the folder of drop-ins that are none.
    pub(crate) not_read: Vec<NotRead>,
    pub(crate) notes: Vec<String>,
}

/// `GET /v1/policy`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PolicyView {
    pub(crate) origin: String,
    pub(crate) files: Vec<String>,
    pub(crate) generation: u32,
    pub(crate) notes: Vec<String>,
    pub(crate) off: Vec<Off>,
    pub(crate) toml: String,
}

/// `POST /v1/policy/reload`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Reloaded {
    pub(crate) generation: u32,
    #[serde(flatten)]
    pub(crate) remarks: Remarks,
}
