//! What is known of the links of a network namespace: which place each carries, and which addresses turned out to belong to one.

use super::Place;
use crate::dest::Addr;

/// Most links that carry a protected place.
pub const MAX_LINKS: u32 = 1_024;
/// Most addresses in the map of learned addresses, those of this host and of its name servers included.
pub const MAX_NEAR: u32 = 4_096;

/// One link of one network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkKey {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Interface index.
    pub ifindex: u32,
}

/// An address as one network namespace means it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NearKey {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Interface index of a link-local address; zero for every other.
    pub ifindex: u32,
    /// The address.
    pub addr: Addr,
}

/// What is known of an address that policy does not name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// The place it joined; empty where it joined none.
    pub place: Place,
    /// The address that policy names and that answers with the same hardware address; zero: `mac` in policy.
    pub of: Addr,
    /// When it was last seen, boot time.
    pub seen_ns: u64,
    /// The link it was seen on.
    pub ifindex: u32,
    /// `LEARNED_*` flags.
    pub flags: u16,
    /// The hardware address it answers with.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 4],
}

/// An address of this host: calls to it pass. Packets to it never leave by the link.
pub const LEARNED_OWN: u16 = 1;
/// A name server or default router: DNS to it passes.
pub const LEARNED_DNS: u16 = 2;
/// It follows from a hardware address that policy gives, and does not expire.
pub const LEARNED_MAC: u16 = 4;
/// Everybody on its link gets what is sent to it: a directed broadcast.
pub const LEARNED_BROADCAST: u16 = 8;

const _: () = {
    assert!(size_of::<LinkKey>() == 2 * 4);
    assert!(size_of::<NearKey>() == 2 * 4 + 16);
    assert!(size_of::<Learned>() == 24 + 16 + 8 + 4 + 2 + 6 + 4);
};
