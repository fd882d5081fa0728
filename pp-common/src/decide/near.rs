//! Addresses that policy does not name and that belong to a protected place all the same: those that were learned to be a
//! protected device's, and link-local ones on a link that carries a place.

use super::{Attempt, Kind, Tables, transport};
use crate::abi::{LEARNED_DNS, LEARNED_OWN, LinkKey, NearKey, Place};
use crate::dest::Addr;

/// Where an attempt leaves or came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Inode number of its network namespace; zero: it cannot be read.
    pub netns: u32,
    /// Interface index; zero: not known here. Egress always knows it.
    pub ifindex: u32,
    /// `LINK_*` flags.
    pub flags: u32,
}

/// A packet, not a call.
pub const LINK_PACKET: u32 = 1;
/// It came in.
pub const LINK_IN: u32 = 2;
/// Neighbour discovery or listener discovery, which nothing here keeps from working (RFC 4861, RFC 2710, RFC 3810).
pub const LINK_DISCOVERY: u32 = 4;

const DNS_PORT: u16 = 53;

/// What is known of an address beside policy.
pub(super) enum Near {
    /// It belongs to no place.
    Nothing,
    /// It belongs to this place.
    Place(Place),
    /// The network namespace cannot be read.
    Unknown,
}

/// Where an address that policy does not name belongs.
#[inline(always)]
pub(super) fn near(tables: &impl Tables, attempt: &Attempt, addr: &Addr) -> Near {
    let Some(link) = tables.link() else { return Near::Nothing };
    if link.netns == 0 {
        return Near::Unknown;
    }
    let is_packet = link.flags & LINK_PACKET != 0;
    // What a call on an ICMPv6 socket sends is seen at egress.
    if link.flags & LINK_DISCOVERY != 0 || (attempt.transport == transport::ICMPV6 && !is_packet) {
        return Near::Nothing;
    }
    let scoped = addr.is_link_local();
    if scoped && link.ifindex == 0 {
        return Near::Nothing;
    }
    let ifindex = if scoped { link.ifindex } else { 0 };
    if let Some(known) = tables.learned(&NearKey { netns: link.netns, ifindex, addr: *addr }) {
        if known.place.zone | known.place.gateway != 0 {
            return Near::Place(known.place);
        }
        let is_dns = attempt.port == DNS_PORT && matches!(attempt.transport, transport::UDP | transport::TCP);
        if (known.flags & LEARNED_OWN != 0 && !is_packet) || (known.flags & LEARNED_DNS != 0 && is_dns) {
            return Near::Nothing;
        }
    }
    // A link as a whole is checked by what sessions open: multicast DNS and the like answer from link-local addresses.
    if !scoped || link.flags & LINK_IN != 0 || matches!(attempt.kind, Kind::Answer) {
        return Near::Nothing;
    }
    match tables.link_place(&LinkKey { netns: link.netns, ifindex }) {
        Some(place) => Near::Place(place),
        None => Near::Nothing,
    }
}
