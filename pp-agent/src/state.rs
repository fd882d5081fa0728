//! What must survive a restart and a power cut. It consists of receipts, their ends and revocations, used ids and keys, the highest wall
//! time and the last good policy. A change is on disk when its function returns.
//!
//! Receipts are only changed through [`Book`], which also has them in memory.

mod book;
mod error;
mod stored;
mod values;
mod version;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pp_common::abi::MAX_RECEIPTS;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, TableHandle as _, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};

use crate::clock::Now;
use crate::database::{self, Check, Place};
pub(crate) use book::{Book, Kept};
pub(crate) use error::{RegisterError, StateError};
pub(crate) use stored::{EndReason, StoredReceipt, Tombstone};

const RECEIPTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("receipts");
const TOMBSTONES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tombstones");
const IDEM_KEYS: TableDefinition<'_, (&str, &str), &str> = TableDefinition::new("idem_keys");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const NEXT_SERIAL: &str = "next_serial";
const HIGHEST_WALL: &str = "highest_wall_ms";
/// How many changes of receipts and revocations it has had.
const VERSION: &str = "version";
/// The file, in the daemon's state directory.
pub(crate) const STATE_FILE: &str = "state.redb";
/// The tables of a file that was ever used.
const TABLES: [&str; 4] = ["receipts", "tombstones", "idem_keys", "meta"];

/// The result of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Registered {
    /// The receipt is new.
    New(StoredReceipt),
    /// It was registered before; this is that registration.
    Again(StoredReceipt),
}

/// The state file.
#[derive(Debug)]
pub(crate) struct State {
    held: Mutex<Held>,
    place: Box<dyn Opens>,
    path: PathBuf,
    /// Why it is shut, or the last error if nothing was written since. It has its own lock, so that `status` never waits for the disk.
    problem: Mutex<Option<String>>,
    /// Held while names are read, added to and written.
    naming: Mutex<()>,
    /// The version of what is in memory.
    version: AtomicU64,
    /// Whether it has gone back. Its version stays as it is until an operator accepts it, so that the next daemon also finds out.
    went_back: AtomicBool,
}

#[derive(Debug)]
enum Held {
    /// In use.
    Open(Database),
    /// Closed after an error that makes the database unusable. The next use opens it again.
    Closed,
    /// It could not be opened, so its contents are unknown. Only [`State::retry`] opens it.
    Shut(Shut),
}

#[derive(Debug)]
struct Shut {
    reason: String,
    /// Whether there was no file. Then nothing is lost if there is none later.
    was_absent: bool,
}

/// A [`Place`] with any storage backend.
trait Opens: std::fmt::Debug + Send + Sync {
    fn open(&self) -> Result<Database, redb::Error>;
    fn make(&self) -> Result<(), redb::Error>;
    fn is_absent(&self) -> bool;
}

impl<B: StorageBackend> Opens for Place<B> {
    fn open(&self) -> Result<Database, redb::Error> {
        database::caught(|| {
            let database = Self::open(self)?;
            database::caught(|| check_tables(&database)).map(|()| database)
        })
    }

    fn make(&self) -> Result<(), redb::Error> {
        Self::make(self, make_tables)
    }

    fn is_absent(&self) -> bool {
        Self::is_absent(self)
    }
}

impl State {
    /// Opens the file and checks every page, or makes it if there is none. A file that cannot be read is never overwritten.
    ///
    /// # Errors
    /// It is damaged or locked, or the disk failed.
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        Self::at(Place::<FileBackend>::of_file(path, Check::Whole))
    }

    fn at<B: StorageBackend>(place: Place<B>) -> Result<Self, StateError> {
        let state = Self::closed(place);
        let opened = state.first_open().map_err(|source| state.error(source))?;
        *state.held() = Held::Open(opened);
        state.read_version()?;
        Ok(state)
    }

    /// A state that could not be opened. Each use returns this error until [`State::retry`] has opened it.
    #[must_use]
    pub(crate) fn shut(path: &Path, reason: &StateError) -> Self {
        let state = Self::closed(Place::<FileBackend>::of_file(path, Check::Whole));
        state.shut_again(reason);
        state
    }

    fn closed<B: StorageBackend>(place: Place<B>) -> Self {
        Self {
            held: Mutex::new(Held::Closed),
            path: place.path().to_owned(),
            place: Box::new(place),
            problem: Mutex::new(None),
            naming: Mutex::new(()),
            version: AtomicU64::new(0),
            went_back: AtomicBool::new(false),
        }
    }

    fn first_open(&self) -> Result<Database, redb::Error> {
        if self.place.is_absent() {
            self.place.make()?;
        }
        self.place.open()
    }

    /// Shuts an open state, because its contents cannot be used.
    pub(crate) fn shut_again(&self, reason: &StateError) {
        let mut held = self.held();
        let was_absent = match &*held {
            Held::Shut(shut) => shut.was_absent,
            Held::Open(_) | Held::Closed => self.place.is_absent(),
        };
        *self.last_problem() = Some(reason.to_string());
        *held = Held::Shut(Shut { reason: reason.to_string(), was_absent });
    }

    /// Closes the file for good, so that the next daemon has nothing to repair.
    pub(crate) fn close(&self) {
        let closed = Held::Shut(Shut { reason: "the daemon is stopping".to_owned(), was_absent: false });
        if let Held::Open(database) = std::mem::replace(&mut *self.held(), closed)
            && let Err(source) = database::caught(|| Ok(database.close()?))
        {
            tracing::warn!("{}", self.error(source));
        }
    }

    /// Tries to open a state that is shut. A file that has vanished is not made again; only a start of the daemon does that.
    ///
    /// # Errors
    /// The reason why it still cannot be opened.
    pub(crate) fn retry(&self) -> Result<(), StateError> {
        let mut held = self.held();
        let Held::Shut(shut) = &mut *held else { return Ok(()) };
        if !shut.was_absent && self.place.is_absent() {
            shut.reason = StateError::Gone { path: self.path.clone() }.to_string();
            *self.last_problem() = Some(shut.reason.clone());
            return Err(StateError::Shut(shut.reason.clone()));
        }
        match self.first_open() {
            Ok(database) => {
                *held = Held::Open(database);
                *self.last_problem() = None;
                Ok(())
            }
            Err(source) => {
                let error = self.error(source);
                shut.reason = error.to_string();
                *self.last_problem() = Some(shut.reason.clone());
                Err(error)
            }
        }
    }

    /// Whether it could not be opened, so that its contents are unknown.
    #[must_use]
    pub(crate) fn is_shut(&self) -> bool {
        matches!(*self.held(), Held::Shut(_))
    }

    /// Why the state cannot be used now, and what to do, for `status`.
    #[must_use]
    pub(crate) fn problem(&self) -> Option<String> {
        self.last_problem().clone()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_problem(&self) -> MutexGuard<'_, Option<String>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every stored receipt, by serial.
    ///
    /// # Errors
    /// The file cannot be read.
    fn receipts(&self) -> Result<Vec<StoredReceipt>, StateError> {
        let mut receipts: Vec<StoredReceipt> = self.all(RECEIPTS)?;
        receipts.sort_by_key(|receipt| receipt.serial);
        Ok(receipts)
    }

    /// Every stored revocation.
    ///
    /// # Errors
    /// The file cannot be read.
    fn tombstones(&self) -> Result<Vec<Tombstone>, StateError> {
        self.all(TOMBSTONES)
    }

    /// Registers a receipt: gives it a serial, or returns the registration that it already has. It is one transaction.
    ///
    /// # Errors
    /// It is revoked, its key is used, the table is full, or the disk failed.
    fn register(&self, mut receipt: StoredReceipt) -> Result<Registered, RegisterError> {
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
        self.change_receipts(|write| {
            put(write, META, NEXT_SERIAL, &(receipt.serial + 1))?;
            put(write, RECEIPTS, &receipt.id, &receipt)?;
            let key = (receipt.company.as_str(), receipt.idem_key.as_str());
            write.open_table(IDEM_KEYS)?.insert(key, receipt.id.as_str())?;
            Ok(())
        })?;
        Ok(Registered::New(receipt))
    }

    /// Writes changed receipts.
    ///
    /// # Errors
    /// The disk failed.
    fn update(&self, receipts: &[StoredReceipt]) -> Result<(), StateError> {
        if receipts.is_empty() {
            return Ok(());
        }
        self.change_receipts(|write| receipts.iter().try_for_each(|receipt| put(write, RECEIPTS, &receipt.id, receipt)))
    }

    /// Stores a revocation, and ends the receipt if it is registered.
    ///
    /// # Errors
    /// The disk failed.
    fn revoke(&self, mut tombstone: Tombstone) -> Result<Option<StoredReceipt>, StateError> {
        let mut receipt = self.one::<StoredReceipt>(RECEIPTS, &tombstone.id)?;
        if let Some(receipt) = receipt.as_mut().filter(|receipt| tombstone.binds(&receipt.decider)) {
            tombstone.expires_ms = Some(receipt.expires_ms.max(receipt.until_ms));
            receipt.ended = receipt.ended.or(Some(EndReason::Revoked));
        }
        let key = tombstone_key(&tombstone.id, tombstone.decider.as_deref());
        self.change_receipts(|write| {
            put(write, TOMBSTONES, &key, &tombstone)?;
            receipt.as_ref().map_or(Ok(()), |receipt| put(write, RECEIPTS, &receipt.id, receipt))
        })?;
        Ok(receipt)
    }

    /// The highest wall time seen, milliseconds.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn highest_wall(&self) -> Result<i64, StateError> {
        Ok(self.meta(HIGHEST_WALL)?.unwrap_or(0))
    }

    /// Records the wall time, and removes receipts and revocations that are over. Returns the highest wall time, which decides that.
    ///
    /// # Errors
    /// The disk failed.
    fn note_wall(&self, now: Now) -> Result<i64, StateError> {
        let highest_ms = self.highest_wall()?.max(now.wall_ms);
        let over: Vec<StoredReceipt> = self.receipts()?.into_iter().filter(|receipt| receipt.is_over(highest_ms, now)).collect();
        let old_tombstones: Vec<Tombstone> = self
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
            for tombstone in &old_tombstones {
                write.open_table(TOMBSTONES)?.remove(tombstone_key(&tombstone.id, tombstone.decider.as_deref()).as_str())?;
            }
            Ok(())
        })?;
        Ok(highest_ms)
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
        })?;
        *self.last_problem() = None;
        Ok(())
    }

    /// Uses the database. After an error of the disk, damage or a panic it is closed, and the next use opens and checks it again.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StateError> {
        let mut held = self.held();
        if let Held::Shut(shut) = &*held {
            return Err(StateError::Shut(shut.reason.clone()));
        }
        let result = match std::mem::replace(&mut *held, Held::Closed) {
            Held::Open(database) => Ok(database),
            // Opened but never made, since what is in memory came from an existing file.
            Held::Closed | Held::Shut(_) => self.place.open().and_then(|database| self.check_version(database)),
        }
        .and_then(|database| {
            let result = database::caught(|| work(&database));
            if result.as_ref().is_err_and(database::ends_use) {
                database::caught(|| {
                    drop(database);
                    Ok(())
                })?;
            } else {
                *held = Held::Open(database);
            }
            result
        });
        drop(held);
        result.map_err(|source| {
            let error = self.error(source);
            *self.last_problem() = Some(error.to_string());
            error
        })
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

fn make_tables(write: &WriteTransaction) -> Result<(), redb::Error> {
    write.open_table(RECEIPTS)?;
    write.open_table(TOMBSTONES)?;
    write.open_table(IDEM_KEYS)?;
    write.open_table(META)?;
    Ok(())
}

/// Checks that every table is there. A file without any table was never used: an early version could stop after it made the file. A file
/// with only some of them is damaged.
fn check_tables(database: &Database) -> Result<(), redb::Error> {
    let read = database.begin_read()?;
    let found: Vec<String> = read.list_tables()?.map(|table| table.name().to_owned()).collect();
    if found.is_empty() {
        drop(read);
        let write = database.begin_write()?;
        make_tables(&write)?;
        return Ok(write.commit()?);
    }
    match TABLES.iter().find(|table| !found.iter().any(|found| found == *table)) {
        Some(table) => Err(redb::Error::Corrupted(format!("the table {table} is not in it"))),
        None => Ok(()),
    }
}

/// The key of a revocation. A revocation never replaces one by another decider or by an operator.
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
mod power_cut_tests;
#[cfg(test)]
mod tests;
