//! What a policy could add, as recorded events suggest. Zones and gateways protect more. Exemptions are proposed as comments only, and so
//! are servers that no list names.
//!
//! No text of an event becomes a value of the proposal: only addresses and numbers do, and names made of them. The exception is the name of
//! a socket, of plain characters and in a comment ([`servers`]).

mod servers;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use pp_common::behaviour::EXEMPT_PORTS;
use pp_common::decide::transport;
use serde::Serialize;

use super::compare::Tally;
use super::draft::{Draft, is_open};
use super::past::{About, Past, PastAttempt};
use crate::config::{Config, ConfigError, Exemption, Source};
use crate::events::behaviour::common;
use crate::events::build::{addr_of, address};
use crate::events::{Destination, Event};
use crate::policy::{self, PolicyError};
use crate::services;
use servers::{ServerIdea, Servers};

/// The widest networks that are made of single hosts, IPv4 and IPv6.
const WIDEST: (u8, u8) = (24, 64);
/// Ports of web interfaces, beside those of the products below.
const WEB: [u16; 4] = [80, 443, 8080, 8443];
/// Services that are the web interface of a gateway product.
const WEB_SERVICES: [&str; 2] = ["n3uron-web", "ignition-web"];

/// Why a proposal would not hold beside the policy that it is for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuggestError {
    /// The proposal contradicts the policy.
    #[error("the proposal does not fit beside the policy: {0}")]
    Clash(#[from] ConfigError),
    /// Together they need more than the kernel's tables hold.
    #[error("the proposal does not fit beside the policy: {0}; give it fewer events")]
    Full(#[from] PolicyError),
}

/// What was seen of one destination, or of several together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    tally: Tally,
    agents: BTreeSet<String>,
    to: BTreeSet<Destination>,
}

impl Seen {
    fn of(past: &PastAttempt<'_>, to: BTreeSet<Destination>) -> Self {
        let agents = Some(past.agent().to_owned()).filter(|agent| !agent.is_empty());
        Self { tally: Tally::of(past), agents: agents.into_iter().collect(), to }
    }

    fn add(&mut self, other: &Self) {
        self.tally.add(&other.tally);
        self.agents.extend(other.agents.iter().cloned());
        self.to.extend(&other.to);
    }
}

fn note<K: Ord>(map: &mut BTreeMap<K, Seen>, key: K, seen: &Seen) {
    map.entry(key).and_modify(|known| known.add(seen)).or_insert_with(|| seen.clone());
}

/// A proposed zone and its evidence.
#[derive(Debug)]
struct ZoneIdea {
    name: String,
    network: IpNet,
    seen: Seen,
}

/// A proposed gateway and its evidence.
#[derive(Debug)]
struct GatewayIdea {
    name: String,
    address: IpAddr,
    ports: Vec<u16>,
    seen: Seen,
}

/// A proposed exemption from the rate rules and its evidence.
#[derive(Debug)]
struct ExemptIdea {
    exemption: Exemption,
    seen: Seen,
}

/// The proposal, for programs and as a drop-in.
#[derive(Debug, Serialize)]
pub(crate) struct Proposal {
    zones: Vec<ZoneView>,
    gateways: Vec<GatewayView>,
    commented_out: Exemptions,
    /// The drop-in.
    pub(crate) toml: String,
}

#[derive(Debug, Serialize)]
struct ZoneView {
    name: String,
    networks: [String; 1],
    attempts: u64,
}

#[derive(Debug, Serialize)]
struct GatewayView {
    name: String,
    address: String,
    ports: Vec<u16>,
    attempts: u64,
}

/// What is proposed as comments only.
#[derive(Debug, Serialize)]
struct Exemptions {
    services_exempt: Vec<String>,
    behaviour_exempt: Vec<String>,
    /// Sockets of servers that no list names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    delegates: Vec<String>,
}

/// The events read so far, sorted by what the present policy decides about them.
#[derive(Debug)]
pub(crate) struct Observed<'a> {
    draft: Draft<'a>,
    hosts: BTreeSet<String>,
    /// Hosts that no zone and no gateway protects.
    stray: BTreeMap<IpAddr, Seen>,
    /// Web interfaces of protected addresses, gateways excepted.
    web: BTreeMap<IpAddr, Seen>,
    /// What tripped rate rules, by widest network and port.
    tripped: BTreeMap<(IpNet, u16), Seen>,
    /// What zones and gateways protect already, by their names.
    covered: BTreeMap<String, Seen>,
    /// Servers of the host that no list names.
    servers: Servers,
    events: Option<Tally>,
    /// Events about attempts that nothing is proposed for.
    unused: u64,
    missing: u64,
}

impl<'a> Observed<'a> {
    /// Nothing yet.
    #[must_use]
    pub(crate) fn new(draft: Draft<'a>) -> Self {
        Self {
            draft,
            hosts: BTreeSet::new(),
            stray: BTreeMap::new(),
            web: BTreeMap::new(),
            tripped: BTreeMap::new(),
            covered: BTreeMap::new(),
            servers: Servers::default(),
            events: None,
            unused: 0,
            missing: 0,
        }
    }

    /// Adds one event.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn take(&mut self, event: &Event) -> Result<(), String> {
        match Past::read(event)? {
            Past::Missing(count) => self.miss(count),
            Past::Other => {}
            Past::Undecided(_) => self.unused += 1,
            Past::Unlisted(past) => {
                self.count(&past);
                self.unused += u64::from(!self.servers.take(&past));
            }
            Past::Attempt(past) => self.attempt(&past),
        }
        Ok(())
    }

    /// Adds to the number of missing events.
    pub(crate) fn miss(&mut self, count: u64) {
        self.missing = self.missing.saturating_add(count);
    }

    fn count(&mut self, past: &PastAttempt<'_>) {
        let one = Tally::of(past);
        self.events.get_or_insert(Tally { attempts: 0, events: 0, ..one }).add(&one);
        self.hosts.insert(past.event.host.clone());
    }

    fn attempt(&mut self, past: &PastAttempt<'_>) {
        self.count(past);
        let Some(to) = past.attempt.destination.and_then(real) else {
            self.unused += 1;
            return;
        };
        match past.about() {
            About::Receipts | About::Receipt | About::Flow => self.protected(past, to),
            About::Rule(_) => self.rule(past, to),
            About::Socket | About::Delegate | About::Gate => self.unused += 1,
        }
    }

    /// Adds what tripped a rule. Each network and port that the event names counts it once.
    fn rule(&mut self, past: &PastAttempt<'_>, to: Destination) {
        let mut about: BTreeMap<(IpNet, u16), BTreeSet<Destination>> = BTreeMap::new();
        let sample = past.attempt.trip.iter().flat_map(|trip| std::iter::once(to).chain(trip.targets.iter().copied().filter_map(real)));
        for to in sample.filter(|to| is_open(&self.draft.without_receipt(*to))) {
            if let Some(port) = to.port {
                about.entry((widest(to.address), port)).or_default().insert(to);
            }
        }
        self.unused += u64::from(about.is_empty());
        for (key, to) in about {
            note(&mut self.tripped, key, &Seen::of(past, to));
        }
    }

    fn protected(&mut self, past: &PastAttempt<'_>, to: Destination) {
        let decision = self.draft.without_receipt(to);
        let seen = Seen::of(past, BTreeSet::from([to]));
        let place = [("zone", decision.zone), ("gateway", decision.gateway)];
        let words = place.iter().filter_map(|(what, id)| self.draft.name(*id).map(|name| format!("{what} {name}"))).collect::<Vec<_>>();
        if words.is_empty() {
            note(&mut self.stray, to.address, &seen);
        } else {
            note(&mut self.covered, words.join(", "), &seen);
        }
        if decision.gateway == 0 && is_web(to) {
            note(&mut self.web, to.address, &seen);
        }
    }

    /// Makes the proposal, and checks it together with the policy that it is for.
    ///
    /// # Errors
    /// The two do not fit together.
    pub(crate) fn propose(&self) -> Result<Proposal, SuggestError> {
        let config = self.draft.config();
        let ideas = Ideas {
            zones: self.zones(config),
            gateways: self.gateways(config),
            exempt: self.exemptions(),
            servers: self.servers.ideas(config),
        };
        let toml = write::drop_in(self, &ideas);
        let mut sources = config.sources.clone();
        sources.push(Source { name: "the proposal".to_owned(), text: toml.clone() });
        policy::compile(&Config::from_sources(sources)?, &[], &[], &[])?;
        Ok(ideas.into_proposal(toml))
    }

    /// One zone for each network of the widest size in which hosts were seen, made as small as these hosts allow.
    fn zones(&self, config: &Config) -> Vec<ZoneIdea> {
        let mut groups: BTreeMap<IpNet, Vec<IpAddr>> = BTreeMap::new();
        for host in self.stray.keys() {
            groups.entry(widest(*host)).or_default().push(*host);
        }
        let known: BTreeSet<&str> = config.zones.iter().map(|zone| zone.name.as_str()).collect();
        let idea = |hosts: Vec<IpAddr>| {
            let network = common(hosts.iter().map(|host| IpNet::from(*host)))?;
            let mut all = hosts.iter().filter_map(|host| self.stray.get(host));
            let mut seen = all.next()?.clone();
            all.for_each(|one| seen.add(one));
            let name = free_name(&format!("seen-{}-{}", network.addr(), network.prefix_len()), &known);
            Some(ZoneIdea { name, network, seen })
        };
        groups.into_values().filter_map(idea).collect()
    }

    /// Web interfaces at addresses that belong to no gateway yet.
    fn gateways(&self, config: &Config) -> Vec<GatewayIdea> {
        let known: BTreeSet<&str> = config.gateways.iter().map(|gateway| gateway.name.as_str()).collect();
        let new = self.web.iter().filter(|(address, _)| config.gateways.iter().all(|gateway| gateway.address != **address));
        new.map(|(address, seen)| GatewayIdea {
            name: free_name(&format!("web-{address}"), &known),
            address: *address,
            ports: seen.to.iter().filter_map(|to| to.port).collect::<BTreeSet<_>>().into_iter().collect(),
            seen: seen.clone(),
        })
        .collect()
    }

    /// What tripped the rules, no wider than it was seen. A network gets at most [`EXEMPT_PORTS`] ports.
    fn exemptions(&self) -> Vec<ExemptIdea> {
        let mut ports: BTreeMap<IpNet, usize> = BTreeMap::new();
        let idea = |((network, port), seen): (&(IpNet, u16), &Seen)| {
            let used = ports.entry(*network).or_default();
            *used += 1;
            let network = common(seen.to.iter().map(|to| IpNet::from(to.address))).filter(|_| *used <= EXEMPT_PORTS)?;
            Some(ExemptIdea { exemption: Exemption { network, ports: Some((*port, *port)) }, seen: seen.clone() })
        };
        self.tripped.iter().filter_map(idea).collect()
    }
}

/// The parts of a proposal.
#[derive(Debug)]
struct Ideas {
    zones: Vec<ZoneIdea>,
    gateways: Vec<GatewayIdea>,
    exempt: Vec<ExemptIdea>,
    servers: Vec<ServerIdea>,
}

impl Ideas {
    fn is_empty(&self) -> bool {
        self.zones.is_empty() && self.gateways.is_empty() && self.exempt.is_empty() && self.servers.is_empty()
    }

    fn into_proposal(self, toml: String) -> Proposal {
        let services_exempt = self.zones.iter().map(|idea| idea.network.to_string()).collect();
        let behaviour_exempt = self.exempt.iter().map(|idea| idea.exemption.to_string()).collect();
        let delegates = self.servers.iter().map(|idea| idea.path.clone()).collect();
        let zone = |idea: ZoneIdea| ZoneView { name: idea.name, networks: [idea.network.to_string()], attempts: idea.seen.tally.attempts };
        let gateway = |idea: GatewayIdea| GatewayView {
            name: idea.name,
            address: idea.address.to_string(),
            ports: idea.ports,
            attempts: idea.seen.tally.attempts,
        };
        Proposal {
            zones: self.zones.into_iter().map(zone).collect(),
            gateways: self.gateways.into_iter().map(gateway).collect(),
            commented_out: Exemptions { services_exempt, behaviour_exempt, delegates },
            toml,
        }
    }
}

/// The destination that is really reached; `None` if no zone should be made of it.
fn real(to: Destination) -> Option<Destination> {
    let reached = addr_of(to.address).embedded().map_or(to.address, address);
    let v4_broadcast = matches!(reached, IpAddr::V4(v4) if v4.is_broadcast());
    let unfit = reached.is_loopback() || reached.is_unspecified() || reached.is_multicast() || v4_broadcast;
    (!unfit).then_some(Destination { address: reached, ..to })
}

fn is_web(to: Destination) -> bool {
    let product = |port| WEB_SERVICES.iter().filter_map(|name| services::row(name)).any(|row| row.has(transport::TCP, port));
    to.transport == transport::TCP && to.port.is_some_and(|port| WEB.contains(&port) || product(port))
}

/// The network of the widest size around an address.
fn widest(address: IpAddr) -> IpNet {
    let length = if address.is_ipv4() { WIDEST.0 } else { WIDEST.1 };
    // Both lengths fit their families.
    IpNet::new(address, length).map_or(IpNet::from(address), |net| net.trunc())
}

/// The name, with a number appended if policy has it already.
fn free_name(name: &str, known: &BTreeSet<&str>) -> String {
    let numbered = (2_u32..).map(|number| format!("{name}-{number}"));
    std::iter::once(name.to_owned()).chain(numbered).find(|name| !known.contains(name.as_str())).unwrap_or_default()
}

#[cfg(test)]
mod tests;
