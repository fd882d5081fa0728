//! What a policy could say more, from what events tell: zones and gateways, which protect more than before, and exemptions,
//! which are only ever proposed as comments.
//!
//! Nothing that an event says as text becomes a value of the proposal: only addresses and numbers do, and names made of them.

mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use pp_common::behaviour::EXEMPT_PORTS;
use pp_common::decide::transport;
use serde::Serialize;

use super::compare::Tally;
use super::draft::{Draft, is_open};
use super::told::{About, Then, Told};
use crate::config::{Config, ConfigError, Exemption, Source};
use crate::events::behaviour::common;
use crate::events::build::{addr_of, address};
use crate::events::{Destination, Event};
use crate::policy::{self, PolicyError};
use crate::services;

/// The widest networks that are made of single hosts, IPv4 and IPv6.
const WIDEST: (u8, u8) = (24, 64);
/// Ports of web interfaces, beside those of the products below.
const WEB: [u16; 4] = [80, 443, 8080, 8443];
/// Services that are the web interface of a gateway product.
const WEB_SERVICES: [&str; 2] = ["n3uron-web", "ignition-web"];

/// Why a proposal would not hold beside the policy that it is for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuggestError {
    /// The two clash.
    #[error("the proposal does not fit beside the policy: {0}")]
    Clash(#[from] ConfigError),
    /// They need more than the kernel's tables hold.
    #[error("the proposal does not fit beside the policy: {0}; give it fewer events")]
    Full(#[from] PolicyError),
}

/// What is known of one destination, or of several together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    tally: Tally,
    agents: BTreeSet<String>,
    to: BTreeSet<Destination>,
}

impl Seen {
    fn of(told: &Told<'_>, to: BTreeSet<Destination>) -> Self {
        let agents = Some(told.agent().to_owned()).filter(|agent| !agent.is_empty());
        Self { tally: Tally::of(told), agents: agents.into_iter().collect(), to }
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

/// A zone, and what speaks for it.
#[derive(Debug)]
struct ZoneIdea {
    name: String,
    network: IpNet,
    seen: Seen,
}

/// A gateway, and what speaks for it.
#[derive(Debug)]
struct GatewayIdea {
    name: String,
    address: IpAddr,
    ports: Vec<u16>,
    seen: Seen,
}

/// An exemption of the behaviour rules, and what speaks for it.
#[derive(Debug)]
struct ExemptIdea {
    exemption: Exemption,
    seen: Seen,
}

/// What there is to propose, for programs and as a drop-in.
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

/// What is only ever proposed as comments.
#[derive(Debug, Serialize)]
struct Exemptions {
    services_exempt: Vec<String>,
    behaviour_exempt: Vec<String>,
}

/// What was read so far, judged by the policy that is to be added to.
#[derive(Debug)]
pub(crate) struct Observed<'a> {
    draft: Draft<'a>,
    hosts: BTreeSet<String>,
    /// Hosts that no zone and no gateway protects.
    stray: BTreeMap<IpAddr, Seen>,
    /// Web interfaces of protected addresses, gateways excepted.
    web: BTreeMap<IpAddr, Seen>,
    /// What behaviour rules tripped over, by widest network and port.
    tripped: BTreeMap<(IpNet, u16), Seen>,
    /// What zones and gateways protect already, by their words.
    covered: BTreeMap<String, Seen>,
    events: Option<Tally>,
    /// Events about attempts that nothing is proposed for.
    unused: u64,
    missing: u64,
}

impl<'a> Observed<'a> {
    /// Nothing yet.
    #[must_use]
    pub(crate) const fn new(draft: Draft<'a>) -> Self {
        Self {
            draft,
            hosts: BTreeSet::new(),
            stray: BTreeMap::new(),
            web: BTreeMap::new(),
            tripped: BTreeMap::new(),
            covered: BTreeMap::new(),
            events: None,
            unused: 0,
            missing: 0,
        }
    }

    /// Takes in one event.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn take(&mut self, event: &Event) -> Result<(), String> {
        match Then::read(event)? {
            Then::Missing(count) => self.miss(count),
            Then::Other => {}
            Then::Blind(_) => self.unused += 1,
            Then::Attempt(told) => self.attempt(&told),
        }
        Ok(())
    }

    /// So many events are missing.
    pub(crate) fn miss(&mut self, count: u64) {
        self.missing = self.missing.saturating_add(count);
    }

    fn attempt(&mut self, told: &Told<'_>) {
        let one = Tally::of(told);
        self.events.get_or_insert(Tally { attempts: 0, events: 0, ..one }).add(&one);
        self.hosts.insert(told.event.host.clone());
        let Some(to) = told.attempt.destination.and_then(real) else {
            self.unused += 1;
            return;
        };
        match told.about() {
            About::Receipts | About::Receipt | About::Flow => self.protected(told, to),
            About::Rule(_) => self.rule(told, to),
            About::Socket | About::Delegate | About::Gate => self.unused += 1,
        }
    }

    /// What tripped a rule: each network and port that it was about counts the event once.
    fn rule(&mut self, told: &Told<'_>, to: Destination) {
        let mut about: BTreeMap<(IpNet, u16), BTreeSet<Destination>> = BTreeMap::new();
        let sample = told.attempt.trip.iter().flat_map(|trip| std::iter::once(to).chain(trip.targets.iter().copied().filter_map(real)));
        for to in sample.filter(|to| is_open(&self.draft.without_receipt(*to))) {
            if let Some(port) = to.port {
                about.entry((widest(to.address), port)).or_default().insert(to);
            }
        }
        self.unused += u64::from(about.is_empty());
        for (key, to) in about {
            note(&mut self.tripped, key, &Seen::of(told, to));
        }
    }

    fn protected(&mut self, told: &Told<'_>, to: Destination) {
        let decision = self.draft.without_receipt(to);
        let seen = Seen::of(told, BTreeSet::from([to]));
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

    /// The proposal, which was read beside the policy that it is for.
    ///
    /// # Errors
    /// It does not fit there.
    pub(crate) fn propose(&self) -> Result<Proposal, SuggestError> {
        let config = self.draft.config();
        let ideas = Ideas { zones: self.zones(config), gateways: self.gateways(config), exempt: self.exemptions() };
        let toml = write::drop_in(self, &ideas);
        let mut sources = config.sources.clone();
        sources.push(Source { name: "the proposal".to_owned(), text: toml.clone() });
        policy::compile(&Config::from_sources(sources)?, &[], &[], &[])?;
        Ok(ideas.into_proposal(toml))
    }

    /// One zone for each network of the widest size in which hosts were seen, no larger than they need.
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

    /// Web interfaces at addresses that are no gateway's yet.
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

    /// What the rules tripped over, no wider than it was; of one network no more ports than a place can have.
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

/// What there is to propose, in its parts.
#[derive(Debug)]
struct Ideas {
    zones: Vec<ZoneIdea>,
    gateways: Vec<GatewayIdea>,
    exempt: Vec<ExemptIdea>,
}

impl Ideas {
    fn is_empty(&self) -> bool {
        self.zones.is_empty() && self.gateways.is_empty() && self.exempt.is_empty()
    }

    fn into_proposal(self, toml: String) -> Proposal {
        let services_exempt = self.zones.iter().map(|idea| idea.network.to_string()).collect();
        let behaviour_exempt = self.exempt.iter().map(|idea| idea.exemption.to_string()).collect();
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
            commented_out: Exemptions { services_exempt, behaviour_exempt },
            toml,
        }
    }
}

/// The destination that is really reached; `None` for those that no zone should be made of.
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

/// The name, with a number behind it where policy has it already.
fn free_name(name: &str, known: &BTreeSet<&str>) -> String {
    let numbered = (2_u32..).map(|number| format!("{name}-{number}"));
    std::iter::once(name.to_owned()).chain(numbered).find(|name| !known.contains(name.as_str())).unwrap_or_default()
}

#[cfg(test)]
mod tests;
