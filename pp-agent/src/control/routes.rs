//! The calls of the control socket: each names the right it needs, reads its
//! body within bounds, and asks the daemon.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Extension, Path, Query, State};
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::access::{Action, Standing, authorize};
use super::seats::Turn;
use super::server::Guest;
use super::{ApiError, Caller, Check, Draft, Governor, StartSession, stream, why};
use crate::events::Filter;
use crate::events::build::{parse_session, session_text};

/// Most bytes of a request's body.
pub const MAX_BODY: usize = 1024 * 1024;
/// For how long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

type Daemon = State<Arc<dyn Governor>>;
type Calling = Extension<Guest>;
type Answer = Result<Response, ApiError>;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.to_json())).into_response()
    }
}

/// Every call.
pub fn router(governor: Arc<dyn Governor>) -> Router {
    Router::new()
        .route("/v1/self", get(self_info))
        .route("/v1/status", get(status))
        .route("/v1/sessions", get(sessions).post(start_session))
        .route("/v1/sessions/{id}", delete(release))
        .route("/v1/receipts", get(receipts).post(register))
        .route("/v1/receipts/{id}", get(receipt).delete(revoke))
        .route("/v1/requests", post(draft))
        .route("/v1/events", get(events))
        .route("/v1/check", post(check))
        .route("/v1/why", get(why_refused))
        .route("/v1/neighbours", get(neighbours))
        .route("/v1/neighbours/{address}", delete(forget_neighbour))
        .route("/v1/policy", get(policy))
        .route("/v1/policy/reload", post(reload))
        .route("/metrics", get(metrics))
        .fallback(async || ApiError::not_found("this path: no such call; see pp-agent --help"))
        .method_not_allowed_fallback(async || ApiError::new(405, "method_not_allowed", "this path: no such method; see pp-agent --help"))
        .with_state(governor)
}

async fn self_info(State(daemon): Daemon, Extension(guest): Calling) -> Answer {
    ask(daemon, guest, Action::SelfInfo, |_, caller| {
        let session = match caller.standing {
            Standing::Agent(session) => session.map(session_text),
            Standing::User(_) | Standing::Operator => None,
        };
        let marked = matches!(caller.standing, Standing::Agent(_));
        Ok(json!({ "marked": marked, "session": session, "uid": caller.uid }))
    })
    .await
}

async fn status(State(daemon): Daemon, Extension(guest): Calling) -> Answer {
    ask(daemon, guest, Action::Status, |daemon, caller| {
        let mut status = daemon.status()?;
        // A list of addresses is a map of the plant.
        if caller.standing != Standing::Operator
            && let Some(found) = status["neighbours"].as_object_mut()
        {
            found.values_mut().for_each(|list| *list = json!(list.as_array().map_or(0, Vec::len)));
        }
        Ok(status)
    })
    .await
}

async fn sessions(State(daemon): Daemon, Extension(guest): Calling) -> Answer {
    ask(daemon, guest, Action::ListSessions, |daemon, caller| daemon.sessions(caller.standing.sees_owner())).await
}

async fn start_session(State(daemon): Daemon, Extension(guest): Calling, request: Request<Body>) -> Answer {
    authorize(daemon.as_ref(), &guest.peer, Action::StartSession)?;
    let start: StartSession = body(request).await?;
    ask(daemon, guest, Action::StartSession, move |daemon, caller| daemon.start_session(caller, &start)).await
}

async fn release(State(daemon): Daemon, Extension(guest): Calling, Path(id): Path<String>) -> Answer {
    ask(daemon, guest, Action::ReleaseSession, move |daemon, _| {
        let session = parse_session(&id).ok_or_else(|| ApiError::bad_request("session: an id has 16 hex digits; see pp-agent sessions"))?;
        daemon.release(session)
    })
    .await
}

async fn receipts(State(daemon): Daemon, Extension(guest): Calling) -> Answer {
    ask(daemon, guest, Action::ReadReceipts, |daemon, _| daemon.receipts()).await
}

async fn receipt(State(daemon): Daemon, Extension(guest): Calling, Path(id): Path<String>) -> Answer {
    ask(daemon, guest, Action::ReadReceipts, move |daemon, _| daemon.receipt(&id)).await
}

async fn register(State(daemon): Daemon, Extension(guest): Calling, request: Request<Body>) -> Answer {
    authorize(daemon.as_ref(), &guest.peer, Action::RegisterReceipt)?;
    let artifact = bytes(request).await?;
    ask(daemon, guest, Action::RegisterReceipt, move |daemon, _| daemon.register(&artifact)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoke {
    reason: Option<String>,
}

async fn revoke(
    State(daemon): Daemon,
    Extension(guest): Calling,
    Path(id): Path<String>,
    query: Result<Query<Revoke>, axum::extract::rejection::QueryRejection>,
) -> Answer {
    let Query(revoke) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    ask(daemon, guest, Action::RevokeReceipt, move |daemon, _| {
        daemon.revoke(&id, revoke.reason.as_deref().unwrap_or("revoked by an operator of this host"))
    })
    .await
}

async fn draft(State(daemon): Daemon, Extension(guest): Calling, request: Request<Body>) -> Answer {
    authorize(daemon.as_ref(), &guest.peer, Action::DraftRequest)?;
    let draft: Draft = body(request).await?;
    ask(daemon, guest, Action::DraftRequest, move |daemon, caller| daemon.draft(caller, &draft)).await
}

async fn check(State(daemon): Daemon, Extension(guest): Calling, request: Request<Body>) -> Answer {
    authorize(daemon.as_ref(), &guest.peer, Action::Check)?;
    let check: Check = body(request).await?;
    ask(daemon, guest, Action::Check, move |daemon, caller| daemon.check(caller, &check)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Why {
    session: Option<String>,
}

async fn why_refused(
    State(daemon): Daemon,
    Extension(guest): Calling,
    query: Result<Query<Why>, axum::extract::rejection::QueryRejection>,
) -> Answer {
    let Query(of) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    ask(daemon, guest, Action::Why, move |daemon, caller| why::answer(daemon, caller, of.session.as_deref())).await
}

async fn policy(State(daemon): Daemon, Extension(guest): Calling) -> Answer {
    ask(daemon, guest, Action::ReadPolicy, |daemon, _| daemon.policy()).await
}

async fn neighbours(State(daemon): Daemon, Extension(guest): Calling) -> Answer {
    ask(daemon, guest, Action::ReadNeighbours, |daemon, _| daemon.neighbours()).await
}

async fn forget_neighbour(State(daemon): Daemon, Extension(guest): Calling, Path(address): Path<String>) -> Answer {
    ask(daemon, guest, Action::ForgetNeighbour, move |daemon, _| daemon.forget_neighbour(&address)).await
}

async fn reload(State(daemon): Daemon, Extension(guest): Calling) -> Answer {
    ask(daemon, guest, Action::ReloadPolicy, |daemon, _| daemon.reload()).await
}

async fn metrics(State(daemon): Daemon, Extension(guest): Calling) -> Answer {
    let text = blocking(guest.seat.turn().await?, move || {
        authorize(daemon.as_ref(), &guest.peer, Action::Metrics)?;
        daemon.metrics()
    })
    .await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

async fn events(
    State(daemon): Daemon,
    Extension(guest): Calling,
    query: Result<Query<Filter>, axum::extract::rejection::QueryRejection>,
) -> Answer {
    authorize(daemon.as_ref(), &guest.peer, Action::ReadEvents)?;
    let Query(filter) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    stream::check(&filter)?;
    Ok(stream::respond(daemon, guest, filter))
}

/// Judges the caller and asks the daemon, on a thread that may block, when it is the caller's turn.
async fn ask(
    daemon: Arc<dyn Governor>,
    guest: Guest,
    action: Action,
    call: impl FnOnce(&dyn Governor, &Caller) -> Result<Value, ApiError> + Send + 'static,
) -> Answer {
    let value = blocking(guest.seat.turn().await?, move || {
        let standing = authorize(daemon.as_ref(), &guest.peer, action)?;
        call(daemon.as_ref(), &Caller { uid: guest.peer.uid, pid: guest.peer.pid, standing })
    })
    .await?;
    Ok(Json(value).into_response())
}

/// The turn lasts as long as the work, also where the caller leaves meanwhile.
async fn blocking<T: Send + 'static>(turn: Turn, work: impl FnOnce() -> Result<T, ApiError> + Send + 'static) -> Result<T, ApiError> {
    let work = move || {
        let _turn = turn;
        work()
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!("control: a call ended by a panic: {error}");
            Err(ApiError::internal("the daemon: this call failed inside; see its log"))
        }
    }
}

async fn bytes(request: Request<Body>) -> Result<Vec<u8>, ApiError> {
    let too_large = || ApiError::new(413, "too_large", format!("body: larger than {MAX_BODY} bytes"));
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if length.is_some_and(|text| text.parse::<usize>().is_ok_and(|length| length > MAX_BODY)) {
        return Err(too_large());
    }
    let read = to_bytes(request.into_body(), MAX_BODY);
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(bytes)) => Ok(bytes.to_vec()),
        Ok(Err(error)) if is_length_limit(&error) => Err(too_large()),
        Ok(Err(error)) => Err(ApiError::bad_request(format!("body: {error}"))),
        Err(_) => Err(ApiError::new(408, "timeout", "body: did not arrive within 10 seconds")),
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

async fn body<T: DeserializeOwned>(request: Request<Body>) -> Result<T, ApiError> {
    let bytes = bytes(request).await?;
    serde_json::from_slice(&bytes).map_err(|error| ApiError::bad_request(format!("body: {error}")))
}
