//! The control socket: HTTP/1.1 with JSON over a unix socket. The rights of the caller are checked for every request.

pub(crate) mod access;
pub(crate) mod client;
pub(crate) mod counters;
mod error;
pub(crate) mod routes;
pub(crate) mod seats;
pub(crate) mod server;
pub(crate) mod stream;
pub(crate) mod trust;
pub(crate) mod why;

pub(crate) use error::ApiError;

use crate::api::{
    Because, Check, CheckAnswer, Draft, Forgotten, NeighbourList, PolicyView, ReceiptView, Receipts, RegisterAnswer, Released, Reloaded,
    Revoked, ServerView, Sessions, StartSession, Started, StateAccepted, Status, SwitchOff, Switched,
};
use crate::events::Event;
use crate::events::hub::Hub;
use crate::receipt::Request;
use counters::ControlCounters;

/// Who makes a call, after its rights were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Its uid when it connected.
    pub(crate) uid: u32,
    /// Its pid; zero: it has ended.
    pub(crate) pid: u32,
    /// What it may do.
    pub(crate) standing: access::Standing,
}

/// What the socket needs of the daemon. Every call may block, so the server makes them on other threads.
pub(crate) trait Governor: Send + Sync + 'static {
    /// The session of a process; an error means that it is unknown.
    fn session_of(&self, pid: u32) -> Result<Option<u64>, ApiError>;
    /// The gid of the operators' group, if the host has one.
    fn operators(&self) -> Option<u32>;
    /// The events.
    fn hub(&self) -> &Hub;
    /// Counters of the socket itself.
    fn counters(&self) -> &ControlCounters;
    /// `GET /v1/status`.
    fn status(&self) -> Result<Status, ApiError>;
    /// `GET /metrics`.
    fn metrics(&self) -> Result<String, ApiError>;
    /// `GET /v1/sessions`, of one owner or of all.
    fn sessions(&self, owner: Option<u32>) -> Result<Sessions, ApiError>;
    /// `POST /v1/sessions`.
    fn start_session(&self, caller: &Caller, start: &StartSession) -> Result<Started, ApiError>;
    /// `DELETE /v1/sessions/{id}`.
    fn release(&self, session: u64) -> Result<Released, ApiError>;
    /// `POST /v1/receipts`: an artifact of a receipt or of a revocation.
    fn register(&self, artifact: &[u8]) -> Result<RegisterAnswer, ApiError>;
    /// `GET /v1/receipts`.
    fn receipts(&self) -> Result<Receipts, ApiError>;
    /// `GET /v1/receipts/{id}`.
    fn receipt(&self, id: &str) -> Result<ReceiptView, ApiError>;
    /// `DELETE /v1/receipts/{id}`.
    fn revoke(&self, id: &str, reason: &str) -> Result<Revoked, ApiError>;
    /// `POST /v1/state/accept`.
    fn accept_state(&self, caller: &Caller, because: &Because) -> Result<StateAccepted, ApiError>;
    /// `POST /v1/off`.
    fn switch_off(&self, caller: &Caller, asked: &SwitchOff) -> Result<Switched, ApiError>;
    /// `POST /v1/on`.
    fn switch_on(&self, caller: &Caller) -> Result<Switched, ApiError>;
    /// `POST /v1/check`.
    fn check(&self, caller: &Caller, check: &Check) -> Result<CheckAnswer, ApiError>;
    /// The server of a session that did what this event reports, where a server did.
    fn server_behind(&self, caller: &Caller, event: &Event) -> Option<ServerView>;
    /// `POST /v1/requests`.
    fn draft(&self, caller: &Caller, draft: &Draft) -> Result<Request, ApiError>;
    /// `GET /v1/policy`.
    fn policy(&self) -> PolicyView;
    /// `GET /v1/neighbours`.
    fn neighbours(&self) -> NeighbourList;
    /// `DELETE /v1/neighbours/{address}`.
    fn forget_neighbour(&self, address: &str) -> Result<Forgotten, ApiError>;
    /// `POST /v1/policy/reload`. A policy that is refused changes nothing.
    fn reload(&self) -> Result<Reloaded, ApiError>;
}
