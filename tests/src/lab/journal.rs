//! Reading what the servers and the tap wrote: append-only files of JSON lines, looked at from a mark onwards.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::Value;

use crate::wait;

/// TCP's number among the IP protocols.
const TCP: u64 = 6;

/// One packet that the tap saw arrive. Only what tests ask about.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Where it came from; port 0 where its protocol has none.
    pub source: SocketAddr,
    /// Where it was going; port 0 where its protocol has none.
    pub destination: SocketAddr,
    /// IP protocol number.
    pub protocol: u64,
    /// A TCP packet with SYN: the first of a flow.
    pub opens: bool,
    /// A TCP packet with RST: the kernel's answer to what comes for a socket that is gone, among others.
    pub resets: bool,
    /// Its length with its IP header.
    pub bytes: u64,
    /// Milliseconds since the epoch.
    pub at_ms: u64,
}

/// One append-only file and the place from which it is read.
#[derive(Clone, Debug)]
pub struct Journal {
    path: PathBuf,
    from: u64,
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
        Self { path: self.path.clone(), from: std::fs::metadata(&self.path).map_or(0, |file| file.len()) }
    }

    /// What is written in a part of the file; nothing where there is no such file.
    fn text(&self, from: u64, length: u64) -> String {
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(from))?;
            file.take(length).read_to_end(&mut bytes)
        });
        if read.is_err() {
            return String::new();
        }
        // The last line may be half written.
        bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The complete lines since the mark.
    #[must_use]
    pub fn lines(&self) -> Vec<Value> {
        self.text(self.from, u64::MAX).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The packets since the mark that were going to this address and are news: see [`Journal::new_packets`].
    #[must_use]
    pub fn new_packets_to(&self, target: SocketAddr) -> Vec<Packet> {
        self.news(self.packets_to(target))
    }

    /// The packets since the mark that are news: the rest of a TCP flow whose first packet came before the mark is not. A connection that an
    /// earlier command made is torn down whenever the far end gets to it.
    #[must_use]
    pub fn new_packets(&self) -> Vec<Packet> {
        self.news(self.lines().iter().filter_map(packet).collect())
    }

    fn news(&self, mut packets: Vec<Packet>) -> Vec<Packet> {
        let mut begun = HashSet::new();
        let may_be_old = |packet: &Packet| {
            let flow = (packet.source, packet.destination);
            if packet.opens {
                begun.insert(flow);
            }
            packet.protocol == TCP && !begun.contains(&flow)
        };
        let may_be_old: Vec<bool> = packets.iter().map(may_be_old).collect();
        if may_be_old.contains(&true) {
            let earlier = self.begun_before();
            let mut may_be_old = may_be_old.into_iter();
            packets.retain(|packet| may_be_old.next() != Some(true) || !earlier.contains(&(packet.source, packet.destination)));
        }
        packets
    }

    /// Source and destination of what had begun before the mark: TCP flows by their first packet, everything else by any.
    #[must_use]
    pub fn begun_before(&self) -> HashSet<(SocketAddr, SocketAddr)> {
        let packets = self.text(0, self.from);
        let packets = packets.lines().filter_map(|line| serde_json::from_str(line).ok()).filter_map(|line| packet(&line));
        packets.filter(|packet| packet.protocol != TCP || packet.opens).map(|packet| (packet.source, packet.destination)).collect()
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
    let end = |address: &str, port: &str| -> Option<SocketAddr> {
        Some(SocketAddr::new(line[address].as_str()?.parse().ok()?, u16::try_from(line[port].as_u64()?).ok()?))
    };
    Some(Packet {
        source: end("source", "source_port")?,
        destination: end("destination", "port")?,
        opens: line["syn"].as_bool()?,
        resets: line["rst"].as_bool().unwrap_or_default(),
        protocol: line["protocol"].as_u64()?,
        bytes: line["bytes"].as_u64()?,
        at_ms: line["at_ms"].as_u64()?,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn line(source_port: u16, syn: bool) -> String {
        format!(
            "{{\"source\":\"10.99.0.2\",\"destination\":\"10.20.4.7\",\"protocol\":6,\"source_port\":{source_port},\"port\":502,\
             \"syn\":{syn},\"bytes\":52,\"at_ms\":1}}\n"
        )
    }

    #[test]
    fn only_the_rest_of_a_flow_that_began_before_the_mark_is_no_news() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut log = file.reopen().expect("the same file");
        log.write_all((line(4000, true) + &line(4000, false) + &line(4001, false)).as_bytes()).expect("written");
        let journal = Journal::new(file.path().to_path_buf()).from_now();
        let target = "10.20.4.7:502".parse().expect("an address");
        log.write_all(line(4000, false).as_bytes()).expect("written");
        assert!(journal.new_packets_to(target).is_empty());
        assert_eq!(journal.packets_to(target).len(), 1);
        // A new flow from the same port, a flow whose beginning nobody saw, and one that began after the mark.
        for (port, syn) in [(4000, true), (4001, false), (4002, true), (4002, false)] {
            log.write_all(line(port, syn).as_bytes()).expect("written");
        }
        let news: Vec<(u16, bool)> = journal.new_packets_to(target).iter().map(|packet| (packet.source.port(), packet.opens)).collect();
        assert_eq!(news, [(4000, true), (4001, false), (4002, true), (4002, false)]);
        log.write_all(b"{\"source\":\"10.99").expect("written");
        assert_eq!(journal.new_packets_to(target).len(), 4);
    }
}
