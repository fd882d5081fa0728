//! The cgroup hooks in the caller's own context: socket creation, connect and
//! datagrams with an address.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use pp_common::{
    abi::{SOCK_GRANTED, SOCK_REFUSED, SockMark, TaskMark},
    decide::{Attempt, Kind, Verdict, transport},
    dest::Addr,
    record::Hook,
    turns::TurnCount,
};

use super::{
    barrier::Barrier,
    budget::clear_charge,
    kernel::{offset, read},
    log::{Program, program},
    mark::{current, in_force, subject, tag},
    near::{Near, number},
    peers::{Ear, heard_from},
    reach::{Charging, attempt, cgroup_return, connects, enforce, enforce_with_rate_rules, scene},
};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

/// Marks a socket that a marked process makes, so that egress knows it.
#[cgroup_sock(sock_create)]
pub(crate) fn pp_sock_create(ctx: SockContext) -> i32 {
    match current() {
        None => ALLOW,
        // SAFETY: the context is the socket that is being made.
        Some(task) => match unsafe { tag(program!(pp_sock_create), ctx.sock.cast(), task, 0) } {
            Some(_) => ALLOW,
            None => REFUSE,
        },
    }
}

/// Decides a connect to an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub(crate) fn pp_connect4(ctx: SockAddrContext) -> i32 {
    match current() {
        None => ALLOW,
        Some(task) => connect(program!(pp_connect4), ctx.sock_addr, task, v4(ctx.sock_addr)),
    }
}

/// Decides a connect to an IPv6 address.
#[cgroup_sock_addr(connect6)]
pub(crate) fn pp_connect6(ctx: SockAddrContext) -> i32 {
    match current() {
        None => ALLOW,
        Some(task) => connect(program!(pp_connect6), ctx.sock_addr, task, v6(ctx.sock_addr)),
    }
}

/// Decides a datagram to an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn pp_sendmsg4(ctx: SockAddrContext) -> i32 {
    match current() {
        None => ALLOW,
        Some(task) => sendmsg(program!(pp_sendmsg4), ctx.sock_addr, task, v4(ctx.sock_addr)),
    }
}

/// Decides a datagram to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn pp_sendmsg6(ctx: SockAddrContext) -> i32 {
    match current() {
        None => ALLOW,
        Some(task) => sendmsg(program!(pp_sendmsg6), ctx.sock_addr, task, v6(ctx.sock_addr)),
    }
}

#[inline(always)]
fn connect(program: &'static Program, ctx: *mut bpf_sock_addr, task: &TaskMark, addr: Addr) -> i32 {
    // SAFETY: context words, read one by one as the verifier wants them.
    let (port, protocol) = unsafe { (port(ctx), (*ctx).protocol) };
    reach(program, ctx, task, attempt(addr, port, protocol, Kind::Open), Hook::Connect)
}

#[inline(always)]
fn sendmsg(program: &'static Program, ctx: *mut bpf_sock_addr, task: &TaskMark, addr: Addr) -> i32 {
    // SAFETY: as in `connect`.
    let (port, protocol) = unsafe { (port(ctx), (*ctx).protocol) };
    reach(program, ctx, task, attempt(addr, port, protocol, Kind::Open), Hook::Sendmsg)
}

#[inline(always)]
fn reach(program: &'static Program, ctx: *mut bpf_sock_addr, task: &TaskMark, mut attempt: Attempt, hook: Hook) -> i32 {
    // SAFETY: the socket of the context; null only where the kernel has none to give.
    let sk = unsafe { (*ctx).__bindgen_anon_1.sk };
    if sk.is_null() {
        return REFUSE;
    }
    // SAFETY: checked just now; a socket that the verifier knows.
    let port = unsafe { (*sk).src_port } as u16;
    let ear = Ear { session: task.session, sk: number(sk.cast_const().cast()), port };
    let flags = if hook as u8 == Hook::Connect as u8 {
        connects(&mut attempt, ear)
    } else {
        if heard_from(ear, &attempt) {
            attempt.kind = Kind::Answer;
        }
        0
    };
    // SAFETY: as above.
    let Some(sock) = (unsafe { tag(program, sk.cast(), task, flags) }) else {
        return REFUSE;
    };
    // The kernel asks once for each connection. One socket may make many, after `connect(AF_UNSPEC)`.
    if hook as u8 == Hook::Connect as u8 && matches!(attempt.kind, Kind::Open) {
        clear_charge(sock, &attempt);
        begin_anew(sock);
    }
    // VERIFIER: which kind of call it is, and that it answers, is not followed through the decision.
    let barrier = Barrier::of(sock);
    let flags = barrier.opaque(u64::from(flags));
    let attempt = barrier.attempt(&attempt);
    let control = in_force();
    let subject = subject(task);
    let scene = scene(program, hook, &subject, sock.tgid, task.flags, &control);
    // Only a link-local address needs the call's own word for its link.
    let name = if attempt.addr.is_link_local() { sockaddr_of(ctx) } else { 0 };
    let scene = scene.near(Near::call(number(sk.cast_const().cast()), name));
    // A datagram counts where it leaves, however it was sent; a UDP connect sends none.
    let verdict = if hook as u8 == Hook::Connect as u8 {
        let opens = attempt.transport == transport::TCP;
        enforce_with_rate_rules(&scene, control, sock, attempt, Charging::Here, opens)
    } else {
        enforce(&scene, control, sock, attempt, Charging::Here)
    };
    if flags == 0 && matches!(verdict, Verdict::Allow) && sock.flows[0].serial != 0 {
        sock.flags |= SOCK_GRANTED;
    }
    cgroup_return(verdict)
}

/// Of another connection: how far the one before went says nothing of this one.
#[inline(always)]
fn begin_anew(sock: &mut SockMark) {
    sock.turn_count = TurnCount { bytes_out: 0, turns: 0, answers: 0, answers_seen: 0, over: 0 };
    sock.flags &= !SOCK_REFUSED;
}

/// The address that the call names, as the kernel holds it: the context leaves out which link it means. Zero: it cannot be
/// read, and egress, which knows the link, checks.
#[inline(always)]
fn sockaddr_of(ctx: *mut bpf_sock_addr) -> u64 {
    match read::<u64>(number(ctx.cast_const().cast()), offset!(sock_addr_uaddr)) {
        Some(address) => address,
        None => 0,
    }
}

/// # Safety
///
/// `ctx` must be the hook's context.
#[inline(always)]
unsafe fn port(ctx: *mut bpf_sock_addr) -> u16 {
    // SAFETY: the caller's. The port lies in the low half, in network byte order.
    u16::from_be(unsafe { (*ctx).user_port } as u16)
}

#[inline(always)]
fn v4(ctx: *mut bpf_sock_addr) -> Addr {
    // SAFETY: a word of the hook's context.
    Addr::v4(unsafe { (*ctx).user_ip4 }.to_ne_bytes())
}

#[inline(always)]
fn v6(ctx: *mut bpf_sock_addr) -> Addr {
    // SAFETY: words of the hook's context; VERIFIER: "dereference of modified ctx ptr" when they
    // are read as an array.
    let words = unsafe {
        let first = &raw const (*ctx).user_ip6;
        let first = first.cast::<u32>();
        [
            core::ptr::read_volatile(first),
            core::ptr::read_volatile(first.add(1)),
            core::ptr::read_volatile(first.add(2)),
            core::ptr::read_volatile(first.add(3)),
        ]
    };
    Addr::v6_words(words)
}
