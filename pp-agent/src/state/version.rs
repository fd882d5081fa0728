//! The version of the state: how many changes of receipts and revocations it has had. Kernel and event store also have the newest one, so
//! that an earlier copy of the file is found out. What an earlier copy does not know are revocations, ends and used ids.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use redb::{Database, ReadableDatabase as _, WriteTransaction};

use super::error::EARLIER_COPY;
use super::{Book, META, NEXT_SERIAL, State, StateError, TOMBSTONES, VERSION, put};
use pp_common::abi::Serial;

impl State {
    /// The version of what is on the disk.
    #[must_use]
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Reads the version from the disk, after the file was opened.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read_version(&self) -> Result<(), StateError> {
        let version: u64 = self.meta(VERSION)?.unwrap_or(0);
        self.version.store(version, Ordering::Release);
        Ok(())
    }

    /// Keeps the version as it is from now on, because the file is an earlier copy.
    pub(crate) fn mark_as_gone_back(&self) {
        self.went_back.store(true, Ordering::Release);
    }

    /// Makes this state the newest one. Serials below `next_serial` are not given again.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn accept_as_newest(&self, seen: u64, next_serial: Serial) -> Result<(), StateError> {
        let version = seen.max(self.version()).saturating_add(1);
        let serial = self.meta::<Serial>(NEXT_SERIAL)?.unwrap_or(1).max(next_serial);
        self.write(|write| {
            put(write, META, NEXT_SERIAL, &serial)?;
            put(write, META, VERSION, &version)
        })?;
        self.version.store(version, Ordering::Release);
        self.went_back.store(false, Ordering::Release);
        Ok(())
    }

    /// Changes receipts or revocations, and the version with them, in one transaction.
    pub(super) fn change_receipts(&self, change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>) -> Result<(), StateError> {
        let version = self.version() + u64::from(!self.went_back.load(Ordering::Acquire));
        self.write(|write| {
            put(write, META, VERSION, &version)?;
            change(write)
        })?;
        self.version.store(version, Ordering::Release);
        Ok(())
    }

    /// Checks a file that is opened again: while it was closed, an earlier copy may have taken its place.
    pub(super) fn check_version(&self, database: Database) -> Result<Database, redb::Error> {
        let found = {
            let read = database.begin_read()?;
            let bytes = read.open_table(META)?.get(VERSION)?.map(|bytes| bytes.value().to_vec());
            bytes.and_then(|bytes| serde_json::from_slice::<u64>(&bytes).ok()).unwrap_or(0)
        };
        if found < self.version() { Err(redb::Error::Corrupted(EARLIER_COPY.to_owned())) } else { Ok(database) }
    }

    /// Whether it has a revocation of this receipt, by anybody.
    fn has_revocation(&self, id: &str) -> Result<bool, StateError> {
        let first = format!("{id}\n");
        self.read(|read| {
            let table = read.open_table(TOMBSTONES)?;
            let next = table.range(first.as_str()..)?.next().transpose()?;
            Ok(next.is_some_and(|(key, _)| key.value().starts_with(&first)))
        })
    }

    /// Those of these revocations that it does not have.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn unknown_revocations(&self, of_events: HashMap<String, String>) -> Result<HashMap<String, String>, StateError> {
        let mut unknown = HashMap::new();
        for (id, reason) in of_events {
            if !self.has_revocation(&id)? {
                unknown.insert(id, reason);
            }
        }
        Ok(unknown)
    }
}

impl<A: Clone> Book<A> {
    /// The receipts that have not ended, of these that are revoked.
    #[must_use]
    pub(crate) fn revived(&self, revoked: &HashMap<String, String>) -> Vec<String> {
        let open = self.iter().filter(|kept| kept.stored.ended.is_none() && revoked.contains_key(&kept.stored.id));
        open.map(|kept| kept.stored.id.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
