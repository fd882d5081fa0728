use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::super::tests::receipt;
use super::super::{Book, Held, Kept, Registered, State, StateError, Tombstone};

fn tombstone(id: &str) -> Tombstone {
    Tombstone { id: id.into(), reason: "work is done".into(), decider: None, revoked_ms: 1, expires_ms: None }
}

fn file(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("state.redb")
}

fn copy_of(path: &Path, name: &str) -> PathBuf {
    let copy = path.with_file_name(name);
    std::fs::copy(path, &copy).unwrap();
    copy
}

#[test]
fn every_change_of_receipts_is_a_version_that_a_restart_keeps() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&file(&dir)).unwrap();
    assert_eq!(state.version(), 0);
    state.register(receipt("a", false)).unwrap();
    state.register(receipt("a", false)).unwrap();
    assert_eq!(state.version(), 1, "what is registered again changes nothing");
    state.revoke(tombstone("a")).unwrap();
    state.keep_names(&HashMap::from([(1, "codex".to_owned())])).unwrap();
    assert_eq!(state.version(), 2, "names are no decision");
    drop(state);
    assert_eq!(State::open(&file(&dir)).unwrap().version(), 2);
}

#[test]
fn earlier_copy_has_a_lower_version_and_does_not_know_the_revocation() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&file(&dir)).unwrap();
    state.register(receipt("a", false)).unwrap();
    drop(state);
    let copy = copy_of(&file(&dir), "copy.redb");
    let state = State::open(&file(&dir)).unwrap();
    state.revoke(tombstone("a")).unwrap();
    let of_events = HashMap::from([("a".to_owned(), "work is done".to_owned()), ("ab".to_owned(), String::new())]);
    let left = |state: &State| state.unknown_revocations(of_events.clone()).unwrap().into_keys().collect::<Vec<_>>();
    assert_eq!(left(&state), ["ab"], "an id that begins alike is another");
    let earlier = State::open(&copy).unwrap();
    assert!(earlier.version() < state.version());
    assert_eq!(left(&earlier).len(), 2);
    let mut book: Book<()> = Book::default();
    book.load(&earlier, |_| false, |stored| Kept { stored, admitted: () }).unwrap();
    assert_eq!(book.revived(&of_events), ["a"]);
}

#[test]
fn state_that_went_back_stays_older_until_it_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&file(&dir)).unwrap();
    state.register(receipt("a", false)).unwrap();
    state.mark_as_gone_back();
    for id in ["a", "b", "c", "d", "e"] {
        state.revoke(tombstone(id)).unwrap();
    }
    assert_eq!(state.version(), 1, "else five revocations make it look newer than what was seen");
    state.accept_as_newest(4, 9).unwrap();
    assert_eq!(state.version(), 5);
    // Serials that flows and counts may have are not given again.
    assert!(matches!(state.register(receipt("f", false)).unwrap(), Registered::New(stored) if stored.serial == 9));
    assert_eq!(state.version(), 6);
    drop(state);
    assert_eq!(State::open(&file(&dir)).unwrap().version(), 6);
}

#[test]
fn earlier_copy_that_takes_the_place_of_a_closed_file_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&file(&dir)).unwrap();
    state.register(receipt("a", false)).unwrap();
    *state.held() = Held::Closed;
    let copy = copy_of(&file(&dir), "copy.redb");
    state.revoke(tombstone("a")).unwrap();
    *state.held() = Held::Closed;
    let newest = copy_of(&file(&dir), "newest.redb");
    std::fs::copy(&copy, file(&dir)).unwrap();
    let error = state.register(receipt("b", false)).unwrap_err().to_string();
    assert!(error.contains("an earlier copy of it was put in its place; restart pp-agent"), "{error}");
    let error: StateError = state.highest_wall().unwrap_err();
    assert!(error.to_string().contains("earlier copy"), "{error}");
    // Control: the newest is used again.
    std::fs::copy(&newest, file(&dir)).unwrap();
    state.register(receipt("b", false)).unwrap();
}
