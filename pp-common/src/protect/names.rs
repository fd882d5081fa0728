//! Names as the programs know them: hashes of file names and of the names that sockets are bound to.

use super::{NAME_LEN, TEXT_LEN};

/// The hash of a text that is filled up with NULs, eight bytes at a time.
#[must_use]
#[inline(always)]
pub const fn hash<const WORDS: usize>(words: &[u64; WORDS]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut i = 0;
    while i < WORDS {
        hash = step(hash, words[i]);
        i += 1;
    }
    hash
}

const fn step(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// Words of a file name.
pub const NAME_WORDS: usize = NAME_LEN / 8;
/// Words of the text of a record.
pub const TEXT_WORDS: usize = TEXT_LEN / 8;

/// The hash of a file name; what is longer than the kernel looks at counts no more.
#[must_use]
pub const fn hash_name(name: &[u8]) -> u64 {
    hash::<NAME_WORDS>(&words(name, NAME_LEN - 1))
}

/// The hash of the name a socket is bound to: a path, or an abstract name with its leading NUL.
#[must_use]
pub const fn hash_bound(name: &[u8]) -> u64 {
    hash::<TEXT_WORDS>(&words(name, TEXT_LEN - 1))
}

pub(super) const fn hash_text(text: &str) -> u64 {
    hash_name(text.as_bytes())
}

const fn words<const WORDS: usize>(bytes: &[u8], most: usize) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    let mut i = 0;
    while i < bytes.len() && i < most {
        words[i / 8] |= (bytes[i] as u64) << (8 * (i % 8));
        i += 1;
    }
    words
}
