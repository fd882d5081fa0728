//! A redb file that survives damage and power cuts. A file exists whole or not at all, and a panic of redb becomes an error. State and
//! events are in such files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use redb::backends::FileBackend;
use redb::{Builder, Database, Error, StorageBackend, WriteTransaction};

/// Most memory for pages of a file. By default redb would keep all that it ever read.
const CACHE: usize = 16 * 1024 * 1024;
/// How long to wait for another program that makes a file in the same folder.
const OTHERS: Duration = Duration::from_secs(10);

/// How much of a file is checked when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// The checksum of every page, for a file in which nothing may be missing.
    Whole,
    /// What redb checks by itself: everything after a crash, little otherwise.
    Usual,
}

/// A redb file and the storage backend between redb and the disk. Only tests use another backend than the file itself.
pub(crate) struct Place<B> {
    path: PathBuf,
    check: Check,
    backend: Box<dyn Fn(File) -> Result<B, Error> + Send + Sync>,
}

impl<B> std::fmt::Debug for Place<B> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Place").field("path", &self.path).field("check", &self.check).finish_non_exhaustive()
    }
}

impl Place<FileBackend> {
    /// The file at this path.
    #[must_use]
    pub(crate) fn of_file(path: &Path, check: Check) -> Self {
        Self::new(path, check, |file| Ok(FileBackend::new(file)?))
    }
}

impl<B: StorageBackend> Place<B> {
    /// The file at this path, written through `backend`.
    pub(crate) fn new(path: &Path, check: Check, backend: impl Fn(File) -> Result<B, Error> + Send + Sync + 'static) -> Self {
        Self { path: path.to_owned(), check, backend: Box::new(backend) }
    }

    /// The path.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is no file. An error other than "not found" counts as a file.
    #[must_use]
    pub(crate) fn is_absent(&self) -> bool {
        matches!(fs::symlink_metadata(&self.path), Err(error) if error.kind() == ErrorKind::NotFound)
    }

    /// Opens the file. An empty file is damaged, since none is ever made empty.
    ///
    /// # Errors
    /// It is absent, damaged or open elsewhere, or the disk failed.
    pub(crate) fn open(&self) -> Result<Database, Error> {
        self.open_checked(self.check)
    }

    /// Opens the file with another check.
    ///
    /// # Errors
    /// As [`Place::open`].
    pub(crate) fn open_checked(&self, check: Check) -> Result<Database, Error> {
        self.open_at(&self.path, check)
    }

    /// Makes the file if there is none. It is built under another name, synced, and then renamed, so that a power cut leaves either no file
    /// or a whole one.
    ///
    /// # Errors
    /// The disk failed. There is no file then, or a whole one.
    pub(crate) fn make(&self, tables: impl Fn(&WriteTransaction) -> Result<(), Error>) -> Result<(), Error> {
        let folder = self.path.parent().ok_or_else(|| Error::Io(ErrorKind::InvalidInput.into()))?;
        let folder = File::open(folder).map_err(Error::Io)?;
        // A second daemon must not rename its file over that of the first.
        lock(&folder).map_err(Error::Io)?;
        if !self.is_absent() {
            return Ok(());
        }
        let building = self.building();
        let built = caught(|| {
            remove(&building)?;
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&building).map_err(Error::Io)?;
            let database = caught(|| Ok(builder().create_with_backend((self.backend)(file)?)?))?;
            caught(|| {
                let write = database.begin_write()?;
                tables(&write)?;
                Ok(write.commit()?)
            })?;
            database.close()?;
            // Checked before it is renamed.
            self.open_at(&building, Check::Whole)?.close()?;
            File::open(&building).and_then(|file| file.sync_all()).map_err(Error::Io)?;
            fs::rename(&building, &self.path).map_err(Error::Io)?;
            folder.sync_all().map_err(Error::Io)
        });
        if built.is_err()
            && let Err(error) = remove(&building)
        {
            tracing::debug!("{}: {error}", building.display());
        }
        built
    }

    /// The name of the file while it is built.
    fn building(&self) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        self.path.with_file_name(name)
    }

    fn open_at(&self, path: &Path, check: Check) -> Result<Database, Error> {
        caught(|| {
            let file = OpenOptions::new().read(true).write(true).open(path).map_err(Error::Io)?;
            let found = file.metadata().map_err(Error::Io)?;
            if !found.is_file() {
                return Err(Error::Corrupted("it is no file".to_owned()));
            }
            if found.len() == 0 {
                return Err(Error::Corrupted("the file is empty".to_owned()));
            }
            let mut builder = builder();
            builder.set_check_integrity_on_open(check == Check::Whole);
            Ok(builder.create_with_backend((self.backend)(file)?)?)
        })
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    builder
}

/// Uses a database, and turns a panic of redb, which damage can cause, into an error. The database must outlive `work`: dropping it while a
/// panic unwinds could panic again.
///
/// # Errors
/// Those of `work`, and [`Error::Corrupted`] in place of a panic.
pub(crate) fn caught<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Error::Corrupted(format!("the file cannot be read: {}", said.unwrap_or("the database library ended by a panic"))))
    })
}

/// Whether the database is unusable after this error and must be opened again.
#[must_use]
pub(crate) const fn ends_use(error: &Error) -> bool {
    matches!(
        error,
        Error::Io(_) | Error::PreviousIo | Error::Corrupted(_) | Error::LockPoisoned(_) | Error::Backend(_) | Error::DatabaseClosed
    )
}

/// Whether the error means that the contents of the file are damaged.
#[must_use]
pub(crate) fn is_damage(error: &Error) -> bool {
    match error {
        Error::Corrupted(_) | Error::UpgradeRequired(_) | Error::RepairAborted => true,
        Error::Io(source) => matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof),
        _ => false,
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::Io(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Locks the folder until its descriptor is closed. Waits for up to [`OTHERS`].
fn lock(folder: &File) -> io::Result<()> {
    let deadline = Instant::now() + OTHERS;
    loop {
        match folder.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::Error(error)) => return Err(error),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Err(fs::TryLockError::WouldBlock) => {
                return Err(io::Error::new(ErrorKind::WouldBlock, "another program holds its folder locked"));
            }
        }
    }
}
