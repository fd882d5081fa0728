//! Who spoke first over UDP: a server of an agent answers its clients whatever their source port, and nobody becomes an OT device's server
//! by hearing what the device tells everybody, or what it forges itself.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};
use pp_tests::agent::Daemon;
use pp_tests::attack;
use pp_tests::harness::{By, Refusal, catch_up, is_block, is_verdict};
use pp_tests::lab::field::{Field, GLOBAL, LINK, NAMED};
use pp_tests::lab::{ENGINEERING, Place, STRAY_MODBUS};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run::{self, Running};
use pp_tests::wait;
use serde_json::Value;

use crate::world::{World, tests};

tests![
    device_that_tells_everybody_was_not_asked_by_it,
    device_that_tells_everybody_by_ipv6_was_not_asked_by_it,
    datagram_from_a_socket_bound_to_the_device_is_none_of_its,
    datagram_from_a_socket_bound_to_the_device_is_none_of_its_by_ipv6,
    datagram_that_the_interface_hands_back_is_none_of_the_devices,
    datagram_that_the_interface_hands_back_is_none_of_the_devices_by_ipv6,
    datagram_from_a_raw_socket_is_none_of_the_devices,
    datagram_from_a_raw_socket_is_none_of_the_devices_by_ipv6,
    datagram_that_comes_back_by_a_second_link_is_none_of_the_devices,
    datagram_that_comes_back_by_a_second_link_is_none_of_the_devices_by_ipv6,
    network_of_a_session_with_the_same_interface_number_hears_for_nobody,
    raw_socket_hears_for_nobody,
    client_forged_through_loopback_is_not_answered,
    server_answers_two_thousand_clients_from_every_ot_port,
    server_that_connects_to_its_client_answers_an_ot_port,
];

/// BACnet, which devices send from and to.
const BACNET: u16 = 47_808;
/// A port of nobody's, for servers of agents.
const ORDINARY: u16 = 9_001;
/// A device outside every zone, and one by IPv6.
const DEVICE: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 40, 0, 5)), BACNET);
const DEVICE_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, 7)), BACNET);
const OWN_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 2));

/// Every UDP port of the service table, those that clash with ordinary IT too, and two that are protected over TCP alone.
const OT_PORTS: &str = "102,502,789,802,1089,1090,1091,1153,1217,1234,1235,1628,1629,1740,1741,1742,1743,1883,1911,1962,2221,2222,2223,\
                        2404,2455,2540,2541,3622,3671,4000,4712,4713,4800,4840,4843,4911,5006,5007,5094,5413,8883,9600,11001,18246,19999,\
                        20000,20256,20257,20547,34962,34963,34964,34980,44818,47808,47809,47810,47811,47812,47813,47814,47815,47816,\
                        47817,47818,47819,47820,47821,47822,47823,48899,55000,55001,55002,55003";

/// Something that the device sends by itself, until what is returned is dropped.
fn speaking(daemon: &Daemon, device: SocketAddr, to: SocketAddr) -> Result<Running> {
    let words = attack::workload(daemon.lab(), &["peers", "speak", &device.to_string(), &to.to_string()], device).words;
    let mut running = Running::start(&mut daemon.lab().command(Place::Plant, &words))?;
    let _ready = running.line_with("ready")?;
    Ok(running)
}

/// Hearing at that port and writing back is refused, with its event, and nothing arrives; nobody's does the same and arrives.
fn refused(daemon: &Daemon, device: SocketAddr, port: u16, forge: &[&str]) -> Result<()> {
    let (any, own) = match device {
        SocketAddr::V4(_) => ("0.0.0.0".to_owned(), ENGINEERING),
        SocketAddr::V6(_) => ("[::]".to_owned(), OWN_V6),
    };
    let (listen, device_text, own) = (format!("{any}:{port}"), device.to_string(), own.to_string());
    let mut words = vec!["peers", "hear", &listen, &device_text];
    if !forge.is_empty() {
        words.extend(["--own", &own, "--forge"]);
        words.extend(forge);
    }
    let attempt = attack::workload(daemon.lab(), &words, device);
    let event = Refusal::of(attempt, By::run(AGENT)).with_control(By::Nobody).assert(daemon)?;
    ensure!(event["service"] == "bacnet", "{event}");
    Ok(())
}

fn device_that_tells_everybody_was_not_asked_by_it(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let _device = speaking(daemon, DEVICE, SocketAddr::new(ENGINEERING, BACNET))?;
    refused(daemon, DEVICE, BACNET, &[])
}

fn device_that_tells_everybody_by_ipv6_was_not_asked_by_it(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let _device = speaking(daemon, DEVICE_V6, SocketAddr::new(OWN_V6, BACNET))?;
    refused(daemon, DEVICE_V6, BACNET, &[])
}

fn datagram_from_a_socket_bound_to_the_device_is_none_of_its(world: &mut World) -> Result<()> {
    refused(world.daemon()?, DEVICE, ORDINARY, &["bound"])
}

fn datagram_from_a_socket_bound_to_the_device_is_none_of_its_by_ipv6(world: &mut World) -> Result<()> {
    refused(world.daemon()?, DEVICE_V6, ORDINARY, &["bound"])
}

fn datagram_that_the_interface_hands_back_is_none_of_the_devices(world: &mut World) -> Result<()> {
    refused(world.daemon()?, DEVICE, ORDINARY, &["looped"])
}

fn datagram_that_the_interface_hands_back_is_none_of_the_devices_by_ipv6(world: &mut World) -> Result<()> {
    refused(world.daemon()?, DEVICE_V6, ORDINARY, &["looped"])
}

fn datagram_from_a_raw_socket_is_none_of_the_devices(world: &mut World) -> Result<()> {
    refused(world.daemon()?, DEVICE, ORDINARY, &["raw"])
}

fn datagram_from_a_raw_socket_is_none_of_the_devices_by_ipv6(world: &mut World) -> Result<()> {
    refused(world.daemon()?, DEVICE_V6, ORDINARY, &["raw"])
}

fn datagram_that_comes_back_by_a_second_link_is_none_of_the_devices(world: &mut World) -> Result<()> {
    forged_over_a_link(world, "0.0.0.0:9001", SocketAddr::new(NAMED, BACNET))
}

fn datagram_that_comes_back_by_a_second_link_is_none_of_the_devices_by_ipv6(world: &mut World) -> Result<()> {
    forged_over_a_link(world, "[::]:9001", SocketAddr::new(GLOBAL, BACNET))
}

/// Two interfaces of this host on the device's link: what is sent by the one comes in by the other.
fn forged_over_a_link(world: &mut World, listen: &str, device: SocketAddr) -> Result<()> {
    let field = Field::build(world.lab())?;
    field.ip_engineering(&format!(
        "link add mv0 link {LINK} type macvlan mode bridge\nlink add mv1 link {LINK} type macvlan mode bridge\n\
         address add 10.30.0.3/24 dev mv0\naddress add fd00:31::3/64 dev mv0 nodad\nlink set mv0 up\n\
         address add 10.30.0.4/24 dev mv1\naddress add fd00:31::4/64 dev mv1 nodad\nlink set mv1 up\n"
    ))?;
    let daemon = world.daemon()?;
    let own = if device.is_ipv4() { "10.30.0.4" } else { "fd00:31::4" };
    let words = ["peers", "hear", listen, &device.to_string(), "--own", own, "--forge", "link"];
    let words = attack::workload(daemon.lab(), &words, device).words;
    let packets = field.packets().from_now();
    let answer = By::Nobody.run_words(daemon, &words)?.success()?.json()?;
    ensure!(answer["ok"] == true, "control run: {answer}");
    wait::until_true("control run: the device's packet", wait::SOON, || !packets.packets_to(device).is_empty())?;
    field.catch_up()?;
    let (packets, mark) = (field.packets().from_now(), daemon.events().mark());
    let output = By::run(AGENT).run_words(daemon, &words)?;
    ensure!(output.json()?["errno"] == nix::libc::EPERM, "{output}");
    field.catch_up()?;
    ensure!(packets.packets_to(device).is_empty(), "the device was reached");
    let event = daemon.events().wait_since(mark, "its event", |event| is_block(event, device))?;
    ensure!(event["service"] == "bacnet", "{event}");
    Ok(())
}

/// In a network of its own the session gives an interface the number that this host's has, has a frame of the device's come in by it, and
/// answers from here. Prints whether the frame could be made, and how the answer went.
const SAME_NUMBER: &str = r#"
import ctypes, json, os, socket, struct, subprocess, sys
device, port, number = sys.argv[1], 9031, socket.if_nametoindex(sys.argv[2])
child = os.fork()
if child == 0:
    if ctypes.CDLL(None).unshare(0x40000000) != 0:
        os._exit(2)
    for words in ("link set lo up", f"link add n0 index {number} type veth peer name n1", "address add 10.123.0.1/24 dev n0",
                  "link set n0 up", "link set n1 up", "route add default dev n0"):
        subprocess.run(["ip"] + words.split(), check=True)
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("0.0.0.0", port))
    listener.settimeout(10)
    try:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError:
        os._exit(3)
    wire.bind(("n1", 0))
    datagram = struct.pack("!HHHH", 47808, port, 9, 0) + b"x"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0)
    ends = socket.inet_aton(device) + socket.inet_aton("10.123.0.1")
    total = sum(struct.unpack("!10H", head + ends))
    total = (total & 0xffff) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xffff)
    link = json.loads(subprocess.run(["ip", "-json", "link", "show", "n0"], capture_output=True, check=True).stdout)
    mac = bytes.fromhex(link[0]["address"].replace(":", ""))
    wire.send(mac + b"\x02\0\0\0\0\x09" + b"\x08\0" + head + ends + datagram)
    _, who = listener.recvfrom(100)
    os._exit(0 if who == (device, 47808) else 4)
forged = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
answer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
answer.bind(("0.0.0.0", port))
errno = 0
try:
    answer.sendto(b"x", (device, 47808))
except OSError as error:
    errno = error.errno
print(json.dumps({"forged": forged, "errno": errno}))
"#;

fn network_of_a_session_with_the_same_interface_number_hears_for_nobody(world: &mut World) -> Result<()> {
    // The number of its link is free in a new network: those of this kernel's own links are lower.
    let field = Field::build(world.lab())?;
    let device = SocketAddr::new(NAMED, BACNET);
    let daemon = world.daemon()?;
    let python = pp_tests::paths::python()?.display().to_string();
    let words = [python, "-c".to_owned(), SAME_NUMBER.to_owned(), NAMED.to_string(), LINK.to_owned()];
    let packets = field.packets().from_now();
    let answer = By::Nobody.run_words(daemon, &words)?.success()?.json()?;
    ensure!(answer["forged"] == 0 && answer["errno"] == 0, "control run: {answer}");
    wait::until_true("control run: the answer", wait::SOON, || !packets.packets_to(device).is_empty())?;
    field.catch_up()?;
    let (packets, mark) = (field.packets().from_now(), daemon.events().mark());
    let output = By::run(AGENT).run_words(daemon, &words)?;
    let answer = output.json()?;
    // Where a session may have no raw frames it cannot make one.
    let (made, not_allowed) = (answer["forged"] == 0, answer["forged"] == 3);
    ensure!((made || not_allowed) && answer["errno"] == nix::libc::EPERM, "{output}");
    field.catch_up()?;
    ensure!(packets.packets_to(device).is_empty(), "the device was reached");
    let event = daemon.events().wait_since(mark, "its event", |event| is_block(event, device))?;
    ensure!(event["service"] == "bacnet", "{event}");
    Ok(())
}

/// What a device sends to another process of this host reaches raw sockets too.
fn raw_socket_hears_for_nobody(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let _device = speaking(daemon, DEVICE, SocketAddr::new(ENGINEERING, ORDINARY))?;
    let attempt = attack::workload(daemon.lab(), &["peers", "hear-raw", &DEVICE.to_string()], DEVICE);
    let event = Refusal::of(attempt, By::run(AGENT)).with_control(By::Nobody).assert(daemon)?;
    ensure!(event["service"] == "bacnet", "{event}");
    Ok(())
}

/// A listener that a device seems to connect to would send it a packet.
fn client_forged_through_loopback_is_not_answered(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let lab = daemon.lab();
    let words = attack::workload(lab, &["peers", "dial", "10.99.0.2:9003", &STRAY_MODBUS.to_string()], STRAY_MODBUS).words;
    let plant = lab.plant().from_now();
    let _told = By::Nobody.run_words(daemon, &words)?.success()?;
    wait::until_true("control run: the listener's answer", wait::SOON, || !plant.packets_to(STRAY_MODBUS).is_empty())?;
    catch_up(lab)?;
    let (plant, mark) = (lab.plant().from_now(), daemon.events().mark());
    let _told = By::run(AGENT).run_words(daemon, &words)?.success()?;
    catch_up(lab)?;
    let packets = plant.packets_to(STRAY_MODBUS);
    ensure!(packets.is_empty(), "the device was answered: {packets:?}");
    let event = daemon.events().wait_since(mark, "its event", |event| is_block(event, STRAY_MODBUS))?;
    ensure!(event["hook"] == "ingress" && event["service"] == "modbus", "{event}");
    Ok(())
}

/// Name servers, QUIC and a mere port: each answers late, when a hundred others have asked. The clients are internal, where the behaviour
/// rules count what a session begins.
fn server_answers_two_thousand_clients_from_every_ot_port(world: &mut World) -> Result<()> {
    let policy = Policy::shipped(world.lab()).replacing("[services]\n", "[services]\nenable = [\"*\"]\n");
    let daemon = world.afresh(&policy)?;
    let lab = daemon.lab();
    let mark = daemon.events().mark();
    let words = attack::workload(lab, &["peers", "answer", "0.0.0.0:53", "[::]:443", "0.0.0.0:8125"], DEVICE).words;
    let mut process = Running::start(&mut lab.command(Place::Engineering, &By::run(AGENT).words(daemon, &words)))?;
    let _ready = process.line_with("ready")?;
    let mut clients = 0;
    for (server, first) in [
        (SocketAddr::new(ENGINEERING, 53), "10.50.64.1"),
        (SocketAddr::new(ENGINEERING, 443), "10.50.65.1"),
        (SocketAddr::new(ENGINEERING, 8_125), "10.50.66.1"),
        (SocketAddr::new(OWN_V6, 443), "fd00:50::6000:1"),
    ] {
        let words = ["peers", "ask", &server.to_string(), first, "--hosts", "7", "--ports", OT_PORTS];
        let answer = run::run(&mut lab.command(Place::Plant, &attack::workload(lab, &words, DEVICE).words))?.json()?;
        ensure!(answer["answered"] == answer["asked"], "{server}: {answer}; {}", process.stderr());
        clients += answer["answered"].as_u64().unwrap_or_default();
    }
    ensure!(clients >= 2_000, "only {clients} clients");
    let told: Vec<Value> =
        daemon.events().since(mark).into_iter().filter(|event| is_verdict(event, "block") || is_verdict(event, "observe")).collect();
    ensure!(told.is_empty(), "serving made events: {told:?}");
    ensure!(!process.stderr().contains("to "), "{}", process.stderr());
    Ok(())
}

/// As TLS over UDP serves: the first datagram comes to one socket, and the same or another on its port is connected to who sent it.
fn server_that_connects_to_its_client_answers_an_ot_port(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let lab = daemon.lab();
    let mark = daemon.events().mark();
    for (port, family, first) in [(9_011, "0.0.0.0", "10.50.67.1"), (9_021, "[::]", "fd00:50::6700:1")] {
        for (port, options) in [(port, vec![]), (port + 1, vec!["--sibling"])] {
            let listen = format!("{family}:{port}");
            let words = [vec!["peers", "accept", &listen], options].concat();
            let words = attack::workload(lab, &words, DEVICE).words;
            let mut process = Running::start(&mut lab.command(Place::Engineering, &By::run(AGENT).words(daemon, &words)))?;
            let _ready = process.line_with("ready")?;
            let server = SocketAddr::new(if family == "[::]" { OWN_V6 } else { ENGINEERING }, port);
            let ask = ["peers", "ask", &server.to_string(), first, "--hosts", "1", "--ports", &BACNET.to_string()];
            let answer = run::run(&mut lab.command(Place::Plant, &attack::workload(lab, &ask, DEVICE).words))?.json()?;
            ensure!(answer["answered"] == 1, "{server}: {answer}; {}", process.stdout());
        }
    }
    let told: Vec<Value> = daemon.events().since(mark).into_iter().filter(|event| is_verdict(event, "block")).collect();
    ensure!(told.is_empty(), "serving made events: {told:?}");
    Ok(())
}
