//! Import cycles between the folders of `src`: a folder is a module of the crate's root and all that is below it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Finding,
    names::{self, Written},
    tree::Tree,
};

/// The imports between two folders, by the names of both.
type Edges = BTreeMap<(String, String), Vec<Written>>;

/// One finding for each import that is part of a cycle.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let edges = edges(tree);
    let reaches = reaches(&edges);
    let circular = |(from, to): &(String, String)| reaches.contains(&(to.clone(), from.clone()));
    edges
        .iter()
        .filter(|(edge, _)| circular(edge))
        .map(|((from, to), written)| Finding { key: format!("cycle: {from} -> {to}"), places: written.iter().map(place).collect() })
        .collect()
}

fn place(written: &Written) -> String {
    format!("{}:{}: {}", written.file.display(), written.line, written.segments.join("::"))
}

fn edges(tree: &Tree) -> Edges {
    let folders: BTreeSet<&str> =
        tree.modules.iter().filter(|module| module.path.len() == 1).filter_map(|module| module.folder()).collect();
    let mut edges = Edges::new();
    for module in &tree.modules {
        let Some(from) = module.folder() else { continue };
        for written in names::written(module) {
            let ["crate", to, ..] = written.segments.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
                continue;
            };
            if to != from && folders.contains(to) {
                edges.entry((from.to_owned(), to.to_owned())).or_default().push(written);
            }
        }
    }
    edges
}

/// Every pair of folders of which the first imports the second, directly or through others.
fn reaches(edges: &Edges) -> BTreeSet<(String, String)> {
    let mut pairs: BTreeSet<(String, String)> = edges.keys().cloned().collect();
    loop {
        let mut more = Vec::new();
        for (from, over) in &pairs {
            let onward = edges.keys().filter(|(start, _)| start == over);
            more.extend(onward.map(|(_, to)| (from.clone(), to.clone())).filter(|pair| !pairs.contains(pair)));
        }
        if more.is_empty() {
            return pairs;
        }
        pairs.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::Files;
    use super::*;

    fn found(a: &str, b: &str, c: &str) -> Vec<String> {
        let files = Files::of(&[
            ("src/lib.rs", "mod a; mod b; mod c;"),
            ("src/a.rs", a),
            ("src/b/mod.rs", "mod inner;"),
            ("src/b/inner.rs", b),
            ("src/c.rs", c),
        ]);
        let tree = Tree::parse(&files, "src", &["lib.rs"]).expect("it parses");
        check(&tree).into_iter().map(|finding| finding.key).collect()
    }

    #[test]
    fn imports_in_one_direction_are_no_cycle() {
        assert_eq!(found("use crate::b::X; use crate::c;", "use crate::c::Y; use super::Z;", ""), [""; 0]);
    }

    #[test]
    fn two_folders_that_name_each_other_are_one_however_they_write_it() {
        let cycle = ["cycle: a -> b", "cycle: b -> a"];
        assert_eq!(found("use crate::b::X;", "fn f() { vec![crate::a::Y]; }", ""), cycle);
        assert_eq!(found("use super::b;", "use super::super::a::Y;", ""), cycle);
        assert_eq!(found("use crate::{b::{X}, c};", "#[serde(default = \"crate::a::y\")] struct S;", ""), cycle);
    }

    #[test]
    fn a_cycle_over_three_folders_is_found_and_the_import_that_leads_to_it_is_not() {
        assert_eq!(found("use crate::b;", "use crate::c;", "use crate::a;"), ["cycle: a -> b", "cycle: b -> c", "cycle: c -> a"]);
        assert_eq!(found("use crate::b;", "use crate::c;", "use crate::b;"), ["cycle: b -> c", "cycle: c -> b"]);
    }

    #[test]
    fn imports_of_tests_make_no_cycle() {
        assert_eq!(found("use crate::b;", "#[cfg(test)] mod tests { use crate::a; }", ""), [""; 0]);
    }
}
