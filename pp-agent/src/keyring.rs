//! The trusted public keys: `keys.json` in Permission Protocol's key-set format.
//!
//! A key set is read all or nothing. A duplicate key id, an unknown status and an unusable key are errors when the file is loaded, not only
//! at the first receipt.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{PUBLIC_KEY_LENGTH, VerifyingKey};
use serde_json::{Map, Value};

use crate::escape::escape;
use crate::json;
use crate::trusted::{self, FileCheck, FileProblem};

/// The largest `keys.json` that is read, in bytes.
pub const MAX_KEY_SET_BYTES: u64 = 1024 * 1024;

/// The only algorithm receipts are signed with.
const ED25519: &str = "ed25519";

/// Public keys by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keyring {
    keys: BTreeMap<String, Key>,
}

/// One published key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    id: String,
    status: KeyStatus,
    verifying: Option<VerifyingKey>,
}

/// What a key may do. A revoked key verifies nothing, not even older receipts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyStatus {
    /// Signs new receipts.
    Active,
    /// Does not sign any more, but verifies receipts that it signed.
    Rotated,
    /// Verifies nothing.
    Revoked,
}

/// Why a key set is not usable. No key of it is used then.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeySetError {
    /// Not JSON, or a JSON object names a member twice.
    #[error("key set is not strict JSON: {}", escape(.why))]
    NotJson {
        /// The parser's words, with line and column.
        why: String,
    },
    /// The top level has no `keys` array of objects.
    #[error("key set has no \"keys\" array of objects; see the key-set format")]
    NoKeys,
    /// A member is missing or not a string.
    #[error("key {}: \"{member}\" is missing or not a string", escape(.key))]
    Member {
        /// The key id, or its position when the id itself is the problem.
        key: String,
        /// The member's name.
        member: &'static str,
    },
    /// Two entries have the same id, which is ambiguous.
    #[error("key {}: listed twice; keep one entry for each key id", escape(.key))]
    Duplicate {
        /// The key id.
        key: String,
    },
    /// A status outside `active`, `rotated`, `revoked`.
    #[error("key {}: status {} is not known; use active, rotated or revoked", escape(.key), escape(.status))]
    Status {
        /// The key id.
        key: String,
        /// The status as written.
        status: String,
    },
    /// `public_key_b64` is not standard padded base64.
    #[error("key {}: public_key_b64 is not base64", escape(.key))]
    Base64 {
        /// The key id.
        key: String,
    },
    /// A public key of another size.
    #[error("key {}: public key must be {PUBLIC_KEY_LENGTH} bytes, got {length}", escape(.key))]
    Length {
        /// The key id.
        key: String,
        /// Decoded size in bytes.
        length: usize,
    },
    /// 32 bytes without a private key, or for which anybody can sign.
    #[error("key {}: the {PUBLIC_KEY_LENGTH} bytes are not a usable Ed25519 public key", escape(.key))]
    Unusable {
        /// The key id.
        key: String,
    },
}

/// Why a key-set file is not usable, with the file's name.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is no such file.
    #[error("{}: no such file", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file is refused because of an error, its size, or its owner and mode.
    #[error("{}: {problem}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: FileProblem,
    },
    /// The file was read and its content is refused.
    #[error("{}: {source}", .path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: KeySetError,
    },
}

impl Keyring {
    /// Reads a key set from a file that this user must have written.
    ///
    /// # Errors
    /// [`KeyFileError`], which names the file.
    pub fn load(path: &Path, check: FileCheck) -> Result<Self, KeyFileError> {
        let read = trusted::read(path, check, MAX_KEY_SET_BYTES);
        let read = read.map_err(|problem| KeyFileError::File { path: path.to_owned(), problem })?;
        let bytes = read.ok_or_else(|| KeyFileError::Missing { path: path.to_owned() })?;
        Self::parse_bytes(&bytes).map_err(|source| KeyFileError::Refused { path: path.to_owned(), source })
    }

    /// Reads a key set from JSON text.
    ///
    /// # Errors
    /// [`KeySetError`] for the first entry that is wrong.
    pub fn parse(text: &str) -> Result<Self, KeySetError> {
        Self::parse_bytes(text.as_bytes())
    }

    fn parse_bytes(bytes: &[u8]) -> Result<Self, KeySetError> {
        let value: Value = json::parse_strict(bytes).map_err(|error| KeySetError::NotJson { why: error.to_string() })?;
        let Some(Value::Array(entries)) = value.get("keys") else { return Err(KeySetError::NoKeys) };
        let mut keys = BTreeMap::new();
        for (position, entry) in entries.iter().enumerate() {
            let Value::Object(entry) = entry else { return Err(KeySetError::NoKeys) };
            let key = Key::parse(position, entry)?;
            if let Some(first) = keys.insert(key.id.clone(), key) {
                return Err(KeySetError::Duplicate { key: first.id });
            }
        }
        Ok(Self { keys })
    }

    /// The key with this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<&Key> {
        self.keys.get(id)
    }

    /// The key whose public half is `public`, if it is in the set.
    #[must_use]
    pub fn find_public(&self, public: &VerifyingKey) -> Option<&Key> {
        self.keys.values().find(|key| key.verifying.as_ref() == Some(public))
    }

    /// Warnings, one sentence each: keys that cannot be used here, and the ids in `signers` that no key has.
    pub fn comes_to_nothing<'a>(&self, signers: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let unusable = self.keys.values().filter(|key| key.verifying.is_none());
        let unusable = unusable.map(|key| format!("key {}: is no Ed25519 key, so no receipt that it signed is taken", escape(&key.id)));
        let absent = signers.into_iter().filter(|id| self.find(id).is_none());
        let absent = absent.map(|id| format!("authority {}: keys.json has no key of this id, so it opens nothing", escape(id)));
        unusable.chain(absent).collect()
    }

    /// All keys, ordered by id.
    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.keys.values()
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key. Then no receipt can be registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl Key {
    fn parse(position: usize, entry: &Map<String, Value>) -> Result<Self, KeySetError> {
        let member = |key: &str, member: &'static str| match entry.get(member) {
            Some(Value::String(text)) => Ok(text.clone()),
            _ => Err(KeySetError::Member { key: key.to_owned(), member }),
        };
        let id = member(&format!("number {}", position + 1), "key_id")?;
        if id.is_empty() {
            return Err(KeySetError::Member { key: format!("number {}", position + 1), member: "key_id" });
        }
        let status = match member(&id, "status")?.as_str() {
            "active" => KeyStatus::Active,
            "rotated" => KeyStatus::Rotated,
            "revoked" => KeyStatus::Revoked,
            other => return Err(KeySetError::Status { key: id, status: other.to_owned() }),
        };
        let encoded = member(&id, "public_key_b64")?;
        // Keys of newer algorithms are kept, so that the message about a receipt can say why its key cannot be used.
        if member(&id, "alg")? != ED25519 {
            return Ok(Self { id, status, verifying: None });
        }
        let Ok(bytes) = STANDARD.decode(encoded) else { return Err(KeySetError::Base64 { key: id }) };
        let Ok(bytes) = <[u8; PUBLIC_KEY_LENGTH]>::try_from(bytes.as_slice()) else {
            return Err(KeySetError::Length { key: id, length: bytes.len() });
        };
        match VerifyingKey::from_bytes(&bytes) {
            Ok(verifying) if !verifying.is_weak() => Ok(Self { id, status, verifying: Some(verifying) }),
            _ => Err(KeySetError::Unusable { key: id }),
        }
    }

    /// The id receipts name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the key may do.
    #[must_use]
    pub fn status(&self) -> KeyStatus {
        self.status
    }

    /// The Ed25519 public key; `None` when the key is of another algorithm.
    #[must_use]
    pub fn verifying(&self) -> Option<&VerifyingKey> {
        self.verifying.as_ref()
    }
}

impl std::fmt::Display for KeyStatus {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Active => "active",
            Self::Rotated => "rotated",
            Self::Revoked => "revoked",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::{FileCheck, FileProblem, KeyFileError, KeySetError, KeyStatus, Keyring};

    const GOOD: &str = "utC/MffkkEO2hXR37Ilq4ut4UpZwdrwmtbGw/eEymo0=";

    fn entry(id: &str, alg: &str, public: &str, status: &str) -> String {
        format!(r#"{{"key_id":"{id}","alg":"{alg}","public_key_b64":"{public}","status":"{status}","revoked_at":null}}"#)
    }

    fn set(entries: &[String]) -> Result<Keyring, KeySetError> {
        Keyring::parse(&format!(r#"{{"issuer":"x","description":"y","keys":[{}]}}"#, entries.join(",")))
    }

    #[test]
    fn every_status_is_read() {
        let keys =
            set(&[entry("a", "ed25519", GOOD, "active"), entry("b", "ed25519", GOOD, "rotated"), entry("c", "ed25519", GOOD, "revoked")])
                .unwrap();
        assert_eq!(keys.len(), 3);
        assert_eq!(keys.find("a").unwrap().status(), KeyStatus::Active);
        assert_eq!(keys.find("b").unwrap().status(), KeyStatus::Rotated);
        assert_eq!(keys.find("c").unwrap().status(), KeyStatus::Revoked);
        assert!(keys.find("d").is_none());
        let public = *keys.find("a").unwrap().verifying().unwrap();
        assert_eq!(keys.find_public(&public).unwrap().id(), "a");
    }

    #[test]
    fn keys_that_cannot_be_used_and_signers_without_a_key_are_named() {
        let keys = set(&[entry("a", "ed25519", GOOD, "active"), entry("b", "es256", GOOD, "active")]).unwrap();
        assert_eq!(
            keys.comes_to_nothing(["a", "c"]),
            [
                "key b: is no Ed25519 key, so no receipt that it signed is taken",
                "authority c: keys.json has no key of this id, so it opens nothing"
            ]
        );
        assert_eq!(set(&[entry("a", "ed25519", GOOD, "active")]).unwrap().comes_to_nothing(["a"]), Vec::<String>::new());
    }

    #[test]
    fn duplicate_key_id_is_an_error() {
        let error = set(&[entry("a", "ed25519", GOOD, "active"), entry("a", "ed25519", GOOD, "revoked")]).unwrap_err();
        assert_eq!(error, KeySetError::Duplicate { key: "a".into() });
    }

    #[test]
    fn duplicate_error_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        let twice = entry("a", "ed25519", GOOD, "active");
        std::fs::write(&path, format!(r#"{{"keys":[{twice},{twice}]}}"#)).unwrap();
        let error = Keyring::load(&path, FileCheck::Anybody).unwrap_err();
        assert!(matches!(error, KeyFileError::Refused { .. }));
        assert_eq!(error.to_string(), format!("{}: key a: listed twice; keep one entry for each key id", path.display()));
    }

    #[test]
    fn keys_that_somebody_else_could_have_written_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        fs::write(&path, format!(r#"{{"keys":[{}]}}"#, entry("a", "ed25519", GOOD, "active"))).unwrap();
        let me = nix::unistd::geteuid().as_raw();
        for mode in [0o660, 0o642, 0o666] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = Keyring::load(&path, FileCheck::OwnedBy(me)).unwrap_err();
            let said = format!("{}: mode {mode:04o} lets others write it; chmod 0640", path.display());
            assert_eq!(error.to_string(), said);
            assert_eq!(Keyring::load(&path, FileCheck::Anybody).unwrap().len(), 1);
        }
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert_eq!(Keyring::load(&path, FileCheck::OwnedBy(me)).unwrap().len(), 1);
        let error = Keyring::load(&path, FileCheck::OwnedBy(me + 1)).unwrap_err();
        assert!(matches!(error, KeyFileError::File { problem: FileProblem::Owner { uid, .. }, .. } if uid == me), "{error}");
    }

    #[test]
    fn missing_files_folders_and_huge_files_are_no_key_sets() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        let load = || Keyring::load(&path, FileCheck::Anybody).unwrap_err();
        assert!(matches!(load(), KeyFileError::Missing { .. }));
        fs::create_dir(&path).unwrap();
        assert!(matches!(load(), KeyFileError::File { problem: FileProblem::NotAFile, .. }));
        fs::remove_dir(&path).unwrap();
        fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
        assert!(matches!(load(), KeyFileError::File { problem: FileProblem::TooLarge { .. }, .. }));
    }

    #[test]
    fn unknown_status_is_an_error() {
        let error = set(&[entry("a", "ed25519", GOOD, "retired")]).unwrap_err();
        assert_eq!(error, KeySetError::Status { key: "a".into(), status: "retired".into() });
    }

    #[test]
    fn public_key_of_another_size_is_an_error() {
        let error = set(&[entry("a", "ed25519", "AAAA", "active")]).unwrap_err();
        assert_eq!(error, KeySetError::Length { key: "a".into(), length: 3 });
        assert_eq!(error.to_string(), "key a: public key must be 32 bytes, got 3");
    }

    #[test]
    fn key_anybody_can_sign_for_is_an_error() {
        let weak = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        assert_eq!(set(&[entry("a", "ed25519", weak, "active")]).unwrap_err(), KeySetError::Unusable { key: "a".into() });
    }

    #[test]
    fn sloppy_base64_is_an_error() {
        for public in ["utC_MffkkEO2hXR37Ilq4ut4UpZwdrwmtbGw/eEymo0=", &GOOD[..43], &format!(" {GOOD}")] {
            let error = set(&[entry("a", "ed25519", public, "active")]).unwrap_err();
            assert_eq!(error, KeySetError::Base64 { key: "a".into() });
        }
    }

    #[test]
    fn key_of_another_algorithm_is_kept_and_verifies_nothing() {
        let keys = set(&[entry("a", "ml-dsa-65", "AAAA", "active")]).unwrap();
        assert!(keys.find("a").unwrap().verifying().is_none());
    }

    #[test]
    fn text_that_is_not_a_key_set_is_refused() {
        assert!(matches!(Keyring::parse("{"), Err(KeySetError::NotJson { .. })));
        assert!(matches!(Keyring::parse(r#"{"keys":[],"keys":[]}"#), Err(KeySetError::NotJson { .. })));
        assert_eq!(Keyring::parse("{}"), Err(KeySetError::NoKeys));
        assert_eq!(Keyring::parse(r#"{"keys":[1]}"#), Err(KeySetError::NoKeys));
        assert_eq!(
            Keyring::parse(r#"{"keys":[{"alg":"ed25519"}]}"#).unwrap_err().to_string(),
            "key number 1: \"key_id\" is missing or not a string"
        );
    }
}
