//! The maps in force, as [`decide`](pp_common::decide::decide) reads them in user space. So `check`, `why` and the ending of flows use the
//! same tables as the programs.

use std::cell::{Cell, OnceCell};

use aya::maps::lpm_trie::Key;
use pp_common::{
    abi::{
        Budget, GatewayPortKey, GrantList, Learned, LinkKey, NameId, NearKey, PREFIX_HEAD_BITS, Place, PrefixKey, Serial, Service,
        ServiceKey, Spent, UserKey,
    },
    decide::{Link, Tables},
    dest::Addr,
};

use super::{maps::Maps, off};
use crate::os::host;

/// One reading of the maps for one decision.
pub(super) struct Live<'a> {
    maps: &'a Maps,
    generation: u32,
    flags: u32,
    lists: [OnceCell<Box<GrantList>>; 2],
    scratch: Cell<u32>,
    link: Option<Link>,
}

impl<'a> Live<'a> {
    pub(super) fn new(maps: &'a Maps) -> Self {
        let control = maps.control().unwrap_or_default();
        Self {
            maps,
            generation: control.generation,
            flags: control.flags | off::flag(maps),
            lists: [OnceCell::new(), OnceCell::new()],
            scratch: Cell::new(0),
            link: None,
        }
    }

    /// Decides for attempts that leave through this link.
    pub(super) fn on(self, link: Link) -> Self {
        Self { link: Some(link), ..self }
    }

    fn prefix(&self, addr: &Addr) -> Key<PrefixKey> {
        let data = PrefixKey { generation: self.generation, pad: 0, addr: *addr };
        Key::new(PREFIX_HEAD_BITS + 128, data)
    }
}

impl Tables for Live<'_> {
    fn flags(&self) -> u32 {
        self.flags
    }

    fn place(&self, addr: &Addr) -> Option<Place> {
        self.maps.places.get(&self.prefix(addr))
    }

    fn link(&self) -> Option<Link> {
        self.link
    }

    fn learned(&self, key: &NearKey) -> Option<Learned> {
        self.maps.learned.lock().get(key, 0).ok()
    }

    fn link_place(&self, key: &LinkKey) -> Option<Place> {
        self.maps.links.lock().get(key, 0).ok()
    }

    fn gateway_port(&self, gateway: NameId, port: u16) -> bool {
        let key = GatewayPortKey { gateway, generation: self.generation, port, pad: 0 };
        self.maps.gateway_ports.lock().get(&key, 0).ok().is_some()
    }

    fn service(&self, transport: u8, port: u16) -> Option<Service> {
        let key = ServiceKey { generation: self.generation, port, transport, pad: 0 };
        self.maps.services.lock().get(&key, 0).ok()
    }

    fn exempt(&self, addr: &Addr) -> bool {
        self.maps.exempt.get(&self.prefix(addr)).is_some()
    }

    fn grants(&self, addr: &Addr) -> Option<&GrantList> {
        let list = self.maps.grants.get(&self.prefix(addr))?;
        let [first, second] = &self.lists;
        let cell = if first.get().is_none() { first } else { second };
        Some(cell.get_or_init(|| Box::new(list)))
    }

    fn user_bit(&self, uid: u32) -> u64 {
        let key = UserKey { generation: self.generation, uid };
        self.maps.user_bits.lock().get(&key, 0).ok().unwrap_or_default()
    }

    fn budget(&self, serial: Serial) -> Option<Budget> {
        let value = self.maps.budgets.lock().get(&serial, 0).ok()?;
        (value.serial == serial).then_some(Budget {
            spent: Spent { connections: value.connections, attempts: value.attempts },
            max_connections: value.max_connections,
            max_attempts: value.max_attempts,
        })
    }

    fn scratch(&self) -> u32 {
        self.scratch.get()
    }

    fn set_scratch(&self, number: u32) {
        self.scratch.set(number);
    }

    fn now_ns(&self) -> u64 {
        // A clock that cannot be read ends every grant.
        host::boot_ns().unwrap_or(u64::MAX)
    }
}
