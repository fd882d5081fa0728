//! Minimises a table.

use std::hash::Hash;

use foldhash::{HashMap, HashMapExt as _};

use super::Step;

/// Numbers things by their first occurrence, and returns how many different ones there are.
pub(super) fn number<T: Hash + Eq>(things: impl IntoIterator<Item = T>) -> (Vec<usize>, usize) {
    let mut numbers: HashMap<T, usize> = HashMap::new();
    let number = |thing| {
        let fresh = numbers.len();
        *numbers.entry(thing).or_insert(fresh)
    };
    (things.into_iter().map(number).collect(), numbers.len())
}

/// Moore's partition refinement, starting with the given blocks. Returns the block of each state, with the start in block 0, and the number
/// of blocks.
///
/// A round only looks at states that lead to a state whose block has just changed. The rest of their block leads to no new block, so it
/// stays together.
pub(super) fn minimize(table: &[Vec<Step<usize>>], mut blocks: Vec<usize>, mut count: usize) -> (Vec<usize>, usize) {
    let before = before(table);
    let mut members = vec![0; count];
    for block in &blocks {
        members[*block] += 1;
    }
    let mut unsure: Vec<usize> = (0..table.len()).collect();
    while !unsure.is_empty() {
        let mut leaving = vec![0; count];
        for state in &unsure {
            leaving[blocks[*state]] += 1;
        }
        let mut groups: HashMap<(usize, Vec<usize>), usize> = HashMap::new();
        let mut kept = vec![false; count];
        let mut moved = Vec::new();
        for state in unsure {
            let block = blocks[state];
            let mut leads = Vec::with_capacity(table[state].len());
            for target in &table[state] {
                leads.push(match target {
                    Step::Dead => 0,
                    Step::Accept(rule) => 2 * rule + 1,
                    Step::Go(to) => 2 * blocks[*to] + 2,
                });
            }
            let group = *groups.entry((block, leads)).or_insert_with(|| {
                // If every state leaves the block, the first of them keep it.
                if leaving[block] == members[block] && !kept[block] {
                    kept[block] = true;
                    return block;
                }
                members.push(0);
                members.len() - 1
            });
            if group != block {
                moved.push((state, group));
            }
        }
        count = members.len();
        let mut is_unsure = vec![false; table.len()];
        unsure = Vec::new();
        for (state, group) in moved {
            members[blocks[state]] -= 1;
            members[group] += 1;
            blocks[state] = group;
            for earlier in &before[state] {
                if !is_unsure[*earlier] {
                    is_unsure[*earlier] = true;
                    unsure.push(*earlier);
                }
            }
        }
    }
    number(blocks)
}

/// The predecessors of each state, once for each transition.
fn before(table: &[Vec<Step<usize>>]) -> Vec<Vec<usize>> {
    let mut before = vec![Vec::new(); table.len()];
    for (state, row) in table.iter().enumerate() {
        for target in row {
            if let Step::Go(to) = target
                && before[*to].last() != Some(&state)
            {
                before[*to].push(state);
            }
        }
    }
    before
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Moore's rounds over every state, until no block changes.
    fn plainly(table: &[Vec<Step<usize>>], mut blocks: Vec<usize>, mut count: usize) -> (Vec<usize>, usize) {
        loop {
            let leads = |row: &Vec<Step<usize>>| row.iter().map(|step| step.map(|to| blocks[to])).collect();
            let signatures: Vec<(usize, Vec<Step<usize>>)> = blocks.iter().copied().zip(table.iter().map(leads)).collect();
            let (next, more) = number(signatures);
            if more == count {
                return (next, count);
            }
            (blocks, count) = (next, more);
        }
    }

    fn step(states: usize) -> impl Strategy<Value = Step<usize>> {
        prop_oneof![1 => Just(Step::Dead), 1 => (0..3_usize).prop_map(Step::Accept), 6 => (0..states).prop_map(Step::Go)]
    }

    fn tables() -> impl Strategy<Value = (Vec<Vec<Step<usize>>>, Vec<usize>)> {
        (1..40_usize, 1..4_usize).prop_flat_map(|(states, bytes)| {
            let row = proptest::collection::vec(step(states), bytes);
            (proptest::collection::vec(row, states), proptest::collection::vec(0..2_usize, states))
        })
    }

    proptest! {
        #[test]
        fn the_smallest_table_is_the_one_that_plain_rounds_find((table, kinds) in tables()) {
            let (first, count) = number(kinds);
            prop_assert_eq!(minimize(&table, first.clone(), count), plainly(&table, first, count));
        }
    }
}
