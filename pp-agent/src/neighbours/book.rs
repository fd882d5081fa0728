//! What was learned, and the rules of learning.
//!
//! Everybody on a link can write into the neighbour table. So learning only adds protection, and only to addresses of the same link that
//! policy does not name. It never removes or moves protection, and never applies to a router, a name server or this host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use pp_common::abi::{LEARNED_BROADCAST, LEARNED_DNS, LEARNED_MAC, LEARNED_OWN, Learned, LinkKey, NearKey, Place};
use pp_common::dest::Addr;
use pp_common::maps::{LEARNED, LINKS};

use crate::net::{Mac, Prefix};

use super::notice::{Notice, NoticeKind, Reported};
use super::view::{View, is_network};
use super::{Protected, Snapshot, addr, broadcasts, combine};

/// Most addresses that are learned.
const MAX_LEARNED: usize = 1_024;
/// Most addresses that are learned of one hardware address on one link.
const MAX_OF_ONE_MAC: usize = 64;
/// Most hardware addresses that are known to belong to a protected device.
const MAX_CLAIMS: usize = 1_024;
/// Most protected addresses that are known of one hardware address.
const MAX_OF_CLAIM: usize = 16;
/// How long an address stays learned without being seen, in nanoseconds. A forgotten address stays forgotten for as long.
const KEEP_NS: u64 = 24 * 3_600 * 1_000_000_000;

/// How old the last sighting of an address may be before it is updated, in nanoseconds: each update is written to the kernel's map.
const NOTE_NS: u64 = 60 * 1_000_000_000;

/// A hardware address on one link of one namespace.
type Device = (LinkKey, Mac);

/// The protected addresses that a device answers for.
#[derive(Clone, Debug, Default)]
struct Claim {
    of: BTreeSet<Addr>,
    seen_ns: u64,
}

/// An address that belongs to a place without being named in policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// The address, with its namespace and, if it is link-local, its link.
    pub(crate) key: NearKey,
    /// What is known.
    pub(crate) learned: Learned,
    /// The link's name.
    pub(crate) link: String,
}

/// All that was learned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    claims: BTreeMap<Device, Claim>,
    learned: BTreeMap<NearKey, Learned>,
    exempt: BTreeMap<NearKey, Learned>,
    broadcasts: BTreeMap<NearKey, Learned>,
    links: BTreeMap<LinkKey, Place>,
    names: BTreeMap<LinkKey, String>,
    forgotten: BTreeMap<NearKey, u64>,
    reported: Reported,
    unnamed: Vec<(String, Prefix)>,
}

impl Book {
    /// Starts with what the kernel's maps hold: an earlier daemon learned it.
    #[must_use]
    pub(crate) fn restore(
        links: impl IntoIterator<Item = (LinkKey, Place)>,
        learned: impl IntoIterator<Item = (NearKey, Learned)>,
    ) -> Self {
        let mut book = Self { links: links.into_iter().collect(), ..Self::default() };
        for (key, known) in learned {
            if known.flags & LEARNED_BROADCAST != 0 {
                book.broadcasts.insert(key, known);
            } else if joined(&known.place) {
                if known.flags & LEARNED_MAC == 0 {
                    let device = (LinkKey { netns: key.netns, ifindex: known.ifindex }, Mac(known.mac));
                    let claim = book.claims.entry(device).or_default();
                    claim.of.insert(known.of);
                    claim.seen_ns = claim.seen_ns.max(known.seen_ns);
                }
                book.learned.insert(key, known);
            } else {
                book.exempt.insert(key, known);
            }
        }
        book
    }

    /// What `LINKS` must hold.
    #[must_use]
    pub(crate) const fn links(&self) -> &BTreeMap<LinkKey, Place> {
        &self.links
    }

    /// What `LEARNED` must hold.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (NearKey, Learned)> + '_ {
        self.learned.iter().chain(&self.broadcasts).chain(&self.exempt).map(|(key, known)| (*key, *known))
    }

    /// The addresses that joined a place.
    pub(crate) fn known(&self) -> impl Iterator<Item = Known> + '_ {
        self.learned.iter().map(|(key, learned)| Known { key: *key, learned: *learned, link: self.link_name(key.netns, learned.ifindex) })
    }

    /// The directed broadcasts of links that carry a place.
    pub(crate) fn broadcasts(&self) -> impl Iterator<Item = (NearKey, Place)> + '_ {
        self.broadcasts.iter().map(|(key, known)| (*key, known.place))
    }

    /// What is known of an address.
    #[must_use]
    pub(crate) fn find(&self, key: &NearKey) -> Option<Known> {
        let learned = *self.learned.get(key).or_else(|| self.broadcasts.get(key))?;
        Some(Known { key: *key, learned, link: self.link_name(key.netns, learned.ifindex) })
    }

    /// The links that carry a place, by name.
    pub(crate) fn carrying(&self) -> impl Iterator<Item = (LinkKey, String, Place)> + '_ {
        self.links.iter().map(|(key, place)| (*key, self.link_name(key.netns, key.ifindex), *place))
    }

    /// Conflicts of the last 24 hours.
    #[must_use]
    pub(crate) fn conflicts(&self) -> &[Notice] {
        self.reported.conflicts()
    }

    /// IPv6 networks, on links that carry a place, that no zone covers. They may hold further addresses of a protected device.
    #[must_use]
    pub(crate) fn unnamed(&self) -> &[(String, Prefix)] {
        &self.unnamed
    }

    fn link_name(&self, netns: u32, ifindex: u32) -> String {
        self.names.get(&LinkKey { netns, ifindex }).cloned().unwrap_or_else(|| format!("interface {ifindex}"))
    }

    /// Forgets an address everywhere. It is not learned again for 24 hours. Addresses that follow from `mac` in policy stay.
    /// Returns what was forgotten.
    pub(crate) fn forget(&mut self, address: &Addr, now_ns: u64) -> Vec<Known> {
        let found: Vec<Known> = self.known().filter(|known| known.key.addr == *address && known.learned.flags & LEARNED_MAC == 0).collect();
        for known in &found {
            self.learned.remove(&known.key);
            self.forgotten.insert(known.key, now_ns);
        }
        found
    }

    /// Learns from snapshots of all watched namespaces, and forgets other namespaces. Returns what to report.
    pub(crate) fn update(&mut self, policy: &Protected, snapshots: &[Snapshot], now_ns: u64) -> Vec<Notice> {
        let mut notices = Vec::new();
        self.drop_others(snapshots);
        self.drop_old(policy, now_ns, &mut notices);
        self.exempt.clear();
        let mut links = BTreeMap::new();
        let mut given = BTreeSet::new();
        for snapshot in snapshots {
            let view = View::new(snapshot, policy);
            self.claim(&view, now_ns, &mut notices);
            self.learn(&view, now_ns, &mut notices);
            self.follow_macs(&view, &mut given, &mut notices);
            for link in &snapshot.links {
                let key = view.key(link.index);
                if let Some(place) = self.carried(&view, key) {
                    links.insert(key, place);
                }
            }
            self.exempt_some(&view, &links);
        }
        self.learned.retain(|key, known| known.flags & LEARNED_MAC == 0 || given.contains(key));
        let most = LINKS.room();
        if links.len() > most {
            tracing::error!(
                "links that carry a protected place: {} found, {most} fit; link-local addresses and broadcasts on the others are open",
                links.len()
            );
            links = links.into_iter().take(most).collect();
        }
        self.broadcasts.clear();
        snapshots.iter().for_each(|snapshot| broadcasts::add(&View::new(snapshot, policy), &links, &mut self.broadcasts));
        let room = LEARNED.room().saturating_sub(self.learned.len());
        broadcasts::fit(&mut self.broadcasts, room, snapshots, &mut notices);
        self.unnamed = snapshots.iter().flat_map(|snapshot| unnamed(&View::new(snapshot, policy), &links)).collect();
        self.links = links;
        self.reported.take_new(notices, now_ns)
    }

    fn drop_others(&mut self, snapshots: &[Snapshot]) {
        let watched: BTreeSet<u32> = snapshots.iter().map(|snapshot| snapshot.netns).collect();
        self.claims.retain(|(link, _), _| watched.contains(&link.netns));
        self.learned.retain(|key, _| watched.contains(&key.netns));
        self.forgotten.retain(|key, _| watched.contains(&key.netns));
        self.names.clear();
        for snapshot in snapshots {
            let names = snapshot.links.iter().map(|link| (LinkKey { netns: snapshot.netns, ifindex: link.index }, link.name.clone()));
            self.names.extend(names);
        }
    }

    fn drop_old(&mut self, policy: &Protected, now_ns: u64, notices: &mut Vec<Notice>) {
        let is_old = |seen_ns: u64| now_ns.saturating_sub(seen_ns) > KEEP_NS;
        self.forgotten.retain(|_, since| !is_old(*since));
        self.reported.expire(is_old);
        for claim in self.claims.values_mut() {
            claim.of.retain(|addr| policy.place(addr).is_some());
        }
        self.claims.retain(|_, claim| !claim.of.is_empty() && !is_old(claim.seen_ns));
        let over: Vec<Known> = self
            .known()
            .filter(|known| {
                let device = (LinkKey { netns: known.key.netns, ifindex: known.learned.ifindex }, Mac(known.learned.mac));
                known.learned.flags & LEARNED_MAC == 0 && (is_old(known.learned.seen_ns) || !self.claims.contains_key(&device))
                    || policy.place(&known.key.addr).is_some()
            })
            .collect();
        for known in over {
            self.learned.remove(&known.key);
            if policy.place(&known.key.addr).is_none() {
                notices.push(Notice::about(NoticeKind::Expired, &known));
            }
        }
    }

    /// Records which hardware addresses answer for addresses that policy names.
    fn claim(&mut self, view: &View<'_>, now_ns: u64, notices: &mut Vec<Notice>) {
        for neighbour in &view.snapshot.neighbours {
            let address = addr(neighbour.addr);
            let Some(place) = view.policy.place(&address) else { continue };
            // Policy names this router itself.
            if view.is_hop(neighbour.addr) {
                continue;
            }
            let key = view.key(neighbour.link);
            let mut notice = |kind| {
                notices.push(Notice { kind, addr: address, link: view.name(neighbour.link), mac: neighbour.mac, of: address, place })
            };
            if view.own_macs.contains(&neighbour.mac) {
                notice(NoticeKind::OwnAnswers);
                continue;
            }
            if view.is_router(neighbour.link, neighbour.mac) {
                notice(NoticeKind::RouterAnswers);
                continue;
            }
            let device = (key, neighbour.mac);
            let others =
                self.claims.iter().filter(|((link, mac), claim)| *link == key && *mac != neighbour.mac && claim.of.contains(&address));
            if others.count() > 0 {
                notice(NoticeKind::MacChanged);
            }
            if !self.claims.contains_key(&device) && self.claims.len() >= MAX_CLAIMS {
                notice(NoticeKind::Full);
                continue;
            }
            let claim = self.claims.entry(device).or_default();
            claim.seen_ns = now_ns;
            if claim.of.len() < MAX_OF_CLAIM {
                claim.of.insert(address);
            }
            let names: BTreeSet<(u64, u64)> =
                claim.of.iter().filter_map(|of| view.policy.place(of)).map(|place| (place.zone, place.gateway)).collect();
            if names.len() > 1 {
                notice(NoticeKind::TwoPlaces);
            }
        }
    }

    /// The place of a hardware address, by what it answers for and by policy.
    fn place_of(&self, view: &View<'_>, device: &Device) -> Option<(Place, Addr)> {
        let given = view.policy.macs.iter().filter(|(mac, _)| *mac == device.1).map(|(_, place)| *place);
        let claim = self.claims.get(device);
        let of = claim.and_then(|claim| claim.of.first().copied()).unwrap_or_default();
        let claimed = claim.into_iter().flat_map(|claim| &claim.of).filter_map(|addr| view.policy.place(addr));
        let place = combine(given.chain(claimed));
        joined(&place).then_some((place, of))
    }

    /// Adds further addresses of protected devices to the place of their device.
    fn learn(&mut self, view: &View<'_>, now_ns: u64, notices: &mut Vec<Notice>) {
        for neighbour in &view.snapshot.neighbours {
            let device = (view.key(neighbour.link), neighbour.mac);
            let Some((place, of)) = self.place_of(view, &device) else { continue };
            let key = view.near(neighbour.link, neighbour.addr);
            let known = Learned { place, of, seen_ns: now_ns, ifindex: neighbour.link, flags: 0, mac: neighbour.mac.0, pad: [0; 4] };
            // A learned address stays, whatever the neighbour says of itself later.
            if let Some(kept) = self.learned.get_mut(&key) {
                let is_stale = now_ns.saturating_sub(kept.seen_ns) > NOTE_NS || (kept.place, kept.of) != (known.place, known.of);
                if kept.mac == known.mac && is_stale {
                    *kept = known;
                }
                continue;
            }
            if !view.may_learn(neighbour) || self.forgotten.contains_key(&key) {
                continue;
            }
            let notice =
                Notice { kind: NoticeKind::Learned, addr: key.addr, link: view.name(neighbour.link), mac: neighbour.mac, of, place };
            let of_mac = self.learned.values().filter(|other| other.mac == known.mac && other.ifindex == known.ifindex).count();
            if self.learned.len() >= MAX_LEARNED || of_mac >= MAX_OF_ONE_MAC {
                // The address of the device is in the notice, so that it is reported once for each device.
                notices.push(Notice { kind: NoticeKind::Full, addr: of, ..notice });
                continue;
            }
            self.learned.insert(key, known);
            notices.push(notice);
        }
    }

    /// Adds the IPv6 addresses that follow from the hardware addresses in policy (EUI-64).
    fn follow_macs(&mut self, view: &View<'_>, given: &mut BTreeSet<NearKey>, notices: &mut Vec<Notice>) {
        const LINK_LOCAL: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
        for link in &view.snapshot.links {
            let networks = view.snapshot.connected.iter().filter(|(index, prefix)| *index == link.index && prefix.len == 64);
            let networks: Vec<_> = networks.map(|(_, prefix)| prefix.addr.into()).chain([LINK_LOCAL]).collect();
            for (mac, place) in &view.policy.macs {
                if view.own_macs.contains(mac) {
                    continue;
                }
                for network in &networks {
                    let ip = IpAddr::V6(mac.eui64(*network));
                    let key = view.near(link.index, ip);
                    if view.policy.place(&key.addr).is_some() || view.is_special(ip) {
                        continue;
                    }
                    given.insert(key);
                    let known = Learned {
                        place: *place,
                        of: Addr::default(),
                        seen_ns: 0,
                        ifindex: link.index,
                        flags: LEARNED_MAC,
                        mac: mac.0,
                        pad: [0; 4],
                    };
                    if self.learned.insert(key, known).is_none() {
                        notices.push(Notice {
                            kind: NoticeKind::Learned,
                            addr: key.addr,
                            link: link.name.clone(),
                            mac: *mac,
                            of: Addr::default(),
                            place: *place,
                        });
                    }
                }
            }
        }
    }

    /// The place that a link carries.
    fn carried(&self, view: &View<'_>, key: LinkKey) -> Option<Place> {
        let on_link =
            view.snapshot.connected.iter().filter(|(index, prefix)| *index == key.ifindex && is_network(prefix.len, &prefix.addr));
        let by_network = on_link
            .flat_map(|(_, prefix)| view.policy.places.iter().filter(move |(place, _)| place.overlaps(prefix)).map(|(_, place)| *place));
        let by_neighbour = self.claims.range((key, Mac::default())..).take_while(|((link, _), _)| *link == key);
        let by_neighbour = by_neighbour.flat_map(|(_, claim)| &claim.of).filter_map(|addr| view.policy.place(addr));
        let seen = view.snapshot.neighbours.iter().filter(|neighbour| neighbour.link == key.ifindex);
        let by_mac = seen.flat_map(|neighbour| view.policy.macs.iter().filter(|(mac, _)| *mac == neighbour.mac).map(|(_, place)| *place));
        let place = combine(by_network.chain(by_neighbour).chain(by_mac));
        joined(&place).then_some(place)
    }

    /// Exempts this host's own link-local addresses, and those that DNS may go to, on links that carry a place.
    fn exempt_some(&mut self, view: &View<'_>, links: &BTreeMap<LinkKey, Place>) {
        let snapshot = view.snapshot;
        let own = snapshot.own.iter().map(|(link, ip)| (*link, *ip, LEARNED_OWN));
        let hops = snapshot.hops.iter().map(|(link, ip)| (*link, *ip, LEARNED_DNS));
        let resolvers = view.policy.resolvers.iter().flat_map(|resolver| {
            let named =
                move |link: &&super::Link| resolver.link.as_ref().is_none_or(|name| *name == link.name || *name == link.index.to_string());
            snapshot.links.iter().filter(named).map(|link| (link.index, resolver.addr, LEARNED_DNS))
        });
        for (link, ip, flags) in own.chain(hops).chain(resolvers) {
            let key = view.near(link, ip);
            if key.ifindex == 0 || !links.contains_key(&view.key(link)) || self.learned.contains_key(&key) {
                continue;
            }
            let known = self.exempt.entry(key).or_insert(Learned { ifindex: link, ..Learned::default() });
            known.flags |= flags;
        }
    }
}

/// The networks of one namespace for [`Book::unnamed`].
fn unnamed(view: &View<'_>, links: &BTreeMap<LinkKey, Place>) -> Vec<(String, Prefix)> {
    let is_v6 = |prefix: &Prefix| !prefix.addr.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    let on_link = view.snapshot.connected.iter().filter(|(link, prefix)| {
        links.contains_key(&view.key(*link)) && is_v6(prefix) && is_network(prefix.len, &prefix.addr) && prefix.len < 128
    });
    let named = |prefix: &Prefix| view.policy.places.iter().any(|(place, known)| known.zone != 0 && place.covers(prefix));
    on_link.filter(|(_, prefix)| !named(prefix)).map(|(link, prefix)| (view.name(*link), *prefix)).collect()
}

const fn joined(place: &Place) -> bool {
    place.zone | place.gateway != 0
}
