//! Rate rules: how often, how wide and for how long a session may reach
//! for what nothing protects. Scans and credential sprays are recognised by what they
//! do, since a tool can be called anything.
//!
//! Pure and exact: an attempt counts when it was allowed to go out, whatever
//! became of it; within each window at most the configured number goes out,
//! never one more. What a session holds is bounded, and nothing in it is
//! forgotten before its window or cool-down is over: the list of pairs cannot
//! overflow, because the rule about pairs trips first, and where the list of
//! tripped patterns is full, everything is blocked until the last of them ends.
//!
//! VERIFIER: the loops do without branches of their own, so that each is
//! followed once and not once for every combination of what it may find.

#![expect(clippy::cast_possible_truncation, reason = "counts below 129 and halves of one word; the kernel has no TryFrom to spare")]

mod branchless;
mod history;
mod rules;

use branchless::Branchless;
pub use history::{Attempts, History, Kept, KeptAttempts, KeptHistory, LoginKey, Pair, Trip};
pub use rules::{Answer, again, attempt, step, trip};

use crate::abi::CONTROL_OBSERVE;
use crate::codes::codes;
use crate::decide::{Kind, Reason, transport};
use crate::dest::Addr;

/// For how long a pair of host and port counts.
pub const WINDOW_NS: u64 = 300 * SECOND_NS;
/// The short window of logins, for connections and for hosts.
pub const SHORT_NS: u64 = 60 * SECOND_NS;
/// The long window of logins.
pub const LONG_NS: u64 = 1_800 * SECOND_NS;
/// Longest cool-down that policy can ask for.
pub const MAX_COOL_DOWN_NS: u64 = 86_400 * SECOND_NS;
const SECOND_NS: u64 = 1_000_000_000;

/// Most distinct pairs that a session's list holds: the bound of the rule about pairs.
pub const MAX_PAIRS: usize = 128;
/// Most login targets of one session within the long window.
pub const MAX_LOGINS: usize = 32;
/// Most connections to one login target that are looked back on.
pub const MAX_ATTEMPTS: usize = 64;
/// Most patterns that are blocked one by one.
pub const MAX_TRIPS: usize = 8;
const INDEX: usize = 64;

/// Most sessions with a history.
pub const MAX_SESSIONS: u32 = 16_384;
/// Most login targets of all sessions together.
pub const MAX_LOGIN_TARGETS: u32 = 32_768;
/// Most networks that policy checks or exempts, gateways among them, counting two generations.
pub const MAX_JUDGED_NETWORKS: u32 = 32_768;
/// Port ranges that are exempt in one network.
pub const EXEMPT_PORTS: usize = 8;
/// Words of the zeros that new histories are made of.
pub const BLANK_WORDS: usize = size_of::<KeptHistory>() / 8;
/// Most addresses of the host itself.
pub const MAX_OWN: u32 = 1_024;

codes! {
    /// What a rate rule is about.
    #[derive(PartialOrd, Ord)]
    enum Rule: u32 {
        /// Connections to one login target.
        Target = 1, "target";
        /// Hosts on one login port.
        Logins = 2, "logins";
        /// Hosts on one port.
        Hosts = 3, "hosts";
        /// Ports on one host.
        Ports = 4, "ports";
        /// Pairs of host and port.
        Pairs = 5, "pairs";
    }
}

impl Rule {
    /// Why an attempt is refused by it.
    #[must_use]
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Target => Reason::SprayTarget,
            Self::Logins => Reason::SprayHosts,
            Self::Hosts => Reason::ScanHosts,
            Self::Ports => Reason::ScanPorts,
            Self::Pairs => Reason::ScanPairs,
        }
    }

    /// The rule behind a reason.
    #[must_use]
    pub const fn of(reason: Reason) -> Option<Self> {
        match reason {
            Reason::SprayTarget => Some(Self::Target),
            Reason::SprayHosts => Some(Self::Logins),
            Reason::ScanHosts => Some(Self::Hosts),
            Reason::ScanPorts => Some(Self::Ports),
            Reason::ScanPairs => Some(Self::Pairs),
            _ => None,
        }
    }

    /// Whether what it blocks is one host.
    #[must_use]
    #[inline(always)]
    pub const fn names_host(self) -> bool {
        matches!(self, Self::Target | Self::Ports)
    }

    /// Whether what it blocks is one port.
    #[must_use]
    #[inline(always)]
    pub const fn names_port(self) -> bool {
        matches!(self, Self::Target | Self::Logins | Self::Hosts)
    }
}

/// What policy allows. One for each half of the generations.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// For how long a tripped pattern stays blocked.
    pub cool_down_ns: u64,
    /// `LIMITS_*` flags.
    pub flags: u32,
    /// Connections to one login target in the short window ...
    pub target_short: u32,
    /// ... and in the long one.
    pub target_long: u32,
    /// The same for SSH, in the short window ...
    pub ssh_short: u32,
    /// ... and in the long one.
    pub ssh_long: u32,
    /// Hosts on one login port in the short window.
    pub login_hosts: u32,
    /// Login targets in the long window.
    pub login_targets: u32,
    /// Ports on one host.
    pub host_ports: u32,
    /// Hosts on one port.
    pub port_hosts: u32,
    /// Pairs of host and port.
    pub pairs: u32,
}

/// The rules report and block nothing.
pub const LIMITS_OBSERVE: u32 = CONTROL_OBSERVE;
/// Loopback and the host's own addresses count like others.
pub const LIMITS_COUNT_OWN: u32 = 2;

impl Limits {
    /// What holds unless policy says otherwise.
    pub const DEFAULT: Self = Self {
        cool_down_ns: 900 * SECOND_NS,
        flags: 0,
        target_short: 10,
        // Fewer than one a minute: whoever guesses that slowly is still stopped.
        target_long: 25,
        ssh_short: 20,
        ssh_long: 60,
        login_hosts: 5,
        login_targets: MAX_LOGINS as u32,
        host_ports: 15,
        port_hosts: 25,
        pairs: 100,
    };
}

/// Ports from `first` to `last`; none where `first` is greater.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl PortRange {
    /// No port.
    pub const NONE: Self = Self { first: 1, last: 0 };
}

/// What the rules make of a network. An entry carries what wider ones say: the
/// kernel sees the most specific alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JudgedNetwork {
    /// `NETWORK_*` flags.
    pub flags: u32,
    /// Ports that are exempt.
    pub ports: [PortRange; EXEMPT_PORTS],
    /// Zero.
    pub pad: u32,
}

/// Destinations in the network are checked.
pub const NETWORK_INTERNAL: u32 = 1;
/// Loopback: checked only where policy asks for it.
pub const NETWORK_OWN: u32 = 2;
/// Every port is exempt.
pub const NETWORK_EXEMPT: u32 = 4;

/// Which attempts to a destination are checked.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// None.
    Nothing = 0,
    /// All, by every rule.
    Internal = 1,
    /// Logins, by how many hosts they reach: a destination elsewhere.
    Logins = 2,
}

/// How a destination that nothing protects is checked.
#[must_use]
#[inline(always)]
pub fn scope(network: Option<&JudgedNetwork>, login: bool, port: u16) -> Scope {
    let elsewhere = if login { Scope::Logins } else { Scope::Nothing };
    let Some(network) = network else { return elsewhere };
    if network.flags & (NETWORK_OWN | NETWORK_EXEMPT) != 0 || exempt(network, u64::from(port)) {
        return Scope::Nothing;
    }
    if network.flags & NETWORK_INTERNAL != 0 { Scope::Internal } else { elsewhere }
}

#[inline(always)]
fn exempt(network: &JudgedNetwork, port: u64) -> bool {
    // Ranges are filled from the first.
    if network.ports[0].first > network.ports[0].last {
        return false;
    }
    let number = Branchless::new();
    let mut hit = 0;
    let mut i = 0;
    while i < EXEMPT_PORTS {
        let range = &network.ports[i];
        hit |= (number.less(port, u64::from(range.first)) | number.less(u64::from(range.last), port)) ^ 1;
        i += 1;
    }
    hit != 0
}

/// Whether an attempt of this kind counts at egress: everything but TCP, whose
/// connect hook counted it, unless a raw socket sends it past that hook.
#[must_use]
#[inline(always)]
pub const fn counts_at_egress(kind: Kind, transport: u8, raw: bool) -> bool {
    match kind {
        Kind::Open => transport != transport::TCP || raw,
        // A later fragment is of a datagram whose first one counted.
        Kind::Portless => !has_ports(transport),
        Kind::Answer | Kind::UdpConnect => false,
    }
}

/// Whether packets of this protocol name ports.
#[must_use]
#[inline(always)]
pub const fn has_ports(transport: u8) -> bool {
    matches!(transport, transport::TCP | transport::UDP | transport::UDPLITE | transport::SCTP)
}

/// Where an attempt goes, as the rules compare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The address it really reaches.
    pub addr: Addr,
    /// Port and transport, see [`what`].
    pub what: u32,
    /// One: a login port or a gateway.
    pub login: u32,
    /// One: checked by every rule; else by how many hosts its logins reach.
    pub internal: u32,
}

/// Port and transport as one word.
#[must_use]
#[inline(always)]
pub const fn what(transport: u8, port: u16) -> u32 {
    (transport as u32) << 16 | port as u32
}

/// Port of such a word.
#[must_use]
pub const fn port_of(what: u32) -> u16 {
    what as u16
}

/// Transport of such a word.
#[must_use]
pub const fn transport_of(what: u32) -> u8 {
    (what >> 16) as u8
}

const _: () = {
    assert!(size_of::<Limits>() == 8 + 10 * 4);
    assert!(size_of::<JudgedNetwork>() == 4 + EXEMPT_PORTS * 4 + 4);
    assert!(size_of::<Pair>() == 16 + 8 + 2 * 4);
    assert!(size_of::<Trip>() == 8 + 16 + 4 + 4);
    assert!(size_of::<History>() == 3 * 8 + 4 * 4 + INDEX + (MAX_PAIRS + MAX_LOGINS) * 32 + MAX_TRIPS * 32);
    assert!(size_of::<LoginKey>() == 8 + 2 * 4);
    assert!(size_of::<Kept<History>>() == 8 + size_of::<History>() && size_of::<Kept<Attempts>>() == 8 + size_of::<Attempts>());
    assert!(size_of::<Attempts>() == 16 + 8 + 4 * 4 + MAX_ATTEMPTS * 8);
    assert!(MAX_PAIRS.is_power_of_two() && MAX_LOGINS.is_power_of_two() && MAX_ATTEMPTS.is_power_of_two() && MAX_TRIPS.is_power_of_two());
    assert!(MAX_PAIRS <= 256 && Limits::DEFAULT.pairs as usize <= MAX_PAIRS);
};

#[cfg(feature = "user")]
mod pod {
    use super::*;
    macro_rules! pod {
        ($($t:ty),*) => { $(
            // SAFETY: repr(C) of integers with named padding (the assertions above), so every
            // byte is initialised and every bit pattern is a value.
            unsafe impl aya::Pod for $t {}
        )* };
    }
    pod!(Limits, JudgedNetwork, LoginKey, Kept<History>, Kept<Attempts>);
}

#[cfg(test)]
#[path = "behaviour_tests.rs"]
mod tests;
