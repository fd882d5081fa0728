//! Which processes are agents: the rules of policy, compiled into the tables that the kernel walks at every exec.
//!
//! One automaton reads the path given to `execve` and the argument vector once, and ends in the first rule that matches. Rule 0 is the list
//! of programs that are never marked. Users and cgroups are looked up only if no rule of the automaton matched. A cgroup rule also applies
//! to the cgroups below.

mod cgroups;
mod machine;
mod never;

pub(crate) use cgroups::{CgroupRule, names_nothing, resolve_cgroups};
pub use never::Danger;
pub(crate) use never::{check_cgroup, check_unit, check_user};

use crate::compiled;
use crate::matcher::{self, Step, Table, TooMuch};
use crate::name::name_id;
use machine::{Kind, Machine, Rule};
use pp_common::abi::{DFA_STATES, EXEC_ARGV_LEN, EXEC_PATH_LEN, MAX_RULES, NameId};

const KIND: matcher::Kind = matcher::Kind {
    name: "identity",
    code: &[include_str!("identity.rs"), include_str!("identity/machine.rs")],
    most_states: DFA_STATES,
    most_explored: 20_000,
};

/// The rules of one agent, as written in policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AgentRules {
    /// The agent.
    pub(crate) name: String,
    /// Globs over the path given to `execve`; without `/`, over its file name.
    pub(crate) exec: Vec<String>,
    /// Globs over the path of an interpreter's script; without `/`, over its file name.
    pub(crate) script: Vec<String>,
    /// Names after an interpreter's `-m`.
    pub(crate) module: Vec<String>,
    /// Users, as written.
    pub(crate) user: Vec<String>,
    /// The uids of these users.
    pub(crate) uids: Vec<u32>,
    /// Globs over the path of a cgroup below the root of cgroup2.
    pub(crate) cgroup: Vec<String>,
    /// Globs over the name of a systemd unit or slice.
    pub(crate) unit: Vec<String>,
}

/// What the kernel's identity maps hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityTables {
    /// The automaton. It accepts with the index of a rule.
    pub(crate) table: Table,
    /// The agent of each rule; zero: it marks nothing.
    pub(crate) targets: Vec<NameId>,
    /// Each rule in words, in the order of `targets`.
    pub(crate) rules: Vec<String>,
    /// Users that belong to an agent.
    pub(crate) uids: Vec<(u32, NameId)>,
    /// Cgroups that belong to an agent, by cgroup id.
    pub(crate) cgroups: Vec<(u64, NameId)>,
    /// Names for the numbers.
    pub(crate) names: Vec<(NameId, String)>,
}

/// Why rules cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A pattern is no glob that can be compiled.
    #[error("agent {agent}: {kind} pattern {pattern:?}: {why}")]
    Pattern {
        /// The agent.
        agent: String,
        /// `exec`, `script`, `module`, `cgroup` or `unit`.
        kind: &'static str,
        /// The pattern.
        pattern: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// The rules together need a bigger automaton than the kernel tables hold.
    #[error(
        "agent {agent}: its rules and those before it need {need} {what}, the kernel tables hold {most}; use fewer patterns, or fewer * in them"
    )]
    TooComplex {
        /// The first agent that does not fit.
        agent: String,
        /// What is too large.
        what: &'static str,
        /// How much is needed.
        need: usize,
        /// How much there is.
        most: usize,
    },
    /// Two agents claim one user.
    #[error("user {user}: belongs to agents {first} and {second}; name it in one of them")]
    UserTwice {
        /// The user, as the second agent writes it.
        user: String,
        /// The first agent.
        first: String,
        /// The second agent.
        second: String,
    },
}

impl From<TooMuch> for IdentityError {
    fn from(TooMuch { what, need, most }: TooMuch) -> Self {
        Self::TooComplex { agent: String::new(), what, need, most }
    }
}

/// Compiles the rules of every agent. If two match at the same byte, the earlier agent wins.
///
/// # Errors
/// A bad pattern, two agents with one user, or more than the tables hold.
pub(crate) fn compile(agents: &[AgentRules]) -> Result<IdentityTables, IdentityError> {
    let uids = users(agents)?;
    let rules = rules(agents);
    let table = compiled::table(&KIND, &format!("{rules:?}"), || build(&rules)).map_err(|error| name_the_culprit(agents, error))?;
    Ok(IdentityTables {
        table,
        targets: rules.iter().map(|rule| rule.target).collect(),
        rules: rules.iter().map(|rule| rule.label.clone()).collect(),
        uids,
        cgroups: Vec::new(),
        names: agents.iter().map(|agent| (name_id(&agent.name), agent.name.clone())).collect(),
    })
}

/// Checks that a pattern of policy does not mark what must never be marked. `kind` is its key: `exec`, `script`, `module`, `cgroup` or
/// `unit`.
///
/// # Errors
/// A pattern that is no glob, or the danger.
pub(crate) fn check_pattern(agent: &str, kind: &'static str, pattern: &str) -> Result<(), PatternError> {
    let rule = match kind {
        "exec" => Rule::new(Kind::Exec, agent, &[pattern.to_owned()]),
        "script" => Rule::new(Kind::Script, agent, &[pattern.to_owned()]),
        "module" => Rule::new(Kind::Module, agent, &[pattern.to_owned()]),
        _ => {
            cgroups::check(agent, kind, pattern)?;
            let danger = if kind == "unit" { check_unit(pattern) } else { check_cgroup(pattern) };
            return Ok(danger?);
        }
    };
    let mut machine = Machine::new(&[rule])?;
    never::check_machine(&mut machine)
}

/// Why a single pattern is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PatternError {
    /// It is no glob.
    #[error(transparent)]
    Pattern(#[from] IdentityError),
    /// It would mark what must never be marked.
    #[error(transparent)]
    Danger(#[from] Danger),
}

fn users(agents: &[AgentRules]) -> Result<Vec<(u32, NameId)>, IdentityError> {
    let mut owners: Vec<(u32, &str)> = Vec::new();
    for agent in agents {
        for (uid, user) in agent.uids.iter().zip(&agent.user) {
            match owners.iter().find(|(known, _)| known == uid) {
                Some((_, first)) if *first != agent.name => {
                    return Err(IdentityError::UserTwice { user: user.clone(), first: (*first).to_owned(), second: agent.name.clone() });
                }
                Some(_) => {}
                None => owners.push((*uid, &agent.name)),
            }
        }
    }
    Ok(owners.into_iter().map(|(uid, agent)| (uid, name_id(agent))).collect())
}

/// The never-list, then one rule for each kind of each agent.
fn rules(agents: &[AgentRules]) -> Vec<Rule> {
    let mut rules = vec![Rule::never()];
    for agent in agents {
        for (kind, patterns) in [(Kind::Exec, &agent.exec), (Kind::Script, &agent.script), (Kind::Module, &agent.module)] {
            if !patterns.is_empty() {
                rules.push(Rule::new(kind, &agent.name, patterns));
            }
        }
    }
    rules
}

fn build(rules: &[Rule]) -> Result<Table, IdentityError> {
    if rules.len() > MAX_RULES {
        return Err(TooMuch { what: "rules", need: rules.len(), most: MAX_RULES }.into());
    }
    Ok(matcher::compile(&mut Machine::new(rules)?, &KIND)?)
}

/// Finds the first agent whose rules do not fit, by bisection: rules that fit also fit with fewer agents.
fn name_the_culprit(agents: &[AgentRules], error: IdentityError) -> IdentityError {
    let IdentityError::TooComplex { mut what, mut need, mut most, .. } = error else {
        return error;
    };
    let (mut fits, mut fails) = (0, agents.len());
    while fails - fits > 1 {
        let middle = fits.midpoint(fails);
        match build(&rules(&agents[..middle])) {
            Err(IdentityError::TooComplex { what: w, need: n, most: m, .. }) => {
                (what, need, most) = (w, n, m);
                fails = middle;
            }
            Ok(_) | Err(_) => fits = middle,
        }
    }
    let agent = agents[..fails].last().map_or_else(String::new, |agent| agent.name.clone());
    IdentityError::TooComplex { agent, what, need, most }
}

impl IdentityTables {
    /// The rule that these tables find for a program with this path and argument vector. It is the same walk as in the kernel.
    #[must_use]
    pub(crate) fn rule(&self, path: &[u8], argv: &[&[u8]]) -> Option<usize> {
        match self.table.follow(kernel_input(path, argv)) {
            Step::Accept(rule) => Some(rule),
            Step::Go(_) | Step::Dead => None,
        }
    }

    /// The agent of a program with this path and argument vector. Zero: it is never marked. `None`: no rule matches, so its user and cgroup
    /// decide.
    #[must_use]
    pub fn matches(&self, path: &[u8], argv: &[&[u8]]) -> Option<NameId> {
        self.rule(path, argv).and_then(|rule| self.targets.get(rule).copied())
    }

    /// The name of a number, if policy has it.
    #[must_use]
    pub fn name(&self, id: NameId) -> Option<&str> {
        self.names.iter().find(|(known, _)| *known == id).map(|(_, name)| name.as_str())
    }
}

/// The bytes that the kernel reads: the path, NUL, each argument with its NUL, and another NUL if there is room. Both parts are cut where
/// the kernel cuts them.
fn kernel_input(path: &[u8], argv: &[&[u8]]) -> Vec<u8> {
    let mut input: Vec<u8> = path.iter().copied().take(EXEC_PATH_LEN - 1).collect();
    input.push(0);
    let args = argv.iter().flat_map(|arg| arg.iter().copied().chain([0]));
    input.extend(args.chain([0]).take(EXEC_ARGV_LEN));
    input
}

#[cfg(test)]
mod tests;
