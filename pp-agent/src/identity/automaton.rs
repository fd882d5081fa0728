//! From the lazy walk of [`super::machine`] to the table the kernel holds: every
//! state that can be reached, over one byte of each class that all its parts
//! tell apart, and then the smallest table that behaves alike.

use super::machine::{Machine, State, Step};
use super::{IdentityError, too_complex};
use foldhash::{HashMap, HashMapExt as _};
use pp_common::abi::{DFA_ACCEPT, DFA_CLASSES, DFA_DEAD};

/// States explored before the table is made small; more is refused.
const MOST_EXPLORED: usize = 20_000;

/// A finished table.
pub(super) struct Automaton {
    pub(super) classes: [u8; 256],
    pub(super) rows: Vec<[u16; DFA_CLASSES]>,
}

/// A transition while the table is built. The order of the variants is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Dead,
    Go(usize),
    Accept(usize),
}

pub(super) fn explore(machine: &mut Machine) -> Result<Automaton, IdentityError> {
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
    Ok(Automaton { classes, rows: rows(&table, &blocks, count)? })
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
pub(crate) fn minimize(table: &[Vec<Target>], mut blocks: Vec<usize>, mut count: usize) -> (Vec<usize>, usize) {
    loop {
        // Each state's block and where its row leads, as numbers; hashing them is nearly all of the work.
        let mut signatures: HashMap<Vec<usize>, usize> = HashMap::new();
        let next: Vec<usize> = table
            .iter()
            .enumerate()
            .map(|(state, row)| {
                let leads = row.iter().map(|target| match target {
                    Target::Dead => 0,
                    Target::Accept(rule) => 2 * rule + 1,
                    Target::Go(to) => 2 * blocks[*to] + 2,
                });
                let signature = std::iter::once(blocks[state]).chain(leads).collect();
                let fresh = signatures.len();
                *signatures.entry(signature).or_insert(fresh)
            })
            .collect();
        let refined = signatures.len();
        blocks = next;
        if refined == count {
            return (blocks, count);
        }
        count = refined;
    }
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
