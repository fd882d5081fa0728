//! Who is an agent: every rule marks what it names with all its descendants, the first mark wins, and there is no instruction before it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use nix::sys::signal::Signal;
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer, Attempt};
use pp_tests::harness::{self, By, Quiet, Refusal, is_block, is_verdict};
use pp_tests::lab::{GATEWAY, Lab, OPCUA, PLC, Place, STRAY_OTHER, fresh_target, is_emulated};
use pp_tests::policy::{AGENT, OTHER_AGENT, Policy};
use pp_tests::{paths, run, wait};
use serde_json::Value;

use crate::receipts::{Registered, opening};
use crate::world::{World, tests};

tests![
    real_tools_started_by_run_are_refused,
    real_tools_started_by_an_agents_program_are_refused,
    process_that_was_adopted_is_refused,
    descendants_are_refused_whatever_they_become,
    process_id_that_an_agent_had_makes_nobody_an_agent,
    daemonized_descendant_is_refused,
    first_mark_wins,
    run_inside_a_session_is_refused,
    check_answers_as_the_kernel_decides,
    events_arrive_soon,
    released_session_is_nobodys,
    released_agent_stays_nobodys_over_a_reload_and_a_restart,
    static_program_whose_first_instruction_connects_never_does,
    rules_of_script_module_user_cgroup_and_unit_mark_what_they_name,
    cgroup_rule_holds_while_the_daemon_cannot_see_cgroups,
    process_that_ran_before_the_daemon_is_found_at_its_start,
];

/// The OT clients that agents use, each at its target.
fn tools(lab: &Lab) -> Result<Vec<Attempt>> {
    let python = paths::python()?.display().to_string();
    let file = |name: &str| lab.directory().join(name).display().to_string();
    let (plc, opcua) = (PLC.ip().to_string(), OPCUA.ip().to_string());
    let socket = format!("exec 3<>/dev/tcp/{plc}/502");
    let mut tools = vec![
        attack::tool(&["mbpoll", "-1", "-t", "4", "-r", "1", "-c", "4", &plc], PLC),
        attack::tool(&["curl", "-sSv", "--max-time", "20", &format!("http://{GATEWAY}/")], GATEWAY),
        attack::tool(&["/bin/bash", "-c", &socket], PLC).named("/dev/tcp"),
    ];
    if !is_emulated() {
        tools.push(attack::tool(&[&python, "-B", &file("read_modbus.py"), &plc, "502"], PLC).answering_json().named("pymodbus"));
        tools.push(attack::tool(&[&python, "-B", &file("read_opcua.py"), &opcua, "4840"], OPCUA).answering_json().named("asyncua"));
    }
    Ok(tools)
}

fn all_tools_are_refused(daemon: &Daemon, by: &By, control: &By) -> Result<()> {
    for tool in tools(daemon.lab())? {
        let event = Refusal::of(tool, by.clone()).with_control(control.clone()).assert(daemon)?;
        ensure!(event["agent"] == AGENT, "{event}");
    }
    Ok(())
}

fn real_tools_started_by_run_are_refused(world: &mut World) -> Result<()> {
    all_tools_are_refused(world.daemon()?, &By::run(AGENT), &By::Nobody)
}

fn real_tools_started_by_an_agents_program_are_refused(world: &mut World) -> Result<()> {
    all_tools_are_refused(world.daemon()?, &By::LAB_AGENT, &By::Program("lab-shim"))
}

fn process_that_was_adopted_is_refused(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let attempt = attack::tcp(daemon.lab(), PLC);
    let event = Refusal::of(attempt, By::Adopt(AGENT.to_owned())).with_control(By::Nobody).assert(daemon)?;
    ensure!(event["agent"] == AGENT, "{event}");
    Ok(())
}

/// The words of `run` followed by more.
fn run_then(daemon: &Daemon, more: &[&str]) -> By {
    let mut words = daemon.cli_words(&["run", "--agent", AGENT, "--"]);
    words.extend(more.iter().map(|word| (*word).to_owned()));
    By::Words(words)
}

fn descendants_are_refused_whatever_they_become(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let workload = daemon.lab().program("pp-workload").display().to_string();
    let renamed = daemon.path("innocent-name").display().to_string();
    let copy = format!("cp {workload} {renamed}; exec \"$@\"");
    let shapes: [&[&str]; 4] = [
        &[&workload, "tree", "--depth", "5", "--"],
        &["/usr/bin/setsid", "--wait"],
        &[&workload, "in", "--uid", "9", "--"],
        &["/bin/bash", "-c", &copy, "copy"],
    ];
    for shape in shapes {
        let control = By::Words(shape.iter().map(|word| (*word).to_owned()).collect());
        let mut attempt = attack::tcp(daemon.lab(), PLC);
        if shape.contains(&"copy") {
            renamed.clone_into(&mut attempt.words[0]);
        }
        let event = Refusal::of(attempt, run_then(daemon, shape)).with_control(control).assert(daemon)?;
        ensure!(event["agent"] == AGENT && event["owner"]["uid"] == 0, "{shape:?}: {event}");
    }
    Ok(())
}

fn daemonized_descendant_is_refused(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let workload = daemon.lab().program("pp-workload").display().to_string();
    let attempt = attack::tcp(daemon.lab(), PLC);
    let answer = |by: &By| -> Result<Value> {
        let running = by.start_words(daemon, &attempt.words)?;
        wait::until("the orphan's answer", wait::SOON, || {
            running.stdout().lines().find_map(|line| serde_json::from_str::<Value>(line).ok())
        })
    };
    let control = answer(&By::Words(vec![workload.clone(), "daemonize".into(), "--".into()]))?;
    ensure!(control["ok"] == true, "control run: {control}");
    let (quiet, mark) = (Quiet::begin(daemon.lab())?, daemon.events().mark());
    let refused = answer(&run_then(daemon, &[&workload, "daemonize", "--"]))?;
    ensure!(refused["errno"] == libc::EPERM, "{refused}");
    quiet.assert_nothing_at(PLC)?;
    let _event = daemon.events().wait_since(mark, "its event", |event| is_block(event, PLC) && event["agent"] == AGENT)?;
    Ok(())
}

fn first_mark_wins(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let target = fresh_target();
    let _receipt = Registered::new(daemon, &opening(target).agent(OTHER_AGENT))?;
    let attempt = attack::tcp(daemon.lab(), target);
    ensure!(By::Program("lab-codex").attempt(daemon, &attempt)? == Answer::Delivered, "the other agent's own receipt opens nothing");
    let codex = daemon.lab().program("lab-codex").display().to_string();
    let claude = daemon.lab().program("lab-claude").display().to_string();
    let disguised = By::Words(vec![claude, codex.clone()]);
    let refusal = Refusal::of(attempt, disguised).with_control(By::Words(vec![codex]));
    let event = refusal.for_reason("receipt_other_agent").assert(daemon)?;
    ensure!(event["agent"] == AGENT, "{event}");
    Ok(())
}

fn run_inside_a_session_is_refused(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let target = fresh_target();
    let _receipt = Registered::new(daemon, &opening(target).agent(OTHER_AGENT))?;
    let attempt = attack::tcp(daemon.lab(), target);
    let control = By::run(OTHER_AGENT).attempt(daemon, &attempt)?;
    ensure!(control == Answer::Delivered, "control run: {control:?}");
    let quiet = Quiet::begin(daemon.lab())?;
    let inner = By::run(OTHER_AGENT).words(daemon, &attempt.words);
    let output = By::run(AGENT).run_words(daemon, &inner)?;
    ensure!(!output.status.success() && !output.stdout.contains("\"ok\":true"), "{output}");
    quiet.assert_nothing_at(target)
}

fn check_answers_as_the_kernel_decides(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let protected = fresh_target();
    let check = |target: &str| daemon.cli(&["check", target, "--agent", AGENT, "--user", "root", "--json"]);
    for (target, verdict, reason, code) in
        [(protected, "block", "no_receipt", 1), (STRAY_OTHER, "allow", "not_protected", 0), (GATEWAY, "block", "no_receipt", 1)]
    {
        let output = check(&target.to_string())?;
        let answer = output.json()?;
        ensure!(answer["verdict"] == verdict && answer["reason"] == reason && output.code() == code, "{target}: {output}");
        let kernel = By::run(AGENT).attempt(daemon, &attack::tcp(daemon.lab(), target))?;
        ensure!((kernel == Answer::Delivered) == (code == 0), "{target}: the kernel said {kernel:?}");
    }
    let receipt = Registered::new(daemon, &opening(protected))?;
    let output = check(&protected.to_string())?;
    let answer = output.json()?;
    ensure!(output.code() == 0 && answer["receipt"] == receipt.id.as_str(), "{output}");
    Ok(())
}

/// The issue's bound holds on real hardware; an emulated machine gets room for what it costs there.
fn events_arrive_soon(world: &mut World) -> Result<()> {
    let bound_ms = if is_emulated() { 5_000 } else { 200 };
    let daemon = world.daemon()?;
    let mark = daemon.events().mark();
    let script = format!("for port in $(seq 6001 6100); do : > /dev/tcp/{}/$port; done 2> /dev/null; true", PLC.ip());
    let _done = By::run(AGENT).run_words(daemon, &["/bin/bash".into(), "-c".into(), script])?.success()?;
    let delays = || -> Vec<i64> {
        let seen = daemon.events().seen_since(mark);
        let refusals = seen.iter().filter(|seen| is_verdict(&seen.event, "block"));
        let delay = |seen: &pp_tests::events::Seen| {
            let made: jiff::Timestamp = seen.event["time"].as_str()?.parse().ok()?;
            Some(seen.at_ms - made.as_millisecond())
        };
        refusals.filter_map(delay).collect()
    };
    wait::until_true("100 events", wait::SOON, || delays().len() >= 100).with_context(|| format!("{} came", delays().len()))?;
    let mut delays = delays();
    delays.sort_unstable();
    let median = delays[delays.len() / 2];
    ensure!(median < bound_ms, "median {median} ms of {}, slowest {:?}", delays.len(), delays.last());
    Ok(())
}

/// The id of a process that was run so and has ended.
fn ended(daemon: &Daemon, by: &By) -> Result<String> {
    let output = by.run_words(daemon, &["/bin/sh", "-c", "echo $$"].map(str::to_owned))?.success()?;
    Ok(output.stdout.lines().next().context("no process id")?.to_owned())
}

fn process_id_that_an_agent_had_makes_nobody_an_agent(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let mut arrived = Vec::new();
    for (before, now, refused) in [(By::run(AGENT), By::Nobody, false), (By::Nobody, By::run(AGENT), true)] {
        let target = fresh_target();
        let attempt = attack::tcp(daemon.lab(), target);
        let with_id = |pid: &str| -> Result<pp_tests::run::Output> {
            let words = attack::workload(daemon.lab(), &["become", "numbered", "--pid", pid, "--"], target).words;
            now.run_words(daemon, &[words, attempt.words.clone()].concat())
        };
        harness::catch_up(daemon.lab())?;
        let (plant, mark) = (daemon.lab().plant().from_now(), daemon.events().mark());
        // Another process may have got the id meanwhile.
        let output = wait::until("a process id that is free again", wait::SOON, || {
            let output = ended(daemon, &before).and_then(|pid| with_id(&pid));
            output.map(|output| (!output.stderr.contains("clone3")).then_some(output)).transpose()
        })??;
        let answer = (attempt.read)(&output)?;
        ensure!(answer == if refused { Answer::Refused(libc::EPERM) } else { Answer::Delivered }, "{before:?}, then {now:?}: {answer:?}");
        harness::catch_up(daemon.lab())?;
        arrived.push(!plant.packets_to(target).is_empty());
        if refused {
            let event = daemon.events().wait_since(mark, "its event", |event| is_block(event, target))?;
            ensure!(event["agent"] == AGENT, "{event}");
        }
    }
    ensure!(arrived == [true, false], "{arrived:?}");
    Ok(())
}

fn released_session_is_nobodys(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let attempt = attack::tcp(daemon.lab(), PLC);
    let go = daemon.path("released");
    let script = format!("until [ -e {} ]; do read -t 0.02 <> <(:); done; {}", go.display(), attempt.words.join(" "));
    let mark = daemon.events().mark();
    let running = By::run(AGENT).start_words(daemon, &["/bin/bash".into(), "-c".into(), script])?;
    let event = daemon.events().wait_since(mark, "the session's begin", |event| event["kind"] == "session_start")?;
    let session = event["session"].as_str().context("no session")?;
    let _released = daemon.cli(&["release", session])?.success()?;
    fs::write(&go, "")?;
    let answer = running.finish(pp_tests::run::PATIENCE)?.json()?;
    ensure!(answer["ok"] == true, "refused although released: {answer}");
    Ok(())
}

/// An agent by its name that was released is not found again by the walk over what runs.
fn released_agent_stays_nobodys_over_a_reload_and_a_restart(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab());
    let mut daemon = world.own(&policy)?;
    let attempt = attack::tcp(daemon.lab(), PLC);
    let (go_released, go_kept) = (daemon.path("go-released"), daemon.path("go-kept"));
    // Its shim waits for its child, under its own name.
    let shim = daemon.lab().program("lab-claude");
    let kept = fs::read_to_string(&shim)?;
    fs::write(&shim, "#!/bin/sh\n\"$@\"\n")?;
    let start = |go: &std::path::Path| -> Result<_> {
        let script = format!("until [ -e {} ]; do read -t 0.02 <> <(:); done; {}", go.display(), attempt.words.join(" "));
        let mark = daemon.events().mark();
        let running = By::LAB_AGENT.start_words(&daemon, &["/bin/bash".into(), "-c".into(), script])?;
        let event = daemon.events().wait_since(mark, "the session's begin", |event| event["kind"] == "session_start")?;
        Ok((running, event["session"].as_str().context("no session")?.to_owned()))
    };
    let started = start(&go_released).and_then(|released| Ok((released, start(&go_kept)?)));
    let ((released, session), (governed, _)) = match started {
        Ok(started) => started,
        Err(error) => {
            fs::write(&shim, kept)?;
            return Err(error);
        }
    };
    let _released = daemon.cli(&["release", &session])?.success()?;
    daemon.reload(&policy)?;
    daemon.stop()?;
    daemon.spawn()?;
    fs::write(&shim, kept)?;
    fs::write(&go_released, "")?;
    let answer = released.finish(pp_tests::run::PATIENCE)?.json()?;
    ensure!(answer["ok"] == true, "refused although released: {answer}");
    let quiet = Quiet::begin(daemon.lab())?;
    fs::write(&go_kept, "")?;
    let answer = governed.finish(pp_tests::run::PATIENCE)?.json()?;
    ensure!(answer["errno"] == libc::EPERM, "the session that was not released: {answer}");
    quiet.assert_nothing_at(PLC)
}

fn static_program_whose_first_instruction_connects_never_does(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let repeat = |times: &str, name: &str| -> Result<Value> {
        let program = daemon.lab().program(name).display().to_string();
        let command = attack::workload(daemon.lab(), &["repeat", "--times", times, "--", &program], PLC);
        Ok(By::Nobody.run_words(daemon, &command.words)?.success()?.json()?["exit_codes"].clone())
    };
    let control = repeat("5", "first-connect")?;
    ensure!(control["0"] == 5, "control run: {control}");
    let quiet = Quiet::begin(daemon.lab())?;
    daemon.signal(Signal::SIGSTOP)?;
    let refused = repeat("1000", "lab-first-claude");
    daemon.signal(Signal::SIGCONT)?;
    let refused = refused?;
    ensure!(refused["1"] == 1000, "not refused every time: {refused}");
    quiet.assert_nothing_at(PLC)
}

/// A cgroup of the test's own, removed at the end.
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let path = paths::cgroup2()?.join(name);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        &self.0
    }

    pub(crate) fn by(&self, daemon: &Daemon) -> By {
        let workload = daemon.lab().program("pp-workload").display().to_string();
        By::Words(vec![workload, "in".into(), "--cgroup".into(), self.0.display().to_string(), "--".into()])
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let removed = wait::until_true("an empty cgroup", wait::SOON, || fs::remove_dir(&self.0).is_ok());
        if let Err(error) = removed {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

fn rules_of_script_module_user_cgroup_and_unit_mark_what_they_name(world: &mut World) -> Result<()> {
    let lab = world.lab();
    let (bin, me) = (lab.directory().join("bin"), std::process::id());
    let policy = Policy::standard(lab)
        .with_agent("by-script", &format!("script = [\"{}/agent_cli.py\"]", bin.display()))
        .with_agent("by-module", &format!("module = [\"agent_cli_{me}\"]"))
        .with_agent("by-user", "user = [\"games\"]")
        .with_agent("by-cgroup", &format!("cgroup = [\"/pplab-{me}-agents\"]"))
        .with_agent("by-unit", &format!("unit = [\"pplab-{me}.service\"]"));
    fs::copy(bin.join("agent_cli.py"), bin.join(format!("agent_cli_{me}.py")))?;
    let before = Cgroup::new(&format!("pplab-{me}-agents"))?;
    let other = Cgroup::new(&format!("pplab-{me}-others"))?;
    let unit = Cgroup::new(&format!("pplab-{me}.service"))?;
    let daemon = world.own(&policy)?;
    let python = paths::python()?.display().to_string();
    let script = |name: &str| By::Words(vec![python.clone(), "-B".into(), bin.join(name).display().to_string()]);
    let module = |name: &str| {
        let path = format!("PYTHONPATH={}", bin.display());
        By::Words(vec!["/usr/bin/env".into(), path, python.clone(), "-B".into(), "-m".into(), name.to_owned()])
    };
    let workload = daemon.lab().program("pp-workload").display().to_string();
    let user = |uid: &str| By::Words(vec![workload.clone(), "in".into(), "--uid".into(), uid.to_owned(), "--".into()]);
    let rules = [
        ("by-script", script("agent_cli.py"), script("other_cli.py")),
        ("by-module", module(&format!("agent_cli_{me}")), module("other_cli")),
        ("by-user", user("5"), user("9")),
        ("by-cgroup", before.by(&daemon), other.by(&daemon)),
        ("by-unit", unit.by(&daemon), other.by(&daemon)),
    ];
    let mut wrong = Vec::new();
    for (agent, by, control) in rules {
        for attempt in tools(daemon.lab())? {
            let shown = Refusal::of(attempt, by.clone()).with_control(control.clone()).assert(&daemon);
            match shown {
                Ok(event) if event["agent"] == agent => {}
                Ok(event) => wrong.push(format!("{agent}: {event}")),
                Err(error) => wrong.push(format!("{agent}: {error:#}")),
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    // A cgroup below one that is named belongs to it, also when it is made while the daemon runs.
    let below = Cgroup::new(&format!("pplab-{me}-agents/below"))?;
    let refusal = Refusal::of(attack::tcp(daemon.lab(), PLC), below.by(&daemon)).with_control(other.by(&daemon));
    let event = refusal.assert(&daemon).context("a cgroup below")?;
    drop(daemon);
    ensure!(event["agent"] == "by-cgroup", "{event}");
    Ok(())
}

/// Something is mounted over the cgroups where the daemon sees them.
fn cgroup_rule_holds_while_the_daemon_cannot_see_cgroups(world: &mut World) -> Result<()> {
    let me = std::process::id();
    let named = Cgroup::new(&format!("pplab-{me}-kept"))?;
    let policy = Policy::standard(world.lab()).with_agent("by-cgroup", &format!("cgroup = [\"/pplab-{me}-kept\"]"));
    let mut daemon = world.prepared(&policy)?;
    daemon.accept_namespace("mount");
    daemon.start_through(&["unshare", "--mount", "--propagation", "private"]);
    daemon.spawn()?;
    let is_refused = || -> Result<()> {
        let refusal = Refusal::of(attack::tcp(daemon.lab(), PLC), named.by(&daemon)).with_control(By::Nobody);
        let event = refusal.assert(&daemon)?;
        ensure!(event["agent"] == "by-cgroup", "{event}");
        Ok(())
    };
    is_refused()?;

    let (root, namespace) = (paths::cgroup2()?.display().to_string(), format!("--mount=/proc/{}/ns/mnt", daemon.pid()?));
    let where_it_sees = |words: &[&str]| -> Result<()> {
        let words = [&["nsenter", namespace.as_str(), "--"], words, &[root.as_str()]].concat();
        run::run(&mut daemon.lab().command(Place::Engineering, &words))?.success().map(drop)
    };
    where_it_sees(&["mount", "-t", "tmpfs", "none"])?;
    // It looks every second.
    let looked = || daemon.log().matches("it is no cgroup2 any more").count();
    wait::until_true("two looks", wait::SOON, || looked() >= 2).with_context(|| daemon.log())?;
    is_refused().context("cgroups not seen")?;
    let reload = daemon.cli(&["policy", "reload"])?;
    ensure!(reload.code() == 2 && reload.both().contains("it is no cgroup2 any more"), "{reload}");
    is_refused().context("a reload refused")?;

    where_it_sees(&["umount"])?;
    let _reloaded = daemon.cli(&["policy", "reload"])?.success()?;
    is_refused().context("cgroups seen again")
}

fn process_that_ran_before_the_daemon_is_found_at_its_start(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab());
    let mut daemon = world.prepared(&policy)?;
    let (go_agent, go_nobody) = (daemon.path("go-agent"), daemon.path("go-nobody"));
    let attempt = attack::tcp(daemon.lab(), PLC);
    let wait_then = |by: &By, go: &std::path::Path, daemon: &Daemon| {
        let script = format!("until [ -e {} ]; do read -t 0.02 <> <(:); done; {}", go.display(), attempt.words.join(" "));
        by.start_words(daemon, &["/bin/bash".into(), "-c".into(), script])
    };
    // The agent's own process must still be there at the walk, under its own name: its shim waits for its child.
    let shim = daemon.lab().program("lab-claude");
    let kept = fs::read_to_string(&shim)?;
    fs::write(&shim, "#!/bin/sh\n\"$@\"\n")?;
    let agent = wait_then(&By::LAB_AGENT, &go_agent, &daemon);
    let nobody = wait_then(&By::Program("lab-shim"), &go_nobody, &daemon);
    let started = daemon.spawn();
    fs::write(&shim, kept)?;
    let (agent, nobody) = (agent?, nobody?);
    started?;
    let (quiet, mark) = (Quiet::begin(daemon.lab())?, daemon.events().mark());
    fs::write(&go_agent, "")?;
    let refused = agent.finish(pp_tests::run::PATIENCE)?.json()?;
    ensure!(refused["errno"] == libc::EPERM, "{refused}");
    quiet.assert_nothing_at(PLC)?;
    fs::write(&go_nobody, "")?;
    let control = nobody.finish(pp_tests::run::PATIENCE)?.json()?;
    ensure!(control["ok"] == true, "control run: {control}");
    let _event = daemon.events().wait_since(mark, "its event", |event| is_block(event, PLC) && event["agent"] == AGENT)?;
    Ok(())
}
