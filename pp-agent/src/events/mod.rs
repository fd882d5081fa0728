//! Events: what happened, to whom and why, in the form that the socket, the journal and the CLI share.

pub(crate) mod account;
pub(crate) mod behaviour;
pub(crate) mod build;
pub(crate) mod filter;
pub(crate) mod flood;
pub(crate) mod guard;
pub(crate) mod hub;
pub(crate) mod journal;
mod json;
pub(crate) mod mask;
pub(crate) mod names;
pub(crate) mod procs;
pub(crate) mod record;
pub(crate) mod refusals;
#[cfg(test)]
mod sample_tests;
pub(crate) mod store;
pub(crate) mod tally;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use pp_common::behaviour::Rule;
use pp_common::decide::{Reason, is_login_port};
use serde::{Deserialize, Serialize};

use build::transport_text;
pub(crate) use filter::Filter;
pub(crate) use json::{Endpoint, Members, not_known};

pub(crate) use names::{Kind, NeighbourChange, PolicyChange, PostureChange, ProtectionChange, ReceiptChange, UNKNOWN, Verdict, Why};

/// One event. Absent members do not apply or are unknown. `docs/events.md` describes each member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// The number of the event, which the hub assigns in ascending order.
    pub(crate) id: u64,
    /// When, milliseconds since 1970.
    pub(crate) time_ms: i64,
    /// The name of this host in policy.
    pub(crate) host: String,
    /// Whether the canary caused it.
    pub(crate) canary: bool,
    /// Whom it is about.
    pub(crate) who: Who,
    /// What happened.
    pub(crate) body: Body,
    /// Further details, in a sentence.
    pub(crate) detail: Option<String>,
    /// The whole event as another version wrote it, if the other fields cannot represent all of it.
    written: Option<Box<Members<'static>>>,
}

/// Whom an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Who {
    /// The session.
    pub(crate) session: Option<u64>,
    /// Its agent.
    pub(crate) agent: Option<String>,
    /// The owner of its first process, when that was marked.
    pub(crate) owner: Option<Owner>,
    /// The process.
    pub(crate) process: Option<Process>,
    /// The backend that decided.
    pub(crate) backend: Option<String>,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its id.
    pub(crate) pid: u32,
    /// Its ancestors, nearest first.
    pub(crate) parents: Vec<Parent>,
    /// What it runs.
    pub(crate) executable: Option<String>,
    /// Its arguments, masked.
    pub(crate) argv: Vec<String>,
    /// Its cgroup2 path.
    pub(crate) cgroup: Option<String>,
}

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// Its uid.
    pub(crate) uid: u32,
    /// Its name, if the host knows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
}

/// An ancestor of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parent {
    /// Its process id.
    pub(crate) pid: u32,
    /// What it runs; empty if that is not known any more.
    pub(crate) executable: String,
}

/// What happened, by kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// An attempt was decided.
    Verdict(Box<Attempt>),
    /// A session tampered with its own gate.
    Tamper(Box<Attempt>),
    /// An open flow was ended.
    FlowEnded(Box<Attempt>),
    /// A session started, by this rule.
    SessionStart(Option<String>),
    /// A session ended.
    SessionEnd {
        /// Whether an operator released it.
        released: bool,
    },
    /// A session ran a tool, or was refused to run it.
    Exec(Tool),
    /// A receipt was registered, refused, or expired.
    Receipt(Option<String>, ReceiptChange),
    /// This receipt was revoked.
    Revocation(Option<String>),
    /// Events are missing.
    Lost(Loss),
    /// What the gate can enforce changed.
    Posture {
        /// How.
        change: PostureChange,
        /// The program or table that it is about.
        hook: Option<String>,
    },
    /// The policy was loaded, or refused.
    Policy(PolicyChange),
    /// Protection was switched off, or is on again.
    Protection(ProtectionChange),
    /// An address that policy does not name joined a place or left it.
    Neighbour {
        /// How.
        change: NeighbourChange,
        /// The address.
        address: IpAddr,
        /// The zone or gateway.
        place: Place,
    },
    /// Something from another version; the event has it as it was written.
    Unknown,
}

/// An attempt of a session, or several of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// What happened to it.
    pub(crate) verdict: Option<Verdict>,
    /// Why.
    pub(crate) reason: Option<Why>,
    /// Where it went.
    pub(crate) destination: Option<Destination>,
    /// What it was about, if that is no address.
    pub(crate) object: Option<String>,
    /// What made it protected.
    pub(crate) place: Place,
    /// The receipt that allowed it, or that came nearest.
    pub(crate) receipt: Option<String>,
    /// What is used of that receipt.
    pub(crate) budget: Option<Usage>,
    /// An account that the command line names and the receipt does not.
    pub(crate) command_line_account: Option<String>,
    /// Which hook saw it.
    pub(crate) hook: Option<String>,
    /// Further attempts of the same pair, which have no event of their own.
    pub(crate) repeats: u64,
    /// ATT&CK techniques that it shows.
    pub(crate) attack: Vec<String>,
    /// The rate rule that this attempt tripped.
    pub(crate) trip: Option<Trip>,
}

/// What made an attempt protected.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The zone.
    pub(crate) zone: Option<String>,
    /// The gateway.
    pub(crate) gateway: Option<String>,
    /// The service.
    pub(crate) service: Option<String>,
}

/// A rate rule that tripped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trip {
    /// How many there were, including this attempt.
    pub(crate) count: u64,
    /// How many the rule allows in the window.
    pub(crate) limit: u64,
    /// The window, in seconds.
    pub(crate) window_s: u64,
    /// For how many seconds the pattern is blocked.
    pub(crate) cool_down_s: u64,
    /// A sample of the targets, the refused one first.
    pub(crate) targets: Vec<Destination>,
    /// The line for `[behaviour]` that would have exempted it.
    pub(crate) exempt: Option<String>,
}

/// What is used of a receipt, and what it allows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// New connections so far.
    pub(crate) connections: u64,
    /// Most of them; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_connections: Option<u64>,
    /// New connections to login ports and gateways so far.
    pub(crate) attempts: u64,
    /// Most of them; absent: those stay closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_attempts: Option<u64>,
    /// The signed accounts, for the record. The kernel cannot see which account is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) accounts: Vec<String>,
}

/// A tool that a session ran, or was refused to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tool {
    /// What the rule did.
    pub(crate) verdict: Verdict,
    /// The tool; `None` if its rule is from an earlier policy.
    pub(crate) tool: Option<String>,
    /// The shape that its arguments matched.
    pub(crate) shape: Option<String>,
    /// ATT&CK techniques.
    pub(crate) attack: Vec<String>,
    /// In a summary: how often.
    pub(crate) repeats: u64,
}

/// Events that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    /// How many refusals, or other events or records.
    pub(crate) count: u64,
    /// Whether they are refusals.
    pub(crate) refusals: bool,
    /// Whether followers received them, but the store did not.
    pub(crate) not_stored: bool,
}

/// Where an attempt went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "Endpoint")]
pub(crate) struct Destination {
    /// The address, IPv4 in its own form.
    pub(crate) address: IpAddr,
    /// The port; `None` if the packet has none.
    pub(crate) port: Option<u16>,
    /// IP protocol number.
    pub(crate) transport: u8,
}

impl Destination {
    /// Whether its port is a login port.
    #[must_use]
    pub(crate) fn is_login(&self) -> bool {
        self.port.is_some_and(|port| is_login_port(self.transport, port))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = transport_text(self.transport);
        match self.port {
            Some(port) => write!(f, "{}/{transport}", SocketAddr::new(self.address, port)),
            None => write!(f, "{}/{transport}", self.address),
        }
    }
}

impl Event {
    /// An event that names no session yet.
    #[must_use]
    pub(crate) fn new(body: Body, host: &str, time_ms: i64) -> Self {
        Self { id: 0, time_ms, host: host.to_owned(), canary: false, who: Who::default(), body, detail: None, written: None }
    }

    /// Adds details in a sentence.
    #[must_use]
    pub(crate) fn detail(self, text: impl Into<String>) -> Self {
        Self { detail: Some(text.into()), ..self }
    }

    /// Adds whom it is about.
    #[must_use]
    pub(crate) fn about(self, who: Who) -> Self {
        Self { who, ..self }
    }

    /// Its kind; `None` if only another version knows it. Every event of the canary is of the kind `canary`.
    #[must_use]
    pub(crate) fn kind(&self) -> Option<Kind> {
        Some(match &self.body {
            _ if self.canary => Kind::Canary,
            Body::Verdict(_) => Kind::Verdict,
            Body::Tamper(_) => Kind::Tamper,
            Body::FlowEnded(_) => Kind::FlowEnded,
            Body::SessionStart(_) => Kind::SessionStart,
            Body::SessionEnd { .. } => Kind::SessionEnd,
            Body::Exec(_) => Kind::Exec,
            Body::Receipt(..) => Kind::Receipt,
            Body::Revocation(_) => Kind::Revocation,
            Body::Lost(_) => Kind::Lost,
            Body::Posture { .. } => Kind::Posture,
            Body::Policy(_) => Kind::Policy,
            Body::Protection(_) => Kind::Protection,
            Body::Neighbour { .. } => Kind::Neighbour,
            Body::Unknown => return Kind::of_name(&self.written.as_ref()?.kind),
        })
    }

    /// The name of its kind, as it is written.
    #[must_use]
    pub(crate) fn kind_name(&self) -> &str {
        match &self.written {
            Some(written) => &written.kind,
            None => self.kind().map_or(UNKNOWN, Kind::name),
        }
    }

    /// The attempt that it reports, if any.
    #[must_use]
    pub(crate) fn attempt(&self) -> Option<&Attempt> {
        match &self.body {
            Body::Verdict(attempt) | Body::Tamper(attempt) | Body::FlowEnded(attempt) => Some(attempt),
            _ => None,
        }
    }

    /// The verdict on what it reports, if there is one.
    #[must_use]
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        match &self.body {
            Body::Exec(tool) => Some(tool.verdict),
            Body::Lost(loss) => loss.refusals.then_some(Verdict::Block),
            Body::Unknown => self.written.as_ref()?.read_verdict(),
            _ => self.attempt()?.verdict,
        }
    }

    /// Whether it tells of something that was refused, or would have been.
    #[must_use]
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self.verdict(), Some(Verdict::Block | Verdict::Observe | Verdict::Off))
    }

    /// The name of the verdict, as it is written.
    #[must_use]
    pub(crate) fn verdict_name(&self) -> Option<&str> {
        match &self.written {
            Some(written) => written.verdict.as_deref(),
            None => self.verdict().map(Verdict::name),
        }
    }

    /// How many further attempts it counts, which have no event of their own.
    #[must_use]
    pub(crate) fn repeats(&self) -> u64 {
        match &self.body {
            Body::Exec(tool) => tool.repeats,
            _ => self.attempt().map_or(0, |attempt| attempt.repeats),
        }
    }

    /// Whether it counts attempts at several destinations and names none. Only the summary of a flood does so for a reason that is about
    /// one destination.
    #[must_use]
    pub(crate) fn is_of_many(&self) -> bool {
        let Body::Verdict(attempt) = &self.body else { return false };
        let Some(Why::Decided(reason)) = attempt.reason else { return false };
        let is_about_one =
            Rule::of(reason).is_none() && !matches!(reason, Reason::Delegate | Reason::Tamper | Reason::SocketFamily | Reason::Malformed);
        is_about_one && attempt.repeats > 0 && attempt.destination.is_none() && attempt.object.is_none() && self.who.process.is_none()
    }

    /// How many attempts it reports apart from its repeats. An event that only reports repeats names no process.
    #[must_use]
    pub(crate) const fn own_attempts(&self, repeats: u64) -> u64 {
        (self.who.process.is_some() || repeats == 0) as u64
    }

    /// Whether a receipt could have allowed what this event refused.
    #[must_use]
    pub(crate) fn is_requestable(&self) -> bool {
        let Body::Verdict(attempt) = &self.body else { return false };
        !self.canary
            && matches!(attempt.verdict, Some(Verdict::Block | Verdict::Observe | Verdict::Off))
            && attempt.destination.is_some()
            && attempt.reason.is_none_or(Why::is_of_receipts)
    }

    /// The command that asks for a receipt, if one could have helped. It names the id of the event, so there is none before the hub assigns
    /// it.
    #[must_use]
    pub(crate) fn request(&self) -> Option<String> {
        (self.id != 0 && self.is_requestable()).then(|| format!("pp-agent receipt request --from-event {}", self.id))
    }
}

#[cfg(test)]
impl Event {
    /// An event about an attempt over TCP.
    pub(crate) fn of_attempt(verdict: &str, reason: &str, address: &str, port: u16) -> Self {
        let destination = Destination { address: address.parse::<IpAddr>().unwrap().to_canonical(), port: Some(port), transport: 6 };
        let attempt = Attempt {
            verdict: Some(Verdict::of_name(verdict).unwrap()),
            reason: Some(Why::of_name(reason).unwrap()),
            destination: Some(destination),
            ..Attempt::default()
        };
        let process = Some(Process { pid: 42, ..Process::default() });
        let who = Who { session: Some(0xabc), agent: Some("claude-code".into()), process, ..Who::default() };
        Self::new(Body::Verdict(Box::new(attempt)), "eng-ws-12", 1_000).about(who)
    }

    /// The attempt, to change it.
    pub(crate) fn attempt_mut(&mut self) -> &mut Attempt {
        match &mut self.body {
            Body::Verdict(attempt) | Body::Tamper(attempt) | Body::FlowEnded(attempt) => attempt,
            other => panic!("no attempt: {other:?}"),
        }
    }
}

#[cfg(test)]
#[path = "golden_tests.rs"]
mod golden;
