//! `check`: decides about the live tables with the same `decide()` as the kernel.

use pp_common::behaviour::has_ports;
use pp_common::decide::{Attempt, Kind, Reason, Subject, Verdict, transport};

use super::Daemon;
use super::neighbours::is_of_link;
use crate::api::{Check, CheckAnswer};
use crate::control::{ApiError, Caller};
use crate::events::Destination;
use crate::events::behaviour::scope_text;
use crate::events::build::{addr_of, parse_session};
use crate::name::name_id;
use crate::os::accounts;
use pp_common::abi::TaskMark;

impl Daemon {
    /// What would happen to this connection, and by which rule or receipt.
    pub(super) fn answer_check(&self, caller: &Caller, check: &Check) -> Result<CheckAnswer, ApiError> {
        let subject = self.subject(caller, check)?;
        let transport = transport_number(check.transport.as_deref().unwrap_or("tcp"))?;
        let attempt = Attempt { addr: addr_of(check.address), port: check.port, transport, kind: Kind::Open, counted: 0 };
        let link = self.link_of(check.pid, check.link.as_deref())?;
        // Without its link, an address of the link is decided on the first link that protects it.
        let decision = match check.link {
            None if is_of_link(&attempt) => self.decide_near(&subject, &attempt),
            _ => self.gate.decide_on(link, &subject, &attempt),
        };
        let serial = match decision.serial {
            0 => self.gate.nearest_on(link, &subject, &attempt, &decision).unwrap_or(0),
            serial => serial,
        };
        // The rate rules apply to what needs no receipt.
        let scope = match decision.verdict {
            Verdict::Allow if decision.reason == Reason::NotProtected => Some(self.gate.scope(&attempt)?),
            _ => None,
        };
        let learned = self.words_about(link, &attempt).filter(|_| decision.zone | decision.gateway != 0);
        let builder = self.reports.builder();
        let protected = decision.zone != 0 || decision.gateway != 0;
        let usual = crate::services::service_name(transport, check.port).filter(|_| protected);
        Ok(CheckAnswer {
            verdict: decision.verdict,
            reason: decision.reason,
            receipt: builder.names.receipts.get(&serial).cloned(),
            behaviour: scope.map(|scope| scope_text(scope).to_owned()),
            learned,
            zone: builder.name(decision.zone),
            gateway: builder.name(decision.gateway),
            service: builder.name(decision.service).or_else(|| usual.map(str::to_owned)),
            destination: Destination { address: check.address, port: Some(check.port), transport }.into(),
        })
    }

    fn subject(&self, caller: &Caller, check: &Check) -> Result<Subject, ApiError> {
        let of = |mark: TaskMark| Subject { session: mark.session, agent: mark.agent, owner: mark.owner };
        if let Some(pid) = check.pid {
            return self
                .gate
                .mark(pid)?
                .map(of)
                .ok_or_else(|| ApiError::not_found(format!("process {pid}: belongs to no session, so nothing is refused to it")));
        }
        if let Some(session) = &check.session {
            let session =
                parse_session(session).ok_or_else(|| ApiError::bad_request("session: an id has 16 hex digits; see pp-agent sessions"))?;
            let mark = self.gate.marks()?.into_iter().find(|(_, mark)| mark.session == session);
            return mark
                .map(|(_, mark)| of(mark))
                .ok_or_else(|| ApiError::not_found("session: none of this id has a process; see pp-agent sessions"));
        }
        let agent = check.agent.as_deref().ok_or_else(|| ApiError::bad_request("check: name an agent, a session or a pid"))?;
        let owner = match &check.user {
            Some(user) => uid_of(user)?,
            None => caller.uid,
        };
        // No session has the number zero, so only receipts for any session match.
        Ok(Subject { session: 0, agent: name_id(agent), owner })
    }
}

/// The number of a transport's name.
pub(super) fn transport_number(name: &str) -> Result<u8, ApiError> {
    let number = transport::from_name(name).filter(|number| has_ports(*number));
    number.ok_or_else(|| ApiError::bad_request("transport: one of tcp, udp, udplite, sctp"))
}

/// The uid of a user's name or of digits.
pub(super) fn uid_of(user: &str) -> Result<u32, ApiError> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    match accounts::uid_of(user) {
        Ok(Some(uid)) => Ok(uid),
        Ok(None) => Err(ApiError::bad_request(format!("user {user}: this host knows none of this name"))),
        Err(error) => Err(ApiError::Internal(format!("user {user}: {error}"))),
    }
}
