//! The world the suite runs in: an engineering network where agents run, a plant behind a router, and an IT side that stands in for the internet.
//!
//! ```text
//!   engineering 10.99.0.2 ── router ── plant  10.20.4.7, 10.20.4.8 (Modbus), 10.20.5.5 (OPC UA), fd00:20::7, 10.30.4.9 (gateway), 10.40.0.5,
//!                               │            10.50.0.0/16, fd00:50::/64 (the office: internal, not protected), 10.50.0.53 (DNS)
//!                               └───── it     198.51.100.0/24, 203.0.113.0/24, 2001:db8:113::/64 (web), 198.51.100.22 (git over SSH),
//!                                             .53 (DNS)
//! ```
//!
//! Four network namespaces with names of their own hold it. The program that builds the lab moves into an empty namespace first
//! ([`leave_the_network`]), so that nothing it runs by mistake outside the lab can send a packet anywhere. All addresses are the lab's own.

pub mod field;
mod folder;
mod journal;
mod netns;
mod repository;
mod servers;
mod sweep;

pub use journal::{Journal, Packet};
pub(crate) use sweep::PINS;
pub use sweep::sweep;

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::{fs, process};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, unshare};

use crate::paths;
use crate::run::Running;

const fn v4(a: u8, b: u8, c: u8, d: u8, port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port))
}

const fn v6(last: u16, port: u16) -> SocketAddr {
    SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, last), port, 0, 0))
}

/// The PLC that receipts are made for.
pub const PLC: SocketAddr = v4(10, 20, 4, 7, 502);
/// The same PLC, another port with a Modbus server behind it.
pub const PLC_OTHER_PORT: SocketAddr = v4(10, 20, 4, 7, 1502);
/// Its neighbour.
pub const PLC_NEIGHBOUR: SocketAddr = v4(10, 20, 4, 8, 502);
/// A Modbus server in the zone, by IPv6.
pub const PLC_V6: SocketAddr = v6(7, 502);
/// A server that streams in both directions, in the zone.
pub const STREAM: SocketAddr = v4(10, 20, 4, 9, 7777);
/// A UDP server in the zone.
pub const UDP: SocketAddr = v4(10, 20, 4, 7, 5000);
/// The same by IPv6.
pub const UDP_V6: SocketAddr = v6(7, 5000);
/// The OPC UA server in the zone.
pub const OPCUA: SocketAddr = v4(10, 20, 5, 5, 4840);
/// The gateway's login page, and its second port.
pub const GATEWAY: SocketAddr = v4(10, 30, 4, 9, 8443);
/// The gateway's second port.
pub const GATEWAY_443: SocketAddr = v4(10, 30, 4, 9, 443);
/// Another gateway's login page: the one that tests have receipts for.
pub const GATEWAY_WEST: SocketAddr = v4(10, 30, 4, 10, 8443);
/// The gateway's address on a port that policy does not name.
pub const GATEWAY_OTHER_PORT: SocketAddr = v4(10, 30, 4, 9, 8080);
/// A Modbus server outside every zone: protected by its port alone.
pub const STRAY_MODBUS: SocketAddr = v4(10, 40, 0, 5, 502);
/// A server outside every zone on a port that is nobody's.
pub const STRAY_OTHER: SocketAddr = v4(10, 40, 0, 5, 5502);
/// An FTP server in the office that refuses every password.
pub const FTP: SocketAddr = v4(10, 50, 0, 21, 21);
/// An SSH server in the office that takes passwords, and knows nobody who has one.
pub const SSH: SocketAddr = v4(10, 50, 0, 23, 22);
/// Port on which every address of the office has a web site.
pub const OFFICE_WEB_PORT: u16 = 8000;
/// What addresses of the office begin with: internal hosts that nothing protects, each one answering (with a refusal where it has no server).
pub const OFFICE: &str = "10.50.";
/// The address of the host that the daemon and the agents run on.
pub const ENGINEERING: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2));
/// An ordinary web site.
pub const WEB: SocketAddr = v4(198, 51, 100, 10, 80);
/// Git over SSH.
pub const GIT: SocketAddr = v4(198, 51, 100, 22, 22);
/// A git server over SSH in the office.
pub const GIT_INSIDE: SocketAddr = v4(10, 50, 0, 24, 22);
/// The name server.
pub const DNS: SocketAddr = v4(198, 51, 100, 53, 53);
/// The office's name server.
pub const DNS_INSIDE: SocketAddr = v4(10, 50, 0, 53, 53);

/// Where marks for the tap go.
const MARKS: SocketAddr = v4(10, 98, 0, 2, 9);

/// Addresses in the zone that [`fresh_target`] hands out, each with a server on the port.
const FRESH_NETWORK: &str = "10.20.64.0/18";
/// Addresses in the zone by IPv6, and addresses outside every zone; each has a server on its port.
const FRESH_NETWORK_V6: &str = "fd00:20:0:1::/64";
const STRAY_NETWORK: &str = "10.40.1.0/24";
/// Port of the servers in the zone by IPv4.
pub const FRESH_PORT: u16 = 6502;
/// Port of the servers in the zone by IPv6.
pub const FRESH_PORT_V6: u16 = 6504;
/// Port of the servers outside every zone: DNP3, protected wherever it is.
pub const STRAY_PORT: u16 = 20_000;
/// The office, as a network.
const OFFICE_NETWORK: &str = "10.50.0.0/16";
const OFFICE_NETWORK_V6: &str = "fd00:50::/64";
/// How its addresses begin.
pub const OFFICE_V6: &str = "fd00:50::";
/// A second port on which all of those have a server.
pub const OTHER_FRESH_PORT: u16 = 6503;

/// A server in the zone that no test has used before: no receipt of another test, ended or not, names it.
#[must_use]
pub fn fresh_target() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    v4(10, 20, 64 + (high & 63), low, FRESH_PORT)
}

/// One network of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where the daemon and the agents run.
    Engineering,
    /// Between the others.
    Router,
    /// The protected side.
    Plant,
    /// The ordinary side.
    It,
}

impl Place {
    const ALL: [Self; 4] = [Self::Engineering, Self::Router, Self::Plant, Self::It];

    const fn suffix(self) -> &'static str {
        match self {
            Self::Engineering => "eng",
            Self::Router => "mid",
            Self::Plant => "plant",
            Self::It => "it",
        }
    }
}

/// The running lab. Dropping it ends the servers and removes the namespaces and the directory.
pub struct Lab {
    prefix: String,
    directory: PathBuf,
    servers: Vec<servers::Server>,
    marker: Option<UdpSocket>,
}

impl Lab {
    /// Builds the networks and starts the servers; returns when every one of them accepts.
    ///
    /// # Errors
    /// Not root, a tool is missing, or a server did not come up.
    pub fn start() -> Result<Self> {
        sweep()?;
        let prefix = format!("{}{}-", sweep::PREFIX, process::id());
        let directory = folder::create(&prefix)?;
        fs::create_dir_all(directory.join("bin")).with_context(|| directory.display().to_string())?;
        let mut lab = Self { prefix, directory, servers: Vec::new(), marker: None };
        lab.install_programs()?;
        netns::build(&lab)?;
        lab.servers = servers::start(&lab)?;
        lab.marker = Some(netns::socket_in(&lab.netns(Place::Engineering))?);
        Ok(lab)
    }

    /// The lab's own directory, readable by every user of the machine.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A program of the lab: `pp-agent`, `pp-workload`, and the agents (`lab-claude`, `lab-codex`, `lab-first-claude`).
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join("bin").join(name)
    }

    /// The namespace file of a place.
    #[must_use]
    pub fn netns(&self, place: Place) -> PathBuf {
        Path::new("/run/netns").join(self.namespace(place))
    }

    fn namespace(&self, place: Place) -> String {
        format!("{}{}", self.prefix, place.suffix())
    }

    /// A command that runs in that place and dies with this program.
    #[must_use]
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, place: Place, arguments: &[S]) -> Command {
        self.command_in(&self.netns(place), arguments)
    }

    fn command_in<S: AsRef<std::ffi::OsStr>>(&self, namespace: &Path, arguments: &[S]) -> Command {
        let mut command = Command::new(self.program("pp-workload"));
        command.args(["in", "--with-parent", "--netns"]).arg(namespace).arg("--").args(arguments);
        command
    }

    /// Starts one more SSH server, in a folder of its own that is named so. It opens to root with the lab's key and nothing else, at these
    /// addresses, until what is returned is dropped.
    ///
    /// # Errors
    /// It did not come up, or there is a server of this name.
    pub fn ssh_server(&self, name: &str, place: Place, addresses: &[SocketAddr]) -> Result<Running> {
        servers::ssh_with_key(self, name, place, addresses)
    }

    /// The options of an SSH client that has the lab's key and asks nobody anything.
    #[must_use]
    pub fn ssh_options(&self) -> String {
        let key = self.directory.join("git/user_key");
        format!(
            "-i {} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes -o ConnectTimeout=20",
            key.display()
        )
    }

    /// Sends a mark from the engineering network to the tap: it comes out behind everything that was sent before.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn mark(&self, text: &str) -> Result<()> {
        let _sent = self.marker.as_ref().context("the lab is not built")?.send_to(text.as_bytes(), MARKS).context("a mark for the tap")?;
        Ok(())
    }

    /// Everything that arrived in the plant, packet by packet.
    #[must_use]
    pub fn plant(&self) -> Journal {
        Journal::new(self.directory.join("tap.jsonl"))
    }

    /// What the servers of the plant saw at their sockets.
    #[must_use]
    pub fn servers(&self) -> Journal {
        Journal::new(self.directory.join("servers.jsonl"))
    }

    /// What the servers of the IT side saw at their sockets.
    #[must_use]
    pub fn it_servers(&self) -> Journal {
        Journal::new(self.directory.join("it.jsonl"))
    }

    /// How many passwords the office's SSH server has refused so far.
    #[must_use]
    pub fn ssh_guesses(&self) -> usize {
        let log = fs::read_to_string(self.directory.join("ssh/log")).unwrap_or_default();
        log.lines().filter(|line| line.contains("Failed password for")).count()
    }

    fn install_programs(&self) -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let install = |from: &Path, name: &str| -> Result<()> {
            fs::copy(from, self.program(name)).with_context(|| from.display().to_string())?;
            fs::set_permissions(self.program(name), fs::Permissions::from_mode(0o755))?;
            Ok(())
        };
        install(&paths::binary("pp-workload")?, "pp-workload")?;
        install(&paths::agent_binary()?, "pp-agent")?;
        // The agents of the tests are shims, as most real ones are: a script that becomes the command it is given.
        for agent in ["lab-claude", "lab-codex", "lab-shim"] {
            fs::write(self.program(agent), "#!/bin/sh\nexec \"$@\"\n")?;
            fs::set_permissions(self.program(agent), fs::Permissions::from_mode(0o755))?;
        }
        // Others are scripts or modules that an interpreter is given.
        for script in ["agent_cli.py", "other_cli.py"] {
            fs::write(self.program(script), "import os, sys\nos.execvp(sys.argv[1], sys.argv[1:])\n")?;
        }
        fs::write(self.program("lab-first-claude"), crate::attack::FIRST_CONNECT)?;
        fs::set_permissions(self.program("lab-first-claude"), fs::Permissions::from_mode(0o755))?;
        fs::copy(self.program("lab-first-claude"), self.program("first-connect"))?;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.servers.clear();
        for place in Place::ALL {
            netns::remove(&self.namespace(place));
        }
        if std::env::var_os("PP_LAB_KEEP").is_none()
            && let Err(error) = fs::remove_dir_all(&self.directory)
        {
            eprintln!("{}: {error}", self.directory.display());
        }
    }
}

/// True on an emulated processor, where Python's OPC UA library alone takes most of a minute to import. There the lab puts a plain
/// server in its place, and the tests leave out the Python clients: the kernel under test sees the same connections.
#[must_use]
pub fn is_emulated() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.lines().any(|line| line.starts_with("model name") && line.contains("QEMU")))
}

/// The network that this program left. What is started there reaches whatever the machine does.
#[derive(Debug)]
pub struct Outside(File);

impl Outside {
    /// A command that runs there and dies with this program.
    #[must_use]
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, lab: &Lab, arguments: &[S]) -> Command {
        lab.command_in(Path::new(&format!("/proc/{}/fd/{}", process::id(), self.0.as_raw_fd())), arguments)
    }
}

/// Moves this program to an empty network namespace. Call it before any thread is started.
///
/// # Errors
/// Not root.
pub fn leave_the_network() -> Result<Outside> {
    let outside = File::open("/proc/self/ns/net").context("the machine's network namespace")?;
    unshare(CloneFlags::CLONE_NEWNET).context("the suite needs root: it builds network namespaces")?;
    Ok(Outside(outside))
}
