//! Network namespaces that have marked sockets. A socket without a process keeps its namespace alive, but no path leads to it any more. So
//! a file of each namespace is kept open, from when a marked process is seen in it until no marked socket is left.

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

/// Most namespaces that are kept open. In others, flows that no process has open are not ended, but their packets are still refused.
const MAX_NAMESPACES: usize = 1_024;

/// One namespace.
struct Held {
    file: File,
    /// Whether a marked process was in it at the last look.
    occupied: bool,
}

/// The known namespaces.
#[derive(Default)]
pub(crate) struct Namespaces {
    held: HashMap<Id, Held>,
    /// Sockets that were ended and reported but still exist: before 6.12 the kernel empties the queue of an orphan, but keeps the socket.
    ended: HashSet<u64>,
    /// Whether a namespace was left out because there was no room.
    full: bool,
}

impl Namespaces {
    /// Starts with all namespaces, since a process may have ended while no daemon ran. The first look drops those without a marked socket.
    pub(crate) fn begin() -> Self {
        let held = all().into_iter().take(MAX_NAMESPACES).map(|(id, file)| (id, Held { file, occupied: false }));
        Self { held: held.collect(), ..Self::default() }
    }

    /// Finds the namespaces of marked processes.
    pub(crate) fn look(&mut self, pids: impl Iterator<Item = u32>) {
        self.held.values_mut().for_each(|held| held.occupied = false);
        self.full = false;
        self.learn(std::process::id());
        pids.for_each(|pid| self.learn(pid));
    }

    /// Adds the namespace of a marked process.
    pub(crate) fn learn(&mut self, pid: u32) {
        use std::os::unix::fs::MetadataExt as _;
        let path = format!("/proc/{pid}/ns/net");
        // A process that has ended has no namespace.
        let Ok(about) = fs::metadata(&path) else { return };
        if let Some(held) = self.held.get_mut(&(about.dev(), about.ino())) {
            held.occupied = true;
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
            self.held.insert(id, Held { file, occupied: true });
        }
    }

    /// Every marked TCP socket in all of them. Drops namespaces without one.
    pub(crate) fn marked(&mut self, socks: BorrowedFd<'_>) -> Vec<(Id, Marked)> {
        let mut all = Vec::new();
        let mut failed = false;
        let ended = &self.ended;
        self.held.retain(|id, held| match diag::marked(held.file.as_fd(), socks) {
            Ok(found) => {
                let left = found.iter().any(|socket| !(socket.orphan && ended.contains(&socket.cookie)));
                all.extend(found.into_iter().map(|socket| (*id, socket)));
                held.occupied || left
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

    /// Whether some of them have no marked process any more.
    pub(crate) fn has_deserted(&self) -> bool {
        self.held.values().any(|held| !held.occupied)
    }

    /// Ends a socket. `false`: it was ended and reported before.
    pub(crate) fn destroy(&mut self, id: &Id, socket: &Marked) -> io::Result<bool> {
        let held = self.held.get(id).ok_or(io::ErrorKind::NotFound)?;
        if socket.orphan && self.ended.contains(&socket.cookie) {
            return Ok(false);
        }
        diag::destroy(held.file.as_fd(), socket)?;
        Ok(self.ended.insert(socket.cookie))
    }

    /// Whether a namespace was left out because there was no room.
    pub(crate) fn full(&self) -> bool {
        self.full
    }
}

/// Every network namespace that a process is in or that has a path.
pub(crate) fn all() -> HashMap<Id, File> {
    let mut found = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()));
    let processes = processes.map(|entry| entry.path().join("ns/net").display().to_string());
    let mounts = mounts::mounts().unwrap_or_default().into_iter().filter(|mount| mount.root.starts_with("net:["));
    let mounts = mounts.map(|mount| mount.point.display().to_string());
    for path in processes.chain(mounts) {
        // A process may have ended by now.
        if let Ok((id, file)) = diag::namespace(&path) {
            found.entry(id).or_insert(file);
        }
    }
    found
}
