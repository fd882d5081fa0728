//! A cache of green results of `ci`. A result is used again while nothing that it depends on has changed.
//!
//! A key is a hash of contents: the programs under test, the programs of the suite, and this program, which starts and checks them. It also
//! covers the row with its part of the suite, the kernel's image and initramfs, the lab's Python and the agents. The packages of this
//! machine count, because virtual machines use them too. Times and names of files do not count, so an identical build has the same key.
//! What a row fetches over a network (package registries) is in no key. Results are stored in the cache of the checkout, so a fresh clone
//! has none.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    coverage, e2e, fetch, initramfs,
    kernels::{Matrix, Row},
    next_agent,
    paths::Paths,
    systemd,
};

/// What a result depends on, in 24 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Key(String);

impl std::fmt::Display for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

/// A green result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    key: Key,
    /// When it was stored, for display.
    pub(crate) date: String,
    /// The kernel that it ran on.
    pub(crate) kernel: String,
    pub(crate) passed: usize,
    pub(crate) skipped: usize,
    /// The time of the original run.
    pub(crate) seconds: f64,
    pub(crate) groups: BTreeMap<String, f64>,
}

/// The stored results of a checkout.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    /// Return no results. Green ones are still stored.
    fresh: bool,
}

/// The part of a key that all rows share.
#[derive(Debug)]
pub(crate) struct Common(Sha256);

impl Common {
    /// Reads what every row depends on.
    ///
    /// # Errors
    ///
    /// A program or file is missing.
    pub(crate) fn read(paths: &Paths, bin: &Path) -> Result<Self> {
        let mut hash = Hash::default();
        // This path works even if a build has replaced the file of this program.
        hash.file(Path::new("/proc/self/exe"))?;
        for program in ["pp-agent", "pp-e2e", "pp-workload"] {
            hash.file(&bin.join(program))?;
        }
        hash.file(&next_agent::file(paths))?;
        // The suite embeds its other sources. The test of the installed service installs the files in `dist`.
        hash.folder(&paths.root.join("dist"))?;
        hash.file(&paths.venv().join("requirements.txt"))?;
        hash.file(&paths.agents().join("installed"))?;
        hash.file_if_there(Path::new("/var/lib/dpkg/status"))?;
        hash.command("qemu-system-x86_64", &["--version"]);
        Ok(Self(hash.0))
    }

    /// The key of a row that runs the suite with `arguments`.
    ///
    /// # Errors
    ///
    /// The kernel was not fetched.
    pub(crate) fn row(&self, paths: &Paths, matrix: &Matrix, row: &Row, arguments: &[String]) -> Result<Key> {
        let mut hash = Hash(self.0.clone());
        hash.text(&format!("{row:?} {arguments:?}"));
        match &row.kernel {
            Some(kernel) => hash.kernel(paths, matrix, kernel)?,
            None => hash.file(Path::new("/proc/version"))?,
        }
        Ok(hash.key())
    }

    /// The key of a test of the installed service.
    ///
    /// # Errors
    ///
    /// The kernel was not fetched.
    pub(crate) fn installed(&self, paths: &Paths, matrix: &Matrix, mode: systemd::Mode) -> Result<Key> {
        let mut hash = Hash(self.0.clone());
        hash.text(mode.name());
        hash.kernel(paths, matrix, systemd::KERNEL)?;
        Ok(hash.key())
    }
}

impl Store {
    /// Whether stored results are ignored.
    pub(crate) const fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The store of a checkout. With `fresh` it returns no results.
    pub(crate) fn new(paths: &Paths, fresh: bool) -> Self {
        Self { folder: paths.cache.join("ci/kept"), fresh }
    }

    /// The stored result of `name`, if it has this key. Its result file, if it has one, is copied to `result`.
    pub(crate) fn take(&self, name: &str, key: &Key, result: Option<&Path>) -> Option<Kept> {
        if self.fresh {
            return None;
        }
        let kept: Kept = serde_json::from_str(&fs::read_to_string(self.file(name)).ok()?).ok()?;
        if kept.key != *key {
            return None;
        }
        if let Some(result) = result {
            fs::create_dir_all(result.parent()?).ok()?;
            fs::copy(self.copy(name), result).ok()?;
        }
        Some(kept)
    }

    /// Stores a green result and replaces an older one.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub(crate) fn keep(&self, name: &str, kept: &Kept, result: Option<&Path>) -> Result<()> {
        fs::create_dir_all(&self.folder).with_context(|| self.folder.display().to_string())?;
        let file = self.file(name);
        // Removed before the copy changes, so that the two files are never of different runs.
        if file.exists() {
            fs::remove_file(&file).with_context(|| file.display().to_string())?;
        }
        if let Some(result) = result {
            fs::copy(result, self.copy(name)).with_context(|| result.display().to_string())?;
        }
        let whole = file.with_extension("part");
        fs::write(&whole, serde_json::to_string_pretty(kept)?).with_context(|| whole.display().to_string())?;
        fs::rename(&whole, &file).with_context(|| file.display().to_string())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    fn copy(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.result.json"))
    }
}

impl Kept {
    /// The stored form of a green row.
    pub(crate) fn of_cell(key: Key, date: String, cell: &e2e::Cell) -> Self {
        Self {
            key,
            date,
            kernel: cell.kernel.clone(),
            passed: cell.passed,
            skipped: cell.skipped,
            seconds: cell.took.as_secs_f64(),
            groups: cell.groups.clone(),
        }
    }

    /// The stored form of a green test of the installed service.
    pub(crate) fn of_tried(key: Key, date: String, tried: &systemd::Tried) -> Self {
        Self {
            key,
            date,
            kernel: tried.what.clone(),
            passed: tried.held,
            skipped: 0,
            seconds: tried.took.as_secs_f64(),
            groups: BTreeMap::new(),
        }
    }
}

/// The file in which the suite writes the result of a row.
pub(crate) fn result(paths: &Paths, row: &Row) -> PathBuf {
    coverage::result_file(paths, row)
}

/// A hash over parts, each with its length.
#[derive(Default)]
struct Hash(Sha256);

impl Hash {
    fn text(&mut self, text: &str) {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text);
    }

    fn file(&mut self, path: &Path) -> Result<()> {
        let mut file = fs::File::open(path).with_context(|| path.display().to_string())?;
        let mut own = Sha256::new();
        let mut block = vec![0; 1 << 20];
        loop {
            match file.read(&mut block).with_context(|| path.display().to_string())? {
                0 => break,
                length => own.update(&block[..length]),
            }
        }
        self.0.update(own.finalize());
        Ok(())
    }

    /// A machine without the file has another key than one with it.
    fn file_if_there(&mut self, path: &Path) -> Result<()> {
        self.text(if path.exists() { "there" } else { "absent" });
        if path.exists() { self.file(path) } else { Ok(()) }
    }

    fn folder(&mut self, folder: &Path) -> Result<()> {
        let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        paths.sort();
        for path in paths {
            self.text(&path.file_name().unwrap_or_default().to_string_lossy());
            if path.is_dir() { self.folder(&path)? } else { self.file(&path)? }
        }
        Ok(())
    }

    fn kernel(&mut self, paths: &Paths, matrix: &Matrix, name: &str) -> Result<()> {
        let unpacked = fetch::ensure(paths, matrix.kernel(name)?)?;
        self.text(&unpacked.release);
        self.file(&unpacked.image)?;
        self.file(&initramfs::ensure(&unpacked, &paths.kernel(name))?)
    }

    fn command(&mut self, program: &str, arguments: &[&str]) {
        let text = crate::sh::run_quiet(&mut crate::sh::cmd(program, arguments));
        self.text(&text.unwrap_or_else(|error| format!("{error:#}")));
    }

    fn key(self) -> Key {
        Key(self.0.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(key: &str) -> Kept {
        let groups = BTreeMap::from([("lab".to_owned(), 1.5)]);
        Kept { key: Key(key.into()), date: "2026-11-30".into(), kernel: "6.1".into(), passed: 3, skipped: 1, seconds: 9.0, groups }
    }

    #[test]
    fn a_result_is_taken_again_for_its_own_key_alone_and_never_by_a_fresh_run() {
        let place = tempfile::tempdir().expect("a folder");
        let store = |fresh| Store { folder: place.path().join("kept"), fresh };
        let (result, back) = (place.path().join("result.json"), place.path().join("back/result.json"));
        fs::write(&result, "{}").expect("written");
        let key = |text: &str| Key(text.into());
        assert_eq!(store(false).take("6.1", &key("a"), Some(&back)), None);
        store(true).keep("6.1", &kept("a"), Some(&result)).expect("kept");
        assert_eq!(store(false).take("6.1", &key("a"), Some(&back)), Some(kept("a")));
        assert_eq!(fs::read_to_string(&back).expect("put back"), "{}");
        assert_eq!(store(false).take("6.1", &key("b"), Some(&back)), None);
        assert_eq!(store(false).take("6.12", &key("a"), Some(&back)), None);
        assert_eq!(store(true).take("6.1", &key("a"), Some(&back)), None);
        store(false).keep("6.1", &kept("b"), Some(&result)).expect("kept");
        assert_eq!(store(false).take("6.1", &key("a"), Some(&back)), None);
        fs::remove_file(place.path().join("kept/6.1.result.json")).expect("there");
        assert_eq!(store(false).take("6.1", &key("b"), Some(&back)), None);
    }

    #[test]
    fn a_key_changes_with_every_content_and_with_no_name_above_it() {
        let place = tempfile::tempdir().expect("a folder");
        let key = |folder: &str, files: &[(&str, &str)]| {
            let folder = place.path().join(folder);
            fs::create_dir_all(folder.join("below")).expect("made");
            for (name, text) in files {
                fs::write(folder.join(name), text).expect("written");
            }
            let mut hash = Hash::default();
            hash.folder(&folder).expect("read");
            hash.key()
        };
        let first = key("one", &[("a", "1"), ("below/b", "2")]);
        assert_eq!(first, key("two", &[("a", "1"), ("below/b", "2")]));
        assert_ne!(first, key("three", &[("a", "1"), ("below/b", "3")]));
        assert_ne!(first, key("four", &[("a", "1"), ("b", "2")]));
        assert_ne!(first, key("five", &[("a", "12"), ("below/b", "")]));
        let mut missing = Hash::default();
        assert!(missing.file(&place.path().join("nowhere")).is_err());
    }
}
