//! The control socket: what an agent, a user and an operator may do there, judged at every request.

use anyhow::{Result, ensure};
use pp_tests::agent::Daemon;
use pp_tests::attack;
use pp_tests::harness::{By, is_block};
use pp_tests::lab::{PLC, Place, fresh_target};
use pp_tests::policy::{AGENT, DECIDER, KEY};
use pp_tests::run::Running;
use serde_json::Value;

use crate::receipts::{Registered, opening};
use crate::world::{World, tests};

tests![
    agent_may_ask_why_and_nothing_that_maps_the_plant,
    agent_cannot_revoke_or_release,
    agent_may_register_a_signed_receipt,
    connection_handed_over_by_a_dead_child_has_an_agents_rights,
    user_sees_only_sessions_of_their_own,
    user_cannot_check_or_revoke,
    keys_are_not_made_and_receipts_not_signed_inside_a_session,
];

/// An uid that no test's session belongs to.
const OTHER_UID: &str = "9";

/// The HTTP status of a request that `curl` makes with these words in front of it.
fn status_of(daemon: &Daemon, by: &By, request: &[&str], path: &str) -> Result<u16> {
    let mut words: Vec<String> = vec!["curl".into(), "-sS".into(), "-o".into(), "/dev/null".into(), "-w".into(), "%{http_code}".into()];
    words.extend(["--max-time".into(), "20".into(), "--unix-socket".into(), daemon.path("control.sock").display().to_string()]);
    words.extend(request.iter().map(|word| (*word).to_owned()));
    words.push(format!("http://pp-agent{path}"));
    let output = by.run_words(daemon, &words)?.success()?;
    Ok(output.stdout.trim().parse()?)
}

/// The words that run what follows as another user.
fn as_user(daemon: &Daemon) -> By {
    By::Words(vec![daemon.lab().program("pp-workload").display().to_string(), "in".into(), "--uid".into(), OTHER_UID.into(), "--".into()])
}

const CHECK: [&str; 4] =
    ["-H", "content-type: application/json", "-d", "{\"address\":\"10.20.4.7\",\"port\":502,\"agent\":\"claude-code\"}"];

fn agent_may_ask_why_and_nothing_that_maps_the_plant(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let agent = By::run(AGENT);
    ensure!(status_of(daemon, &By::Nobody, &CHECK, "/v1/check")? == 200, "control run: check by root");
    ensure!(status_of(daemon, &agent, &CHECK, "/v1/check")? == 403, "an agent may check");
    for path in ["/v1/sessions", "/v1/events", "/v1/receipts", "/v1/policy", "/metrics"] {
        ensure!(status_of(daemon, &By::Nobody, &[], path)? == 200, "control run: {path} by root");
        ensure!(status_of(daemon, &agent, &[], path)? == 403, "an agent may read {path}");
    }
    ensure!(status_of(daemon, &agent, &[], "/v1/why")? == 200, "an agent may not ask why");
    let mark = daemon.events().mark();
    let program = daemon.lab().program("pp-workload").display().to_string();
    let why = daemon.cli_words(&["why", "--json"]).join(" ");
    // The event is written when the record has been read: ask until it is there, for as long as the session lives.
    let script = format!("{program} try tcp-connect {PLC}; for i in $(seq 200); do {why} | grep -q 10.20.4.7 && break; done; {why}");
    let told = By::run(AGENT).run_words(daemon, &["/bin/bash".into(), "-c".into(), script])?;
    ensure!(told.stdout.contains("10.20.4.7") && told.stdout.contains("no_receipt"), "{told}");
    ensure!(!told.stdout.contains("plant-7"), "the name of the zone was told: {told}");
    let _event = daemon.events().wait_since(mark, "the refusal", |event| is_block(event, PLC))?;
    Ok(())
}

fn agent_cannot_revoke_or_release(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let target = fresh_target();
    let receipt = Registered::new(daemon, &opening(target))?;
    let delete = ["-X", "DELETE"];
    let path = format!("/v1/receipts/{}", receipt.id);
    ensure!(status_of(daemon, &By::run(AGENT), &delete, &path)? == 403, "an agent revoked a receipt");
    ensure!(status_of(daemon, &By::run(AGENT), &delete, "/v1/sessions/0000000000000001")? == 403, "an agent may release");
    ensure!(status_of(daemon, &By::run(AGENT), &["-X", "POST"], "/v1/policy/reload")? == 403, "an agent may reload the policy");
    let cli = By::run(AGENT).run_words(daemon, &daemon.cli_words(&["receipt", "revoke", &receipt.id]))?;
    ensure!(!cli.status.success(), "the CLI let an agent revoke: {cli}");
    ensure!(status_of(daemon, &By::Nobody, &delete, &path)? == 200, "control run: root may revoke");
    Ok(())
}

fn agent_may_register_a_signed_receipt(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let target = fresh_target();
    let artifact = opening(target).sign(daemon.operator());
    let file = daemon.path("by-agent.json");
    std::fs::write(&file, artifact.to_string())?;
    let registered = By::run(AGENT).run_words(daemon, &daemon.cli_words(&["receipt", "register", &file.display().to_string()]))?;
    let _output = registered.success()?;
    let revoked = daemon.client()?.delete(&format!("/v1/receipts/{}", pp_tests::forge::id(&artifact)))?;
    ensure!(revoked.status == 200, "{revoked:?}");
    Ok(())
}

fn connection_handed_over_by_a_dead_child_has_an_agents_rights(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let socket = daemon.path("control.sock").display().to_string();
    let request = "GET /v1/policy HTTP/1.1\\r\\nHost: pp-agent\\r\\nConnection: close\\r\\n\\r\\n";
    let attempt = attack::workload(daemon.lab(), &["peer-fd", &socket, request], PLC);
    for by in [By::run(AGENT), By::Nobody] {
        let answer = by.run_words(daemon, &attempt.words)?.success()?.json()?;
        ensure!(answer["answer"].as_str().is_some_and(|line| line.contains(" 403 ")), "by {by:?}: {answer}");
    }
    ensure!(status_of(daemon, &By::Nobody, &[], "/v1/policy")? == 200, "control run: the same request of a living peer");
    Ok(())
}

fn user_sees_only_sessions_of_their_own(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let server = attack::workload(daemon.lab(), &["serve", "127.0.0.1:9100"], PLC);
    let mut running = Running::start(&mut daemon.lab().command(Place::Engineering, &By::run(AGENT).words(daemon, &server.words)))?;
    let _ready = running.line_with("ready")?;
    let list = |by: &By, what: &str| -> Result<Value> {
        let socket = daemon.path("control.sock").display().to_string();
        let words = ["curl", "-sS", "--max-time", "20", "--unix-socket", &socket, &format!("http://pp-agent/v1/{what}")].map(str::to_owned);
        by.run_words(daemon, &words)?.success()?.json()
    };
    let session = list(&By::Nobody, "sessions")?;
    ensure!(session.to_string().contains(AGENT), "control run: root does not see the session: {session}");
    let theirs = list(&as_user(daemon), "sessions")?;
    ensure!(!theirs.to_string().contains(AGENT), "another user sees root's session: {theirs}");
    let socket = daemon.path("control.sock").display().to_string();
    let words = ["curl", "-sS", "--max-time", "20", "--unix-socket", &socket, "http://pp-agent/v1/events"].map(str::to_owned);
    let events = as_user(daemon).run_words(daemon, &words)?;
    ensure!(!events.stdout.contains("\"session\""), "another user sees root's events: {events}");
    Ok(())
}

fn user_cannot_check_or_revoke(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let user = as_user(daemon);
    ensure!(status_of(daemon, &user, &[], "/v1/status")? == 200, "a user may not read the status");
    ensure!(status_of(daemon, &user, &CHECK, "/v1/check")? == 403, "a user may check");
    ensure!(status_of(daemon, &user, &["-X", "DELETE"], "/v1/receipts/ppa_x")? == 403, "a user may revoke");
    ensure!(status_of(daemon, &user, &[], "/v1/policy")? == 403, "a user may read the policy");
    Ok(())
}

fn keys_are_not_made_and_receipts_not_signed_inside_a_session(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let file = |name: &str| daemon.path(name).display().to_string();
    let (inside, outside, request) = (file("inside.pem"), file("outside.pem"), file("request.json"));
    let keygen = |path: &str| daemon.cli_words(&["receipt", "keygen", "--id", KEY, "--decider", DECIDER, "--out", path, "--unencrypted"]);
    let _made = By::Nobody.run_words(daemon, &keygen(&outside))?.success()?;
    let refused = By::run(AGENT).run_words(daemon, &keygen(&inside))?;
    ensure!(!refused.status.success() && !daemon.path("inside.pem").exists(), "a key was made inside a session: {refused}");
    let drafted = daemon.cli(&["receipt", "request", "--agent", AGENT, "--user", "root", "--target", "10.20.4.7:502"])?.success()?;
    std::fs::write(&request, drafted.stdout)?;
    let sign = daemon.cli_words(&["receipt", "sign", &request, "--key", &outside, "--yes"]);
    let _signed = By::Nobody.run_words(daemon, &sign)?.success()?;
    let refused = By::run(AGENT).run_words(daemon, &sign)?;
    ensure!(!refused.status.success() && !refused.stdout.contains("signature_b64"), "a receipt was signed inside a session: {refused}");
    Ok(())
}
