//! Directed broadcasts of links that carry a place: a datagram to one reaches every protected device on its link.

use std::collections::BTreeMap;

use pp_common::abi::{LEARNED_BROADCAST, Learned, LinkKey, NearKey, Place};

use super::notice::{Notice, NoticeKind};
use super::view::View;
use super::{Snapshot, combine};
use crate::net::Mac;

/// Most directed broadcasts that are entered.
pub(super) const MAX_BROADCASTS: usize = 1_024;

/// The directed broadcasts of a namespace that policy does not name, each with its link's place. One that several links have belongs to the
/// places of all.
pub(super) fn add(view: &View<'_>, links: &BTreeMap<LinkKey, Place>, found: &mut BTreeMap<NearKey, Learned>) {
    for (link, ip) in &view.snapshot.broadcasts {
        let Some(place) = links.get(&view.key(*link)) else { continue };
        let key = view.near(*link, *ip);
        if view.policy.place(&key.addr).is_some() || view.snapshot.own.iter().any(|(_, own)| own == ip) {
            continue;
        }
        let known = found.entry(key).or_insert(Learned { ifindex: *link, flags: LEARNED_BROADCAST, ..Learned::default() });
        known.place = if known.place == Place::default() { *place } else { combine([known.place, *place]) };
    }
}

/// Keeps as many as fit, and reports the first of the others.
pub(super) fn fit(found: &mut BTreeMap<NearKey, Learned>, room: usize, snapshots: &[Snapshot], notices: &mut Vec<Notice>) {
    let room = room.min(MAX_BROADCASTS);
    let Some((&first, &beyond)) = found.iter().nth(room) else { return };
    tracing::error!("directed broadcasts of links that carry a place: {} found, {room} fit; the others are open", found.len());
    let mut of = snapshots.iter().filter(|snapshot| snapshot.netns == first.netns).flat_map(|snapshot| &snapshot.links);
    let link = of.find(|link| link.index == beyond.ifindex).map_or_else(String::new, |link| link.name.clone());
    notices.push(Notice {
        kind: NoticeKind::FullOfBroadcasts,
        addr: first.addr,
        link,
        mac: Mac::default(),
        of: first.addr,
        place: beyond.place,
    });
    found.split_off(&first);
}
