//! The networks that the rate rules judge or exempt, as the kernel's table holds them. Each named network has one entry, which includes
//! what wider networks say.

use super::nested::Nested;
use super::{PolicyError, distinct};
use crate::config::Config;
use crate::net::Prefix;
use ipnet::IpNet;
use pp_common::behaviour::{EXEMPT_PORTS, JudgedNetwork, NETWORK_EXEMPT, NETWORK_INTERNAL, NETWORK_OWN, PortRange};
use std::collections::{BTreeMap, BTreeSet};

/// Private networks: RFC 1918, RFC 6598, RFC 4193, RFC 4291.
const INTERNAL: [&str; 6] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fe80::/10"];
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];

fn fixed(list: &[&str]) -> Vec<Prefix> {
    list.iter().filter_map(|text| text.parse::<IpNet>().ok()).map(Prefix::from).collect()
}

/// The loopback networks.
pub(super) fn loopback() -> Vec<Prefix> {
    fixed(&LOOPBACK)
}

/// Builds the table.
///
/// # Errors
/// A network has more exempt port ranges than an entry holds.
pub(super) fn judged_networks(config: &Config) -> Result<Vec<(Prefix, JudgedNetwork)>, PolicyError> {
    let rules = &config.behaviour;
    let set = |list: Vec<Prefix>| list.into_iter().map(|prefix| (prefix, ())).collect::<BTreeMap<_, _>>();
    let loopback = set(loopback());
    let mut internal = set(fixed(&INTERNAL));
    internal.extend(rules.internal.iter().map(|network| (Prefix::from(*network), ())));
    if rules.count_own {
        internal.extend(&loopback);
    }
    let mut exempt: BTreeMap<Prefix, Vec<Option<(u16, u16)>>> = BTreeMap::new();
    for exemption in &rules.exempt {
        exempt.entry(Prefix::from(exemption.network)).or_default().push(exemption.ports);
    }
    // The ports that a gateway does not list are unprotected, so the rate rules count them. No exemption covers them.
    let gateways: BTreeSet<Prefix> = config.gateways.iter().map(|gateway| Prefix::from(gateway.address)).collect();
    let named: BTreeSet<Prefix> = internal.keys().chain(loopback.keys()).chain(exempt.keys()).chain(&gateways).copied().collect();
    let (internal, loopback, exempt) = (Nested::of(&internal), Nested::of(&loopback), Nested::of(&exempt));
    let network = |prefix: Prefix| {
        let is_gateway = gateways.contains(&prefix);
        let mut network = JudgedNetwork { flags: 0, ports: [PortRange::NONE; EXEMPT_PORTS], pad: 0 };
        if is_gateway || internal.covers(prefix) {
            network.flags |= NETWORK_INTERNAL;
        }
        if !is_gateway && !rules.count_own && loopback.covers(prefix) {
            network.flags |= NETWORK_OWN;
        }
        let here = exempt.around(prefix).filter(|_| !is_gateway).flatten();
        // This list stays short: a wide network comes before those in it, and is refused if it has too many ranges.
        let ports = distinct(here.filter_map(|ports| {
            if ports.is_none() {
                network.flags |= NETWORK_EXEMPT;
            }
            *ports
        }));
        if ports.len() > EXEMPT_PORTS {
            return Err(PolicyError::ExemptPorts { prefix, need: ports.len() });
        }
        for (slot, (first, last)) in network.ports.iter_mut().zip(ports) {
            *slot = PortRange { first, last };
        }
        Ok((prefix, network))
    };
    named.into_iter().map(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;
    use pp_common::behaviour::{Scope, scope};
    use std::net::IpAddr;

    fn check(policy: &str, questions: &[(&str, u16, bool, Scope)]) {
        let config = Config::from_sources(vec![Source { name: "p".into(), text: policy.into() }]).unwrap();
        let table = judged_networks(&config).unwrap();
        for (address, port, login, wanted) in questions {
            let address = Prefix::from(address.parse::<IpAddr>().unwrap());
            let found = table.iter().filter(|(prefix, _)| prefix.covers(&address)).max_by_key(|(prefix, _)| prefix.len);
            assert_eq!(scope(found.map(|(_, network)| network), *login, *port), *wanted, "{address} port {port}");
        }
    }

    #[test]
    fn internal_networks_are_judged_and_others_only_for_logins() {
        let (all, logins, nothing) = (Scope::Internal, Scope::Logins, Scope::Nothing);
        let questions: Vec<_> =
            ["10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "fe80::1"].map(|a| (a, 80, false, all)).into();
        check("", &questions);
        check("", &[("172.32.0.1", 80, false, nothing), ("198.51.100.1", 443, false, nothing), ("198.51.100.1", 22, true, logins)]);
        check("", &[("127.0.0.1", 22, true, nothing), ("::1", 80, false, nothing), ("224.0.0.251", 5353, false, nothing)]);
        check("[behaviour]\ncount_own = true", &[("127.0.0.1", 80, false, all), ("::1", 80, false, all)]);
        check("[behaviour]\ninternal = ['192.0.2.0/24']", &[("192.0.2.9", 80, false, all)]);
    }

    #[test]
    fn exemptions_hold_for_their_networks_and_ports_alone() {
        let (all, nothing) = (Scope::Internal, Scope::Nothing);
        let policy = "[behaviour]\nexempt = ['10.1.2.0/24:443', '10.1.0.0/16:8000-8100', '10.9.0.0/16', '198.51.100.0/24:22']";
        check(policy, &[("10.1.2.3", 443, false, nothing), ("10.1.2.3", 8050, false, nothing), ("10.1.2.3", 80, false, all)]);
        check(policy, &[("10.1.3.3", 443, false, all), ("10.1.3.3", 8100, false, nothing), ("10.1.3.3", 8101, false, all)]);
        check(policy, &[("10.9.1.1", 22, true, nothing), ("198.51.100.9", 22, true, nothing), ("198.51.100.9", 23, true, Scope::Logins)]);
    }

    #[test]
    fn no_exemption_covers_a_gateway() {
        let gateway = "[[gateway]]\nname = 'g'\naddress = '198.51.100.7'\nports = [443]\n[behaviour]\nexempt = ['0.0.0.0/0']\n";
        check(gateway, &[("198.51.100.7", 80, false, Scope::Internal), ("198.51.100.8", 80, false, Scope::Nothing)]);
    }

    #[test]
    fn more_exempt_ranges_than_fit_are_refused() {
        let ports: Vec<String> = (1..=9).map(|port| format!("'10.0.0.0/8:{port}'")).collect();
        let policy = format!("[behaviour]\nexempt = [{}]", ports.join(", "));
        let config = Config::from_sources(vec![Source { name: "p".into(), text: policy }]).unwrap();
        assert!(matches!(judged_networks(&config), Err(PolicyError::ExemptPorts { need: 9, .. })));
    }
}
