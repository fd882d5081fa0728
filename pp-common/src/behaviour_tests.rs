//! The rules against a plain model that remembers everything, and their
//! boundaries one by one.

extern crate std;

use super::*;
use proptest::prelude::*;
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::vec;
use std::vec::Vec;

const S: u64 = SECOND_NS;
/// Long after boot, so that nothing lies before it.
const T0: u64 = 1_000_000 * S;

/// What the kernel does with the steps and their maps.
struct Gate {
    limits: Limits,
    history: Box<History>,
    logins: BTreeMap<u32, Box<Attempts>>,
}

impl Gate {
    fn new(limits: Limits) -> Self {
        Self { limits, history: Box::new(History::EMPTY), logins: BTreeMap::new() }
    }

    fn ask(&mut self, target: &Target, now_ns: u64) -> Answer {
        if again(&mut self.history, target, now_ns) {
            return Answer::default();
        }
        let answer = step(&mut self.history, &self.limits, target, now_ns);
        if answer.rule != 0 || answer.login == 0 {
            return answer;
        }
        let attempts = self.logins.entry(answer.login).or_insert_with(|| Box::new(Attempts::EMPTY));
        let answer = attempt(attempts, &self.limits, target, now_ns);
        if answer.rule != 0 {
            trip(&mut self.history, &self.limits, answer.rule, target, now_ns);
        }
        answer
    }

    fn allows(&mut self, target: &Target, now_ns: u64) -> bool {
        self.ask(target, now_ns).rule == 0
    }
}

/// The same rules, by looking through everything that ever went out.
struct Model {
    limits: Limits,
    gone: Vec<(Target, u64)>,
    /// Login targets are looked back on by attempts that the rules on width let through.
    logins: Vec<(Target, u64)>,
    /// Connections to login targets that went out.
    tries: Vec<(Target, u64)>,
    tripped: Vec<(Rule, Target, u64)>,
    all_until: u64,
}

impl Model {
    fn new(limits: Limits) -> Self {
        Self { limits, gone: Vec::new(), logins: Vec::new(), tries: Vec::new(), tripped: Vec::new(), all_until: 0 }
    }

    fn since(list: &[(Target, u64)], now: u64, window: u64) -> Vec<Target> {
        list.iter().filter(|(_, at)| now - at < window).map(|(target, _)| *target).collect()
    }

    fn ask(&mut self, target: &Target, now: u64) -> Option<Rule> {
        if now < self.all_until {
            return Some(Rule::Pairs);
        }
        let blocked = |(rule, pattern, until): &(Rule, Target, u64)| {
            now < *until
                && match rule {
                    Rule::Target => pattern.addr == target.addr && pattern.what == target.what,
                    Rule::Logins | Rule::Hosts => pattern.what == target.what,
                    Rule::Ports => pattern.addr == target.addr,
                    Rule::Pairs => true,
                }
        };
        if let Some(rule) = self.tripped.iter().filter(|trip| blocked(trip)).map(|(rule, ..)| *rule).min() {
            return Some(rule);
        }
        let rule = self.judge(target, now);
        if let Some(rule) = rule {
            self.trip(rule, target, now);
        }
        rule
    }

    fn judge(&mut self, target: &Target, now: u64) -> Option<Rule> {
        let distinct = |window| -> BTreeSet<(Addr, u32)> {
            Self::since(&self.gone, now, window).iter().chain([target]).map(|t| (t.addr, t.what)).collect()
        };
        let (wide, short) = (distinct(WINDOW_NS), distinct(SHORT_NS));
        let many = |count: usize, limit: u32| count > limit as usize;
        if target.login == 1 && many(short.iter().filter(|(_, what)| *what == target.what).count(), self.limits.login_hosts) {
            return Some(Rule::Logins);
        }
        if many(wide.iter().filter(|(_, what)| *what == target.what).count(), self.limits.port_hosts) {
            return Some(Rule::Hosts);
        }
        if many(wide.iter().filter(|(addr, _)| *addr == target.addr).count(), self.limits.host_ports) {
            return Some(Rule::Ports);
        }
        if many(wide.len(), self.limits.pairs) {
            return Some(Rule::Pairs);
        }
        if target.login == 1 && target.internal == 1 {
            let targets: BTreeSet<_> = Self::since(&self.logins, now, LONG_NS).iter().chain([target]).map(|t| (t.addr, t.what)).collect();
            if many(targets.len(), self.limits.login_targets) {
                return Some(Rule::Logins);
            }
        }
        // From here on it is remembered, also where the last rule refuses it.
        self.gone.push((*target, now));
        if target.login == 1 && target.internal == 1 {
            self.logins.push((*target, now));
            let ssh = target.what == what(transport::TCP, 22);
            let (short, long) =
                if ssh { (self.limits.ssh_short, self.limits.ssh_long) } else { (self.limits.target_short, self.limits.target_long) };
            let before = |window| Self::since(&self.tries, now, window).iter().filter(|tried| *tried == target).count();
            if before(SHORT_NS) >= short as usize || before(LONG_NS) >= long as usize {
                return Some(Rule::Target);
            }
            self.tries.push((*target, now));
        }
        None
    }

    fn trip(&mut self, rule: Rule, target: &Target, now: u64) {
        let until = now + self.limits.cool_down_ns;
        let live = self.tripped.iter().filter(|(.., until)| *until > now).count();
        if rule == Rule::Pairs {
            self.all_until = self.all_until.max(until);
        } else if live >= MAX_TRIPS {
            let last = self.tripped.iter().map(|(.., until)| *until).max().unwrap_or(0);
            self.all_until = self.all_until.max(until).max(last);
        } else {
            self.tripped.push((rule, *target, until));
        }
    }
}

fn host(number: u32) -> Addr {
    Addr::v4((0x0a00_0000 | number).to_be_bytes())
}

fn tcp(number: u32, port: u16) -> Target {
    let login = u32::from(crate::decide::is_login_port(transport::TCP, port));
    Target { addr: host(number), what: what(transport::TCP, port), login, internal: 1 }
}

fn outside(number: u32, port: u16) -> Target {
    Target { addr: Addr::v4((0xc633_6400 | number).to_be_bytes()), internal: 0, ..tcp(number, port) }
}

/// How many of these go out before the first is refused, all within one second.
fn let_through(gate: &mut Gate, targets: impl IntoIterator<Item = Target>) -> (usize, Option<Rule>) {
    for (count, target) in targets.into_iter().enumerate() {
        if let Some(rule) = gate.ask(&target, T0 + count as u64).refusal() {
            return (count, Some(rule));
        }
    }
    (usize::MAX, None)
}

fn default_gate() -> Gate {
    Gate::new(Limits::DEFAULT)
}

#[test]
fn exactly_the_configured_number_goes_out_and_never_one_more() {
    let first = |targets: Vec<Target>| let_through(&mut default_gate(), targets);
    assert_eq!(first((0..99).map(|i| tcp(i, 80)).collect()), (25, Some(Rule::Hosts)));
    assert_eq!(first((0..99).map(|i| tcp(1, 8000 + i)).collect()), (15, Some(Rule::Ports)));
    assert_eq!(first((0..999).map(|i| tcp(u32::from(i), 8000 + i)).collect()), (100, Some(Rule::Pairs)));
    assert_eq!(first((0..99).map(|i| tcp(i, 3389)).collect()), (5, Some(Rule::Logins)));
    assert_eq!(first((0..99).map(|i| outside(i, 22)).collect()), (5, Some(Rule::Logins)));
    assert_eq!(first(vec![tcp(1, 445); 99]), (10, Some(Rule::Target)));
    assert_eq!(first(vec![tcp(1, 22); 99]), (20, Some(Rule::Target)));
    assert_eq!(first(vec![outside(1, 22); 999]), (usize::MAX, None));
    assert_eq!(first(vec![tcp(1, 80); 9_999]), (usize::MAX, None));
}

#[test]
fn slow_guesses_are_stopped_by_the_long_window() {
    for (port, allowed) in [(23, 25), (22, 60)] {
        let mut gate = default_gate();
        let minute = |i: u64| if port == 22 { T0 + i * 20 * S } else { T0 + i * 50 * S };
        let refused = (0..).find(|i| !gate.allows(&tcp(1, port), minute(*i))).unwrap();
        assert_eq!(refused, allowed);
    }
}

#[test]
fn low_and_wide_guesses_are_stopped_by_the_number_of_targets() {
    let mut gate = default_gate();
    // One host every 50 s, whatever the port: no window of a minute or of five notices.
    let ports = [22, 23, 445, 3389];
    let refused = (0..200u32).find(|i| !gate.allows(&tcp(*i, ports[*i as usize % 4]), T0 + u64::from(*i) * 50 * S)).unwrap();
    assert_eq!(refused as usize, MAX_LOGINS);
}

#[test]
fn windows_end_to_the_nanosecond() {
    let mut gate = default_gate();
    for i in 0..10 {
        assert!(gate.allows(&tcp(1, 23), T0 + i));
    }
    let mut late = Gate { history: gate.history.clone(), logins: gate.logins.clone(), limits: gate.limits };
    assert!(!gate.allows(&tcp(1, 23), T0 + SHORT_NS - 1));
    assert!(late.allows(&tcp(1, 23), T0 + SHORT_NS));
    let mut gate = default_gate();
    for i in 0..15 {
        assert!(gate.allows(&tcp(1, 8000 + i), T0));
    }
    let mut late = Gate { history: gate.history.clone(), logins: BTreeMap::new(), limits: gate.limits };
    assert!(!gate.allows(&tcp(1, 9000), T0 + WINDOW_NS - 1));
    assert!(late.allows(&tcp(1, 9000), T0 + WINDOW_NS));
}

#[test]
fn a_tripped_pattern_is_blocked_for_its_cool_down_and_others_are_not() {
    let mut gate = default_gate();
    assert_eq!(let_through(&mut gate, (0..99).map(|i| tcp(i, 80))), (25, Some(Rule::Hosts)));
    let tripped_at = T0 + 25;
    assert!(!gate.allows(&tcp(3, 80), tripped_at + 1), "a host that was reached before");
    assert!(gate.allows(&tcp(3, 81), tripped_at + 1), "another port");
    assert!(gate.ask(&tcp(77, 80), tripped_at + 2).count == 0, "told once");
    assert!(!gate.allows(&tcp(3, 80), tripped_at + 900 * S - 1));
    assert!(gate.allows(&tcp(3, 80), tripped_at + 900 * S));
}

#[test]
fn where_patterns_find_no_room_everything_is_blocked_until_the_last_ends() {
    let mut gate = Gate::new(Limits { host_ports: 1, ..Limits::DEFAULT });
    for i in 0..=MAX_TRIPS as u32 {
        assert!(gate.allows(&tcp(i, 80), T0 + u64::from(i)));
        assert!(!gate.allows(&tcp(i, 81), T0 + u64::from(i)));
    }
    let last = T0 + MAX_TRIPS as u64 + 900 * S;
    assert!(!gate.allows(&tcp(500, 80), T0 + 100));
    assert!(!gate.allows(&tcp(0, 80), last - 1));
    assert!(gate.allows(&tcp(0, 80), last));
}

#[test]
fn what_counts_at_egress_is_what_no_connect_hook_saw() {
    assert!(!counts_at_egress(Kind::Open, transport::TCP, false) && counts_at_egress(Kind::Open, transport::TCP, true));
    assert!(counts_at_egress(Kind::Open, transport::UDP, false) && counts_at_egress(Kind::Portless, 1, false));
    // A later fragment; an answer.
    assert!(!counts_at_egress(Kind::Portless, transport::UDP, false) && !counts_at_egress(Kind::Answer, transport::UDP, false));
}

#[test]
fn a_clock_that_another_cpu_read_earlier_forgets_nothing() {
    let mut gate = default_gate();
    for i in 0..10 {
        assert!(gate.allows(&tcp(1, 23), T0 + 1_000 - i * 100));
    }
    assert!(!gate.allows(&tcp(1, 23), T0));
}

#[test]
fn a_million_targets_change_nothing_about_what_is_held() {
    let mut gate = default_gate();
    for i in 0..1_000_000u32 {
        let _answer = gate.ask(&tcp(i, (i % 50_000) as u16 + 1), T0 + u64::from(i) * S / 50);
    }
    assert!(gate.history.used as usize <= MAX_PAIRS && gate.logins.len() <= MAX_LOGINS);
    // 10,000 sessions, whatever they do, fit beside as many login targets as the table has.
    let bytes = 10_000 * size_of::<Kept<History>>() + MAX_LOGIN_TARGETS as usize * size_of::<Kept<Attempts>>();
    assert!(10_000 <= MAX_SESSIONS && bytes < 80 << 20, "{bytes}");
}

fn any_target() -> impl Strategy<Value = Target> {
    let port = prop_oneof![Just(22u16), Just(23), Just(80), Just(81), 8000..8012u16];
    (0..12u32, port, any::<bool>()).prop_map(|(number, port, inside)| {
        let login = crate::decide::is_login_port(transport::TCP, port);
        if inside || !login { tcp(number, port) } else { outside(number, port) }
    })
}

fn any_limits() -> impl Strategy<Value = Limits> {
    (1..6u32, 1..8u32, 1..9u32, 1..9u32, 1..20u32, 1..6u32, 1..2_000u64).prop_map(
        |(short, login_hosts, host_ports, port_hosts, pairs, login_targets, cool_down)| Limits {
            cool_down_ns: cool_down * S,
            target_short: short,
            target_long: short + 2,
            ssh_short: short + 1,
            ssh_long: short + 4,
            login_hosts,
            login_targets,
            host_ports,
            port_hosts,
            pairs,
            flags: 0,
        },
    )
}

fn any_wait() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..3 * S, 2 => 0..70 * S, 1 => 0..400 * S, 1 => 0..2_000 * S, 1 => Just(SHORT_NS), 1 => Just(WINDOW_NS), 1 => Just(LONG_NS)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_kernels_arithmetic_is_the_plain_models(limits in any_limits(), steps in prop::collection::vec((any_target(), any_wait()), 1..300)) {
        let (mut gate, mut model) = (Gate::new(limits), Model::new(limits));
        let mut now = T0;
        for (number, (target, wait)) in steps.iter().enumerate() {
            now += wait;
            let (found, wanted) = (gate.ask(target, now).refusal(), model.ask(target, now));
            prop_assert_eq!(found, wanted, "step {} at {} s: {:?}", number, (now - T0) / S, target);
        }
    }

    #[test]
    fn no_window_ever_holds_more_than_its_number(steps in prop::collection::vec((0..400u32, 1..400u16, 0..2 * S), 1..900)) {
        let mut gate = default_gate();
        let (mut now, mut gone) = (T0, Vec::new());
        for (number, port, wait) in steps {
            now += wait;
            let target = tcp(number, port);
            if gate.allows(&target, now) {
                gone.push((target, now));
            }
            let recent: BTreeSet<_> = gone.iter().filter(|(_, at)| now - at < WINDOW_NS).map(|(t, _)| (t.addr, t.what)).collect();
            prop_assert!(recent.len() <= 100);
            prop_assert!(recent.iter().filter(|(addr, _)| *addr == target.addr).count() <= 15);
            prop_assert!(recent.iter().filter(|(_, what)| *what == target.what).count() <= 25);
        }
    }
}
