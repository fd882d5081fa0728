//! Budgets: each new flow is charged once to its receipt, exactly; a socket's mark knows which flows were.

use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use pp_common::{
    abi::{Budget, Counter, Flow, SOCK_FLOWS, Serial, SockMark, Spent},
    decide::{Attempt, affords},
    trouble::Trouble,
};

use super::{
    event::count,
    log::{Program, warn},
    maps::BUDGETS,
};

/// Charges one flow to the receipt's budget. `false`: nothing is left of it.
#[inline(always)]
pub(crate) fn charge(program: &'static Program, serial: Serial, login: bool) -> bool {
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

/// The receipt under which this very flow of the socket was charged before; zero: none.
#[inline(always)]
pub(crate) fn charged_under(sock: &SockMark, attempt: &Attempt) -> Serial {
    for i in 0..SOCK_FLOWS {
        let flow = &sock.flows[i];
        if flow.serial != 0 && flow.port == attempt.port && flow.transport == attempt.transport && flow.addr == attempt.addr {
            return flow.serial;
        }
    }
    0
}

/// Notes a charged flow in place of the older of the two.
#[inline(always)]
pub(crate) fn note_charge(sock: &mut SockMark, attempt: &Attempt, serial: Serial) {
    let slot = (sock.next_flow as usize) & (SOCK_FLOWS - 1);
    sock.next_flow = sock.next_flow.wrapping_add(1);
    sock.flows[slot] = Flow { addr: attempt.addr, serial, port: attempt.port, transport: attempt.transport, pad: 0 };
}

/// Drops the note that this flow was charged: its socket connects anew.
#[inline(always)]
pub(crate) fn clear_charge(sock: &mut SockMark, attempt: &Attempt) {
    for i in 0..SOCK_FLOWS {
        let flow = &mut sock.flows[i];
        if flow.port == attempt.port && flow.transport == attempt.transport && flow.addr == attempt.addr {
            flow.serial = 0;
        }
    }
}
