//! Bad input: a clear message each time, the daemon alive, and the old state in force.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::harness::By;
use pp_tests::lab::{PLC, Place, fresh_target};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run;
use serde_json::{Value, json};

use crate::receipts::{opening, plc};
use crate::world::{World, tests};

tests![
    policies_that_are_not_right_are_refused_and_the_old_one_stays,
    policy_of_another_owner_is_refused,
    keys_of_another_owner_are_refused,
    task_table_of_another_size_is_told,
    empty_policy_enforces_the_built_in_services,
    receipts_that_are_no_receipts_are_refused,
    terminal_escapes_never_reach_the_terminal,
    half_a_request_blocks_nobody,
    body_of_a_hundred_megabytes_is_refused,
    thousand_idle_connections_block_nobody,
    slow_reader_misses_nothing,
    daemon_without_root_says_so,
    daemon_without_cgroup2_says_so,
    daemon_without_btf_says_so,
    full_task_table_refuses_loudly,
];

/// The daemon answers, and still refuses what it refused.
fn alive_and_enforcing(daemon: &Daemon) -> Result<()> {
    let _status = daemon.client()?.status()?;
    let answer = By::LAB_AGENT.attempt(daemon, &attack::tcp(daemon.lab(), PLC))?;
    ensure!(answer == Answer::Refused(libc::EPERM), "the old policy is not in force: {answer:?}");
    Ok(())
}

fn policies_that_are_not_right_are_refused_and_the_old_one_stays(world: &mut World) -> Result<()> {
    let good = Policy::standard(world.lab());
    let zone = |name: &str, network: &str| format!("[[zone]]\nname = \"{name}\"\nnetworks = [\"{network}\"]\n");
    let agent = |rule: &str| good.clone().with_agent("too-much", rule).text();
    // Many times what fits, in a file that is not too large itself: the four other networks are of the good policy.
    let hosts: String = (0..49_998_u32).map(|n| format!("\"10.{}.{}.{}/32\",", 64 + (n >> 16), n >> 8 & 255, n & 255)).collect();
    let cases = [
        ("an unknown key", good.clone().with_top("hots = \"x\"").text(), "hots"),
        ("an unknown key of a table", good.clone().replacing("networks = ", "nets = ").text(), "nets"),
        ("a bad network", good.clone().with(&zone("b", "10.21.0.0/33")).text(), "10.21.0.0/33"),
        ("host bits set", good.clone().with(&zone("b", "10.21.0.1/16")).text(), "10.21.0.1/16"),
        ("one network in two zones", good.clone().with(&zone("b", "10.20.0.0/16")).text(), "plant-7"),
        ("one agent twice", agent("exec = [\"x\"]") + "[[agent]]\nname = \"codex\"\nexec = [\"y\"]\n", "codex"),
        ("a rule that marks PID 1", agent("exec = [\"*/systemd\"]"), "systemd"),
        ("a rule that marks sshd", agent("exec = [\"sshd\"]"), "sshd"),
        ("a rule that marks everything", agent("exec = [\"*\"]"), "every program"),
        ("a rule that the kernel could not count", good.clone().with("[behaviour]\npairs = 129\n").text(), "behaviour.pairs"),
        ("an authority over an unknown zone", good.clone().replacing("zones = [\"plant-7\"]", "zones = [\"plant-8\"]").text(), "plant-8"),
        ("more networks than fit", good.clone().with(&format!("[[zone]]\nname = \"b\"\nnetworks = [{hosts}]\n")).text(), "50002 written, "),
        ("no TOML", "host = \n[[zone".to_owned(), "policy.toml"),
        ("ten megabytes", format!("# {}\n", "x".repeat(10 << 20)), "bytes"),
    ];
    let daemon = world.own(&good)?;
    let path = daemon.path("policy.toml");
    let mut wrong = Vec::new();
    for (what, text, said) in &cases {
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
        let reloaded = daemon.cli(&["policy", "reload"])?;
        if reloaded.status.success() || !reloaded.both().contains(said) {
            wrong.push(format!("{what}: no refusal that says `{said}`: {reloaded}"));
        }
        alive_and_enforcing(&daemon)?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    daemon.reload(&good)?;
    alive_and_enforcing(&daemon)
}

fn policy_of_another_owner_is_refused(world: &mut World) -> Result<()> {
    let good = Policy::standard(world.lab());
    let daemon = world.own(&good)?;
    let path = daemon.path("policy.toml");
    chown(&path, Some(9), None)?;
    let reloaded = daemon.cli(&["policy", "reload"])?;
    ensure!(!reloaded.status.success() && reloaded.both().contains("uid 9"), "{reloaded}");
    chown(&path, Some(0), None)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    let reloaded = daemon.cli(&["policy", "reload"])?;
    ensure!(!reloaded.status.success() && reloaded.both().contains("0666"), "{reloaded}");
    alive_and_enforcing(&daemon)
}

fn keys_of_another_owner_are_refused(world: &mut World) -> Result<()> {
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    let path = daemon.path("keys.json");
    let _registered = daemon.register(&plc().sign(daemon.operator()))?;
    let reaches = |daemon: &Daemon| By::LAB_AGENT.attempt(daemon, &attack::tcp(daemon.lab(), PLC));
    let refused = |daemon: &Daemon, said: &str| -> Result<()> {
        let reloaded = daemon.cli(&["policy", "reload"])?;
        ensure!(!reloaded.status.success() && reloaded.both().contains(said), "no refusal that says `{said}`: {reloaded}");
        let answer = reaches(daemon)?;
        ensure!(answer == Answer::Delivered, "what was in force did not stay: {answer:?}");
        Ok(())
    };
    chown(&path, Some(9), None)?;
    refused(&daemon, "keys.json: belongs to uid 9")?;
    chown(&path, Some(0), None)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o620))?;
    refused(&daemon, "keys.json: mode 0620")?;
    // At start there is nothing to keep: no key, so no receipt, and it says so.
    daemon.stop()?;
    daemon.spawn()?;
    alive_and_enforcing(&daemon)?;
    let status = daemon.cli(&["status"])?;
    ensure!(status.code() != 0 && status.both().contains("keys.json: mode 0620"), "{status}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
    let _reloaded = daemon.cli(&["policy", "reload"])?.success()?;
    let answer = reaches(&daemon)?;
    ensure!(answer == Answer::Delivered, "the receipt does not hold again: {answer:?}");
    let _healthy = daemon.cli(&["status"])?.success()?;
    Ok(())
}

/// `max_tasks` is the one value that a reload cannot put in force: whoever changes it hears so until it is.
fn task_table_of_another_size_is_told(world: &mut World) -> Result<()> {
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    Policy::standard(world.lab()).with_top("max_tasks = 2048").write(&daemon.path("policy.toml"))?;
    let said = "max_tasks = 2048 is not in force, the task table was made for 65536";
    let reloaded = daemon.cli(&["policy", "reload"])?.success()?;
    ensure!(reloaded.stdout.contains(said), "{reloaded}");
    for _ in 0..2 {
        let status = daemon.cli(&["status"])?;
        ensure!(status.code() != 0 && status.both().contains(said), "{status}");
        daemon.stop()?;
        daemon.spawn()?;
    }
    ensure!(daemon.log().contains(said), "the start does not say so:\n{}", daemon.log());
    daemon.reload(&Policy::standard(world.lab()))?;
    let _healthy = daemon.cli(&["status"])?.success()?;
    alive_and_enforcing(&daemon)
}

fn empty_policy_enforces_the_built_in_services(world: &mut World) -> Result<()> {
    let daemon = world.own(&Policy::standard(world.lab()))?;
    let path = daemon.path("policy.toml");
    fs::write(&path, "")?;
    let reloaded = daemon.cli(&["policy", "reload"])?;
    if !reloaded.status.success() {
        return alive_and_enforcing(&daemon);
    }
    // The lab's agents are not in it, but what `run` starts is one still, and Modbus is a service that it protects.
    let answer = By::run(AGENT).attempt(&daemon, &attack::tcp(daemon.lab(), PLC))?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{answer:?}");
    Ok(())
}

fn receipts_that_are_no_receipts_are_refused(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let good = plc().sign(daemon.operator()).to_string();
    let twice = good.replacen("{\"artifact\":{", "{\"artifact\":{\"alg\":\"ed25519\",", 1);
    let mut not_text = good.clone().into_bytes();
    not_text[20] = 0xff;
    let cases: [(&str, Vec<u8>); 7] = [
        ("nothing", Vec::new()),
        ("cut short", good.as_bytes()[..good.len() / 2].to_vec()),
        ("a key twice", twice.into_bytes()),
        ("not UTF-8", not_text),
        ("not an object", b"[1, 2, 3]".to_vec()),
        ("deep", "[".repeat(100_000).into_bytes()),
        ("something behind it", format!("{good} {good}").into_bytes()),
    ];
    for (what, bytes) in cases {
        let answer = daemon.client()?.post_bytes("/v1/receipts", bytes)?;
        let code = answer.body["error"]["code"].as_str().unwrap_or_default();
        ensure!((400..500).contains(&answer.status) && !code.is_empty(), "{what}: {answer:?}");
        alive_and_enforcing(daemon)?;
    }
    Ok(())
}

fn terminal_escapes_never_reach_the_terminal(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let hostile = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{202e}line\nbreak";
    let draft = opening(fresh_target())
        .request("/intent/summary", json!(hostile))
        .payload("summary", json!(hostile))
        .payload("deciderDisplay", json!(hostile))
        .payload("reasonCodes", json!(json!([hostile]).to_string()));
    let artifact = draft.sign(daemon.operator());
    let file = daemon.path("hostile.json");
    fs::write(&file, artifact.to_string())?;
    let file = file.display().to_string();
    let id = pp_tests::forge::id(&artifact);
    let clean = |output: &run::Output| {
        let text = output.both();
        !text.contains('\u{1b}') && !text.contains('\u{7}') && !text.contains('\u{202e}')
    };
    for command in [
        vec!["receipt", "inspect", &file],
        vec!["receipt", "register", &file],
        vec!["receipt", "list"],
        vec!["receipt", "show", &id],
        vec!["receipt", "revoke", &id],
    ] {
        let output = daemon.cli(&command)?;
        ensure!(clean(&output), "{} let a control or bidi character through", command.join(" "));
    }
    // An agent's argument vector is its own text too.
    let mark = daemon.events().mark();
    let script = format!(": > /dev/tcp/{}/502", PLC.ip());
    let _refused = By::run(AGENT).run_words(daemon, &["/bin/bash".into(), "-c".into(), script, hostile.into()])?;
    let _event = daemon.events().wait_since(mark, "the refusal", |event| pp_tests::harness::is_block(event, PLC))?;
    for command in [vec!["events"], vec!["why"], vec!["sessions"]] {
        let output = daemon.cli(&command)?;
        ensure!(clean(&output), "{} let a control or bidi character through", command.join(" "));
    }
    Ok(())
}

fn half_a_request_blocks_nobody(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let mut halves = Vec::new();
    for _ in 0..8 {
        let mut stream = UnixStream::connect(daemon.path("control.sock"))?;
        stream.write_all(b"POST /v1/receipts HTTP/1.1\r\nHost: pp-agent\r\nContent-Length: 500\r\n\r\n{\"arti")?;
        halves.push(stream);
    }
    alive_and_enforcing(daemon)?;
    let mut garbage = UnixStream::connect(daemon.path("control.sock"))?;
    garbage.write_all(&[0, 255, 13, 10, 13, 10])?;
    garbage.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut answer = Vec::new();
    let _read = garbage.read_to_end(&mut answer);
    drop(halves);
    alive_and_enforcing(daemon)
}

fn body_of_a_hundred_megabytes_is_refused(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let memory = || -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()?))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        Ok(peak.unwrap_or(0))
    };
    let before = memory()?;
    let mut stream = UnixStream::connect(daemon.path("control.sock"))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    // Chunked, so that no header gives the size away.
    stream.write_all(
        b"POST /v1/receipts HTTP/1.1\r\nHost: pp-agent\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    let megabyte = vec![b' '; 1 << 20];
    for _ in 0..100 {
        if stream.write_all(b"100000\r\n").and_then(|()| stream.write_all(&megabyte)).and_then(|()| stream.write_all(b"\r\n")).is_err() {
            break;
        }
    }
    let mut answer = [0_u8; 64];
    let read = stream.read(&mut answer).unwrap_or(0);
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    ensure!(read == 0 || answer.contains(" 413 "), "{answer}");
    ensure!(memory()? < before + 32 * 1024, "the daemon kept the body: {} kB before, {} kB after", before, memory()?);
    alive_and_enforcing(daemon)
}

fn thousand_idle_connections_block_nobody(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let mut idle = Vec::new();
    for _ in 0..1_000 {
        match UnixStream::connect(daemon.path("control.sock")) {
            Ok(stream) => idle.push(stream),
            Err(_) => break,
        }
    }
    pp_tests::wait::until_true("an answer beside idle connections", pp_tests::wait::SOON, || {
        daemon.client().and_then(|client| client.status()).is_ok()
    })?;
    let held = idle.len();
    drop(idle);
    ensure!(held > 0, "no connection was taken");
    alive_and_enforcing(daemon)
}

fn slow_reader_misses_nothing(world: &mut World) -> Result<()> {
    /// Four times what the daemon keeps for a reader.
    const PORTS: std::ops::RangeInclusive<u64> = 20_001..=24_000;
    /// Fewer than are told of one session before its flood is summarised.
    const OF_A_SESSION: u64 = 800;
    let daemon = world.daemon()?;
    let mut slow = UnixStream::connect(daemon.path("control.sock"))?;
    let mark = daemon.events().mark();
    slow.write_all(b"GET /v1/events?follow=true&limit=1 HTTP/1.1\r\nHost: pp-agent\r\n\r\n")?;
    for from in PORTS.step_by(usize::try_from(OF_A_SESSION)?) {
        let to = from + OF_A_SESSION - 1;
        let script = format!("for port in $(seq {from} {to}); do : > /dev/tcp/{}/$port; done 2> /dev/null; true", PLC.ip());
        let _done = By::run(AGENT).run_words(daemon, &["/bin/bash".into(), "-c".into(), script])?.success()?;
    }
    let is_last = |event: &Value| event["destination"]["port"] == *PORTS.end();
    let _last = daemon.events().wait_since(mark, "the last refusal, at a reader that is quick", is_last)?;
    slow.set_read_timeout(Some(pp_tests::wait::SOON))?;
    let mut ports = Vec::new();
    for line in BufReader::new(slow).lines() {
        // Lengths of chunks and heads stand between the events.
        let Ok(event) = serde_json::from_str::<Value>(&line?) else { continue };
        ensure!(event["kind"] != "lost", "events are missing: {event}");
        ports.extend(event["destination"]["port"].as_u64().filter(|port| event["kind"] == "verdict" && PORTS.contains(port)));
        if is_last(&event) {
            break;
        }
    }
    ensure!(ports.iter().copied().eq(PORTS), "{} events, each once and in order? of {}", ports.len(), PORTS.count());
    alive_and_enforcing(daemon)
}

/// A start that must fail: its words and its exit code.
fn fails_to_start(daemon: &Daemon, wrapped: &[&str], said: &[&str]) -> Result<()> {
    let plain = daemon.command();
    // The lab's own wrapper comes first; what it runs is wrapped once more.
    let words: Vec<String> = plain.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let start = words.iter().position(|word| word == "--").map_or(0, |at| at + 1);
    let command: Vec<String> = wrapped.iter().map(|word| (*word).to_owned()).chain(words[start..].iter().cloned()).collect();
    let output = run::run(&mut daemon.lab().command(Place::Engineering, &command))?;
    ensure!(!output.status.success(), "it started: {output}");
    let text = output.both().to_lowercase();
    ensure!(said.iter().any(|word| text.contains(word)), "it does not say what is missing ({said:?}): {output}");
    Ok(())
}

fn daemon_without_root_says_so(world: &mut World) -> Result<()> {
    let daemon = world.prepared(&Policy::standard(world.lab()))?;
    let workload = daemon.lab().program("pp-workload").display().to_string();
    fails_to_start(&daemon, &[&workload, "in", "--uid", "9", "--"], &["root", "cap_bpf", "permission"])
}

fn daemon_without_cgroup2_says_so(world: &mut World) -> Result<()> {
    let mut daemon = world.prepared(&Policy::standard(world.lab()))?;
    daemon.accept_namespace("mount");
    let root = pp_tests::paths::cgroup2()?;
    let script = format!("umount -l {} && exec \"$@\"", root.display());
    fails_to_start(&daemon, &["unshare", "--mount", "--propagation", "private", "/bin/bash", "-c", &script, "without"], &["cgroup2"])
}

fn daemon_without_btf_says_so(world: &mut World) -> Result<()> {
    let mut daemon = world.prepared(&Policy::standard(world.lab()))?;
    daemon.accept_namespace("mount");
    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    fails_to_start(&daemon, &["unshare", "--mount", "--propagation", "private", "/bin/bash", "-c", script, "without"], &["btf"])
}

/// With the smallest table there is: what finds no room in it is refused or killed, never let through unmarked.
fn full_task_table_refuses_loudly(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab()).with_top("max_tasks = 1024");
    let daemon = world.own(&policy)?;
    let attempt = attack::tcp(daemon.lab(), PLC).words.join(" ");
    let mark = daemon.events().mark();
    // Forks alone, and each waits for somebody to write: an emulated machine starts a thousand programs in a minute.
    let fifo = daemon.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    let wait = format!("( read -r _ < {} ) &", fifo.display());
    let script = format!("for i in {{1..1020}}; do {wait} done; for i in {{1..30}}; do ( {attempt} ) & done; wait");
    let quiet = pp_tests::harness::Quiet::begin(daemon.lab())?;
    let crowd = By::LAB_AGENT.start_words(&daemon, &["/bin/bash".into(), "-c".into(), script])?;
    let told = daemon.events().wait_since(mark, "an event about the full table", |event| event["kind"] == "lost");
    let printed = crowd.stdout();
    drop(crowd);
    let _event = told?;
    ensure!(!printed.contains("\"ok\":true"), "a child without a mark got through");
    quiet.assert_nothing_at(PLC)?;
    // With the crowd gone there is room again.
    pp_tests::wait::until_true("room in the table", pp_tests::wait::SOON, || alive_and_enforcing(&daemon).is_ok())
}
