//! The last events on disk, so that they and their ids survive a restart.
//!
//! Events are no security state: what cannot be written is counted and told,
//! and a file that cannot be read is set aside.

use std::hash::BuildHasher as _;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata as _, TableDefinition};

use super::{Event, Filter};

/// Events kept.
pub const MAX_EVENTS: u64 = 100_000;
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

/// Why events could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
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
pub struct Page {
    /// Those that the filter takes.
    pub events: Vec<Event>,
    /// How many were looked at.
    pub stored: u64,
    /// Where the next page begins; `None` at the end.
    pub next_id: Option<u64>,
}

/// The store. Writing never blocks the caller.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    work: SyncSender<Work>,
    writer: Mutex<Option<JoinHandle<()>>>,
    first_id: u64,
    records: Option<u64>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    database: Mutex<Option<Arc<Database>>>,
    lost: AtomicU64,
    /// The last commit failed.
    failing: AtomicBool,
    /// What stands for this boot.
    boot: u64,
    max_events: u64,
}

impl Store {
    /// Opens the file or makes it; a damaged one is renamed to `*.damaged`. `boot_id`: of the kernel whose records are counted.
    ///
    /// # Errors
    /// When not even a new file can be made.
    pub fn open(path: &Path, boot_id: &str) -> Result<Self, StoreError> {
        Self::of_size(path, boot_id, MAX_EVENTS)
    }

    fn of_size(path: &Path, boot_id: &str, max_events: u64) -> Result<Self, StoreError> {
        let (database, damaged) = open_or_set_aside(path)?;
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            database: Mutex::new(Some(Arc::new(database))),
            lost: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            boot: FixedState::default().hash_one(boot_id),
            max_events,
        });
        // No count of events reaches the milliseconds since 1970, so ids stay
        // above those of a file that was set aside.
        let floor = if damaged { u64::try_from(crate::clock::Now::read().wall_ms).unwrap_or(1) } else { 1 };
        let first_id = shared.next_id()?.max(floor);
        shared.reserve(first_id.saturating_add(ID_RESERVE))?;
        let records = shared.records()?;
        let (work, queue) = sync_channel(MAX_WAITING);
        let writer = std::thread::Builder::new()
            .name("events".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || write_all(&shared, &queue, first_id.saturating_add(ID_RESERVE))
            })
            .map_err(|source| shared.error(redb::Error::Io(source)))?;
        Ok(Self { shared, work, writer: Mutex::new(Some(writer)), first_id, records })
    }

    /// The id for the first event of this run.
    #[must_use]
    pub fn first_id(&self) -> u64 {
        self.first_id
    }

    /// How many records of this boot were accounted for when this was opened; `None` where none was.
    #[must_use]
    pub fn records(&self) -> Option<u64> {
        self.records
    }

    /// The kernel's count begins anew, and so does this, on the disk before it returns: a daemon that is killed before it has stored an event
    /// would else leave no number from which the next one finds out what is lost.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn count_from_zero(&self) -> Result<(), StoreError> {
        self.shared.commit(&[], true, None, Some(0))
    }

    /// So many records are accounted for, the last without an event. Where the queue is full the next one says more.
    pub fn read(&self, records: u64) {
        if self.work.try_send(Work::Read(records)).is_err() {
            tracing::debug!("events: the writer is busy");
        }
    }

    /// Hands an event to the writer, with how many records are accounted for once it is stored; one that finds no room is counted lost.
    pub fn put(&self, event: Arc<Event>, records: Option<u64>) {
        match self.work.try_send(Work::Event(event, records)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.shared.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Events that were not stored since this was last asked. Zero while
    /// nothing can be stored: the loss is told when it can be told lastingly.
    #[must_use]
    pub fn take_lost(&self) -> u64 {
        if self.shared.failing.load(Ordering::Relaxed) {
            return 0;
        }
        self.shared.lost.swap(0, Ordering::Relaxed)
    }

    /// The stored events that a filter and `allowed` take, oldest first; with
    /// a limit the newest of them.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn query(&self, filter: &Filter, allowed: impl Fn(&Event) -> bool) -> Result<Vec<Event>, StoreError> {
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
    pub fn page(&self, ids: RangeInclusive<u64>, max: usize, filter: &Filter) -> Result<Page, StoreError> {
        self.flush()?;
        self.shared.read(|events| {
            let mut page = Page::default();
            for entry in events.range(ids)? {
                let (id, bytes) = entry?;
                if page.events.len() >= max {
                    page.next_id = Some(id.value());
                    break;
                }
                page.stored += 1;
                let Ok(event) = serde_json::from_slice::<Event>(bytes.value()) else { continue };
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
    pub fn find(&self, id: u64) -> Result<Option<Event>, StoreError> {
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
    pub fn stop(&self, next_id: u64) {
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
        StoreError::Database { path: self.path.clone(), source: source.into() }
    }

    /// The database, opened again if an error had closed it.
    fn open(&self) -> Result<Arc<Database>, StoreError> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = database.as_ref() {
            return Ok(Arc::clone(open));
        }
        let opened = Arc::new(Database::create(&self.path).map_err(|source| self.error(source))?);
        *database = Some(Arc::clone(&opened));
        Ok(opened)
    }

    fn close(&self) {
        *self.database.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn read<T>(&self, take: impl FnOnce(&redb::ReadOnlyTable<u64, &'static [u8]>) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let read = self.open()?.begin_read().map_err(|source| self.error(source))?;
        let events = read.open_table(EVENTS).map_err(|source| self.error(source))?;
        take(&events).map_err(|source| self.error(source))
    }

    fn next_id(&self) -> Result<u64, StoreError> {
        let read = || -> Result<u64, redb::Error> {
            let Some(database) = self.database.lock().unwrap_or_else(PoisonError::into_inner).clone() else {
                return Ok(1);
            };
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
        };
        read().map_err(|source| self.error(source))
    }

    fn records(&self) -> Result<Option<u64>, StoreError> {
        let database = self.open()?;
        let read = || -> Result<Option<u64>, redb::Error> {
            let write = database.begin_write()?;
            let meta = write.open_table(META)?;
            let of_this_boot = meta.get(RECORDS_BOOT)?.is_some_and(|boot| boot.value() == self.boot);
            Ok(meta.get(RECORDS)?.map(|records| records.value()).filter(|_| of_this_boot))
        };
        read().map_err(|source| self.error(source))
    }

    fn reserve(&self, next_id: u64) -> Result<(), StoreError> {
        let database = self.open()?;
        let write = || -> Result<(), redb::Error> {
            let write = database.begin_write()?;
            write.open_table(META)?.insert(NEXT_ID, next_id)?;
            write.commit()?;
            Ok(())
        };
        write().map_err(|source| self.error(source))
    }

    fn commit(&self, batch: &[Arc<Event>], sync: bool, reserve: Option<u64>, records: Option<u64>) -> Result<(), StoreError> {
        let database = self.open()?;
        let write = || -> Result<(), redb::Error> {
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
            }
            write.commit()?;
            Ok(())
        };
        write().map_err(|source| self.error(source))
    }
}

fn open_or_set_aside(path: &Path) -> Result<(Database, bool), StoreError> {
    let error = |source: redb::Error| StoreError::Database { path: path.to_owned(), source };
    match Database::create(path) {
        Ok(database) => Ok((database, false)),
        Err(first @ (redb::DatabaseError::Storage(redb::StorageError::Corrupted(_)) | redb::DatabaseError::UpgradeRequired(_))) => {
            set_aside(path, &first).map_err(|source| error(redb::Error::Io(source)))?;
            Ok((Database::create(path).map_err(|source| error(source.into()))?, true))
        }
        Err(redb::DatabaseError::Storage(redb::StorageError::Io(source)))
            if source.kind() == std::io::ErrorKind::InvalidData || source.kind() == std::io::ErrorKind::UnexpectedEof =>
        {
            set_aside(path, &source).map_err(|source| error(redb::Error::Io(source)))?;
            Ok((Database::create(path).map_err(|source| error(source.into()))?, true))
        }
        Err(other) => Err(error(other.into())),
    }
}

fn set_aside(path: &Path, why: &dyn std::error::Error) -> std::io::Result<()> {
    let aside = path.with_extension("redb.damaged");
    tracing::warn!("events at {}: {why}; set aside as {}", path.display(), aside.display());
    std::fs::rename(path, aside)
}

fn write_all(shared: &Shared, queue: &Receiver<Work>, reserved: u64) {
    let mut reserved = reserved;
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
        if !batch.is_empty() || (sync && dirty) {
            let newest = batch.last().map_or(0, |event| event.id);
            let reserve = (newest.saturating_add(ID_RESERVE / 2) > reserved).then(|| newest.saturating_add(ID_RESERVE));
            let sync = sync || reserve.is_some();
            match shared.commit(&batch, sync, reserve, records) {
                Ok(()) => {
                    shared.failing.store(false, Ordering::Relaxed);
                    reserved = reserve.unwrap_or(reserved);
                    dirty = !sync;
                    records = None;
                }
                Err(error) => {
                    shared.failing.store(true, Ordering::Relaxed);
                    tracing::error!("{error}; {} events not stored", batch.len());
                    shared.lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    shared.close();
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
