//! Programs of somebody else at a cgroup. One that is attached later undoes a refusal, or sends the connect somewhere else: the last gate must
//! still hold. One that is there first lets no other be attached. Others refuse what the gate should.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::libc::{self, RLIM_INFINITY};
use nix::sys::resource::{Resource, setrlimit};
use serde_json::json;

use crate::args::Harm;
use crate::outcome;

/// Commands, types and helpers of `linux/bpf.h`.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET_EGRESS: u32 = 1;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
const BPF_CGROUP_INET6_CONNECT: u32 = 11;
const BPF_FUNC_SET_RETVAL: u32 = 187;
/// Offset of `user_ip4` in `struct bpf_sock_addr`.
const USER_IP4: i16 = 4;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

pub(crate) const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}

/// `r0 = 1; exit`: goes on.
const GO_ON: [Instruction; 2] = [instruction(0xb7, 0, 0, 1), instruction(0x95, 0, 0, 0)];
/// `r0 = 0; exit`: refuses.
const REFUSE: [Instruction; 2] = [instruction(0xb7, 0, 0, 0), instruction(0x95, 0, 0, 0)];

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

pub(crate) fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: a prefix of `union bpf_attr` of that size, valid for the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    let fd = i32::try_from(call(command, attributes)?).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches the program, says so, and holds it until this process is killed, which removes it. It leaves alone every connect but those to
/// `only`: it hangs at the root, and the machine has other work to do.
pub(crate) fn run(cgroup: &Path, only: Ipv4Addr, to: Option<Ipv4Addr>) -> Result<()> {
    let word = |address: Ipv4Addr| u32::from_ne_bytes(address.octets()).cast_signed();
    let act = match to {
        // r1 = 0; call set_retval.
        None => [instruction(0xb7, 1, 0, 0), instruction(0x85, 0, 0, i32::try_from(BPF_FUNC_SET_RETVAL)?)],
        // r2 = address; *(u32 *)(r1 + user_ip4) = r2.
        Some(to) => [instruction(0xb4, 2, 0, word(to)), instruction(0x63, 0x21, USER_IP4, 0)],
    };
    // r2 = *(u32 *)(r1 + user_ip4); if r2 != only, on behind what follows.
    let mut program = vec![instruction(0x61, 0x12, USER_IP4, 0), instruction(0x56, 2, 2, word(only))];
    program.extend(act);
    program.extend(GO_ON);
    let _link = attach(&load_for_connect(&program)?, cgroup, BPF_CGROUP_INET4_CONNECT)?;
    hold()
}

/// Says that it is ready, and keeps what the caller has attached until it is killed.
fn hold() -> Result<()> {
    outcome::print(&json!({"ready": true}))?;
    loop {
        nix::unistd::pause();
    }
}

/// Attaches by a link, which ends with this process.
fn attach(program: &OwnedFd, cgroup: &Path, place: u32) -> Result<OwnedFd> {
    let target = File::open(cgroup).with_context(|| cgroup.display().to_string())?;
    let create = LinkCreate {
        prog_fd: u32::try_from(program.as_raw_fd())?,
        target_fd: u32::try_from(target.as_raw_fd())?,
        attach_type: place,
        flags: 0,
    };
    bpf(BPF_LINK_CREATE, &create).context("the program cannot be attached")
}

/// Attaches a program without any flag, as links never are. The cgroup keeps it, so this must be a cgroup of the test's own.
pub(crate) fn stand_alone(cgroup: &Path) -> Result<()> {
    let program = load_for_connect(&GO_ON)?;
    let target = File::open(cgroup).with_context(|| cgroup.display().to_string())?;
    let (target, program_number) = (u32::try_from(target.as_raw_fd())?, u32::try_from(program.as_raw_fd())?);
    call(BPF_PROG_ATTACH, &[target, program_number, BPF_CGROUP_INET4_CONNECT, 0]).context("the program cannot be attached")?;
    hold()
}

/// Refuses the connects of a cgroup, and its packets.
pub(crate) fn refuse_all(cgroup: &Path) -> Result<()> {
    let places = [
        (BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT),
        (BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET6_CONNECT),
        (BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_EGRESS),
    ];
    let links = places.iter().map(|(kind, place)| attach(&load(*kind, *place, &REFUSE)?, cgroup, *place));
    let _links: Vec<OwnedFd> = links.collect::<Result<_>>()?;
    hold()
}

/// Does to a pinned link of a connect4 program what root can do.
pub(crate) fn harm(pin: &Path, how: Harm) -> Result<()> {
    let link = pinned(pin)?;
    let number = u32::try_from(link.as_raw_fd())?;
    match how {
        Harm::Detach => call(BPF_LINK_DETACH, &[number])?,
        Harm::Replace => {
            let program = load_for_connect(&GO_ON)?;
            call(BPF_LINK_UPDATE, &[number, u32::try_from(program.as_raw_fd())?, 0, 0])?
        }
    };
    outcome::print(&json!({"done": true}))
}

/// Opens what is pinned there.
pub(crate) fn pinned(pin: &Path) -> Result<OwnedFd> {
    let name = std::ffi::CString::new(pin.display().to_string())?;
    bpf(BPF_OBJ_GET, &[name.as_ptr() as u64, 0]).with_context(|| pin.display().to_string())
}

fn load_for_connect(program: &[Instruction]) -> Result<OwnedFd> {
    load(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT, program)
}

/// Loads a program of this type, for this place.
pub(crate) fn load(kind: u32, place: u32, program: &[Instruction]) -> Result<OwnedFd> {
    // Before 5.11 programs count as locked memory. Later kernels need no such right, and not every machine has it.
    match setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        Ok(()) | Err(Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    let load = ProgLoad {
        prog_type: kind,
        insn_cnt: u32::try_from(program.len())?,
        insns: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        prog_name: *b"lab_undo\0\0\0\0\0\0\0\0",
        expected_attach_type: place,
        ..ProgLoad::default()
    };
    bpf(BPF_PROG_LOAD, &load).context("the kernel does not take the program")
}
