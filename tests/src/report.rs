//! The result file of a run: what a green cell of the kernel table is judged by.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The result of one run of the suite.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// `uname -r` of the kernel that ran it.
    pub kernel_release: String,
    /// The row of the kernel table that it was run for.
    pub row: String,
    /// The backend that the daemon's canary found.
    pub backend: String,
    /// Every test, in order.
    pub tests: Vec<Entry>,
    /// The rows of the coverage table.
    pub coverage: Vec<crate::coverage::Row>,
    /// What each attacker got through before it was blocked.
    pub attackers: Vec<crate::attackers::Line>,
    /// What ordinary work came to.
    pub ordinary: Vec<crate::ordinary::Line>,
    /// How many passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How many were skipped.
    pub skipped: usize,
}

/// The result of one test.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// `group::claim`.
    pub name: String,
    /// `passed`, `failed` or `skipped`.
    pub state: &'static str,
    /// Why, unless it passed.
    pub reason: String,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
}

static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// Notes the result of one test.
pub fn record(entry: Entry) {
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
}

impl Report {
    /// The report of everything recorded so far.
    ///
    /// # Errors
    /// The kernel does not say its release.
    pub fn collect(row: &str, backend: &str) -> Result<Self> {
        let tests = ENTRIES.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let count = |state: &str| tests.iter().filter(|test| test.state == state).count();
        Ok(Self {
            kernel_release: nix::sys::utsname::uname()?.release().to_string_lossy().into_owned(),
            row: row.to_owned(),
            backend: backend.to_owned(),
            coverage: crate::coverage::rows(&tests),
            attackers: crate::attackers::lines(),
            ordinary: crate::ordinary::lines(),
            passed: count("passed"),
            failed: count("failed"),
            skipped: count("skipped"),
            tests,
        })
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let unfinished = path.with_extension("part");
        std::fs::write(&unfinished, serde_json::to_vec_pretty(self)?).with_context(|| unfinished.display().to_string())?;
        std::fs::rename(&unfinished, path).with_context(|| path.display().to_string())
    }
}
