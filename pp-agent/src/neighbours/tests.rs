//! The rules of learning, on invented links.

use std::net::IpAddr;

use pp_common::abi::{
    LEARNED_BROADCAST, LEARNED_DNS, LEARNED_MAC, LEARNED_OWN, LinkKey, NearKey, PLACE_GATEWAY_ALL_PORTS, PLACE_GATEWAY_OBSERVE,
    PLACE_ZONE_OBSERVE, Place,
};

use super::book::Book;
use super::notice::{Notice, NoticeKind};
use super::resolvers::{self, Resolver};
use super::{Link, Neighbour, Protected, Snapshot, addr, combine};
use crate::config::Config;
use crate::name::name_id;
use crate::net::{Mac, Prefix};

const NETNS: u32 = 7;
const ETH0: u32 = 2;
const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
const ROUTER: Mac = Mac([2, 0, 0, 0, 0, 9]);
const BOX: Mac = Mac([2, 0, 0, 0, 0x30, 0x50]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0x66, 0x66]);
const HOUR: u64 = 3_600 * 1_000_000_000;

const POLICY: &str = "[[gateway]]\nname = \"gw\"\naddress = \"10.30.0.50\"\nports = [443]\n";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn protected(policy: &str) -> Protected {
    Protected::of(&Config::of_text(policy), vec![Resolver { addr: ip("10.30.0.53"), link: None }])
}

/// A link with a router on it, and these neighbours.
fn link(neighbours: &[(&str, Mac)]) -> Snapshot {
    let neighbour = |(addr, mac): &(&str, Mac)| Neighbour { link: ETH0, addr: ip(addr), mac: *mac, router: false };
    let prefix = |text: &str| Prefix::from(text.parse::<ipnet::IpNet>().unwrap());
    Snapshot {
        netns: NETNS,
        links: vec![Link { index: ETH0, name: "eth0".into(), mac: OWN }],
        own: vec![(ETH0, ip("10.30.0.2")), (ETH0, ip("fe80::2"))],
        connected: vec![(ETH0, prefix("10.30.0.0/24")), (ETH0, prefix("fd00:31::/64")), (ETH0, prefix("fe80::/64"))],
        broadcasts: Vec::new(),
        hops: vec![(ETH0, ip("10.30.0.1")), (ETH0, ip("fe80::1"))],
        neighbours: [("10.30.0.1", ROUTER), ("fe80::1", ROUTER)].iter().chain(neighbours).map(neighbour).collect(),
    }
}

fn key(text: &str) -> NearKey {
    let addr = addr(ip(text));
    NearKey { netns: NETNS, ifindex: if addr.is_link_local() { ETH0 } else { 0 }, addr }
}

fn gateway(name: &str, flags: u32) -> Place {
    Place { gateway: name_id(name), flags, ..Place::default() }
}

fn zone(name: &str, flags: u32) -> Place {
    Place { zone: name_id(name), flags, ..Place::default() }
}

fn learned(book: &Book) -> Vec<IpAddr> {
    book.known().map(|known| crate::events::build::address(known.key.addr)).collect()
}

fn update(book: &mut Book, policy: &str, neighbours: &[(&str, Mac)], now_ns: u64) -> Vec<NoticeKind> {
    let notices: Vec<Notice> = book.update(&protected(policy), &[link(neighbours)], now_ns);
    notices.into_iter().map(|notice| notice.kind).collect()
}

#[test]
fn addresses_with_the_mac_of_a_protected_one_join_its_place_on_that_link_alone() {
    let mut book = Book::default();
    let all = [("10.30.0.50", BOX), ("10.30.0.51", BOX), ("fd00:31::50", BOX), ("fe80::50", BOX), ("10.30.0.60", OTHER)];
    assert_eq!(update(&mut book, POLICY, &all, 0), [NoticeKind::Learned; 3]);
    assert_eq!(book.find(&key("10.30.0.51")).unwrap().learned.place, gateway("gw", 0));
    assert!(book.find(&key("fe80::50")).is_some() && book.find(&key("10.30.0.60")).is_none() && book.find(&key("10.30.0.50")).is_none());
    assert_eq!(update(&mut book, POLICY, &all, HOUR), []);
    // The same hardware address on another link is another device.
    let mut elsewhere = link(&all[..1]);
    elsewhere.links.push(Link { index: 3, name: "eth1".into(), mac: OWN });
    elsewhere.neighbours.push(Neighbour { link: 3, addr: ip("10.40.0.51"), mac: BOX, router: false });
    let mut book = Book::default();
    book.update(&protected(POLICY), &[elsewhere], 0);
    assert!(book.known().next().is_none());
}

#[test]
fn order_does_not_matter_and_neither_does_the_named_address_going_away() {
    let mut book = Book::default();
    assert_eq!(update(&mut book, POLICY, &[("10.30.0.51", BOX)], 0), []);
    assert_eq!(update(&mut book, POLICY, &[("10.30.0.51", BOX), ("10.30.0.50", BOX)], 1), [NoticeKind::Learned]);
    assert_eq!(update(&mut book, POLICY, &[("10.30.0.52", BOX)], HOUR), [NoticeKind::Learned]);
    assert_eq!(learned(&book).len(), 2);
}

#[test]
fn routers_resolvers_and_this_host_never_join() {
    let mut book = Book::default();
    let special = [("10.30.0.50", BOX), ("10.30.0.1", BOX), ("fe80::1", BOX), ("10.30.0.53", BOX), ("10.30.0.2", BOX), ("fe80::2", BOX)];
    let notices = update(&mut book, POLICY, &special, 0);
    // A neighbour that answers for a next hop is a router: nothing is learned of it.
    assert_eq!(notices, [NoticeKind::RouterAnswers]);
    assert!(book.known().next().is_none());
    let mut book = Book::default();
    update(&mut book, POLICY, &[("10.30.0.50", BOX), ("10.30.0.53", BOX), ("10.30.0.2", BOX), ("fe80::2", BOX)], 0);
    assert!(book.known().next().is_none());
    for text in ["224.0.0.251", "ff02::fb", "2002:a00:1::1", "64:ff9b::10.1.2.3", "::10.1.2.3", "255.255.255.255", "127.0.0.1", "::1"] {
        update(&mut book, POLICY, &[("10.30.0.50", BOX), (text, BOX)], 0);
        assert!(book.known().next().is_none(), "{text}");
    }
}

#[test]
fn proxy_arp_of_a_router_and_answers_with_our_own_mac_are_conflicts_and_teach_nothing() {
    let mut book = Book::default();
    let all = [("10.30.0.50", ROUTER), ("10.30.0.77", ROUTER)];
    assert_eq!(update(&mut book, POLICY, &all, 0), [NoticeKind::RouterAnswers]);
    assert_eq!(update(&mut book, POLICY, &all, HOUR), [], "reported once a day");
    assert_eq!(update(&mut book, POLICY, &[("10.30.0.50", OWN), ("10.30.0.77", OWN)], HOUR), [NoticeKind::OwnAnswers]);
    assert!(book.known().next().is_none());
    assert_eq!(book.conflicts().len(), 2);
    update(&mut book, POLICY, &[], 26 * HOUR);
    assert!(book.conflicts().is_empty());
    assert_eq!(update(&mut book, POLICY, &all, 26 * HOUR), [NoticeKind::RouterAnswers]);
}

#[test]
fn a_neighbour_that_says_it_is_a_router_teaches_nothing_unless_policy_gives_its_mac() {
    let mut snapshot = link(&[("10.30.0.50", BOX), ("10.30.0.51", BOX)]);
    snapshot.neighbours.push(Neighbour { link: ETH0, addr: ip("fe80::50"), mac: BOX, router: true });
    let mut book = Book::default();
    book.update(&protected(POLICY), &[snapshot.clone()], 0);
    assert!(book.known().next().is_none());
    let given = format!("{POLICY}mac = \"{BOX}\"\n");
    book.update(&protected(&given), &[snapshot], 0);
    assert!(book.find(&key("10.30.0.51")).is_some() && book.find(&key("fe80::50")).is_some());
}

#[test]
fn what_joined_once_stays_whatever_the_neighbour_becomes() {
    let mut book = Book::default();
    update(&mut book, POLICY, &[("10.30.0.50", BOX), ("10.30.0.51", BOX)], 0);
    let mut snapshot = link(&[("10.30.0.50", BOX), ("10.30.0.51", BOX)]);
    // It becomes a next hop, another answers for it, it is gone: 10.30.0.51 stays protected.
    snapshot.hops.push((ETH0, ip("10.30.0.51")));
    book.update(&protected(POLICY), &[snapshot], 1);
    assert_eq!(learned(&book), [ip("10.30.0.51")]);
    assert_eq!(update(&mut book, POLICY, &[("10.30.0.51", OTHER)], 2), []);
    assert_eq!(learned(&book), [ip("10.30.0.51")]);
    assert_eq!(update(&mut book, POLICY, &[], 23 * HOUR), []);
    assert_eq!(learned(&book), [ip("10.30.0.51")]);
    assert_eq!(update(&mut book, POLICY, &[], 25 * HOUR), [NoticeKind::Expired]);
    assert!(learned(&book).is_empty());
}

#[test]
fn a_spoofed_answer_adds_protection_to_the_spoofer_and_takes_none() {
    let mut book = Book::default();
    update(&mut book, POLICY, &[("10.30.0.50", BOX), ("10.30.0.51", BOX)], 0);
    let notices = update(&mut book, POLICY, &[("10.30.0.50", OTHER), ("10.30.0.51", BOX), ("10.30.0.66", OTHER)], 1);
    assert_eq!(notices, [NoticeKind::MacChanged, NoticeKind::Learned]);
    assert_eq!(learned(&book), [ip("10.30.0.51"), ip("10.30.0.66")]);
}

#[test]
fn one_mac_for_two_places_joins_the_stricter() {
    let policy = format!("{POLICY}[[zone]]\nname = \"cell\"\nnetworks = [\"10.30.0.80/32\"]\n");
    let mut book = Book::default();
    let all = [("10.30.0.50", BOX), ("10.30.0.80", BOX), ("10.30.0.51", BOX)];
    assert!(update(&mut book, &policy, &all, 0).contains(&NoticeKind::TwoPlaces));
    let place = book.find(&key("10.30.0.51")).unwrap().learned.place;
    assert_eq!((place.zone, place.gateway), (name_id("cell"), name_id("gw")));
}

#[test]
fn learning_is_bounded_and_says_so_once() {
    let addresses: Vec<String> = (0..100).map(|host| format!("fd00:31::{host:x}:1")).collect();
    let mut all = vec![("10.30.0.50", BOX)];
    all.extend(addresses.iter().map(|text| (text.as_str(), BOX)));
    let mut book = Book::default();
    let notices = update(&mut book, POLICY, &all, 0);
    assert_eq!(notices.iter().filter(|kind| **kind == NoticeKind::Learned).count(), 64);
    assert_eq!(notices.iter().filter(|kind| **kind == NoticeKind::Full).count(), 1);
    assert_eq!(update(&mut book, POLICY, &all, 1), []);
    // Many devices, together more than there is room for.
    let device = |host: u16| {
        let [high, low] = host.to_be_bytes();
        (format!("10.20.{high}.{low}"), format!("fd00:31::{host:x}"), Mac([4, 0, 0, 0, high, low]))
    };
    let devices: Vec<_> = (1..1_500).map(device).collect();
    let mut all = Vec::new();
    for (named, further, mac) in &devices {
        all.extend([(named.as_str(), *mac), (further.as_str(), *mac)]);
    }
    let mut book = Book::default();
    update(&mut book, "[[zone]]\nname = \"plant\"\nnetworks = [\"10.20.0.0/16\"]\n", &all, 0);
    assert!(book.known().count() <= 1_024);
}

#[test]
fn forgotten_addresses_stay_forgotten_for_a_day() {
    let all = [("10.30.0.50", BOX), ("10.30.0.51", BOX)];
    let mut book = Book::default();
    update(&mut book, POLICY, &all, 0);
    assert_eq!(book.forget(&addr(ip("10.30.0.51")), 0).len(), 1);
    assert_eq!(update(&mut book, POLICY, &all, 23 * HOUR), []);
    assert!(book.known().next().is_none());
    assert_eq!(update(&mut book, POLICY, &all, 25 * HOUR), [NoticeKind::Learned]);
}

#[test]
fn policy_decides_at_once_what_was_learned_is_worth() {
    let all = [("10.30.0.50", BOX), ("10.30.0.51", BOX)];
    let mut book = Book::default();
    update(&mut book, POLICY, &all, 0);
    // An address that policy names is no longer learned.
    let named = format!("{POLICY}[[zone]]\nname = \"cell\"\nnetworks = [\"10.30.0.51/32\"]\n");
    update(&mut book, &named, &all, 1);
    assert!(book.known().next().is_none());
    update(&mut book, POLICY, &all, 2);
    assert_eq!(learned(&book), [ip("10.30.0.51")]);
    assert_eq!(update(&mut book, "", &all, 3), [NoticeKind::Expired]);
    assert!(book.known().next().is_none() && book.links().is_empty());
}

#[test]
fn a_link_carries_a_place_by_network_or_by_neighbour_and_never_by_next_hop() {
    let carried = |policy: &str, snapshot: Snapshot| {
        let mut book = Book::default();
        book.update(&protected(policy), &[snapshot], 0);
        book.links().get(&LinkKey { netns: NETNS, ifindex: ETH0 }).copied()
    };
    assert_eq!(carried(POLICY, link(&[])), Some(gateway("gw", 0)));
    let distant = "[[zone]]\nname = \"plant\"\nnetworks = [\"10.20.0.0/16\"]\n";
    assert_eq!(carried(distant, link(&[])), None);
    assert_eq!(carried(distant, link(&[("10.20.4.7", ROUTER)])), None, "proxy ARP");
    assert_eq!(carried(distant, link(&[("10.20.4.7", BOX)])), Some(zone("plant", 0)));
    let mut everything = link(&[]);
    everything.connected.push((ETH0, Prefix::from("0.0.0.0/0".parse::<ipnet::IpNet>().unwrap())));
    assert_eq!(carried(distant, everything), None, "a default route without a next hop names no network");
    let wide = "[[zone]]\nname = \"plant\"\nnetworks = [\"10.0.0.0/8\"]\n";
    assert_eq!(carried(wide, link(&[])), Some(zone("plant", 0)));
}

#[test]
fn several_places_become_one_that_is_at_least_as_strict() {
    assert_eq!(combine([gateway("a", 0), zone("z", 0)]), Place { zone: name_id("z"), ..gateway("a", 0) });
    let two = combine([gateway("a", 0), gateway("b", 0)]);
    assert_eq!(two.flags, PLACE_GATEWAY_ALL_PORTS);
    assert_eq!(combine([gateway("a", 0), gateway("a", 0)]), gateway("a", 0));
    // One that observes weakens nothing that enforces.
    let (observing, enforcing) = (zone("o", PLACE_ZONE_OBSERVE), zone("e", 0));
    assert_eq!(combine([observing, enforcing]), enforcing);
    assert_eq!(combine([gateway("o", PLACE_GATEWAY_OBSERVE), enforcing]), enforcing);
    assert_eq!(combine([gateway("o", PLACE_GATEWAY_OBSERVE)]), gateway("o", PLACE_GATEWAY_OBSERVE));
    assert_eq!(combine([]), Place::default());
}

#[test]
fn mac_in_policy_gives_the_addresses_that_a_device_makes_of_it() {
    let policy = format!("{POLICY}mac = [\"{BOX}\"]\n");
    let mut book = Book::default();
    update(&mut book, &policy, &[], 0);
    let known: Vec<_> = book.known().map(|known| (known.key, known.learned.flags)).collect();
    assert_eq!(known, [(key("fd00:31::ff:fe00:3050"), LEARNED_MAC), (key("fe80::ff:fe00:3050"), LEARNED_MAC)]);
    assert_eq!(update(&mut book, &policy, &[], 100 * HOUR), [], "it does not expire");
    assert!(book.forget(&addr(ip("fe80::ff:fe00:3050")), 0).is_empty());
    assert_eq!(update(&mut book, &policy, &[("10.30.0.51", BOX)], 0), [NoticeKind::Learned]);
    update(&mut book, POLICY, &[], 0);
    assert!(book.known().next().is_none());
}

#[test]
fn own_addresses_and_dns_are_exempt_on_links_that_carry_a_place() {
    let mut book = Book::default();
    let mut protected = protected(POLICY);
    protected.resolvers.push(Resolver { addr: ip("fe80::53"), link: Some("eth0".into()) });
    protected.resolvers.push(Resolver { addr: ip("fe80::54"), link: Some("eth9".into()) });
    book.update(&protected, &[link(&[])], 0);
    let exempt: Vec<_> = book.entries().map(|(key, known)| (key, known.flags)).collect();
    assert_eq!(exempt, [(key("fe80::1"), LEARNED_DNS), (key("fe80::2"), LEARNED_OWN), (key("fe80::53"), LEARNED_DNS)]);
    book.update(&super::Protected::default(), &[link(&[])], 0);
    assert_eq!(book.entries().count(), 0);
}

#[test]
fn what_the_maps_hold_is_taken_over_and_goes_on_counting() {
    let mut book = Book::default();
    update(&mut book, POLICY, &[("10.30.0.50", BOX), ("10.30.0.51", BOX)], 0);
    let links = book.links().iter().map(|(key, place)| (*key, *place)).collect::<Vec<_>>();
    let mut again = Book::restore(links, book.entries().collect::<Vec<_>>());
    assert_eq!(update(&mut again, POLICY, &[], HOUR), []);
    assert_eq!(learned(&again), [ip("10.30.0.51")]);
    assert_eq!(update(&mut again, POLICY, &[("10.30.0.52", BOX)], HOUR), [NoticeKind::Learned], "its device is still known");
    again.update(&protected(POLICY), &[], HOUR);
    assert!(again.known().next().is_none(), "of a namespace that is gone");
}

#[test]
fn networks_that_no_zone_names_are_listed() {
    let mut book = Book::default();
    update(&mut book, POLICY, &[], 0);
    assert_eq!(book.unnamed().iter().map(|(link, prefix)| format!("{link} {prefix}")).collect::<Vec<_>>(), ["eth0 fd00:31::/64"]);
    let named = format!("{POLICY}[[zone]]\nname = \"v6\"\nnetworks = [\"fd00:31::/64\"]\n");
    update(&mut book, &named, &[], 0);
    assert!(book.unnamed().is_empty());
}

#[test]
fn hardware_addresses_are_read_strictly() {
    assert_eq!(Mac::parse("02:00:00:00:30:50"), Some(BOX));
    assert_eq!(Mac::parse("02-00-00-00-30-50"), Some(BOX));
    for text in [
        "",
        "02:00:00:00:30",
        "02:00:00:00:30:50:60",
        "2:0:0:0:30:50",
        "02:00:00:00:30:5g",
        "01:00:5e:00:00:01",
        "00:00:00:00:00:00",
        "0200.0000.3050",
    ] {
        assert_eq!(Mac::parse(text), None, "{text}");
    }
    assert_eq!(BOX.eui64("fd00:31::".parse().unwrap()), "fd00:31::ff:fe00:3050".parse::<std::net::Ipv6Addr>().unwrap());
}

#[test]
fn name_servers_are_read_with_their_links() {
    let found = resolvers::parse("# comment\nnameserver 10.0.0.1\n nameserver fe80::1%eth0 \nnameserver bad\nsearch x\n");
    assert_eq!(found, [Resolver { addr: ip("10.0.0.1"), link: None }, Resolver { addr: ip("fe80::1"), link: Some("eth0".into()) }]);
}

/// A link with these directed broadcasts.
fn broadcasting(of: &[(u32, &str)]) -> Snapshot {
    Snapshot { broadcasts: of.iter().map(|(link, text)| (*link, ip(text))).collect(), ..link(&[]) }
}

fn broadcasts(book: &Book) -> Vec<(NearKey, Place)> {
    book.broadcasts().collect()
}

#[test]
fn directed_broadcasts_belong_to_what_their_link_carries() {
    let mut book = Book::default();
    let seen = broadcasting(&[(ETH0, "10.30.0.255"), (ETH0, "10.30.0.0"), (3, "10.40.255.255")]);
    assert_eq!(book.update(&protected(POLICY), std::slice::from_ref(&seen), 0), []);
    assert_eq!(broadcasts(&book), [(key("10.30.0.0"), gateway("gw", 0)), (key("10.30.0.255"), gateway("gw", 0))]);
    assert!(book.entries().filter(|(_, known)| known.flags == LEARNED_BROADCAST).count() == 2 && book.known().next().is_none());
    assert_eq!(book.find(&key("10.30.0.255")).unwrap().link, "eth0");
    // What policy names is its own, and a link that carries nothing has none.
    let named = format!("{POLICY}[[zone]]\nname = \"cell\"\nnetworks = [\"10.30.0.255/32\"]\n");
    book.update(&protected(&named), std::slice::from_ref(&seen), 1);
    assert_eq!(broadcasts(&book).len(), 1);
    book.update(&protected(""), &[seen], 2);
    assert_eq!(broadcasts(&book), []);
}

#[test]
fn a_broadcast_of_two_links_belongs_to_the_places_of_both() {
    let policy = format!("{POLICY}[[zone]]\nname = \"cell\"\nnetworks = [\"10.40.0.0/24\"]\n");
    let mut seen = broadcasting(&[(ETH0, "10.30.0.255"), (3, "10.30.0.255")]);
    seen.links.push(Link { index: 3, name: "eth1".into(), mac: OTHER });
    seen.connected.push((3, Prefix::from("10.40.0.0/16".parse::<ipnet::IpNet>().unwrap())));
    let mut book = Book::default();
    book.update(&protected(&policy), &[seen], 0);
    assert_eq!(broadcasts(&book), [(key("10.30.0.255"), Place { zone: name_id("cell"), ..gateway("gw", 0) })]);
}

#[test]
fn broadcasts_outlast_the_daemon_and_expire_without_an_event() {
    let mut book = Book::default();
    book.update(&protected(POLICY), &[broadcasting(&[(ETH0, "10.30.0.255")])], 0);
    let links = book.links().iter().map(|(key, place)| (*key, *place)).collect::<Vec<_>>();
    let mut again = Book::restore(links, book.entries().collect::<Vec<_>>());
    assert_eq!(broadcasts(&again), [(key("10.30.0.255"), gateway("gw", 0))]);
    assert_eq!(again.update(&protected(POLICY), &[link(&[])], 1), []);
    assert_eq!(broadcasts(&again), []);
}

#[test]
fn broadcasts_that_do_not_fit_are_told_once() {
    let most = super::broadcasts::MAX_BROADCASTS;
    let texts: Vec<String> = (0..=most).map(|at| format!("10.31.{}.{}", at / 256, at % 256)).collect();
    let seen = broadcasting(&texts.iter().map(|text| (ETH0, text.as_str())).collect::<Vec<_>>());
    let mut book = Book::default();
    let notices = book.update(&protected(POLICY), std::slice::from_ref(&seen), 0);
    assert_eq!(
        notices.iter().map(|notice| (notice.kind, notice.link.as_str())).collect::<Vec<_>>(),
        [(NoticeKind::FullOfBroadcasts, "eth0")]
    );
    assert_eq!(broadcasts(&book).len(), most);
    assert_eq!(book.update(&protected(POLICY), &[seen], 1), []);
}
