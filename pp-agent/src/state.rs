//! What must survive a restart and a power cut: registered receipts, their
//! ends, revocations, used ids and keys, the highest wall time seen, and the
//! last good policy. Every change is on disk before the caller hears of it.
//!
//! Receipts are changed through [`Book`] alone, which has them in memory as well.

mod book;
mod error;
mod stored;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pp_common::abi::{MAX_RECEIPTS, NameId};
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, TableHandle as _, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};

use crate::clock::Now;
use crate::database::{self, Check, Place};
use crate::session::Released;
pub(crate) use book::{Book, Kept};
pub(crate) use error::{RegisterError, StateError};
pub(crate) use stored::{EndReason, StoredReceipt, Tombstone};

const RECEIPTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("receipts");
const TOMBSTONES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tombstones");
const IDEM_KEYS: TableDefinition<'_, (&str, &str), &str> = TableDefinition::new("idem_keys");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const NEXT_SERIAL: &str = "next_serial";
const HIGHEST_WALL: &str = "highest_wall_ms";
const LAST_POLICY: &str = "last_policy";
const NAMES: &str = "names";
const LOST_TOLD: &str = "lost_told";
const LOST_LIFECYCLE_TOLD: &str = "lost_lifecycle_told";
/// The file, in the daemon's state directory.
pub(crate) const STATE_FILE: &str = "state.redb";
const RELEASED: &str = "released";
/// The tables of a file that was ever used.
const TABLES: [&str; 4] = ["receipts", "tombstones", "idem_keys", "meta"];

/// What registration did.
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
    /// Why it is shut, or what the last use met while nothing was written since. It has a lock of its own: `status` waits for no disk.
    problem: Mutex<Option<String>>,
    /// Held while names are read, added to and written.
    naming: Mutex<()>,
}

#[derive(Debug)]
enum Held {
    /// In use.
    Open(Database),
    /// After an error that the database does not outlive: the next use opens it again.
    Closed,
    /// It could not be opened, and nothing is known of what is in it: no use opens it, [`State::retry`] does.
    Shut(Shut),
}

#[derive(Debug)]
struct Shut {
    reason: String,
    /// There was no file, so that one that cannot be opened later was not lost.
    was_absent: bool,
}

/// A [`Place`] whatever lies between redb and the disk.
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
    /// Opens the file, every page checked, or makes it where there is none. Nothing is ever begun over a file that cannot be read.
    ///
    /// # Errors
    /// When it is damaged or locked, or the disk says no.
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        Self::at(Place::<FileBackend>::of_file(path, Check::Whole))
    }

    fn at<B: StorageBackend>(place: Place<B>) -> Result<Self, StateError> {
        let state = Self::closed(place);
        let opened = state.first_open().map_err(|source| state.error(source))?;
        *state.held() = Held::Open(opened);
        Ok(state)
    }

    /// A state that could not be opened: each use of it is this error, until [`State::retry`] has opened it.
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
        }
    }

    fn first_open(&self) -> Result<Database, redb::Error> {
        if self.place.is_absent() {
            self.place.make()?;
        }
        self.place.open()
    }

    /// What is in it cannot be used after all.
    pub(crate) fn shut_again(&self, reason: &StateError) {
        let mut held = self.held();
        let was_absent = match &*held {
            Held::Shut(shut) => shut.was_absent,
            Held::Open(_) | Held::Closed => self.place.is_absent(),
        };
        *self.last_problem() = Some(reason.to_string());
        *held = Held::Shut(Shut { reason: reason.to_string(), was_absent });
    }

    /// Closes the file, for good: the next daemon finds it whole, with nothing to repair.
    pub(crate) fn close(&self) {
        let closed = Held::Shut(Shut { reason: "the daemon is stopping".to_owned(), was_absent: false });
        if let Held::Open(database) = std::mem::replace(&mut *self.held(), closed)
            && let Err(source) = database::caught(|| Ok(database.close()?))
        {
            tracing::warn!("{}", self.error(source));
        }
    }

    /// Tries a state that is shut once more. A file that was there and is gone is not made anew: only a start does that.
    ///
    /// # Errors
    /// The reason, if it is still not to be had.
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

    /// Whether it could not be opened, so that nothing is known of what is in it.
    #[must_use]
    pub(crate) fn is_shut(&self) -> bool {
        matches!(*self.held(), Held::Shut(_))
    }

    /// Why it cannot be relied on right now, and what to do, for `status`.
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

    /// Every receipt that is kept, by serial.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn receipts(&self) -> Result<Vec<StoredReceipt>, StateError> {
        let mut receipts: Vec<StoredReceipt> = self.all(RECEIPTS)?;
        receipts.sort_by_key(|receipt| receipt.serial);
        Ok(receipts)
    }

    /// Every revocation that is kept.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn tombstones(&self) -> Result<Vec<Tombstone>, StateError> {
        self.all(TOMBSTONES)
    }

    /// Registers a receipt: gives it a serial, or returns the registration it
    /// already has. One transaction, on disk when it returns.
    ///
    /// # Errors
    /// When it is revoked, its key is used, the table is full, or the disk.
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
    fn update(&self, receipts: &[StoredReceipt]) -> Result<(), StateError> {
        if receipts.is_empty() {
            return Ok(());
        }
        self.write(|write| receipts.iter().try_for_each(|receipt| put(write, RECEIPTS, &receipt.id, receipt)))
    }

    /// Keeps a revocation and ends the receipt, if it is here.
    ///
    /// # Errors
    /// When the disk says no.
    fn revoke(&self, mut tombstone: Tombstone) -> Result<Option<StoredReceipt>, StateError> {
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
    pub(crate) fn highest_wall(&self) -> Result<i64, StateError> {
        Ok(self.meta(HIGHEST_WALL)?.unwrap_or(0))
    }

    /// Notes the wall time and forgets what has run out by it. Returns the highest wall time, by which that was judged.
    ///
    /// # Errors
    /// When the disk says no.
    fn note_wall(&self, now: Now) -> Result<i64, StateError> {
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
        })?;
        Ok(highest_ms)
    }

    /// The last good policy, as it was given to [`State::keep_policy`].
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn last_policy<T: DeserializeOwned>(&self) -> Result<Option<T>, StateError> {
        self.meta(LAST_POLICY)
    }

    /// Keeps the last good policy.
    ///
    /// # Errors
    /// When the disk says no.
    pub(crate) fn keep_policy(&self, policy: &impl Serialize) -> Result<(), StateError> {
        self.write(|write| put(write, META, LAST_POLICY, policy))
    }

    /// How many of the kernel's lost records were told: of verdicts, and of processes.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn lost_told(&self) -> Result<(u64, u64), StateError> {
        Ok((self.meta(LOST_TOLD)?.unwrap_or(0), self.meta(LOST_LIFECYCLE_TOLD)?.unwrap_or(0)))
    }

    /// Keeps how many of the kernel's lost records were told.
    ///
    /// # Errors
    /// When the disk says no.
    pub(crate) fn keep_lost_told(&self, (records, lifecycle): (u64, u64)) -> Result<(), StateError> {
        self.write(|write| {
            put(write, META, LOST_TOLD, &records)?;
            put(write, META, LOST_LIFECYCLE_TOLD, &lifecycle)
        })
    }

    /// Processes that an operator released.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn released(&self) -> Result<Option<Released>, StateError> {
        self.meta(RELEASED)
    }

    /// Keeps the processes that an operator released.
    ///
    /// # Errors
    /// When the disk says no.
    pub(crate) fn keep_released(&self, released: &Released) -> Result<(), StateError> {
        self.write(|write| put(write, META, RELEASED, released))
    }

    /// Every name that a policy ever had, so that old marks keep theirs.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn names(&self) -> Result<HashMap<NameId, String>, StateError> {
        Ok(self.meta(NAMES)?.unwrap_or_default())
    }

    /// Adds names.
    ///
    /// # Errors
    /// When the disk says no.
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

    /// Uses the database. One that met an error of the disk, damage or a panic is closed, to be opened again, and checked, by the next use.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StateError> {
        let mut held = self.held();
        if let Held::Shut(shut) = &*held {
            return Err(StateError::Shut(shut.reason.clone()));
        }
        let result = match std::mem::replace(&mut *held, Held::Closed) {
            Held::Open(database) => Ok(database),
            // Not made: what is in memory came from a file that was there.
            Held::Closed | Held::Shut(_) => self.place.open(),
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

/// A file with no table was never used: a daemon of an earlier version was cut short when it made it. One with some is damaged.
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
mod power_cut_tests;
#[cfg(test)]
mod tests;
