//! The single values in state: the last good policy, names, released processes, and how many lost records are reported.

use std::collections::HashMap;
use std::sync::PoisonError;

use pp_common::abi::NameId;
use serde::{Serialize, de::DeserializeOwned};

use super::{META, State, StateError, put};
use crate::session::Released;

const LAST_POLICY: &str = "last_policy";
const NAMES: &str = "names";
const REPORTED_LOSSES: &str = "lost_told";
const REPORTED_LIFECYCLE_LOSSES: &str = "lost_lifecycle_told";
const RELEASED: &str = "released";

impl State {
    /// The last good policy, as [`State::keep_policy`] stored it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn last_policy<T: DeserializeOwned>(&self) -> Result<Option<T>, StateError> {
        self.meta(LAST_POLICY)
    }

    /// Stores the last good policy.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn keep_policy(&self, policy: &impl Serialize) -> Result<(), StateError> {
        self.write(|write| put(write, META, LAST_POLICY, policy))
    }

    /// How many of the kernel's lost records are reported: of verdicts, and of processes.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn reported_losses(&self) -> Result<(u64, u64), StateError> {
        Ok((self.meta(REPORTED_LOSSES)?.unwrap_or(0), self.meta(REPORTED_LIFECYCLE_LOSSES)?.unwrap_or(0)))
    }

    /// Stores how many of the kernel's lost records are reported.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn keep_reported_losses(&self, (records, lifecycle): (u64, u64)) -> Result<(), StateError> {
        self.write(|write| {
            put(write, META, REPORTED_LOSSES, &records)?;
            put(write, META, REPORTED_LIFECYCLE_LOSSES, &lifecycle)
        })
    }

    /// Processes that an operator released.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn released(&self) -> Result<Option<Released>, StateError> {
        self.meta(RELEASED)
    }

    /// Stores the processes that an operator released.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn keep_released(&self, released: &Released) -> Result<(), StateError> {
        self.write(|write| put(write, META, RELEASED, released))
    }

    /// Every name that a policy ever had, so that old marks keep their names.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn names(&self) -> Result<HashMap<NameId, String>, StateError> {
        Ok(self.meta(NAMES)?.unwrap_or_default())
    }

    /// Adds names.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn keep_names(&self, names: &HashMap<NameId, String>) -> Result<(), StateError> {
        let _one = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = self.names()?;
        let before = all.len();
        all.extend(names.iter().map(|(id, name)| (*id, name.clone())));
        if all.len() == before {
            return Ok(());
        }
        self.write(|write| put(write, META, NAMES, &all))
    }
}
