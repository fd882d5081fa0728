//! Reads files that configure the gate, and refuses those that another user could have written.

use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Who must have written a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileCheck {
    /// This uid must own it, and no other user may write it.
    OwnedBy(u32),
    /// Anybody, for a draft that is only checked.
    Anybody,
}

impl FileCheck {
    /// The requirement of the daemon.
    pub const ROOT: Self = Self::OwnedBy(0);
}

/// Why a file is refused. The message follows the name of the file.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// It cannot be opened or read.
    #[error("{0}")]
    Unreadable(io::Error),
    /// It is a folder, a device or a pipe.
    #[error("is not a regular file; put the text itself there")]
    NotAFile,
    /// It belongs to another user, who could rewrite it.
    #[error("belongs to uid {uid}, must belong to uid {wanted}; chown it")]
    Owner {
        /// Its owner.
        uid: u32,
        /// The owner that it must have.
        wanted: u32,
    },
    /// Others than the owner can write it.
    #[error("mode {mode:04o} lets others write it; chmod 0640")]
    Writable {
        /// Its permission bits.
        mode: u32,
    },
    /// It is too large.
    #[error("{size} bytes, at most {most} are read")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The most that is read.
        most: u64,
    },
}

/// The bytes of a file; `None` if there is no such file.
pub(crate) fn read(path: &Path, check: FileCheck, most: u64) -> Result<Option<Vec<u8>>, FileProblem> {
    // Opening a FIFO could block, so the type is checked before. RACE: the path may lead to another file by then, so it is checked again
    // afterwards.
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Err(FileProblem::NotAFile),
        Ok(_) => {}
        // A broken link is an error, unlike a missing file.
        Err(missing) if missing.kind() == io::ErrorKind::NotFound && !path.is_symlink() => return Ok(None),
        Err(error) => return Err(FileProblem::Unreadable(error)),
    }
    // RACE: `O_NONBLOCK`, since the path may be a FIFO without a writer by now.
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

/// Checks owner and mode of an open file, or of a folder of files.
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
