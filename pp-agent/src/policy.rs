//! Turns policy and receipts into the kernel's tables. Pure: the same input always gives the same tables, so publishing them twice
//! changes nothing.

pub(crate) mod canary;
mod host;
mod learned;
mod nested;
mod networks;
mod surface;

pub(crate) use host::{HostTables, grant_list};
pub(crate) use learned::LearnedPlaces;
pub(crate) use surface::PolicySurface;

use crate::config::{Config, Mode};
use crate::delegates::{THIS_HOST, own_ports};
use crate::identity::IdentityTables;
use crate::name::name_id;
use crate::net::{Mac, Prefix};
use crate::receipt::terms::Target;
use crate::tools::ToolTables;
use ipnet::IpNet;
use nested::Nested;
use pp_common::abi::{
    GRANT_LOGIN, Grant, MAX_GRANTS_PER_PREFIX, MAX_USER_BITS, NameId, PLACE_GATEWAY_ALL_PORTS, PLACE_GATEWAY_OBSERVE, PLACE_GATEWAY_OWN,
    PLACE_ZONE_OBSERVE, Place, SERVICE_OBSERVE, Serial, Service,
};
use pp_common::behaviour::{self, EXEMPT_PORTS, JudgedNetwork, MAX_OWN};
use pp_common::dest::Addr;
use pp_common::maps;
use pp_common::turns::Limits;
use std::collections::BTreeMap;

/// The contents of the kernel's tables, in plain collections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KernelTables {
    /// Whether the whole host observes.
    pub(crate) observe: bool,
    /// Zones and gateways; each entry names the zone around it.
    pub(crate) places: Vec<(Prefix, Place)>,
    /// The ports of gateways that list ports.
    pub(crate) gateway_ports: Vec<(NameId, u16)>,
    /// Services that count outside zones, by (IP protocol number, port).
    pub(crate) services: Vec<((u8, u16), Service)>,
    /// Networks where services do not count.
    pub(crate) exempt: Vec<Prefix>,
    /// The networks that the rate rules judge or exempt.
    pub(crate) judged_networks: Vec<(Prefix, JudgedNetwork)>,
    /// The limits of the rate rules.
    pub(crate) limits: behaviour::Limits,
    /// Which processes are agents.
    pub(crate) identity: IdentityTables,
    /// Grants; each entry includes those of every prefix around it.
    pub(crate) grants: Vec<(Prefix, Vec<Grant>)>,
    /// Each receipt's serial, most new flows (zero: no limit) and most logins.
    pub(crate) budgets: Vec<(Serial, u64, u64)>,
    /// Receipts whose counts the kernel keeps, in addition to those of `budgets`.
    pub(crate) counts: Counts,
    /// The bit of each owner in [`Grant::users`].
    pub(crate) user_bits: Vec<(u32, u64)>,
    /// The rules about tools that sessions run.
    pub(crate) tools: ToolTables,
    /// How far a flow to each gateway may go.
    pub(crate) gateway_limits: Vec<(NameId, Limits)>,
    /// Most turns on each flow to a gateway, for receipts that limit them.
    pub(crate) receipt_turns: Vec<(Serial, u32)>,
}

/// Receipts whose counts are kept even if the tables do not name them, because they open nothing at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Counts {
    /// These receipts.
    Of(Vec<Serial>),
    /// Every receipt, since it is not known which there are.
    All,
}

impl Default for Counts {
    fn default() -> Self {
        Self::Of(Vec::new())
    }
}

/// The part of a registered receipt that grants and budget are made of. An ended receipt stays in the tables for as long as refusals
/// should name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GrantSource {
    /// Its number on this host.
    pub(crate) serial: Serial,
    /// The agent whose sessions it is for.
    pub(crate) agent: NameId,
    /// The session it is bound to; zero: any session of the agent.
    pub(crate) session: u64,
    /// The owners it names; none: every owner.
    pub(crate) uids: Option<Vec<u32>>,
    /// Its targets.
    pub(crate) targets: Vec<Target>,
    /// When it starts to open them, boot nanoseconds.
    pub(crate) from_ns: u64,
    /// When it stops, boot nanoseconds.
    pub(crate) until_ns: u64,
    /// Most new flows; zero: no limit.
    pub(crate) max_connections: u64,
    /// Most new flows to login ports and gateways; zero: those stay closed.
    pub(crate) max_attempts: u64,
    /// Most turns on each flow to a gateway; zero: the limit of policy.
    pub(crate) max_turns: u32,
    /// Why it has ended: `GRANT_REVOKED`, `GRANT_EXHAUSTED`, or zero.
    pub(crate) ended: u8,
}

/// Why tables cannot be built. What is in force stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PolicyError {
    /// A kernel table is too small.
    #[error("{table}: {need} entries needed, {most} fit; {remedy}")]
    Table {
        /// What the table holds.
        table: &'static str,
        /// How many there are.
        need: usize,
        /// How many fit.
        most: usize,
        /// What to do.
        remedy: &'static str,
    },
    /// One network has too many exempt port ranges.
    #[error("{prefix}: {need} port ranges are exempt there, {most} fit; join ranges, or exempt the network", most = EXEMPT_PORTS)]
    ExemptPorts {
        /// The place.
        prefix: Prefix,
        /// How many there are.
        need: usize,
    },
    /// Too many receipts overlap in one network.
    #[error("{prefix}: {need} grants hold there, {most} fit; revoke receipts that are no longer needed", most = MAX_GRANTS_PER_PREFIX)]
    Grants {
        /// The place.
        prefix: Prefix,
        /// How many grants it would have.
        need: usize,
    },
}

/// Builds the tables of a policy, its registered receipts, the cgroups that its rules name now, and the host's `own` addresses apart from
/// loopback.
///
/// # Errors
/// They need more than the kernel's tables hold. The tables of policy and of grants have room for two generations.
pub(crate) fn compile(
    config: &Config,
    receipts: &[GrantSource],
    cgroups: &[(u64, NameId)],
    own: &[Addr],
) -> Result<KernelTables, PolicyError> {
    let mut identity = config.identity.clone();
    identity.cgroups = cgroups.to_vec();
    let bits = user_bits(receipts)?;
    let tables = KernelTables {
        observe: config.mode == Mode::Observe,
        places: places(config, &own[..own.len().min(MAX_OWN as usize)]),
        gateway_ports: gateway_ports(config),
        services: services(config),
        exempt: distinct(config.services.exempt.iter().map(|net| Prefix::from(*net))),
        judged_networks: networks::judged_networks(config)?,
        limits: config.behaviour.limits,
        identity,
        tools: config.tools.clone(),
        grants: grants(receipts, &bits)?,
        budgets: receipts.iter().map(|receipt| (receipt.serial, receipt.max_connections, receipt.max_attempts)).collect(),
        counts: Counts::default(),
        user_bits: bits,
        gateway_limits: gateway_limits(config),
        receipt_turns: receipts.iter().filter(|r| r.max_turns != 0).map(|r| (r.serial, r.max_turns)).collect(),
    };
    check_capacity(&tables, places(config, &[]).len())?;
    Ok(tables)
}

/// Reserves room for addresses that this host may get later. Without it nothing could be published, not even a revocation. `lasting` is the
/// number of places without such addresses.
fn check_capacity(tables: &KernelTables, lasting: usize) -> Result<(), PolicyError> {
    let policy = "shorten the policy";
    let receipts = "revoke receipts that are no longer needed";
    let agents = "write fewer rules of agents";
    let limits = tables.gateway_limits.len();
    for (table, map, reserved, need, remedy) in [
        ("zones and gateways", &maps::PLACES, MAX_OWN, lasting, policy),
        ("gateway ports", &maps::GATEWAY_PORTS, 0, tables.gateway_ports.len(), policy),
        ("service ports", &maps::SERVICES, 0, tables.services.len(), policy),
        ("exempt networks", &maps::EXEMPT, 0, tables.exempt.len(), policy),
        ("networks of behaviour rules and gateways", &maps::GROUNDS, 0, tables.judged_networks.len(), policy),
        ("users of agents", &maps::USERS, 0, tables.identity.uids.len(), policy),
        ("cgroups of agents", &maps::CGROUPS, 0, tables.identity.cgroups.len(), policy),
        ("receipt targets", &maps::GRANTS, 0, tables.grants.len(), receipts),
        ("receipts", &maps::BUDGETS, 0, tables.budgets.len(), receipts),
        // Every receipt may have its own limit.
        ("limits of gateways", &maps::TURN_LIMITS, maps::BUDGETS.size, limits, policy),
        ("states of agents' rules", &maps::DFA_ROWS, 0, tables.identity.table.rows.len(), agents),
        ("rules of agents", &maps::RULES, 0, tables.identity.targets.len(), agents),
        ("states of rules about tools", &maps::TOOL_ROWS, 0, tables.tools.table.rows.len(), policy),
    ] {
        let most = map.room() - reserved as usize;
        if need > most {
            return Err(PolicyError::Table { table, need, most, remedy });
        }
    }
    Ok(())
}

/// One entry for each network of a zone and each gateway. The kernel sees only the longest prefix that matches, so the entry of a gateway
/// names the zone around it.
fn places(config: &Config, own: &[Addr]) -> Vec<(Prefix, Place)> {
    let mut places: BTreeMap<Prefix, Place> = BTreeMap::new();
    for zone in &config.zones {
        let flags = flag(zone.mode, PLACE_ZONE_OBSERVE);
        let place = Place { zone: name_id(&zone.name), flags, ..Place::default() };
        places.extend(zone.networks.iter().map(|network| (Prefix::from(*network), place)));
    }
    let zones = places.clone();
    let zones = Nested::of(&zones);
    let around = |prefix: Prefix| zones.around(prefix).next_back().copied().unwrap_or_default();
    // This host is a gateway to itself. A zone inside loopback protects every port there already.
    if !own_ports(&config.delegates).is_empty() {
        for prefix in this_host(own) {
            let around = around(prefix);
            places.insert(prefix, Place { gateway: name_id(THIS_HOST), flags: around.flags | PLACE_GATEWAY_OWN, ..around });
        }
    }
    for gateway in &config.gateways {
        let address = Prefix::from(IpNet::from(gateway.address));
        let around = around(address);
        let all_ports = if gateway.ports.is_empty() { PLACE_GATEWAY_ALL_PORTS } else { 0 };
        let flags = around.flags | all_ports | flag(gateway.mode, PLACE_GATEWAY_OBSERVE);
        places.insert(address, Place { gateway: name_id(&gateway.name), flags, ..around });
    }
    // The destination of the canary. Nothing else uses it.
    let canary = Prefix::from(IpNet::from(std::net::IpAddr::V4(canary::ADDRESS)));
    places.insert(canary, Place { zone: name_id(canary::AGENT), ..Place::default() });
    places.into_iter().collect()
}

/// Zones and gateways as policy names them, without this host and the canary.
#[must_use]
pub(crate) fn named_places(config: &Config) -> Vec<(Prefix, Place)> {
    let (own, canary) = (name_id(THIS_HOST), name_id(canary::AGENT));
    places(config, &[]).into_iter().filter(|(_, place)| place.gateway != own && place.zone != canary).collect()
}

/// The place of each hardware address that policy gives.
#[must_use]
pub(crate) fn mac_places(config: &Config) -> Vec<(Mac, Place)> {
    let places = named_places(config);
    let places: BTreeMap<Prefix, Place> = places.into_iter().collect();
    let zones = config.zones.iter().flat_map(|zone| {
        let flags = flag(zone.mode, PLACE_ZONE_OBSERVE);
        zone.macs.iter().map(move |mac| (*mac, Place { zone: name_id(&zone.name), flags, ..Place::default() }))
    });
    let gateways = config.gateways.iter().flat_map(|gateway| {
        let place = places.get(&Prefix::from(gateway.address)).copied().unwrap_or_default();
        gateway.macs.iter().map(move |mac| (*mac, place))
    });
    zones.chain(gateways).collect()
}

/// Loopback, and the host's other addresses.
fn this_host(own: &[Addr]) -> impl Iterator<Item = Prefix> + use<'_> {
    networks::loopback().into_iter().chain(own.iter().map(|addr| Prefix { addr: addr.octets(), len: 128 }))
}

fn gateway_limits(config: &Config) -> Vec<(NameId, Limits)> {
    let own = config.gateways.iter().map(|gateway| (name_id(&gateway.name), gateway.limits));
    own.chain([(name_id(THIS_HOST), Limits::default())]).collect()
}

fn flag(mode: Mode, flag: u32) -> u32 {
    match mode {
        Mode::Enforce => 0,
        Mode::Observe => flag,
    }
}

fn gateway_ports(config: &Config) -> Vec<(NameId, u16)> {
    distinct(
        config
            .gateways
            .iter()
            .flat_map(|gateway| {
                let id = name_id(&gateway.name);
                gateway.ports.iter().map(move |port| (id, *port))
            })
            .chain(own_ports(&config.delegates).into_iter().map(|port| (name_id(THIS_HOST), port))),
    )
}

fn services(config: &Config) -> Vec<((u8, u16), Service)> {
    let flags = flag(config.services.mode, SERVICE_OBSERVE);
    let mut services = BTreeMap::new();
    for row in &config.services.enabled {
        for key in row.each_port() {
            let service = Service { service: name_id(row.name), flags, pad: 0 };
            services.entry(key).or_insert(service);
        }
    }
    services.into_iter().collect()
}

/// A bit for each owner that the receipts name.
fn user_bits(receipts: &[GrantSource]) -> Result<Vec<(u32, u64)>, PolicyError> {
    let uids = distinct(receipts.iter().flat_map(|receipt| receipt.uids.iter().flatten().copied()));
    if uids.len() > MAX_USER_BITS {
        let (table, need, most) = ("users that receipts name", uids.len(), MAX_USER_BITS);
        let remedy = "revoke receipts that are no longer needed";
        return Err(PolicyError::Table { table, need, most, remedy });
    }
    Ok(uids.into_iter().zip((0..).map(|bit| 1u64 << bit)).collect())
}

/// The bits of the owners that a receipt names.
fn users(receipt: &GrantSource, bits: &[(u32, u64)]) -> u64 {
    let Some(uids) = &receipt.uids else { return u64::MAX };
    let named = bits.iter().filter(|(uid, _)| uids.contains(uid)).fold(0, |all, (_, bit)| all | bit);
    // All bits set would mean any owner.
    if named == u64::MAX { named & !1 } else { named }
}

/// One entry for each network that a receipt names. It also has the grants of every network around it, since the kernel sees only the
/// longest matching prefix.
fn grants(receipts: &[GrantSource], bits: &[(u32, u64)]) -> Result<Vec<(Prefix, Vec<Grant>)>, PolicyError> {
    let mut own: BTreeMap<Prefix, Vec<Grant>> = BTreeMap::new();
    for receipt in receipts {
        let flags = receipt.ended | if receipt.max_attempts == 0 { 0 } else { GRANT_LOGIN };
        for target in &receipt.targets {
            let grants = own.entry(Prefix::from(target.network)).or_default();
            for ports in &target.ports {
                grants.push(Grant {
                    agent: receipt.agent,
                    session: receipt.session,
                    users: users(receipt, bits),
                    from_ns: receipt.from_ns,
                    until_ns: receipt.until_ns,
                    serial: receipt.serial,
                    port_first: ports.first,
                    port_last: ports.last,
                    transport: target.transport.protocol(),
                    flags,
                    pad: [0; 6],
                });
            }
        }
    }
    let most = maps::GRANTS.room();
    if own.len() > most {
        let (table, need) = ("receipt targets", own.len());
        let remedy = "revoke receipts that are no longer needed";
        return Err(PolicyError::Table { table, need, most, remedy });
    }
    let mut flat = Vec::with_capacity(own.len());
    let nested = Nested::of(&own);
    for prefix in own.keys() {
        let mut all: Vec<Grant> = nested.around(*prefix).flatten().copied().collect();
        all.sort_unstable_by_key(|g| (g.serial, g.transport, g.port_first, g.port_last));
        all.dedup();
        if all.len() > MAX_GRANTS_PER_PREFIX {
            return Err(PolicyError::Grants { prefix: *prefix, need: all.len() });
        }
        flat.push((*prefix, all));
    }
    Ok(flat)
}

fn distinct<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort();
    items.dedup();
    items
}

#[cfg(test)]
mod tests;
