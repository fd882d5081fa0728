//! Tools that scan and guess passwords: refused by name and telling arguments before their first instruction, reported by name alone.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::harness::By;
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run::Output;
use serde_json::Value;

use crate::world::{World, tests};

tests![
    tool_with_a_telling_shape_is_killed_before_its_first_instruction,
    other_ways_to_start_the_tool_are_the_same,
    telling_argument_behind_padding_is_seen_or_its_hiding_is_refused,
    name_alone_is_reported_and_runs,
    tool_is_refused_with_the_daemon_dead,
    line_of_policy_lets_a_command_line_run,
    observing_policy_kills_nothing_and_tells_it,
    tool_runs_while_protection_is_off_and_its_event_says_so,
    first_program_of_a_session_is_judged_too,
];

/// What a spray's arguments look like.
const SPRAY: [&str; 5] = ["-L", "users.txt", "-P", "secrets.txt", "ssh://10.30.4.9"];

/// A program of this name that leaves a trace as soon as it runs.
struct Decoy {
    path: PathBuf,
    trace: PathBuf,
}

impl Decoy {
    fn new(daemon: &Daemon, name: &str) -> Result<Self> {
        let directory = daemon.path("tools");
        fs::create_dir_all(&directory)?;
        let (path, trace) = (directory.join(name), daemon.path(&format!("ran-{name}")));
        fs::copy("/usr/bin/touch", &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self { path, trace })
    }

    /// The words that run it: it touches the trace, and what else it is given it takes for files of its directory.
    fn words(&self, program: &[String], arguments: &[&str]) -> Vec<String> {
        let mut words = program.to_vec();
        words.push(self.trace.display().to_string());
        words.push("--".into());
        words.extend(arguments.iter().map(|word| (*word).to_owned()));
        words
    }

    fn program(&self) -> Vec<String> {
        vec![self.path.display().to_string()]
    }

    /// Whether it ran since the last time this was asked.
    fn ran(&self) -> bool {
        fs::remove_file(&self.trace).is_ok()
    }

    fn run(&self, daemon: &Daemon, by: &By, program: &[String], arguments: &[&str]) -> Result<Output> {
        let inside = format!("cd {} && exec \"$@\"", daemon.path("tools").display());
        let mut words = vec!["/bin/bash".to_owned(), "-c".to_owned(), inside, "in".to_owned()];
        words.extend(self.words(program, arguments));
        by.run_words(daemon, &words)
    }
}

fn exec_event(daemon: &Daemon, mark: usize, verdict: &str, tool: &str) -> Result<Value> {
    let event = daemon.events().wait_since(mark, "its event", |event| event["kind"] == "exec" && event["tool"] == tool)?;
    ensure!(event["verdict"] == verdict && event["hook"] == "exec" && event["agent"] == AGENT, "{event}");
    Ok(event)
}

/// Runs for nobody, and is killed for the agent; returns the event.
fn refused(daemon: &Daemon, decoy: &Decoy, program: &[String], arguments: &[&str], tool: &str) -> Result<Value> {
    let free = decoy.run(daemon, &By::Nobody, program, arguments)?;
    ensure!(decoy.ran(), "control run: it did not run: {free}");
    let mark = daemon.events().mark();
    let output = decoy.run(daemon, &By::run(AGENT), program, arguments)?;
    ensure!(!decoy.ran(), "it ran: {output}");
    ensure!(killed(&output), "it was not killed: {output}");
    exec_event(daemon, mark, "block", tool)
}

/// An agent runs a tool so that it is killed, for tests of what else that does.
pub(crate) fn spray_once(daemon: &Daemon) -> Result<()> {
    let hydra = Decoy::new(daemon, "hydra")?;
    let output = hydra.run(daemon, &By::run(AGENT), &hydra.program(), &SPRAY)?;
    ensure!(killed(&output) && !hydra.ran(), "it was not killed: {output}");
    Ok(())
}

fn killed(output: &Output) -> bool {
    output.status.signal() == Some(libc::SIGKILL) || output.status.code() == Some(128 + libc::SIGKILL)
}

fn tool_with_a_telling_shape_is_killed_before_its_first_instruction(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let hydra = Decoy::new(daemon, "hydra")?;
    let mut arguments = SPRAY.to_vec();
    arguments.extend(["-p", "s3cret"]);
    let event = refused(daemon, &hydra, &hydra.program(), &arguments, "hydra")?;
    ensure!(event["shape"] == "credential list" && event["attack"] == serde_json::json!(["T1110"]), "{event}");
    let argv = event["argv"].to_string();
    ensure!(argv.contains("******") && !argv.contains("s3cret") && argv.contains("users.txt"), "{argv}");
    ensure!(event["executable"].as_str().is_some_and(|path| path.ends_with("/hydra")), "{event}");
    let nmap = Decoy::new(daemon, "nmap")?;
    let event = refused(daemon, &nmap, &nmap.program(), &["-sT", "10.20.0.0/16"], "nmap")?;
    ensure!(event["shape"] == "range" && event["attack"] == serde_json::json!(["T1046"]), "{event}");
    Ok(())
}

fn other_ways_to_start_the_tool_are_the_same(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let hydra = Decoy::new(daemon, "hydra")?;
    // By another path, the program under its own name in argv[0].
    let renamed = hydra.path.with_file_name("innocent");
    fs::copy(&hydra.path, &renamed)?;
    let calls_itself = |path: &Path| {
        vec![
            "/bin/bash".to_owned(),
            "-c".to_owned(),
            "p=$1; shift; exec -a hydra \"$p\" \"$@\"".to_owned(),
            "x".to_owned(),
            path.display().to_string(),
        ]
    };
    let _event = refused(daemon, &hydra, &calls_itself(&renamed), &SPRAY, "hydra")?;
    // By the dynamic loader.
    if let Some(loader) = ["/lib64/ld-linux-x86-64.so.2"].into_iter().find(|path| Path::new(path).exists()) {
        let words = vec![loader.to_owned(), hydra.path.display().to_string()];
        let _event = refused(daemon, &hydra, &words, &SPRAY, "hydra")?;
    }
    // By a link of that name.
    let link = hydra.path.with_file_name("medusa");
    if !link.exists() {
        symlink(&renamed, &link)?;
    }
    let _event = refused(daemon, &hydra, &[link.display().to_string()], &["-P", "list"], "medusa")?;
    // As a script of an interpreter, and as one with a `#!` line.
    let script = hydra.path.with_file_name("patator.py");
    fs::write(&script, "#!/bin/sh\nexec touch -- \"$1\"\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let _event = refused(daemon, &hydra, &[script.display().to_string()], &["ssh_login", "user=FILE0"], "patator")?;
    let _event = refused(daemon, &hydra, &["/bin/sh".into(), script.display().to_string()], &["ssh_login", "user=FILE0"], "patator")?;
    // Under a name of its own it runs: only what it does is judged.
    let output = hydra.run(daemon, &By::run(AGENT), &[renamed.display().to_string()], &SPRAY)?;
    ensure!(hydra.ran(), "an unknown name was refused: {output}");
    Ok(())
}

fn telling_argument_behind_padding_is_seen_or_its_hiding_is_refused(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let hydra = Decoy::new(daemon, "hydra")?;
    for (length, shape) in [(600, "credential list"), (1_500, "credential list"), (4_000, "more arguments than can be read")] {
        let padding: Vec<String> = (0..length / 100).map(|part| format!("{part:0>99}")).collect();
        let mut arguments: Vec<&str> = padding.iter().map(String::as_str).collect();
        arguments.extend(SPRAY);
        let event = refused(daemon, &hydra, &hydra.program(), &arguments, "hydra").with_context(|| format!("{length} bytes"))?;
        ensure!(event["shape"] == shape, "{length}: {event}");
    }
    Ok(())
}

fn name_alone_is_reported_and_runs(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let nmap = Decoy::new(daemon, "nmap")?;
    let mark = daemon.events().mark();
    let output = nmap.run(daemon, &By::run(AGENT), &nmap.program(), &["--version"])?;
    ensure!(nmap.ran(), "{output}");
    let event = exec_event(daemon, mark, "report", "nmap")?;
    ensure!(event.get("shape").is_none(), "{event}");
    Ok(())
}

fn tool_is_refused_with_the_daemon_dead(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab());
    let mut daemon = world.own(&policy)?;
    let hydra = Decoy::new(&daemon, "hydra")?;
    daemon.crash()?;
    let by = By::LAB_AGENT;
    let output = hydra.run(&daemon, &by, &hydra.program(), &SPRAY)?;
    ensure!(!hydra.ran() && killed(&output), "with the daemon dead: {output}");
    daemon.spawn()?;
    let output = hydra.run(&daemon, &by, &hydra.program(), &SPRAY)?;
    ensure!(!hydra.ran() && killed(&output), "after a restart: {output}");
    Ok(())
}

fn line_of_policy_lets_a_command_line_run(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab()).with("[exec]\nallow = [\"nmap ** localhost\"]");
    let daemon = world.own(&policy)?;
    let nmap = Decoy::new(&daemon, "nmap")?;
    let output = nmap.run(&daemon, &By::run(AGENT), &nmap.program(), &["-p", "502", "localhost"])?;
    ensure!(nmap.ran(), "{output}");
    let _event = refused(&daemon, &nmap, &nmap.program(), &["-p", "502", "10.20.4.7"], "nmap")?;
    Ok(())
}

fn observing_policy_kills_nothing_and_tells_it(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab()).with("[exec]\nmode = \"observe\"");
    let daemon = world.own(&policy)?;
    let hydra = Decoy::new(&daemon, "hydra")?;
    let mark = daemon.events().mark();
    let output = hydra.run(&daemon, &By::run(AGENT), &hydra.program(), &SPRAY)?;
    ensure!(hydra.ran(), "{output}");
    let event = exec_event(&daemon, mark, "observe", "hydra")?;
    ensure!(event["shape"] == "credential list", "{event}");
    Ok(())
}

fn tool_runs_while_protection_is_off_and_its_event_says_so(world: &mut World) -> Result<()> {
    let daemon = world.own(&Policy::standard(world.lab()))?;
    let hydra = Decoy::new(&daemon, "hydra")?;
    let _event = refused(&daemon, &hydra, &hydra.program(), &SPRAY, "hydra")?;
    let _off = daemon.cli(&["off", "--for", "10m", "--reason", "an audit of passwords"])?.success()?;
    let mark = daemon.events().mark();
    let output = hydra.run(&daemon, &By::run(AGENT), &hydra.program(), &SPRAY)?;
    ensure!(hydra.ran(), "{output}");
    let event = exec_event(&daemon, mark, "off", "hydra")?;
    ensure!(event["shape"] == "credential list", "{event}");
    let _on = daemon.cli(&["on"])?.success()?;
    refused(&daemon, &hydra, &hydra.program(), &SPRAY, "hydra").map(drop)
}

fn first_program_of_a_session_is_judged_too(world: &mut World) -> Result<()> {
    let lab = world.lab();
    let tool = lab.directory().join("bin/hydra");
    let policy = Policy::standard(lab).replacing("exec = [", &format!("exec = [\"{}\", ", tool.display()));
    let daemon = world.own(&policy)?;
    let hydra = Decoy::new(&daemon, "hydra")?;
    fs::copy(&hydra.path, &tool)?;
    let by = By::Nobody;
    let output = hydra.run(&daemon, &by, &[tool.display().to_string()], &SPRAY)?;
    let ran = hydra.ran();
    fs::remove_file(&tool)?;
    ensure!(!ran && killed(&output), "{output}");
    Ok(())
}
