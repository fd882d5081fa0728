use std::collections::HashMap;

use super::*;
use crate::clock::NS_PER_MS;

pub(super) const NOW: Now = Now { boot_ns: 1_000_000 * NS_PER_MS, wall_ms: 10_000_000 };

pub(super) fn receipt(id: &str, budget: bool) -> StoredReceipt {
    StoredReceipt {
        id: id.into(),
        artifact: "{}".into(),
        payload_hash: format!("hash of {id}"),
        serial: 0,
        company: "acme".into(),
        idem_key: id.into(),
        decider: "user:lead".into(),
        registered_ms: NOW.wall_ms,
        from_ms: NOW.wall_ms,
        until_ms: NOW.wall_ms + 60_000,
        expires_ms: NOW.wall_ms + 30_000,
        boot_id: "boot-1".into(),
        from_ns: NOW.boot_ns,
        until_ns: NOW.boot_ns + 60_000 * NS_PER_MS,
        uids: vec![1000],
        budget,
        ended: None,
    }
}

fn state() -> (tempfile::TempDir, State) {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&dir.path().join("state.redb")).unwrap();
    (dir, state)
}

#[test]
fn receipt_survives_a_restart_with_its_serial() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let state = State::open(&path).unwrap();
    assert!(matches!(state.register(receipt("a", false)).unwrap(), Registered::New(r) if r.serial == 1));
    drop(state);
    let state = State::open(&path).unwrap();
    assert_eq!(state.receipts().unwrap()[0].serial, 1);
    assert!(matches!(state.register(receipt("b", false)).unwrap(), Registered::New(r) if r.serial == 2));
}

#[test]
fn registering_again_answers_with_the_first_and_changes_nothing() {
    let (_dir, state) = state();
    state.register(receipt("a", false)).unwrap();
    let mut later = receipt("a", false);
    later.until_ms += 999_999;
    let Registered::Again(first) = state.register(later).unwrap() else { panic!("registered twice") };
    assert_eq!(first.until_ms, NOW.wall_ms + 60_000);
}

#[test]
fn same_id_with_other_content_and_same_key_with_another_id_are_refused() {
    let (_dir, state) = state();
    state.register(receipt("a", false)).unwrap();
    let mut forged = receipt("a", false);
    forged.payload_hash = "another".into();
    assert!(matches!(state.register(forged), Err(RegisterError::OtherContent(_))));
    let mut second = receipt("b", false);
    second.idem_key = "a".into();
    assert!(matches!(state.register(second), Err(RegisterError::KeyUsed { by, .. }) if by == "a"));
}

#[test]
fn revocation_before_the_receipt_refuses_it() {
    let (_dir, state) = state();
    let tombstone = Tombstone { id: "a".into(), reason: "no".into(), decider: None, revoked_ms: 1, expires_ms: None };
    assert_eq!(state.revoke(tombstone).unwrap(), None);
    assert!(matches!(state.register(receipt("a", false)), Err(RegisterError::Revoked(_))));
}

#[test]
fn signed_revocation_of_another_decider_ends_nothing() {
    let (_dir, state) = state();
    let decider = Some("user:other".to_owned());
    let tombstone = Tombstone { id: "a".into(), reason: "no".into(), decider, revoked_ms: 1, expires_ms: None };
    state.revoke(tombstone).unwrap();
    assert!(matches!(state.register(receipt("a", false)), Ok(Registered::New(_))));
}

#[test]
fn later_revocation_of_another_decider_does_not_lift_an_earlier_one() {
    for first in [None, Some("user:lead".to_owned())] {
        let (_dir, state) = state();
        for decider in [first, Some("user:other".to_owned())] {
            let tombstone = Tombstone { id: "a".into(), reason: "no".into(), decider, revoked_ms: 1, expires_ms: None };
            state.revoke(tombstone).unwrap();
        }
        assert!(matches!(state.register(receipt("a", false)), Err(RegisterError::Revoked(_))));
    }
}

#[test]
fn revoked_receipt_stays_ended_until_it_has_expired_by_the_highest_time_seen() {
    let (_dir, state) = state();
    state.register(receipt("a", false)).unwrap();
    let tombstone = Tombstone { id: "a".into(), reason: "no".into(), decider: None, revoked_ms: 1, expires_ms: None };
    assert_eq!(state.revoke(tombstone).unwrap().unwrap().ended, Some(EndReason::Revoked));
    state.note_wall(NOW).unwrap();
    assert!(matches!(state.register(receipt("a", false)).unwrap(), Registered::Again(_)));
    let later = Now { boot_ns: NOW.boot_ns + 61_000 * NS_PER_MS, wall_ms: NOW.wall_ms + 61_000 };
    state.note_wall(later).unwrap();
    assert!(state.receipts().unwrap().is_empty() && state.tombstones().unwrap().is_empty());
    let stepped_back = Now { wall_ms: 1, ..later };
    state.note_wall(stepped_back).unwrap();
    assert_eq!(state.highest_wall().unwrap(), later.wall_ms);
}

#[test]
fn reboot_ends_a_receipt_with_a_budget_and_keeps_one_without() {
    let rebooted = Now { boot_ns: 5_000 * NS_PER_MS, wall_ms: NOW.wall_ms + 20_000 };
    let mut counted = receipt("a", true);
    counted.carry_over(rebooted, "boot-2", false);
    assert_eq!(counted.ended, Some(EndReason::CountLost));
    let mut free = receipt("b", false);
    free.carry_over(rebooted, "boot-2", false);
    assert_eq!((free.ended, free.until_ns), (None, 45_000 * NS_PER_MS));
}

#[test]
fn tables_made_anew_in_the_same_boot_end_a_budget_too() {
    let mut counted = receipt("a", true);
    assert!(!counted.clone().carry_over(NOW, "boot-1", false));
    counted.carry_over(NOW, "boot-1", true);
    assert_eq!(counted.ended, Some(EndReason::CountLost));
}

#[test]
fn clock_step_only_shrinks_deadlines() {
    let mut back = receipt("a", false);
    back.carry_over(Now { wall_ms: NOW.wall_ms - 50_000, ..NOW }, "boot-1", false);
    assert_eq!(back.from_ns, NOW.boot_ns);
    assert_eq!(back.until_ns, NOW.boot_ns + 60_000 * NS_PER_MS);
    let mut forward = receipt("a", false);
    forward.carry_over(Now { wall_ms: NOW.wall_ms + 50_000, ..NOW }, "boot-1", false);
    assert_eq!(forward.until_ns, NOW.boot_ns + 10_000 * NS_PER_MS);
}

#[test]
fn damaged_file_is_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    std::fs::write(&path, vec![7u8; 100_000]).unwrap();
    let error = State::open(&path).unwrap_err().to_string();
    assert!(error.contains("state.redb") && error.contains("move it away"), "{error}");
}

#[test]
fn second_daemon_on_the_same_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let _first = State::open(&path).unwrap();
    assert!(State::open(&path).is_err());
}

#[test]
fn policy_and_names_are_kept() {
    let (_dir, state) = state();
    assert_eq!(state.last_policy::<Vec<String>>().unwrap(), None);
    state.keep_policy(&vec!["host = 1"]).unwrap();
    assert_eq!(state.last_policy::<Vec<String>>().unwrap().unwrap(), ["host = 1"]);
    state.keep_names(&HashMap::from([(7, "codex".into())])).unwrap();
    state.keep_names(&HashMap::from([(8, "goose".into())])).unwrap();
    assert_eq!(state.names().unwrap().len(), 2);
}
