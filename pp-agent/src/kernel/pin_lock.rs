//! The pin directory, for one daemon at a time. A start that fails takes out of the kernel what it put there, but never what was in force
//! before it: the pins of an earlier daemon enforce without one, and a second daemon's failed start must not weaken them.

use std::{
    fs::{self, File, TryLockError},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use pp_common::{abi::Control, maps::CONTROL};

use super::{
    KernelError, bpffs,
    load::{self, Attached},
    maps::Locked,
    pinned, uninstall,
};

/// How long to wait for an earlier daemon that was killed and still has the pins or the state.
pub(crate) const TAKEOVER: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// What to take back if the start fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undo {
    /// Nothing: hooks were in force before.
    Nothing,
    /// The hooks. The tables were there before, with the counts of receipts.
    Hooks,
    /// Hooks and tables.
    Everything,
}

/// The pin directory, held by this daemon. Dropping it takes back the start, unless [`Self::keep`] was called.
pub(crate) struct PinLock {
    dir: PathBuf,
    undo: Undo,
    /// The kernel releases it when this process ends, however it ends.
    _lock: File,
}

impl PinLock {
    /// Takes the directory, and makes it if there is none. It waits so long for a daemon that was killed and is still ending.
    ///
    /// # Errors
    /// Another daemon has it, or there is no bpf file system.
    pub(crate) fn take(dir: &Path, patience: Duration) -> Result<Self, KernelError> {
        let error = || KernelError::io(dir.display().to_string());
        let deadline = Instant::now() + patience;
        loop {
            bpffs::pin_directory(dir)?;
            let lock = File::open(dir).map_err(error())?;
            match lock.try_lock() {
                Ok(()) if is_at(&lock, dir) => break Self::of(dir, lock),
                // RACE: the daemon that held it has removed the directory.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => break Err(KernelError::PinsInUse { dir: dir.into(), holder: holder(&lock) }),
                Err(TryLockError::Error(source)) => break Err(error()(source)),
            }
        }
    }

    fn of(dir: &Path, lock: File) -> Result<Self, KernelError> {
        let attached = Attached::by(&dir.join("links"))?;
        let undo = undo(attached, has_tables_of_somebody(dir, attached));
        Ok(Self { dir: dir.to_owned(), undo, _lock: lock })
    }

    /// The start has succeeded: from here on everything stays in force without the daemon.
    pub(crate) fn keep(&mut self) {
        self.undo = Undo::Nothing;
    }
}

impl Drop for PinLock {
    fn drop(&mut self) {
        let removed = match self.undo {
            Undo::Nothing => return,
            Undo::Hooks => uninstall::remove_pins(&self.dir, &["links"]),
            Undo::Everything => uninstall::remove_all(&self.dir),
        };
        match removed {
            Ok(removed) if removed.pins == 0 => {}
            Ok(_) => tracing::warn!("the start failed, and nothing was enforced before it: its hooks are taken out of the kernel again"),
            Err(error) => tracing::error!("{error}; hooks of this failed start stay attached: pp-agent uninstall-hooks removes them"),
        }
    }
}

/// The lock of the pin directory; `None`: there is no directory. It waits so long for a daemon that was killed and is still ending.
///
/// # Errors
/// A daemon has it.
pub(super) fn of_nobody(dir: &Path, patience: Duration) -> Result<Option<File>, KernelError> {
    let error = || KernelError::io(dir.display().to_string());
    let deadline = Instant::now() + patience;
    loop {
        let lock = match File::open(dir) {
            Ok(lock) => lock,
            Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(error()(source)),
        };
        match lock.try_lock() {
            Ok(()) => return Ok(Some(lock)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => return Err(KernelError::PinsInUse { dir: dir.into(), holder: holder(&lock) }),
            Err(TryLockError::Error(source)) => return Err(error()(source)),
        }
    }
}

/// What a failed start takes back, by what was pinned before it.
///
/// Hooks of this build that never had tables were left by a start that was killed: they refuse nothing to anybody.
const fn undo(attached: Attached, tables_of_somebody: bool) -> Undo {
    match (attached, tables_of_somebody) {
        (Attached { others: true, .. }, _) | (Attached { own: true, .. }, true) => Undo::Nothing,
        (Attached { own: false, others: false }, true) => Undo::Hooks,
        (Attached { others: false, .. }, false) => Undo::Everything,
    }
}

/// Whether tables were ever published here. What cannot be read counts as published.
///
/// Maps are pinned before any hook. Hooks without the map lost its pin later, and go on refusing by it, so they count too.
fn has_tables_of_somebody(dir: &Path, attached: Attached) -> bool {
    if !load::other_layouts(dir, &CONTROL).is_empty() {
        return true;
    }
    if !load::map_pin(dir, &CONTROL).exists() {
        return attached.own || attached.others;
    }
    let control: Result<Locked<Array<MapData, Control>>, _> = pinned::open(dir, &CONTROL, Map::Array);
    control.and_then(|control| control.get(0)).map_or(true, |control| control.generation != 0)
}

/// Whether this directory is the one at the path.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |about: &fs::Metadata| (about.dev(), about.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(file), Ok(at)) if id(&file) == id(&at))
}

/// Who has locked a file, in words.
fn holder(file: &File) -> String {
    let Ok(about) = file.metadata() else { return UNKNOWN.to_owned() };
    let (major, minor) = (libc::major(about.dev()), libc::minor(about.dev()));
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    match holder_in(&locks, &format!("{major:02x}:{minor:02x}:{}", about.ino())) {
        Some(pid) => {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("pid {pid} ({})", name.trim_end())
        }
        None => UNKNOWN.to_owned(),
    }
}

const UNKNOWN: &str = "another process";

/// The pid in the line of a file's lock in `/proc/locks` (`fs/locks.c`). Lines with an arrow are those who wait.
fn holder_in(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, _, pid, at, ..] if *at == file => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn attached(own: bool, others: bool) -> Attached {
        Attached { own, others }
    }

    #[test]
    fn what_was_in_force_before_is_never_taken_back() {
        for tables in [true, false] {
            assert_eq!(undo(attached(false, true), tables), Undo::Nothing);
            assert_eq!(undo(attached(true, true), tables), Undo::Nothing);
        }
        assert_eq!(undo(attached(true, false), true), Undo::Nothing);
    }

    #[test]
    fn what_nobody_had_in_force_is_taken_back() {
        assert_eq!(undo(attached(false, false), false), Undo::Everything);
        // Half a set, of a start that was killed before it published anything.
        assert_eq!(undo(attached(true, false), false), Undo::Everything);
        // Somebody removed the hooks by hand. The counts of receipts are still needed.
        assert_eq!(undo(attached(false, false), true), Undo::Hooks);
    }

    #[test]
    fn hooks_whose_map_lost_its_pin_are_never_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let undo = |attached| undo(attached, has_tables_of_somebody(dir.path(), attached));
        assert_eq!(undo(attached(true, false)), Undo::Nothing);
        assert_eq!(undo(attached(false, false)), Undo::Everything);
    }

    #[test]
    fn holder_is_found_in_the_list_of_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 12 00:1d:77 0 EOF\n2: FLOCK  ADVISORY  WRITE 4711 00:1d:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 4712 00:1d:78 0 EOF\n3: FLOCK  ADVISORY  WRITE -1 00:1d:79 0 EOF\n";
        assert_eq!(holder_in(locks, "00:1d:77"), Some(4711));
        for other in ["00:1d:78", "00:1d:79", "00:1d:7"] {
            assert_eq!(holder_in(locks, other), None, "{other}");
        }
    }

    #[test]
    fn directory_that_was_made_anew_is_another() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("pins");
        fs::create_dir(&dir).unwrap();
        let lock = File::open(&dir).unwrap();
        assert!(is_at(&lock, &dir));
        lock.try_lock().unwrap();
        let other = File::open(&dir).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        fs::remove_dir(&dir).unwrap();
        assert!(!is_at(&lock, &dir));
    }
}
