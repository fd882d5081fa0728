//! Networks in the form of the kernel's longest-prefix tables.

use ipnet::{IpNet, Ipv6Net};
use pp_common::dest::Addr;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// A network of 128-bit addresses: IPv4 in its mapped form, host bits clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Prefix {
    /// The address, network byte order.
    pub(crate) addr: [u8; 16],
    /// How many of its bits count, 0 to 128; an IPv4 `/n` is 96 + n.
    pub(crate) len: u8,
}

impl Prefix {
    /// The prefix cut to `len` bits; the whole prefix if it is not longer.
    #[must_use]
    pub(crate) fn shortened(&self, len: u8) -> Self {
        let len = len.min(self.len);
        let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        Self { addr: (u128::from_be_bytes(self.addr) & mask).to_be_bytes(), len }
    }

    /// Whether every address of `other` is in it.
    #[must_use]
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.len <= other.len && other.shortened(self.len).addr == self.addr
    }

    /// Whether they have an address in common.
    #[must_use]
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// Whether the address is in it.
    #[must_use]
    pub(crate) fn contains(&self, addr: &Addr) -> bool {
        self.covers(&Self { addr: addr.octets(), len: 128 })
    }

    /// Its two halves; `None` for a single address.
    pub(crate) fn halves(&self) -> Option<[Self; 2]> {
        let len = self.len.checked_add(1).filter(|len| *len <= 128)?;
        let upper = u128::from_be_bytes(self.addr) | 1 << (128 - u32::from(len));
        Some([Self { addr: self.addr, len }, Self { addr: upper.to_be_bytes(), len }])
    }
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Self {
        let (addr, len) = match net {
            IpNet::V4(net) => (net.network().to_ipv6_mapped(), 96 + net.prefix_len()),
            IpNet::V6(net) => (net.network(), net.prefix_len()),
        };
        Self { addr: addr.octets(), len }
    }
}

impl From<IpAddr> for Prefix {
    fn from(addr: IpAddr) -> Self {
        IpNet::from(addr).into()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addr = Ipv6Addr::from(self.addr);
        match (addr.to_ipv4_mapped(), self.len.checked_sub(96)) {
            (Some(v4), Some(len)) => write!(f, "{v4}/{len}"),
            _ => write!(f, "{}", Ipv6Net::new(addr, self.len).map_err(|_| fmt::Error)?),
        }
    }
}
