//! Refusals do not vanish untold: after every storm told + repeats + lost = refused, exactly, for whoever follows and in the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::harness::By;
use pp_tests::lab::{PLC, PLC_NEIGHBOUR, is_emulated};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::refused::{Account, Counting, Sums, account, stored};
use pp_tests::run::Running;
use pp_tests::wait;

use crate::soak::metric;
use crate::tamper::tamper;
use crate::tools::spray_once;
use crate::world::{World, tests};

tests![
    every_refusal_of_a_storm_is_told_repeated_or_lost,
    refusals_of_every_kind_are_counted_once,
    storm_beside_a_stopped_daemon_is_accounted_for,
    storm_in_which_the_daemon_is_killed_is_accounted_for,
];

/// The first pair of a storm; all are in the zone.
const FIRST: &str = "10.20.64.0:7000";
/// Refusals of one storm: more than the ring buffer and the table of repeats have room for.
const REFUSALS: u64 = 120_000;
/// The same on an emulated processor.
const EMULATED_REFUSALS: u64 = 45_000;
const PROCESSES: u64 = 8;
/// Told refusals that the store keeps for sure, beside everything else.
const STORED: u64 = 90_000;
/// How long the daemon may take to tell a storm, its last repeats ten seconds after it.
const TELLING: Duration = Duration::from_secs(120);
const EMULATED_TELLING: Duration = Duration::from_secs(1_500);

fn refusals() -> u64 {
    if is_emulated() { EMULATED_REFUSALS } else { REFUSALS }
}

fn telling() -> Duration {
    if is_emulated() { EMULATED_TELLING } else { TELLING }
}

fn storm_words(daemon: &Daemon, count: u64) -> Vec<String> {
    let (count, processes) = (count.to_string(), PROCESSES.to_string());
    attack::workload(daemon.lab(), &["storm", "mixed", FIRST, "--count", &count, "--processes", &processes], PLC).words
}

/// Waits for the storm's end; every attempt was refused.
fn refused_all(storm: Running, count: u64) -> Result<()> {
    let output = storm.finish(telling())?.success()?.json()?;
    ensure!(output["refused"] == count, "of {count} attempts: {output}");
    Ok(())
}

/// Waits until the daemon's own account has no open item.
pub(crate) fn settled(daemon: &Daemon) -> Result<Account> {
    let client = daemon.client()?;
    let found = wait::until_every(Duration::from_millis(500), "an event for every refusal", telling(), || {
        account(&client).ok().filter(|account| account.untold == 0)
    });
    let account = found.with_context(|| format!("the account: {:?}", account(&client)))?;
    ensure!(account.told + account.repeats + account.lost == account.refused, "{account:?}");
    Ok(account)
}

/// The same after so many refusals, which the kernel has counted as well.
fn settled_after(daemon: &Daemon, before: u64, count: u64) -> Result<Account> {
    let account = settled(daemon)?;
    eprintln!("{account:?}");
    ensure!(account.refused == before + count, "{account:?}, {before} refused before {count} more");
    ensure!(metric(daemon, "pp_refused_total")? == account.refused && metric(daemon, "pp_refused_untold")? == 0, "metrics: {account:?}");
    Ok(account)
}

/// Waits until a follower was told of so many.
fn followed(counting: Counting, count: u64) -> Result<Sums> {
    let found = wait::until_true("all that was refused, at a follower", telling(), || counting.sums().followed() >= count);
    let sums = counting.finish()?;
    found.with_context(|| format!("{count} were refused: {sums:?}"))?;
    eprintln!("{sums:?}");
    ensure!(sums.followed() == count, "{count} were refused: {sums:?}");
    Ok(sums)
}

/// The stored events tell of so many, or of fewer where the oldest made room.
fn stored_all(daemon: &Daemon, count: u64) -> Result<()> {
    let sums = wait::until_every(Duration::from_secs(1), "all that was refused, in the store", telling(), || {
        stored(&daemon.client().ok()?).ok().filter(|sums| sums.stored() == count)
    });
    sums.with_context(|| format!("{count} were refused: {:?}", daemon.client().and_then(|client| stored(&client)))).map(drop)
}

fn every_refusal_of_a_storm_is_told_repeated_or_lost(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab());
    let daemon = world.own(&policy)?;
    daemon.events().let_go();
    storm_on_a_busy_machine(&daemon, &policy, refusals())
}

fn refusals_of_every_kind_are_counted_once(world: &mut World) -> Result<()> {
    const SIGNALS: u64 = 5;
    let guarded = world.backend()? != "cgroup";
    let daemon = world.daemon()?;
    let counting = Counting::start(&daemon.path("control.sock"), Duration::ZERO)?;
    let before = settled(daemon)?;
    // A tool that is killed.
    spray_once(daemon)?;
    let after = settled(daemon)?;
    ensure!((after.refused, after.told) == (before.refused + 1, before.told + 1), "{after:?}, before {before:?}");
    for attempt in [attack::tcp(daemon.lab(), PLC), attack::tcp(daemon.lab(), PLC_NEIGHBOUR)] {
        let answer = By::run(AGENT).attempt(daemon, &attempt)?;
        ensure!(matches!(answer, Answer::Refused(_)), "{}: {answer:?}", attempt.name);
    }
    let calls = settled(daemon)?;
    ensure!(calls.refused >= after.refused + 2 && calls.lost == before.lost, "{calls:?}, before {after:?}");
    if guarded {
        let (pid, harmless) = (daemon.pid()?.to_string(), (Signal::SIGCONT as i32).to_string());
        for _ in 0..SIGNALS {
            let answer = By::run(AGENT).attempt(daemon, &tamper(daemon, &["signal", &pid, &harmless]))?;
            ensure!(matches!(answer, Answer::Refused(_)), "a signal to the daemon: {answer:?}");
        }
        let signals = settled(daemon)?;
        ensure!(signals.refused >= calls.refused + SIGNALS && signals.lost == before.lost, "{signals:?}, before {calls:?}");
    }
    let all = settled(daemon)?;
    followed(counting, all.refused - before.refused).map(drop)
}

fn storm_beside_a_stopped_daemon_is_accounted_for(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab());
    let daemon = world.own(&policy)?;
    daemon.events().let_go();
    let before = account(&daemon.client()?)?.refused;
    let count = refusals();
    daemon.signal(Signal::SIGSTOP)?;
    let storm = By::LAB_AGENT.start_words(&daemon, &storm_words(&daemon, count)).and_then(|storm| refused_all(storm, count));
    daemon.signal(Signal::SIGCONT)?;
    storm?;
    let account = settled_after(&daemon, before, count)?;
    ensure!(account.lost > 0 && account.repeats > 0 && account.told > 0, "{account:?}");
    stored_all(&daemon, before + count)
}

fn storm_in_which_the_daemon_is_killed_is_accounted_for(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab());
    let mut daemon = world.own(&policy)?;
    daemon.events().let_go();
    let before = account(&daemon.client()?)?.refused;
    let count = refusals();
    let mut sum = 0;
    for _ in 0..2 {
        let storm = By::LAB_AGENT.start_words(&daemon, &storm_words(&daemon, count))?;
        let begun = metric(&daemon, "pp_kernel_blocked_total")?;
        wait::until_true("the storm's first refusals", wait::SOON, || {
            metric(&daemon, "pp_kernel_blocked_total").is_ok_and(|now| now > begun + 100)
        })?;
        daemon.crash()?;
        daemon.spawn()?;
        refused_all(storm, count)?;
        sum += count;
    }
    let _account = settled_after(&daemon, before, sum)?;
    stored_all(&daemon, before + sum)?;
    // A clean restart has nothing to add.
    daemon.stop()?;
    daemon.spawn()?;
    let again = settled_after(&daemon, before, sum)?;
    ensure!(again.lost < sum, "{again:?}");
    stored_all(&daemon, before + sum)
}

/// A storm of this size on a machine where every processor is busy with something else: nothing of it vanishes, for followers and in the store.
pub(crate) fn storm_on_a_busy_machine(daemon: &Daemon, policy: &Policy, count: u64) -> Result<()> {
    let before = settled(daemon)?.refused;
    let stored_before = stored(&daemon.client()?)?.stored();
    let (quick, slow) = (Duration::ZERO, Duration::from_millis(2));
    let [quick, slow] = [quick, slow].map(|pause| Counting::start(&daemon.path("control.sock"), pause));
    let (quick, slow) = (quick?, slow?);
    // Followers have begun once they see an event of this test's making.
    wait::until_every(Duration::from_millis(200), "both followers", wait::SOON, || {
        daemon.reload(policy).ok().filter(|()| quick.sums().last_id > 0 && slow.sums().last_id > 0)
    })?;
    let busy = Busy::start();
    refused_all(By::run(AGENT).start_words(daemon, &storm_words(daemon, count))?, count)?;
    let account = settled_after(daemon, before, count)?;
    let _quick = followed(quick, count)?;
    let _slow = followed(slow, count)?;
    drop(busy);
    // Of a storm that is greater than the store the oldest events made room.
    if account.told < STORED {
        stored_all(daemon, stored_before + count)?;
    }
    Ok(())
}

/// Threads that keep every processor busy.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || while !stop.load(Ordering::Relaxed) {});
        }
        Self(stop)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// More children than the ring buffer of processes has room for, then refusals that the other has room for: none of these is lost.
pub(crate) fn fork_storm_pushes_no_refusal_out(world: &mut World) -> Result<()> {
    const CHILDREN: &str = "20000";
    const FEW: u64 = 16_000;
    let policy = Policy::standard(world.lab());
    let daemon = world.own(&policy)?;
    daemon.events().let_go();
    let before = settled(&daemon)?.refused;
    let children = attack::workload(daemon.lab(), &["storm", "children", "--count", CHILDREN], PLC).words;
    daemon.signal(Signal::SIGSTOP)?;
    let storms = || -> Result<()> {
        let _made = By::LAB_AGENT.start_words(&daemon, &children)?.finish(telling())?.success()?;
        refused_all(By::LAB_AGENT.start_words(&daemon, &storm_words(&daemon, FEW))?, FEW)
    };
    let stormed = storms();
    daemon.signal(Signal::SIGCONT)?;
    stormed?;
    let account = settled_after(&daemon, before, FEW)?;
    ensure!(account.lost == 0, "{account:?}");
    // The control: the children filled their ring buffer.
    let lost = metric(&daemon, "pp_kernel_lost_lifecycle_total")?;
    ensure!(lost > 0, "{CHILDREN} children lost no record");
    stored_all(&daemon, before + FEW)
}
