//! From the lazy walk of [`super::machine`] to the table the kernel holds: every
//! state that can be reached, each with what it means to end there, and then the
//! smallest table that behaves alike.

use foldhash::{HashMap, HashMapExt as _};

use pp_common::abi::{DFA_CLASSES, DFA_DEAD};
use pp_common::tools::{TOOL_STATES, ToolEnd};

use super::ToolError;
use super::machine::{End, Machine, State};
use crate::compiled::Table;
use crate::identity::automaton::{Target, minimize};

/// States explored before the table is made small; more is refused.
const MOST_EXPLORED: usize = 60_000;

/// Builds it; `refused` is the flag of codes whose program may not run.
pub(super) fn build(machine: &mut Machine, refused: u16) -> Result<Table, ToolError> {
    let start = machine.start()?;
    let (classes, bytes) = classes(machine)?;
    let mut ids: HashMap<State, usize> = HashMap::new();
    ids.insert(start, 0);
    let mut states = vec![start];
    let mut ends = vec![ToolEnd::default()];
    let mut table: Vec<Vec<Target>> = Vec::new();
    while let Some(&state) = states.get(table.len()) {
        let at = table.len();
        let end = machine.end(state)?;
        ends[at] = codes(&end, refused);
        if end.settles && end.refused.is_some() {
            table.push(vec![Target::Go(at); bytes.len()]);
            continue;
        }
        let mut row = Vec::with_capacity(bytes.len());
        for byte in bytes.iter().copied() {
            row.push(machine.step(state, byte)?.map_or(Target::Dead, |next| {
                Target::Go(*ids.entry(next).or_insert_with(|| {
                    states.push(next);
                    ends.push(ToolEnd::default());
                    states.len() - 1
                }))
            }));
        }
        table.push(row);
        if states.len() > MOST_EXPLORED {
            return Err(ToolError::TooComplex { what: "states before reduction", need: states.len(), most: MOST_EXPLORED });
        }
    }
    finish(classes, &table, &ends)
}

/// What is allowed, then what is refused, then names; what was not seen is not
/// allowed.
fn codes(end: &End, refused: u16) -> ToolEnd {
    let code = |rule: Option<usize>, flag: u16| rule.and_then(|rule| u16::try_from(rule).ok()).map(|rule| rule | flag);
    let (told, alone) = (code(end.refused, refused), code(end.alone, 0));
    ToolEnd {
        whole: if end.allowed { 0 } else { told.or(alone).unwrap_or(0) },
        cut: told.or(code(end.unseen, refused)).or(alone).unwrap_or(0),
    }
}

fn finish(classes: [u8; 256], table: &[Vec<Target>], ends: &[ToolEnd]) -> Result<Table, ToolError> {
    let mut kinds: HashMap<ToolEnd, usize> = HashMap::new();
    let first = ends
        .iter()
        .map(|end| {
            let fresh = kinds.len();
            *kinds.entry(*end).or_insert(fresh)
        })
        .collect();
    let (blocks, count) = minimize(table, first, kinds.len());
    // Row 0 is the dead state, and the start's block is row 1.
    let row_of = |state: usize| blocks[state] + 1;
    if count + 1 > TOOL_STATES {
        return Err(ToolError::TooComplex { what: "states", need: count + 1, most: TOOL_STATES });
    }
    let mut rows = vec![[DFA_DEAD; DFA_CLASSES]; count + 1];
    let mut told = vec![ToolEnd::default(); count + 1];
    for (state, targets) in table.iter().enumerate() {
        told[row_of(state)] = ends[state];
        for (class, target) in targets.iter().enumerate() {
            rows[row_of(state)][class] = match target {
                Target::Go(to) => u16::try_from(row_of(*to)).unwrap_or(DFA_DEAD),
                Target::Dead | Target::Accept(_) => DFA_DEAD,
            };
        }
    }
    Ok(Table { classes, rows, ends: told })
}

/// The class of each byte, and one byte of each class.
fn classes(machine: &Machine) -> Result<([u8; 256], Vec<u8>), ToolError> {
    let mut classes = [0; 256];
    let mut bytes = Vec::new();
    let mut known: HashMap<Vec<u8>, usize> = HashMap::new();
    for byte in 0..=u8::MAX {
        let index = *known.entry(machine.class(byte)).or_insert_with(|| {
            bytes.push(byte);
            bytes.len() - 1
        });
        let fits = u8::try_from(index).ok().filter(|index| usize::from(*index) < DFA_CLASSES);
        classes[usize::from(byte)] = fits.ok_or(ToolError::TooComplex { what: "byte classes", need: index + 1, most: DFA_CLASSES })?;
    }
    Ok((classes, bytes))
}
