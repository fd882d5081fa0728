//! Loads, attaches and pins the programs: make before break, so that no hook is ever missing.
//!
//! The pin directory holds `maps/<NAME>@<layout>`, which all builds with that layout share, and `links/<program>@<build>`, where the build
//! is a hash of the object. Links of cgroup programs are switched to a new program in place. For the others, the new program is attached
//! first and the old one detached afterwards. Programs of a backend (`backend.rs`) are only detached once the new ones have refused a
//! canary.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::LazyLock,
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::MapData,
    programs::{CgroupAttachMode, Program, links::FdLink},
};
use pp_common::{
    abi::Offsets,
    maps::{self, AYA_LOGS, Map, SOCKS, TASKS},
    protect::GuardOffsets,
};
use sha2::{Digest as _, Sha256};

use super::{
    Backend, KernelError, bpffs,
    fmod::{self, FmodObject},
    foreign, guard, offsets,
    programs::{self, AttachTo, FIRST, LAST, REFUSING},
    sys, version,
};
use crate::causes::chain;
use crate::os::mounts::cgroup2_root;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PP_EBPF_OBJECT"));

/// Where to pin and attach, and how large tables are.
pub(crate) struct GateOptions {
    /// Directory of our own on a bpf file system, `/sys/fs/bpf/pp-agent`.
    pub(crate) bpffs: PathBuf,
    /// Root of cgroup2; `None`: from mountinfo.
    pub(crate) cgroup: Option<PathBuf>,
    /// Most marked processes.
    pub(crate) max_tasks: u32,
    /// Programs to leave out, to test what each is for. Only builds with debug assertions can name any.
    pub(crate) without: Vec<String>,
}

/// The object with its maps open, and the links that are attached so far.
pub(super) struct Loader {
    pub(super) ebpf: Ebpf,
    /// Whether this start made the maps.
    pub(super) fresh: bool,
    /// Whether programs of other builds may have marked processes without an entry in `PIDS`.
    pub(super) doubtful: bool,
    without: Vec<String>,
    /// The marks of sockets that a build with another layout kept.
    pub(super) earlier_socks: Option<MapData>,
    /// The cgroup that programs are attached to.
    pub(super) cgroup_path: PathBuf,
    cgroup: fs::File,
    btf: Btf,
    kernel: btf_rs::Btf,
    /// See [`offsets::splices_by_message`].
    pub(super) splices_by_message: bool,
    /// Programs whose hook this kernel does not have, and that are of no use without it.
    pub(super) hookless: Vec<&'static str>,
    links: PathBuf,
    /// The maps' descriptors, until the object is read again for fmod_ret.
    maps: Vec<(String, OwnedFd)>,
    fmod_object: Option<FmodObject>,
    /// Why this kernel does not support the guard programs.
    guard_problem: Option<String>,
    /// The links in place, by their pins.
    held: Vec<(PathBuf, OwnedFd)>,
}

impl Loader {
    /// Opens the maps. From here on, programs of earlier builds and of this one share all maps whose layout is the same.
    pub(super) fn open(options: &GateOptions) -> Result<Self, KernelError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(KernelError::NotRoot);
        }
        let kernel = offsets::kernel()?;
        let offsets = offsets::find_in(&kernel)?;
        let cgroup_path = match &options.cgroup {
            Some(path) => path.clone(),
            None => cgroup2_root()?,
        };
        let cgroup = fs::File::open(&cgroup_path).map_err(KernelError::io(cgroup_path.display().to_string()))?;
        programs::at_cgroup_hooks().try_for_each(|(program, hook)| check_hook(&cgroup, program, hook))?;
        bpffs::pin_directory(&options.bpffs)?;
        if let Err(error) = sys::lift_memlock() {
            // CAP_SYS_RESOURCE is missing. Kernels since 5.11 do not need it.
            tracing::debug!("memory lock limit stays as it is: {error}");
        }
        let links = options.bpffs.join("links");
        for dir in [&options.bpffs.join("maps"), &links] {
            fs::create_dir_all(dir).map_err(KernelError::io(dir.display().to_string()))?;
        }
        let fresh = !map_pin(&options.bpffs, &TASKS).exists();
        let attached = Attached::by(&links)?;
        check_pins(&options.bpffs, attached, fresh)?;
        // A kernel without these members still gets all other programs.
        let guard_offsets = offsets::find_guard_in(&kernel);
        let ebpf = object(&offsets, guard_offsets.as_ref().copied().unwrap_or_default(), options)?;
        let descriptors = fmod::descriptors(&ebpf).map_err(KernelError::Load)?;
        let earlier_socks = other_layouts(&options.bpffs, &SOCKS).iter().find_map(|pin| match MapData::from_pin(pin) {
            Ok(map) => Some(map),
            Err(error) => {
                tracing::warn!("{}: {error}; open sockets are marked anew", pin.display());
                None
            }
        });
        Ok(Self {
            ebpf,
            fresh,
            doubtful: !fresh && attached.others,
            without: options.without.clone(),
            earlier_socks,
            cgroup_path,
            cgroup,
            btf: Btf::from_sys_fs().map_err(|error| KernelError::Btf(error.to_string()))?,
            splices_by_message: offsets::splices_by_message(&kernel),
            hookless: REFUSING.iter().filter(|program| is_hookless(&kernel, program)).map(|program| program.name).collect(),
            kernel,
            links,
            maps: descriptors,
            fmod_object: None,
            guard_problem: guard_offsets.err().map(|error| error.to_string()),
            held: Vec::new(),
        })
    }

    /// Attaches the first programs of every backend. Returns optional programs that this kernel refused.
    ///
    /// # Errors
    /// A needed program was refused.
    pub(super) fn attach_first(&mut self) -> Result<Vec<Refused>, KernelError> {
        let mut refused = Vec::new();
        for program in &FIRST {
            match self.put_for_all(program) {
                Err(KernelError::Program { program: name, reason }) if !program.needed => {
                    tracing::info!("{name} is not to be had here: {}", reason.lines().next().unwrap_or_default());
                    refused.push((name, reason));
                }
                other => other?,
            }
        }
        Ok(refused)
    }

    /// Attaches the programs that mark processes, and returns the descriptors of all links. They keep the hooks attached if the pins are
    /// unmounted.
    pub(super) fn close(mut self) -> Result<Vec<OwnedFd>, KernelError> {
        LAST.iter().try_for_each(|program| self.put_for_all(program))?;
        Ok(self.held.into_iter().map(|(_, link)| link).collect())
    }

    fn put_for_all(&mut self, program: &programs::Program) -> Result<(), KernelError> {
        self.put(program, Backend::Cgroup).map_err(|reason| {
            // RACE: another program may have come since the start began.
            let taken = if let AttachTo::Cgroup(hook) = program.attach_to { check_hook(&self.cgroup, program, hook).err() } else { None };
            taken.unwrap_or(KernelError::Program { program: program.name, reason })
        })
    }

    /// Attaches the programs of a backend in addition to those of earlier builds. Returns optional programs that this kernel refused.
    ///
    /// # Errors
    /// A needed program that was refused, with the kernel's reason. Programs before it stay attached.
    pub(super) fn attach(&mut self, backend: Backend) -> Result<Vec<Refused>, Refused> {
        let mut refused = Vec::new();
        for program in REFUSING.iter().filter(|program| program.serves(backend)) {
            let stands_by = program.in_place_of.is_some_and(|other| refused.iter().all(|(name, _)| *name != other));
            if stands_by || program.for_splices && self.splices_by_message || self.hookless.contains(&program.name) {
                continue;
            }
            match self.put(program, backend) {
                Ok(()) => {}
                Err(reason) if program.needed => return Err((program.name, reason)),
                Err(reason) => refused.push((program.name, reason)),
            }
        }
        Ok(refused)
    }

    /// Detaches what this build attached for a backend.
    pub(super) fn detach(&mut self, backend: Backend) -> Result<(), KernelError> {
        for program in REFUSING.iter().filter(|program| program.serves(backend)) {
            let pin = self.pin(&program.stem(backend));
            self.held.retain(|(held, _)| *held != pin);
            remove(&pin)?;
        }
        Ok(())
    }

    /// Whether the programs of a backend are pinned, by this or an earlier build.
    pub(super) fn was_attached(&self, backend: Backend) -> bool {
        let mut needed = REFUSING.iter().filter(|program| program.needed && program.serves(backend));
        needed.all(|program| !pins_of(&self.links, &program.stem(backend)).is_empty())
    }

    /// Removes the pins of programs that are not in use any more: of earlier builds and of other backends. Returns how many there were.
    /// Those that are attached last stay, since they are not replaced yet.
    pub(super) fn sweep(&self) -> Result<usize, KernelError> {
        let entries = fs::read_dir(&self.links).map_err(KernelError::io(self.links.display().to_string()))?;
        let last: Vec<PathBuf> = LAST.iter().flat_map(|program| pins_of(&self.links, program.name)).collect();
        let left = entries.flatten().map(|entry| entry.path());
        let left = left.filter(|path| !last.contains(path) && self.held.iter().all(|(held, _)| held != path));
        let left: Vec<PathBuf> = left.collect();
        left.iter().try_for_each(|path| remove(path))?;
        Ok(left.len())
    }

    fn pin(&self, stem: &str) -> PathBuf {
        // bpffs reserves names with a dot.
        self.links.join(format!("{stem}@{}", build_id()))
    }

    /// Loads and attaches one program, unless this build's is attached already.
    fn put(&mut self, program: &programs::Program, backend: Backend) -> Result<(), String> {
        if self.without.iter().any(|name| name == program.name) {
            tracing::warn!("{}: left out, as the command line asks", program.name);
            return Ok(());
        }
        if let (Some(why), true) = (&self.guard_problem, guard::PROGRAMS.contains(&program.name)) {
            return Err(why.clone());
        }
        let stem = program.stem(backend);
        let pin = self.pin(&stem);
        let link = match (sys::object(&pin), program.attach_to, backend) {
            (Ok(link), _, _) => link,
            (Err(_), AttachTo::Hook(hook), Backend::FmodRet) => self.put_fmod(program, hook, &pin)?,
            (Err(_), attach_to, _) => self.put_by_aya(program.name, attach_to, &stem, &pin)?,
        };
        self.held.push((pin, link));
        Ok(())
    }

    fn put_fmod(&mut self, program: &programs::Program, hook: &str, pin: &Path) -> Result<OwnedFd, String> {
        let fmod_object = match self.fmod_object.take() {
            Some(fmod_object) => fmod_object,
            None => FmodObject::new(OBJECT, std::mem::take(&mut self.maps))?,
        };
        self.fmod_object.insert(fmod_object).put(program, hook, &self.kernel, pin)
    }

    fn put_by_aya(&mut self, name: &str, attach_to: AttachTo, stem: &str, pin: &Path) -> Result<OwnedFd, String> {
        let program = self.ebpf.program_mut(name).ok_or("is missing from the object")?;
        load_one(program, attach_to, &self.btf).map_err(|error| chain(&error))?;
        if let Ok(info) = program.info() {
            tracing::debug!("{name}: {} instructions verified", info.verified_instruction_count().unwrap_or_default());
        }
        let fd = program.fd().map_err(|error| chain(&error))?;
        let old = pins_of(&self.links, stem);
        if matches!(attach_to, AttachTo::Cgroup(_))
            && let Some((path, link)) = old.iter().find_map(|path| Some((path, sys::object(path).ok()?)))
        {
            sys::update_link(link.as_fd(), fd.as_fd()).map_err(|error| error.to_string())?;
            fs::rename(path, pin).map_err(|error| error.to_string())?;
            return Ok(link);
        }
        let link = attach_one(program, attach_to, &self.cgroup).map_err(|error| chain(&error))?;
        let pinned = link.pin(pin).map_err(|error| chain(&error))?;
        let held = sys::object(pin).map_err(|error| error.to_string())?;
        drop(pinned);
        // Programs of a backend stay until the new ones have refused a canary.
        if matches!(attach_to, AttachTo::Cgroup(_) | AttachTo::Tracepoint(_) | AttachTo::TypedTracepoint(_)) {
            for path in old {
                fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        Ok(held)
    }
}

/// A program that this kernel refused, and the reason.
pub(super) type Refused = (&'static str, String);

/// Which builds have programs attached.
#[derive(Clone, Copy)]
pub(super) struct Attached {
    /// This build.
    pub(super) own: bool,
    /// Another build.
    pub(super) others: bool,
}

impl Attached {
    /// By the pins of links in this folder; none if there is no such folder.
    pub(super) fn by(links: &Path) -> Result<Self, KernelError> {
        let error = || KernelError::io(links.display().to_string());
        let own = format!("@{}", build_id());
        let mut attached = Self { own: false, others: false };
        let entries = match fs::read_dir(links) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(attached),
            entries => entries.map_err(error())?,
        };
        for entry in entries {
            let name = entry.map_err(error())?.file_name();
            if name.to_string_lossy().ends_with(&own) {
                attached.own = true;
            } else {
                attached.others = true;
            }
        }
        Ok(attached)
    }
}

/// Checks that a program can be attached at its hook.
fn check_hook(cgroup: &fs::File, program: &programs::Program, hook: programs::CgroupHook) -> Result<(), KernelError> {
    match foreign::exclusive_at(cgroup.as_fd(), hook) {
        Some(by) => Err(KernelError::HookTaken { program: program.name, by: by.to_string() }),
        None => Ok(()),
    }
}

/// Checks that attached programs have their maps: programs of this build need all of them, programs of others the marks of processes. The
/// daemon would otherwise write to new maps that no attached program reads. Log lines come from the map that attached programs write to.
fn check_pins(bpffs: &Path, attached: Attached, fresh: bool) -> Result<(), KernelError> {
    let needed = pinned_maps().filter(|map| map.name != AYA_LOGS.name);
    let lost = needed.map(|map| map_pin(bpffs, map)).find(|pin| !pin.exists());
    match lost.filter(|_| attached.own || attached.others && fresh) {
        Some(path) => Err(KernelError::LostMap { path }),
        None => Ok(()),
    }
}

/// Whether the program is for kernels alone that have its hook, and this one has not.
fn is_hookless(kernel: &btf_rs::Btf, program: &programs::Program) -> bool {
    match program.attach_to {
        AttachTo::Hook(hook) => program.where_hooked && !fmod::has_hook(kernel, hook),
        AttachTo::Cgroup(_) | AttachTo::Tracepoint(_) | AttachTo::TypedTracepoint(_) | AttachTo::Entry(_) => false,
    }
}

fn remove(pin: &Path) -> Result<(), KernelError> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(KernelError::io(pin.display().to_string())(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn object(offsets: &Offsets, guard_offsets: GuardOffsets, options: &GateOptions) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    loader.override_global("OFFSETS", offsets, true);
    loader.override_global("GUARD_OFFSETS", &guard_offsets, true);
    loader.map_max_entries(TASKS.name, options.max_tasks);
    for map in pinned_maps() {
        loader.map_pin_path(map.name, map_pin(&options.bpffs, map));
    }
    loader.load(OBJECT).map_err(|error| KernelError::Load(chain(&error)))
}

fn pinned_maps() -> impl Iterator<Item = &'static Map> {
    maps::ALL.iter().filter(|map| map.is_pinned())
}

pub(super) fn map_pin(bpffs: &Path, map: &Map) -> PathBuf {
    // The copy of a later version has another layout for the marks of sockets, so that the test of an upgrade sees them carried over.
    let layout = if map.name == SOCKS.name && version::is_later() { map.layout + 1 } else { map.layout };
    bpffs.join("maps").join(format!("{}@{layout}", map.name))
}

/// Removes maps in layouts that no attached program uses any more.
pub(super) fn drop_other_layouts(bpffs: &Path) -> Result<(), KernelError> {
    if Attached::by(&bpffs.join("links"))?.others {
        return Ok(());
    }
    let changed = pinned_maps().filter(|map| map.layout != 1);
    changed.flat_map(|map| other_layouts(bpffs, map)).try_for_each(|pin| remove(&pin))
}

/// Pins of the map in other layouts than this build's.
pub(super) fn other_layouts(bpffs: &Path, map: &Map) -> Vec<PathBuf> {
    let own = map_pin(bpffs, map);
    let mut pins = pins_of(&bpffs.join("maps"), map.name);
    pins.retain(|pin| *pin != own);
    pins
}

/// Pins of a program or map, by any build.
pub(super) fn pins_of(links: &Path, stem: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(links) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let file = path.file_name().map(|file| file.to_string_lossy());
            file.is_some_and(|file| file.split_once('@').is_some_and(|(found, _)| found == stem))
        })
        .collect()
}

fn load_one(program: &mut Program, attach_to: AttachTo, btf: &Btf) -> Result<(), aya::programs::ProgramError> {
    match (program, attach_to) {
        (Program::RawTracePoint(program), _) => program.load(),
        (Program::BtfTracePoint(program), AttachTo::TypedTracepoint(name)) => program.load(name, btf),
        (Program::Lsm(program), AttachTo::Hook(hook)) => program.load(hook, btf),
        (Program::FEntry(program), AttachTo::Entry(function)) => program.load(function, btf),
        (Program::CgroupSockAddr(program), _) => program.load(),
        (Program::CgroupSock(program), _) => program.load(),
        (Program::CgroupSkb(program), _) => program.load(),
        (other, _) => Err(aya::programs::ProgramError::UnexpectedProgramType).inspect_err(|_| {
            tracing::error!("unexpected program type {:?} in the object", other.prog_type());
        }),
    }
}

fn attach_one(program: &mut Program, attach_to: AttachTo, cgroup: &fs::File) -> Result<FdLink, aya::programs::ProgramError> {
    use aya::programs::ProgramError::UnexpectedProgramType;
    // Links always allow several programs. `Single` sets no flag, and the kernel accepts none.
    let mode = CgroupAttachMode::Single;
    let not_a_link = |_| UnexpectedProgramType;
    match (program, attach_to) {
        (Program::RawTracePoint(program), AttachTo::Tracepoint(name)) => {
            let id = program.attach(name)?;
            Ok(program.take_link(id)?.into())
        }
        (Program::BtfTracePoint(program), _) => {
            let id = program.attach()?;
            Ok(program.take_link(id)?.into())
        }
        (Program::Lsm(program), _) => {
            let id = program.attach()?;
            Ok(program.take_link(id)?.into())
        }
        (Program::FEntry(program), _) => {
            let id = program.attach()?;
            Ok(program.take_link(id)?.into())
        }
        (Program::CgroupSockAddr(program), _) => {
            let id = program.attach(cgroup, mode)?;
            program.take_link(id)?.try_into().map_err(not_a_link)
        }
        (Program::CgroupSock(program), _) => {
            let id = program.attach(cgroup, mode)?;
            program.take_link(id)?.try_into().map_err(not_a_link)
        }
        (Program::CgroupSkb(program), _) => {
            let attach_type = program.expected_attach_type();
            let attach_type = attach_type.ok_or(UnexpectedProgramType)?;
            let id = program.attach(cgroup, attach_type, mode)?;
            program.take_link(id)?.try_into().map_err(not_a_link)
        }
        _ => Err(UnexpectedProgramType),
    }
}

/// Identifies this build by its object and its ABI.
fn build_id() -> &'static str {
    // Computed once: it is used for each program, and the object is large.
    static ID: LazyLock<String> = LazyLock::new(|| {
        let mut hash = Sha256::new();
        hash.update(OBJECT);
        hash.update(version::abi().to_le_bytes());
        hex::encode(&hash.finalize()[..8])
    });
    &ID
}
