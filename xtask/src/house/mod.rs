//! `house`: the rules of the code that its text alone can show. It fails on
//!
//! - an import cycle between folders of `pp-agent/src`, and a file there that no `mod` line leads to;
//! - `aya` outside `kernel/`, printing outside `cli/`, `json!` outside `receipt/`;
//! - a public item of the agent that nothing uses (`unused.rs` says what that proves);
//! - a metric, or a kind, member or reason of events, that its page of the docs does not name.
//!
//! `xtask/house.known` lists findings that are accepted for now. That file only shrinks: a finding that it lacks fails the check, and so
//! does a line whose finding is gone.

mod boundaries;
mod cycles;
mod names;
mod pages;
mod tree;
mod unused;

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::{
    output::Output,
    paths::{self, Paths},
    sh,
};
use tree::{Files, Tree};

/// One violation.
#[derive(Debug, Serialize)]
struct Finding {
    /// What it is. It does not change while the violation exists.
    key: String,
    /// File and line of each place.
    places: Vec<String>,
}

impl Finding {
    fn of(key: String) -> Self {
        Self { key, places: Vec::new() }
    }
}

/// The options of the command.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Options {
    /// Print what is known, too, and where each is
    #[arg(long)]
    list: bool,
    /// Print what was found as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Take out of xtask/house.known what is gone
    #[arg(long)]
    shrink: bool,
}

/// How the findings compare with those that are known.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Compared {
    /// Found and not known.
    new: Vec<String>,
    /// Known and not found.
    gone: Vec<String>,
    /// Both.
    known: Vec<String>,
}

/// What [`check`] found.
#[derive(Debug, Serialize)]
struct House {
    findings: Vec<Finding>,
    #[serde(flatten)]
    compared: Compared,
}

impl House {
    fn holds(&self) -> bool {
        self.compared.new.is_empty() && self.compared.gone.is_empty()
    }
}

/// Checks and prints. True if there are neither new findings nor outdated lines.
pub(crate) fn run(paths: &Paths, options: Options, output: &Output) -> Result<bool> {
    if options.shrink {
        let gone = check(paths)?.compared.gone;
        let keep = |line: &&str| !gone.iter().any(|key| key == line.trim());
        let text = known_text(paths)?;
        let kept: Vec<&str> = text.lines().filter(keep).collect();
        paths::write_if_changed(&known_file(paths), &(kept.join("\n") + "\n"))?;
    }
    let house = check(paths)?;
    print(&house, options, output)?;
    Ok(house.holds())
}

/// The same as a step of `ci`.
///
/// # Errors
///
/// The findings, as [`run`] prints them.
pub(crate) fn for_ci(paths: &Paths) -> Result<()> {
    let house = check(paths)?;
    ensure!(house.holds(), "\n{}", complaints(&house, false).join("\n"));
    Ok(())
}

fn check(paths: &Paths) -> Result<House> {
    let sources = ["pp-agent/src", "tests/src", "tests/e2e"];
    let files = Files::read(&paths.root, &sources, "rs")?;
    let docs = Files::read(&paths.root, &["docs"], "md")?;
    let golden = paths::read(&paths.root.join(pages::GOLDEN))?;
    let agent = Tree::parse(&files, "pp-agent/src", &["lib.rs", "main.rs"])?;
    let suite = suite(&files)?;
    let mut findings = cycles::check(&agent);
    findings.extend(agent.unreached.iter().map(|file| Finding::of(format!("no mod line leads to {}", file.display()))));
    findings.extend(boundaries::check(&agent));
    findings.extend(unused::check(&agent, &suite));
    findings.extend(pages::check(&agent, &golden, &docs)?);
    let compared = compare(&findings, &known_text(paths)?);
    Ok(House { findings, compared })
}

/// The library of the suite and each of its programs.
fn suite(files: &Files) -> Result<Vec<Tree>> {
    let is_root = |path: &&std::path::Path| {
        path.starts_with("tests/src") && (path.ends_with("main.rs") || **path == *std::path::Path::new("tests/src/lib.rs"))
    };
    let roots = files.iter().map(|(path, _)| path).filter(is_root);
    roots
        .map(|root| {
            let folder = root.parent().context("a folder")?.display().to_string();
            let name = root.file_name().context("a name")?.to_string_lossy().into_owned();
            Tree::parse(files, &folder, &[&name])
        })
        .collect()
}

fn known_file(paths: &Paths) -> PathBuf {
    paths.root.join("xtask/house.known")
}

fn known_text(paths: &Paths) -> Result<String> {
    paths::read(&known_file(paths))
}

fn compare(findings: &[Finding], known: &str) -> Compared {
    let found: BTreeSet<&str> = findings.iter().map(|finding| finding.key.as_str()).collect();
    let known: BTreeSet<&str> = known.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let owned = |key: &&str| (*key).to_owned();
    Compared {
        new: found.difference(&known).map(owned).collect(),
        gone: known.difference(&found).map(owned).collect(),
        known: found.intersection(&known).map(owned).collect(),
    }
}

/// The lines to print. With `all` they include the known findings.
fn complaints(house: &House, all: bool) -> Vec<String> {
    let mut lines = Vec::new();
    for finding in &house.findings {
        let is_new = house.compared.new.contains(&finding.key);
        if is_new || all {
            lines.push(format!("{}{}", finding.key, if is_new { "" } else { " (known)" }));
            lines.extend(finding.places.iter().map(|place| format!("    {place}")));
        }
    }
    let gone = &house.compared.gone;
    lines.extend(gone.iter().map(|key| format!("{key}: known and gone; run cargo xtask house --shrink")));
    lines
}

fn print(house: &House, options: Options, output: &Output) -> Result<()> {
    if options.json {
        return output.write(&serde_json::to_string_pretty(house)?);
    }
    for line in complaints(house, options.list) {
        output.write(&line)?;
    }
    let Compared { new, gone, known } = &house.compared;
    sh::say(format!("house: {} new, {} known, {} known and gone", new.len(), known.len(), gone.len()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_may_only_become_less() {
        let findings = ["a", "b"].map(|key| Finding::of(key.to_owned()));
        let compared = |known: &str| compare(&findings, known);
        let owned = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        let expected = |new: &[&str], gone: &[&str], known: &[&str]| Compared { new: owned(new), gone: owned(gone), known: owned(known) };
        assert_eq!(compared("# why\na\n\nb\n"), expected(&[], &[], &["a", "b"]));
        assert_eq!(compared("a\n"), expected(&["b"], &[], &["a"]));
        assert_eq!(compared("a\nb\nc\n"), expected(&[], &["c"], &["a", "b"]));
    }
}
