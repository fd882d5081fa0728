//! One attempt to reach a destination, from a hook's arguments to its verdict: the shared way of
//! every hook that sees a destination.

use core::hint::black_box;

use pp_common::{
    abi::{
        Budget, CONTROL_NEAR, CONTROL_OBSERVE, CONTROL_OFF, Control, GatewayPortKey, GrantList, Learned, LinkKey, NameId, NearKey,
        PREFIX_HEAD_BITS, Place, PrefixKey, SOCK_OPENED, Serial, Service, ServiceKey, SockMark, Spent, TASK_CANARY, UserKey,
    },
    decide::{Attempt, Decision, Kind, Link, Reason, Subject, Tables, Verdict, decide, transport},
    dest::Addr,
    record::Hook,
    turns::{DEFAULT_MAX_BYTES_OUT, DEFAULT_MAX_TURNS, Direction, LIMIT_OF_GATEWAY, LIMIT_OF_RECEIPT, LimitKey, Limits, charge_packet},
};

use aya_ebpf::btf_maps::lpm_trie::Key;

use super::{
    barrier::{Barrier, hide_attempt, hide_link},
    behaviour::{RuleReport, apply_rate_rules},
    budget::{charge, charged_under, note_charge},
    event::{Scene, now_ns, report},
    log::Program,
    maps::{BUDGETS, EXEMPT, GATEWAY_PORTS, GRANTS, LEARNED, LINKS, PLACES, SCRATCH, SERVICES, TURN_LIMITS, USER_BITS},
    near::Near,
    peers::{Ear, heard_from},
};

/// `IPPROTO_MPTCP`, which sockets carry though the wire says TCP.
const IPPROTO_MPTCP: u32 = 262;
const PREFIX_BITS: u32 = PREFIX_HEAD_BITS + 128;

/// The maps in force, as [`decide`] reads them.
///
/// `CHARGES`: whether budgets are asked about new flows.
pub(crate) struct Live<const CHARGES: bool> {
    pub(crate) control: Control,
    /// In the mark of the socket that is checked, or in [`SCRATCH`].
    pub(crate) scratch: *mut u32,
    /// Zero, from memory that nobody writes.
    pub(crate) zero: u64,
    pub(crate) near: Near,
}

impl<const CHARGES: bool> Live<CHARGES> {
    #[inline(always)]
    fn prefix(&self, addr: &Addr) -> Key<PrefixKey> {
        Key::new(PREFIX_BITS, PrefixKey { generation: self.control.generation, pad: 0, addr: *addr })
    }
}

impl<const CHARGES: bool> Tables for Live<CHARGES> {
    #[inline(always)]
    fn flags(&self) -> u32 {
        self.control.flags
    }

    #[inline(always)]
    fn place(&self, addr: &Addr) -> Option<Place> {
        PLACES.get(&self.prefix(addr)).copied()
    }

    #[inline(always)]
    fn link(&self) -> Option<Link> {
        if self.control.flags & CONTROL_NEAR == 0 { None } else { Some(self.near.link()) }
    }

    #[inline(always)]
    fn learned(&self, key: &NearKey) -> Option<Learned> {
        // SAFETY: copied at once; an entry that is written meanwhile means one place or the other.
        unsafe { LEARNED.get(key) }.copied()
    }

    #[inline(always)]
    fn link_place(&self, key: &LinkKey) -> Option<Place> {
        // SAFETY: as in `learned`.
        unsafe { LINKS.get(key) }.copied()
    }

    #[inline(always)]
    fn gateway_port(&self, gateway: NameId, port: u16) -> bool {
        let key = GatewayPortKey { gateway, generation: self.control.generation, port, pad: 0 };
        GATEWAY_PORTS.get_ptr(&key).is_some()
    }

    #[inline(always)]
    fn service(&self, transport: u8, port: u16) -> Option<Service> {
        let key = ServiceKey { generation: self.control.generation, port, transport, pad: 0 };
        // SAFETY: copied at once; entries of a generation in force are not written.
        unsafe { SERVICES.get(&key) }.copied()
    }

    #[inline(always)]
    fn exempt(&self, addr: &Addr) -> bool {
        EXEMPT.get(&self.prefix(addr)).is_some()
    }

    #[inline(always)]
    fn grants(&self, addr: &Addr) -> Option<&GrantList> {
        GRANTS.get(&self.prefix(addr))
    }

    #[inline(always)]
    fn user_bit(&self, uid: u32) -> u64 {
        let key = UserKey { generation: self.control.generation, uid };
        // SAFETY: copied at once.
        match unsafe { USER_BITS.get(&key) } {
            Some(bit) => *bit,
            None => 0,
        }
    }

    #[inline(always)]
    fn budget(&self, serial: Serial) -> Option<Budget> {
        let budget = BUDGETS.get_ptr(serial)?;
        // SAFETY: a map value; `charge` asks again under the lock before anything is allowed. An
        // element recycled meanwhile fails the test of its own key.
        unsafe {
            ((*budget).serial == serial).then_some(Budget {
                spent: Spent { connections: (*budget).connections, attempts: (*budget).attempts },
                max_connections: (*budget).max_connections,
                max_attempts: (*budget).max_attempts,
            })
        }
    }

    #[inline(always)]
    fn charges(&self) -> bool {
        CHARGES
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        now_ns()
    }

    #[inline(always)]
    fn zero(&self) -> u64 {
        self.zero
    }

    #[inline(always)]
    fn scratch(&self) -> u32 {
        // SAFETY: a member of a map value, which outlives this program's run; volatile, so that it
        // is really read back.
        unsafe { core::ptr::read_volatile(self.scratch) }
    }

    #[inline(always)]
    fn set_scratch(&self, number: u32) {
        // SAFETY: as in `scratch`.
        unsafe { core::ptr::write_volatile(self.scratch, number) };
    }
}

/// Whether a hook may take the budget's lock and is the one that charges.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Charging {
    /// A cgroup program: charges each new flow once.
    Here,
    /// An LSM program: a cgroup program follows and charges.
    Later,
    /// Egress or ingress: as `Here`, and the packet counts in its flow.
    Packet(Segment),
}

/// What a packet carries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) direction: Direction,
    pub(crate) payload: u32,
    /// Not zero: a packet of its flow was refused before.
    pub(crate) over: u64,
}

/// Decides an attempt on a marked socket, charges it where it is a new flow, reports it.
#[inline(always)]
pub(crate) fn enforce(scene: &Scene<'_>, control: Control, sock: &mut SockMark, attempt: Attempt, charging: Charging) -> Verdict {
    decide_and_charge(scene, control, sock, attempt, charging).verdict
}

#[inline(always)]
fn decide_and_charge(scene: &Scene<'_>, control: Control, sock: &mut SockMark, mut attempt: Attempt, charging: Charging) -> Decision {
    // SAFETY: a member of a map value.
    let zero = unsafe { core::ptr::read_volatile(&raw const sock.zero) };
    let kind = hide_attempt(zero, &mut attempt);
    attempt.counted = charged_under(sock, &attempt);
    let control = unless_canary(scene, control);
    let near = hide_link(zero, scene.near);
    let tables = Live::<true> { control, scratch: &raw mut sock.scratch, zero, near };
    let mut decision = decide(&tables, scene.subject, &attempt);
    let over = matches!(charging, Charging::Packet(segment) if segment.over != 0);
    if over && !matches!(decision.reason, Reason::Receipt) && !matches!(decision.verdict, Verdict::Block) {
        decision = decision.over();
    }
    if matches!(decision.reason, Reason::Receipt) {
        let kind = black_box(kind ^ zero as u8);
        let known = kind == Kind::UdpConnect as u8 || attempt.counted == decision.serial;
        if let Charging::Packet(segment) = charging {
            match charge_turn(control, sock, &decision, segment) {
                Some(reason) => decision = decision.cut(reason),
                None if over => decision = decision.over(),
                None if known => return decision,
                None => {}
            }
        } else if known || matches!(charging, Charging::Later) {
            return decision;
        }
        if matches!(decision.reason, Reason::Receipt) {
            if charge(scene.program, decision.serial, decision.login) {
                note_charge(sock, &attempt, decision.serial);
            } else {
                decision = decision.exhausted();
            }
        }
    }
    report(scene, &attempt, &decision, &RuleReport::NONE);
    decision
}

/// The same at a hook where attempts count for the rate rules; `rated`: this one does.
///
/// VERIFIER: nothing that the decision found out is known behind it, so that the rules are
/// followed once and not for every way through the decision.
#[inline(always)]
pub(crate) fn enforce_with_rate_rules(
    scene: &Scene<'_>,
    control: Control,
    sock: &mut SockMark,
    attempt: Attempt,
    charging: Charging,
    rated: bool,
) -> Verdict {
    let barrier = Barrier::of(sock);
    let rated = barrier.opaque(u64::from(rated));
    let attempt = barrier.attempt(&attempt);
    let decision = decide_and_charge(scene, control, sock, attempt, charging);
    let open = barrier.opaque(u64::from(matches!(decision.reason, Reason::NotProtected)));
    let blocked = barrier.opaque(u64::from(matches!(decision.verdict, Verdict::Block)));
    if open & rated != 0 {
        return apply_rate_rules(scene.program, scene.hook, sock, &barrier.attempt(&attempt), &barrier);
    }
    if blocked != 0 { Verdict::Block } else { Verdict::Allow }
}

/// Decides an attempt by its destination alone, without the mark of a socket: no budget is asked,
/// and nothing is charged; the cgroup programs that follow do both.
#[inline(always)]
pub(crate) fn enforce_by_destination(scene: &Scene<'_>, control: Control, mut attempt: Attempt) -> Verdict {
    let Some(element) = SCRATCH.get_ptr_mut(0) else { return Verdict::Block };
    // SAFETY: members of this CPU's element.
    let (zero, scratch) = unsafe { (core::ptr::read_volatile(&raw const (*element).zero), &raw mut (*element).scratch) };
    hide_attempt(zero, &mut attempt);
    let control = unless_canary(scene, control);
    let decision = decide(&Live::<false> { control, scratch, zero, near: hide_link(zero, scene.near) }, scene.subject, &attempt);
    if !matches!(decision.reason, Reason::Receipt) {
        report(scene, &attempt, &decision, &RuleReport::NONE);
    }
    decision.verdict
}

/// Charges a packet of an allowed flow to a gateway. `None`: it may pass; otherwise why not.
#[inline(always)]
fn charge_turn(control: Control, sock: &mut SockMark, decision: &Decision, segment: Segment) -> Option<Reason> {
    if decision.gateway == 0 {
        return None;
    }
    let generation = control.generation;
    let of_gateway = LimitKey { of: decision.gateway, generation, kind: LIMIT_OF_GATEWAY };
    // SAFETY: copied at once; entries of a generation in force are not written.
    let limits = match unsafe { TURN_LIMITS.get(&of_gateway) } {
        Some(limits) => *limits,
        // Of tables that an earlier build published: the daemon is about to publish its own.
        None => Limits { max_bytes_out: DEFAULT_MAX_BYTES_OUT, max_turns: DEFAULT_MAX_TURNS, pad: 0 },
    };
    let of_receipt = LimitKey { of: u64::from(decision.serial), generation, kind: LIMIT_OF_RECEIPT };
    // SAFETY: as above.
    let limits = match unsafe { TURN_LIMITS.get(&of_receipt) } {
        Some(own) => limits.and(*own),
        None => limits,
    };
    charge_packet(&mut sock.turn_count, &limits, segment.direction, segment.payload)
}

/// The canary finds out whether the hooks refuse: nothing is observed for it, and protection is never off.
#[inline(always)]
fn unless_canary(scene: &Scene<'_>, mut control: Control) -> Control {
    const _: () = assert!(TASK_CANARY >> 1 == CONTROL_OBSERVE && TASK_CANARY << 2 == CONTROL_OFF);
    let canary = scene.task_flags & TASK_CANARY;
    control.flags &= !(canary >> 1 | canary << 2);
    control
}

/// What the cgroup hooks return: 1 lets through, 0 refuses.
#[inline(always)]
pub(crate) fn cgroup_return(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Allow | Verdict::Observe | Verdict::Off => 1,
        Verdict::Block => 0,
    }
}

/// A refusal that is not about a destination but about the attempt itself.
#[inline(always)]
pub(crate) fn refuse(scene: &Scene<'_>, control: Control, attempt: &Attempt, reason: Reason) -> Verdict {
    let decision = Decision::refuse(reason, unless_canary(scene, control).flags);
    report(scene, attempt, &decision, &RuleReport::NONE);
    decision.verdict
}

/// An attempt whose receipt has not been looked for yet.
#[inline(always)]
pub(crate) fn attempt(addr: Addr, port: u16, protocol: u32, kind: Kind) -> Attempt {
    let transport = match protocol {
        IPPROTO_MPTCP => transport::TCP,
        other => other as u8,
    };
    Attempt { addr, port, transport, kind, counted: 0 }
}

/// What kind of attempt a connect is, and the flags that it gives its socket. A datagram socket that connects to who has spoken first to its
/// port answers.
#[inline(always)]
pub(crate) fn connects(attempt: &mut Attempt, ear: Ear) -> u32 {
    if attempt.transport != transport::UDP {
        return SOCK_OPENED;
    }
    if heard_from(ear, attempt) {
        attempt.kind = Kind::Answer;
        return 0;
    }
    attempt.kind = Kind::UdpConnect;
    SOCK_OPENED
}

/// Whether a protected service has this port.
#[inline(always)]
pub(crate) fn is_service(transport: u8, port: u16, control: &Control) -> bool {
    SERVICES.get_ptr(&ServiceKey { generation: control.generation, port, transport, pad: 0 }).is_some()
}

/// A scene of the running process.
#[inline(always)]
pub(crate) fn scene<'a>(
    program: &'static Program,
    hook: Hook,
    subject: &'a Subject,
    tgid: u32,
    task_flags: u32,
    control: &Control,
) -> Scene<'a> {
    Scene { program, hook, subject, tgid, task_flags, generation: control.generation, near: Near::NOWHERE }
}
