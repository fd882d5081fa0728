//! One attempt to reach a destination, from a hook's arguments to its verdict: the shared way of
//! every hook that sees a destination.

use core::hint::black_box;

use pp_common::{
    abi::{
        Budget, CONTROL_NEAR, CONTROL_OBSERVE, Control, GatewayPortKey, GrantList, Learned, LinkKey, NameId, NearKey, PREFIX_HEAD_BITS,
        Place, PrefixKey, SOCK_OPENED, Serial, Service, ServiceKey, SockMark, Spent, TASK_CANARY, UserKey,
    },
    decide::{Attempt, Decision, Kind, Link, Reason, Subject, Tables, Verdict, decide, transport},
    dest::Addr,
    record::Hook,
    turns::{DEFAULT_MAX_BYTES_OUT, DEFAULT_MAX_TURNS, LIMIT_OF_GATEWAY, LIMIT_OF_RECEIPT, LimitKey, Limits, Way, count},
};

use aya_ebpf::btf_maps::lpm_trie::Key;

use super::{
    behaviour::{Told, behave},
    count::{Ear, heard_from, remember, remembered, spend},
    event::{Scene, now_ns, report},
    log::Program,
    maps::{ASIDE, BUDGETS, EXEMPT, GATEWAY_PORTS, GRANTS, LEARNED, LINKS, PLACES, SERVICES, TURN_LIMITS, USER_BITS},
    near::Near,
};

/// `IPPROTO_MPTCP`, which sockets carry though the wire says TCP.
const IPPROTO_MPTCP: u32 = 262;
const PREFIX_BITS: u32 = PREFIX_HEAD_BITS + 128;

/// The maps in force, as [`decide`] reads them.
///
/// `COUNTED`: whether new flows are asked for in budgets here.
pub(crate) struct Live<const COUNTED: bool> {
    pub(crate) control: Control,
    /// In the mark of the socket that is judged, or in [`ASIDE`].
    pub(crate) scratch: *mut u32,
    /// Zero, from memory that nobody writes.
    pub(crate) zero: u64,
    pub(crate) near: Near,
}

impl<const COUNTED: bool> Live<COUNTED> {
    #[inline(always)]
    fn prefix(&self, addr: &Addr) -> Key<PrefixKey> {
        Key::new(PREFIX_BITS, PrefixKey { generation: self.control.generation, pad: 0, addr: *addr })
    }
}

impl<const COUNTED: bool> Tables for Live<COUNTED> {
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
        // SAFETY: a map value; `spend` asks again under the lock before anything is allowed. An
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
    fn counted(&self) -> bool {
        COUNTED
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
    fn aside(&self) -> u32 {
        // SAFETY: a member of a map value, which outlives this program's run; volatile, so that it
        // is really read back.
        unsafe { core::ptr::read_volatile(self.scratch) }
    }

    #[inline(always)]
    fn put_aside(&self, number: u32) {
        // SAFETY: as in `aside`.
        unsafe { core::ptr::write_volatile(self.scratch, number) };
    }
}

/// Whether a hook may take the budget's lock and is the one that counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counting {
    /// A cgroup program: counts each new flow once.
    Here,
    /// An LSM program: a cgroup program follows and counts.
    Later,
    /// Egress or ingress: as `Here`, and the packet counts in its flow.
    Packet(Segment),
}

/// What a packet carries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) way: Way,
    pub(crate) payload: u32,
    /// Not zero: a packet of its flow was refused before.
    pub(crate) over: u64,
}

/// Judges an attempt on a marked socket, counts it where it is a new flow, reports it.
#[inline(always)]
pub(crate) fn judge(scene: &Scene<'_>, control: Control, sock: &mut SockMark, attempt: Attempt, counting: Counting) -> Verdict {
    settle(scene, control, sock, attempt, counting).verdict
}

#[inline(always)]
fn settle(scene: &Scene<'_>, control: Control, sock: &mut SockMark, mut attempt: Attempt, counting: Counting) -> Decision {
    // SAFETY: a member of a map value.
    let zero = unsafe { core::ptr::read_volatile(&raw const sock.zero) };
    let kind = forget_paths(zero, &mut attempt);
    attempt.counted = remembered(sock, &attempt);
    let control = unless_canary(scene, control);
    let near = forget_link(zero, scene.near);
    let tables = Live::<true> { control, scratch: &raw mut sock.scratch, zero, near };
    let mut decision = decide(&tables, scene.subject, &attempt);
    let over = matches!(counting, Counting::Packet(segment) if segment.over != 0);
    if over && !matches!(decision.reason, Reason::Receipt) && !matches!(decision.verdict, Verdict::Block) {
        decision = decision.over();
    }
    if matches!(decision.reason, Reason::Receipt) {
        let kind = black_box(kind ^ zero as u8);
        let known = kind == Kind::UdpConnect as u8 || attempt.counted == decision.serial;
        if let Counting::Packet(segment) = counting {
            match converse(control, sock, &decision, segment) {
                Some(reason) => decision = decision.cut(reason),
                None if over => decision = decision.over(),
                None if known => return decision,
                None => {}
            }
        } else if known || matches!(counting, Counting::Later) {
            return decision;
        }
        if matches!(decision.reason, Reason::Receipt) {
            if spend(scene.program, decision.serial, decision.login) {
                remember(sock, &attempt, decision.serial);
            } else {
                decision = decision.exhausted();
            }
        }
    }
    report(scene, &attempt, &decision, &Told::NOTHING);
    decision
}

/// The same at a hook where attempts count for the behaviour rules; `counts`: as this one does.
///
/// VERIFIER: nothing that judging found out is known when counting begins, so that the rules are
/// followed once and not for every way through the decision.
#[inline(always)]
pub(crate) fn judge_and_count(
    scene: &Scene<'_>,
    control: Control,
    sock: &mut SockMark,
    attempt: Attempt,
    counting: Counting,
    counts: bool,
) -> Verdict {
    let forget = Forget(&raw const sock.zero);
    let counts = forget.number(u64::from(counts));
    let attempt = forget.attempt(&attempt);
    let decision = settle(scene, control, sock, attempt, counting);
    let open = forget.number(u64::from(matches!(decision.reason, Reason::NotProtected)));
    let blocked = forget.number(u64::from(matches!(decision.verdict, Verdict::Block)));
    if open & counts != 0 {
        return behave(scene.program, scene.hook, sock, &forget.attempt(&attempt), &forget);
    }
    if blocked != 0 { Verdict::Block } else { Verdict::Allow }
}

/// Zero, in memory that nobody writes.
pub(crate) struct Forget(*const u64);

impl Forget {
    /// By the zero of this mark.
    #[inline(always)]
    pub(crate) fn of(sock: &SockMark) -> Self {
        Self(&raw const sock.zero)
    }

    /// The number, of which the verifier knows nothing any more. Zero is read anew each time: what
    /// a comparison finds out about one reading is not known of the next.
    #[inline(always)]
    pub(crate) fn number(&self, number: u64) -> u64 {
        // SAFETY: a member of a map value, which outlives this program's run.
        black_box(number ^ unsafe { core::ptr::read_volatile(self.0) })
    }

    /// The same of an address.
    #[inline(always)]
    pub(crate) fn addr(&self, addr: &Addr) -> Addr {
        Addr([self.number(addr.0[0]), self.number(addr.0[1])])
    }

    /// The same of an attempt.
    #[inline(always)]
    pub(crate) fn attempt(&self, attempt: &Attempt) -> Attempt {
        Attempt {
            addr: self.addr(&attempt.addr),
            port: self.number(u64::from(attempt.port)) as u16,
            transport: self.number(u64::from(attempt.transport)) as u8,
            kind: Kind::or_widest(self.number(attempt.kind as u64) as u8),
            counted: 0,
        }
    }
}

/// Judges an attempt by its destination alone, without the mark of a socket: no budget is asked,
/// and nothing is counted; the cgroup programs that follow do both.
#[inline(always)]
pub(crate) fn judge_alone(scene: &Scene<'_>, control: Control, mut attempt: Attempt) -> Verdict {
    let Some(aside) = ASIDE.get_ptr_mut(0) else { return Verdict::Block };
    // SAFETY: members of this CPU's element.
    let (zero, scratch) = unsafe { (core::ptr::read_volatile(&raw const (*aside).zero), &raw mut (*aside).scratch) };
    forget_paths(zero, &mut attempt);
    let control = unless_canary(scene, control);
    let decision = decide(&Live::<false> { control, scratch, zero, near: forget_link(zero, scene.near) }, scene.subject, &attempt);
    if !matches!(decision.reason, Reason::Receipt) {
        report(scene, &attempt, &decision, &Told::NOTHING);
    }
    decision.verdict
}

/// Counts a packet of an allowed flow to a gateway. `None`: it may pass; otherwise why not.
#[inline(always)]
fn converse(control: Control, sock: &mut SockMark, decision: &Decision, segment: Segment) -> Option<Reason> {
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
    count(&mut sock.talk, &limits, segment.way, segment.payload)
}

/// The canary finds out whether the hooks refuse: nothing is observed for it.
#[inline(always)]
fn unless_canary(scene: &Scene<'_>, mut control: Control) -> Control {
    const _: () = assert!(TASK_CANARY >> 1 == CONTROL_OBSERVE);
    control.flags &= !((scene.task_flags & TASK_CANARY) >> 1);
    control
}

/// VERIFIER: combines the attempt with a zero from memory that nobody writes, so that what the
/// paths before knew of it need not be followed through what comes after.
#[inline(always)]
fn forget_paths(zero: u64, attempt: &mut Attempt) -> u8 {
    attempt.transport = black_box(attempt.transport ^ zero as u8);
    attempt.port = black_box(attempt.port ^ zero as u16);
    attempt.addr.0[0] = black_box(attempt.addr.0[0] ^ zero);
    attempt.addr.0[1] = black_box(attempt.addr.0[1] ^ zero);
    let kind = black_box(attempt.kind as u8 ^ zero as u8);
    attempt.kind = Kind::or_widest(kind);
    kind
}

/// VERIFIER: as `forget_paths`.
#[inline(always)]
fn forget_link(zero: u64, near: Near) -> Near {
    Near { name: black_box(near.name ^ zero), flags: black_box(near.flags ^ zero as u32), ..near }
}

/// What the cgroup hooks return: 1 lets through, 0 refuses.
#[inline(always)]
pub(crate) fn cgroup_return(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Allow | Verdict::Observe => 1,
        Verdict::Block => 0,
    }
}

/// A refusal that is not about a destination but about the attempt itself.
#[inline(always)]
pub(crate) fn refuse(scene: &Scene<'_>, control: Control, attempt: &Attempt, reason: Reason) -> Verdict {
    let decision = Decision::refuse(reason, unless_canary(scene, control).flags);
    report(scene, attempt, &decision, &Told::NOTHING);
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
