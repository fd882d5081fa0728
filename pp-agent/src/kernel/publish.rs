//! Publishing tables: the next generation is written beside the one in force,
//! one word switches over, and the old one is removed once no program can be
//! reading it. At no moment does a program see half of each.

use aya::maps::{MapError, lpm_trie::Key};
use pp_common::abi::{
    BudgetValue, CONTROL_NEAR, CONTROL_OBSERVE, Control, DFA_CLASSES, DFA_STATES, DfaClasses, DfaRow, GatewayPortKey, MAX_CGROUPS,
    MAX_EXEMPT, MAX_GATEWAY_PORTS, MAX_GRANT_PREFIXES, MAX_PLACES, MAX_RECEIPTS, MAX_RULES, MAX_SERVICES, MAX_USER_BITS, MAX_USERS,
    PREFIX_HEAD_BITS, PrefixKey, RuleTarget, ServiceKey, UserKey,
};
use pp_common::behaviour::MAX_GROUNDS;
use pp_common::dest::Addr;
use pp_common::tools::TOOL_STATES;
use pp_common::turns::{LIMIT_OF_GATEWAY, LIMIT_OF_RECEIPT, LimitKey, Limits, MAX_TURN_LIMITS};

use super::{
    KernelError,
    maps::{Maps, entries, map_error},
    sys,
};
use crate::net::Prefix;
use crate::policy::{Counts, KernelTables, grant_list};
use crate::tools::ToolTables;

const ANY: u64 = 0;
const NO_EXIST: u64 = 1;

pub(super) fn publish(maps: &Maps, tables: &KernelTables) -> Result<u32, KernelError> {
    fits(tables)?;
    let old = maps.control()?;
    let generation = old.generation.wrapping_add(1);
    // Leftovers of a publication that was cut short.
    sweep(maps, old.generation)?;
    write(maps, tables, generation).inspect_err(|_| {
        if let Err(error) = sweep(maps, old.generation) {
            tracing::warn!("{error}");
        }
    })?;
    let now = maps.control()?;
    let flags = if tables.observe { CONTROL_OBSERVE } else { 0 } | now.flags & CONTROL_NEAR;
    let overflow = now.overflow;
    let daemon = std::process::id();
    maps.set_control(Control { generation, flags, daemon, overflow })?;
    maps.keep_overflow()?;
    sys::grace_period();
    sweep(maps, generation)?;
    forget_receipts(maps, tables)?;
    Ok(generation)
}

fn fits(tables: &KernelTables) -> Result<(), KernelError> {
    let halves = |most: u32| most as usize / 2;
    let identity = &tables.identity;
    for (map, room, needed) in [
        ("PLACES", halves(MAX_PLACES), tables.places.len()),
        ("GATEWAY_PORTS", halves(MAX_GATEWAY_PORTS), tables.gateway_ports.len()),
        ("SERVICES", halves(MAX_SERVICES), tables.services.len()),
        ("EXEMPT", halves(MAX_EXEMPT), tables.exempt.len()),
        ("GROUNDS", halves(MAX_GROUNDS), tables.grounds.len()),
        ("GRANTS", halves(MAX_GRANT_PREFIXES), tables.grants.len()),
        ("BUDGETS", MAX_RECEIPTS as usize, tables.budgets.len()),
        ("USER_BITS", MAX_USER_BITS, tables.user_bits.len()),
        ("TURN_LIMITS", halves(MAX_TURN_LIMITS), tables.gateway_limits.len() + tables.receipt_turns.len()),
        ("DFA_ROWS", DFA_STATES, identity.rows.len()),
        ("TOOL_ROWS", TOOL_STATES, tables.tools.rows.len()),
        ("RULES", MAX_RULES, identity.targets.len()),
        ("USERS", halves(MAX_USERS), identity.uids.len()),
        ("CGROUPS", MAX_CGROUPS as usize, identity.cgroups.len()),
    ] {
        if needed > room {
            return Err(KernelError::Full { map, room, needed });
        }
    }
    Ok(())
}

fn prefix_key(generation: u32, prefix: &Prefix) -> Key<PrefixKey> {
    let data = PrefixKey { generation, pad: 0, addr: Addr::v6(prefix.addr) };
    Key::new(PREFIX_HEAD_BITS + u32::from(prefix.len), data)
}

fn write(maps: &Maps, tables: &KernelTables, generation: u32) -> Result<(), KernelError> {
    let error = |map| move |error: MapError| map_error(map, &error);
    for (prefix, place) in &tables.places {
        let key = prefix_key(generation, prefix);
        maps.places.lock().insert(&key, place, ANY).map_err(error("PLACES"))?;
    }
    for (gateway, port) in &tables.gateway_ports {
        let key = GatewayPortKey { gateway: *gateway, generation, port: *port, pad: 0 };
        maps.gateway_ports.lock().insert(key, 1, ANY).map_err(error("GATEWAY_PORTS"))?;
    }
    for ((transport, port), service) in &tables.services {
        let key = ServiceKey { generation, port: *port, transport: *transport, pad: 0 };
        maps.services.lock().insert(key, service, ANY).map_err(error("SERVICES"))?;
    }
    for prefix in &tables.exempt {
        let key = prefix_key(generation, prefix);
        maps.exempt.lock().insert(&key, 1, ANY).map_err(error("EXEMPT"))?;
    }
    for (prefix, ground) in &tables.grounds {
        let key = prefix_key(generation, prefix);
        maps.grounds.lock().insert(&key, ground, ANY).map_err(error("GROUNDS"))?;
    }
    maps.limits.lock().set(generation & 1, tables.limits, ANY).map_err(error("LIMITS"))?;
    write_receipts(maps, tables, generation)?;
    for (prefix, grants) in &tables.grants {
        let key = prefix_key(generation, prefix);
        let list = grant_list(grants);
        maps.grants.lock().insert(&key, list, ANY).map_err(error("GRANTS"))?;
    }
    write_limits(maps, tables, generation)?;
    write_tools(maps, &tables.tools, generation)?;
    write_identity(maps, tables, generation)
}

fn write_limits(maps: &Maps, tables: &KernelTables, generation: u32) -> Result<(), KernelError> {
    let of_gateways = tables.gateway_limits.iter().map(|(gateway, limits)| (*gateway, LIMIT_OF_GATEWAY, *limits));
    let own = |max_turns: u32| Limits { max_turns, ..Limits::NONE };
    let of_receipts = tables.receipt_turns.iter().map(|(serial, turns)| (u64::from(*serial), LIMIT_OF_RECEIPT, own(*turns)));
    for (of, kind, limits) in of_gateways.chain(of_receipts) {
        let key = LimitKey { of, generation, kind };
        maps.turn_limits.lock().insert(key, limits, ANY).map_err(|error| map_error("TURN_LIMITS", &error))?;
    }
    Ok(())
}

/// Budgets and users before grants: nothing names a receipt that is not there.
fn write_receipts(maps: &Maps, tables: &KernelTables, generation: u32) -> Result<(), KernelError> {
    let error = |map| move |error: MapError| map_error(map, &error);
    for (serial, max_connections, max_attempts) in tables.budgets.iter().copied() {
        let value = BudgetValue { serial, max_connections, max_attempts, ..BudgetValue::default() };
        // An existing count is kept: a receipt is counted once, over every restart.
        match maps.budgets.lock().insert(serial, value, NO_EXIST) {
            Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::EEXIST) => {}
            other => other.map_err(error("BUDGETS"))?,
        }
    }
    for (uid, bit) in &tables.user_bits {
        let key = UserKey { generation, uid: *uid };
        maps.user_bits.lock().insert(key, bit, ANY).map_err(error("USER_BITS"))?;
    }
    Ok(())
}

fn write_tools(maps: &Maps, tools: &ToolTables, generation: u32) -> Result<(), KernelError> {
    let error = |map| move |error: MapError| map_error(map, &error);
    let half = generation & 1;
    let first = half * to_u32(TOOL_STATES);
    for (index, (next, end)) in (first..).zip(tools.rows.iter().zip(&tools.ends)) {
        maps.tool_rows.lock().set(index, DfaRow { next: *next }, ANY).map_err(error("TOOL_ROWS"))?;
        maps.tool_ends.lock().set(index, end, ANY).map_err(error("TOOL_ENDS"))?;
    }
    let classes = DfaClasses { class: tools.classes };
    maps.tool_bytes.lock().set(half, classes, ANY).map_err(error("TOOL_BYTES"))
}

fn write_identity(maps: &Maps, tables: &KernelTables, generation: u32) -> Result<(), KernelError> {
    let error = |map| move |error: MapError| map_error(map, &error);
    let identity = &tables.identity;
    let half = generation & 1;
    let rows = half * to_u32(DFA_STATES);
    for (index, next) in (rows..).zip(&identity.rows) {
        let row = DfaRow { next: *next };
        maps.dfa_rows.lock().set(index, row, ANY).map_err(error("DFA_ROWS"))?;
    }
    if identity.rows.len() < 2 {
        // No rule at all: the start state leads nowhere.
        for index in rows..rows + 2 {
            let row = DfaRow { next: [0; DFA_CLASSES] };
            maps.dfa_rows.lock().set(index, row, ANY).map_err(error("DFA_ROWS"))?;
        }
    }
    let classes = DfaClasses { class: identity.classes };
    maps.dfa_bytes.lock().set(half, classes, ANY).map_err(error("DFA_BYTES"))?;
    for (index, agent) in (half * to_u32(MAX_RULES)..).zip(&identity.targets) {
        let target = RuleTarget { agent: *agent };
        maps.rules.lock().set(index, target, ANY).map_err(error("RULES"))?;
    }
    for (uid, agent) in &identity.uids {
        let key = UserKey { generation, uid: *uid };
        maps.users.lock().insert(key, agent, ANY).map_err(error("USERS"))?;
    }
    write_cgroups(maps, &identity.cgroups)
}

/// Cgroup rules have no generation: a cgroup id means the same in each.
pub(super) fn write_cgroups(maps: &Maps, wanted: &[(u64, pp_common::abi::NameId)]) -> Result<(), KernelError> {
    let error = |error: MapError| map_error("CGROUPS", &error);
    let mut map = maps.cgroups.lock();
    for (id, agent) in wanted {
        map.insert(id, agent, ANY).map_err(error)?;
    }
    for (id, _) in entries("CGROUPS", &map)? {
        if !wanted.iter().any(|(kept, _)| *kept == id) {
            absent_is_fine(map.remove(&id)).map_err(error)?;
        }
    }
    Ok(())
}

/// Removes every entry of other generations than `keep`.
fn sweep(maps: &Maps, keep: u32) -> Result<(), KernelError> {
    let error = |map| move |error: MapError| map_error(map, &error);
    macro_rules! sweep_prefixes {
        ($($map:ident $name:literal),*) => { $(
            let mut map = maps.$map.lock();
            let keys: Vec<_> = map.keys().collect::<Result<_, _>>().map_err(error($name))?;
            for key in keys {
                if key.data().generation != keep {
                    absent_is_fine(map.remove(&key)).map_err(error($name))?;
                }
            }
            drop(map);
        )* };
    }
    macro_rules! sweep_hashes {
        ($($map:ident $name:literal),*) => { $(
            let mut map = maps.$map.lock();
            let keys: Vec<_> = map.keys().collect::<Result<_, _>>().map_err(error($name))?;
            for key in keys {
                if key.generation != keep {
                    absent_is_fine(map.remove(&key)).map_err(error($name))?;
                }
            }
            drop(map);
        )* };
    }
    sweep_prefixes!(places "PLACES", exempt "EXEMPT", grounds "GROUNDS", grants "GRANTS");
    sweep_hashes!(gateway_ports "GATEWAY_PORTS", services "SERVICES", users "USERS", user_bits "USER_BITS", turn_limits "TURN_LIMITS");
    Ok(())
}

/// Drops what belongs to receipts that are no longer known.
fn forget_receipts(maps: &Maps, tables: &KernelTables) -> Result<(), KernelError> {
    let mut known: std::collections::HashSet<u32> = tables.budgets.iter().map(|(serial, ..)| *serial).collect();
    match &tables.counts {
        Counts::All => return Ok(()),
        Counts::Of(serials) => known.extend(serials),
    }
    let mut budgets = maps.budgets.lock();
    for (serial, _) in entries("BUDGETS", &budgets)? {
        if !known.contains(&serial) {
            absent_is_fine(budgets.remove(&serial)).map_err(|error| map_error("BUDGETS", &error))?;
        }
    }
    Ok(())
}

pub(super) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
