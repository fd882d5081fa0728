//! What goes to everybody on a link that carries a place.

use super::*;

const EVERYBODY: [&str; 5] = ["::ffff:255.255.255.255", "::ffff:224.0.0.1", "::ffff:239.1.2.3", "ff02::1", "ff05::1:3"];

fn udp(text: &str, port: u16) -> Attempt {
    Attempt { transport: transport::UDP, ..v6(text, port) }
}

/// Leaving by this interface of a namespace where the first one carries a zone.
fn leaving(ifindex: u32) -> Memory {
    let mut tables = near();
    tables.links.insert(LinkKey { netns: NETNS, ifindex: ETH0 }, place(ZONE, 0, 0));
    tables.link = Some(Link { netns: NETNS, ifindex, flags: LINK_PACKET });
    tables
}

/// The reason for a packet, with the flags that egress gives it.
fn reason(tables: &mut Memory, attempt: Attempt) -> Reason {
    tables.link = tables.link.map(|link| link.towards(&attempt));
    let reason = tables.reason(attempt);
    tables.link = tables.link.map(|link| Link { flags: link.flags & !LINK_ALL, ..link });
    reason
}

#[test]
fn what_everybody_on_a_link_gets_belongs_to_what_the_link_carries() {
    for text in EVERYBODY {
        let mut tables = leaving(ETH0);
        let decision = {
            tables.link = tables.link.map(|link| link.towards(&udp(text, 5000)));
            tables.judge(udp(text, 5000))
        };
        assert_eq!((decision.verdict, decision.reason, decision.zone), (Verdict::Block, Reason::NoReceipt, ZONE), "{text}");
        assert_eq!(reason(&mut tables, of_kind(udp(text, 0), Kind::Portless)), Reason::NoReceipt, "{text}");
        // Another link carries nothing, and before a packet leaves its link is not known.
        assert_eq!(reason(&mut leaving(ETH0 + 1), udp(text, 5000)), Reason::NotProtected, "{text}");
        tables.link = Some(Link { netns: NETNS, ifindex: ETH0, flags: 0 });
        assert_eq!(tables.reason(udp(text, 5000)), Reason::NotProtected, "{text}");
        tables.link = Some(Link { netns: NETNS, ifindex: 0, flags: LINK_ALL });
        assert_eq!(tables.reason(udp(text, 5000)), Reason::NotProtected, "{text}");
    }
    assert_eq!(reason(&mut leaving(ETH0), udp("ff01::1", 5000)), Reason::NotProtected);
}

#[test]
fn a_gateway_on_the_link_protects_its_own_ports_and_what_has_none() {
    let mut tables = leaving(ETH0);
    tables.links.insert(LinkKey { netns: NETNS, ifindex: ETH0 }, place(0, GATEWAY, 0));
    assert_eq!(reason(&mut tables, udp("ff02::1", 443)), Reason::NoReceipt);
    assert_eq!(reason(&mut tables, udp("ff02::1", 80)), Reason::NotProtected);
    assert_eq!(reason(&mut tables, of_kind(udp("ff02::1", 0), Kind::Portless)), Reason::NoReceipt);
}

#[test]
fn finding_out_who_is_there_goes_on_unless_policy_lists_its_port() {
    let mut tables = leaving(ETH0);
    for text in EVERYBODY {
        for port in [5353, 5355, 1900, 3702, 67, 547] {
            assert_eq!(reason(&mut tables, udp(text, port)), Reason::NotProtected, "{text} {port}");
            let lite = Attempt { transport: transport::UDPLITE, ..udp(text, port) };
            assert_eq!(reason(&mut tables, lite), Reason::NoReceipt, "{text} {port}");
        }
        // What answers DHCP configures who asked; time and names of NetBIOS; an echo of everybody.
        for port in [68, 546, 123, 319, 137] {
            assert_eq!(reason(&mut tables, udp(text, port)), Reason::NoReceipt, "{text} {port}");
        }
        let icmp = of_kind(Attempt { transport: transport::ICMP, ..udp(text, 0) }, Kind::Portless);
        assert_eq!(reason(&mut tables, icmp), Reason::NoReceipt, "{text}");
    }
    let igmp = of_kind(Attempt { transport: 2, ..udp("::ffff:224.0.0.22", 0) }, Kind::Portless);
    assert_eq!(reason(&mut tables, igmp), Reason::NotProtected);
    // To one device it is no discovery.
    assert_eq!(reason(&mut tables, udp("fe80::77", 5353)), Reason::NoReceipt);
    tables.services.insert((transport::UDP, 1900), Service { service: MODBUS, flags: 0, pad: 0 });
    let decision = tables.judge(udp("ff02::c", 1900));
    assert_eq!((decision.reason, decision.service), (Reason::NoReceipt, MODBUS));
}

#[test]
fn a_directed_broadcast_that_was_entered_belongs_to_its_place() {
    let mut tables = leaving(ETH0);
    let known = Learned { place: place(ZONE, 0, 0), flags: crate::abi::LEARNED_BROADCAST, ..Learned::default() };
    let broadcast = tcp([10, 0, 255, 255], 5000);
    assert_eq!(reason(&mut tables, broadcast), Reason::NotProtected);
    tables.learned.insert(NearKey { netns: NETNS, ifindex: 0, addr: broadcast.addr }, known);
    assert_eq!(reason(&mut tables, broadcast), Reason::NoReceipt);
    tables.link = Some(Link { netns: NETNS, ifindex: 0, flags: 0 });
    assert_eq!(tables.reason(broadcast), Reason::NoReceipt, "at the call too");
}

#[test]
fn a_receipt_opens_what_everybody_gets() {
    let everybody = Attempt { transport: transport::TCP, ..udp("::ffff:224.0.0.1", 5000) };
    let mut tables = leaving(ETH0);
    assert_eq!(reason(&mut tables, everybody), Reason::NoReceipt);
    let mut tables = tables.with(terms(1), [224, 0, 0, 1], (5000, 5000));
    assert_eq!(reason(&mut tables, everybody), Reason::Receipt);
    assert_eq!(reason(&mut tables, Attempt { port: 5001, ..everybody }), Reason::ReceiptOtherPort);
}
