//! Reading what the servers and the tap wrote: append-only files of JSON lines, looked at from a mark onwards.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::Value;

use crate::wait;

/// One packet that the tap saw arrive. Only what tests ask about.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Where it was going; port 0 where its protocol has none.
    pub destination: SocketAddr,
    /// IP protocol number.
    pub protocol: u64,
    /// Its length with its IP header.
    pub bytes: u64,
    /// Milliseconds since the epoch.
    pub at_ms: u64,
}

/// One append-only file and the place from which it is read.
#[derive(Clone, Debug)]
pub struct Journal {
    path: PathBuf,
    from: usize,
}

impl Journal {
    /// The file from its beginning.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, from: 0 }
    }

    /// The same file from what is written after now.
    #[must_use]
    pub fn from_now(&self) -> Self {
        Self { path: self.path.clone(), from: self.text().len() }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.path).unwrap_or_default()
    }

    /// The complete lines since the mark.
    #[must_use]
    pub fn lines(&self) -> Vec<Value> {
        let text = self.text();
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        text.get(self.from..end).unwrap_or_default().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The packets since the mark that were going to this address: to the port too, unless it is 0.
    #[must_use]
    pub fn packets_to(&self, target: SocketAddr) -> Vec<Packet> {
        self.lines().iter().filter_map(packet).filter(|packet| same(packet.destination, target)).collect()
    }

    /// The connections and datagrams since the mark that a server got at this address.
    #[must_use]
    pub fn arrivals_at(&self, target: SocketAddr) -> Vec<Value> {
        let here = |line: &Value| line["local"].as_str().and_then(|local| local.parse().ok()).is_some_and(|local| same(local, target));
        self.lines().into_iter().filter(|line| line["event"] != "closed" && here(line)).collect()
    }

    /// Waits for a line that the probe accepts.
    ///
    /// # Errors
    /// None came in time.
    pub fn wait_for(&self, what: &str, probe: impl Fn(&Value) -> bool) -> Result<Value> {
        wait::until(what, wait::SOON, || self.lines().into_iter().find(|line| probe(line)))
    }
}

fn same(seen: SocketAddr, wanted: SocketAddr) -> bool {
    seen.ip() == wanted.ip() && (wanted.port() == 0 || seen.port() == wanted.port())
}

fn packet(line: &Value) -> Option<Packet> {
    let address = line["destination"].as_str()?.parse().ok()?;
    let port = u16::try_from(line["port"].as_u64()?).ok()?;
    Some(Packet {
        destination: SocketAddr::new(address, port),
        protocol: line["protocol"].as_u64()?,
        bytes: line["bytes"].as_u64()?,
        at_ms: line["at_ms"].as_u64()?,
    })
}
