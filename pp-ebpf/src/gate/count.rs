//! Counting: each new flow once against its receipt's budget, exactly, and
//! which flows and far ends a socket is known for.

use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use pp_common::{
    abi::{Budget, Counter, Flow, HeardKey, SOCK_FLOWS, Serial, SockMark, Spent},
    decide::{Attempt, affords},
    dest::Addr,
    trouble::Trouble,
};

use super::{
    event::{count, now_ns},
    log::{Program, warn},
    maps::{BUDGETS, CLAIMED, HEARD, OWN},
    near::netns,
};

/// Takes one flow from the receipt's budget. `false`: there is none left.
#[inline(always)]
pub(crate) fn spend(program: &'static Program, serial: Serial, login: bool) -> bool {
    let Some(value) = BUDGETS.get_ptr_mut(serial) else {
        count(Counter::BudgetErrors);
        warn(program, Trouble::BudgetMissing);
        return false;
    };
    let attempts = u64::from(login);
    // SAFETY: a map value with its lock; VERIFIER: no helper between lock and unlock.
    unsafe {
        bpf_spin_lock(&raw mut (*value).lock);
        let spent = Spent { connections: (*value).connections, attempts: (*value).attempts };
        let budget = Budget { spent, max_connections: (*value).max_connections, max_attempts: (*value).max_attempts };
        let afforded = (*value).serial == serial && affords(&budget, login);
        if afforded {
            (*value).connections = spent.connections + 1;
            (*value).attempts = spent.attempts + attempts;
        }
        bpf_spin_unlock(&raw mut (*value).lock);
        afforded
    }
}

/// The receipt under which this very flow of the socket was counted; zero: none.
#[inline(always)]
pub(crate) fn remembered(sock: &SockMark, attempt: &Attempt) -> Serial {
    for i in 0..SOCK_FLOWS {
        let flow = &sock.flows[i];
        if flow.serial != 0 && flow.port == attempt.port && flow.transport == attempt.transport && flow.addr == attempt.addr {
            return flow.serial;
        }
    }
    0
}

/// Remembers a counted flow in place of the older of the two.
#[inline(always)]
pub(crate) fn remember(sock: &mut SockMark, attempt: &Attempt, serial: Serial) {
    let slot = (sock.next_flow as usize) & (SOCK_FLOWS - 1);
    sock.next_flow = sock.next_flow.wrapping_add(1);
    sock.flows[slot] = Flow { addr: attempt.addr, serial, port: attempt.port, transport: attempt.transport, pad: 0 };
}

/// Forgets that this flow was counted: its socket connects anew.
#[inline(always)]
pub(crate) fn forget(sock: &mut SockMark, attempt: &Attempt) {
    for i in 0..SOCK_FLOWS {
        let flow = &mut sock.flows[i];
        if flow.port == attempt.port && flow.transport == attempt.transport && flow.addr == attempt.addr {
            flow.serial = 0;
        }
    }
}

/// A datagram port of a session, where far ends are heard.
#[derive(Clone, Copy)]
pub(crate) struct Ear {
    pub(crate) session: u64,
    /// The socket, as a plain number: only the namespace that it lies in counts.
    pub(crate) sk: u64,
    /// Zero: it has none yet.
    pub(crate) port: u16,
}

/// Whether this far end has spoken first to that port. By which interface is looked at when the answer leaves.
#[inline(always)]
pub(crate) fn heard_from(ear: Ear, far: &Attempt) -> bool {
    heard_by(ear, far) != 0
}

/// The interface by which this far end has spoken first to that port; zero: it has not, or that is forgotten or cannot be read.
#[inline(always)]
pub(crate) fn heard_by(ear: Ear, far: &Attempt) -> u32 {
    let Some(key) = heard_key(ear, far) else { return 0 };
    match HEARD.get_ptr(&key) {
        // SAFETY: a map value, read at once. One that was recycled meanwhile is some other far end's interface, and the answer must
        // leave by it.
        Some(interface) => unsafe { core::ptr::read_volatile(interface) },
        None => 0,
    }
}

/// Remembers a far end that spoke first, in place of the one that was silent longest. What cannot be remembered is judged as opened by the
/// session when it is answered.
#[inline(always)]
pub(crate) fn hear(ear: Ear, far: &Attempt, interface: u32) {
    if heard_by(ear, far) == interface {
        return;
    }
    let done = match heard_key(ear, far) {
        Some(key) => HEARD.insert(&key, &interface, 0).is_ok(),
        None => false,
    };
    if !done {
        count(Counter::ReadErrors);
    }
}

#[inline(always)]
fn heard_key(ear: Ear, far: &Attempt) -> Option<HeardKey> {
    if ear.port == 0 {
        return None;
    }
    let netns = netns(ear.sk);
    let key = HeardKey {
        session: ear.session,
        addr: far.addr,
        netns,
        port: far.port,
        near_port: ear.port,
        transport: far.transport,
        pad: [0; 7],
    };
    if netns == 0 { None } else { Some(key) }
}

/// Notes that a session sends from an address that is not the host's: of a container, or forged. `false`: there is no room to.
#[inline(always)]
pub(crate) fn claim(program: &'static Program, near: &Addr) -> bool {
    if OWN.get_ptr(near).is_some() {
        return true;
    }
    let now = now_ns();
    match CLAIMED.get_ptr_mut(near) {
        Some(last) => {
            // SAFETY: a map value; another processor's time is as good.
            unsafe { core::ptr::write_volatile(last, now) };
            true
        }
        None if CLAIMED.insert(near, &now, 0).is_ok() => true,
        None => {
            warn(program, Trouble::ClaimedFull);
            false
        }
    }
}

/// Whether a session sends from this address, which is not the host's.
#[inline(always)]
pub(crate) fn is_claimed(far: &Addr) -> bool {
    CLAIMED.get_ptr(far).is_some()
}
