//! Loading, attaching and pinning: make before break, so that there is no
//! moment at which a hook is missing.
//!
//! Under the pin directory: `maps/<NAME>@<layout>`, shared by every build that
//! knows the layout; `links/<program>@<build>`, where the build is
//! a hash of the object. Links of cgroup programs are switched to
//! a new program in place; the others cannot be, so the new one is attached
//! first and the old one dropped after.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, Program, links::FdLink},
};
use pp_common::abi::{ABI_VERSION, Offsets};
use sha2::{Digest as _, Sha256};

use super::{KernelError, host, offsets, sys};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PP_EBPF_OBJECT"));

/// Version of each map's layout. A build that changes a layout raises its
/// number and brings the old map's content along.
const LAYOUT: u32 = 1;

/// Every map, by its name in the object.
pub(super) const MAPS: [&str; 19] = [
    "TASKS",
    "DOOMED",
    "SOCKS",
    "CONTROL",
    "PLACES",
    "GATEWAY_PORTS",
    "SERVICES",
    "EXEMPT",
    "GRANTS",
    "USER_BITS",
    "BUDGETS",
    "DFA_ROWS",
    "DFA_BYTES",
    "RULES",
    "USERS",
    "CGROUPS",
    "REPEATS",
    "EVENTS",
    "COUNTS",
];

/// How a program hangs in the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hang {
    /// A link at the root of cgroup2.
    Cgroup,
    /// A raw tracepoint of this name.
    Tracepoint(&'static str),
    /// An LSM hook of this name; where it is refused the backend is the cgroup one.
    Lsm(&'static str),
    /// An LSM hook that some supported kernels cannot have.
    LsmIfAny(&'static str),
}

/// Every program, in the order they are attached: descent first, so that no
/// child of a process that is marked later can slip by.
const PROGRAMS: [(&str, Hang); 16] = [
    ("pp_exit", Hang::Tracepoint("sched_process_exit")),
    ("pp_fork", Hang::Tracepoint("sched_process_fork")),
    ("pp_sock_create", Hang::Cgroup),
    ("pp_egress", Hang::Cgroup),
    ("pp_ingress", Hang::Cgroup),
    ("pp_connect4", Hang::Cgroup),
    ("pp_connect6", Hang::Cgroup),
    ("pp_sendmsg4", Hang::Cgroup),
    ("pp_sendmsg6", Hang::Cgroup),
    ("pp_lsm_fork", Hang::LsmIfAny("task_alloc")),
    ("pp_lsm_connect", Hang::Lsm("socket_connect")),
    ("pp_lsm_sendmsg", Hang::Lsm("socket_sendmsg")),
    ("pp_lsm_create", Hang::Lsm("socket_create")),
    ("pp_lsm_receive", Hang::LsmIfAny("file_receive")),
    ("pp_lsm_graft", Hang::LsmIfAny("sock_graft")),
    ("pp_exec", Hang::Tracepoint("sched_process_exec")),
];

/// What was put in place.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    /// The link descriptors: they hold the hooks if somebody unmounts the pins.
    pub(super) links: Vec<OwnedFd>,
    /// Programs of the lsm backend that this kernel refused, and why.
    pub(super) refused: Vec<(&'static str, String)>,
    /// The maps were made by this start, not found.
    pub(super) fresh: bool,
}

/// Where and how large.
pub struct GateOptions {
    /// Directory of our own on a bpf file system, `/sys/fs/bpf/pp-agent`.
    pub bpffs: PathBuf,
    /// Root of cgroup2; `None`: from mountinfo.
    pub cgroup: Option<PathBuf>,
    /// Most marked processes.
    pub max_tasks: u32,
}

pub(super) fn load(options: &GateOptions) -> Result<Loaded, KernelError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(KernelError::NotRoot);
    }
    let offsets = offsets::find()?;
    let cgroup = match &options.cgroup {
        Some(path) => path.clone(),
        None => host::cgroup2_root()?,
    };
    host::pin_directory(&options.bpffs)?;
    if let Err(error) = sys::lift_memlock() {
        // Without CAP_SYS_RESOURCE; kernels since 5.11 do not need it.
        tracing::debug!("memory lock limit stays as it is: {error}");
    }
    let maps = options.bpffs.join("maps");
    let links = options.bpffs.join("links");
    for dir in [&maps, &links] {
        fs::create_dir_all(dir).map_err(KernelError::io(dir.display().to_string()))?;
    }
    let fresh = !map_pin(&options.bpffs, "TASKS").exists();
    let mut ebpf = open(&offsets, options)?;
    let cgroup = fs::File::open(&cgroup).map_err(KernelError::io(cgroup.display().to_string()))?;
    let btf = Btf::from_sys_fs().map_err(|error| KernelError::Btf(error.to_string()))?;
    let mut loaded = Loaded { links: Vec::new(), refused: Vec::new(), fresh, ebpf: take(&mut ebpf) };
    for (name, hang) in PROGRAMS {
        let path = links.join(name);
        match put(&mut loaded.ebpf, name, hang, &cgroup, &btf, &path) {
            Ok(link) => loaded.links.push(link),
            Err(reason) => match hang {
                Hang::Lsm(_) | Hang::LsmIfAny(_) => loaded.refused.push((name, reason)),
                Hang::Cgroup | Hang::Tracepoint(_) => {
                    return Err(KernelError::Program { program: name, reason });
                }
            },
        }
    }
    Ok(loaded)
}

fn take(ebpf: &mut Option<Ebpf>) -> Ebpf {
    ebpf.take().unwrap_or_else(|| unreachable!("opened a moment ago"))
}

fn open(offsets: &Offsets, options: &GateOptions) -> Result<Option<Ebpf>, KernelError> {
    let mut loader = EbpfLoader::new();
    loader.override_global("OFFSETS", offsets, true);
    loader.map_max_entries("TASKS", options.max_tasks);
    for name in MAPS {
        loader.map_pin_path(name, map_pin(&options.bpffs, name));
    }
    loader.load(OBJECT).map(Some).map_err(|error| KernelError::Load(chain(&error)))
}

pub(super) fn map_pin(bpffs: &Path, name: &str) -> PathBuf {
    bpffs.join("maps").join(format!("{name}@{LAYOUT}"))
}

/// Loads and attaches one program where another build's, or none, is attached.
fn put(ebpf: &mut Ebpf, name: &'static str, hang: Hang, cgroup: &fs::File, btf: &Btf, pin: &Path) -> Result<OwnedFd, String> {
    // bpffs keeps names with a dot for itself.
    let build = pin.with_file_name(format!("{name}@{}", build_id()));
    if let Ok(link) = sys::object(&build) {
        return Ok(link);
    }
    let program = ebpf.program_mut(name).ok_or("is missing from the object")?;
    load_one(program, hang, btf).map_err(|error| chain(&error))?;
    if let Ok(info) = program.info() {
        tracing::debug!("{name}: {} instructions verified", info.verified_instruction_count().unwrap_or_default());
    }
    let fd = program.fd().map_err(|error| chain(&error))?;
    let old = earlier_pins(pin, name);
    if hang == Hang::Cgroup
        && let Some((path, link)) = old.iter().find_map(|path| Some((path, sys::object(path).ok()?)))
    {
        sys::update_link(link.as_fd(), fd.as_fd()).map_err(|error| error.to_string())?;
        fs::rename(path, &build).map_err(|error| error.to_string())?;
        return Ok(link);
    }
    let link = attach_one(program, hang, cgroup).map_err(|error| chain(&error))?;
    let pinned = link.pin(&build).map_err(|error| chain(&error))?;
    let held = sys::object(&build).map_err(|error| error.to_string())?;
    drop(pinned);
    for path in old {
        fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(held)
}

/// Pins of the same program by other builds.
fn earlier_pins(pin: &Path, name: &str) -> Vec<PathBuf> {
    let Some(dir) = pin.parent() else { return Vec::new() };
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let file = path.file_name().map(|file| file.to_string_lossy());
            file.is_some_and(|file| file.split_once('@').is_some_and(|(stem, _)| stem == name))
        })
        .collect()
}

fn load_one(program: &mut Program, hang: Hang, btf: &Btf) -> Result<(), aya::programs::ProgramError> {
    match (program, hang) {
        (Program::RawTracePoint(program), _) => program.load(),
        (Program::Lsm(program), Hang::Lsm(hook) | Hang::LsmIfAny(hook)) => program.load(hook, btf),
        (Program::CgroupSockAddr(program), _) => program.load(),
        (Program::CgroupSock(program), _) => program.load(),
        (Program::CgroupSkb(program), _) => program.load(),
        (other, _) => Err(aya::programs::ProgramError::UnexpectedProgramType).inspect_err(|_| {
            tracing::error!("unexpected program type {:?} in the object", other.prog_type());
        }),
    }
}

fn attach_one(program: &mut Program, hang: Hang, cgroup: &fs::File) -> Result<FdLink, aya::programs::ProgramError> {
    use aya::programs::ProgramError::UnexpectedProgramType;
    // A link is one of many by itself: `Single` sets no flag, and the kernel takes none.
    let mode = CgroupAttachMode::Single;
    let not_a_link = |_| UnexpectedProgramType;
    match (program, hang) {
        (Program::RawTracePoint(program), Hang::Tracepoint(name)) => {
            let id = program.attach(name)?;
            Ok(program.take_link(id)?.into())
        }
        (Program::Lsm(program), _) => {
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

/// Tells builds apart: the object and the ABI.
fn build_id() -> String {
    let mut hash = Sha256::new();
    hash.update(OBJECT);
    hash.update(ABI_VERSION.to_le_bytes());
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Removes every hook and map; works with the daemon dead.
///
/// # Errors
/// A pin cannot be removed.
pub fn uninstall(bpffs: &Path) -> Result<usize, KernelError> {
    let mut removed = 0;
    for dir in ["links", "maps"] {
        let dir = bpffs.join(dir);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(KernelError::io(dir.display().to_string())(error)),
        };
        for entry in entries.flatten() {
            let path = entry.path();
            fs::remove_file(&path).map_err(KernelError::io(path.display().to_string()))?;
            removed += 1;
        }
        fs::remove_dir(&dir).map_err(KernelError::io(dir.display().to_string()))?;
    }
    match fs::remove_dir(bpffs) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(KernelError::io(bpffs.display().to_string())(error)),
        Ok(()) | Err(_) => Ok(removed),
    }
}

/// An error with its causes on one line; a verifier log keeps its lines.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}
