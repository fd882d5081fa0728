//! Writes links and learned addresses to the maps, and reads what an earlier daemon learned.

use std::collections::BTreeMap;

use aya::maps::{HashMap, MapData};
use pp_common::abi::{CONTROL_NEAR, Learned, LinkKey, NearKey, Place};
use pp_common::decide::{Attempt, Decision, Link, Subject, decide, nearest_receipt};
use pp_common::maps::LEARNED;

use super::{
    Gate, KernelError, Live,
    maps::{Locked, Maps},
};

impl Gate {
    /// The links that carry a place, from the map.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn links(&self) -> Result<Vec<(LinkKey, Place)>, KernelError> {
        self.maps.links.entries()
    }

    /// The learned addresses, from the map.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn learned(&self) -> Result<Vec<(NearKey, Learned)>, KernelError> {
        self.maps.learned.entries()
    }

    /// As [`Gate::decide`], on a link.
    pub(crate) fn decide_on(&self, link: Link, subject: &Subject, attempt: &Attempt) -> Decision {
        decide(&Live::new(&self.maps).on(link.towards(attempt)), subject, attempt)
    }

    /// As [`Gate::nearest`], on a link.
    #[must_use]
    pub(crate) fn nearest_on(
        &self,
        link: Link,
        subject: &Subject,
        attempt: &Attempt,
        decision: &Decision,
    ) -> Option<pp_common::abi::Serial> {
        nearest_receipt(&Live::new(&self.maps).on(link.towards(attempt)), subject, attempt, decision)
    }
}

/// Updates links and learned addresses.
pub(super) fn write_all(
    maps: &Maps,
    links: &BTreeMap<LinkKey, Place>,
    learned: impl Iterator<Item = (NearKey, Learned)>,
) -> Result<(), KernelError> {
    let learned: BTreeMap<NearKey, Learned> = learned.take(LEARNED.room()).collect();
    let any = !links.is_empty() || !learned.is_empty();
    // The maps are written before the flag that makes programs read them.
    write(&maps.learned, &learned)?;
    write(&maps.links, links)?;
    maps.set_flag(CONTROL_NEAR, any)
}

/// Removes entries that are not wanted any more, then writes those that are new or changed.
fn write<K: aya::Pod + Ord, V: aya::Pod + PartialEq>(
    map: &Locked<HashMap<MapData, K, V>>,
    wanted: &BTreeMap<K, V>,
) -> Result<(), KernelError> {
    let held: BTreeMap<K, V> = map.entries()?.into_iter().collect();
    held.keys().filter(|key| !wanted.contains_key(key)).try_for_each(|key| map.remove(key))?;
    wanted.iter().filter(|(key, value)| held.get(key) != Some(*value)).try_for_each(|(key, value)| map.insert(key, value))
}
