//! Compares tables with the walks they were made from, for invented rules.

use proptest::prelude::*;
use regex_automata::hybrid::LazyStateID;

use super::*;

/// Asserts that table and walk have the same result for this input.
pub(crate) fn agree<W: Walk>(walk: &mut W, table: &Table, input: &[u8]) {
    let by_walk = match walk.follow(input).unwrap() {
        Step::Go(state) => Step::Go(walk.end(state).unwrap()),
        Step::Accept(rule) => Step::Accept(rule),
        Step::Dead => Step::Dead,
    };
    let by_table = table.follow(input.iter().copied()).map(|state| table.ends[usize::from(state)]);
    assert_eq!(by_table, by_walk, "{}", input.escape_ascii());
}

/// Some patterns end the walk, others give the result at the end.
struct Plain {
    accept: Part<usize>,
    report: Part<u16>,
}

impl Walk for Plain {
    type State = (LazyStateID, LazyStateID);

    fn class(&self, byte: u8) -> Vec<u8> {
        vec![self.accept.class(byte), self.report.class(byte)]
    }

    fn start(&mut self) -> Result<Self::State, TooMuch> {
        Ok((self.accept.start()?, self.report.start()?))
    }

    fn step(&mut self, (accept, report): Self::State, byte: u8) -> Result<Step<Self::State>, TooMuch> {
        let (accept, rule) = self.accept.step(accept, byte)?;
        let (report, _) = self.report.step(report, byte)?;
        Ok(match rule {
            Some(rule) => Step::Accept(rule),
            None if accept.is_dead() && report.is_dead() => Step::Dead,
            None => Step::Go((accept, report)),
        })
    }

    fn end(&mut self, (_, report): Self::State) -> Result<ToolEnd, TooMuch> {
        let code = self.report.matched(report)?.unwrap_or(0);
        Ok(ToolEnd { whole: code, cut: code / 2 })
    }
}

const KIND: Kind = Kind { name: "plain", code: &[], most_states: 5_000, most_explored: 5_000 };

fn plain(accept: &[String], report: &[String]) -> Plain {
    Plain { accept: Part::new(accept.iter().cloned().zip(0..)).unwrap(), report: Part::new(report.iter().cloned().zip(1..)).unwrap() }
}

fn patterns() -> impl Strategy<Value = Vec<String>> {
    let atom = prop::sample::select(vec!["a", "b", "[ab]", "[^a]", ".*", "(?:ab)*", "b?", "c+", r"\x00", "."]);
    // Patterns that match before the first byte do not occur.
    let pattern = prop::collection::vec(atom, 0..5).prop_map(|atoms| format!("[abc]{}", atoms.concat()));
    prop::collection::vec(pattern, 0..4)
}

proptest! {
    #[test]
    fn table_does_what_the_walk_does(
        accept in patterns(),
        report in patterns(),
        inputs in prop::collection::vec("[abcd\0]{0,8}", 16),
    ) {
        let mut walk = plain(&accept, &report);
        let table = compile(&mut walk, &KIND).unwrap();
        for input in inputs {
            agree(&mut walk, &table, input.as_bytes());
        }
    }
}

#[test]
fn walk_that_needs_more_than_there_is_has_no_table() {
    let remembers = ["[ab]*a[ab]{7}c".to_owned()];
    let table = compile(&mut plain(&remembers, &[]), &KIND).unwrap();
    let need = table.rows.len();
    let most = |kind| compile(&mut plain(&remembers, &[]), &kind).unwrap_err();
    assert_eq!(most(Kind { most_states: need - 1, ..KIND }), TooMuch { what: "states", need, most: need - 1 });
    assert_eq!(most(Kind { most_explored: 100, ..KIND }).what, "states before reduction");
    // Each byte that a pattern names has its own class.
    let bytes: String = (0..200_u8).map(|byte| format!(r"\x{byte:02x}")).collect();
    let error = compile(&mut plain(&[bytes], &[]), &KIND).unwrap_err();
    assert_eq!(error, TooMuch { what: "byte classes", need: 129, most: 128 });
}

#[test]
fn first_pattern_counts_where_two_match() {
    let two = ["ab".to_owned(), "a[bc]".to_owned()];
    let table = compile(&mut plain(&two, &[]), &KIND).unwrap();
    assert_eq!(table.follow(*b"ab"), Step::Accept(0));
    assert_eq!(table.follow(*b"ac"), Step::Accept(1));
    assert_eq!(table.follow(*b"ad"), Step::Dead);
    assert_eq!(Table::default().follow(*b"a"), Step::Dead);
}
