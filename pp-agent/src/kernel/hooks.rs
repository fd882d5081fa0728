//! Checks and repairs the hooks. Root can detach a link, give it another program or unpin it, and can attach another program behind ours.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use super::{foreign, links, programs, sys};

/// What was found wrong with a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// The link had no cgroup any more (`BPF_LINK_DETACH`).
    Detached,
    /// The link had another program (`BPF_LINK_UPDATE`).
    Replaced,
    /// The pin was gone; the hook itself was in place, held by the daemon.
    Unpinned,
    /// The kernel did not report its state.
    Unknown,
}

/// One hook that was found damaged, or a table that had lost its pin.
#[derive(Debug)]
pub(crate) struct Repair {
    /// The name of the program or table, from its pin.
    pub(crate) hook: String,
    /// What was wrong.
    pub(crate) damage: Damage,
    /// Whether it is in place again, or why not.
    pub(crate) done: io::Result<()>,
}

/// A program of another owner that runs after ours at the same hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// The kernel's number for it.
    pub(crate) id: u32,
    /// The name it was loaded with.
    pub(crate) name: String,
    /// Our program at that hook.
    pub(crate) hook: String,
}

struct Hook {
    name: String,
    pin: PathBuf,
    link: OwnedFd,
    /// Kept open, so that it can be attached again.
    program: OwnedFd,
    program_id: u32,
    /// For links at a cgroup.
    attach_type: Option<u32>,
}

/// A table as it was pinned.
struct Table {
    name: String,
    pin: PathBuf,
    map: OwnedFd,
}

/// The hooks as the daemon attached them, and the tables they read.
pub(crate) struct Hooks {
    root: Option<File>,
    tables: Vec<Table>,
    hooks: Vec<Hook>,
    reported: BTreeSet<(u32, String)>,
}

impl Hooks {
    /// Records every link and every table that is pinned now.
    ///
    /// # Errors
    /// A pin or the cgroup cannot be read.
    pub(crate) fn note(bpffs: &Path, cgroup: Option<&Path>) -> io::Result<Self> {
        let mut hooks = Vec::new();
        for entry in fs::read_dir(bpffs.join("links"))? {
            let pin = entry?.path();
            let link = sys::object(&pin)?;
            let info = links::link_info(link.as_fd())?;
            let name = pinned_name(&pin);
            let program = links::program(info.program_id)?;
            hooks.push(Hook { name, pin, link, program, program_id: info.program_id, attach_type: info.cgroup.map(|at| at.attach_type) });
        }
        let mut tables = Vec::new();
        for entry in fs::read_dir(bpffs.join("maps"))? {
            let pin = entry?.path();
            tables.push(Table { name: pinned_name(&pin), map: sys::object(&pin)?, pin });
        }
        Ok(Self { root: cgroup.map(File::open).transpose()?, tables, hooks, reported: BTreeSet::new() })
    }

    /// How many there are.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.hooks.len()
    }

    /// Whether there is one of this name.
    #[must_use]
    pub(crate) fn has(&self, name: &str) -> bool {
        self.hooks.iter().any(|hook| hook.name == name)
    }

    /// Checks each of them, and repairs what has changed.
    pub(crate) fn mend(&mut self) -> Vec<Repair> {
        let mut repairs: Vec<Repair> = self.tables.iter().filter_map(Table::mend).collect();
        // Hooks must not be pinned without their tables: the next daemon would make new tables, which these hooks do not read.
        let kept = repairs.iter().all(|repair| repair.done.is_ok());
        let root = self.root.as_ref();
        repairs.extend(self.hooks.iter_mut().filter_map(|hook| hook.mend(root, kept)));
        repairs
    }

    /// Programs behind ours that are not reported yet.
    ///
    /// # Errors
    /// The kernel does not list them.
    pub(crate) fn foreign(&mut self) -> io::Result<Vec<Foreign>> {
        let Some(root) = &self.root else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for hook in &self.hooks {
            let Some(attach_type) = hook.attach_type else { continue };
            let attached = links::attached_at(root.as_fd(), attach_type)?;
            let behind = attached.programs.iter().skip_while(|id| **id != hook.program_id).skip(1);
            for id in behind.copied().collect::<Vec<u32>>() {
                // It may be gone by now.
                let program = links::program(id).and_then(|program| links::program_info(program.as_fd())).unwrap_or_default();
                found.push(Foreign { id, name: program.name, hook: hook.name.clone() });
            }
        }
        let key = |foreign: &Foreign| (foreign.id, foreign.hook.clone());
        let fresh = found.iter().filter(|foreign| !self.reported.contains(&key(foreign))).cloned().collect();
        self.reported = found.iter().map(key).collect();
        Ok(fresh)
    }

    /// How many programs of others run after ours, at the last look.
    #[must_use]
    pub(crate) fn foreign_count(&self) -> usize {
        self.reported.len()
    }
}

/// The stem of a pin's name.
fn pinned_name(pin: &Path) -> String {
    let file = pin.file_name().unwrap_or_default().to_string_lossy();
    file.split('@').next().unwrap_or_default().to_owned()
}

/// Pins an object again. It makes the folder if the bpffs was mounted again.
fn pin_again(object: &OwnedFd, pin: &Path) -> io::Result<()> {
    pin.parent().map_or(Ok(()), fs::create_dir_all)?;
    sys::pin(object.as_fd(), pin)
}

impl Table {
    fn mend(&self) -> Option<Repair> {
        let gone = !self.pin.exists();
        gone.then(|| Repair { hook: self.name.clone(), damage: Damage::Unpinned, done: pin_again(&self.map, &self.pin) })
    }
}

impl Hook {
    fn mend(&mut self, root: Option<&File>, tables_kept: bool) -> Option<Repair> {
        let damage = self.damage()?;
        let done = match damage {
            Damage::Detached => self.attach_again(root),
            Damage::Replaced => sys::update_link(self.link.as_fd(), self.program.as_fd()),
            Damage::Unpinned if !tables_kept => Err(io::Error::other("its tables have no pins either")),
            Damage::Unpinned => pin_again(&self.link, &self.pin),
            Damage::Unknown => Err(io::Error::other("its link cannot be read")),
        };
        Some(Repair { hook: self.name.clone(), damage, done })
    }

    fn damage(&self) -> Option<Damage> {
        match links::link_info(self.link.as_fd()) {
            Err(_) => Some(Damage::Unknown),
            Ok(info) if info.cgroup.is_some_and(|at| at.cgroup_id == 0) => Some(Damage::Detached),
            Ok(info) if info.program_id != self.program_id => Some(Damage::Replaced),
            Ok(_) if !self.pin.exists() => Some(Damage::Unpinned),
            Ok(_) => None,
        }
    }

    /// Attaches the program by a new link, since a detached link cannot be used again.
    fn attach_again(&mut self, root: Option<&File>) -> io::Result<()> {
        let (Some(root), Some(attach_type)) = (root, self.attach_type) else {
            return Err(io::Error::other("no cgroup to attach it to"));
        };
        self.link = links::create_link(self.program.as_fd(), root.as_fd(), attach_type).map_err(|error| {
            let by = programs::cgroup_hook(attach_type).and_then(|hook| foreign::exclusive_at(root.as_fd(), hook));
            by.map_or(error, |by| io::Error::other(by.to_string()))
        })?;
        match fs::remove_file(&self.pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        pin_again(&self.link, &self.pin)
    }
}
