//! What only one folder of the agent may do: `kernel` uses aya, `cli` prints, `receipt` builds JSON by hand.

use std::collections::BTreeMap;

use super::{
    Finding,
    names::{self, Written},
    tree::{Module, Tree},
};

const PRINTING: [&str; 5] = ["print", "println", "eprint", "eprintln", "dbg"];

/// Crates that only `kernel` may name.
const AYA: [&str; 3] = ["aya", "aya_obj", "aya_log"];

/// Modules that may write to standard output, because a program of ours reads it.
const ANSWERS: [&[&str]; 1] = [
    // The child of the canary answers the daemon through a pipe.
    &["kernel", "canary"],
];

/// One finding for each file that uses aya, prints or builds JSON where it must not, and for each exception that is not needed.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    check_with(tree, &ANSWERS)
}

fn check_with(tree: &Tree, answers: &[&[&str]]) -> Vec<Finding> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut used = vec![false; answers.len()];
    for module in &tree.modules {
        for written in names::written(module) {
            let mut note = |what: &str| {
                let key = format!("{what}: {}", written.file.display());
                found.entry(key).or_default().push(format!("{}:{}", written.file.display(), written.line));
            };
            if is_aya(&written) && module.folder() != Some("kernel") {
                note("aya outside kernel");
            }
            // Signed documents are built by hand. All other JSON comes from a type.
            if is_json(&written) && module.folder() != Some("receipt") {
                note("json! outside receipt");
            }
            if module.folder() == Some("cli") {
                continue;
            }
            if is_stdout(&written)
                && let Some(at) = answers.iter().position(|path| is_within(module, path))
            {
                used[at] = true;
            } else if is_stdout(&written) || is_printing(&written) {
                note("printing outside cli");
            }
        }
    }
    for (path, _) in answers.iter().zip(used).filter(|(_, used)| !used) {
        let _none = found.entry(format!("printing: {} is excepted and writes nothing", path.join("::"))).or_default();
    }
    found.into_iter().map(|(key, places)| Finding { key, places }).collect()
}

fn is_within(module: &Module, path: &[&str]) -> bool {
    module.path.len() >= path.len() && module.path.iter().zip(path).all(|(one, other)| one == other)
}

fn is_aya(written: &Written) -> bool {
    written.segments.len() > 1 && AYA.contains(&written.segments[0].as_str())
}

fn is_printing(written: &Written) -> bool {
    written.called && written.segments.last().is_some_and(|name| PRINTING.contains(&name.as_str()))
}

fn is_json(written: &Written) -> bool {
    written.called && written.segments.last().is_some_and(|name| name == "json")
}

fn is_stdout(written: &Written) -> bool {
    matches!(written.segments.as_slice(), [.., io, stdout] if io == "io" && stdout == "stdout")
}

#[cfg(test)]
mod tests {
    use super::super::tree::Files;
    use super::*;

    fn found(folder: &str, text: &str) -> Vec<String> {
        let files = Files::of(&[("src/lib.rs", &format!("mod {folder};")), (&format!("src/{folder}.rs"), text)]);
        let tree = Tree::parse(&files, "src", &["lib.rs"]).expect("it parses");
        check_with(&tree, &[]).into_iter().map(|finding| finding.key).collect()
    }

    #[test]
    fn aya_is_for_the_kernel_folder() {
        for text in ["use aya::Ebpf;", "fn f(x: aya_obj::Object) {}", "use ::aya::{maps, Ebpf};", "fn f() { log!(aya_log::X::y()) }"] {
            assert_eq!(found("kernel", text), [""; 0], "{text}");
            assert_eq!(found("daemon", text), ["aya outside kernel: src/daemon.rs"], "{text}");
        }
        assert_eq!(found("daemon", "use aya_like::X; fn aya() {}"), [""; 0]);
    }

    #[test]
    fn printing_is_for_the_command_line() {
        for text in [
            "fn f() { println!(\"x\"); }",
            "fn f() { std::eprint!(\"x\"); }",
            "fn f() { vec![dbg!(1)]; }",
            "fn f() { std::io::stdout().lock(); }",
            "use std::io::{self, stdout};",
        ] {
            assert_eq!(found("cli", text), [""; 0], "{text}");
            assert_eq!(found("daemon", text), ["printing outside cli: src/daemon.rs"], "{text}");
        }
        assert_eq!(found("daemon", "fn println() -> bool { println != 1 } #[cfg(test)] mod tests { fn f() { println!(); } }"), [""; 0]);
    }

    #[test]
    fn json_by_hand_is_for_what_is_signed() {
        for text in ["fn f() { json!({}); }", "fn f() { vec![serde_json::json!(1)]; }"] {
            assert_eq!(found("receipt", text), [""; 0], "{text}");
            assert_eq!(found("daemon", text), ["json! outside receipt: src/daemon.rs"], "{text}");
        }
        assert_eq!(found("daemon", "fn json() {} #[cfg(test)] mod tests { fn f() { json!({}); } }"), [""; 0]);
    }

    #[test]
    fn an_exception_holds_for_its_module_and_must_be_needed() {
        let text = "fn f() { std::io::stdout(); }";
        let files = Files::of(&[("src/lib.rs", "mod a;"), ("src/a.rs", text)]);
        let tree = Tree::parse(&files, "src", &["lib.rs"]).expect("it parses");
        assert!(check_with(&tree, &[&["a"]]).is_empty());
        let found = check_with(&tree, &[&["a"], &["b", "c"]]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].key, "printing: b::c is excepted and writes nothing");
    }
}
