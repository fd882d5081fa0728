//! What is protected although policy does not name it: learned addresses, and link-local addresses on links that carry a place.

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
    #[must_use]
    pub(crate) fn new(learned: Vec<(Addr, Place)>, links: Vec<Place>) -> Self {
        let mut octets = [0; 16];
        [octets[0], octets[1]] = [0xfe, 0x80];
        let link_local = Prefix { addr: octets, len: 10 };
        let mut places = Self::default();
        let learned = learned.into_iter().map(|(addr, place)| (Prefix { addr: addr.octets(), len: 128 }, place));
        for (prefix, place) in learned.chain(links.into_iter().map(|place| (link_local, place))) {
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
