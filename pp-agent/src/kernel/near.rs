//! The daemon's side of links and learned addresses: what they are goes into the maps, and what an earlier daemon learned comes out.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use aya::maps::{HashMap, MapData, MapError};
use pp_common::abi::{CONTROL_NEAR, Control, Learned, LinkKey, MAX_NEAR, NearKey, Place};
use pp_common::decide::{Attempt, Decision, Link, Subject, decide, nearest_receipt};

use super::{Gate, KernelError, Live, maps::entries, maps::map_error, publish::absent_is_fine};

impl Gate {
    /// The links that carry a place, as the programs know them.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn links(&self) -> Result<Vec<(LinkKey, Place)>, KernelError> {
        entries("LINKS", &self.maps.links.lock())
    }

    /// What was learned of addresses, as the programs know it.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn learned(&self) -> Result<Vec<(NearKey, Learned)>, KernelError> {
        entries("LEARNED", &self.maps.learned.lock())
    }

    /// Brings links and learned addresses up to date.
    ///
    /// # Errors
    /// The kernel refused an entry; those before it are in force.
    pub(crate) fn set_near(
        &self,
        links: &BTreeMap<LinkKey, Place>,
        learned: impl Iterator<Item = (NearKey, Learned)>,
    ) -> Result<(), KernelError> {
        let _one = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let most = usize::try_from(MAX_NEAR).unwrap_or(usize::MAX);
        let learned: BTreeMap<NearKey, Learned> = learned.take(most).collect();
        let any = !links.is_empty() || !learned.is_empty();
        // The maps before the flag that has them asked, and the flag before they are emptied.
        write("LEARNED", &mut self.maps.learned.lock(), &learned)?;
        write("LINKS", &mut self.maps.links.lock(), links)?;
        let control = self.maps.control()?;
        let flags = if any { control.flags | CONTROL_NEAR } else { control.flags & !CONTROL_NEAR };
        if flags != control.flags {
            self.maps.set_control(Control { flags, ..control })?;
            self.maps.keep_overflow()?;
        }
        Ok(())
    }

    /// As [`Gate::decide`], on a link.
    pub(crate) fn decide_on(&self, link: Link, subject: &Subject, attempt: &Attempt) -> Decision {
        decide(&Live::new(&self.maps).on(link), subject, attempt)
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
        nearest_receipt(&Live::new(&self.maps).on(link), subject, attempt, decision)
    }
}

/// Writes what is new or other, then removes what is not wanted any more.
fn write<K: aya::Pod + Ord, V: aya::Pod + PartialEq>(
    name: &'static str,
    map: &mut HashMap<MapData, K, V>,
    wanted: &BTreeMap<K, V>,
) -> Result<(), KernelError> {
    let error = |error: MapError| map_error(name, &error);
    let held: BTreeMap<K, V> = entries(name, map)?.into_iter().collect();
    for key in held.keys().filter(|key| !wanted.contains_key(key)) {
        absent_is_fine(map.remove(key)).map_err(error)?;
    }
    for (key, value) in wanted.iter().filter(|(key, value)| held.get(key) != Some(*value)) {
        map.insert(key, value, 0).map_err(error)?;
    }
    Ok(())
}
