//! The files of a policy: which are read, in which order, and which are refused because another user could have written them.

use super::error::{ConfigError, Origin};
use crate::trusted::{self, FileCheck};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Most bytes of one policy file.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;

/// The paths of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Paths {
    /// The file; it may be missing.
    pub(crate) file: PathBuf,
    /// The folder of drop-ins, `*.toml` in the order of their names; it may be missing.
    pub(crate) drop_ins: PathBuf,
}

impl Paths {
    /// A policy file, and the folder of its name with `.d` next to it.
    #[must_use]
    pub(crate) fn beside(file: &Path) -> Self {
        Self { file: file.to_owned(), drop_ins: file.with_extension("d") }
    }
}

impl Default for Paths {
    /// `/etc/pp-agent/policy.toml` and `/etc/pp-agent/policy.d`.
    fn default() -> Self {
        Self::beside(Path::new("/etc/pp-agent/policy.toml"))
    }
}

/// The text of one policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Its path, for messages.
    pub(crate) name: String,
    /// Its text.
    pub(crate) text: String,
}

/// A policy file while it is read. It knows where its lines end, since each of thousands of values has a place.
pub(super) struct Text<'a> {
    pub(super) source: &'a Source,
    /// Where its lines end, ascending.
    ends: Vec<usize>,
}

impl<'a> Text<'a> {
    /// The text of this file.
    pub(super) fn of(source: &'a Source) -> Self {
        let bytes = source.text.bytes().enumerate();
        Self { source, ends: bytes.filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect() }
    }

    /// The place of a span of it.
    pub(super) fn at(&self, span: Range<usize>) -> Origin {
        Origin { file: self.source.name.clone(), line: 1 + self.ends.partition_point(|end| *end < span.start) }
    }
}

/// Something in the folder of drop-ins that is no part of the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NotRead {
    /// Its path.
    pub(crate) path: String,
    /// Why it is not read, and what to do if it is meant.
    pub(crate) why: Cow<'static, str>,
}

impl fmt::Display for NotRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: not read, {}", self.path, self.why)
    }
}

/// Reads every file of the policy. Without files the list is empty.
pub(super) fn read_all(paths: &Paths, check: FileCheck) -> Result<(Vec<Source>, Vec<NotRead>), ConfigError> {
    let mut sources = Vec::new();
    if let Some(source) = read(&paths.file, check)? {
        sources.push(source);
    }
    let folder = look(&paths.drop_ins, check)?;
    for path in folder.drop_ins {
        sources.extend(read(&path, check)?);
    }
    Ok((sources, folder.not_read))
}

/// Entries of the folder of drop-ins that are not read. Empty if the folder itself cannot be read, which is an error of [`read_all`].
pub(super) fn not_read(paths: &Paths) -> Vec<NotRead> {
    look(&paths.drop_ins, FileCheck::Anybody).map_or(Vec::new(), |folder| folder.not_read)
}

/// A folder of drop-ins, in the order of names.
#[derive(Default)]
struct Folder {
    drop_ins: Vec<PathBuf>,
    not_read: Vec<NotRead>,
}

fn look(folder: &Path, check: FileCheck) -> Result<Folder, ConfigError> {
    let error = |source| ConfigError::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // A broken link is an error, unlike a missing folder.
        Err(missing) if missing.kind() == io::ErrorKind::NotFound && !folder.is_symlink() => return Ok(Folder::default()),
        Err(other) if other.kind() == io::ErrorKind::NotADirectory => return Err(ConfigError::NotAFolder { path: folder.to_owned() }),
        Err(source) => return Err(error(source)),
    };
    trusted::trust(&fs::metadata(folder).map_err(error)?, check).map_err(ConfigError::of_file(folder))?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(error)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut found = Folder::default();
    for entry in entries {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        match why_not(entry.file_name().as_bytes(), is_folder) {
            None => found.drop_ins.push(entry.path()),
            Some(why) => found.not_read.push(NotRead { path: entry.path().display().to_string(), why: Cow::Borrowed(why) }),
        }
    }
    Ok(found)
}

/// Why an entry of this name is not read; `None`: it is read. Hidden files and backups come from editors and file managers. Every other
/// entry with the name of a drop-in must be one, or the policy is refused.
fn why_not(name: &[u8], is_folder: bool) -> Option<&'static str> {
    if name.starts_with(b".") {
        Some("hidden names are skipped")
    } else if name.ends_with(b"~") || name.starts_with(b"#") && name.ends_with(b"#") {
        Some("it is an editor's backup")
    } else if name.ends_with(b".toml") {
        None
    } else if is_folder {
        Some("folders are not searched; put its *.toml files beside it")
    } else if name.to_ascii_lowercase().ends_with(b".toml") {
        Some("only *.toml in small letters is; rename it if it is meant")
    } else {
        Some("only *.toml is; rename it if it is meant")
    }
}

/// The text of a file; `None` if there is no such file.
fn read(path: &Path, check: FileCheck) -> Result<Option<Source>, ConfigError> {
    let Some(bytes) = trusted::read(path, check, MAX_FILE_BYTES).map_err(ConfigError::of_file(path))? else {
        return Ok(None);
    };
    let text =
        String::from_utf8(bytes).map_err(|bad| ConfigError::NotText { path: path.to_owned(), offset: bad.utf8_error().valid_up_to() })?;
    Ok(Some(Source { name: path.display().to_string(), text }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_of_a_place_is_one_more_than_the_line_ends_before_it() {
        for text in ["", "\n", "a", "a\n", "a = 1\n\n[b]\r\nc = 2", "\n\n\n"] {
            let source = Source { name: "policy.toml".to_owned(), text: text.to_owned() };
            let lines = Text::of(&source);
            for start in 0..=text.len() {
                let before = text.bytes().take(start).filter(|byte| *byte == b'\n').count();
                assert_eq!(lines.at(start..start).line, 1 + before, "{text:?} from byte {start}");
            }
        }
    }
}
