//! What the command line prints where a daemon answers, as text and as JSON, with its exit codes, against `tests/golden/cli`. What needs no
//! daemon is compared by `pp-agent/tests/golden.rs`.

use anyhow::{Context as _, Result, ensure};
use pp_tests::attack;
use pp_tests::forge;
use pp_tests::harness::{By, is_block};
use pp_tests::lab::{PLC, PLC_NEIGHBOUR, Place};
use pp_tests::policy::{AGENT, DECIDER, KEY, Policy};
use pp_tests::run::{Output, Running};
use pp_tests::wait;

use crate::golden::{Transcript, another_user};
use crate::receipts::plc;
use crate::world::{World, tests};

tests![commands_print_what_the_golden_files_have];

fn commands_print_what_the_golden_files_have(world: &mut World) -> Result<()> {
    let daemon = world.own(&Policy::standard(world.lab()))?;
    let mut said = Transcript::new(&daemon);
    status(&mut said)?;
    doctor(&mut said)?;
    rights(&mut said)?;
    sessions(&mut said)?;
    checks(&mut said)?;
    receipts(&mut said)?;
    refusals(&mut said)?;
    neighbours(&mut said)?;
    policy(&mut said)?;
    events(&mut said)?;
    said.end()
}

/// Runs it for people and for programs.
fn both(said: &mut Transcript<'_>, words: &[&str]) -> Result<()> {
    let _text = said.cli(words)?;
    let _json = said.cli(&[words, &["--json"]].concat())?;
    Ok(())
}

fn status(said: &mut Transcript<'_>) -> Result<()> {
    both(said, &["status"])?;
    let _enough = said.cli(&["status", "--require", "partial"])?;
    said.note("another user");
    let user = another_user(said.daemon);
    let _theirs = said.cli_as(&user, &["status"])?;
    let _theirs = said.cli_as(&user, &["status", "--json"])?;
    said.file("cli/status.txt");
    Ok(())
}

/// What doctor says of any machine. The rest, and whether all is well, is this machine's.
const FINDINGS: [&str; 5] = ["kernel", "switch", "pins", "policy", "daemon"];

fn doctor(said: &mut Transcript<'_>) -> Result<()> {
    let (bpffs, policy) = (said.daemon.bpffs().display().to_string(), said.daemon.path("policy.toml").display().to_string());
    // Without keys nobody's private half is looked for on this machine.
    let words = ["doctor", "--bpffs", &bpffs, "--policy", &policy, "--keys", "/nonexistent/keys.json"];
    let text = said.daemon.cli(&words)?;
    said.raw("$ pp-agent doctor\n");
    let mut kept = false;
    for line in text.stdout.lines() {
        if !line.starts_with("    ") {
            kept = FINDINGS.iter().any(|what| line.get(4..).is_some_and(|rest| rest.starts_with(&format!("{what:12} "))));
        }
        if kept {
            said.raw(&format!("{line}\n"));
        }
    }
    let json = said.daemon.cli(&[&words[..], &["--json"]].concat())?;
    said.raw("$ pp-agent doctor --json\n");
    let (head, rest) = json.stdout.split_once("    {\n").context("no findings")?;
    let (findings, end) = rest.rsplit_once("\n  ],\n").context("no end of findings")?;
    said.raw(head);
    for finding in findings.split("    {\n") {
        if FINDINGS.iter().any(|what| finding.contains(&format!("\"what\": \"{what}\""))) {
            said.raw(&format!("    {{\n{}\n", finding.trim_end_matches('\n')));
        }
    }
    said.raw(&format!("  ],\n{}", end.replace(": false", ": <well>").replace(": true", ": <well>")));
    said.file("cli/doctor.txt");
    Ok(())
}

/// What others may not do.
const REFUSED: [&[&str]; 13] = [
    &["check", "10.20.4.7:502", "--agent", AGENT],
    &["check", "10.20.4.7:502", "--agent", AGENT, "--json"],
    &["release", "00000000000000ff"],
    &["receipt", "list"],
    &["receipt", "list", "--json"],
    &["receipt", "show", "ppa_x"],
    &["receipt", "revoke", "ppa_x"],
    &["neighbours"],
    &["neighbours", "forget", "10.20.4.7"],
    &["policy", "show"],
    &["policy", "reload"],
    &["sessions"],
    &["why"],
];

fn rights(said: &mut Transcript<'_>) -> Result<()> {
    said.note("another user");
    let user = another_user(said.daemon);
    for words in REFUSED {
        let _refused = said.cli_as(&user, words)?;
    }
    said.note("an agent: run says which session it is, on standard error");
    for words in REFUSED.iter().chain(&[
        &["status"][..],
        &["events"],
        &["uninstall-hooks"],
        &["receipt", "keygen", "--id", "k", "--decider", "user:a", "--out", "/nonexistent/key.pem", "--unencrypted"],
        &["receipt", "sign", "/nonexistent/request.json", "--key", "/nonexistent/key.pem", "--yes"],
        &["receipt", "revoke", "ppa_x", "--sign", "--key", "/nonexistent/key.pem", "--tenant", "acme-water"],
        &["adopt", "1", "--agent", AGENT],
    ]) {
        let _refused = said.cli_as(&By::run(AGENT), words)?;
    }
    said.file("cli/rights.txt");
    Ok(())
}

fn sessions(said: &mut Transcript<'_>) -> Result<()> {
    let daemon = said.daemon;
    let server = attack::workload(daemon.lab(), &["serve", "127.0.0.1:9100"], PLC);
    let mut running = Running::start(&mut daemon.lab().command(Place::Engineering, &server.words))?;
    let _ready = running.line_with("ready")?;
    let pid = running.pid().to_string();
    said.varies(&format!("adopt {pid}"), "adopt its pid");
    said.varies(&format!("--pid {pid}"), "--pid its pid");
    said.varies(&format!("process {pid}"), "its process");
    said.varies(&format!("{pid} {}", daemon.lab().program("pp-workload").display()), "its pid and program");
    both(said, &["sessions"])?;
    let adopted = said.cli(&["adopt", &pid, "--agent", AGENT])?;
    let session = adopted.stdout.trim().to_owned();
    let _again = said.cli(&["adopt", &pid, "--agent", AGENT])?;
    both(said, &["sessions"])?;
    let _by_session = said.cli(&["check", "10.20.4.7:502", "--session", &session])?;
    let _by_pid = said.cli(&["check", "10.20.4.7:502", "--pid", &pid])?;
    let _released = said.cli(&["release", &session])?;
    let _adopted = said.cli(&["adopt", &pid, "--agent", AGENT, "--json"])?;
    let second = daemon.client()?.get("/v1/sessions")?.ok()?["sessions"][0]["session"].as_str().context("no session")?.to_owned();
    let _released = said.cli(&["release", &second, "--json"])?;
    let _error = said.cli(&["release", &second])?;
    let _error = said.cli(&["release", "abc"])?;
    let _error = said.cli(&["adopt", "1", "--agent", AGENT])?;
    let _error = said.cli(&["adopt", "5000001", "--agent", AGENT])?;
    let _error = said.cli(&["adopt", "5000001"])?;
    let _error = said.cli(&["adopt", &pid, "--agent", "two words"])?;
    let _ran = said.cli(&["run", "--agent", AGENT, "--", "/bin/echo", "hello"])?;
    let _ran = said.cli(&["run", "--agent", "claude-cod", "--", "/bin/sh", "-c", "exit 7"])?;
    let _ran = said.cli(&["run", "--agent", AGENT, "--", "/nonexistent/program"])?;
    let _error = said.cli(&["run", "--agent", "two words", "--", "/bin/true"])?;
    said.file("cli/sessions.txt");
    Ok(())
}

fn checks(said: &mut Transcript<'_>) -> Result<()> {
    for target in [
        "10.20.4.7:502",
        "[fd00:20::7]:502",
        "10.20.4.7:47808/udp",
        "10.30.4.9:8443",
        "10.40.0.5:502",
        "10.40.0.5:5502",
        "10.50.0.23:22",
        "198.51.100.10:80",
        "10.20.4.7:502/icmp",
        "[fe80::7%no-such-link]:443",
    ] {
        both(said, &["check", target, "--agent", AGENT])?;
    }
    let _error = said.cli(&["check", "10.20.4.7:502", "--agent", AGENT, "--user", "no such user"])?;
    let _error = said.cli(&["check", "10.20.4.7:502", "--session", "00000000000000ff"])?;
    let _error = said.cli(&["check", "10.20.4.7:502", "--pid", "1", "--json"])?;
    said.file("cli/check.txt");
    Ok(())
}

fn keep(said: &Transcript<'_>, name: &str, output: &Output) -> Result<String> {
    ensure!(output.code() == 0, "{output}");
    let file = said.daemon.path(name);
    std::fs::write(&file, &output.stdout)?;
    Ok(file.display().to_string())
}

/// From the key to the revocation, as an operator goes through it.
fn receipts(said: &mut Transcript<'_>) -> Result<()> {
    let daemon = said.daemon;
    let file = |name: &str| daemon.path(name).display().to_string();
    let (key, locked, phrase) = (file("operator.pem"), file("locked.pem"), file("passphrase"));
    std::fs::write(daemon.path("passphrase"), "correct horse battery staple\n")?;
    std::fs::write(daemon.path("wrong"), "incorrect\n")?;
    let keygen = ["receipt", "keygen", "--id", KEY, "--decider", DECIDER, "--out"];
    let public = said.cli(&[&keygen[..], &[&key, "--unencrypted"]].concat())?;
    let keys = keep(said, "keys.json", &public)?;
    let _exists = said.cli(&[&keygen[..], &[&key, "--unencrypted"]].concat())?;
    let _locked = said.cli(&[&keygen[..], &[&locked, "--passphrase-file", &phrase]].concat())?;
    let _error = said.cli(&["receipt", "keygen", "--id", "", "--decider", "shift lead", "--out", &file("no.pem"), "--unencrypted"])?;
    let _reloaded = said.cli(&["policy", "reload"])?;
    both(said, &["receipt", "list"])?;

    let drafted = said.cli(&["receipt", "request", "--agent", AGENT, "--user", "root", "--target", "10.20.4.7:502"])?;
    let request = keep(said, "request.json", &drafted)?;
    let more = ["--account", "svc-historian", "--max-attempts", "2", "--max-connections", "5", "--max-turns", "9", "--for", "30m"];
    let words = ["receipt", "request", "--agent", AGENT, "--user", "root", "--target", "10.20.4.8:502", "--summary", "read tank levels"];
    let _more = said.cli(&[&words[..], &more[..]].concat())?;
    let _error = said.cli(&["receipt", "request", "--from-event", "99999999"])?;
    let _error = said.cli(&["receipt", "request", "--target", "10.20.4.7:502"])?;
    let _error = said.cli(&["receipt", "request", "--agent", AGENT, "--target", "plc7:502"])?;

    let _unasked = said.cli(&["receipt", "sign", &request, "--key", &key])?;
    let signed = said.cli(&["receipt", "sign", &request, "--key", &key, "--yes"])?;
    let receipt = keep(said, "receipt.json", &signed)?;
    let _locked = said.cli(&["receipt", "sign", &request, "--key", &locked, "--passphrase-file", &phrase, "--yes", "--valid-for", "2h"])?;
    let _error = said.cli(&["receipt", "sign", &request, "--key", &locked, "--passphrase-file", &file("wrong"), "--yes"])?;
    let _error = said.cli(&["receipt", "sign", &receipt, "--key", &key, "--yes"])?;
    let _error = said.cli(&["receipt", "sign", &request, "--key", &request, "--yes"])?;

    let with_keys = ["--keys", &keys];
    both(said, &[&["receipt", "verify", &receipt], &with_keys[..]].concat())?;
    both(said, &[&["receipt", "inspect", &receipt], &with_keys[..]].concat())?;
    let broken = forge::flip_bit(&serde_json::from_str(&signed.stdout)?, "signature_b64");
    std::fs::write(daemon.path("broken.json"), broken.to_string())?;
    for words in [["receipt", "verify"], ["receipt", "inspect"]] {
        both(said, &[&words[..], &[&file("broken.json")], &with_keys[..]].concat())?;
    }
    let _error = said.cli(&["receipt", "register", &file("broken.json")])?;
    both(said, &["receipt", "register", &receipt])?;
    both(said, &["receipt", "list"])?;
    let id = forge::id(&serde_json::from_str(&signed.stdout)?);
    let _shown = said.cli(&["receipt", "show", &id])?;
    let _error = said.cli(&["receipt", "show", "ppa_x"])?;
    both(said, &["check", "10.20.4.7:502", "--agent", AGENT])?;
    both(said, &["receipt", "revoke", &id, "--reason", "the pump is back"])?;
    let _again = said.cli(&["receipt", "register", &receipt])?;
    let _unseen = said.cli(&["receipt", "revoke", "ppa_00000000-0000-0000-0000-000000000000"])?;
    let revocation = said.cli(&["receipt", "revoke", &id, "--sign", "--key", &key, "--tenant", "acme-water"])?;
    let revocation = keep(said, "revocation.json", &revocation)?;
    both(said, &[&["receipt", "verify", &revocation], &with_keys[..]].concat())?;
    both(said, &["receipt", "register", &revocation])?;
    let unknown = plc().agent("claude-cod").sign(daemon.operator());
    std::fs::write(daemon.path("unknown.json"), unknown.to_string())?;
    let _key_unknown = said.cli(&["receipt", "register", &file("unknown.json")])?;
    both(said, &["receipt", "list"])?;
    said.file("cli/receipts.txt");
    Ok(())
}

fn refusals(said: &mut Transcript<'_>) -> Result<()> {
    let daemon = said.daemon;
    let mark = daemon.events().mark();
    let _answer = By::run(AGENT).attempt(daemon, &attack::tcp(daemon.lab(), PLC_NEIGHBOUR))?;
    let event = daemon.events().wait_since(mark, "the refusal", |event| is_block(event, PLC_NEIGHBOUR))?;
    let session = event["session"].as_str().context("no session")?.to_owned();
    wait::until_true("the event in the store", wait::SOON, || {
        daemon.cli(&["events", "--kind", "verdict", "--session", &session]).is_ok_and(|output| !output.stdout.is_empty())
    })?;
    both(said, &["events", "--kind", "verdict", "--session", &session])?;
    both(said, &["why", "--session", &session])?;
    both(said, &["why", "--session", "00000000000000ff"])?;
    let _request = said.cli(&["receipt", "request", "--from-event", &event["id"].to_string()])?;
    said.file("cli/refusals.txt");
    Ok(())
}

fn neighbours(said: &mut Transcript<'_>) -> Result<()> {
    both(said, &["neighbours"])?;
    both(said, &["neighbours", "forget", "10.20.4.7"])?;
    said.file("cli/neighbours.txt");
    Ok(())
}

fn policy(said: &mut Transcript<'_>) -> Result<()> {
    let daemon = said.daemon;
    let standard = Policy::standard(daemon.lab());
    let file = daemon.path("policy.toml");
    both(said, &["policy", "show"])?;
    for policy in [
        standard.clone().with("[exec]\nmode = \"observe\"\n\n[behaviour]\nmode = \"observe\"\n"),
        standard.clone().with_top("colour = \"red\""),
        standard.clone(),
    ] {
        policy.write(&file)?;
        let _reloaded = said.cli(&["policy", "reload"])?;
    }
    let _reloaded = said.cli(&["policy", "reload", "--json"])?;
    said.file("cli/policy.txt");
    Ok(())
}

fn events(said: &mut Transcript<'_>) -> Result<()> {
    for kind in ["receipt", "revocation", "policy"] {
        both(said, &["events", "--kind", kind])?;
    }
    let _one = said.cli(&["events", "--kind", "policy", "--limit", "1"])?;
    let _none = said.cli(&["events", "--kind", "nothing"])?;
    let _error = said.cli(&["events", "--since", "yesterday"])?;
    let _error = said.cli(&["events", "--since", "yesterday", "--json"])?;
    said.file("cli/events.txt");
    Ok(())
}
