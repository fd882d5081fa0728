//! How names become the numbers that kernel maps hold.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_id_is_the_start_of_the_sha256() {
        // printf modbus | sha256sum
        let sum = "f07ca109";
        let id = name_id("modbus").to_le_bytes();
        let hex: String = id.iter().take(4).map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, sum);
        assert_ne!(name_id("modbus"), name_id("modbus-security"));
    }
}
