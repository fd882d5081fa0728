//! The decision. [`decide`] is the only code that says whether an attempt of a
//! session may go through; everything else gathers facts for it or carries out
//! what it said.

#![expect(
    clippy::cast_possible_truncation,
    reason = "a loop counter below 64 and a code that was stored as one byte; the kernel has no TryFrom to spare"
)]

mod grants;
mod near;

use core::hint::black_box;

use grants::{Ask, live_grant};
pub use grants::{affords, nearest_receipt};
pub use near::{LINK_ALL, LINK_DISCOVERY, LINK_IN, LINK_PACKET, Link, is_for_all};
use near::{Near, near};

use crate::abi::{
    Budget, CONTROL_OBSERVE, CONTROL_OFF, GrantList, Learned, LinkKey, NameId, NearKey, PLACE_GATEWAY_ALL_PORTS, PLACE_GATEWAY_OBSERVE,
    PLACE_GATEWAY_OWN, PLACE_ZONE_OBSERVE, Place, SERVICE_OBSERVE, Serial, Service,
};
use crate::codes::codes;
use crate::dest::Addr;

codes! {
    /// IP protocol numbers (IANA registry). Grants and services can name those with ports.
    mod transport: u8 {
        /// TCP, and MPTCP.
        TCP = 6, "tcp";
        /// UDP.
        UDP = 17, "udp";
        /// UDP-Lite.
        UDPLITE = 136, "udplite";
        /// SCTP.
        SCTP = 132, "sctp";
        /// ICMP.
        ICMP = 1, "icmp";
        /// ICMPv6.
        ICMPV6 = 58, "icmpv6";
    }
}

/// Where a process finds out whether it is marked: TCP to this address and [`PROBE_PORT`] is refused to every marked process, whatever
/// policy, receipts and modes say, and leaves no record. It is of the loopback network, so no packet leaves the host.
pub const PROBE: Addr = Addr::v4([127, 255, 255, 253]);
/// The port of [`PROBE`] (tcpmux, RFC 1078, which nobody serves any more).
pub const PROBE_PORT: u16 = 1;

/// Who makes an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The session.
    pub session: u64,
    /// Its agent.
    pub agent: NameId,
    /// Its owner's uid.
    pub owner: u32,
}

codes! {
    /// What an attempt is.
    enum Kind: u8 {
        /// The session opens a flow, or sends on one that it opened.
        Open = 0, "open";
        /// Traffic of a connection that the session accepted, or a datagram to a
        /// remote end that spoke first: checked against zones and gateways only.
        Answer = 1, "answer";
        /// A UDP `connect()`: it sends nothing, so any live grant that names the
        /// address lets it pass; its datagrams are checked instead.
        UdpConnect = 2, "udp_connect";
        /// A packet without a port of its own (ICMP, a later fragment, an unknown
        /// protocol): checked by address, and only a grant of every port covers it.
        Portless = 3, "portless";
    }
}

impl Kind {
    /// The kind that a hook kept as a number; one that is unknown is checked as the widest.
    #[must_use]
    #[inline(always)]
    pub const fn or_widest(code: u8) -> Self {
        match Self::from_code(code) {
            Some(kind) => kind,
            None => Self::Open,
        }
    }
}

/// One attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The remote end.
    pub addr: Addr,
    /// Its port, host byte order.
    pub port: u16,
    /// IP protocol number.
    pub transport: u8,
    /// What it is.
    pub kind: Kind,
    /// The receipt this very flow was counted under before: its budget is not
    /// asked again. Zero: none.
    pub counted: Serial,
}

codes! {
    /// What happens to an attempt.
    enum Verdict: u8 {
        /// It goes through.
        Allow = 0, "allow";
        /// It is refused.
        Block = 1, "block";
        /// It goes through and is reported as one that would have been refused.
        Observe = 2, "observe";
        /// It goes through because protection is off, and is reported as one that would have been refused.
        Off = 3, "off";
    }
}

codes! {
    /// Why. The order is that of nearness: of several receipts that do not
    /// fit, the one with the greatest code explains the refusal best.
    #[derive(PartialOrd, Ord)]
    enum Reason: u8 {
        /// Nothing protects the destination; only in answers of `check`.
        NotProtected = 0, "not_protected";
        /// A live receipt covers it.
        Receipt = 1, "receipt";
        /// It is protected, and no receipt names the address.
        NoReceipt = 10, "no_receipt";
        /// A receipt names it for another agent or session.
        ReceiptOtherAgent = 11, "receipt_other_agent";
        /// A receipt names it for other users.
        ReceiptOtherUser = 12, "receipt_other_user";
        /// A receipt names it with other ports or another transport.
        ReceiptOtherPort = 13, "receipt_other_port";
        /// The receipt was revoked.
        ReceiptRevoked = 14, "receipt_revoked";
        /// The receipt's window is over.
        ReceiptExpired = 15, "receipt_expired";
        /// The receipt's window has not begun.
        ReceiptNotYet = 16, "receipt_not_yet";
        /// The receipt's credential scope allows no logins, and this is one.
        CredentialScope = 17, "credential_scope";
        /// The receipt's connections or logins are used up, or its count was lost in a reboot.
        ReceiptExhausted = 18, "receipt_exhausted";
        /// This flow to a gateway reached its limit of turns.
        TurnsExhausted = 19, "turns_exhausted";
        /// This flow to a gateway reached its limit of bytes.
        BytesExhausted = 20, "bytes_exhausted";
        /// An earlier packet of this TCP flow (or one-to-one SCTP association) was blocked. Connect again.
        FlowRefused = 21, "flow_refused";
        /// A socket kind without a destination to check (packet, XDP, vsock, CAN, RxRPC, ...); `detail` has the family.
        SocketFamily = 30, "socket_family";
        /// Packet headers unreadable, or asking to be forwarded.
        Malformed = 31, "malformed";
        /// No room to count for a behaviour rule, or the packet's link was unreadable.
        GateError = 32, "gate_error";
        /// Too many connections to one login port of one host ([behaviour rules](policy.md#behaviour-rules)).
        SprayTarget = 50, "spray_target";
        /// Too many hosts on one login port, or too many login targets.
        SprayHosts = 51, "spray_hosts";
        /// Too many hosts on one port.
        ScanHosts = 52, "scan_hosts";
        /// Too many ports on one host.
        ScanPorts = 53, "scan_ports";
        /// Too many pairs of host and port, or too many blocked patterns.
        ScanPairs = 54, "scan_pairs";
        /// The session reached for its own gate; events name what was tried instead, see below.
        Tamper = 60, "tamper";
        /// A [delegate](policy.md#delegates) on this host; `object` names its socket, no `destination`.
        Delegate = 61, "delegate";
        /// Never logged: tcp 127.255.255.253:1, blocked for every session, shows `pp-agent run` that it is governed.
        Probe = 62, "probe";
    }
}

/// A decision with its grounds. It must be acted upon.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What happens.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The attempt is a login: it spends an attempt beside a connection.
    pub login: bool,
    /// Why a block goes through here: [`CONTROL_OBSERVE`], [`CONTROL_OFF`], or both. Zero: it does not.
    pub passes: u32,
    /// The receipt that allows it; zero: none.
    pub serial: Serial,
    /// The zone; zero: none.
    pub zone: NameId,
    /// The gateway; zero: none.
    pub gateway: NameId,
    /// The service that made it protected; zero: a zone or gateway did.
    pub service: NameId,
}

impl Decision {
    /// Not protected: goes through, says nothing.
    pub const PASS: Self =
        Self { verdict: Verdict::Allow, reason: Reason::NotProtected, login: false, passes: 0, serial: 0, zone: 0, gateway: 0, service: 0 };

    /// The answer to a marked process's probe: refused, also where the rest is observed or protection is off.
    const PROBED: Self = Self { verdict: Verdict::Block, reason: Reason::Probe, ..Self::PASS };

    /// A refusal that is not about a destination, under these `CONTROL_*` flags.
    #[inline(always)]
    pub const fn refuse(reason: Reason, flags: u32) -> Self {
        Self { reason, passes: flags & PASSES, ..Self::PASS }.blocked()
    }

    /// What an allowed attempt becomes when its receipt turns out to be used
    /// up at the moment of counting.
    #[inline(always)]
    pub const fn exhausted(self) -> Self {
        Self { reason: Reason::ReceiptExhausted, ..self }.blocked()
    }

    /// What an allowed packet becomes when its flow has gone as far as it may.
    #[inline(always)]
    pub const fn cut(self, reason: Reason) -> Self {
        Self { reason, ..self }.blocked()
    }

    /// What a packet becomes of whose flow one was refused before: refused, also where policy only observes or protection is off by now.
    #[inline(always)]
    pub const fn over(self) -> Self {
        Self { reason: Reason::FlowRefused, passes: 0, ..self }.blocked()
    }

    /// What an attempt that would go out becomes when a rate rule refuses it, under these `CONTROL_*` flags.
    #[inline(always)]
    pub const fn by_rule(self, reason: Reason, flags: u32) -> Self {
        Self { reason, passes: self.passes | flags & PASSES, ..self }.blocked()
    }

    #[inline(always)]
    const fn blocked(self) -> Self {
        let verdict = if self.passes & CONTROL_OFF != 0 {
            Verdict::Off
        } else if self.passes & CONTROL_OBSERVE != 0 {
            Verdict::Observe
        } else {
            Verdict::Block
        };
        Self { verdict, ..self }
    }
}

/// The flags of [`Decision::passes`].
const PASSES: u32 = CONTROL_OBSERVE | CONTROL_OFF;

/// [`CONTROL_OBSERVE`] if this flag of a place or service is set.
#[inline(always)]
const fn observes(flags: u32, flag: u32) -> u32 {
    if flags & flag != 0 { CONTROL_OBSERVE } else { 0 }
}

/// The tables a decision is made from: kernel maps in the programs, the same
/// maps read by the daemon, plain collections in tests.
pub trait Tables {
    /// `CONTROL_*` flags.
    fn flags(&self) -> u32;
    /// The most specific zone or gateway entry for the address.
    fn place(&self, addr: &Addr) -> Option<Place>;
    /// Where the attempt leaves or came in; `None`: no link carries anything, and nothing was learned.
    #[inline(always)]
    fn link(&self) -> Option<Link> {
        None
    }
    /// What is known of an address that policy does not name.
    #[inline(always)]
    fn learned(&self, _key: &NearKey) -> Option<Learned> {
        None
    }
    /// The place that this link carries: link-local addresses, and what goes to everybody on it, belong to it.
    #[inline(always)]
    fn link_place(&self, _key: &LinkKey) -> Option<Place> {
        None
    }
    /// Whether the gateway lists this port.
    fn gateway_port(&self, gateway: NameId, port: u16) -> bool;
    /// The service on this port.
    fn service(&self, transport: u8, port: u16) -> Option<Service>;
    /// Whether services are not protected on this address.
    fn exempt(&self, addr: &Addr) -> bool;
    /// The grants that name the address.
    fn grants(&self, addr: &Addr) -> Option<&GrantList>;
    /// The owner's bit in [`Grant::users`]; zero: no receipt names them.
    fn user_bit(&self, uid: u32) -> u64;
    /// The receipt's budget; `None` where it is not known.
    fn budget(&self, serial: Serial) -> Option<Budget>;
    /// Whether budgets are asked here. Where it is not known which flows were
    /// counted they are not: a hook that knows follows.
    #[inline(always)]
    fn charges(&self) -> bool {
        true
    }
    /// Boot time, nanoseconds.
    fn now_ns(&self) -> u64;
    /// Zero. The kernel's tables read it from memory that nobody writes, so
    /// that what is combined with it is unknown to the verifier.
    #[inline(always)]
    fn zero(&self) -> u64 {
        0
    }
    /// The number that was set last. It can only ever change which reason is given.
    fn scratch(&self) -> u32;
    /// Keeps a number.
    fn set_scratch(&self, number: u32);
}

/// Decides one attempt of a marked task or socket.
///
/// Where the address embeds another, the one that is really reached decides;
/// where that is not protected, the address as it was dialled does.
#[inline(always)]
pub fn decide(tables: &impl Tables, subject: &Subject, attempt: &Attempt) -> Decision {
    if is_probe(attempt) {
        return Decision::PROBED;
    }
    let mut decision = Decision::PASS;
    let addr = match protection(tables, attempt, &mut decision) {
        Protection::Grant(addr) => addr,
        Protection::None => return Decision::PASS,
        Protection::Unknown => return Decision::refuse(Reason::GateError, tables.flags()),
    };
    decision.passes |= tables.flags() & PASSES;
    // VERIFIER: as in `Ask::new`; what is found out about these here is found
    // out again after the loop.
    let login = black_box(u64::from(decision.login) ^ tables.zero());
    let passes = black_box(u64::from(decision.passes) ^ tables.zero());
    decision.zone = black_box(decision.zone ^ tables.zero());
    decision.gateway = black_box(decision.gateway ^ tables.zero());
    decision.service = black_box(decision.service ^ tables.zero());
    let ask = Ask::new(tables, subject, attempt, login);
    let serial = match tables.grants(&addr) {
        Some(list) => live_grant(tables, &ask, list),
        None => {
            tables.set_scratch(Reason::NoReceipt as u32);
            None
        }
    };
    decision.login = black_box(login ^ tables.zero()) != 0;
    decision.passes = black_box(passes ^ tables.zero()) as u32;
    match serial {
        Some(serial) => {
            decision.reason = Reason::Receipt;
            decision.serial = serial;
            decision
        }
        None => {
            decision.reason = match Reason::from_code(tables.scratch() as u8) {
                Some(reason) => reason,
                None => Reason::NoReceipt,
            };
            decision.blocked()
        }
    }
}

#[inline(always)]
fn is_probe(attempt: &Attempt) -> bool {
    attempt.port == PROBE_PORT && attempt.transport == transport::TCP && attempt.addr == PROBE
}

/// What protects a destination.
enum Protection {
    /// Nothing.
    None,
    /// This address needs a grant.
    Grant(Addr),
    /// It cannot be found out.
    Unknown,
}

/// What protects the destination, if anything; fills in the grounds.
#[inline(always)]
fn protection(tables: &impl Tables, attempt: &Attempt, decision: &mut Decision) -> Protection {
    let reached = match attempt.addr.embedded() {
        Some(inner) => inner,
        None => attempt.addr,
    };
    // What policy names is never looked for elsewhere.
    let place = match tables.place(&reached) {
        Some(place) => Some(place),
        None => match near(tables, attempt, &reached) {
            Near::Place(place) => Some(place),
            Near::Nothing => None,
            Near::Unknown => return Protection::Unknown,
        },
    };
    if in_place(tables, attempt, place, decision) {
        return Protection::Grant(reached);
    }
    if reached != attempt.addr && in_place(tables, attempt, tables.place(&attempt.addr), decision) {
        return Protection::Grant(attempt.addr);
    }
    if matches!(attempt.kind, Kind::Answer | Kind::Portless) {
        return Protection::None;
    }
    let Some(service) = tables.service(attempt.transport, attempt.port) else { return Protection::None };
    if tables.exempt(&reached) {
        return Protection::None;
    }
    decision.service = service.service;
    decision.login = login_port(attempt);
    decision.passes = observes(service.flags, SERVICE_OBSERVE);
    Protection::Grant(reached)
}

/// Whether the place, a zone or gateway, protects the attempt.
#[inline(always)]
fn in_place(tables: &impl Tables, attempt: &Attempt, place: Option<Place>, decision: &mut Decision) -> bool {
    let Some(place) = place else { return false };
    if place.gateway != 0
        && (place.flags & PLACE_GATEWAY_ALL_PORTS != 0
            || (matches!(attempt.kind, Kind::Portless) && place.flags & PLACE_GATEWAY_OWN == 0)
            || tables.gateway_port(place.gateway, attempt.port))
    {
        decision.gateway = place.gateway;
        decision.zone = place.zone;
        decision.login = true;
        decision.passes = observes(place.flags, PLACE_GATEWAY_OBSERVE);
        return true;
    }
    if place.zone == 0 {
        return false;
    }
    decision.zone = place.zone;
    decision.login = login_port(attempt);
    decision.passes = observes(place.flags, PLACE_ZONE_OBSERVE);
    true
}

#[inline(always)]
fn login_port(attempt: &Attempt) -> bool {
    is_login_port(attempt.transport, attempt.port)
}

/// Whether a connection to this port is made to log in: FTP, SSH, Telnet, LDAP(S), SMB, RDP, VNC, WinRM.
#[must_use]
#[inline(always)]
pub const fn is_login_port(transport: u8, port: u16) -> bool {
    transport == transport::TCP && matches!(port, 21 | 22 | 23 | 389 | 445 | 636 | 3389 | 5900 | 5985 | 5986)
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
