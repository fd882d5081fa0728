//! From the lazy walk of [`super::machine`] to the table the kernel holds: every
//! state that can be reached, over one byte of each class that all its parts
//! tell apart, and then the smallest table that behaves alike.

use super::machine::{Machine, State, Step};
use super::{IdentityError, too_complex};
use crate::compiled::Table;
use foldhash::{HashMap, HashMapExt as _};
use pp_common::abi::{DFA_ACCEPT, DFA_CLASSES, DFA_DEAD};

/// States explored before the table is made small; more is refused.
const MOST_EXPLORED: usize = 20_000;

/// A transition while the table is built. The order of the variants is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Dead,
    Go(usize),
    Accept(usize),
}

pub(super) fn explore(machine: &mut Machine) -> Result<Table, IdentityError> {
    let start = machine.start()?;
    let (classes, bytes) = classes(machine)?;
    let mut ids: HashMap<State, usize> = HashMap::new();
    ids.insert(start, 0);
    let mut states = vec![start];
    let mut table: Vec<Vec<Target>> = Vec::new();
    while let Some(&state) = states.get(table.len()) {
        let mut row = Vec::with_capacity(bytes.len());
        for byte in bytes.iter().copied() {
            row.push(match machine.step(state, byte)? {
                Step::Dead => Target::Dead,
                Step::Accept(rule) => Target::Accept(rule),
                Step::Go(next) => Target::Go(*ids.entry(next).or_insert_with(|| {
                    states.push(next);
                    states.len() - 1
                })),
            });
        }
        table.push(row);
        if states.len() > MOST_EXPLORED {
            return Err(too_complex("states before reduction", states.len(), MOST_EXPLORED));
        }
    }
    let (blocks, count) = minimize(&table, vec![0; table.len()], 1);
    Ok(Table { classes, rows: rows(&table, &blocks, count)?, ends: Vec::new() })
}

/// The class of each byte, and one byte of each class.
fn classes(machine: &Machine) -> Result<([u8; 256], Vec<u8>), IdentityError> {
    let mut classes = [0; 256];
    let mut bytes = Vec::new();
    let mut known: HashMap<Vec<u8>, usize> = HashMap::new();
    for byte in 0..=u8::MAX {
        let index = *known.entry(machine.class(byte)).or_insert_with(|| {
            bytes.push(byte);
            bytes.len() - 1
        });
        classes[usize::from(byte)] = u8::try_from(index)
            .ok()
            .filter(|index| usize::from(*index) < DFA_CLASSES)
            .ok_or_else(|| too_complex("byte classes", index + 1, DFA_CLASSES))?;
    }
    Ok((classes, bytes))
}

/// Moore's partition refinement, from blocks that are told apart already: the
/// block of each state, the start's being block 0, and how many blocks there are.
///
/// A round looks only at states that lead to one whose block has just become
/// another. The rest of their block leads to no new block, so it stays behind.
pub(crate) fn minimize(table: &[Vec<Target>], mut blocks: Vec<usize>, mut count: usize) -> (Vec<usize>, usize) {
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
                    Target::Dead => 0,
                    Target::Accept(rule) => 2 * rule + 1,
                    Target::Go(to) => 2 * blocks[*to] + 2,
                });
            }
            let group = *groups.entry((block, leads)).or_insert_with(|| {
                // Where nobody stays behind, the first of them keep the block.
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
    let mut names: HashMap<usize, usize> = HashMap::new();
    for block in &mut blocks {
        let fresh = names.len();
        *block = *names.entry(*block).or_insert(fresh);
    }
    (blocks, count)
}

/// The states that lead to each, once for each way there.
fn before(table: &[Vec<Target>]) -> Vec<Vec<usize>> {
    let mut before = vec![Vec::new(); table.len()];
    for (state, row) in table.iter().enumerate() {
        for target in row {
            if let Target::Go(to) = target
                && before[*to].last() != Some(&state)
            {
                before[*to].push(state);
            }
        }
    }
    before
}

fn rows(table: &[Vec<Target>], blocks: &[usize], count: usize) -> Result<Vec<[u16; DFA_CLASSES]>, IdentityError> {
    let most = usize::from(DFA_ACCEPT) - 1;
    let narrow = |value: usize| {
        u16::try_from(value).ok().filter(|value| value & DFA_ACCEPT == 0).ok_or_else(|| too_complex("states", count + 1, most))
    };
    // Row 0 is the dead state, so block b is row b + 1 and the start is row 1.
    let mut rows = vec![[DFA_DEAD; DFA_CLASSES]; count + 1];
    for (state, targets) in table.iter().enumerate() {
        let row = &mut rows[blocks[state] + 1];
        for (class, target) in targets.iter().enumerate() {
            row[class] = match target {
                Target::Dead => DFA_DEAD,
                Target::Go(to) => narrow(blocks[*to] + 1)?,
                Target::Accept(rule) => narrow(*rule)? | DFA_ACCEPT,
            };
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Moore's rounds over every state, until nothing more is told apart.
    fn plainly(table: &[Vec<Target>], mut blocks: Vec<usize>, mut count: usize) -> (Vec<usize>, usize) {
        loop {
            let mut signatures: HashMap<(usize, Vec<Target>), usize> = HashMap::new();
            let signature = |(state, row): (usize, &Vec<Target>)| {
                let leads = |target: &Target| if let Target::Go(to) = target { Target::Go(blocks[*to]) } else { *target };
                let fresh = signatures.len();
                *signatures.entry((blocks[state], row.iter().map(leads).collect())).or_insert(fresh)
            };
            let next = table.iter().enumerate().map(signature).collect();
            if signatures.len() == count {
                return (next, count);
            }
            (blocks, count) = (next, signatures.len());
        }
    }

    fn target(states: usize) -> impl Strategy<Value = Target> {
        prop_oneof![1 => Just(Target::Dead), 1 => (0..3_usize).prop_map(Target::Accept), 6 => (0..states).prop_map(Target::Go)]
    }

    fn tables() -> impl Strategy<Value = (Vec<Vec<Target>>, Vec<usize>)> {
        (1..40_usize, 1..4_usize).prop_flat_map(|(states, bytes)| {
            let row = proptest::collection::vec(target(states), bytes);
            (proptest::collection::vec(row, states), proptest::collection::vec(0..2_usize, states))
        })
    }

    proptest! {
        #[test]
        fn the_smallest_table_is_the_one_that_plain_rounds_find((table, kinds) in tables()) {
            let mut names: HashMap<usize, usize> = HashMap::new();
            let first: Vec<usize> = kinds.iter().map(|kind| { let fresh = names.len(); *names.entry(*kind).or_insert(fresh) }).collect();
            prop_assert_eq!(minimize(&table, first.clone(), names.len()), plainly(&table, first, names.len()));
        }
    }
}
