//! Attacks on the control socket from both ends: a false server that a person's shell names, and callers who want to keep the others out.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::forge;
use pp_tests::harness::By;
use pp_tests::lab::{Place, fresh_target, is_emulated};
use pp_tests::policy::{AGENT, OTHER_AGENT, Policy};
use pp_tests::run::{self, Output, Running};
use pp_tests::wait;
use serde_json::Value;

use crate::receipts::opening;
use crate::world::{World, tests};

tests![
    false_server_in_the_environment_is_believed_by_no_command,
    false_server_in_a_user_namespace_of_its_own_is_believed_by_no_command,
    false_server_on_the_command_line_is_named_and_run_starts_nothing,
    run_proves_its_mark_by_a_refusal_that_no_event_tells_of,
    run_proves_its_mark_while_the_policy_observes,
    operator_is_served_beside_a_storm_of_refusals,
    operator_is_served_beside_slow_and_idle_callers,
];

/// An ordinary user, and another.
const USER: &str = "9";
const OTHER_USER: &str = "10";
/// Where `run` finds out whether it is marked.
const PROBE: &str = "127.255.255.253:1";

/// A server of an ordinary user that says yes to everything, in a folder of its own that everybody can write to.
struct FalseServer {
    running: Running,
    folder: PathBuf,
}

impl FalseServer {
    fn start(daemon: &Daemon, name: &str) -> Result<Self> {
        let folder = open_folder(daemon, name)?;
        let mut server = vec![workload(daemon), "false-server".into(), folder.join("s").display().to_string()];
        server.splice(0..0, as_user(daemon, USER));
        let mut running = Running::start(&mut daemon.lab().command(Place::Engineering, &server))?;
        let _ready = running.line_with("ready")?;
        Ok(Self { running, folder })
    }

    fn socket(&self) -> String {
        self.folder.join("s").display().to_string()
    }

    /// How many requests it was sent.
    fn requests(&self) -> usize {
        self.running.stdout().matches("\"request\"").count()
    }
}

fn open_folder(daemon: &Daemon, name: &str) -> Result<PathBuf> {
    let folder = daemon.path(name);
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
    Ok(folder)
}

fn workload(daemon: &Daemon) -> String {
    daemon.lab().program("pp-workload").display().to_string()
}

fn as_user(daemon: &Daemon, uid: &str) -> Vec<String> {
    vec![workload(daemon), "in".into(), "--uid".into(), uid.into(), "--".into()]
}

/// The CLI as root or a user, with this socket in its environment and no `--socket`.
fn with_variable(daemon: &Daemon, uid: Option<&str>, socket: &str, arguments: &[&str]) -> Result<Output> {
    let mut words = uid.map(|uid| as_user(daemon, uid)).unwrap_or_default();
    words.extend(["env".into(), format!("PP_AGENT_SOCKET={socket}"), daemon.lab().program("pp-agent").display().to_string()]);
    words.extend(arguments.iter().map(|word| (*word).to_owned()));
    run::run(&mut daemon.lab().command(Place::Engineering, &words))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn false_server_in_the_environment_is_believed_by_no_command(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let server = FalseServer::start(daemon, "false-by-variable")?;
    let marker = server.folder.join("ran");
    let (touched, receipt, key) = (text(&marker), text(&server.folder.join("r.json")), text(&server.folder.join("k.pem")));
    fs::write(&receipt, opening(fresh_target()).sign(daemon.operator()).to_string())?;
    let (pins, pid) = (text(&server.folder.join("no-pins")), std::process::id().to_string());
    let commands: &[&[&str]] = &[
        &["run", "--agent", AGENT, "--", "touch", &touched],
        &["run", "--confine", "--agent", AGENT, "--", "touch", &touched],
        &["adopt", &pid, "--agent", AGENT],
        &["release", "00000000000000aa"],
        &["status"],
        &["sessions"],
        &["events"],
        &["events", "--follow"],
        &["why"],
        &["check", "--agent", AGENT, "10.20.4.7:502"],
        &["receipt", "register", &receipt],
        &["receipt", "list"],
        &["receipt", "show", "ppa_x"],
        &["receipt", "revoke", "ppa_x"],
        &["receipt", "request", "--agent", AGENT, "--target", "10.20.4.7:502"],
        &["receipt", "keygen", "--id", "k", "--decider", "user:x@y", "--out", &key, "--unencrypted"],
        &["policy", "reload"],
        &["policy", "show"],
        &["uninstall-hooks", "--bpffs", &pins],
    ];
    for command in commands {
        // The person whom the agent works for, and root who took over that person's environment.
        for uid in [Some(USER), None] {
            let output = with_variable(daemon, uid, &server.socket(), command)?;
            let named = output.stderr.contains(&format!("control socket {}: not believed, since uid {USER} serves it", server.socket()));
            ensure!(output.code() == 2 && named && output.stdout.is_empty(), "{command:?} by {uid:?}: {output}");
        }
    }
    ensure!(!marker.exists(), "a command was started");
    ensure!(server.requests() == 0, "it was asked: {}", server.running.stdout());
    let real = text(&daemon.path("control.sock"));
    let output = with_variable(daemon, Some(USER), &real, &["run", "--agent", AGENT, "--", "touch", &touched])?;
    ensure!(output.code() == 0 && marker.exists(), "control run: the daemon's own socket in the environment: {output}");
    ensure!(output.stderr.contains(&format!("control socket {real} (PP_AGENT_SOCKET)")), "the socket was not named: {output}");
    let _status = with_variable(daemon, None, &real, &["status"])?.success()?;
    Ok(())
}

fn false_server_in_a_user_namespace_of_its_own_is_believed_by_no_command(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let folder = open_folder(daemon, "false-in-a-namespace")?;
    let (socket, marker, control) = (text(&folder.join("s")), text(&folder.join("ran")), text(&folder.join("control")));
    let (server, cli) = (workload(daemon), text(&daemon.lab().program("pp-agent")));
    // To them the server's uid is 0, as theirs is. What is asked of it is printed by itself.
    let script = format!(
        "{server} false-server {socket} & trap \"kill $!\" EXIT; until [ -S {socket} ]; do sleep 0.05; done; touch {control}; id -u; \
         export PP_AGENT_SOCKET={socket}; \
         for where in '' '--socket {socket}'; do \
           {cli} $where run --agent {AGENT} -- touch {marker}; echo \"run $?\"; \
           {cli} $where receipt revoke ppa_x; echo \"revoke $?\"; \
           {cli} $where status; echo \"status $?\"; \
         done"
    );
    let mut words = as_user(daemon, USER);
    words.extend(["unshare", "--user", "--map-root-user", "/bin/bash", "-c", &script].map(str::to_owned));
    let output = run::run(&mut daemon.lab().command(Place::Engineering, &words))?;
    ensure!(Path::new(&control).exists() && output.stdout.contains("\n0\n"), "control run: no namespace of a user's own: {output}");
    for answer in ["run 2", "revoke 2", "status 2"] {
        ensure!(output.stdout.matches(answer).count() == 2, "{answer}: {output}");
    }
    ensure!(output.stderr.matches("in a user namespace of its own").count() == 6, "{output}");
    ensure!(!output.stdout.contains("\"request\""), "the false server was asked: {output}");
    ensure!(!Path::new(&marker).exists(), "a command was started: {output}");
    // From such a namespace the daemon is not believed either: its uid is not to be told from others.
    let mut words = as_user(daemon, USER);
    words.extend(["unshare", "--user", "--map-root-user"].map(str::to_owned));
    words.extend(daemon.cli_words(&["run", "--agent", AGENT, "--", "touch", &marker]));
    let output = run::run(&mut daemon.lab().command(Place::Engineering, &words))?;
    ensure!(output.code() == 2 && !Path::new(&marker).exists(), "{output}");
    Ok(())
}

fn false_server_on_the_command_line_is_named_and_run_starts_nothing(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let server = FalseServer::start(daemon, "false-by-option")?;
    let marker = server.folder.join("ran");
    let by = |socket: &str, arguments: &[&str]| -> Result<Output> {
        let mut words = as_user(daemon, USER);
        words.extend([text(&daemon.lab().program("pp-agent")), "--socket".into(), socket.into()]);
        words.extend(arguments.iter().map(|word| (*word).to_owned()));
        run::run(&mut daemon.lab().command(Place::Engineering, &words))
    };
    let told = format!("control socket {}: uid {USER} serves it, not root", server.socket());
    let touch = ["run", "--agent", AGENT, "--", "touch", &text(&marker)];
    let output = by(&server.socket(), &touch)?;
    ensure!(output.stderr.contains(&told) && output.stderr.contains("does not treat this process as marked"), "{output}");
    ensure!(output.code() == 2 && !marker.exists(), "a command was started: {output}");
    ensure!(server.requests() == 1, "control run: the false server was not asked to mark: {}", server.running.stdout());
    let output = by(&server.socket(), &["receipt", "revoke", "ppa_x"])?;
    ensure!(output.stderr.contains(&told), "{output}");
    let real = text(&daemon.path("control.sock"));
    let output = by(&real, &touch)?;
    ensure!(output.code() == 0 && marker.exists(), "control run: the daemon's own socket on the command line: {output}");
    ensure!(output.stderr.contains(&format!("control socket {real} (--socket)")), "the socket was not named: {output}");
    Ok(())
}

/// Nothing of the probe is in the events since `mark`, of which there are some.
fn no_event_tells_of_the_probe(daemon: &Daemon, mark: usize) -> Result<()> {
    let _start = daemon.events().wait_since(mark, "the session's start", |event| event["kind"] == "session_start")?;
    // What is refused after the probe is told after it.
    let target = fresh_target();
    let _answer = By::run(AGENT).attempt(daemon, &attack::tcp(daemon.lab(), target))?;
    let _later = daemon.events().wait_since(mark, "the attempt after it", |event| {
        event["destination"]["address"] == target.ip().to_string() && event["kind"] == "verdict"
    })?;
    let told = daemon.events().since(mark);
    let address = PROBE.parse::<SocketAddr>()?.ip().to_string();
    let of_probe: Vec<&Value> =
        told.iter().filter(|event| event["destination"]["address"] == address || event["reason"] == "probe").collect();
    ensure!(of_probe.is_empty(), "{of_probe:?}");
    Ok(())
}

fn run_proves_its_mark_by_a_refusal_that_no_event_tells_of(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let probe = attack::tcp(daemon.lab(), PROBE.parse()?);
    let answer = By::Nobody.attempt(daemon, &probe)?;
    ensure!(answer == Answer::Refused(libc::ECONNREFUSED), "control run: an unmarked process hears {answer:?}");
    let mark = daemon.events().mark();
    for by in [By::run(AGENT), By::LAB_AGENT, By::Adopt(AGENT.to_owned())] {
        let answer = by.attempt(daemon, &probe)?;
        ensure!(answer == Answer::Refused(libc::EPERM), "{by:?} hears {answer:?}");
    }
    no_event_tells_of_the_probe(daemon, mark)?;
    let check = daemon.cli(&["check", "--json", "--agent", AGENT, PROBE])?;
    ensure!(check.code() == 1 && check.json()?["reason"] == "probe", "{check}");
    Ok(())
}

fn run_proves_its_mark_while_the_policy_observes(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab()).replacing("mode = \"enforce\"", "mode = \"observe\"");
    let daemon = world.own(&policy)?;
    let mark = daemon.events().mark();
    let answer = By::run(AGENT).attempt(&daemon, &attack::tcp(daemon.lab(), fresh_target()))?;
    ensure!(answer == Answer::Delivered, "control run: the policy does not observe: {answer:?}");
    let answer = By::run(AGENT).attempt(&daemon, &attack::tcp(daemon.lab(), PROBE.parse()?))?;
    ensure!(answer == Answer::Refused(libc::EPERM), "the probe was let through: {answer:?}");
    no_event_tells_of_the_probe(&daemon, mark)
}

/// Connections that never say what they want, or never come to the end of it; those that are closed are opened anew.
fn crowd(daemon: &Daemon, by: &By, slow: u32, idle: u32) -> Result<Running> {
    let socket = text(&daemon.path("control.sock"));
    let (slow, idle) = (slow.to_string(), idle.to_string());
    // An emulated processor opens some dozens a second.
    let every = if is_emulated() { "20000" } else { "200" };
    let words = [workload(daemon).as_str(), "crowd", &socket, "--slow", &slow, "--idle", &idle, "--every-ms", every].map(str::to_owned);
    let mut running = by.start_words(daemon, &words)?;
    let _ready = running.line_with("ready")?;
    Ok(running)
}

/// A counter of `/metrics` by standing.
fn counted(daemon: &Daemon, name: &str, standing: &str) -> Result<u64> {
    let metrics = daemon.client()?.get("/metrics")?.ok()?;
    let metrics = metrics.as_str().context("metrics are text")?;
    let start = format!("{name}{{standing=\"{standing}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&start)).with_context(|| format!("{start}: not in {metrics}"))?;
    Ok(value.parse()?)
}

/// Refusals of ever new pairs, for a minute: the record of each is read.
const STORM: &str = "import random, socket, sys, time\n\
                     s, end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), time.monotonic() + 60\n\
                     print('{\"ready\": true}', flush=True)\n\
                     while time.monotonic() < end:\n\
                     \x20   try: s.sendto(b'x', (sys.argv[1], random.randrange(1, 65536)))\n\
                     \x20   except OSError: pass\n";

/// Whoever is served only once a session has nothing more refused is not served.
fn operator_is_served_beside_a_storm_of_refusals(world: &mut World) -> Result<()> {
    let daemon = world.own(&Policy::standard(world.lab()))?;
    let target = fresh_target();
    let python = pp_tests::paths::python()?.display().to_string();
    let words = [python, "-c".to_owned(), STORM.to_owned(), target.ip().to_string()];
    let mut storm = Running::start(&mut daemon.lab().command(Place::Engineering, &By::run(OTHER_AGENT).words(&daemon, &words)))?;
    let _ready = storm.line_with("ready")?;
    let artifact = opening(target).sign(daemon.operator());
    let file = daemon.path("beside-a-storm.json");
    fs::write(&file, artifact.to_string())?;
    let _registered = daemon.cli(&["receipt", "register", &text(&file)])?.success()?;
    let _revoked = daemon.cli(&["receipt", "revoke", &forge::id(&artifact)])?.success()?;
    let _status = daemon.cli(&["status", "--json"])?;
    ensure!(storm.is_running(), "the operator was served when the storm was over");
    let refused = daemon.client()?.status()?["refusals"]["refused"].as_u64().unwrap_or_default();
    ensure!(refused > 100, "that was no storm: {refused}");
    Ok(())
}

fn operator_is_served_beside_slow_and_idle_callers(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let (slow, idle) = if is_emulated() { (100, 50) } else { (256, 500) };
    let mut slow_session = crowd(daemon, &By::run(AGENT), slow, 0)?;
    let mut idle_session = crowd(daemon, &By::run(AGENT), 0, idle)?;
    let mut user = crowd(daemon, &By::Words(as_user(daemon, USER)), 16, idle)?;
    wait::until_every(Duration::from_secs(1), "connections closed for others", run::PATIENCE, || {
        let closed = |standing| counted(daemon, "pp_control_closed_early_total", standing).unwrap_or(0);
        // Sixteen connections of each session and of the user stay.
        (closed("agent") >= u64::from(slow + idle - 32) && closed("user") >= u64::from(idle)).then_some(())
    })?;
    for _ in 0..if is_emulated() { 3 } else { 20 } {
        let status = daemon.cli(&["status"])?.success()?;
        ensure!(!status.stdout.is_empty(), "{status}");
        let mark = daemon.events().mark();
        let artifact = opening(fresh_target()).sign(daemon.operator());
        let file = daemon.path("beside-a-crowd.json");
        fs::write(&file, artifact.to_string())?;
        let _registered = daemon.cli(&["receipt", "register", &text(&file)])?.success()?;
        let id = forge::id(&artifact);
        let _revoked = daemon.cli(&["receipt", "revoke", &id])?.success()?;
        let _event =
            daemon.events().wait_since(mark, "the revocation", |event| event["kind"] == "revocation" && event["receipt"] == id.as_str())?;
    }
    for (who, by) in [("another user", By::Words(as_user(daemon, OTHER_USER))), ("another session", By::run(OTHER_AGENT))] {
        let output = by.run_words(daemon, &daemon.cli_words(&["why"]))?;
        ensure!(output.status.success(), "{who} was kept out: {output}");
    }
    for name in ["pp_control_closed_early_total", "pp_control_turned_away_total"] {
        ensure!(counted(daemon, name, "operator")? == 0, "{name}: an operator's connection was closed");
    }
    ensure!(slow_session.is_running() && idle_session.is_running() && user.is_running(), "a crowd has left");
    Ok(())
}
