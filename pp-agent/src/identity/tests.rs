use super::*;
use crate::config::Config;
use crate::matcher::{glob, tests::agree};
use pp_common::abi::{DFA_ACCEPT, DFA_CLASSES, DFA_DEAD};
use proptest::prelude::*;
use std::sync::LazyLock;

fn agent(name: &str, exec: &[&str], script: &[&str], module: &[&str]) -> AgentRules {
    let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    AgentRules { name: name.to_owned(), exec: owned(exec), script: owned(script), module: owned(module), ..AgentRules::default() }
}

static AGENTS: LazyLock<[AgentRules; 2]> = LazyLock::new(|| {
    [
        agent("alpha", &["alpha", "*/@a/alpha*/*", "/opt/alpha?/run"], &["*/@a/alpha*/*", "a.js"], &[]),
        agent("beta", &["beta-*"], &["*/bin/beta"], &["beta", "beta.main"]),
    ]
});
static TABLES: LazyLock<IdentityTables> = LazyLock::new(|| compile(&*AGENTS).unwrap());

/// The agent that a command line is marked with. Words are separated by spaces; the first word is the path and the name of the program.
fn marked(line: &str) -> Option<&'static str> {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    let id = TABLES.matches(words[0], &words)?;
    Some(if id == 0 { "never" } else { TABLES.names.iter().find(|(n, _)| *n == id).unwrap().1.as_str() })
}

#[test]
fn glob_without_a_slash_is_the_file_name_alone() {
    assert_eq!(marked("alpha"), Some("alpha"));
    assert_eq!(marked("/usr/bin/alpha --help"), Some("alpha"));
    assert_eq!(marked("./alpha"), Some("alpha"));
    assert_eq!(marked("/home/u/beta-3"), Some("beta"));
    for other in ["/usr/bin/alphabet", "/usr/bin/xalpha", "/alpha/bin/x", "/beta-1/x", "beta"] {
        assert_eq!(marked(other), None, "{other}");
    }
}

#[test]
fn glob_with_a_slash_is_the_whole_path_and_star_crosses_slashes() {
    assert_eq!(marked("/home/u/node_modules/@a/alpha-linux/bin/x"), Some("alpha"));
    assert_eq!(marked("@a/alpha/x"), Some("alpha"), "*/ also matches at the start");
    assert_eq!(marked("/opt/alpha7/run"), Some("alpha"));
    for other in ["/x@a/alpha/x", "/opt/alpha/run", "/opt/alpha77/run", "/opt/alpha//run", "/n/@a/alphax"] {
        assert_eq!(marked(other), None, "{other}");
    }
}

#[test]
fn argv_0_is_never_identity() {
    assert_eq!(TABLES.matches(b"/usr/bin/env", &[b"alpha"]), None);
    assert_eq!(TABLES.matches(b"/usr/bin/alpha", &[b"ls"]), Some(name_id("alpha")));
    assert_eq!(TABLES.matches(b"/usr/bin/alpha", &[]), Some(name_id("alpha")));
}

#[test]
fn script_of_an_interpreter_is_its_first_word_that_is_no_option() {
    for line in [
        "/usr/bin/node /lib/node_modules/@a/alpha/cli.js",
        "node a.js",
        "node ./a.js -- x",
        "/usr/bin/nodejs --no-warnings --max-old-space-size=4096 a.js",
        "node -r other.js --import tsx a.js",
        "node --conditions dev -- a.js",
        "node --require=other.js a.js",
        "bun run a.js",
        "bun --cwd /srv run a.js",
        "deno run -A --config deno.json a.js",
        "tsx a.js",
        "sh -e a.js",
        "bash --rcfile x -o pipefail +x a.js",
        "bash -euo pipefail a.js",
        "sh -oe posix a.js",
        "python3.12 -u -W ignore -X dev a.js",
        "python2 -Q old a.js",
        "ruby -I lib a.js",
        "ruby -Ilibe a.js",
        "ruby -wI lib a.js",
        "ruby -E utf-8 --enable frozen-string-literal a.js",
        "perl -w a.js",
        "perl -Mlocale a.js",
        "perl -pie a.js",
        "perl -wI lib a.js",
        "php -d memory_limit=1G -f a.js",
    ] {
        assert_eq!(marked(line), Some("alpha"), "{line}");
    }
    assert_eq!(marked("/usr/bin/python3 /home/u/.local/bin/beta --model x"), Some("beta"));
}

#[test]
fn words_that_are_not_the_script_do_not_count() {
    for line in [
        "node other.js a.js",
        "node -r a.js other.js",
        "node --import /x/@a/alpha/y.js other.js",
        "node --require=/x/@a/alpha/y.js other.js",
        "node -e a.js",
        "node -p a.js",
        "node - a.js",
        "node",
        "sh -c a.js",
        "bash -lc a.js",
        "python3 -c a.js",
        "python3 -W a.js other.py",
        "python3 -m other a.js",
        "perl -ne a.js",
        "perl -l012ne a.js",
        "perl -eprint a.js",
        "perl -de0 a.js",
        "ruby -W0e a.js",
        "ruby -eputs a.js",
        "deno eval a.js",
        "cat a.js",
        "vim /lib/node_modules/@a/alpha/cli.js",
        "/usr/bin/node18x a.js",
        "node xa.js",
        "node  a.js",
    ] {
        assert_eq!(marked(line), None, "{line}");
    }
}

#[test]
fn module_of_python_is_compared_as_a_whole() {
    for line in
        ["python -m beta", "python3.11 -u -m beta.main x", "/usr/bin/python3 -um beta", "python -mbeta", "python3 -W x -Imbeta.main x"]
    {
        assert_eq!(marked(line), Some("beta"), "{line}");
    }
    let not = [
        "python -m betas",
        "python -mbetas",
        "python -m beta.other",
        "python -m pip beta",
        "python -mpip beta",
        "python -Wmbeta x",
        "node -m beta",
    ];
    for line in not {
        assert_eq!(marked(line), None, "{line}");
    }
}

#[test]
fn never_list_wins_over_every_rule() {
    for name in ["sshd", "sshd-session", "systemd", "login", "agetty", "gdm-session-worker", "pp-agent"] {
        assert_eq!(marked(&format!("/usr/sbin/{name}")), Some("never"), "{name}");
        assert_eq!(marked(&format!("/x/@a/alpha/bin/{name}")), Some("never"), "{name}");
    }
    assert_eq!(marked("/x/@a/alpha/sshd/y"), Some("alpha"));
    let rule = TABLES.rule(b"/usr/sbin/sshd", &[b"sshd"]);
    assert_eq!(rule, Some(0));
    assert_eq!(TABLES.rules[0], "never marked");
}

#[test]
fn first_agent_wins_where_two_match_the_same_program() {
    let tables = compile(&[agent("one", &["same"], &[], &[]), agent("two", &["same", "sa*"], &[], &[])]);
    let tables = tables.unwrap();
    assert_eq!(tables.matches(b"/bin/same", &[]), Some(name_id("one")));
    assert_eq!(tables.matches(b"/bin/saxe", &[]), Some(name_id("two")));
}

#[test]
fn words_beyond_what_the_kernel_reads_are_not_seen() {
    let long = vec![b'x'; EXEC_ARGV_LEN];
    assert_eq!(TABLES.matches(b"node", &[b"node", b"--title", &long, b"a.js"]), None);
    let path = [vec![b'x'; EXEC_PATH_LEN], b"/alpha".to_vec()].concat();
    assert_eq!(TABLES.matches(&path, &[]), None);
}

#[test]
fn tables_keep_the_promises_that_the_kernel_relies_on() {
    let rules = u16::try_from(TABLES.targets.len()).unwrap();
    let Table { classes, rows: all, .. } = &TABLES.table;
    let rows = u16::try_from(all.len()).unwrap();
    assert_eq!(all[0], [DFA_DEAD; DFA_CLASSES]);
    assert!(classes.iter().all(|class| usize::from(*class) < DFA_CLASSES));
    for next in all.iter().flatten() {
        let valid = if next & DFA_ACCEPT != 0 { next & !DFA_ACCEPT < rules } else { *next < rows };
        assert!(valid, "{next:#x}");
    }
}

#[test]
fn shipped_agents_fit_the_kernel_tables_with_room_to_spare() {
    let config = Config::builtin().unwrap();
    let tables = &config.identity;
    assert!(tables.table.rows.len() < DFA_STATES * 3 / 4, "{} states", tables.table.rows.len());
    assert!(tables.targets.len() < MAX_RULES / 2);
}

#[test]
fn shipped_agents_mark_nothing_of_the_host() {
    let config = Config::builtin().unwrap();
    for agent in &config.agents {
        let kinds = [("exec", &agent.exec), ("script", &agent.script), ("module", &agent.module)];
        for (kind, patterns) in kinds {
            for pattern in patterns {
                if let Err(error) = check_pattern(&agent.name, kind, pattern) {
                    panic!("{}: {kind} {pattern}: {error}", agent.name);
                }
            }
        }
    }
}

#[test]
fn rules_beyond_the_kernel_tables_are_refused_naming_the_agent() {
    let many: Vec<AgentRules> = (0..MAX_RULES).map(|n| agent(&format!("agent-{n}"), &[format!("tool-{n}").as_str()], &[], &[])).collect();
    let error = compile(&many).unwrap_err();
    let IdentityError::TooComplex { agent: culprit, what, .. } = error else { panic!("{error}") };
    assert_eq!((culprit.as_str(), what), ("agent-511", "rules"));

    // A run of free bytes after a letter makes the automaton remember every position of the letter: two to the power of the run's length.
    let memory = format!("*a{}", "?".repeat(20));
    let patterns = [agent("small", &["small"], &[], &[]), agent("greedy", &[&memory], &[], &[])];
    let error = compile(&patterns).unwrap_err();
    let IdentityError::TooComplex { agent: culprit, .. } = error else { panic!("{error}") };
    assert_eq!(culprit, "greedy");
}

#[test]
fn one_user_belongs_to_one_agent() {
    let user = |name: &str| AgentRules { user: vec!["svc".to_owned()], uids: vec![1001], ..agent(name, &[], &[], &[]) };
    let tables = compile(&[user("one")]).unwrap();
    assert_eq!(tables.uids, [(1001, name_id("one"))]);
    let error = compile(&[user("one"), user("two")]).unwrap_err();
    assert!(matches!(error, IdentityError::UserTwice { .. }), "{error}");
}

/// A simple implementation of globs.
fn naive(glob: &[u8], text: &[u8], slash: bool) -> bool {
    match glob.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|n| (slash || !text[..n].contains(&b'/')) && naive(rest, &text[n..], slash)),
        Some((b'?', rest)) => text.first().is_some_and(|b| *b != b'/') && naive(rest, &text[1..], slash),
        Some((byte, rest)) => text.first() == Some(byte) && naive(rest, &text[1..], slash),
    }
}

fn naive_path(glob: &str, path: &str) -> bool {
    if !glob.contains('/') {
        let name = path.rsplit('/').next().unwrap_or(path);
        return naive(glob.as_bytes(), name.as_bytes(), false);
    }
    let at_start = glob.strip_prefix("*/");
    naive(glob.as_bytes(), path.as_bytes(), true) || at_start.is_some_and(|rest| naive(rest.as_bytes(), path.as_bytes(), true))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn automaton_agrees_with_a_naive_matcher(
        globs in prop::collection::vec(r"(\*/|/|\*)?[ab?*]{1,3}(/[ab*]{1,3})?", 1..4),
        paths in prop::collection::vec("[ab/]{1,12}", 32),
    ) {
        let globs: Vec<String> = globs
            .into_iter()
            .filter(|glob| glob::problem(glob, true).is_none())
            .collect();
        prop_assume!(!globs.is_empty());
        let agents: Vec<AgentRules> = globs
            .iter()
            .enumerate()
            .map(|(n, glob)| agent(&format!("agent-{n}"), &[glob.as_str()], &[glob.as_str()], &[]))
            .collect();
        let tables = compile(&agents).unwrap();
        for path in &paths {
            // Rules whose pattern ends in * may end early, so only whether one
            // matches is compared, and that the one found is one that does.
            let expected: Vec<NameId> = globs
                .iter()
                .zip(&agents)
                .filter(|(glob, _)| naive_path(glob, path))
                .map(|(_, agent)| name_id(&agent.name))
                .collect();
            let found = tables.matches(path.as_bytes(), &[]);
            prop_assert_eq!(found.is_some(), !expected.is_empty(), "{} in {:?}", path, globs);
            prop_assert!(found.is_none_or(|id| expected.contains(&id)));
            let script = tables.matches(b"/usr/bin/node", &[b"node", b"--trace-warnings", path.as_bytes()]);
            let direct = tables.matches(b"/usr/bin/node", &[]);
            if direct.is_none() {
                prop_assert_eq!(script.is_some(), !expected.is_empty(), "script {} in {:?}", path, globs);
            }
        }
    }
}

/// Words that get deep into the rules of [`AGENTS`], and some that do not.
fn word() -> impl Strategy<Value = String> {
    let known = [
        "node",
        "/usr/bin/python3.12",
        "bun",
        "sh",
        "run",
        "-r",
        "-um",
        "-umbeta",
        "--",
        "-c",
        "a.js",
        "/n/@a/alpha-x/y",
        "/opt/alpha7/run",
    ];
    let more = ["/b/bin/beta", "beta", "beta.main", "beta-3", "/usr/sbin/sshd", ""];
    let known = prop::sample::select([known.as_slice(), more.as_slice()].concat()).prop_map(str::to_owned);
    prop_oneof![6 => known, 1 => "[-a-b/@.]{0,6}"]
}

proptest! {
    #[test]
    fn table_does_what_the_walk_does(words in prop::collection::vec(word(), 1..6)) {
        static MACHINE: LazyLock<std::sync::Mutex<Machine>> = LazyLock::new(|| Machine::new(&rules(&*AGENTS)).unwrap().into());
        let argv: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
        agree(&mut *MACHINE.lock().unwrap(), &TABLES.table, &kernel_input(argv[0], &argv));
    }
}

#[test]
fn option_that_looks_like_a_script_is_none() {
    let tables = compile(&[agent("one", &[], &["*/*a*"], &[])]).unwrap();
    let found = |argv: &[&[u8]]| tables.matches(b"/usr/bin/node", argv).is_some();
    assert!(!found(&[b"node", b"--trace-warnings", b"/b/"]));
    assert!(found(&[b"node", b"--trace-warnings", b"/b/a"]));
    assert!(found(&[b"node", b"a"]));
}

#[test]
fn pattern_that_ends_in_a_star_holds_where_the_script_begins_like_a_subcommand() {
    let tables = compile(&[agent("one", &[], &["*/ru*", "*/s*", "*/e*v*"], &[])]).unwrap();
    let found = |line: &str| {
        let argv: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        tables.matches(format!("/usr/bin/{}", argv[0].escape_ascii()).as_bytes(), &argv).is_some()
    };
    let marked =
        ["node rum.js", "bun rum.js", "bun run rum.js", "bun ru", "bun runs", "deno run rum.js", "deno serve server.ts", "deno evals"];
    let not = ["bun run", "bun run r.js", "deno run", "deno serve x.ts", "deno eval", "bun -e run", "deno r"];
    assert_eq!(marked.map(found), marked.map(|_| true));
    assert_eq!(not.map(found), not.map(|_| false));
}

mod tree {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn cgroup_and_unit_rules_resolve_to_the_ids_of_folders() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["agents.slice/bot@1.service/inner", "system.slice/bot@2.service", "user.slice"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        fs::write(root.path().join("cgroup.procs"), "").unwrap();
        let rules = CgroupRule::all(&[
            AgentRules { cgroup: vec!["/agents.slice".to_owned()], ..agent("slice", &[], &[], &[]) },
            AgentRules { unit: vec!["bot@*.service".to_owned()], ..agent("bot", &[], &[], &[]) },
        ])
        .unwrap();
        let id = |folder: &str| fs::metadata(root.path().join(folder)).unwrap().ino();
        let mut expected = vec![
            (id("agents.slice"), name_id("slice")),
            (id("agents.slice/bot@1.service"), name_id("bot")),
            (id("agents.slice/bot@1.service/inner"), name_id("bot")),
            (id("system.slice/bot@2.service"), name_id("bot")),
        ];
        expected.sort_unstable();
        assert_eq!(resolve_cgroups(root.path(), &rules).unwrap(), expected);
        assert_eq!(resolve_cgroups(root.path(), &[]).unwrap(), []);
        assert!(resolve_cgroups(&root.path().join("missing"), &rules).is_err());
    }
}
