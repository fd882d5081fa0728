//! The numbers for names and sessions in the kernel's maps.

use pp_common::abi::NameId;
use sha2::{Digest, Sha256};

/// The number of an agent, zone, gateway or service: the first eight bytes,
/// little endian, of the SHA-256 of its name. Never zero, which means none.
#[must_use]
pub fn name_id(name: &str) -> NameId {
    let digest = Sha256::digest(name.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    NameId::from_le_bytes(first).max(1)
}

/// A random session number, never zero.
#[must_use]
pub(crate) fn new_session() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().1 | 1
}

/// A session as text: 16 hex digits.
#[must_use]
pub(crate) fn session_text(session: u64) -> String {
    format!("{session:016x}")
}

/// Reads a session of 16 hex digits.
#[must_use]
pub(crate) fn parse_session(text: &str) -> Option<u64> {
    (text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_id_is_the_start_of_the_sha256() {
        // printf modbus | sha256sum
        let sum = "f07ca109";
        let id = name_id("modbus").to_le_bytes();
        assert_eq!(hex::encode(&id[..4]), sum);
        assert_ne!(name_id("modbus"), name_id("modbus-security"));
    }

    #[test]
    fn sessions_are_sixteen_hex_digits() {
        assert_eq!(parse_session(&session_text(0xabc)), Some(0xabc));
        assert_eq!(parse_session("abc"), None);
        assert_eq!(parse_session("+000000000000abc"), None);
    }
}
