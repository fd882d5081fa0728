//! Behaviour rules: how often, how wide and for how long a session may reach
//! for what nothing protects. Scans and credential sprays are told by what they
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

use core::hint::black_box;

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
/// Most networks that policy judges or exempts, gateways among them, counting two generations.
pub const MAX_GROUNDS: u32 = 32_768;
/// Port ranges that are exempt in one network.
pub const GROUND_PORTS: usize = 8;
/// Most addresses of the host itself.
pub const MAX_OWN: u32 = 1_024;

/// What a behaviour rule is about.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Connections to one login target.
    Target = 1,
    /// Hosts on one login port.
    Logins = 2,
    /// Hosts on one port.
    Hosts = 3,
    /// Ports on one host.
    Ports = 4,
    /// Pairs of host and port.
    Pairs = 5,
}

impl Rule {
    const fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => None,
            1 => Some(Self::Target),
            2 => Some(Self::Logins),
            3 => Some(Self::Hosts),
            4 => Some(Self::Ports),
            _ => Some(Self::Pairs),
        }
    }

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
pub const LIMITS_OBSERVE: u32 = 1;
/// Loopback and the host's own addresses count like others.
pub const LIMITS_COUNT_OWN: u32 = 2;

impl Limits {
    /// What holds unless policy says otherwise.
    pub const DEFAULT: Self = Self {
        cool_down_ns: 900 * SECOND_NS,
        flags: 0,
        target_short: 10,
        target_long: 30,
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
pub struct Ground {
    /// `GROUND_*` flags.
    pub flags: u32,
    /// Ports that are exempt.
    pub ports: [PortRange; GROUND_PORTS],
    /// Zero.
    pub pad: u32,
}

/// Destinations in the network are judged.
pub const GROUND_INTERNAL: u32 = 1;
/// Loopback: judged only where policy asks for it.
pub const GROUND_OWN: u32 = 2;
/// Every port is exempt.
pub const GROUND_EXEMPT: u32 = 4;

/// Which attempts to a destination are judged.
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

/// How a destination that nothing protects is judged.
#[must_use]
#[inline(always)]
pub fn scope(ground: Option<&Ground>, login: bool, port: u16) -> Scope {
    let elsewhere = if login { Scope::Logins } else { Scope::Nothing };
    let Some(ground) = ground else { return elsewhere };
    if ground.flags & (GROUND_OWN | GROUND_EXEMPT) != 0 || exempt(ground, u64::from(port)) {
        return Scope::Nothing;
    }
    if ground.flags & GROUND_INTERNAL != 0 { Scope::Internal } else { elsewhere }
}

#[inline(always)]
fn exempt(ground: &Ground, port: u64) -> bool {
    // Ranges are filled from the first.
    if ground.ports[0].first > ground.ports[0].last {
        return false;
    }
    let number = Branchless::new();
    let mut hit = 0;
    let mut i = 0;
    while i < GROUND_PORTS {
        let range = &ground.ports[i];
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
    /// One: judged by every rule; else by how many hosts its logins reach.
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
    /// The last attempt that was judged.
    pub seen_ns: u64,
    /// Everything that is judged is blocked until then.
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

/// What a step says of an attempt. It must be acted upon.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Code of the [`Rule`] that refuses it; zero: it may go out.
    pub rule: u32,
    /// What it would have come to, where the rule tripped just now; else zero.
    pub count: u32,
    /// How much the rule allows ...
    pub limit: u32,
    /// ... within this time.
    pub window_s: u32,
    /// Place in [`History::logins`] plus one: the connections to this target
    /// must be asked too.
    pub login: u32,
}

impl Answer {
    /// The rule that refuses it.
    #[must_use]
    #[inline(always)]
    pub const fn refusal(&self) -> Option<Rule> {
        Rule::from_code(self.rule)
    }
}

/// Whether the session reached for this very target a moment ago and nothing is
/// blocked: then the attempt may go out, and only the time is noted. Most
/// attempts end here, without the session's lock.
///
/// RACE: a place in the list is given to another pair only when the one in it is
/// out of its window, and is written in the order of [`put`]: what is read
/// between two equal times within the window is of one pair. The times written
/// here may overtake one another by what two clocks differ.
#[inline(always)]
pub fn again(history: &mut History, target: &Target, now_ns: u64) -> bool {
    let number = Branchless::new();
    if now_ns < history.all_until_ns || now_ns < history.trips_until_ns || target.login & target.internal != 0 {
        return false;
    }
    let window = WINDOW_NS - u64::from(target.login) * (WINDOW_NS - SHORT_NS);
    let at = hash(target) as usize & (INDEX - 1);
    let known = &mut history.pairs[history.index[at] as usize & (MAX_PAIRS - 1)];
    let before_ns = *black_box(&known.seen_ns);
    let this = number.same(u64::from(known.what), u64::from(target.what))
        & number.same(known.addr.0[0], target.addr.0[0])
        & number.same(known.addr.0[1], target.addr.0[1]);
    let after_ns = *black_box(&known.seen_ns);
    if this & number.same(before_ns, after_ns) & number.less(number.later(before_ns, now_ns) - before_ns, window) == 0 {
        return false;
    }
    known.seen_ns = number.later(before_ns, now_ns);
    history.seen_ns = number.later(history.seen_ns, now_ns);
    true
}

/// Gives a place in a list to a pair; see [`again`] for the order.
#[inline(always)]
fn put(place: &mut Pair, target: &Target, now_ns: u64) {
    place.seen_ns = 0;
    let place = black_box(place);
    place.addr = target.addr;
    place.what = target.what;
    let place = black_box(place);
    place.seen_ns = now_ns;
}

/// Judges one attempt by what the session reached for before, and counts it
/// where it may go out. Under the session's lock.
#[inline(always)]
pub fn step(history: &mut History, limits: &Limits, target: &Target, now_ns: u64) -> Answer {
    // RACE: another CPU may have read its clock later and come first.
    let number = Branchless::new();
    let now_ns = number.later(history.seen_ns, now_ns);
    history.seen_ns = now_ns;
    if now_ns < history.all_until_ns {
        return Answer { rule: Rule::Pairs as u32, ..Answer::default() };
    }
    if now_ns < history.trips_until_ns {
        let rule = tripped(history, target, now_ns);
        if rule != 0 {
            return Answer { rule, ..Answer::default() };
        }
    }
    let many_logins = target.login & target.internal;
    let at = hash(target) as usize & (INDEX - 1);
    let mut answer = width(history, limits, target, now_ns);
    if many_logins != 0 && answer.rule == 0 {
        answer = login(history, limits, target, now_ns);
    }
    if answer.rule != 0 {
        trip(history, limits, answer.rule, target, now_ns);
        return answer;
    }
    let place = *black_box(&history.scratch[0]) as usize & (MAX_PAIRS - 1);
    put(&mut history.pairs[place], target, now_ns);
    history.index[at] = place as u8;
    if place as u32 >= history.used {
        history.used = place as u32 + 1;
    }
    if many_logins != 0 {
        let place = *black_box(&history.scratch[1]) as usize & (MAX_LOGINS - 1);
        put(&mut history.logins[place], target, now_ns);
        if place as u32 >= history.logins_used {
            history.logins_used = place as u32 + 1;
        }
        answer.login = place as u32 + 1;
    }
    answer
}

/// How wide the session would have reached with this attempt. Leaves the place
/// for its pair in `scratch`.
#[inline(always)]
fn width(history: &mut History, limits: &Limits, target: &Target, now_ns: u64) -> Answer {
    let seen = survey(&history.pairs, history.used, target, now_ns, WINDOW_NS);
    history.scratch[0] = seen.place;
    // The list cannot be full: each pair in it counts, and the rule about pairs allows no more than it holds.
    let limit_pairs = if limits.pairs > MAX_PAIRS as u32 { MAX_PAIRS as u32 } else { limits.pairs };
    let window_s = (WINDOW_NS / SECOND_NS) as u32;
    if target.login != 0 && seen.recent_hosts > limits.login_hosts {
        let window_s = (SHORT_NS / SECOND_NS) as u32;
        return Answer { rule: Rule::Logins as u32, count: seen.recent_hosts, limit: limits.login_hosts, window_s, login: 0 };
    }
    if seen.hosts > limits.port_hosts {
        return Answer { rule: Rule::Hosts as u32, count: seen.hosts, limit: limits.port_hosts, window_s, login: 0 };
    }
    if seen.ports > limits.host_ports {
        return Answer { rule: Rule::Ports as u32, count: seen.ports, limit: limits.host_ports, window_s, login: 0 };
    }
    if seen.pairs > limit_pairs {
        return Answer { rule: Rule::Pairs as u32, count: seen.pairs, limit: limit_pairs, window_s, login: 0 };
    }
    Answer::default()
}

/// How many login targets there would be with this one. Leaves its place in `scratch`.
#[inline(always)]
fn login(history: &mut History, limits: &Limits, target: &Target, now_ns: u64) -> Answer {
    let seen = survey(&history.logins, history.logins_used, target, now_ns, LONG_NS);
    history.scratch[1] = seen.place;
    let limit = if limits.login_targets > MAX_LOGINS as u32 { MAX_LOGINS as u32 } else { limits.login_targets };
    if seen.pairs > limit {
        let window_s = (LONG_NS / SECOND_NS) as u32;
        return Answer { rule: Rule::Logins as u32, count: seen.pairs, limit, window_s, login: 0 };
    }
    Answer::default()
}

/// What a list says, with the attempt itself counted in.
struct Survey {
    pairs: u32,
    hosts: u32,
    ports: u32,
    recent_hosts: u32,
    /// Where the attempt's pair is, or may go.
    place: u32,
}

#[inline(always)]
fn survey(list: &[Pair], used: u32, target: &Target, now_ns: u64, window_ns: u64) -> Survey {
    let number = Branchless::new();
    let (mut pairs, mut hosts, mut ports, mut recent_hosts) = (0, 0, 0, 0);
    let (mut known, mut known_lately) = (0, 0);
    let (mut found, mut free) = (0, u64::from(used) + 1);
    let mut i = 0;
    while i < list.len() {
        if i as u32 >= used {
            break;
        }
        let pair = &list[i];
        let age = now_ns.wrapping_sub(pair.seen_ns);
        let fresh = number.less(age, window_ns);
        let lately = number.less(age, SHORT_NS);
        let host = number.same(pair.addr.0[0], target.addr.0[0]) & number.same(pair.addr.0[1], target.addr.0[1]);
        let port = number.same(u64::from(pair.what), u64::from(target.what));
        let this = host & port;
        pairs += fresh;
        hosts += fresh & port;
        ports += fresh & host;
        recent_hosts += lately & port;
        known |= fresh & this;
        known_lately |= lately & this;
        let place = i as u64 + 1;
        found |= place & this.wrapping_neg();
        free ^= (free ^ place) & fresh.wrapping_sub(1);
        i += 1;
    }
    let new = known ^ 1;
    let place = if found != 0 { found } else { free };
    Survey {
        pairs: (pairs + new) as u32,
        hosts: (hosts + new) as u32,
        ports: (ports + new) as u32,
        recent_hosts: (recent_hosts + (known_lately ^ 1)) as u32,
        place: place as u32 - 1,
    }
}

/// Code of the rule that blocks the target; zero: none.
#[inline(always)]
fn tripped(history: &History, target: &Target, now_ns: u64) -> u32 {
    let number = Branchless::new();
    let mut rules = 0;
    let mut i = 0;
    while i < MAX_TRIPS {
        let trip = &history.trips[i];
        let host = number.same(trip.addr.0[0], target.addr.0[0]) & number.same(trip.addr.0[1], target.addr.0[1]);
        let port = number.same(u64::from(trip.what), u64::from(target.what));
        let hit = number.less(now_ns, trip.until_ns) & (host | u64::from(trip.any_host)) & (port | u64::from(trip.any_port));
        rules |= hit << (trip.rule & 7);
        i += 1;
    }
    let mut rule = 1;
    while rule <= Rule::Pairs as u32 {
        if rules >> rule & 1 != 0 {
            return rule;
        }
        rule += 1;
    }
    0
}

/// Blocks the pattern of a rule until its cool-down is over. Under the session's lock.
#[inline(always)]
pub fn trip(history: &mut History, limits: &Limits, rule: u32, target: &Target, now_ns: u64) {
    let number = Branchless::new();
    let until_ns = now_ns + limits.cool_down_ns;
    let mut free = 0;
    let mut i = 0;
    while i < MAX_TRIPS {
        let over = number.less(now_ns, history.trips[i].until_ns) ^ 1;
        free ^= (free ^ (i as u64 + 1)) & over.wrapping_neg();
        i += 1;
    }
    if history.trips_until_ns < until_ns {
        history.trips_until_ns = until_ns;
    }
    // No room to block it alone: everything, for as long as the longest of them.
    if rule == Rule::Pairs as u32 || free == 0 {
        let until_ns = if rule == Rule::Pairs as u32 { until_ns } else { history.trips_until_ns };
        if history.all_until_ns < until_ns {
            history.all_until_ns = until_ns;
        }
        return;
    }
    history.scratch[0] = free as u32 - 1;
    let place = *black_box(&history.scratch[0]) as usize & (MAX_TRIPS - 1);
    history.trips[place] = Trip {
        until_ns,
        addr: target.addr,
        what: target.what,
        rule: rule as u8,
        any_host: (rule != Rule::Target as u32 && rule != Rule::Ports as u32) as u8,
        any_port: (rule == Rule::Ports as u32) as u8,
        pad: 0,
    };
}

/// Judges one connection to a login target by those before it, and counts it
/// where it may go out. Under the lock of the target's attempts.
#[inline(always)]
pub fn attempt(attempts: &mut Attempts, limits: &Limits, target: &Target, now_ns: u64) -> Answer {
    if attempts.what != target.what || attempts.addr.0 != target.addr.0 {
        attempts.addr = target.addr;
        attempts.what = target.what;
        attempts.first = attempts.next;
    }
    let now_ns = Branchless::new().later(attempts.seen_ns, now_ns);
    let ssh = target.what == what(transport::TCP, 22);
    let (short, long) = if ssh { (limits.ssh_short, limits.ssh_long) } else { (limits.target_short, limits.target_long) };
    if is_within(attempts, short, SHORT_NS, now_ns) {
        let window_s = (SHORT_NS / SECOND_NS) as u32;
        return Answer { rule: Rule::Target as u32, count: short.wrapping_add(1), limit: short, window_s, login: 0 };
    }
    if is_within(attempts, long, LONG_NS, now_ns) {
        let window_s = (LONG_NS / SECOND_NS) as u32;
        return Answer { rule: Rule::Target as u32, count: long.wrapping_add(1), limit: long, window_s, login: 0 };
    }
    attempts.seen_ns = now_ns;
    attempts.at_ns[attempts.next as usize & (MAX_ATTEMPTS - 1)] = now_ns;
    attempts.next = attempts.next.wrapping_add(1);
    Answer::default()
}

/// Whether the last `number` connections all lie within the window.
#[inline(always)]
fn is_within(attempts: &Attempts, number: u32, window_ns: u64, now_ns: u64) -> bool {
    let number = if number > MAX_ATTEMPTS as u32 { MAX_ATTEMPTS as u32 } else { number };
    let oldest = attempts.next.wrapping_sub(number) as usize & (MAX_ATTEMPTS - 1);
    attempts.next.wrapping_sub(attempts.first) >= number && now_ns.wrapping_sub(attempts.at_ns[oldest]) < window_ns
}

#[inline(always)]
fn hash(target: &Target) -> u64 {
    let mixed = (target.addr.0[0] ^ target.addr.0[1].rotate_left(23) ^ u64::from(target.what)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed >> 56
}

/// Comparisons whose answer is a number, one or zero, without a branch.
#[derive(Clone, Copy)]
struct Branchless {
    /// 63, which the compiler must not know: it would make branches of what it recognises.
    sign: u32,
}

impl Branchless {
    #[inline(always)]
    fn new() -> Self {
        Self { sign: black_box(63) }
    }

    /// Whether they are the same.
    #[inline(always)]
    const fn same(self, a: u64, b: u64) -> u64 {
        let difference = a ^ b;
        (difference | difference.wrapping_neg()).wrapping_shr(self.sign) ^ 1
    }

    /// Whether `a` is less than `b`; both are below 2^63.
    #[inline(always)]
    const fn less(self, a: u64, b: u64) -> u64 {
        a.wrapping_sub(b).wrapping_shr(self.sign)
    }

    /// The greater of the two; both are below 2^63.
    #[inline(always)]
    const fn later(self, a: u64, b: u64) -> u64 {
        b ^ ((a ^ b) & self.less(b, a).wrapping_neg())
    }
}

const _: () = {
    assert!(size_of::<Limits>() == 8 + 10 * 4);
    assert!(size_of::<Ground>() == 4 + GROUND_PORTS * 4 + 4);
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
    pod!(Limits, Ground, LoginKey, Kept<History>, Kept<Attempts>);
}

#[cfg(test)]
#[path = "behaviour_tests.rs"]
mod tests;
