//! Reads links and the programs at a cgroup from the kernel, and makes new links.

use std::{
    cell::Cell,
    io,
    mem::size_of,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use super::sys::{bpf, owned};

const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_TYPE_CGROUP: u32 = 3;
/// More programs than the kernel takes at one cgroup (`BPF_CGROUP_MAX_PROGS`).
const MOST_PROGRAMS: usize = 64;

/// Where a cgroup link is attached; cgroup 0: it is detached.
#[derive(Clone, Copy)]
pub(super) struct AtCgroup {
    pub(super) cgroup_id: u64,
    pub(super) attach_type: u32,
}

/// What the kernel reports about a link.
#[derive(Clone, Copy)]
pub(super) struct LinkInfo {
    pub(super) program_id: u32,
    /// For links at a cgroup.
    pub(super) cgroup: Option<AtCgroup>,
}

/// The beginning of `struct bpf_link_info`, with the union's member for cgroups.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    pad: u32,
    cgroup_id: u64,
    attach_type: u32,
    rest: [u32; 9],
}

/// The beginning of `struct bpf_prog_info`, up to the name.
#[repr(C)]
#[derive(Default)]
struct RawProgramInfo {
    numbers: [u32; 10],
    load_time: u64,
    created_by: u32,
    map_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The whole of `union bpf_attr` for a query. The kernel writes to the cells; since 6.17 to `revision` too, whatever size it is told.
#[repr(C)]
#[derive(Default)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: Cell<u32>,
    prog_ids: u64,
    prog_cnt: Cell<u32>,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: Cell<u64>,
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn info<T: Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let info_len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let attr = GetInfo { bpf_fd: number(object), info_len, info: (&raw mut info) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    Ok(info)
}

/// What the kernel reports about a link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let raw: RawLinkInfo = info(link)?;
    let at = AtCgroup { cgroup_id: raw.cgroup_id, attach_type: raw.attach_type };
    Ok(LinkInfo { program_id: raw.program_id, cgroup: (raw.kind == BPF_LINK_TYPE_CGROUP).then_some(at) })
}

/// A program by the kernel's number for it.
pub(super) fn program(id: u32) -> io::Result<OwnedFd> {
    owned(bpf(BPF_PROG_GET_FD_BY_ID, &[id, 0, 0])?)
}

/// What the kernel reports about a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ProgramInfo {
    /// The name that it was loaded with.
    pub(super) name: String,
    /// The uid that loaded it.
    pub(super) loaded_by: u32,
}

/// What the kernel reports about a program.
pub(super) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let raw: RawProgramInfo = info(program)?;
    let end = raw.name.iter().position(|byte| *byte == 0).unwrap_or(raw.name.len());
    Ok(ProgramInfo { name: String::from_utf8_lossy(&raw.name[..end]).into_owned(), loaded_by: raw.created_by })
}

/// What is attached at a hook of a cgroup.
pub(super) struct AttachedAt {
    /// The programs, in the order in which they run.
    pub(super) programs: Vec<u32>,
    /// The `BPF_F_ALLOW_*` flags that they were attached with, which are the same for all.
    pub(super) flags: u32,
}

/// What is attached at a hook of a cgroup.
pub(super) fn attached_at(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<AttachedAt> {
    let mut ids = [0_u32; MOST_PROGRAMS];
    let count = u32::try_from(ids.len()).map_err(io::Error::other)?;
    let attr = ProgQuery {
        target_fd: number(cgroup),
        attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: Cell::new(count),
        ..ProgQuery::default()
    };
    bpf(BPF_PROG_QUERY, &attr)?;
    Ok(AttachedAt { programs: ids.into_iter().take_while(|id| *id != 0).collect(), flags: attr.attach_flags.get() })
}

/// Attaches a program to a cgroup by a new link.
pub(super) fn create_link(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    owned(bpf(BPF_LINK_CREATE, &[number(program), number(cgroup), attach_type, 0])?)
}
