//! Addresses that policy does not name and that belong to a protected place all the same: those that were learned to be a
//! protected device's, and on a link that carries a place its link-local ones and what goes to everybody there.

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
/// It goes to everybody on the link, and is no discovery: see [`is_for_all`]. Set for packets that leave: before, their link is not known.
pub const LINK_ALL: u32 = 8;

/// Internet Group Management Protocol, which joins and leaves groups (RFC 3376).
const IGMP: u8 = 2;

const DNS_PORT: u16 = 53;

impl Link {
    /// The same for an attempt that is judged before it is a packet.
    #[must_use]
    pub const fn towards(self, attempt: &Attempt) -> Self {
        let all = if is_for_all(&attempt.addr, attempt.transport, attempt.port) { LINK_ALL } else { 0 };
        Self { flags: self.flags | all, ..self }
    }
}

/// Whether everybody on a link gets it, protected devices too, and it does more than find out who is there.
#[must_use]
#[inline(always)]
pub const fn is_for_all(addr: &Addr, transport: u8, port: u16) -> bool {
    addr.is_link_wide() && !is_discovery(transport, port)
}

/// What a host says to everybody to find names, services and its own address. Of DHCP only what goes to servers: an answer configures who
/// asked. Neither the time (NTP, PTP), which devices take from whoever tells it, nor an echo, which each of them would answer.
#[inline(always)]
const fn is_discovery(transport: u8, port: u16) -> bool {
    match port {
        // Multicast DNS and DNS-SD (RFC 6762, RFC 6763), LLMNR (RFC 4795).
        5353 | 5355
        // SSDP (UPnP Device Architecture 2.0, 1.3), WS-Discovery (OASIS WS-Discovery 1.1, 2.4).
        | 1900 | 3702
        // Servers of DHCP (RFC 2131, 4.1) and of DHCPv6 (RFC 8415, 7.2).
        | 67 | 547 => transport == transport::UDP,
        _ => transport == IGMP,
    }
}

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
    let scoped = addr.is_link_local() || link.flags & LINK_ALL != 0;
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
