//! What of the shipped protection a policy turns off. It is found by comparing the finished policy with what is shipped, so that no key can
//! remove protection unnoticed.

use std::borrow::Cow;

use super::agents::{self, patterns};
use super::delegates::entries;
use super::error::{ConfigError, Origin};
use super::{Behaviour, Config, Mode, Services};
use crate::delegates::{Action, Delegate, Unknown, shipped};
use crate::identity::AgentRules;
use crate::services;
use pp_common::behaviour::Limits as Rules;
use pp_common::turns::Limits;
use serde::{Deserialize, Serialize};

/// A part of the shipped protection that policy turns off, on purpose or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Off {
    /// The part: `mode`, `services`, `exempt`, `zone`, `gateway`, `agent`, `tool`, `delegate`, `delegates`, `tamper`, `behaviour` or `any_user`.
    pub(crate) part: Cow<'static, str>,
    /// What of it: names of services, an agent, a tool, networks.
    pub(crate) names: Vec<String>,
    /// In words, with the key that does it.
    pub(crate) text: String,
}

/// Everything that is off.
pub(super) fn off(config: &Config) -> Result<Vec<Off>, ConfigError> {
    let mut all = modes(config);
    all.extend(services_off(&config.services));
    for shipped in agents::shipped()? {
        all.extend(agent(&shipped, config));
    }
    all.extend(config.exec.allow.iter().map(|line| tool(line)));
    all.extend(shipped().iter().flat_map(|row| delegate(row, &config.delegates)));
    all.extend(allowed(&config.delegates));
    if config.unknown_delegates == Unknown::Allow {
        let text = "[delegates] unknown = \"allow\": servers of the user that no list names are neither refused nor reported";
        all.push(one("delegates", vec!["unknown".to_owned()], text.to_owned()));
    }
    let tamper = super::tamper::off(config.net_admin, config.later_files);
    all.extend(tamper.map(|(key, text)| one("tamper", vec![key.to_owned()], text)));
    all.extend(behaviour(&config.behaviour));
    for gateway in &config.gateways {
        all.extend(gateway_limits(&gateway.name, &gateway.limits));
    }
    if config.any_user {
        all.push(one("any_user", Vec::new(), "any_user = true: receipts need not name the users they hold for".to_owned()));
    }
    Ok(all)
}

/// Warnings about names of agents that are probably misspelt.
pub(super) fn misspelt_agents(own: &[(String, Origin)]) -> Result<Vec<String>, ConfigError> {
    let shipped = agents::shipped()?;
    let others = own.iter().filter(|(name, _)| shipped.iter().all(|agent| agent.name != *name));
    Ok(others
        .filter_map(|(name, at)| {
            let near = agents::nearest(name, &shipped)?;
            Some(format!("{at}: agent {name}: is another agent than the shipped {near}; write {near} if that one is meant"))
        })
        .collect())
}

const fn one(part: &'static str, names: Vec<String>, text: String) -> Off {
    Off { part: Cow::Borrowed(part), names, text }
}

fn modes(config: &Config) -> Vec<Off> {
    if config.mode == Mode::Observe {
        return vec![one("mode", Vec::new(), "mode = \"observe\": nothing is refused but tampering".to_owned())];
    }
    let tables = [
        ("services", config.services.mode, "no connection is refused for its service"),
        ("exec", config.exec.mode, "no tool is refused"),
        ("behaviour", config.behaviour.mode, "no scan and no credential spray is refused"),
    ];
    let tables = tables.into_iter().filter(|(_, mode, _)| *mode == Mode::Observe);
    let tables = tables.map(|(table, _, what)| one("mode", vec![table.to_owned()], format!("[{table}] mode = \"observe\": {what}")));
    let zones = config.zones.iter().filter(|zone| zone.mode == Mode::Observe).map(|zone| {
        let text = format!("zone {} only observes: shipped services are not refused in {} either", zone.name, list(&zone.networks));
        one("zone", vec![zone.name.clone()], text)
    });
    let gateways = config.gateways.iter().filter(|gateway| gateway.mode == Mode::Observe).map(|gateway| {
        let text = format!("gateway {} only observes: connections to {} are not refused", gateway.name, gateway.address);
        one("gateway", vec![gateway.name.clone()], text)
    });
    tables.chain(zones).chain(gateways).collect()
}

fn services_off(own: &Services) -> Vec<Off> {
    let shipped = Services::default();
    let missing = |row: &&services::ServiceRow| !own.enabled.contains(row);
    let names: Vec<String> = services::defaults().filter(missing).map(|row| row.name.to_owned()).collect();
    let networks: Vec<String> = own.exempt.iter().filter(|net| !shipped.exempt.contains(net)).map(ToString::to_string).collect();
    let mut all = Vec::new();
    if !names.is_empty() {
        let text = format!("services {}: not protected outside zones ([services])", names.join(", "));
        all.push(one("services", names, text));
    }
    if !networks.is_empty() {
        let text = format!("[services] exempt: no service is protected in {}", networks.join(", "));
        all.push(one("exempt", networks, text));
    }
    all
}

fn agent(shipped: &AgentRules, config: &Config) -> Option<Off> {
    let own = config.agents.iter().find(|agent| agent.name == shipped.name);
    let holds = |kind: &str, pattern: &str| own.is_some_and(|own| patterns(own).any(|(k, p)| k == kind && p == pattern));
    let all = patterns(shipped).count();
    let gone: Vec<String> =
        patterns(shipped).filter(|(kind, pattern)| !holds(kind, pattern)).map(|(kind, pattern)| format!("{kind} {pattern}")).collect();
    let name = &shipped.name;
    let text = match gone.len() {
        0 => return None,
        gone if gone == all && own.is_none_or(|own| patterns(own).next().is_none() && own.user.is_empty()) => {
            format!("agent {name}: none of its shipped rules holds, and no other does: only pp-agent run and adopt govern it")
        }
        gone if gone == all => format!("agent {name}: none of its shipped rules holds; a start of it is governed by yours alone"),
        _ => format!("agent {name}: these shipped rules of it do not hold: {}", gone.join(", ")),
    };
    Some(one("agent", vec![name.clone()], text))
}

fn tool(line: &str) -> Off {
    let name = line.split_whitespace().next().unwrap_or_default().to_owned();
    let text = if name == line.trim() {
        format!("tool {name}: neither refused nor reported, whatever its arguments ([exec])")
    } else {
        format!("tool {name}: neither refused nor reported as `{line}` ([exec] allow)")
    };
    one("tool", vec![name], text)
}

/// How policy weakens a shipped delegate, by a table of its name or by another one that names its sockets first.
fn delegate(shipped: &Delegate, own: &[Delegate]) -> Vec<Off> {
    let name = &shipped.name;
    let names = || vec![name.clone()];
    let mut all = Vec::new();
    let before = own.iter().take_while(|other| other.name != *name);
    for other in before.filter(|other| is_weaker(other.action, shipped.action)) {
        let taken: Vec<String> = entries(shipped).into_iter().filter(|socket| entries(other).iter().any(|own| meet(own, socket))).collect();
        if !taken.is_empty() {
            let text = format!("delegate {name}: {} by delegate {}: {}", words(other.action), other.name, taken.join(", "));
            all.push(one("delegate", names(), text));
        }
    }
    let Some(mine) = own.iter().find(|other| other.name == *name) else { return all };
    let known = entries(mine);
    let gone: Vec<String> = entries(shipped).into_iter().filter(|entry| !known.contains(entry)).collect();
    if is_weaker(mine.action, shipped.action) {
        all.push(one("delegate", names(), format!("delegate {name}: {} ([[delegate]] action)", words(mine.action))));
    }
    // What is gone of a row of harmless servers is refused, or reported, as any other.
    if !gone.is_empty() && shipped.action != Action::Allow {
        all.push(one("delegate", names(), format!("delegate {name}: not refused by {}", gone.join(", "))));
    }
    all
}

/// Other delegates that are allowed. They weaken something only if a shipped delegate has the same socket by another path.
fn allowed(own: &[Delegate]) -> Vec<Off> {
    let shipped = shipped();
    let others = own.iter().filter(|other| other.action == Action::Allow && shipped.iter().all(|row| row.name != other.name));
    let text = |other: &Delegate| format!("delegate {}: allowed to sessions: {}", other.name, entries(other).join(", "));
    others.map(|other| one("delegate", vec![other.name.clone()], text(other))).collect()
}

fn is_weaker(action: Action, shipped: Action) -> bool {
    let strength = |action| match action {
        Action::Allow => 0,
        Action::RefuseRoot => 1,
        Action::Refuse => 2,
    };
    strength(action) < strength(shipped)
}

const fn words(action: Action) -> &'static str {
    match action {
        Action::Allow => "allowed to sessions",
        Action::RefuseRoot => "refused to sessions of root alone",
        Action::Refuse => "refused to sessions",
    }
}

/// Whether two patterns can name the same socket. A `*` stands for one part of a path, or for a piece of it.
fn meet(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('/'), other.split('/'));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (Some(one), Some(other)) if parts_meet(one, other) => {}
            _ => return false,
        }
    }
}

fn parts_meet(one: &str, other: &str) -> bool {
    let compatible = |one: &str, other: &str, cut: fn(&str, &str) -> bool| cut(one, other) || cut(other, one);
    match (one.split_once('*'), other.split_once('*')) {
        (None, None) => one == other,
        (Some((before, after)), None) => fits(other, before, after),
        (None, Some((before, after))) => fits(one, before, after),
        (Some((before, after)), Some((first, last))) => {
            compatible(before, first, |one, other| one.starts_with(other)) && compatible(after, last, |one, other| one.ends_with(other))
        }
    }
}

fn fits(part: &str, before: &str, after: &str) -> bool {
    part.len() >= before.len() + after.len() && part.starts_with(before) && part.ends_with(after)
}

fn behaviour(own: &Behaviour) -> Vec<Off> {
    let mut all: Vec<Off> = super::behaviour::weaker(&own.limits, &Rules::DEFAULT)
        .into_iter()
        .map(|(key, own, shipped)| one("behaviour", vec![key.to_owned()], format!("{key} = {own}: shipped is {shipped}")))
        .collect();
    if !own.exempt.is_empty() {
        let networks: Vec<String> = own.exempt.iter().map(ToString::to_string).collect();
        let text = format!("[behaviour] exempt: scans and logins are not judged at {}", networks.join(", "));
        all.push(one("behaviour", networks, text));
    }
    all
}

fn gateway_limits(name: &str, own: &Limits) -> Vec<Off> {
    let shipped = Limits::default();
    let numbers = [
        ("max_turns", u64::from(own.max_turns), u64::from(shipped.max_turns)),
        ("max_bytes_out", own.max_bytes_out, shipped.max_bytes_out),
    ];
    let greater = numbers.into_iter().filter(|(_, own, shipped)| own > shipped);
    greater
        .map(|(key, own, shipped)| one("gateway", vec![name.to_owned()], format!("gateway {name}: {key} = {own}, shipped is {shipped}")))
        .collect()
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
