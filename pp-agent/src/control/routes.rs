//! The calls of the control socket. Each names the right it needs, reads its body within bounds, and asks the daemon.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::http::{Request, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::access::{Action, Standing, authorize};
use super::server::Guest;
use super::{ApiError, Caller, Governor, stream, why};
use crate::api::{Neighbours, OwnSession, Status};
use crate::events::Filter;
use crate::events::build::{parse_session, session_text};

/// Most bytes of a request's body.
pub(crate) const MAX_BODY: usize = 1024 * 1024;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

type Answer = Result<Response, ApiError>;

/// Every call, with the right that it needs.
pub(crate) fn router(governor: Arc<dyn Governor>) -> Router {
    let sessions =
        get(async |call: Call| call.ask(Action::ListSessions, |daemon, caller| daemon.sessions(caller.standing.sees_owner())).await);
    let sessions = sessions.post(async |call: Call, request: Request<Body>| {
        let start = call.body(Action::StartSession, request).await?;
        call.ask(Action::StartSession, move |daemon, caller| daemon.start_session(caller, &start)).await
    });
    let release = delete(async |call: Call, Path(id): Path<String>| {
        let session = parse_session(&id).ok_or_else(|| ApiError::bad_request("session: an id has 16 hex digits; see pp-agent sessions"));
        call.ask(Action::ReleaseSession, move |daemon, _| daemon.release(session?)).await
    });
    let receipts = get(async |call: Call| call.ask(Action::ReadReceipts, |daemon, _| daemon.receipts()).await);
    let receipts = receipts.post(async |call: Call, request: Request<Body>| {
        let artifact = call.bytes(Action::RegisterReceipt, request).await?;
        call.ask(Action::RegisterReceipt, move |daemon, _| daemon.register(&artifact)).await
    });
    let receipt =
        get(async |call: Call, Path(id): Path<String>| call.ask(Action::ReadReceipts, move |daemon, _| daemon.receipt(&id)).await);
    let receipt = receipt.delete(async |call: Call, Path(id): Path<String>, Params(revoke): Params<Revoke>| {
        let reason = revoke.reason.unwrap_or_else(|| "revoked by an operator of this host".to_owned());
        call.ask(Action::RevokeReceipt, move |daemon, _| daemon.revoke(&id, &reason)).await
    });
    let draft = post(async |call: Call, request: Request<Body>| {
        let draft = call.body(Action::DraftRequest, request).await?;
        call.ask(Action::DraftRequest, move |daemon, caller| daemon.draft(caller, &draft)).await
    });
    let off = post(async |call: Call, request: Request<Body>| {
        let asked = call.body(Action::SwitchOff, request).await?;
        call.ask(Action::SwitchOff, move |daemon, caller| daemon.switch_off(caller, &asked)).await
    });
    let check = post(async |call: Call, request: Request<Body>| {
        let check = call.body(Action::Check, request).await?;
        call.ask(Action::Check, move |daemon, caller| daemon.check(caller, &check)).await
    });
    let why = get(async |call: Call, Params(of): Params<Why>| {
        call.ask(Action::Why, move |daemon, caller| why::answer(daemon, caller, of.session)).await
    });
    let accept = post(async |call: Call, request: Request<Body>| {
        let because = call.body(Action::AcceptState, request).await?;
        call.ask(Action::AcceptState, move |daemon, caller| daemon.accept_state(caller, &because)).await
    });
    let forget = delete(async |call: Call, Path(address): Path<String>| {
        call.ask(Action::ForgetNeighbour, move |daemon, _| daemon.forget_neighbour(&address)).await
    });
    Router::new()
        .route("/v1/self", get(async |call: Call| call.ask(Action::SelfInfo, |_, caller| Ok(own_session(caller))).await))
        .route("/v1/status", get(async |call: Call| call.ask(Action::Status, status).await))
        .route("/v1/sessions", sessions)
        .route("/v1/sessions/{id}", release)
        .route("/v1/receipts", receipts)
        .route("/v1/receipts/{id}", receipt)
        .route("/v1/requests", draft)
        .route("/v1/events", get(events))
        .route("/v1/state/accept", accept)
        .route("/v1/off", off)
        .route("/v1/on", post(async |call: Call| call.ask(Action::SwitchOn, |daemon, caller| daemon.switch_on(caller)).await))
        .route("/v1/check", check)
        .route("/v1/why", why)
        .route("/v1/neighbours", get(async |call: Call| call.ask(Action::ReadNeighbours, |daemon, _| Ok(daemon.neighbours())).await))
        .route("/v1/neighbours/{address}", forget)
        .route("/v1/policy", get(async |call: Call| call.ask(Action::ReadPolicy, |daemon, _| Ok(daemon.policy())).await))
        .route("/v1/policy/reload", post(async |call: Call| call.ask(Action::ReloadPolicy, |daemon, _| daemon.reload()).await))
        .route("/metrics", get(metrics))
        .fallback(async || ApiError::not_found("this path: no such call; see pp-agent --help"))
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .with_state(governor)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoke {
    reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Why {
    session: Option<String>,
}

fn own_session(caller: &Caller) -> OwnSession {
    let (marked, session) = match caller.standing {
        Standing::Agent(session) => (true, session.map(session_text)),
        Standing::User(_) | Standing::Operator => (false, None),
    };
    OwnSession { marked, session, uid: caller.uid }
}

fn status(daemon: &dyn Governor, caller: &Caller) -> Result<Status, ApiError> {
    let mut status = daemon.status()?;
    if caller.standing != Standing::Operator {
        status.neighbours = Neighbours::Counts(status.neighbours.counts());
    }
    Ok(status)
}

async fn metrics(call: Call) -> Answer {
    let text = call.blocking(Action::Metrics, |daemon, _| daemon.metrics()).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

async fn events(call: Call, filter: Result<Params<Filter>, ApiError>) -> Answer {
    authorize(call.daemon.as_ref(), &call.guest.peer, Action::ReadEvents)?;
    let Params(filter) = filter?;
    stream::check(&filter)?;
    Ok(stream::respond(call.daemon, call.guest, filter))
}

/// The query parameters of a call.
struct Params<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::from_request_parts(parts, state).await;
        query.map(|Query(params)| Self(params)).map_err(|error| ApiError::bad_request(error.body_text()))
    }
}

/// One call: its caller, and the daemon that answers it.
struct Call {
    daemon: Arc<dyn Governor>,
    guest: Guest,
}

impl FromRequestParts<Arc<dyn Governor>> for Call {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, daemon: &Arc<dyn Governor>) -> Result<Self, ApiError> {
        let guest = parts.extensions.get::<Guest>().cloned();
        let guest = guest.ok_or_else(|| ApiError::Internal("control socket: who calls is not known".to_owned()))?;
        Ok(Self { daemon: Arc::clone(daemon), guest })
    }
}

impl Call {
    /// The answer of [`Call::blocking`], as JSON.
    async fn ask<T: Serialize + Send + 'static>(
        self,
        action: Action,
        work: impl FnOnce(&dyn Governor, &Caller) -> Result<T, ApiError> + Send + 'static,
    ) -> Answer {
        let answer = self.blocking(action, work).await?;
        // As a value, so that the members of each object are in alphabetical order.
        let json = serde_json::to_value(&answer).map_err(|error| ApiError::Internal(error.to_string()))?;
        Ok(Json(json).into_response())
    }

    /// Waits for the caller's turn, checks its rights and asks the daemon, on a thread that may block. The turn lasts until the work is
    /// done, even if the caller leaves before.
    async fn blocking<T: Send + 'static>(
        self,
        action: Action,
        work: impl FnOnce(&dyn Governor, &Caller) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = self.guest.seat.turn().await?;
        let Self { daemon, guest } = self;
        let work = move || {
            let _turn = turn;
            let standing = authorize(daemon.as_ref(), &guest.peer, action)?;
            work(daemon.as_ref(), &Caller { uid: guest.peer.uid, pid: guest.peer.pid, standing })
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => {
                tracing::error!("control: a call ended by a panic: {error}");
                Err(ApiError::Internal("the daemon: this call failed inside; see its log".to_owned()))
            }
        }
    }

    /// The body of a call that the caller may make.
    async fn body<T: DeserializeOwned>(&self, action: Action, request: Request<Body>) -> Result<T, ApiError> {
        let bytes = self.bytes(action, request).await?;
        serde_json::from_slice(&bytes).map_err(|error| ApiError::bad_request(format!("body: {error}")))
    }

    async fn bytes(&self, action: Action, request: Request<Body>) -> Result<Vec<u8>, ApiError> {
        authorize(self.daemon.as_ref(), &self.guest.peer, action)?;
        let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        if length.is_some_and(|text| text.parse::<usize>().is_ok_and(|length| length > MAX_BODY)) {
            return Err(ApiError::TooLarge);
        }
        let read = to_bytes(request.into_body(), MAX_BODY);
        match tokio::time::timeout(BODY_TIMEOUT, read).await {
            Ok(Ok(bytes)) => Ok(bytes.to_vec()),
            Ok(Err(error)) if is_length_limit(&error) => Err(ApiError::TooLarge),
            Ok(Err(error)) => Err(ApiError::bad_request(format!("body: {error}"))),
            Err(_) => Err(ApiError::Timeout),
        }
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        source = error.source();
    }
    false
}
