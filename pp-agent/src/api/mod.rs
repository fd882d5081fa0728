//! The calls of the control socket as types: requests, answers and errors.
//!
//! The daemon writes them and the command line reads them. A reader ignores members that a later version added. Members that an earlier
//! version lacks have their defaults.

mod access;
mod off;
mod policy;
mod receipts;
mod sessions;
mod status;

pub(crate) use access::{Because, Check, CheckAnswer, Place, RefusalView, Refusals, Requestable, ServerView};
pub(crate) use off::{OffView, SwitchOff, Switched};
pub(crate) use policy::{PolicyView, Reloaded, Remarks};
pub(crate) use receipts::{Draft, ReceiptStatus, ReceiptView, Receipts, RegisterAnswer, Revoked, TermsView, UsedView};
pub(crate) use sessions::{OwnSession, ProcessView, Released, SessionView, Sessions, StartSession, Started};
pub(crate) use status::{
    BackendView, CanaryView, FindingView, Forgotten, HooksView, LinkView, NeighbourList, NeighbourView, Neighbours, Opening, Posture,
    RefusalCounts, StateAccepted, Status, UnnamedNetwork, WatchView,
};

use serde::{Deserialize, Serialize};

/// The body of an error answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ErrorAnswer {
    pub(crate) error: Problem,
}

/// Why a call was refused or failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
#[serde(default)]
pub(crate) struct Problem {
    /// HTTP status; it is not in the body.
    #[serde(skip)]
    pub(crate) status: u16,
    /// The stable code for programs: `no_rights`, `term_not_enforced`, ...
    pub(crate) code: String,
    /// What went wrong and what to do, for people.
    pub(crate) message: String,
    /// The code of Permission Protocol, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pp_code: Option<String>,
}

#[cfg(test)]
mod tests;
