//! The kernel's tables in plain collections, so that `decide()` can answer what a policy would do.

use super::KernelTables;
use crate::net::Prefix;
use pp_common::abi::{Budget, CONTROL_OBSERVE, Grant, GrantList, MAX_GRANTS_PER_PREFIX, NameId, Place, Serial, Service, Spent};
use pp_common::decide::Tables;
use pp_common::dest::Addr;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};

/// [`KernelTables`] at one instant, with what is used of each receipt.
#[derive(Debug)]
pub(crate) struct HostTables {
    flags: u32,
    now_ns: u64,
    places: Vec<(Prefix, Place)>,
    gateway_ports: HashSet<(NameId, u16)>,
    services: HashMap<(u8, u16), Service>,
    exempt: Vec<Prefix>,
    grants: Vec<(Prefix, GrantList)>,
    user_bits: HashMap<u32, u64>,
    budgets: HashMap<Serial, Budget>,
    scratch: AtomicU32,
}

impl HostTables {
    /// These tables at `now_ns` (boot time). A receipt that is not in `spent` is unused.
    #[must_use]
    pub(crate) fn new(tables: &KernelTables, now_ns: u64, spent: HashMap<Serial, Spent>) -> Self {
        let budget = |(serial, max_connections, max_attempts)| {
            let spent = spent.get(&serial).copied().unwrap_or_default();
            (serial, Budget { spent, max_connections, max_attempts })
        };
        Self {
            flags: if tables.observe { CONTROL_OBSERVE } else { 0 },
            now_ns,
            places: tables.places.clone(),
            gateway_ports: tables.gateway_ports.iter().copied().collect(),
            services: tables.services.iter().copied().collect(),
            exempt: tables.exempt.clone(),
            grants: tables.grants.iter().map(|(prefix, list)| (*prefix, grant_list(list))).collect(),
            user_bits: tables.user_bits.iter().copied().collect(),
            budgets: tables.budgets.iter().copied().map(budget).collect(),
            scratch: AtomicU32::new(0),
        }
    }
}

/// The kernel's form of a list of grants. [`super::compile`] refuses lists that are longer.
#[must_use]
pub(crate) fn grant_list(grants: &[Grant]) -> GrantList {
    let mut list = GrantList { len: 0, pad: 0, grants: [Grant::default(); MAX_GRANTS_PER_PREFIX] };
    for (slot, grant) in list.grants.iter_mut().zip(grants) {
        *slot = *grant;
        list.len += 1;
    }
    list
}

/// The entry with the longest prefix that contains the address.
fn longest<'a, T>(entries: &'a [(Prefix, T)], addr: &Addr) -> Option<&'a T> {
    let matching = entries.iter().filter(|(prefix, _)| prefix.contains(addr));
    matching.max_by_key(|(prefix, _)| prefix.len).map(|(_, value)| value)
}

impl Tables for HostTables {
    fn flags(&self) -> u32 {
        self.flags
    }

    fn place(&self, addr: &Addr) -> Option<Place> {
        longest(&self.places, addr).copied()
    }

    fn gateway_port(&self, gateway: NameId, port: u16) -> bool {
        self.gateway_ports.contains(&(gateway, port))
    }

    fn service(&self, transport: u8, port: u16) -> Option<Service> {
        self.services.get(&(transport, port)).copied()
    }

    fn exempt(&self, addr: &Addr) -> bool {
        self.exempt.iter().any(|prefix| prefix.contains(addr))
    }

    fn grants(&self, addr: &Addr) -> Option<&GrantList> {
        longest(&self.grants, addr)
    }

    fn user_bit(&self, uid: u32) -> u64 {
        self.user_bits.get(&uid).copied().unwrap_or_default()
    }

    fn budget(&self, serial: Serial) -> Option<Budget> {
        self.budgets.get(&serial).copied()
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn set_scratch(&self, number: u32) {
        self.scratch.store(number, Ordering::Relaxed);
    }

    fn scratch(&self) -> u32 {
        self.scratch.load(Ordering::Relaxed)
    }
}
