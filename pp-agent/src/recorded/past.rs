//! What an event says of a past attempt.

use std::fmt;

use pp_common::behaviour::Rule;
use pp_common::decide::{Reason, Verdict};
use pp_common::tamper::Tamper;
use serde::Serialize;

use crate::events::{Attempt, Body, Event, Members, UNKNOWN, Why, not_known};

/// Why an event says too little for a draft to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Undecided {
    /// A tool that was run.
    Tool,
    /// A server on the host.
    Delegate,
    /// The gate failed, or somebody tampered with it.
    Gate,
    /// A flow to a gateway went too far.
    Flow,
    /// A pattern that a rate rule blocked. The event that says by how much is missing.
    Pattern,
    /// The writer of the event did not know its verdict or reason.
    Unknown,
}

impl fmt::Display for Undecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl Undecided {
    /// Why, in words.
    #[must_use]
    pub(crate) const fn why(self) -> &'static str {
        match self {
            Self::Tool => "rules about tools are judged at exec",
            Self::Delegate => "who listens on a socket is looked up when it is called",
            Self::Gate => "the gate failed, or was reached for; no policy decides that",
            Self::Flow => "how far a flow to a gateway would have gone is not recorded",
            Self::Pattern => "the event that says by how much a behaviour rule was exceeded is not among them",
            Self::Unknown => "the event names no verdict or reason",
        }
    }
}

/// What the reason of a refusal was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    /// Protection without a matching receipt.
    Receipts,
    /// A receipt that allowed it.
    Receipt,
    /// How far one flow went.
    Flow,
    /// A rate rule.
    Rule(Rule),
    /// A kind of socket, or of packet.
    Socket,
    /// A server on the host.
    Delegate,
    /// The gate.
    Gate,
}

/// An attempt that an event reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PastAttempt<'a> {
    /// The event.
    pub(crate) event: &'a Event,
    /// The attempt.
    pub(crate) attempt: &'a Attempt,
    /// What happened.
    pub(crate) verdict: Verdict,
    /// Why.
    pub(crate) reason: Reason,
}

/// What a draft can do with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past<'a> {
    /// An attempt.
    Attempt(PastAttempt<'a>),
    /// A call to a server of the host that no list names.
    Unlisted(PastAttempt<'a>),
    /// An attempt that says too little.
    Undecided(Undecided),
    /// So many events are missing here.
    Missing(u64),
    /// An event about something that policy does not decide.
    Other,
}

impl<'a> Past<'a> {
    /// Reads one event.
    ///
    /// # Errors
    /// In words: a value of an attempt that this version does not know.
    pub(crate) fn read(event: &'a Event) -> Result<Self, String> {
        Ok(match &event.body {
            _ if event.canary => Self::Other,
            // The summary of a flood: where the attempts went is not recorded.
            Body::Verdict(attempt) if event.is_of_many() => Self::Missing(attempt.repeats),
            Body::Verdict(attempt) => return Self::attempt(event, attempt),
            Body::Exec(_) => Self::Undecided(Undecided::Tool),
            Body::Lost(loss) => Self::Missing(loss.count),
            Body::Tamper(_)
            | Body::FlowEnded(_)
            | Body::SessionStart(_)
            | Body::SessionEnd { .. }
            | Body::Receipt(..)
            | Body::Revocation(_)
            | Body::Posture { .. }
            | Body::Policy(_)
            | Body::Protection(_)
            | Body::Neighbour { .. }
            | Body::Unknown => Self::Other,
        })
    }

    fn attempt(event: &'a Event, attempt: &'a Attempt) -> Result<Self, String> {
        let written = Members::from(event);
        let names = (written.verdict.as_deref(), written.reason.as_deref());
        let (Some(verdict), Some(reason)) = names else { return Ok(Self::Undecided(Undecided::Unknown)) };
        if verdict == UNKNOWN || reason == UNKNOWN {
            return Ok(Self::Undecided(Undecided::Unknown));
        }
        let decided = attempt.verdict.and_then(crate::events::Verdict::decided);
        let verdict = decided.ok_or_else(|| not_known("verdict", verdict))?;
        let reason = match attempt.reason {
            Some(Why::Decided(reason)) => reason,
            Some(Why::Tried(Tamper::UnknownDelegate)) => {
                return Ok(Self::Unlisted(PastAttempt { event, attempt, verdict, reason: Reason::Delegate }));
            }
            // Repeats of calls to delegates have the name of the call as their reason.
            Some(Why::Tried(_)) => return Ok(Self::Undecided(Undecided::Delegate)),
            Some(Why::Unknown) | None => return Err(not_known("reason", reason)),
        };
        written.check_attempt()?;
        Ok(Self::Attempt(PastAttempt { event, attempt, verdict, reason }))
    }
}

impl PastAttempt<'_> {
    /// The agent; empty where the event names none.
    #[must_use]
    pub(crate) fn agent(&self) -> &str {
        self.event.who.agent.as_deref().unwrap_or_default()
    }

    /// How many attempts the event reports.
    #[must_use]
    pub(crate) const fn attempts(&self) -> u64 {
        self.attempt.repeats.saturating_add(self.event.own_attempts(self.attempt.repeats))
    }

    /// Whether a receipt that allowed it also allows logins.
    #[must_use]
    pub(crate) fn logins(&self) -> bool {
        self.attempt.place.gateway.is_some()
            || self.attempt.destination.is_some_and(|to| to.is_login())
            || self.attempt.budget.as_ref().is_some_and(|budget| budget.max_attempts.is_some())
    }

    /// What its reason was about.
    #[must_use]
    pub(crate) fn about(&self) -> About {
        if let Some(rule) = Rule::of(self.reason) {
            return About::Rule(rule);
        }
        match self.reason {
            Reason::Receipt => About::Receipt,
            Reason::TurnsExhausted | Reason::BytesExhausted | Reason::FlowRefused => About::Flow,
            Reason::SocketFamily | Reason::Malformed => About::Socket,
            Reason::Delegate => About::Delegate,
            Reason::GateError | Reason::Tamper | Reason::Probe => About::Gate,
            Reason::NotProtected
            | Reason::NoReceipt
            | Reason::ReceiptOtherAgent
            | Reason::ReceiptOtherUser
            | Reason::ReceiptOtherPort
            | Reason::ReceiptRevoked
            | Reason::ReceiptExpired
            | Reason::ReceiptNotYet
            | Reason::CredentialScope
            | Reason::ReceiptExhausted
            | Reason::SprayTarget
            | Reason::SprayHosts
            | Reason::ScanHosts
            | Reason::ScanPorts
            | Reason::ScanPairs => About::Receipts,
        }
    }
}
