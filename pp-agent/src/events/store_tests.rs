use super::super::refusals::Refusals;
use super::*;
use crate::events::{Body, PolicyChange};

const BOOT: &str = "boot";

fn event(id: u64) -> Arc<Event> {
    Arc::new(Event { id, ..Event::new(Body::Policy(PolicyChange::Reloaded), "h", 0) })
}

#[test]
fn events_and_ids_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.redb");
    let store = Store::open(&path, BOOT);
    assert_eq!(store.first_id(), 1);
    store.put(event(1), None);
    store.put(event(2), None);
    store.stop(3);
    drop(store);
    let store = Store::open(&path, BOOT);
    assert_eq!(store.first_id(), 3);
    let ids: Vec<u64> = store.query(&Filter::default(), |_| true).unwrap().iter().map(|e| e.id).collect();
    assert_eq!(ids, [1, 2]);
}

#[test]
fn ids_are_not_used_again_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.redb");
    let copy = dir.path().join("crashed.redb");
    let store = Store::open(&path, BOOT);
    store.put(event(1), None);
    store.query(&Filter::default(), |_| true).unwrap();
    std::fs::copy(&path, &copy).unwrap();
    store.stop(2);
    assert!(Store::open(&copy, BOOT).first_id() > 1);
}

#[test]
fn limit_takes_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("events.redb"), BOOT);
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
    let store = Store::of_size(&dir.path().join("events.redb"), BOOT, 3);
    // A killed daemon leaves a gap in the ids, which costs no event its place.
    for id in [1, 2, 150_000] {
        store.put(event(id), None);
    }
    let ids = || store.query(&Filter::default(), |_| true).unwrap().iter().map(|e| e.id).collect::<Vec<_>>();
    assert_eq!(ids(), [1, 2, 150_000]);
    store.put(event(150_001), None);
    assert_eq!(ids(), [2, 150_000, 150_001]);
}

#[test]
fn damaged_file_is_renamed_and_ids_continue_above_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.redb");
    std::fs::write(&path, vec![7u8; 100_000]).unwrap();
    let store = Store::open(&path, BOOT);
    assert!(store.first_id() > MAX_EVENTS);
    assert!(dir.path().join("events.redb.damaged").exists());
}

#[test]
fn records_that_are_accounted_for_are_known_within_their_boot() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.redb");
    let store = Store::open(&path, BOOT);
    assert_eq!(store.records(), None);
    store.put(event(1), Some(7));
    store.put(event(2), None);
    store.read(9);
    store.stop(3);
    drop(store);
    let again = Store::open(&path, BOOT);
    assert_eq!(again.records(), Some(9));
    again.stop(3);
    drop(again);
    assert_eq!(Store::open(&path, "another").records(), None);
}

#[test]
fn page_says_how_much_of_a_range_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("events.redb"), BOOT);
    for id in [1, 2, 5, 6, 9] {
        store.put(event(id), None);
    }
    let ids = |page: &Page| page.events.iter().map(|event| event.id).collect::<Vec<_>>();
    let page = store.page(2..=6, 2, &Filter::default()).unwrap();
    let others = |others| Missed { refusals: 0, others };
    assert_eq!((ids(&page), page.found, page.next_id), (vec![2, 5], others(2), Some(6)));
    let rest = store.page(6..=6, 2, &Filter::default()).unwrap();
    assert_eq!((ids(&rest), rest.found, rest.next_id), (vec![6], others(1), None));
    let nobody = Filter { agent: Some("nobody".into()), ..Filter::default() };
    let none = store.page(2..=6, 2, &nobody).unwrap();
    assert_eq!((none.events.len(), none.found, none.next_id), (0, others(3), None));
}

fn refusal(id: u64, repeats: u64) -> Arc<Event> {
    let mut event = Event::of_attempt("block", "no_receipt", "10.20.4.7", 502);
    event.id = id;
    event.attempt_mut().repeats = repeats;
    Arc::new(event)
}

#[test]
fn account_of_refusals_survives_a_restart_and_events_that_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.redb");
    let store = Store::of_size(&path, BOOT, 2);
    assert_eq!(store.account(), Account::default());
    store.account_from(5).unwrap();
    for id in 1..=4 {
        store.put(refusal(id, 10), None);
    }
    store.stop(5);
    drop(store);
    let store = Store::of_size(&path, BOOT, 2);
    let refusals = Refusals { with_event: 4, repeats: 40, ..Refusals::default() };
    assert_eq!(store.account(), Account { refusals, before: Some(5) });
    store.count_from_zero().unwrap();
    assert_eq!(store.account(), Account { before: Some(0), ..Account::default() });
    store.stop(5);
    drop(store);
    assert_eq!(Store::open(&path, "another").account(), Account::default());
}

#[test]
fn event_that_does_not_fit_is_lost_with_all_it_reports() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("events.redb"), BOOT);
    store.disk.lose(&[refusal(1, 10), event(2), refusal(3, 0)]);
    assert_eq!(store.take_lost(), Missed { refusals: 12, others: 1 });
    assert_eq!(store.take_lost(), Missed::default());
}

#[test]
fn count_that_begins_anew_is_there_after_a_crash_before_any_event() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.redb");
    let copy = dir.path().join("crashed.redb");
    let store = Store::open(&path, BOOT);
    store.count_from_zero().unwrap();
    std::fs::copy(&path, &copy).unwrap();
    assert_eq!(Store::open(&copy, BOOT).records(), Some(0));
}

#[test]
fn damaged_page_costs_events_and_never_the_daemon() {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = dir.path().join("events.redb");
    let store = Store::open(&path, BOOT);
    (1..=2_000).for_each(|id| store.put(event(id), Some(id)));
    store.stop(2_001);
    drop(store);
    let good = std::fs::read(&path).unwrap();
    let (mut damaged, pages) = (0, good.len() / 4096);
    for page in (0..pages).step_by((pages / 60).max(1)) {
        for zeroed in [page..page + 1, page..pages] {
            let mut image = good.clone();
            image[zeroed.start * 4096..zeroed.end * 4096].fill(0);
            std::fs::write(&path, &image).unwrap();
            let store = Store::open(&path, BOOT);
            let id = store.first_id();
            // Whatever is met now, by the writer or a reader, the store goes on, if need be with a new file.
            let stored = || {
                store.put(event(id), None);
                store.query(&Filter::default(), |_| true).is_ok() && store.find(id).is_ok_and(|found| found.is_some())
            };
            assert!((0..4).any(|_| stored()), "page {zeroed:?}: nothing is stored any more: {:?}", store.problem());
            store.stop(id + 1);
            damaged += u32::from(dir.path().join("events.redb.damaged").exists());
            let _gone = std::fs::remove_file(dir.path().join("events.redb.damaged"));
        }
    }
    assert!(damaged > 10, "{damaged} files were renamed");
}

#[test]
fn store_that_cannot_be_made_stores_once_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("absent");
    let store = Store::open(&folder.join("events.redb"), BOOT);
    assert!(store.problem().is_some_and(|problem| problem.contains("events.redb")));
    assert!(store.first_id() > MAX_EVENTS, "ids begin below those of an earlier file");
    store.put(event(store.first_id()), Some(1));
    assert!(store.query(&Filter::default(), |_| true).is_err());
    assert_eq!(store.take_lost(), Missed::default(), "a loss is reported while it cannot be stored");
    std::fs::create_dir(&folder).unwrap();
    let mended = || store.problem().is_none();
    assert!(
        (0..200).any(|_| mended() || {
            std::thread::sleep(Duration::from_millis(50));
            false
        }),
        "{:?}",
        store.problem()
    );
    assert_eq!(store.take_lost(), Missed { refusals: 0, others: 1 });
    store.put(event(store.first_id() + 1), Some(2));
    assert_eq!(store.query(&Filter::default(), |_| true).unwrap().len(), 1);
    store.stop(store.first_id() + 2);
    assert!(Store::open(&folder.join("events.redb"), BOOT).first_id() > store.first_id());
}

#[test]
fn events_of_another_version_are_found_as_it_wrote_them() {
    let dir = tempfile::tempdir().unwrap();
    let line = |id: u64, kind: &str, reason: &str| {
        format!(
            r#"{{"id":{id},"time":"2026-11-18T11:06:39.999Z","host":"h","kind":"{kind}","verdict":"block","reason":"{reason}","session":"0000000000000abc","pid":42,"zone":"plant-7"}}"#
        )
    };
    let lines = [line(1, "teleport", "tuesday"), line(2, "verdict", "tuesday"), line(3, "posture", "tuesday")];
    let store = Store::open(&dir.path().join("events.redb"), BOOT);
    for line in &lines {
        store.put(Arc::new(serde_json::from_str(line).unwrap()), None);
    }
    store.stop(4);
    drop(store);
    let store = Store::open(&dir.path().join("events.redb"), BOOT);
    assert_eq!(store.first_id(), 4);
    let lines_of = |events: Vec<Event>| events.iter().map(|event| serde_json::to_string(event).unwrap()).collect::<Vec<_>>();
    let all = |filter: Filter| lines_of(store.query(&filter, |_| true).unwrap());
    assert_eq!(all(Filter::default()), lines);
    assert_eq!(all(Filter { kind: Some("teleport".into()), ..Filter::default() }), lines[..1]);
    assert_eq!(all(Filter { kind: Some("verdict".into()), verdict: Some("block".into()), ..Filter::default() }), lines[1..2]);
    assert_eq!(lines_of(store.page(1..=3, 9, &Filter::default()).unwrap().events), lines);
    assert_eq!(lines_of(store.find(1).unwrap().into_iter().collect()), lines[..1]);
}
