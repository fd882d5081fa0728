use super::*;
use crate::events::{Attempt, Body, Place, Tool, Trip, Usage, Verdict as Decided};
use pp_common::decide::{Reason, Verdict};
use proptest::prelude::*;

fn event(reason: &str, address: &str, port: u16) -> Event {
    Event::of_attempt("observe", reason, address, port)
}

fn of_text(target: &str) -> Destination {
    let address: std::net::SocketAddr = target.strip_suffix("/tcp").unwrap().parse().unwrap();
    Destination { address: address.ip(), port: Some(address.port()), transport: transport::TCP }
}

fn tripped(port: u16, targets: &[&str]) -> Event {
    let mut event = event("scan_hosts", "10.50.0.1", port);
    let targets = targets.iter().map(|target| of_text(target)).collect();
    event.attempt_mut().trip = Some(Trip { count: 26, window_s: 300, targets, ..Trip::default() });
    event
}

fn proposal(config: &Config, events: &[Event]) -> String {
    let mut observed = Observed::new(Draft::new(config).unwrap());
    events.iter().for_each(|event| observed.take(event).unwrap());
    observed.propose().unwrap().toml
}

fn beside(config: &Config, toml: &str) -> Config {
    let mut sources = config.sources.clone();
    sources.push(Source { name: "drop-in".into(), text: toml.into() });
    Config::from_sources(sources).unwrap()
}

/// The proposal with everything put back that was taken out.
fn put_back(toml: &str) -> String {
    let line = |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned() + "\n";
    toml.lines().map(line).collect()
}

fn networks(config: &Config) -> Vec<String> {
    config.zones.iter().flat_map(|zone| zone.networks.iter().map(ToString::to_string)).collect()
}

#[test]
fn stray_equipment_becomes_a_zone_no_wider_than_it_needs() {
    let policy = Config::of_text("");
    let events = [
        event("no_receipt", "10.40.0.5", 502),
        event("no_receipt", "10.40.0.5", 502),
        event("no_receipt", "10.40.1.8", 102),
        event("no_receipt", "10.40.1.11", 102),
        event("no_receipt", "10.40.2.1", 502),
        event("no_receipt", "10.40.2.254", 502),
        event("no_receipt", "fd00:20::7", 502),
        event("no_receipt", "fd00:20::9", 502),
        event("no_receipt", "fd00:21::7", 502),
        event("no_receipt", "::ffff:10.41.0.1", 502),
        event("no_receipt", "64:ff9b::10.42.0.1", 502),
    ];
    let toml = proposal(&policy, &events);
    let wanted = ["10.40.0.5/32", "10.40.1.8/30", "10.40.2.0/24", "10.41.0.1/32", "10.42.0.1/32", "fd00:20::/124", "fd00:21::7/128"];
    assert_eq!(networks(&beside(&policy, &toml)), wanted, "{toml}");
    assert!(toml.contains("2 attempts in 2 events, 1970-01-01T00:00:01.000Z, by claude-code"), "{toml}");
    assert!(toml.contains("#   10.40.0.5:502/tcp modbus"), "{toml}");
}

/// A call to a server that no list names.
fn called(socket: &str) -> Event {
    let mut event = event("unknown_delegate", "10.40.0.5", 1);
    let attempt = event.attempt_mut();
    (attempt.destination, attempt.object) = (None, Some(socket.to_owned()));
    event
}

#[test]
fn servers_that_no_list_names_are_proposed_as_comments_for_people_to_decide() {
    let policy = Config::of_text("[[delegate]]\nname = 'seen-server-1'\naction = 'refuse'\npath = ['/run/known']");
    let events = [
        called("/run/user/1000/code-1234.sock"),
        called("/run/user/1001/code-99999.sock"),
        called("/run/known"),
        called("/tmp/\"]\naction = \"allow"),
    ];
    let toml = proposal(&policy, &events);
    assert!(toml.contains("2 attempts in 2 events") && toml.contains("Nothing is proposed from 1 events"), "{toml}");
    assert_eq!(beside(&policy, &toml).delegates, policy.delegates, "{toml}");
    let after = beside(&policy, &put_back(&toml)).delegates;
    let new: Vec<_> = after.iter().filter(|delegate| policy.delegates.iter().all(|known| known.name != delegate.name)).collect();
    assert_eq!(new.len(), 1, "{toml}");
    assert_eq!(
        (new[0].name.as_str(), new[0].action.name(), &new[0].paths[..]),
        ("seen-server-1-2", "allow", &["/run/user/*/code-*.sock".to_owned()][..])
    );
}

#[test]
fn hosts_of_two_networks_are_never_joined() {
    let policy = Config::of_text("");
    let events: Vec<Event> = (0..4).map(|third| event("no_receipt", &format!("10.40.{third}.5"), 502)).collect();
    assert_eq!(networks(&beside(&policy, &proposal(&policy, &events))).len(), 4);
}

#[test]
fn proposal_in_force_proposes_no_more() {
    let policy = Config::of_text("");
    let events = [event("no_receipt", "10.40.0.5", 502), event("no_receipt", "10.40.0.5", 443)];
    let first = proposal(&policy, &events);
    let after = beside(&policy, &first);
    assert_eq!((after.zones.len(), after.gateways.len()), (1, 1), "{first}");
    let second = proposal(&after, &events);
    assert!(second.contains("Nothing to propose") && second.contains("Protected already, zone seen-10.40.0.5-32"), "{second}");
    assert_eq!(beside(&after, &second).zones, after.zones);
}

#[test]
fn web_interface_of_protected_equipment_becomes_a_gateway() {
    let policy = Config::of_text(
        "[[zone]]\nname = 'z'\nnetworks = ['10.30.0.0/16']\n[[gateway]]\nname = 'old'\naddress = '10.30.0.2'\nports = [80]\n",
    );
    let events = [
        event("no_receipt", "10.30.0.1", 8443),
        event("no_receipt", "10.30.0.1", 8088),
        event("no_receipt", "10.30.0.1", 502),
        event("no_receipt", "10.30.0.2", 80),
        event("no_receipt", "10.30.0.2", 443),
    ];
    let toml = proposal(&policy, &events);
    let after = beside(&policy, &toml);
    let gateway = after.gateways.iter().find(|gateway| gateway.name == "web-10.30.0.1").unwrap();
    assert_eq!(gateway.ports, [8088, 8443]);
    assert_eq!((after.zones.len(), after.gateways.len()), (1, 2), "{toml}");
    assert!(toml.contains("# Gateway old does not name every web port"), "{toml}");
}

#[test]
fn name_that_policy_has_already_gets_a_number() {
    let policy = Config::of_text("[[zone]]\nname = 'seen-10.40.0.5-32'\nnetworks = ['10.99.0.0/24']\n");
    let after = beside(&policy, &proposal(&policy, &[event("no_receipt", "10.40.0.5", 502)]));
    assert_eq!(after.zones[1].name, "seen-10.40.0.5-32-2");
}

#[test]
fn exemptions_are_proposed_as_comments_and_hold_when_put_back() {
    let policy = Config::of_text("");
    let events = [event("no_receipt", "10.40.0.5", 502), tripped(80, &["10.50.0.1:80/tcp", "10.50.0.7:80/tcp", "10.50.9.1:80/tcp"])];
    let toml = proposal(&policy, &events);
    assert!(
        toml.contains("# 10.50.0.0/29:80:\n# 1 attempt in 1 event, 1970-01-01T00:00:01.000Z, by claude-code\n#   10.50.0.1:80/tcp web\n"),
        "{toml}"
    );
    let after = beside(&policy, &toml);
    assert_eq!((&after.services, &after.behaviour), (&policy.services, &policy.behaviour), "{toml}");
    let open = beside(&policy, &put_back(&toml));
    let exempt: Vec<String> = open.services.exempt.iter().map(ToString::to_string).collect();
    assert_eq!(exempt, ["127.0.0.0/8", "::1/128", "10.40.0.5/32"]);
    let exempt: Vec<String> = open.behaviour.exempt.iter().map(ToString::to_string).collect();
    assert_eq!(exempt, ["10.50.0.0/29:80", "10.50.9.1/32:80"]);
}

#[test]
fn one_network_gets_no_more_exempt_ports_than_it_can_have() {
    let policy = Config::of_text("");
    let events: Vec<Event> = (1..=12).map(|port| tripped(port, &[])).collect();
    let open = beside(&policy, &put_back(&proposal(&policy, &events)));
    assert_eq!(open.behaviour.exempt.len(), EXEMPT_PORTS);
    assert!(policy::compile(&open, &[], &[], &[]).is_ok());
}

#[test]
fn loopback_multicast_and_what_names_no_address_propose_nothing() {
    let policy = Config::of_text("[services]\nexempt = []\nreplace = true");
    let mut socket = event("socket_family", "10.0.0.1", 17);
    socket.attempt_mut().destination = None;
    let events = [
        event("no_receipt", "127.0.0.1", 502),
        event("no_receipt", "::1", 502),
        event("no_receipt", "0.0.0.0", 502),
        event("no_receipt", "224.0.5.1", 4840),
        event("no_receipt", "255.255.255.255", 502),
        event("no_receipt", "ff02::1", 502),
        socket,
        Event::new(Body::Exec(Tool { verdict: Decided::Block, tool: None, shape: None, attack: Vec::new(), repeats: 0 }), "h", 0),
        Event::new(Body::SessionStart(None), "h", 0),
    ];
    let toml = proposal(&policy, &events);
    assert!(toml.contains("Nothing to propose") && toml.contains("Nothing is proposed from 8 events"), "{toml}");
    assert_eq!(networks(&beside(&policy, &toml)), Vec::<String>::new());
}

#[test]
fn services_that_observe_are_not_silently_overtaken() {
    let toml = proposal(&Config::of_text("[services]\nmode = 'observe'"), &[event("no_receipt", "10.40.0.5", 502)]);
    assert!(toml.contains("# Services only observe on this host; the zones below refuse."), "{toml}");
}

/// Text that others chose, with what would break out of a comment or move a cursor in it more often than by chance.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("\n[services]\nexempt = ['0.0.0.0/0']\n".to_owned()),
        Just("\r\nmode = \"observe\"\n".to_owned()),
        Just("\u{1b}[2J\u{1b}]0;x\u{7}".to_owned()),
        Just("\"\"\"\n'''\n#".to_owned()),
        Just("\u{202e}\u{2028}\u{85}\u{9b}31m\0\t".to_owned()),
        any::<String>(),
    ];
    proptest::collection::vec(piece, 1..4).prop_map(|pieces| pieces.concat())
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0_u8..3, 0_u8..6).prop_map(|(third, last)| IpAddr::from([10, 20, third, last])),
        (0_u8..3, 0_u8..6).prop_map(|(third, last)| IpAddr::from([198, 51, third, last])),
        (0_u16..3, 0_u16..4).prop_map(|(net, last)| IpAddr::from([0xfd00, 0x20, 0, net, 0, 0, 0, last])),
        (0_u8..4).prop_map(|last| IpAddr::from([127, 0, 0, last])),
    ]
}

const PORTS: [u16; 7] = [22, 80, 443, 502, 4840, 8080, 8443];

fn places() -> impl Strategy<Value = (IpAddr, u16)> {
    (addresses(), proptest::sample::select(PORTS.as_slice()))
}

/// Policies with every kind of part that could be overtaken by what is added.
fn policies() -> impl Strategy<Value = String> {
    let mode = proptest::sample::select(["enforce", "observe"].as_slice());
    let zones = proptest::sample::subsequence(vec!["10.20.0.0/16", "10.20.1.0/24", "10.20.1.4/30", "fd00:20::/48", "198.51.0.0/30"], 0..=5);
    (zones, proptest::option::of(addresses()), mode.clone(), mode.clone(), mode.clone(), mode, any::<bool>()).prop_map(
        |(zones, gateway, host, zone_mode, services, behaviour, exempt)| {
            let own = |mode: &str| if host == "observe" { String::new() } else { format!("mode = '{mode}'\n") };
            let mut text = format!("mode = '{host}'\n[services]\n{}", own(services));
            if exempt {
                text.push_str("exempt = ['10.20.0.0/16', '127.0.0.0/8']\n");
            }
            text.push_str(&format!("[behaviour]\n{}exempt = ['198.51.1.0/24', '10.20.2.0/24:80']\n", own(behaviour)));
            for (number, network) in zones.iter().enumerate() {
                text.push_str(&format!("[[zone]]\nname = 'z{number}'\nnetworks = ['{network}']\n{}", own(zone_mode)));
            }
            if let Some(gateway) = gateway.filter(|address| !address.is_unspecified()) {
                text.push_str(&format!("[[gateway]]\nname = 'g'\naddress = '{gateway}'\nports = [443]\n{}", own(zone_mode)));
            }
            text
        },
    )
}

/// A refusal of then, of a session whose receipt had logins.
fn refused(reason: Reason, destination: Destination, trip: Option<(u64, u64)>) -> Event {
    let trip = trip.map(|(count, window_s)| Trip { count, window_s, ..Trip::default() });
    let budget = Some(Usage { max_attempts: Some(1), ..Usage::default() });
    let mut event = Event::of_attempt("block", reason.name(), "10.0.0.1", 1);
    let attempt = std::mem::take(event.attempt_mut());
    *event.attempt_mut() = Attempt { destination: Some(destination), budget, trip, ..attempt };
    event
}

/// How much a verdict allows: nothing, with an event, or silently.
fn openness(verdict: Verdict, reason: Reason) -> u8 {
    match (verdict, reason == Reason::NotProtected) {
        (Verdict::Block, _) => 0,
        (Verdict::Observe | Verdict::Off, _) | (Verdict::Allow, false) => 1,
        (Verdict::Allow, true) => 2,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_others_wrote_leaves_its_comment(seen in proptest::collection::vec((hostile(), hostile(), places()), 1..24)) {
        let policy = Config::of_text("[[zone]]\nname = 'z'\nnetworks = ['10.20.1.0/24']\n");
        let mut events: Vec<Event> = Vec::new();
        for (agent, host, (address, port)) in &seen {
            for reason in ["no_receipt", "scan_hosts"] {
                let mut one = event(reason, &address.to_string(), *port);
                one.who.agent = Some(agent.clone());
                one.host.clone_from(host);
                one.detail = Some(host.clone());
                let process = one.who.process.as_mut().unwrap();
                (process.executable, process.argv) = (Some(agent.clone()), vec![agent.clone()]);
                let attempt = one.attempt_mut();
                let text = || Some(host.clone());
                attempt.place = Place { zone: text(), gateway: text(), service: text() };
                attempt.trip = Some(Trip { count: 26, window_s: 300, exempt: Some(agent.clone()), ..Trip::default() });
                events.push(one);
            }
        }
        let toml = proposal(&policy, &events);
        for line in toml.lines() {
            // Escaping only doubles the backslashes of what was escaped before.
            prop_assert_eq!(crate::escape::escape(line).replace("\\\\", "\\"), line);
        }
        let table: toml::Table = toml::from_str(&toml).unwrap();
        prop_assert!(table.keys().all(|key| key == "zone" || key == "gateway"), "{toml}");
        let after = beside(&policy, &toml);
        prop_assert_eq!((&after.services, &after.behaviour, after.mode), (&policy.services, &policy.behaviour, policy.mode));
        for zone in &after.zones[1..] {
            let network = zone.networks[0];
            prop_assert_eq!(&zone.name, &format!("seen-{}-{}", network.addr(), network.prefix_len()));
        }
        let _open = beside(&policy, &put_back(&toml));
    }

    #[test]
    fn proposal_never_opens_what_is_refused(
        text in policies(),
        seen in proptest::collection::vec((places(), proptest::sample::select(["no_receipt", "receipt", "scan_hosts", "spray_target"].as_slice())), 1..24),
        tried in proptest::collection::vec(places(), 1..96),
    ) {
        let policy = Config::of_text(&text);
        let mut events = Vec::new();
        for ((address, port), reason) in &seen {
            let mut one = event(reason, &address.to_string(), *port);
            one.attempt_mut().trip = Some(Trip { count: 200, window_s: 60, ..Trip::default() });
            events.push(one);
        }
        let after = beside(&policy, &proposal(&policy, &events));
        let (mut before, mut now) = (Draft::new(&policy).unwrap(), Draft::new(&after).unwrap());
        let all = seen.iter().map(|(place, _)| place).chain(&tried);
        for (address, port) in all {
            for number in [transport::TCP, transport::UDP] {
                let to = Destination { address: *address, port: Some(*port), transport: number };
                for (reason, count) in [(Reason::NoReceipt, None), (Reason::ScanHosts, Some((200, 300))), (Reason::SprayTarget, Some((200, 60)))] {
                    let one = refused(reason, to, count);
                    let Past::Attempt(past) = Past::read(&one).unwrap() else { panic!("{one:?}") };
                    let (old, new) = (before.decide(&past).unwrap().unwrap(), now.decide(&past).unwrap().unwrap());
                    prop_assert!(
                        openness(new.verdict, new.reason) <= openness(old.verdict, old.reason),
                        "{to}: {old:?}, then {new:?}\n{text}"
                    );
                }
            }
        }
    }
}
