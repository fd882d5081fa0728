//! The policy in force as TOML, for `pp-agent policy show`.

use super::{Config, Mode, Require};
use serde::Serialize;

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    mode: Mode,
    #[serde(skip_serializing_if = "Option::is_none")]
    require: Option<Require>,
    any_user: bool,
    max_tasks: u32,
    services: Services<'a>,
    exec: Exec<'a>,
    behaviour: Behaviour,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    zone: Vec<Zone<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gateway: Vec<Gateway<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    authority: Vec<Authority<'a>>,
    agent: Vec<Agent<'a>>,
    tamper: Tamper,
    delegates: Delegates,
    delegate: Vec<ShownDelegate<'a>>,
}

#[derive(Serialize)]
struct Tamper {
    net_admin: &'static str,
    later_files: &'static str,
}

#[derive(Serialize)]
struct Delegates {
    unknown: &'static str,
}

#[derive(Serialize)]
struct ShownDelegate<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "is_false")]
    replace: bool,
    action: &'static str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    path: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    listener: &'a [String],
    #[serde(skip_serializing_if = "<[u16]>::is_empty")]
    port: &'a [u16],
}

#[derive(Serialize)]
struct Services<'a> {
    enable: Vec<&'a str>,
    exempt: Vec<String>,
    #[serde(skip_serializing_if = "is_false")]
    replace: bool,
    mode: Mode,
}

#[derive(Serialize)]
struct Exec<'a> {
    mode: Mode,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    allow: &'a [String],
}

#[derive(Serialize)]
struct Behaviour {
    mode: Mode,
    internal: Vec<String>,
    exempt: Vec<String>,
    count_own: bool,
    cool_down: String,
    target_per_minute: u32,
    target_per_half_hour: u32,
    ssh_per_minute: u32,
    ssh_per_half_hour: u32,
    login_hosts: u32,
    login_targets: u32,
    ports_per_host: u32,
    hosts_per_port: u32,
    pairs: u32,
}

#[derive(Serialize)]
struct Zone<'a> {
    name: &'a str,
    networks: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mac: Vec<String>,
    mode: Mode,
}

#[derive(Serialize)]
struct Gateway<'a> {
    name: &'a str,
    address: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mac: Vec<String>,
    #[serde(skip_serializing_if = "<[u16]>::is_empty")]
    ports: &'a [u16],
    max_turns: u32,
    max_bytes_out: u64,
    mode: Mode,
}

#[derive(Serialize)]
struct Authority<'a> {
    key_id: &'a str,
    decider: &'a str,
    zones: &'a [String],
    gateways: &'a [String],
    services: &'a [String],
    max_ttl: String,
}

#[derive(Serialize)]
struct Agent<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "is_false")]
    replace: bool,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    exec: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    script: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    module: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    user: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    cgroup: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    unit: &'a [String],
}

pub(super) fn to_toml(config: &Config) -> String {
    let shown = Shown {
        host: config.host.as_deref(),
        tenant: config.tenant.as_deref(),
        mode: config.mode,
        require: config.require,
        any_user: config.any_user,
        max_tasks: config.max_tasks,
        services: Services {
            enable: config.services.enabled.iter().map(|row| row.name).collect(),
            exempt: config.services.exempt.iter().map(ToString::to_string).collect(),
            replace: lacks(&config.services),
            mode: config.services.mode,
        },
        exec: Exec { mode: config.exec.mode, allow: &config.exec.allow },
        behaviour: behaviour(&config.behaviour),
        zone: config.zones.iter().map(zone).collect(),
        gateway: config.gateways.iter().map(gateway).collect(),
        authority: config.authorities.iter().map(authority).collect(),
        agent: config.agents.iter().map(|agent| shown_agent(agent, config)).collect(),
        tamper: Tamper { net_admin: config.net_admin.name(), later_files: config.later_files.name() },
        delegates: Delegates { unknown: config.unknown_delegates.name() },
        delegate: config.delegates.iter().map(|delegate| shown_delegate(delegate, config)).collect(),
    };
    // Strings, numbers and lists of these always have a TOML form.
    toml::to_string(&shown).unwrap_or_else(|error| format!("# {error}\n"))
}

fn behaviour(rules: &super::Behaviour) -> Behaviour {
    let limits = &rules.limits;
    Behaviour {
        mode: rules.mode,
        internal: rules.internal.iter().map(ToString::to_string).collect(),
        exempt: rules.exempt.iter().map(ToString::to_string).collect(),
        count_own: rules.count_own,
        cool_down: format!("{}s", limits.cool_down_ns / 1_000_000_000),
        target_per_minute: limits.target_short,
        target_per_half_hour: limits.target_long,
        ssh_per_minute: limits.ssh_short,
        ssh_per_half_hour: limits.ssh_long,
        login_hosts: limits.login_hosts,
        login_targets: limits.login_targets,
        ports_per_host: limits.host_ports,
        hosts_per_port: limits.port_hosts,
        pairs: limits.pairs,
    }
}

fn zone(zone: &super::Zone) -> Zone<'_> {
    let networks = zone.networks.iter().map(ToString::to_string).collect();
    Zone { name: &zone.name, networks, mac: zone.macs.iter().map(ToString::to_string).collect(), mode: zone.mode }
}

fn gateway(gateway: &super::Gateway) -> Gateway<'_> {
    Gateway {
        name: &gateway.name,
        address: gateway.address.to_string(),
        mac: gateway.macs.iter().map(ToString::to_string).collect(),
        ports: &gateway.ports,
        max_turns: gateway.limits.max_turns,
        max_bytes_out: gateway.limits.max_bytes_out,
        mode: gateway.mode,
    }
}

fn authority(authority: &super::Authority) -> Authority<'_> {
    Authority {
        key_id: &authority.key_id,
        decider: &authority.decider,
        zones: &authority.zones,
        gateways: &authority.gateways,
        services: &authority.services,
        max_ttl: format!("{}s", authority.max_ttl.as_secs()),
    }
}

/// Whether a shipped service is missing, so that `replace` must be written.
fn lacks(own: &super::Services) -> bool {
    let shipped = super::Services::default();
    shipped.enabled.iter().any(|row| !own.enabled.contains(row)) || shipped.exempt.iter().any(|net| !own.exempt.contains(net))
}

fn is_off(config: &Config, part: &str, name: &str) -> bool {
    config.off.iter().any(|off| off.part == part && off.names.iter().any(|own| own == name))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

fn shown_delegate<'a>(delegate: &'a crate::delegates::Delegate, config: &Config) -> ShownDelegate<'a> {
    ShownDelegate {
        name: &delegate.name,
        replace: is_off(config, "delegate", &delegate.name) && crate::delegates::shipped().iter().any(|row| row.name == delegate.name),
        action: delegate.action_name(),
        path: &delegate.paths,
        listener: &delegate.listeners,
        port: &delegate.ports,
    }
}

fn shown_agent<'a>(agent: &'a crate::identity::AgentRules, config: &Config) -> Agent<'a> {
    Agent {
        name: &agent.name,
        replace: is_off(config, "agent", &agent.name),
        exec: &agent.exec,
        script: &agent.script,
        module: &agent.module,
        user: &agent.user,
        cgroup: &agent.cgroup,
        unit: &agent.unit,
    }
}
