//! The file of events. It is renamed if it is damaged, and written in batches together with the account of refusals.

use std::hash::BuildHasher as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::FixedState;
use redb::backends::FileBackend;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata as _, TableDefinition, WriteTransaction};

use super::StoreError;
use crate::database::{self, Check, Place};
use crate::events::Event;
use crate::events::refusals::{Account, Missed, Refusals};

/// How many ids are reserved at once, so that no id is used twice after a crash.
pub(super) const ID_RESERVE: u64 = 100_000;

const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const NEXT_ID: &str = "next_id";
/// How many records of the kernel are accounted for, and of which boot.
const RECORDS: &str = "records";
const RECORDS_BOOT: &str = "records_boot";
/// The account of refusals of this boot, including events that were dropped to make room, and the boot.
const REFUSALS_WITH_EVENT: &str = "refusals_told";
const REFUSALS_REPEATS: &str = "refusals_repeats";
const REFUSALS_LOST: &str = "refusals_lost";
const REFUSALS_BEFORE: &str = "refusals_before";
const REFUSALS_BOOT: &str = "refusals_boot";

/// What the file says when a daemon opens it.
pub(super) struct Opened {
    /// The first id.
    pub(super) first_id: u64,
    /// Ids below this are reserved.
    pub(super) reserved: u64,
    /// How many records are accounted for.
    pub(super) records: Option<u64>,
}

/// The file and its state.
#[derive(Debug)]
pub(super) struct Disk {
    place: Place<FileBackend>,
    database: Mutex<Option<Arc<Database>>>,
    lost: Mutex<Missed>,
    /// The account of what is stored of this boot.
    account: Mutex<Account>,
    /// Whether the file has this account.
    account_kept: AtomicBool,
    /// Whether the file was closed by an error. Events that were not synced may be missing from it and from its account.
    account_doubtful: AtomicBool,
    /// Whether the last commit failed.
    failing: AtomicBool,
    /// Why the last use failed.
    problem: Mutex<Option<String>>,
    /// Whether the file was closed because its contents are damaged. The next time it is opened, all of it is checked.
    doubtful: AtomicBool,
    /// A number that identifies this boot.
    boot: u64,
    max_events: u64,
}

impl Disk {
    /// The file at `path`, not opened yet. `boot_id`: of the kernel whose records are counted.
    pub(super) fn at(path: &Path, boot_id: &str, max_events: u64) -> Self {
        Self {
            place: Place::of_file(path, Check::Usual),
            database: Mutex::new(None),
            lost: Mutex::new(Missed::default()),
            account: Mutex::new(Account::default()),
            account_kept: AtomicBool::new(false),
            account_doubtful: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            problem: Mutex::new(None),
            doubtful: AtomicBool::new(false),
            boot: FixedState::default().hash_one(boot_id),
            max_events,
        }
    }

    /// Opens the file for this daemon. If damage shows up only after opening it, the second try checks all of it and renames it.
    pub(super) fn begin(&self) -> Result<Opened, StoreError> {
        self.try_begin().or_else(|error| match error {
            StoreError::Database { .. } if self.doubtful.load(Ordering::Relaxed) => self.try_begin(),
            error => Err(error),
        })
    }

    /// Why nothing can be stored now, and what to do.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the last commit failed.
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Takes the number of events that were not stored since the last call.
    pub(super) fn take_lost(&self) -> Missed {
        std::mem::take(&mut *self.lost.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts the account from zero, as the kernel's counts do.
    pub(super) fn count_from_zero(&self) -> Result<(), StoreError> {
        *self.account() = Account { before: Some(0), ..Account::default() };
        self.account_kept.store(false, Ordering::Relaxed);
        self.commit(&[], true, None, Some(0))
    }

    /// Counts a batch as lost after an error, and closes the file.
    pub(super) fn give_up(&self, batch: &[Arc<Event>], error: &StoreError) {
        self.fail(error);
        if !batch.is_empty() {
            tracing::error!("{error}; {} events not stored", batch.len());
        }
        self.lose(batch);
        self.close();
        self.account_doubtful.store(self.account_kept.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(super) fn error(&self, source: impl Into<redb::Error>) -> StoreError {
        StoreError::Database { path: self.place.path().to_owned(), source: source.into() }
    }

    /// Records that nothing can be stored.
    pub(super) fn fail(&self, error: &StoreError) {
        self.failing.store(true, Ordering::Relaxed);
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
    }

    /// Records that storing works.
    pub(super) fn succeed(&self) {
        self.failing.store(false, Ordering::Relaxed);
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn try_begin(&self) -> Result<Opened, StoreError> {
        let (_, is_new) = self.open_or_begin()?;
        // Ids stay above those of the renamed file.
        let floor = if is_new { floor_id() } else { 1 };
        let first_id = self.next_id()?.max(floor);
        let reserved = first_id.saturating_add(ID_RESERVE);
        self.reserve(reserved)?;
        let account = self.read_account()?;
        *self.account() = account;
        self.account_kept.store(true, Ordering::Relaxed);
        Ok(Opened { first_id, reserved, records: self.records()? })
    }

    /// The database. It is opened again if an error has closed it.
    fn open(&self) -> Result<Arc<Database>, StoreError> {
        self.open_or_begin().map(|(database, _)| database)
    }

    /// The database, and whether it replaces a damaged one.
    fn open_or_begin(&self) -> Result<(Arc<Database>, bool), StoreError> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = database.as_ref() {
            return Ok((Arc::clone(open), false));
        }
        let check = if self.doubtful.load(Ordering::Relaxed) { Check::Whole } else { Check::Usual };
        let (opened, is_new) = open_or_replace(&self.place, check).map_err(|source| self.error(source))?;
        self.doubtful.store(false, Ordering::Relaxed);
        let opened = Arc::new(opened);
        *database = Some(Arc::clone(&opened));
        Ok((opened, is_new))
    }

    fn close(&self) {
        let held = self.database.lock().unwrap_or_else(PoisonError::into_inner).take();
        let dropped = database::caught(|| {
            drop(held);
            Ok(())
        });
        if let Err(error) = dropped {
            tracing::warn!("{}", self.error(error));
        }
    }

    /// Uses the database. After an error that makes it unusable it is closed, and the next use opens it again.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let database = self.open()?;
        let result = database::caught(|| work(&database));
        drop(database);
        result.map_err(|source| {
            if database::is_damage(&source) {
                self.doubtful.store(true, Ordering::Relaxed);
            }
            if database::ends_use(&source) {
                self.close();
            }
            self.error(source)
        })
    }

    pub(super) fn read<T>(
        &self,
        take: impl FnOnce(&redb::ReadOnlyTable<u64, &'static [u8]>) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        self.with(|database| take(&database.begin_read()?.open_table(EVENTS)?)).inspect_err(|error| self.fail(error))
    }

    fn next_id(&self) -> Result<u64, StoreError> {
        self.with(|database| {
            let write = database.begin_write()?;
            let next = {
                let events = write.open_table(EVENTS)?;
                let meta = write.open_table(META)?;
                let reserved = meta.get(NEXT_ID)?.map_or(1, |id| id.value());
                let last = events.last()?.map_or(0, |(id, _)| id.value());
                reserved.max(last.saturating_add(1))
            };
            write.commit()?;
            Ok(next)
        })
    }

    fn records(&self) -> Result<Option<u64>, StoreError> {
        self.with(|database| {
            let write = database.begin_write()?;
            let meta = write.open_table(META)?;
            let of_this_boot = meta.get(RECORDS_BOOT)?.is_some_and(|boot| boot.value() == self.boot);
            Ok(meta.get(RECORDS)?.map(|records| records.value()).filter(|_| of_this_boot))
        })
    }

    pub(super) fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts events as lost.
    pub(super) fn lose(&self, events: &[Arc<Event>]) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        *lost = events.iter().fold(*lost, |lost, event| lost.and(Missed::store(event)));
    }

    fn read_account(&self) -> Result<Account, StoreError> {
        self.with(|database| {
            let write = database.begin_write()?;
            let meta = write.open_table(META)?;
            let number = |key: &str| meta.get(key).map(|number| number.map(|number| number.value()));
            if number(REFUSALS_BOOT)? != Some(self.boot) {
                return Ok(Account::default());
            }
            let [with_event, repeats, lost] = [REFUSALS_WITH_EVENT, REFUSALS_REPEATS, REFUSALS_LOST].map(&number);
            let refusals =
                Refusals { with_event: with_event?.unwrap_or(0), repeats: repeats?.unwrap_or(0), lost: lost?.unwrap_or(0), not_stored: 0 };
            Ok(Account { refusals, before: number(REFUSALS_BEFORE)? })
        })
    }

    pub(super) fn reserve(&self, next_id: u64) -> Result<(), StoreError> {
        self.with(|database| {
            let write = database.begin_write()?;
            write.open_table(META)?.insert(NEXT_ID, next_id)?;
            write.commit()?;
            Ok(())
        })
    }

    pub(super) fn commit(&self, batch: &[Arc<Event>], sync: bool, reserve: Option<u64>, records: Option<u64>) -> Result<(), StoreError> {
        if self.account_doubtful.load(Ordering::Relaxed) {
            let found = self.read_account()?;
            self.account().refusals = found.refusals;
            self.account_doubtful.store(false, Ordering::Relaxed);
        }
        let mut account = self.account();
        let refusals = batch.iter().fold(account.refusals, |refusals, event| refusals.and(Refusals::of(event)));
        let before = account.before;
        self.with(|database| {
            let mut write = database.begin_write()?;
            write.set_durability(if sync { Durability::Immediate } else { Durability::None })?;
            {
                let mut events = write.open_table(EVENTS)?;
                for event in batch {
                    let bytes = serde_json::to_vec(event.as_ref()).unwrap_or_default();
                    events.insert(event.id, bytes.as_slice())?;
                }
                // Events are counted, since ids have gaps after a daemon was killed.
                while events.len()? > self.max_events {
                    events.pop_first()?;
                }
                let mut meta = write.open_table(META)?;
                if let Some(next_id) = reserve {
                    meta.insert(NEXT_ID, next_id)?;
                }
                if let Some(records) = records {
                    meta.insert(RECORDS, records)?;
                    meta.insert(RECORDS_BOOT, self.boot)?;
                }
                meta.insert(REFUSALS_WITH_EVENT, refusals.with_event)?;
                meta.insert(REFUSALS_REPEATS, refusals.repeats)?;
                // For readers of the store, both are lost.
                meta.insert(REFUSALS_LOST, refusals.lost + refusals.not_stored)?;
                match before {
                    Some(before) => drop(meta.insert(REFUSALS_BEFORE, before)?),
                    None => drop(meta.remove(REFUSALS_BEFORE)?),
                }
                meta.insert(REFUSALS_BOOT, self.boot)?;
            }
            write.commit()?;
            Ok(())
        })?;
        account.refusals = refusals;
        self.account_kept.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// An id above all that were assigned: no count of events reaches the milliseconds since 1970.
pub(super) fn floor_id() -> u64 {
    u64::try_from(crate::clock::Now::read().wall_ms).unwrap_or(1)
}

fn make_tables(write: &WriteTransaction) -> Result<(), redb::Error> {
    write.open_table(EVENTS)?;
    write.open_table(META)?;
    Ok(())
}

/// Opens or makes the file. Also returns whether it replaces a damaged one.
fn open_or_replace(place: &Place<FileBackend>, check: Check) -> Result<(Database, bool), redb::Error> {
    if place.is_absent() {
        place.make(make_tables)?;
    }
    match place.open_checked(check) {
        Err(damage) if database::is_damage(&damage) => {
            rename_damaged(place.path(), &damage).map_err(redb::Error::Io)?;
            place.make(make_tables)?;
            Ok((place.open()?, true))
        }
        opened => Ok((opened?, false)),
    }
}

fn rename_damaged(path: &Path, why: &dyn std::error::Error) -> std::io::Result<()> {
    let damaged = path.with_extension("redb.damaged");
    tracing::warn!("events at {}: {why}; set aside as {}", path.display(), damaged.display());
    std::fs::rename(path, damaged)
}
