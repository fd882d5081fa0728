//! Switching protection off and on.

use serde::{Deserialize, Serialize};

/// `POST /v1/off`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SwitchOff {
    /// For how long; absent: until somebody switches it on.
    pub(crate) seconds: Option<u64>,
    /// Why, for the record.
    pub(crate) reason: String,
}

/// The answer of `POST /v1/off` and `POST /v1/on`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Switched {
    /// What is in force now; absent: protection is on.
    pub(crate) off: Option<OffView>,
    /// Whether `on` changed anything.
    pub(crate) was_off: bool,
}

/// Protection that is off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct OffView {
    /// Since when, RFC 3339.
    pub(crate) since: String,
    /// Until when; absent: until somebody switches it on.
    pub(crate) until: Option<String>,
    /// Who did it.
    pub(crate) by: String,
    /// Why.
    pub(crate) reason: String,
}

impl OffView {
    /// Until when, by whom and why, in words that follow `off`.
    #[must_use]
    pub(crate) fn words(&self) -> String {
        let until = self.until.as_deref().unwrap_or("pp-agent on");
        format!("until {until}, since {}, by {}: {}", self.since, self.by, self.reason)
    }
}
