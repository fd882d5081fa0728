//! Which entries of a table lie around a prefix, without a look at each entry. Large plants name thousands of networks.

use crate::net::Prefix;
use std::collections::{BTreeMap, BTreeSet};

/// A table, and the lengths that its prefixes have.
pub(super) struct Nested<'a, T> {
    entries: &'a BTreeMap<Prefix, T>,
    /// Ascending, each once.
    lengths: Vec<u8>,
}

impl<'a, T> Nested<'a, T> {
    /// Made for many questions about the same table.
    pub(super) fn of(entries: &'a BTreeMap<Prefix, T>) -> Self {
        let lengths: BTreeSet<u8> = entries.keys().map(|prefix| prefix.len).collect();
        Self { entries, lengths: lengths.into_iter().collect() }
    }

    /// The entries of every prefix that covers this one, itself included, the widest first.
    pub(super) fn around(&self, prefix: Prefix) -> impl DoubleEndedIterator<Item = &'a T> {
        let upto = self.lengths.partition_point(|len| *len <= prefix.len);
        self.lengths[..upto].iter().filter_map(move |len| self.entries.get(&prefix.shortened(*len)))
    }

    /// Whether any entry covers this prefix.
    pub(super) fn covers(&self, prefix: Prefix) -> bool {
        self.around(prefix).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefixes() -> impl Strategy<Value = Prefix> {
        // Few bits that differ, so that they nest; both ends of the lengths.
        (0u8..8, 0u8..8, prop_oneof![0u8..=8, 120u8..=128]).prop_map(|(first, last, len)| {
            let mut addr = [0; 16];
            (addr[0], addr[15]) = (first << 5, last);
            Prefix { addr, len: 128 }.shortened(len)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn entries_around_a_prefix_are_all_that_cover_it(
            entries in prop::collection::btree_set(prefixes(), 0..24),
            asked in prop::collection::vec(prefixes(), 16),
        ) {
            let entries: BTreeMap<Prefix, Prefix> = entries.into_iter().map(|prefix| (prefix, prefix)).collect();
            let nested = Nested::of(&entries);
            for prefix in asked {
                let mut all: Vec<Prefix> = entries.keys().filter(|entry| entry.covers(&prefix)).copied().collect();
                all.sort_by_key(|entry| entry.len);
                prop_assert_eq!(nested.covers(prefix), !all.is_empty());
                prop_assert_eq!(nested.around(prefix).copied().collect::<Vec<_>>(), all);
            }
        }
    }
}
