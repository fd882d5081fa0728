//! The few `bpf(2)` commands that aya does not offer, and other system calls for the gate.

use std::{
    ffi::{CStr, CString},
    io,
    mem::size_of,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::bpf_insn;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_LINK_UPDATE: libc::c_long = 29;
const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;

/// Size of the buffer for the verifier's log of a refused program, in bytes.
const VERIFIER_LOG: usize = 4 << 20;

#[repr(C)]
#[derive(Default)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// One call of `bpf(2)`.
pub(super) fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a `union bpf_attr` prefix of the stated size, valid for the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The descriptor that a call returned.
pub(super) fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a pinned map, program or link.
pub(super) fn object(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let attr = ObjGet { pathname: name.as_ptr() as u64, ..ObjGet::default() };
    owned(bpf(BPF_OBJ_GET, &attr)?)
}

/// Asks for the number of the first program, the most harmless command of `bpf(2)`.
pub(super) fn next_program() -> io::Result<()> {
    const BPF_PROG_GET_NEXT_ID: libc::c_long = 11;
    bpf(BPF_PROG_GET_NEXT_ID, &[0u32; 4]).map(drop)
}

/// Replaces the program of a link, atomically.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr =
        LinkUpdate { link_fd: link.as_raw_fd().cast_unsigned(), new_prog_fd: program.as_raw_fd().cast_unsigned(), ..LinkUpdate::default() };
    bpf(BPF_LINK_UPDATE, &attr).map(drop)
}

/// Waits until every program that runs now has returned (an RCU grace period). If the kernel has no such call (booted with `nohz_full`), it
/// waits for a fixed, long time.
pub(super) fn grace_period() {
    const LONG_ENOUGH: std::time::Duration = std::time::Duration::from_secs(1);
    // SAFETY: numbers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 {
        std::thread::sleep(LONG_ENOUGH);
    }
}

/// Removes this process's memory lock limit, which includes maps before 5.11.
pub(super) fn lift_memlock() -> io::Result<()> {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a valid structure for the call.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The arguments of `BPF_PROG_LOAD`.
pub(super) struct ProgramLoad<'a> {
    pub(super) name: &'a str,
    pub(super) kind: u32,
    pub(super) attach_type: u32,
    /// A function of the kernel, by its number in the kernel's type information.
    pub(super) function: u32,
    pub(super) instructions: &'a [bpf_insn],
    pub(super) license: &'a CStr,
}

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
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
    attach_prog_fd: u32,
    core_relo_cnt: u32,
}

#[repr(C)]
#[derive(Default)]
struct RawTracepointOpen {
    name: u64,
    prog_fd: u32,
    pad: u32,
}

/// Loads a program that aya cannot load. An error contains the end of the verifier's log.
pub(super) fn load_program(load: &ProgramLoad<'_>) -> io::Result<OwnedFd> {
    let mut attr = ProgLoad {
        prog_type: load.kind,
        insn_cnt: u32::try_from(load.instructions.len()).map_err(io::Error::other)?,
        insns: load.instructions.as_ptr() as u64,
        license: load.license.as_ptr() as u64,
        expected_attach_type: load.attach_type,
        attach_btf_id: load.function,
        ..ProgLoad::default()
    };
    // The last byte stays zero.
    for (to, from) in attr.prog_name[..15].iter_mut().zip(load.name.bytes()) {
        *to = from;
    }
    let error = match bpf(BPF_PROG_LOAD, &attr) {
        Ok(fd) => return owned(fd),
        Err(error) => error,
    };
    // Tried again to get the verifier's log.
    let mut log = vec![0u8; VERIFIER_LOG];
    attr.log_level = 1;
    attr.log_size = u32::try_from(log.len()).map_err(io::Error::other)?;
    attr.log_buf = log.as_mut_ptr() as u64;
    match bpf(BPF_PROG_LOAD, &attr) {
        Ok(fd) => owned(fd),
        Err(_) => Err(io::Error::new(error.kind(), format!("{error}{}", log_end(&log)))),
    }
}

/// The last lines of a verifier log, after a colon; nothing if there are none.
fn log_end(log: &[u8]) -> String {
    const LINES: usize = 12;
    let text = String::from_utf8_lossy(log.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() { String::new() } else { format!(": {}", lines[lines.len().saturating_sub(LINES)..].join("\n")) }
}

/// Attaches a program to the function that it was loaded for.
pub(super) fn attach_to_function(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attr = RawTracepointOpen { prog_fd: program.as_raw_fd().cast_unsigned(), ..RawTracepointOpen::default() };
    owned(bpf(BPF_RAW_TRACEPOINT_OPEN, &attr)?)
}

/// Pins a link.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let attr = ObjGet { pathname: name.as_ptr() as u64, bpf_fd: object.as_raw_fd().cast_unsigned(), ..ObjGet::default() };
    bpf(BPF_OBJ_PIN, &attr).map(drop)
}

/// How many instructions the verifier processed, if the kernel reports it.
pub(super) fn verified_instructions(program: BorrowedFd<'_>) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("verified_insns:"))?.trim().parse().ok()
}
