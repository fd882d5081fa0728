//! What a session reached for, as it is remembered in the kernel's maps.

use super::{INDEX, LONG_NS, MAX_ATTEMPTS, MAX_LOGINS, MAX_PAIRS, MAX_TRIPS};
use crate::dest::Addr;

/// A pair of host and port, and when it was last reached for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// The host.
    pub addr: Addr,
    /// The last attempt that was allowed.
    pub seen_ns: u64,
    /// Port and transport, see [`what`].
    pub what: u32,
    /// Zero.
    pub pad: u32,
}

/// A pattern that is blocked.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trip {
    /// First instant at which it is not any more.
    pub until_ns: u64,
    /// The host, where the rule names one.
    pub addr: Addr,
    /// Port and transport, where the rule names them.
    pub what: u32,
    /// The rule.
    pub rule: u8,
    /// One: any host.
    pub any_host: u8,
    /// One: any port.
    pub any_port: u8,
    /// Zero.
    pub pad: u8,
}

/// What a session reached for lately, without its lock.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// The last attempt that was checked.
    pub seen_ns: u64,
    /// Everything that is checked is blocked until then.
    pub all_until_ns: u64,
    /// The last end of `trips`.
    pub trips_until_ns: u64,
    /// How many of `pairs` were ever used.
    pub used: u32,
    /// How many of `logins` were ever used.
    pub logins_used: u32,
    /// Places in the lists that a step works with.
    pub scratch: [u32; 2],
    /// Where in `pairs` a pair was last found, by its hash.
    pub index: [u8; INDEX],
    /// Distinct pairs.
    pub pairs: [Pair; MAX_PAIRS],
    /// Distinct login targets.
    pub logins: [Pair; MAX_LOGINS],
    /// Blocked patterns.
    pub trips: [Trip; MAX_TRIPS],
}

impl History {
    /// That of a session that has reached for nothing yet.
    pub const EMPTY: Self = Self {
        seen_ns: 0,
        all_until_ns: 0,
        trips_until_ns: 0,
        used: 0,
        logins_used: 0,
        scratch: [0; 2],
        index: [0; INDEX],
        pairs: [Pair { addr: Addr([0; 2]), seen_ns: 0, what: 0, pad: 0 }; MAX_PAIRS],
        logins: [Pair { addr: Addr([0; 2]), seen_ns: 0, what: 0, pad: 0 }; MAX_LOGINS],
        trips: [Trip { until_ns: 0, addr: Addr([0; 2]), what: 0, rule: 0, any_host: 0, any_port: 0, pad: 0 }; MAX_TRIPS],
    };

    /// Whether nothing in it can change an answer any more.
    #[must_use]
    pub const fn is_over(&self, now_ns: u64) -> bool {
        self.seen_ns.saturating_add(LONG_NS) <= now_ns && self.all_until_ns <= now_ns && self.trips_until_ns <= now_ns
    }
}

/// Key of the connections to one login target: the session, and the place in
/// its list of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoginKey {
    /// The session.
    pub session: u64,
    /// The place in [`History::logins`].
    pub place: u32,
    /// Zero.
    pub pad: u32,
}

/// A value as it lies in its map, behind the lock under which it is written.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept<T> {
    /// A `bpf_spin_lock`.
    pub lock: u32,
    /// Zero.
    pub pad: u32,
    /// The value.
    pub value: T,
}

/// A history as it lies in its map.
pub type KeptHistory = Kept<History>;
/// Connections to one login target as they lie in their map.
pub type KeptAttempts = Kept<Attempts>;

/// Connections to one login target, without their lock.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// The target.
    pub addr: Addr,
    /// The last of them.
    pub seen_ns: u64,
    /// Port and transport.
    pub what: u32,
    /// The number of the next one.
    pub next: u32,
    /// The number of the first one to this target.
    pub first: u32,
    /// Zero.
    pub pad: u32,
    /// When each was, by its number.
    pub at_ns: [u64; MAX_ATTEMPTS],
}

impl Attempts {
    /// None yet.
    pub const EMPTY: Self = Self { addr: Addr([0; 2]), seen_ns: 0, what: 0, next: 0, first: 0, pad: 0, at_ns: [0; MAX_ATTEMPTS] };
}
