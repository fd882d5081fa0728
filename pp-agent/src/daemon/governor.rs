//! The daemon's answers to the control socket.

use super::{Daemon, admission};
use crate::api::{
    Because, Check, CheckAnswer, Draft, Forgotten, NeighbourList, PolicyView, ReceiptView, Receipts, RegisterAnswer, Released, Reloaded,
    Revoked, ServerView, Sessions, StartSession, Started, StateAccepted, Status, SwitchOff, Switched,
};
use crate::control::access::Standing;
use crate::control::counters::ControlCounters;
use crate::control::{ApiError, Caller, Governor, stream};
use crate::events::hub::Hub;
use crate::events::{Body, Event, ReceiptChange};
use crate::receipt::Request;

impl Governor for Daemon {
    fn session_of(&self, pid: u32) -> Result<Option<u64>, ApiError> {
        Ok(self.gate.mark_or_doomed(pid)?.map(|mark| mark.session))
    }

    fn operators(&self) -> Option<u32> {
        self.operators.gid()
    }

    fn hub(&self) -> &Hub {
        &self.reports.hub
    }

    fn counters(&self) -> &ControlCounters {
        &self.counters
    }

    fn status(&self) -> Result<Status, ApiError> {
        self.health()
    }

    fn metrics(&self) -> Result<String, ApiError> {
        self.metrics_text()
    }

    fn sessions(&self, owner: Option<u32>) -> Result<Sessions, ApiError> {
        self.list_sessions(owner)
    }

    fn start_session(&self, caller: &Caller, start: &StartSession) -> Result<Started, ApiError> {
        self.begin_session(caller, start)
    }

    fn release(&self, session: u64) -> Result<Released, ApiError> {
        self.end_session(session)
    }

    fn register(&self, artifact: &[u8]) -> Result<RegisterAnswer, ApiError> {
        self.take_artifact(artifact).inspect_err(|error| {
            let event = self.reports.event(Body::Receipt(None, ReceiptChange::Refused(error.code().to_owned())));
            self.reports.publish(event.detail(format!("not registered: {error}")));
        })
    }

    fn receipts(&self) -> Result<Receipts, ApiError> {
        Ok(self.list_receipts())
    }

    fn receipt(&self, id: &str) -> Result<ReceiptView, ApiError> {
        self.show_receipt(id)
    }

    fn revoke(&self, id: &str, reason: &str) -> Result<Revoked, ApiError> {
        self.revoke_receipt(id, reason)
    }

    fn accept_state(&self, caller: &Caller, because: &Because) -> Result<StateAccepted, ApiError> {
        Self::accept_state(self, caller, &because.reason)
    }

    fn switch_off(&self, caller: &Caller, asked: &SwitchOff) -> Result<Switched, ApiError> {
        Self::switch_off(self, caller, asked)
    }

    fn switch_on(&self, caller: &Caller) -> Result<Switched, ApiError> {
        Self::switch_on(self, caller)
    }

    fn check(&self, caller: &Caller, check: &Check) -> Result<CheckAnswer, ApiError> {
        self.answer_check(caller, check)
    }

    fn server_behind(&self, caller: &Caller, event: &Event) -> Option<ServerView> {
        self.find_server(caller, event)
    }

    fn draft(&self, caller: &Caller, draft: &Draft) -> Result<Request, ApiError> {
        let event = draft.event.map(|id| self.event_for(caller, id)).transpose()?;
        let own = self.own_session(caller)?;
        let agent = event
            .as_ref()
            .and_then(|event| event.who.agent.clone())
            .or(own.as_ref().and_then(|(agent, _)| agent.clone()))
            .or_else(|| draft.agent.clone());
        let owner = event.as_ref().and_then(|event| event.who.owner.as_ref());
        let owner = owner.map(|owner| owner.name.clone().unwrap_or_else(|| owner.uid.to_string()));
        let user = owner.or_else(|| draft.user.clone()).or(own.map(|(_, user)| user)).unwrap_or_else(|| {
            let owner = self.reports.builder().owner(caller.uid);
            owner.name.unwrap_or_else(|| owner.uid.to_string())
        });
        let destination = event.as_ref().and_then(|event| event.attempt()?.destination);
        let force = self.rules.now();
        admission::draft(&force.config, agent, user, destination.as_ref(), draft)
    }

    fn policy(&self) -> PolicyView {
        let force = self.rules.now();
        PolicyView {
            origin: force.origin.name().to_owned(),
            files: force.config.sources.iter().map(|source| source.name.clone()).collect(),
            generation: force.generation,
            notes: force.config.notes.clone(),
            off: force.config.off.clone(),
            toml: force.config.to_toml(),
        }
    }

    fn neighbours(&self) -> NeighbourList {
        self.list_neighbours()
    }

    fn forget_neighbour(&self, address: &str) -> Result<Forgotten, ApiError> {
        Self::forget_neighbour(self, address)
    }

    fn reload(&self) -> Result<Reloaded, ApiError> {
        self.reload_policy()
    }
}

impl Daemon {
    /// An event, if this caller may know it.
    fn event_for(&self, caller: &Caller, id: u64) -> Result<Event, ApiError> {
        self.reports
            .hub
            .find(id)?
            .filter(|event| stream::sees(caller.standing, event))
            .filter(Event::is_requestable)
            .ok_or_else(|| ApiError::not_found(format!("event {id}: no refusal of yours has this id; see pp-agent why")))
    }

    /// Agent and owner of the caller's session, if it belongs to one.
    fn own_session(&self, caller: &Caller) -> Result<Option<(Option<String>, String)>, ApiError> {
        let Standing::Agent(Some(_)) = caller.standing else { return Ok(None) };
        let mark = self.gate.mark(caller.pid)?;
        Ok(mark.map(|mark| {
            let mut builder = self.reports.builder();
            let owner = builder.owner(mark.owner);
            (builder.name(mark.agent), owner.name.unwrap_or_else(|| owner.uid.to_string()))
        }))
    }
}
