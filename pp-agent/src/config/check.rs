//! Makes a valid [`Config`] of the keys of every file, or returns the first error.

use super::agents::{self, compile_agents};
use super::error::{ConfigError, Origin, Problem};
use super::raw::{self, unknown};
use super::room;
use super::source::{Source, Text};
use super::tables::{Table, Tables, add, put, set};
use super::value::{
    address, approvals, check_name, decider, invalid, mac_list, max_tasks, max_ttl, name, network, not_enforced, number, ports, service,
};
use super::{Authority, Config, Gateway, LaterFiles, Mode, NetAdmin, Zone};
use super::{behaviour, delegates, exec, off, services, tamper};
use crate::delegates::{THIS_HOST, Unknown};
use crate::identity::CgroupRule;
use crate::net::{Mac, Prefix};
use ipnet::IpNet;
use pp_common::turns::{DEFAULT_MAX_BYTES_OUT, DEFAULT_MAX_TURNS, Limits};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use toml::Spanned;

pub(super) fn check(sources: Vec<Source>) -> Result<Config, ConfigError> {
    let mut merge = Merge::default();
    for source in &sources {
        let text = Text::of(source);
        merge.file(&text, raw::parse(&text)?)?;
    }
    merge.check_room()?;
    merge.finish(sources)
}

/// What the files have set, each value with its place.
#[derive(Default)]
struct Merge {
    host: Option<(String, Origin)>,
    tenant: Option<(String, Origin)>,
    mode: Option<(Mode, Origin)>,
    require: Option<(super::Require, Origin)>,
    any_user: Option<(bool, Origin)>,
    max_tasks: Option<(i64, Origin)>,
    services: services::Written,
    behaviour: behaviour::Written,
    zones: Tables<ZoneWritten>,
    networks: HashMap<Prefix, (String, Origin)>,
    macs: HashMap<Mac, (String, Origin)>,
    gateways: Tables<GatewayWritten>,
    /// The gateway of each address.
    addresses: HashMap<IpAddr, String>,
    exec: exec::Merged,
    agents: Tables<agents::Agent>,
    authorities: Vec<Authority>,
    /// Where the authority of each key is.
    keys: HashMap<String, Origin>,
    delegates: Tables<delegates::Written>,
    unknown_delegates: Option<(Unknown, Origin)>,
    net_admin: Option<(NetAdmin, Origin)>,
    later_files: Option<(LaterFiles, Origin)>,
    /// Zones and gateways that authorities name. They are checked when all files are read.
    named: Vec<(&'static str, String, Origin)>,
}

/// One zone, from all files.
#[derive(Default)]
struct ZoneWritten {
    networks: Vec<IpNet>,
    macs: Vec<Mac>,
    mode: Option<(Mode, Origin)>,
}

/// One gateway, from all files.
#[derive(Default)]
struct GatewayWritten {
    address: Option<(IpAddr, Origin)>,
    macs: Vec<Mac>,
    ports: Vec<u16>,
    /// Whether the table with the address names no port.
    every_port: bool,
    max_turns: Option<(u32, Origin)>,
    max_bytes_out: Option<(u64, Origin)>,
    mode: Option<(Mode, Origin)>,
}

impl Merge {
    fn file(&mut self, source: &Text<'_>, file: raw::Policy) -> Result<(), ConfigError> {
        for (key, value) in [("host", &file.host), ("tenant", &file.tenant)] {
            if let Some(value) = value {
                check_name(source, key, value)?;
            }
        }
        set(&mut self.host, file.host, "host", source)?;
        set(&mut self.tenant, file.tenant, "tenant", source)?;
        set(&mut self.mode, file.mode, "mode", source)?;
        set(&mut self.require, file.require, "require", source)?;
        set(&mut self.any_user, file.any_user, "any_user", source)?;
        set(&mut self.max_tasks, file.max_tasks, "max_tasks", source)?;
        if let Some(exec) = file.exec {
            self.exec.allow(source, &exec)?;
            set(&mut self.exec.mode, exec.mode, "exec.mode", source)?;
        }
        if let Some(behaviour) = file.behaviour {
            self.behaviour.file(source, behaviour)?;
        }
        if let Some(services) = file.services {
            self.services.file(source, services)?;
        }
        file.zone.into_iter().try_for_each(|zone| self.zone(source, zone))?;
        file.gateway.into_iter().try_for_each(|gateway| self.gateway(source, gateway))?;
        file.delegate.into_iter().try_for_each(|delegate| delegates::delegate(&mut self.delegates, source, delegate))?;
        if let Some(unknown) = file.delegates.and_then(|table| table.unknown) {
            let at = source.at(unknown.span());
            put(&mut self.unknown_delegates, delegates::read_unknown(source, &unknown)?, at, "delegates.unknown")?;
        }
        if let Some(tamper) = file.tamper {
            self.tamper(source, tamper)?;
        }
        file.agent.into_iter().try_for_each(|agent| agents::agent(&mut self.agents, source, agent))?;
        file.authority.into_iter().try_for_each(|authority| self.authority(source, authority))
    }

    fn tamper(&mut self, source: &Text<'_>, table: raw::Tamper) -> Result<(), ConfigError> {
        if let Some(word) = table.net_admin {
            put(&mut self.net_admin, tamper::net_admin(source, &word)?, source.at(word.span()), "tamper.net_admin")?;
        }
        if let Some(word) = table.later_files {
            put(&mut self.later_files, tamper::later_files(source, &word)?, source.at(word.span()), "tamper.later_files")?;
        }
        Ok(())
    }

    fn zone(&mut self, source: &Text<'_>, zone: Spanned<raw::Zone>) -> Result<(), ConfigError> {
        let at = source.at(zone.span());
        let zone = zone.into_inner();
        let name = name(source, &at, "zone", "name", zone.name)?;
        let macs = self.macs(source, &format!("zone {name}"), zone.mac)?;
        let table = self.zones.open("zone", &name, &at)?;
        approvals(source, zone.approvals)?;
        let texts = zone.networks.unwrap_or_default();
        if table.at.len() > 1 && texts.is_empty() && macs.is_empty() && zone.mode.is_none() {
            let instead = "write a network to add, or a mode that no other file sets";
            return Err(invalid(at, Problem::ChangesNothing { what: format!("zone {name}"), instead }));
        }
        for text in &texts {
            let network = network(source, text)?;
            let at = source.at(text.span());
            match self.networks.get(&Prefix::from(network)) {
                Some((other, first)) if *other != name => {
                    let (zone, first) = (other.clone(), first.clone());
                    return Err(invalid(at, Problem::NetworkTwice { network, zone, first }));
                }
                Some(_) => {}
                None => {
                    self.networks.insert(Prefix::from(network), (name.clone(), at));
                    table.item.networks.push(network);
                }
            }
        }
        add(&mut table.item.macs, macs);
        set(&mut table.item.mode, zone.mode, "mode", source)
    }

    /// Reads hardware addresses. Each may belong to one place only.
    fn macs(&mut self, source: &Text<'_>, owner: &str, list: Option<Spanned<toml::Value>>) -> Result<Vec<Mac>, ConfigError> {
        let mut macs = Vec::new();
        let Some(list) = list else { return Ok(macs) };
        for mac in mac_list(source, &list)? {
            let at = source.at(list.span());
            match self.macs.get(&mac) {
                Some((other, first)) if other != owner => {
                    let (other, first) = (other.clone(), first.clone());
                    return Err(invalid(at, Problem::MacTwice { mac, other, first }));
                }
                Some(_) => {}
                None => {
                    self.macs.insert(mac, (owner.to_owned(), at));
                    macs.push(mac);
                }
            }
        }
        Ok(macs)
    }

    fn gateway(&mut self, source: &Text<'_>, file: Spanned<raw::Gateway>) -> Result<(), ConfigError> {
        let at = source.at(file.span());
        let file = file.into_inner();
        let name = name(source, &at, "gateway", "name", file.name)?;
        if name == THIS_HOST {
            let wanted = "that name stands for this host itself; give the gateway another one";
            return Err(invalid(at, Problem::BadValue { key: "name", found: name, wanted }));
        }
        approvals(source, file.approvals)?;
        let found = match &file.address {
            Some(text) => Some((address(source, text)?, source.at(text.span()))),
            None => None,
        };
        if let Some((address, at)) = &found {
            let first = self.addresses.entry(*address).or_insert_with(|| name.clone());
            if *first != name {
                let other = first.clone();
                return Err(invalid(at.clone(), Problem::AddressTwice { name, other }));
            }
        }
        let macs = self.macs(source, &format!("gateway {name}"), file.mac)?;
        let table = self.gateways.open("gateway", &name, &at)?;
        let says_more =
            !macs.is_empty() || file.max_turns.is_some() || file.max_bytes_out.is_some() || file.mode.is_some() || !file.ports.is_empty();
        if table.at.len() > 1 && found.is_none() && !says_more {
            let instead = "write a port to add, or a key that no other file sets";
            return Err(invalid(at, Problem::ChangesNothing { what: format!("gateway {name}"), instead }));
        }
        let gateway = &mut table.item;
        // If one table protects every port, a list of ports in another adds nothing.
        gateway.every_port |= found.is_some() && file.ports.is_empty();
        add(&mut gateway.macs, macs);
        add(&mut gateway.ports, ports(source, &file.ports)?);
        if let Some((address, at)) = found {
            put(&mut gateway.address, address, at, "address")?;
        }
        let (turns, bytes) = (at_of(source, &file.max_turns), at_of(source, &file.max_bytes_out));
        if let Some((number, at)) = number(source, "max_turns", file.max_turns, "a number of turns from 1 to 4294967295")?.zip(turns) {
            put(&mut gateway.max_turns, number, at, "max_turns")?;
        }
        if let Some((number, at)) = number(source, "max_bytes_out", file.max_bytes_out, "a number of bytes from 1 on")?.zip(bytes) {
            put(&mut gateway.max_bytes_out, number, at, "max_bytes_out")?;
        }
        set(&mut gateway.mode, file.mode, "mode", source)
    }

    fn authority(&mut self, source: &Text<'_>, file: Spanned<raw::Authority>) -> Result<(), ConfigError> {
        let at = source.at(file.span());
        let file = file.into_inner();
        let key_id = name(source, &at, "authority", "key_id", file.key_id)?;
        if let Some(first) = self.keys.get(&key_id) {
            let (name, first) = (key_id, first.clone());
            return Err(invalid(at, Problem::Duplicate { what: "authority", name, first }));
        }
        self.keys.insert(key_id.clone(), at.clone());
        let instead = "name one decider of the key's own";
        if let Some(issuer) = file.issuer.filter(|issuer| *issuer.get_ref()) {
            return Err(not_enforced(source, &issuer, "issuer", "true", instead));
        }
        for (key, list) in [("deciders", file.deciders), ("methods", file.methods)] {
            if let Some(list) = list.filter(|list| !list.get_ref().is_empty()) {
                return Err(not_enforced(source, &list, key, "a list", instead));
            }
        }
        let what = format!("authority {key_id}");
        let missing = |key| invalid(at.clone(), Problem::Missing { what: what.clone(), key });
        let decider = decider(source, file.decider.ok_or_else(|| missing("decider"))?)?;
        let max_ttl = max_ttl(source, &file.max_ttl.ok_or_else(|| missing("max_ttl"))?)?;
        for (kind, list) in [("zone", &file.zones), ("gateway", &file.gateways)] {
            for name in list {
                self.named.push((kind, name.get_ref().clone(), source.at(name.span())));
            }
        }
        for name in &file.services {
            service(source, name.get_ref(), name)?;
        }
        let texts = |list: Vec<Spanned<String>>| list.into_iter().map(Spanned::into_inner).collect();
        let authority = Authority {
            key_id,
            decider,
            zones: texts(file.zones),
            gateways: texts(file.gateways),
            services: texts(file.services),
            max_ttl,
        };
        self.authorities.push(authority);
        Ok(())
    }

    /// Checks that the networks fit into the kernel's tables, before anything is compiled.
    fn check_room(&self) -> Result<(), ConfigError> {
        let gateways: Vec<Prefix> = self.addresses.keys().map(|address| Prefix::from(*address)).collect();
        let places = self.networks.len() + gateways.iter().filter(|address| !self.networks.contains_key(address)).count();
        room::PLACES.check(places)?;
        let exempt: HashSet<Prefix> = self.services.exempt().into_iter().map(Prefix::from).collect();
        room::EXEMPT.check(exempt.len())?;
        let judged: HashSet<Prefix> = self.behaviour.networks().map(|network| Prefix::from(*network)).chain(gateways).collect();
        room::JUDGED.check(judged.len())
    }

    fn finish(self, sources: Vec<Source>) -> Result<Config, ConfigError> {
        let adds = [self.services.adds(), agents::adds(&self.agents)?, delegates::adds(&self.delegates)].concat();
        let (zones, zone_modes) = zones(self.zones.into_list())?;
        let (gateways, gateway_modes) = gateways(self.gateways.into_list())?;
        all_exist(&self.named, &zones, &gateways)?;
        let mode = value(self.mode).unwrap_or_default();
        let places = zones.iter().map(|zone| ("zone", &zone.name, zone.mode)).zip(&zone_modes);
        let places = places.chain(gateways.iter().map(|gateway| ("gateway", &gateway.name, gateway.mode)).zip(&gateway_modes));
        let places = places.map(|((kind, name, mode), at)| (format!("{kind} {name}"), mode, at));
        let services_at = self.services.mode.as_ref().map(|(_, at)| at.clone());
        let own_services = self.services.finish(mode)?;
        let services = ("services".to_owned(), own_services.mode, &services_at);
        let exec_at = self.exec.mode.as_ref().map(|(_, at)| at.clone());
        let exec = ("exec".to_owned(), self.exec.mode.as_ref().map_or(mode, |(own, _)| *own), &exec_at);
        let behaviour_at = self.behaviour.mode_at();
        let behaviour = self.behaviour.finish(mode)?;
        let rules = ("behaviour".to_owned(), behaviour.mode, &behaviour_at);
        for (what, own, at) in places.chain([services, exec, rules]) {
            if let (Mode::Observe, Mode::Enforce, Some(at)) = (mode, own, at) {
                return Err(invalid(at.clone(), Problem::ModeWithoutEffect { what }));
            }
        }
        let own: Vec<(String, Origin)> = self.agents.iter().map(|table| (table.name.clone(), table.first_at())).collect();
        let warnings = [off::misspelt_agents(&own)?, agents::without_effect(&self.agents)].concat();
        let agents = agents::with_shipped(self.agents.into_list())?;
        // An agent whose shipped rules policy takes away is named among what is off.
        let without_rules = agents::without_rules(&own, &agents);
        let identity = compile_agents(&agents, !own.is_empty())?;
        let (exec, tools) = self.exec.finish(mode)?;
        let mut config = Config {
            host: value(self.host),
            tenant: value(self.tenant),
            mode,
            require: value(self.require),
            any_user: value(self.any_user).unwrap_or(false),
            max_tasks: max_tasks(self.max_tasks)?,
            zones,
            gateways,
            services: own_services,
            exec,
            tools,
            behaviour,
            identity,
            cgroup_rules: CgroupRule::all(&agents)?,
            agents,
            authorities: self.authorities,
            delegates: delegates::with_shipped(self.delegates.into_list())?,
            unknown_delegates: value(self.unknown_delegates).unwrap_or(Unknown::SHIPPED),
            net_admin: value(self.net_admin).unwrap_or(NetAdmin::SHIPPED),
            later_files: value(self.later_files).unwrap_or(LaterFiles::SHIPPED),
            notes: Vec::new(),
            adds: (!adds.is_empty())
                .then(|| format!("{} add to what is shipped; replace = true in a table makes what it lists stand alone", adds.join(", "))),
            warnings,
            off: Vec::new(),
            not_read: Vec::new(),
            sources,
        };
        if mode == Mode::Observe {
            config.zones.iter_mut().for_each(|zone| zone.mode = Mode::Observe);
            config.gateways.iter_mut().for_each(|gateway| gateway.mode = Mode::Observe);
        }
        config.identity.names = config.names();
        config.notes = [notes(&config), without_rules].concat();
        config.off = off::off(&config)?;
        Ok(config)
    }
}

/// Checks that the zones and gateways that authorities name exist.
fn all_exist(named: &[(&'static str, String, Origin)], zones: &[Zone], gateways: &[Gateway]) -> Result<(), ConfigError> {
    let zones = zones.iter().map(|zone| ("zone", zone.name.as_str()));
    let gateways = gateways.iter().map(|gateway| ("gateway", gateway.name.as_str())).chain([("gateway", THIS_HOST)]);
    let known: Vec<(&str, &str)> = zones.chain(gateways).collect();
    let set: HashSet<(&str, &str)> = known.iter().copied().collect();
    let Some((kind, name, at)) = named.iter().find(|(kind, name, _)| !set.contains(&(*kind, name.as_str()))) else { return Ok(()) };
    let names = known.iter().filter(|(of, _)| of == kind).map(|(_, name)| (*name).to_owned()).collect();
    Err(invalid(at.clone(), unknown(kind, name, names)))
}

/// The zones, and where the mode of each is set.
fn zones(written: Vec<Table<ZoneWritten>>) -> Result<(Vec<Zone>, Vec<Option<Origin>>), ConfigError> {
    let mut zones = Vec::new();
    let mut modes = Vec::new();
    for table in written {
        let at = table.first_at();
        let Table { name, item: ZoneWritten { networks, macs, mode }, .. } = table;
        if networks.is_empty() {
            return Err(invalid(at, Problem::Missing { what: format!("zone {name}"), key: "networks" }));
        }
        zones.push(Zone { name, networks, macs, mode: mode.as_ref().map(|(mode, _)| *mode).unwrap_or_default() });
        modes.push(mode.map(|(_, at)| at));
    }
    Ok((zones, modes))
}

/// The gateways, and where the mode of each is set.
fn gateways(written: Vec<Table<GatewayWritten>>) -> Result<(Vec<Gateway>, Vec<Option<Origin>>), ConfigError> {
    let mut gateways = Vec::new();
    let mut modes = Vec::new();
    for table in written {
        let at = table.first_at();
        let Table { name, item, .. } = table;
        let Some((address, _)) = item.address else {
            return Err(invalid(at, Problem::Missing { what: format!("gateway {name}"), key: "address" }));
        };
        let mut ports = if item.every_port { Vec::new() } else { item.ports };
        ports.sort_unstable();
        let limits = Limits {
            max_turns: value(item.max_turns).unwrap_or(DEFAULT_MAX_TURNS),
            max_bytes_out: value(item.max_bytes_out).unwrap_or(DEFAULT_MAX_BYTES_OUT),
            pad: 0,
        };
        gateways.push(Gateway {
            name,
            address,
            macs: item.macs,
            ports,
            mode: item.mode.as_ref().map(|(mode, _)| *mode).unwrap_or_default(),
            limits,
        });
        modes.push(item.mode.map(|(_, at)| at));
    }
    Ok((gateways, modes))
}

/// Facts about the policy that the operator may not expect.
fn notes(config: &Config) -> Vec<String> {
    let mut notes = Vec::new();
    if config.sources.is_empty() {
        notes.push("no policy file: the shipped services and agents hold, enforcing".to_owned());
    }
    for source in &config.sources {
        if source.text.trim().is_empty() {
            notes.push(format!("{} is empty and sets nothing: the defaults hold", source.name));
        }
    }
    if config.zones.is_empty() && config.gateways.is_empty() {
        notes.push("no zone and no gateway: only service ports are protected".to_owned());
    }
    if config.host.is_none() || config.tenant.is_none() || config.authorities.is_empty() {
        notes.push("host, tenant and an authority are not all set: no receipt can be registered".to_owned());
    }
    notes
}

fn at_of<T>(source: &Text<'_>, value: &Option<Spanned<T>>) -> Option<Origin> {
    value.as_ref().map(|value| source.at(value.span()))
}

fn value<T>(slot: Option<(T, Origin)>) -> Option<T> {
    slot.map(|(value, _)| value)
}
