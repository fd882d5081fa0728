//! The `[[agent]]` tables. Their patterns must compile and must not mark the host itself, and their users must exist. They add to the
//! agents that ship with the program.

use super::error::{ConfigError, Origin, Problem};
use super::raw;
use super::source::{Source, Text};
use super::tables::{Away, Table, Tables, add};
use super::value::{invalid, name, not_enforced};
use crate::identity::{self, AgentRules, IdentityTables};
use crate::os::accounts;
use std::sync::{Mutex, OnceLock, PoisonError};
use toml::Spanned;

/// The agents that ship with the program.
const SHIPPED: &str = include_str!("../../../dist/agents.toml");

/// One agent, from all files.
#[derive(Default)]
pub(super) struct Agent {
    rules: AgentRules,
    away: Away,
    /// Patterns that can match nothing, with what to do.
    without_effect: Vec<String>,
}

/// The agents that ship with the program, as written.
pub(super) fn shipped() -> Result<Vec<AgentRules>, ConfigError> {
    static READ: Mutex<Vec<AgentRules>> = Mutex::new(Vec::new());
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    if read.is_empty() {
        let source = Source { name: "built-in agents".to_owned(), text: SHIPPED.to_owned() };
        let text = Text::of(&source);
        for agent in raw::parse(&text)?.agent {
            let at = text.at(agent.span());
            read.push(agent_rules(&text, &at, &agent.into_inner(), Trust::Shipped)?);
        }
    }
    Ok(read.clone())
}

/// Adds one table of a file.
pub(super) fn agent(agents: &mut Tables<Agent>, source: &Text<'_>, file: Spanned<raw::Agent>) -> Result<(), ConfigError> {
    let at = source.at(file.span());
    let file = file.into_inner();
    let rules = agent_rules(source, &at, &file, Trust::Check)?;
    let shipped = shipped()?;
    let table = agents.open("agent", &rules.name, &at)?;
    let mut said = Away::default();
    said.file(source, file.replace.as_ref(), &file.disable);
    // For a new agent the name alone has an effect, since `run --agent` can use it.
    let is_known = table.at.len() > 1 || shipped.iter().any(|known| known.name == rules.name);
    if is_known && patterns(&rules).next().is_none() && rules.user.is_empty() && said.is_nothing() {
        let instead = "write a rule to add, or replace = true to take its shipped rules away";
        return Err(invalid(at, Problem::ChangesNothing { what: format!("agent {}", rules.name), instead }));
    }
    table.item.away.file(source, file.replace.as_ref(), &file.disable);
    for (kind, patterns) in [("cgroup", &file.cgroup), ("unit", &file.unit)] {
        let empty = patterns.iter().filter_map(|pattern| Some((pattern, identity::names_nothing(kind, pattern.get_ref())?)));
        table.item.without_effect.extend(empty.map(|(pattern, why)| {
            let (at, text) = (source.at(pattern.span()), pattern.get_ref());
            format!("{at}: agent {}: {kind} {text:?} marks nothing: {why}", rules.name)
        }));
    }
    add_rules(&mut table.item.rules, rules);
    Ok(())
}

/// Warnings about patterns that can match nothing. They are no errors, since such a policy may be in force.
pub(super) fn without_effect(agents: &[Table<Agent>]) -> Vec<String> {
    agents.iter().flat_map(|table| table.item.without_effect.iter().cloned()).collect()
}

/// Agents of policy that no rule marks, in words.
pub(super) fn without_rules(own: &[(String, Origin)], agents: &[AgentRules]) -> Vec<String> {
    let has_none = |name: &str| agents.iter().any(|agent| agent.name == name && patterns(agent).next().is_none() && agent.user.is_empty());
    let own = own.iter().filter(|(name, _)| has_none(name));
    own.map(|(name, at)| format!("{at}: agent {name}: no rule marks it; only pp-agent run and adopt make its sessions")).collect()
}

/// The operator's agents, each with the shipped rules of its name that it keeps, then the other shipped ones.
pub(super) fn with_shipped(own: Vec<Table<Agent>>) -> Result<Vec<AgentRules>, ConfigError> {
    let shipped = shipped()?;
    let mut all = Vec::new();
    for Table { name, item: Agent { mut rules, away, .. }, .. } in own {
        let base = shipped.iter().find(|agent| agent.name == name);
        let entries: Option<Vec<String>> = base.map(|agent| patterns(agent).map(|(_, pattern)| pattern.clone()).collect());
        away.check("shipped agent", &name, entries.as_deref(), || shipped.iter().map(|agent| agent.name.clone()).collect())?;
        rules.name = name;
        if let Some(base) = base {
            let mut left = base.clone();
            for list in [&mut left.exec, &mut left.script, &mut left.module, &mut left.cgroup, &mut left.unit] {
                list.retain(|pattern| away.leaves(pattern));
            }
            add_rules(&mut rules, left);
        }
        all.push(rules);
    }
    let others = shipped.into_iter().filter(|agent| all.iter().all(|own| own.name != agent.name)).collect::<Vec<_>>();
    all.extend(others);
    Ok(all)
}

/// The tables that add to shipped ones, in words.
pub(super) fn adds(agents: &[Table<Agent>]) -> Result<Vec<String>, ConfigError> {
    let shipped = shipped()?;
    let adds = |table: &&Table<Agent>| table.item.away.is_nothing() && shipped.iter().any(|agent| agent.name == table.name);
    Ok(agents.iter().filter(adds).map(|table| format!("agent {}", table.name)).collect())
}

/// Every pattern of an agent, with its key.
pub(super) fn patterns(rules: &AgentRules) -> impl Iterator<Item = (&'static str, &String)> {
    let lists =
        [("exec", &rules.exec), ("script", &rules.script), ("module", &rules.module), ("cgroup", &rules.cgroup), ("unit", &rules.unit)];
    lists.into_iter().flat_map(|(kind, list)| list.iter().map(move |pattern| (kind, pattern)))
}

/// The agent that an unknown name probably means.
pub(super) fn nearest(name: &str, agents: &[AgentRules]) -> Option<String> {
    let plain = |name: &str| name.to_lowercase().replace(['_', '.', ' '], "-");
    let written = plain(name);
    let is_near = |known: &str| {
        let first = known.split('-').next().unwrap_or_default();
        // A short name is similar to many other words.
        let most = written.len().min(known.len()) / 5;
        let distance = strsim::damerau_levenshtein(&written, known);
        written == first || written.replace('-', "") == known.replace('-', "") || distance <= most
    };
    let near = agents.iter().filter(|agent| is_near(&agent.name));
    near.min_by_key(|agent| strsim::damerau_levenshtein(&written, &agent.name)).map(|agent| agent.name.clone())
}

/// Adds the rules that are missing. Users are compared by their uid.
fn add_rules(rules: &mut AgentRules, more: AgentRules) {
    if rules.name.is_empty() {
        rules.name = more.name;
    }
    add(&mut rules.exec, more.exec);
    add(&mut rules.script, more.script);
    add(&mut rules.module, more.module);
    add(&mut rules.cgroup, more.cgroup);
    add(&mut rules.unit, more.unit);
    for (user, uid) in more.user.into_iter().zip(more.uids) {
        if !rules.uids.contains(&uid) {
            rules.user.push(user);
            rules.uids.push(uid);
        }
    }
}

/// Compiles the rules of these agents. Those of the shipped agents alone are compiled once in a process, since every policy without agents
/// of its own has them.
pub(super) fn compile_agents(agents: &[AgentRules], own: bool) -> Result<IdentityTables, ConfigError> {
    static SHIPPED: OnceLock<IdentityTables> = OnceLock::new();
    if own {
        return Ok(identity::compile(agents)?);
    }
    if let Some(tables) = SHIPPED.get() {
        return Ok(tables.clone());
    }
    let tables = identity::compile(agents)?;
    Ok(SHIPPED.get_or_init(|| tables).clone())
}

/// Whether to try patterns on what must never be marked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// The operator's patterns are tried.
    Check,
    /// Shipped patterns are not, since the tests of the program try them.
    Shipped,
}

fn agent_rules(source: &Text<'_>, at: &Origin, file: &raw::Agent, trust: Trust) -> Result<AgentRules, ConfigError> {
    let name = name(source, at, "agent", "name", file.name.clone())?;
    if let Some(allow) = file.allow_root.as_ref().filter(|allow| !*allow.get_ref()) {
        let instead = "remove it; a marked process of uid 0 is judged like any other";
        return Err(not_enforced(source, allow, "allow_root", "false", instead));
    }
    let lists = [("exec", &file.exec), ("script", &file.script), ("module", &file.module), ("cgroup", &file.cgroup), ("unit", &file.unit)];
    for (kind, patterns) in lists {
        for pattern in patterns.iter().filter(|_| trust == Trust::Check) {
            check_pattern(source, &name, kind, pattern)?;
        }
    }
    let mut uids = Vec::new();
    for user in &file.user {
        uids.push(uid(source, &name, user)?);
    }
    let texts = |list: &[Spanned<String>]| list.iter().map(|text| text.get_ref().clone()).collect();
    Ok(AgentRules {
        name,
        exec: texts(&file.exec),
        script: texts(&file.script),
        module: texts(&file.module),
        user: texts(&file.user),
        uids,
        cgroup: texts(&file.cgroup),
        unit: texts(&file.unit),
    })
}

fn check_pattern(source: &Text<'_>, agent: &str, kind: &'static str, pattern: &Spanned<String>) -> Result<(), ConfigError> {
    let text = pattern.get_ref();
    identity::check_pattern(agent, kind, text).map_err(|error| {
        let problem = match error {
            identity::PatternError::Pattern(error) => Problem::Rule(error),
            identity::PatternError::Danger(danger) => Problem::Danger { agent: agent.to_owned(), kind, pattern: text.clone(), danger },
        };
        invalid(source.at(pattern.span()), problem)
    })
}

/// The uid of a user, written as a name of this host or as a number.
fn uid(source: &Text<'_>, agent: &str, user: &Spanned<String>) -> Result<u32, ConfigError> {
    let text = user.get_ref();
    let at = || source.at(user.span());
    let found = match text.parse() {
        Ok(uid) => Ok(uid),
        Err(_) => match accounts::uid_of(text) {
            Ok(Some(uid)) => Ok(uid),
            Ok(None) => Err("no such user on this host; create it first, or write its uid"),
            Err(_) => Err("the user database of this host does not answer; write its uid"),
        },
    };
    let uid = found.map_err(|wanted| invalid(at(), Problem::BadValue { key: "user", found: text.clone(), wanted }))?;
    identity::check_user(text, uid).map_err(|danger| {
        let (agent, pattern) = (agent.to_owned(), text.clone());
        invalid(at(), Problem::Danger { agent, kind: "user", pattern, danger })
    })?;
    Ok(uid)
}
