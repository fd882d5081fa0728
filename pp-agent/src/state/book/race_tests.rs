//! Registration, housekeeping, expiry, revocation, reload and a clock that steps, side by side: shuttle runs them in many orders. Whatever the order,
//! what was acknowledged is in force until it ends, and memory and disk hold the same.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::Mutex;
use shuttle::{Config, Runner, thread};

use super::super::tests::{NOW, receipt};
use super::super::{Book, Kept, Registered, State, StoredReceipt, Tombstone};
use crate::clock::{NS_PER_MS, Now};

/// Orders that are tried.
const ORDERS: usize = 200;

fn later(seconds: u64) -> Now {
    Now { boot_ns: NOW.boot_ns + seconds * 1_000 * NS_PER_MS, wall_ms: NOW.wall_ms + i64::try_from(seconds).unwrap() * 1_000 }
}

/// One whose window goes on for an hour.
fn long(id: &str) -> StoredReceipt {
    let until = later(3_600);
    StoredReceipt { until_ms: until.wall_ms, expires_ms: until.wall_ms, until_ns: until.boot_ns, ..receipt(id, false) }
}

struct Host {
    _folder: tempfile::TempDir,
    state: State,
    book: Mutex<Book<u32>>,
}

impl Host {
    /// With one receipt that is over after a minute.
    fn new() -> Arc<Self> {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let state = State::open(&folder.path().join("state.redb")).unwrap();
        let mut book = Book::default();
        book.register(&state, receipt("short", false), 0).unwrap();
        Arc::new(Self { _folder: folder, state, book: Mutex::new(book) })
    }

    fn start(self: &Arc<Self>, work: impl FnOnce(&Self) + Send + 'static) -> thread::JoinHandle<()> {
        let host = Arc::clone(self);
        thread::spawn(move || work(&host))
    }

    fn housekeeping(&self, now: Now) {
        self.book.lock().unwrap().remove_expired(&self.state, now).unwrap();
    }

    /// A wrong order that loses receipts: it reads the list on the disk, and then takes the lock.
    fn housekeeping_that_loses_receipts(&self, now: Now) {
        let _highest = self.state.note_wall(now).unwrap();
        let kept = self.state.receipts().unwrap();
        let mut book = self.book.lock().unwrap();
        book.kept.retain(|live| kept.iter().any(|stored| stored.id == live.stored.id));
    }

    fn reload(&self) {
        let mut book = self.book.lock().unwrap();
        let readmitted = book.readmit(|stored| Kept { stored, admitted: 1 });
        *book = readmitted;
    }

    /// A wrong order: a reload that admits a list which it read before its lock.
    fn reload_of_an_earlier_list(&self) {
        let readmitted = self.book.lock().unwrap().readmit(|stored| Kept { stored, admitted: 1 });
        *self.book.lock().unwrap() = readmitted;
    }

    fn in_force(&self, id: &str) -> bool {
        self.book.lock().unwrap().find(id).is_some_and(|kept| kept.stored.is_open(later(61)))
    }
}

/// Runs everything at the same time, once.
fn race(housekeeping: fn(&Host, Now), reload: fn(&Host)) {
    let host = Host::new();
    let threads = [
        host.start(|host| {
            for id in ["a", "b", "c"] {
                let registered = host.book.lock().unwrap().register(&host.state, long(id), 0).unwrap();
                assert!(matches!(registered, Registered::New(_)));
                thread::yield_now();
                assert!(host.in_force(id), "{id} was acknowledged and is not in force");
                let again = host.book.lock().unwrap().register(&host.state, long(id), 0).unwrap();
                assert!(matches!(again, Registered::Again(_)), "{id} could be registered twice");
            }
        }),
        host.start(|host| {
            let registered = host.book.lock().unwrap().register(&host.state, long("revoked"), 0).is_ok();
            let tombstone = Tombstone { id: "revoked".into(), reason: "no".into(), decider: None, revoked_ms: 1, expires_ms: None };
            host.book.lock().unwrap().revoke(&host.state, tombstone).unwrap();
            assert!(registered && !host.in_force("revoked"));
        }),
        host.start(move |host| [30, 61].into_iter().for_each(|seconds| housekeeping(host, later(seconds)))),
        host.start(reload),
        host.start(|host| {
            let stepped = Now { wall_ms: NOW.wall_ms + 10_000, ..NOW };
            host.book.lock().unwrap().change(&host.state, |stored| stored.carry_over(stepped, "boot-1", false)).unwrap();
        }),
    ];
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let book = host.book.lock().unwrap();
    for id in ["a", "b", "c"] {
        assert!(book.find(id).is_some(), "{id} was acknowledged and is gone");
    }
    assert!(book.find("short").is_none(), "what is over is kept");
    assert!(book.find("revoked").is_some_and(|kept| kept.stored.ended.is_some()), "the revocation is gone");
    let mut live: Vec<StoredReceipt> = book.iter().map(|kept| kept.stored.clone()).collect();
    live.sort_by_key(|stored| stored.serial);
    assert_eq!(live, host.state.receipts().unwrap(), "memory and disk differ");
}

fn every_order(housekeeping: fn(&Host, Now), reload: fn(&Host)) {
    in_orders_of(RandomScheduler::new(ORDERS), housekeeping, reload);
    in_orders_of(PctScheduler::new(3, ORDERS), housekeeping, reload);
}

fn in_orders_of(scheduler: impl Scheduler + 'static, housekeeping: fn(&Host, Now), reload: fn(&Host)) {
    let mut config = Config::new();
    // The database takes more than these threads usually have.
    config.stack_size = 1 << 20;
    let _orders = Runner::new(scheduler, config).run(move || race(housekeeping, reload));
}

#[test]
fn acknowledged_receipts_survive_every_order_of_what_the_daemon_does() {
    every_order(Host::housekeeping, Host::reload);
}

/// What shows that the orders above are those that matter.
#[test]
fn list_that_is_read_before_its_lock_is_found_out() {
    let lost = |housekeeping, reload| catch_unwind(AssertUnwindSafe(|| every_order(housekeeping, reload))).is_err();
    assert!(lost(Host::housekeeping_that_loses_receipts, Host::reload), "housekeeping as it was lost nothing");
    assert!(lost(Host::housekeeping, Host::reload_of_an_earlier_list), "a reload of an earlier list lost nothing");
}
