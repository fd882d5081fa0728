//! Broadcast and multicast on a link that carries a zone reach its devices: they are judged as the zone. Another link's are nobody's, and
//! finding out who is there goes on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use anyhow::{Result, ensure};
use nix::libc;
use pp_tests::attack::{self, Answer, Attempt};
use pp_tests::forge::Draft;
use pp_tests::harness::{By, is_verdict};
use pp_tests::lab::field::{Field, NAMED, OTHER_PORT, PORT};
use pp_tests::policy::{AGENT, Policy};
use serde_json::Value;

use crate::neighbours::{carried, delivered, refused};
use crate::receipts::Registered;
use crate::world::{World, tests};

tests![
    limited_broadcast_on_a_link_that_carries_a_zone_is_refused,
    directed_broadcast_of_a_link_that_carries_a_zone_is_refused,
    group_of_all_hosts_on_a_link_that_carries_a_zone_is_refused,
    group_of_all_nodes_by_ipv6_on_a_link_that_carries_a_zone_is_refused,
    receipt_for_everybody_on_a_link_opens_that_and_nothing_else,
    discovery_and_other_links_go_on,
];

/// Every host of a link, and the directed broadcast of the zone's link, of which the zone is a single address.
const LIMITED: IpAddr = IpAddr::V4(Ipv4Addr::BROADCAST);
const DIRECTED: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 30, 0, 255));
const ALL_HOSTS: IpAddr = IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1));
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// This host on the link of the zone, and on one that carries nothing.
const HERE: Ipv4Addr = Ipv4Addr::new(10, 30, 0, 2);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// Sends a datagram from an address of the link, which is how the kernel knows the link before anybody is asked.
const SEND: &str = r#"
import json, socket, sys
to, port, source, link = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
try:
    if ":" in to:
        s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        s.sendto(b"pp", (to, port, 0, link))
    else:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        s.bind((source, 0))
        s.sendto(b"pp", (to, port))
    print(json.dumps({"ok": True}))
except OSError as error:
    print(json.dumps({"ok": False, "errno": error.errno}))
"#;

/// The standard policy with the box as a zone of its own, which the standard authority may open.
fn policy(world: &World) -> Policy {
    Policy::standard(world.lab())
        .replacing("zones = [\"plant-7\"]", "zones = [\"plant-7\", \"cell\"]")
        .with(&format!("[[zone]]\nname = \"cell\"\nnetworks = [\"{NAMED}/32\"]\n"))
}

/// A datagram to this address and port, over the link that has `source`.
fn datagram(target: SocketAddr, source: Ipv4Addr) -> Result<Attempt> {
    let link = match target {
        SocketAddr::V6(v6) => v6.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let python = pp_tests::paths::python()?.display().to_string();
    let words = [&python, "-c", SEND, &target.ip().to_string(), &target.port().to_string(), &source.to_string(), &link.to_string()];
    Ok(attack::tool(&words, target).answering_json().named("datagram"))
}

/// Every node of the box's link.
fn all_nodes(field: &Field, port: u16) -> Result<SocketAddr> {
    let scope = match field.local(port)? {
        SocketAddr::V6(v6) => v6.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    Ok(SocketAddrV6::new(ALL_NODES, port, 0, scope).into())
}

fn is_refused(world: &mut World, target: impl Fn(&Field, u16) -> Result<SocketAddr>) -> Result<()> {
    let field = Field::build(world.lab())?;
    let policy = policy(world);
    let daemon = world.sharing(&policy)?;
    carried(daemon)?;
    for port in [PORT, OTHER_PORT] {
        let event = refused(daemon, &field, &datagram(target(&field, port)?, HERE)?)?;
        ensure!(event["zone"] == "cell" && event["reason"] == "no_receipt", "{event}");
    }
    let target = target(&field, PORT)?;
    let named = match target {
        SocketAddr::V6(v6) => format!("[{}%{}]:{PORT}/udp", v6.ip(), v6.scope_id()),
        SocketAddr::V4(_) => format!("{target}/udp"),
    };
    let check = daemon.cli(&["check", &named, "--agent", AGENT])?;
    ensure!(check.code() == 1 && check.stdout.contains("zone cell"), "{check}");
    Ok(())
}

fn limited_broadcast_on_a_link_that_carries_a_zone_is_refused(world: &mut World) -> Result<()> {
    is_refused(world, |_, port| Ok(SocketAddr::new(LIMITED, port)))
}

fn directed_broadcast_of_a_link_that_carries_a_zone_is_refused(world: &mut World) -> Result<()> {
    is_refused(world, |_, port| Ok(SocketAddr::new(DIRECTED, port)))
}

fn group_of_all_hosts_on_a_link_that_carries_a_zone_is_refused(world: &mut World) -> Result<()> {
    is_refused(world, |_, port| Ok(SocketAddr::new(ALL_HOSTS, port)))
}

fn group_of_all_nodes_by_ipv6_on_a_link_that_carries_a_zone_is_refused(world: &mut World) -> Result<()> {
    is_refused(world, all_nodes)
}

fn receipt_for_everybody_on_a_link_opens_that_and_nothing_else(world: &mut World) -> Result<()> {
    let field = Field::build(world.lab())?;
    let policy = policy(world);
    let daemon = world.sharing(&policy)?;
    carried(daemon)?;
    let targets =
        [SocketAddr::new(LIMITED, PORT), SocketAddr::new(DIRECTED, PORT), SocketAddr::new(ALL_HOSTS, PORT), all_nodes(&field, PORT)?];
    for (at, target) in targets.iter().enumerate() {
        let length = if target.is_ipv4() { 32 } else { 128 };
        let receipt = Registered::new(daemon, &Draft::opening(&format!("{}/{length}", target.ip()), "udp", PORT))?;
        delivered(daemon, &field, &By::run(AGENT), &datagram(*target, HERE)?)?;
        let other = targets[(at + 1) % targets.len()];
        let _event = refused(daemon, &field, &datagram(other, HERE)?)?;
        drop(receipt);
        let _event = refused(daemon, &field, &datagram(*target, HERE)?)?;
    }
    // Whose authority does not reach the zone opens none of them.
    let _receipt = Registered::new(daemon, &Draft::opening(&format!("{ALL_HOSTS}/32"), "udp", PORT))?;
    daemon.reload(&policy.clone().replacing(", \"cell\"]", "]"))?;
    let void = daemon.client()?.get("/v1/receipts")?.ok()?;
    ensure!(void["receipts"].as_array().is_some_and(|all| all.iter().any(|one| one["status"] == "void")), "{void}");
    let _event = refused(daemon, &field, &datagram(SocketAddr::new(ALL_HOSTS, PORT), HERE)?)?;
    daemon.reload(&policy)
}

fn discovery_and_other_links_go_on(world: &mut World) -> Result<()> {
    let field = Field::build(world.lab())?;
    let policy = policy(world);
    let daemon = world.sharing(&policy)?;
    carried(daemon)?;
    let mark = daemon.events().mark();
    for (address, port) in [("224.0.0.251", 5353), ("239.255.255.250", 1900), ("255.255.255.255", 67), ("224.0.0.252", 5355)] {
        delivered(daemon, &field, &By::run(AGENT), &datagram(SocketAddr::new(address.parse()?, port), HERE)?)?;
    }
    delivered(daemon, &field, &By::run(AGENT), &datagram(all_nodes(&field, 5353)?, HERE)?)?;
    for address in [LIMITED, ALL_HOSTS] {
        let answer = By::run(AGENT).attempt(daemon, &datagram(SocketAddr::new(address, PORT), ELSEWHERE)?)?;
        ensure!(answer == Answer::Delivered, "{address} on a link that carries nothing: {answer:?}");
    }
    let events: Vec<Value> = daemon.events().of_sessions_since(mark).into_iter().filter(|event| is_verdict(event, "block")).collect();
    ensure!(events.is_empty(), "ordinary traffic was refused: {events:?}");
    let answer = By::run(AGENT).attempt(daemon, &datagram(SocketAddr::new(LIMITED, 68), HERE)?)?;
    ensure!(answer == Answer::Refused(libc::EPERM), "an answer of DHCP: {answer:?}");
    Ok(())
}
