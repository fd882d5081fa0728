//! The grants that name an address: the one that allows the attempt, or which came nearest and why it does not.

#![expect(
    clippy::cast_possible_truncation,
    reason = "a loop counter below 64 and a code that was stored as one byte; the kernel has no TryFrom to spare"
)]

use core::hint::black_box;

use super::{Attempt, Decision, Kind, Reason, Subject, Tables};
use crate::abi::{Budget, GRANT_EXHAUSTED, GRANT_LOGIN, GRANT_REVOKED, Grant, GrantList, MAX_GRANTS_PER_PREFIX, NameId, Serial};
use crate::dest::Addr;

/// What is asked of each grant: the attempt as numbers that are compared the
/// same way whatever its kind.
pub(super) struct Ask {
    session: u64,
    agent: NameId,
    user: u64,
    /// The grant's range must begin at or before this port ...
    first: u64,
    /// ... and end at or after this one.
    last: u64,
    transport: u64,
    /// The transport need not be the grant's.
    any_transport: u64,
    /// One: a login, which spends an attempt.
    login: u64,
    /// One: nothing is spent.
    free: u64,
    counted: Serial,
    now_ns: u64,
}

impl Ask {
    #[inline(always)]
    pub(super) fn new(tables: &impl Tables, subject: &Subject, attempt: &Attempt, login: u64) -> Self {
        let port = u64::from(attempt.port);
        let (first, last, any_transport, free) = match attempt.kind {
            Kind::Open | Kind::Answer => (port, port, 0, 0),
            Kind::UdpConnect => (u64::from(u16::MAX), 0, 1, 1),
            Kind::Portless => (0, u64::from(u16::MAX), 1, 0),
        };
        // VERIFIER: combined with a zero it does not know, so that the loop
        // over the grants is followed once and not for every way to get here.
        let zero = tables.zero();
        Self {
            session: subject.session,
            agent: subject.agent,
            user: tables.user_bit(subject.owner),
            first: black_box(first ^ zero),
            last: black_box(last ^ zero),
            transport: u64::from(attempt.transport),
            any_transport: black_box(any_transport ^ zero),
            // A UDP connect is no login yet.
            login: black_box((login & (free ^ 1)) ^ zero),
            free: black_box(free ^ zero),
            counted: attempt.counted,
            now_ns: tables.now_ns(),
        }
    }
}

/// Looks for a live grant. Where there is none, the nearest reason is kept
/// in the scratch number: in a register it would, for the verifier, multiply the loop's
/// iterations by the reasons found before.
#[inline(always)]
pub(super) fn live_grant(tables: &impl Tables, ask: &Ask, list: &GrantList) -> Option<Serial> {
    tables.set_scratch(Reason::NoReceipt as u32);
    let mut i = 0;
    while i < MAX_GRANTS_PER_PREFIX {
        if i as u32 >= list.len {
            break;
        }
        let grant = &list.grants[i];
        // VERIFIER: loaded here and not after the match, where the pointer into
        // the list would set each iteration's way out apart from the others'.
        let serial = black_box(grant.serial);
        let reason = judge_grant(tables, ask, grant);
        if matches!(reason, Reason::Receipt) {
            return Some(serial);
        }
        if reason as u32 > tables.scratch() {
            tables.set_scratch(reason as u32);
        }
        i += 1;
    }
    None
}

/// The receipt that came nearest to allowing an attempt that was refused for
/// `reason`. The kernel does not need it; events and `check` name it.
#[must_use]
pub fn nearest_receipt(tables: &impl Tables, subject: &Subject, attempt: &Attempt, decision: &Decision) -> Option<Serial> {
    let ask = Ask::new(tables, subject, attempt, u64::from(decision.login));
    let found = |addr: &Addr| {
        let list = tables.grants(addr)?;
        let used = usize::try_from(list.len).ok()?.min(MAX_GRANTS_PER_PREFIX);
        list.grants[..used].iter().find(|grant| judge_grant(tables, &ask, grant) == decision.reason).map(|grant| grant.serial)
    };
    attempt.addr.embedded().and_then(|inner| found(&inner)).or_else(|| found(&attempt.addr))
}

/// [`Reason::Receipt`], or why this grant does not allow the attempt.
#[inline(always)]
fn judge_grant(tables: &impl Tables, ask: &Ask, grant: &Grant) -> Reason {
    // VERIFIER: combined anew for each grant, so that what a branch here finds
    // out about them is not carried into the checking of the next.
    let zero = black_box(tables.zero());
    let any_transport = black_box(ask.any_transport ^ zero) != 0;
    let login = black_box(ask.login ^ zero) != 0;
    let free = black_box(ask.free ^ zero) != 0;
    if grant.agent != ask.agent || (grant.session != 0 && grant.session != ask.session) {
        return Reason::ReceiptOtherAgent;
    }
    if grant.users != u64::MAX && grant.users & ask.user == 0 {
        return Reason::ReceiptOtherUser;
    }
    if u64::from(grant.transport) != ask.transport && !any_transport {
        return Reason::ReceiptOtherPort;
    }
    if u64::from(grant.port_first) > ask.first || u64::from(grant.port_last) < ask.last {
        return Reason::ReceiptOtherPort;
    }
    if grant.flags & GRANT_REVOKED != 0 {
        return Reason::ReceiptRevoked;
    }
    if ask.now_ns >= grant.until_ns {
        return Reason::ReceiptExpired;
    }
    if ask.now_ns < grant.from_ns {
        return Reason::ReceiptNotYet;
    }
    if login && grant.flags & GRANT_LOGIN == 0 {
        return Reason::CredentialScope;
    }
    if !tables.charges() || free || ask.counted == grant.serial {
        return Reason::Receipt;
    }
    if grant.flags & GRANT_EXHAUSTED != 0 {
        return Reason::ReceiptExhausted;
    }
    match tables.budget(grant.serial) {
        Some(budget) if affords(&budget, login) => Reason::Receipt,
        Some(_) | None => Reason::ReceiptExhausted,
    }
}

/// Whether this budget has one more new flow.
#[must_use]
#[inline(always)]
pub fn affords(budget: &Budget, login: bool) -> bool {
    (budget.max_connections == 0 || budget.spent.connections < budget.max_connections)
        && (!login || budget.spent.attempts < budget.max_attempts)
}
