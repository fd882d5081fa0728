//! One network namespace as the rules of learning see it: which neighbours are routers, and which addresses may be learned.

use std::collections::BTreeSet;
use std::net::IpAddr;

use pp_common::abi::{LinkKey, NearKey};

use super::{Neighbour, Protected, Snapshot, addr};
use crate::net::Mac;

/// A snapshot of one namespace, and what policy says about it.
pub(super) struct View<'a> {
    /// The namespace.
    pub(super) snapshot: &'a Snapshot,
    /// What policy protects.
    pub(super) policy: &'a Protected,
    /// Hardware addresses of this host.
    pub(super) own_macs: BTreeSet<Mac>,
    /// Hardware addresses of routers, by link.
    routers: BTreeSet<(u32, Mac)>,
}

impl<'a> View<'a> {
    /// Finds the routers in a snapshot.
    pub(super) fn new(snapshot: &'a Snapshot, policy: &'a Protected) -> Self {
        let is_hop = |neighbour: &&Neighbour| snapshot.hops.iter().any(|(_, hop)| *hop == neighbour.addr);
        let is_given = |mac: &Mac| policy.macs.iter().any(|(given, _)| given == mac);
        // A `mac` in policy overrules what a device says of itself. A next hop is always a router.
        let says_so = |neighbour: &&Neighbour| neighbour.router && !is_given(&neighbour.mac);
        let routers = snapshot.neighbours.iter().filter(|neighbour| is_hop(neighbour) || says_so(neighbour));
        Self {
            snapshot,
            policy,
            own_macs: snapshot.links.iter().map(|link| link.mac).collect(),
            routers: routers.map(|neighbour| (neighbour.link, neighbour.mac)).collect(),
        }
    }

    /// The key of a link in the kernel's maps.
    pub(super) const fn key(&self, link: u32) -> LinkKey {
        LinkKey { netns: self.snapshot.netns, ifindex: link }
    }

    /// The key of an address in the kernel's maps. Only link-local addresses depend on their link.
    pub(super) fn near(&self, link: u32, ip: IpAddr) -> NearKey {
        let addr = addr(ip);
        NearKey { netns: self.snapshot.netns, ifindex: if addr.is_link_local() { link } else { 0 }, addr }
    }

    /// The name of a link.
    pub(super) fn name(&self, link: u32) -> String {
        let found = self.snapshot.links.iter().find(|known| known.index == link);
        found.map_or_else(|| format!("interface {link}"), |known| known.name.clone())
    }

    /// Whether a route has this address as its next hop.
    pub(super) fn is_hop(&self, ip: IpAddr) -> bool {
        self.snapshot.hops.iter().any(|(_, hop)| *hop == ip)
    }

    /// Whether a hardware address is a router's on this link.
    pub(super) fn is_router(&self, link: u32, mac: Mac) -> bool {
        self.routers.contains(&(link, mac))
    }

    /// Whether an address is a router's, a name server's or this host's, or not the address of a single device.
    pub(super) fn is_special(&self, ip: IpAddr) -> bool {
        let snapshot = self.snapshot;
        snapshot.own.iter().any(|(_, own)| *own == ip)
            || self.is_hop(ip)
            || self.policy.resolvers.iter().any(|resolver| resolver.addr == ip)
            || ip.is_multicast()
            || ip.is_unspecified()
            || ip.is_loopback()
            || ip == IpAddr::V4(std::net::Ipv4Addr::BROADCAST)
            // The IPv4 address inside it may be anywhere.
            || addr(ip).embedded().is_some()
    }

    /// Whether an address may join the place of its device.
    pub(super) fn may_learn(&self, neighbour: &Neighbour) -> bool {
        let given = self.policy.macs.iter().any(|(mac, _)| *mac == neighbour.mac);
        self.policy.place(&addr(neighbour.addr)).is_none()
            && !self.is_special(neighbour.addr)
            && !self.own_macs.contains(&neighbour.mac)
            && (given || !neighbour.router && !self.is_router(neighbour.link, neighbour.mac))
    }
}

/// Whether a prefix names one network: neither all addresses, nor link-local or multicast ones.
pub(super) fn is_network(len: u8, octets: &[u8; 16]) -> bool {
    let is_v4 = octets[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let is_everything = if is_v4 { len <= 96 } else { len == 0 };
    let is_link_local = octets[0] == 0xfe && octets[1] & 0xc0 == 0x80;
    !is_everything && !is_link_local && octets[0] != 0xff
}
