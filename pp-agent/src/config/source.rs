//! The files of a policy: which are read, in which order, and which are not
//! trusted because somebody else could have written them.

use super::error::{ConfigError, Origin};
use crate::trusted::{self, FileCheck};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Most bytes of one policy file.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where policy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The file; it may be missing.
    pub file: PathBuf,
    /// The folder of drop-ins, `*.toml` in the order of their names; it may be missing.
    pub drop_ins: PathBuf,
}

impl Paths {
    /// A policy file with `policy.d` (its own name with `.d`) beside it.
    #[must_use]
    pub fn beside(file: &Path) -> Self {
        Self { file: file.to_owned(), drop_ins: file.with_extension("d") }
    }
}

impl Default for Paths {
    /// `/etc/pp-agent/policy.toml` and `/etc/pp-agent/policy.d`.
    fn default() -> Self {
        Self::beside(Path::new("/etc/pp-agent/policy.toml"))
    }
}

/// One policy file's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its path, for messages.
    pub name: String,
    /// Its text.
    pub text: String,
}

impl Source {
    /// The place of a span of its text.
    pub(super) fn at(&self, span: Range<usize>) -> Origin {
        let before = self.text.as_bytes().iter().take(span.start);
        Origin { file: self.name.clone(), line: 1 + before.filter(|b| **b == b'\n').count() }
    }
}

/// Reads every file of the policy; none is an empty list.
pub(super) fn read_all(paths: &Paths, check: FileCheck) -> Result<Vec<Source>, ConfigError> {
    let mut sources = Vec::new();
    if let Some(source) = read(&paths.file, check)? {
        sources.push(source);
    }
    for path in drop_ins(&paths.drop_ins, check)? {
        sources.extend(read(&path, check)?);
    }
    Ok(sources)
}

fn drop_ins(folder: &Path, check: FileCheck) -> Result<Vec<PathBuf>, ConfigError> {
    let error = |source| ConfigError::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(error(source)),
    };
    trusted::trust(&fs::metadata(folder).map_err(error)?, check).map_err(ConfigError::of_file(folder))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(error)?.path();
        if path.extension() == Some(OsStr::new("toml")) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The file's text, `None` where there is no such file.
fn read(path: &Path, check: FileCheck) -> Result<Option<Source>, ConfigError> {
    let Some(bytes) = trusted::read(path, check, MAX_FILE_BYTES).map_err(ConfigError::of_file(path))? else {
        return Ok(None);
    };
    let text =
        String::from_utf8(bytes).map_err(|bad| ConfigError::NotText { path: path.to_owned(), offset: bad.utf8_error().valid_up_to() })?;
    Ok(Some(Source { name: path.display().to_string(), text }))
}
