extern crate std;

use super::*;
use crate::abi::{GRANT_EXHAUSTED, GRANT_LOGIN, GRANT_REVOKED, Grant, MAX_GRANTS_PER_PREFIX, Spent};
use core::cell::Cell;
use std::collections::HashMap;
use std::vec::Vec;

const AGENT: NameId = 7;
const OTHER_AGENT: NameId = 8;
const OWNER: u32 = 1000;
const SESSION: u64 = 42;
const ZONE: NameId = 100;
const CELL: NameId = 101;
const GATEWAY: NameId = 200;
const OPEN_GATEWAY: NameId = 201;
const MODBUS: NameId = 300;
const PLC: [u8; 4] = [10, 20, 4, 7];
const NOW: u64 = 1_000;

/// Tables in memory. Prefixes are of octets of the mapped form, in bits.
struct Memory {
    flags: u32,
    now_ns: u64,
    places: Vec<(Addr, u32, Place)>,
    gateway_ports: Vec<(NameId, u16)>,
    services: HashMap<(u8, u16), Service>,
    exempt: Vec<(Addr, u32)>,
    grants: Vec<(Addr, u32, GrantList)>,
    user_bits: HashMap<u32, u64>,
    budgets: HashMap<Serial, Budget>,
    counted: bool,
    scratch: Cell<u32>,
    link: Option<Link>,
    learned: HashMap<NearKey, Learned>,
    links: HashMap<LinkKey, Place>,
}

fn holds(prefix: &Addr, bits: u32, addr: &Addr) -> bool {
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    let whole = |a: &Addr| u128::from_be_bytes(a.octets()) & mask;
    whole(prefix) == whole(addr)
}

impl Tables for Memory {
    fn flags(&self) -> u32 {
        self.flags
    }
    fn place(&self, addr: &Addr) -> Option<Place> {
        let matching = self.places.iter().filter(|(net, bits, _)| holds(net, *bits, addr));
        matching.max_by_key(|(_, bits, _)| *bits).map(|(_, _, place)| *place)
    }
    fn link(&self) -> Option<Link> {
        self.link
    }
    fn learned(&self, key: &NearKey) -> Option<Learned> {
        self.learned.get(key).copied()
    }
    fn link_place(&self, key: &LinkKey) -> Option<Place> {
        self.links.get(key).copied()
    }
    fn gateway_port(&self, gateway: NameId, port: u16) -> bool {
        self.gateway_ports.contains(&(gateway, port))
    }
    fn service(&self, transport: u8, port: u16) -> Option<Service> {
        self.services.get(&(transport, port)).copied()
    }
    fn exempt(&self, addr: &Addr) -> bool {
        self.exempt.iter().any(|(net, bits)| holds(net, *bits, addr))
    }
    fn grants(&self, addr: &Addr) -> Option<&GrantList> {
        let matching = self.grants.iter().filter(|(net, bits, _)| holds(net, *bits, addr));
        matching.max_by_key(|(_, bits, _)| *bits).map(|(_, _, list)| list)
    }
    fn user_bit(&self, uid: u32) -> u64 {
        self.user_bits.get(&uid).copied().unwrap_or_default()
    }
    fn budget(&self, serial: Serial) -> Option<Budget> {
        self.budgets.get(&serial).copied()
    }
    fn charges(&self) -> bool {
        self.counted
    }
    fn now_ns(&self) -> u64 {
        self.now_ns
    }
    fn scratch(&self) -> u32 {
        self.scratch.get()
    }
    fn set_scratch(&self, number: u32) {
        self.scratch.set(number);
    }
}

fn place(zone: NameId, gateway: NameId, flags: u32) -> Place {
    Place { zone, gateway, flags, pad: 0 }
}

/// A plant (10.20.0.0/16) with an observing cell (10.20.9.0/24), a gateway in it
/// with port 443, one outside with all ports, Modbus everywhere but on loopback.
fn plant() -> Memory {
    let service = Service { service: MODBUS, flags: 0, pad: 0 };
    Memory {
        flags: 0,
        now_ns: NOW,
        places: std::vec![
            (Addr::v4([10, 20, 0, 0]), 112, place(ZONE, 0, 0)),
            (Addr::v4([10, 20, 9, 0]), 120, place(CELL, 0, PLACE_ZONE_OBSERVE)),
            (Addr::v4([10, 20, 4, 9]), 128, place(ZONE, GATEWAY, 0)),
            (Addr::v4([10, 30, 0, 1]), 128, place(0, OPEN_GATEWAY, PLACE_GATEWAY_ALL_PORTS)),
        ],
        gateway_ports: std::vec![(GATEWAY, 443)],
        services: HashMap::from([((transport::TCP, 502), service), ((transport::UDP, 502), service)]),
        exempt: std::vec![(Addr::v4([127, 0, 0, 0]), 104), (Addr::LOCALHOST_V6, 128)],
        grants: Vec::new(),
        user_bits: HashMap::from([(OWNER, 1)]),
        budgets: HashMap::new(),
        counted: true,
        scratch: Cell::new(0),
        link: None,
        learned: HashMap::new(),
        links: HashMap::new(),
    }
}

/// What a receipt allows, beside where.
#[derive(Clone, Copy, Default)]
struct Terms {
    agent: NameId,
    session: u64,
    any_user: bool,
    from_ns: u64,
    until_ns: u64,
    max_connections: u64,
    max_attempts: u64,
    serial: Serial,
    /// `GRANT_*`.
    ended: u8,
}

fn terms(serial: Serial) -> Terms {
    Terms { agent: AGENT, until_ns: NOW + 1, serial, ..Terms::default() }
}

impl Memory {
    /// Adds a receipt for TCP ports of one address to whatever holds there.
    fn with(mut self, terms: Terms, addr: [u8; 4], ports: (u16, u16)) -> Self {
        let serial = terms.serial;
        let grant = Grant {
            agent: terms.agent,
            session: terms.session,
            users: if terms.any_user { u64::MAX } else { 1 },
            from_ns: terms.from_ns,
            until_ns: terms.until_ns,
            serial,
            port_first: ports.0,
            port_last: ports.1,
            transport: transport::TCP,
            flags: terms.ended | if terms.max_attempts == 0 { 0 } else { GRANT_LOGIN },
            pad: [0; 6],
        };
        let addr = Addr::v4(addr);
        let at = match self.grants.iter().position(|(net, _, _)| *net == addr) {
            Some(at) => at,
            None => {
                let list = GrantList { len: 0, pad: 0, grants: [Grant::default(); MAX_GRANTS_PER_PREFIX] };
                self.grants.push((addr, 128, list));
                self.grants.len() - 1
            }
        };
        let list = &mut self.grants[at].2;
        list.grants[list.len as usize] = grant;
        list.len += 1;
        let (max_connections, max_attempts) = (terms.max_connections, terms.max_attempts);
        self.budgets.insert(serial, Budget { spent: Spent::default(), max_connections, max_attempts });
        self
    }

    fn judge(&self, attempt: Attempt) -> Decision {
        decide(self, &SUBJECT, &attempt)
    }

    fn reason(&self, attempt: Attempt) -> Reason {
        let decision = self.judge(attempt);
        let passes = matches!(decision.reason, Reason::NotProtected | Reason::Receipt);
        assert_eq!(matches!(decision.verdict, Verdict::Allow), passes);
        decision.reason
    }
}

const SUBJECT: Subject = Subject { session: SESSION, agent: AGENT, owner: OWNER };

fn tcp(addr: [u8; 4], port: u16) -> Attempt {
    let addr = Addr::v4(addr);
    Attempt { addr, port, transport: transport::TCP, kind: Kind::Open, counted: 0 }
}

fn of_kind(attempt: Attempt, kind: Kind) -> Attempt {
    Attempt { kind, ..attempt }
}

#[test]
fn what_no_table_names_passes_and_says_nothing() {
    assert_eq!(plant().judge(tcp([93, 184, 216, 34], 443)), Decision::PASS);
    assert_eq!(plant().judge(tcp([10, 21, 0, 1], 22)), Decision::PASS);
}

#[test]
fn every_port_of_a_zone_is_refused_without_a_receipt() {
    for port in [1, 22, 80, 502, 65535] {
        let decision = plant().judge(tcp(PLC, port));
        assert_eq!((decision.verdict, decision.reason), (Verdict::Block, Reason::NoReceipt));
        assert_eq!((decision.zone, decision.service), (ZONE, 0));
    }
}

#[test]
fn a_service_port_is_refused_on_every_address_that_is_not_exempt() {
    let decision = plant().judge(tcp([192, 0, 2, 1], 502));
    assert_eq!((decision.verdict, decision.service, decision.zone), (Verdict::Block, MODBUS, 0));
    assert_eq!(plant().judge(tcp([127, 0, 0, 1], 502)), Decision::PASS);
    assert_eq!(plant().judge(tcp([192, 0, 2, 1], 503)), Decision::PASS);
    let sctp = Attempt { transport: transport::SCTP, ..tcp([192, 0, 2, 1], 502) };
    assert_eq!(plant().judge(sctp), Decision::PASS);
}

#[test]
fn a_zone_beats_an_exemption() {
    let mut tables = plant();
    tables.exempt.push((Addr::v4([10, 20, 0, 0]), 112));
    assert_eq!(tables.reason(tcp(PLC, 502)), Reason::NoReceipt);
}

#[test]
fn a_gateway_protects_its_ports_and_the_zone_around_it_the_others() {
    let at_port = plant().judge(tcp([10, 20, 4, 9], 443));
    assert_eq!((at_port.gateway, at_port.zone, at_port.login), (GATEWAY, ZONE, true));
    let other = plant().judge(tcp([10, 20, 4, 9], 80));
    assert_eq!((other.gateway, other.zone, other.login), (0, ZONE, false));
    let open = plant().judge(tcp([10, 30, 0, 1], 9999));
    assert_eq!((open.gateway, open.zone, open.login), (OPEN_GATEWAY, 0, true));
    let mut tables = plant();
    tables.places[3].2.flags = 0;
    assert_eq!(tables.judge(tcp([10, 30, 0, 1], 80)), Decision::PASS);
    assert_eq!(tables.judge(tcp([10, 30, 0, 1], 502)).service, MODBUS);
}

#[test]
fn every_login_port_is_a_login_on_tcp_alone() {
    for port in [21, 22, 23, 389, 445, 636, 3389, 5900, 5985, 5986] {
        assert!(plant().judge(tcp(PLC, port)).login, "{port}");
        let udp = Attempt { transport: transport::UDP, ..tcp(PLC, port) };
        assert!(!plant().judge(udp).login, "{port}");
    }
    assert!(!plant().judge(tcp(PLC, 502)).login);
}

#[test]
fn observe_flags_let_through_what_they_belong_to_and_keep_the_reason() {
    let decision = plant().judge(tcp([10, 20, 9, 1], 80));
    assert_eq!((decision.verdict, decision.reason), (Verdict::Observe, Reason::NoReceipt));
    assert_eq!(decision.zone, CELL);
    let mut tables = plant();
    tables.places[2].2.flags = PLACE_GATEWAY_OBSERVE;
    assert_eq!(tables.judge(tcp([10, 20, 4, 9], 443)).verdict, Verdict::Observe);
    assert_eq!(tables.judge(tcp([10, 20, 4, 9], 80)).verdict, Verdict::Block);
    tables.services.get_mut(&(transport::TCP, 502)).unwrap().flags = SERVICE_OBSERVE;
    assert_eq!(tables.judge(tcp([192, 0, 2, 1], 502)).verdict, Verdict::Observe);
    assert_eq!(tables.judge(tcp(PLC, 502)).verdict, Verdict::Block);
    tables.flags = CONTROL_OBSERVE;
    assert_eq!(tables.judge(tcp(PLC, 502)).verdict, Verdict::Observe);
    assert_eq!(tables.judge(tcp([192, 0, 2, 9], 443)), Decision::PASS);
}

#[test]
fn refusals_that_are_not_about_a_destination_follow_the_host_mode() {
    assert_eq!(Decision::refuse(Reason::SocketFamily, 0).verdict, Verdict::Block);
    let observed = Decision::refuse(Reason::SocketFamily, CONTROL_OBSERVE);
    assert_eq!((observed.verdict, observed.reason), (Verdict::Observe, Reason::SocketFamily));
}

#[test]
fn a_live_receipt_allows_its_address_port_and_transport_only() {
    let tables = plant().with(terms(1), PLC, (500, 510));
    let decision = tables.judge(tcp(PLC, 502));
    assert_eq!((decision.verdict, decision.reason, decision.serial), (Verdict::Allow, Reason::Receipt, 1));
    assert_eq!(tables.reason(tcp(PLC, 500)), Reason::Receipt);
    assert_eq!(tables.reason(tcp(PLC, 510)), Reason::Receipt);
    assert_eq!(tables.reason(tcp(PLC, 511)), Reason::ReceiptOtherPort);
    assert_eq!(tables.reason(tcp([10, 20, 4, 8], 502)), Reason::NoReceipt);
    let udp = Attempt { transport: transport::UDP, ..tcp(PLC, 502) };
    assert_eq!(tables.reason(udp), Reason::ReceiptOtherPort);
}

#[test]
fn a_receipt_that_allows_names_itself_where_nothing_is_refused() {
    let tables = plant().with(terms(1), [10, 20, 9, 1], (80, 80));
    let decision = tables.judge(tcp([10, 20, 9, 1], 80));
    assert_eq!((decision.verdict, decision.reason), (Verdict::Allow, Reason::Receipt));
}

#[test]
fn another_agent_session_or_owner_gets_nothing() {
    let tables = plant().with(terms(1), PLC, (502, 502));
    let other = |subject| decide(&tables, &subject, &tcp(PLC, 502)).reason;
    assert_eq!(other(Subject { agent: OTHER_AGENT, ..SUBJECT }), Reason::ReceiptOtherAgent);
    assert_eq!(other(Subject { owner: 0, ..SUBJECT }), Reason::ReceiptOtherUser);
    let bound = plant().with(Terms { session: SESSION, ..terms(1) }, PLC, (502, 502));
    assert_eq!(bound.reason(tcp(PLC, 502)), Reason::Receipt);
    let stranger = Subject { session: SESSION + 1, ..SUBJECT };
    assert_eq!(decide(&bound, &stranger, &tcp(PLC, 502)).reason, Reason::ReceiptOtherAgent);
}

#[test]
fn a_receipt_for_any_user_holds_for_each_owner_of_its_agent() {
    let tables = plant().with(Terms { any_user: true, ..terms(1) }, PLC, (502, 502));
    let owner = |owner| decide(&tables, &Subject { owner, ..SUBJECT }, &tcp(PLC, 502)).reason;
    assert_eq!(owner(4_000_000), Reason::Receipt);
}

#[test]
fn a_window_holds_from_its_first_instant_until_before_its_last() {
    let window = |from_ns, until_ns| plant().with(Terms { from_ns, until_ns, ..terms(1) }, PLC, (502, 502)).reason(tcp(PLC, 502));
    assert_eq!(window(NOW, NOW + 1), Reason::Receipt);
    assert_eq!(window(NOW + 1, NOW + 9), Reason::ReceiptNotYet);
    assert_eq!(window(0, NOW), Reason::ReceiptExpired);
    assert_eq!(window(0, NOW - 1), Reason::ReceiptExpired);
}

#[test]
fn a_revoked_receipt_is_over_whatever_else_it_says() {
    let ended = Terms { ended: GRANT_REVOKED, until_ns: NOW - 1, ..terms(1) };
    let tables = plant().with(ended, PLC, (502, 502));
    assert_eq!(tables.reason(tcp(PLC, 502)), Reason::ReceiptRevoked);
    let counted = Attempt { counted: 1, ..tcp(PLC, 502) };
    assert_eq!(tables.reason(counted), Reason::ReceiptRevoked);
}

#[test]
fn credential_scope_none_keeps_login_ports_and_gateways_closed() {
    let tables = plant().with(terms(1), PLC, (1, 65535)).with(terms(2), [10, 20, 4, 9], (1, 65535));
    assert_eq!(tables.reason(tcp(PLC, 22)), Reason::CredentialScope);
    assert_eq!(tables.reason(tcp(PLC, 502)), Reason::Receipt);
    assert_eq!(tables.reason(tcp([10, 20, 4, 9], 443)), Reason::CredentialScope);
}

#[test]
fn budgets_allow_as_many_flows_as_they_say_and_no_more() {
    let limited = Terms { max_connections: 2, max_attempts: 1, ..terms(1) };
    let mut tables = plant().with(limited, PLC, (1, 65535));
    let mut spend = |connections, attempts, port| {
        tables.budgets.get_mut(&1).unwrap().spent = Spent { connections, attempts };
        tables.reason(tcp(PLC, port))
    };
    assert_eq!(spend(0, 0, 502), Reason::Receipt);
    assert_eq!(spend(1, 1, 502), Reason::Receipt);
    assert_eq!(spend(2, 0, 502), Reason::ReceiptExhausted);
    assert_eq!(spend(0, 0, 22), Reason::Receipt);
    assert_eq!(spend(1, 1, 22), Reason::ReceiptExhausted);
    assert_eq!(spend(2, 0, 22), Reason::ReceiptExhausted);
}

#[test]
fn a_budget_whose_count_is_unknown_is_used_up() {
    let mut tables = plant().with(Terms { max_connections: 9, ..terms(1) }, PLC, (502, 502));
    tables.budgets.clear();
    assert_eq!(tables.reason(tcp(PLC, 502)), Reason::ReceiptExhausted);
    let ended = Terms { ended: GRANT_EXHAUSTED, ..terms(1) };
    let tables = plant().with(ended, PLC, (502, 502));
    assert_eq!(tables.reason(tcp(PLC, 502)), Reason::ReceiptExhausted);
}

#[test]
fn a_flow_that_was_counted_is_not_counted_again_but_still_expires() {
    let mut tables = plant().with(Terms { max_connections: 1, ..terms(1) }, PLC, (502, 502));
    tables.budgets.get_mut(&1).unwrap().spent = Spent { connections: 1, attempts: 0 };
    let counted = Attempt { counted: 1, ..tcp(PLC, 502) };
    assert_eq!(tables.reason(tcp(PLC, 502)), Reason::ReceiptExhausted);
    assert_eq!(tables.reason(counted), Reason::Receipt);
    assert_eq!(tables.reason(Attempt { counted: 2, ..counted }), Reason::ReceiptExhausted);
    tables.now_ns = NOW + 1;
    assert_eq!(tables.reason(counted), Reason::ReceiptExpired);
}

#[test]
fn where_flows_are_not_known_budgets_are_not_asked_and_all_else_is() {
    let ended = Terms { ended: GRANT_EXHAUSTED, max_connections: 1, ..terms(1) };
    let mut tables = plant().with(ended, PLC, (502, 502));
    tables.counted = false;
    assert_eq!(tables.reason(tcp(PLC, 502)), Reason::Receipt);
    assert_eq!(tables.reason(tcp(PLC, 503)), Reason::ReceiptOtherPort);
    tables.now_ns = NOW + 1;
    assert_eq!(tables.reason(tcp(PLC, 502)), Reason::ReceiptExpired);
}

#[test]
fn exhaustion_found_while_counting_blocks_or_observes_as_the_place_does() {
    let tables = plant().with(terms(1), PLC, (80, 80)).with(terms(2), [10, 20, 9, 1], (80, 80));
    let blocked = tables.judge(tcp(PLC, 80)).exhausted();
    assert_eq!((blocked.verdict, blocked.reason), (Verdict::Block, Reason::ReceiptExhausted));
    assert_eq!(tables.judge(tcp([10, 20, 9, 1], 80)).exhausted().verdict, Verdict::Observe);
}

#[test]
fn of_several_receipts_the_one_that_allows_decides() {
    let expired = Terms { until_ns: NOW, ..terms(1) };
    let tables = plant().with(expired, PLC, (502, 502)).with(terms(2), PLC, (502, 502));
    let decision = tables.judge(tcp(PLC, 502));
    assert_eq!((decision.reason, decision.serial), (Reason::Receipt, 2));
}

#[test]
fn of_several_receipts_that_do_not_fit_the_nearest_gives_the_reason() {
    let expired = Terms { until_ns: NOW, ..terms(2) };
    let foreign = Terms { agent: OTHER_AGENT, ..terms(1) };
    let attempt = tcp(PLC, 502);
    for tables in [
        plant().with(foreign, PLC, (502, 502)).with(expired, PLC, (502, 502)),
        plant().with(expired, PLC, (502, 502)).with(foreign, PLC, (502, 502)),
    ] {
        let decision = tables.judge(attempt);
        assert_eq!(decision.reason, Reason::ReceiptExpired);
        assert_eq!(nearest_receipt(&tables, &SUBJECT, &attempt, &decision), Some(2));
        assert_eq!(tables.reason(tcp(PLC, 81)), Reason::ReceiptOtherPort);
    }
}

#[test]
fn every_one_of_a_full_list_of_grants_is_looked_at() {
    let last = u32::try_from(MAX_GRANTS_PER_PREFIX).unwrap();
    let tables =
        (1..=last).fold(plant(), |tables, serial| tables.with(terms(serial), PLC, if serial == last { (502, 502) } else { (80, 80) }));
    assert_eq!(tables.judge(tcp(PLC, 502)).serial, last);
}

#[test]
fn answers_are_judged_by_zone_and_gateway_but_never_by_service() {
    let answer = |addr, port| of_kind(tcp(addr, port), Kind::Answer);
    assert_eq!(plant().judge(answer([192, 0, 2, 1], 502)), Decision::PASS);
    assert_eq!(plant().reason(answer(PLC, 50_000)), Reason::NoReceipt);
    assert_eq!(plant().judge(answer([10, 20, 4, 9], 443)).gateway, GATEWAY);
}

#[test]
fn a_udp_connect_passes_where_any_live_grant_names_the_address() {
    let connect = |tables: &Memory, addr| {
        let attempt = of_kind(tcp(addr, 22), Kind::UdpConnect);
        tables.reason(Attempt { transport: transport::UDP, ..attempt })
    };
    assert_eq!(connect(&plant(), PLC), Reason::NoReceipt);
    let none_left = Terms { max_connections: 1, ended: GRANT_EXHAUSTED, ..terms(1) };
    assert_eq!(connect(&plant().with(none_left, PLC, (502, 502)), PLC), Reason::Receipt);
    let expired = Terms { until_ns: NOW, ..terms(1) };
    assert_eq!(connect(&plant().with(expired, PLC, (502, 502)), PLC), Reason::ReceiptExpired);
    let foreign = Terms { agent: OTHER_AGENT, ..terms(1) };
    assert_eq!(connect(&plant().with(foreign, PLC, (502, 502)), PLC), Reason::ReceiptOtherAgent);
}

#[test]
fn a_packet_without_ports_needs_a_grant_of_every_port() {
    let ping = |tables: &Memory, addr| {
        let attempt = of_kind(tcp(addr, 0), Kind::Portless);
        tables.reason(Attempt { transport: 1, ..attempt })
    };
    assert_eq!(ping(&plant(), PLC), Reason::NoReceipt);
    assert_eq!(ping(&plant().with(terms(1), PLC, (502, 502)), PLC), Reason::ReceiptOtherPort);
    assert_eq!(ping(&plant().with(terms(1), PLC, (0, 65535)), PLC), Reason::Receipt);
    assert_eq!(ping(&plant(), [192, 0, 2, 1]), Reason::NotProtected);
    let at_gateway = of_kind(tcp([10, 20, 4, 9], 0), Kind::Portless);
    assert_eq!(plant().judge(at_gateway).gateway, GATEWAY);
}

fn v6(text: &str, port: u16) -> Attempt {
    let addr: std::net::Ipv6Addr = text.parse().unwrap();
    Attempt { addr: Addr::v6(addr.octets()), ..tcp(PLC, port) }
}

#[test]
fn an_address_that_embeds_another_is_judged_by_the_one_it_reaches() {
    for text in ["64:ff9b::10.20.4.7", "2002:0a14:0407::1", "::10.20.4.7", "::ffff:10.20.4.7"] {
        assert_eq!(plant().reason(v6(text, 502)), Reason::NoReceipt, "{text}");
        let tables = plant().with(terms(1), PLC, (502, 502));
        assert_eq!(tables.reason(v6(text, 502)), Reason::Receipt, "{text}");
        assert_eq!(tables.reason(v6(text, 503)), Reason::ReceiptOtherPort, "{text}");
    }
}

#[test]
fn the_unspecified_address_is_the_host_itself() {
    assert_eq!(plant().judge(tcp([0, 0, 0, 0], 502)), Decision::PASS);
    assert_eq!(plant().judge(v6("::", 502)), Decision::PASS);
    let mut tables = plant();
    tables.places.push((Addr::v4([127, 0, 0, 1]), 128, place(ZONE, 0, 0)));
    tables.places.push((Addr::LOCALHOST_V6, 128, place(ZONE, 0, 0)));
    assert_eq!(tables.reason(tcp([0, 0, 0, 0], 80)), Reason::NoReceipt);
    assert_eq!(tables.reason(v6("::", 80)), Reason::NoReceipt);
    tables.places = std::vec![(Addr::v4([0, 0, 0, 0]), 104, place(ZONE, 0, 0))];
    assert_eq!(tables.reason(tcp([0, 0, 0, 0], 80)), Reason::NoReceipt);
}

#[test]
fn a_zone_over_the_dialled_form_protects_where_the_reached_address_is_free() {
    let mut tables = plant();
    let nat64 = v6("64:ff9b::", 80).addr;
    tables.places.push((nat64, 96, place(CELL, 0, 0)));
    let decision = tables.judge(v6("64:ff9b::192.0.2.1", 80));
    assert_eq!((decision.verdict, decision.zone), (Verdict::Block, CELL));
    assert_eq!(tables.judge(v6("64:ff9b::10.20.4.7", 80)).zone, ZONE);
}

#[test]
fn codes_and_names_of_reasons_and_verdicts_are_one_to_one() {
    for (i, reason) in Reason::ALL.iter().enumerate() {
        assert_eq!(Reason::from_code(*reason as u8), Some(*reason));
        for other in &Reason::ALL[i + 1..] {
            assert_ne!(reason.name(), other.name());
            assert!(reason < other, "nearness is the order they are listed in");
        }
    }
    assert_eq!(Reason::from_code(255), None);
    for verdict in [Verdict::Allow, Verdict::Block, Verdict::Observe, Verdict::Off] {
        assert_eq!(Verdict::from_code(verdict as u8), Some(verdict));
    }
    assert_eq!(Verdict::from_code(4), None);
}

#[test]
fn the_probe_is_refused_whatever_observes_exempts_zones_or_receipts_say() {
    let probe = Attempt { addr: PROBE, port: PROBE_PORT, ..tcp(PLC, 0) };
    let octets = PROBE.as_v4().unwrap();
    assert!(plant().exempt(&PROBE), "the probe has to be refused although loopback is exempt");
    let observing = Memory { flags: CONTROL_OBSERVE, ..plant() };
    let off = Memory { flags: CONTROL_OFF, ..plant() };
    let mut observed_zone = plant();
    observed_zone.places.push((PROBE, 128, place(ZONE, 0, PLACE_ZONE_OBSERVE)));
    let opened = plant().with(terms(1), octets, (0, u16::MAX));
    for tables in [plant(), observing, off, observed_zone, opened] {
        let decision = tables.judge(probe);
        assert_eq!((decision.verdict, decision.reason), (Verdict::Block, Reason::Probe));
        assert_eq!((decision.serial, decision.zone), (0, 0));
    }
}

#[test]
fn nothing_beside_the_probe_is_refused_for_it() {
    let probe = Attempt { addr: PROBE, port: PROBE_PORT, ..tcp(PLC, 0) };
    assert_eq!(plant().judge(Attempt { port: PROBE_PORT + 1, ..probe }), Decision::PASS);
    assert_eq!(plant().judge(Attempt { transport: transport::UDP, ..probe }), Decision::PASS);
    assert_eq!(plant().judge(Attempt { addr: Addr::v4([127, 0, 0, 1]), ..probe }), Decision::PASS);
}

const NETNS: u32 = 9;
const ETH0: u32 = 2;

/// A call on a link that carries the gateway, in a namespace that has learned an address of the plant.
fn near() -> Memory {
    let mut tables = plant();
    tables.link = Some(Link { netns: NETNS, ifindex: ETH0, flags: 0 });
    tables.links.insert(LinkKey { netns: NETNS, ifindex: ETH0 }, place(0, GATEWAY, 0));
    let known = |place, flags| Learned { place, flags, ..Learned::default() };
    let mut learn = |text: &str, ifindex, learned| {
        tables.learned.insert(NearKey { netns: NETNS, ifindex, addr: v6(text, 0).addr }, learned);
    };
    learn("fd00:31::50", 0, known(place(ZONE, 0, 0), 0));
    learn("fe80::50", ETH0, known(place(ZONE, 0, 0), 0));
    learn("fe80::1", ETH0, known(Place::default(), crate::abi::LEARNED_DNS));
    learn("fe80::2", ETH0, known(Place::default(), crate::abi::LEARNED_OWN));
    // Whatever was learned of what policy names is worth nothing.
    learn("::ffff:10.30.0.1", 0, known(Place::default(), crate::abi::LEARNED_OWN | crate::abi::LEARNED_DNS));
    tables
}

#[test]
fn learned_addresses_belong_to_their_place_where_they_were_learned() {
    let tables = near();
    assert_eq!(tables.reason(v6("fd00:31::50", 80)), Reason::NoReceipt);
    assert_eq!(tables.reason(v6("fe80::50", 80)), Reason::NoReceipt);
    assert_eq!(tables.reason(of_kind(v6("fd00:31::50", 80), Kind::Answer)), Reason::NoReceipt);
    assert_eq!(tables.reason(v6("fd00:31::51", 80)), Reason::NotProtected);
    let mut elsewhere = near();
    elsewhere.link = Some(Link { netns: NETNS + 1, ifindex: ETH0, flags: 0 });
    assert_eq!(elsewhere.reason(v6("fd00:31::50", 80)), Reason::NotProtected);
    elsewhere.link = Some(Link { netns: NETNS, ifindex: ETH0 + 1, flags: 0 });
    assert_eq!(elsewhere.reason(v6("fe80::50", 80)), Reason::NotProtected);
    assert_eq!(elsewhere.reason(v6("fd00:31::50", 80)), Reason::NoReceipt);
    elsewhere.link = None;
    assert_eq!(elsewhere.reason(v6("fd00:31::50", 80)), Reason::NotProtected);
}

#[test]
fn link_local_addresses_belong_to_what_their_link_carries() {
    let mut tables = near();
    assert_eq!(tables.reason(v6("fe80::77", 443)), Reason::NoReceipt);
    assert_eq!(tables.reason(v6("fe80::77", 80)), Reason::NotProtected);
    assert_eq!(tables.reason(v6("fd00::77", 443)), Reason::NotProtected);
    // What came to the session by itself is not checked by the link as a whole.
    assert_eq!(tables.reason(of_kind(v6("fe80::77", 443), Kind::Answer)), Reason::NotProtected);
    assert_eq!(tables.reason(of_kind(v6("fe80::77", 443), Kind::UdpConnect)), Reason::NoReceipt);
    tables.link = Some(Link { netns: NETNS, ifindex: ETH0, flags: LINK_PACKET | LINK_IN });
    assert_eq!(tables.reason(v6("fe80::77", 443)), Reason::NotProtected);
    assert_eq!(tables.reason(v6("fe80::50", 443)), Reason::NoReceipt, "a learned one is");
    // Which link a call means may not be known: egress knows.
    tables.link = Some(Link { netns: NETNS, ifindex: 0, flags: 0 });
    assert_eq!(tables.reason(v6("fe80::77", 443)), Reason::NotProtected);
    tables.link = Some(Link { netns: NETNS, ifindex: ETH0, flags: LINK_PACKET });
    assert_eq!(tables.reason(v6("fe80::77", 443)), Reason::NoReceipt);
}

#[test]
fn discovery_dns_of_the_router_and_own_addresses_pass() {
    let mut tables = near();
    tables.links.insert(LinkKey { netns: NETNS, ifindex: ETH0 }, place(ZONE, 0, 0));
    let udp = |text| Attempt { transport: transport::UDP, ..v6(text, 53) };
    assert_eq!(tables.reason(udp("fe80::1")), Reason::NotProtected);
    assert_eq!(tables.reason(v6("fe80::1", 53)), Reason::NotProtected);
    assert_eq!(tables.reason(v6("fe80::1", 80)), Reason::NoReceipt);
    assert_eq!(tables.reason(udp("fe80::77")), Reason::NoReceipt);
    assert_eq!(tables.reason(v6("fe80::2", 80)), Reason::NotProtected);
    let echo = of_kind(Attempt { transport: 58, ..v6("fe80::77", 0) }, Kind::Portless);
    tables.link = Some(Link { netns: NETNS, ifindex: ETH0, flags: LINK_PACKET });
    assert_eq!(tables.reason(echo), Reason::NoReceipt);
    assert_eq!(tables.reason(v6("fe80::2", 80)), Reason::NoReceipt, "a packet to an own address never leaves by the link");
    tables.link = Some(Link { netns: NETNS, ifindex: ETH0, flags: LINK_PACKET | LINK_DISCOVERY });
    assert_eq!(tables.reason(echo), Reason::NotProtected);
}

#[test]
fn nothing_that_was_learned_moves_or_opens_what_policy_names() {
    let tables = near();
    assert_eq!(tables.reason(tcp([10, 30, 0, 1], 80)), Reason::NoReceipt);
    let udp = Attempt { transport: transport::UDP, ..tcp([10, 30, 0, 1], 53) };
    assert_eq!(tables.reason(udp), Reason::NoReceipt);
}

#[test]
fn unreadable_namespace_refuses_what_policy_does_not_name() {
    let mut tables = near();
    tables.link = Some(Link { netns: 0, ifindex: ETH0, flags: 0 });
    assert_eq!(tables.reason(v6("2001:db8::1", 443)), Reason::GateError);
    assert_eq!(tables.reason(tcp(PLC, 502)), Reason::NoReceipt);
}

#[path = "decide_link_tests.rs"]
mod link;

#[path = "decide_off_tests.rs"]
mod off;
