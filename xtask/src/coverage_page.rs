//! Generates `docs/coverage.md` from the committed results: a line for each kernel, then the table of attempts.

use std::{collections::BTreeSet, fmt::Write as _};

use crate::{
    coverage::{self, Found, Technique},
    kernels::Matrix,
};

const INTRODUCTION: &str = "# Coverage

Every known way around the gate, tried on every kernel of `tests/kernels.toml`. This page is made by `cargo xtask coverage` from the files in
`docs/coverage/`, which it writes. `cargo xtask ci` fails when the `native` row is older than the programs in the kernel or contradicts a
fresh run. A row of another kernel that is older is marked stale here; `cargo xtask coverage --check` fails until it is measured again.
What the gaps mean is in `kernels.md`, who the attacker is in `threat-model.md`.

Each row is an attempt made twice: by nobody's process, which must arrive, and by an agent.

- **closed**: the agent's was refused, had its event, and nothing arrived.
- **gap** and its name: it arrived, and `pp-agent status` names this gap on that host.
- **–**: it does not arrive on that kernel whoever makes it (the protocol is not there).
- **OPEN**: it arrived, or its test failed.
- **not tried**: the attempt is younger than this stale row.

Address forms: `mapped` is `::ffff:a.b.c.d`, and `service` is a protected port outside every zone. `all` is a core of six techniques over
IPv4, IPv6 and mapped addresses. NAT64, 6to4 and IPv4-compatible addresses are folded before any lookup (`pp-common/src/dest.rs`, with its tests).

";

/// The page of these results. `sources` is the hash of this tree's sources.
pub(crate) fn page(all: &[Found], matrix: &Matrix, sources: &str) -> String {
    let native = coverage::native(matrix, all.iter());
    let stale = |found: &Found| coverage::stale(found, native, sources);
    let order = |found: &&Found| matrix.rows.iter().position(|row| row.name == found.row);
    let mut all: Vec<&Found> = all.iter().filter(|found| order(found).is_some()).collect();
    all.sort_by_key(order);
    let mut text = INTRODUCTION.to_owned();
    let mut put = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    put("| row | kernel | backend | closed | gaps | score | commit | date | measured on |".to_owned());
    put("| --- | --- | --- | --- | --- | --- | --- | --- | --- |".to_owned());
    for found in &all {
        let count = |state: &str| found.rows.iter().filter(|row| row.state == state).count();
        let (closed, gaps) = (count("closed"), count("gap"));
        put(format!(
            "| `{}` | {} | `{}` | {closed} of {} | {gaps} | {:.1} % | `{}` | {} | {} |",
            found.row,
            found.kernel,
            found.backend,
            found.rows.len() - count("undeliverable"),
            found.score * 100.0,
            found.commit,
            found.date,
            stale(found).map_or_else(|| "these kernel programs".to_owned(), |why| format!("**{why}**"))
        ));
    }
    put(String::new());
    let missing: Vec<String> =
        matrix.rows.iter().filter(|row| all.iter().all(|found| found.row != row.name)).map(|row| format!("`{}`", row.name)).collect();
    if !missing.is_empty() {
        put(format!("Without a result: {}.", missing.join(", ")));
        put(String::new());
    }
    let name = |found: &&Found| format!("`{}`{}", found.row, if stale(found).is_some() { " (stale)" } else { "" });
    let names: Vec<String> = all.iter().map(name).collect();
    put(format!("| technique | address | {} |", names.join(" | ")));
    put(format!("| --- | --- |{}", " --- |".repeat(all.len())));
    let mut seen = BTreeSet::new();
    for row in all.iter().flat_map(|found| &found.rows) {
        if !seen.insert(&row.test) {
            continue;
        }
        let mut line = format!("| {} | {} |", row.technique, row.address_form);
        for found in &all {
            // A stale result may be older than the attempt.
            let absent = || if stale(found).is_some() { "not tried" } else { "OPEN" }.to_owned();
            let state = found.rows.iter().find(|other| other.test == row.test).map_or_else(absent, shown);
            // Writing to a string cannot fail.
            let _written = write!(line, " {state} |");
        }
        put(line);
    }
    text
}

fn shown(row: &Technique) -> String {
    match (row.state.as_str(), &row.gap) {
        ("closed", _) => "closed".to_owned(),
        ("gap", Some(gap)) => format!("**gap** `{gap}`"),
        ("undeliverable", _) => "–".to_owned(),
        _ => "OPEN".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Paths;

    fn found(row: &str, sources: &str, tests: &[&str]) -> Found {
        let technique = |test: &&str| Technique {
            technique: (*test).into(),
            address_form: "v4".into(),
            state: "closed".into(),
            gap: None,
            test: (*test).into(),
        };
        Found {
            row: row.into(),
            kernel: "6".into(),
            backend: "lsm".into(),
            commit: "abc".into(),
            date: "2026-11-26".into(),
            sources: sources.into(),
            suite: String::new(),
            score: 1.0,
            rows: tests.iter().map(technique).collect(),
        }
    }

    #[test]
    fn stale_rows_are_marked_and_what_they_do_not_know_was_not_tried() {
        let matrix = Matrix::load(&Paths::find().expect("the workspace")).expect("the matrix");
        let all = [found("native", "now", &["old", "new"]), found("6.12", "before", &["old"]), found("6.1", "now", &["old", "new"])];
        let text = page(&all, &matrix, "now");
        assert!(text.contains("| 2026-11-26 | **stale: measured on other kernel programs** |"), "{text}");
        assert_eq!(text.matches("| 2026-11-26 | these kernel programs |").count(), 2, "{text}");
        assert!(text.contains("| technique | address | `native` | `6.1` | `6.12` (stale) |"), "{text}");
        assert!(
            text.contains("| old | v4 | closed | closed | closed |") && text.contains("| new | v4 | closed | closed | not tried |"),
            "{text}"
        );
        let current = [found("native", "now", &["old"]), found("6.12", "now", &["old"])];
        let text = page(&current, &matrix, "now");
        assert!(!text.contains("**stale:") && !text.contains("(stale)"), "{text}");
    }
}
