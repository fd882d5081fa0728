//! Commands that work on the pinned maps without a daemon.

use std::{
    collections::HashSet,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use aya::maps::{HashMap, Map, MapData, MapError, SkStorage};
use pp_common::abi::{SOCK_REFUSED, SockMark, TaskMark};
use pp_common::maps::{self, DOOMED, SOCKS, TASKS};

use super::{
    KernelError, load,
    maps::{ANY, Locked, map_error},
    sys,
};
use crate::os::{diag, namespaces, sockets};

/// Opens a pinned map of this layout.
pub(super) fn open<T>(bpffs: &Path, about: &'static maps::Map, kind: fn(MapData) -> Map) -> Result<Locked<T>, KernelError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let data = MapData::from_pin(load::map_pin(bpffs, about));
    let map = data.and_then(|data| T::try_from(kind(data)));
    map.map(|map| Locked::new(about, map)).map_err(|error| map_error(about.name, &error))
}

/// Every marked process, read from the pins; none if nothing is installed.
///
/// # Errors
/// A pinned map cannot be read.
pub(crate) fn marks(bpffs: &Path) -> Result<Vec<u32>, KernelError> {
    let mut marked = Vec::new();
    for map in [&TASKS, &DOOMED].into_iter().filter(|map| load::map_pin(bpffs, map).exists()) {
        let map: Locked<HashMap<MapData, u32, TaskMark>> = open(bpffs, map, Map::HashMap)?;
        marked.extend(map.keys()?);
    }
    Ok(marked)
}

/// Ends every TCP flow that had a packet refused, and every flow to a protected place that no process has open. It searches all network
/// namespaces that can be found. Without hooks the kernel would send what is in their queues. Returns how many.
///
/// # Errors
/// The kernel cannot find or end them.
pub(super) fn end_refused(bpffs: &Path) -> Result<usize, KernelError> {
    end_where(&load::pins_of(&bpffs.join("maps"), SOCKS.name), |socket| {
        socket.mark.flags & SOCK_REFUSED != 0 || socket.orphan && socket.mark.flows.iter().any(|flow| flow.serial != 0)
    })
}

/// Ends the TCP flows with a mark in these pinned maps that `wanted` selects. Returns how many.
///
/// # Errors
/// The kernel cannot find or end them.
pub(super) fn end_where(pins: &[PathBuf], wanted: impl Fn(&diag::Marked) -> bool) -> Result<usize, KernelError> {
    let mut ended = 0;
    for pin in pins {
        let socks = sys::object(pin).map_err(KernelError::io(pin.display().to_string()))?;
        for file in namespaces::all().values() {
            let found = diag::marked(file.as_fd(), socks.as_fd()).map_err(KernelError::io("sockets that have a mark"))?;
            for socket in found.iter().filter(|socket| wanted(socket)) {
                match diag::destroy(file.as_fd(), socket) {
                    Ok(()) => ended += 1,
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                    Err(error) => return Err(KernelError::io(format!("flow from {} to {}", socket.local, socket.peer))(error)),
                }
            }
        }
    }
    Ok(ended)
}

/// Removes the marks of a session from its processes and their sockets, as the daemon would. Returns the processes.
///
/// # Errors
/// Nothing is pinned there, or the kernel refused.
pub(crate) fn release(bpffs: &Path, session: u64) -> Result<HashSet<u32>, KernelError> {
    let tasks: Locked<HashMap<MapData, u32, TaskMark>> = open(bpffs, &TASKS, Map::HashMap)?;
    let socks: Locked<SkStorage<MapData, SockMark>> = open(bpffs, &SOCKS, Map::SkStorage)?;
    let mut released = HashSet::new();
    // RACE: repeated until nothing is left, since a process may fork at the same time.
    loop {
        let members: Vec<_> = tasks.entries()?.into_iter().filter(|(_, mark)| mark.session == session).collect();
        if members.is_empty() {
            return Ok(released);
        }
        for (pid, _) in members {
            tasks.remove(&pid)?;
            for socket in sockets::of_process(pid).unwrap_or_default() {
                let fd = socket.fd.as_raw_fd();
                let mut socks_map = socks.lock();
                if let Ok(mark) = socks_map.get(&fd, ANY)
                    && mark.session == session
                {
                    sockets::end_if_refused(&socket, &mark);
                    socks_map.insert(&fd, SockMark::default(), ANY).map_err(|error| socks.error(error))?;
                }
            }
            released.insert(pid);
        }
    }
}
