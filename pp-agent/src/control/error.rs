//! Errors of calls. They stay typed up to the control socket, where they become status, code and message.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::routes::MAX_BODY;
use super::seats::Class;
use crate::api::{ErrorAnswer, Problem, ReceiptStatus};
use crate::events::store::StoreError;
use crate::kernel::KernelError;
use crate::receipt::Refusal;
use crate::session::adopt::AdoptError;
use crate::state::{RegisterError, StateError};

/// Why a call is refused or fails, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The request itself is wrong.
    #[error("{0}")]
    BadRequest(String),
    /// What the call names does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The path has no such method.
    #[error("this path: no such method; see pp-agent --help")]
    MethodNotAllowed,
    /// The caller may not make this call.
    #[error("{0}")]
    NoRights(String),
    /// The body is too large.
    #[error("body: larger than {MAX_BODY} bytes")]
    TooLarge,
    /// The body came too slowly.
    #[error("body: did not arrive within 10 seconds")]
    Timeout,
    /// Too many calls run at once, and none ended in time.
    #[error("control socket: too many calls of {}s at once; try again in a moment", .0.name())]
    Busy(Class),
    /// The receipt opens nothing here.
    #[error(transparent)]
    Receipt(#[from] Refusal),
    /// Policy lacks a name that receipts must have.
    #[error("policy: names no {0}, so no receipt can be for it; set {0} in policy.toml")]
    NotConfigured(&'static str),
    /// The receipt was registered before, and has ended.
    #[error("receipt {id}: was redeemed here on {registered} and is {status}; ask the operator for a new one")]
    Over {
        /// The receipt.
        id: String,
        /// When.
        registered: String,
        /// How it ended.
        status: ReceiptStatus,
    },
    /// A signed revocation of a receipt by another decider.
    #[error("revocation by {by}: receipt {id} is another decider's; only {decider} or an operator of this host can revoke it")]
    OtherDecider {
        /// Who signed the revocation.
        by: String,
        /// The receipt.
        id: String,
        /// Who decided the receipt.
        decider: String,
    },
    /// The tables or the state are full.
    #[error("{0}")]
    NoRoom(String),
    /// The state cannot be written.
    #[error("{0}")]
    StateUnavailable(String),
    /// The policy on disk is refused. The old one stays in force.
    #[error("{0}")]
    PolicyRefused(String),
    /// The process cannot start a session.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The events cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something else failed inside the daemon.
    #[error("{0}")]
    Internal(String),
}

impl From<StateError> for ApiError {
    fn from(error: StateError) -> Self {
        Self::StateUnavailable(error.to_string())
    }
}

impl From<RegisterError> for ApiError {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::Revoked(id) => Refusal::Revoked { id }.into(),
            RegisterError::KeyUsed { idem_key, by } => Refusal::IdemKeyUsed { idem_key, by }.into(),
            RegisterError::OtherContent(id) => Refusal::Redeemed { id }.into(),
            RegisterError::Full => Self::NoRoom(error.to_string()),
            RegisterError::State(error) => error.into(),
        }
    }
}

impl ApiError {
    /// [`ApiError::BadRequest`].
    #[must_use]
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::BadRequest(message.into())
    }

    /// [`ApiError::NotFound`].
    #[must_use]
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::NotFound(message.into())
    }

    /// The HTTP status, and the stable code for programs.
    fn status_and_code(&self) -> (u16, &'static str) {
        match self {
            Self::BadRequest(_) => (400, "bad_request"),
            Self::NotFound(_) | Self::Adopt(AdoptError::NoProcess(_)) => (404, "not_found"),
            Self::MethodNotAllowed => (405, "method_not_allowed"),
            Self::NoRights(_) => (403, "no_rights"),
            Self::TooLarge => (413, "too_large"),
            Self::Timeout => (408, "timeout"),
            Self::Busy(_) => (503, "busy"),
            Self::Receipt(refusal @ (Refusal::Revoked { .. } | Refusal::IdemKeyUsed { .. } | Refusal::Redeemed { .. })) => {
                (409, refusal.code())
            }
            Self::Receipt(refusal) => (422, refusal.code()),
            Self::NotConfigured(_) => (422, "not_configured"),
            Self::Over { .. } => (409, "redeemed"),
            Self::OtherDecider { .. } => (422, "decider_not_allowed"),
            Self::NoRoom(_) => (507, Refusal::GrantsFull.code()),
            Self::StateUnavailable(_) => (503, "state_unavailable"),
            Self::PolicyRefused(_) => (422, "policy_refused"),
            Self::Adopt(AdoptError::AlreadyMarked(_)) => (409, "already_marked"),
            Self::Adopt(AdoptError::Never(_)) => (422, "never_markable"),
            Self::Adopt(AdoptError::Kernel(_)) | Self::Kernel(_) | Self::Store(_) | Self::Internal(_) => (500, "internal"),
        }
    }

    /// The stable code for programs: `no_rights`, `term_not_enforced`, ...
    #[must_use]
    pub(crate) fn code(&self) -> &'static str {
        self.status_and_code().1
    }

    /// The body of the answer.
    #[must_use]
    pub(crate) fn answer(&self) -> ErrorAnswer {
        let pp_code = match self {
            Self::Receipt(refusal) => refusal.pp_code(),
            Self::Over { .. } => Some("PP_REDEEMED"),
            _ => None,
        };
        let (status, code) = self.status_and_code();
        let pp_code = pp_code.map(str::to_owned);
        ErrorAnswer { error: Problem { status, code: code.to_owned(), pp_code, message: self.to_string() } }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let answer = self.answer();
        let status = StatusCode::from_u16(answer.error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(answer)).into_response()
    }
}
