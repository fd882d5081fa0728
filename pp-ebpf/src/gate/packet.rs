//! Egress and ingress: the last gate. Every packet of a marked socket is
//! checked by its real remote end, after any rewriting, until the receipt that
//! allowed it ends.

use aya_ebpf::{bindings::bpf_sock, helpers::generated::bpf_sk_fullsock, macros::cgroup_skb, programs::SkBuffContext};
use pp_common::{
    abi::{Control, SOCK_CANARY, SOCK_GRANTED, SOCK_OPENED, SOCK_REFUSED, SockMark, TASK_CANARY},
    behaviour::{counts_at_egress, has_ports},
    decide::{Attempt, Kind, LINK_ALL, LINK_DISCOVERY, Reason, Verdict, is_for_all, transport},
    dest::Addr,
    record::Hook,
    turns::{Direction, header_len},
};

use super::{
    barrier::Barrier,
    budget::clear_charge,
    log::program,
    maps::OWN,
    mark::{in_force, sock_mark, sock_subject},
    near::{Near, number},
    peers::{Ear, claim, hear, heard_by, is_claimed},
    reach::{Charging, Segment, attempt, cgroup_return, enforce, enforce_with_rate_rules, is_service, refuse, scene},
};

const ALLOW: i32 = 1;
/// Flags of a TCP header (RFC 9293).
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;
const SOCK_STREAM: u32 = 1;
const SOCK_RAW: u32 = 3;
/// `include/net/tcp_states.h`.
const TCP_LISTEN: u32 = 10;
/// `lo` in every network namespace: `LOOPBACK_IFINDEX` of `include/net/flow.h`.
const LOOPBACK: u32 = 1;
/// What an interface hands back of what it sends: `include/uapi/linux/if_packet.h`.
const PACKET_LOOPBACK: u32 = 5;
const ETH_P_IP_BE: u32 = 0x0008;
const ETH_P_IPV6_BE: u32 = 0xdd86;
/// An IPv4 header without options, and the options of RFC 791.
const IPV4_HEADER: usize = 20;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_ROUTE: u8 = 131;
const STRICT_ROUTE: u8 = 137;
/// Extension headers, or options, looked through before a packet counts as malformed.
const MAX_EXTENSIONS: usize = 4;

/// Decides what a marked socket sends.
#[cgroup_skb(egress)]
// VERIFIER: before 6.2 a call of a function of ours makes every scalar precise, which multiplies the states to look at.
#[inline(always)]
pub(crate) fn pp_egress(ctx: SkBuffContext) -> i32 {
    packet(&ctx, Direction::Out)
}

/// Decides what a marked socket receives.
#[cgroup_skb(ingress)]
pub(crate) fn pp_ingress(ctx: SkBuffContext) -> i32 {
    packet(&ctx, Direction::In)
}

#[inline(always)]
fn packet(ctx: &SkBuffContext, direction: Direction) -> i32 {
    // SAFETY: a member of the context; null where the packet has no full socket.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return ALLOW;
    }
    // SAFETY: checked just now.
    match unsafe { sock_mark(sk.cast()) } {
        Some(sock) if sock.session != 0 => enforce_packet(ctx, sk, sock, direction),
        Some(_) | None => ALLOW,
    }
}

#[inline(always)]
fn enforce_packet(ctx: &SkBuffContext, sk: *mut bpf_sock, sock: &mut SockMark, direction: Direction) -> i32 {
    let control = in_force();
    let subject = sock_subject(sock);
    let hook = match direction {
        Direction::Out => Hook::Egress,
        Direction::In => Hook::Ingress,
    };
    let program = match direction {
        Direction::Out => program!(pp_egress),
        Direction::In => program!(pp_ingress),
    };
    let task_flags = if sock.flags & SOCK_CANARY != 0 { TASK_CANARY } else { 0 };
    let scene = scene(program, hook, &subject, sock.tgid, task_flags, &control);
    let Some(remote) = headers(ctx, direction) else {
        let nowhere = attempt(Addr([0; 2]), 0, 0, Kind::Portless);
        return cgroup_return(refuse(&scene, control, &nowhere, Reason::Malformed));
    };
    // VERIFIER: which way through the headers was taken is not followed through all that comes; what is found out below of the sockets
    // likewise, see `hidden` further down.
    let barrier = Barrier::of(sock);
    let Headers { attempt: mut remote, near, near_port, payload, begins, link } = remote.hidden(&barrier);
    // SAFETY: a member of the context.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let sk_number = number(sk.cast_const().cast());
    let scene = scene.near(Near::packet(sk_number, ifindex, direction, link));
    let ear = Ear { session: sock.session, sk: sk_number, port: near_port };
    let own = Own::of(sk).hidden(&barrier);
    let raw = direction == Direction::Out && own.raw && !matches!(remote.kind, Kind::Portless);
    // What comes in is not to be taken for somebody else's: where it leaves, a connection is known by its first packet.
    let claims = direction == Direction::Out && (remote.transport != transport::TCP || begins);
    if claims && !claim(program, &near) {
        return cgroup_return(refuse(&scene, control, &remote, Reason::Malformed));
    }
    remote.kind = kind(ctx, sock, &remote, (&near, ear), direction, raw);
    if raw && remote.transport == transport::TCP && begins {
        // A raw socket may begin many connections to one remote end: each is one.
        clear_charge(sock, &remote);
    }
    let answers = matches!(remote.kind, Kind::Answer) && remote.transport != transport::TCP;
    if direction == Direction::In && answers && !own.raw && sock.flags & (SOCK_OPENED | SOCK_GRANTED) == 0 {
        let interface = spoke_first(ctx, &remote, near_port, own.port, &control);
        if interface != 0 {
            hear(ear, &remote, interface);
        }
    }
    let one_flow = barrier.opaque(u64::from(own.one_flow(remote.transport)));
    let over = one_flow & barrier.opaque(u64::from(sock.flags & SOCK_REFUSED != 0));
    let charging = Charging::Packet(Segment { direction, payload, over });
    let verdict = match direction {
        Direction::Out => {
            let rated = counts_at_egress(remote.kind, remote.transport, raw && remote.transport == transport::TCP);
            enforce_with_rate_rules(&scene, control, sock, remote, charging, rated)
        }
        Direction::In => enforce(&scene, control, sock, barrier.attempt(&remote), charging),
    };
    if matches!(verdict, Verdict::Block) && one_flow != 0 {
        sock.flags |= SOCK_REFUSED;
    }
    cgroup_return(verdict)
}

/// Whether the session opened this flow or answers on it.
#[inline(always)]
fn kind(ctx: &SkBuffContext, sock: &SockMark, remote: &Attempt, (near, ear): (&Addr, Ear), direction: Direction, raw: bool) -> Kind {
    if raw || matches!(remote.kind, Kind::Portless) {
        return remote.kind;
    }
    let opened = sock.flags & (SOCK_OPENED | SOCK_GRANTED) != 0;
    if remote.transport == transport::TCP || direction == Direction::In {
        let forged = direction == Direction::In && remote.transport == transport::TCP && is_forged(ctx, &remote.addr, near);
        return if opened || forged { Kind::Open } else { Kind::Answer };
    }
    let heard = heard_by(ear, remote);
    // It goes back the way it came: who is heard by one interface has said nothing about what another leads to.
    if !opened && heard != 0 && heard == interface(ctx) { Kind::Answer } else { Kind::Open }
}

/// Whether the packet came from a socket that may be bound to any address, or a raw one: by loopback from an address that is not this
/// host's, or from one that a session sends from. A listener must not be made to answer a device.
#[inline(always)]
fn is_forged(ctx: &SkBuffContext, remote: &Addr, near: &Addr) -> bool {
    let looped = interface(ctx) == LOOPBACK && remote != near;
    (looped || is_claimed(remote)) && OWN.get_ptr(remote).is_none()
}

/// The interface by which a remote end has spoken first; zero: nobody but this host need have made the datagram, or it went to a port of OT,
/// where devices speak by themselves.
#[inline(always)]
fn spoke_first(ctx: &SkBuffContext, remote: &Attempt, near_port: u16, own_port: u16, control: &Control) -> u32 {
    let interface = interface(ctx);
    // SAFETY: a member of the context.
    let kind = unsafe { (*ctx.skb.skb).pkt_type };
    let made_here = interface == LOOPBACK || kind == PACKET_LOOPBACK || OWN.get_ptr(&remote.addr).is_some() || is_claimed(&remote.addr);
    let of_ot = is_service(remote.transport, near_port, control) || is_service(remote.transport, own_port, control);
    if made_here || of_ot { 0 } else { interface }
}

/// The interface that the packet came in by, or leaves by.
#[inline(always)]
fn interface(ctx: &SkBuffContext) -> u32 {
    // SAFETY: a member of the context.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// What is to be known of the packet's own socket.
struct Own {
    /// It may send whatever headers it likes, past the connect hooks.
    raw: bool,
    /// Connections, and one at a time.
    stream: bool,
    listens: bool,
    port: u16,
}

impl Own {
    #[inline(always)]
    fn of(sk: *mut bpf_sock) -> Self {
        // SAFETY: the socket of the context; null where it is no full one, and such a one has no mark.
        unsafe {
            let full = bpf_sk_fullsock(sk);
            if full.is_null() {
                return Self { raw: false, stream: false, listens: false, port: 0 };
            }
            let kind = (*full).type_;
            Self { raw: kind == SOCK_RAW, stream: kind == SOCK_STREAM, listens: (*full).state == TCP_LISTEN, port: (*full).src_port as u16 }
        }
    }

    /// The same, of which the verifier knows nothing.
    #[inline(always)]
    fn hidden(self, barrier: &Barrier) -> Self {
        Self {
            raw: barrier.opaque(u64::from(self.raw)) != 0,
            stream: barrier.opaque(u64::from(self.stream)) != 0,
            listens: barrier.opaque(u64::from(self.listens)) != 0,
            port: barrier.opaque(u64::from(self.port)) as u16,
        }
    }

    /// Whether what is refused of one packet of this socket holds for all of them.
    #[inline(always)]
    fn one_flow(&self, transport: u8) -> bool {
        self.stream && !self.listens && matches!(transport, transport::TCP | transport::SCTP)
    }
}

/// What a packet's headers say.
struct Headers {
    /// Where it goes, or comes from.
    attempt: Attempt,
    /// This end's address.
    near: Addr,
    /// The port of this end; zero where its protocol has none.
    near_port: u16,
    /// Bytes behind its headers.
    payload: u32,
    /// The first packet of a TCP connection.
    begins: bool,
    /// [`LINK_DISCOVERY`] or [`LINK_ALL`].
    link: u32,
}

impl Headers {
    /// The same, of which the verifier knows nothing.
    #[inline(always)]
    fn hidden(self, barrier: &Barrier) -> Self {
        Self {
            attempt: barrier.attempt(&self.attempt),
            near: barrier.addr(&self.near),
            near_port: barrier.opaque(u64::from(self.near_port)) as u16,
            payload: barrier.opaque(u64::from(self.payload)) as u32,
            begins: barrier.opaque(u64::from(self.begins)) != 0,
            link: barrier.opaque(u64::from(self.link)) as u32,
        }
    }
}

/// What a packet's headers say; `None` where they cannot be read.
#[inline(always)]
fn headers(ctx: &SkBuffContext, direction: Direction) -> Option<Headers> {
    // SAFETY: a member of the context.
    match unsafe { (*ctx.skb.skb).protocol } {
        ETH_P_IP_BE => headers_v4(ctx, direction),
        ETH_P_IPV6_BE => headers_v6(ctx, direction),
        _ => None,
    }
}

#[inline(always)]
fn headers_v4(ctx: &SkBuffContext, direction: Direction) -> Option<Headers> {
    let first: [u8; 10] = ctx.load(0).ok()?;
    let [source, destination]: [[u8; 4]; 2] = ctx.load(12).ok()?;
    let (octets, near) = match direction {
        Direction::Out => (destination, source),
        Direction::In => (source, destination),
    };
    let header_len = usize::from(first[0] & 0x0f) * 4;
    if header_len > IPV4_HEADER && direction == Direction::Out && !goes_straight(ctx, header_len) {
        return None;
    }
    let later_fragment = first[6] & 0x1f != 0 || first[7] != 0;
    ports(ctx, [Addr::v4(octets), Addr::v4(near)], header_len, first[9], later_fragment, direction)
}

/// Whether no option asks routers to send the packet on to somewhere else; `false` where the options cannot be read to their end.
#[inline(always)]
fn goes_straight(ctx: &SkBuffContext, header_len: usize) -> bool {
    let mut at = IPV4_HEADER;
    for _ in 0..MAX_EXTENSIONS {
        if at >= header_len {
            return true;
        }
        let Ok(option) = ctx.load::<u8>(at) else { return false };
        match option {
            END_OF_OPTIONS => return true,
            LOOSE_ROUTE | STRICT_ROUTE => return false,
            NO_OPERATION => at += 1,
            _ => match ctx.load::<u8>(at + 1) {
                Ok(length) if length >= 2 => at += usize::from(length),
                Ok(_) | Err(_) => return false,
            },
        }
    }
    at >= header_len
}

#[inline(always)]
fn headers_v6(ctx: &SkBuffContext, direction: Direction) -> Option<Headers> {
    let mut next: u8 = ctx.load(6).ok()?;
    let [source, destination]: [[u32; 4]; 2] = ctx.load(8).ok()?;
    let (words, near) = match direction {
        Direction::Out => (destination, source),
        Direction::In => (source, destination),
    };
    let mut at = 40usize;
    let mut later_fragment = false;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            // Hop-by-hop and destination options.
            0 | 60 => {
                let option: [u8; 2] = ctx.load(at).ok()?;
                next = option[0];
                at += 8 + usize::from(option[1]) * 8;
            }
            // Fragment.
            44 => {
                let fragment: [u8; 4] = ctx.load(at).ok()?;
                next = fragment[0];
                later_fragment = fragment[2] != 0 || fragment[3] & 0xf8 != 0;
                at += 8;
            }
            // A routing header names a further destination that nothing here checks.
            43 => return None,
            _ => break,
        }
    }
    if matches!(next, 0 | 43 | 44 | 60) {
        // More than is looked through: what lies behind is not known.
        return None;
    }
    ports(ctx, [Addr::v6_words(words), Addr::v6_words(near)], at, next, later_fragment, direction)
}

#[inline(always)]
fn ports(
    ctx: &SkBuffContext,
    [addr, near]: [Addr; 2],
    at: usize,
    protocol: u8,
    later_fragment: bool,
    direction: Direction,
) -> Option<Headers> {
    // From the network header on, also of a batch that is cut into packets later, whose own length
    // field may be zero.
    let rest = ctx.len().saturating_sub(at as u32);
    if later_fragment || !has_ports(protocol) {
        let attempt = attempt(addr, 0, u32::from(protocol), Kind::Portless);
        let discovery = protocol == transport::ICMPV6 && !later_fragment && matches!(ctx.load::<u8>(at), Ok(130..=137 | 143));
        let link = if discovery { LINK_DISCOVERY } else { link_flags(&attempt, direction) };
        return Some(Headers { attempt, near, near_port: 0, payload: rest, begins: false, link });
    }
    let [source, destination]: [[u8; 2]; 2] = ctx.load(at).ok()?;
    let (near_port, remote_port) = match direction {
        Direction::Out => (source, destination),
        Direction::In => (destination, source),
    };
    let [offset, flags]: [u8; 2] = if protocol == transport::TCP { ctx.load(at + 12).ok()? } else { [0; 2] };
    let payload = rest.saturating_sub(header_len(protocol, offset));
    let begins = flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    let attempt = attempt(addr, u16::from_be_bytes(remote_port), u32::from(protocol), Kind::Open);
    let link = link_flags(&attempt, direction);
    Some(Headers { attempt, near, near_port: u16::from_be_bytes(near_port), payload, begins, link })
}

/// Nobody sends from an address that is everybody's, so only what leaves is looked at.
#[inline(always)]
fn link_flags(attempt: &Attempt, direction: Direction) -> u32 {
    if direction == Direction::Out && is_for_all(&attempt.addr, attempt.transport, attempt.port) { LINK_ALL } else { 0 }
}
