//! Stores the last events on disk, so that they and their ids survive a restart. Events are in several logs (`store/shares.rs`), and a
//! session that makes very many only loses its own.
//!
//! Enforcement does not depend on events. What cannot be written is counted and reported, and a damaged file is renamed. While no file can
//! be opened, events are published but not stored.

mod disk;
mod shares;
mod tables;
mod writer;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::refusals::{Account, Missed};
use super::{Body, Event, Filter, Kind};
use disk::{Disk, Opened, floor_id};
pub(crate) use shares::Whose;
use shares::{Index, Rooms, Select};
use writer::write_all;

/// How many events are kept.
const ROOMS: Rooms = Rooms { decisions: 20_000, not_registered: 5_000, traffic: 100_000 };
/// How many events may wait for the disk.
const MAX_WAITING: usize = 8_192;
/// Most events in one commit.
const MAX_BATCH: usize = 1_024;
/// Most events that are read for one page, so that other callers have their turn.
const MAX_READ: usize = 4_096;
/// How often a commit must sync, at least.
const SYNC_EVERY: Duration = Duration::from_secs(2);

/// Why events could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The database failed, for example because the disk is full or the file is damaged.
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
    /// An event; of a record, with how many records are accounted for once it is stored.
    Event(Arc<Event>, Option<u64>),
    /// How many records are accounted for; the last of them made no event.
    Read(u64),
    Flush(SyncSender<()>),
    Stop,
}

/// Some of the stored events.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// The events that the filter selects.
    pub(crate) events: Vec<Event>,
    /// What all events that were read report, selected by the filter or not.
    pub(crate) found: Missed,
    /// The first id of the next page; `None` at the end.
    pub(crate) next_id: Option<u64>,
}

/// The store. Writing never blocks the caller.
#[derive(Debug)]
pub(crate) struct Store {
    disk: Arc<Disk>,
    work: SyncSender<Work>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Events that wait for the disk.
    waiting: Arc<AtomicUsize>,
    first_id: u64,
    records: Option<u64>,
}

impl Store {
    /// Opens or makes the file. A damaged file is renamed to `*.damaged`. If no new file can be made either, nothing is stored until that
    /// works, and [`Store::problem`] says why. `boot_id`: of the kernel whose records are counted.
    #[must_use]
    pub(crate) fn open(path: &Path, boot_id: &str) -> Self {
        Self::of_size(path, boot_id, ROOMS)
    }

    fn of_size(path: &Path, boot_id: &str, rooms: Rooms) -> Self {
        let disk = Arc::new(Disk::at(path, boot_id, rooms));
        let opened = disk.begin().unwrap_or_else(|error| {
            disk.fail(&error);
            tracing::error!("{error}; events are told and not stored until then");
            Opened { first_id: floor_id(), reserved: 0, records: None }
        });
        let (work, queue) = sync_channel(MAX_WAITING);
        let waiting = Arc::new(AtomicUsize::new(0));
        let writer = std::thread::Builder::new().name("events".to_owned()).spawn({
            let (disk, waiting) = (Arc::clone(&disk), Arc::clone(&waiting));
            move || write_all(&disk, &queue, &waiting, opened.reserved)
        });
        let writer = writer.map_err(|source| disk.fail(&disk.error(redb::Error::Io(source)))).ok();
        Self { disk, work, writer: Mutex::new(writer), waiting, first_id: opened.first_id, records: opened.records }
    }

    /// Why nothing can be stored now, and what to do.
    #[must_use]
    pub(crate) fn problem(&self) -> Option<String> {
        self.disk.problem()
    }

    /// The id for the first event of this run.
    #[must_use]
    pub(crate) fn first_id(&self) -> u64 {
        self.first_id
    }

    /// The newest version of the state that the events know.
    #[must_use]
    pub(crate) fn state_version(&self) -> u64 {
        self.disk.state_version()
    }

    /// Stores the version of the state with the next event, which is that of the decision that changed it.
    pub(crate) fn note_state_version(&self, version: u64) {
        self.disk.note_state_version(version);
    }

    /// The ids of all receipts whose revocation is stored, with the reasons.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn revocations(&self) -> Result<HashMap<String, String>, StoreError> {
        let filter = Filter { kind: Some(Kind::Revocation.name().to_owned()), ..Filter::default() };
        let mut found = HashMap::new();
        self.newest(&filter, Whose::All, usize::MAX, |event| {
            if let Body::Revocation(Some(id)) = event.body {
                found.insert(id, event.detail.unwrap_or_default());
            }
            true
        })?;
        Ok(found)
    }

    /// How many records of this boot were accounted for when the store was opened; `None` if that is unknown.
    #[must_use]
    pub(crate) fn records(&self) -> Option<u64> {
        self.records
    }

    /// Starts the account from zero, as the kernel's count does, on the disk before it returns. Otherwise a daemon that is killed before
    /// its first stored event would leave no number by which the next one finds losses.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn count_from_zero(&self) -> Result<(), StoreError> {
        self.disk.count_from_zero()
    }

    /// The account of refusals of this boot, including events that were dropped to make room.
    #[must_use]
    pub(crate) fn account(&self) -> Account {
        *self.disk.account()
    }

    /// Stores how many attempts were refused before this account started, on the disk before it returns.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn account_from(&self, before: u64) -> Result<(), StoreError> {
        self.disk.account().before = Some(before);
        self.disk.commit(&[], true, None, None)
    }

    /// Stores how many records are accounted for, when the last made no event. If the queue is full it is skipped, since the next number
    /// includes it.
    pub(crate) fn read(&self, records: u64) {
        if self.work.try_send(Work::Read(records)).is_err() {
            tracing::debug!("events: the writer is busy");
        }
    }

    /// Hands an event to the writer, with how many records are accounted for once it is stored. If the queue is full the event is lost.
    pub(crate) fn put(&self, event: Arc<Event>, records: Option<u64>) {
        match self.work.try_send(Work::Event(event, records)) {
            Ok(()) => drop(self.waiting.fetch_add(1, Ordering::Relaxed)),
            Err(TrySendError::Full(Work::Event(event, _)) | TrySendError::Disconnected(Work::Event(event, _))) => {
                self.disk.lose(&[event]);
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => tracing::error!("events: the queue took another event"),
        }
    }

    /// Whether the queue is nearly full while the disk works, so that waiting a little helps.
    #[must_use]
    pub(crate) fn is_behind(&self) -> bool {
        // RACE: an event is counted only after it was queued, so the count can be negative for a moment.
        let waiting = self.waiting.load(Ordering::Relaxed).cast_signed();
        waiting > MAX_WAITING.cast_signed() / 4 * 3 && !self.disk.is_failing()
    }

    /// Takes the number of events that were not stored since the last call. Zero while nothing can be stored, since a report of the loss
    /// should be stored too.
    #[must_use]
    pub(crate) fn take_lost(&self) -> Missed {
        if self.disk.is_failing() {
            return Missed::default();
        }
        self.disk.take_lost()
    }

    /// The stored events that a filter and `allowed` select, oldest first. A limit selects the newest. `whose`: all that may be allowed.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn query(&self, filter: &Filter, whose: Whose, allowed: impl Fn(&Event) -> bool) -> Result<Vec<Event>, StoreError> {
        let limit = filter.limit.unwrap_or(usize::MAX);
        let mut found = Vec::new();
        if limit > 0 {
            self.newest(filter, whose, usize::MAX, |event| {
                if allowed(&event) {
                    found.push(event);
                }
                found.len() < limit
            })?;
        }
        found.reverse();
        Ok(found)
    }

    /// Reads the newest stored events that may be `whose` and hands over those that the filter selects, newest first, until `take` returns
    /// `false`. Reads at most `max`. Returns how many it read.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn newest(
        &self,
        filter: &Filter,
        whose: Whose,
        max: usize,
        mut take: impl FnMut(Event) -> bool,
    ) -> Result<usize, StoreError> {
        let Some(select) = Select::of(filter, whose) else { return Ok(0) };
        self.flush()?;
        let name = |index: &Index| index.newest(&select, filter.first_id(), max);
        self.disk.read_named(name, |_, bytes| match stored(bytes) {
            Some(event) if filter.wants(&event) => take(event),
            // Bytes that are no event of this layout are skipped.
            Some(_) | None => true,
        })
    }

    /// Some of the stored events of these ids that a filter selects, oldest first: at most `max`, and fewer if many others are in between.
    /// `whose`: only those that may be allowed are read; `None`: all, so that the page says what all of them report.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn page(&self, ids: RangeInclusive<u64>, max: usize, filter: &Filter, whose: Option<Whose>) -> Result<Page, StoreError> {
        let mut page = Page::default();
        let select = whose.map_or(Some(Select::ALL), |whose| Select::of(filter, whose));
        let Some(select) = select else { return Ok(page) };
        self.flush()?;
        let mut read = 0;
        // One more, with which the next page begins.
        let name = |index: &Index| index.oldest(&select, &ids, MAX_READ + 1);
        self.disk.read_named(name, |id, bytes| {
            if page.events.len() >= max || read >= MAX_READ {
                page.next_id = Some(id);
                return false;
            }
            read += 1;
            if let Some(event) = stored(bytes) {
                page.found = page.found.and(Missed::follower(&event));
                if filter.wants(&event) {
                    page.events.push(event);
                }
            }
            true
        })?;
        Ok(page)
    }

    /// One event.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn find(&self, id: u64) -> Result<Option<Event>, StoreError> {
        self.flush()?;
        self.disk.read(|tables| Ok(tables.find(id)?.and_then(|bytes| stored(bytes.value()))))
    }

    /// Waits until every event that was put before is readable.
    fn flush(&self) -> Result<(), StoreError> {
        let (done, wait) = sync_channel(1);
        self.work.send(Work::Flush(done)).map_err(|_| StoreError::Stopped)?;
        wait.recv().map_err(|_| StoreError::Stopped)
    }

    /// Writes and syncs the events that wait, releases unused ids and ends the writer.
    pub(crate) fn stop(&self, next_id: u64) {
        if self.work.send(Work::Stop).is_ok()
            && let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take()
            && writer.join().is_err()
        {
            tracing::error!("events: the writer ended by a panic");
        }
        if let Err(error) = self.disk.reserve(next_id) {
            tracing::warn!("{error}");
        }
    }
}

/// Reads a stored event. Checking all of it for UTF-8 at once is faster than checking each text, as `from_slice` does.
fn stored(bytes: &[u8]) -> Option<Event> {
    serde_json::from_str(std::str::from_utf8(bytes).ok()?).ok()
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
