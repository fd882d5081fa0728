//! Addresses of protected devices that policy does not name. They come from links that carry a place, and from neighbours that answer with
//! a protected device's hardware address.
//!
//! [`Book`] holds all of it and is pure. It takes what `read.rs` found in each network namespace, and says what the kernel's maps must
//! hold and what to report.

mod book;
mod broadcasts;
mod notice;
mod read;
mod resolvers;
mod unanswered;
mod view;

pub(crate) use book::{Book, Known};
pub(crate) use notice::{Notice, NoticeKind};
pub(crate) use read::Watched;
pub(crate) use resolvers::{Resolver, resolvers};
pub(crate) use unanswered::unanswered;

use std::net::IpAddr;

use pp_common::abi::{PLACE_GATEWAY_ALL_PORTS, PLACE_GATEWAY_OBSERVE, PLACE_ZONE_OBSERVE, Place};
use pp_common::dest::Addr;

use crate::config::Config;
use crate::net::{Mac, Prefix};
use crate::policy;

/// What one network namespace looks like at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Its inode number.
    pub(crate) netns: u32,
    /// Its Ethernet links.
    pub(crate) links: Vec<Link>,
    /// The host's own addresses in it, each with its link.
    pub(crate) own: Vec<(u32, IpAddr)>,
    /// Networks that a link reaches without a next hop.
    pub(crate) connected: Vec<(u32, Prefix)>,
    /// What the kernel sends to everybody on a link: its directed broadcasts.
    pub(crate) broadcasts: Vec<(u32, IpAddr)>,
    /// Next hops of routes.
    pub(crate) hops: Vec<(u32, IpAddr)>,
    /// The neighbours that answer.
    pub(crate) neighbours: Vec<Neighbour>,
}

/// One Ethernet link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    /// Interface index.
    pub(crate) index: u32,
    /// Its name.
    pub(crate) name: String,
    /// The host's own hardware address on it.
    pub(crate) mac: Mac,
}

/// One neighbour that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    /// The link.
    pub(crate) link: u32,
    /// Its address.
    pub(crate) addr: IpAddr,
    /// Its hardware address.
    pub(crate) mac: Mac,
    /// Whether it says that it is a router.
    pub(crate) router: bool,
}

/// What policy protects, in the form that neighbours are compared with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Protected {
    /// The networks of zones and gateways, without this host and the canary.
    pub(crate) places: Vec<(Prefix, Place)>,
    /// Hardware addresses that policy gives.
    pub(crate) macs: Vec<(Mac, Place)>,
    /// Name servers of this host.
    pub(crate) resolvers: Vec<Resolver>,
}

impl Protected {
    /// What this policy protects, and the name servers of this host.
    #[must_use]
    pub(crate) fn of(config: &Config, resolvers: Vec<Resolver>) -> Self {
        let places = policy::named_places(config);
        let macs = policy::mac_places(config);
        Self { places, macs, resolvers }
    }

    /// The place that policy names for an address.
    #[must_use]
    pub(crate) fn place(&self, addr: &Addr) -> Option<Place> {
        let covering = self.places.iter().filter(|(prefix, _)| prefix.contains(addr));
        covering.max_by_key(|(prefix, _)| prefix.len).map(|(_, place)| *place)
    }
}

/// An address as the kernel's maps have it.
#[must_use]
pub(crate) fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => Addr::v4(v4.octets()),
        IpAddr::V6(v6) => Addr::v6(v6.octets()),
    }
}

/// One place that is at least as strict as each of these. A zone, which protects every port, wins over a gateway. A place that enforces
/// wins over one that observes. Of several gateways, the first counts with every port.
#[must_use]
pub(crate) fn combine(places: impl IntoIterator<Item = Place>) -> Place {
    let (mut zones, mut gateways): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
    for place in places {
        if place.zone != 0 {
            zones.push((place.flags & PLACE_ZONE_OBSERVE, place.zone));
        }
        if place.gateway != 0 {
            gateways.push((place.flags & PLACE_GATEWAY_OBSERVE, place.gateway, place.flags & PLACE_GATEWAY_ALL_PORTS));
        }
    }
    let (zone_observes, zone) = zones.into_iter().min().unwrap_or_default();
    if gateways.iter().any(|(observes, ..)| *observes == 0) || (zone != 0 && zone_observes == 0) {
        // A gateway that observes would weaken one that enforces.
        gateways.retain(|(observes, ..)| *observes == 0);
    }
    gateways.sort_unstable();
    gateways.dedup();
    let (gateway_observes, gateway, all_ports) = gateways.first().copied().unwrap_or_default();
    let several = if gateways.len() > 1 { PLACE_GATEWAY_ALL_PORTS } else { all_ports };
    Place { zone, gateway, flags: zone_observes | gateway_observes | several, pad: 0 }
}

#[cfg(test)]
mod tests;
