//! What works on the pinned maps when no daemon answers.

use std::{collections::HashSet, os::fd::AsRawFd as _, path::Path};

use aya::maps::{HashMap, Map, MapData, MapError, SkStorage};
use pp_common::abi::{SockMark, TaskMark};

use super::{
    KernelError, load,
    maps::{entries, map_error},
    publish::absent_is_fine,
    sockets,
};

fn open<T: TryFrom<Map, Error = MapError>>(bpffs: &Path, name: &'static str, kind: fn(MapData) -> Map) -> Result<T, KernelError> {
    let error = |error: &MapError| map_error(name, error);
    let data = MapData::from_pin(load::map_pin(bpffs, name)).map_err(|e| error(&e))?;
    kind(data).try_into().map_err(|e| error(&e))
}

/// Takes a session's marks away, as the daemon would: from its processes and their sockets.
/// Returns the processes it had.
///
/// # Errors
/// Nothing is pinned there, or the kernel refused.
pub fn release(bpffs: &Path, session: u64) -> Result<HashSet<u32>, KernelError> {
    let mut tasks: HashMap<MapData, u32, TaskMark> = open(bpffs, "TASKS", Map::HashMap)?;
    let mut socks: SkStorage<MapData, SockMark> = open(bpffs, "SOCKS", Map::SkStorage)?;
    let mut released = HashSet::new();
    // Again until nothing is left: a process may fork while this goes on.
    loop {
        let members: Vec<_> = entries("TASKS", &tasks)?.into_iter().filter(|(_, mark)| mark.session == session).collect();
        if members.is_empty() {
            return Ok(released);
        }
        for (pid, _) in members {
            absent_is_fine(tasks.remove(&pid)).map_err(|error| map_error("TASKS", &error))?;
            for socket in sockets::of_process(pid).unwrap_or_default() {
                let fd = socket.fd.as_raw_fd();
                if socks.get(&fd, 0).is_ok_and(|mark| mark.session == session) {
                    socks.insert(&fd, SockMark::default(), 0).map_err(|error| map_error("SOCKS", &error))?;
                }
            }
            released.insert(pid);
        }
    }
}
