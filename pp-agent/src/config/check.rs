//! From the keys of every file to a valid [`Config`], or the first error.

use super::agents::{SHIPPED, Trust, agent_rules, compile_agents};
use super::behaviour::Written;
use super::delegates;
use super::error::{ConfigError, Origin, Problem};
use super::exec;
use super::raw::{self, unknown};
use super::source::Source;
use super::value::{
    address, approvals, check_name, decider, invalid, max_tasks, max_ttl, mode, name, network, no_duplicate, not_enforced, number, ports,
    service,
};
use super::{Authority, Config, Gateway, Mode, Services, Zone};
use crate::delegates::{Delegate, THIS_HOST};
use crate::identity::{AgentRules, CgroupRule};
use crate::policy::Prefix;
use crate::services::{self, ServiceRow};
use ipnet::IpNet;
use pp_common::turns::{DEFAULT_MAX_BYTES_OUT, DEFAULT_MAX_TURNS, Limits};
use std::collections::HashMap;
use toml::Spanned;

pub(super) fn check(sources: Vec<Source>) -> Result<Config, ConfigError> {
    let mut merge = Merge::default();
    for source in &sources {
        merge.file(source, raw::parse(source)?)?;
    }
    merge.shipped_agents()?;
    merge.finish(sources)
}

/// What the files said so far, each thing with the place where it was said.
#[derive(Default)]
struct Merge {
    host: Option<(String, Origin)>,
    tenant: Option<(String, Origin)>,
    mode: Option<(Mode, Origin)>,
    require: Option<(super::Require, Origin)>,
    any_user: Option<(bool, Origin)>,
    max_tasks: Option<(i64, Origin)>,
    services_mode: Option<(Mode, Origin)>,
    enable: Option<Vec<&'static ServiceRow>>,
    exempt: Option<Vec<IpNet>>,
    behaviour: Written,
    zones: Vec<(Zone, Origin, Option<Origin>)>,
    networks: HashMap<Prefix, (String, Origin)>,
    gateways: Vec<(Gateway, Origin, Option<Origin>)>,
    exec: exec::Merged,
    agents: Vec<(AgentRules, Origin)>,
    own_agents: bool,
    authorities: Vec<(Authority, Origin)>,
    delegates: Vec<(Delegate, Origin)>,
    /// Zones, gateways that authorities name: judged when all files are read.
    named: Vec<(&'static str, String, Origin)>,
}

/// Takes a value that only one file may set.
pub(super) fn set<T>(
    slot: &mut Option<(T, Origin)>,
    value: Option<Spanned<T>>,
    key: &'static str,
    source: &Source,
) -> Result<(), ConfigError> {
    let Some(value) = value else {
        return Ok(());
    };
    let at = source.at(value.span());
    if let Some((_, first)) = slot {
        return Err(invalid(at, Problem::SetTwice { key, first: first.clone() }));
    }
    *slot = Some((value.into_inner(), at));
    Ok(())
}

impl Merge {
    fn file(&mut self, source: &Source, file: raw::Policy) -> Result<(), ConfigError> {
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
            self.services(source, services)?;
        }
        file.zone.into_iter().try_for_each(|zone| self.zone(source, zone))?;
        file.gateway.into_iter().try_for_each(|gateway| self.gateway(source, gateway))?;
        for delegate in file.delegate {
            let at = source.at(delegate.span());
            let delegate = delegates::delegate(source, &at, delegate.into_inner())?;
            no_duplicate("delegate", &delegate.name, &at, self.delegates.iter().map(|(d, at)| (d.name.as_str(), at)))?;
            self.delegates.push((delegate, at));
        }
        file.agent.into_iter().try_for_each(|agent| self.agent(source, agent))?;
        file.authority.into_iter().try_for_each(|authority| self.authority(source, authority))
    }

    fn services(&mut self, source: &Source, file: raw::Services) -> Result<(), ConfigError> {
        set(&mut self.services_mode, file.mode, "services.mode", source)?;
        for word in file.enable.iter().flatten() {
            let rows: Vec<&'static ServiceRow> = match word.get_ref().as_str() {
                "*" => services::TABLE.iter().collect(),
                "default" => services::defaults().collect(),
                name => vec![service(source, name, word)?],
            };
            let enabled = self.enable.get_or_insert_default();
            rows.into_iter().for_each(|row| {
                if !enabled.contains(&row) {
                    enabled.push(row);
                }
            });
        }
        if file.enable.is_some() {
            self.enable.get_or_insert_default();
        }
        if let Some(exempt) = file.exempt {
            let known = self.exempt.get_or_insert_default();
            for text in &exempt {
                let network = network(source, text)?;
                if !known.contains(&network) {
                    known.push(network);
                }
            }
        }
        Ok(())
    }

    fn zone(&mut self, source: &Source, zone: Spanned<raw::Zone>) -> Result<(), ConfigError> {
        let at = source.at(zone.span());
        let zone = zone.into_inner();
        let name = name(source, &at, "zone", "name", zone.name)?;
        no_duplicate("zone", &name, &at, self.zones.iter().map(|(z, at, _)| (z.name.as_str(), at)))?;
        approvals(source, zone.approvals)?;
        let Some(texts) = zone.networks.filter(|networks| !networks.is_empty()) else {
            let what = format!("zone {name}");
            return Err(invalid(at, Problem::Missing { what, key: "networks" }));
        };
        let mut networks = Vec::new();
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
                    networks.push(network);
                }
            }
        }
        let (mode, mode_at) = mode(source, zone.mode);
        self.zones.push((Zone { name, networks, mode }, at, mode_at));
        Ok(())
    }

    fn gateway(&mut self, source: &Source, file: Spanned<raw::Gateway>) -> Result<(), ConfigError> {
        let at = source.at(file.span());
        let file = file.into_inner();
        let name = name(source, &at, "gateway", "name", file.name)?;
        if name == THIS_HOST {
            let wanted = "that name stands for this host itself; give the gateway another one";
            return Err(invalid(at, Problem::BadValue { key: "name", found: name, wanted }));
        }
        let known = self.gateways.iter().map(|(g, at, _)| (g.name.as_str(), at));
        no_duplicate("gateway", &name, &at, known)?;
        approvals(source, file.approvals)?;
        let Some(text) = file.address else {
            let what = format!("gateway {name}");
            return Err(invalid(at, Problem::Missing { what, key: "address" }));
        };
        let address = address(source, &text)?;
        if let Some((other, _, _)) = self.gateways.iter().find(|(g, _, _)| g.address == address) {
            let other = other.name.clone();
            return Err(invalid(source.at(text.span()), Problem::AddressTwice { name, other }));
        }
        let ports = ports(source, &file.ports)?;
        let limits = Limits {
            max_turns: number(source, "max_turns", file.max_turns, "a number of turns from 1 to 4294967295")?.unwrap_or(DEFAULT_MAX_TURNS),
            max_bytes_out: number(source, "max_bytes_out", file.max_bytes_out, "a number of bytes from 1 on")?
                .unwrap_or(DEFAULT_MAX_BYTES_OUT),
            pad: 0,
        };
        let (mode, mode_at) = mode(source, file.mode);
        self.gateways.push((Gateway { name, address, ports, mode, limits }, at, mode_at));
        Ok(())
    }

    fn agent(&mut self, source: &Source, file: Spanned<raw::Agent>) -> Result<(), ConfigError> {
        let at = source.at(file.span());
        let agent = agent_rules(source, &at, file.into_inner(), Trust::Check)?;
        let known = self.agents.iter().map(|(a, at)| (a.name.as_str(), at));
        no_duplicate("agent", &agent.name, &at, known)?;
        self.agents.push((agent, at));
        Ok(())
    }

    fn authority(&mut self, source: &Source, file: Spanned<raw::Authority>) -> Result<(), ConfigError> {
        let at = source.at(file.span());
        let file = file.into_inner();
        let key_id = name(source, &at, "authority", "key_id", file.key_id)?;
        let known = self.authorities.iter().map(|(a, at)| (a.key_id.as_str(), at));
        no_duplicate("authority", &key_id, &at, known)?;
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
        self.authorities.push((authority, at));
        Ok(())
    }

    /// Adds the shipped agents, but for those that policy itself defines.
    fn shipped_agents(&mut self) -> Result<(), ConfigError> {
        let name = "built-in agents".to_owned();
        let source = Source { name, text: SHIPPED.to_owned() };
        self.own_agents = !self.agents.is_empty();
        let own: Vec<String> = self.agents.iter().map(|(agent, _)| agent.name.clone()).collect();
        for agent in raw::parse(&source)?.agent {
            let at = source.at(agent.span());
            let agent = agent_rules(&source, &at, agent.into_inner(), Trust::Shipped)?;
            if !own.contains(&agent.name) {
                self.agents.push((agent, at));
            }
        }
        Ok(())
    }

    fn finish(self, sources: Vec<Source>) -> Result<Config, ConfigError> {
        let zone_names: Vec<String> = self.zones.iter().map(|(z, ..)| z.name.clone()).collect();
        let gateway_names: Vec<String> = self.gateways.iter().map(|(g, ..)| g.name.clone()).chain([THIS_HOST.to_owned()]).collect();
        for (kind, name, at) in self.named {
            let known = if kind == "zone" { &zone_names } else { &gateway_names };
            if !known.contains(&name) {
                return Err(invalid(at, unknown(kind, &name, known.clone())));
            }
        }
        let mode = value(self.mode).unwrap_or_default();
        let inner = self.zones.iter().map(|(z, _, at)| (format!("zone {}", z.name), z.mode, at));
        let gates = self.gateways.iter().map(|(g, _, at)| (format!("gateway {}", g.name), g.mode, at));
        let services_at = self.services_mode.as_ref().map(|(_, at)| at.clone());
        let services_mode = value(self.services_mode).unwrap_or(mode);
        let services = ("services".to_owned(), services_mode, &services_at);
        let exec_at = self.exec.mode.as_ref().map(|(_, at)| at.clone());
        let exec = ("exec".to_owned(), self.exec.mode.as_ref().map_or(mode, |(own, _)| *own), &exec_at);
        let behaviour_at = self.behaviour.mode_at();
        let behaviour = self.behaviour.finish(mode)?;
        let rules = ("behaviour".to_owned(), behaviour.mode, &behaviour_at);
        for (what, own, at) in inner.chain(gates).chain([services, exec, rules]) {
            if let (Mode::Observe, Mode::Enforce, Some(at)) = (mode, own, at) {
                return Err(invalid(at.clone(), Problem::ModeWithoutEffect { what }));
            }
        }
        let agents: Vec<AgentRules> = self.agents.into_iter().map(|(agent, _)| agent).collect();
        let identity = compile_agents(&agents, self.own_agents)?;
        let (exec, tools) = self.exec.finish(mode)?;
        let default = Services::default();
        let mut config = Config {
            host: value(self.host),
            tenant: value(self.tenant),
            mode,
            require: value(self.require),
            any_user: value(self.any_user).unwrap_or(false),
            max_tasks: max_tasks(self.max_tasks)?,
            zones: self.zones.into_iter().map(|(zone, ..)| zone).collect(),
            gateways: self.gateways.into_iter().map(|(gateway, ..)| gateway).collect(),
            services: Services {
                enabled: self.enable.unwrap_or(default.enabled),
                exempt: self.exempt.unwrap_or(default.exempt),
                mode: services_mode,
            },
            exec,
            tools,
            behaviour,
            identity,
            cgroup_rules: CgroupRule::all(&agents)?,
            agents,
            authorities: self.authorities.into_iter().map(|(authority, _)| authority).collect(),
            delegates: delegates::with_shipped(self.delegates.into_iter().map(|(delegate, _)| delegate).collect()),
            notes: Vec::new(),
            sources,
        };
        if mode == Mode::Observe {
            config.zones.iter_mut().for_each(|zone| zone.mode = Mode::Observe);
            config.gateways.iter_mut().for_each(|gateway| gateway.mode = Mode::Observe);
        }
        config.identity.names = config.names();
        config.notes = notes(&config);
        Ok(config)
    }
}

/// What holds although the operator may not expect it.
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
    if config.mode == Mode::Observe {
        notes.push("the host only observes: no connection is refused".to_owned());
    }
    notes
}

fn value<T>(slot: Option<(T, Origin)>) -> Option<T> {
    slot.map(|(value, _)| value)
}
