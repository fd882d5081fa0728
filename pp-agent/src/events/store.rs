//! The last events on disk, so that they and their ids survive a restart.
//!
//! Events are no security state: what cannot be written is counted and told, and a file that is damaged is set aside. While none can be
//! opened events are told and not stored.

mod disk;
mod writer;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::refusals::{Account, Missed};
use super::{Event, Filter};
use disk::{Begun, Disk, floor_id};
use writer::write_all;

/// Events kept.
pub(crate) const MAX_EVENTS: u64 = 100_000;
/// Events that may wait for the disk.
const MAX_WAITING: usize = 8_192;
/// Most events in one commit.
const MAX_BATCH: usize = 1_024;
/// A commit at least this often is one that syncs.
const SYNC_EVERY: Duration = Duration::from_secs(2);

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
    disk: Arc<Disk>,
    work: SyncSender<Work>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Events that wait for the disk.
    waiting: Arc<AtomicUsize>,
    first_id: u64,
    records: Option<u64>,
}

impl Store {
    /// Opens the file or makes it; a damaged one is renamed to `*.damaged`. Where not even a new one can be made nothing is stored until that
    /// can be done, and [`Store::problem`] says why. `boot_id`: of the kernel whose records are counted.
    #[must_use]
    pub(crate) fn open(path: &Path, boot_id: &str) -> Self {
        Self::of_size(path, boot_id, MAX_EVENTS)
    }

    fn of_size(path: &Path, boot_id: &str, max_events: u64) -> Self {
        let disk = Arc::new(Disk::at(path, boot_id, max_events));
        let begun = disk.begin().unwrap_or_else(|error| {
            disk.fail(&error);
            tracing::error!("{error}; events are told and not stored until then");
            Begun { first_id: floor_id(), reserved: 0, records: None }
        });
        let (work, queue) = sync_channel(MAX_WAITING);
        let waiting = Arc::new(AtomicUsize::new(0));
        let writer = std::thread::Builder::new().name("events".to_owned()).spawn({
            let (disk, waiting) = (Arc::clone(&disk), Arc::clone(&waiting));
            move || write_all(&disk, &queue, &waiting, begun.reserved)
        });
        let writer = writer.map_err(|source| disk.fail(&disk.error(redb::Error::Io(source)))).ok();
        Self { disk, work, writer: Mutex::new(writer), waiting, first_id: begun.first_id, records: begun.records }
    }

    /// Why nothing can be stored right now, and what to do.
    #[must_use]
    pub(crate) fn problem(&self) -> Option<String> {
        self.disk.problem()
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
        self.disk.count_from_zero()
    }

    /// What the events of this boot tell of refusals, those that had to make room among them.
    #[must_use]
    pub(crate) fn account(&self) -> Account {
        *self.disk.account()
    }

    /// Keeps how many were refused before there was this account, on the disk before it returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn account_from(&self, before: u64) -> Result<(), StoreError> {
        self.disk.account().before = Some(before);
        self.disk.commit(&[], true, None, None)
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
                self.disk.lose(&[event]);
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => tracing::error!("events: the queue took another event"),
        }
    }

    /// Most of the room for events that wait for the disk is taken, and the disk takes them: it is worth waiting a little.
    #[must_use]
    pub(crate) fn is_behind(&self) -> bool {
        // Counted a moment after it was put: for that moment it may be taken for more than fit.
        let waiting = self.waiting.load(Ordering::Relaxed).cast_signed();
        waiting > MAX_WAITING.cast_signed() / 4 * 3 && !self.disk.is_failing()
    }

    /// Events that were not stored since this was last asked. Zero while
    /// nothing can be stored: the loss is told when it can be told lastingly.
    #[must_use]
    pub(crate) fn take_lost(&self) -> Missed {
        if self.disk.is_failing() {
            return Missed::default();
        }
        self.disk.take_lost()
    }

    /// The stored events that a filter and `allowed` take, oldest first; with
    /// a limit the newest of them.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn query(&self, filter: &Filter, allowed: impl Fn(&Event) -> bool) -> Result<Vec<Event>, StoreError> {
        self.flush()?;
        let limit = filter.limit.unwrap_or(usize::MAX);
        let mut found = self.disk.read(|events| {
            let mut found = Vec::new();
            for entry in events.range(filter.first_id()..)?.rev() {
                if found.len() >= limit {
                    break;
                }
                let (_, bytes) = entry?;
                // Bytes of an older layout are skipped, not guessed at.
                let Some(event) = stored(bytes.value()) else { continue };
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
        self.disk.read(|events| {
            let mut page = Page::default();
            for entry in events.range(ids)? {
                let (id, bytes) = entry?;
                if page.events.len() >= max {
                    page.next_id = Some(id.value());
                    break;
                }
                let Some(event) = stored(bytes.value()) else { continue };
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
        self.disk.read(|events| Ok(events.get(id)?.and_then(|bytes| stored(bytes.value()))))
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
        if let Err(error) = self.disk.reserve(next_id) {
            tracing::warn!("{error}");
        }
    }
}

/// An event as it is stored. To check all of it for UTF-8 at once is faster than each text in it, as `from_slice` does.
fn stored(bytes: &[u8]) -> Option<Event> {
    serde_json::from_str(std::str::from_utf8(bytes).ok()?).ok()
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
