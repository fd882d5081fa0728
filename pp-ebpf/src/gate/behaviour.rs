//! The rate rules at the hooks: finds what the session reached for before,
//! asks [`pp_common::behaviour`] under its lock, and says what to report.
//!
//! Only cgroup programs come here. Where there is no room for what must be
//! counted, the attempt is refused.

use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    helpers::{bpf_spin_lock, bpf_spin_unlock},
};
use pp_common::{
    abi::{Control, Counter, PREFIX_HEAD_BITS, PrefixKey, SOCK_CANARY, SockMark, TASK_CANARY},
    behaviour::{self, Answer, LIMITS_COUNT_OWN, LIMITS_OBSERVE, Limits, LoginKey, Rule, Scope, Target, what},
    decide::{Attempt, Decision, Reason, Verdict, is_login_port},
    dest::Addr,
    record::Hook,
    trouble::Trouble,
};

use super::{
    barrier::Barrier,
    event::{NEW_ONLY, count, now_ns, report},
    log::{Program, warn},
    maps::{BLANK, GROUNDS, HISTORIES, KeptAttempts, KeptHistory, LIMITS, LOGINS, OWN},
    mark::{in_force, sock_subject},
    reach::{refuse, scene},
};

/// Nanoseconds in a second.
const SECOND_NS: u64 = 1_000_000_000;

/// What the record of an attempt says of the rules.
pub(crate) struct RuleReport {
    pub(crate) answer: Answer,
    pub(crate) cool_down_s: u32,
    /// All ones where repeats are reported host by host.
    pub(crate) host_mask: u64,
    /// All ones where repeats are reported port by port.
    pub(crate) port_mask: u16,
}

impl RuleReport {
    /// The rules had no say.
    pub(crate) const NONE: Self = Self {
        answer: Answer { rule: 0, count: 0, limit: 0, window_s: 0, login: 0 },
        cool_down_s: 0,
        host_mask: u64::MAX,
        port_mask: u16::MAX,
    };
}

/// Checks an attempt to what nothing protects, counts it, and reports it where it is refused.
#[inline(always)]
pub(crate) fn apply_rate_rules(program: &'static Program, hook: Hook, sock: &SockMark, attempt: &Attempt, barrier: &Barrier) -> Verdict {
    let control = in_force();
    let subject = sock_subject(sock);
    let task_flags = if sock.flags & SOCK_CANARY != 0 { TASK_CANARY } else { 0 };
    let scene = scene(program, hook, &subject, sock.tgid, task_flags, &control);
    let Some(limits) = LIMITS.get(control.generation & 1) else {
        return refuse(&scene, control, attempt, Reason::GateError);
    };
    let Some(target) = target(&control, attempt) else {
        return Verdict::Allow;
    };
    let target = Target {
        addr: Addr([barrier.opaque(target.addr.0[0]), barrier.opaque(target.addr.0[1])]),
        what: barrier.opaque(u64::from(target.what)) as u32,
        login: barrier.opaque(u64::from(target.login)) as u32,
        internal: barrier.opaque(u64::from(target.internal)) as u32,
    };
    if is_known(subject.session, &target) || is_own(limits, &target.addr) {
        return Verdict::Allow;
    }
    let Some(answer) = ask(program, subject.session, limits, &target, barrier) else {
        count(Counter::HistoryFull);
        return refuse(&scene, control, attempt, Reason::GateError);
    };
    let answer = Answer { rule: barrier.opaque(u64::from(answer.rule)) as u32, ..answer };
    let Some(rule) = answer.refusal() else {
        return Verdict::Allow;
    };
    let decision = Decision::PASS.by_rule(rule.reason(), limits.flags & LIMITS_OBSERVE | control.flags);
    let rule_report = RuleReport {
        answer,
        cool_down_s: (limits.cool_down_ns / SECOND_NS) as u32,
        host_mask: if rule.names_host() { u64::MAX } else { 0 },
        port_mask: if rule.names_port() { u16::MAX } else { 0 },
    };
    report(&scene, attempt, &decision, &rule_report);
    decision.verdict
}

/// Whether the session reached for the target a moment ago. Looked up by itself: what is found here must not be kept through the long way.
#[inline(always)]
fn is_known(session: u64, target: &Target) -> bool {
    let Some(tracked) = HISTORIES.get_ptr_mut(&session) else { return false };
    // SAFETY: a map value; what other CPUs may do meanwhile is said at `again`.
    unsafe { behaviour::again(&mut (*tracked).history, target, now_ns()) }
}

/// Whether it is an address of this host, where those do not count.
#[inline(always)]
fn is_own(limits: &Limits, addr: &Addr) -> bool {
    limits.flags & LIMITS_COUNT_OWN == 0 && OWN.get_ptr(addr).is_some()
}

/// What the session's history says; `None` where there is no room to count what must be counted.
#[inline(always)]
fn ask(program: &'static Program, session: u64, limits: &Limits, target: &Target, barrier: &Barrier) -> Option<Answer> {
    let tracked = history(program, session)?;
    let now = now_ns();
    // SAFETY: a map value with its lock; VERIFIER: no helper between lock and unlock.
    let answer = unsafe {
        bpf_spin_lock(&raw mut (*tracked).lock);
        let answer = behaviour::step(&mut (*tracked).history, limits, target, now);
        bpf_spin_unlock(&raw mut (*tracked).lock);
        answer
    };
    let place = barrier.opaque(u64::from(answer.login)) as u32;
    if place == 0 {
        return Some(answer);
    }
    let counted = attempts(program, &LoginKey { session, place, pad: 0 })?;
    // SAFETY: as above, one lock after the other.
    let answer = unsafe {
        bpf_spin_lock(&raw mut (*counted).lock);
        let answer = behaviour::attempt(&mut (*counted).attempts, limits, target, now);
        bpf_spin_unlock(&raw mut (*counted).lock);
        answer
    };
    if barrier.opaque(u64::from(answer.rule)) != 0 {
        // SAFETY: as above.
        unsafe {
            bpf_spin_lock(&raw mut (*tracked).lock);
            behaviour::trip(&mut (*tracked).history, limits, Rule::Target as u32, target, now);
            bpf_spin_unlock(&raw mut (*tracked).lock);
        }
    }
    Some(answer)
}

/// The target, if the rules check it.
#[inline(always)]
fn target(control: &Control, attempt: &Attempt) -> Option<Target> {
    let addr = match attempt.addr.embedded() {
        Some(inner) => inner,
        None => attempt.addr,
    };
    let login = is_login_port(attempt.transport, attempt.port);
    let key = Key::new(PREFIX_HEAD_BITS + 128, PrefixKey { generation: control.generation, pad: 0, addr });
    let scope = behaviour::scope(GROUNDS.get(&key), login, attempt.port);
    if matches!(scope, Scope::Nothing) {
        return None;
    }
    let internal = matches!(scope, Scope::Internal) as u32;
    Some(Target { addr, what: what(attempt.transport, attempt.port), login: login as u32, internal })
}

/// The session's history, made where it had none; `None` where there is no room.
#[inline(always)]
fn history(program: &'static Program, session: u64) -> Option<*mut KeptHistory> {
    if let Some(found) = HISTORIES.get_ptr_mut(&session) {
        return Some(found);
    }
    let blank = BLANK.get(0)?;
    // SAFETY: zeros are an empty history, and a lock that nobody holds.
    let blank = unsafe { &*core::ptr::from_ref(blank).cast::<KeptHistory>() };
    // RACE: another CPU may have made it meanwhile; the one that is there counts.
    let made = match HISTORIES.insert(&session, blank, NEW_ONLY) {
        Ok(()) | Err(_) => HISTORIES.get_ptr_mut(&session),
    };
    if made.is_none() {
        warn(program, Trouble::HistoriesFull);
    }
    made
}

#[inline(always)]
fn attempts(program: &'static Program, key: &LoginKey) -> Option<*mut KeptAttempts> {
    if let Some(found) = LOGINS.get_ptr_mut(key) {
        return Some(found);
    }
    let blank = BLANK.get(0)?;
    // SAFETY: as in `history`, and `BLANK` is at least as large.
    let blank = unsafe { &*core::ptr::from_ref(blank).cast::<KeptAttempts>() };
    // RACE: as in `history`.
    let made = match LOGINS.insert(key, blank, NEW_ONLY) {
        Ok(()) | Err(_) => LOGINS.get_ptr_mut(key),
    };
    if made.is_none() {
        warn(program, Trouble::LoginsFull);
    }
    made
}
