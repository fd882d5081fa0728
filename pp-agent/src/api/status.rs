//! The state of the gate, and what is protected although policy does not name it.

use serde::{Deserialize, Serialize};

use super::{OffView, Remarks};
use crate::config::Mode;
use crate::kernel::Gap;

/// How much of what policy asks for is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Posture {
    /// Everything that the canary tried was refused.
    Enforcing,
    /// Everything was refused except for known gaps of this kernel.
    Partial,
    /// Policy asks for no refusals.
    Observe,
    /// Protection is switched off: what would be refused goes through.
    Off,
    /// Something was not refused that must be.
    Open,
    /// There are problems.
    Degraded,
    /// Nothing was tried yet, or a later version has a posture that this one does not know.
    #[default]
    #[serde(rename = "", other)]
    Unmeasured,
}

impl Posture {
    /// Whether everything but known gaps is refused.
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
    /// A known gap of this kernel.
    Known(Gap),
    /// A technique that was not refused, or why the canary could not be sent.
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
    /// The posture, with policy and problems taken into account.
    pub(crate) posture: Posture,
    /// The posture that the canary found.
    pub(crate) measured: Posture,
    /// Present while protection is switched off.
    pub(crate) switched_off: Option<OffView>,
    pub(crate) gaps: Vec<Opening>,
    /// Kinds of namespaces that are not the host's: only what is in them is covered. A later version may know more kinds.
    pub(crate) namespaces: Vec<String>,
    pub(crate) watch: WatchView,
    pub(crate) neighbours: Neighbours,
    pub(crate) mode: Mode,
    pub(crate) policy: String,
    #[serde(flatten)]
    pub(crate) remarks: Remarks,
    pub(crate) problems: Vec<String>,
    pub(crate) healthy: bool,
    pub(crate) generation: u32,
    /// Absent if it is unknown since when they are counted.
    pub(crate) refusals: Option<RefusalCounts>,
    pub(crate) sessions: usize,
    pub(crate) receipts: usize,
    pub(crate) started: String,
    pub(crate) pid: u32,
}

/// The result of trying a backend at start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct BackendView {
    pub(crate) name: String,
    pub(crate) found: String,
}

/// How the refusals of this boot are reported: `told` + `repeats` + `lost` + `untold` = `refused`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RefusalCounts {
    /// The kernel's count, since this account started.
    pub(crate) refused: u64,
    /// With their own event.
    pub(crate) told: u64,
    pub(crate) repeats: u64,
    pub(crate) lost: u64,
    /// Not reported yet: records on their way, and repeats that are reported when their window is over.
    pub(crate) untold: u64,
    /// Reported by events that this daemon could not store.
    pub(crate) not_stored: u64,
}

/// The last findings of the watch over the gate.
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

/// The result of one attempt of the canary.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct FindingView {
    pub(crate) technique: String,
    pub(crate) errno: i32,
    pub(crate) refused: bool,
}

/// The hooks that are watched, and their repairs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct HooksView {
    pub(crate) watched: usize,
    pub(crate) mended: u64,
    pub(crate) missing: Vec<String>,
    pub(crate) beyond_repair: u64,
    /// Programs of other owners that run after ours.
    pub(crate) foreign: usize,
}

/// What is protected although policy does not name it: a list for operators, counts for everybody else.
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
    /// The counts. A list of addresses would show the layout of the plant.
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
    /// IPv6 networks on those links that no zone covers.
    pub(crate) unnamed_networks: Vec<UnnamedNetwork>,
}

/// The counts of [`NeighbourList`].
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

/// `POST /v1/state/accept`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StateAccepted {
    /// How many receipts are known, ended ones included.
    pub(crate) receipts: usize,
    /// Receipts that events know as revoked and the state did not. They are revoked again.
    pub(crate) revoked: Vec<String>,
}
