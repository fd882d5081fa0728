//! What is done to the gate where it ends with the machine: everything full, its pins taken away, the clock set a year off. Each time
//! nothing comes into the zone, nobody without a mark is refused, memory stays bounded, and what could not be told is counted.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_settime};
use pp_tests::agent::{BPFFS, Daemon};
use pp_tests::attack::{self, Answer};
use pp_tests::forge;
use pp_tests::harness::{By, Refusal};
use pp_tests::hunt::boot_ns;
use pp_tests::lab::{PLC, Place, WEB, fresh_target, is_emulated};
use pp_tests::policy::Policy;
use pp_tests::{paths, run, wait};
use serde_json::{Value, json};

use crate::accounts::settled;
use crate::receipts::{Registered, opening};
use crate::soak::{holds_under, metric, told_lost};
use crate::world::{World, tests};

tests![
    fork_storm_at_the_pid_limit_opens_nothing,
    full_task_table_opens_nothing_and_is_told,
    sockets_beyond_what_can_be_marked_are_refused,
    full_ring_buffer_of_a_stopped_daemon_loses_no_refusal_uncounted,
    clock_a_year_off_opens_nothing_and_lengthens_no_receipt,
    bpffs_unmounted_and_mounted_again_opens_nothing,
    full_disk_opens_nothing_keeps_nothing_open_and_tells_what_it_lost,
];

/// Most processes in the storm's cgroup.
const PIDS: u32 = 200;
/// The smallest task table that policy can ask for.
const TASKS: u32 = 1_024;
/// Refusals that no ring buffer of this size holds, and the first pair that is tried; every pair is in the zone.
const PAIRS: u64 = 45_000;
const FIRST_PAIR: &str = "10.20.64.0:7000";
/// Sockets of one agent at once.
const SOCKETS: u32 = 20_000;
/// How long the daemon may take to tell what waited for it, on an emulated processor that others share.
const TELLING: Duration = Duration::from_secs(1_500);
/// For how long the short receipt of a test about the clock is good, and the rounding of its deadline.
const SHORT_S: u64 = 90;
const ROUNDING_NS: u64 = 5_000_000;
const YEAR_S: i64 = 365 * 24 * 3600;

/// What these tests do to a kernel ends with it.
fn only_here() -> Result<()> {
    ensure!(is_emulated(), "this harms the machine it runs on: it is for test machines alone");
    Ok(())
}

/// The agent is refused as ever, and an ordinary program is not.
fn refuses(daemon: &Daemon) -> Result<()> {
    Refusal::of(attack::tcp(daemon.lab(), PLC), By::LAB_AGENT).with_control(By::Program("lab-shim")).assert(daemon).map(drop)
}

/// How many records the kernel has lost, of verdicts and of processes.
fn lost_records(daemon: &Daemon) -> Result<u64> {
    Ok(metric(daemon, "pp_kernel_lost_records_total")? + metric(daemon, "pp_kernel_lost_lifecycle_total")?)
}

/// Checks that every record which the kernel lost since then was told, and how each refusal was.
fn losses_are_told(daemon: &Daemon, mark: usize, lost_before: u64) -> Result<u64> {
    let of_ring =
        |event: &Value| event["verdict"].is_null() && event["detail"].as_str().is_some_and(|detail| detail.contains("ring buffer"));
    let (mut from, mut told) = (mark, 0);
    let mut lost = || {
        let events = daemon.events().since(from);
        from += events.len();
        told += told_lost(&events.into_iter().filter(of_ring).collect::<Vec<_>>());
        lost_records(daemon).ok().map(|now| (now - lost_before, told))
    };
    let all = wait::until_every(Duration::from_secs(2), "events of every lost record", TELLING, || {
        lost().and_then(|(lost, told)| (lost == told).then_some(lost))
    });
    let all = all.with_context(|| format!("lost and told: {:?}", lost()))?;
    let _account = settled(daemon)?;
    Ok(all)
}

/// The answers that children of a storm wrote down: refused, every one.
fn all_refused(log: &Path, at_least: usize) -> Result<()> {
    let text = fs::read_to_string(log).with_context(|| log.display().to_string())?;
    let refused = text.lines().filter(|line| *line == libc::EPERM.to_string()).count();
    eprintln!("{refused} children were refused");
    ensure!(refused == text.lines().count() && refused >= at_least, "{refused} of {} children were refused", text.lines().count());
    Ok(())
}

fn forks(daemon: &Daemon, log: &Path, most: u32) -> Vec<String> {
    let (target, log, most) = (PLC.to_string(), log.display().to_string(), most.to_string());
    attack::workload(daemon.lab(), &["storm", "forks", &target, "--log", &log, "--most", &most, "--for-ms", "5000"], PLC).words
}

fn fork_storm_at_the_pid_limit_opens_nothing(world: &mut World) -> Result<()> {
    only_here()?;
    let policy = Policy::standard(world.lab());
    let mut daemon = world.own(&policy)?;
    let root = paths::cgroup2()?;
    fs::write(root.join("cgroup.subtree_control"), "+pids").context("the pids controller")?;
    let storm = root.join("pp-soak-storm");
    fs::create_dir_all(&storm)?;
    fs::write(storm.join("pids.max"), PIDS.to_string())?;
    let (mark, lost) = (daemon.events().mark(), lost_records(&daemon)?);
    holds_under(&mut daemon, "fork storm at the pid limit", &[], |daemon| {
        let program = |name: &str| daemon.lab().program(name).display().to_string();
        let directory = storm.display().to_string();
        let by = By::Words(vec![program("pp-workload"), "in".into(), "--cgroup".into(), directory, "--".into(), program("lab-claude")]);
        for round in 0..3 {
            let log = daemon.path(&format!("storm-{round}"));
            let output = by.run_words(daemon, &forks(daemon, &log, 4 * PIDS))?.success()?.json()?;
            ensure!(output["not_made"].as_u64().is_some_and(|number| number > 0), "the limit was not reached: {output}");
            wait::until_true("the end of the children", wait::SOON, || {
                fs::read_to_string(storm.join("cgroup.procs")).is_ok_and(|text| text.is_empty())
            })?;
            all_refused(&log, PIDS as usize / 2)?;
        }
        Ok(())
    })?;
    fs::remove_dir(&storm)?;
    let _lost = losses_are_told(&daemon, mark, lost)?;
    refuses(&daemon)
}

fn full_task_table_opens_nothing_and_is_told(world: &mut World) -> Result<()> {
    only_here()?;
    let policy = Policy::standard(world.lab()).with_top(&format!("max_tasks = {TASKS}"));
    let mut daemon = world.own(&policy)?;
    let (mark, lost) = (daemon.events().mark(), lost_records(&daemon)?);
    holds_under(&mut daemon, "full task table", &[], |daemon| {
        let log = daemon.path("table");
        // It may be killed for the child that had no room.
        let output = By::LAB_AGENT.run_words(daemon, &forks(daemon, &log, 2 * TASKS))?;
        eprintln!("the parent ended with code {}: {}", output.code(), output.stdout.trim());
        let is_told =
            |event: &Value| event["kind"] == "lost" && event["detail"].as_str().is_some_and(|text| text.contains("task table is full"));
        let _event = daemon.events().wait_since(mark, "the event of the full table", is_told)?;
        ensure!(metric(daemon, "pp_kernel_task_table_full_total")? > 0, "nothing was counted");
        let left = || -> Result<(String, u64, Value)> {
            let client = daemon.client()?;
            let problems = client.status()?["problems"].to_string();
            Ok((problems, metric(daemon, "pp_marked_processes")?, client.get("/v1/sessions")?.ok()?))
        };
        wait::until_every(Duration::from_secs(1), "room in the task table", TELLING, || {
            let (problems, marked, _) = left().ok()?;
            (!problems.contains("task table") && marked == 0).then_some(())
        })
        .with_context(|| format!("problems, marked processes and sessions: {:?}", left()))?;
        all_refused(&log, TASKS as usize / 10 * 9)
    })?;
    let _lost = losses_are_told(&daemon, mark, lost)?;
    refuses(&daemon)
}

/// Sets the memory that a socket may have for its options and its mark, where this kernel keeps the number; returns what it was.
fn set_option_memory(daemon: &Daemon, bytes: &str) -> Result<String> {
    const SCRIPT: &str = "f=/proc/sys/net/core/optmem_max; cat $f; echo $1 > $f";
    // Older kernels have one number for all, which only the first network namespace shows.
    let script =
        format!("if [ -e /proc/sys/net/core/optmem_max ]; then {SCRIPT}; else nsenter --net=/proc/1/ns/net sh -c '{SCRIPT}' set $1; fi");
    let words = ["/bin/sh", "-c", &script, "set", bytes];
    Ok(run::run(&mut daemon.lab().command(Place::Engineering, &words))?.success()?.stdout.trim().to_owned())
}

fn sockets_beyond_what_can_be_marked_are_refused(world: &mut World) -> Result<()> {
    only_here()?;
    let policy = Policy::standard(world.lab());
    let mut daemon = world.own(&policy)?;
    let (mark, lost) = (daemon.events().mark(), lost_records(&daemon)?);
    let eperm = libc::EPERM.to_string();
    holds_under(&mut daemon, "more sockets than can be marked", &[], |daemon| {
        let enough = daemon.path("enough-sockets");
        let (target, count, until) = (PLC.to_string(), SOCKETS.to_string(), enough.display().to_string());
        let words = attack::workload(daemon.lab(), &["storm", "sockets", &target, "--count", &count, "--until", &until], PLC).words;
        let mut running = By::LAB_AGENT.start_words(daemon, &words)?;
        let line = running.line_with("kept")?;
        ensure!(line["kept"] == SOCKETS && line["answers"][&eperm] == SOCKETS, "{line}");
        let held = pp_tests::footprint::Footprint::of(daemon.pid()?)?;
        eprintln!("with {SOCKETS} marked sockets: maps {} KiB", held.maps_kib);
        // Those that are there keep their marks; a further one gets no room for its own.
        let before = metric(daemon, "pp_kernel_socket_mark_full_total")?;
        let usual = set_option_memory(daemon, "0")?;
        let answers = [PLC, WEB].map(|target| By::LAB_AGENT.attempt(daemon, &attack::tcp(daemon.lab(), target)));
        let zero = set_option_memory(daemon, &usual)?;
        ensure!(zero == "0", "the memory was {zero}");
        let [plc, web] = answers;
        ensure!(
            plc? == Answer::Refused(libc::EPERM) && web? == Answer::Refused(libc::EPERM),
            "without a mark of its own a socket was let go"
        );
        ensure!(metric(daemon, "pp_kernel_socket_mark_full_total")? > before, "nothing was counted");
        fs::write(&enough, "")?;
        let _ended = running.finish(run::PATIENCE)?.success()?;
        let again = By::LAB_AGENT.attempt(daemon, &attack::tcp(daemon.lab(), WEB))?;
        ensure!(again == Answer::Delivered, "with room again the agent is {again:?}");
        Ok(())
    })?;
    let _lost = losses_are_told(&daemon, mark, lost)?;
    refuses(&daemon)
}

fn full_ring_buffer_of_a_stopped_daemon_loses_no_refusal_uncounted(world: &mut World) -> Result<()> {
    only_here()?;
    let policy = Policy::standard(world.lab());
    let mut daemon = world.own(&policy)?;
    let before = settled(&daemon)?;
    holds_under(&mut daemon, "full ring buffer of a stopped daemon", &[], |daemon| {
        daemon.signal(Signal::SIGSTOP)?;
        let words = attack::workload(daemon.lab(), &["storm", "pairs", FIRST_PAIR, "--count", &PAIRS.to_string()], PLC).words;
        let output = By::LAB_AGENT.run_words(daemon, &words);
        daemon.signal(Signal::SIGCONT)?;
        let answers = output?.success()?.json()?["answers"].clone();
        ensure!(answers[libc::EPERM.to_string()] == PAIRS, "answers by error number: {answers}");
        let account = settled(daemon)?;
        ensure!(account.lost > 0, "the ring buffer was never full: {account:?}");
        ensure!(account.refused >= before.refused + PAIRS, "{account:?}, before {before:?}");
        eprintln!("of {PAIRS} refusals: {account:?}, before them {before:?}");
        Ok(())
    })?;
    refuses(&daemon)
}

/// Sets the wall clock.
fn set_clock(to: Duration, off_s: i64) -> Result<()> {
    let seconds = i64::try_from(to.as_secs())? + off_s;
    Ok(clock_settime(ClockId::CLOCK_REALTIME, nix::sys::time::TimeSpec::new(seconds, i64::from(to.subsec_nanos())))?)
}

/// The right wall time, as boot time counts on from when both were read.
struct RightTime(Duration);

impl RightTime {
    fn note() -> Result<Self> {
        Ok(Self(SystemTime::now().duration_since(UNIX_EPOCH)? - Duration::from_nanos(boot_ns())))
    }

    fn set_off_by(&self, off_s: i64) -> Result<()> {
        set_clock(self.0 + Duration::from_nanos(boot_ns()), off_s)
    }
}

impl Drop for RightTime {
    fn drop(&mut self) {
        if let Err(error) = self.set_off_by(0) {
            eprintln!("the clock could not be set right: {error:#}");
        }
    }
}

fn clock_a_year_off_opens_nothing_and_lengthens_no_receipt(world: &mut World) -> Result<()> {
    only_here()?;
    let policy = Policy::standard(world.lab());
    let mut daemon = world.own(&policy)?;
    let right = RightTime::note()?;
    let (short, long) = (fresh_target(), fresh_target());
    let (mark, lost) = (daemon.events().mark(), lost_records(&daemon)?);
    holds_under(&mut daemon, "clock a year off", &[short, long], |daemon| {
        let reach = |target| By::LAB_AGENT.attempt(daemon, &attack::tcp(daemon.lab(), target));
        let register = |draft: &pp_tests::forge::Draft| daemon.client()?.post("/v1/receipts", &draft.sign(daemon.operator()));
        let kept = Registered::new(daemon, &opening(long))?;
        let short_ns = SHORT_S * 1_000_000_000;
        let earliest_ns = boot_ns() + short_ns - ROUNDING_NS;
        let _short = Registered::new(daemon, &opening(short).parameter("accessSeconds", json!(SHORT_S)))?;
        let latest_ns = boot_ns() + short_ns + ROUNDING_NS;
        ensure!(reach(short)? == Answer::Delivered, "the receipt opens nothing");

        right.set_off_by(-YEAR_S)?;
        let is_behind = || {
            daemon
                .client()
                .and_then(|client| client.status())
                .is_ok_and(|status| status["problems"].to_string().contains("clock is behind"))
        };
        wait::until_every(Duration::from_secs(1), "the status says that the clock is behind", wait::SOON, || is_behind().then_some(()))?;
        let answer = register(&opening(fresh_target()))?;
        ensure!(answer.body["error"]["code"] == "clock_behind", "registering with the clock behind: {}", answer.body);
        ensure!(reach(long)? == Answer::Delivered, "the clock that went back ended a receipt");
        ensure!(reach(PLC)? == Answer::Refused(libc::EPERM), "the clock that went back opened the zone");
        let lengthened = wait::until_every(Duration::from_secs(1), "the end of the short receipt", TELLING, || {
            let begin_ns = boot_ns();
            match reach(short).ok()? {
                Answer::Delivered => (begin_ns > latest_ns).then_some(true),
                Answer::Refused(_) => Some(false),
            }
        })?;
        ensure!(!lengthened, "the clock that went back lengthened a receipt");
        ensure!(boot_ns() >= earliest_ns, "the clock that went back shortened a receipt");

        right.set_off_by(0)?;
        wait::until_every(Duration::from_secs(1), "the clock to have caught up", wait::SOON, || (!is_behind()).then_some(()))?;
        ensure!(
            reach(long)? == Answer::Delivered && reach(short)? == Answer::Refused(libc::EPERM),
            "the clock set right changed a receipt"
        );

        right.set_off_by(YEAR_S)?;
        wait::until_every(Duration::from_secs(1), "the end of a receipt of an hour, a year on", wait::SOON, || {
            reach(long).ok().filter(|answer| *answer == Answer::Refused(libc::EPERM))
        })?;
        right.set_off_by(0)?;
        wait::until_every(Duration::from_secs(1), "the status says that the clock is behind", wait::SOON, || is_behind().then_some(()))?;
        ensure!(reach(long)? == Answer::Refused(libc::EPERM), "the clock that went back gave a receipt back");
        ensure!(reach(PLC)? == Answer::Refused(libc::EPERM), "the clock that went back opened the zone");
        drop(kept);
        Ok(())
    })?;
    let ids: Vec<u64> = daemon.events().since(mark).iter().filter_map(|event| event["id"].as_u64()).collect();
    ensure!(ids.is_sorted(), "ids of events went back with the clock: {ids:?}");
    let _lost = losses_are_told(&daemon, mark, lost)?;
    refuses(&daemon)
}

fn bpffs_unmounted_and_mounted_again_opens_nothing(world: &mut World) -> Result<()> {
    only_here()?;
    let mut daemon = world.prepared(&Policy::standard(world.lab()))?;
    daemon.add_arguments(&["--watch-period", "5"]);
    daemon.spawn()?;
    refuses(&daemon)?;
    holds_under(&mut daemon, "bpffs unmounted and mounted again", &[], |daemon| {
        let mark = daemon.events().mark();
        umount2(BPFFS, MntFlags::MNT_DETACH)?;
        let is_told = |event: &Value| event["kind"] == "posture" && event["reason"] == "hook_unpinned";
        let event = daemon.events().wait_since(mark, "the event of a missing pin", is_told)?;
        ensure!(event["detail"].as_str().is_some_and(|detail| detail.contains("could not be put back")), "{event}");
        let hooks = daemon.client()?.status()?["watch"]["hooks"].clone();
        ensure!(hooks["beyond_repair"].as_u64().is_some_and(|number| number > 0), "{hooks}");
        let status = daemon.cli(&["status"])?;
        ensure!(status.code() == 2 && status.both().contains("mount it again"), "{status}");
        let is_refused = |daemon: &Daemon, when: &str| -> Result<()> {
            let answer = By::LAB_AGENT.attempt(daemon, &attack::tcp(daemon.lab(), PLC))?;
            ensure!(answer == Answer::Refused(libc::EPERM), "{when} the gate answers {answer:?}");
            Ok(())
        };
        is_refused(daemon, "with its pins gone")?;
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)?;
        wait::until_every(Duration::from_secs(1), "every pin to be back", TELLING, || {
            daemon.client().ok()?.status().ok()?["problems"].as_array()?.is_empty().then_some(())
        })?;
        let programs = daemon.client()?.status()?["watch"]["hooks"]["watched"].clone();
        ensure!(programs == fs::read_dir(daemon.bpffs().join("links"))?.count(), "{programs} hooks are watched");
        // What keeps it now is the pins: nobody else has the programs.
        daemon.crash()?;
        is_refused(daemon, "with the daemon dead")?;
        daemon.spawn()?;
        is_refused(daemon, "after the next start")
    })?;
    refuses(&daemon)
}

/// The daemon's state on a disk of its own, which is full after a while.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn mount(at: PathBuf) -> Result<Self> {
        mount(Some("small"), &at, Some("tmpfs"), MsFlags::empty(), Some("size=16m"))?;
        Ok(Self { at })
    }

    fn fill(&self) -> Result<()> {
        let mut file = fs::File::create(self.at.join("filler"))?;
        loop {
            match file.write(&[0; 4096]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.at.join("filler"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.at, MntFlags::MNT_DETACH) {
            eprintln!("{}: {error}", self.at.display());
        }
    }
}

fn full_disk_opens_nothing_keeps_nothing_open_and_tells_what_it_lost(world: &mut World) -> Result<()> {
    /// More than the events' file has room for without growing.
    const REFUSALS: u64 = 4_000;
    /// Pairs of the zone that no receipt here names.
    const OTHERS: &str = "10.20.128.0:7000";
    only_here()?;
    let mut daemon = world.prepared(&Policy::standard(world.lab()))?;
    let disk = SmallDisk::mount(daemon.path("state"))?;
    daemon.spawn()?;
    refuses(&daemon)?;
    let mark = daemon.events().mark();
    let (early, late) = (fresh_target(), fresh_target());
    let reach = |daemon: &Daemon, target| By::LAB_AGENT.attempt(daemon, &attack::tcp(daemon.lab(), target));
    holds_under(&mut daemon, "full disk", &[early, late], |daemon| {
        let kept = opening(early).sign(daemon.operator());
        let _registered = daemon.register(&kept)?;
        ensure!(reach(daemon, early)? == Answer::Delivered, "the receipt opens nothing");
        disk.fill()?;
        let words = attack::workload(daemon.lab(), &["storm", "pairs", OTHERS, "--count", &REFUSALS.to_string()], PLC).words;
        let answers = By::LAB_AGENT.run_words(daemon, &words)?.success()?.json()?["answers"].clone();
        ensure!(answers[libc::EPERM.to_string()] == REFUSALS, "answers by error number: {answers}");
        let mut told = 0;
        wait::until_every(Duration::from_secs(10), "the end of the telling", TELLING, || {
            let before = std::mem::replace(&mut told, daemon.events().mark());
            (told == before).then_some(())
        })?;

        let artifact = opening(late).sign(daemon.operator());
        let begin = Instant::now();
        let register = || daemon.client().and_then(|client| client.post("/v1/receipts", &artifact));
        let answer = wait::until_every(Duration::from_secs(1), "an answer on a full disk", TELLING, || register().ok())?;
        eprintln!("the receipt was answered after {} ms", begin.elapsed().as_millis());
        ensure!(answer.status >= 500 && answer.body.to_string().contains("No space left"), "registering: {}", answer.body);
        ensure!(reach(daemon, late)? == Answer::Refused(libc::EPERM), "a receipt that could not be kept opens its target");

        let output = daemon.cli(&["receipt", "revoke", &forge::id(&kept), "--reason", "full disk"])?;
        ensure!(output.code() != 0 && output.both().contains("could not be kept"), "revoking: {output}");
        ensure!(reach(daemon, early)? == Answer::Refused(libc::EPERM), "a revocation that could not be kept revokes nothing");

        disk.free()?;
        let is_loss =
            |event: &Value| event["kind"] == "lost" && event["detail"].as_str().is_some_and(|text| text.contains("could not be stored"));
        let told = daemon.events().wait_since(mark, "the loss to be told once there is room", is_loss)?;
        ensure!(told["count"].as_u64().is_some_and(|count| count > 0), "{told}");
        let _revoked = daemon.cli(&["receipt", "revoke", &forge::id(&kept), "--reason", "full disk"])?.success()?;
        let _registered = daemon.register(&artifact)?;
        ensure!(reach(daemon, late)? == Answer::Delivered, "with room again the receipt opens nothing");
        daemon.crash()?;
        daemon.spawn()?;
        ensure!(reach(daemon, early)? == Answer::Refused(libc::EPERM), "the revocation did not survive");
        ensure!(reach(daemon, late)? == Answer::Delivered, "the receipt did not survive");
        Ok(())
    })?;
    eprintln!("losses of {} events were told, by the store and to this reader", told_lost(&daemon.events().since(mark)));
    let ids: Vec<u64> = daemon.events().since(mark).iter().filter_map(|event| event["id"].as_u64()).collect();
    ensure!(ids.is_sorted(), "ids of events went back");
    refuses(&daemon)
}
