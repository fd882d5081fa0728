//! What is protected although policy does not name it: learned addresses, and on links that carry a place link-local addresses and those of
//! everybody.

use crate::config::Config;
use crate::name::name_id;
use crate::net::Prefix;
use pp_common::abi::{NameId, Place};
use pp_common::dest::Addr;

/// Places, and the networks that belong to them although policy does not name them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LearnedPlaces {
    /// Zone or gateway, and a network that belongs to it.
    zones: Vec<(NameId, Prefix)>,
    gateways: Vec<(NameId, Prefix, bool)>,
}

impl LearnedPlaces {
    /// Made of learned addresses, and of the places that links carry.
    ///
    /// A receipt opens an address on every link, so one for an address that each link has touches the places of all links.
    #[must_use]
    pub(crate) fn new(learned: Vec<(Addr, Place)>, links: Vec<Place>) -> Self {
        let of_links = of_every_link();
        let mut places = Self::default();
        let learned = learned.into_iter().map(|(addr, place)| (Prefix { addr: addr.octets(), len: 128 }, place));
        for (prefix, place) in learned.chain(links.into_iter().flat_map(|place| of_links.map(|prefix| (prefix, place)))) {
            if place.zone != 0 {
                places.zones.push((place.zone, prefix));
            }
            if place.gateway != 0 {
                places.gateways.push((place.gateway, prefix, place.flags & pp_common::abi::PLACE_GATEWAY_ALL_PORTS != 0));
            }
        }
        places.zones.sort_unstable();
        places.zones.dedup();
        places.gateways.sort_unstable();
        places.gateways.dedup();
        places
    }

    /// Further networks of a zone.
    pub(super) fn of_zone(&self, zone: &str) -> impl Iterator<Item = Prefix> + '_ {
        let id = name_id(zone);
        self.zones.iter().filter(move |(zone, _)| *zone == id).map(|(_, prefix)| *prefix)
    }

    /// Further addresses of gateways, and their ports there; no ports means every port.
    pub(super) fn of_gateways<'a>(&'a self, config: &'a Config) -> impl Iterator<Item = (&'a str, Prefix, &'a [u16])> + 'a {
        self.gateways.iter().filter_map(|(id, prefix, all)| {
            let gateway = config.gateways.iter().find(|gateway| name_id(&gateway.name) == *id)?;
            let ports: &[u16] = if *all { &[] } else { &gateway.ports };
            Some((gateway.name.as_str(), *prefix, ports))
        })
    }
}

/// The networks that each link has: link-local, and what goes to everybody on it.
fn of_every_link() -> [Prefix; 4] {
    let v6 = |first: u8, second: u8, len| {
        let mut addr = [0; 16];
        [addr[0], addr[1]] = [first, second];
        Prefix { addr, len }
    };
    let v4 = |octets, len: u8| Prefix { addr: Addr::v4(octets).octets(), len: 96 + len };
    [v6(0xfe, 0x80, 10), v6(0xff, 0, 8), v4([224, 0, 0, 0], 4), v4([255; 4], 32)]
}
