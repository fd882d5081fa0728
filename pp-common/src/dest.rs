//! Addresses as the decision sees them: 128 bits, IPv4 in its mapped form, so
//! that one table and one comparison serve both families.

#![expect(clippy::cast_possible_truncation, reason = "halves and quarters of an address are cut from it on purpose")]

/// A destination address: IPv6, or IPv4 as `::ffff:a.b.c.d` (RFC 4291,
/// 2.5.5.2). Its memory holds the sixteen octets in network byte order; two
/// words, because the kernel programs compare and copy them as such.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(pub [u64; 2]);

/// The high half of `64:ff9b::/96`, RFC 6052.
const NAT64_HIGH: u64 = 0x0064_ff9b_0000_0000;

#[cfg(feature = "user")]
// SAFETY: repr(C) of integers without padding.
unsafe impl aya::Pod for Addr {}

impl Addr {
    /// `::1`
    pub const LOCALHOST_V6: Self = Self::halves(0, 1);

    /// From an IPv4 address in network byte order, as it lies in memory.
    #[must_use]
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self::halves(0, 0xffff_0000_0000 | u32::from_be_bytes(octets) as u64)
    }

    /// From an IPv6 address in network byte order.
    #[must_use]
    #[inline(always)]
    pub const fn v6(octets: [u8; 16]) -> Self {
        let whole = u128::from_be_bytes(octets);
        Self::halves((whole >> 64) as u64, whole as u64)
    }

    /// From the four words of an IPv6 address as they lie in memory.
    #[must_use]
    #[inline(always)]
    pub const fn v6_words(words: [u32; 4]) -> Self {
        let [a, b, c, d] = words;
        Self::halves((u32::from_be(a) as u64) << 32 | u32::from_be(b) as u64, (u32::from_be(c) as u64) << 32 | u32::from_be(d) as u64)
    }

    /// The sixteen octets.
    #[must_use]
    pub const fn octets(&self) -> [u8; 16] {
        ((self.high() as u128) << 64 | self.low() as u128).to_be_bytes()
    }

    /// The IPv4 address, if this is one.
    #[must_use]
    #[inline(always)]
    pub const fn as_v4(&self) -> Option<[u8; 4]> {
        if self.is_mapped() { Some((self.low() as u32).to_be_bytes()) } else { None }
    }

    /// The address that this one really reaches, where it embeds another:
    /// `::` and `0.0.0.0` (the host itself), NAT64 (RFC 6052), 6to4
    /// (RFC 3056), IPv4-compatible (RFC 4291, 2.5.5.1).
    #[must_use]
    #[inline(always)]
    pub const fn embedded(&self) -> Option<Self> {
        let (high, low) = (self.high(), self.low());
        if self.is_mapped() {
            return if low as u32 == 0 { Some(Self::v4([127, 0, 0, 1])) } else { None };
        }
        if high == 0 && low >> 32 == 0 {
            return match low {
                0 => Some(Self::LOCALHOST_V6),
                1 => None,
                v4 => Some(Self::v4_word(v4 as u32)),
            };
        }
        if high == NAT64_HIGH && low >> 32 == 0 {
            return Some(Self::v4_word(low as u32));
        }
        if high >> 48 == 0x2002 {
            return Some(Self::v4_word((high >> 16) as u32));
        }
        None
    }

    /// In `fe80::/10`: it means something on one link alone.
    #[must_use]
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        self.high() >> 54 == 0xfe80 >> 6
    }

    /// Whoever is on a link gets what is sent here: `255.255.255.255`, multicast of IPv4, and of IPv6 beyond the interface itself
    /// (RFC 919, RFC 1112, RFC 4291).
    #[must_use]
    #[inline(always)]
    pub const fn is_link_wide(&self) -> bool {
        if self.is_mapped() {
            return self.low() as u32 >> 28 == 0xe || self.low() as u32 == u32::MAX;
        }
        // The scopes 0 and 1 never leave the host.
        self.high() >> 56 == 0xff && (self.high() >> 48) & 0xf > 1
    }

    #[inline(always)]
    const fn is_mapped(&self) -> bool {
        self.high() == 0 && self.low() >> 32 == 0xffff
    }

    #[inline(always)]
    const fn v4_word(word: u32) -> Self {
        Self::halves(0, 0xffff_0000_0000 | word as u64)
    }

    #[inline(always)]
    const fn halves(high: u64, low: u64) -> Self {
        Self([high.to_be(), low.to_be()])
    }

    #[inline(always)]
    const fn high(&self) -> u64 {
        u64::from_be(self.0[0])
    }

    #[inline(always)]
    const fn low(&self) -> u64 {
        u64::from_be(self.0[1])
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn embedded(text: &str) -> Option<Ipv6Addr> {
        let addr: Ipv6Addr = text.parse().unwrap();
        Addr::v6(addr.octets()).embedded().map(|a| a.octets().into())
    }

    #[test]
    fn every_embedded_form_folds_to_the_address_it_reaches() {
        let plc = Ipv4Addr::new(10, 20, 4, 7).to_ipv6_mapped();
        assert_eq!(embedded("64:ff9b::10.20.4.7"), Some(plc));
        assert_eq!(embedded("2002:0a14:0407::1"), Some(plc));
        assert_eq!(embedded("::10.20.4.7"), Some(plc));
        assert_eq!(embedded("::"), Some(Ipv6Addr::LOCALHOST));
        assert_eq!(embedded("::ffff:0.0.0.0"), Some(Ipv4Addr::LOCALHOST.to_ipv6_mapped()));
    }

    #[test]
    fn ordinary_addresses_embed_nothing() {
        for text in ["::1", "fd00:20::7", "2001:db8::1", "::ffff:10.20.4.7", "64:ff9b:1::1"] {
            assert_eq!(embedded(text), None, "{text}");
        }
    }

    #[test]
    fn link_local_addresses_are_fe80_to_febf() {
        let is = |text: &str| Addr::v6(text.parse::<Ipv6Addr>().unwrap().octets()).is_link_local();
        assert!(is("fe80::1") && is("febf:ffff::1"));
        assert!(!is("fec0::1") && !is("fe7f::1") && !is("ff02::1") && !is("fd00::1") && !is("::ffff:169.254.1.1"));
    }

    #[test]
    fn what_a_whole_link_gets_is_broadcast_and_multicast() {
        let is = |text: &str| Addr::v6(text.parse::<Ipv6Addr>().unwrap().octets()).is_link_wide();
        for text in ["::ffff:255.255.255.255", "::ffff:224.0.0.1", "::ffff:239.255.255.250", "ff02::1", "ff05::1:3", "ff3e::8000:1"] {
            assert!(is(text), "{text}");
        }
        for text in ["::ffff:223.255.255.255", "::ffff:240.0.0.1", "::ffff:255.255.255.254", "ff01::1", "fe80::1", "::e000:1", "::1"] {
            assert!(!is(text), "{text}");
        }
    }

    #[test]
    fn mapped_and_plain_ipv4_are_one_address() {
        let mapped: Ipv6Addr = "::ffff:10.20.4.7".parse().unwrap();
        assert_eq!(Addr::v6(mapped.octets()), Addr::v4([10, 20, 4, 7]));
        assert_eq!(Addr::v4([10, 20, 4, 7]).as_v4(), Some([10, 20, 4, 7]));
    }
}
