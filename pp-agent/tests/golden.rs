//! What the command line prints where no daemon answers, with its exit codes, against `tests/golden/cli`: help, misuse, policies, receipts
//! of the specification, events from a file. How to write the files is in `tests/src/golden.rs`.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper that cannot do its work must end the test")]

#[path = "../../tests/src/golden.rs"]
pub mod golden;

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use golden::golden;
use tempfile::TempDir;

/// No daemon listens here.
const NO_SOCKET: &str = "/nonexistent/control.sock";

/// Commands and what they printed, as text.
struct Transcript {
    folder: TempDir,
    text: String,
}

impl Transcript {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), text: String::new() }
    }

    /// A file for the commands, which run in its folder.
    fn file(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn note(&mut self, text: &str) {
        writeln!(self.text, "# {text}").unwrap();
    }

    /// Runs the command line in the folder, without a terminal and without a daemon.
    fn run(&mut self, words: &[&str]) {
        let output = Command::new(env!("CARGO_BIN_EXE_pp-agent"))
            .args(words)
            .current_dir(self.folder.path())
            .env_clear()
            .env("PP_AGENT_SOCKET", NO_SOCKET)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        writeln!(self.text, "$ pp-agent {}", words.join(" ")).unwrap();
        writeln!(self.text, "exit {}", output.status.code().unwrap()).unwrap();
        for (name, bytes) in [("stdout", output.stdout), ("stderr", output.stderr)] {
            let text = String::from_utf8(bytes).unwrap();
            if !text.is_empty() {
                let end = if text.ends_with('\n') { "" } else { "<no newline>\n" };
                write!(self.text, "--- {name}\n{text}{end}").unwrap();
            }
        }
        self.text.push('\n');
    }

    fn both(&mut self, words: &[&str]) {
        self.run(words);
        self.run(&[words, &["--json"]].concat());
    }

    fn is(self, name: &str) {
        let text = self.text.replace(&self.folder.path().display().to_string(), "<folder>");
        golden(name, &text).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Every command with its subcommands, as `--help` lists them; hidden ones too.
fn commands(of: &[String], found: &mut Vec<Vec<String>>) {
    let output = Command::new(env!("CARGO_BIN_EXE_pp-agent")).args(of).arg("--help").env_clear().stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    found.push(of.to_vec());
    let Some((_, list)) = text.split_once("\nCommands:\n") else { return };
    for line in list.lines().take_while(|line| !line.is_empty()) {
        // Further lines of a long description are indented more.
        let name = line.strip_prefix("  ").filter(|line| !line.starts_with(' ')).and_then(|line| line.split_whitespace().next());
        if let Some(name) = name.filter(|name| *name != "help") {
            commands(&[of, &[name.to_owned()]].concat(), found);
        }
    }
}

#[test]
fn help_of_every_command_is_as_the_golden_file_has_it() {
    let mut found = Vec::new();
    commands(&[], &mut found);
    found.push(vec!["canary-child".to_owned()]);
    assert!(found.len() > 25, "{found:?}");
    let mut said = Transcript::new();
    for command in &found {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        said.run(&[&words[..], &["--help"]].concat());
        said.run(&[&words[..], &["-h"]].concat());
    }
    said.run(&["--version"]);
    said.is("cli/help.txt");
}

#[test]
fn misuse_is_answered_as_the_golden_file_has_it() {
    let mut said = Transcript::new();
    for words in [
        &[][..],
        &["nothing"],
        &["statsu"],
        &["--colour"],
        &["status", "--require", "everything"],
        &["check"],
        &["check", "10.20.4.7:502"],
        &["check", "plc7:502", "--agent", "codex"],
        &["check", "10.20.4.7:502", "--agent", "codex", "--pid", "1"],
        &["events", "--verdict", "perhaps"],
        &["events", "--kind", "verdct"],
        &["events", "--limit", "many"],
        &["run"],
        &["run", "--keep-fd", "3", "--", "true"],
        &["run", "--confine", "--keep-fd", "2", "--", "true"],
        &["adopt", "self"],
        &["release"],
        &["release", "abc"],
        &["neighbours", "forget", "plc7"],
        &["receipt"],
        &["receipt", "request"],
        &["receipt", "request", "--target", "10.20.4.7:502", "--for", "5w"],
        &["receipt", "request", "--target", "10.20.4.7:502", "--for", "5 fortnights"],
        &["receipt", "request", "--target", "10.20.4.7:502", "--max-attempts", "2"],
        &["receipt", "revoke", "ppa_x", "--sign"],
        &["receipt", "keygen", "--id", "k"],
        &["policy"],
        &["completions", "sh"],
        &["daemon", "--watch-period", "0"],
    ] {
        said.run(words);
    }
    said.is("cli/misuse.txt");
}

#[test]
fn without_a_daemon_every_command_says_so_as_the_golden_file_has_it() {
    let mut said = Transcript::new();
    for words in [
        &["status"][..],
        &["status", "--json"],
        &["sessions"],
        &["events"],
        &["events", "--json"],
        &["why"],
        &["check", "10.20.4.7:502", "--agent", "codex"],
        &["check", "10.20.4.7:502", "--agent", "codex", "--json"],
        &["adopt", "1", "--agent", "codex"],
        &["neighbours"],
        &["neighbours", "forget", "10.20.4.7"],
        &["receipt", "request", "--target", "10.20.4.7:502"],
        &["receipt", "list"],
        &["receipt", "list", "--json"],
        &["receipt", "show", "ppa_x"],
        &["receipt", "revoke", "ppa_x"],
        &["policy", "show"],
        &["policy", "reload"],
        &["status", "--socket", "/nonexistent/other.sock"],
    ] {
        said.run(words);
    }
    said.file("artifact.json", "{}");
    said.run(&["receipt", "register", "artifact.json"]);
    said.run(&["receipt", "register", "missing.json"]);
    said.is("cli/no_daemon.txt");
}

/// A policy that is valid and says something about most of its tables.
const POLICY: &str = r#"host = "eng-ws-12"
tenant = "acme-water"
mode = "enforce"

[[zone]]
name = "plant-7"
networks = ["10.20.0.0/16", "fd00:20::/32"]

[[gateway]]
name = "vnode-east"
address = "10.30.4.9"
ports = [443, 8443]

[services]
enable = ["modbus", "opc-ua"]

[[agent]]
name = "claude-code"
exec = ["/opt/claude/bin/claude"]

[[authority]]
key_id = "shift-lead-2026"
decider = "user:shift-lead@acme.example"
zones = ["plant-7"]
gateways = ["vnode-east"]
services = ["modbus"]
max_ttl = "8h"
"#;

#[test]
fn policies_are_checked_as_the_golden_file_has_it() {
    let mut said = Transcript::new();
    said.file("good.toml", POLICY);
    said.both(&["policy", "check", "good.toml"]);
    said.file("empty.toml", "");
    said.both(&["policy", "check", "empty.toml"]);
    said.file("off.toml", format!("{POLICY}\n[exec]\nmode = \"observe\"\n\n[behaviour]\nmode = \"observe\"\n"));
    said.both(&["policy", "check", "off.toml"]);
    said.file("beside.toml", POLICY);
    said.file("beside.d/10-zone.toml", "[[zone]]\nname = \"plant-8\"\nnetworks = [\"10.21.0.0/16\"]\n");
    said.file("beside.d/notes.txt", "not read");
    said.both(&["policy", "check", "beside.toml"]);
    said.run(&["policy", "check", "missing.toml"]);
    said.run(&["policy", "check", "."]);
    let swap = |part: &str, by: &str| {
        assert!(POLICY.contains(part), "{part}");
        POLICY.replacen(part, by, 1)
    };
    let and = |more: &str| format!("{POLICY}\n{more}\n");
    for (what, text) in [
        ("not TOML", and("[zone")),
        ("a value of the wrong type", swap("ports = [443, 8443]", "ports = \"443\"")),
        ("an unknown key", swap("tenant", "tenent")),
        ("an unknown table", and("[colours]\nred = 1")),
        ("an unknown mode", swap("\"enforce\"", "\"enforced\"")),
        ("an unknown service", swap("\"modbus\", \"opc-ua\"", "\"modbsu\"")),
        ("an unknown zone", swap("zones = [\"plant-7\"]", "zones = [\"plant-9\"]")),
        ("an unknown gateway", swap("gateways = [\"vnode-east\"]", "gateways = [\"vnode-west\"]")),
        ("a missing key", swap("name = \"plant-7\"\n", "")),
        ("a name that is none", swap("name = \"claude-code\"", "name = \"claude code\"")),
        ("a network that is none", swap("10.20.0.0/16", "10.20.0.0/33")),
        ("a network with host bits", swap("10.20.0.0/16", "10.20.4.7/16")),
        ("a network in two zones", and("[[zone]]\nname = \"plant-8\"\nnetworks = [\"10.20.0.0/16\"]")),
        ("a zone defined twice", and("[[zone]]\nname = \"plant-7\"\nnetworks = [\"10.21.0.0/16\"]")),
        ("a gateway without ports", swap("ports = [443, 8443]", "ports = []")),
        ("an address that is none", swap("\"10.30.4.9\"", "\"vnode\"")),
        ("a decider that is no person", swap("user:shift-lead@acme.example", "policy:auto")),
        ("a time that is none", swap("\"8h\"", "\"8 o'clock\"")),
        ("a service enabled and disabled", swap("enable = [", "disable = [\"modbus\"]\nenable = [")),
        ("an agent of a relative path", swap("/opt/claude/bin/claude", "bin/claude*/../x")),
        ("an agent that would be everybody", swap("/opt/claude/bin/claude", "/**")),
        ("a shipped agent's table that changes nothing", and("[[agent]]\nname = \"codex\"")),
        ("a behaviour rule of zero", and("[behaviour]\nlogin_hosts = 0")),
    ] {
        said.note(what);
        said.file("bad.toml", text);
        said.run(&["policy", "check", "bad.toml"]);
    }
    said.file("beside.d/20-bad.toml", "[[zone]]\nname = \"plant-8\"\nnetworks = []\n");
    said.note("a drop-in that is wrong");
    said.both(&["policy", "check", "beside.toml"]);
    said.file("latin.toml", b"host = \"eng\xe9\"\n");
    said.run(&["policy", "check", "latin.toml"]);
    said.is("cli/policy_check.txt");
}

#[test]
fn policies_are_held_against_events_as_the_golden_files_have_it() {
    let mut said = Transcript::new();
    let golden = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/events.txt")).unwrap();
    let events: String = golden.lines().filter(|line| line.starts_with('{')).map(|line| format!("{line}\n")).collect();
    assert!(events.lines().count() > 500);
    said.file("events.jsonl", events);
    said.file("good.toml", POLICY);
    said.file("less.toml", POLICY.replacen("10.20.0.0/16", "10.99.0.0/16", 1));
    said.file("more.toml", POLICY.replacen("10.20.0.0/16", "10.0.0.0/8", 1));
    said.file("empty.jsonl", "");
    said.file("bad.jsonl", "{\"id\":1}\n");
    for policy in ["good.toml", "less.toml", "more.toml"] {
        said.both(&["policy", "check", policy, "--against", "events.jsonl"]);
    }
    said.run(&["policy", "check", "good.toml", "--against", "empty.jsonl"]);
    said.run(&["policy", "check", "good.toml", "--against", "bad.jsonl"]);
    said.run(&["policy", "check", "good.toml", "--against", "missing.jsonl"]);
    said.both(&["policy", "suggest", "--from", "events.jsonl", "less.toml"]);
    said.run(&["policy", "suggest", "--from", "empty.jsonl", "good.toml"]);
    said.run(&["policy", "suggest", "--from", "bad.jsonl", "good.toml"]);
    said.is("cli/policy_events.txt");
}

/// Receipts of the specification, which have fixed times and keys.
#[test]
fn receipts_are_read_as_the_golden_file_has_it() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/receipt-spec/test-vectors");
    let mut said = Transcript::new();
    for name in [
        "keys.json",
        "approve-human-execute-lane-refund.json",
        "tampered-approve-human-deploy-gate.json",
        "deny-kill-switch-execute-lane.json",
    ] {
        said.file(name, std::fs::read(vectors.join(name)).unwrap());
    }
    said.file("other-keys.json", "{\"issuer\":\"acme-water\",\"keys\":[]}");
    said.file("none.json", "{}");
    said.file("text.txt", "no JSON");
    for file in [
        "approve-human-execute-lane-refund.json",
        "tampered-approve-human-deploy-gate.json",
        "deny-kill-switch-execute-lane.json",
        "none.json",
        "text.txt",
        "missing.json",
    ] {
        for command in ["verify", "inspect"] {
            said.both(&["receipt", command, file, "--keys", "keys.json"]);
        }
    }
    for command in ["verify", "inspect"] {
        said.run(&["receipt", command, "approve-human-execute-lane-refund.json", "--keys", "other-keys.json"]);
        said.run(&["receipt", command, "approve-human-execute-lane-refund.json", "--keys", "missing-keys.json"]);
        said.run(&["receipt", command, "approve-human-execute-lane-refund.json", "--keys", "text.txt"]);
    }
    said.is("cli/receipt_read.txt");
}

#[test]
fn completions_are_as_the_golden_file_has_them() {
    let mut said = Transcript::new();
    said.run(&["completions", "bash"]);
    said.is("cli/completions.txt");
}
