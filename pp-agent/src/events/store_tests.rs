use super::*;
use crate::events::Kind;

const BOOT: &str = "boot";

fn event(id: u64) -> Arc<Event> {
    let mut event = Event::new(Kind::Verdict, "h", 0);
    event.id = id;
    Arc::new(event)
}

#[test]
fn events_and_ids_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.redb");
    let store = Store::open(&path, BOOT).unwrap();
    assert_eq!(store.first_id(), 1);
    store.put(event(1), None);
    store.put(event(2), None);
    store.stop(3);
    drop(store);
    let store = Store::open(&path, BOOT).unwrap();
    assert_eq!(store.first_id(), 3);
    let ids: Vec<u64> = store.query(&Filter::default(), |_| true).unwrap().iter().map(|e| e.id).collect();
    assert_eq!(ids, [1, 2]);
}

#[test]
fn ids_are_not_used_again_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.redb");
    let copy = dir.path().join("crashed.redb");
    let store = Store::open(&path, BOOT).unwrap();
    store.put(event(1), None);
    store.query(&Filter::default(), |_| true).unwrap();
    std::fs::copy(&path, &copy).unwrap();
    store.stop(2);
    assert!(Store::open(&copy, BOOT).unwrap().first_id() > 1);
}

#[test]
fn limit_takes_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("events.redb"), BOOT).unwrap();
    (1..=5).for_each(|id| store.put(event(id), None));
    let filter = Filter { limit: Some(2), ..Filter::default() };
    let ids: Vec<u64> = store.query(&filter, |_| true).unwrap().iter().map(|e| e.id).collect();
    assert_eq!(ids, [4, 5]);
    assert_eq!(store.find(3).unwrap().unwrap().id, 3);
    assert_eq!(store.find(9).unwrap(), None);
}

#[test]
fn oldest_make_room_for_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("events.redb"), BOOT).unwrap();
    store.put(event(1), None);
    store.put(event(MAX_EVENTS + 1), None);
    let ids: Vec<u64> = store.query(&Filter::default(), |_| true).unwrap().iter().map(|e| e.id).collect();
    assert_eq!(ids, [MAX_EVENTS + 1]);
}

#[test]
fn damaged_file_is_set_aside_and_ids_go_on_above_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.redb");
    std::fs::write(&path, vec![7u8; 100_000]).unwrap();
    let store = Store::open(&path, BOOT).unwrap();
    assert!(store.first_id() > MAX_EVENTS);
    assert!(dir.path().join("events.redb.damaged").exists());
}

#[test]
fn records_that_are_accounted_for_are_known_within_their_boot() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.redb");
    let store = Store::open(&path, BOOT).unwrap();
    assert_eq!(store.records(), None);
    store.put(event(1), Some(7));
    store.put(event(2), None);
    store.read(9);
    store.stop(3);
    drop(store);
    let again = Store::open(&path, BOOT).unwrap();
    assert_eq!(again.records(), Some(9));
    again.stop(3);
    drop(again);
    assert_eq!(Store::open(&path, "another").unwrap().records(), None);
}
