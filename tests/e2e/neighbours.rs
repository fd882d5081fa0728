//! The gateway by another of its addresses: link-local, a further IPv4 and IPv6 address. What a neighbour says of itself adds protection
//! and never takes any away; the router, name servers and this host are never protected by it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer, Attempt};
use pp_tests::forge::Draft;
use pp_tests::harness::{By, is_block, is_verdict};
use pp_tests::lab::field::{Field, GLOBAL, LINK, LOCAL, MAC, NAMED, OTHER_PORT, PORT, SECOND};
use pp_tests::lab::{PLC_V6, Place, WEB};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run::{self};
use pp_tests::wait;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::receipts::Registered;
use crate::world::{World, tests};

tests![
    gateway_is_refused_by_its_link_local_address,
    gateway_is_refused_by_a_further_ipv4_address_of_its_box,
    gateway_is_refused_by_an_ipv6_address_of_its_box,
    further_address_is_refused_where_nobody_has_spoken_to_the_gateway,
    receipt_for_a_further_address_opens_that_and_nothing_else,
    answers_of_a_router_protect_nothing_ordinary_and_open_nothing,
    forged_frames_on_the_link_protect_nothing_ordinary_and_open_nothing,
    namespace_of_a_session_teaches_the_host_nothing,
    forgotten_address_is_open_until_it_is_named,
    learned_addresses_outlast_the_daemon,
    hardware_address_in_policy_protects_before_anything_is_seen,
    ordinary_traffic_of_a_link_that_carries_a_zone_goes_on,
];

/// Guesses of the incident.
const GUESSES: u32 = 60;
/// What a refusal is heard as: egress alone can only end an attempt.
const REFUSED: [i32; 2] = [libc::EPERM, libc::ECONNABORTED];

/// The standard policy with the box on the second link as a gateway.
fn policy(world: &World) -> Policy {
    Policy::standard(world.lab())
        .replacing("gateways = [\"vnode-east\", \"vnode-west\"]", "gateways = [\"vnode-east\", \"vnode-west\", \"field\"]")
        .with(&format!("[[gateway]]\nname = \"field\"\naddress = \"{NAMED}\"\nports = [{PORT}]\n"))
}

fn on(daemon: &Daemon, technique: &str, target: SocketAddr) -> Attempt {
    attack::workload(daemon.lab(), &["try", technique, &target.to_string()], target)
}

/// The far end as events name it: without the link.
fn told(target: SocketAddr) -> SocketAddr {
    SocketAddr::new(target.ip(), target.port())
}

pub(crate) fn delivered(daemon: &Daemon, field: &Field, by: &By, attempt: &Attempt) -> Result<()> {
    let packets = field.packets().from_now();
    let answer = by.attempt(daemon, attempt)?;
    ensure!(answer == Answer::Delivered, "{} to {}: {answer:?}", attempt.name, attempt.target);
    wait::until_true("its packets on the box", wait::SOON, || !packets.packets_to(told(attempt.target)).is_empty())
}

/// Refused, told, and nothing arrived; and it arrives when nobody refuses it.
pub(crate) fn refused(daemon: &Daemon, field: &Field, attempt: &Attempt) -> Result<Value> {
    let what = || format!("{} to {}", attempt.name, attempt.target);
    delivered(daemon, field, &By::Nobody, attempt).with_context(what).context("control run")?;
    field.catch_up()?;
    let (packets, mark) = (field.packets().from_now(), daemon.events().mark());
    match By::run(AGENT).attempt(daemon, attempt).with_context(what)? {
        Answer::Refused(errno) if REFUSED.contains(&errno) => {}
        // A datagram that egress refuses is refused to its sender too.
        other => bail!("{}: not refused but {other:?}", what()),
    }
    field.catch_up()?;
    let arrived = packets.new_packets_to(told(attempt.target));
    ensure!(arrived.is_empty(), "{}: {} packets arrived", what(), arrived.len());
    daemon.events().wait_since(mark, &what(), |event| is_block(event, told(attempt.target)))
}

/// Waits for what was learned of an address, which a program without a session reaches first.
fn learned(daemon: &Daemon, field: &Field, address: std::net::IpAddr) -> Result<Value> {
    let mark = daemon.events().mark();
    for target in [NAMED, address] {
        delivered(daemon, field, &By::Nobody, &on(daemon, "udp-sendto", SocketAddr::new(target, OTHER_PORT)))?;
    }
    let known = || -> Option<Value> {
        let found = daemon.client().ok()?.get("/v1/neighbours").ok()?.ok().ok()?;
        found["learned"].as_array()?.iter().find(|known| known["address"] == address.to_string().as_str()).cloned()
    };
    let begun = Instant::now();
    let found = wait::until("the address in the list", wait::SOON, known)?;
    ensure!(pp_tests::lab::is_emulated() || begun.elapsed() < Duration::from_secs(2), "it took {:?}", begun.elapsed());
    let is_it = |event: &Value| event["kind"] == "neighbour" && event["destination"]["address"] == address.to_string().as_str();
    let before = daemon.events().all().into_iter().any(|event| is_it(&event) && event["reason"] == "learned");
    if !before {
        let _event = daemon.events().wait_since(mark, "its event", |event| is_it(event) && event["reason"] == "learned")?;
    }
    Ok(found)
}

fn gateway_is_refused_by_its_link_local_address(world: &mut World) -> Result<()> {
    let field = Field::build(world.lab())?;
    let policy = policy(world);
    let daemon = world.sharing(&policy)?;
    let target = field.local(PORT)?;
    // What the incident's agent did: it looked who is there, and guessed.
    let guesses = daemon.path("guesses");
    std::fs::write(&guesses, format!("tcp-connect {target}\n").repeat(usize::try_from(GUESSES)?))?;
    let words = attack::workload(daemon.lab(), &["batch", &guesses.display().to_string()], target).words;
    let servers = field.servers().from_now();
    let count = |output: &run::Output| output.stdout.lines().filter(|line| line.contains("\"ok\":true")).count();
    let control = By::Nobody.run_words(daemon, &words)?;
    ensure!(count(&control) == usize::try_from(GUESSES)?, "control run: {control}");
    wait::until_true("the control's guesses", wait::SOON, || servers.arrivals_at(told(target)).len() >= count(&control))?;
    field.catch_up()?;
    let (servers, packets, mark) = (field.servers().from_now(), field.packets().from_now(), daemon.events().mark());
    let output = By::run(AGENT).run_words(daemon, &words)?;
    let through = count(&output);
    field.catch_up()?;
    let arrived = servers.arrivals_at(told(target)).len();
    ensure!(through == 0 && arrived == 0, "{through} of {GUESSES} guesses went through, {arrived} arrived");
    ensure!(packets.new_packets_to(told(target)).is_empty(), "packets of guesses arrived");
    let event = daemon.events().wait_since(mark, "the refusal's event", |event| is_block(event, told(target)))?;
    ensure!(event["gateway"] == "field" && event["reason"] == "no_receipt", "{event}");
    // UDP-Lite has no server: its packets are what arrives.
    let udplite = has_udplite()?.then_some("udplite");
    for technique in ["tcp-connect", "udp-sendto", "udp-connect-send", "fastopen", "sendmmsg"].into_iter().chain(udplite) {
        let _event = refused(daemon, &field, &on(daemon, technique, target))?;
    }
    // A port that policy does not name stays open, as on the gateway's own address.
    delivered(daemon, &field, &By::run(AGENT), &on(daemon, "tcp-connect", field.local(OTHER_PORT)?))
}

/// Whether this kernel has UDP-Lite: Linux 7.3 has not.
fn has_udplite() -> Result<bool> {
    const UDPLITE: i32 = 136;
    match Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::from(UDPLITE))) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the link is known to carry a place.
pub(crate) fn carried(daemon: &Daemon) -> Result<()> {
    let carries = || {
        let found = daemon.client().ok()?.get("/v1/neighbours").ok()?.ok().ok()?;
        found["links"].as_array()?.iter().any(|link| link["link"] == LINK).then_some(())
    };
    wait::until("the link that carries the place", wait::SOON, carries)
}

fn gateway_is_refused_by_a_further_ipv4_address_of_its_box(world: &mut World) -> Result<()> {
    further_address_is_refused(world, SECOND)
}

fn gateway_is_refused_by_an_ipv6_address_of_its_box(world: &mut World) -> Result<()> {
    further_address_is_refused(world, GLOBAL)
}

fn further_address_is_refused(world: &mut World, address: std::net::IpAddr) -> Result<()> {
    let field = Field::build(world.lab())?;
    let policy = policy(world);
    let daemon = world.sharing(&policy)?;
    let known = learned(daemon, &field, address)?;
    ensure!(known["gateway"] == "field" && known["link"] == LINK && known["mac"] == MAC, "{known}");
    let target = SocketAddr::new(address, PORT);
    for technique in ["tcp-connect", "udp-sendto"] {
        let event = refused(daemon, &field, &on(daemon, technique, target))?;
        ensure!(event["gateway"] == "field" && event["reason"] == "no_receipt", "{event}");
    }
    delivered(daemon, &field, &By::run(AGENT), &on(daemon, "tcp-connect", SocketAddr::new(address, OTHER_PORT)))?;
    let check = daemon.cli(&["check", &target.to_string(), "--agent", AGENT])?;
    let why = format!("learned: answers with the MAC of {NAMED} on {LINK}");
    ensure!(check.code() == 1 && check.stdout.contains(&why), "{check}");
    let check = daemon.cli(&["check", &format!("[{LOCAL}%{LINK}]:{PORT}"), "--agent", AGENT])?;
    ensure!(check.code() == 1 && check.stdout.contains("gateway field"), "{check}");
    let status = daemon.cli(&["status"])?;
    ensure!(status.stdout.contains("addresses learned") && status.stdout.contains(&address.to_string()), "{status}");
    Ok(())
}

/// The host has no neighbour entry of the address that policy names: the daemon has the kernel ask for it.
fn further_address_is_refused_where_nobody_has_spoken_to_the_gateway(world: &mut World) -> Result<()> {
    let field = Field::build(world.lab())?;
    let policy = policy(world);
    let daemon = world.own(&policy)?;
    let shown = || field.engineering(&["ip", "neighbour", "show", "dev", LINK]);
    let before = shown()?;
    ensure!(!before.contains(&NAMED.to_string()), "somebody has spoken to it: {before}");
    let second = on(&daemon, "udp-sendto", SocketAddr::new(SECOND, OTHER_PORT));
    delivered(&daemon, &field, &By::run(AGENT), &second)?;
    wait::until_true("the further address in the list", wait::SOON, || {
        daemon
            .client()
            .and_then(|client| client.get("/v1/neighbours")?.ok())
            .is_ok_and(|list| list["learned"].as_array().is_some_and(|all| all.iter().any(|one| one["address"] == SECOND.to_string())))
    })?;
    ensure!(shown()?.contains(&NAMED.to_string()), "learned without the gateway: {}", shown()?);
    let _event = refused(&daemon, &field, &on(&daemon, "tcp-connect", SocketAddr::new(SECOND, PORT)))?;
    Ok(())
}

fn receipt_for_a_further_address_opens_that_and_nothing_else(world: &mut World) -> Result<()> {
    let field = Field::build(world.lab())?;
    let policy = policy(world);
    let daemon = world.sharing(&policy)?;
    let _known = learned(daemon, &field, SECOND)?;
    carried(daemon)?;
    let (second, local) = (SocketAddr::new(SECOND, PORT), field.local(PORT)?);
    let scope = json!({"kind": "accounts", "accounts": ["engineer"], "maxAttempts": 20});
    let draft = |address: String| Draft::opening(&address, "tcp", PORT).parameter("credentialScope", scope.clone());
    let receipt = Registered::new(daemon, &draft(format!("{SECOND}/32")))?;
    delivered(daemon, &field, &By::run(AGENT), &on(daemon, "tcp-connect", second))?;
    for other in [SocketAddr::new(NAMED, PORT), local] {
        let _event = refused(daemon, &field, &on(daemon, "tcp-connect", other))?;
    }
    drop(receipt);
    let _event = refused(daemon, &field, &on(daemon, "tcp-connect", second))?;
    let _receipt = Registered::new(daemon, &draft(format!("{LOCAL}/128")))?;
    delivered(daemon, &field, &By::run(AGENT), &on(daemon, "tcp-connect", local))?;
    let _event = refused(daemon, &field, &on(daemon, "tcp-connect", second))?;
    // Whose authority does not reach the gateway opens none of its addresses.
    daemon.reload(&policy.clone().replacing(", \"field\"]", "]"))?;
    let void = daemon.client()?.get("/v1/receipts")?.ok()?;
    ensure!(void["receipts"].as_array().is_some_and(|all| all.iter().any(|one| one["status"] == "void")), "{void}");
    let _event = refused(daemon, &field, &on(daemon, "tcp-connect", local))?;
    daemon.reload(&policy)
}

/// The box is the next hop of a route: what it answers for may be anybody's.
fn answers_of_a_router_protect_nothing_ordinary_and_open_nothing(world: &mut World) -> Result<()> {
    let field = Field::build(world.lab())?;
    field.ip_engineering(&format!("route add 10.77.0.0/16 via {SECOND}\n"))?;
    let policy = policy(world);
    let daemon = world.own(&policy)?;
    let mark = daemon.events().mark();
    for target in [SECOND, NAMED, GLOBAL] {
        delivered(&daemon, &field, &By::Nobody, &on(&daemon, "udp-sendto", SocketAddr::new(target, OTHER_PORT)))?;
    }
    let conflict =
        daemon.events().wait_since(mark, "the conflict", |event| event["kind"] == "neighbour" && event["reason"] == "conflict")?;
    ensure!(conflict["detail"].as_str().is_some_and(|text| text.contains("router")), "{conflict}");
    for target in [SECOND, GLOBAL] {
        delivered(&daemon, &field, &By::run(AGENT), &on(&daemon, "tcp-connect", SocketAddr::new(target, PORT)))?;
    }
    // What policy names, and the link itself, are as before.
    for target in [SocketAddr::new(NAMED, PORT), field.local(PORT)?] {
        let _event = refused(&daemon, &field, &on(&daemon, "tcp-connect", target))?;
    }
    // Spoofed answers: the router's own address, this host's, and what policy names are said to be at a protected device's MAC.
    field.ip_engineering(
        "route del 10.77.0.0/16\nneighbour replace 10.99.0.1 lladdr 02:00:00:00:30:50 dev eth0 nud stale\n\
         neighbour replace 10.30.0.50 lladdr 02:00:00:00:66:66 dev field0 nud stale\n\
         neighbour replace 10.30.0.66 lladdr 02:00:00:00:66:66 dev field0 nud stale\n",
    )?;
    let is_spoofed = |event: &Value| event["kind"] == "neighbour" && event["destination"]["address"] == "10.30.0.66";
    let _event = daemon.events().wait_since(mark, "the spoofed address", is_spoofed)?;
    let list = daemon.client()?.get("/v1/neighbours")?.ok()?;
    let known = |address: &str| list["learned"].as_array().is_some_and(|all| all.iter().any(|known| known["address"] == address));
    ensure!(!known("10.99.0.1") && !known("10.99.0.2") && !known("10.30.0.2") && !known("10.30.0.50"), "{list}");
    field.ip_engineering(
        "neighbour replace 10.99.0.1 lladdr 02:00:00:00:63:01 dev eth0 nud stale\n\
         neighbour replace 10.30.0.50 lladdr 02:00:00:00:30:50 dev field0 nud stale\n",
    )?;
    let answer = By::run(AGENT).attempt(&daemon, &attack::tcp(daemon.lab(), WEB))?;
    ensure!(answer == Answer::Delivered, "the web through the router: {answer:?}");
    let _event = refused(&daemon, &field, &on(&daemon, "tcp-connect", SocketAddr::new(NAMED, PORT)))?;
    Ok(())
}

/// The box says on the wire that the protected addresses are elsewhere, and that the router's and this host's own are at its hardware address.
fn forged_frames_on_the_link_protect_nothing_ordinary_and_open_nothing(world: &mut World) -> Result<()> {
    const ELSEWHERE: &str = "02:00:00:00:66:66";
    let field = Field::build(world.lab())?;
    let daemon = world.own(&policy(world))?;
    let shown = |what: &str| field.engineering(&["ip", "neighbour", "show", "dev", LINK]).map(|table| table.matches(what).count());
    for address in [SECOND, GLOBAL] {
        let _known = learned(&daemon, &field, address)?;
    }
    delivered(&daemon, &field, &By::Nobody, &on(&daemon, "udp-sendto", SocketAddr::new(NAMED, OTHER_PORT)))?;
    // As hosts do that take what nobody asked for.
    let _set = field.engineering(&["/bin/sh", "-c", &format!("echo 1 > /proc/sys/net/ipv4/conf/{LINK}/arp_accept")])?;
    let moved = [NAMED, SECOND, GLOBAL].map(|address| format!("{address}={ELSEWHERE}"));
    let claimed = ["10.99.0.1", "10.30.0.2", "fd00:31::2", "10.99.0.2"].map(|address| format!("{address}={MAC}"));
    field.announce(&[format!("10.30.0.99={MAC}")])?;
    wait::until_true("an address that nobody had, joined", wait::SOON, || {
        daemon.client().and_then(|client| client.get("/v1/neighbours")?.ok()).is_ok_and(|list| list.to_string().contains("10.30.0.99"))
    })?;
    let mark = daemon.events().mark();
    field.announce(&[claimed.as_slice(), moved.as_slice()].concat())?;
    wait::until_true("the router's address at the box", wait::SOON, || shown("10.99.0.1 ").is_ok_and(|count| count == 1))?;
    let _event = daemon.events().wait_since(mark, "the conflict", |event| event["kind"] == "neighbour" && event["reason"] == "conflict")?;
    wait::until_true("the forged answers in the table", wait::SOON, || shown(ELSEWHERE).is_ok_and(|count| count == 3))
        .with_context(|| field.engineering(&["ip", "neighbour", "show", "dev", LINK]).unwrap_or_default())?;
    let targets = [NAMED, SECOND, GLOBAL].map(|address| SocketAddr::new(address, PORT));
    for target in targets {
        let mark = daemon.events().mark();
        let answer = By::run(AGENT).attempt(&daemon, &on(&daemon, "tcp-connect", target))?;
        ensure!(matches!(answer, Answer::Refused(libc::EPERM)), "{target} under a forged hardware address: {answer:?}");
        let _event = daemon.events().wait_since(mark, "its event", |event| is_block(event, target))?;
    }
    // Where packets would arrive again, and the device that now answers is its own.
    field.announce(&[NAMED, SECOND, GLOBAL].map(|address| format!("{address}={MAC}")))?;
    wait::until_true("the right answers in the table", wait::SOON, || shown(ELSEWHERE).is_ok_and(|count| count == 0))?;
    for target in targets {
        let _event = refused(&daemon, &field, &on(&daemon, "tcp-connect", target))?;
    }
    let list = daemon.client()?.get("/v1/neighbours")?.ok()?;
    let addresses: Vec<&str> = list["learned"].as_array().into_iter().flatten().filter_map(|known| known["address"].as_str()).collect();
    ensure!(addresses.contains(&"10.30.0.51") && addresses.contains(&"fd00:31::50"), "{list}");
    for ordinary in ["10.99.0.1", "10.99.0.2", "10.30.0.2", "fd00:31::2"] {
        ensure!(!addresses.contains(&ordinary), "{ordinary} became protected: {list}");
    }
    let answer = By::run(AGENT).attempt(&daemon, &attack::tcp(daemon.lab(), WEB))?;
    ensure!(answer == Answer::Delivered, "the web through the router: {answer:?}");
    Ok(())
}

/// A session makes a network of its own in which the router's address and a PLC's answer with one hardware address.
fn namespace_of_a_session_teaches_the_host_nothing(world: &mut World) -> Result<()> {
    let policy = policy(world);
    let field = Field::build(world.lab())?;
    let daemon = world.sharing(&policy)?;
    let mark = daemon.events().mark();
    let lies = "ip link add lie address 02:00:00:00:66:01 type veth peer name truth && ip link set truth up && ip link set lie up && ip address add 10.30.0.9/24 dev lie && \
                for ip in 10.30.0.50 10.30.0.77; do ip neighbour replace $ip lladdr 02:00:00:00:63:01 dev lie nud permanent; done && \
                ip route add 10.99.0.0/24 dev lie && ip neighbour replace 10.99.0.1 lladdr 02:00:00:00:63:01 dev lie nud permanent";
    for options in ["--user --map-root-user --net", "--net"] {
        let script = format!("unshare {options} /bin/sh -c '{lies} && sleep 3'");
        let output = By::run(AGENT).run_words(daemon, &["/bin/sh".into(), "-c".into(), script])?;
        ensure!(output.status.success(), "{options}: {output}");
        if options.starts_with("--user") {
            let learned = daemon.events().since(mark).into_iter().find(|event| event["kind"] == "neighbour");
            ensure!(learned.is_none(), "{learned:?}");
        }
    }
    // What root's namespace was taught holds there alone.
    let own = daemon.client()?.post("/v1/check", &json!({"address": "10.30.0.77", "port": PORT, "agent": AGENT}))?.ok()?;
    ensure!(own["verdict"] == "allow", "{own}");
    let answer = By::run(AGENT).attempt(daemon, &attack::tcp(daemon.lab(), WEB))?;
    ensure!(answer == Answer::Delivered, "the web through the router: {answer:?}");
    let _event = refused(daemon, &field, &on(daemon, "tcp-connect", SocketAddr::new(NAMED, PORT)))?;
    Ok(())
}

fn forgotten_address_is_open_until_it_is_named(world: &mut World) -> Result<()> {
    let field = Field::build(world.lab())?;
    let policy = policy(world);
    let daemon = world.own(&policy)?;
    let _known = learned(&daemon, &field, SECOND)?;
    let target = SocketAddr::new(SECOND, PORT);
    let _event = refused(&daemon, &field, &on(&daemon, "tcp-connect", target))?;
    let mark = daemon.events().mark();
    let agent = By::run(AGENT).run_words(&daemon, &daemon.cli_words(&["neighbours", "forget", &SECOND.to_string()]))?;
    ensure!(agent.code() == 2, "an agent forgot an address: {agent}");
    let _done = daemon.cli(&["neighbours", "forget", &SECOND.to_string()])?.success()?;
    let _event = daemon.events().wait_since(mark, "its event", |event| event["kind"] == "neighbour" && event["reason"] == "forgotten")?;
    delivered(&daemon, &field, &By::run(AGENT), &on(&daemon, "tcp-connect", target))?;
    // It goes on answering, and stays forgotten.
    delivered(&daemon, &field, &By::Nobody, &on(&daemon, "udp-sendto", SocketAddr::new(SECOND, OTHER_PORT)))?;
    delivered(&daemon, &field, &By::run(AGENT), &on(&daemon, "tcp-connect", target))
}

fn learned_addresses_outlast_the_daemon(world: &mut World) -> Result<()> {
    let field = Field::build(world.lab())?;
    let policy = policy(world);
    let mut daemon = world.own(&policy)?;
    let _known = learned(&daemon, &field, SECOND)?;
    carried(&daemon)?;
    let launcher = daemon.lab().program("lab-claude").display().to_string();
    daemon.crash()?;
    let targets = [SocketAddr::new(SECOND, PORT), field.local(PORT)?];
    for target in targets {
        let words = [vec![launcher.clone()], on(&daemon, "tcp-connect", target).words].concat();
        let output = run::run(&mut daemon.lab().command(Place::Engineering, &words))?;
        ensure!(output.json()?["errno"] == libc::EPERM, "without the daemon, {target}: {output}");
    }
    // The neighbour is gone from the table, and known all the same.
    field.ip_engineering(&format!("neighbour flush to {SECOND} dev {LINK}\nneighbour flush to {NAMED} dev {LINK}\n"))?;
    daemon.spawn()?;
    let list = daemon.client()?.get("/v1/neighbours")?.ok()?;
    ensure!(list.to_string().contains(&SECOND.to_string()), "{list}");
    for target in targets {
        let _event = refused(&daemon, &field, &on(&daemon, "tcp-connect", target))?;
    }
    Ok(())
}

fn hardware_address_in_policy_protects_before_anything_is_seen(world: &mut World) -> Result<()> {
    let field = Field::build(world.lab())?;
    let policy = policy(world).replacing(&format!("address = \"{NAMED}\"\n"), &format!("address = \"{NAMED}\"\nmac = \"{MAC}\"\n"));
    let daemon = world.own(&policy)?;
    // What the box gives itself by its hardware address (RFC 4291), and where nobody has looked yet.
    let by_itself: std::net::IpAddr = "fd00:31::ff:fe00:3050".parse()?;
    field.ip_on_box(&format!("address add {by_itself}/64 dev eth0 nodad\n"))?;
    let target = SocketAddr::new(by_itself, PORT);
    let (packets, mark) = (field.packets().from_now(), daemon.events().mark());
    let answer = By::run(AGENT).attempt(&daemon, &on(&daemon, "tcp-connect", target))?;
    ensure!(matches!(answer, Answer::Refused(errno) if REFUSED.contains(&errno)), "{answer:?}");
    field.catch_up()?;
    ensure!(packets.new_packets_to(target).is_empty(), "it arrived");
    let _event = daemon.events().wait_since(mark, "its event", |event| is_block(event, target))?;
    let _event = refused(&daemon, &field, &on(&daemon, "tcp-connect", target))?;
    // A further address joins at once, the gateway's own unseen.
    field.ip_engineering(&format!("neighbour flush to {NAMED} dev {LINK}\n"))?;
    delivered(&daemon, &field, &By::Nobody, &on(&daemon, "udp-sendto", SocketAddr::new(SECOND, OTHER_PORT)))?;
    wait::until_true("the further address", wait::SOON, || {
        daemon
            .client()
            .and_then(|client| client.get("/v1/neighbours")?.ok())
            .is_ok_and(|list| list.to_string().contains(&SECOND.to_string()))
    })?;
    let _event = refused(&daemon, &field, &on(&daemon, "tcp-connect", SocketAddr::new(SECOND, PORT)))?;
    let shown = daemon.cli(&["policy", "show"])?.success()?;
    ensure!(shown.stdout.contains(MAC), "{shown}");
    Ok(())
}

/// Neighbour discovery, the router's DNS, multicast DNS, SSDP, DHCP and the web, on a link where every port of link-local addresses is
/// protected.
fn ordinary_traffic_of_a_link_that_carries_a_zone_goes_on(world: &mut World) -> Result<()> {
    let field = Field::build(world.lab())?;
    let zone = Policy::standard(world.lab()).with(&format!("[[zone]]\nname = \"cell\"\nnetworks = [\"{NAMED}/32\"]\n"));
    let daemon = world.own(&zone)?;
    carried(&daemon)?;
    // The box routes IPv6 for others, by its link-local address as routers do.
    field.ip_engineering(&format!("route add 2001:db8:77::/48 via {LOCAL} dev {LINK}\n"))?;
    let dns = field.local(53)?;
    let scope = match dns {
        SocketAddr::V6(v6) => v6.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let mark = daemon.events().mark();
    let script = format!(
        "import socket, struct, sys\n\
         link = {scope}\n\
         def send(family, address, port, kind=socket.SOCK_DGRAM):\n\
         \x20   s = socket.socket(family, kind)\n\
         \x20   s.settimeout(5)\n\
         \x20   if family == socket.AF_INET6 and kind == socket.SOCK_DGRAM:\n\
         \x20       s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, link)\n\
         \x20   elif family == socket.AF_INET:\n\
         \x20       s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\n\
         \x20       s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'{LINK}')\n\
         \x20   to = (address, port, 0, link) if family == socket.AF_INET6 else (address, port)\n\
         \x20   if kind == socket.SOCK_STREAM:\n\
         \x20       s.connect(to)\n\
         \x20   else:\n\
         \x20       s.sendto(b'x', to)\n\
         v4, v6 = socket.AF_INET, socket.AF_INET6\n\
         send(v6, 'ff02::fb', 5353)\n\
         send(v4, '224.0.0.251', 5353)\n\
         send(v6, 'ff02::c', 1900)\n\
         send(v4, '239.255.255.250', 1900)\n\
         send(v6, 'ff02::1:2', 547)\n\
         send(v4, '255.255.255.255', 67)\n\
         send(v6, '{LOCAL}', 53)\n\
         send(v6, '{LOCAL}', 53, socket.SOCK_STREAM)\n\
         ndp = socket.socket(v6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)\n\
         ndp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)\n\
         ndp.sendto(bytes([135, 0, 0, 0]) + bytes(4) + socket.inet_pton(v6, '{LOCAL}'), ('{LOCAL}', 0, 0, link))\n\
         print('{{\"done\": true}}')\n"
    );
    let python = pp_tests::paths::python()?.display().to_string();
    wait::until_true("the exemption of the router's DNS", wait::SOON, || {
        let words = attack::workload(daemon.lab(), &["try", "udp-sendto", &dns.to_string()], dns);
        By::run(AGENT).attempt(&daemon, &words).is_ok_and(|answer| answer == Answer::Delivered)
    })?;
    let mark = mark.max(daemon.events().mark());
    let output = By::run(AGENT).run_words(&daemon, &[python, "-c".into(), script])?;
    ensure!(output.status.success() && output.json()?["done"] == true, "{output}");
    for target in [WEB, "[2001:db8:113::10]:80".parse()?] {
        let answer = By::run(AGENT).attempt(&daemon, &attack::tcp(daemon.lab(), target))?;
        ensure!(answer == Answer::Delivered, "{target}: {answer:?}");
    }
    // Its own link-local address is nobody else's.
    let events: Vec<Value> = daemon.events().of_sessions_since(mark).into_iter().filter(|event| is_verdict(event, "block")).collect();
    ensure!(events.is_empty(), "ordinary traffic was refused: {events:?}");
    // All else there is refused.
    let _event = refused(&daemon, &field, &on(&daemon, "tcp-connect", field.local(OTHER_PORT)?))?;
    let _event = refused(&daemon, &field, &on(&daemon, "udp-sendto", field.local(OTHER_PORT)?))?;
    let answer = By::run(AGENT).attempt(&daemon, &attack::tcp(daemon.lab(), PLC_V6))?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{answer:?}");
    Ok(())
}
