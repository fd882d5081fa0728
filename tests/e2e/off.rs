//! `pp-agent off` and `on`: only verdicts change, whoever may switch is bounded, and nothing that was opened meanwhile outlives it. And
//! `uninstall-hooks`, which is no way to do the same.

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::harness::{By, Quiet, Refusal, is_block, is_verdict};
use pp_tests::lab::{PLC, Place, STREAM};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run::{self, Output, Running};
use pp_tests::wait;
use serde_json::Value;

use crate::golden::another_user;
use crate::world::{World, tests};

tests![
    off_lets_through_and_says_so_and_on_refuses_again,
    flow_that_was_opened_while_off_ends_with_on,
    off_for_a_time_ends_by_itself_without_a_daemon_too,
    neither_agents_nor_users_switch,
    on_works_without_a_daemon_and_the_next_one_reports_it,
    hooks_are_not_removed_while_a_daemon_answers,
    protection_is_not_switched_off_in_a_terminal_with_an_agent,
    hooks_are_not_removed_from_a_terminal_with_an_agent,
];

const REASON: &str = "pump 3 has to go on";

fn off(daemon: &Daemon, time: &[&str]) -> Result<Output> {
    daemon.cli(&[&["off", "--reason", REASON], time].concat())
}

/// Refused with its event and nothing at the far end; an ordinary program arrives.
fn refused(daemon: &Daemon) -> Result<()> {
    let refusal = Refusal::of(attack::tcp(daemon.lab(), PLC), By::LAB_AGENT).with_control(By::Program("lab-shim"));
    refusal.assert(daemon).map(drop)
}

/// An agent's connection arrives, and an event says that it did because protection is off. Nothing counts as refused.
fn let_through(daemon: &Daemon) -> Result<()> {
    let mark = daemon.events().mark();
    let answer = By::LAB_AGENT.attempt(daemon, &attack::tcp(daemon.lab(), PLC))?;
    ensure!(answer == Answer::Delivered, "{answer:?}");
    let event = daemon.events().wait_since(mark, "its event", |event| is_verdict(event, "off"))?;
    ensure!(event["reason"] == "no_receipt" && event["destination"]["address"] == PLC.ip().to_string(), "{event}");
    Ok(())
}

fn event(daemon: &Daemon, mark: usize, reason: &str) -> Result<Value> {
    daemon.events().wait_since(mark, reason, |event| event["kind"] == "protection" && event["reason"] == reason)
}

fn detail(event: &Value) -> &str {
    event["detail"].as_str().unwrap_or_default()
}

fn off_lets_through_and_says_so_and_on_refuses_again(world: &mut World) -> Result<()> {
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    refused(&daemon)?;
    let mark = daemon.events().mark();
    let output = off(&daemon, &[])?.success()?;
    ensure!(output.stdout.contains("protection is off until pp-agent on") && output.stdout.contains(REASON), "{output}");
    let told = event(&daemon, mark, "off")?;
    ensure!(detail(&told).contains(REASON) && detail(&told).contains("root (uid 0)"), "{told}");
    let_through(&daemon)?;
    // Bad news comes first, and the exit codes say it too. The canary measures the hooks as before.
    let status = daemon.cli(&["status"])?;
    ensure!(status.code() == 2 && status.stdout.starts_with("OFF       until pp-agent on, since "), "{status}");
    let status = daemon.client()?.status()?;
    ensure!(
        status["posture"] == "off" && status["switched_off"]["by"] == "root (uid 0)" && status["switched_off"]["reason"] == REASON,
        "{status}"
    );
    ensure!(status["measured"] == "enforcing" || status["measured"] == "partial", "{status}");
    ensure!(daemon.cli(&["status", "--require", "partial"])?.code() == 2, "status --require partial is content");
    let metrics = daemon.client()?.get("/metrics")?.body.to_string();
    ensure!(metrics.contains("pp_protection_off 1"), "{metrics}");
    let doctor = daemon.cli(&["doctor"])?;
    ensure!(doctor.code() == 2 && doctor.stdout.contains("switch it on: pp-agent on"), "{doctor}");
    // What no hook could judge later stays refused, and a session is known as one.
    let sessions = daemon.cli(&["run", "--agent", AGENT, "--", "/bin/true"])?;
    ensure!(sessions.code() == 0, "no session can be started: {sessions}");
    // A daemon that comes anew keeps it and says so, and its canary is refused.
    daemon.stop()?;
    ensure!(daemon.log().contains("stopped; protection is off until pp-agent on"), "{}", daemon.log());
    daemon.spawn()?;
    ensure!(daemon.client()?.status()?["posture"] == "off", "a restart ended it");
    let_through(&daemon)?;
    let mark = daemon.events().mark();
    let output = daemon.cli(&["on"])?.success()?;
    ensure!(output.stdout.contains("protection is on again"), "{output}");
    let _told = event(&daemon, mark, "on")?;
    refused(&daemon)?;
    let status = daemon.cli(&["status"])?;
    ensure!(status.code() == 0 && !status.stdout.contains("OFF"), "{status}");
    let again = daemon.cli(&["on"])?.success()?;
    ensure!(again.stdout.contains("it was not off"), "{again}");
    Ok(())
}

fn flow_that_was_opened_while_off_ends_with_on(world: &mut World) -> Result<()> {
    let daemon = world.own(&Policy::standard(world.lab()))?;
    let hold = |by: &By, target: std::net::SocketAddr| -> Result<Running> {
        let command = attack::workload(daemon.lab(), &["hold", &target.to_string(), "--for-ms", "20000"], target);
        let mut near = Running::start(&mut daemon.lab().command(Place::Engineering, &by.words(&daemon, &command.words)))?;
        let _opened = near.line_with("connected")?;
        let _flowing = near.line_with("flowing")?;
        Ok(near)
    };
    let _off = off(&daemon, &["--for", "10m"])?.success()?;
    let theirs = hold(&By::Nobody, STREAM)?;
    let agents = hold(&By::LAB_AGENT, STREAM)?;
    let mark = daemon.events().mark();
    let _on = daemon.cli(&["on"])?.success()?;
    let ended = agents.finish(run::PATIENCE)?.success()?.json()?;
    // It hears whichever is first: the daemon's end of the flow, or the refusal of its next write.
    let heard = [libc::ECONNABORTED, libc::EPERM].iter().any(|errno| ended["errno"] == *errno);
    ensure!(ended["ended"] == true && heard, "the program did not hear that it ended: {ended}");
    ensure!(ended["sent"].as_u64() > Some(0) && ended["received"].as_u64() > Some(0), "nothing flowed before: {ended}");
    let told = daemon.events().wait_since(mark, "the flow's event", |event| event["kind"] == "flow_ended" || is_block(event, STREAM))?;
    ensure!(told["reason"] == "no_receipt" || told["reason"] == "flow_refused", "{told}");
    let theirs = theirs.finish(run::PATIENCE)?.success()?.json()?;
    ensure!(theirs["ended"] == false, "control: somebody else's flow to the same server ended too: {theirs}");
    Ok(())
}

fn off_for_a_time_ends_by_itself_without_a_daemon_too(world: &mut World) -> Result<()> {
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    let attempt = attack::tcp(daemon.lab(), PLC);
    let until = |daemon: &Daemon, wanted: Answer| {
        wait::until_true("the other answer", wait::SOON, || By::LAB_AGENT.attempt(daemon, &attempt).is_ok_and(|answer| answer == wanted))
    };
    let mark = daemon.events().mark();
    let _off = off(&daemon, &["--for", "3s"])?.success()?;
    until(&daemon, Answer::Refused(libc::EPERM)).context("while the daemon runs")?;
    let told = event(&daemon, mark, "over")?;
    ensure!(detail(&told).contains("its time is over"), "{told}");
    refused(&daemon)?;
    // Control of the rest: long enough to see that it is off with the daemon dead.
    let _off = off(&daemon, &["--for", "15s"])?.success()?;
    daemon.crash()?;
    let answer = By::LAB_AGENT.attempt(&daemon, &attempt)?;
    ensure!(answer == Answer::Delivered, "control: with the daemon dead it is not off: {answer:?}");
    until(&daemon, Answer::Refused(libc::EPERM)).context("with the daemon dead")?;
    let quiet = Quiet::begin(daemon.lab())?;
    let answer = By::LAB_AGENT.attempt(&daemon, &attempt)?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{answer:?}");
    quiet.assert_nothing_at(PLC)?;
    let mark = daemon.events().mark();
    daemon.spawn()?;
    let _told = event(&daemon, mark, "over")?;
    let status = daemon.cli(&["status"])?;
    ensure!(status.code() == 0, "{status}");
    refused(&daemon)
}

fn neither_agents_nor_users_switch(world: &mut World) -> Result<()> {
    let daemon = world.own(&Policy::standard(world.lab()))?;
    let words = daemon.cli_words(&["off", "--for", "10m", "--reason", REASON]);
    for by in [By::run(AGENT), By::LAB_AGENT, another_user(&daemon)] {
        let output = by.run_words(&daemon, &words)?;
        ensure!(output.code() == 2 && output.stderr.contains("this call"), "{by:?} switched protection off: {output}");
        refused(&daemon)?;
    }
    for (time, said) in [(vec!["--for", "25h"], "at most 24 hours"), (vec!["--for", "0s"], "not a time")] {
        let output = off(&daemon, &time)?;
        ensure!(output.code() == 2 && output.stderr.contains(said), "{output}");
    }
    let output = daemon.cli(&["off", "--for", "10m", "--reason", " "])?;
    ensure!(output.code() == 2 && output.stderr.contains("reason"), "without a reason: {output}");
    refused(&daemon)?;
    let _off = off(&daemon, &["--for", "10m"])?.success()?;
    let_through(&daemon).context("control: those who may")?;
    // Who may not switch it off may not switch it on: the record has who did.
    let words = daemon.cli_words(&["on"]);
    let output = By::LAB_AGENT.run_words(&daemon, &words)?;
    ensure!(output.code() == 2 && output.stderr.contains("this call"), "{output}");
    let _on = daemon.cli(&["on"])?.success()?;
    refused(&daemon)
}

fn on_works_without_a_daemon_and_the_next_one_reports_it(world: &mut World) -> Result<()> {
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    let _off = off(&daemon, &[])?.success()?;
    daemon.crash()?;
    let attempt = attack::tcp(daemon.lab(), PLC);
    let answer = By::LAB_AGENT.attempt(&daemon, &attempt)?;
    ensure!(answer == Answer::Delivered, "control: it is not off: {answer:?}");
    let refused_now = off(&daemon, &["--for", "10m"])?;
    ensure!(refused_now.code() == 2 && refused_now.stderr.contains("off needs the daemon"), "{refused_now}");
    let bpffs = daemon.bpffs().display().to_string();
    let words = daemon.cli_words(&["on", "--bpffs", &bpffs]);
    let inside = By::LAB_AGENT.run_words(&daemon, &words)?;
    ensure!(inside.code() == 2 && inside.stderr.contains("inside an agent's session"), "{inside}");
    let output = daemon.cli(&["on", "--bpffs", &bpffs])?.success()?;
    ensure!(output.stdout.contains("protection is on again"), "{output}");
    let answer = By::LAB_AGENT.attempt(&daemon, &attempt)?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{answer:?}");
    let mark = daemon.events().mark();
    daemon.spawn()?;
    let told = event(&daemon, mark, "on")?;
    ensure!(detail(&told).contains("while no daemon ran"), "{told}");
    refused(&daemon)
}

fn hooks_are_not_removed_while_a_daemon_answers(world: &mut World) -> Result<()> {
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    let bpffs = daemon.bpffs().display().to_string();
    let uninstall = ["uninstall-hooks", "--yes", "--bpffs", &bpffs];
    let output = daemon.cli(&uninstall)?;
    ensure!(output.code() == 2 && output.stderr.contains("a daemon answers") && output.stderr.contains("pp-agent off"), "{output}");
    ensure!(daemon.bpffs().join("links").exists(), "the pins are gone");
    // One that answers elsewhere has the pins all the same.
    let elsewhere = daemon.path("elsewhere.sock").display().to_string();
    let mut words = daemon.cli_words(&uninstall);
    words[2] = elsewhere;
    let output = run::run(&mut daemon.lab().command(Place::Engineering, &words))?;
    ensure!(output.code() == 2 && output.stderr.contains("works with them"), "{output}");
    ensure!(daemon.bpffs().join("links").exists(), "the pins are gone");
    refused(&daemon)?;
    daemon.crash()?;
    // Without a terminal nobody can be asked.
    let output = daemon.cli(&["uninstall-hooks", "--bpffs", &bpffs])?;
    ensure!(output.code() == 2 && output.stderr.contains("--yes") && daemon.bpffs().exists(), "{output}");
    let _removed = daemon.cli(&uninstall)?.success()?;
    ensure!(!daemon.bpffs().exists(), "control: the hooks of a dead daemon stay");
    Ok(())
}

/// Runs a command line of the shell in a terminal of its own, with this typed into it.
fn in_terminal(daemon: &Daemon, line: &str, typed: &str) -> Result<Output> {
    let words = ["/bin/bash", "-c", "printf '%s\\n' \"$2\" | script -qec \"$1\" /dev/null", "terminal", line, typed];
    run::run(&mut daemon.lab().command(Place::Engineering, &words))
}

/// Beside an agent in the terminal's session, and in a session of its own that was started there.
fn is_refused_beside_an_agent(daemon: &Daemon, command: &str) -> Result<()> {
    let agent = daemon.lab().program("lab-claude").display().to_string();
    let runs = daemon.path("agent-runs").display().to_string();
    for detach in ["", "setsid "] {
        let line = format!(
            "mkfifo {runs}; {detach}{agent} /bin/sh -c 'echo > {runs}; exec sleep 30' & read _ < {runs}; rm {runs}; \
             {command}; code=$?; kill $!; exit $code"
        );
        let output = in_terminal(daemon, &line, "yes")?;
        ensure!(output.code() == 2 && output.stdout.contains("refused in this terminal"), "{detach}: {output}");
    }
    Ok(())
}

fn protection_is_not_switched_off_in_a_terminal_with_an_agent(world: &mut World) -> Result<()> {
    let daemon = world.own(&Policy::standard(world.lab()))?;
    let off = daemon.cli_words(&["off", "--for", "10m", "--reason", "'it was typed'"]).join(" ");
    is_refused_beside_an_agent(&daemon, &off)?;
    refused(&daemon)?;
    let output = in_terminal(&daemon, &off, "")?;
    ensure!(output.code() == 0, "control: a terminal without an agent: {output}");
    let_through(&daemon)
}

fn hooks_are_not_removed_from_a_terminal_with_an_agent(world: &mut World) -> Result<()> {
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    let bpffs = daemon.bpffs().display().to_string();
    daemon.stop()?;
    let uninstall = daemon.cli_words(&["uninstall-hooks", "--bpffs", &bpffs]).join(" ");
    is_refused_beside_an_agent(&daemon, &uninstall)?;
    ensure!(daemon.bpffs().exists(), "the hooks are gone");
    let output = in_terminal(&daemon, &uninstall, "no")?;
    ensure!(output.code() == 2 && output.stdout.contains("nothing was removed") && daemon.bpffs().exists(), "answered no: {output}");
    let output = in_terminal(&daemon, &uninstall, "yes")?;
    ensure!(output.code() == 0 && !daemon.bpffs().exists(), "control: a terminal without an agent: {output}");
    Ok(())
}
