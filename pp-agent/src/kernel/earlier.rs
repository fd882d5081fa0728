//! Marks of sockets in the layouts of earlier builds, read once when this build
//! takes over.

use std::{
    mem::{offset_of, size_of},
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya::maps::{Map, MapData, SkStorage};
use pp_common::abi::SockMark;

use super::{KernelError, map_error, optional};

/// Layout 1: all that comes before `talk`.
const LAYOUT_1: usize = offset_of!(SockMark, talk);
const WHOLE: usize = size_of::<SockMark>();

/// The map as an earlier build left it.
pub(super) enum EarlierSocks {
    First(SkStorage<MapData, [u8; LAYOUT_1]>),
    Same(SkStorage<MapData, SockMark>),
    /// Its sockets are marked anew, with nothing they were counted for.
    Unknown,
}

impl EarlierSocks {
    pub(super) fn open(data: MapData) -> Result<Self, KernelError> {
        let error = |error: &aya::maps::MapError| map_error("SOCKS of an earlier build", error);
        let size = data.info().map_err(|e| error(&e))?.value_size();
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let map = Map::SkStorage(data);
        match size {
            LAYOUT_1 => map.try_into().map(Self::First).map_err(|e| error(&e)),
            WHOLE => map.try_into().map(Self::Same).map_err(|e| error(&e)),
            _ => {
                tracing::warn!("marks of sockets: {size} bytes are no layout this build knows; they are marked anew");
                Ok(Self::Unknown)
            }
        }
    }

    pub(super) fn get(&self, socket: BorrowedFd<'_>) -> Result<Option<SockMark>, KernelError> {
        const NAME: &str = "SOCKS of an earlier build";
        let socket = socket.as_raw_fd();
        match self {
            Self::First(map) => Ok(optional(map.get(&socket, 0), NAME)?.map(|bytes| extend(&bytes))),
            Self::Same(map) => optional(map.get(&socket, 0), NAME),
            Self::Unknown => Ok(None),
        }
    }
}

/// A mark of layout 1 with a conversation that begins now.
fn extend(bytes: &[u8; LAYOUT_1]) -> SockMark {
    let mut mark = SockMark::default();
    // SAFETY: the members before `talk`, which are integers and arrays of them: any bytes are a
    // value; both are valid for that many.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut mark).cast::<u8>(), LAYOUT_1) };
    mark
}

#[cfg(test)]
mod tests {
    use super::*;
    use pp_common::abi::{SOCK_OPENED, SOCK_PEERS};

    #[test]
    fn mark_of_the_first_layout_keeps_all_it_had() {
        assert_eq!(LAYOUT_1, 192);
        let mut mark = SockMark { session: 7, owner: 1_000, flags: SOCK_OPENED, ..SockMark::default() };
        mark.flows[1].serial = 5;
        mark.peers[SOCK_PEERS - 1].port = 502;
        let mut bytes = [0; LAYOUT_1];
        // SAFETY: as in `extend`.
        unsafe { std::ptr::copy_nonoverlapping((&raw const mark).cast::<u8>(), bytes.as_mut_ptr(), LAYOUT_1) };
        assert_eq!(extend(&bytes), mark);
    }
}
