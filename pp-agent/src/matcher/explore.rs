//! Builds the kernel's table of a walk. It explores every reachable state, with one byte of each class that the parts distinguish. Then it
//! minimises the table.

use foldhash::{HashMap, HashMapExt as _};
use pp_common::abi::{DFA_ACCEPT, DFA_CLASSES, DFA_DEAD};
use pp_common::tools::ToolEnd;

use super::minimize::{minimize, number};
use super::{Kind, Step, Table, TooMuch, Walk};

/// Makes the table that is equivalent to the walk.
///
/// # Errors
/// It needs more states, byte classes or memory than allowed.
pub(crate) fn compile<W: Walk>(walk: &mut W, kind: &Kind) -> Result<Table, TooMuch> {
    let start = walk.start()?;
    let (classes, bytes) = classes(walk)?;
    let mut ids: HashMap<W::State, usize> = HashMap::new();
    ids.insert(start, 0);
    let mut states = vec![start];
    let mut ends = Vec::new();
    let mut steps: Vec<Vec<Step<usize>>> = Vec::new();
    while let Some(&state) = states.get(steps.len()) {
        ends.push(walk.end(state)?);
        let mut row = Vec::with_capacity(bytes.len());
        for byte in bytes.iter().copied() {
            let step = walk.step(state, byte)?;
            row.push(step.map(|next| {
                *ids.entry(next).or_insert_with(|| {
                    states.push(next);
                    states.len() - 1
                })
            }));
        }
        steps.push(row);
        if states.len() > kind.most_explored {
            return Err(TooMuch { what: "states before reduction", need: states.len(), most: kind.most_explored });
        }
    }
    smallest(classes, &steps, &ends, kind)
}

/// The class of each byte, and one byte of each class.
fn classes(walk: &impl Walk) -> Result<([u8; 256], Vec<u8>), TooMuch> {
    // NUL, which ends words, has its own class.
    let (numbers, _) = number((0..=u8::MAX).map(|byte| (walk.class(byte), byte == 0)));
    let mut classes = [0; 256];
    let mut bytes = Vec::new();
    for (byte, class) in (0..=u8::MAX).zip(numbers) {
        if class == bytes.len() {
            bytes.push(byte);
        }
        let fits = u8::try_from(class).ok().filter(|class| usize::from(*class) < DFA_CLASSES);
        classes[usize::from(byte)] = fits.ok_or(TooMuch { what: "byte classes", need: class + 1, most: DFA_CLASSES })?;
    }
    Ok((classes, bytes))
}

fn smallest(classes: [u8; 256], steps: &[Vec<Step<usize>>], ends: &[ToolEnd], kind: &Kind) -> Result<Table, TooMuch> {
    let (blocks, count) = number(ends);
    let (blocks, count) = minimize(steps, blocks, count);
    // Row 0 is the dead state, so block b is row b + 1 and the start is row 1.
    let row_of = |state: usize| blocks[state] + 1;
    let count = count + 1;
    if count > kind.most_states {
        return Err(TooMuch { what: "states", need: count, most: kind.most_states });
    }
    let narrow = |value: usize| {
        let most = usize::from(DFA_ACCEPT) - 1;
        u16::try_from(value).ok().filter(|value| value & DFA_ACCEPT == 0).ok_or(TooMuch { what: "states", need: value, most })
    };
    let mut table = Table { classes, rows: vec![[DFA_DEAD; DFA_CLASSES]; count], ends: vec![ToolEnd::default(); count] };
    for (state, row) in steps.iter().enumerate() {
        table.ends[row_of(state)] = ends[state];
        for (step, next) in row.iter().zip(&mut table.rows[row_of(state)]) {
            *next = match step {
                Step::Dead => DFA_DEAD,
                Step::Go(to) => narrow(row_of(*to))?,
                Step::Accept(rule) => narrow(*rule)? | DFA_ACCEPT,
            };
        }
    }
    Ok(table)
}
