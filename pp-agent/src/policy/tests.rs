use super::*;
use crate::receipt::terms::{PortRange, Transport};
use crate::receipt::{Surface as _, Touched};
use pp_common::abi::{MAX_CGROUPS, MAX_GRANT_PREFIXES, MAX_PLACES};
use pp_common::decide::{Attempt, Kind, Reason, Subject, Tables, Verdict, decide, transport};
use pp_common::dest::Addr;
use proptest::prelude::*;
use std::collections::HashMap;
use std::net::IpAddr;

fn tables(text: &str, receipts: &[GrantSource]) -> HostTables {
    HostTables::new(&compile(&Config::of_text(text), receipts, &[], &[]).unwrap(), 1_000, HashMap::new())
}

fn addr(text: &str) -> Addr {
    match text.parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => Addr::v4(v4.octets()),
        IpAddr::V6(v6) => Addr::v6(v6.octets()),
    }
}

fn prefix(text: &str) -> Prefix {
    text.parse::<IpNet>().unwrap().into()
}

fn receipt(serial: Serial, networks: &[&str], (first, last): (u16, u16)) -> GrantSource {
    let target = |text: &&str| Target { network: text.parse().unwrap(), transport: Transport::Tcp, ports: vec![PortRange { first, last }] };
    GrantSource {
        serial,
        agent: 7,
        session: 0,
        uids: Some(vec![1000]),
        targets: networks.iter().map(target).collect(),
        from_ns: 0,
        until_ns: 2_000,
        max_connections: 0,
        max_attempts: 0,
        max_turns: 0,
        ended: 0,
    }
}

fn touched_with(config: &Config, learned: &LearnedPlaces, network: &str, ports: &[(u16, u16)]) -> Touched {
    let ports: Vec<PortRange> = ports.iter().map(|(first, last)| PortRange { first: *first, last: *last }).collect();
    PolicySurface { config, learned }.touches(network.parse().unwrap(), Transport::Tcp, &ports)
}

const NESTED: &str = "
[[zone]]
name = 'plant'
networks = ['10.20.0.0/16', 'fd00:20::/32']
[[zone]]
name = 'cell'
networks = ['10.20.4.0/24']
mode = 'observe'
[[gateway]]
name = 'gate'
address = '10.20.4.9'
ports = [443]
[[gateway]]
name = 'open-gate'
address = '10.30.0.1'
";

#[test]
fn each_gateway_has_its_limits_and_a_receipt_its_own() {
    let policy = format!("{NESTED}max_turns = 40\nmax_bytes_out = 9000\n");
    let mut strict = receipt(3, &["10.30.0.1/32"], (443, 443));
    strict.max_turns = 5;
    let tables = compile(&Config::of_text(&policy), &[receipt(2, &["10.30.0.1/32"], (443, 443)), strict], &[], &[]).unwrap();
    let own = Limits { max_turns: 40, max_bytes_out: 9_000, pad: 0 };
    let this_host = (name_id(THIS_HOST), Limits::default());
    assert_eq!(tables.gateway_limits, [(name_id("gate"), Limits::default()), (name_id("open-gate"), own), this_host]);
    assert_eq!(tables.receipt_turns, [(3, 5)]);
}

#[test]
fn an_address_belongs_to_its_most_specific_zone() {
    let tables = tables(NESTED, &[]);
    let zone = |text| tables.place(&addr(text)).map_or(0, |place| place.zone);
    assert_eq!(zone("10.20.1.1"), name_id("plant"));
    assert_eq!(zone("10.20.4.1"), name_id("cell"));
    assert_eq!(zone("fd00:20::1"), name_id("plant"));
    assert_eq!(zone("10.21.0.1"), 0);
    assert_eq!(tables.place(&addr("10.20.4.1")).unwrap().flags, PLACE_ZONE_OBSERVE);
}

#[test]
fn a_gateway_entry_carries_the_zone_around_it() {
    let tables = tables(NESTED, &[]);
    let place = tables.place(&addr("10.20.4.9")).unwrap();
    assert_eq!((place.zone, place.gateway), (name_id("cell"), name_id("gate")));
    assert_eq!(place.flags, PLACE_ZONE_OBSERVE);
    assert!(tables.gateway_port(place.gateway, 443));
    assert!(!tables.gateway_port(place.gateway, 80));
    let open = tables.place(&addr("10.30.0.1")).unwrap();
    assert_eq!((open.zone, open.flags), (0, PLACE_GATEWAY_ALL_PORTS));
}

#[test]
fn a_gateway_with_the_very_prefix_of_a_zone_is_one_entry_with_both() {
    let text = "[[zone]]\nname = 'z'\nnetworks = ['10.0.0.1/32']\n[[gateway]]\nname = 'g'\naddress = '10.0.0.1'";
    let compiled = compile(&Config::of_text(text), &[], &[], &[]).unwrap();
    let here: Vec<_> = compiled.places.iter().filter(|(at, _)| *at == prefix("10.0.0.1/32")).collect();
    assert_eq!(here.len(), 1);
    let place = here[0].1;
    assert_eq!((place.zone, place.gateway), (name_id("z"), name_id("g")));
}

#[test]
fn this_host_is_a_gateway_to_itself_on_the_ports_of_delegates() {
    let verdict = |text: &str, dialled: &str, kind: Kind, port: u16| {
        let tables = HostTables::new(&compile(&Config::of_text(text), &[], &[], &[addr("10.9.0.2")]).unwrap(), 0, HashMap::new());
        let subject = Subject { session: 1, agent: 7, owner: 1000 };
        let transport = if matches!(kind, Kind::Portless) { 1 } else { transport::TCP };
        let attempt = Attempt { addr: addr(dialled), port, transport, kind, counted: 0 };
        decide(&tables, &subject, &attempt).verdict
    };
    for dialled in ["127.0.0.1", "127.8.8.8", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "10.9.0.2"] {
        assert_eq!(verdict("", dialled, Kind::Open, 22), Verdict::Block, "{dialled}");
        assert_eq!(verdict("", dialled, Kind::Open, 8080), Verdict::Allow, "{dialled}");
        assert_eq!(verdict("", dialled, Kind::Portless, 0), Verdict::Allow, "{dialled}");
    }
    assert_eq!(verdict("", "10.9.0.3", Kind::Open, 22), Verdict::Allow);
    let allowed = "[[delegate]]\nname = 'ssh-server'\naction = 'allow'";
    assert_eq!(verdict(allowed, "127.0.0.1", Kind::Open, 22), Verdict::Allow);
    assert_eq!(verdict(allowed, "127.0.0.1", Kind::Open, 10250), Verdict::Block);
    let zone = "[[zone]]\nname = 'z'\nnetworks = ['127.0.0.0/8']";
    assert_eq!(verdict(zone, "127.0.0.1", Kind::Portless, 0), Verdict::Block);
    let touched = touched("", "127.0.0.1/32", &[(20, 30)]);
    assert_eq!(touched.gateways, [THIS_HOST]);
    assert!(touched.unprotected_part);
}

#[test]
fn mapped_networks_are_ipv4_and_embedding_ones_stay_literal() {
    assert_eq!(prefix("::ffff:10.20.0.0/112"), prefix("10.20.0.0/16"));
    assert_eq!(prefix("10.20.0.0/16").len, 112);
    assert_ne!(prefix("64:ff9b::10.20.4.0/120"), prefix("10.20.4.0/24"));
    assert_eq!(prefix("10.20.0.0/16").to_string(), "10.20.0.0/16");
    assert_eq!(prefix("fd00:20::/32").to_string(), "fd00:20::/32");
    assert!(prefix("::/0").covers(&prefix("10.0.0.0/8")));
}

#[test]
fn enabled_services_are_in_the_tables_port_by_port() {
    let text = "[services]\nenable = ['codesys', 'opc-ua']\nreplace = true\nmode = 'observe'";
    let compiled = compile(&Config::of_text(text), &[], &[], &[]).unwrap();
    let ports: Vec<_> = compiled.services.iter().map(|(key, _)| *key).collect();
    let tcp = |port| (transport::TCP, port);
    let udp = |port| (transport::UDP, port);
    let tcp_ports = [1217, 2455, 4840, 4843, 11740, 11741, 11742, 11743].map(tcp);
    let udp_ports = [1740, 1741, 1742, 1743, 2455, 4840, 4843].map(udp);
    assert_eq!(ports, [&tcp_ports[..], &udp_ports[..]].concat());
    assert!(compiled.services.iter().all(|(_, service)| service.flags == SERVICE_OBSERVE));
}

#[test]
fn grants_of_wider_networks_hold_in_narrower_ones() {
    let receipts = [receipt(1, &["10.20.0.0/16"], (502, 502)), receipt(2, &["10.20.4.0/24", "10.20.5.7/32"], (80, 90))];
    let tables = tables("", &receipts);
    let serials = |text| {
        tables
            .grants(&addr(text))
            .map_or_else(Vec::new, |list| list.grants.iter().take(list.len as usize).map(|grant| grant.serial).collect())
    };
    assert_eq!(serials("10.20.9.9"), [1]);
    assert_eq!(serials("10.20.4.1"), [1, 2]);
    assert_eq!(serials("10.20.5.7"), [1, 2]);
    assert_eq!(serials("10.20.5.8"), [1]);
    assert!(serials("10.21.0.1").is_empty());
}

#[test]
fn a_receipt_opens_its_target_and_nothing_else() {
    let tables = tables(NESTED, &[receipt(1, &["10.20.1.7/32"], (502, 502))]);
    let decided = |text, port, owner| {
        let attempt = Attempt { addr: addr(text), port, transport: transport::TCP, kind: Kind::Open, counted: 0 };
        let decision = decide(&tables, &Subject { session: 5, agent: 7, owner }, &attempt);
        (decision.verdict, decision.reason)
    };
    assert_eq!(decided("10.20.1.7", 502, 1000), (Verdict::Allow, Reason::Receipt));
    assert_eq!(decided("10.20.1.7", 503, 1000), (Verdict::Block, Reason::ReceiptOtherPort));
    assert_eq!(decided("10.20.1.7", 502, 1001), (Verdict::Block, Reason::ReceiptOtherUser));
    assert_eq!(decided("10.20.1.8", 502, 1000), (Verdict::Block, Reason::NoReceipt));
    assert_eq!(decided("10.20.4.1", 80, 1000), (Verdict::Observe, Reason::NoReceipt));
    assert_eq!(decided("93.184.216.34", 443, 1000), (Verdict::Allow, Reason::NotProtected));
    assert_eq!(decided("127.0.0.1", 502, 1000), (Verdict::Allow, Reason::NotProtected));
}

#[test]
fn more_grants_than_an_entry_holds_are_refused_naming_the_place() {
    let most = u32::try_from(MAX_GRANTS_PER_PREFIX).unwrap();
    let wide: Vec<GrantSource> = (1..most).map(|serial| receipt(serial, &["10.0.0.0/8"], (1, 9))).collect();
    let narrow = [receipt(most + 1, &["10.1.0.0/16"], (1, 9)), receipt(most + 2, &["10.1.0.0/16"], (1, 9))];
    let config = Config::of_text("");
    compile(&config, &[wide.clone(), narrow[..1].to_vec()].concat(), &[], &[]).unwrap();
    let error = compile(&config, &[wide, narrow.to_vec()].concat(), &[], &[]).unwrap_err();
    let need = MAX_GRANTS_PER_PREFIX + 1;
    assert_eq!(error, PolicyError::Grants { prefix: prefix("10.1.0.0/16"), need });
    assert!(error.to_string().starts_with(&format!("10.1.0.0/16: {need} grants")), "{error}");
}

#[test]
fn tables_that_do_not_fit_are_refused_before_the_kernel_sees_them() {
    let config = Config::of_text("");
    let hosts: Vec<String> = (0..=MAX_GRANT_PREFIXES / 2).map(|n| format!("10.{}.{}.{}/32", n >> 16, n >> 8 & 255, n & 255)).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let error = compile(&config, &[receipt(1, &hosts, (1, 9))], &[], &[]).unwrap_err();
    assert!(matches!(error, PolicyError::Table { table: "receipt targets", .. }), "{error}");
    compile(&config, &[receipt(1, &hosts[1..], (1, 9))], &[], &[]).unwrap();
    let cgroups: Vec<(u64, NameId)> = (0..=u64::from(MAX_CGROUPS)).map(|id| (id, 1)).collect();
    let error = compile(&config, &[], &cgroups, &[]).unwrap_err();
    assert!(matches!(error, PolicyError::Table { table: "cgroups of agents", .. }), "{error}");
    let mut config = Config::of_text("[[zone]]\nname = 'z'\nnetworks = ['10.0.0.0/32']");
    // No text of a policy comes so far, since it is refused as it is read.
    config.zones[0].networks = (0..=MAX_PLACES / 2).map(|n| IpNet::from(IpAddr::from((0x0a00_0000 | n).to_be_bytes()))).collect();
    let error = compile(&config, &[], &[], &[]).unwrap_err();
    assert!(matches!(error, PolicyError::Table { table: "zones and gateways", .. }), "{error}");
    // A policy that is taken leaves room for every address that can come to the host.
    config.zones[0].networks.truncate((MAX_PLACES / 2 - MAX_OWN) as usize);
    let lasting = loop {
        match compile(&config, &[], &[], &[]) {
            Ok(tables) => break tables.places.len(),
            Err(_) => config.zones[0].networks.pop(),
        };
    };
    let address = |n: u32| {
        let [.., high, low] = n.to_be_bytes();
        Addr::v4([172, 16, high, low])
    };
    let own: Vec<Addr> = (0..=MAX_OWN).map(address).collect();
    let places = compile(&config, &[], &[], &own).unwrap().places.len();
    assert!(places == lasting + MAX_OWN as usize && places == (MAX_PLACES / 2) as usize, "{lasting}, then {places}");
}

/// So many networks, single addresses from the first of `10.N.0.0/16`, as a list of TOML.
fn hosts(second: u8, count: usize) -> String {
    let host = |n: usize| format!("'10.{second}.{}.{}/32'", n >> 8, n & 255);
    (0..count).map(host).collect::<Vec<_>>().join(",")
}

/// A policy with so many networks of each kind, and with ten gateways.
fn large(places: usize, exempt: usize, judged: usize) -> String {
    let gateway = |n: usize| format!("[[gateway]]\nname = 'g{n}'\naddress = '10.9.0.{n}'\nports = [443]\n");
    let gateways: String = (0..10).map(gateway).collect();
    format!(
        "[[zone]]\nname = 'z'\nnetworks = [{}]\n{gateways}[services]\nexempt = [{}]\n[behaviour]\ninternal = [{}]\nexempt = [{}]",
        hosts(20, places - 10),
        // Loopback is exempt as shipped.
        hosts(21, exempt - 2),
        hosts(22, judged - 1_010),
        hosts(23, 1_000)
    )
}

/// What one generation of each table holds of policy: beside the host's own addresses, loopback, the canary and private networks.
const ROOM: [usize; 3] = [maps::PLACES.room() - 1_024 - 3, maps::EXEMPT.room(), maps::GROUNDS.room() - 8];

#[test]
fn largest_policy_that_fits_fills_its_tables() {
    let [places, exempt, judged] = ROOM;
    let config = Config::of_text(&large(places, exempt, judged));
    let own: Vec<Addr> = (0..1_024_u32).map(|n| Addr::v4((0xac10_0000 | n).to_be_bytes())).collect();
    let tables = compile(&config, &[], &[], &own).unwrap();
    assert_eq!(tables.places.len(), maps::PLACES.room());
    assert_eq!(tables.exempt.len(), maps::EXEMPT.room());
    assert_eq!(tables.judged_networks.len(), maps::GROUNDS.room());
    let last = prefix(&format!("10.20.{}.{}/32", (places - 11) >> 8, (places - 11) & 255));
    assert!(tables.places.binary_search_by_key(&last, |(at, _)| *at).is_ok_and(|at| tables.places[at].1.zone == name_id("z")));
}

#[test]
fn one_network_more_than_fits_is_refused_with_both_numbers_and_what_to_do() {
    let [places, exempt, judged] = ROOM;
    let says = |text: &str| {
        let source = crate::config::Source { name: "policy.toml".to_owned(), text: text.to_owned() };
        Config::from_sources(vec![source]).map(|_| String::new()).unwrap_or_else(|error| error.to_string())
    };
    let join = "write one wider network instead of many small ones";
    assert_eq!(
        says(&large(places + 1, exempt, judged)),
        format!("networks of zones and gateways: 7166 written, 7165 fit; {join}, or one zone instead of many gateways")
    );
    assert_eq!(says(&large(places, exempt + 1, judged)), format!("networks of [services] exempt: 1025 written, 1024 fit; {join}"));
    assert_eq!(says(&large(places, exempt, judged + 1)), format!("networks of [behaviour] and gateways: 16377 written, 16376 fit; {join}"));
    // A network that is written twice counts once, and so does a gateway whose address is a network.
    let twice = large(places, exempt, judged).replace("networks = [", "networks = ['10.9.0.3/32','10.20.0.7/32',");
    assert_eq!(says(&twice), "");
}

#[test]
fn sixty_thousand_networks_are_counted_in_the_error() {
    let hosts: String = (0..60_000_u32).map(|n| format!("'10.{}.{}.{}/32',", n >> 16, n >> 8 & 255, n & 255)).collect();
    let source = |text: String| vec![crate::config::Source { name: "policy.toml".to_owned(), text }];
    for (table, most) in [("[[zone]]\nname = 'z'\nnetworks", 7_165), ("[services]\nexempt", 1_024), ("[behaviour]\ninternal", 16_376)] {
        let error = Config::from_sources(source(format!("{table} = [{hosts}]"))).map(drop).unwrap_err().to_string();
        let need = if table.contains("services") { 60_002 } else { 60_000 };
        assert!(error.contains(&format!(": {need} written, {most} fit; ")), "{table}: {error}");
    }
}

#[test]
fn compiling_twice_gives_equal_tables() {
    let receipts = [receipt(2, &["10.20.4.0/24"], (1, 9)), receipt(1, &["10.0.0.0/8"], (1, 9))];
    let config = Config::of_text(NESTED);
    let once = compile(&config, &receipts, &[(9, 1)], &[]).unwrap();
    assert_eq!(once, compile(&config, &receipts, &[(9, 1)], &[]).unwrap());
    assert_eq!(once.identity.cgroups, [(9, 1)]);
}

fn touched(text: &str, network: &str, ports: &[(u16, u16)]) -> Touched {
    touched_with(&Config::of_text(text), &LearnedPlaces::default(), network, ports)
}

#[test]
fn a_target_that_was_learned_or_is_link_local_touches_the_place_it_joined() {
    let config = Config::of_text(NESTED);
    let place = |zone: &str, gateway: &str| Place {
        zone: if zone.is_empty() { 0 } else { name_id(zone) },
        gateway: if gateway.is_empty() { 0 } else { name_id(gateway) },
        ..Place::default()
    };
    let learned = vec![(addr("fd00:31::50"), place("plant", "")), (addr("10.40.0.51"), place("", "gate"))];
    let places = LearnedPlaces::new(learned, vec![place("cell", "")]);
    let touched = |network: &str, port| touched_with(&config, &places, network, &[(port, port)]);
    assert_eq!(touched("fd00:31::50/128", 80).zones, ["plant"]);
    assert!(!touched("fd00:31::50/128", 80).unprotected_part);
    assert_eq!(touched("10.40.0.51/32", 443).gateways, ["gate"]);
    assert!(touched("10.40.0.51/32", 80).gateways.is_empty() && touched("10.40.0.51/32", 80).unprotected_part);
    assert_eq!(touched("fe80::77/128", 80).zones, ["cell"]);
    assert_eq!(touched("fe80::/10", 80).zones, ["cell"]);
    assert!(touched("fd00:31::51/128", 80).zones.is_empty());
}

/// A receipt opens an address on every link: who has one for what everybody gets may open the places of all.
#[test]
fn a_target_that_everybody_on_a_link_gets_touches_the_places_of_all_links() {
    let config = Config::of_text(NESTED);
    let of = |zone: &str| Place { zone: name_id(zone), ..Place::default() };
    let touched = |links: Vec<Place>, network: &str| {
        touched_with(&config, &LearnedPlaces::new(vec![(addr("::ffff:10.40.255.255"), of("cell"))], links), network, &[(5000, 5000)])
    };
    for network in ["255.255.255.255/32", "224.0.0.1/32", "239.0.0.0/8", "ff02::1/128"] {
        let one = touched(vec![of("cell")], network);
        assert_eq!((one.zones.as_slice(), one.unprotected_part), (&["cell".to_owned()][..], false), "{network}");
        assert_eq!(touched(vec![of("cell"), of("plant")], network).zones, ["plant", "cell"], "{network}");
        assert!(touched(Vec::new(), network).zones.is_empty(), "{network}");
    }
    // A directed broadcast is one link's.
    assert_eq!(touched(vec![of("cell"), of("plant")], "10.40.255.255/32").zones, ["cell"]);
}

#[test]
fn a_target_touches_every_zone_it_overlaps() {
    let zones = |network| touched(NESTED, network, &[(502, 502)]).zones;
    assert_eq!(zones("10.20.1.7/32"), ["plant"]);
    assert_eq!(zones("10.20.4.7/32"), ["plant", "cell"]);
    assert_eq!(zones("10.0.0.0/8"), ["plant", "cell"]);
    assert!(zones("10.21.0.0/16").is_empty());
}

#[test]
fn a_target_touches_a_gateway_where_address_and_port_meet() {
    let gateways = |network, ports| touched(NESTED, network, &[ports]).gateways;
    assert_eq!(gateways("10.20.4.9/32", (443, 443)), ["gate"]);
    assert!(gateways("10.20.4.9/32", (80, 80)).is_empty());
    assert_eq!(gateways("10.0.0.0/8", (1, 65535)), ["gate", "open-gate"]);
    assert_eq!(gateways("10.30.0.1/32", (80, 80)), ["open-gate"]);
}

#[test]
fn services_count_for_the_part_of_a_target_outside_zones() {
    let outside = |network, ports| touched(NESTED, network, &[ports]);
    assert!(outside("10.20.1.0/24", (502, 502)).services_outside.is_empty());
    assert!(!outside("10.20.1.0/24", (1, 65535)).unprotected_part);
    let wide = outside("10.20.0.0/15", (502, 502));
    assert_eq!((wide.services_outside.as_slice(), wide.unprotected_part), (&["modbus".to_owned()][..], false));
    let plain = outside("10.40.0.1/32", (80, 81));
    assert_eq!((plain.services_outside.len(), plain.unprotected_part), (0, true));
    let mixed = outside("10.40.0.1/32", (500, 510));
    assert_eq!((mixed.services_outside.as_slice(), mixed.unprotected_part), (&["modbus".to_owned()][..], true));
    let gate = outside("10.30.0.1/32", (1, 65535));
    assert_eq!((gate.services_outside.len(), gate.unprotected_part), (0, false));
    let loopback = outside("127.0.0.1/32", (502, 502));
    assert_eq!((loopback.services_outside.len(), loopback.unprotected_part), (0, true));
}

#[test]
fn two_zones_that_are_halves_leave_nothing_outside() {
    let text = "[[zone]]\nname = 'a'\nnetworks = ['10.0.0.0/9']\n[[zone]]\nname = 'b'\nnetworks = ['10.128.0.0/9']";
    let whole = touched(text, "10.0.0.0/8", &[(502, 502)]);
    assert_eq!(whole, Touched { zones: vec!["a".to_owned(), "b".to_owned()], ..Touched::default() });
}

fn networks() -> impl Strategy<Value = IpNet> {
    // Few bits that differ, so that networks nest and addresses fall into them.
    (0u32..64, 24u8..=32).prop_map(|(low, len)| IpNet::V4(ipnet::Ipv4Net::new((0x0a14_0400 | low << 2).into(), len).unwrap()).trunc())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flattened_grants_are_those_of_every_network_around_an_address(
        targets in prop::collection::vec((networks(), 1u16..100, 0u16..50), 1..=MAX_GRANTS_PER_PREFIX),
        hosts in prop::collection::vec(0u32..=255, 16),
    ) {
        let receipts: Vec<GrantSource> = (1..)
            .zip(&targets)
            .map(|(serial, (net, first, more))| receipt(serial, &[net.to_string().as_str()], (*first, first + more)))
            .collect();
        let Ok(flat) = grants(&receipts, &user_bits(&receipts).unwrap()) else {
            return Err(TestCaseError::reject("more grants than an entry holds"));
        };
        for host in hosts {
            let address = Addr::v4((0x0a14_0400 | host).to_be_bytes());
            let mut naive: Vec<Serial> = receipts
                .iter()
                .filter(|receipt| Prefix::from(receipt.targets[0].network).contains(&address))
                .map(|receipt| receipt.serial)
                .collect();
            naive.sort_unstable();
            let longest = flat.iter().filter(|(net, _)| net.contains(&address)).max_by_key(|(net, _)| net.len);
            let found: Vec<Serial> =
                longest.map_or_else(Vec::new, |(_, list)| list.iter().map(|grant| grant.serial).collect());
            prop_assert_eq!(found, naive);
        }
    }

    #[test]
    fn flattened_places_are_the_most_specific_zone_and_the_gateway(
        zones in prop::collection::btree_set(networks(), 1..12),
        gates in prop::collection::btree_set(0u32..=255, 0..6),
        hosts in prop::collection::vec(0u32..=255, 16),
    ) {
        let mut config = Config::builtin().unwrap();
        config.zones = zones
            .iter()
            .map(|net| crate::config::Zone { name: net.to_string(), networks: vec![*net], macs: Vec::new(), mode: Mode::Enforce })
            .collect();
        config.gateways = gates
            .iter()
            .map(|low| std::net::Ipv4Addr::from(0x0a14_0400 | low))
            .map(|ip| crate::config::Gateway {
                macs: Vec::new(),
                name: ip.to_string(),
                address: ip.into(),
                ports: vec![443],
                mode: Mode::Enforce,
                limits: Limits::default(),
            })
            .collect();
        let tables = HostTables::new(&compile(&config, &[], &[], &[]).unwrap(), 0, HashMap::new());
        for host in hosts {
            let ip = std::net::Ipv4Addr::from(0x0a14_0400 | host);
            let zone = zones
                .iter()
                .filter(|net| net.contains(&IpNet::from(IpAddr::from(ip))))
                .max_by_key(|net| net.prefix_len())
                .map_or(0, |net| name_id(&net.to_string()));
            let gateway = if gates.contains(&host) { name_id(&ip.to_string()) } else { 0 };
            let place = tables.place(&Addr::v4(ip.octets())).unwrap_or_default();
            prop_assert_eq!((place.zone, place.gateway), (zone, gateway));
        }
    }
}
