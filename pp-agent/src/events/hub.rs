//! Numbers each event and hands it to the store, the journal and whoever
//! follows. A slow follower misses events here, is told how many, and finds
//! them in the store; nobody waits for it.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};

use super::store::{Page, Store, StoreError};
use super::{Event, Filter, Kind};

/// Events that may wait for one follower.
const FOLLOWER_QUEUE: usize = 1_024;

/// What a follower receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An event.
    Event(Arc<Event>),
    /// So many events found no room in the queue.
    Missed(u64),
}

/// The hub.
#[derive(Debug)]
pub struct Hub {
    store: Store,
    host: String,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    next_id: u64,
    followers: Vec<Sending>,
}

#[derive(Debug)]
struct Sending {
    queue: Sender<Item>,
    missed: Arc<AtomicU64>,
}

/// The receiving end of one follower.
#[derive(Debug)]
pub struct Follower {
    queue: Receiver<Item>,
    missed: Arc<AtomicU64>,
    pending: Option<Item>,
    first_id: u64,
}

impl Follower {
    /// The id of the first event that it can receive.
    #[must_use]
    pub const fn first_id(&self) -> u64 {
        self.first_id
    }

    /// The next item; `None` when the daemon stops.
    pub async fn next(&mut self) -> Option<Item> {
        if let Some(item) = self.pending.take() {
            return Some(item);
        }
        let item = self.queue.recv().await?;
        // It is told where the queue runs dry, not only at the next event.
        if self.queue.is_empty() {
            let missed = self.missed.swap(0, Ordering::AcqRel);
            self.pending = (missed > 0).then_some(Item::Missed(missed));
        }
        Some(item)
    }
}

impl Hub {
    /// A hub over this store.
    #[must_use]
    pub fn new(store: Store, host: &str) -> Self {
        let next_id = store.first_id();
        let inner = Mutex::new(Inner { next_id, followers: Vec::new() });
        Self { store, host: host.to_owned(), inner }
    }

    /// Numbers the event and tells everyone. Returns it as told.
    pub fn publish(&self, event: Event) -> Arc<Event> {
        self.publish_read(event, None)
    }

    /// The same for an event of a record: so many are accounted for once it is stored.
    pub fn publish_read(&self, mut event: Event, records: Option<u64>) -> Arc<Event> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        event.id = inner.next_id;
        inner.next_id += 1;
        if event.is_requestable() {
            event.request = Some(format!("pp-agent receipt request --from-event {}", event.id));
        }
        let event = Arc::new(event);
        self.store.put(Arc::clone(&event), records);
        inner.followers.retain(|follower| follower.send(&event));
        drop(inner);
        crate::journal::tell(&event);
        event
    }

    /// So many records are accounted for, the last of which made no event.
    pub fn read(&self, records: u64) {
        self.store.read(records);
    }

    /// Tells that events are missing; `records`: so many are accounted for once that is stored.
    pub fn publish_lost(&self, count: u64, detail: &str, wall_ms: i64, records: Option<u64>) {
        let mut event = Event::new(Kind::Lost, &self.host, wall_ms).detail(detail);
        event.count = Some(count);
        self.publish_read(event, records);
    }

    /// Everything from now on.
    #[must_use]
    pub fn follow(&self) -> Follower {
        let (sender, queue) = channel(FOLLOWER_QUEUE);
        let missed = Arc::new(AtomicU64::new(0));
        let sending = Sending { queue: sender, missed: Arc::clone(&missed) };
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.followers.push(sending);
        Follower { queue, missed, pending: None, first_id: inner.next_id }
    }

    /// Stored events; see [`Store::query`]. Blocks on the disk.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn query(&self, filter: &Filter, allowed: impl Fn(&Event) -> bool) -> Result<Vec<Event>, StoreError> {
        self.store.query(filter, allowed)
    }

    /// Stored events page by page; see [`Store::page`]. Blocks on the disk.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn page(&self, ids: RangeInclusive<u64>, max: usize, filter: &Filter) -> Result<Page, StoreError> {
        self.store.page(ids, max, filter)
    }

    /// One stored event. Blocks on the disk.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find(&self, id: u64) -> Result<Option<Event>, StoreError> {
        self.store.find(id)
    }

    /// Why nothing can be stored right now.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.store.problem()
    }

    /// Events that could not be stored since this was last asked.
    #[must_use]
    pub fn take_unstored(&self) -> u64 {
        self.store.take_lost()
    }

    /// Writes what waits and lets the followers go.
    pub fn stop(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.followers.clear();
        self.store.stop(inner.next_id);
    }
}

impl Sending {
    /// Whether the follower is still there.
    fn send(&self, event: &Arc<Event>) -> bool {
        let missed = self.missed.swap(0, Ordering::AcqRel);
        if missed > 0 {
            match self.queue.try_send(Item::Missed(missed)) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    self.missed.fetch_add(missed + 1, Ordering::AcqRel);
                    return true;
                }
                Err(TrySendError::Closed(_)) => return false,
            }
        }
        match self.queue.try_send(Item::Event(Arc::clone(event))) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.missed.fetch_add(1, Ordering::AcqRel);
                true
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub() -> (tempfile::TempDir, Hub) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("events.redb"), "boot");
        (dir, Hub::new(store, "h"))
    }

    #[tokio::test]
    async fn slow_follower_is_told_how_many_it_missed() {
        let (_dir, hub) = hub();
        let mut follower = hub.follow();
        let extra = 7;
        for _ in 0..FOLLOWER_QUEUE + extra {
            hub.publish(Event::new(Kind::Policy, "h", 0));
        }
        for _ in 0..FOLLOWER_QUEUE {
            assert!(matches!(follower.next().await, Some(Item::Event(_))));
        }
        assert_eq!(follower.next().await, Some(Item::Missed(extra as u64)));
        hub.publish(Event::new(Kind::Policy, "h", 0));
        assert!(matches!(follower.next().await, Some(Item::Event(_))));
    }

    #[tokio::test]
    async fn follower_that_went_is_forgotten() {
        let (_dir, hub) = hub();
        drop(hub.follow());
        hub.publish(Event::new(Kind::Policy, "h", 0));
        assert!(hub.inner.lock().unwrap().followers.is_empty());
    }

    #[test]
    fn refused_attempt_carries_the_command_that_asks_for_a_receipt() {
        let (_dir, hub) = hub();
        let mut event = Event::new(Kind::Verdict, "h", 0);
        event.verdict = Some("block".into());
        event.reason = Some("no_receipt".into());
        event.destination = Some(crate::events::Destination::default());
        let told = hub.publish(event);
        assert_eq!(told.request.as_deref(), Some("pp-agent receipt request --from-event 1"));
    }
}
