//! The rules: one attempt against what the session reached for before.

use core::hint::black_box;

use super::branchless::Branchless;
use super::history::{Attempts, History, Pair, Trip};
use super::{INDEX, LONG_NS, Limits, MAX_ATTEMPTS, MAX_LOGINS, MAX_PAIRS, MAX_TRIPS, Rule, SECOND_NS, SHORT_NS, Target, WINDOW_NS, what};
use crate::decide::transport;

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
    /// The rule that refuses it; a code that is unknown refuses as the widest does.
    #[must_use]
    #[inline(always)]
    pub const fn refusal(&self) -> Option<Rule> {
        match (self.rule, Rule::from_code(self.rule)) {
            (0, _) => None,
            (_, Some(rule)) => Some(rule),
            (_, None) => Some(Rule::Pairs),
        }
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

/// Checks one attempt by what the session reached for before, and counts it
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

/// Checks one connection to a login target by those before it, and counts it
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
