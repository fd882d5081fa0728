//! Files that say what the gate does: how they are read, and which are not trusted because somebody else could have written them.

use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Who must have written a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileCheck {
    /// This uid owns it, and nobody else can write it.
    OwnedBy(u32),
    /// Anybody: a draft that is only looked at.
    Anybody,
}

impl FileCheck {
    /// What the daemon demands.
    pub const ROOT: Self = Self::OwnedBy(0);
}

/// Why a file is not read. The file's name goes before it.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// It cannot be opened or read.
    #[error("{0}")]
    Unreadable(io::Error),
    /// It is a folder, a device or a pipe.
    #[error("is not a regular file; put the text itself there")]
    NotAFile,
    /// It belongs to somebody else, who could rewrite it.
    #[error("belongs to uid {uid}, must belong to uid {wanted}; chown it")]
    Owner {
        /// Whose it is.
        uid: u32,
        /// Whose it must be.
        wanted: u32,
    },
    /// Others than the owner can write it.
    #[error("mode {mode:04o} lets others write it; chmod 0640")]
    Writable {
        /// Its permission bits.
        mode: u32,
    },
    /// It is larger than such files are.
    #[error("{size} bytes, at most {most} are read")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The most that is read.
        most: u64,
    },
}

/// The file's bytes, `None` where there is no such file.
pub(crate) fn read(path: &Path, check: FileCheck, most: u64) -> Result<Option<Vec<u8>>, FileProblem> {
    // A FIFO would hold up the reader, so the kind is judged before opening
    // and, because the path may point elsewhere by then, once more after.
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Err(FileProblem::NotAFile),
        Ok(_) => {}
        // A dangling link was put there by somebody: not the same as nothing.
        Err(missing) if missing.kind() == io::ErrorKind::NotFound && !path.is_symlink() => return Ok(None),
        Err(error) => return Err(FileProblem::Unreadable(error)),
    }
    // Without a writer a FIFO that came in between would be waited for here.
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(FileProblem::Unreadable)?;
    let metadata = file.metadata().map_err(FileProblem::Unreadable)?;
    if !metadata.is_file() {
        return Err(FileProblem::NotAFile);
    }
    trust(&metadata, check)?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(FileProblem::Unreadable)?;
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if length > most {
        return Err(FileProblem::TooLarge { size: metadata.len().max(length), most });
    }
    Ok(Some(bytes))
}

/// Judges an open file, or a folder of files, by owner and mode.
pub(crate) fn trust(metadata: &Metadata, check: FileCheck) -> Result<(), FileProblem> {
    let FileCheck::OwnedBy(wanted) = check else {
        return Ok(());
    };
    if metadata.uid() != wanted {
        return Err(FileProblem::Owner { uid: metadata.uid(), wanted });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(FileProblem::Writable { mode });
    }
    Ok(())
}
