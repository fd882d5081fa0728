//! Power cuts at any moment, and files in any condition. What was acknowledged exists afterwards, or the file is refused with a reason.
//! Nothing ends in a panic, and nothing acknowledged is missing without a word.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::tests::{NOW, receipt};
use super::*;
use crate::clock::NS_PER_MS;

/// One thing that reached the disk, or was promised.
#[derive(Clone, Debug)]
enum Step {
    /// A descriptor was opened. Before the third the file is synced, has its name, and the folder is synced.
    Opened,
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
    /// A call of the state returned.
    Acknowledged,
}

#[derive(Clone, Debug, Default)]
struct Trace(Arc<Mutex<Vec<Step>>>);

impl Trace {
    fn note(&self, step: Step) {
        self.0.lock().unwrap().push(step);
    }

    fn place(&self, path: &Path) -> Place<Traced> {
        let trace = self.clone();
        Place::new(path, Check::Whole, move |file| {
            trace.note(Step::Opened);
            Ok(Traced { inner: FileBackend::new(file)?, trace: trace.clone() })
        })
    }
}

/// Writes through, and notes what it wrote.
#[derive(Debug)]
struct Traced {
    inner: FileBackend,
    trace: Trace,
}

impl StorageBackend for Traced {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.trace.note(Step::SetLen(len));
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()?;
        self.trace.note(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.trace.note(Step::Write(offset, data.to_vec()));
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}

/// What is on the disk, and what was written since it was last synced.
#[derive(Clone, Default)]
struct Disk {
    synced: Vec<u8>,
    pending: Vec<Step>,
}

impl Disk {
    fn apply(image: &mut Vec<u8>, step: &Step) {
        match step {
            Step::Write(offset, data) => {
                let start = usize::try_from(*offset).unwrap();
                if image.len() < start + data.len() {
                    image.resize(start + data.len(), 0);
                }
                image[start..start + data.len()].copy_from_slice(data);
            }
            Step::SetLen(len) => image.resize(usize::try_from(*len).unwrap(), 0),
            Step::Opened | Step::Sync | Step::Acknowledged => {}
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Sync => self.sync(),
            Step::Write(..) | Step::SetLen(_) => self.pending.push(step.clone()),
            Step::Opened | Step::Acknowledged => {}
        }
    }

    fn sync(&mut self) {
        for step in std::mem::take(&mut self.pending) {
            Self::apply(&mut self.synced, &step);
        }
    }

    /// What a power cut leaves: of the pending ones those that `reached` says, and of a write that it says is torn the first sectors.
    fn image(&self, mut reached: impl FnMut() -> Reached) -> Vec<u8> {
        let mut image = self.synced.clone();
        for step in &self.pending {
            match (reached(), step) {
                (Reached::Whole, step) => Self::apply(&mut image, step),
                (Reached::Torn(at), Step::Write(offset, data)) if data.len() > 512 => {
                    let sectors = at % (data.len() / 512) + 1;
                    Self::apply(&mut image, &Step::Write(*offset, data[..data.len().min(sectors * 512)].to_vec()));
                }
                (Reached::Torn(_) | Reached::Not, _) => {}
            }
        }
        image
    }
}

#[derive(Clone, Copy)]
enum Reached {
    Whole,
    Torn(usize),
    Not,
}

/// Numbers that are the same at each run: xorshift64.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    fn reached(&mut self) -> Reached {
        match self.below(4) {
            0 => Reached::Not,
            1 => Reached::Torn(self.below(8)),
            _ => Reached::Whole,
        }
    }
}

/// Everything in it, as text.
fn dump(state: &State) -> Result<String, StateError> {
    let mut text = String::new();
    let mut tombstones = state.tombstones()?;
    tombstones.sort_by(|one, other| (&one.id, &one.decider).cmp(&(&other.id, &other.decider)));
    let mut names: Vec<_> = state.names()?.into_iter().collect();
    names.sort();
    let (receipts, policy) = (state.receipts()?, state.last_policy::<Vec<String>>()?);
    writeln!(text, "{receipts:?}\n{tombstones:?}\n{names:?}\n{policy:?}\n{} {:?}", state.highest_wall()?, state.reported_losses()?)
        .unwrap();
    Ok(text)
}

fn tombstone(id: &str, decider: Option<&str>) -> Tombstone {
    Tombstone { id: id.into(), reason: "test".into(), decider: decider.map(Into::into), revoked_ms: 1, expires_ms: None }
}

type Change = Box<dyn Fn(&State)>;

/// A life of the state, one acknowledged change after the other. Large artifacts make the file grow.
fn changes() -> Vec<Change> {
    let large = |id: &str| StoredReceipt { artifact: "x".repeat(20_000), ..receipt(id, true) };
    let mut changes: Vec<Change> = vec![
        Box::new(|state| state.keep_policy(&vec!["host = \"a\""]).unwrap()),
        Box::new(|state| state.keep_names(&HashMap::from([(7, "codex".into())])).unwrap()),
        Box::new(|state| state.note_wall(NOW).map(drop).unwrap()),
    ];
    for id in ["a", "b", "c", "d", "e", "f"] {
        changes.push(Box::new(move |state| assert!(matches!(state.register(large(id)).unwrap(), Registered::New(_)))));
    }
    changes.push(Box::new(|state| state.revoke(tombstone("a", None)).map(drop).unwrap()));
    changes.push(Box::new(|state| state.revoke(tombstone("unseen", Some("user:lead"))).map(drop).unwrap()));
    changes.push(Box::new(|state| {
        let mut changed = state.receipts().unwrap();
        changed.iter_mut().for_each(|receipt| receipt.until_ns -= 7);
        state.update(&changed).unwrap();
    }));
    changes.push(Box::new(|state| state.keep_reported_losses((41, 7)).unwrap()));
    changes.push(Box::new(move |state| {
        let later = Now { boot_ns: NOW.boot_ns + 61_000 * NS_PER_MS, wall_ms: NOW.wall_ms + 61_000 };
        state.note_wall(later).unwrap();
        assert!(state.receipts().unwrap().is_empty(), "what ran out was not forgotten");
    }));
    changes.push(Box::new(move |state| assert!(matches!(state.register(large("g")).unwrap(), Registered::New(_)))));
    changes
}

/// Where files of tests are quickly synced.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

#[test]
fn power_cut_at_any_moment_loses_nothing_acknowledged_and_leaves_a_state_that_opens() {
    let folder = folder();
    let trace = Trace::default();
    let mut expected = Vec::new();
    {
        let state = State::at(trace.place(&folder.path().join("traced.redb"))).unwrap();
        expected.push(dump(&state).unwrap());
        trace.note(Step::Acknowledged);
        for change in changes() {
            change(&state);
            trace.note(Step::Acknowledged);
            expected.push(dump(&state).unwrap());
        }
    }
    // A daemon that starts again writes before it is asked to.
    drop(State::at(trace.place(&folder.path().join("traced.redb"))).unwrap());

    let steps = trace.0.lock().unwrap().clone();
    let (mut disk, mut opened, mut acknowledged, mut images) = (Disk::default(), 0, 0, 0);
    // Images that would be refused if the file were made under its own name.
    let mut half_made = 0;
    let mut seeded = Seeded(0x9e37_79b9_7f4a_7c15);
    for (number, step) in steps.iter().enumerate() {
        disk.take(step);
        match step {
            Step::Opened => {
                opened += 1;
                if opened == 3 {
                    disk.sync();
                }
            }
            Step::Acknowledged => acknowledged += 1,
            Step::Write(..) | Step::SetLen(_) | Step::Sync => {}
        }
        let mut left = vec![disk.image(|| Reached::Not), disk.image(|| Reached::Whole)];
        if disk.pending.len() > 1 {
            left.extend((0..4).map(|_| disk.image(|| seeded.reached())));
        }
        left.dedup();
        for image in left {
            images += 1;
            let case = tempfile::tempdir_in(folder.path()).unwrap();
            let path = case.path().join(STATE_FILE);
            if opened < 3 {
                let in_place = case.path().join("in-place.redb");
                fs::write(&in_place, &image).unwrap();
                half_made += u32::from(State::open(&in_place).is_err());
            }
            // It has its own name when it is whole.
            let name = if opened < 3 { case.path().join("state.redb.new") } else { path.clone() };
            fs::write(name, &image).unwrap();
            let state = State::open(&path).unwrap_or_else(|error| panic!("step {number}, {step:?}: {error}"));
            let found = dump(&state).unwrap();
            // What was under way may be there already.
            let (last, next) = (acknowledged.max(1) - 1, acknowledged.min(expected.len() - 1));
            let fits = found == expected[last] || found == expected[next];
            assert!(fits, "step {number}: after {acknowledged} acknowledged:\n{found}\nin place of\n{}", expected[last]);
        }
    }
    assert!(images > 300 && half_made > 0, "{images} images, {half_made} half made");
    eprintln!("{} steps, {images} images, {half_made} of them of no use under the file's own name", steps.len());
}

/// A file with receipts in it, and what is in it.
fn sample(folder: &Path) -> (Vec<u8>, String) {
    let path = folder.join("sample.redb");
    let state = State::open(&path).unwrap();
    changes().iter().take(12).for_each(|change| change(&state));
    let text = dump(&state).unwrap();
    drop(state);
    (fs::read(path).unwrap(), text)
}

/// Opens the image as a daemon does: all of it is there, or it is refused with the repair, and left as it was.
fn whole_or_refused(folder: &Path, image: &[u8], text: &str, what: &str) -> bool {
    let path = folder.join(STATE_FILE);
    fs::write(&path, image).unwrap();
    let opened = State::open(&path).and_then(|state| dump(&state));
    match opened {
        Ok(found) => {
            assert_eq!(found, text, "{what}");
            true
        }
        Err(error) => {
            let said = error.to_string();
            assert!(said.contains("restore") && said.contains("move it away and restart"), "{what}: {said}");
            assert!(path.exists(), "{what}: the damaged file is gone");
            // It can be tried again by the same program: nothing holds it locked.
            let again = State::open(&path).and_then(|state| dump(&state)).expect_err("a damaged file mended itself");
            assert!(!again.is_locked(), "{what}: {again}");
            false
        }
    }
}

#[test]
fn damaged_file_is_whole_or_refused_with_the_repair_and_never_a_panic() {
    let folder = folder();
    let (good, text) = sample(folder.path());
    assert!(whole_or_refused(folder.path(), &good, &text, "untouched"));
    let (mut tried, mut refused) = (0, 0);
    let mut try_image = |image: &[u8], what: String| {
        tried += 1;
        refused += u32::from(!whole_or_refused(folder.path(), image, &text, &what));
    };
    for page in 0..good.len() / 4096 {
        let mut image = good.clone();
        image[page * 4096..(page + 1) * 4096].fill(0);
        try_image(&image, format!("page {page} of zeros"));
        try_image(&good[..page * 4096], format!("cut off before page {page}"));
        try_image(&good[..page * 4096 + 100], format!("cut off in page {page}"));
    }
    let mut seeded = Seeded(77);
    for number in 0..200 {
        let mut image = good.clone();
        // The header half of the time.
        let end = if number % 2 == 0 { 512 } else { image.len() };
        for _ in 0..=number % 5 {
            let at = seeded.below(end);
            image[at] ^= 1 << seeded.below(8);
        }
        try_image(&image, format!("flipped bits, {number}"));
    }
    for (what, image) in [("empty", Vec::new()), ("garbage", vec![7; 100_000]), ("zeros", vec![0; good.len()]), ("text", b"hello".to_vec())]
    {
        try_image(&image, what.to_owned());
    }
    assert!(refused > 100, "{refused} of {tried} refused");
    eprintln!("{refused} of {tried} images were refused");
}

/// Fails at one call, as a full disk does.
#[derive(Debug)]
struct Failing {
    inner: FileBackend,
    calls: Arc<AtomicU64>,
}

impl Failing {
    fn place(path: &Path, calls: &Arc<AtomicU64>) -> Place<Self> {
        let calls = Arc::clone(calls);
        Place::new(path, Check::Whole, move |file| Ok(Self { inner: FileBackend::new(file)?, calls: Arc::clone(&calls) }))
    }

    fn call(&self) -> io::Result<()> {
        match self.calls.fetch_sub(1, Ordering::Relaxed) {
            1 => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.call()?;
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call()?;
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.call()?;
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call()?;
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}

#[test]
fn error_at_any_call_is_told_and_the_next_use_goes_on() {
    let folder = folder();
    // From the making of the file to some receipts in it.
    for fails_at in 1.. {
        let case = tempfile::tempdir_in(folder.path()).unwrap();
        let path = case.path().join(STATE_FILE);
        let calls = Arc::new(AtomicU64::new(fails_at));
        let state = match State::at(Failing::place(&path, &calls)) {
            Ok(state) => state,
            Err(error) => {
                // Nothing, or all of a file that was not used yet.
                assert!(error.to_string().contains("free space"), "{error}");
                assert!(dump(&State::open(&path).unwrap()).unwrap().starts_with("[]\n"));
                continue;
            }
        };
        let mut book = Book::<()>::default();
        for id in ["a", "b", "c"] {
            let tried = book.register(&state, receipt(id, false), ());
            assert_eq!(book.find(id).is_some(), tried.is_ok(), "call {fails_at}: the book and the answer differ");
            assert_eq!(state.problem().is_some(), tried.is_err(), "call {fails_at}: {tried:?}");
            if tried.is_err() {
                // The same again goes on, whatever the disk has of the first.
                book.register(&state, receipt(id, false), ()).unwrap_or_else(|error| panic!("call {fails_at}: {error}"));
                assert!(book.find(id).is_some(), "call {fails_at}: acknowledged, and not in the book");
            }
        }
        drop(state);
        let kept: Vec<String> = State::open(&path).unwrap().receipts().unwrap().into_iter().map(|receipt| receipt.id).collect();
        assert_eq!(kept, ["a", "b", "c"], "call {fails_at}");
        // More calls than are made.
        if calls.load(Ordering::Relaxed) < u64::MAX / 2 {
            assert!(fails_at > 50, "only {fails_at} calls are made");
            return;
        }
    }
}

#[test]
fn panic_in_a_transaction_is_an_error_and_the_next_use_goes_on() {
    let folder = folder();
    let state = State::open(&folder.path().join(STATE_FILE)).unwrap();
    state.register(receipt("a", false)).unwrap();
    let half = |write: &WriteTransaction| -> Result<(), redb::Error> {
        put(write, RECEIPTS, "a", &receipt("forged", false))?;
        let _table = write.open_table(META)?;
        panic!("as redb does on damage")
    };
    let error = state.write(half).unwrap_err().to_string();
    assert!(error.contains("as redb does on damage") && error.contains("move it away and restart"), "{error}");
    assert!(state.problem().is_some_and(|problem| problem.contains("as redb does")));
    assert_eq!(state.receipts().unwrap()[0].id, "a");
    assert!(matches!(state.register(receipt("b", false)), Ok(Registered::New(_))));
    assert_eq!(state.problem(), None);
}

#[test]
fn file_that_was_being_made_when_the_power_was_cut_is_made_anew() {
    let folder = folder();
    let path = folder.path().join(STATE_FILE);
    fs::write(folder.path().join("state.redb.new"), vec![7; 5_000]).unwrap();
    let state = State::open(&path).unwrap();
    assert!(state.receipts().unwrap().is_empty());
    assert!(!folder.path().join("state.redb.new").exists());
}

#[test]
fn shut_state_opens_when_the_file_is_mended_and_is_never_begun_anew() {
    let folder = folder();
    let (good, text) = sample(folder.path());
    let path = folder.path().join(STATE_FILE);
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    let error = State::open(&path).unwrap_err();
    let state = State::shut(&path, &error);
    assert!(state.is_shut() && state.problem().unwrap().contains("move it away"));
    assert!(matches!(state.keep_reported_losses((1, 0)), Err(StateError::Shut(_))));
    assert!(state.retry().is_err() && state.is_shut());
    fs::remove_file(&path).unwrap();
    assert!(state.retry().unwrap_err().to_string().contains("the file is gone"));
    assert!(!path.exists(), "a new state was begun where one was lost");
    fs::write(&path, &good).unwrap();
    state.retry().unwrap();
    assert!(!state.is_shut() && state.problem().is_none());
    assert_eq!(dump(&state).unwrap(), text);
}

#[test]
fn state_that_vanishes_under_the_daemon_is_not_begun_anew() {
    let folder = folder();
    let path: PathBuf = folder.path().join(STATE_FILE);
    let calls = Arc::new(AtomicU64::new(u64::MAX));
    let state = State::at(Failing::place(&path, &calls)).unwrap();
    state.register(receipt("a", false)).unwrap();
    fs::remove_file(&path).unwrap();
    calls.store(1, Ordering::Relaxed);
    assert!(state.keep_reported_losses((1, 0)).is_err());
    assert!(state.keep_reported_losses((1, 0)).is_err() && !path.exists(), "a new state was begun in the place of one that is gone");
    assert!(state.problem().is_some());
}
