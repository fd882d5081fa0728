//! Rules about tools that guess passwords or scan networks. They match the names of the tools and the shapes of their command lines.
//!
//! `dist/tools.toml` is the table. It is compiled, with what policy allows, into one automaton over the path given to `execve` and the
//! argument vector. The kernel walks it at every exec of a session. It is a hint and no guarantee, since a renamed program passes it. The
//! rate rules are the protection.

mod machine;
mod shape;

use regex_automata::hybrid::BuildError;
use serde::Deserialize;

use crate::compiled;
use crate::matcher::{self, TooMuch};
use machine::{Machine, Walked};
use pp_common::tools::{MAX_TOOL_RULES, TOOL_OBSERVE, TOOL_REFUSE, TOOL_STATES};

const KIND: matcher::Kind = matcher::Kind {
    name: "tools",
    code: &[include_str!("tools.rs"), include_str!("tools/machine.rs"), include_str!("tools/shape.rs")],
    most_states: TOOL_STATES,
    most_explored: 60_000,
};

/// The tools that ship with the program.
const SHIPPED: &str = include_str!("../../dist/tools.toml");

/// What the kernel's tool maps hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ToolTables {
    /// The automaton, which is walked to the end of the input.
    pub(crate) table: matcher::Table,
    /// The rules of the codes, by `pp_common::tools::rule_of`.
    pub(crate) rules: Vec<ToolRule>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToolRule {
    /// The tool.
    pub(crate) tool: String,
    /// The shape of the command line; `None`: the name alone.
    pub(crate) shape: Option<String>,
    /// ATT&CK techniques.
    pub(crate) attack: Vec<String>,
}

/// Why rules cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    /// The table, or a pattern in it, cannot be read.
    #[error("table of tools: {0}")]
    Table(String),
    /// A line of `allow` names no tool of the table.
    #[error("allow {line:?}: there is no rule about {tool}; {}", nearest(.tool, .known))]
    UnknownTool {
        /// The line.
        line: String,
        /// The tool that it names.
        tool: String,
        /// The tools of the table.
        known: Vec<String>,
    },
    /// A line of `allow` is not valid.
    #[error("allow {line:?}: {why}")]
    Allow {
        /// The line.
        line: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More than the kernel's tables hold.
    #[error("exec rules: {need} {what} needed, the kernel tables hold {most}; shorten [exec] allow")]
    TooComplex {
        /// What is too large.
        what: &'static str,
        /// How much is needed.
        need: usize,
        /// How much there is.
        most: usize,
    },
}

impl From<TooMuch> for ToolError {
    fn from(TooMuch { what, need, most }: TooMuch) -> Self {
        Self::TooComplex { what, need, most }
    }
}

impl From<Box<BuildError>> for ToolError {
    fn from(error: Box<BuildError>) -> Self {
        use std::error::Error as _;
        Self::Table(error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}")))
    }
}

fn nearest(tool: &str, known: &[String]) -> String {
    let near = known.iter().min_by_key(|name| strsim::damerau_levenshtein(name, tool));
    near.map_or_else(String::new, |name| format!("did you mean {name}?"))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    tool: Vec<Tool>,
}

/// A tool of the table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tool {
    name: String,
    files: Vec<String>,
    /// The names in `files` that are reported without a shape; absent: all.
    named: Option<Vec<String>>,
    attack: Vec<String>,
    #[serde(default)]
    shape: Vec<Shape>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    name: String,
    words: Vec<String>,
}

/// Checks one line of `allow`.
///
/// # Errors
/// It names no tool of the table, or is not valid.
pub(crate) fn check_allow(line: &str) -> Result<(), ToolError> {
    shape::allowed(line, &shipped()?).map(drop)
}

fn shipped() -> Result<Vec<Tool>, ToolError> {
    let table: Table = toml::from_str(SHIPPED).map_err(|error| ToolError::Table(error.to_string()))?;
    Ok(table.tool)
}

/// Compiles the shipped table with what policy allows (see `docs/policy.md`).
///
/// # Errors
/// A bad line of `allow`, or more than the tables hold.
pub(crate) fn compile(allow: &[String], observe: bool) -> Result<ToolTables, ToolError> {
    let tools = shipped()?;
    let (rules, walked) = rules(&tools, allow)?;
    let table = compiled::table(&KIND, &format!("{SHIPPED}{allow:?}{observe}"), || {
        let refused = if observe { TOOL_OBSERVE } else { TOOL_REFUSE };
        Ok::<_, ToolError>(matcher::compile(&mut Machine::new(&tools, walked, refused)?, &KIND)?)
    })?;
    Ok(ToolTables { table, rules })
}

/// The rules, and the tools with the rules about each.
fn rules(tools: &[Tool], allow: &[String]) -> Result<(Vec<ToolRule>, Vec<Walked>), ToolError> {
    let mut rules = Vec::new();
    let mut walked = Vec::new();
    for tool in tools {
        let mut rule = |shape: Option<&str>| {
            rules.push(ToolRule { tool: tool.name.clone(), shape: shape.map(str::to_owned), attack: tool.attack.clone() });
            rules.len()
        };
        let shapes: Vec<_> = tool.shape.iter().map(|shape| (shape::regex(shape), rule(Some(&shape.name)))).collect();
        // Only a tool with shapes needs a rule for arguments that are too long to be read.
        let unseen = (!shapes.is_empty()).then(|| rule(Some("more arguments than can be read")));
        walked.push(Walked { shapes, allowed: Vec::new(), unseen, alone: rule(None) });
    }
    for line in allow {
        let (tool, regex) = shape::allowed(line, tools)?;
        walked[tool].allowed.push(regex);
    }
    if rules.len() > MAX_TOOL_RULES {
        return Err(ToolError::TooComplex { what: "rules", need: rules.len(), most: MAX_TOOL_RULES });
    }
    Ok((rules, walked))
}

#[cfg(test)]
mod tests;
