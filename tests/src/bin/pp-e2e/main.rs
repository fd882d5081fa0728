//! Runs the end-to-end suite: builds the lab, runs every test in it one after the other, writes the result file.
//!
//! Usage: `pp-e2e --row NAME --result FILE [--soak] [--groups NAME,...] [--coverage|--uncovered] [--seed N] [--seeds N] [--seconds N] [FILTER] [libtest
//! options]`; needs root. Exit code 0 if nothing failed. `--groups` runs these groups alone: the whole suite in a test machine takes a
//! quarter of an hour a kernel. `--coverage` runs the tests that the coverage table names, of any group, and `--uncovered` the others. `--seed` is the first seed of the
//! concurrency hunts, `--seeds` and `--seconds` how many there are in soak and how long each takes. What such a run leaves out of the
//! group `soak` is listed as ignored, the reason in brackets.

mod world;

#[path = "../../../e2e/accounts.rs"]
mod accounts;
#[path = "../../../e2e/attackers.rs"]
mod attackers;
#[path = "../../../e2e/attackers_logins.rs"]
mod attackers_logins;
#[path = "../../../e2e/attackers_real_time.rs"]
mod attackers_real_time;
#[path = "../../../e2e/backend.rs"]
mod backend;
#[path = "../../../e2e/bad_input.rs"]
mod bad_input;
#[path = "../../../e2e/behaviour.rs"]
mod behaviour;
#[path = "../../../e2e/bringing_up.rs"]
mod bringing_up;
#[path = "../../../e2e/browser.rs"]
mod browser;
#[path = "../../../e2e/confine.rs"]
mod confine;
#[path = "../../../e2e/control.rs"]
mod control;
#[path = "../../../e2e/control_attacks.rs"]
mod control_attacks;
#[path = "../../../e2e/coverage.rs"]
mod coverage;
#[path = "../../../e2e/coverage_sockets.rs"]
mod coverage_sockets;
#[path = "../../../e2e/coverage_sweep.rs"]
mod coverage_sweep;
#[path = "../../../e2e/delegates.rs"]
mod delegates;
#[path = "../../../e2e/everybody.rs"]
mod everybody;
#[path = "../../../e2e/false_alarms.rs"]
mod false_alarms;
#[path = "../../../e2e/flows.rs"]
mod flows;
#[path = "../../../e2e/golden.rs"]
mod golden;
#[path = "../../../e2e/golden_cli.rs"]
mod golden_cli;
#[path = "../../../e2e/golden_socket.rs"]
mod golden_socket;
#[path = "../../../e2e/helpers.rs"]
mod helpers;
#[path = "../../../e2e/history.rs"]
mod history;
#[path = "../../../e2e/hooks.rs"]
mod hooks;
#[path = "../../../e2e/hunt.rs"]
mod hunt;
#[path = "../../../e2e/identity.rs"]
mod identity;
#[path = "../../../e2e/lab.rs"]
mod lab;
#[path = "../../../e2e/lifetime.rs"]
mod lifetime;
#[path = "../../../e2e/moves.rs"]
mod moves;
#[path = "../../../e2e/neighbours.rs"]
mod neighbours;
#[path = "../../../e2e/net_admin.rs"]
mod net_admin;
#[path = "../../../e2e/off.rs"]
mod off;
#[path = "../../../e2e/ordinary.rs"]
mod ordinary;
#[path = "../../../e2e/orphans.rs"]
mod orphans;
#[path = "../../../e2e/packages.rs"]
mod packages;
#[path = "../../../e2e/peers.rs"]
mod peers;
#[path = "../../../e2e/policies.rs"]
mod policies;
#[path = "../../../e2e/posture.rs"]
mod posture;
#[path = "../../../e2e/program_log.rs"]
mod program_log;
#[path = "../../../e2e/publication.rs"]
mod publication;
#[path = "../../../e2e/reach.rs"]
mod reach;
#[path = "../../../e2e/reach_daemon.rs"]
mod reach_daemon;
#[path = "../../../e2e/receipts.rs"]
mod receipts;
#[path = "../../../e2e/refusals.rs"]
mod refusals;
#[path = "../../../e2e/registries.rs"]
mod registries;
#[path = "../../../e2e/soak.rs"]
mod soak;
#[path = "../../../e2e/soak_machine.rs"]
mod soak_machine;
#[path = "../../../e2e/sockets.rs"]
mod sockets;
#[path = "../../../e2e/starting.rs"]
mod starting;
#[path = "../../../e2e/state.rs"]
mod state;
#[path = "../../../e2e/tamper.rs"]
mod tamper;
#[path = "../../../e2e/tools.rs"]
mod tools;
#[path = "../../../e2e/turns.rs"]
mod turns;
#[path = "../../../e2e/unlisted.rs"]
mod unlisted;
#[path = "../../../e2e/went_back.rs"]
mod went_back;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use pp_tests::coverage::{GROUP, Line, TABLE};
use pp_tests::lab::{is_emulated, leave_the_network};
use pp_tests::report::{self, Entry, Report};
use world::{Hunts, Skip, Test, World};

/// Every group, those that share a daemon first: starting one is what costs most on emulated machines.
const GROUPS: &[(&str, &[Test])] = &[
    ("lab", lab::TESTS),
    ("refusals", refusals::TESTS),
    ("ordinary", ordinary::TESTS),
    ("sockets", sockets::TESTS),
    ("peers", peers::TESTS),
    ("backend", backend::TESTS),
    ("backend_upgrade", backend::LONG),
    ("tamper", tamper::TESTS),
    ("reach", reach::TESTS),
    ("reach", reach_daemon::TESTS),
    ("tamper", helpers::TESTS),
    ("net_admin", net_admin::TESTS),
    ("moves", moves::TESTS),
    ("delegates", delegates::TESTS),
    ("delegates", unlisted::TESTS),
    ("confine", confine::TESTS),
    ("tamper", tamper::ALONE),
    ("behaviour", behaviour::TESTS),
    ("attackers", attackers::TESTS),
    ("attackers_logins", attackers_logins::TESTS),
    ("false_alarms", false_alarms::TESTS),
    ("registries", registries::TESTS),
    ("browser", browser::TESTS),
    ("receipts", receipts::TESTS),
    ("flows", flows::TESTS),
    ("orphans", orphans::TESTS),
    ("turns", turns::TESTS),
    ("tools", tools::TESTS),
    ("control", control::TESTS),
    ("control_attacks", control_attacks::TESTS),
    ("golden", golden_socket::TESTS),
    ("golden", golden_cli::TESTS),
    ("neighbours", neighbours::TESTS),
    ("everybody", everybody::TESTS),
    ("off", off::TESTS),
    ("packages", packages::TESTS),
    ("identity", identity::TESTS),
    ("bringing_up", bringing_up::TESTS),
    ("policies", policies::TESTS),
    ("bad_input", bad_input::TESTS),
    ("posture", posture::TESTS),
    ("lifetime", lifetime::TESTS),
    ("program_log", program_log::TESTS),
    ("publication", publication::TESTS),
    ("starting", starting::TESTS),
    ("state", state::TESTS),
    ("went_back", went_back::TESTS),
    ("state_long", state::LONG),
    ("accounts", accounts::TESTS),
    ("history", history::TESTS),
    ("hunt", hunt::TESTS),
    ("hooks", hooks::TESTS),
    ("attackers_real_time", attackers_real_time::TESTS),
];

/// The row of the kernel table that is this machine itself.
const NATIVE: &str = "native";
/// The group of what takes long or harms the machine it runs on.
const SOAK: &str = "soak";

/// What the runner is told besides the options of every test runner.
struct Options {
    row: String,
    result: Option<PathBuf>,
    soak: bool,
    hunts: Hunts,
    /// Only these; empty: all.
    groups: Vec<String>,
    coverage: bool,
    uncovered: bool,
    libtest: Vec<String>,
}

fn options() -> Result<Options> {
    let mut options = Options {
        row: NATIVE.to_owned(),
        result: None,
        soak: false,
        hunts: Hunts::default(),
        groups: Vec::new(),
        coverage: false,
        uncovered: false,
        libtest: Vec::new(),
    };
    let mut words = std::env::args();
    let number = |words: &mut std::env::Args, name: &str| -> Result<Option<u64>> {
        let word = words.next().unwrap_or_default();
        Ok(Some(word.parse().with_context(|| format!("{name} {word}: not a number"))?))
    };
    options.libtest.extend(words.next());
    while let Some(word) = words.next() {
        match word.as_str() {
            "--row" => options.row = words.next().unwrap_or_default(),
            "--result" => options.result = words.next().map(PathBuf::from),
            "--soak" => options.soak = true,
            "--seed" => options.hunts.seed = number(&mut words, "--seed")?,
            "--seeds" => options.hunts.seeds = number(&mut words, "--seeds")?,
            "--seconds" => options.hunts.seconds = number(&mut words, "--seconds")?,
            "--coverage" => options.coverage = true,
            "--uncovered" => options.uncovered = true,
            "--groups" => options.groups = words.next().unwrap_or_default().split(',').map(str::to_owned).collect(),
            _ => options.libtest.push(word),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    match suite() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(101),
        Err(error) => {
            eprintln!("pp-e2e: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn suite() -> Result<bool> {
    let options = options()?;
    let mut arguments = Arguments::from_iter(&options.libtest);
    // One lab and one machine's hooks: one test at a time, on this thread, which the lab's processes are bound to.
    arguments.test_threads = Some(1);
    if !arguments.list {
        let outside = leave_the_network()?;
        World::build(options.soak, options.hunts, outside)?;
    }
    let mut trials = Vec::new();
    let known = |name: &String| name == GROUP || name == SOAK || GROUPS.iter().any(|(group, _)| group == name);
    if let Some(name) = options.groups.iter().find(|name| !known(name)) {
        bail!("--groups: no group {name}");
    }
    let wanted = |group: &str| options.groups.is_empty() || options.groups.iter().any(|name| name == group);
    for (group, tests) in GROUPS.iter().copied() {
        if wanted(group) && runs(group, &options) {
            trials.extend(tests.iter().map(|test| trial(group, test.name, test.run)));
        }
        if group == "lab" && wanted(GROUP) {
            let show = |line: &'static Line| move |world: &mut World| coverage::row(world, line);
            trials.extend(coverage::own().map(|line| trial(GROUP, &line.claim(), show(line))));
        }
    }
    if wanted(SOAK) {
        let unless_soak = (!options.soak).then_some("only with --soak");
        // What they do to a kernel ends with it.
        let unless_machine = (!is_emulated()).then_some("only with --soak in a test machine");
        let withheld = [(soak::TESTS, unless_soak), (soak_machine::TESTS, unless_machine.or(unless_soak))];
        for (tests, why_not) in withheld {
            let shown = |test: &'static Test| trial(SOAK, test.name, test.run);
            trials.extend(tests.iter().map(|test| match why_not {
                None => shown(test),
                Some(why) => shown(test).with_kind(why).with_ignored_flag(true),
            }));
        }
    }
    let covered = |trial: &Trial| TABLE.iter().any(|line| line.test() == trial.name());
    trials.retain(|trial| (!options.coverage || covered(trial)) && (!options.uncovered || !covered(trial)));
    let conclusion = libtest_mimic::run(&arguments, trials);
    let backend = World::take_down();
    if let Some(result) = &options.result {
        Report::collect(&options.row, &backend)?.write(result)?;
    }
    Ok(!conclusion.has_failed())
}

/// True for a group that this kind of run has.
fn runs(group: &str, options: &Options) -> bool {
    match group {
        // Half an hour of waiting, in which an emulated processor shows nothing that another does not.
        "attackers_real_time" => options.soak && !is_emulated(),
        // Real agents are some hundred megabytes of program each, which an emulated processor would be minutes over; what marks them is
        // the same there, and `identity` shows it.
        "packages" => !is_emulated(),
        // A test machine has no network that leads to a registry.
        "registries" => options.row == NATIVE,
        // What is compared does not depend on the kernel, and a golden file is written where the work tree is.
        "golden" => options.row == NATIVE,
        // A daemon for each of some fifty programs.
        "hooks" => options.soak,
        // A few hundred megabytes to install.
        "browser" => options.soak && options.row == NATIVE,
        _ => true,
    }
}

fn trial(group: &str, claim: &str, test: impl Fn(&mut World) -> Result<()> + Send + 'static) -> Trial {
    let name = format!("{group}::{claim}");
    Trial::ignorable_test(name.clone(), move || run(&name, &test))
}

fn run(name: &str, test: &dyn Fn(&mut World) -> Result<()>) -> Result<Completion, Failed> {
    pp_tests::coverage::begin(name);
    let start = Instant::now();
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| World::with(test)));
    let milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    let note = |state, reason: &str| {
        report::record(Entry { name: name.to_owned(), state, reason: reason.to_owned(), milliseconds });
    };
    match done {
        Ok(Ok(())) => {
            note("passed", "");
            Ok(Completion::Completed)
        }
        Ok(Err(error)) => match error.downcast_ref::<Skip>() {
            Some(Skip(reason)) => {
                note("skipped", reason);
                Ok(Completion::ignored_with(reason))
            }
            None => {
                let text = format!("{error:#}");
                // At once as well as at the end: a run that is cut short says why its tests failed.
                eprintln!("\n{name}: {text}");
                note("failed", &text);
                Err(Failed::from(text))
            }
        },
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            let text = text.unwrap_or_else(|| "panicked".to_owned());
            note("failed", &text);
            Err(Failed::from(text))
        }
    }
}
