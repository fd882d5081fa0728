//! Egress and ingress: the last gate. Every packet of a marked socket is
//! judged by its real far end, after any rewriting, until the receipt that
//! allowed it ends.

use aya_ebpf::{bindings::bpf_sock, helpers::generated::bpf_sk_fullsock, macros::cgroup_skb, programs::SkBuffContext};
use pp_common::{
    abi::{SOCK_CANARY, SOCK_GRANTED, SOCK_OPENED, SOCK_REFUSED, SockMark, TASK_CANARY},
    behaviour::counts_at_egress,
    decide::{Attempt, Kind, Reason, Verdict, transport},
    dest::Addr,
    record::Hook,
    turns::{Way, header_len},
};

use crate::{
    count::{forget, hear, heard_from},
    mark::{control, sock_mark, sock_subject},
    reach::{Counting, Segment, attempt, cgroup_return, judge, judge_and_count, refuse, scene},
};

const ALLOW: i32 = 1;
/// Flags of a TCP header (RFC 9293).
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;
const SOCK_RAW: u32 = 3;
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

/// Judges what a marked socket sends.
#[cgroup_skb(egress)]
// VERIFIER: before 6.2 a call of a function of ours makes every scalar precise, which multiplies the states to look at.
#[inline(always)]
pub(crate) fn pp_egress(ctx: SkBuffContext) -> i32 {
    packet(&ctx, Way::Out)
}

/// Judges what a marked socket receives.
#[cgroup_skb(ingress)]
pub(crate) fn pp_ingress(ctx: SkBuffContext) -> i32 {
    packet(&ctx, Way::In)
}

#[inline(always)]
fn packet(ctx: &SkBuffContext, way: Way) -> i32 {
    // SAFETY: a member of the context; null where the packet has no full socket.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return ALLOW;
    }
    // SAFETY: checked just now.
    match unsafe { sock_mark(sk.cast()) } {
        Some(sock) if sock.session != 0 => judge_packet(ctx, sk, sock, way),
        Some(_) | None => ALLOW,
    }
}

#[inline(always)]
fn judge_packet(ctx: &SkBuffContext, sk: *mut bpf_sock, sock: &mut SockMark, way: Way) -> i32 {
    let control = control();
    let subject = sock_subject(sock);
    let hook = match way {
        Way::Out => Hook::Egress,
        Way::In => Hook::Ingress,
    };
    let task_flags = if sock.flags & SOCK_CANARY != 0 { TASK_CANARY } else { 0 };
    let scene = scene(hook, &subject, sock.tgid, task_flags, &control);
    let Some(Far { attempt: mut far, payload, begins }) = far_end(ctx, way) else {
        let nowhere = attempt(Addr([0; 2]), 0, 0, Kind::Portless);
        return cgroup_return(refuse(&scene, control, &nowhere, Reason::Malformed));
    };
    let raw = way == Way::Out && far.transport == transport::TCP && is_raw(sk);
    far.kind = kind(sock, &far, way, raw);
    if raw && begins {
        // A raw socket may begin many connections to one far end: each is one.
        forget(sock, &far);
    }
    if way == Way::In
        && matches!(far.kind, Kind::Answer)
        && far.transport != transport::TCP
        && sock.flags & (SOCK_OPENED | SOCK_GRANTED) == 0
    {
        hear(sock, far.addr, far.port);
    }
    let counting = Counting::Packet(Segment { way, payload });
    let verdict = match way {
        Way::Out => {
            let counts = counts_at_egress(far.kind, far.transport, raw);
            judge_and_count(&scene, control, sock, far, counting, counts)
        }
        Way::In => judge(&scene, control, sock, far, counting),
    };
    if matches!(verdict, Verdict::Block) {
        // Looked at for TCP only: the other sockets' owners hear of it.
        sock.flags |= SOCK_REFUSED;
    }
    cgroup_return(verdict)
}

/// Whether the session opened this flow or answers on it.
#[inline(always)]
fn kind(sock: &SockMark, far: &Attempt, way: Way, raw: bool) -> Kind {
    if raw || matches!(far.kind, Kind::Portless) {
        return far.kind;
    }
    let opened = sock.flags & (SOCK_OPENED | SOCK_GRANTED) != 0;
    if far.transport == transport::TCP || way == Way::In {
        return if opened { Kind::Open } else { Kind::Answer };
    }
    if !opened && heard_from(sock, far.addr, far.port) { Kind::Answer } else { Kind::Open }
}

/// Whether a raw socket sends this: TCP from one never passed the connect hooks.
#[inline(always)]
fn is_raw(sk: *mut bpf_sock) -> bool {
    // SAFETY: the socket of the context; null where it is no full one, which a raw socket is.
    unsafe {
        let full = bpf_sk_fullsock(sk);
        !full.is_null() && (*full).type_ == SOCK_RAW
    }
}

/// What a packet's headers say.
struct Far {
    /// Where it goes, or comes from.
    attempt: Attempt,
    /// Bytes behind its headers.
    payload: u32,
    /// The first packet of a TCP connection.
    begins: bool,
}

/// What a packet's headers say; `None` where they cannot be read.
#[inline(always)]
fn far_end(ctx: &SkBuffContext, way: Way) -> Option<Far> {
    // SAFETY: a member of the context.
    match unsafe { (*ctx.skb.skb).protocol } {
        ETH_P_IP_BE => far_end_v4(ctx, way),
        ETH_P_IPV6_BE => far_end_v6(ctx, way),
        _ => None,
    }
}

#[inline(always)]
fn far_end_v4(ctx: &SkBuffContext, way: Way) -> Option<Far> {
    let first: [u8; 10] = ctx.load(0).ok()?;
    let octets: [u8; 4] = match way {
        Way::Out => ctx.load(16).ok()?,
        Way::In => ctx.load(12).ok()?,
    };
    let header_len = usize::from(first[0] & 0x0f) * 4;
    if header_len > IPV4_HEADER && way == Way::Out && !goes_straight(ctx, header_len) {
        return None;
    }
    let later_fragment = first[6] & 0x1f != 0 || first[7] != 0;
    ports(ctx, Addr::v4(octets), header_len, first[9], later_fragment, way)
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
fn far_end_v6(ctx: &SkBuffContext, way: Way) -> Option<Far> {
    let mut next: u8 = ctx.load(6).ok()?;
    let words: [u32; 4] = match way {
        Way::Out => ctx.load(24).ok()?,
        Way::In => ctx.load(8).ok()?,
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
            // A routing header names a further destination that nothing here judges.
            43 => return None,
            _ => break,
        }
    }
    if matches!(next, 0 | 43 | 44 | 60) {
        // More than is looked through: what lies behind is not known.
        return None;
    }
    ports(ctx, Addr::v6_words(words), at, next, later_fragment, way)
}

#[inline(always)]
fn ports(ctx: &SkBuffContext, addr: Addr, at: usize, protocol: u8, later_fragment: bool, way: Way) -> Option<Far> {
    // From the network header on, also of a batch that is cut into packets later, whose own length
    // field may be zero.
    let rest = ctx.len().saturating_sub(at as u32);
    let ported = matches!(protocol, transport::TCP | transport::UDP | transport::UDPLITE | transport::SCTP);
    if later_fragment || !ported {
        return Some(Far { attempt: attempt(addr, 0, u32::from(protocol), Kind::Portless), payload: rest, begins: false });
    }
    let port: [u8; 2] = match way {
        Way::Out => ctx.load(at + 2).ok()?,
        Way::In => ctx.load(at).ok()?,
    };
    let [offset, flags]: [u8; 2] = if protocol == transport::TCP { ctx.load(at + 12).ok()? } else { [0; 2] };
    let payload = rest.saturating_sub(header_len(protocol, offset));
    let begins = flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    Some(Far { attempt: attempt(addr, u16::from_be_bytes(port), u32::from(protocol), Kind::Open), payload, begins })
}
