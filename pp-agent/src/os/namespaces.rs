//! Network namespaces with sockets that have a mark. A socket that its process left keeps its namespace, but no path leads there any more: so
//! a file of each is held from the moment a marked process is seen in it until no marked socket is left.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use super::{
    diag::{self, Id, Marked},
    mounts,
};

/// Most namespaces that are held at once. In further ones flows that nobody has open are not ended; their packets are refused all the same.
const MAX_NAMESPACES: usize = 1_024;

/// One namespace.
struct Held {
    file: File,
    /// A marked process was in it at the last look.
    inhabited: bool,
}

/// Those that are known.
#[derive(Default)]
pub(crate) struct Namespaces {
    held: HashMap<Id, Held>,
    /// Sockets that were ended and told of, and are there still: before 6.12 the kernel empties the queue of an orphan, but keeps it.
    ended: HashSet<u64>,
    /// One was left out for want of room.
    full: bool,
}

impl Namespaces {
    /// All there are, since a process may have ended while no daemon ran. Those without a marked socket are let go at the first look.
    pub(crate) fn begin() -> Self {
        let held = all().into_iter().take(MAX_NAMESPACES).map(|(id, file)| (id, Held { file, inhabited: false }));
        Self { held: held.collect(), ..Self::default() }
    }

    /// Looks where marked processes are now.
    pub(crate) fn look(&mut self, pids: impl Iterator<Item = u32>) {
        self.held.values_mut().for_each(|held| held.inhabited = false);
        self.full = false;
        self.learn(std::process::id());
        pids.for_each(|pid| self.learn(pid));
    }

    /// A marked process is there.
    pub(crate) fn learn(&mut self, pid: u32) {
        use std::os::unix::fs::MetadataExt as _;
        let path = format!("/proc/{pid}/ns/net");
        // A process that is gone is in none.
        let Ok(about) = fs::metadata(&path) else { return };
        if let Some(held) = self.held.get_mut(&(about.dev(), about.ino())) {
            held.inhabited = true;
            return;
        }
        if self.held.len() >= MAX_NAMESPACES {
            if !self.full {
                tracing::warn!("marked processes are in more than {MAX_NAMESPACES} network namespaces: not all are looked after");
            }
            self.full = true;
            return;
        }
        if let Ok((id, file)) = diag::namespace(&path) {
            self.held.insert(id, Held { file, inhabited: true });
        }
    }

    /// Every marked TCP socket in all of them. One in which nothing is left is let go.
    pub(crate) fn marked(&mut self, socks: BorrowedFd<'_>) -> Vec<(Id, Marked)> {
        let mut all = Vec::new();
        let mut failed = false;
        let ended = &self.ended;
        self.held.retain(|id, held| match diag::marked(held.file.as_fd(), socks) {
            Ok(found) => {
                let left = found.iter().any(|socket| !(socket.orphan && ended.contains(&socket.cookie)));
                all.extend(found.into_iter().map(|socket| (*id, socket)));
                held.inhabited || left
            }
            Err(error) => {
                tracing::debug!("sockets of a network namespace: {error}");
                failed = true;
                true
            }
        });
        if !failed {
            let there: HashSet<u64> = all.iter().map(|(_, socket)| socket.cookie).collect();
            self.ended.retain(|cookie| there.contains(cookie));
        }
        all
    }

    /// Some of them have no marked process any more.
    pub(crate) fn has_deserted(&self) -> bool {
        self.held.values().any(|held| !held.inhabited)
    }

    /// Ends a socket. `false`: it was ended and told of before.
    pub(crate) fn destroy(&mut self, id: &Id, socket: &Marked) -> io::Result<bool> {
        let held = self.held.get(id).ok_or(io::ErrorKind::NotFound)?;
        if socket.orphan && self.ended.contains(&socket.cookie) {
            return Ok(false);
        }
        diag::destroy(held.file.as_fd(), socket)?;
        Ok(self.ended.insert(socket.cookie))
    }

    /// One was left out for want of room.
    pub(crate) fn full(&self) -> bool {
        self.full
    }
}

/// Every network namespace that a process is in or a path leads to.
pub(crate) fn all() -> HashMap<Id, File> {
    let mut found = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()));
    let processes = processes.map(|entry| entry.path().join("ns/net").display().to_string());
    let mounts = mounts::mounts().unwrap_or_default().into_iter().filter(|mount| mount.root.starts_with("net:["));
    let mounts = mounts.map(|mount| mount.point.display().to_string());
    for path in processes.chain(mounts) {
        // Processes end meanwhile.
        if let Ok((id, file)) = diag::namespace(&path) {
            found.entry(id).or_insert(file);
        }
    }
    found
}
