//! Flows whose process has closed its socket and is gone: what was refused on them stays refused, whoever is granted what afterwards.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use pp_tests::agent::Daemon;
use pp_tests::attack;
use pp_tests::forge::Draft;
use pp_tests::harness::{By, catch_up};
use pp_tests::lab::{FRESH_PORT_V6, Journal, Packet, Place, fresh_target, is_emulated};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run::{self, Running};
use pp_tests::wait;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::receipts::Registered;
use crate::world::{World, skip, tests};

tests![
    write_that_was_refused_is_not_sent_under_a_later_receipt,
    write_that_was_refused_is_not_sent_under_a_later_receipt_by_ipv6,
    write_that_lingers_is_not_sent_under_a_later_receipt,
    end_of_a_flow_is_not_sent_under_a_later_receipt,
    write_that_was_refused_by_mptcp_is_not_sent_under_a_later_receipt,
    write_that_was_refused_is_not_sent_once_hooks_are_removed,
    queue_that_the_far_end_does_not_take_ends_with_its_receipt,
    flow_without_a_process_ends_with_an_event,
    listener_that_refused_a_device_serves_others,
];

/// How long a receipt is: long enough to open the flow, also where the machine is emulated and busy.
fn window() -> Duration {
    Duration::from_secs(if is_emulated() { 25 } else { 6 })
}

/// Longer than the kernel waits, at this age of a flow, before it tries again to send what is queued.
const RETRIES: Duration = Duration::from_secs(9);

/// Where a server for MPTCP listens.
const MPTCP_PORT: u16 = 6_510;

/// How the flow is left.
#[derive(Clone, Copy, Default)]
struct Way {
    v6: bool,
    arguments: &'static [&'static str],
    mptcp: bool,
}

fn target(way: Way) -> SocketAddr {
    let mut target = fresh_target();
    if way.mptcp {
        target.set_port(MPTCP_PORT);
    }
    let IpAddr::V4(v4) = target.ip() else { return target };
    let [_, _, high, low] = v4.octets();
    if way.v6 { SocketAddr::new(Ipv6Addr::new(0xfd00, 0x20, 0, 1, 2, 0, high.into(), low.into()).into(), FRESH_PORT_V6) } else { target }
}

fn draft(target: SocketAddr) -> Draft {
    let bits = if target.is_ipv4() { 32 } else { 128 };
    Draft::opening(&format!("{}/{bits}", target.ip()), "tcp", target.port())
}

/// A flow that an agent has opened, and what tells it to write, close and exit.
struct Leaving {
    near: Running,
    go: PathBuf,
    local: SocketAddr,
}

impl Leaving {
    fn open(daemon: &Daemon, target: SocketAddr, way: Way) -> Result<Self> {
        let go = daemon.path(&format!("go-{}", Uuid::new_v4()));
        let (target_text, go_text) = (target.to_string(), go.display().to_string());
        let mut words = vec!["leave", &target_text, "--go", &go_text];
        words.extend(way.arguments);
        let words = By::run(AGENT).words(daemon, &attack::workload(daemon.lab(), &words, target).words);
        let mut near = Running::start(&mut daemon.lab().command(Place::Engineering, &words))?;
        let opened = near.line_with("connected")?;
        let local = opened["local"].as_str().context("no local address")?.parse()?;
        Ok(Self { near, go, local })
    }

    /// It writes, closes and exits; what it was told.
    fn leave(self) -> Result<Value> {
        std::fs::write(&self.go, "")?;
        self.near.finish(run::PATIENCE)?.success()?.json()
    }
}

/// Packets of this flow that arrived since the mark, but for the kernel's answers to what comes for a socket that is gone.
fn arrived(plant: &Journal, local: SocketAddr, target: SocketAddr) -> Vec<Packet> {
    plant.packets_to(target).into_iter().filter(|packet| packet.source == local && !packet.resets).collect()
}

/// A server for MPTCP, which those of the lab are not.
fn mptcp_server(daemon: &Daemon) -> Result<Running> {
    let log = daemon.path("mptcp.jsonl").display().to_string();
    let listen = format!("mptcp:0.0.0.0:{MPTCP_PORT}");
    let words = attack::workload(daemon.lab(), &["sink", "--log", &log, &listen], fresh_target()).words;
    let mut server = Running::start(&mut daemon.lab().command(Place::Plant, &words))?;
    match server.line_with("ready") {
        Ok(_ready) => Ok(server),
        Err(error) => Err(skip(&format!("no MPTCP on this kernel: {error:#}"))),
    }
}

/// Under a receipt in force the flow delivers what it was left with.
fn control(daemon: &Daemon, way: Way) -> Result<()> {
    let target = target(way);
    let _receipt = Registered::new(daemon, &draft(target))?;
    let flow = Leaving::open(daemon, target, way)?;
    let local = flow.local;
    catch_up(daemon.lab())?;
    let plant = daemon.lab().plant().from_now();
    let left = flow.leave()?;
    ensure!(left["errno"].is_null(), "control run: {left}");
    wait::until_true("control run: the flow's last packets", wait::SOON, || !arrived(&plant, local, target).is_empty())
}

/// The receipt of an open flow runs out while the daemon does not look; the flow's process writes, closes and exits. Returns the flow's ends.
fn left_behind(daemon: &Daemon, way: Way) -> Result<(SocketAddr, SocketAddr, Journal)> {
    let target = target(way);
    let _receipt = daemon.register(&draft(target).parameter("accessSeconds", json!(window().as_secs())).sign(daemon.operator()))?;
    let registered = std::time::Instant::now();
    let flow = Leaving::open(daemon, target, way)?;
    let local = flow.local;
    // As busy as a daemon can be: the kernel refuses without it.
    daemon.signal(Signal::SIGSTOP)?;
    let until = window() + Duration::from_millis(300);
    wait::until_true("the end of the receipt", 2 * until, || registered.elapsed() > until)?;
    catch_up(daemon.lab())?;
    let plant = daemon.lab().plant().from_now();
    let _left = flow.leave()?;
    Ok((local, target, plant))
}

/// The whole attack, and its control.
fn not_sent_later(world: &mut World, way: Way) -> Result<()> {
    let daemon = world.daemon()?;
    let _server = way.mptcp.then(|| mptcp_server(daemon)).transpose()?;
    control(daemon, way)?;
    let mark = daemon.events().mark();
    let (local, target, plant) = left_behind(daemon, way)?;
    daemon.signal(Signal::SIGCONT)?;
    // Somebody else's, one to three seconds later.
    let later = std::time::Instant::now() + Duration::from_secs(2);
    wait::until_true("two seconds", wait::SOON, || std::time::Instant::now() > later)?;
    let _another = Registered::new(daemon, &draft(target))?;
    let until = std::time::Instant::now() + RETRIES;
    wait::until_true("retries", 2 * RETRIES, || std::time::Instant::now() > until)?;
    catch_up(daemon.lab())?;
    let packets = arrived(&plant, local, target);
    ensure!(packets.is_empty(), "{} packets of the flow that had ended arrived: {packets:?}", packets.len());
    let to_target = |event: &Value| event["destination"]["address"] == target.ip().to_string().as_str();
    let _refused = daemon.events().wait_since(mark, "the refusal's event", |event| event["verdict"] == "block" && to_target(event))?;
    Ok(())
}

fn write_that_was_refused_is_not_sent_under_a_later_receipt(world: &mut World) -> Result<()> {
    not_sent_later(world, Way::default())
}

fn write_that_was_refused_is_not_sent_under_a_later_receipt_by_ipv6(world: &mut World) -> Result<()> {
    not_sent_later(world, Way { v6: true, ..Way::default() })
}

fn write_that_lingers_is_not_sent_under_a_later_receipt(world: &mut World) -> Result<()> {
    not_sent_later(world, Way { arguments: &["--linger", "2"], ..Way::default() })
}

fn end_of_a_flow_is_not_sent_under_a_later_receipt(world: &mut World) -> Result<()> {
    not_sent_later(world, Way { arguments: &["--bytes", "0"], ..Way::default() })
}

fn write_that_was_refused_by_mptcp_is_not_sent_under_a_later_receipt(world: &mut World) -> Result<()> {
    not_sent_later(world, Way { arguments: &["--mptcp"], mptcp: true, ..Way::default() })
}

/// The daemon is dead, and somebody takes the hooks away.
fn write_that_was_refused_is_not_sent_once_hooks_are_removed(world: &mut World) -> Result<()> {
    let standard = Policy::standard(world.lab());
    let mut daemon = world.own(&standard)?;
    control(&daemon, Way::default())?;
    let (local, target, plant) = left_behind(&daemon, Way::default())?;
    daemon.crash()?;
    let bpffs = daemon.bpffs().display().to_string();
    let _removed = daemon.cli(&["uninstall-hooks", "--yes", "--bpffs", &bpffs])?.success()?;
    let until = std::time::Instant::now() + RETRIES;
    wait::until_true("retries", 2 * RETRIES, || std::time::Instant::now() > until)?;
    catch_up(daemon.lab())?;
    let packets = arrived(&plant, local, target);
    ensure!(packets.is_empty(), "{} packets of the flow that had ended arrived: {packets:?}", packets.len());
    Ok(())
}

/// More than a far end takes that does not read: what is left in the queue when the receipt ends, nobody sends under the next one.
fn queue_that_the_far_end_does_not_take_ends_with_its_receipt(world: &mut World) -> Result<()> {
    const DEAF_PORT: u16 = 6_511;
    const WROTE: Way = Way { v6: false, arguments: &["--bytes", "200000"], mptcp: false };
    let daemon = world.daemon()?;
    let lab = daemon.lab();
    let run = |next: bool| -> Result<(u64, Vec<Packet>)> {
        let mut target = fresh_target();
        target.set_port(DEAF_PORT);
        let reads = daemon.path(&format!("reads-{}", Uuid::new_v4()));
        let words = attack::workload(lab, &["deaf", &target.to_string(), &reads.display().to_string()], target).words;
        let mut server = Running::start(&mut lab.command(Place::Plant, &words))?;
        let _ready = server.line_with("ready")?;
        let lasts = if next { window() } else { 100 * window() };
        let _receipt = daemon.register(&draft(target).parameter("accessSeconds", json!(lasts.as_secs())).sign(daemon.operator()))?;
        let until = std::time::Instant::now() + window() + Duration::from_secs(1);
        let flow = Leaving::open(daemon, target, WROTE)?;
        let local = flow.local;
        let left = flow.leave()?;
        ensure!(left["wrote"].as_u64().is_some_and(|wrote| wrote > 20_000), "{left}");
        wait::until_true("the end of the receipt", wait::SOON, || std::time::Instant::now() > until)?;
        catch_up(lab)?;
        let plant = lab.plant().from_now();
        let _next = next.then(|| Registered::new(daemon, &draft(target))).transpose()?;
        std::fs::write(&reads, "")?;
        let read = server.finish(run::PATIENCE)?.success()?.json()?["read"].as_u64().unwrap_or_default();
        catch_up(lab)?;
        Ok((read, arrived(&plant, local, target)))
    };
    let (all, _) = run(false)?;
    ensure!(all > 20_000, "control run: the far end read {all} bytes");
    let (read, packets) = run(true)?;
    ensure!(
        packets.is_empty() && read < all,
        "{read} bytes were read, {} packets of them came after the end of the receipt",
        packets.len()
    );
    Ok(())
}

fn flow_without_a_process_ends_with_an_event(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let mark = daemon.events().mark();
    let (_, target, _) = left_behind(daemon, Way::default())?;
    daemon.signal(Signal::SIGCONT)?;
    let event = daemon.events().wait_since(mark, "the end of the flow", |event| {
        event["kind"] == "flow_ended" && event["destination"]["address"] == target.ip().to_string().as_str()
    })?;
    ensure!(event["agent"] == AGENT && event["destination"]["port"] == target.port(), "{event}");
    Ok(())
}

/// A device of the zone that dials an agent's server is refused; whoever comes after it is served for as long as they stay.
fn listener_that_refused_a_device_serves_others(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let lab = daemon.lab();
    let server = attack::workload(lab, &["serve", "0.0.0.0:9002", "--accept", "3"], fresh_target());
    let mut server = Running::start(&mut lab.command(Place::Engineering, &By::run(AGENT).words(daemon, &server.words)))?;
    let _ready = server.line_with("ready")?;
    let mark = daemon.events().mark();
    let dial = |place, source: &str| -> Result<Value> {
        let client = attack::workload(lab, &["dial", "10.99.0.2:9002", "--source", source], fresh_target());
        run::run(&mut lab.command(place, &client.words))?.json()
    };
    let device = dial(Place::Plant, "10.20.4.8:0")?;
    ensure!(device["ok"] == false, "a device of the zone was served: {device}");
    let _event = daemon.events().wait_since(mark, "its event", |event| event["destination"]["address"] == "10.20.4.8")?;
    for source in ["10.97.0.2:0", "10.97.0.2:44818"] {
        let client = dial(Place::It, source)?;
        ensure!(client["ok"] == true && client["answer"] == "served\n", "{source} behind it: {client}");
    }
    Ok(())
}
