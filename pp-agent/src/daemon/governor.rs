//! The daemon as the control socket sees it.

use serde_json::{Value, json};

use super::{Daemon, admission};
use crate::control::access::Standing;
use crate::control::{ApiError, Caller, Check, Draft, Governor, StartSession, stream};
use crate::events::Event;
use crate::events::hub::Hub;
use crate::metrics::ControlCounters;

impl Governor for Daemon {
    fn session_of(&self, pid: u32) -> Result<Option<u64>, ApiError> {
        let mark = self.gate.mark_or_doomed(pid).map_err(ApiError::internal)?;
        Ok(mark.map(|mark| mark.session))
    }

    fn operators(&self) -> Option<u32> {
        self.operators.gid()
    }

    fn hub(&self) -> &Hub {
        &self.hub
    }

    fn counters(&self) -> &ControlCounters {
        &self.counters
    }

    fn status(&self) -> Result<Value, ApiError> {
        self.health()
    }

    fn metrics(&self) -> Result<String, ApiError> {
        self.metrics_text()
    }

    fn sessions(&self, owner: Option<u32>) -> Result<Value, ApiError> {
        self.list_sessions(owner)
    }

    fn start_session(&self, caller: &Caller, start: &StartSession) -> Result<Value, ApiError> {
        self.begin_session(caller, start)
    }

    fn release(&self, session: u64) -> Result<Value, ApiError> {
        self.end_session(session)
    }

    fn register(&self, artifact: &[u8]) -> Result<Value, ApiError> {
        self.take_artifact(artifact).inspect_err(|error| {
            let mut event = self.event(crate::events::Kind::Receipt);
            event.reason = Some(error.code.clone());
            self.hub.publish(event.detail(format!("not registered: {}", error.message)));
        })
    }

    fn receipts(&self) -> Result<Value, ApiError> {
        self.list_receipts()
    }

    fn receipt(&self, id: &str) -> Result<Value, ApiError> {
        self.show_receipt(id)
    }

    fn revoke(&self, id: &str, reason: &str) -> Result<Value, ApiError> {
        self.revoke_receipt(id, reason)
    }

    fn check(&self, caller: &Caller, check: &Check) -> Result<Value, ApiError> {
        self.answer_check(caller, check)
    }

    fn draft(&self, caller: &Caller, draft: &Draft) -> Result<Value, ApiError> {
        let event = draft.event.map(|id| self.event_for(caller, id)).transpose()?;
        let own = self.own_session(caller)?;
        let agent = event
            .as_ref()
            .and_then(|event| event.agent.clone())
            .or(own.as_ref().and_then(|(agent, _)| agent.clone()))
            .or_else(|| draft.agent.clone());
        let owner = event.as_ref().and_then(|event| event.owner.as_ref());
        let owner = owner.map(|owner| owner.name.clone().unwrap_or_else(|| owner.uid.to_string()));
        let user = owner.or_else(|| draft.user.clone()).or(own.map(|(_, user)| user)).unwrap_or_else(|| {
            let owner = self.builder().owner(caller.uid);
            owner.name.unwrap_or_else(|| owner.uid.to_string())
        });
        let destination = event.as_ref().and_then(|event| event.destination.clone());
        let inner = self.inner();
        admission::draft(&inner.config, agent, user, destination.as_ref(), draft)
    }

    fn policy(&self) -> Result<Value, ApiError> {
        let inner = self.inner();
        let files: Vec<&str> = inner.config.sources.iter().map(|source| source.name.as_str()).collect();
        Ok(json!({
            "origin": inner.origin.name(),
            "files": files,
            "generation": inner.generation,
            "notes": inner.config.notes,
            "off": inner.config.off,
            "toml": inner.config.to_toml(),
        }))
    }

    fn neighbours(&self) -> Result<Value, ApiError> {
        Ok(self.list_neighbours())
    }

    fn forget_neighbour(&self, address: &str) -> Result<Value, ApiError> {
        Daemon::forget_neighbour(self, address)
    }

    fn reload(&self) -> Result<Value, ApiError> {
        self.reload_policy()
    }
}

impl Daemon {
    /// An event, if this caller may know it.
    fn event_for(&self, caller: &Caller, id: u64) -> Result<Event, ApiError> {
        let found = self.hub.find(id).map_err(ApiError::internal)?;
        found
            .filter(|event| stream::sees(caller.standing, event))
            .filter(Event::is_requestable)
            .ok_or_else(|| ApiError::not_found(format!("event {id}: no refusal of yours has this id; see pp-agent why")))
    }

    /// Agent and owner of the caller's session, if it belongs to one.
    fn own_session(&self, caller: &Caller) -> Result<Option<(Option<String>, String)>, ApiError> {
        let Standing::Agent(Some(_)) = caller.standing else { return Ok(None) };
        let mark = self.gate.mark(caller.pid).map_err(ApiError::internal)?;
        Ok(mark.map(|mark| {
            let mut builder = self.builder();
            let owner = builder.owner(mark.owner);
            (builder.name(mark.agent), owner.name.unwrap_or_else(|| owner.uid.to_string()))
        }))
    }
}
