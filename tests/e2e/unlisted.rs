//! Servers that no list names: those of the same user that no session governs, and those of a session that others use.

use std::os::unix::fs::PermissionsExt as _;
use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::attack::{Answer, tcp};
use pp_tests::harness::{By, is_block};
use pp_tests::lab::{PLC, Place};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run;
use pp_tests::wait;
use serde_json::Value;

use crate::delegates::{Bound, call, is_gap, text};
use crate::world::{World, tests};

tests![
    server_of_the_same_user_that_no_list_names_is_reported_and_refused_where_policy_says_so,
    server_of_a_session_is_named_to_the_person_whose_work_it_did,
];

/// The reason of the event.
const UNKNOWN: &str = "unknown_delegate";

/// The standard policy with this word for servers that no list names.
fn policy(world: &World, unknown: &str) -> Policy {
    Policy::standard(world.lab()).with(&format!("[delegates]\nunknown = \"{unknown}\"\n"))
}

fn is_about(event: &Value, path: &Path) -> bool {
    event["reason"] == UNKNOWN && event["object"] == text(path).as_str()
}

/// Nobody's call arrives, and so does a session's, with an event of this verdict or without one.
fn let_through(daemon: &Daemon, bound: &Bound, path: &Path, verdict: Option<&str>) -> Result<()> {
    let words = ["unix", &text(path)];
    let mark = daemon.events().mark();
    for by in [By::Nobody, By::LAB_AGENT] {
        let answer = call(daemon, &by, &words)?;
        ensure!(answer == Answer::Delivered, "{by:?}: {answer:?}");
    }
    ensure!(bound.arrivals()? == 2, "the calls did not arrive");
    match verdict {
        Some(verdict) => {
            let event = daemon.events().wait_since(mark, "the event of the session's call", |event| is_about(event, path))?;
            ensure!(event["verdict"] == verdict && event["kind"] == "verdict" && event["agent"] == AGENT, "{event}");
            ensure!(event.get("destination").is_none() && event["detail"].as_str().is_some_and(|words| words.contains("pid")), "{event}");
        }
        None => {
            // The event of a refusal comes behind that of the call, if there were one.
            ensure!(By::LAB_AGENT.attempt(daemon, &tcp(daemon.lab(), PLC))? == Answer::Refused(libc::EPERM), "a session reached the PLC");
            let _event = daemon.events().wait_since(mark, "the event of a refusal", |event| is_block(event, PLC))?;
            let told: Vec<Value> = daemon.events().of_sessions_since(mark).into_iter().filter(|event| is_about(event, path)).collect();
            ensure!(told.is_empty(), "{told:?}");
        }
    }
    Ok(())
}

fn server_of_the_same_user_that_no_list_names_is_reported_and_refused_where_policy_says_so(world: &mut World) -> Result<()> {
    if is_gap(world)? {
        return Ok(());
    }
    let folder = world.lab().directory().join("unlisted");
    fs::create_dir_all(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    let path = |name: &str| folder.join(name);

    // As shipped: reported, and a policy to decide on is proposed of it.
    let standard = Policy::standard(world.lab());
    let daemon = world.sharing(&standard)?;
    let bound = Bound::at(&path("reported.sock"))?;
    let_through(daemon, &bound, &path("reported.sock"), Some("observe"))?;
    let saved = daemon.path("unlisted.jsonl");
    fs::write(&saved, daemon.cli(&["events", "--json", "--since", "0"])?.success()?.stdout)?;
    let suggested = daemon.cli(&["policy", "suggest", &text(&daemon.path("policy.toml")), "--from", &text(&saved)])?.success()?.stdout;
    ensure!(suggested.contains("#[[delegate]]") && suggested.contains("reported.sock\""), "{suggested}");

    let refusing = policy(world, "refuse");
    let daemon = world.sharing(&refusing)?;
    let bound = Bound::at(&path("refused.sock"))?;
    let words = ["unix", &text(&path("refused.sock"))];
    ensure!(call(daemon, &By::Nobody, &words)? == Answer::Delivered, "control run");
    let mark = daemon.events().mark();
    let answer = call(daemon, &By::LAB_AGENT, &words)?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{answer:?}");
    let event = daemon.events().wait_since(mark, "its event", |event| is_about(event, &path("refused.sock")))?;
    ensure!(event["verdict"] == "block" && event["kind"] == "verdict", "{event}");
    ensure!(bound.arrivals()? == 1, "a session's connection arrived");
    // A server of a session's own acts as the session, whatever its program is called.
    let own = text(&path("own.sock"));
    let program = daemon.lab().program("pp-workload").display().to_string();
    let script = format!(
        "{program} false-server {own} > /dev/null & for i in $(seq 100); do [ -S {own} ] && break; sleep 0.1; done; \
         {program} tamper unix {own}; kill $!"
    );
    let output = By::run(AGENT).run_words(daemon, &["/bin/bash".into(), "-c".into(), script])?;
    ensure!(output.json()?["ok"] == true, "a session's own server: {output}");
    // Another user's server checks its callers itself.
    fs::set_permissions(path("refused.sock"), fs::Permissions::from_mode(0o666))?;
    let mut other = daemon.cli_words(&["run", "--agent", AGENT, "--"]);
    other.extend([program, "in".into(), "--uid".into(), "65534".into(), "--".into()]);
    let answer = call(daemon, &By::Words(other), &words)?;
    ensure!(answer == Answer::Delivered && bound.arrivals()? == 1, "a server of another user: {answer:?}");

    let allowing = policy(world, "allow");
    let daemon = world.sharing(&allowing)?;
    let bound = Bound::at(&path("allowed.sock"))?;
    let_through(daemon, &bound, &path("allowed.sock"), None)?;
    let off = daemon.client()?.status()?["off"].to_string();
    ensure!(off.contains("servers of the user that no list names"), "{off}");
    let _restored = world.daemon()?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

fn server_of_a_session_is_named_to_the_person_whose_work_it_did(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let socket = text(&daemon.path("tmux-of-the-agent"));
    let tmux = |words: &[&str]| -> Vec<String> {
        ["tmux", "-f", "/dev/null", "-S", &socket].iter().chain(words).map(|word| (*word).to_owned()).collect()
    };
    let server = tmux(&["new-session", "-d", "sleep 1000"]);
    let _started = By::run(AGENT).run_words(daemon, &server)?.success()?;
    let shown = (|| {
        // A person's client is nobody's, but what it asks for is done by the session's server.
        let mark = daemon.events().mark();
        let attempt = tcp(daemon.lab(), PLC).words.join(" ");
        let _asked = By::Nobody.run_words(daemon, &tmux(&["run-shell", &format!("{attempt} || true")]))?;
        let event = daemon.events().wait_since(mark, "the refusal of what a person asked for", |event| is_block(event, PLC))?;
        let why = daemon.cli(&["why", "--json"])?.success()?.json()?;
        let first = why["refusals"].as_array().and_then(|all| all.iter().find(|one| one["event"] == event["id"])).cloned();
        let first = first.with_context(|| format!("why does not list {event}: {why}"))?;
        let named = &first["server"];
        let words = named["words"].as_str().unwrap_or_default().to_owned();
        let pid = named["pid"].as_u64().with_context(|| format!("no server is named: {first}"))?;
        ensure!(named["name"] == "tmux: server" && named["session"] == event["session"], "{named}");
        ensure!(words.contains(&format!("kill {pid}")) && words.contains("pp-agent release"), "{words}");
        let shown = daemon.cli(&["why"])?.success()?.stdout;
        ensure!(shown.contains(&words), "{shown}");
        Ok(pid)
    })();
    let _ended = By::Nobody.run_words(daemon, &tmux(&["kill-server"]))?;
    let pid = shown?;
    wait::until_true("the end of the server", wait::SOON, || !Path::new(&format!("/proc/{pid}")).exists())?;

    // A server that a person started does the same as nobody.
    let _started = run::run(&mut daemon.lab().command(Place::Engineering, &server))?.success()?;
    let answer = tcp(daemon.lab(), PLC).words.join(" ");
    let done = By::Nobody.run_words(daemon, &tmux(&["run-shell", &answer]));
    let _ended = By::Nobody.run_words(daemon, &tmux(&["kill-server"]))?;
    ensure!(done?.status.success(), "control run: a person's server was refused");

    // An agent that did it itself is no server.
    let mark = daemon.events().mark();
    ensure!(By::LAB_AGENT.attempt(daemon, &tcp(daemon.lab(), PLC))? == Answer::Refused(libc::EPERM), "an agent was let through");
    let event = daemon.events().wait_since(mark, "its event", |event| is_block(event, PLC))?;
    let why = daemon.cli(&["why", "--json"])?.success()?.json()?;
    let own = why["refusals"].as_array().and_then(|all| all.iter().find(|one| one["event"] == event["id"])).cloned();
    ensure!(own.is_some_and(|own| own.get("server").is_none()), "{why}");
    Ok(())
}
