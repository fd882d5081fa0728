//! What must survive a restart and a power cut: registered receipts, their
//! ends, revocations, used ids and keys, the highest wall time seen, and the
//! last good policy. Every change is on disk before the caller hears of it.

mod stored;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use pp_common::abi::{MAX_RECEIPTS, NameId};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};

use crate::clock::Now;
use crate::released::Released;
pub use stored::{EndReason, StoredReceipt, Tombstone};

const RECEIPTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("receipts");
const TOMBSTONES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tombstones");
const IDEM_KEYS: TableDefinition<'_, (&str, &str), &str> = TableDefinition::new("idem_keys");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const NEXT_SERIAL: &str = "next_serial";
const HIGHEST_WALL: &str = "highest_wall_ms";
const LAST_POLICY: &str = "last_policy";
const NAMES: &str = "names";
const LOST_TOLD: &str = "lost_told";
/// The file, in the daemon's state directory.
pub const STATE_FILE: &str = "state.redb";
const RELEASED: &str = "released";

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file is damaged, locked by another daemon, or the disk is full.
    #[error(
        "state at {path}: {source}; the daemon does not run without it: end another pp-agent, free the disk, \
         restore the file, or move it away (every registered receipt is then void and must be signed anew)"
    )]
    Database {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: redb::Error,
    },
    /// An entry is not what this build writes.
    #[error("state at {path}: entry {entry} cannot be read: {source}; restore the file or move it away")]
    Entry {
        /// The file.
        path: PathBuf,
        /// The entry's key.
        entry: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl StateError {
    /// Whether another daemon has the file open.
    #[must_use]
    pub const fn is_locked(&self) -> bool {
        matches!(self, Self::Database { source: redb::Error::DatabaseAlreadyOpen, .. })
    }
}

/// Why a receipt cannot be registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// A revocation came first.
    #[error("receipt {0}: revoked; ask the operator for a new one")]
    Revoked(String),
    /// Another receipt was redeemed for the same request.
    #[error("idempotency key {idem_key}: was redeemed here by receipt {by}; ask the operator for a new one")]
    KeyUsed {
        /// The key.
        idem_key: String,
        /// The receipt that used it.
        by: String,
    },
    /// Another signed text under the same id.
    #[error("receipt {0}: registered before with other content; ask the operator for a receipt with its own id")]
    OtherContent(String),
    /// The table is full.
    #[error("receipts: {MAX_RECEIPTS} are kept, and none has run out; wait until one has expired")]
    Full,
    /// State could not be written.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What registration did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    /// The receipt is new.
    New(StoredReceipt),
    /// It was registered before; this is that registration.
    Again(StoredReceipt),
}

/// The state file.
#[derive(Debug)]
pub struct State {
    /// Absent after an error that the database does not outlive: the next use
    /// opens it again.
    database: Mutex<Option<Database>>,
    path: PathBuf,
}

impl State {
    /// Opens the file or makes it.
    ///
    /// # Errors
    /// When it is damaged or locked: the daemon must not start then.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let error = |source| StateError::Database { path: path.to_owned(), source };
        let database = Database::create(path).map_err(|source| error(source.into()))?;
        let state = Self { database: Mutex::new(Some(database)), path: path.to_owned() };
        state.write(|write| {
            write.open_table(RECEIPTS)?;
            write.open_table(TOMBSTONES)?;
            write.open_table(IDEM_KEYS)?;
            write.open_table(META)?;
            Ok(())
        })?;
        Ok(state)
    }

    /// Every receipt that is kept, by serial.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn receipts(&self) -> Result<Vec<StoredReceipt>, StateError> {
        let mut receipts: Vec<StoredReceipt> = self.all(RECEIPTS)?;
        receipts.sort_by_key(|receipt| receipt.serial);
        Ok(receipts)
    }

    /// Every revocation that is kept.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn tombstones(&self) -> Result<Vec<Tombstone>, StateError> {
        self.all(TOMBSTONES)
    }

    /// Registers a receipt: gives it a serial, or returns the registration it
    /// already has. One transaction, on disk when it returns.
    ///
    /// # Errors
    /// When it is revoked, its key is used, the table is full, or the disk.
    pub fn register(&self, mut receipt: StoredReceipt) -> Result<Registered, RegisterError> {
        if let Some(first) = self.one::<StoredReceipt>(RECEIPTS, &receipt.id)? {
            return if first.payload_hash == receipt.payload_hash {
                Ok(Registered::Again(first))
            } else {
                Err(RegisterError::OtherContent(receipt.id))
            };
        }
        for decider in [None, Some(receipt.decider.as_str())] {
            if self.one::<Tombstone>(TOMBSTONES, &tombstone_key(&receipt.id, decider))?.is_some() {
                return Err(RegisterError::Revoked(receipt.id));
            }
        }
        let key = (receipt.company.as_str(), receipt.idem_key.as_str());
        let used = self.read(|read| Ok(read.open_table(IDEM_KEYS)?.get(key)?.map(|id| id.value().to_owned())))?;
        if let Some(other) = used {
            return Err(RegisterError::KeyUsed { idem_key: receipt.idem_key, by: other });
        }
        if self.receipts()?.len() >= MAX_RECEIPTS as usize {
            return Err(RegisterError::Full);
        }
        receipt.serial = self.meta(NEXT_SERIAL)?.unwrap_or(1);
        self.write(|write| {
            put(write, META, NEXT_SERIAL, &(receipt.serial + 1))?;
            put(write, RECEIPTS, &receipt.id, &receipt)?;
            let key = (receipt.company.as_str(), receipt.idem_key.as_str());
            write.open_table(IDEM_KEYS)?.insert(key, receipt.id.as_str())?;
            Ok(())
        })?;
        Ok(Registered::New(receipt))
    }

    /// Writes changed receipts back.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn update(&self, receipts: &[StoredReceipt]) -> Result<(), StateError> {
        if receipts.is_empty() {
            return Ok(());
        }
        self.write(|write| receipts.iter().try_for_each(|receipt| put(write, RECEIPTS, &receipt.id, receipt)))
    }

    /// Keeps a revocation and ends the receipt, if it is here.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn revoke(&self, mut tombstone: Tombstone) -> Result<Option<StoredReceipt>, StateError> {
        let mut receipt = self.one::<StoredReceipt>(RECEIPTS, &tombstone.id)?;
        if let Some(receipt) = receipt.as_mut().filter(|receipt| tombstone.binds(&receipt.decider)) {
            tombstone.expires_ms = Some(receipt.expires_ms.max(receipt.until_ms));
            receipt.ended = receipt.ended.or(Some(EndReason::Revoked));
        }
        let key = tombstone_key(&tombstone.id, tombstone.decider.as_deref());
        self.write(|write| {
            put(write, TOMBSTONES, &key, &tombstone)?;
            receipt.as_ref().map_or(Ok(()), |receipt| put(write, RECEIPTS, &receipt.id, receipt))
        })?;
        Ok(receipt)
    }

    /// The highest wall time seen, milliseconds.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn highest_wall(&self) -> Result<i64, StateError> {
        Ok(self.meta(HIGHEST_WALL)?.unwrap_or(0))
    }

    /// Notes the wall time and forgets what has run out by it.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn note_wall(&self, now: Now) -> Result<(), StateError> {
        let highest_ms = self.highest_wall()?.max(now.wall_ms);
        let over: Vec<StoredReceipt> = self.receipts()?.into_iter().filter(|receipt| receipt.is_over(highest_ms, now)).collect();
        let buried: Vec<Tombstone> = self
            .tombstones()?
            .into_iter()
            .filter(|tombstone| tombstone.expires_ms.is_some_and(|expires_ms| expires_ms < highest_ms))
            .collect();
        self.write(|write| {
            put(write, META, HIGHEST_WALL, &highest_ms)?;
            for receipt in &over {
                write.open_table(RECEIPTS)?.remove(receipt.id.as_str())?;
                let key = (receipt.company.as_str(), receipt.idem_key.as_str());
                write.open_table(IDEM_KEYS)?.remove(key)?;
            }
            for tombstone in &buried {
                write.open_table(TOMBSTONES)?.remove(tombstone_key(&tombstone.id, tombstone.decider.as_deref()).as_str())?;
            }
            Ok(())
        })
    }

    /// The last good policy, as it was given to [`State::keep_policy`].
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn last_policy<T: DeserializeOwned>(&self) -> Result<Option<T>, StateError> {
        self.meta(LAST_POLICY)
    }

    /// Keeps the last good policy.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn keep_policy(&self, policy: &impl Serialize) -> Result<(), StateError> {
        self.write(|write| put(write, META, LAST_POLICY, policy))
    }

    /// How many of the kernel's lost records were told.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn lost_told(&self) -> Result<u64, StateError> {
        Ok(self.meta(LOST_TOLD)?.unwrap_or(0))
    }

    /// Keeps how many of the kernel's lost records were told.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn keep_lost_told(&self, count: u64) -> Result<(), StateError> {
        self.write(|write| put(write, META, LOST_TOLD, &count))
    }

    /// Processes that an operator released.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn released(&self) -> Result<Option<Released>, StateError> {
        self.meta(RELEASED)
    }

    /// Keeps the processes that an operator released.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn keep_released(&self, released: &Released) -> Result<(), StateError> {
        self.write(|write| put(write, META, RELEASED, released))
    }

    /// Every name that a policy ever had, so that old marks keep theirs.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn names(&self) -> Result<HashMap<NameId, String>, StateError> {
        Ok(self.meta(NAMES)?.unwrap_or_default())
    }

    /// Adds names.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn keep_names(&self, names: &HashMap<NameId, String>) -> Result<(), StateError> {
        let mut all = self.names()?;
        let before = all.len();
        all.extend(names.iter().map(|(id, name)| (*id, name.clone())));
        if all.len() == before {
            return Ok(());
        }
        self.write(|write| put(write, META, NAMES, &all))
    }

    fn error(&self, source: impl Into<redb::Error>) -> StateError {
        StateError::Database { path: self.path.clone(), source: source.into() }
    }

    fn parse<T: DeserializeOwned>(&self, entry: &str, bytes: &[u8]) -> Result<T, StateError> {
        serde_json::from_slice(bytes).map_err(|source| StateError::Entry { path: self.path.clone(), entry: entry.to_owned(), source })
    }

    fn read<T>(&self, take: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>) -> Result<T, StateError> {
        self.with(|database| take(&database.begin_read()?))
    }

    fn write(&self, change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>) -> Result<(), StateError> {
        self.with(|database| {
            let write = database.begin_write()?;
            change(&write)?;
            Ok(write.commit()?)
        })
    }

    /// Uses the database; one that met a full disk is closed, to be opened
    /// again by the next use.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StateError> {
        let mut held = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match held.take() {
            Some(database) => database,
            None => Database::create(&self.path).map_err(|source| self.error(source))?,
        };
        let result = work(&database);
        if !matches!(result, Err(redb::Error::Io(_) | redb::Error::PreviousIo)) {
            *held = Some(database);
        }
        result.map_err(|source| self.error(source))
    }

    fn one<T: DeserializeOwned>(
        &self,
        table: TableDefinition<'_, &'static str, &'static [u8]>,
        key: &str,
    ) -> Result<Option<T>, StateError> {
        let bytes = self.read(|read| Ok(read.open_table(table)?.get(key)?.map(|bytes| bytes.value().to_vec())))?;
        bytes.map(|bytes| self.parse(key, &bytes)).transpose()
    }

    fn meta<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StateError> {
        self.one(META, key)
    }

    fn all<T: DeserializeOwned>(&self, table: TableDefinition<'_, &'static str, &'static [u8]>) -> Result<Vec<T>, StateError> {
        let entries = self.read(|read| {
            let mut entries = Vec::new();
            for entry in read.open_table(table)?.iter()? {
                let (key, bytes) = entry?;
                entries.push((key.value().to_owned(), bytes.value().to_vec()));
            }
            Ok(entries)
        })?;
        entries.iter().map(|(key, bytes)| self.parse(key, bytes)).collect()
    }
}

/// A revocation never takes the place of another decider's, or an operator's.
fn tombstone_key(id: &str, decider: Option<&str>) -> String {
    format!("{id}\n{}", decider.unwrap_or_default())
}

fn put(
    write: &WriteTransaction,
    table: TableDefinition<'_, &'static str, &'static [u8]>,
    key: &str,
    value: &impl Serialize,
) -> Result<(), redb::Error> {
    let bytes = serde_json::to_vec(value).map_err(|source| redb::Error::Io(source.into()))?;
    write.open_table(table)?.insert(key, bytes.as_slice())?;
    Ok(())
}

#[cfg(test)]
mod tests;
