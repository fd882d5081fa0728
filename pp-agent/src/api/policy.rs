//! The policy in force.

use serde::{Deserialize, Serialize};

use crate::config::{NotRead, Off};

/// What there is to say of a valid policy.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Remarks {
    /// Parts of the shipped protection that it leaves off.
    pub off: Vec<Off>,
    /// What is probably not meant as it is written.
    pub warnings: Vec<String>,
    /// What lies in the folder of drop-ins and is none.
    pub not_read: Vec<NotRead>,
    pub notes: Vec<String>,
}

/// `GET /v1/policy`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyView {
    pub origin: String,
    pub files: Vec<String>,
    pub generation: u32,
    pub notes: Vec<String>,
    pub off: Vec<Off>,
    pub toml: String,
}

/// `POST /v1/policy/reload`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reloaded {
    pub generation: u32,
    #[serde(flatten)]
    pub remarks: Remarks,
}
