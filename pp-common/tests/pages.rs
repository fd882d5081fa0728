//! The pages of the documentation that are made from the tables of this crate, and what the tables say of themselves.
//!
//! `PP_PAGES=write cargo test -p pp-common --test pages` writes the pages anew.

use std::{collections::HashSet, env, fmt::Write as _, fs, path::PathBuf};

use pp_common::{
    abi::Counter,
    behaviour::Rule,
    decide::{Kind, Reason, Verdict, transport},
    delegate::{Action, Unknown, by},
    maps::{self, Map},
    net_admin::NetAdmin,
    record::{Hook, kind},
    tamper::{GuardHook, Tamper},
    trouble::{TROUBLES, Trouble},
};

/// Begin and end of a generated part of a page; the name of the part follows.
const BEGIN: &str = "<!-- made from pp-common by `PP_PAGES=write cargo test -p pp-common --test pages`: ";
const END: &str = "<!-- end -->\n";

fn file(page: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(page)
}

/// Compares the parts of a page with what they must be, or writes them.
fn holds(page: &str, parts: &[(&str, String)]) {
    let file = file(page);
    let before = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{page}: {error}"));
    let mut text = before.clone();
    for (part, table) in parts {
        let begin = format!("{BEGIN}{part} -->\n");
        let start = text.find(&begin).unwrap_or_else(|| panic!("{page}: has no part {part:?}")) + begin.len();
        let end = start + text[start..].find(END).unwrap_or_else(|| panic!("{page}: part {part:?} has no end"));
        // The texts link as the pages in `docs` do.
        let table = if page.starts_with("docs/internals/") { table.replace("](policy.md", "](../policy.md") } else { table.clone() };
        text.replace_range(start..end, &format!("\n{table}\n"));
    }
    if env::var_os("PP_PAGES").is_some_and(|how| how == "write") {
        fs::write(&file, text).expect("the page can be written");
    } else {
        assert!(text == before, "{page} is not what the code says; PP_PAGES=write cargo test -p pp-common --test pages writes it anew");
    }
}

/// A sentence as a cell of a table: `an attempt was refused`.
fn cell(text: &str) -> String {
    let text = text.trim_end_matches('.').replace('|', "\\|");
    let text = text.replace("[`", "`").replace("`]", "`").replace("super::", "").replace("crate::", "");
    let mut letters = text.chars();
    let first = letters.next();
    match (first, letters.clone().next()) {
        (Some(first), Some(second)) if !second.is_uppercase() => first.to_lowercase().chain(letters).collect(),
        _ => text,
    }
}

fn table(head: &str, rows: impl IntoIterator<Item = String>) -> String {
    let columns = head.matches('|').count() - 1;
    let mut text = format!("{head}\n|{}\n", " --- |".repeat(columns));
    for row in rows {
        writeln!(text, "{row}").expect("a string can be written");
    }
    text
}

/// What becomes of an attempt with this reason, where that is not one of `block` and `observe`.
const fn verdict(reason: Reason) -> &'static str {
    match reason {
        Reason::NotProtected | Reason::Receipt => "(allow) ",
        Reason::FlowRefused | Reason::Tamper | Reason::Probe => "(block) ",
        _ => "",
    }
}

#[test]
fn reasons_and_hooks_are_on_the_page_of_events() {
    let reasons = Reason::ALL.iter().map(|reason| format!("| `{}` | {}{} |", reason.name(), verdict(*reason), cell(reason.text())));
    let tampering = Tamper::ALL.iter().filter(|what| !matches!(what, Tamper::Delegate | Tamper::UnknownDelegate));
    let tampering = tampering.map(|what| format!("| `{}` | {} |", what.name(), cell(what.text())));
    let connections = Hook::ALL.iter().map(|hook| (hook.name(), hook.text()));
    let others = GuardHook::ALL.iter().map(|hook| (hook.name(), hook.text()));
    let hooks = connections.chain(others).map(|(name, text)| format!("| `{name}` | {} |", cell(text)));
    holds(
        "docs/events.md",
        &[
            ("reasons", table("| reason | meaning |", reasons)),
            ("tampering", table("| reason | what was tried |", tampering)),
            ("hooks", table("| hook | what it sees |", hooks)),
        ],
    );
}

#[test]
fn counters_and_lines_of_the_log_are_on_the_page_of_operations() {
    let rows = Counter::ALL.iter().map(|counter| format!("| `pp_kernel_{}_total` | {} |", counter.name(), cell(counter.text())));
    let lines: String = Trouble::ALL.iter().map(|trouble| format!("- `{}`\n", trouble.text())).collect();
    holds("docs/operations.md", &[("counters", table("| metric | counts |", rows)), ("lines of the programs", lines)]);
}

/// The table of a set of codes.
macro_rules! codes {
    ($type:ident) => {
        table(
            "| code | name | meaning |",
            $type::ALL.iter().map(|code| format!("| {} | `{}` | {} |", *code as u32, code.name(), cell(code.text()))),
        )
    };
    (mod $module:ident) => {
        table("| code | name | meaning |", $module::ALL.iter().map(|(code, name, text)| format!("| {code} | `{name}` | {} |", cell(text))))
    };
}

#[test]
fn codes_are_on_their_page() {
    holds(
        "docs/internals/codes.md",
        &[
            ("kinds of records", codes!(mod kind)),
            ("kinds of attempts", codes!(Kind)),
            ("verdicts", codes!(Verdict)),
            ("reasons", codes!(Reason)),
            ("hooks", codes!(Hook)),
            ("tampering", codes!(Tamper)),
            ("hooks of tampering", codes!(GuardHook)),
            ("counters", codes!(Counter)),
            ("rate rules", codes!(Rule)),
            ("delegates", codes!(Action)),
            ("what delegates are known by", codes!(mod by)),
            ("servers that no list names", codes!(Unknown)),
            ("the host's network", codes!(NetAdmin)),
            ("transports", codes!(mod transport)),
        ],
    );
}

fn map_row(map: &Map) -> String {
    let pin = if map.is_pinned() { map.layout.to_string() } else { "not pinned".to_owned() };
    let entry = match map.kind {
        maps::Kind::Ring => "bytes".to_owned(),
        maps::Kind::SkStorage => format!("socket → `{}`", map.value),
        _ => format!("`{}` → `{}`", map.key, map.value.replace(' ', "")),
    };
    let size = match (map.size, map.has_generations()) {
        (0, _) => "one a socket".to_owned(),
        (size, true) => format!("2 × {}", size / 2),
        (size, false) => size.to_string(),
    };
    let (name, kind, what) = (map.name, map.kind, cell(map.what));
    format!("| `{name}` | {what} | `{kind:?}` | {entry} | {size} | {pin} | {} | {} | {} |", map.written, map.read, map.full)
}

#[test]
fn maps_are_on_their_page() {
    let head = "| map | what it holds | kind | entries | size | layout | written | read by | when full |";
    holds("docs/internals/maps.md", &[("maps", table(head, maps::ALL.iter().map(map_row)))]);
}

#[test]
fn no_two_maps_have_one_name() {
    let names: HashSet<&str> = maps::ALL.iter().map(|map| map.name).collect();
    assert_eq!(names.len(), maps::ALL.len());
}

#[test]
fn what_lies_in_two_generations_has_room_for_both() {
    for map in maps::ALL.iter().filter(|map| map.has_generations()) {
        assert!(map.size >= 2 && map.room() * 2 == map.size as usize, "{}", map.name);
    }
}

#[test]
fn every_counter_and_every_trouble_has_its_room() {
    assert!(Counter::ALL.iter().all(|counter| (*counter as u32) < maps::COUNTS.size));
    assert!(Trouble::ALL.iter().all(|trouble| (*trouble as u32) < TROUBLES));
}

#[test]
fn no_code_and_no_name_is_given_twice_and_an_unknown_one_is_none() {
    macro_rules! apart {
        ($($type:ident: $repr:ident),+) => { $(
            let names: HashSet<&str> = $type::ALL.iter().map(|code| code.name()).collect();
            assert_eq!(names.len(), $type::ALL.len(), stringify!($type));
            assert!($type::ALL.iter().all(|code| $type::from_code(*code as $repr) == Some(*code)), stringify!($type));
            assert_eq!($type::from_code($repr::MAX), None, stringify!($type));
        )+ };
    }
    apart!(Verdict: u8, Reason: u8, Kind: u8, Hook: u8, Tamper: u8, GuardHook: u8, Counter: u32, Rule: u32, Action: u32, Unknown: u32, NetAdmin: u32, Trouble: u32);
    for (code, name, _) in transport::ALL {
        assert_eq!((transport::name(*code), transport::from_name(name)), (Some(*name), Some(*code)));
    }
    assert_eq!((transport::name(0), kind::name(0), by::name(0), transport::from_name("quic")), (None, None, None, None));
}
