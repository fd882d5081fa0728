//! Which protected addresses to ask for on a link. The hardware address in the answer identifies further addresses of the device.

use std::net::IpAddr;

use super::view::is_network;
use super::{Protected, Snapshot, addr};
use crate::net::Prefix;

/// The prefix length of a single address.
const SINGLE: u8 = 128;

/// Single addresses that policy names and that do not answer, each with its link. The link reaches them without a next hop, and a
/// neighbour that policy does not name answers on it.
#[must_use]
pub(crate) fn unanswered(policy: &Protected, snapshot: &Snapshot) -> Vec<(u32, IpAddr)> {
    let singles = policy.places.iter().filter(|(prefix, _)| prefix.len == SINGLE).map(|(prefix, _)| prefix);
    let mut wanted: Vec<(u32, IpAddr)> = singles.flat_map(|single| links_to(single, snapshot).map(|link| (link, ip(single)))).collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted.retain(|(link, ip)| {
        let is_own = snapshot.own.iter().any(|(_, own)| own == ip);
        let is_hop = snapshot.hops.iter().any(|(_, hop)| hop == ip);
        let answers = snapshot.neighbours.iter().any(|neighbour| neighbour.link == *link && neighbour.addr == *ip);
        !is_own && !is_hop && !answers && has_strangers(policy, snapshot, *link)
    });
    wanted
}

/// Whether a neighbour answers on this link that policy does not name and that is no router.
fn has_strangers(policy: &Protected, snapshot: &Snapshot, link: u32) -> bool {
    let on_link = snapshot.neighbours.iter().filter(|neighbour| neighbour.link == link && !neighbour.router);
    let mut others = on_link.filter(|neighbour| !snapshot.hops.iter().any(|(_, hop)| *hop == neighbour.addr));
    others.any(|neighbour| policy.place(&addr(neighbour.addr)).is_none())
}

fn links_to<'a>(single: &'a Prefix, snapshot: &'a Snapshot) -> impl Iterator<Item = u32> + 'a {
    let ethernet = |link: u32| snapshot.links.iter().any(|known| known.index == link);
    let reaching = snapshot.connected.iter().filter(|(_, network)| is_network(network.len, &network.addr) && network.covers(single));
    reaching.map(|(link, _)| *link).filter(move |link| ethernet(*link))
}

fn ip(single: &Prefix) -> IpAddr {
    IpAddr::from(single.addr).to_canonical()
}

#[cfg(test)]
mod tests {
    use pp_common::abi::Place;

    use super::super::{Link, Neighbour};
    use super::*;
    use crate::net::Mac;

    const ETH0: u32 = 2;

    fn prefix(text: &str) -> Prefix {
        Prefix::from(text.parse::<ipnet::IpNet>().unwrap())
    }

    fn policy() -> Protected {
        let named = ["10.30.0.50/32", "10.30.0.0/28", "192.168.7.7/32", "fd00:31::50/128"];
        let places = named.map(|text| (prefix(text), Place { zone: 1, ..Place::default() }));
        Protected { places: places.into(), ..Protected::default() }
    }

    fn answers(addr: &str, octet: u8) -> Neighbour {
        Neighbour { link: ETH0, addr: addr.parse().unwrap(), mac: Mac([2, 0, 0, 0, 0, octet]), router: false }
    }

    fn snapshot(neighbours: Vec<Neighbour>) -> Snapshot {
        Snapshot {
            links: vec![Link { index: ETH0, ..Link::default() }],
            connected: vec![(ETH0, prefix("10.30.0.0/24")), (ETH0, prefix("fd00:31::/64")), (ETH0, prefix("0.0.0.0/0"))],
            hops: vec![(ETH0, "10.30.0.1".parse().unwrap())],
            neighbours,
            ..Snapshot::default()
        }
    }

    #[test]
    fn single_addresses_on_the_link_are_asked_for_once_a_stranger_answers() {
        let found = unanswered(&policy(), &snapshot(vec![answers("10.30.0.51", 9)]));
        assert_eq!(found, [(ETH0, "10.30.0.50".parse().unwrap()), (ETH0, "fd00:31::50".parse().unwrap())]);
    }

    #[test]
    fn who_answers_already_is_not_asked() {
        let found = unanswered(&policy(), &snapshot(vec![answers("10.30.0.51", 9), answers("10.30.0.50", 9)]));
        assert_eq!(found, [(ETH0, "fd00:31::50".parse().unwrap())]);
    }

    #[test]
    fn nobody_is_asked_for_where_only_the_router_and_named_devices_answer() {
        assert_eq!(unanswered(&policy(), &snapshot(vec![answers("10.30.0.1", 1), answers("10.30.0.5", 2)])), []);
        assert_eq!(unanswered(&policy(), &snapshot(Vec::new())), []);
    }

    #[test]
    fn own_address_is_not_asked_for() {
        let mut seen = snapshot(vec![answers("10.30.0.51", 9)]);
        seen.own = vec![(ETH0, "10.30.0.50".parse().unwrap())];
        assert_eq!(unanswered(&policy(), &seen), [(ETH0, "fd00:31::50".parse().unwrap())]);
    }
}
