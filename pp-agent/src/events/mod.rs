//! Events: what happened, to whom and why, in the form that the socket, the
//! journal and the CLI share.

pub(crate) mod account;
pub(crate) mod behaviour;
pub(crate) mod build;
pub(crate) mod guard;
pub(crate) mod hub;
pub(crate) mod lines;
pub(crate) mod mask;
pub(crate) mod procs;
pub(crate) mod record;
pub(crate) mod refusals;
#[cfg(test)]
mod sample_tests;
pub(crate) mod store;
pub(crate) mod tally;

use serde::{Deserialize, Serialize};

use crate::clock::parse_rfc3339;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// An attempt was allowed by a receipt, blocked or observed.
    Verdict,
    /// A session began.
    SessionStart,
    /// The last process of a session ended, or it was released.
    SessionEnd,
    /// A receipt was registered, or ended.
    Receipt,
    /// A receipt was revoked.
    Revocation,
    /// Events are missing; `count` says how many.
    Lost,
    /// What the gate can enforce changed.
    Posture,
    /// The policy was loaded, or refused.
    Policy,
    /// The daemon's own test attempt.
    Canary,
    /// An open flow was ended because its receipt was.
    FlowEnded,
    /// A session ran, or would have run, a tool that a rule is about.
    Exec,
    /// A session reached for its own gate, and was refused.
    Tamper,
    /// An address that policy does not name joined a place, or a conflict kept one from it.
    Neighbour,
}

impl Kind {
    /// Its name in events.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::SessionStart => "session_start",
            Self::SessionEnd => "session_end",
            Self::Receipt => "receipt",
            Self::Revocation => "revocation",
            Self::Lost => "lost",
            Self::Posture => "posture",
            Self::Policy => "policy",
            Self::Canary => "canary",
            Self::FlowEnded => "flow_ended",
            Self::Exec => "exec",
            Self::Tamper => "tamper",
            Self::Neighbour => "neighbour",
        }
    }
}

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// Its uid.
    pub(crate) uid: u32,
    /// Its name, where the host knows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
}

/// An ancestor of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parent {
    /// Its process id.
    pub(crate) pid: u32,
    /// What it runs; empty where that is not known any more.
    pub(crate) executable: String,
}

/// Where an attempt went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Destination {
    /// The address, IPv4 in its own form.
    pub(crate) address: String,
    /// The port; absent where the packet has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,
    /// `tcp`, `udp`, ... or the IP protocol number.
    pub(crate) transport: String,
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
    /// The accounts that were signed, for the record: the kernel cannot see
    /// which is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) accounts: Vec<String>,
}

/// One event. Absent members do not apply to its kind or are not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    pub(crate) id: u64,
    pub(crate) time: String,
    pub(crate) host: String,
    pub(crate) kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verdict: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) receipt: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) budget: Option<Usage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) agent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<Owner>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) parents: Vec<Parent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) executable: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) argv: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) command_line_account: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tool: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) shape: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cgroup: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) destination: Option<Destination>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) object: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) zone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hook: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) backend: Option<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) repeats: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) attack: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) request: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) count: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) window_s: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cool_down_s: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) targets: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) exempt: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[cfg(test)]
impl Event {
    /// The verdict of an attempt over TCP, as events tell it.
    pub(crate) fn of_attempt(verdict: &str, reason: &str, address: &str, port: u16) -> Self {
        let mut event = Self::new(Kind::Verdict, "eng-ws-12", 1_000);
        event.verdict = Some(verdict.into());
        event.reason = Some(reason.into());
        event.agent = Some("claude-code".into());
        event.session = Some("0000000000000abc".into());
        event.pid = Some(42);
        event.destination = Some(Destination { address: address.into(), port: Some(port), transport: "tcp".into() });
        event
    }
}

impl Event {
    /// An event of this kind that says nothing else yet; the hub gives the id.
    #[must_use]
    pub(crate) fn new(kind: Kind, host: &str, wall_ms: i64) -> Self {
        Self {
            id: 0,
            time: crate::clock::rfc3339(wall_ms),
            host: host.to_owned(),
            kind,
            verdict: None,
            reason: None,
            rule: None,
            receipt: None,
            budget: None,
            session: None,
            agent: None,
            owner: None,
            pid: None,
            parents: Vec::new(),
            executable: None,
            argv: Vec::new(),
            command_line_account: None,
            tool: None,
            shape: None,
            cgroup: None,
            destination: None,
            object: None,
            service: None,
            zone: None,
            gateway: None,
            hook: None,
            backend: None,
            repeats: 0,
            attack: Vec::new(),
            request: None,
            count: None,
            limit: None,
            window_s: None,
            cool_down_s: None,
            targets: Vec::new(),
            exempt: None,
            detail: None,
        }
    }

    /// With a sentence that says more.
    #[must_use]
    pub(crate) fn detail(mut self, text: impl Into<String>) -> Self {
        self.detail = Some(text.into());
        self
    }

    /// Whether a receipt could have allowed what this event refused.
    #[must_use]
    pub(crate) fn is_requestable(&self) -> bool {
        self.kind == Kind::Verdict
            && matches!(self.verdict.as_deref(), Some("block" | "observe"))
            && self.destination.is_some()
            && !matches!(
                self.reason.as_deref(),
                Some(
                    "socket_family"
                        | "malformed"
                        | "gate_error"
                        | "turns_exhausted"
                        | "bytes_exhausted"
                        | "flow_refused"
                        | "spray_target"
                        | "spray_hosts"
                        | "scan_hosts"
                        | "scan_ports"
                        | "scan_pairs"
                )
            )
    }
}

/// Which events someone wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    /// Stay and tell new ones.
    #[serde(default)]
    pub(crate) follow: bool,
    /// Only this verdict.
    pub(crate) verdict: Option<String>,
    /// Only this kind.
    pub(crate) kind: Option<String>,
    /// Only this agent.
    pub(crate) agent: Option<String>,
    /// Only this session.
    pub(crate) session: Option<String>,
    /// Only after this id, or from this RFC 3339 instant on.
    pub(crate) since: Option<String>,
    /// At most this many of the stored ones, the last.
    pub(crate) limit: Option<usize>,
}

impl Filter {
    /// The first id wanted, from `since`.
    #[must_use]
    pub(crate) fn first_id(&self) -> u64 {
        self.since.as_ref().and_then(|since| since.parse::<u64>().ok()).map_or(0, |id| id + 1)
    }

    /// Whether `since` can be read: a number, or an RFC 3339 instant.
    #[must_use]
    pub(crate) fn is_valid(&self) -> bool {
        self.since.as_ref().is_none_or(|since| since.parse::<u64>().is_ok() || parse_rfc3339(since).is_some())
    }

    /// Whether this event is wanted. A loss that may be anybody's is wanted by everyone.
    #[must_use]
    pub(crate) fn wants(&self, event: &Event) -> bool {
        if event.id < self.first_id() || !self.is_recent(event) {
            return false;
        }
        let fits = |wanted: &Option<String>, value: Option<&str>| wanted.as_deref().is_none_or(|wanted| value == Some(wanted));
        event.kind == Kind::Lost && event.session.is_none() && self.kind.is_none()
            || fits(&self.verdict, event.verdict.as_deref())
                && fits(&self.kind, Some(event.kind.name()))
                && fits(&self.agent, event.agent.as_deref())
                && fits(&self.session, event.session.as_deref())
    }

    fn is_recent(&self, event: &Event) -> bool {
        let since = self.since.as_deref().filter(|since| since.parse::<u64>().is_err());
        let Some(since_ms) = since.and_then(parse_rfc3339) else { return true };
        parse_rfc3339(&event.time).is_none_or(|time_ms| time_ms >= since_ms)
    }
}

#[cfg(test)]
#[path = "golden_tests.rs"]
mod golden;

#[cfg(test)]
mod tests {
    use super::*;

    fn block(id: u64) -> Event {
        let mut event = Event::new(Kind::Verdict, "h", 1_000);
        event.id = id;
        event.verdict = Some("block".into());
        event.agent = Some("codex".into());
        event
    }

    #[test]
    fn filter_takes_only_what_it_names() {
        let filter = Filter { verdict: Some("block".into()), since: Some("4".into()), ..Filter::default() };
        assert!(filter.wants(&block(5)));
        assert!(!filter.wants(&block(4)));
        let other = Filter { agent: Some("goose".into()), ..Filter::default() };
        assert!(!other.wants(&block(5)));
    }

    #[test]
    fn loss_passes_every_filter_but_one_of_kind() {
        let lost = Event::new(Kind::Lost, "h", 0);
        assert!(Filter { agent: Some("goose".into()), ..Filter::default() }.wants(&lost));
        assert!(!Filter { kind: Some("receipt".into()), ..Filter::default() }.wants(&lost));
    }

    #[test]
    fn since_takes_an_instant_too() {
        let filter = Filter { since: Some("1970-01-01T00:00:02.000Z".into()), ..Filter::default() };
        assert!(filter.is_valid() && !filter.wants(&block(5)));
        assert!(!Filter { since: Some("yesterday".into()), ..Filter::default() }.is_valid());
    }

    #[test]
    fn event_survives_json_and_leaves_out_what_it_lacks() {
        let json = serde_json::to_string(&block(1)).unwrap();
        assert!(!json.contains("zone") && !json.contains("null"));
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), block(1));
    }
}
