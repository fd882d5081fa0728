//! The programs under measurement: loaded once, attached and detached for each sample, to the run's own cgroup alone.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, Program, ProgramType, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use pp_agent::kernel::offsets;

/// Every hook on the way of a call, by the name of its program.
pub(crate) const ALL: &[&str] = &["pp_sock_create", "pp_connect4", "pp_connect6", "pp_sendmsg4", "pp_sendmsg6", "pp_egress", "pp_ingress"];

/// One object's programs.
pub(crate) struct Hooks {
    pub(crate) ebpf: Ebpf,
}

impl Hooks {
    /// Loads the programs of a build of the gate.
    ///
    /// # Errors
    /// The file is none, or this kernel refuses it.
    pub(crate) fn of_gate(object: &Path) -> Result<Self> {
        let offsets = offsets::find()?;
        Self::load(EbpfLoader::new().override_global("OFFSETS", &offsets, true), object)
    }

    /// Loads the empty programs.
    ///
    /// # Errors
    /// As [`Hooks::of_gate`].
    pub(crate) fn empty(object: &Path) -> Result<Self> {
        Self::load(&mut EbpfLoader::new(), object)
    }

    fn load(loader: &mut EbpfLoader<'_>, object: &Path) -> Result<Self> {
        let what = || format!("{}: did not load", object.display());
        let mut ebpf = loader.load_file(object).with_context(what)?;
        for name in ALL {
            let program = ebpf.program_mut(name).with_context(|| format!("{}: has no program {name}", object.display()))?;
            match program {
                Program::CgroupSkb(program) => program.load(),
                Program::CgroupSock(program) => program.load(),
                Program::CgroupSockAddr(program) => program.load(),
                _ => bail!("{}: {name} is of no type that hangs at a cgroup", object.display()),
            }
            .with_context(what)?;
        }
        Ok(Self { ebpf })
    }

    /// Attaches these programs; they stay until the links are dropped.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub(crate) fn attach(&mut self, names: &[&str], cgroup: &File) -> Result<Vec<FdLink>> {
        // A link is one of many by itself: `Single` sets no flag, and the kernel takes none.
        let mode = CgroupAttachMode::Single;
        names
            .iter()
            .map(|name| {
                let program = self.ebpf.program_mut(name).with_context(|| format!("{name}: not in the object"))?;
                let link: FdLink = match program {
                    Program::CgroupSkb(program) => {
                        let attach_type = program.expected_attach_type().with_context(|| format!("{name}: has no direction"))?;
                        let id = program.attach(cgroup, attach_type, mode)?;
                        program.take_link(id)?.try_into()?
                    }
                    Program::CgroupSock(program) => {
                        let id = program.attach(cgroup, mode)?;
                        program.take_link(id)?.try_into()?
                    }
                    Program::CgroupSockAddr(program) => {
                        let id = program.attach(cgroup, mode)?;
                        program.take_link(id)?.try_into()?
                    }
                    _ => bail!("{name}: is of no type that hangs at a cgroup"),
                };
                Ok(link)
            })
            .collect()
    }
}

/// Programs of these types on this host, ours among them. As soon as one is attached to any cgroup at all, the kernel looks for
/// programs on every call, and a call with "no program" is not what it is elsewhere.
pub(crate) fn loaded() -> usize {
    let kinds = [ProgramType::CgroupSkb, ProgramType::CgroupSock, ProgramType::CgroupSockAddr];
    loaded_programs().flatten().filter(|program| kinds.iter().any(|kind| program.program_type() == (*kind).into())).count()
}
