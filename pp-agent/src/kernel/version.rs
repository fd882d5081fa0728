//! The version that distinguishes the programs and maps of one build from those of another.

use std::hint::black_box;

use pp_common::abi::ABI_VERSION;

/// The bytes before the version in the program. They occur once.
const MARK: [u8; 20] = *b"pp-agent abi version";

/// The mark and the version, little endian, as bytes of the program. The test of an upgrade needs an agent of a later version. It changes
/// these bytes in a copy of this one (`xtask/src/next_agent.rs`). No option, variable or file sets the version.
static STAMP: [u8; MARK.len() + 4] = stamp();

const fn stamp() -> [u8; MARK.len() + 4] {
    let mut bytes = [0; MARK.len() + 4];
    let version = ABI_VERSION.to_le_bytes();
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = if at < MARK.len() { MARK[at] } else { version[at - MARK.len()] };
        at += 1;
    }
    bytes
}

/// The version of this program.
#[must_use]
pub(crate) fn abi() -> u32 {
    // `black_box`, so that it is read when the program runs and not when it is compiled.
    let bytes = black_box(&STAMP);
    let mut version = [0; 4];
    version.copy_from_slice(&bytes[MARK.len()..]);
    u32::from_le_bytes(version)
}

/// True for the copy of a later version.
pub(super) fn is_later() -> bool {
    abi() > ABI_VERSION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_as_it_was_compiled_has_the_version_of_its_sources() {
        assert_eq!(abi(), ABI_VERSION);
        assert!(!is_later());
    }
}
