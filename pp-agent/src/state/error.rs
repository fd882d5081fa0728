//! Why state cannot be used, and what to do about it.

use std::io::ErrorKind;
use std::path::PathBuf;

use pp_common::abi::MAX_RECEIPTS;

use crate::database;

/// What it means to lose the file.
const MOVED_AWAY: &str = "or move it away and restart pp-agent: every receipt must then be signed anew, and revocations and used ids are forgotten, so \
                          first revoke the keys of revoked receipts that have not expired (docs/operations.md, backup)";

/// Said of a file that took the place of a newer one while it was not open.
pub(super) const EARLIER_COPY: &str = "an earlier copy of it was put in its place";

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// The file is damaged, locked by another daemon, or the disk is full or read-only.
    #[error("state at {path}: {source}; {}", repair(source))]
    Database {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: redb::Error,
    },
    /// An entry is not what this build writes.
    #[error("state at {path}: entry {entry} cannot be read: {source}; restore the file from a backup, {MOVED_AWAY}")]
    Entry {
        /// The file.
        path: PathBuf,
        /// The entry's key.
        entry: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The file was there when the daemon started, and is gone now.
    #[error("state at {path}: the file is gone; put it back, or restart pp-agent to begin with an empty one")]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// It could not be opened, for this reason.
    #[error("{0}")]
    Shut(String),
}

impl StateError {
    /// Whether another daemon has the file open.
    #[must_use]
    pub(crate) const fn is_locked(&self) -> bool {
        matches!(self, Self::Database { source: redb::Error::DatabaseAlreadyOpen, .. })
    }
}

/// What to do about an error of the disk or the database.
fn repair(source: &redb::Error) -> String {
    match source {
        redb::Error::DatabaseAlreadyOpen => "another program has it open: end the other pp-agent".to_owned(),
        redb::Error::Io(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            "free space on that disk; the daemon tries again every 10 seconds".to_owned()
        }
        redb::Error::Io(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
            "mount that file system writable; the daemon tries again every 10 seconds".to_owned()
        }
        redb::Error::Corrupted(what) if what == EARLIER_COPY => "restart pp-agent, which then says what to do".to_owned(),
        source if database::is_damage(source) => {
            format!("the file is damaged and left as it is: restore it from a backup, {MOVED_AWAY}")
        }
        _ => "mend the disk or the file's rights; the daemon tries again every 10 seconds".to_owned(),
    }
}

/// Why a receipt cannot be registered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    /// A revocation came first.
    #[error("receipt {0}: revoked; ask the operator for a new one")]
    Revoked(String),
    /// Another receipt was redeemed for the same request.
    #[error("idempotency key {idem_key}: was redeemed here by receipt {by}; ask the operator for a new one")]
    KeyUsed {
        /// The key.
        idem_key: String,
        /// The receipt that used it.
        by: String,
    },
    /// Another signed text has the same id.
    #[error("receipt {0}: registered before with other content; ask the operator for a receipt with its own id")]
    OtherContent(String),
    /// The table is full.
    #[error("receipts: {MAX_RECEIPTS} are kept, and none has run out; wait until one has expired")]
    Full,
    /// State could not be written.
    #[error(transparent)]
    State(#[from] StateError),
}
