//! What is told of neighbours: events, and sentences in answers.

use std::net::IpAddr;

use pp_common::abi::{LEARNED_MAC, Learned, Place};
use pp_common::dest::Addr;

use super::reports::Reports;
use crate::events::build::address;
use crate::events::{Body, NeighbourChange};
use crate::neighbours::{Known, Notice, NoticeKind};
use crate::net::Mac;

/// Reports what was learned, or what prevented it.
pub(super) fn report(reports: &Reports, notice: &Notice) {
    let change = match notice.kind {
        NoticeKind::Learned => NeighbourChange::Learned,
        NoticeKind::Expired => NeighbourChange::Expired,
        NoticeKind::RouterAnswers | NoticeKind::OwnAnswers | NoticeKind::TwoPlaces | NoticeKind::MacChanged => NeighbourChange::Conflict,
        NoticeKind::Full | NoticeKind::FullOfBroadcasts => NeighbourChange::Full,
    };
    publish(reports, change, address(notice.addr), notice.place, sentence(notice));
}

/// Publishes an event about an address.
pub(super) fn publish(reports: &Reports, change: NeighbourChange, address: IpAddr, place: Place, detail: String) {
    let place = reports.builder().place(place.zone, place.gateway, 0);
    reports.publish(reports.event(Body::Neighbour { change, address, place }).detail(detail));
}

/// The address, with its link if it is link-local.
pub(super) fn scoped(known: &Known) -> String {
    let ip = address(known.key.addr);
    if known.key.ifindex == 0 { ip.to_string() } else { format!("{ip}%{}", known.link) }
}

/// How it is known, in words.
pub(super) fn words(learned: &Learned, link: &str) -> String {
    let mac = Mac(learned.mac);
    if learned.flags & LEARNED_MAC != 0 {
        return format!("follows from mac {mac} in policy, on {link}");
    }
    if learned.of == Addr::default() {
        return format!("answers with the MAC {mac}, which policy gives, on {link}");
    }
    format!("answers with the MAC of {} on {link} ({mac})", address(learned.of))
}

/// What happened and what to do, in words.
pub(super) fn sentence(notice: &Notice) -> String {
    let (ip, mac, link) = (address(notice.addr), notice.mac, &notice.link);
    let remedy = "if it is the protected device itself, give its mac in policy";
    match notice.kind {
        NoticeKind::Learned => {
            let learned = Learned { of: notice.of, mac: mac.0, ..Learned::default() };
            format!("{ip} joined: it {}", words(&learned, link))
        }
        NoticeKind::Expired => format!("{ip} on {link} was not seen for 24 hours, or its place is not in policy any more"),
        NoticeKind::RouterAnswers => format!("{mac}, a router's on {link}, answers for {ip}: nothing is learned from it; {remedy}"),
        NoticeKind::OwnAnswers => format!("{mac}, this host's own on {link}, answers for {ip}: nothing is learned from it"),
        NoticeKind::TwoPlaces => {
            format!("{mac} on {link} answers for addresses of two places: what it answers for joins the stricter of both")
        }
        NoticeKind::MacChanged => {
            format!("{mac} on {link} answers for {ip}, for which another answered before: addresses of both are protected")
        }
        NoticeKind::Full => {
            format!("{mac} on {link} answers for more addresses than are learned: those beyond are open; name them in policy")
        }
        NoticeKind::FullOfBroadcasts => {
            format!("{ip} of {link} and further directed broadcasts do not fit: those are open; name them in policy")
        }
    }
}
