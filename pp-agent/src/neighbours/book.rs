//! What was learned so far, and the rules of learning.
//!
//! A neighbour table can be written by whoever is on the link. So learning only ever adds protection, to addresses of the same link
//! that policy does not name; it never opens or moves anything, and it never touches a router, a name server or this host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use pp_common::abi::{LEARNED_DNS, LEARNED_MAC, LEARNED_OWN, Learned, LinkKey, NearKey, Place};
use pp_common::dest::Addr;
use pp_common::maps::LINKS;

use crate::net::{Mac, Prefix};

use super::{Neighbour, Protected, Snapshot, addr, combine};

/// Most addresses that are learned.
const MAX_LEARNED: usize = 1_024;
/// Most of them with one hardware address on one link.
const MAX_OF_ONE_MAC: usize = 64;
/// Most hardware addresses that are remembered to be a protected device's.
const MAX_CLAIMS: usize = 1_024;
/// Most protected addresses that are remembered of one hardware address.
const MAX_OF_CLAIM: usize = 16;
/// Most things that are remembered as told.
const MAX_TOLD: usize = 1_024;
/// For how long an address stays learned that is not seen again, in nanoseconds; and one that is forgotten, forgotten.
const KEEP_NS: u64 = 24 * 3_600 * 1_000_000_000;

/// How exactly it is noted when an address was seen last: each note is written to the kernel's map.
const NOTE_NS: u64 = 60 * 1_000_000_000;

/// A hardware address on one link of one namespace.
type Device = (LinkKey, Mac);

/// What is known to answer for protected addresses.
#[derive(Clone, Debug, Default)]
struct Claim {
    /// The protected addresses.
    of: BTreeSet<Addr>,
    seen_ns: u64,
}

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// An address joined a place.
    Learned,
    /// It was not seen for 24 hours, or its place is not in policy any more.
    Expired,
    /// A router's hardware address answers for a protected address: proxy ARP, or a spoofed answer.
    RouterAnswers,
    /// This host's own hardware address does.
    OwnAnswers,
    /// One hardware address answers for two places.
    TwoPlaces,
    /// A protected address is answered for by another hardware address than before.
    MacChanged,
    /// There is no room: for further addresses, of this device or at all.
    Full,
}

/// Something to tell, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// What.
    pub(crate) what: What,
    /// Of which address.
    pub(crate) addr: Addr,
    /// On which link, by name.
    pub(crate) link: String,
    /// The hardware address.
    pub(crate) mac: Mac,
    /// The protected address that it answers for; zero: policy gives the hardware address.
    pub(crate) of: Addr,
    /// The place.
    pub(crate) place: Place,
}

/// One address that belongs to a place without being named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Where it means that.
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
    links: BTreeMap<LinkKey, Place>,
    names: BTreeMap<LinkKey, String>,
    forgotten: BTreeMap<NearKey, u64>,
    told: BTreeMap<(What, String, Mac, Addr), u64>,
    conflicts: Vec<Told>,
    unnamed: Vec<(String, Prefix)>,
}

impl Book {
    /// Begins with what the kernel's maps hold already: an earlier daemon learned it.
    #[must_use]
    pub(crate) fn restore(
        links: impl IntoIterator<Item = (LinkKey, Place)>,
        learned: impl IntoIterator<Item = (NearKey, Learned)>,
    ) -> Self {
        let mut book = Self { links: links.into_iter().collect(), ..Self::default() };
        for (key, known) in learned {
            if joined(&known.place) {
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
        self.learned.iter().chain(&self.exempt).map(|(key, known)| (*key, *known))
    }

    /// The addresses that joined a place.
    pub(crate) fn known(&self) -> impl Iterator<Item = Known> + '_ {
        self.learned.iter().map(|(key, learned)| Known { key: *key, learned: *learned, link: self.link_name(key.netns, learned.ifindex) })
    }

    /// What is known of an address, on a link where that matters.
    #[must_use]
    pub(crate) fn find(&self, key: &NearKey) -> Option<Known> {
        let learned = *self.learned.get(key)?;
        Some(Known { key: *key, learned, link: self.link_name(key.netns, learned.ifindex) })
    }

    /// The links that carry a place, by name.
    pub(crate) fn carrying(&self) -> impl Iterator<Item = (LinkKey, String, Place)> + '_ {
        self.links.iter().map(|(key, place)| (*key, self.link_name(key.netns, key.ifindex), *place))
    }

    /// Conflicts of the last 24 hours.
    #[must_use]
    pub(crate) fn conflicts(&self) -> &[Told] {
        &self.conflicts
    }

    /// IPv6 networks on links that carry a place, of which no zone names all: further addresses of a protected device may be in them.
    #[must_use]
    pub(crate) fn unnamed(&self) -> &[(String, Prefix)] {
        &self.unnamed
    }

    fn link_name(&self, netns: u32, ifindex: u32) -> String {
        self.names.get(&LinkKey { netns, ifindex }).cloned().unwrap_or_else(|| format!("interface {ifindex}"))
    }

    /// Forgets an address everywhere; it is not learned again for 24 hours. Those that follow from `mac` in policy stay.
    /// Returns what was forgotten.
    pub(crate) fn forget(&mut self, address: &Addr, now_ns: u64) -> Vec<Known> {
        let found: Vec<Known> = self.known().filter(|known| known.key.addr == *address && known.learned.flags & LEARNED_MAC == 0).collect();
        for known in &found {
            self.learned.remove(&known.key);
            self.forgotten.insert(known.key, now_ns);
        }
        found
    }

    /// Takes in what the namespaces look like now. A namespace that is not among them is forgotten.
    pub(crate) fn update(&mut self, policy: &Protected, snapshots: &[Snapshot], now_ns: u64) -> Vec<Told> {
        let mut tell = Vec::new();
        self.drop_others(snapshots);
        self.drop_old(policy, now_ns, &mut tell);
        self.exempt.clear();
        let mut links = BTreeMap::new();
        let mut given = BTreeSet::new();
        for snapshot in snapshots {
            let view = View::new(snapshot, policy);
            self.claim(&view, now_ns, &mut tell);
            self.learn(&view, now_ns, &mut tell);
            self.follow_macs(&view, &mut given, &mut tell);
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
                "links that carry a protected place: {} found, {most} fit; link-local addresses on the others are open",
                links.len()
            );
            links = links.into_iter().take(most).collect();
        }
        self.unnamed = snapshots.iter().flat_map(|snapshot| unnamed(&View::new(snapshot, policy), &links)).collect();
        self.links = links;
        self.say_once(tell, now_ns)
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

    fn drop_old(&mut self, policy: &Protected, now_ns: u64, tell: &mut Vec<Told>) {
        let is_old = |seen_ns: u64| now_ns.saturating_sub(seen_ns) > KEEP_NS;
        self.forgotten.retain(|_, since| !is_old(*since));
        self.told.retain(|_, since| !is_old(*since));
        let told = &self.told;
        self.conflicts.retain(|conflict| told.contains_key(&(conflict.what, conflict.link.clone(), conflict.mac, conflict.addr)));
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
                tell.push(change_of(What::Expired, &known));
            }
        }
    }

    /// Notes which hardware addresses answer for what policy names.
    fn claim(&mut self, view: &View<'_>, now_ns: u64, tell: &mut Vec<Told>) {
        for neighbour in &view.snapshot.neighbours {
            let address = addr(neighbour.addr);
            let Some(place) = view.policy.place(&address) else { continue };
            // A router that policy names itself is no news.
            if view.is_hop(neighbour.addr) {
                continue;
            }
            let key = view.key(neighbour.link);
            let mut say =
                |what| tell.push(Told { what, addr: address, link: view.name(neighbour.link), mac: neighbour.mac, of: address, place });
            if view.own_macs.contains(&neighbour.mac) {
                say(What::OwnAnswers);
                continue;
            }
            if view.is_router(neighbour.link, neighbour.mac) {
                say(What::RouterAnswers);
                continue;
            }
            let device = (key, neighbour.mac);
            let others =
                self.claims.iter().filter(|((link, mac), claim)| *link == key && *mac != neighbour.mac && claim.of.contains(&address));
            if others.count() > 0 {
                say(What::MacChanged);
            }
            if !self.claims.contains_key(&device) && self.claims.len() >= MAX_CLAIMS {
                say(What::Full);
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
                say(What::TwoPlaces);
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

    /// Has further addresses of those devices join their place.
    fn learn(&mut self, view: &View<'_>, now_ns: u64, tell: &mut Vec<Told>) {
        for neighbour in &view.snapshot.neighbours {
            let device = (view.key(neighbour.link), neighbour.mac);
            let Some((place, of)) = self.place_of(view, &device) else { continue };
            let key = view.near(neighbour.link, neighbour.addr);
            let known = Learned { place, of, seen_ns: now_ns, ifindex: neighbour.link, flags: 0, mac: neighbour.mac.0, pad: [0; 4] };
            // What joined once stays, whatever the neighbour says of itself since.
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
            let told = Told { what: What::Learned, addr: key.addr, link: view.name(neighbour.link), mac: neighbour.mac, of, place };
            let of_mac = self.learned.values().filter(|other| other.mac == known.mac && other.ifindex == known.ifindex).count();
            if self.learned.len() >= MAX_LEARNED || of_mac >= MAX_OF_ONE_MAC {
                // Of one device or of all, it is told once.
                tell.push(Told { what: What::Full, addr: of, ..told });
                continue;
            }
            self.learned.insert(key, known);
            tell.push(told);
        }
    }

    /// The addresses that a device whose hardware address policy gives has by that alone.
    fn follow_macs(&mut self, view: &View<'_>, given: &mut BTreeSet<NearKey>, tell: &mut Vec<Told>) {
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
                        tell.push(Told {
                            what: What::Learned,
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

    /// What unicast link-local addresses on a link belong to.
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

    /// On links that carry a place: this host's own link-local addresses, and those that DNS may go to.
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

    /// What was not told in the last 24 hours.
    fn say_once(&mut self, tell: Vec<Told>, now_ns: u64) -> Vec<Told> {
        let mut news = Vec::new();
        for told in tell {
            // An address joins once.
            if !matches!(told.what, What::Learned | What::Expired) {
                let key = (told.what, told.link.clone(), told.mac, told.addr);
                if self.told.contains_key(&key) || self.told.len() >= MAX_TOLD {
                    continue;
                }
                self.told.insert(key, now_ns);
                self.conflicts.push(told.clone());
            }
            news.push(told);
        }
        news
    }
}

fn change_of(what: What, known: &Known) -> Told {
    Told {
        what,
        addr: known.key.addr,
        link: known.link.clone(),
        mac: Mac(known.learned.mac),
        of: known.learned.of,
        place: known.learned.place,
    }
}

/// See [`Book::unnamed`].
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

/// A network whose addresses are a link's own: neither all addresses nor link-local or multicast ones.
pub(super) fn is_network(len: u8, octets: &[u8; 16]) -> bool {
    let is_v4 = octets[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let is_everything = if is_v4 { len <= 96 } else { len == 0 };
    let is_link_local = octets[0] == 0xfe && octets[1] & 0xc0 == 0x80;
    !is_everything && !is_link_local && octets[0] != 0xff
}

/// One namespace beside what policy says.
struct View<'a> {
    snapshot: &'a Snapshot,
    policy: &'a Protected,
    own_macs: BTreeSet<Mac>,
    /// Hardware addresses of routers, by link.
    routers: BTreeSet<(u32, Mac)>,
}

impl<'a> View<'a> {
    fn new(snapshot: &'a Snapshot, policy: &'a Protected) -> Self {
        let is_hop = |neighbour: &&Neighbour| snapshot.hops.iter().any(|(_, hop)| *hop == neighbour.addr);
        let is_given = |mac: &Mac| policy.macs.iter().any(|(given, _)| given == mac);
        // Policy knows better than the device's own word; but whoever is a next hop is a router.
        let says_so = |neighbour: &&Neighbour| neighbour.router && !is_given(&neighbour.mac);
        let routers = snapshot.neighbours.iter().filter(|neighbour| is_hop(neighbour) || says_so(neighbour));
        Self {
            snapshot,
            policy,
            own_macs: snapshot.links.iter().map(|link| link.mac).collect(),
            routers: routers.map(|neighbour| (neighbour.link, neighbour.mac)).collect(),
        }
    }

    const fn key(&self, link: u32) -> LinkKey {
        LinkKey { netns: self.snapshot.netns, ifindex: link }
    }

    fn near(&self, link: u32, ip: IpAddr) -> NearKey {
        let addr = addr(ip);
        NearKey { netns: self.snapshot.netns, ifindex: if addr.is_link_local() { link } else { 0 }, addr }
    }

    fn name(&self, link: u32) -> String {
        let found = self.snapshot.links.iter().find(|known| known.index == link);
        found.map_or_else(|| format!("interface {link}"), |known| known.name.clone())
    }

    fn is_hop(&self, ip: IpAddr) -> bool {
        self.snapshot.hops.iter().any(|(_, hop)| *hop == ip)
    }

    fn is_router(&self, link: u32, mac: Mac) -> bool {
        self.routers.contains(&(link, mac))
    }

    /// A router, a name server, this host, or no address of one device.
    fn is_special(&self, ip: IpAddr) -> bool {
        let snapshot = self.snapshot;
        snapshot.own.iter().any(|(_, own)| *own == ip)
            || self.is_hop(ip)
            || self.policy.resolvers.iter().any(|resolver| resolver.addr == ip)
            || ip.is_multicast()
            || ip.is_unspecified()
            || ip.is_loopback()
            || ip == IpAddr::V4(std::net::Ipv4Addr::BROADCAST)
            // What it embeds may be anywhere.
            || addr(ip).embedded().is_some()
    }

    /// Whether an address may join the place of its device.
    fn may_learn(&self, neighbour: &Neighbour) -> bool {
        let given = self.policy.macs.iter().any(|(mac, _)| *mac == neighbour.mac);
        self.policy.place(&addr(neighbour.addr)).is_none()
            && !self.is_special(neighbour.addr)
            && !self.own_macs.contains(&neighbour.mac)
            && (given || !neighbour.router && !self.is_router(neighbour.link, neighbour.mac))
    }
}
