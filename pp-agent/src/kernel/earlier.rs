//! Reads marks of sockets in the layouts of earlier builds, once, when this build takes over.

use std::{
    mem::size_of,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya::maps::{Map, MapData, SkStorage};
use pp_common::{
    abi::{Flow, NameId, SockMark},
    turns::TurnCount,
};

use super::{
    KernelError,
    maps::{map_error, optional},
};

const NAME: &str = "SOCKS of an earlier build";

/// The mark in layout 1. Layout 2 is the same with a [`TurnCount`] behind it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct First {
    session: u64,
    agent: NameId,
    owner: u32,
    flags: u32,
    tgid: u32,
    next_peer: u32,
    next_flow: u32,
    scratch: u32,
    zero: u64,
    flows: [Flow; 2],
    /// Remote ends that sent first, without the interface they came in by. They are not carried over.
    peers: [[u64; 3]; 4],
}

/// The mark in layout 2.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Second {
    first: First,
    turn_count: TurnCount,
}

const _: () = assert!(size_of::<First>() == 192 && size_of::<Second>() == 216);

// SAFETY: repr(C) of integers and arrays of them without padding (their members add up to the sizes above): any bytes are a value.
unsafe impl aya::Pod for First {}
// SAFETY: as above.
unsafe impl aya::Pod for Second {}

const FIRST: usize = size_of::<First>();
const SECOND: usize = size_of::<Second>();
const WHOLE: usize = size_of::<SockMark>();

/// The map as an earlier build left it.
pub(super) enum EarlierSocks {
    First(SkStorage<MapData, First>),
    Second(SkStorage<MapData, Second>),
    Same(SkStorage<MapData, SockMark>),
    /// An unknown layout. Its sockets get new marks without their counts.
    Unknown,
}

impl EarlierSocks {
    pub(super) fn open(data: MapData) -> Result<Self, KernelError> {
        let error = |error: &aya::maps::MapError| map_error(NAME, error);
        let size = data.info().map_err(|e| error(&e))?.value_size();
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let map = Map::SkStorage(data);
        match size {
            FIRST => map.try_into().map(Self::First).map_err(|e| error(&e)),
            SECOND => map.try_into().map(Self::Second).map_err(|e| error(&e)),
            WHOLE => map.try_into().map(Self::Same).map_err(|e| error(&e)),
            _ => {
                tracing::warn!("marks of sockets: {size} bytes are no layout this build knows; they are marked anew");
                Ok(Self::Unknown)
            }
        }
    }

    pub(super) fn get(&self, socket: BorrowedFd<'_>) -> Result<Option<SockMark>, KernelError> {
        let socket = socket.as_raw_fd();
        let found = match self {
            Self::First(map) => {
                optional(map.get(&socket, 0)).map(|first| first.map(|first| extend(&Second { first, ..Second::default() })))
            }
            Self::Second(map) => optional(map.get(&socket, 0)).map(|second| second.map(|second| extend(&second))),
            Self::Same(map) => optional(map.get(&socket, 0)),
            Self::Unknown => Ok(None),
        };
        found.map_err(|error| map_error(NAME, &error))
    }
}

/// The mark in this build's layout. Remote ends that sent first have to send again.
fn extend(second: &Second) -> SockMark {
    let Second { first, turn_count } = *second;
    SockMark {
        session: first.session,
        agent: first.agent,
        owner: first.owner,
        flags: first.flags,
        tgid: first.tgid,
        next_flow: first.next_flow,
        flows: first.flows,
        turn_count,
        ..SockMark::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pp_common::abi::SOCK_REFUSED;

    #[test]
    fn mark_of_an_earlier_layout_keeps_who_it_is_and_what_was_refused() {
        let mut first = First { session: 7, agent: 9, owner: 1_000, flags: SOCK_REFUSED, tgid: 77, scratch: 5, ..First::default() };
        first.flows[1].serial = 5;
        first.peers[3] = [1, 2, 502];
        let turn_count = TurnCount { turns: 3, ..TurnCount::default() };
        let mark = extend(&Second { first, turn_count });
        assert_eq!((mark.session, mark.agent, mark.owner, mark.flags, mark.tgid), (7, 9, 1_000, SOCK_REFUSED, 77));
        assert_eq!((mark.flows[1].serial, mark.turn_count.turns, mark.spare, mark.scratch), (5, 3, 0, 0));
    }
}
