//! Errors in a policy, each with its place and what to do.

use super::source::MAX_FILE_BYTES;
use crate::identity::{Danger, IdentityError};
use crate::net::Mac;
use crate::tools::ToolError;
use crate::trusted::FileProblem;
use ipnet::IpNet;
use std::fmt;
use std::path::{Path, PathBuf};

/// A place in a policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file, as it was named when it was read.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Why a policy is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or folder cannot be read.
    #[error("{path}: {source}; a policy file must be readable by root", path = path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A policy file is no regular file.
    #[error("{path}: is not a regular file; put the policy itself there", path = path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The path of the drop-ins is no folder.
    #[error("{path}: is not a folder; drop-ins are *.toml files in a folder of this name", path = path.display())]
    NotAFolder {
        /// Its path.
        path: PathBuf,
    },
    /// A file belongs to another user, who could rewrite it.
    #[error("{path}: belongs to uid {uid}, must belong to uid {wanted}; chown it", path = path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// The owner that it must have.
        wanted: u32,
    },
    /// Others than the owner can write a file.
    #[error("{path}: mode {mode:04o} lets others write it; chmod 0640", path = path.display())]
    Writable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file is too big to be a policy.
    #[error("{path}: {size} bytes, at most {MAX_FILE_BYTES} are read; split it or remove what is not policy", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// A file is not text.
    #[error("{path}: is not UTF-8 from byte {offset}; save it as UTF-8", path = path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The first bad byte.
        offset: usize,
    },
    /// A file has an error.
    #[error("{at}: {problem}")]
    Invalid {
        /// Where.
        at: Origin,
        /// What, and what to do.
        problem: Box<Problem>,
    },
    /// There are more networks than fit into a table of the kernel.
    #[error("{networks}: {need} written, {most} fit; {remedy}")]
    TooMany {
        /// The networks.
        networks: &'static str,
        /// How many there are, each counted once.
        need: usize,
        /// How many fit.
        most: usize,
        /// What to do.
        remedy: &'static str,
    },
    /// The rules of all agents do not fit together.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The rules about tools do not fit.
    #[error(transparent)]
    Tools(#[from] ToolError),
}

impl ConfigError {
    /// The error for a file that cannot be read.
    pub(super) fn of_file(path: &Path) -> impl FnOnce(FileProblem) -> Self {
        let path = path.to_owned();
        move |problem| match problem {
            FileProblem::Unreadable(source) => Self::Read { path, source },
            FileProblem::NotAFile => Self::NotAFile { path },
            FileProblem::Owner { uid, wanted } => Self::Owner { path, uid, wanted },
            FileProblem::Writable { mode } => Self::Writable { path, mode },
            FileProblem::TooLarge { size, most: _ } => Self::TooLarge { path, size },
        }
    }
}

/// An error at one place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not TOML, or a value of the wrong type.
    #[error("{0}")]
    Syntax(String),
    /// An unknown key or value.
    #[error("unknown {what} {found}{}", hint(nearest.as_deref(), known))]
    Unknown {
        /// `key`, `value`, `service`, `zone` or `gateway`.
        what: &'static str,
        /// What was written.
        found: String,
        /// The most similar valid one.
        nearest: Option<String>,
        /// Every valid one.
        known: Vec<String>,
    },
    /// A required key is missing.
    #[error("{what}: has no {key}; add it")]
    Missing {
        /// The table.
        what: String,
        /// The key.
        key: &'static str,
    },
    /// Two files set one key.
    #[error("{key}: set twice, first at {first}; keep one of the two")]
    SetTwice {
        /// The key.
        key: &'static str,
        /// The first place.
        first: Origin,
    },
    /// Two tables have the same name.
    #[error("{what} {name}: defined twice, first at {first}; rename one or join them")]
    Duplicate {
        /// `zone`, `gateway`, `agent` or `authority`.
        what: &'static str,
        /// Its name.
        name: String,
        /// The first place.
        first: Origin,
    },
    /// A table without an effect.
    #[error("{what}: changes nothing; {instead}")]
    ChangesNothing {
        /// The table.
        what: String,
        /// What to write.
        instead: &'static str,
    },
    /// Something is both enabled and disabled.
    #[error("{what} {name}: is enabled at {first} and disabled here; keep one of the two")]
    BothWays {
        /// `service`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Where it is enabled.
        first: Origin,
    },
    /// A name is not valid.
    #[error("{key}: {why}")]
    BadName {
        /// The key.
        key: &'static str,
        /// What is wrong and what to do.
        why: &'static str,
    },
    /// Not a network.
    #[error("network {text}: {why}")]
    BadNetwork {
        /// What was written.
        text: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// One network is in two zones.
    #[error("network {network}: is in zone {zone} too, at {first}; an address belongs to one zone, remove one of the two")]
    NetworkTwice {
        /// The network.
        network: IpNet,
        /// The other zone.
        zone: String,
        /// Where that is.
        first: Origin,
    },
    /// Two gateways have the same address.
    #[error("gateway {name}: has the address of gateway {other}; list the ports of both in one")]
    AddressTwice {
        /// The gateway.
        name: String,
        /// The other one.
        other: String,
    },
    /// Two places have the same hardware address.
    #[error("mac {mac}: belongs to {other} too, at {first}; a device belongs to one place, remove one of the two")]
    MacTwice {
        /// The hardware address.
        mac: Mac,
        /// The other place.
        other: String,
        /// Where that is.
        first: Origin,
    },
    /// A value is outside its range.
    #[error("{key}: {found}; {wanted}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// What was written.
        found: String,
        /// What is wanted.
        wanted: &'static str,
    },
    /// Policy asks for something that this build does not enforce.
    #[error("{key}: {found} is not enforced by this build; {instead}")]
    NotEnforced {
        /// The key.
        key: &'static str,
        /// What was written.
        found: String,
        /// What to do instead.
        instead: &'static str,
    },
    /// A mode that would have no effect.
    #[error("mode: {what} says enforce while the host only observes; remove this line, or the host's mode = \"observe\"")]
    ModeWithoutEffect {
        /// What it belongs to.
        what: String,
    },
    /// A rule that cannot be compiled.
    #[error(transparent)]
    Rule(#[from] IdentityError),
    /// A line of `[exec] allow` is not valid.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A rule that would mark what must never be marked.
    #[error("agent {agent}: {kind} {pattern:?}: {danger}")]
    Danger {
        /// The agent.
        agent: String,
        /// The kind of rule.
        kind: &'static str,
        /// The pattern.
        pattern: String,
        /// What it would mark.
        danger: Danger,
    },
}

fn hint(nearest: Option<&str>, known: &[String]) -> String {
    match nearest {
        Some(nearest) => format!("; did you mean {nearest}?"),
        None if known.is_empty() => "; remove it".to_owned(),
        None => format!("; known are {}", known.join(", ")),
    }
}
