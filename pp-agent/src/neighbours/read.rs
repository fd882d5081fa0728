//! Reading a network namespace: its links, addresses, routes and neighbours, over rtnetlink(7).
//!
//! Messages are read attribute by attribute, and unknown attributes are skipped. A new kernel or an unusual kind of link must not hide the
//! others.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_OVERRUN};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{Link, Neighbour, Snapshot};
use crate::net::{Mac, Prefix};
use crate::os::{netlink, netns::Namespace};

/// Largest datagram of a dump (`NLMSG_GOODSIZE` is smaller).
const BUFFER: usize = 64 * 1024;
/// How often a dump is repeated if the tables changed during it.
const TRIES: usize = 5;
/// Groups of events (`linux/rtnetlink.h`): links, neighbours, addresses and routes of both families.
const GROUPS: [u32; 6] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
];
/// `linux/neighbour.h`: states in which a neighbour has answered, or was entered by hand.
const NUD_ANSWERS: u16 = libc::NUD_REACHABLE | libc::NUD_STALE | libc::NUD_DELAY | libc::NUD_PROBE | libc::NUD_PERMANENT;
const RTA_VIA: u16 = 18;
const ETHERNET: u16 = libc::ARPHRD_ETHER;

/// One network namespace that is watched.
pub(crate) struct Watched {
    /// The namespace; held, so that its number means no other meanwhile.
    pub(crate) namespace: Namespace,
    events: Socket,
    dumps: Socket,
    /// What it looked like last.
    pub(crate) last: Snapshot,
}

impl Watched {
    /// Begins to watch.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel gave no socket.
    pub(crate) fn open(namespace: Namespace) -> io::Result<Self> {
        let (events, dumps) = namespace.within(|| {
            let mut events = Socket::new(NETLINK_ROUTE)?;
            events.bind(&SocketAddr::new(0, 0))?;
            events.set_non_blocking(true)?;
            GROUPS.iter().try_for_each(|group| events.add_membership(*group))?;
            let mut dumps = Socket::new(NETLINK_ROUTE)?;
            dumps.bind(&SocketAddr::new(0, 0))?;
            dumps.connect(&SocketAddr::new(0, 0))?;
            Ok((events, dumps))
        })?;
        let last = Snapshot { netns: namespace.number(), ..Snapshot::default() };
        Ok(Self { namespace, events, dumps, last })
    }

    /// Takes every event that waits. What is in them does not matter: the tables are read again.
    pub(crate) fn drain(&self) {
        let mut buffer = Vec::with_capacity(BUFFER);
        // An overrun (`ENOBUFS`) is an event like others.
        while self.events.recv(&mut buffer, 0).is_ok_and(|read| read > 0) {
            buffer.clear();
        }
    }

    /// Has the kernel ask the link who answers for this address.
    ///
    /// # Errors
    /// The kernel refused: the link is down, or takes no neighbours.
    pub(crate) fn ask_for(&self, link: u32, ip: IpAddr) -> io::Result<()> {
        let (family, octets) = match ip {
            IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
            IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
        };
        // `struct ndmsg`, then the address.
        let mut payload = Vec::new();
        payload.extend([u8::try_from(family).map_err(io::Error::other)?, 0, 0, 0]);
        payload.extend(link.to_ne_bytes());
        payload.extend([0, 0, libc::NTF_USE, 0]);
        payload.extend(u16::try_from(4 + octets.len()).map_err(io::Error::other)?.to_ne_bytes());
        payload.extend(libc::NDA_DST.to_ne_bytes());
        payload.extend(octets);
        self.dumps.send(&netlink::request(libc::RTM_NEWNEIGH, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK, &payload)?, 0)?;
        let mut buffer = Vec::with_capacity(BUFFER);
        self.dumps.recv(&mut buffer, 0)?;
        let answer = netlink::messages(&buffer).next().unwrap_or_else(|| Err(io::Error::other("no answer")))?;
        netlink::outcome(&answer).unwrap_or_else(|| Err(io::Error::other(format!("answered by message {}", answer.kind))))
    }

    /// Reads the tables.
    ///
    /// # Errors
    /// The kernel refused, or they change all the time.
    pub(crate) fn read(&mut self) -> io::Result<()> {
        self.last = snapshot(&self.dumps, self.namespace.number())?;
        Ok(())
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

fn snapshot(socket: &Socket, netns: u32) -> io::Result<Snapshot> {
    let mut found = Snapshot { netns, ..Snapshot::default() };
    dump(socket, libc::RTM_GETLINK, &mut |bytes| found.links.extend(link(bytes)))?;
    dump(socket, libc::RTM_GETADDR, &mut |bytes| found.own.extend(own(bytes)))?;
    let (mut connected, mut hops, mut broadcasts) = (Vec::new(), Vec::new(), Vec::new());
    dump(socket, libc::RTM_GETROUTE, &mut |bytes| {
        route(bytes, &mut connected, &mut hops);
        broadcasts.extend(broadcast(bytes));
    })?;
    dump(socket, libc::RTM_GETNEIGH, &mut |bytes| found.neighbours.extend(neighbour(bytes)))?;
    let ethernet = |index: &u32| found.links.iter().any(|link| link.index == *index);
    connected.retain(|(index, _)| ethernet(index));
    broadcasts.retain(|(index, _)| ethernet(index));
    found.neighbours.retain(|neighbour| ethernet(&neighbour.link));
    (found.connected, found.hops, found.broadcasts) = (connected, hops, broadcasts);
    Ok(found)
}

/// Asks for a whole table and hands each message's payload on; from the beginning where it changed meanwhile.
fn dump(socket: &Socket, what: u16, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    for _ in 0..TRIES {
        let mut messages = Vec::new();
        if ask(socket, what, &mut messages)? {
            messages.iter().for_each(|bytes| take(bytes));
            return Ok(());
        }
    }
    Err(io::Error::other("it changes all the time"))
}

/// `false`: the table changed while it was read.
fn ask(socket: &Socket, what: u16, messages: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    // The longest of the headers, zero: every family, every link.
    socket.send(&netlink::request(what, NLM_F_REQUEST | NLM_F_DUMP, &[0; 16])?, 0)?;
    let mut whole = true;
    loop {
        let mut buffer = Vec::with_capacity(BUFFER);
        socket.recv(&mut buffer, 0)?;
        for message in netlink::messages(&buffer) {
            let message = message?;
            whole &= message.flags & NLM_F_DUMP_INTR == 0;
            match message.kind {
                NLMSG_DONE => return Ok(whole),
                NLMSG_OVERRUN => return Ok(false),
                _ => {}
            }
            match netlink::outcome(&message) {
                Some(ended) => return ended.map(|()| whole),
                None => messages.push(message.payload.to_vec()),
            }
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The attributes behind a header of that length.
fn attributes(bytes: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    netlink::attributes(bytes.get(header..).unwrap_or_default())
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        16 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
        _ => None,
    }
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    <[u8; 6]>::try_from(bytes).ok().map(Mac)
}

/// `struct ifinfomsg`: an Ethernet link that is no loopback.
fn link(bytes: &[u8]) -> Option<Link> {
    let (kind, index, flags) = (u16_at(bytes, 2)?, u32_at(bytes, 4)?, u32_at(bytes, 8)?);
    let loopback = u32::try_from(libc::IFF_LOOPBACK).ok()?;
    if kind != ETHERNET || flags & loopback != 0 {
        return None;
    }
    let mut link = Link { index, ..Link::default() };
    for (kind, value) in attributes(bytes, 16) {
        match kind {
            libc::IFLA_IFNAME => link.name = String::from_utf8_lossy(value.split(|byte| *byte == 0).next()?).into_owned(),
            libc::IFLA_ADDRESS => link.mac = mac(value)?,
            _ => {}
        }
    }
    Some(link)
}

/// `struct ifaddrmsg`.
fn own(bytes: &[u8]) -> Option<(u32, IpAddr)> {
    let index = u32_at(bytes, 4)?;
    let found: Vec<_> = attributes(bytes, 8).collect();
    let of = |kind: u16| found.iter().find(|(found, _)| *found == kind).and_then(|(_, value)| ip(value));
    // Of a point-to-point link the other is the far end's.
    Some((index, of(libc::IFA_LOCAL).or_else(|| of(libc::IFA_ADDRESS))?))
}

/// `struct rtmsg`.
fn route(bytes: &[u8], connected: &mut Vec<(u32, Prefix)>, hops: &mut Vec<(u32, IpAddr)>) {
    let [family, length, _, _, _, _, _, kind] = bytes.first_chunk().copied().unwrap_or_default();
    if kind != libc::RTN_UNICAST {
        return;
    }
    let (mut destination, mut link, mut has_hop) = (None, 0, false);
    for (kind, value) in attributes(bytes, 12) {
        match kind {
            libc::RTA_DST => destination = ip(value),
            libc::RTA_OIF => link = u32_at(value, 0).unwrap_or(0),
            libc::RTA_GATEWAY | RTA_VIA => {
                has_hop = true;
                hops.extend(hop(kind, value).map(|hop| (0, hop)));
            }
            libc::RTA_MULTIPATH => {
                for (index, hop) in several(value) {
                    has_hop |= hop.is_some();
                    hops.extend(hop.map(|hop| (index, hop)));
                    // One that has no next hop reaches its link itself.
                    if hop.is_none() {
                        link = index;
                    }
                }
            }
            _ => {}
        }
    }
    for (index, _) in hops.iter_mut().filter(|(index, _)| *index == 0) {
        *index = link;
    }
    let everything = if i32::from(family) == libc::AF_INET { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    if !has_hop && let Ok(network) = IpNet::new(destination.unwrap_or(everything), length) {
        connected.push((link, Prefix::from(network.trunc())));
    }
}

/// `struct rtmsg`: one address that is a directed broadcast. Of a network, before 5.14, the first one is too.
fn broadcast(bytes: &[u8]) -> Option<(u32, IpAddr)> {
    let [_, length, _, _, _, _, _, kind] = bytes.first_chunk().copied()?;
    if kind != libc::RTN_BROADCAST || length != 32 {
        return None;
    }
    let found: Vec<_> = attributes(bytes, 12).collect();
    let of = |kind: u16| found.iter().find(|(found, _)| *found == kind).map(|(_, value)| *value);
    Some((u32_at(of(libc::RTA_OIF)?, 0)?, ip(of(libc::RTA_DST)?)?))
}

/// `RTA_GATEWAY`, or `struct rtvia`: a family and an address of it.
fn hop(kind: u16, value: &[u8]) -> Option<IpAddr> {
    if kind == RTA_VIA { ip(value.get(2..)?) } else { ip(value) }
}

/// `struct rtnexthop`, several times.
fn several(bytes: &[u8]) -> Vec<(u32, Option<IpAddr>)> {
    let (mut rest, mut found) = (bytes, Vec::new());
    while let (Some(length), Some(index)) = (u16_at(rest, 0), u32_at(rest, 4)) {
        let length = usize::from(length);
        let Some(one) = rest.get(..length).filter(|_| length >= 8) else { break };
        found.push((
            index,
            attributes(one, 8).filter(|(kind, _)| matches!(*kind, libc::RTA_GATEWAY | RTA_VIA)).find_map(|(kind, value)| hop(kind, value)),
        ));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// `struct ndmsg`: one that answers.
fn neighbour(bytes: &[u8]) -> Option<Neighbour> {
    let (family, link, state, flags) = (i32::from(*bytes.first()?), u32_at(bytes, 4)?, u16_at(bytes, 8)?, *bytes.get(10)?);
    if !matches!(family, libc::AF_INET | libc::AF_INET6) || state & NUD_ANSWERS == 0 || flags & libc::NTF_PROXY != 0 {
        return None;
    }
    let found: Vec<_> = attributes(bytes, 12).collect();
    let of = |kind: u16| found.iter().find(|(found, _)| *found == kind).map(|(_, value)| *value);
    Some(Neighbour { link, addr: ip(of(libc::NDA_DST)?)?, mac: mac(of(libc::NDA_LLADDR)?)?, router: flags & libc::NTF_ROUTER != 0 })
}
