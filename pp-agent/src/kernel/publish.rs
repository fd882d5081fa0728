//! Publishes tables. The next generation is written in addition to the one in force, then one word switches over. The old generation is
//! removed once no program can be reading it. So no program ever sees a mix of both.
//!
//! Only the owner of the [`Publisher`] writes that word, so no lock is needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use aya::maps::lpm_trie::Key;
use pp_common::abi::{
    BudgetValue, CONTROL_LOG, CONTROL_NEAR, CONTROL_OBSERVE, Control, DFA_STATES, DfaClasses, DfaRow, GRANT_REVOKED, GatewayPortKey,
    Learned, LinkKey, MAX_RULES, NameId, NearKey, PREFIX_HEAD_BITS, Place, PrefixKey, RuleTarget, Serial, ServiceKey, UserKey,
};
use pp_common::dest::Addr;
use pp_common::tools::TOOL_STATES;
use pp_common::turns::{LIMIT_OF_GATEWAY, LIMIT_OF_RECEIPT, LimitKey, Limits};

use super::{Gate, KernelError, maps::Maps, near, sys};
use crate::matcher::Table;
use crate::net::Prefix;
use crate::policy::{Counts, KernelTables, grant_list};

/// Changes what is in force. There is one for each gate.
pub(crate) struct Publisher {
    gate: Arc<Gate>,
}

impl Publisher {
    /// The publisher of a gate. It must be the only one.
    #[must_use]
    pub(crate) fn of(gate: Arc<Gate>) -> Self {
        Self { gate }
    }

    /// Publishes tables, all or nothing. Returns their generation.
    ///
    /// # Errors
    /// They do not fit, or the kernel refused an entry. The old tables stay in force, apart from cgroup rules: new ones are added.
    pub(crate) fn apply(&mut self, tables: &KernelTables) -> Result<u32, KernelError> {
        publish(&self.gate.maps, tables)
    }

    /// Revokes a receipt in the tables in force. Where even that finds no room, every grant for the same network is removed.
    ///
    /// # Errors
    /// The kernel did not remove them either.
    pub(crate) fn revoke(&mut self, serial: Serial) -> Result<(), KernelError> {
        let maps = &self.gate.maps;
        let generation = maps.control()?.generation;
        for key in maps.grants.keys()?.into_iter().filter(|key| key.data().generation == generation) {
            let Some(mut list) = maps.grants.get(&key) else {
                maps.grants.remove(&key)?;
                continue;
            };
            let of_receipt = list.grants.iter_mut().filter(|grant| grant.serial == serial);
            if of_receipt.map(|grant| grant.flags |= GRANT_REVOKED).count() == 0 {
                continue;
            }
            if let Err(error) = maps.grants.insert(&key, list) {
                tracing::error!("{error}; all receipts for the same network are closed until new tables are published");
                maps.grants.remove(&key)?;
            }
        }
        Ok(())
    }

    /// Updates cgroup and unit rules with the cgroups that exist now.
    ///
    /// # Errors
    /// The kernel refused an entry.
    pub(crate) fn set_cgroups(&mut self, wanted: &[(u64, NameId)]) -> Result<(), KernelError> {
        add_cgroups(&self.gate.maps, wanted)?;
        remove_cgroups(&self.gate.maps, wanted)
    }

    /// Updates links and learned addresses.
    ///
    /// # Errors
    /// The kernel refused an entry. Entries before it are in force.
    pub(crate) fn set_near(
        &mut self,
        links: &BTreeMap<LinkKey, Place>,
        learned: impl Iterator<Item = (NearKey, Learned)>,
    ) -> Result<(), KernelError> {
        near::write_all(&self.gate.maps, links, learned)
    }

    /// Stops the programs from writing lines about what they block, because nothing reads them any more.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub(crate) fn end_lines(&mut self) -> Result<(), KernelError> {
        self.gate.maps.set_flag(CONTROL_LOG, false)
    }

    /// Ends the overflow state once the task table has room again, unless a process that found no room still exists.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub(crate) fn clear_overflow(&mut self) -> Result<(), KernelError> {
        let maps = &self.gate.maps;
        if !maps.doomed.entries()?.is_empty() {
            return Ok(());
        }
        let control = maps.control()?;
        maps.set_control(Control { overflow: 0, ..control })?;
        maps.keep_overflow()
    }
}

fn publish(maps: &Maps, tables: &KernelTables) -> Result<u32, KernelError> {
    let old = maps.control()?;
    let generation = old.generation.wrapping_add(1);
    // Remains of a publication that was interrupted.
    maps.sweep(old.generation)?;
    write(maps, tables, generation).inspect_err(|_| {
        if let Err(error) = maps.sweep(old.generation) {
            tracing::warn!("{error}");
        }
    })?;
    let now = maps.control()?;
    let flags = if tables.observe { CONTROL_OBSERVE } else { 0 } | now.flags & (CONTROL_NEAR | CONTROL_LOG);
    let overflow = now.overflow;
    let daemon = std::process::id();
    maps.set_control(Control { generation, flags, daemon, overflow })?;
    // The new tables are in force from here on, so an error is none of the publication. The next one removes what is left.
    let overflow = maps.keep_overflow();
    sys::grace_period();
    let left = [overflow, maps.sweep(generation), remove_cgroups(maps, &tables.identity.cgroups), remove_receipts(maps, tables)];
    for error in left.into_iter().filter_map(Result::err) {
        tracing::error!("behind generation {generation}: {error}");
    }
    Ok(generation)
}

fn prefix_key(generation: u32, prefix: &Prefix) -> Key<PrefixKey> {
    let data = PrefixKey { generation, pad: 0, addr: Addr::v6(prefix.addr) };
    Key::new(PREFIX_HEAD_BITS + u32::from(prefix.len), data)
}

fn write(maps: &Maps, tables: &KernelTables, generation: u32) -> Result<(), KernelError> {
    for (prefix, place) in &tables.places {
        let key = prefix_key(generation, prefix);
        maps.places.insert(&key, place)?;
    }
    for (gateway, port) in &tables.gateway_ports {
        let key = GatewayPortKey { gateway: *gateway, generation, port: *port, pad: 0 };
        maps.gateway_ports.insert(&key, &1)?;
    }
    for ((transport, port), service) in &tables.services {
        let key = ServiceKey { generation, port: *port, transport: *transport, pad: 0 };
        maps.services.insert(&key, service)?;
    }
    for prefix in &tables.exempt {
        let key = prefix_key(generation, prefix);
        maps.exempt.insert(&key, 1)?;
    }
    for (prefix, network) in &tables.judged_networks {
        let key = prefix_key(generation, prefix);
        maps.judged_networks.insert(&key, network)?;
    }
    maps.limits.set(generation & 1, tables.limits)?;
    write_receipts(maps, tables, generation)?;
    for (prefix, grants) in &tables.grants {
        let key = prefix_key(generation, prefix);
        let list = grant_list(grants);
        maps.grants.insert(&key, list)?;
    }
    write_limits(maps, tables, generation)?;
    write_tools(maps, &tables.tools.table, generation)?;
    write_identity(maps, tables, generation)
}

fn write_limits(maps: &Maps, tables: &KernelTables, generation: u32) -> Result<(), KernelError> {
    let of_gateways = tables.gateway_limits.iter().map(|(gateway, limits)| (*gateway, LIMIT_OF_GATEWAY, *limits));
    let own = |max_turns: u32| Limits { max_turns, ..Limits::NONE };
    let of_receipts = tables.receipt_turns.iter().map(|(serial, turns)| (u64::from(*serial), LIMIT_OF_RECEIPT, own(*turns)));
    for (of, kind, limits) in of_gateways.chain(of_receipts) {
        let key = LimitKey { of, generation, kind };
        maps.turn_limits.insert(&key, &limits)?;
    }
    Ok(())
}

/// Writes budgets and users. They come before grants, so that no grant names a receipt without a budget.
fn write_receipts(maps: &Maps, tables: &KernelTables, generation: u32) -> Result<(), KernelError> {
    for (serial, max_connections, max_attempts) in tables.budgets.iter().copied() {
        let value = BudgetValue { serial, max_connections, max_attempts, ..BudgetValue::default() };
        // An existing count is kept, so that restarts do not reset it.
        let _made = maps.budgets.insert_new(&serial, &value)?;
    }
    for (uid, bit) in &tables.user_bits {
        let key = UserKey { generation, uid: *uid };
        maps.user_bits.insert(&key, bit)?;
    }
    Ok(())
}

fn write_tools(maps: &Maps, Table { classes, rows, ends }: &Table, generation: u32) -> Result<(), KernelError> {
    let half = generation & 1;
    for (index, (next, end)) in (half * to_u32(TOOL_STATES)..).zip(rows.iter().zip(ends)) {
        maps.tool_rows.set(index, DfaRow { next: *next })?;
        maps.tool_ends.set(index, end)?;
    }
    maps.tool_bytes.set(half, DfaClasses { class: *classes })
}

fn write_identity(maps: &Maps, tables: &KernelTables, generation: u32) -> Result<(), KernelError> {
    let identity = &tables.identity;
    let half = generation & 1;
    for (index, next) in (half * to_u32(DFA_STATES)..).zip(&identity.table.rows) {
        maps.dfa_rows.set(index, DfaRow { next: *next })?;
    }
    maps.dfa_bytes.set(half, DfaClasses { class: identity.table.classes })?;
    for (index, agent) in (half * to_u32(MAX_RULES)..).zip(&identity.targets) {
        let target = RuleTarget { agent: *agent };
        maps.rules.set(index, target)?;
    }
    for (uid, agent) in &identity.uids {
        let key = UserKey { generation, uid: *uid };
        maps.users.insert(&key, agent)?;
    }
    add_cgroups(maps, &identity.cgroups)
}

/// Writes cgroup rules. They have no generation, since a cgroup id means the same in each. So others are removed once these are in force.
fn add_cgroups(maps: &Maps, wanted: &[(u64, NameId)]) -> Result<(), KernelError> {
    wanted.iter().try_for_each(|(id, agent)| maps.cgroups.insert(id, agent))
}

fn remove_cgroups(maps: &Maps, wanted: &[(u64, NameId)]) -> Result<(), KernelError> {
    let over = maps.cgroups.keys()?.into_iter().filter(|id| !wanted.iter().any(|(kept, _)| kept == id));
    over.into_iter().try_for_each(|id| maps.cgroups.remove(&id))
}

/// Removes the budgets of receipts that are not known any more.
fn remove_receipts(maps: &Maps, tables: &KernelTables) -> Result<(), KernelError> {
    let mut known: std::collections::HashSet<u32> = tables.budgets.iter().map(|(serial, ..)| *serial).collect();
    match &tables.counts {
        Counts::All => return Ok(()),
        Counts::Of(serials) => known.extend(serials),
    }
    let over = maps.budgets.keys()?.into_iter().filter(|serial| !known.contains(serial));
    over.into_iter().try_for_each(|serial| maps.budgets.remove(&serial))
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
