//! The gate's health, and what is protected beside what policy names.

use serde::{Deserialize, Serialize};

use super::Remarks;
use crate::config::Mode;
use crate::kernel::Gap;

/// How far what was asked for is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Posture {
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
    pub(crate) const fn refuses(self) -> bool {
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
pub(crate) enum Opening {
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
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) abi: u32,
    pub(crate) host: Option<String>,
    pub(crate) kernel: String,
    pub(crate) backend: String,
    pub(crate) backends: Vec<BackendView>,
    /// What is enforced of what was asked for.
    pub(crate) posture: Posture,
    /// What the canary found.
    pub(crate) measured: Posture,
    pub(crate) gaps: Vec<Opening>,
    pub(crate) watch: WatchView,
    pub(crate) neighbours: Neighbours,
    pub(crate) mode: Mode,
    pub(crate) policy: String,
    #[serde(flatten)]
    pub(crate) remarks: Remarks,
    pub(crate) problems: Vec<String>,
    pub(crate) healthy: bool,
    pub(crate) generation: u32,
    /// Absent where it is not known since when they are counted.
    pub(crate) refusals: Option<RefusalCounts>,
    pub(crate) sessions: usize,
    pub(crate) receipts: usize,
    pub(crate) started: String,
    pub(crate) pid: u32,
}

/// What became of a backend at start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct BackendView {
    pub(crate) name: String,
    pub(crate) found: String,
}

/// How the refusals of this boot were told: `told` + `repeats` + `lost` + `untold` = `refused`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RefusalCounts {
    /// By the kernel's count, since this account is kept.
    pub(crate) refused: u64,
    pub(crate) told: u64,
    pub(crate) repeats: u64,
    pub(crate) lost: u64,
    /// Not yet: records on their way, and repeats that are told when their window is over.
    pub(crate) untold: u64,
    /// Told by events that this daemon could not store.
    pub(crate) not_stored: u64,
}

/// What watching the gate found last.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WatchView {
    pub(crate) canary: CanaryView,
    pub(crate) hooks: HooksView,
}

/// The last canary.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct CanaryView {
    pub(crate) time: String,
    pub(crate) runs: u64,
    pub(crate) findings: Vec<FindingView>,
}

/// What became of one attempt of the canary's.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct FindingView {
    pub(crate) technique: String,
    pub(crate) errno: i32,
    pub(crate) refused: bool,
}

/// Hooks that are looked at, and what had to be done to them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct HooksView {
    pub(crate) watched: usize,
    pub(crate) mended: u64,
    pub(crate) missing: Vec<String>,
    pub(crate) beyond_repair: u64,
    /// Programs of others that run after ours.
    pub(crate) foreign: usize,
}

/// What is protected beside what policy names: a list for operators, counts for everybody else.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Neighbours {
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
    pub(crate) const fn counts(&self) -> NeighbourCounts {
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
pub(crate) struct NeighbourList {
    /// Links that carry a protected place.
    pub(crate) links: Vec<LinkView>,
    /// Addresses that joined a place.
    pub(crate) learned: Vec<NeighbourView>,
    /// Conflicts of the last 24 hours, one sentence each.
    pub(crate) conflicts: Vec<String>,
    /// IPv6 networks on those links of which no zone names all.
    pub(crate) unnamed_networks: Vec<UnnamedNetwork>,
}

/// The same, counted.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct NeighbourCounts {
    pub(crate) links: usize,
    pub(crate) learned: usize,
    pub(crate) conflicts: usize,
    pub(crate) unnamed_networks: usize,
}

/// One link.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LinkView {
    pub(crate) link: String,
    pub(crate) netns: u32,
    pub(crate) zone: Option<String>,
    pub(crate) gateway: Option<String>,
}

/// One address.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct NeighbourView {
    pub(crate) address: String,
    pub(crate) link: String,
    pub(crate) netns: u32,
    pub(crate) zone: Option<String>,
    pub(crate) gateway: Option<String>,
    pub(crate) mac: String,
    /// How it is known, in words.
    pub(crate) why: String,
}

/// One network.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct UnnamedNetwork {
    pub(crate) link: String,
    pub(crate) network: String,
}

/// `DELETE /v1/neighbours/{address}`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Forgotten {
    pub(crate) address: String,
    /// In how many network namespaces.
    pub(crate) forgotten: usize,
}
