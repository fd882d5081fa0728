//! Hardware addresses.

use std::net::Ipv6Addr;

/// An Ethernet hardware address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub(crate) [u8; 6]);

impl Mac {
    /// Reads `aa:bb:cc:dd:ee:ff`, or with `-`. Multicast addresses and zero are refused.
    #[must_use]
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut octets = [0; 6];
        let mut parts = text.split(separator);
        for octet in &mut octets {
            *octet = parts.next().filter(|part| part.len() == 2).and_then(|part| u8::from_str_radix(part, 16).ok())?;
        }
        let is_one_device = parts.next().is_none() && octets[0] & 1 == 0 && octets != [0; 6];
        is_one_device.then_some(Self(octets))
    }

    /// The IPv6 address that a device with this hardware address assigns itself in a network (RFC 4291, appendix A).
    #[must_use]
    pub(crate) fn eui64(self, network: Ipv6Addr) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let mut octets = network.octets();
        octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        octets.into()
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
