//! What is measured: each call, by each kind of caller, with each hook alone and with all of them.

use std::net::{IpAddr, Ipv6Addr};

use serde::Serialize;

use crate::calls::Kind;
use crate::hooks::ALL;
use crate::limits::Limit;
use crate::tables::{COUNTED, GRANTED, OPEN, PROTECTED, UNCOUNTED};

/// Targets of a session that reaches for each once: as many as a busy one has within the window, and fewer than the rules allow.
const NEW_TARGETS: u16 = 60;
/// Targets of a session that goes on with what it works with.
const KNOWN_TARGETS: u16 = 16;
/// Most that counting may add to a connect. Not to the first to a target: of those a session has a hundred in five minutes at most.
const COUNTING_NS: f64 = 100.0;

/// Who makes the call, and to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Caller {
    /// Of no session.
    Unmarked,
    /// Of a session, to what nothing protects.
    Allowed,
    /// Of a session, to a protected host that its receipt names.
    Granted,
    /// Of a session, to a protected host that no receipt names.
    Refused,
    /// Of a session, to what the behaviour rules count, each target for the first time.
    CountedNew,
    /// The same, to targets it reached for a moment ago.
    CountedAgain,
}

impl Caller {
    const MARKED: [Self; 3] = [Self::Allowed, Self::Granted, Self::Refused];

    /// In the table.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Unmarked => "unmarked",
            Self::Allowed => "marked, not protected",
            Self::Granted => "marked, by receipt",
            Self::Refused => "marked, refused",
            Self::CountedNew => "marked, counted first",
            Self::CountedAgain => "marked, counted again",
        }
    }

    /// The behaviour rules count the call, and it is compared with one that they do not count.
    pub(crate) const fn is_counted(self) -> bool {
        matches!(self, Self::CountedNew | Self::CountedAgain)
    }
}

/// One line of the result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) call: &'static str,
    /// In the table; the programs are `programs`.
    pub(crate) hooks: &'static str,
    pub(crate) programs: &'static [&'static str],
    pub(crate) kind: Kind,
    pub(crate) caller: Caller,
    pub(crate) v6: bool,
    pub(crate) limit: Option<Limit>,
}

impl Row {
    /// Where the call goes.
    pub(crate) fn host(&self) -> IpAddr {
        match self.caller {
            _ if self.v6 => Ipv6Addr::LOCALHOST.into(),
            Caller::Unmarked | Caller::Allowed => OPEN.into(),
            Caller::Granted => GRANTED.into(),
            Caller::Refused => PROTECTED.into(),
            Caller::CountedNew | Caller::CountedAgain => COUNTED.into(),
        }
    }

    /// Where the call goes that it is compared with.
    pub(crate) fn baseline(&self) -> IpAddr {
        if self.caller.is_counted() { UNCOUNTED.into() } else { self.host() }
    }
}

/// Every row, hook by hook and then whole calls.
pub(crate) fn all() -> Vec<Row> {
    let row = |call, hooks, programs, kind| Row { call, hooks, programs, kind, caller: Caller::Unmarked, v6: false, limit: None };
    let limited = |limit, row: Row| Row { limit: Some(Limit::Times(limit)), ..row };
    let socket = row("socket+close", "sock_create", &["pp_sock_create"], Kind::Socket);
    let connect = row("udp connect", "connect4", &["pp_connect4"], Kind::Connect);
    let connect6 = Row { v6: true, ..row("udp connect", "connect6", &["pp_connect6"], Kind::Connect) };
    let sendto = row("udp sendto+recv", "sendmsg4", &["pp_sendmsg4"], Kind::Sendto);
    let sendto6 = Row { v6: true, ..row("udp sendto+recv", "sendmsg6", &["pp_sendmsg6"], Kind::Sendto) };
    let egress = row("udp send+recv", "egress", &["pp_egress"], Kind::Send);
    let ingress = row("udp send+recv", "ingress", &["pp_ingress"], Kind::Send);
    let packets = row("udp send+recv", "egress+ingress", &["pp_egress", "pp_ingress"], Kind::Send);
    let by = |caller, row: Row| Row { caller, ..row };
    let mut rows = vec![limited(2.0, socket), by(Caller::Allowed, socket)];
    for row in [connect, sendto, packets] {
        rows.push(limited(1.5, row));
        rows.extend(Caller::MARKED.map(|caller| by(caller, row)));
    }
    for row in [connect6, sendto6] {
        rows.extend([limited(1.5, row), by(Caller::Allowed, row)]);
    }
    rows.extend([egress, by(Caller::Allowed, egress), ingress, by(Caller::Allowed, ingress)]);
    let counted = |targets| row("tcp connect, no route", "connect4", &["pp_connect4"], Kind::NoRoute { targets });
    let again = by(Caller::CountedAgain, counted(KNOWN_TARGETS));
    rows.extend([Row { limit: Some(Limit::Nanoseconds(COUNTING_NS)), ..again }, by(Caller::CountedNew, counted(NEW_TARGETS))]);
    for (call, kind) in [("udp connect", Kind::Connect), ("udp sendto+recv", Kind::Sendto), ("tcp connect+close", Kind::Tcp)] {
        let whole = row(call, "all", ALL, kind);
        rows.push(whole);
        rows.extend(Caller::MARKED.map(|caller| by(caller, whole)));
    }
    rows
}
