//! What an event tells of an attempt, read strictly.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use pp_common::decide::{Reason, Verdict, is_login_port};
use pp_common::protect::Tamper;

use super::Blind;
use crate::clock::parse_rfc3339;
use crate::events::build::{transport_number, transport_text};
use crate::events::{Event, Kind};

/// Where an attempt went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct To {
    /// The address, IPv4 in its own form.
    pub(crate) address: IpAddr,
    /// The port; `None` where the packet had none.
    pub(crate) port: Option<u16>,
    /// IP protocol number.
    pub(crate) transport: u8,
}

impl To {
    /// Whether it is a login by its port.
    #[must_use]
    pub(crate) fn is_login(&self) -> bool {
        self.port.is_some_and(|port| is_login_port(self.transport, port))
    }
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = transport_text(self.transport);
        match self.port {
            Some(port) => write!(f, "{}/{transport}", SocketAddr::new(self.address, port)),
            None => write!(f, "{}/{transport}", self.address),
        }
    }
}

/// An attempt that an event tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// The host it happened on.
    pub(crate) host: String,
    /// The agent; empty where the event names none.
    pub(crate) agent: String,
    /// The session's digits.
    pub(crate) session: Option<String>,
    /// When, milliseconds since 1970.
    pub(crate) time_ms: i64,
    /// What happened.
    pub(crate) verdict: Verdict,
    /// Why.
    pub(crate) reason: Reason,
    /// Where to; `None` where it was about no address.
    pub(crate) to: Option<To>,
    /// How many attempts it stands for.
    pub(crate) attempts: u64,
    /// The receipt that allowed it also allows logins.
    pub(crate) logins: bool,
    /// Of a behaviour rule that tripped: the number it came to, and the window in seconds.
    pub(crate) count: Option<(u64, u64)>,
    /// Of a behaviour rule that tripped: a sample of what it was about, the refused one first.
    pub(crate) sample: Vec<To>,
}

/// What an event is to a draft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// An attempt.
    Attempt(Box<Told>),
    /// An attempt that says too little.
    Blind(Blind),
    /// So many events are missing here.
    Missing(u64),
    /// Nothing that policy decides.
    Other,
}

impl Then {
    /// Reads one event.
    ///
    /// # Errors
    /// A value that no event of this version has, in words.
    pub(crate) fn read(event: &Event) -> Result<Self, String> {
        match event.kind {
            Kind::Verdict => Self::attempt(event),
            Kind::Exec => Ok(Self::Blind(Blind::Tool)),
            Kind::Lost => Ok(Self::Missing(event.count.unwrap_or(1))),
            Kind::SessionStart
            | Kind::SessionEnd
            | Kind::Receipt
            | Kind::Revocation
            | Kind::Posture
            | Kind::Policy
            | Kind::Canary
            | Kind::FlowEnded
            | Kind::Tamper
            | Kind::Neighbour => Ok(Self::Other),
        }
    }

    fn attempt(event: &Event) -> Result<Self, String> {
        let (Some(verdict), Some(reason)) = (event.verdict.as_deref(), event.reason.as_deref()) else {
            return Ok(Self::Blind(Blind::Unknown));
        };
        if verdict == "unknown" || reason == "unknown" {
            return Ok(Self::Blind(Blind::Unknown));
        }
        let all = [Verdict::Allow, Verdict::Block, Verdict::Observe];
        let verdict = all.into_iter().find(|known| known.name() == verdict).ok_or_else(|| not_known("verdict", verdict))?;
        let Some(reason) = Reason::ALL.iter().copied().find(|known| known.name() == reason) else {
            // Repeats of calls to delegates are told under the names of what was tried.
            let tried = Tamper::ALL.iter().any(|known| known.name() == reason);
            return if tried { Ok(Self::Blind(Blind::Delegate)) } else { Err(not_known("reason", reason)) };
        };
        let to = match &event.destination {
            Some(to) => Some(place(&to.address, to.port, &to.transport)?),
            None => None,
        };
        let time_ms = parse_rfc3339(&event.time).ok_or_else(|| not_known("time", &event.time))?;
        let was_login = event.gateway.is_some() || to.is_some_and(|to| to.is_login());
        Ok(Self::Attempt(Box::new(Told {
            host: event.host.clone(),
            agent: event.agent.clone().unwrap_or_default(),
            session: event.session.clone(),
            time_ms,
            verdict,
            reason,
            to,
            // Repeats that are told by themselves name no process.
            attempts: event.repeats.saturating_add(u64::from(event.pid.is_some() || event.repeats == 0)),
            logins: was_login || event.budget.as_ref().is_some_and(|budget| budget.max_attempts.is_some()),
            count: event.count.zip(event.window_s),
            sample: event.targets.iter().map(|target| sample(target)).collect::<Result<_, _>>()?,
        })))
    }
}

fn place(address: &str, port: Option<u16>, transport: &str) -> Result<To, String> {
    let address: IpAddr = address.parse().map_err(|_| not_known("address", address))?;
    let transport = transport_number(transport).ok_or_else(|| not_known("transport", transport))?;
    Ok(To { address: address.to_canonical(), port, transport })
}

/// Reads what [`To`] writes.
fn sample(target: &str) -> Result<To, String> {
    let wrong = || not_known("target", target);
    let (to, transport) = target.rsplit_once('/').ok_or_else(wrong)?;
    match to.parse::<SocketAddr>() {
        Ok(to) => place(&to.ip().to_string(), Some(to.port()), transport),
        Err(_) => place(to, None, transport).map_err(|_| wrong()),
    }
}

fn not_known(what: &str, found: &str) -> String {
    let short: String = found.chars().take(64).collect();
    format!("is no event of this version: its {what} is `{short}`")
}
