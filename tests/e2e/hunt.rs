//! The concurrency hunt: sessions race connects, datagrams, forks and execs against registration, revocation and expiry of receipts and
//! against reloads of the policy. Whatever went through must be explained by what was in force; see `pp_tests::hunt`.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use pp_tests::agent::Daemon;
use pp_tests::attack;
use pp_tests::bystander::Bystander;
use pp_tests::client::Client;
use pp_tests::forge::{self, Draft};
use pp_tests::harness::{By, catch_up};
use pp_tests::hunt::{self, Attempt, Came, Chronicle, Finding, Force, Reign, Rule, Span, Window, boot_ns};
use pp_tests::lab::{Journal, PLC_NEIGHBOUR, UDP, fresh_target, is_emulated};
use pp_tests::policy::Policy;
use pp_tests::{run, wait};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::world::{World, tests};

tests![one_seed_of_the_concurrency_hunt_finds_no_unexplained_allow, hunt_finds_out_a_gate_that_only_observes];

/// How long one seed takes in the ordinary suite.
const SHORT: Duration = Duration::from_secs(10);
/// A busy machine gets so many times as long, until enough has come of it to be judged: receipts and reloads, and calls that went through.
const PATIENCE: u32 = 12;
const RECEIPTS: usize = 5;
const RELOADS: usize = 4;
const THROUGH: usize = 60;
/// How long one takes on an emulated processor, where ten seconds are some hundred calls and three receipts.
pub(crate) const EMULATED: Duration = Duration::from_secs(60);
/// A datagram address in the zone that no receipt ever names, and where nobody listens: its packets are seen all the same.
const NEVER_UDP: SocketAddr = SocketAddr::new(PLC_NEIGHBOUR.ip(), 5000);
/// Between the kernel's deadline and the millisecond that it was computed from.
const ROUNDING_NS: u64 = 5_000_000;
/// Receipts that are open at once.
const OPEN_AT_ONCE: usize = 8;
/// For how many seconds a receipt is good: short ones run out under the race.
const TERMS_S: [u64; 4] = [1, 1, 2, 60];

/// What a hunt needs to be told.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    /// What every choice follows from.
    pub(crate) seed: u64,
    /// How long it races at least.
    pub(crate) length: Duration,
}

/// A seed that was not used before.
pub(crate) fn new_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::from(since.subsec_nanos()) ^ since.as_secs())
}

/// How long one seed takes here, unless the run says otherwise.
fn short() -> Duration {
    if is_emulated() { EMULATED } else { SHORT }
}

/// The policy of hunts. Behaviour rules would stop a race of this speed where nothing is protected, which is not what it is about.
pub(crate) fn policy(world: &World) -> Policy {
    Policy::standard(world.lab()).with("[behaviour]\nmode = \"observe\"\n")
}

fn one_seed_of_the_concurrency_hunt_finds_no_unexplained_allow(world: &mut World) -> Result<()> {
    let plan =
        Plan { seed: world.hunts.seed.unwrap_or_else(new_seed), length: world.hunts.seconds.map_or_else(short, Duration::from_secs) };
    let policy = policy(world);
    let daemon = world.own(&policy)?;
    chase(&daemon, &policy, plan)
}

/// The hunt itself: where the gate lets everything through, it must say so.
fn hunt_finds_out_a_gate_that_only_observes(world: &mut World) -> Result<()> {
    let policy = policy(world).replacing("name = \"plant-7\"\n", "name = \"plant-7\"\nmode = \"observe\"\n");
    let daemon = world.own(&policy)?;
    let found = chase(&daemon, &policy, Plan { seed: world.hunts.seed.unwrap_or_else(new_seed), length: short() / 4 });
    let text = found.map_or_else(|error| format!("{error:#}"), |()| "nothing".to_owned());
    ensure!(text.contains("went through unexplained") && text.contains("policy Receipts"), "it found {text}");
    Ok(())
}

/// Tells when the race is over to those who pause.
#[derive(Default)]
struct Race {
    over: Mutex<bool>,
    told: Condvar,
    registered: AtomicUsize,
    reloaded: AtomicUsize,
}

impl Race {
    /// Waits for the end of the race, at most so long; true when it is over.
    fn is_over_within(&self, pause: Duration) -> bool {
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        *self.told.wait_timeout_while(over, pause, |over| !*over).unwrap_or_else(PoisonError::into_inner).0
    }

    fn end(&self) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.told.notify_all();
    }
}

/// Runs one seed and judges it.
///
/// # Errors
/// Something went through unexplained, or was refused although it was allowed: the message has the seed and what was in force.
pub(crate) fn chase(daemon: &Daemon, policy: &Policy, plan: Plan) -> Result<()> {
    let seed = plan.seed;
    let outcome = race(daemon, policy, plan).with_context(|| format!("hunt with --seed {seed}"))?;
    let Outcome { finding, chronicle, packets } = outcome;
    let Finding { through, refused, neither, .. } = &finding;
    eprintln!(
        "hunt with --seed {seed}, {} s: {through} went through, {refused} refused, {neither} neither; {packets} packets; {} receipts, {} \
         reloads; {} unexplained, {} denied",
        plan.length.as_secs(),
        chronicle.windows.len(),
        chronicle.reigns.len() - 1,
        finding.unexplained.len(),
        finding.denied.len(),
    );
    for (what, found) in [("went through unexplained", &finding.unexplained), ("refused although they were allowed", &finding.denied)] {
        let traces: Vec<String> = found.iter().take(5).map(|attempt| chronicle.trace(attempt)).collect();
        ensure!(found.is_empty(), "hunt with --seed {seed}: {} {what}:\n{}", found.len(), traces.join("\n"));
    }
    // A race that nothing came of would find nothing.
    ensure!(*through >= THROUGH && *refused > 20 && packets > 0, "hunt with --seed {seed}: {finding:?}, {packets} packets");
    ensure!(neither * 10 < through + refused, "hunt with --seed {seed}: {neither} answers tell nothing");
    ensure!(chronicle.windows.len() > 2 && chronicle.reigns.len() > 2, "hunt with --seed {seed}: nothing was raced against");
    Ok(())
}

struct Outcome {
    finding: Finding,
    chronicle: Chronicle,
    packets: usize,
}

fn race(daemon: &Daemon, policy: &Policy, plan: Plan) -> Result<Outcome> {
    let lab = daemon.lab();
    let opened = [fresh_target(), fresh_target(), fresh_target()];
    let (tcp, udp) = ([opened.as_slice(), &[PLC_NEIGHBOUR]].concat(), [UDP, NEVER_UDP]);
    catch_up(lab)?;
    let (plant, bystander) = (lab.plant().from_now(), Bystander::start(daemon)?);
    let list = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let (tcp_list, udp_list) = (list(&tcp), list(&udp));
    let (longest, enough) = (plan.length * PATIENCE, daemon.path(&format!("hunt-{}-{}", plan.seed, boot_ns())));
    let (for_ms, until) = (longest.as_millis().to_string(), enough.display().to_string());
    // Two sessions: receipts are for the first one's agent, and for nobody else's.
    let mut sessions = Vec::new();
    for (agent, entitled) in [("lab-claude", true), ("lab-codex", false)] {
        let log = daemon.path(&format!("hunt-{}-{agent}.jsonl", plan.seed));
        let seed = (plan.seed ^ u64::from(entitled)).to_string();
        let log_text = log.display().to_string();
        let words =
            ["hunt", "--seed", &seed, "--for-ms", &for_ms, "--until", &until, "--log", &log_text, "--tcp", &tcp_list, "--udp", &udp_list];
        let running = By::Program(agent).start_words(daemon, &attack::workload(lab, &words, UDP).words)?;
        sessions.push((running, log, entitled));
    }
    let over = Race::default();
    let targets: Vec<(SocketAddr, bool)> = opened.iter().map(|to| (*to, false)).chain([(UDP, true)]).collect();
    let (windows, reigns, ended) = thread::scope(|scope| {
        let receipts = scope.spawn(|| receipts(daemon, &over, &targets, plan.seed));
        let policies = scope.spawn(|| policies(daemon, policy, &over, plan.seed));
        let begun = Instant::now();
        let judgeable = wait::until_every(Duration::from_millis(500), "enough to judge", longest, || {
            let through = || sessions.first().and_then(|(_, log, _)| hunt::read(log, true).ok()).map_or(0, through);
            let raced = over.registered.load(Ordering::Relaxed) >= RECEIPTS && over.reloaded.load(Ordering::Relaxed) >= RELOADS;
            (begun.elapsed() >= plan.length && raced && through() >= THROUGH).then_some(())
        });
        std::fs::write(&enough, "")?;
        let ended: Result<Vec<_>> = sessions
            .into_iter()
            .map(|(running, log, entitled)| {
                let _done = running.finish(longest + run::PATIENCE)?.success()?.json()?;
                hunt::read(&log, entitled)
            })
            .collect();
        over.end();
        let panicked = |_| anyhow!("a thread of the hunt panicked");
        Ok::<_, anyhow::Error>((receipts.join().map_err(panicked)??, policies.join().map_err(panicked)??, judgeable.and(ended)?))
    })?;
    bystander.finish()?;
    told(daemon, &windows)?;
    catch_up(lab)?;
    let arrivals = arrivals(&plant, &tcp, &udp);
    let chronicle = Chronicle { windows, reigns, unprotected: opened.to_vec() };
    let mut finding = chronicle.judge(&ended.concat());
    finding.unexplained.extend(chronicle.judge(&arrivals).unexplained);
    Ok(Outcome { finding, chronicle, packets: arrivals.len() })
}

fn through(attempts: Vec<Attempt>) -> usize {
    attempts.iter().filter(|attempt| attempt.came() == Came::Through).count()
}

/// The packets of the hunt that arrived: the first ones of TCP flows, and all datagrams.
fn arrivals(plant: &Journal, tcp: &[SocketAddr], udp: &[SocketAddr]) -> Vec<Attempt> {
    // The tap writes down when it got to a packet, which may be late on a busy machine.
    let lag_ns: u64 = if is_emulated() { 30_000_000_000 } else { 3_000_000_000 };
    let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    let now_ns = boot_ns();
    let opening = tcp.iter().flat_map(|to| plant.packets_to(*to)).filter(|packet| packet.opens);
    let packets = opening.chain(udp.iter().flat_map(|to| plant.packets_to(*to)));
    let arrival = |to: SocketAddr, at_ms: u64| {
        let at_ns = now_ns.saturating_sub(wall_ms.saturating_sub(at_ms) * 1_000_000);
        Attempt::arrival(to, udp.contains(&to), at_ns, lag_ns)
    };
    packets.map(|packet| arrival(packet.destination, packet.at_ms)).collect()
}

/// Checks that the stored events tell of every registration and of every revocation.
fn told(daemon: &Daemon, windows: &[Window]) -> Result<()> {
    let client = daemon.client()?;
    let mut missing: Vec<(&str, &str)> = windows.iter().map(|window| ("receipt", window.receipt.as_str())).collect();
    missing.extend(windows.iter().filter(|window| window.revoked).map(|window| ("revocation", window.receipt.as_str())));
    wait::until_every(Duration::from_millis(200), "the events of registrations and revocations", wait::SOON, || {
        for kind in ["receipt", "revocation"] {
            let stored = client.get(&format!("/v1/events?kind={kind}&limit=10000")).ok()?.body.to_string();
            missing.retain(|(of, id)| *of != kind || !stored.contains(id));
        }
        missing.is_empty().then_some(())
    })
    .with_context(|| format!("of {} receipts", windows.len()))
}

/// Registers and revokes receipts until the race is over.
fn receipts(daemon: &Daemon, over: &Race, targets: &[(SocketAddr, bool)], seed: u64) -> Result<Vec<Window>> {
    let mut rng = SmallRng::seed_from_u64(seed ^ 0x5eed_0001);
    let client = daemon.client()?;
    let mut windows: Vec<Window> = Vec::new();
    while !over.is_over_within(Duration::from_millis(rng.random_range(0..120))) {
        let now_ns = boot_ns();
        let open: Vec<usize> = (0..windows.len()).filter(|index| windows[*index].force.may.until_ns > now_ns).collect();
        if open.len() < OPEN_AT_ONCE && (open.is_empty() || rng.random_bool(0.6)) {
            let (to, udp) = targets[rng.random_range(0..targets.len())];
            let term_s = TERMS_S[rng.random_range(0..TERMS_S.len())];
            let draft = Draft::opening(&format!("{}/32", to.ip()), if udp { "udp" } else { "tcp" }, to.port());
            let artifact = draft.parameter("accessSeconds", json!(term_s)).sign(daemon.operator());
            let begin_ns = boot_ns();
            let answer = client.post("/v1/receipts", &artifact)?;
            let end_ns = boot_ns();
            match answer.status {
                200..300 => {
                    let term_ns = term_s * 1_000_000_000;
                    let may = Span::new(begin_ns, end_ns + term_ns + ROUNDING_NS);
                    let must = Span::new(end_ns, begin_ns + term_ns - ROUNDING_NS);
                    over.registered.fetch_add(1, Ordering::Relaxed);
                    windows.push(Window { receipt: forge::id(&artifact), to, udp, revoked: false, force: Force { may, must } });
                }
                // The policy of the moment admits none, or protects nothing there: it opens nothing, ever.
                422 => {}
                status => bail!("registering was answered {status}: {}", answer.body),
            }
        } else {
            revoke(&client, &mut windows[open[rng.random_range(0..open.len())]])?;
        }
    }
    // A later hunt of this daemon must not be explained by what this one left.
    let now_ns = boot_ns();
    windows.iter_mut().filter(|window| window.force.may.until_ns > now_ns).try_for_each(|window| revoke(&client, window))?;
    Ok(windows)
}

fn revoke(client: &Client, window: &mut Window) -> Result<()> {
    let begin_ns = boot_ns();
    let _revoked = client.delete(&format!("/v1/receipts/{}", window.receipt))?.ok()?;
    window.revoked = true;
    let force = &mut window.force;
    force.must.until_ns = force.must.until_ns.min(begin_ns);
    force.may.until_ns = force.may.until_ns.min(boot_ns());
    Ok(())
}

/// Reloads one policy after the other until the race is over, and the first one at the end.
fn policies(daemon: &Daemon, first: &Policy, over: &Race, seed: u64) -> Result<Vec<Reign>> {
    let mut rng = SmallRng::seed_from_u64(seed ^ 0x5eed_0002);
    let client = daemon.client()?;
    let choices = [
        (Rule::Receipts, first.clone()),
        (Rule::Receipts, first.clone().with("[[zone]]\nname = \"plant-9\"\nnetworks = [\"10.21.0.0/16\"]\n")),
        (Rule::Nobody, first.clone().replacing("zones = [\"plant-7\"]", "zones = []")),
        // Fresh targets are in the upper half.
        (Rule::Unprotected, first.clone().replacing("\"10.20.0.0/16\"", "\"10.20.0.0/18\"")),
    ];
    let forever = Force { may: Span::new(0, u64::MAX), must: Span::new(0, u64::MAX) };
    let mut reigns = vec![Reign { rule: Rule::Receipts, force: forever }];
    let mut last = false;
    while !last {
        last = over.is_over_within(Duration::from_millis(rng.random_range(50..1_200)));
        let (rule, policy) = &choices[if last { 0 } else { rng.random_range(0..choices.len()) }];
        let begin_ns = boot_ns();
        policy.write(&daemon.path("policy.toml"))?;
        let _generation: Value = client.post("/v1/policy/reload", &Value::Null)?.ok()?;
        let end_ns = boot_ns();
        over.reloaded.fetch_add(1, Ordering::Relaxed);
        if let Some(before) = reigns.last_mut() {
            (before.force.must.until_ns, before.force.may.until_ns) = (begin_ns, end_ns);
        }
        reigns.push(Reign { rule: *rule, force: Force { may: Span::new(begin_ns, u64::MAX), must: Span::new(end_ns, u64::MAX) } });
    }
    Ok(reigns)
}
