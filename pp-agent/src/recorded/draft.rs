//! What a policy that is not in force would decide about past attempts. It uses the same `compile()` and `decide()` as the kernel, over
//! plain collections.
//!
//! An event does not say everything. An attempt that a receipt allowed is decided as if a receipt for just that attempt were in force.
//! A refused attempt is decided without any receipt. A rate rule is decided by the number that its event recorded. Where an event says
//! too little, the answer is [`Undecided`], never a guess.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};

use pp_common::abi::NameId;
use pp_common::behaviour::{JudgedNetwork, LIMITS_OBSERVE, LONG_NS, Limits, MAX_LOGINS, MAX_PAIRS, Rule, SHORT_NS, Scope, scope};
use pp_common::decide::{Attempt, Decision, Kind, Reason, Subject, Tables, decide};

use super::past::{About, PastAttempt, Undecided};
use crate::config::Config;
use crate::events::Destination;
use crate::events::build::addr_of;
use crate::name::name_id;
use crate::net::Prefix;
use crate::policy::{self, GrantSource, HostTables, KernelTables, PolicyError};
use crate::receipt::terms::{PortRange, Target, Transport};

/// Nanoseconds in a second.
const SECOND_NS: u64 = 1_000_000_000;
/// The port of SSH, which has limits of its own.
const SSH: u16 = 22;

/// What a tripped rule blocked: host, session, rule, and the address and port if the rule names them.
type Pattern = (String, Option<u64>, Rule, Option<IpAddr>, Option<(u8, u16)>);

/// A compiled draft that answers questions.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    config: &'a Config,
    tables: HostTables,
    judged_networks: Vec<(Prefix, JudgedNetwork)>,
    limits: Limits,
    names: HashMap<NameId, String>,
    /// What was decided about attempts that a receipt allowed.
    covered: HashMap<(NameId, Destination, bool), Decision>,
    /// Whether the draft would block a pattern that was blocked.
    patterns: BTreeMap<Pattern, bool>,
}

impl<'a> Draft<'a> {
    /// Compiles a policy without receipts and cgroups.
    ///
    /// # Errors
    /// It needs more than the kernel's tables hold.
    pub(crate) fn new(config: &'a Config) -> Result<Self, PolicyError> {
        let compiled = policy::compile(config, &[], &[], &[])?;
        Ok(Self {
            config,
            tables: host_tables(&compiled),
            judged_networks: compiled.judged_networks,
            limits: compiled.limits,
            names: config.names().into_iter().collect(),
            covered: HashMap::new(),
            patterns: BTreeMap::new(),
        })
    }

    /// The policy.
    #[must_use]
    pub(crate) const fn config(&self) -> &'a Config {
        self.config
    }

    /// The name of a zone, gateway or service; `None` for zero.
    #[must_use]
    pub(crate) fn name(&self, id: NameId) -> Option<&str> {
        self.names.get(&id).map(String::as_str)
    }

    /// What would happen to an attempt without any receipt.
    pub(crate) fn without_receipt(&self, to: Destination) -> Decision {
        decide(&self.tables, &subject(0), &attempt(to))
    }

    /// What would happen to a past attempt; [`Undecided`] where its event says too little.
    ///
    /// # Errors
    /// The tables are too small for a receipt.
    pub(crate) fn decide(&mut self, past: &PastAttempt<'_>) -> Result<Result<Decision, Undecided>, PolicyError> {
        Ok(match (past.about(), past.attempt.destination) {
            (About::Receipts, Some(to)) => Ok(self.without_receipt(to)),
            (About::Receipt, Some(to)) => Ok(self.with_receipt(past, to)?),
            (About::Flow, Some(to)) => Some(self.without_receipt(to)).filter(is_open).ok_or(Undecided::Flow),
            (About::Rule(rule), Some(to)) => match self.without_receipt(to) {
                open if is_open(&open) => self.by_rule(past, rule, to),
                protected => Ok(protected),
            },
            (About::Rule(_), None) => Err(Undecided::Pattern),
            (About::Receipts | About::Receipt | About::Flow, None) => Err(Undecided::Unknown),
            (About::Socket, _) => Ok(Decision::refuse(past.reason, self.tables.flags())),
            (About::Delegate, _) => Err(Undecided::Delegate),
            (About::Gate, _) => Err(Undecided::Gate),
        })
    }

    /// Decides as if a receipt for this attempt alone were in force. It allows logins if the receipt of that time did.
    fn with_receipt(&mut self, past: &PastAttempt<'_>, to: Destination) -> Result<Decision, PolicyError> {
        let agent = name_id(past.agent());
        let key = (agent, to, past.logins());
        if let Some(decision) = self.covered.get(&key) {
            return Ok(*decision);
        }
        let attempt = attempt(to);
        let ports = vec![to.port.map_or(PortRange::ANY, |port| PortRange { first: port, last: port })];
        let addresses = [Some(attempt.addr), attempt.addr.embedded()].into_iter().flatten();
        // A packet without a port is covered by a grant of every port of any transport.
        let transport = Transport::of_protocol(to.transport).unwrap_or(Transport::Tcp);
        let network = |addr: pp_common::dest::Addr| Ipv6Addr::from(addr.octets()).to_canonical().into();
        let targets = addresses.map(|addr| Target { network: network(addr), transport, ports: ports.clone() });
        let receipt = GrantSource {
            serial: 1,
            agent,
            session: 0,
            uids: None,
            targets: targets.collect(),
            from_ns: 0,
            until_ns: u64::MAX,
            max_connections: 0,
            max_attempts: u64::from(past.logins()),
            max_turns: 0,
            ended: 0,
        };
        let tables = host_tables(&policy::compile(self.config, &[receipt], &[], &[])?);
        let decision = decide(&tables, &subject(agent), &attempt);
        self.covered.insert(key, decision);
        Ok(decision)
    }

    /// Decides by the number that the rule's event recorded. Nothing is counted again.
    fn by_rule(&mut self, past: &PastAttempt<'_>, rule: Rule, to: Destination) -> Result<Decision, Undecided> {
        let target = attempt(to);
        let addr = target.addr.embedded().unwrap_or(target.addr);
        let network = self.judged_networks.iter().filter(|(prefix, _)| prefix.contains(&addr)).max_by_key(|(prefix, _)| prefix.len);
        let scope = scope(network.map(|(_, network)| network), to.is_login(), target.port);
        if scope == Scope::Nothing {
            return Ok(Decision::PASS);
        }
        let host = rule.names_host().then_some(to.address);
        let what = rule.names_port().then_some((to.transport, target.port));
        let pattern = (past.event.host.clone(), past.event.who.session, rule, host, what);
        let blocked = match &past.attempt.trip {
            Some(trip) => {
                let limit = limit(&self.limits, rule, trip.window_s, target.port);
                let holds = scope == Scope::Internal || counts_everywhere(rule, trip.window_s);
                let blocked = holds && limit.is_some_and(|limit| trip.count > u64::from(limit));
                self.patterns.insert(pattern, blocked);
                blocked
            }
            None => *self.patterns.get(&pattern).ok_or(Undecided::Pattern)?,
        };
        let flags = self.limits.flags & LIMITS_OBSERVE;
        Ok(if blocked { Decision::PASS.by_rule(rule.reason(), flags) } else { Decision::PASS })
    }
}

/// Whether no zone, gateway or service protects the destination.
pub(crate) fn is_open(decision: &Decision) -> bool {
    decision.reason == Reason::NotProtected
}

/// Boot time zero: the receipts made here have no window.
fn host_tables(compiled: &KernelTables) -> HostTables {
    HostTables::new(compiled, 0, HashMap::new())
}

/// No session and no owner: only receipts for any session and any owner match.
const fn subject(agent: NameId) -> Subject {
    Subject { session: 0, agent, owner: 0 }
}

/// An event does not say whether a connection was opened or answered. It is taken as opened, which is the stricter case.
fn attempt(to: Destination) -> Attempt {
    let kind = if to.port.is_some() { Kind::Open } else { Kind::Portless };
    Attempt { addr: addr_of(to.address), port: to.port.unwrap_or(0), transport: to.transport, kind, counted: 0 }
}

/// How much a rule allows in a window of this many seconds; `None` where the rule has no such window.
fn limit(limits: &Limits, rule: Rule, window_s: u64, port: u16) -> Option<u32> {
    let short = window_s == SHORT_NS / SECOND_NS;
    let long = window_s == LONG_NS / SECOND_NS;
    let most = |number: u32, most: usize| number.min(u32::try_from(most).unwrap_or(u32::MAX));
    match rule {
        Rule::Target if short => Some(if port == SSH { limits.ssh_short } else { limits.target_short }),
        Rule::Target if long => Some(if port == SSH { limits.ssh_long } else { limits.target_long }),
        Rule::Logins if short => Some(limits.login_hosts),
        Rule::Logins if long => Some(most(limits.login_targets, MAX_LOGINS)),
        Rule::Target | Rule::Logins => None,
        Rule::Hosts => Some(limits.port_hosts),
        Rule::Ports => Some(limits.host_ports),
        Rule::Pairs => Some(most(limits.pairs, MAX_PAIRS)),
    }
}

/// Whether a rule also applies where only logins are counted.
const fn counts_everywhere(rule: Rule, window_s: u64) -> bool {
    match rule {
        Rule::Hosts | Rule::Ports | Rule::Pairs => true,
        Rule::Logins => window_s == SHORT_NS / SECOND_NS,
        Rule::Target => false,
    }
}

#[cfg(test)]
#[path = "draft_tests.rs"]
mod tests;
