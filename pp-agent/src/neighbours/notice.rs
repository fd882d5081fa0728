//! What learning reports, each conflict once in 24 hours.

use std::collections::BTreeMap;

use pp_common::abi::Place;
use pp_common::dest::Addr;

use super::book::Known;
use crate::net::Mac;

/// Most conflicts that are remembered as reported. Further ones are not reported.
const MAX_REPORTED: usize = 1_024;

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NoticeKind {
    /// An address joined a place.
    Learned,
    /// A learned address was not seen for 24 hours, or policy no longer has its place.
    Expired,
    /// A router's hardware address answers for a protected address: proxy ARP, or a spoofed answer.
    RouterAnswers,
    /// This host's own hardware address answers for a protected address.
    OwnAnswers,
    /// One hardware address answers for two places.
    TwoPlaces,
    /// Another hardware address than before answers for a protected address.
    MacChanged,
    /// A limit is reached: of addresses of one device, or of all.
    Full,
    /// A limit is reached of directed broadcasts.
    FullOfBroadcasts,
}

/// Something that is reported once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    /// What it is about.
    pub(crate) kind: NoticeKind,
    /// The address.
    pub(crate) addr: Addr,
    /// The name of its link.
    pub(crate) link: String,
    /// The hardware address.
    pub(crate) mac: Mac,
    /// The protected address that the hardware address answers for; zero if policy gives the hardware address.
    pub(crate) of: Addr,
    /// The place.
    pub(crate) place: Place,
}

impl Notice {
    /// A notice about a known address.
    pub(super) fn about(kind: NoticeKind, known: &Known) -> Self {
        Self {
            kind,
            addr: known.key.addr,
            link: known.link.clone(),
            mac: Mac(known.learned.mac),
            of: known.learned.of,
            place: known.learned.place,
        }
    }

    fn key(&self) -> Key {
        (self.kind, self.link.clone(), self.mac, self.addr)
    }
}

/// Notices of which this is equal are the same.
type Key = (NoticeKind, String, Mac, Addr);

/// The conflicts that were reported in the last 24 hours.
#[derive(Clone, Debug, Default)]
pub(super) struct Reported {
    /// When each was reported, boot nanoseconds.
    since_ns: BTreeMap<Key, u64>,
    conflicts: Vec<Notice>,
}

impl Reported {
    /// The conflicts.
    pub(super) fn conflicts(&self) -> &[Notice] {
        &self.conflicts
    }

    /// Removes conflicts that were reported too long ago.
    pub(super) fn expire(&mut self, is_old: impl Fn(u64) -> bool) {
        self.since_ns.retain(|_, since_ns| !is_old(*since_ns));
        let since_ns = &self.since_ns;
        self.conflicts.retain(|conflict| since_ns.contains_key(&conflict.key()));
    }

    /// Returns the notices to report now, without conflicts that were reported before.
    pub(super) fn take_new(&mut self, notices: Vec<Notice>, now_ns: u64) -> Vec<Notice> {
        let mut new = Vec::new();
        for notice in notices {
            // An address is learned, and expires, once.
            if !matches!(notice.kind, NoticeKind::Learned | NoticeKind::Expired) {
                let key = notice.key();
                if self.since_ns.contains_key(&key) || self.since_ns.len() >= MAX_REPORTED {
                    continue;
                }
                self.since_ns.insert(key, now_ns);
                self.conflicts.push(notice.clone());
            }
            new.push(notice);
        }
        new
    }
}
