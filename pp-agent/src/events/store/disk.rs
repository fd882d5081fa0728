//! The file of events. It is renamed if it is damaged, and written in batches together with the account of refusals.

use std::hash::BuildHasher as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::FixedState;
use redb::backends::FileBackend;
use redb::{Database, Durability, ReadableDatabase as _, ReadableTable as _};

use super::shares::{Index, Key, Log, Rooms};
use super::tables::{self, DECISIONS, EVENTS, META, Table, Tables};
use super::{StoreError, stored};
use crate::database::{self, Check, Place};
use crate::events::Event;
use crate::events::refusals::{Account, Missed, Refusals};

/// How many ids are reserved at once, so that no id is used twice after a crash.
pub(super) const ID_RESERVE: u64 = 100_000;

const NEXT_ID: &str = "next_id";
/// How many records of the kernel are accounted for, and of which boot.
const RECORDS: &str = "records";
const RECORDS_BOOT: &str = "records_boot";
/// The newest version of `state.redb` when the newest decision was stored.
const STATE_VERSION: &str = "state_version";
/// The account of refusals of this boot, including events that were dropped to make room, and the boot.
const REFUSALS_WITH_EVENT: &str = "refusals_told";
const REFUSALS_REPEATS: &str = "refusals_repeats";
const REFUSALS_LOST: &str = "refusals_lost";
const REFUSALS_BEFORE: &str = "refusals_before";
const REFUSALS_BOOT: &str = "refusals_boot";

/// How many events make room for each new one, at most: a log that is too large when the file is opened shrinks slowly.
const MADE_ROOM: usize = 2;

/// What the file says when a daemon opens it.
pub(super) struct Opened {
    /// The first id.
    pub(super) first_id: u64,
    /// Ids below this are reserved.
    pub(super) reserved: u64,
    /// How many records are accounted for.
    pub(super) records: Option<u64>,
}

/// An open file, with the index of its events.
#[derive(Debug)]
struct Open {
    database: Database,
    /// `None`: it is made when it is needed.
    index: Mutex<Option<Index>>,
}

impl Open {
    /// Uses the index, which nobody else changes meanwhile. It is made anew after an error.
    fn with_index<T>(&self, rooms: Rooms, work: impl FnOnce(&mut Index) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        let mut held = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let mut index = match held.take() {
            Some(index) => index,
            None => make_index(&self.database, rooms)?,
        };
        let result = work(&mut index)?;
        if index.is_wrong() {
            tracing::warn!("events: the index named an event that is not stored; it is made anew");
        } else {
            *held = Some(index);
        }
        Ok(result)
    }
}

/// The file and its state.
#[derive(Debug)]
pub(super) struct Disk {
    place: Place<FileBackend>,
    open: Mutex<Option<Arc<Open>>>,
    lost: Mutex<Missed>,
    /// The account of what is stored of this boot.
    account: Mutex<Account>,
    /// Whether the file has this account.
    account_kept: AtomicBool,
    /// Whether the file was closed by an error. Events that were not synced may be missing from it and from its account.
    account_doubtful: AtomicBool,
    /// The newest version of the state, which the next commit stores.
    state_version: AtomicU64,
    /// Whether the last commit failed.
    failing: AtomicBool,
    /// Why the last use failed.
    problem: Mutex<Option<String>>,
    /// Whether the file was closed because its contents are damaged. The next time it is opened, all of it is checked.
    doubtful: AtomicBool,
    /// A number that identifies this boot.
    boot: u64,
    rooms: Rooms,
}

impl Disk {
    /// The file at `path`, not opened yet. `boot_id`: of the kernel whose records are counted.
    pub(super) fn at(path: &Path, boot_id: &str, rooms: Rooms) -> Self {
        Self {
            place: Place::of_file(path, Check::Usual),
            open: Mutex::new(None),
            lost: Mutex::new(Missed::default()),
            account: Mutex::new(Account::default()),
            account_kept: AtomicBool::new(false),
            account_doubtful: AtomicBool::new(false),
            state_version: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            problem: Mutex::new(None),
            doubtful: AtomicBool::new(false),
            boot: FixedState::default().hash_one(boot_id),
            rooms,
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
        self.note_state_version(self.read_state_version()?);
        Ok(Opened { first_id, reserved, records: self.records()? })
    }

    /// The open file. It is opened again if an error has closed it.
    fn open(&self) -> Result<Arc<Open>, StoreError> {
        self.open_or_begin().map(|(open, _)| open)
    }

    /// The open file, and whether it replaces a damaged one.
    fn open_or_begin(&self) -> Result<(Arc<Open>, bool), StoreError> {
        let mut held = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = held.as_ref() {
            return Ok((Arc::clone(open), false));
        }
        let check = if self.doubtful.load(Ordering::Relaxed) { Check::Whole } else { Check::Usual };
        let (database, is_new) = open_or_replace(&self.place, check).map_err(|source| self.error(source))?;
        self.doubtful.store(false, Ordering::Relaxed);
        let open = Arc::new(Open { database, index: Mutex::new(None) });
        *held = Some(Arc::clone(&open));
        Ok((open, is_new))
    }

    fn close(&self) {
        let held = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        let dropped = database::caught(|| {
            drop(held);
            Ok(())
        });
        if let Err(error) = dropped {
            tracing::warn!("{}", self.error(error));
        }
    }

    /// Uses the file. After an error that makes it unusable it is closed, and the next use opens it again.
    fn with<T>(&self, work: impl FnOnce(&Open) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let open = self.open()?;
        let result = database::caught(|| work(&open));
        drop(open);
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

    /// Makes the index, so that no reader waits for it.
    pub(super) fn prepare(&self) -> Result<(), StoreError> {
        self.with(|open| open.with_index(self.rooms, |_| Ok(())))
    }

    /// Reads the stored events.
    pub(super) fn read<T>(&self, take: impl FnOnce(&Tables) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        self.with(|open| take(&Tables::open(&open.database)?)).inspect_err(|error| self.fail(error))
    }

    /// Reads the events that the index names, in the order in which `name` returns their ids, until `take` returns `false`. Returns how many
    /// it read.
    pub(super) fn read_named(
        &self,
        name: impl FnOnce(&Index) -> Vec<(u64, Log)>,
        mut take: impl FnMut(u64, &[u8]) -> bool,
    ) -> Result<usize, StoreError> {
        let read = |open: &Open| {
            // The tables are as the index has them.
            let (tables, ids) = open.with_index(self.rooms, |index| Ok((Tables::open(&open.database)?, name(index))))?;
            let mut read = 0;
            for (id, log) in ids {
                let Some(bytes) = tables.get(log.table(), id)? else {
                    open.with_index(self.rooms, |index| {
                        index.doubt();
                        Ok(())
                    })?;
                    continue;
                };
                read += 1;
                if !take(id, bytes.value()) {
                    break;
                }
            }
            Ok(read)
        };
        self.with(read).inspect_err(|error| self.fail(error))
    }

    /// Removes an event without the index.
    #[cfg(test)]
    pub(super) fn remove_unnoticed(&self, id: u64) {
        let remove = |open: &Open| {
            let write = open.database.begin_write()?;
            write.open_table(EVENTS)?.remove(id)?;
            Ok(write.commit()?)
        };
        self.with(remove).unwrap();
    }

    /// Whether there is an index now.
    #[cfg(test)]
    pub(super) fn has_index(&self) -> bool {
        self.open().unwrap().index.lock().unwrap().is_some()
    }

    fn next_id(&self) -> Result<u64, StoreError> {
        self.with(|open| {
            let write = open.database.begin_write()?;
            let next = {
                let meta = write.open_table(META)?;
                let reserved = meta.get(NEXT_ID)?.map_or(1, |id| id.value());
                let mut next = reserved;
                for table in [EVENTS, DECISIONS] {
                    let last = write.open_table(table)?.last()?.map_or(0, |(id, _)| id.value());
                    next = next.max(last.saturating_add(1));
                }
                next
            };
            write.commit()?;
            Ok(next)
        })
    }

    fn records(&self) -> Result<Option<u64>, StoreError> {
        self.with(|open| {
            let write = open.database.begin_write()?;
            let meta = write.open_table(META)?;
            let of_this_boot = meta.get(RECORDS_BOOT)?.is_some_and(|boot| boot.value() == self.boot);
            Ok(meta.get(RECORDS)?.map(|records| records.value()).filter(|_| of_this_boot))
        })
    }

    /// The newest version of the state that is stored or was noted.
    pub(super) fn state_version(&self) -> u64 {
        self.state_version.load(Ordering::Acquire)
    }

    /// Has the next commit store this version of the state, unless a newer one is known.
    pub(super) fn note_state_version(&self, version: u64) {
        self.state_version.fetch_max(version, Ordering::AcqRel);
    }

    fn read_state_version(&self) -> Result<u64, StoreError> {
        self.with(|open| Ok(open.database.begin_read()?.open_table(META)?.get(STATE_VERSION)?.map_or(0, |version| version.value())))
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
        self.with(|open| {
            let write = open.database.begin_write()?;
            let meta = write.open_table(META)?;
            let number = |key: &str| meta.get(key).map(|number| number.map(|number| number.value()));
            if number(REFUSALS_BOOT)? != Some(self.boot) {
                return Ok(Account::default());
            }
            let [with_event, repeats, lost] = [REFUSALS_WITH_EVENT, REFUSALS_REPEATS, REFUSALS_LOST].map(&number);
            let refusals =
                Refusals { with_event: with_event?.unwrap_or(0), repeats: repeats?.unwrap_or(0), lost: lost?.unwrap_or(0), not_stored: 0 };
            Ok(Account { refusals, before: number(REFUSALS_BEFORE)?, held: 0 })
        })
    }

    pub(super) fn reserve(&self, next_id: u64) -> Result<(), StoreError> {
        self.with(|open| {
            let write = open.database.begin_write()?;
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
        let put = |open: &Open, index: &mut Index| {
            let mut write = open.database.begin_write()?;
            write.set_durability(if sync { Durability::Immediate } else { Durability::None })?;
            {
                let (mut events, mut decisions) = (write.open_table(EVENTS)?, write.open_table(DECISIONS)?);
                for event in batch {
                    let bytes = serde_json::to_vec(event.as_ref()).unwrap_or_default();
                    let key = Key::of(event);
                    let table = match key.log.table() {
                        Table::Events => &mut events,
                        Table::Decisions => &mut decisions,
                    };
                    table.insert(event.id, bytes.as_slice())?;
                    index.add(key, event.id);
                    for _ in 0..MADE_ROOM {
                        if let Some(id) = index.make_room(key.log)
                            && table.remove(id)?.is_none()
                        {
                            index.doubt();
                        }
                    }
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
                meta.insert(STATE_VERSION, self.state_version())?;
            }
            Ok(write.commit()?)
        };
        self.with(|open| open.with_index(self.rooms, |index| put(open, index)))?;
        account.refusals = refusals;
        self.account_kept.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// An id above all that were assigned: no count of events reaches the milliseconds since 1970.
pub(super) fn floor_id() -> u64 {
    u64::try_from(crate::clock::Now::read().wall_ms).unwrap_or(1)
}

/// Makes the index of the stored events. Decisions that an earlier version stored among other events are moved to their own table first.
fn make_index(database: &Database, rooms: Rooms) -> Result<Index, redb::Error> {
    let mut index = Index::new(rooms);
    let (mut moved, mut twice) = (Vec::new(), Vec::new());
    let mut last = None;
    for entry in Tables::open(database)?.all()? {
        let (id, bytes, table) = entry?;
        let key = stored(bytes.value()).map_or_else(Key::unreadable, |event| Key::of(&event));
        // No version gives an id twice. If both tables have it, that among other events is kept.
        if last.replace(id) == Some(id) {
            twice.push(id);
            continue;
        }
        if table == Table::Events && key.log.table() == Table::Decisions {
            moved.push(id);
        }
        index.add(key, id);
    }
    if !moved.is_empty() || !twice.is_empty() {
        let write = database.begin_write()?;
        {
            let (mut events, mut decisions) = (write.open_table(EVENTS)?, write.open_table(DECISIONS)?);
            for id in twice {
                decisions.remove(id)?;
            }
            for id in moved {
                if let Some(bytes) = events.remove(id)? {
                    decisions.insert(id, bytes.value())?;
                }
            }
        }
        write.commit()?;
    }
    Ok(index)
}

/// Opens or makes the file. Also returns whether it replaces a damaged one.
fn open_or_replace(place: &Place<FileBackend>, check: Check) -> Result<(Database, bool), redb::Error> {
    if place.is_absent() {
        place.make(tables::make)?;
    }
    let opened = place.open_checked(check).and_then(|database| {
        let completed = database::caught(|| tables::complete(&database));
        completed.map(|()| database)
    });
    match opened {
        Err(damage) if database::is_damage(&damage) => {
            rename_damaged(place.path(), &damage).map_err(redb::Error::Io)?;
            place.make(tables::make)?;
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
