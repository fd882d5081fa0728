//! The four network namespaces and the links between them.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};

use super::{FRESH_NETWORK, FRESH_NETWORK_V6, Lab, OFFICE_NETWORK, OFFICE_NETWORK_V6, Place, STRAY_NETWORK};

/// Hardware address of the router's end of the engineering link; the packet-socket workload addresses its frames to it.
const ROUTER_MAC: &str = "02:00:00:00:63:01";
/// Addresses of the plant's hosts, all on one namespace.
const PLANT: [&str; 9] = [
    "10.20.4.7/32",
    "10.20.4.8/32",
    "10.20.4.9/32",
    "10.20.5.5/32",
    "10.30.4.9/32",
    "10.30.4.10/32",
    "10.40.0.5/32",
    "fd00:20::7/128",
    // A server outside every zone: unlike by IPv4, a route to a whole network does not let it have an address of that.
    "fd00:50::fe/128",
];
/// Addresses of the IT side's hosts.
const IT: [&str; 4] = ["198.51.100.10/32", "198.51.100.22/32", "198.51.100.53/32", "203.0.113.10/32"];
/// The networks that stand in for the internet: each address of them answers, with a refusal where it has no server.
const INTERNET: [&str; 3] = ["198.51.100.0/24", "203.0.113.0/24", "2001:db8:113::/64"];

/// Builds all four.
pub(super) fn build(lab: &Lab) -> Result<()> {
    for place in Place::ALL {
        ip(&["netns", "add", &lab.namespace(place)], "")?;
        // Nobody asks for routers: what the tests count is nobody's but theirs.
        set(lab, place, "net/ipv6/conf/default/router_solicitations", "0")?;
    }
    let mut links = String::new();
    for (place, network, mac) in
        [(Place::Engineering, 99, format!(" address {ROUTER_MAC}")), (Place::Plant, 98, String::new()), (Place::It, 97, String::new())]
    {
        writeln!(links, "link add {0}{mac} type veth peer name eth0 netns {1}", place.suffix(), lab.namespace(place))?;
        writeln!(links, "address add 10.{network}.0.1/24 dev {}", place.suffix())?;
        writeln!(links, "address add fd00:{network}::1/64 dev {} nodad", place.suffix())?;
        writeln!(links, "link set {} up", place.suffix())?;
        let mut inside = format!(
            "link set lo up\naddress add 10.{network}.0.2/24 dev eth0\naddress add fd00:{network}::2/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via 10.{network}.0.1\nroute add ::/0 via fd00:{network}::1\n"
        );
        let hosts: &[&str] = match place {
            Place::Plant => &PLANT,
            Place::It => &IT,
            Place::Engineering | Place::Router => &[],
        };
        for host in hosts {
            writeln!(inside, "address add {host} dev lo{}", if host.contains(':') { " nodad" } else { "" })?;
        }
        let networks: &[&str] = match place {
            Place::Plant => &[FRESH_NETWORK, FRESH_NETWORK_V6, STRAY_NETWORK, OFFICE_NETWORK, OFFICE_NETWORK_V6],
            Place::It => &INTERNET,
            Place::Engineering | Place::Router => &[],
        };
        for network in networks {
            writeln!(inside, "route add local {network} dev lo")?;
        }
        // The router's ends come first: each link is made in the router and its peer moved at once.
        ip(&["-n", &lab.namespace(Place::Router), "-batch", "-"], &links)?;
        links.clear();
        ip(&["-n", &lab.namespace(place), "-batch", "-"], &inside)?;
    }
    let routes = "link set lo up\nroute add 10.20.0.0/16 via 10.98.0.2\nroute add 10.30.0.0/16 via 10.98.0.2\nroute add 10.40.0.0/16 via 10.98.0.2\nroute add 10.50.0.0/16 via 10.98.0.2\n\
                  route add fd00:20::/32 via fd00:98::2\nroute add fd00:50::/64 via fd00:98::2\nroute add 198.51.100.0/24 via 10.97.0.2\n\
                  route add 203.0.113.0/24 via 10.97.0.2\nroute add 2001:db8:113::/64 via fd00:97::2\n";
    ip(&["-n", &lab.namespace(Place::Router), "-batch", "-"], routes)?;
    set(lab, Place::Router, "net/ipv4/ip_forward", "1")?;
    set(lab, Place::Router, "net/ipv6/conf/all/forwarding", "1")?;
    // A router that heeds source routes, as old ones did.
    for interface in ["all", "eng", "plant"] {
        set(lab, Place::Router, &format!("net/ipv4/conf/{interface}/accept_source_route"), "1")?;
    }
    set(lab, Place::Plant, "net/ipv4/tcp_fastopen", "3")?;
    set(lab, Place::Engineering, "net/ipv4/ping_group_range", "0 2147483647")
}

/// Writes one kernel setting in a place.
fn set(lab: &Lab, place: Place, name: &str, value: &str) -> Result<()> {
    let script = format!("echo {value} > /proc/sys/{name}");
    let output = lab.command(place, &["/bin/sh", "-c", &script]).output()?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A UDP socket in a namespace, made by a thread that goes there and ends: it stays there and can be used from here.
pub(super) fn socket_in(namespace: &Path) -> Result<UdpSocket> {
    let there = File::open(namespace).with_context(|| namespace.display().to_string())?;
    let made = thread::spawn(move || -> Result<UdpSocket> {
        setns(there, CloneFlags::CLONE_NEWNET)?;
        Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?)
    });
    made.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?.context("a socket in the lab")
}

/// Removes a namespace if it is there.
pub(super) fn remove(name: &str) {
    if let Err(error) = ip(&["netns", "delete", name], "") {
        eprintln!("{error:#}");
    }
}

pub(super) fn ip(arguments: &[&str], batch: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("ip: could not be started; the lab needs iproute2")?;
    child.stdin.take().context("no standard input")?.write_all(batch.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
