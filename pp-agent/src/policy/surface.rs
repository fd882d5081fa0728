//! What a receipt's target touches: the zones, gateways and services that an authority must be allowed to open.

use super::{LearnedPlaces, networks};
use crate::config::Config;
use crate::delegates::{THIS_HOST, own_ports};
use crate::net::Prefix;
use crate::receipt::terms::{PortRange, Transport};
use crate::receipt::{Surface, Touched};
use ipnet::IpNet;
use std::collections::BTreeSet;

/// The policy, as the conditions of a receipt see it.
pub(crate) struct PolicySurface<'a> {
    /// The policy.
    pub(crate) config: &'a Config,
    /// What neighbour tables add to its places.
    pub(crate) learned: &'a LearnedPlaces,
}

impl Surface for PolicySurface<'_> {
    fn touches(&self, network: IpNet, transport: Transport, ports: &[PortRange]) -> Touched {
        touches(self.config, self.learned, network, transport.protocol(), ports)
    }
}

/// What a target touches; each name once, in the order of policy.
fn touches(config: &Config, learned: &LearnedPlaces, network: IpNet, transport: u8, ports: &[PortRange]) -> Touched {
    let target = Prefix::from(network);
    let mut touched = Touched::default();
    let mut zones = Vec::new();
    for zone in &config.zones {
        let networks = zone.networks.iter().map(|net| Prefix::from(*net));
        let before = zones.len();
        zones.extend(networks.chain(learned.of_zone(&zone.name)).filter(|prefix| prefix.overlaps(&target)));
        if zones.len() > before {
            touched.zones.push(zone.name.clone());
        }
    }
    let mut gateways: Vec<(Prefix, &[u16])> = config
        .gateways
        .iter()
        .map(|gateway| (Prefix::from(gateway.address), gateway.ports.as_slice(), gateway))
        .filter(|(address, listed, gateway)| {
            let named = target.covers(address) && (listed.is_empty() || any_in(listed, ports));
            if named {
                touched.gateways.push(gateway.name.clone());
            }
            named
        })
        .map(|(address, listed, _)| (address, listed))
        .collect();
    for (name, prefix, listed) in learned.of_gateways(config) {
        if prefix.overlaps(&target) && (listed.is_empty() || any_in(listed, ports)) {
            if !touched.gateways.iter().any(|known| known == name) {
                touched.gateways.push(name.to_owned());
            }
            gateways.push((prefix, listed));
        }
    }
    let own: Vec<u16> = own_ports(&config.delegates).into_iter().collect();
    let loopback: Vec<Prefix> = networks::loopback().into_iter().filter(|prefix| prefix.overlaps(&target)).collect();
    if !loopback.is_empty() && any_in(&own, ports) {
        touched.gateways.push(THIS_HOST.to_owned());
        gateways.extend(loopback.into_iter().map(|prefix| (prefix, own.as_slice())));
    }
    let exempt: Vec<Prefix> = config.services.exempt.iter().map(|net| Prefix::from(*net)).collect();
    let special: BTreeSet<u16> = gateways.iter().flat_map(|(_, ports)| *ports).copied().collect();
    // Ports without a service and without a gateway all give the same answer, so one of them is enough.
    let mut plain_done = false;
    let mut services = BTreeSet::new();
    for port in ports.iter().flat_map(|range| range.first..=range.last) {
        let service = config.services.on(transport, port);
        if service.is_none() && !special.contains(&port) {
            if plain_done {
                continue;
            }
            plain_done = true;
        }
        let mut protected = zones.clone();
        protected.extend(gateways.iter().filter_map(|(address, ports)| (ports.is_empty() || ports.contains(&port)).then_some(*address)));
        let Some(service) = service else {
            touched.unprotected_part |= !covered(target, &protected);
            continue;
        };
        let exempt_outside = exempt.iter().any(|net| {
            net.overlaps(&target) && {
                let common = if net.covers(&target) { target } else { *net };
                !covered(common, &protected)
            }
        });
        touched.unprotected_part |= exempt_outside;
        protected.extend(&exempt);
        if !covered(target, &protected) {
            services.insert(service.name);
        }
    }
    let enabled = config.services.enabled.iter().map(|row| row.name);
    touched.services_outside = enabled.filter(|name| services.contains(name)).map(str::to_owned).collect();
    touched
}

fn any_in(listed: &[u16], ranges: &[PortRange]) -> bool {
    listed.iter().any(|port| ranges.iter().any(|range| (range.first..=range.last).contains(port)))
}

/// Whether the prefixes together contain every address of the target.
fn covered(target: Prefix, prefixes: &[Prefix]) -> bool {
    if prefixes.iter().any(|prefix| prefix.covers(&target)) {
        return true;
    }
    let inside: Vec<Prefix> = prefixes.iter().copied().filter(|prefix| target.covers(prefix)).collect();
    match target.halves() {
        Some(halves) if !inside.is_empty() => halves.iter().all(|half| covered(*half, &inside)),
        _ => false,
    }
}
