//! What an event says about a rate rule that tripped: count, limit, a sample of the targets, and the policy line that exempts them.

use ipnet::IpNet;
use pp_common::behaviour::{History, Rule, Scope, port_of, transport_of, what};
use pp_common::decide::{Reason, Verdict};
use pp_common::record::VerdictRecord;

use super::build::address;
use super::{Destination, Trip};
use crate::config::Exemption;
use std::net::IpAddr;

/// Most targets of a sample.
const SAMPLE: usize = 8;
/// Prefix lengths of the widest networks that are proposed as an exemption, IPv4 and IPv6.
const WIDEST: (u8, u8) = (16, 48);

/// The rule that a record is about.
#[must_use]
pub(crate) fn rule_of(record: &VerdictRecord) -> Option<Rule> {
    Reason::from_code(record.reason).and_then(Rule::of)
}

/// ATT&CK techniques that a tripped rule shows, and for scans the one of ATT&CK for ICS.
#[must_use]
pub(crate) const fn techniques(rule: Rule) -> &'static [&'static str] {
    match rule {
        Rule::Target => &["T1110.001"],
        Rule::Logins => &["T1110.003"],
        Rule::Hosts | Rule::Ports | Rule::Pairs => &["T1046", "T0846"],
    }
}

/// The details of a rule's first refusal, also as a sentence. `history`: what the session tried to reach, if it is still known.
#[must_use]
pub(crate) fn trip(record: &VerdictRecord, history: Option<&History>) -> Option<(Trip, String)> {
    let rule = rule_of(record).filter(|_| record.count != 0)?;
    let mut targets = vec![(address(record.addr), what(record.transport, record.port))];
    for target in history.map(|history| matching(rule, record, history)).unwrap_or_default() {
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    let verb = if record.verdict == Verdict::Block as u8 { "is" } else { "would be" };
    let detail = format!(
        "{} in {} s, at most {} are allowed; this pattern {verb} blocked for {} s",
        counted(rule, record.count),
        record.window_s,
        record.limit,
        record.cool_down_s,
    );
    // No exemption applies to a zone or gateway.
    let is_free = record.zone == 0 && record.gateway == 0;
    let trip = Trip {
        count: record.count.into(),
        limit: record.limit.into(),
        window_s: record.window_s.into(),
        cool_down_s: record.cool_down_s.into(),
        targets: targets.iter().take(SAMPLE).map(|(host, what)| destination(*host, *what)).collect(),
        exempt: exemption(rule, record, &targets).filter(|_| is_free),
    };
    Some((trip, detail))
}

fn counted(rule: Rule, count: u32) -> String {
    match rule {
        Rule::Target => format!("{count} connections to one login target"),
        Rule::Logins => format!("{count} login targets"),
        Rule::Hosts => format!("{count} hosts on one port"),
        Rule::Ports => format!("{count} ports on one host"),
        Rule::Pairs => format!("{count} pairs of host and port"),
    }
}

fn matching(rule: Rule, record: &VerdictRecord, history: &History) -> Vec<(IpAddr, u32)> {
    let own = what(record.transport, record.port);
    let used = usize::try_from(history.used).unwrap_or(0);
    let mut pairs: Vec<_> = history.pairs.iter().take(used).collect();
    pairs.sort_unstable_by_key(|pair| std::cmp::Reverse(pair.seen_ns));
    pairs
        .into_iter()
        .filter(|pair| !rule.names_host() || pair.addr == record.addr)
        .filter(|pair| !rule.names_port() || pair.what == own)
        .map(|pair| (address(pair.addr), pair.what))
        .collect()
}

fn destination(address: IpAddr, what: u32) -> Destination {
    Destination { address, port: Some(port_of(what)).filter(|port| *port != 0), transport: transport_of(what) }
}

/// The line for `[behaviour]` that would exempt the targets.
fn exemption(rule: Rule, record: &VerdictRecord, targets: &[(IpAddr, u32)]) -> Option<String> {
    let hosts = targets.iter().map(|(host, _)| IpNet::from(*host));
    let networks = match common(hosts.clone()) {
        Some(all) if is_narrow(all) => vec![all],
        _ => {
            let mut hosts: Vec<_> = hosts.collect();
            hosts.sort_unstable();
            hosts.dedup();
            hosts
        }
    };
    let ports = (rule.names_port() && record.port != 0).then_some((record.port, record.port));
    let lines: Vec<String> = networks.into_iter().map(|network| format!("\"{}\"", Exemption { network, ports })).collect();
    (!lines.is_empty()).then(|| format!("exempt = [{}]", lines.join(", ")))
}

/// The smallest network that contains all of them; none if they are of two families.
pub(crate) fn common(mut hosts: impl Iterator<Item = IpNet>) -> Option<IpNet> {
    let mut wide = hosts.next()?;
    for host in hosts {
        while !wide.contains(&host) {
            wide = wide.supernet()?;
        }
    }
    Some(wide)
}

fn is_narrow(net: IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.prefix_len() >= WIDEST.0,
        IpNet::V6(net) => net.prefix_len() >= WIDEST.1,
    }
}

/// What `check` says about a destination that nothing protects.
#[must_use]
pub(crate) const fn scope_text(scope: Scope) -> &'static str {
    match scope {
        Scope::Nothing => "not judged",
        Scope::Internal => "judged",
        Scope::Logins => "judged by how many hosts logins reach",
    }
}
