//! The ways to reach a target, as data: what each puts on the wire, and how its answer is read.

use std::net::SocketAddr;

use anyhow::{Result, bail};
use nix::libc;

use crate::lab::{Lab, PLC, PLC_V6, UDP, UDP_V6};
use crate::run::Output;

/// A static program whose first instructions are `socket` and `connect` to [`PLC`].
pub const FIRST_CONNECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pp-first-connect"));

/// What an attempt came to, as the program that made it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It went through.
    Delivered,
    /// The kernel said this error number.
    Refused(i32),
}

/// One attempt: a command and how to read what it came to.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What it is called in messages.
    pub name: String,
    /// The command.
    pub words: Vec<String>,
    /// Where it goes: what must not arrive, and what the event names. Port 0 where the protocol has none.
    pub target: SocketAddr,
    /// Reads the answer.
    pub read: fn(&Output) -> Result<Answer>,
}

/// One technique of the workload program.
#[derive(Clone, Copy, Debug)]
pub struct Technique {
    /// What is claimed of it: the name of its test.
    pub claim: &'static str,
    /// Its name on the workload's command line.
    pub name: &'static str,
    /// Its target in the zone.
    pub target: SocketAddr,
    /// What only some kernels have.
    pub needs: Option<Need>,
    /// True if only the LSM hooks see it: a stated gap elsewhere.
    pub lsm_only: bool,
}

/// What a kernel may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// MPTCP: from 5.6, not in Debian's 5.10.
    Mptcp,
    /// UDP-Lite: until 7.2.
    UdpLite,
}

impl Need {
    /// How the kernel says that it lacks it.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::Mptcp | Self::UdpLite => libc::EPROTONOSUPPORT,
        }
    }
}

const fn technique(claim: &'static str, name: &'static str, target: SocketAddr) -> Technique {
    Technique { claim, name, target, needs: None, lsm_only: false }
}

/// Every technique that the workload knows.
pub static TECHNIQUES: [Technique; 20] = [
    technique("tcp_connect_is_refused", "tcp-connect", PLC),
    technique("tcp_connect_over_v6_is_refused", "tcp-connect", PLC_V6),
    technique("tcp_connect_to_a_mapped_address_is_refused", "tcp-mapped", PLC),
    Technique { needs: Some(Need::Mptcp), ..technique("mptcp_connect_is_refused", "mptcp", PLC) },
    technique("sendto_with_fast_open_is_refused", "fastopen", PLC),
    technique("sendto_with_fast_open_over_v6_is_refused", "fastopen", PLC_V6),
    technique("sendto_with_fast_open_to_a_mapped_address_is_refused", "fastopen-mapped", PLC),
    technique("connect_that_waits_for_the_first_write_is_refused", "fastopen-connect", PLC),
    technique("udp_sendto_is_refused", "udp-sendto", UDP),
    technique("udp_sendto_over_v6_is_refused", "udp-sendto", UDP_V6),
    technique("udp_sendto_to_a_mapped_address_is_refused", "udp-mapped", UDP),
    technique("udp_connect_and_send_is_refused", "udp-connect-send", UDP),
    technique("udp_connect_and_send_over_v6_is_refused", "udp-connect-send", UDP_V6),
    technique("udp_sendto_of_an_unspecified_family_is_refused", "udp-unspec", UDP),
    technique("udp_sendto_past_a_harmless_peer_is_refused", "udp-connected-elsewhere", UDP),
    technique("sendmmsg_is_refused", "sendmmsg", UDP),
    Technique { needs: Some(Need::UdpLite), ..technique("udplite_is_refused", "udplite", UDP) },
    technique("raw_icmp_is_refused", "raw-icmp", portless(UDP)),
    technique("raw_socket_with_a_forged_header_is_refused", "raw-hdrincl", UDP),
    Technique { lsm_only: true, ..technique("packet_socket_is_refused_or_a_stated_gap", "packet", UDP) },
];

const fn portless(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), 0)
}

impl Technique {
    /// One attempt with it.
    #[must_use]
    pub fn attempt(&self, lab: &Lab) -> Attempt {
        workload(lab, &["try", self.name, &self.target.to_string()], self.target)
    }
}

/// An attempt by the workload program with these arguments.
#[must_use]
pub fn workload(lab: &Lab, arguments: &[&str], target: SocketAddr) -> Attempt {
    let program = lab.program("pp-workload").display().to_string();
    let words = std::iter::once(program).chain(arguments.iter().map(|word| (*word).to_owned())).collect();
    Attempt { name: arguments.join(" "), words, target, read: read_json }
}

/// A plain TCP connection to the target.
#[must_use]
pub fn tcp(lab: &Lab, target: SocketAddr) -> Attempt {
    workload(lab, &["try", "tcp-connect", &target.to_string()], target)
}

/// An attempt by a real tool, which says in words what the kernel told it.
#[must_use]
pub fn tool(words: &[&str], target: SocketAddr) -> Attempt {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let name = words.first().map_or("", |word| word.rsplit('/').next().unwrap_or(word)).to_owned();
    Attempt { name, words, target, read: read_words }
}

/// Reads the workload's and the Python clients' answer.
fn read_json(output: &Output) -> Result<Answer> {
    let answer = output.json()?;
    if answer["ok"] == true {
        return Ok(Answer::Delivered);
    }
    match answer["errno"].as_i64().and_then(|errno| i32::try_from(errno).ok()) {
        Some(errno) => Ok(Answer::Refused(errno)),
        None => bail!("no error number in the answer: {output}"),
    }
}

/// Reads a tool's answer: exit code 0, or the C library's words for EPERM.
fn read_words(output: &Output) -> Result<Answer> {
    if output.status.success() {
        return Ok(Answer::Delivered);
    }
    if output.both().contains("Operation not permitted") {
        return Ok(Answer::Refused(libc::EPERM));
    }
    bail!("neither done nor refused: {output}")
}

impl Attempt {
    /// The same attempt read as the Python clients answer, in JSON.
    #[must_use]
    pub fn answering_json(mut self) -> Self {
        self.read = read_json;
        self
    }

    /// The same attempt under another name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }
}
