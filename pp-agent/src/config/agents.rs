//! The `[[agent]]` tables: patterns that can be compiled and endanger nothing,
//! users that exist, and the agents that ship with the program.

use super::error::{ConfigError, Origin, Problem};
use super::raw;
use super::source::Source;
use super::value::{invalid, name, not_enforced};
use crate::identity::{self, AgentRules, IdentityTables};
use std::sync::OnceLock;
use toml::Spanned;

/// The agents that ship with the program.
pub(super) const SHIPPED: &str = include_str!("../../../dist/agents.toml");

/// The rules of these agents. Those of the shipped agents alone are compiled
/// once in a process: they are in every policy that defines no agent.
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

/// Whether patterns are tried on what must never be marked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// They are the operator's.
    Check,
    /// They ship with the program, whose tests have tried them.
    Shipped,
}

pub(super) fn agent_rules(source: &Source, at: &Origin, file: raw::Agent, trust: Trust) -> Result<AgentRules, ConfigError> {
    let name = name(source, at, "agent", "name", file.name)?;
    if let Some(allow) = file.allow_root.filter(|allow| !*allow.get_ref()) {
        let instead = "remove it; a marked process of uid 0 is judged like any other";
        return Err(not_enforced(source, &allow, "allow_root", "false", instead));
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
    let texts = |list: Vec<Spanned<String>>| list.into_iter().map(Spanned::into_inner).collect();
    Ok(AgentRules {
        name,
        exec: texts(file.exec),
        script: texts(file.script),
        module: texts(file.module),
        user: texts(file.user),
        uids,
        cgroup: texts(file.cgroup),
        unit: texts(file.unit),
    })
}

fn check_pattern(source: &Source, agent: &str, kind: &'static str, pattern: &Spanned<String>) -> Result<(), ConfigError> {
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
fn uid(source: &Source, agent: &str, user: &Spanned<String>) -> Result<u32, ConfigError> {
    let text = user.get_ref();
    let at = || source.at(user.span());
    let known = || match nix::unistd::User::from_name(text) {
        Ok(Some(user)) => Some(user.uid.as_raw()),
        Ok(None) | Err(_) => None,
    };
    let Some(uid) = text.parse().ok().or_else(known) else {
        let wanted = "no such user on this host; create it first, or write its uid";
        let problem = Problem::BadValue { key: "user", found: text.clone(), wanted };
        return Err(invalid(at(), problem));
    };
    identity::check_user(text, uid).map_err(|danger| {
        let (agent, pattern) = (agent.to_owned(), text.clone());
        invalid(at(), Problem::Danger { agent, kind: "user", pattern, danger })
    })?;
    Ok(uid)
}
