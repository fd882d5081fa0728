//! A state that cannot be opened, whatever is wrong with it: the gate comes first, nothing is granted, everybody is told why and what to do, and
//! nothing that was promised is lost by it. And registrations that race the start: all of them are in force.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::client::Client;
use pp_tests::forge::{self, Draft, Operator};
use pp_tests::harness::{By, Refusal};
use pp_tests::lab::{PLC, fresh_target};
use pp_tests::policy::{AGENT, DECIDER, Policy};
use pp_tests::run::{self, Output};
use pp_tests::wait;
use serde_json::{Value, json};

use crate::receipts::{opening, plc};
use crate::world::{World, tests};

tests![empty_state_of_a_booted_host_is_enforced_told_and_mended, state_on_a_read_only_disk_is_enforced_and_comes_back_when_it_is_writable,];

/// The others: the kernel has no part in them.
pub(crate) const LONG: &[crate::world::Test] = {
    tests![
        state_that_is_damaged_in_any_way_is_enforced_told_and_left_as_it_is,
        state_that_is_a_pipe_is_told_and_holds_up_no_end,
        first_start_on_a_full_disk_is_enforced_and_begins_when_there_is_room,
        state_and_policy_both_broken_leave_the_built_in_services_enforced,
        budget_is_counted_once_over_a_time_without_state,
        budget_is_counted_once_over_a_time_without_its_key,
        revocation_while_the_state_is_broken_holds_when_it_is_mended,
        registrations_that_race_a_few_starts_are_all_in_force,
        disk_that_hangs_holds_up_nobody_but_who_waits_for_it,
    ];
    TESTS
};

/// The daemon tries a state that is shut every 10 seconds.
const AGAIN: Duration = Duration::from_secs(100);
/// Who registers at once during a start, and how many receipts each at most.
const REGISTRANTS: usize = 3;
const MOST_OF_EACH: usize = 60;
/// How many starts share a state: it keeps what is registered for as long as that could be registered again.
const STARTS_OF_A_DAEMON: usize = 20;

/// The agent is refused, with its event and nothing at the far end, and an ordinary program is not.
fn refused(daemon: &Daemon) -> Result<()> {
    let refusal = Refusal::of(attack::tcp(daemon.lab(), PLC), By::LAB_AGENT).with_control(By::Program("lab-shim"));
    refusal.assert(daemon).map(drop)
}

fn reaches(daemon: &Daemon) -> Result<()> {
    let answer = By::LAB_AGENT.attempt(daemon, &attack::tcp(daemon.lab(), PLC))?;
    ensure!(answer == Answer::Delivered, "the receipt opens nothing: {answer:?}");
    Ok(())
}

/// Enforcing without state: refused, degraded with the reason and the repair, in `status` and its exit code and as an event, and every call that would
/// have to keep something says the same.
fn enforced_and_told(daemon: &Daemon, said: &str) -> Result<()> {
    refused(daemon)?;
    let status = daemon.client()?.status()?;
    ensure!(status["posture"] == "degraded" && status["healthy"] == false, "{status}");
    ensure!(matches!(status["measured"].as_str(), Some("enforcing" | "partial")), "{status}");
    let printed = daemon.cli(&["status"])?;
    ensure!(printed.code() == 2 && printed.stdout.contains(said) && printed.stdout.contains("no receipt is in force"), "{said}: {printed}");
    // Where events cannot be stored either, nobody followed them yet when this one was told.
    if !status["problems"].to_string().contains("not stored") {
        let told = daemon.client()?.get("/v1/events?kind=posture&limit=50")?.body.to_string();
        ensure!(told.contains("state_unavailable"), "no event says that the state is unavailable: {told}");
    }
    ensure!(daemon.log().contains(said), "the log does not say so:\n{}", daemon.log());

    let artifact = plc().sign(daemon.operator());
    let file = daemon.path("receipt.json");
    fs::write(&file, artifact.to_string())?;
    let answer = daemon.client()?.post("/v1/receipts", &artifact)?;
    ensure!(answer.status == 503 && answer.body["error"]["code"] == "state_unavailable", "{}", answer.body);
    let registered = daemon.cli(&["receipt", "register", &file.display().to_string()])?;
    ensure!(registered.code() == 2 && registered.stderr.contains(said), "{said}: {registered}");
    let answer = By::LAB_AGENT.attempt(daemon, &attack::tcp(daemon.lab(), PLC))?;
    ensure!(answer == Answer::Refused(libc::EPERM), "a receipt that was refused opens its target: {answer:?}");
    Ok(())
}

fn healthy(daemon: &Daemon) -> Result<()> {
    let printed = daemon.cli(&["status"])?;
    ensure!(printed.code() == 0, "{printed}");
    Ok(())
}

fn state_file(daemon: &Daemon) -> PathBuf {
    daemon.path("state/state.redb")
}

/// A daemon that has a receipt for the PLC on its disk, stopped; and its state.
fn with_receipt(world: &mut World, draft: &Draft) -> Result<(Daemon, Vec<u8>, String)> {
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    let artifact = draft.sign(daemon.operator());
    let _answer = daemon.register(&artifact)?;
    reaches(&daemon)?;
    daemon.stop()?;
    let good = fs::read(state_file(&daemon))?;
    Ok((daemon, good, forge::id(&artifact)))
}

/// As at a boot: nothing is in the kernel.
fn boot(daemon: &Daemon) -> Result<()> {
    fs::remove_dir_all(daemon.bpffs()).with_context(|| daemon.bpffs().display().to_string())
}

fn empty_state_of_a_booted_host_is_enforced_told_and_mended(world: &mut World) -> Result<()> {
    let (mut daemon, good, _) = with_receipt(world, &plc())?;
    boot(&daemon)?;
    fs::write(state_file(&daemon), "")?;
    daemon.spawn()?;
    enforced_and_told(&daemon, "move it away and restart")?;
    daemon.stop()?;
    ensure!(fs::read(state_file(&daemon))?.is_empty(), "the damaged file was touched");
    fs::write(state_file(&daemon), &good)?;
    daemon.spawn()?;
    healthy(&daemon)?;
    reaches(&daemon)
}

fn state_that_is_damaged_in_any_way_is_enforced_told_and_left_as_it_is(world: &mut World) -> Result<()> {
    let (mut daemon, good, _) = with_receipt(world, &plc())?;
    let zeroed = |pages: std::ops::Range<usize>| {
        let mut image = good.clone();
        image[pages.start * 4096..(pages.end * 4096).min(good.len())].fill(0);
        image
    };
    let damaged = [
        ("zeros in the header", zeroed(0..1)),
        ("zeros behind the header", zeroed(1..usize::MAX / 8192)),
        ("garbage", vec![7; 100_000]),
        ("cut in half", good[..good.len() / 2].to_vec()),
        ("what a power cut left of the first open", vec![0; 65_536]),
        ("text", b"[state]\n".to_vec()),
    ];
    for (what, image) in damaged {
        fs::write(state_file(&daemon), &image)?;
        daemon.spawn()?;
        enforced_and_told(&daemon, "move it away and restart").context(what)?;
        daemon.stop()?;
        ensure!(fs::read(state_file(&daemon))? == image, "{what}: the damaged file was touched");
    }
    // Restored while the daemon runs: it looks again by itself.
    daemon.spawn()?;
    fs::write(state_file(&daemon), &good)?;
    wait::until_every(Duration::from_secs(1), "the state to be read again", AGAIN, || healthy(&daemon).ok())?;
    reaches(&daemon)?;
    // Moved away, by an operator and before a start: then it begins anew, and receipts are signed anew.
    daemon.stop()?;
    fs::rename(state_file(&daemon), daemon.path("moved-away"))?;
    daemon.spawn()?;
    let _accepted = daemon.cli(&["receipt", "accept-state", "--reason", "no backup is left"])?.success()?;
    healthy(&daemon)?;
    refused(&daemon)?;
    let _answer = daemon.register(&plc().sign(daemon.operator()))?;
    reaches(&daemon)
}

fn state_that_is_a_pipe_is_told_and_holds_up_no_end(world: &mut World) -> Result<()> {
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    daemon.stop()?;
    for file in ["state.redb", "events.redb"] {
        let path = daemon.path("state").join(file);
        fs::remove_file(&path)?;
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU)?;
        daemon.spawn()?;
        refused(&daemon)?;
        if file == "state.redb" {
            enforced_and_told(&daemon, "it is no file").context(file)?;
        }
        // It tries to open it again every ten seconds.
        let begun = Instant::now();
        thread::sleep(Duration::from_secs(11));
        daemon.stop()?;
        ensure!(begun.elapsed() < Duration::from_secs(11) + wait::SOON, "{file}: it ended after {:?}", begun.elapsed());
        fs::remove_file(&path).or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    }
    daemon.spawn()?;
    healthy(&daemon)
}

/// A mount over the daemon's state, taken away at the end.
struct Mounted(PathBuf);

impl Mounted {
    /// The folder itself, read-only.
    fn read_only(at: PathBuf) -> Result<Self> {
        mount(Some(&at), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        let mounted = Self(at);
        mounted.remount(MsFlags::MS_RDONLY)?;
        Ok(mounted)
    }

    /// A small disk of its own.
    fn small(at: PathBuf) -> Result<Self> {
        mount(Some("small"), &at, Some("tmpfs"), MsFlags::empty(), Some("size=16m"))?;
        Ok(Self(at))
    }

    /// A disk in a file beside it, whose file system can be frozen.
    fn ext4(at: PathBuf) -> Result<Self> {
        let image = at.with_extension("ext4");
        fs::File::create(&image)?.set_len(64 << 20)?;
        let _made = run::run(Command::new("mkfs.ext4").arg("-q").arg(&image))?.success()?;
        let _mounted = run::run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at))?.success()?;
        Ok(Self(at))
    }

    /// From now on whoever writes waits.
    fn freeze(&self) -> Result<Frozen<'_>> {
        let _frozen = run::run(Command::new("fsfreeze").arg("--freeze").arg(&self.0))?.success()?;
        Ok(Frozen(&self.0))
    }

    fn remount(&self, flags: MsFlags) -> Result<()> {
        Ok(mount(None::<&str>, &self.0, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, None::<&str>)?)
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    fn fill(&self) -> Result<()> {
        let mut file = fs::File::create(self.filler())?;
        loop {
            match file.write(&[0; 4096]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A disk that hangs, until the end of this.
struct Frozen<'a>(&'a Path);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = run::run(Command::new("fsfreeze").arg("--unfreeze").arg(self.0)).and_then(Output::success) {
            eprintln!("{}: {error:#}", self.0.display());
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

fn state_on_a_read_only_disk_is_enforced_and_comes_back_when_it_is_writable(world: &mut World) -> Result<()> {
    let (mut daemon, _, _) = with_receipt(world, &plc())?;
    boot(&daemon)?;
    let mounted = Mounted::read_only(daemon.path("state"))?;
    daemon.spawn()?;
    enforced_and_told(&daemon, "writable")?;
    // Events are told, and it is said that they are not stored.
    let status = daemon.client()?.status()?["problems"].to_string();
    ensure!(status.contains("events are told and not stored"), "{status}");
    mounted.remount(MsFlags::empty())?;
    wait::until_every(Duration::from_secs(1), "the state to be read again", AGAIN, || healthy(&daemon).ok())?;
    reaches(&daemon)?;
    daemon.stop()?;
    drop(mounted);
    daemon.spawn()?;
    reaches(&daemon)
}

fn first_start_on_a_full_disk_is_enforced_and_begins_when_there_is_room(world: &mut World) -> Result<()> {
    let mut daemon = world.prepared(&Policy::standard(world.lab()))?;
    let disk = Mounted::small(daemon.path("state"))?;
    disk.fill()?;
    daemon.spawn()?;
    enforced_and_told(&daemon, "free space")?;
    fs::remove_file(disk.filler())?;
    wait::until_every(Duration::from_secs(1), "the state to be begun", AGAIN, || healthy(&daemon).ok())?;
    let _answer = daemon.register(&plc().sign(daemon.operator()))?;
    reaches(&daemon)?;
    // A state that is there, on a disk that is full: whether it can be opened depends on the disk, the gate does not.
    daemon.stop()?;
    disk.fill()?;
    daemon.spawn()?;
    let attempt = attack::tcp(daemon.lab(), fresh_target());
    let answer = By::LAB_AGENT.attempt(&daemon, &attempt)?;
    ensure!(answer == Answer::Refused(libc::EPERM), "a full disk opens the zone: {answer:?}");
    fs::remove_file(disk.filler())?;
    wait::until_every(Duration::from_secs(1), "the state to be usable", AGAIN, || healthy(&daemon).ok())?;
    reaches(&daemon)?;
    daemon.stop()
}

fn state_and_policy_both_broken_leave_the_built_in_services_enforced(world: &mut World) -> Result<()> {
    let (mut daemon, _, _) = with_receipt(world, &plc())?;
    boot(&daemon)?;
    fs::write(state_file(&daemon), vec![7; 100_000])?;
    fs::write(daemon.path("policy.toml"), "host = \"eng-ws-12\"\nzones = 3\n")?;
    daemon.spawn()?;
    let status = daemon.client()?.status()?;
    let problems = status["problems"].to_string();
    ensure!(status["posture"] == "degraded" && status["policy"] == "built_in", "{status}");
    ensure!(problems.contains("no last good one is known") && problems.contains("state.redb"), "{problems}");
    // The lab's agents are in the policy that is gone: one that the built-in policy takes for an agent is asked for.
    Refusal::of(attack::tcp(daemon.lab(), PLC), By::run("claude-code")).with_control(By::Nobody).assert(&daemon)?;
    Ok(())
}

fn budget_is_counted_once_over_a_time_without_state(world: &mut World) -> Result<()> {
    let (mut daemon, good, _) = with_receipt(world, &plc().parameter("maxConnections", json!(3)))?;
    // One of three is used.
    fs::write(state_file(&daemon), &good[..good.len() / 2])?;
    daemon.spawn()?;
    refused(&daemon)?;
    daemon.stop()?;
    fs::write(state_file(&daemon), &good)?;
    daemon.spawn()?;
    reaches(&daemon)?;
    reaches(&daemon)?;
    let refusal = Refusal::of(attack::tcp(daemon.lab(), PLC), By::LAB_AGENT).with_control(By::Program("lab-shim"));
    refusal.for_reason("receipt_exhausted").assert(&daemon).map(drop)
}

/// The same where the receipt is known, and opens nothing for a while.
fn budget_is_counted_once_over_a_time_without_its_key(world: &mut World) -> Result<()> {
    let daemon = world.own(&Policy::standard(world.lab()))?;
    let _answer = daemon.register(&plc().parameter("maxConnections", json!(2)).sign(daemon.operator()))?;
    reaches(&daemon)?;
    let keys = fs::read(daemon.path("keys.json"))?;
    let stranger = Operator::new("another", DECIDER);
    fs::write(daemon.path("keys.json"), forge::key_set(&[(&stranger, "active")]).to_string())?;
    let _reloaded = daemon.cli(&["policy", "reload"])?.success()?;
    refused(&daemon)?;
    fs::write(daemon.path("keys.json"), keys)?;
    let _reloaded = daemon.cli(&["policy", "reload"])?.success()?;
    reaches(&daemon)?;
    let refusal = Refusal::of(attack::tcp(daemon.lab(), PLC), By::LAB_AGENT).with_control(By::Program("lab-shim"));
    refusal.for_reason("receipt_exhausted").assert(&daemon).map(drop)
}

fn revocation_while_the_state_is_broken_holds_when_it_is_mended(world: &mut World) -> Result<()> {
    let (mut daemon, good, id) = with_receipt(world, &plc())?;
    fs::write(state_file(&daemon), "")?;
    daemon.spawn()?;
    let output = daemon.cli(&["receipt", "revoke", &id])?;
    ensure!(output.code() == 2 && output.both().contains("could not be kept"), "{output}");
    fs::write(state_file(&daemon), &good)?;
    wait::until_every(Duration::from_secs(1), "the state to be read again", AGAIN, || healthy(&daemon).ok())?;
    let refusal = Refusal::of(attack::tcp(daemon.lab(), PLC), By::LAB_AGENT).with_control(By::Program("lab-shim"));
    let _event = refusal.for_reason("receipt_revoked").assert(&daemon)?;
    daemon.crash()?;
    daemon.spawn()?;
    let refusal = Refusal::of(attack::tcp(daemon.lab(), PLC), By::LAB_AGENT).with_control(By::Program("lab-shim"));
    refusal.for_reason("receipt_revoked").assert(&daemon).map(drop)
}

fn registrations_that_race_a_few_starts_are_all_in_force(world: &mut World) -> Result<()> {
    race_starts(world, 5)
}

/// Registers from the first moment at which somebody listens until the daemon is ready, while it goes on with its start and its housekeeping.
pub(crate) fn race_starts(world: &mut World, starts: usize) -> Result<()> {
    let (mut missing, mut registered) = (Vec::new(), 0);
    for from in (0..starts).step_by(STARTS_OF_A_DAEMON) {
        let mut daemon = world.own(&Policy::standard(world.lab()))?;
        for start in from..(from + STARTS_OF_A_DAEMON).min(starts) {
            if start % 10 == 9 {
                daemon.crash()?;
            } else {
                daemon.stop()?;
            }
            let acknowledged = race_one_start(&mut daemon)?;
            ensure!(!acknowledged.is_empty(), "start {start}: nothing was registered before the daemon was ready");
            registered += acknowledged.len();
            let listed = daemon.client()?.get("/v1/receipts")?.ok()?;
            let active: Vec<&Value> = listed["receipts"].as_array().into_iter().flatten().filter(|one| one["status"] == "active").collect();
            for artifact in acknowledged {
                let id = forge::id(&artifact);
                if !active.iter().any(|one| one["id"] == id.as_str()) {
                    let again = daemon.client()?.post("/v1/receipts", &artifact)?;
                    missing.push(format!("start {start}: {id}, registered again: {}", again.body));
                }
            }
        }
    }
    eprintln!("{registered} receipts were acknowledged during {starts} starts");
    ensure!(
        missing.is_empty(),
        "{} of {registered} receipts that were acknowledged are not in force: {}",
        missing.len(),
        missing.join("\n")
    );
    Ok(())
}

/// Starts the daemon; returns what it acknowledged until it was ready.
fn race_one_start(daemon: &mut Daemon) -> Result<Vec<Value>> {
    let ready = Arc::new(AtomicBool::new(false));
    let registering: Vec<_> = (0..REGISTRANTS)
        .map(|_| {
            let (ready, socket, operator) = (Arc::clone(&ready), daemon.path("control.sock"), daemon.operator().clone());
            thread::spawn(move || register_until(&ready, &socket, &operator))
        })
        .collect();
    let spawned = daemon.spawn();
    ready.store(true, Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    for thread in registering {
        acknowledged.extend(thread.join().map_err(|_| anyhow!("a thread that registers panicked"))?);
    }
    spawned.map(|()| acknowledged)
}

/// Registers one receipt after the other; returns those that were answered with 200 and `active`.
fn register_until(ready: &AtomicBool, socket: &Path, operator: &Operator) -> Vec<Value> {
    let mut acknowledged = Vec::new();
    while !ready.load(Ordering::Relaxed) && acknowledged.len() < MOST_OF_EACH {
        let artifact = opening(fresh_target()).sign(operator);
        // Until somebody listens.
        while !ready.load(Ordering::Relaxed) {
            match Client::new(socket).and_then(|client| client.post("/v1/receipts", &artifact)) {
                Ok(answer) if answer.status == 200 && answer.body["status"] == "active" => {
                    acknowledged.push(artifact);
                    break;
                }
                Ok(_) | Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }
    acknowledged
}

fn disk_that_hangs_holds_up_nobody_but_who_waits_for_it(world: &mut World) -> Result<()> {
    let mut daemon = world.prepared(&Policy::standard(world.lab()))?;
    let disk = Mounted::ext4(daemon.path("state"))?;
    daemon.spawn()?;
    let artifact = plc().sign(daemon.operator());
    let id = forge::id(&artifact);
    let frozen = disk.freeze()?;
    let client = daemon.client()?;
    let registering = thread::spawn(move || client.post("/v1/receipts", &artifact));
    refused(&daemon)?;
    healthy(&daemon)?;
    ensure!(daemon.client()?.get("/v1/receipts")?.body["receipts"] == json!([]), "a receipt that the disk does not have is listed");
    let checked = daemon.cli(&["check", &PLC.to_string(), "--agent", AGENT])?;
    ensure!(checked.code() == 1, "{checked}");
    let attempt = attack::tcp(daemon.lab(), fresh_target());
    let answer = By::run(AGENT).attempt(&daemon, &attempt)?;
    ensure!(answer == Answer::Refused(libc::EPERM), "a session that begins now: {answer:?}");
    ensure!(!registering.is_finished(), "the registration was answered while its disk hung");
    drop(frozen);
    let answer = registering.join().map_err(|_| anyhow!("the registration panicked"))??;
    ensure!(answer.status == 200, "{}", answer.body);
    reaches(&daemon)?;
    // A receipt ends before the disk has its revocation.
    let frozen = disk.freeze()?;
    let client = daemon.client()?;
    let revoking = thread::spawn(move || client.delete(&format!("/v1/receipts/{id}")));
    let ended =
        || By::LAB_AGENT.attempt(&daemon, &attack::tcp(daemon.lab(), PLC)).ok().filter(|answer| *answer == Answer::Refused(libc::EPERM));
    let _answer = wait::until("the end of the receipt", wait::SOON, ended)?;
    ensure!(!revoking.is_finished(), "the revocation was answered while its disk hung");
    drop(frozen);
    let answer = revoking.join().map_err(|_| anyhow!("the revocation panicked"))??;
    ensure!(answer.status == 200, "{}", answer.body);
    daemon.stop()
}
