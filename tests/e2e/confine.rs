//! `pp-agent run --confine`: what it takes from a command, whatever the backend is, and what goes on working.
//!
//! Each way is gone by nobody's process first, and must arrive there. A refusal by the filter makes no event: it is nothing that the gate
//! sees.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::attack::{Answer, Attempt, workload};
use pp_tests::harness::{By, Quiet, catch_up};
use pp_tests::lab::{PLC, Place, STRAY_OTHER, fresh_target};
use pp_tests::paths;
use pp_tests::policy::AGENT;
use pp_tests::run::{self, Output, Running};
use pp_tests::wait;

use crate::coverage_sockets::arrived;
use crate::ordinary::{PAGE, git_work, page_load, undisturbed_by};
use crate::world::{World, tests};

tests![
    raw_frames_and_raw_packets_are_refused,
    rings_are_refused,
    sockets_of_other_families_are_refused,
    sockets_of_other_processes_cannot_be_copied,
    other_processes_cannot_be_driven,
    connected_sockets_are_not_passed_in,
    only_named_files_are_passed_in,
    kernel_mounts_and_namespaces_are_closed,
    other_interfaces_of_the_kernel_are_closed,
    privileges_are_gone_and_cannot_be_had_again,
    protected_places_are_refused_as_to_every_session,
    ordinary_work_goes_on,
    command_that_cannot_be_confined_is_not_started,
];

/// A confined session.
fn confined(daemon: &Daemon) -> By {
    By::Words(confined_with(daemon, &[]))
}

fn confined_with(daemon: &Daemon, options: &[&str]) -> Vec<String> {
    daemon.cli_words(&[&["run", "--agent", AGENT, "--confine"], options, &["--"]].concat())
}

fn bash(script: &str) -> Vec<String> {
    ["/bin/bash", "-c", script].map(str::to_owned).to_vec()
}

/// This way reaches the plant when nobody goes it, and is refused to a confined session with nothing arrived at the host that it names.
fn refused(daemon: &Daemon, technique: &str) -> Result<()> {
    let attempt = |target: SocketAddr| workload(daemon.lab(), &["try", technique, &target.to_string()], target);
    let host = |target: SocketAddr| SocketAddr::new(target.ip(), 0);
    let (control, target) = (fresh_target(), fresh_target());
    let plant = daemon.lab().plant().from_now();
    let answer = By::Nobody.attempt(daemon, &attempt(control))?;
    ensure!(answer == Answer::Delivered, "control run of {technique}: {answer:?}");
    wait::until_true("its packets in the plant", wait::SOON, || !plant.packets_to(host(control)).is_empty())
        .with_context(|| format!("control run of {technique}"))?;
    let quiet = Quiet::begin(daemon.lab())?;
    let answer = confined(daemon).attempt(daemon, &attempt(target))?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{technique} by a confined session: {answer:?}");
    quiet.assert_nothing_at(host(target))
}

/// This way is open to a session where nothing is protected, and to a confined one it is not: so it is not the gate that refuses it.
fn taken_away(daemon: &Daemon, technique: &str) -> Result<()> {
    let attempt = workload(daemon.lab(), &["try", technique, &STRAY_OTHER.to_string()], STRAY_OTHER);
    let answers = [By::run(AGENT).attempt(daemon, &attempt)?, confined(daemon).attempt(daemon, &attempt)?];
    ensure!(answers == [Answer::Delivered, Answer::Refused(libc::EPERM)], "{technique} where nothing is protected: {answers:?}");
    Ok(())
}

fn raw_frames_and_raw_packets_are_refused(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    for technique in ["packet", "packet-old-name"] {
        refused(daemon, technique)?;
    }
    for technique in ["raw-icmp", "raw-protocol", "raw-hdrincl"] {
        refused(daemon, technique)?;
        taken_away(daemon, technique)?;
    }
    Ok(())
}

fn rings_are_refused(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    for technique in ["uring-connect", "uring-connect-poll", "uring-sendmsg"] {
        refused(daemon, technique)?;
        taken_away(daemon, technique)?;
    }
    not_permitted(daemon, &["call", "ring"], &[Answer::Delivered])
}

/// An attempt at something on this host.
fn local(daemon: &Daemon, words: &[&str]) -> Attempt {
    workload(daemon.lab(), words, PLC)
}

/// Nobody may do it, or is told something else than that it is not permitted; a confined session is told just that.
fn not_permitted(daemon: &Daemon, words: &[&str], control: &[Answer]) -> Result<()> {
    let attempt = local(daemon, words);
    let answer = By::Nobody.attempt(daemon, &attempt)?;
    ensure!(control.contains(&answer), "control run of {words:?}: {answer:?}");
    let answer = confined(daemon).attempt(daemon, &attempt)?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{words:?} by a confined session: {answer:?}");
    Ok(())
}

/// What nobody is told where this kernel has no such family, or no such call.
const NO_FAMILY: Answer = Answer::Refused(libc::EAFNOSUPPORT);
const NO_CALL: Answer = Answer::Refused(libc::ENOSYS);

fn sockets_of_other_families_are_refused(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    // Where a machine has no way to itself, the socket is made, and its address is refused.
    let no_loopback = [libc::EADDRNOTAVAIL, libc::ENODEV].map(Answer::Refused);
    not_permitted(daemon, &["try", "vsock", &PLC.to_string()], &[Answer::Delivered, NO_FAMILY, no_loopback[0], no_loopback[1]])?;
    not_permitted(daemon, &["try", "smc", &PLC.to_string()], &[Answer::Delivered, NO_FAMILY])?;
    not_permitted(daemon, &["call", "ciphers"], &[Answer::Delivered, NO_FAMILY])
}

/// A process of nobody's that holds a socket connected to the target, its id and the socket's number in it.
fn holder(daemon: &Daemon, target: SocketAddr) -> Result<(Running, [String; 2])> {
    let words = local(daemon, &["hold-fd", &target.to_string(), "--state", "tcp-connected"]).words;
    let mut running = Running::start(&mut daemon.lab().command(Place::Engineering, &words))?;
    let line = running.line_with("ready")?;
    Ok((running, [line["pid"].to_string(), line["fd"].to_string()]))
}

fn sockets_of_other_processes_cannot_be_copied(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    for (by, expected) in [(By::Nobody, Answer::Delivered), (confined(daemon), Answer::Refused(libc::EPERM))] {
        let target = fresh_target();
        let plant = daemon.lab().plant().from_now();
        let (_holder, [pid, fd]) = holder(daemon, target)?;
        let answer = by.attempt(daemon, &local(daemon, &["take-fd", &pid, &fd]))?;
        ensure!(answer == expected, "{by:?}: {answer:?}");
        catch_up(daemon.lab())?;
        ensure!(arrived(&plant, target, true) == (expected == Answer::Delivered), "{by:?}: {:?}", plant.packets_to(target));
    }
    Ok(())
}

fn other_processes_cannot_be_driven(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let victim = Running::start(&mut daemon.lab().command(Place::Engineering, &["/bin/sleep", "1000"]))?;
    let pid = victim.pid().to_string();
    wait::until_true("the start of the victim", wait::SOON, || {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep")
    })?;
    for what in ["seize", "take-descriptor"] {
        not_permitted(daemon, &["tamper", what, &pid], &[Answer::Delivered])?;
    }
    // That is no call of its own: what keeps it out is that it has fewer capabilities.
    let memory = local(daemon, &["tamper", "open-memory", &pid]);
    let answers = [By::Nobody.attempt(daemon, &memory)?, confined(daemon).attempt(daemon, &memory)?];
    ensure!(answers == [Answer::Delivered, Answer::Refused(libc::EACCES)], "memory of another process: {answers:?}");
    // Nor its own children, which it may look at. Until they are `sleep`, their stack may move.
    let workload = daemon.lab().program("pp-workload").display().to_string();
    for what in ["seize", "take-descriptor", "write-memory"] {
        let script =
            format!("sleep 1000 & until [ \"$(cat /proc/$!/comm)\" = sleep ]; do :; done; \"{workload}\" tamper {what} $!; kill $!");
        let attempt = Attempt { words: bash(&script), ..local(daemon, &["tamper", what]) };
        let answers = [By::run(AGENT).attempt(daemon, &attempt)?, confined(daemon).attempt(daemon, &attempt)?];
        ensure!(answers == [Answer::Delivered, Answer::Refused(libc::EPERM)], "{what} of a child: {answers:?}");
    }
    Ok(())
}

/// Opens the redirection as file 7, becomes what the words begin with, and below that runs a script that may have it.
fn with_file_7(daemon: &Daemon, redirection: &str, before: &[String], script: &str) -> Result<Output> {
    let mut words = bash(&format!("exec 7{redirection}; exec \"$@\""));
    words.push("opener".to_owned());
    words.extend_from_slice(before);
    words.extend(bash(script));
    run::run(&mut daemon.lab().command(Place::Engineering, &words))
}

/// The words before a command that stays nobody's.
fn nobody(daemon: &Daemon) -> Vec<String> {
    By::Nobody.words(daemon, &[])
}

fn connected_sockets_are_not_passed_in(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    for (before, is_nobody) in [(nobody(daemon), true), (confined_with(daemon, &[]), false)] {
        let target = fresh_target();
        let plant = daemon.lab().plant().from_now();
        let socket = format!("<>/dev/tcp/{}/{}", target.ip(), target.port());
        let output = with_file_7(daemon, &socket, &before, "echo more than a handshake >&7")?;
        ensure!(output.status.success() == is_nobody, "{before:?}: {output}");
        ensure!(is_nobody || output.stderr.contains("7: Bad file descriptor"), "{output}");
        catch_up(daemon.lab())?;
        ensure!(arrived(&plant, target, true) == is_nobody, "{before:?}: {:?}", plant.packets_to(target));
    }
    Ok(())
}

fn only_named_files_are_passed_in(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let file = daemon.path("passed");
    let open = format!(">{}", file.display());
    let plain = daemon.cli_words(&["run", "--agent", AGENT, "--"]);
    for (before, comes) in [(plain, true), (confined_with(daemon, &[]), false), (confined_with(daemon, &["--keep-fd", "7"]), true)] {
        let output = with_file_7(daemon, &open, &before, "echo written >&7")?;
        ensure!(output.status.success() == comes, "{before:?}: {output}");
        ensure!(fs::read_to_string(&file)? == if comes { "written\n" } else { "" }, "{before:?}: {output}");
    }
    let marker = daemon.path("started-without-7");
    let output =
        By::Words(confined_with(daemon, &["--keep-fd", "7"])).run_words(daemon, &["touch".into(), marker.display().to_string()])?;
    ensure!(output.code() == 2 && output.stderr.contains("--keep-fd 7: no such file descriptor is open"), "{output}");
    ensure!(!marker.exists(), "it was started all the same");
    Ok(())
}

fn kernel_mounts_and_namespaces_are_closed(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let next_program = "11";
    not_permitted(daemon, &["tamper", "bpf", next_program], &[Answer::Delivered])?;
    // Zeros are no module, and no segments no kernel, but that is found out later than who may load one.
    not_permitted(daemon, &["tamper", "load-module"], &[Answer::Refused(libc::ENOEXEC), NO_CALL])?;
    not_permitted(daemon, &["tamper", "kexec"], &[Answer::Delivered, NO_CALL])?;
    let folder = daemon.path("mounted");
    fs::create_dir_all(&folder)?;
    let folder_text = folder.display().to_string();
    let [mount, unmount] = ["mount", "unmount"].map(|what| local(daemon, &["tamper", what, &folder_text]));
    let mut answers = Vec::new();
    for (by, attempt) in [(By::Nobody, &mount), (confined(daemon), &mount), (confined(daemon), &unmount), (By::Nobody, &unmount)] {
        answers.push(by.attempt(daemon, attempt)?);
    }
    // What a session mounted all the same is not left behind.
    while fs::read_to_string("/proc/self/mountinfo")?.contains(&folder_text) {
        let answer = By::Nobody.attempt(daemon, &unmount)?;
        ensure!(answer == Answer::Delivered, "{folder_text} stays mounted: {answer:?}");
    }
    fs::remove_dir(&folder)?;
    let refused = Answer::Refused(libc::EPERM);
    ensure!(answers == [Answer::Delivered, refused, refused, Answer::Delivered], "mounts and unmounts: {answers:?}");
    not_permitted(daemon, &["tamper", "unmount-alone", "/sys"], &[Answer::Delivered])?;
    for call in ["clone-user-namespace", "enter-namespace"] {
        not_permitted(daemon, &["call", call], &[Answer::Delivered])?;
    }
    // Its flags lie where no filter can read them: the C library takes this for an old kernel, and uses clone.
    let answers = [By::Nobody, confined(daemon)].map(|by| by.attempt(daemon, &local(daemon, &["call", "clone3"])));
    ensure!(matches!(answers, [Ok(Answer::Delivered), Ok(NO_CALL)]), "clone3: {answers:?}");
    Ok(())
}

fn other_interfaces_of_the_kernel_are_closed(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    not_permitted(daemon, &["call", "typing"], &[Answer::Delivered])?;
    // Most kernels have no x32 calls, and say so.
    not_permitted(daemon, &["call", "x32"], &[Answer::Delivered, NO_CALL])?;
    // One that has no 32-bit programs ends the process in its own way.
    let compat = local(daemon, &["call", "compat"]);
    let control = By::Nobody.run_words(daemon, &compat.words)?;
    ensure!(control.status.success() || control.code() == 128 + libc::SIGSEGV, "control run of a 32-bit call: {control}");
    let output = confined(daemon).run_words(daemon, &compat.words)?;
    ensure!(output.code() == 128 + libc::SIGSYS, "a 32-bit call by a confined session: {output}");
    Ok(())
}

/// The line of `/proc/self/status` with this name.
fn line<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
        .with_context(|| format!("no {name}: {status}"))
}

fn privileges_are_gone_and_cannot_be_had_again(world: &mut World) -> Result<()> {
    const NONE: &str = "0000000000000000";
    let daemon = world.daemon()?;
    let user = [daemon.lab().program("pp-workload").display().to_string(), "in".into(), "--uid".into(), "65534".into(), "--".into()];
    let by_user = |words: Vec<String>| By::Words([user.to_vec(), words].concat());
    let own_status = ["/bin/cat".to_owned(), "/proc/self/status".to_owned()];
    for (by, bounding) in [(confined(daemon), true), (by_user(confined_with(daemon, &[])), false)] {
        let status = by.run_words(daemon, &own_status)?.success()?.stdout;
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            ensure!(line(&status, set)? == NONE, "{by:?}: {status}");
        }
        // Whoever may not change the bounding set keeps it, and gets nothing from it.
        ensure!((line(&status, "CapBnd")? == NONE) == bounding, "{by:?}: {status}");
        ensure!(line(&status, "NoNewPrivs")? == "1" && line(&status, "Seccomp")? == "2", "{by:?}: {status}");
    }
    // A program that is root's whoever starts it.
    let program = daemon.path("setuid-id");
    fs::copy("/usr/bin/id", &program)?;
    let path = program.display().to_string();
    let _done = run::run(&mut daemon.lab().command(Place::Engineering, &["chmod", "4755", path.as_str()]))?.success()?;
    let who = [path, "-u".to_owned()];
    let plain = By::Words(user.to_vec()).run_words(daemon, &who)?.success()?;
    ensure!(plain.stdout.trim() == "0", "control run of a setuid program: {plain}");
    let output = by_user(confined_with(daemon, &[])).run_words(daemon, &who)?.success()?;
    ensure!(output.stdout.trim() == "65534", "a setuid program in a confined session: {output}");
    Ok(())
}

fn protected_places_are_refused_as_to_every_session(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let attempt = pp_tests::attack::tcp(daemon.lab(), fresh_target());
    let event = pp_tests::harness::Refusal::of(attempt, confined(daemon)).with_control(By::Nobody).assert(daemon)?;
    ensure!(event["agent"] == AGENT, "{event}");
    Ok(())
}

fn ordinary_work_goes_on(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let by = confined(daemon);
    let page = undisturbed_by(daemon, &by, &page_load())?;
    ensure!(page.contains(PAGE), "{page}");
    let _done = undisturbed_by(daemon, &by, &git_work(daemon, "confined"))?;
    // Pipes, children, jobs, files.
    let text = undisturbed_by(daemon, &by, "cd \"$(mktemp -d)\"; (echo b; echo a) | sort > s & wait; cat <(cat s) && rm -r \"$PWD\"")?;
    ensure!(text == "a\nb\n", "{text}");
    let program = "import asyncio, concurrent.futures as c, multiprocessing as m, os, socket, subprocess, tempfile, threading\n\
                   threads = list(c.ThreadPoolExecutor(4).map(abs, [-1, -2]))\n\
                   with c.ProcessPoolExecutor(2, m.get_context('fork')) as pool: processes = list(pool.map(abs, [-3, -4]))\n\
                   child = subprocess.run(['uname'], capture_output=True, check=True).stdout.decode().strip()\n\
                   server = socket.create_server(('127.0.0.1', 0)); socket.create_connection(server.getsockname()).close()\n\
                   print(threads, processes, child, asyncio.run(asyncio.sleep(0, 5)))";
    let script = format!("{} -c \"{program}\"", paths::python()?.display());
    let text = undisturbed_by(daemon, &by, &script)?;
    ensure!(text.trim() == "[1, 2] [3, 4] Linux 5", "{text}");
    let text = undisturbed_by(daemon, &by, concat!(env!("CARGO"), " --version"))?;
    ensure!(text.starts_with("cargo "), "{text}");
    Ok(())
}

fn command_that_cannot_be_confined_is_not_started(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let marker = daemon.path("started");
    let touch = ["touch".to_owned(), marker.display().to_string()];
    let without = [daemon.lab().program("pp-workload").display().to_string(), "without-filters".to_owned(), "--".to_owned()];
    // The daemon marks it, and the kernel takes no filter.
    let output = By::Words([without.to_vec(), confined_with(daemon, &[])].concat()).run_words(daemon, &touch)?;
    ensure!(output.code() == 2 && output.stderr.contains("the kernel does not take the filter"), "{output}");
    ensure!(!marker.exists(), "it was started without a filter");
    let plain = daemon.cli_words(&["run", "--agent", AGENT, "--"]);
    let _done = By::Words([without.to_vec(), plain].concat()).run_words(daemon, &touch)?.success()?;
    ensure!(marker.exists(), "control run: it was not started without --confine either");
    fs::remove_file(&marker)?;
    // No daemon.
    let mut nowhere = confined_with(daemon, &[]);
    let socket = nowhere.iter_mut().find(|word| word.ends_with("control.sock")).context("no socket in the words")?;
    *socket = daemon.path("nobody.sock").display().to_string();
    let output = By::Words(nowhere).run_words(daemon, &touch)?;
    ensure!(output.code() == 2 && !marker.exists(), "without a daemon: {output}");
    Ok(())
}
