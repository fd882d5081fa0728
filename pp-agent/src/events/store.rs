//! The last events on disk, so that they and their ids survive a restart.
//!
//! Events are no security state: what cannot be written is counted and told, and a file that is damaged is set aside. While none can be
//! opened events are told and not stored.

use std::hash::BuildHasher as _;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use redb::backends::FileBackend;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata as _, TableDefinition, WriteTransaction};

use super::refusals::{Account, Missed, Refusals};
use super::{Event, Filter};
use crate::database::{self, Check, Place};

/// Events kept.
pub(crate) const MAX_EVENTS: u64 = 100_000;
/// Events that may wait for the disk.
const MAX_WAITING: usize = 8_192;
/// Most events in one commit.
const MAX_BATCH: usize = 1_024;
/// A commit at least this often is one that syncs.
const SYNC_EVERY: Duration = Duration::from_secs(2);
/// Ids set aside at once, so that a crash never makes one be used twice.
const ID_RESERVE: u64 = 100_000;

const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const NEXT_ID: &str = "next_id";
/// The records of the kernel that are accounted for, and the boot that they are of.
const RECORDS: &str = "records";
const RECORDS_BOOT: &str = "records_boot";
/// How many refusals the events of this boot tell of, those that had to make room among them, and the boot.
const REFUSALS_TOLD: &str = "refusals_told";
const REFUSALS_REPEATS: &str = "refusals_repeats";
const REFUSALS_LOST: &str = "refusals_lost";
const REFUSALS_BEFORE: &str = "refusals_before";
const REFUSALS_BOOT: &str = "refusals_boot";

/// Why events could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The database said no: a full disk, a damaged file.
    #[error("events at {path}: {source}")]
    Database {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: redb::Error,
    },
    /// The writer has ended.
    #[error("events: the store has stopped; restart the daemon")]
    Stopped,
}

enum Work {
    /// With how many records are accounted for once it is stored, where it comes of one.
    Event(Arc<Event>, Option<u64>),
    /// So many are accounted for; the last of them made no event.
    Read(u64),
    Flush(SyncSender<()>),
    Stop,
}

/// Some of the stored events.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Those that the filter takes.
    pub(crate) events: Vec<Event>,
    /// What all that were looked at tell.
    pub(crate) found: Missed,
    /// Where the next page begins; `None` at the end.
    pub(crate) next_id: Option<u64>,
}

/// The store. Writing never blocks the caller.
#[derive(Debug)]
pub(crate) struct Store {
    shared: Arc<Shared>,
    work: SyncSender<Work>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Events that wait for the disk.
    waiting: Arc<AtomicUsize>,
    first_id: u64,
    records: Option<u64>,
}

#[derive(Debug)]
struct Shared {
    place: Place<FileBackend>,
    database: Mutex<Option<Arc<Database>>>,
    lost: Mutex<Missed>,
    /// What is stored of this boot tells.
    account: Mutex<Account>,
    /// The file has that account, of this daemon or as this daemon found it.
    account_kept: AtomicBool,
    /// The file was closed by an error: what was not synced may be gone from it, and from its account.
    account_doubtful: AtomicBool,
    /// The last commit failed.
    failing: AtomicBool,
    /// Why the last use failed.
    problem: Mutex<Option<String>>,
    /// The file was closed because of what was read in it: the next look is at all of it.
    doubtful: AtomicBool,
    /// What stands for this boot.
    boot: u64,
    max_events: u64,
}

impl Store {
    /// Opens the file or makes it; a damaged one is renamed to `*.damaged`. Where not even a new one can be made nothing is stored until that
    /// can be done, and [`Store::problem`] says why. `boot_id`: of the kernel whose records are counted.
    #[must_use]
    pub(crate) fn open(path: &Path, boot_id: &str) -> Self {
        Self::of_size(path, boot_id, MAX_EVENTS)
    }

    fn of_size(path: &Path, boot_id: &str, max_events: u64) -> Self {
        let shared = Arc::new(Shared {
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
        });
        let begun = shared.begin().or_else(|error| match error {
            // What redb panics on is found by a second look, and set aside.
            StoreError::Database { .. } if shared.doubtful.load(Ordering::Relaxed) => shared.begin(),
            error => Err(error),
        });
        let (first_id, reserved, records) = begun.unwrap_or_else(|error| {
            shared.fail(&error);
            tracing::error!("{error}; events are told and not stored until then");
            (floor_id(), 0, None)
        });
        let (work, queue) = sync_channel(MAX_WAITING);
        let waiting = Arc::new(AtomicUsize::new(0));
        let writer = std::thread::Builder::new().name("events".to_owned()).spawn({
            let (shared, waiting) = (Arc::clone(&shared), Arc::clone(&waiting));
            move || write_all(&shared, &queue, &waiting, reserved)
        });
        let writer = writer.map_err(|source| shared.fail(&shared.error(redb::Error::Io(source)))).ok();
        Self { shared, work, writer: Mutex::new(writer), waiting, first_id, records }
    }

    /// Why nothing can be stored right now, and what to do.
    #[must_use]
    pub(crate) fn problem(&self) -> Option<String> {
        self.shared.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The id for the first event of this run.
    #[must_use]
    pub(crate) fn first_id(&self) -> u64 {
        self.first_id
    }

    /// How many records of this boot were accounted for when this was opened; `None` where none was.
    #[must_use]
    pub(crate) fn records(&self) -> Option<u64> {
        self.records
    }

    /// The kernel's count begins anew, and so does this, on the disk before it returns: a daemon that is killed before it has stored an event
    /// would else leave no number from which the next one finds out what is lost.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn count_from_zero(&self) -> Result<(), StoreError> {
        *self.shared.account() = Account { before: Some(0), ..Account::default() };
        self.shared.account_kept.store(false, Ordering::Relaxed);
        self.shared.commit(&[], true, None, Some(0))
    }

    /// What the events of this boot tell of refusals, those that had to make room among them.
    #[must_use]
    pub(crate) fn account(&self) -> Account {
        *self.shared.account()
    }

    /// Keeps how many were refused before there was this account, on the disk before it returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn account_from(&self, before: u64) -> Result<(), StoreError> {
        self.shared.account().before = Some(before);
        self.shared.commit(&[], true, None, None)
    }

    /// So many records are accounted for, the last without an event. Where the queue is full the next one says more.
    pub(crate) fn read(&self, records: u64) {
        if self.work.try_send(Work::Read(records)).is_err() {
            tracing::debug!("events: the writer is busy");
        }
    }

    /// Hands an event to the writer, with how many records are accounted for once it is stored; one that finds no room is counted lost.
    pub(crate) fn put(&self, event: Arc<Event>, records: Option<u64>) {
        match self.work.try_send(Work::Event(event, records)) {
            Ok(()) => drop(self.waiting.fetch_add(1, Ordering::Relaxed)),
            Err(TrySendError::Full(Work::Event(event, _)) | TrySendError::Disconnected(Work::Event(event, _))) => {
                self.shared.lose(&[event]);
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => tracing::error!("events: the queue took another event"),
        }
    }

    /// Most of the room for events that wait for the disk is taken, and the disk takes them: it is worth waiting a little.
    #[must_use]
    pub(crate) fn is_behind(&self) -> bool {
        // Counted a moment after it was put: for that moment it may be taken for more than fit.
        let waiting = self.waiting.load(Ordering::Relaxed).cast_signed();
        waiting > MAX_WAITING.cast_signed() / 4 * 3 && !self.shared.failing.load(Ordering::Relaxed)
    }

    /// Events that were not stored since this was last asked. Zero while
    /// nothing can be stored: the loss is told when it can be told lastingly.
    #[must_use]
    pub(crate) fn take_lost(&self) -> Missed {
        if self.shared.failing.load(Ordering::Relaxed) {
            return Missed::default();
        }
        std::mem::take(&mut *self.shared.lost.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The stored events that a filter and `allowed` take, oldest first; with
    /// a limit the newest of them.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn query(&self, filter: &Filter, allowed: impl Fn(&Event) -> bool) -> Result<Vec<Event>, StoreError> {
        self.flush()?;
        let limit = filter.limit.unwrap_or(usize::MAX);
        let mut found = self.shared.read(|events| {
            let mut found = Vec::new();
            for entry in events.range(filter.first_id()..)?.rev() {
                if found.len() >= limit {
                    break;
                }
                let (_, bytes) = entry?;
                // Bytes of an older layout are skipped, not guessed at.
                let Ok(event) = serde_json::from_slice::<Event>(bytes.value()) else { continue };
                if filter.wants(&event) && allowed(&event) {
                    found.push(event);
                }
            }
            Ok(found)
        })?;
        found.reverse();
        Ok(found)
    }

    /// At most `max` of the stored events of these ids that a filter takes, oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn page(&self, ids: RangeInclusive<u64>, max: usize, filter: &Filter) -> Result<Page, StoreError> {
        self.flush()?;
        self.shared.read(|events| {
            let mut page = Page::default();
            for entry in events.range(ids)? {
                let (id, bytes) = entry?;
                if page.events.len() >= max {
                    page.next_id = Some(id.value());
                    break;
                }
                let Ok(event) = serde_json::from_slice::<Event>(bytes.value()) else { continue };
                page.found = page.found.and(Missed::follower(&event));
                if filter.wants(&event) {
                    page.events.push(event);
                }
            }
            Ok(page)
        })
    }

    /// One event.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn find(&self, id: u64) -> Result<Option<Event>, StoreError> {
        self.flush()?;
        self.shared.read(|events| Ok(events.get(id)?.and_then(|bytes| serde_json::from_slice(bytes.value()).ok())))
    }

    /// Waits until everything put before is readable.
    fn flush(&self) -> Result<(), StoreError> {
        let (done, wait) = sync_channel(1);
        self.work.send(Work::Flush(done)).map_err(|_| StoreError::Stopped)?;
        wait.recv().map_err(|_| StoreError::Stopped)
    }

    /// Writes and syncs what waits, gives back unused ids and ends the writer.
    pub(crate) fn stop(&self, next_id: u64) {
        if self.work.send(Work::Stop).is_ok()
            && let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take()
            && writer.join().is_err()
        {
            tracing::error!("events: the writer ended by a panic");
        }
        if let Err(error) = self.shared.reserve(next_id) {
            tracing::warn!("{error}");
        }
    }
}

impl Shared {
    fn error(&self, source: impl Into<redb::Error>) -> StoreError {
        StoreError::Database { path: self.place.path().to_owned(), source: source.into() }
    }

    /// Notes that nothing can be stored.
    fn fail(&self, error: &StoreError) {
        self.failing.store(true, Ordering::Relaxed);
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
    }

    /// Notes that something was stored.
    fn succeed(&self) {
        self.failing.store(false, Ordering::Relaxed);
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The first id of this run, up to which id they are set aside, and the records that are accounted for.
    fn begin(&self) -> Result<(u64, u64, Option<u64>), StoreError> {
        let (_, is_new) = self.open_or_begin()?;
        // Ids stay above those of a file that was set aside.
        let floor = if is_new { floor_id() } else { 1 };
        let first_id = self.next_id()?.max(floor);
        let reserved = first_id.saturating_add(ID_RESERVE);
        self.reserve(reserved)?;
        let account = self.read_account()?;
        *self.account() = account;
        self.account_kept.store(true, Ordering::Relaxed);
        Ok((first_id, reserved, self.records()?))
    }

    /// The database, opened again if an error had closed it.
    fn open(&self) -> Result<Arc<Database>, StoreError> {
        self.open_or_begin().map(|(database, _)| database)
    }

    /// The same, and whether it was begun anew in the place of a damaged one.
    fn open_or_begin(&self) -> Result<(Arc<Database>, bool), StoreError> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = database.as_ref() {
            return Ok((Arc::clone(open), false));
        }
        let check = if self.doubtful.load(Ordering::Relaxed) { Check::Whole } else { Check::Usual };
        let (opened, is_new) = open_or_set_aside(&self.place, check).map_err(|source| self.error(source))?;
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

    /// Uses the database; after an error that it does not outlive it is closed, and opened again by the next use.
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

    fn read<T>(&self, take: impl FnOnce(&redb::ReadOnlyTable<u64, &'static [u8]>) -> Result<T, redb::Error>) -> Result<T, StoreError> {
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

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Events that are not stored.
    fn lose(&self, events: &[Arc<Event>]) {
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
            let [told, repeats, lost] = [REFUSALS_TOLD, REFUSALS_REPEATS, REFUSALS_LOST].map(&number);
            let refusals = Refusals { told: told?.unwrap_or(0), repeats: repeats?.unwrap_or(0), lost: lost?.unwrap_or(0), not_stored: 0 };
            Ok(Account { refusals, before: number(REFUSALS_BEFORE)? })
        })
    }

    fn reserve(&self, next_id: u64) -> Result<(), StoreError> {
        self.with(|database| {
            let write = database.begin_write()?;
            write.open_table(META)?.insert(NEXT_ID, next_id)?;
            write.commit()?;
            Ok(())
        })
    }

    fn commit(&self, batch: &[Arc<Event>], sync: bool, reserve: Option<u64>, records: Option<u64>) -> Result<(), StoreError> {
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
                // Ids have gaps, where a daemon was killed.
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
                meta.insert(REFUSALS_TOLD, refusals.told)?;
                meta.insert(REFUSALS_REPEATS, refusals.repeats)?;
                // Whoever reads only what is stored finds both lost.
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

/// An id above all that were given: no count of events reaches the milliseconds since 1970.
fn floor_id() -> u64 {
    u64::try_from(crate::clock::Now::read().wall_ms).unwrap_or(1)
}

fn make_tables(write: &WriteTransaction) -> Result<(), redb::Error> {
    write.open_table(EVENTS)?;
    write.open_table(META)?;
    Ok(())
}

/// Opens or makes the file; whether it was made in the place of a damaged one.
fn open_or_set_aside(place: &Place<FileBackend>, check: Check) -> Result<(Database, bool), redb::Error> {
    if place.is_absent() {
        place.make(make_tables)?;
    }
    match place.open_checked(check) {
        Err(damage) if database::is_damage(&damage) => {
            set_aside(place.path(), &damage).map_err(redb::Error::Io)?;
            place.make(make_tables)?;
            Ok((place.open()?, true))
        }
        opened => Ok((opened?, false)),
    }
}

fn set_aside(path: &Path, why: &dyn std::error::Error) -> std::io::Result<()> {
    let aside = path.with_extension("redb.damaged");
    tracing::warn!("events at {}: {why}; set aside as {}", path.display(), aside.display());
    std::fs::rename(path, aside)
}

fn write_all(shared: &Shared, queue: &Receiver<Work>, waiting: &AtomicUsize, reserved: u64) {
    let mut reserved = reserved;
    // The greatest id that was handed in.
    let mut given = 0;
    let mut batch: Vec<Arc<Event>> = Vec::new();
    let mut synced = Instant::now();
    let mut dirty = false;
    let mut records = None;
    loop {
        let mut flush = None;
        let mut stop = false;
        let mut next = match queue.recv_timeout(SYNC_EVERY) {
            Ok(work) => Some(work),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Work::Stop),
        };
        while let Some(work) = next.take() {
            match work {
                Work::Event(event, read) => {
                    waiting.fetch_sub(1, Ordering::Relaxed);
                    batch.push(event);
                    records = records.max(read);
                }
                Work::Read(read) => {
                    records = records.max(Some(read));
                    dirty = true;
                }
                Work::Flush(done) => flush = Some(done),
                Work::Stop => stop = true,
            }
            if batch.len() < MAX_BATCH && flush.is_none() && !stop {
                next = queue.try_recv().ok();
            }
        }
        let sync = stop || synced.elapsed() >= SYNC_EVERY;
        let failing = shared.failing.load(Ordering::Relaxed);
        if !batch.is_empty() || (sync && (dirty || failing)) {
            let newest = batch.last().map_or(0, |event| event.id);
            given = given.max(newest);
            let reserve = (given.saturating_add(ID_RESERVE / 2) > reserved).then(|| given.saturating_add(ID_RESERVE));
            let sync = sync || reserve.is_some();
            match shared.commit(&batch, sync, reserve, records) {
                Ok(()) => {
                    shared.succeed();
                    reserved = reserve.unwrap_or(reserved);
                    dirty = !sync;
                    records = None;
                }
                Err(error) => {
                    shared.fail(&error);
                    if !batch.is_empty() {
                        tracing::error!("{error}; {} events not stored", batch.len());
                    }
                    shared.lose(&batch);
                    shared.close();
                    shared.account_doubtful.store(shared.account_kept.load(Ordering::Relaxed), Ordering::Relaxed);
                    // The next file may be another one.
                    reserved = 0;
                }
            }
            if sync {
                synced = Instant::now();
            }
            batch.clear();
        }
        if let Some(done) = flush
            && done.send(()).is_err()
        {
            tracing::debug!("events: whoever asked for a flush has gone");
        }
        if stop {
            return;
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
