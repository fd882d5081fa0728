//! The operator's private key: PKCS#8 PEM, encrypted unless asked otherwise, with the key's id and decider above it.
//!
//! The lines above the PEM block are neither secret nor trusted. With a wrong id or decider, every host refuses the receipts.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::pkcs8::spki::der::pem::{LineEnding, PemLabel};
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use ed25519_dalek::{SigningKey, VerifyingKey};
use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef};
use serde_json::json;
use zeroize::Zeroizing;

use super::instant;
use crate::escape::escape;

/// The largest key file that is read, in bytes.
const MAX_KEY_FILE_BYTES: u64 = 16 * 1024;
/// Shortest passphrase, in characters.
const MIN_PASSPHRASE_CHARS: usize = 8;
const ENCRYPTED_LABEL: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";

/// A private key, with its id and decider.
pub struct OperatorKey {
    id: String,
    decider: String,
    signing: SigningKey,
}

/// Why a key cannot be made, written or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The id cannot be used.
    #[error("key id {}: use 1 to 128 letters, digits and . _ : / -", escape(.0))]
    Id(String),
    /// The decider is not a person.
    #[error("decider {}: a person is written user:NAME, without spaces or control characters", escape(.0))]
    Decider(String),
    /// The passphrase is too short.
    #[error("passphrase has fewer than {MIN_PASSPHRASE_CHARS} characters; choose a longer one")]
    WeakPassphrase,
    /// The file cannot be opened, read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others can read the private key.
    #[error("{}: others may read this private key (mode {mode:03o}); run chmod 600 on it", .path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key file of this program.
    #[error("{}: not a key that pp-agent receipt keygen wrote ({why})", .path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// What is missing.
        why: &'static str,
    },
    /// The key is encrypted and no passphrase was given.
    #[error("{}: the key is encrypted; give its passphrase", .path.display())]
    PassphraseNeeded {
        /// The file.
        path: PathBuf,
    },
    /// The passphrase does not open the key, or the file was damaged.
    #[error("{}: the passphrase does not open this key", .path.display())]
    WrongPassphrase {
        /// The file.
        path: PathBuf,
    },
    /// The system has no random numbers, or the key could not be encoded.
    #[error("key could not be made: {0}")]
    Generate(String),
}

impl OperatorKey {
    /// Makes a new key that signs as `decider` (`user:NAME`) under the id `id`.
    ///
    /// # Errors
    /// [`KeyError::Id`], [`KeyError::Decider`], or no random numbers.
    pub fn generate(id: &str, decider: &str) -> Result<Self, KeyError> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(secret.as_mut_slice()).map_err(|error| KeyError::Generate(error.to_string()))?;
        Self::new(id, decider, SigningKey::from_bytes(&secret))
    }

    fn new(id: &str, decider: &str, signing: SigningKey) -> Result<Self, KeyError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte);
        if id.is_empty() || id.len() > 128 || !id.bytes().all(plain) {
            return Err(KeyError::Id(id.to_owned()));
        }
        let person = decider.strip_prefix("user:").unwrap_or_default();
        if person.is_empty() || person.contains(' ') || escape(decider) != decider {
            return Err(KeyError::Decider(decider.to_owned()));
        }
        Ok(Self { id: id.to_owned(), decider: decider.to_owned(), signing })
    }

    /// The id receipts will name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The person it signs as.
    #[must_use]
    pub fn decider(&self) -> &str {
        &self.decider
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> VerifyingKey {
        self.signing.verifying_key()
    }

    pub(super) fn signing(&self) -> &SigningKey {
        &self.signing
    }

    /// The `keys.json` to hand to the hosts: a key set with this one key, active since `created_at_ms` (wall clock).
    #[must_use]
    pub fn key_set_json(&self, created_at_ms: i64) -> String {
        let key = json!({
            "key_id": self.id,
            "alg": "ed25519",
            "public_key_b64": STANDARD.encode(self.public().as_bytes()),
            "status": "active",
            "created_at": instant::format(created_at_ms),
            "revoked_at": null,
        });
        format!("{:#}\n", json!({ "issuer": self.decider, "keys": [key] }))
    }

    /// Writes the private key to a new file that only its owner can read (0600), encrypted if there is a passphrase.
    ///
    /// # Errors
    /// [`KeyError::File`], also when the file exists: no key is ever overwritten.
    pub fn write_new(&self, path: &Path, passphrase: Option<&str>) -> Result<(), KeyError> {
        let pem = self.to_pem(passphrase)?;
        let failed = |source| KeyError::File { path: path.to_owned(), source };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
    }

    fn to_pem(&self, passphrase: Option<&str>) -> Result<Zeroizing<String>, KeyError> {
        let failed = |error: pkcs8::Error| KeyError::Generate(error.to_string());
        let pem = match passphrase {
            Some(passphrase) if passphrase.chars().count() < MIN_PASSPHRASE_CHARS => return Err(KeyError::WeakPassphrase),
            Some(passphrase) => self.to_encrypted_pem(passphrase)?,
            None => self.signing.to_pkcs8_pem(LineEnding::LF).map_err(failed)?,
        };
        Ok(Zeroizing::new(format!("key-id: {}\ndecider: {}\n{}", self.id, self.decider, pem.as_str())))
    }

    fn to_encrypted_pem(&self, passphrase: &str) -> Result<Zeroizing<String>, KeyError> {
        let failed = |error: &dyn std::fmt::Display| KeyError::Generate(error.to_string());
        let der = self.signing.to_pkcs8_der().map_err(|error| failed(&error))?;
        let info = PrivateKeyInfoRef::try_from(der.as_bytes()).map_err(|error| failed(&error))?;
        // PBES2 with scrypt and AES-256-CBC, at the crate's recommended cost: what OpenSSL 3 reads too.
        let document = info.encrypt_with_rng(&mut getrandom::SysRng, passphrase).map_err(|error| failed(&error))?;
        document.to_pem(EncryptedPrivateKeyInfoRef::PEM_LABEL, LineEnding::LF).map_err(|error| failed(&error))
    }

    /// Reads a private key. `passphrase` is asked for only if the key is encrypted.
    ///
    /// # Errors
    /// [`KeyError`]; [`KeyError::TooOpen`] when group or others may read the file.
    pub fn load(path: &Path, passphrase: impl FnOnce() -> Option<Zeroizing<String>>) -> Result<Self, KeyError> {
        let failed = |source| KeyError::File { path: path.to_owned(), source };
        let not_a_key = |why| KeyError::NotAKey { path: path.to_owned(), why };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::TooOpen { path: path.to_owned(), mode });
        }
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_KEY_FILE_BYTES).read_to_string(&mut text).map_err(failed)?;
        let (above, pem) = text.split_once("-----BEGIN ").ok_or_else(|| not_a_key("no PEM block"))?;
        let pem = Zeroizing::new(format!("-----BEGIN {pem}"));
        let header = |name: &str| above.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let id = header("key-id:").ok_or_else(|| not_a_key("no key-id line"))?;
        let decider = header("decider:").ok_or_else(|| not_a_key("no decider line"))?;
        let signing = if pem.starts_with(ENCRYPTED_LABEL) {
            let passphrase = passphrase().ok_or_else(|| KeyError::PassphraseNeeded { path: path.to_owned() })?;
            SigningKey::from_pkcs8_encrypted_pem(&pem, passphrase.as_bytes())
                .map_err(|_| KeyError::WrongPassphrase { path: path.to_owned() })?
        } else {
            SigningKey::from_pkcs8_pem(&pem).map_err(|_| not_a_key("the PEM block is no Ed25519 private key"))?
        };
        Self::new(id, decider, signing)
    }
}
