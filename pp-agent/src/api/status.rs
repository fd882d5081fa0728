//! The gate's health, and what is protected beside what policy names.

use serde::{Deserialize, Serialize};

use super::Remarks;
use crate::config::Mode;
use crate::kernel::Gap;

/// How far what was asked for is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Posture {
    /// The canary was refused everything.
    Enforcing,
    /// It was refused everything but what this kernel is known to leave open.
    Partial,
    /// Policy asks for no refusals.
    Observe,
    /// Something went through that must not.
    Open,
    /// There are problems: see them.
    Degraded,
    /// Nothing was tried yet, or a later version says something that this one does not know.
    #[default]
    #[serde(rename = "", other)]
    Unmeasured,
}

impl Posture {
    /// Whether refusals hold, but for known gaps.
    #[must_use]
    pub const fn refuses(self) -> bool {
        matches!(self, Self::Enforcing | Self::Partial)
    }
}

impl std::fmt::Display for Posture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

/// Something that is open on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Opening {
    /// This kernel is known to leave it open.
    Known(Gap),
    /// What the canary got through with, or why it could not be sent.
    Found(String),
}

impl std::fmt::Display for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Known(gap) => f.write_str(gap.name()),
            Self::Found(what) => f.write_str(what),
        }
    }
}

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    pub version: String,
    pub abi: u32,
    pub host: Option<String>,
    pub kernel: String,
    pub backend: String,
    pub backends: Vec<BackendView>,
    /// What is enforced of what was asked for.
    pub posture: Posture,
    /// What the canary found.
    pub measured: Posture,
    pub gaps: Vec<Opening>,
    pub watch: WatchView,
    pub neighbours: Neighbours,
    pub mode: Mode,
    pub policy: String,
    #[serde(flatten)]
    pub remarks: Remarks,
    pub problems: Vec<String>,
    pub healthy: bool,
    pub generation: u32,
    /// Absent where it is not known since when they are counted.
    pub refusals: Option<RefusalCounts>,
    pub sessions: usize,
    pub receipts: usize,
    pub started: String,
    pub pid: u32,
}

/// What became of a backend at start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendView {
    pub name: String,
    pub found: String,
}

/// How the refusals of this boot were told: `told` + `repeats` + `lost` + `untold` = `refused`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RefusalCounts {
    /// By the kernel's count, since this account is kept.
    pub refused: u64,
    pub told: u64,
    pub repeats: u64,
    pub lost: u64,
    /// Not yet: records on their way, and repeats that are told when their window is over.
    pub untold: u64,
    /// Told by events that this daemon could not store.
    pub not_stored: u64,
}

/// What watching the gate found last.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchView {
    pub canary: CanaryView,
    pub hooks: HooksView,
}

/// The last canary.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CanaryView {
    pub time: String,
    pub runs: u64,
    pub findings: Vec<FindingView>,
}

/// What became of one attempt of the canary's.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FindingView {
    pub technique: String,
    pub errno: i32,
    pub refused: bool,
}

/// Hooks that are looked at, and what had to be done to them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HooksView {
    pub watched: usize,
    pub mended: u64,
    pub missing: Vec<String>,
    pub beyond_repair: u64,
    /// Programs of others that run after ours.
    pub foreign: usize,
}

/// What is protected beside what policy names: a list for operators, counts for everybody else.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Neighbours {
    List(NeighbourList),
    Counts(NeighbourCounts),
}

impl Default for Neighbours {
    fn default() -> Self {
        Self::List(NeighbourList::default())
    }
}

impl Neighbours {
    /// How many there are. A list of addresses is a map of the plant.
    #[must_use]
    pub const fn counts(&self) -> NeighbourCounts {
        match self {
            Self::Counts(counts) => *counts,
            Self::List(list) => NeighbourCounts {
                links: list.links.len(),
                learned: list.learned.len(),
                conflicts: list.conflicts.len(),
                unnamed_networks: list.unnamed_networks.len(),
            },
        }
    }
}

/// `GET /v1/neighbours`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NeighbourList {
    /// Links that carry a protected place.
    pub links: Vec<LinkView>,
    /// Addresses that joined a place.
    pub learned: Vec<NeighbourView>,
    /// Conflicts of the last 24 hours, one sentence each.
    pub conflicts: Vec<String>,
    /// IPv6 networks on those links of which no zone names all.
    pub unnamed_networks: Vec<UnnamedNetwork>,
}

/// The same, counted.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NeighbourCounts {
    pub links: usize,
    pub learned: usize,
    pub conflicts: usize,
    pub unnamed_networks: usize,
}

/// One link.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkView {
    pub link: String,
    pub netns: u32,
    pub zone: Option<String>,
    pub gateway: Option<String>,
}

/// One address.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NeighbourView {
    pub address: String,
    pub link: String,
    pub netns: u32,
    pub zone: Option<String>,
    pub gateway: Option<String>,
    pub mac: String,
    /// How it is known, in words.
    pub why: String,
}

/// One network.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UnnamedNetwork {
    pub link: String,
    pub network: String,
}

/// `DELETE /v1/neighbours/{address}`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Forgotten {
    pub address: String,
    /// In how many network namespaces.
    pub forgotten: usize,
}
