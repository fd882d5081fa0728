use std::ops::Range;

use super::super::refusals::Refusals;
use super::*;
use crate::events::{Body, Owner, PolicyChange, ReceiptChange};

const BOOT: &str = "boot";
/// More than every log keeps.
const MANY: u64 = 1_000_000;

fn rooms(each: usize) -> Rooms {
    Rooms { decisions: each, not_registered: each, traffic: each }
}

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
    let ids: Vec<u64> = store.query(&Filter::default(), Whose::All, |_| true).unwrap().iter().map(|e| e.id).collect();
    assert_eq!(ids, [1, 2]);
}

#[test]
fn ids_are_not_used_again_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.redb");
    let copy = dir.path().join("crashed.redb");
    let store = Store::open(&path, BOOT);
    store.put(event(1), None);
    store.query(&Filter::default(), Whose::All, |_| true).unwrap();
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
    let ids: Vec<u64> = store.query(&filter, Whose::All, |_| true).unwrap().iter().map(|e| e.id).collect();
    assert_eq!(ids, [4, 5]);
    assert_eq!(store.find(3).unwrap().unwrap().id, 3);
    assert_eq!(store.find(9).unwrap(), None);
}

#[test]
fn oldest_make_room_for_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::of_size(&dir.path().join("events.redb"), BOOT, rooms(3));
    // A killed daemon leaves a gap in the ids, which costs no event its place.
    for id in [1, 2, 150_000] {
        store.put(event(id), None);
    }
    let ids = || store.query(&Filter::default(), Whose::All, |_| true).unwrap().iter().map(|e| e.id).collect::<Vec<_>>();
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
    assert!(store.first_id() > MANY);
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
    let page = store.page(2..=6, 2, &Filter::default(), None).unwrap();
    let others = |others| Missed { refusals: 0, others };
    assert_eq!((ids(&page), page.found, page.next_id), (vec![2, 5], others(2), Some(6)));
    let rest = store.page(6..=6, 2, &Filter::default(), None).unwrap();
    assert_eq!((ids(&rest), rest.found, rest.next_id), (vec![6], others(1), None));
    let nobody = Filter { agent: Some("nobody".into()), ..Filter::default() };
    let none = store.page(2..=6, 2, &nobody, None).unwrap();
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
    let store = Store::of_size(&path, BOOT, rooms(2));
    assert_eq!(store.account(), Account::default());
    store.account_from(5).unwrap();
    for id in 1..=4 {
        store.put(refusal(id, 10), None);
    }
    store.stop(5);
    drop(store);
    let store = Store::of_size(&path, BOOT, rooms(2));
    let refusals = Refusals { with_event: 4, repeats: 40, ..Refusals::default() };
    assert_eq!(store.account(), Account { refusals, before: Some(5), held: 0 });
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
                store.query(&Filter::default(), Whose::All, |_| true).is_ok() && store.find(id).is_ok_and(|found| found.is_some())
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
    assert!(store.first_id() > MANY, "ids begin below those of an earlier file");
    store.put(event(store.first_id()), Some(1));
    assert!(store.query(&Filter::default(), Whose::All, |_| true).is_err());
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
    assert_eq!(store.query(&Filter::default(), Whose::All, |_| true).unwrap().len(), 1);
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
    let all = |filter: Filter| lines_of(store.query(&filter, Whose::All, |_| true).unwrap());
    assert_eq!(all(Filter::default()), lines);
    assert_eq!(all(Filter { kind: Some("teleport".into()), ..Filter::default() }), lines[..1]);
    assert_eq!(all(Filter { kind: Some("verdict".into()), verdict: Some("block".into()), ..Filter::default() }), lines[1..2]);
    assert_eq!(lines_of(store.page(1..=3, 9, &Filter::default(), None).unwrap().events), lines);
    assert_eq!(lines_of(store.find(1).unwrap().into_iter().collect()), lines[..1]);
}

/// A refusal of a session of a user.
fn refusal_of(id: u64, session: u64, uid: u32) -> Arc<Event> {
    let mut event = Event::of_attempt("block", "no_receipt", "10.20.4.7", 502);
    (event.id, event.who.session, event.who.owner) = (id, Some(session), Some(Owner { uid, name: None }));
    Arc::new(event)
}

fn decision(id: u64, body: Body) -> Arc<Event> {
    Arc::new(Event { id, ..Event::new(body, "h", 0) })
}

fn registered(id: u64) -> Arc<Event> {
    decision(id, Body::Receipt(Some(format!("ppa_{id}")), ReceiptChange::Registered))
}

fn put_all(store: &Store, events: impl Iterator<Item = Arc<Event>>) {
    for (at, event) in events.enumerate() {
        store.put(event, None);
        if at % 4_000 == 0 {
            // The queue has no room for all.
            store.flush().unwrap();
        }
    }
}

fn ids_of(store: &Store, filter: &Filter) -> Vec<u64> {
    store.query(filter, Whose::All, |_| true).unwrap().iter().map(|event| event.id).collect()
}

fn of_session(session: u64) -> Filter {
    Filter { session: Some(crate::name::session_text(session)), ..Filter::default() }
}

fn of_kind(kind: &str) -> Filter {
    Filter { kind: Some(kind.to_owned()), ..Filter::default() }
}

#[test]
fn flood_of_one_session_leaves_the_others_events_and_every_decision() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::of_size(&dir.path().join("events.redb"), BOOT, rooms(300));
    put_all(&store, (1..=20).map(registered));
    put_all(&store, (21..=60).map(|id| refusal_of(id, 1, 1000)));
    put_all(&store, (61..=100).map(|id| refusal_of(id, 2, 1001)));
    let flood: Range<u64> = 101..10_101;
    put_all(&store, flood.clone().map(|id| refusal_of(id, 3, 1000)));
    assert_eq!(ids_of(&store, &of_kind("receipt")), (1..=20).collect::<Vec<_>>());
    assert_eq!(ids_of(&store, &of_session(1)), (21..=60).collect::<Vec<_>>());
    assert_eq!(ids_of(&store, &of_session(2)), (61..=100).collect::<Vec<_>>());
    assert_eq!(ids_of(&store, &of_session(3)), (flood.end - 220..flood.end).collect::<Vec<_>>());
    // All of it is one list in the order of ids.
    let all = ids_of(&store, &Filter::default());
    assert!(all.len() == 320 && all.is_sorted(), "{all:?}");
}

#[test]
fn very_many_sessions_of_a_user_leave_the_events_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::of_size(&dir.path().join("events.redb"), BOOT, rooms(300));
    put_all(&store, (1..=100).map(|id| refusal_of(id, 1, 1000)));
    put_all(&store, (101..=5_000).map(|id| refusal_of(id, id, 1001)));
    assert_eq!(ids_of(&store, &of_session(1)), (1..=100).collect::<Vec<_>>());
    assert_eq!(ids_of(&store, &Filter::default()).len(), 300);
}

#[test]
fn tampering_and_refused_registrations_make_room_for_each_other_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::of_size(&dir.path().join("events.redb"), BOOT, rooms(50));
    let tampering = |id: u64, session: u64| {
        let event = refusal_of(id, session, 1000);
        Arc::new(Event { body: Body::Tamper(Box::new(event.attempt().unwrap().clone())), ..(*event).clone() })
    };
    let refused = |id: u64, code: &str| decision(id, Body::Receipt(None, ReceiptChange::Refused(code.to_owned())));
    put_all(&store, (1..=20).map(registered));
    put_all(&store, (21..=25).map(|id| tampering(id, 1)));
    put_all(&store, (26..=30).map(|id| refused(id, "unknown_key")));
    put_all(&store, (1_000..2_000).map(|id| tampering(id, 2)));
    put_all(&store, (2_000..3_000).map(|id| refused(id, "malformed")));
    put_all(&store, (3_000..4_000).map(|id| refusal_of(id, 2, 1000)));
    let found = ids_of(&store, &Filter::default());
    assert_eq!(&found[..30], (1..=30).collect::<Vec<_>>());
    assert_eq!(&found[30..], (1_955..2_000).chain(2_955..3_000).chain(3_950..4_000).collect::<Vec<_>>());
    // Of decisions the kind makes room that has most.
    put_all(&store, (4_000..4_100).map(event));
    assert_eq!(ids_of(&store, &of_kind("receipt")).iter().filter(|id| **id <= 20).count(), 20);
    assert_eq!(ids_of(&store, &of_kind("policy")), (4_070..4_100).collect::<Vec<_>>());
}

/// Writes a file as the version before did: every event in one table.
fn earlier_file(path: &Path, events: &[Arc<Event>]) {
    let database = redb::Database::create(path).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut table = write.open_table(tables::EVENTS).unwrap();
        for event in events {
            table.insert(event.id, serde_json::to_vec(event.as_ref()).unwrap().as_slice()).unwrap();
        }
        write.open_table(tables::META).unwrap().insert("next_id", 100_u64).unwrap();
    }
    write.commit().unwrap();
}

#[test]
fn file_of_the_version_before_loses_nothing_and_its_decisions_are_safe_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.redb");
    // More than there is room for now.
    let events: Vec<_> = (1..=60).map(|id| if id % 3 == 0 { registered(id) } else { refusal_of(id, 1, 1000) }).collect();
    earlier_file(&path, &events);
    let store = Store::of_size(&path, BOOT, rooms(10));
    assert_eq!(store.first_id(), 100);
    assert_eq!(ids_of(&store, &Filter::default()), (1..=60).collect::<Vec<_>>());
    // It shrinks by one more for each new event.
    put_all(&store, (100..105).map(|id| refusal_of(id, 2, 1000)));
    assert_eq!(ids_of(&store, &of_kind("verdict")).len(), 35);
    put_all(&store, (105..300).map(|id| refusal_of(id, 2, 1000)));
    assert_eq!(ids_of(&store, &of_kind("verdict")).len(), 10);
    assert_eq!(ids_of(&store, &of_kind("receipt")), (1..=60).filter(|id| id % 3 == 0).collect::<Vec<_>>());
    store.stop(300);
    drop(store);
    assert_eq!(ids_of(&Store::of_size(&path, BOOT, rooms(10)), &of_kind("receipt")).len(), 20);
}

#[test]
fn events_that_an_earlier_version_wrote_in_between_are_found_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.redb");
    let store = Store::open(&path, BOOT);
    put_all(&store, [registered(1), refusal_of(2, 1, 1000)].into_iter());
    store.stop(3);
    drop(store);
    // As the version before writes: it knows one table, and removes the oldest of it.
    let database = redb::Database::open(&path).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut table = write.open_table(tables::EVENTS).unwrap();
        table.pop_first().unwrap();
        for event in [registered(3), refusal_of(4, 1, 1000)] {
            table.insert(event.id, serde_json::to_vec(event.as_ref()).unwrap().as_slice()).unwrap();
        }
    }
    write.commit().unwrap();
    drop(database);
    let store = Store::open(&path, BOOT);
    assert_eq!(store.first_id(), 5);
    assert_eq!(ids_of(&store, &Filter::default()), [1, 3, 4]);
    assert_eq!(ids_of(&store, &of_kind("receipt")), [1, 3]);
    assert_eq!(store.page(1..=4, 9, &Filter::default(), None).unwrap().events.len(), 3);
    assert_eq!(store.find(3).unwrap().unwrap().id, 3);
}

#[test]
fn crash_at_any_time_leaves_every_log_as_it_was_and_the_index_fits_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.redb");
    let store = Store::of_size(&path, BOOT, rooms(40));
    for round in 0..6_u64 {
        let ids = round * 30 + 1..=round * 30 + 30;
        put_all(&store, ids.map(|id| if id % 10 == 0 { registered(id) } else { refusal_of(id, id % 4, 1000) }));
        store.flush().unwrap();
        store.disk.commit(&[], true, None, None).unwrap();
        let before = ids_of(&store, &Filter::default());
        let copy = dir.path().join(format!("crashed-{round}.redb"));
        std::fs::copy(&path, &copy).unwrap();
        let crashed = Store::of_size(&copy, BOOT, rooms(40));
        assert_eq!(ids_of(&crashed, &Filter::default()), before);
        if round == 5 {
            // The index that was made of the file makes room for the same events as that which saw each of them.
            let next = crashed.first_id();
            for store in [&crashed, &store] {
                put_all(store, (next..next + 25).map(|id| refusal_of(id, 9, 1000)));
            }
            assert_eq!(ids_of(&crashed, &Filter::default()), ids_of(&store, &Filter::default()));
        }
    }
    assert_eq!(ids_of(&store, &of_kind("receipt")), (10..=180).step_by(10).collect::<Vec<_>>());
}

#[test]
fn index_that_names_an_event_that_is_not_stored_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::of_size(&dir.path().join("events.redb"), BOOT, rooms(10));
    put_all(&store, (1..=8).map(|id| refusal_of(id, 1, 1000)));
    store.flush().unwrap();
    store.disk.remove_unnoticed(3);
    assert_eq!(ids_of(&store, &Filter::default()), [1, 2, 4, 5, 6, 7, 8]);
    assert!(!store.disk.has_index(), "the wrong index is still used");
    assert_eq!(ids_of(&store, &Filter::default()), [1, 2, 4, 5, 6, 7, 8]);
    assert!(store.disk.has_index());
    // The writer notices too.
    store.disk.remove_unnoticed(1);
    put_all(&store, (9..=13).map(|id| refusal_of(id, 1, 1000)));
    assert_eq!(ids_of(&store, &Filter::default()), (4..=13).collect::<Vec<_>>());
}

#[test]
fn selection_reads_no_events_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("events.redb"), BOOT);
    put_all(&store, (1..=5).map(|id| refusal_of(id, 1, 1000)));
    put_all(&store, (6..=3_005).map(|id| refusal_of(id, 2, 1001)));
    put_all(&store, (3_006..=3_010).map(registered));
    let read = |filter: &Filter, whose: Whose| store.newest(filter, whose, usize::MAX, |_| true).unwrap();
    let verdicts = of_kind("verdict");
    assert_eq!(read(&verdicts, Whose::Session(1)), 5);
    assert_eq!(read(&verdicts, Whose::User(1000)), 5);
    assert_eq!(read(&verdicts, Whose::Session(77)), 0);
    assert_eq!(read(&verdicts, Whose::Nobody), 0);
    assert_eq!(read(&of_kind("receipt"), Whose::All), 5);
    assert_eq!(read(&Filter { since: Some("3000".into()), ..Filter::default() }, Whose::All), 10);
    assert_eq!(store.newest(&verdicts, Whose::All, 100, |_| true).unwrap(), 100);
}

#[test]
fn page_ends_after_many_events_that_the_filter_does_not_select() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("events.redb"), BOOT);
    let count = MAX_READ as u64 + 10;
    put_all(&store, (1..=count).map(event));
    let nobody = Filter { agent: Some("nobody".into()), ..Filter::default() };
    let page = store.page(1..=count, 9, &nobody, None).unwrap();
    assert_eq!((page.events.len(), page.found.others, page.next_id), (0, MAX_READ as u64, Some(MAX_READ as u64 + 1)));
    let rest = store.page(MAX_READ as u64 + 1..=count, 9, &nobody, None).unwrap();
    assert_eq!((rest.found.others, rest.next_id), (10, None));
}
