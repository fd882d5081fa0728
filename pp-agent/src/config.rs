//! The policy of the operator: `policy.toml` and its drop-ins, read, merged and checked as a whole. A [`Config`] is always valid.
//!
//! It is strict. An unknown key, a contradiction, or a term that this build does not enforce is an error with file and line. The caller
//! then keeps the policy in force.

mod agents;
mod behaviour;
mod check;
mod delegates;
mod error;
mod exec;
mod names;
mod off;
mod raw;
mod room;
mod services;
mod show;
mod source;
mod tables;
mod tamper;
mod value;

pub(crate) use crate::trusted::FileCheck;
pub(crate) use behaviour::{Behaviour, Exemption};
pub use error::{ConfigError, Origin, Problem};
pub(crate) use off::Off;
pub(crate) use pp_common::net_admin::NetAdmin;
pub(crate) use source::{NotRead, Paths, Source};
pub(crate) use tamper::LaterFiles;

use crate::delegates::{Delegate, Unknown};
use crate::identity::{AgentRules, CgroupRule, IdentityTables};
use crate::net::Mac;
use crate::services::ServiceRow;
use crate::tools::ToolTables;
use ipnet::IpNet;
use pp_common::abi::NameId;
use pp_common::turns::Limits;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What happens to a protected attempt without a receipt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// It is refused.
    #[default]
    Enforce,
    /// It is allowed, and reported as one that would have been refused.
    Observe,
}

impl Mode {
    /// Its name in policy and status.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        }
    }
}

/// The posture below which the daemon does not report itself ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Require {
    /// No gap at all.
    Enforcing,
}

/// A valid policy.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of this host in receipts. Without it no receipt can be registered.
    pub(crate) host: Option<String>,
    /// The name of this organisation in receipts. Without it no receipt can be registered.
    pub(crate) tenant: Option<String>,
    /// The whole host's mode.
    pub(crate) mode: Mode,
    /// The required posture, if any.
    pub(crate) require: Option<Require>,
    /// Whether receipts may omit the users that they are for.
    pub(crate) any_user: bool,
    /// Most marked processes at once.
    pub(crate) max_tasks: u32,
    /// Zones, as written.
    pub(crate) zones: Vec<Zone>,
    /// Gateways, as written.
    pub(crate) gateways: Vec<Gateway>,
    /// Services, and where they are not protected.
    pub(crate) services: Services,
    /// What sessions may run of known tools.
    pub(crate) exec: Exec,
    /// The rate rules: how much agents may reach without a receipt.
    pub(crate) behaviour: Behaviour,
    /// Agents: the operator's, including the shipped rules of the same names, then the other shipped ones.
    pub(crate) agents: Vec<AgentRules>,
    /// Who may sign receipts for what.
    pub(crate) authorities: Vec<Authority>,
    /// Servers that act for their callers: the operator's, including the shipped rows of the same names, then the other shipped ones.
    pub(crate) delegates: Vec<Delegate>,
    /// What happens to calls of servers that none of these is about.
    pub(crate) unknown_delegates: Unknown,
    /// What happens to sessions that administer the host's network.
    pub(crate) net_admin: NetAdmin,
    /// What happens to sessions that change files by which others act later.
    pub(crate) later_files: LaterFiles,
    /// The agents' rules, compiled, without cgroups.
    pub identity: IdentityTables,
    /// The rules about tools, compiled.
    pub(crate) tools: ToolTables,
    /// Cgroup and unit rules; see [`crate::identity::resolve_cgroups`].
    pub(crate) cgroup_rules: Vec<CgroupRule>,
    /// The files it was read from, in order, for [`Config::from_sources`].
    pub(crate) sources: Vec<Source>,
    /// What the operator should know about it, one sentence each.
    pub(crate) notes: Vec<String>,
    /// Which tables and lists add to what is shipped, in one sentence.
    pub(crate) adds: Option<String>,
    /// What is probably a mistake.
    pub(crate) warnings: Vec<String>,
    /// What of the shipped protection is off.
    pub(crate) off: Vec<Off>,
    /// Entries of the folder of drop-ins that were not read.
    pub(crate) not_read: Vec<NotRead>,
}

/// A named set of OT networks: each port in them is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Zone {
    /// Its name.
    pub(crate) name: String,
    /// Its networks, host bits clear.
    pub(crate) networks: Vec<IpNet>,
    /// Hardware addresses of devices in it.
    pub(crate) macs: Vec<Mac>,
    /// Its own mode; the host's if that observes.
    pub(crate) mode: Mode,
}

/// An industrial gateway with a login page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gateway {
    /// Its name.
    pub(crate) name: String,
    /// Its address.
    pub(crate) address: IpAddr,
    /// Its hardware addresses.
    pub(crate) macs: Vec<Mac>,
    /// The ports that are protected; empty: all.
    pub(crate) ports: Vec<u16>,
    /// Its own mode; the host's if that observes.
    pub(crate) mode: Mode,
    /// The limits of each flow to it.
    pub(crate) limits: Limits,
}

/// Which services are protected, and where not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Services {
    /// The services that are protected outside zones.
    pub(crate) enabled: Vec<&'static ServiceRow>,
    /// Networks in which services are not protected.
    pub(crate) exempt: Vec<IpNet>,
    /// Their mode; the host's if that observes.
    pub(crate) mode: Mode,
}

/// Which tools sessions may run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Exec {
    /// Their mode; the host's if that observes.
    pub(crate) mode: Mode,
    /// Command lines that are neither refused nor reported.
    pub(crate) allow: Vec<String>,
}

pub(crate) use crate::receipt::Authority;

/// A name that no agent of the policy has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnknownAgent {
    /// The name.
    pub(crate) name: String,
    /// The agent that was probably meant.
    pub(crate) nearest: Option<String>,
}

impl std::fmt::Display for UnknownAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "agent {}: no agent of the policy has this name; ", self.name)?;
        match &self.nearest {
            Some(nearest) => write!(f, "did you mean {nearest}?"),
            None => f.write_str("only pp-agent run and adopt with this --agent make such sessions"),
        }
    }
}

#[cfg(test)]
impl Config {
    /// The policy of this text.
    pub(crate) fn of_text(text: &str) -> Self {
        Self::from_sources(vec![Source { name: "policy.toml".to_owned(), text: text.to_owned() }]).expect("a policy")
    }
}

impl Config {
    /// Reads the policy of this host. Without any file: [`Config::builtin`].
    ///
    /// # Errors
    /// The first error, with file and line.
    pub(crate) fn load(paths: &Paths, file_check: FileCheck) -> Result<Self, ConfigError> {
        let (sources, not_read) = source::read_all(paths, file_check)?;
        Ok(Self { not_read, ..Self::from_sources(sources)? })
    }

    /// Entries of the folder of drop-ins that are not read, also if the policy cannot be read.
    #[must_use]
    pub(crate) fn not_read(paths: &Paths) -> Vec<NotRead> {
        source::not_read(paths)
    }

    /// Makes a policy of texts that were read before, such as the last good policy.
    ///
    /// # Errors
    /// The first error, with file and line.
    pub(crate) fn from_sources(sources: Vec<Source>) -> Result<Self, ConfigError> {
        check::check(sources)
    }

    /// The policy for a host without one: the shipped services and agents, enforcing, without zones and authorities.
    ///
    /// # Errors
    /// None in a build whose tests pass, since they compile the shipped agents.
    pub fn builtin() -> Result<Self, ConfigError> {
        check::check(Vec::new())
    }

    /// Whether policy knows an agent of this name.
    #[must_use]
    pub(crate) fn knows_agent(&self, name: &str) -> bool {
        self.agents.iter().any(|agent| agent.name == name)
    }

    /// The warning about a receipt or session whose agent policy does not know, with the name that was probably meant.
    #[must_use]
    pub(crate) fn unknown_agent(&self, name: &str) -> Option<UnknownAgent> {
        (!self.knows_agent(name)).then(|| UnknownAgent { name: name.to_owned(), nearest: agents::nearest(name, &self.agents) })
    }

    /// Number and name of every agent, zone, gateway and service.
    #[must_use]
    pub(crate) fn names(&self) -> Vec<(NameId, String)> {
        names::all(self)
    }

    /// The policy in force as text that [`Config::from_sources`] reads again.
    #[must_use]
    pub(crate) fn to_toml(&self) -> String {
        show::to_toml(self)
    }
}

impl Services {
    /// The service that protects this port outside zones.
    #[must_use]
    pub(crate) fn on(&self, transport: u8, port: u16) -> Option<&'static ServiceRow> {
        self.enabled.iter().copied().find(|row| row.has(transport, port))
    }
}

impl Default for Services {
    fn default() -> Self {
        Self {
            enabled: crate::services::defaults().collect(),
            exempt: vec![
                IpNet::from(ipnet::Ipv4Net::new_assert([127, 0, 0, 0].into(), 8)),
                IpNet::from(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)),
            ],
            mode: Mode::Enforce,
        }
    }
}

#[cfg(test)]
mod tests;
