//! Starting: what stands in a daemon's way is named with what to do about it, and a start that fails leaves in the kernel what was there
//! before, nothing more and nothing less.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::harness::{By, Quiet, Refusal};
use pp_tests::lab::{PLC, Place, fresh_target};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run::{self, Running};
use pp_tests::wait;
use serde_json::json;

use crate::identity::Cgroup;
use crate::posture::{MORE_HOOKS, SOCKET_HOOKS, pin};
use crate::world::{World, tests};

tests![
    failed_start_leaves_nothing_where_nothing_was_enforced,
    failed_start_leaves_in_force_what_an_earlier_daemon_left,
    start_without_the_pin_of_a_map_leaves_in_force_what_uses_the_map,
    start_that_finds_less_than_is_required_leaves_enforced_what_it_can,
    second_daemon_is_refused_and_weakens_nothing,
    daemon_that_is_stopped_in_its_tracks_is_still_one,
    daemon_runs_no_library_of_the_host,
    daemon_in_a_namespace_of_its_own_says_so_and_does_not_start,
    accepted_namespace_is_named_by_status_and_doctor,
    refusals_in_the_daemons_own_cgroup_prove_nothing,
    program_that_lets_no_other_run_at_its_hook_is_named,
    program_that_takes_the_place_of_a_detached_hook_is_named,
];

/// An agent that needs no daemon to be one: by its program's path.
const AGENT_ALONE: By = By::Program("lab-claude");

/// What a start says that must fail.
fn fails(daemon: &Daemon) -> Result<String> {
    let output = run::run(&mut daemon.command())?;
    ensure!(output.code() == 2, "it started, or ended otherwise: {output}");
    Ok(output.both())
}

/// Has it start so that all of it succeeds but the canary: cgroups cannot be made where it sees them.
fn make_unable(daemon: &mut Daemon) -> Result<()> {
    let script = format!("mount -o remount,bind,ro {} && exec \"$@\"", pp_tests::paths::cgroup2()?.display());
    daemon.accept_namespace("mount");
    daemon.start_through(&["unshare", "--mount", "--propagation", "private", "/bin/bash", "-c", &script, "unable"]);
    Ok(())
}

/// The pins of its hooks.
fn hooks(daemon: &Daemon) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(daemon.bpffs().join("links"))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// An agent that no daemon started reaches the PLC, so nothing is enforced.
fn nothing_is_enforced(daemon: &Daemon) -> Result<()> {
    let attempt = attack::tcp(daemon.lab(), PLC);
    // The kernel takes programs away a moment after their last link.
    wait::until_true("the end of the hooks", wait::SOON, || AGENT_ALONE.attempt(daemon, &attempt).is_ok_and(|it| it == Answer::Delivered))
}

/// The same agent is refused, and nothing arrives.
fn all_is_enforced(daemon: &Daemon) -> Result<()> {
    let attempt = attack::tcp(daemon.lab(), PLC);
    let control = By::Program("lab-shim").attempt(daemon, &attempt)?;
    ensure!(control == Answer::Delivered, "control run: {control:?}");
    let quiet = Quiet::begin(daemon.lab())?;
    let answer = AGENT_ALONE.attempt(daemon, &attempt)?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{answer:?}");
    quiet.assert_nothing_at(PLC)
}

/// It left neither pins nor a socket.
fn left_nothing(daemon: &Daemon) -> Result<()> {
    ensure!(!daemon.bpffs().exists(), "pins are left: {:?}", hooks(daemon));
    ensure!(!daemon.path("control.sock").exists(), "its socket is left");
    nothing_is_enforced(daemon)
}

fn failed_start_leaves_nothing_where_nothing_was_enforced(world: &mut World) -> Result<()> {
    let mut daemon = world.prepared(&Policy::standard(world.lab()))?;
    // Before anything is attached.
    fs::write(daemon.path("control.sock"), "in the way")?;
    let said = fails(&daemon)?;
    ensure!(said.contains("taken by a file that is not a socket"), "{said}");
    fs::remove_file(daemon.path("control.sock"))?;
    left_nothing(&daemon)?;
    // After all of it is attached and the tables are in force.
    make_unable(&mut daemon)?;
    let said = fails(&daemon)?;
    ensure!(said.contains("posture is open") && said.contains("the canary could not be sent"), "{said}");
    ensure!(said.contains("nothing was enforced before it: its hooks are taken out of the kernel again"), "{said}");
    left_nothing(&daemon)?;
    // Control: the same daemon without what was in its way.
    daemon.start_through(&[]);
    daemon.spawn()?;
    all_is_enforced(&daemon)
}

fn failed_start_leaves_in_force_what_an_earlier_daemon_left(world: &mut World) -> Result<()> {
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    let before = hooks(&daemon)?;
    daemon.crash()?;
    all_is_enforced(&daemon)?;
    // More may be there: programs of a backend that no canary could try.
    let not_less = |daemon: &Daemon, when: &str| -> Result<()> {
        ensure!(before.is_subset(&hooks(daemon)?), "{when}: fewer hooks: {:?}, before: {before:?}", hooks(daemon)?);
        all_is_enforced(daemon).with_context(|| when.to_owned())
    };
    let socket = daemon.path("control.sock");
    fs::remove_file(&socket)?;
    fs::write(&socket, "in the way")?;
    let said = fails(&daemon)?;
    ensure!(said.contains("taken by a file that is not a socket"), "{said}");
    fs::remove_file(&socket)?;
    not_less(&daemon, "after a start without a socket")?;
    make_unable(&mut daemon)?;
    let said = fails(&daemon)?;
    ensure!(said.contains("posture is open"), "{said}");
    not_less(&daemon, "after a start whose canary could not be sent")?;
    daemon.start_through(&[]);
    daemon.spawn()?;
    ensure!(hooks(&daemon)? == before, "after a start that succeeded: {:?}, before: {before:?}", hooks(&daemon)?);
    all_is_enforced(&daemon)
}

fn start_without_the_pin_of_a_map_leaves_in_force_what_uses_the_map(world: &mut World) -> Result<()> {
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    daemon.crash()?;
    let before = hooks(&daemon)?;
    // The map that says which tables are in force, so that they seem to be nobody's.
    let maps = fs::read_dir(daemon.bpffs().join("maps"))?.flatten().map(|entry| entry.path());
    let control = maps.into_iter().find(|pin| pin.file_name().is_some_and(|name| name.to_string_lossy().starts_with("CONTROL@")));
    fs::remove_file(control.context("the pin of the map")?)?;
    let said = fails(&daemon)?;
    ensure!(said.contains("are attached and go on refusing by it"), "{said}");
    ensure!(hooks(&daemon)? == before, "fewer hooks: {:?}, before: {before:?}", hooks(&daemon)?);
    all_is_enforced(&daemon)
}

fn start_that_finds_less_than_is_required_leaves_enforced_what_it_can(world: &mut World) -> Result<()> {
    let has_gaps = world.backend()? == "cgroup";
    let policy = Policy::standard(world.lab()).replacing("mode = \"enforce\"", "mode = \"enforce\"\nrequire = \"enforcing\"");
    let mut daemon = world.prepared(&policy)?;
    if has_gaps {
        let said = fails(&daemon)?;
        ensure!(said.contains("posture is partial, ready is only enforcing"), "{said}");
        ensure!(!daemon.path("control.sock").exists(), "its socket is left");
    } else {
        daemon.spawn()?;
        daemon.crash()?;
    }
    all_is_enforced(&daemon)
}

fn second_daemon_is_refused_and_weakens_nothing(world: &mut World) -> Result<()> {
    let standard = Policy::standard(world.lab());
    let first = world.own(&standard)?;
    let (before, generation) = (hooks(&first)?, first.client()?.status()?["generation"].clone());
    // It would observe only.
    let mut second = Daemon::prepare(first.lab(), &standard.clone().replacing("mode = \"enforce\"", "mode = \"observe\""))?;
    let output = run::run(&mut second.command_on(first.bpffs()))?;
    let holder = format!("pid {} (", first.pid()?);
    ensure!(output.code() == 2 && output.both().contains("works with them") && output.both().contains(&holder), "{output}");
    ensure!(!second.path("control.sock").exists(), "its socket is left");
    let output = run::run(&mut first.command())?;
    ensure!(output.code() == 2 && output.both().contains("another pp-agent answers on it"), "{output}");
    let status = first.client()?.status()?;
    ensure!(hooks(&first)? == before && status["generation"] == generation, "{status}");
    ensure!(status["healthy"] == true && status["mode"] == "enforce", "{status}");
    let event = Refusal::of(attack::tcp(first.lab(), fresh_target()), By::run(AGENT)).with_control(By::Nobody).assert(&first)?;
    ensure!(event["verdict"] == "block", "{event}");
    // Control: with pins of its own it starts.
    second.spawn()
}

fn daemon_that_is_stopped_in_its_tracks_is_still_one(world: &mut World) -> Result<()> {
    let first = world.own(&Policy::standard(world.lab()))?;
    let path = first.path("control.sock");
    first.signal(Signal::SIGSTOP)?;
    // Callers fill the queue of a daemon that accepts nobody.
    let mut waiting = Vec::new();
    let refused = loop {
        let caller = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
        match connect(caller.as_raw_fd(), &UnixAddr::new(&path)?) {
            Ok(()) if waiting.len() < 5_000 => waiting.push(caller),
            Ok(()) => break Err(anyhow::anyhow!("its queue has no end")),
            Err(Errno::EAGAIN) => break run::run(&mut first.command()),
            Err(errno) => break Err(errno.into()),
        }
    };
    first.signal(Signal::SIGCONT)?;
    let output = refused?;
    ensure!(output.code() == 2 && output.both().contains("another pp-agent answers on it"), "{output}");
    Ok(())
}

/// The files of the code that a process runs.
fn code_of(pid: u32) -> Result<BTreeSet<PathBuf>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let executable = maps.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|rights| rights.contains('x')));
    Ok(executable.filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..]))).collect())
}

fn daemon_runs_no_library_of_the_host(world: &mut World) -> Result<()> {
    // Control: other programs run the host's.
    let own = code_of(std::process::id())?;
    ensure!(own.iter().any(|file| file.to_string_lossy().contains("/libc.so")), "{own:?}");
    let daemon = world.daemon()?;
    let _named = daemon.cli(&["check", "10.20.4.7:502", "--user", "nobody-of-this-name"])?;
    let (pid, program) = (daemon.pid()?, fs::read_link(format!("/proc/{}/exe", daemon.pid()?))?);
    let code = code_of(pid)?;
    ensure!(code == BTreeSet::from([program.clone()]), "{} runs {code:?}", program.display());
    Ok(())
}

fn daemon_in_a_namespace_of_its_own_says_so_and_does_not_start(world: &mut World) -> Result<()> {
    let mut daemon = world.prepared(&Policy::standard(world.lab()))?;
    let own_pids = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let cases: [(&str, &[&str]); 5] = [
        ("pid", &own_pids),
        ("mount", &["unshare", "--mount", "--propagation", "private"]),
        ("cgroup", &["unshare", "--cgroup"]),
        ("user", &["unshare", "--user", "--map-root-user"]),
        ("time", &["unshare", "--time", "--boottime", "86400", "--fork", "--kill-child"]),
    ];
    // Kernels without time namespaces have nobody in one.
    let has_time = Path::new("/proc/self/ns/time").exists();
    for (kind, through) in cases.into_iter().filter(|(kind, _)| *kind != "time" || has_time) {
        daemon.start_through(through);
        let said = fails(&daemon).with_context(|| kind.to_owned())?;
        ensure!(said.contains(&format!("{kind} namespace: ")), "{kind}: {said}");
        let accept = said.rsplit_once("accept the part with --namespace ").map(|(_, kinds)| kinds.trim_end().to_owned());
        ensure!(accept.as_ref().is_some_and(|kinds| kinds.split(',').any(|named| named == kind)), "{kind}: {said}");
        left_nothing(&daemon).with_context(|| kind.to_owned())?;
    }
    daemon.start_through(&[]);
    daemon.accept_no_namespace();
    let said = fails(&daemon)?;
    ensure!(said.contains("network namespace: ") && said.contains("--namespace network"), "{said}");
    left_nothing(&daemon)?;
    // Control: the lab's network is accepted, and nothing else is in the way.
    daemon.accept_namespace("network");
    daemon.spawn()?;
    all_is_enforced(&daemon)
}

/// A daemon for one cgroup, which is not started yet.
fn for_cgroup(world: &mut World, cgroup: &Path) -> Result<Daemon> {
    let mut daemon = world.prepared(&Policy::standard(world.lab()))?;
    daemon.add_arguments(&["--cgroup", &cgroup.display().to_string()]);
    Ok(daemon)
}

fn accepted_namespace_is_named_by_status_and_doctor(world: &mut World) -> Result<()> {
    let cgroups_alone = world.backend()? == "cgroup";
    let part = Cgroup::new("pp-e2e-part")?;
    let mut daemon = for_cgroup(world, part.path())?;
    let said = fails(&daemon)?;
    ensure!(said.contains("the cgroup to attach to is number") && said.contains("--namespace cgroup"), "{said}");
    left_nothing(&daemon)?;
    daemon.accept_namespace("cgroup");
    daemon.spawn()?;
    let status = daemon.client()?.status()?;
    let named = status["namespaces"].as_array().is_some_and(|all| all.contains(&json!("cgroup")) && all.contains(&json!("network")));
    ensure!(named && status["healthy"] == true, "{status}");
    for words in [&["status"][..], &["doctor"]] {
        let said = daemon.cli(words)?.stdout;
        ensure!(said.contains("cgroup: not the host's, as --namespace accepts"), "{words:?}: {said}");
    }
    let metrics = daemon.client()?.get("/metrics")?.body.as_str().unwrap_or_default().to_owned();
    ensure!(metrics.contains("pp_namespace{kind=\"cgroup\"} 1\n"), "{metrics}");
    // What is enforced there, and the reason for saying so.
    let attempt = attack::tcp(daemon.lab(), PLC);
    let By::Words(mut inside) = part.by(&daemon) else { anyhow::bail!("no words") };
    inside.push(daemon.lab().program("lab-claude").display().to_string());
    let answer = By::Words(inside).attempt(&daemon, &attempt)?;
    ensure!(answer == Answer::Refused(libc::EPERM), "an agent in the cgroup: {answer:?}");
    if cgroups_alone {
        let answer = AGENT_ALONE.attempt(&daemon, &attempt)?;
        ensure!(answer == Answer::Delivered, "an agent outside: {answer:?}");
    }
    Ok(())
}

/// Without a hook that refuses, in a cgroup where somebody else's programs refuse everything.
fn refusals_in_the_daemons_own_cgroup_prove_nothing(world: &mut World) -> Result<()> {
    let own = Cgroup::new("pp-e2e-own")?;
    let mut daemon = world.prepared(&Policy::standard(world.lab()))?;
    let directory = own.path().display().to_string();
    let words = attack::workload(daemon.lab(), &["refuse-all", "--cgroup", &directory], PLC).words;
    let mut other = Running::start(&mut daemon.lab().command(Place::Engineering, &words))?;
    let _ready = other.line_with("ready")?;
    let answer = own.by(&daemon).attempt(&daemon, &attack::tcp(daemon.lab(), PLC))?;
    ensure!(answer == Answer::Refused(libc::EPERM), "control run: nothing refuses in that cgroup: {answer:?}");
    let workload = daemon.lab().program("pp-workload").display().to_string();
    daemon.start_through(&[&workload, "in", "--cgroup", &directory, "--"]);
    for hook in SOCKET_HOOKS.iter().chain(&MORE_HOOKS) {
        daemon.add_arguments(&["--without-hook", hook]);
    }
    let said = fails(&daemon)?;
    ensure!(said.contains("posture is open") && said.contains("tcp-connect"), "{said}");
    left_nothing(&daemon)?;
    // Control: with its hooks a daemon in that cgroup is ready. Its canary leaves no cgroup behind.
    let mut whole = world.prepared(&Policy::standard(world.lab()))?;
    whole.start_through(&[&workload, "in", "--cgroup", &directory, "--"]);
    whole.spawn()?;
    let pid = whole.pid()?;
    ensure!(fs::read_to_string(format!("/proc/{pid}/cgroup"))?.contains("pp-e2e-own"), "the daemon is not in that cgroup");
    let left = pp_tests::paths::cgroup2()?.join(format!("pp-agent-canary-{pid}"));
    wait::until_true("the end of the canary's cgroup", wait::SOON, || !left.exists())?;
    whole.stop()
}

fn program_that_lets_no_other_run_at_its_hook_is_named(world: &mut World) -> Result<()> {
    let (outer, inner) = (Cgroup::new("pp-e2e-alone")?, Cgroup::new("pp-e2e-alone/inner")?);
    let directory = outer.path().display().to_string();
    let mut daemon = for_cgroup(world, outer.path())?;
    daemon.accept_namespace("cgroup");
    let words = attack::workload(daemon.lab(), &["stand-alone", "--cgroup", &directory], PLC).words;
    let mut other = Running::start(&mut daemon.lab().command(Place::Engineering, &words))?;
    let _ready = other.line_with("ready")?;
    let holder = format!("held by pid {} (", other.pid());
    let names_it = |said: &str, holder: &str| -> Result<()> {
        for part in ["program pp_connect4 cannot be attached", "\"lab_undo\", which uid 0 loaded", holder] {
            ensure!(said.contains(part), "{part}: {said}");
        }
        ensure!(said.contains(&format!("is attached at {directory} (connect4)")), "{said}");
        ensure!(said.contains(&format!("bpftool cgroup detach {directory} connect4 id ")), "{said}");
        ensure!(!said.contains("refused by this kernel"), "{said}");
        Ok(())
    };
    names_it(&fails(&daemon)?, &holder)?;
    left_nothing(&daemon)?;
    let mut below = for_cgroup(world, inner.path())?;
    below.accept_namespace("cgroup");
    names_it(&fails(&below)?, &holder)?;
    left_nothing(&below)?;
    // Without its process the cgroup goes on keeping it.
    drop(other);
    names_it(&fails(&daemon)?, "no pin and no process holds it, only the cgroup")?;
    // Control: a cgroup of the same name without that program.
    drop(inner);
    drop(outer);
    let _outer = Cgroup::new("pp-e2e-alone")?;
    daemon.spawn()?;
    ensure!(daemon.client()?.status()?["healthy"] == true, "{}", daemon.log());
    daemon.stop()
}

/// Root takes a hook away and is at its place before the daemon looks.
fn program_that_takes_the_place_of_a_detached_hook_is_named(world: &mut World) -> Result<()> {
    let part = Cgroup::new("pp-e2e-place")?;
    let directory = part.path().display().to_string();
    let mut daemon = for_cgroup(world, part.path())?;
    daemon.accept_namespace("cgroup");
    daemon.add_arguments(&["--watch-period", "5"]);
    daemon.spawn()?;
    let stands = || -> Result<Running> {
        let words = attack::workload(daemon.lab(), &["stand-alone", "--cgroup", &directory], PLC).words;
        let mut other = Running::start(&mut daemon.lab().command(Place::Engineering, &words))?;
        let _ready = other.line_with("ready")?;
        Ok(other)
    };
    ensure!(stands().is_err(), "control run: it was attached beside a program of the gate");
    let pin = pin(&daemon, "pp_connect4")?.display().to_string();
    let harm = attack::workload(daemon.lab(), &["harm-link", &pin, "detach"], PLC).words;
    // The daemon may put it back in between.
    for _ in 0..5 {
        let mark = daemon.events().mark();
        let _harmed = run::run(&mut daemon.lab().command(Place::Engineering, &harm))?.success()?;
        let Ok(_other) = stands() else { continue };
        let event = daemon.events().wait_since(mark, "the event of the missing hook", |event| {
            event["kind"] == "posture" && event["reason"] == "hook_detached" && event["hook"] == "pp_connect4"
        })?;
        for part in ["could not be put back", "\"lab_undo\", which uid 0 loaded", &format!("bpftool cgroup detach {directory} connect4")] {
            ensure!(event["detail"].as_str().is_some_and(|detail| detail.contains(part)), "{part}: {event}");
        }
        return Ok(());
    }
    anyhow::bail!("the hook was put back each time before the other program came")
}
