//! A second link of the engineering network: one box on it, which is the gateway that policy names and has further addresses.
//!
//! ```text
//!   engineering 10.30.0.2, fd00:31::2, fe80::2 ── field0 ── 10.30.0.50 (the gateway), 10.30.0.51, fd00:31::50, fe80::50
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use uuid::Uuid;

use super::{Journal, Lab, Place, netns};
use crate::run::{self, Running};

/// The engineering end of the link.
pub const LINK: &str = "field0";
/// The gateway's address in policy.
pub const NAMED: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 30, 0, 50));
/// A further IPv4 address of the same box.
pub const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 30, 0, 51));
/// An IPv6 address of the same box.
pub const GLOBAL: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, 0x50));
/// Its link-local address.
pub const LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x50);
/// Its hardware address.
pub const MAC: &str = "02:00:00:00:30:50";
/// The gateway's port in policy.
pub const PORT: u16 = 443;
/// A port that policy does not name.
pub const OTHER_PORT: u16 = 8080;

/// Announcements that the box puts on the wire (RFC 826, RFC 4861): each word is `ADDRESS=MAC`.
const ANNOUNCE: &str = r#"
import socket, struct, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
wire.bind(("eth0", 0))
def arp(ip, mac):
    ip = socket.inet_aton(ip)
    return b"\xff" * 6 + mac + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 2) + mac + ip + mac + ip
def advertisement(ip, mac):
    ip, everybody = socket.inet_pton(socket.AF_INET6, ip), socket.inet_pton(socket.AF_INET6, "ff02::1")
    option = b"\x02\x01" + mac
    body = lambda sum: struct.pack("!BBHI", 136, 0, sum, 0x20000000) + ip + option
    words = ip + everybody + struct.pack("!II", len(body(0)), 58) + body(0)
    sum = sum_of(words)
    packet = struct.pack("!IHBB", 0x60000000, len(body(0)), 58, 255) + ip + everybody + body(sum)
    return b"\x33\x33\x00\x00\x00\x01" + mac + b"\x86\xdd" + packet
def sum_of(words):
    total = sum(struct.unpack("!%dH" % (len(words) // 2), words))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
for word in sys.argv[1:]:
    ip, mac = word.split("=")
    mac = bytes.fromhex(mac.replace(":", ""))
    wire.send((advertisement if ":" in ip else arp)(ip, mac))
"#;

/// The box, until dropped.
pub struct Field {
    lab: Arc<Lab>,
    name: String,
    log: PathBuf,
    tap: PathBuf,
    marker: UdpSocket,
    _servers: [Running; 2],
}

impl Field {
    /// Puts the box on the link and starts its servers: every address has TCP and UDP on both ports.
    ///
    /// # Errors
    /// A namespace or a server could not be made.
    pub fn build(lab: &Arc<Lab>) -> Result<Self> {
        let name = format!("{}field", lab.prefix);
        netns::ip(&["netns", "add", &name], "")?;
        Self::furnish(lab, &name).inspect_err(|_| remove(lab, &name))
    }

    fn furnish(lab: &Arc<Lab>, name: &str) -> Result<Self> {
        let engineering = lab.namespace(Place::Engineering);
        let links = format!(
            "link add {LINK} type veth peer name eth0 address {MAC} netns {name}\nlink set {LINK} addrgenmode none\n\
             address add 10.30.0.2/24 dev {LINK}\naddress add fd00:31::2/64 dev {LINK} nodad\naddress add fe80::2/64 dev {LINK} nodad\n\
             link set {LINK} up\n"
        );
        netns::ip(&["-n", &engineering, "-batch", "-"], &links)?;
        let inside = "link set lo up\nlink set eth0 addrgenmode none\naddress add 10.30.0.50/24 dev eth0\naddress add 10.30.0.51/24 dev eth0\n\
                      address add fd00:31::50/64 dev eth0 nodad\naddress add fe80::50/64 dev eth0 nodad\nlink set eth0 up\n";
        netns::ip(&["-n", name, "-batch", "-"], inside)?;
        let (log, tap) = (lab.directory().join("field.jsonl"), lab.directory().join("field-tap.jsonl"));
        for file in [&log, &tap] {
            std::fs::write(file, "")?;
        }
        let program = lab.program("pp-workload").display().to_string();
        let mut sink = vec![program.clone(), "sink".into(), "--log".into(), log.display().to_string()];
        sink.extend([PORT, OTHER_PORT, 53].iter().flat_map(|port| [format!("tcp:[::]:{port}"), format!("udp:[::]:{port}")]));
        let tap_words = vec![program, "tap".into(), "--log".into(), tap.display().to_string()];
        let namespace = PathBuf::from("/run/netns").join(name);
        let mut servers =
            [Running::start(&mut lab.command_in(&namespace, &sink))?, Running::start(&mut lab.command_in(&namespace, &tap_words))?];
        for server in &mut servers {
            let _ready = server.line_with("ready").context("the field's servers")?;
        }
        let marker = netns::socket_in(&lab.netns(Place::Engineering))?;
        Ok(Self { lab: Arc::clone(lab), name: name.to_owned(), log, tap, marker, _servers: servers })
    }

    /// The gateway's link-local address on the engineering end of the link.
    ///
    /// # Errors
    /// The link is gone.
    pub fn local(&self, port: u16) -> Result<SocketAddr> {
        let shown =
            run::run(Command::new("ip").args(["-n", &self.lab.namespace(Place::Engineering), "-o", "link", "show", LINK]))?.success()?;
        let index = shown.stdout.split(':').next().unwrap_or_default().trim().parse()?;
        Ok(SocketAddr::V6(SocketAddrV6::new(LOCAL, port, 0, index)))
    }

    /// Waits until its tap has logged everything that was sent before now.
    ///
    /// # Errors
    /// The tap does not answer.
    pub fn catch_up(&self) -> Result<()> {
        let (mark, packets) = (Uuid::new_v4().to_string(), self.packets().from_now());
        let _sent = self.marker.send_to(mark.as_bytes(), (NAMED, 9))?;
        let _line = packets.wait_for("a mark in the field's log", |line| line["text"] == mark.as_str())?;
        Ok(())
    }

    /// Runs a command in the engineering network and returns what it printed.
    ///
    /// # Errors
    /// It failed.
    pub fn engineering(&self, words: &[&str]) -> Result<String> {
        Ok(run::run(&mut self.lab.command(Place::Engineering, words))?.success()?.stdout)
    }

    /// Runs a command on the box and returns what it printed.
    ///
    /// # Errors
    /// It failed.
    pub fn on_box(&self, words: &[&str]) -> Result<String> {
        Ok(run::run(&mut self.lab.command_in(&Path::new("/run/netns").join(&self.name), words))?.success()?.stdout)
    }

    /// Lines of `ip -batch` in the engineering network.
    ///
    /// # Errors
    /// One of them failed.
    pub fn ip_engineering(&self, lines: &str) -> Result<()> {
        netns::ip(&["-n", &self.lab.namespace(Place::Engineering), "-batch", "-"], lines)
    }

    /// Lines of `ip -batch` on the box.
    ///
    /// # Errors
    /// One of them failed.
    pub fn ip_on_box(&self, lines: &str) -> Result<()> {
        netns::ip(&["-n", &self.name, "-batch", "-"], lines)
    }

    /// Has the box announce addresses with hardware addresses, each `ADDRESS=MAC`.
    ///
    /// # Errors
    /// The frames cannot be sent.
    pub fn announce(&self, words: &[String]) -> Result<()> {
        let python = crate::paths::python()?.display().to_string();
        let mut all = vec![python.as_str(), "-c", ANNOUNCE];
        all.extend(words.iter().map(String::as_str));
        self.on_box(&all).map(drop)
    }

    /// What its servers got.
    #[must_use]
    pub fn servers(&self) -> Journal {
        Journal::new(self.log.clone())
    }

    /// The packets that arrived at it.
    #[must_use]
    pub fn packets(&self) -> Journal {
        Journal::new(self.tap.clone())
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        remove(&self.lab, &self.name);
    }
}

/// Removes the link first: it would go some time after its namespace.
fn remove(lab: &Lab, name: &str) {
    if let Err(error) = netns::ip(&["-n", &lab.namespace(Place::Engineering), "link", "delete", LINK], "") {
        eprintln!("{error:#}");
    }
    netns::remove(name);
}
