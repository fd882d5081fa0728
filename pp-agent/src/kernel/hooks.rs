//! The hooks that are in place, looked at again and put back: a link can be
//! detached, given another program or unpinned by whoever is root, and another
//! program can be attached behind ours.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use super::{links, sys};

/// What was found wrong with a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The link had no cgroup any more (`BPF_LINK_DETACH`).
    Detached,
    /// The link had another program (`BPF_LINK_UPDATE`).
    Replaced,
    /// The pin was gone; the hook itself was in place, held by the daemon.
    Unpinned,
    /// The kernel did not say how it is.
    Unknown,
}

impl Damage {
    /// Its reason in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Detached => "hook_detached",
            Self::Replaced => "hook_replaced",
            Self::Unpinned => "hook_unpinned",
            Self::Unknown => "hook_unknown",
        }
    }
}

/// One hook that was found damaged.
#[derive(Debug)]
pub struct Repair {
    /// The program, as its pin calls it.
    pub hook: String,
    /// What was wrong.
    pub damage: Damage,
    /// It is in place again, or why not.
    pub done: io::Result<()>,
}

/// A program of somebody else's that runs after ours at the same hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The kernel's number for it.
    pub id: u32,
    /// The name it was loaded with.
    pub name: String,
    /// Our program at that hook.
    pub hook: String,
}

struct Hook {
    name: String,
    pin: PathBuf,
    link: OwnedFd,
    /// Held, so that it can be attached again.
    program: OwnedFd,
    program_id: u32,
    /// For links at a cgroup.
    attach_type: Option<u32>,
}

/// The hooks as they were put in place.
pub struct Hooks {
    root: Option<File>,
    hooks: Vec<Hook>,
    told: BTreeSet<(u32, String)>,
}

impl Hooks {
    /// Notes every link that is pinned now.
    ///
    /// # Errors
    /// A pin or the cgroup cannot be read.
    pub fn note(bpffs: &Path, cgroup: Option<&Path>) -> io::Result<Self> {
        let mut hooks = Vec::new();
        for entry in fs::read_dir(bpffs.join("links"))? {
            let pin = entry?.path();
            let link = sys::object(&pin)?;
            let info = links::link_info(link.as_fd())?;
            let file = pin.file_name().unwrap_or_default().to_string_lossy();
            let name = file.split('@').next().unwrap_or_default().to_owned();
            let program = links::program(info.program_id)?;
            hooks.push(Hook { name, pin, link, program, program_id: info.program_id, attach_type: info.cgroup.map(|at| at.attach_type) });
        }
        Ok(Self { root: cgroup.map(File::open).transpose()?, hooks, told: BTreeSet::new() })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.hooks.len()
    }

    /// Looks at each, and puts back what is not as it was.
    pub fn mend(&mut self) -> Vec<Repair> {
        let root = self.root.as_ref();
        self.hooks.iter_mut().filter_map(|hook| hook.mend(root)).collect()
    }

    /// Programs behind ours that were not told yet.
    ///
    /// # Errors
    /// The kernel does not list them.
    pub fn foreign(&mut self) -> io::Result<Vec<Foreign>> {
        let Some(root) = &self.root else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for hook in &self.hooks {
            let Some(attach_type) = hook.attach_type else { continue };
            let programs = links::programs_at(root.as_fd(), attach_type)?;
            let behind = programs.iter().skip_while(|id| **id != hook.program_id).skip(1);
            for id in behind.copied().collect::<Vec<u32>>() {
                // It may have gone since.
                let name = links::program(id).and_then(|program| links::program_name(program.as_fd())).unwrap_or_default();
                found.push(Foreign { id, name, hook: hook.name.clone() });
            }
        }
        let key = |foreign: &Foreign| (foreign.id, foreign.hook.clone());
        let fresh = found.iter().filter(|foreign| !self.told.contains(&key(foreign))).cloned().collect();
        self.told = found.iter().map(key).collect();
        Ok(fresh)
    }

    /// How many programs of others run after ours, at the last look.
    #[must_use]
    pub fn foreign_count(&self) -> usize {
        self.told.len()
    }
}

impl Hook {
    fn mend(&mut self, root: Option<&File>) -> Option<Repair> {
        let damage = self.damage()?;
        let done = match damage {
            Damage::Detached => self.attach_again(root),
            Damage::Replaced => sys::update_link(self.link.as_fd(), self.program.as_fd()),
            Damage::Unpinned => self.pin_again(),
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

    /// Nothing can be put behind a link that was detached: a new one takes its place.
    fn attach_again(&mut self, root: Option<&File>) -> io::Result<()> {
        let (Some(root), Some(attach_type)) = (root, self.attach_type) else {
            return Err(io::Error::other("no cgroup to attach it to"));
        };
        self.link = links::create_link(self.program.as_fd(), root.as_fd(), attach_type)?;
        match fs::remove_file(&self.pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        self.pin_again()
    }

    fn pin_again(&self) -> io::Result<()> {
        sys::pin(self.link.as_fd(), &self.pin)
    }
}
