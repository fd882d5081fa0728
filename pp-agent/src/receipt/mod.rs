//! Receipts: a person's signed decision that one agent's sessions may reach named targets for a time.
//!
//! On the operator's machine: [`request`] → [`sign`] with a [`key`]. On the host: [`verify`] (is the signature good?) → [`conditions`]
//! (does the decision open anything *here*?) → [`Receipt`]. [`meaning`] says in plain words what a receipt opens, computed from what was
//! signed. [`revocation`] revokes a receipt.
//!
//! The format is Permission Protocol's `jcs_v2`. The terms of this gate are in the signed `requestJson` ([`terms`]).

mod artifact;
pub mod conditions;
pub mod instant;
pub mod key;
pub mod meaning;
mod payload;
pub mod refusal;
pub mod request;
pub mod revocation;
pub mod sign;
pub mod terms;
pub mod verify;

pub use artifact::MAX_ARTIFACT_BYTES;
pub use conditions::{AdmitContext, Authority, Receipt, Surface, Touched, Window, admit, check};
pub use refusal::Refusal;
pub use request::Request;
pub use terms::Terms;
pub use verify::{Evidence, VerifyError, verify};
