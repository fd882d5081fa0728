//! How a host is brought up: observe, let the policy be suggested from what was seen, check the draft against it, enforce.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::harness::{By, Refusal, is_verdict};
use pp_tests::lab::{GATEWAY_WEST, PLC, STRAY_MODBUS, STRAY_OTHER};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run::Output;
use serde_json::{Value, json};

use crate::receipts::{Registered, opening};
use crate::world::{World, tests};

tests![
    account_beside_the_receipts_is_told_and_no_secret_is,
    lines_that_are_no_events_are_named,
    suggested_drop_in_passes_its_check_and_refuses_more_after_a_reload,
    check_against_events_predicts_what_is_refused_and_what_opens,
];

/// The zone that is made of the stray server's address.
const SUGGESTED: &str = "seen-10.40.0.5-32";

fn account_beside_the_receipts_is_told_and_no_secret_is(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let scope = json!({"kind": "accounts", "accounts": ["svc-historian"], "maxAttempts": 8});
    let _receipt = Registered::new(daemon, &opening(GATEWAY_WEST).parameter("credentialScope", scope))?;
    for (login, told) in [("admin:s3cret-9", Some("admin")), ("svc-historian:s3cret-9", None)] {
        let mark = daemon.events().mark();
        let url = format!("http://{GATEWAY_WEST}/");
        let words = ["curl", "-sS", "--max-time", "20", "-u", login, &url].map(str::to_owned);
        let _page = By::run(AGENT).run_words(daemon, &words)?;
        let event = daemon.events().wait_since(mark, "the login's event", |event| {
            is_verdict(event, "allow") && event["destination"]["port"] == GATEWAY_WEST.port()
        })?;
        ensure!(event["command_line_account"].as_str() == told, "{login}: {event}");
        ensure!(!event.to_string().contains("s3cret-9"), "the password is in the event: {event}");
    }
    Ok(())
}

fn lines_that_are_no_events_are_named(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let _answer = By::run(AGENT).attempt(daemon, &attack::tcp(daemon.lab(), PLC))?;
    let policy = daemon.path("policy.toml").display().to_string();
    let good = saved(daemon, "good.jsonl", &[])?;
    let first = fs::read_to_string(&good)?.lines().next().context("no event")?.to_owned();
    let store = daemon.path("state/events.redb").display().to_string();
    let mut cases = vec![(store, "the daemon's store")];
    for (name, line, wanted) in [
        ("cut", first.get(..first.len() / 2).context("no half")?.to_owned(), "line 2: ends in the middle"),
        ("words", "plain words".to_owned(), "line 2: is no JSON"),
        ("kind", first.replacen("\"kind\":\"", "\"kind\":\"later_", 1), "line 2: is no event of this version"),
        ("binary", "\u{7f}ELF\0\0".to_owned(), "line 2: is not text"),
    ] {
        let path = daemon.path(name);
        fs::write(&path, format!("{first}\n{line}\n"))?;
        cases.push((path.display().to_string(), wanted));
    }
    for (file, wanted) in &cases {
        for words in [["policy", "check", &policy, "--against", file], ["policy", "suggest", &policy, "--from", file]] {
            let refused = daemon.cli(&words)?;
            ensure!(refused.code() == 2 && refused.stderr.contains(wanted) && refused.stdout.is_empty(), "{wanted}: {refused}");
        }
    }
    let good = good.display().to_string();
    let read = daemon.cli(&["policy", "check", &policy, "--against", &good])?;
    ensure!(read.code() == 0, "control run: the events as they are: {read}");
    Ok(())
}

fn suggested_drop_in_passes_its_check_and_refuses_more_after_a_reload(world: &mut World) -> Result<()> {
    let standard = Policy::standard(world.lab());
    let daemon = world.own(&observing(&standard))?;
    observed(&daemon, STRAY_MODBUS)?;
    let policy = daemon.path("policy.toml").display().to_string();
    let events = saved(&daemon, "observed.jsonl", &[])?.display().to_string();
    let suggested = daemon.cli(&["policy", "suggest", &policy, "--from", &events])?.success()?.stdout;
    ensure!(suggested.contains(SUGGESTED) && suggested.contains("10.40.0.5:502/tcp modbus") && suggested.contains(AGENT), "{suggested}");

    daemon.reload(&standard)?;
    let ordinary = attack::tcp(daemon.lab(), STRAY_OTHER);
    ensure!(By::run(AGENT).attempt(&daemon, &ordinary)? == Answer::Delivered, "control run: refused before the drop-in");

    fs::create_dir(daemon.path("policy.d"))?;
    fs::write(daemon.path("policy.d/50-suggested.toml"), &suggested)?;
    let checked = daemon.cli(&["policy", "check", &policy])?;
    ensure!(checked.code() == 0 && checked.stdout.contains("2 zones"), "{checked}");
    daemon.reload(&standard)?;
    for target in [STRAY_MODBUS, STRAY_OTHER] {
        let event = Refusal::of(attack::tcp(daemon.lab(), target), By::run(AGENT)).with_control(By::Nobody).assert(&daemon)?;
        ensure!(event["zone"] == SUGGESTED, "{event}");
    }
    let again = daemon.cli(&["policy", "suggest", &policy, "--from", &events])?.success()?.stdout;
    ensure!(!again.contains("[[zone]]"), "proposed once more: {again}");
    Ok(())
}

fn check_against_events_predicts_what_is_refused_and_what_opens(world: &mut World) -> Result<()> {
    let enforcing = Policy::standard(world.lab());
    let observing = observing(&enforcing);
    let exempting = enforcing.clone().replacing("[services]\n", "[services]\nexempt = [\"127.0.0.0/8\", \"::1/128\", \"10.40.0.5/32\"]\n");
    let daemon = world.own(&observing)?;
    observed(&daemon, PLC)?;
    observed(&daemon, STRAY_MODBUS)?;
    let events = saved(&daemon, "observed.jsonl", &["--verdict", "observe"])?;

    let (code, same) = predicted(&daemon, &observing, &events)?;
    ensure!(code == 0 && places(&same, "newly_refused").is_empty(), "{same}");
    // Later packets of both may have been told as repeats by now.
    let through = same["unchanged"]["let_through"].as_u64();
    ensure!(same["unchanged"]["refused"] == 0 && through.is_some_and(|through| through >= 2), "{same}");

    let (code, draft) = predicted(&daemon, &enforcing, &events)?;
    ensure!(code == 1 && places(&draft, "newly_refused") == names(&[PLC, STRAY_MODBUS]), "{draft}");
    daemon.reload(&enforcing)?;
    for target in [PLC, STRAY_MODBUS] {
        let _event = Refusal::of(attack::tcp(daemon.lab(), target), By::run(AGENT)).with_control(By::Nobody).assert(&daemon)?;
    }
    let refused = saved(&daemon, "refused.jsonl", &["--verdict", "block"])?;

    let (code, draft) = predicted(&daemon, &exempting, &events)?;
    ensure!(code == 1 && places(&draft, "newly_refused") == names(&[PLC]), "{draft}");
    ensure!(places(&draft, "no_longer_told") == names(&[STRAY_MODBUS]), "{draft}");
    let (code, draft) = predicted(&daemon, &exempting, &refused)?;
    ensure!(code == 0 && places(&draft, "newly_allowed") == names(&[STRAY_MODBUS]), "{draft}");
    daemon.reload(&exempting)?;
    let stray = attack::tcp(daemon.lab(), STRAY_MODBUS);
    ensure!(By::run(AGENT).attempt(&daemon, &stray)? == Answer::Delivered, "refused although it is exempt");
    let _event = Refusal::of(attack::tcp(daemon.lab(), PLC), By::run(AGENT)).with_control(By::Nobody).assert(&daemon)?;
    Ok(())
}

fn observing(policy: &Policy) -> Policy {
    policy.clone().replacing("mode = \"enforce\"", "mode = \"observe\"")
}

/// An agent reaches for the target, which goes through and is told.
fn observed(daemon: &Daemon, target: SocketAddr) -> Result<()> {
    let mark = daemon.events().mark();
    let answer = By::run(AGENT).attempt(daemon, &attack::tcp(daemon.lab(), target))?;
    ensure!(answer == Answer::Delivered, "refused on an observing host: {answer:?}");
    let _event = daemon.events().wait_since(mark, "what would have been refused", |event| {
        is_verdict(event, "observe") && event["destination"]["address"] == target.ip().to_string()
    })?;
    Ok(())
}

/// The events so far in a file, as an operator writes them there.
fn saved(daemon: &Daemon, name: &str, filter: &[&str]) -> Result<PathBuf> {
    let words = [&["events", "--json"], filter].concat();
    let path = daemon.path(name);
    fs::write(&path, daemon.cli(&words)?.success()?.stdout)?;
    Ok(path)
}

/// What `policy check --against` says of a draft, and its exit code.
fn predicted(daemon: &Daemon, draft: &Policy, events: &std::path::Path) -> Result<(i32, Value)> {
    let path = daemon.path("draft.toml");
    draft.write(&path)?;
    let (path, events) = (path.display().to_string(), events.display().to_string());
    let output: Output = daemon.cli(&["policy", "check", &path, "--against", &events, "--json"])?;
    Ok((output.code(), output.json()?))
}

/// The destinations of one list of an answer.
fn places(answer: &Value, list: &str) -> BTreeSet<String> {
    let rows = answer[list].as_array().into_iter().flatten();
    rows.map(|row| format!("{}:{}", row["destination"]["address"].as_str().unwrap_or_default(), row["destination"]["port"])).collect()
}

fn names(targets: &[SocketAddr]) -> BTreeSet<String> {
    targets.iter().map(ToString::to_string).collect()
}
