use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::events::{Attempt, NeighbourChange, Owner, Place, PolicyChange, PostureChange, ProtectionChange, Verdict};

fn key(uid: u32, session: u64, kind: Kind) -> Key {
    Key::traffic(Some(uid), Some(kind), Some(session), 0)
}

fn index(traffic: usize) -> Index {
    Index::new(Rooms { decisions: 1, not_registered: 1, traffic })
}

fn event(body: Body) -> Event {
    let mut event = Event::of_attempt("block", "no_receipt", "10.20.4.7", 502);
    event.who.owner = Some(Owner { uid: 1000, name: None });
    Event { body, ..event }
}

#[test]
fn decisions_are_no_traffic_and_what_a_session_does_is_no_decision() {
    let attempt = Box::<Attempt>::default;
    let receipt = |change| Body::Receipt(Some("ppa_1".into()), change);
    let neighbour = Body::Neighbour { change: NeighbourChange::Learned, address: [10, 0, 0, 9].into(), place: Place::default() };
    let tool = crate::events::Tool { verdict: Verdict::Block, tool: None, shape: None, attack: Vec::new(), repeats: 0 };
    let lost = crate::events::Loss { count: 1, refusals: true, not_stored: false };
    for (body, log) in [
        (receipt(ReceiptChange::Registered), Log::Decisions),
        (receipt(ReceiptChange::Expired), Log::Decisions),
        (receipt(ReceiptChange::Refused("malformed".into())), Log::NotRegistered),
        (Body::Revocation(Some("ppa_1".into())), Log::Decisions),
        (Body::Policy(PolicyChange::Reloaded), Log::Decisions),
        (Body::Posture { change: PostureChange::Open, hook: None }, Log::Decisions),
        (Body::Protection(ProtectionChange::Off), Log::Decisions),
        (Body::SessionEnd { released: true }, Log::Decisions),
        (Body::SessionEnd { released: false }, Log::Traffic),
        (Body::SessionStart(None), Log::Traffic),
        (Body::Tamper(attempt()), Log::Tampering),
        (Body::Verdict(attempt()), Log::Traffic),
        (Body::FlowEnded(attempt()), Log::Traffic),
        (Body::Exec(tool), Log::Traffic),
        (Body::Lost(lost), Log::Traffic),
        (neighbour, Log::Traffic),
    ] {
        let event = event(body);
        assert_eq!(Key::of(&event).log, log, "{event:?}");
        // The place is the same when the event is read again.
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(Key::of(&serde_json::from_str(&json).unwrap()), Key::of(&event), "{json}");
        assert_eq!(Key::of(&Event { canary: true, ..event }).log, Log::Traffic);
    }
    // A change that a later version knows.
    let json = serde_json::to_string(&event(Body::Policy(PolicyChange::Reloaded))).unwrap().replace("reloaded", "signed");
    assert_eq!(Key::of(&serde_json::from_str(&json).unwrap()).log, Log::Decisions);
}

#[test]
fn whoever_holds_most_makes_room() {
    let mut index = index(7);
    let [few, many, other] = [key(1000, 1, Kind::Verdict), key(1000, 2, Kind::Verdict), key(1000, 1, Kind::Exec)];
    for (id, key) in [(1, few), (2, few), (3, other), (4, many), (5, many), (6, many), (7, many)] {
        index.add(key, id);
        assert_eq!(index.make_room(key.log), None);
    }
    let mut removed = Vec::new();
    for id in 8..14 {
        index.add(many, id);
        removed.extend(index.make_room(Log::Traffic));
    }
    assert_eq!(removed, [4, 5, 6, 7, 8, 9]);
    // Of another user with fewer events, none makes room.
    index.add(key(1001, 3, Kind::Verdict), 14);
    assert_eq!(index.make_room(Log::Traffic), Some(10));
    // Equal ones: the oldest.
    index.add(few, 15);
    assert_eq!(index.make_room(Log::Traffic), Some(1));
}

#[test]
fn newest_of_a_selection_are_in_descending_order() {
    let mut index = index(100);
    for id in 1..=30 {
        index.add(key(1000 + u32::try_from(id % 2).unwrap(), id % 3, Kind::Verdict), id);
    }
    index.add(Key::decision(Some(Kind::Policy), 0), 31);
    let ids = |select: Select, first_id, max| index.newest(&select, first_id, max).iter().map(|(id, _)| *id).collect::<Vec<_>>();
    let all = Select::ALL;
    assert_eq!(ids(all, 0, usize::MAX), (1..=31).rev().collect::<Vec<_>>());
    assert_eq!(ids(all, 28, usize::MAX), [31, 30, 29, 28]);
    assert_eq!(ids(all, 0, 2), [31, 30]);
    assert_eq!(ids(Select { owner: Some(1000), session: Some(2), kind: Some(Kind::Verdict), refusals: false }, 0, 9), [26, 20, 14, 8, 2]);
    assert_eq!(ids(Select { kind: Some(Kind::Policy), ..all }, 0, 9), [31]);
    let oldest = |range, max| index.oldest(&all, &range, max).iter().map(|(id, _)| *id).collect::<Vec<_>>();
    assert_eq!(oldest(0..=u64::MAX, usize::MAX), (1..=31).collect::<Vec<_>>());
    assert_eq!((oldest(9..=12, 9), oldest(9..=12, 2), oldest(40..=50, 9)), (vec![9, 10, 11, 12], vec![9, 10], vec![]));
}

/// The same in the obvious way.
fn oldest_of_the_largest(kept: &VecDeque<(u32, u64, u64)>) -> u64 {
    let share = |uid: u32| kept.iter().filter(|(of, ..)| *of == uid).count();
    let group = |uid: u32, session: u64| kept.iter().filter(|(of, in_session, _)| (*of, *in_session) == (uid, session)).count();
    let uid = kept.iter().map(|(uid, ..)| *uid).max_by_key(|uid| (share(*uid), *uid)).unwrap();
    let of_user = kept.iter().filter(|(of, ..)| *of == uid);
    // Of equal groups the first event is of that with the oldest.
    let most = of_user.clone().map(|(uid, session, _)| group(*uid, *session)).max().unwrap();
    of_user.clone().find(|(uid, session, _)| group(*uid, *session) == most).unwrap().2
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn index_agrees_with_a_count_of_everything(events in proptest::collection::vec((0..3_u32, 0..4_u64), 0..200)) {
        let (mut index, mut kept) = (index(20), VecDeque::new());
        for (at, (uid, session)) in events.into_iter().enumerate() {
            let id = at as u64;
            index.add(key(uid, session, Kind::Verdict), id);
            kept.push_back((uid, session, id));
            let wanted = (kept.len() > 20).then(|| oldest_of_the_largest(&kept));
            prop_assert_eq!(index.make_room(Log::Traffic), wanted);
            kept.retain(|(_, _, id)| Some(*id) != wanted);
        }
        let ids: Vec<u64> = index.newest(&Select::ALL, 0, usize::MAX).into_iter().rev().map(|(id, _)| id).collect();
        prop_assert_eq!(ids, kept.into_iter().map(|(_, _, id)| id).collect::<Vec<_>>());
    }
}
