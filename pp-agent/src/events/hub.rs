//! Numbers each event and hands it to the store, the journal and every follower. A slow follower misses events, learns how many, and finds
//! them in the store. Nothing waits for it.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::flood::Floods;
use super::refusals::{Account, Missed, Refusals};
use super::store::{Page, Store, StoreError, Whose};
use super::{Body, Event, Filter, Loss, journal};

/// Events that may wait for one follower.
const FOLLOWER_QUEUE: usize = 1_024;

/// What a follower receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// An event.
    Event(Arc<Event>),
    /// The events of these ids did not fit into the queue.
    Missed(RangeInclusive<u64>, Missed),
}

/// Distributes events.
#[derive(Debug)]
pub(crate) struct Hub {
    store: Store,
    host: String,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    next_id: u64,
    account: Account,
    followers: Vec<Arc<Queue>>,
    floods: Floods,
    /// The greatest number of records that was said to be accounted for.
    records: Option<u64>,
    /// That number before the first record that waits for a summary. No greater one may be stored until then.
    records_held: Option<u64>,
}

impl Inner {
    /// How many records are accounted for once something is stored that follows so many.
    fn accounted(&mut self, records: Option<u64>) -> Option<u64> {
        self.records = self.records.max(records);
        records.map(|records| self.records_held.map_or(records, |held| held.min(records)))
    }
}

/// The items that wait for one follower. The last item may say what it missed, and grows while the queue is full.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    items: VecDeque<Item>,
    /// Whether the follower has left, or the daemon stops.
    closed: bool,
}

/// The receiving end of one follower.
#[derive(Debug)]
pub(crate) struct Follower {
    queue: Arc<Queue>,
    first_id: u64,
}

impl Follower {
    /// The id of the first event that it can receive.
    #[must_use]
    pub(crate) const fn first_id(&self) -> u64 {
        self.first_id
    }

    /// The next item; `None` when the daemon stops.
    pub(crate) async fn next(&mut self) -> Option<Item> {
        loop {
            {
                let mut waiting = self.queue.lock();
                if let Some(item) = waiting.items.pop_front() {
                    return Some(item);
                }
                if waiting.closed {
                    return None;
                }
            }
            self.queue.more.notified().await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an event. `false`: the follower has left.
    fn send(&self, event: &Arc<Event>) -> bool {
        let mut waiting = self.lock();
        if waiting.closed {
            return false;
        }
        if waiting.items.len() < FOLLOWER_QUEUE {
            waiting.items.push_back(Item::Event(Arc::clone(event)));
        } else {
            let missed = Missed::follower(event);
            match waiting.items.back_mut() {
                Some(Item::Missed(ids, so_far)) => {
                    *ids = *ids.start()..=event.id;
                    *so_far = so_far.and(missed);
                }
                Some(Item::Event(_)) | None => waiting.items.push_back(Item::Missed(event.id..=event.id, missed)),
            }
        }
        drop(waiting);
        self.more.notify_one();
        true
    }

    fn close(&self) {
        self.lock().closed = true;
        self.more.notify_one();
    }
}

impl Hub {
    /// A hub over this store.
    #[must_use]
    pub(crate) fn new(store: Store, host: &str) -> Self {
        let next_id = store.first_id();
        // For readers of the store, events that an earlier daemon could not store are lost.
        let mut account = store.account();
        account.refusals.lost += std::mem::take(&mut account.refusals.not_stored);
        let (followers, floods) = (Vec::new(), Floods::default());
        let inner = Mutex::new(Inner { next_id, account, followers, floods, records: None, records_held: None });
        Self { store, host: host.to_owned(), inner }
    }

    /// Numbers and publishes an event. Returns it with its id; `None` if it is part of a flood and waits for the summary.
    pub(crate) fn publish(&self, event: Event) -> Option<Arc<Event>> {
        self.publish_read(event, None)
    }

    /// Publishes the event of a record. `records`: how many records are accounted for once it is stored.
    pub(crate) fn publish_read(&self, event: Event, records: Option<u64>) -> Option<Arc<Event>> {
        let mut inner = self.lock();
        let accounted = inner.accounted(records);
        let Some(event) = inner.floods.pass(event, Instant::now()) else {
            if let Some(accounted) = accounted {
                inner.records_held.get_or_insert(accounted.saturating_sub(1));
            }
            return None;
        };
        let event = self.tell(&mut inner, event, accounted);
        drop(inner);
        journal::log(&event);
        Some(event)
    }

    /// Publishes the summaries of floods, if it is time.
    pub(crate) fn publish_summaries(&self) {
        let mut inner = self.lock();
        let summaries = inner.floods.due(Instant::now());
        let told = self.tell_summaries(&mut inner, summaries.unwrap_or_default());
        drop(inner);
        told.iter().for_each(|event| journal::log(event));
    }

    fn tell_summaries(&self, inner: &mut Inner, summaries: Vec<Event>) -> Vec<Arc<Event>> {
        if summaries.is_empty() {
            return Vec::new();
        }
        let told = summaries.into_iter().map(|event| self.tell(inner, event, None)).collect();
        // Nothing waits any more.
        if inner.records_held.take().is_some()
            && let Some(records) = inner.records
        {
            self.store.read(records);
        }
        told
    }

    /// Numbers an event and hands it to the store and the followers.
    fn tell(&self, inner: &mut Inner, mut event: Event, records: Option<u64>) -> Arc<Event> {
        event.id = inner.next_id;
        inner.next_id += 1;
        inner.account.refusals = inner.account.refusals.and(Refusals::of(&event));
        let event = Arc::new(event);
        self.store.put(Arc::clone(&event), records);
        inner.followers.retain(|queue| queue.send(&event));
        event
    }

    /// Records how many records are accounted for, when the last of them made no event.
    pub(crate) fn read(&self, records: u64) {
        if let Some(accounted) = self.lock().accounted(Some(records)) {
            self.store.read(accounted);
        }
    }

    /// Reports that events are missing. `records`: how many records are accounted for once that is stored.
    pub(crate) fn publish_lost(&self, count: u64, detail: &str, wall_ms: i64, records: Option<u64>) {
        self.publish_loss(Loss { count, refusals: false, not_stored: false }, detail, wall_ms, records);
    }

    /// Reports refusals that have no event.
    pub(crate) fn publish_lost_refusals(&self, count: u64, detail: &str, wall_ms: i64) {
        self.publish_loss(Loss { count, refusals: true, not_stored: false }, detail, wall_ms, None);
    }

    /// Reports what could not be stored since the last report.
    pub(crate) fn report_unstored(&self, wall_ms: i64) {
        let unstored = self.store.take_lost();
        for (count, refusals) in [(unstored.refusals, true), (unstored.others, false)] {
            if count > 0 {
                let loss = Loss { count, refusals, not_stored: true };
                self.publish_loss(loss, "events that were told but could not be stored", wall_ms, None);
            }
        }
    }

    fn publish_loss(&self, loss: Loss, detail: &str, wall_ms: i64, records: Option<u64>) {
        self.publish_read(Event::new(Body::Lost(loss), &self.host, wall_ms).detail(detail), records);
    }

    /// See [`Store::is_behind`].
    #[must_use]
    pub(crate) fn is_behind(&self) -> bool {
        self.store.is_behind()
    }

    /// How many refusals events have reported so far, and how many wait for a summary.
    #[must_use]
    pub(crate) fn account(&self) -> Account {
        let inner = self.lock();
        Account { held: inner.floods.held(), ..inner.account }
    }

    /// Sets how many attempts were refused before this account started.
    ///
    /// # Errors
    /// It cannot be written. This daemon still uses it.
    pub(crate) fn account_from(&self, before: u64) -> Result<(), StoreError> {
        self.lock().account.before = Some(before);
        self.store.account_from(before)
    }

    /// Follows all events from now on.
    #[must_use]
    pub(crate) fn follow(&self) -> Follower {
        let queue = Arc::new(Queue::default());
        let mut inner = self.lock();
        inner.followers.push(Arc::clone(&queue));
        Follower { queue, first_id: inner.next_id }
    }

    /// Stored events; see [`Store::query`]. Blocks on the disk.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn query(&self, filter: &Filter, whose: Whose, allowed: impl Fn(&Event) -> bool) -> Result<Vec<Event>, StoreError> {
        self.store.query(filter, whose, allowed)
    }

    /// Reads the newest stored events; see [`Store::newest`]. Blocks on the disk.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn newest(&self, filter: &Filter, whose: Whose, max: usize, take: impl FnMut(Event) -> bool) -> Result<usize, StoreError> {
        self.store.newest(filter, whose, max, take)
    }

    /// Stored events page by page; see [`Store::page`]. Blocks on the disk.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn page(&self, ids: RangeInclusive<u64>, max: usize, filter: &Filter, whose: Option<Whose>) -> Result<Page, StoreError> {
        self.store.page(ids, max, filter, whose)
    }

    /// One stored event. Blocks on the disk.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn find(&self, id: u64) -> Result<Option<Event>, StoreError> {
        self.store.find(id)
    }

    /// The store, for what it knows of receipts and their state.
    #[must_use]
    pub(crate) const fn store(&self) -> &Store {
        &self.store
    }

    /// Why nothing can be stored now.
    #[must_use]
    pub(crate) fn problem(&self) -> Option<String> {
        self.store.problem()
    }

    /// Publishes the summaries of floods, closes every follower, and writes the events that wait.
    pub(crate) fn stop(&self) {
        let mut inner = self.lock();
        let summaries = inner.floods.take();
        let told = self.tell_summaries(&mut inner, summaries);
        told.iter().for_each(|event| journal::log(event));
        inner.followers.drain(..).for_each(|queue| queue.close());
        self.store.stop(inner.next_id);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::PolicyChange;
    use crate::events::flood::AT_ONCE;

    fn hub() -> (tempfile::TempDir, Hub) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("events.redb"), "boot");
        (dir, Hub::new(store, "h"))
    }

    fn refusal(repeats: u64) -> Event {
        let mut event = Event::of_attempt("block", "no_receipt", "10.20.4.7", 502);
        event.attempt_mut().repeats = repeats;
        event
    }

    #[tokio::test]
    async fn slow_follower_learns_how_many_it_missed() {
        let (_dir, hub) = hub();
        let mut follower = hub.follow();
        let extra = 7;
        for _ in 0..FOLLOWER_QUEUE + extra {
            hub.publish(Event::new(Body::Policy(PolicyChange::Reloaded), "h", 0));
        }
        for _ in 0..FOLLOWER_QUEUE {
            assert!(matches!(follower.next().await, Some(Item::Event(_))));
        }
        let queue = FOLLOWER_QUEUE as u64;
        let missed = Missed { refusals: 0, others: extra as u64 };
        assert_eq!(follower.next().await, Some(Item::Missed(queue + 1..=queue + 7, missed)));
        hub.publish(Event::new(Body::Policy(PolicyChange::Reloaded), "h", 0));
        assert!(matches!(follower.next().await, Some(Item::Event(event)) if event.id == queue + 8));
    }

    #[tokio::test]
    async fn what_a_slow_follower_missed_counts_with_its_repeats_and_losses() {
        let (_dir, hub) = hub();
        let mut follower = hub.follow();
        for _ in 0..FOLLOWER_QUEUE {
            hub.publish(Event::new(Body::Policy(PolicyChange::Reloaded), "h", 0));
        }
        hub.publish(refusal(0));
        hub.publish(refusal(40));
        hub.publish_lost_refusals(50_000, "the ring buffer was full", 0);
        hub.publish_lost(3, "records of processes", 0, None);
        for _ in 0..FOLLOWER_QUEUE {
            assert!(matches!(follower.next().await, Some(Item::Event(_))));
        }
        let Some(Item::Missed(_, missed)) = follower.next().await else { panic!("nothing was missed") };
        assert_eq!(missed, Missed { refusals: 1 + 41 + 50_000, others: 1 });
        assert_eq!(hub.account().refusals.published(), missed.refusals);
    }

    #[tokio::test]
    async fn follower_hears_when_the_daemon_stops() {
        let (_dir, hub) = hub();
        let mut follower = hub.follow();
        hub.publish(Event::new(Body::Policy(PolicyChange::Reloaded), "h", 0));
        hub.stop();
        assert!(matches!(follower.next().await, Some(Item::Event(_))));
        assert_eq!(follower.next().await, None);
    }

    #[tokio::test]
    async fn follower_that_left_is_removed() {
        let (_dir, hub) = hub();
        drop(hub.follow());
        hub.publish(Event::new(Body::Policy(PolicyChange::Reloaded), "h", 0));
        assert!(hub.inner.lock().unwrap().followers.is_empty());
    }

    fn observed() -> Event {
        Event::of_attempt("observe", "no_receipt", "10.20.4.7", 502)
    }

    #[tokio::test]
    async fn flood_is_told_in_full_by_a_summary_to_followers_and_in_the_store() {
        let (dir, hub) = hub();
        let mut follower = hub.follow();
        let count = 3 * u64::from(AT_ONCE);
        (0..count).for_each(|_| drop(hub.publish(refusal(1))));
        let account = hub.account();
        // A few more than that if this takes long.
        assert!(account.held > count, "{account:?}");
        assert_eq!(account.refusals.published() + account.held, 2 * count);
        hub.publish_summaries();
        let account = hub.account();
        assert_eq!((account.held, account.refusals.published()), (0, 2 * count));
        hub.stop();
        let mut followed = 0;
        while let Some(item) = follower.next().await {
            followed += match item {
                Item::Event(event) => Refusals::of(&event).published(),
                Item::Missed(_, missed) => missed.refusals,
            };
        }
        assert_eq!(followed, 2 * count);
        drop(hub);
        let store = Store::open(&dir.path().join("events.redb"), "boot");
        assert_eq!(store.account().refusals.stored(), 2 * count);
        let stored = store.query(&Filter::default(), Whose::All, |_| true).unwrap();
        assert_eq!(stored.iter().map(|event| Refusals::of(event).stored()).sum::<u64>(), 2 * count);
        assert!(stored.len() < usize::try_from(count).unwrap(), "{} events", stored.len());
    }

    #[test]
    fn record_that_waits_for_a_summary_is_not_accounted_for_before_it_is_stored() {
        let (dir, hub) = hub();
        let path = dir.path().join("events.redb");
        let first = u64::from(AT_ONCE);
        (1..=first).for_each(|read| drop(hub.publish_read(observed(), Some(read))));
        // One that waits, then others that do not.
        assert_eq!(hub.publish_read(observed(), Some(first + 1)), None);
        hub.publish_read(Event::new(Body::Policy(PolicyChange::Reloaded), "h", 0), Some(first + 2));
        hub.read(first + 3);
        let stored = |hub: &Hub, name: &str| {
            hub.find(1).unwrap();
            let copy = dir.path().join(name);
            std::fs::copy(&path, &copy).unwrap();
            copy
        };
        // A crash now: the copy knows of no record that is only in memory.
        let crashed = stored(&hub, "crashed.redb");
        assert!(Store::open(&crashed, "boot").records() <= Some(first));
        hub.publish_summaries();
        hub.stop();
        drop(hub);
        assert_eq!(Store::open(&path, "boot").records(), Some(first + 3));
    }

    #[test]
    fn refused_attempt_carries_the_command_that_asks_for_a_receipt() {
        let (_dir, hub) = hub();
        let published = hub.publish(refusal(0)).unwrap();
        assert_eq!(published.request().as_deref(), Some("pp-agent receipt request --from-event 1"));
    }
}
