//! What a session running as root could try against its gate and its host, one attempt each.

#![allow(unsafe_code, reason = "system calls that no library offers; each has its SAFETY line")]

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::unistd::Pid;

use crate::args::TamperArg;
use crate::outcome::Outcome;

const NOTHING: Option<&str> = None;

/// Makes one attempt.
pub(crate) fn attempt(attempt: &TamperArg) -> Outcome {
    Outcome(tried(attempt).map(|()| 0))
}

fn tried(attempt: &TamperArg) -> io::Result<()> {
    match attempt {
        TamperArg::Signal { pid, signal } => {
            // SAFETY: numbers only.
            done(unsafe { libc::kill(*pid, *signal) }.into())
        }
        TamperArg::FileSignal { signal } => {
            let (socket, _other) = UnixStream::pair()?;
            const F_SETSIG: i32 = 10;
            // SAFETY: a descriptor of ours and a number.
            done(unsafe { libc::fcntl(socket.as_raw_fd(), F_SETSIG, *signal) }.into())
        }
        TamperArg::Seize { pid } => {
            // SAFETY: numbers only.
            done(unsafe { libc::ptrace(libc::PTRACE_SEIZE, *pid, 0, 0) })
        }
        TamperArg::TakeDescriptor { pid } => {
            // SAFETY: numbers only.
            let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, *pid, 0) };
            done(pidfd)?;
            // SAFETY: a descriptor of ours and numbers.
            done(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, 1, 0) })
        }
        TamperArg::WriteMemory { pid } => write_memory(*pid),
        TamperArg::OpenMemory { pid } => writable(Path::new(&format!("/proc/{pid}/mem"))),
        TamperArg::Bpf { command } => bpf(*command, &[0; 16]),
        TamperArg::BpfGet { path } => {
            const BPF_OBJ_GET: i64 = 7;
            let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
            let mut attributes = [0; 16];
            attributes[0] = name.as_ptr() as u64;
            bpf(BPF_OBJ_GET, &attributes)
        }
        TamperArg::Write { path } => writable(path),
        TamperArg::Read { path } => File::open(path).map(drop),
        TamperArg::Truncate { path } => Ok(nix::unistd::truncate(path, 0)?),
        TamperArg::Create { path } => OpenOptions::new().write(true).create_new(true).open(path).map(drop),
        TamperArg::Mkdir { path } => fs::create_dir(path),
        TamperArg::Unlink { path } => fs::remove_file(path),
        TamperArg::Rmdir { path } => fs::remove_dir(path),
        TamperArg::Rename { from, to } => fs::rename(from, to),
        TamperArg::Exchange { from, to } => Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_EXCHANGE)?),
        TamperArg::Link { from, to } => fs::hard_link(from, to),
        TamperArg::Symlink { to, path } => symlink(to, path),
        TamperArg::Chmod { path } => fs::set_permissions(path, fs::Permissions::from_mode(0o777)),
        TamperArg::SetAcl { path } => set_xattr(path, ACL, &access_list()),
        TamperArg::RemoveAcl { path } => remove_xattr(path, ACL),
        TamperArg::SetXattr { path } => set_xattr(path, ATTRIBUTE, b"1"),
        TamperArg::RemoveXattr { path } => remove_xattr(path, ATTRIBUTE),
        TamperArg::Chown { path } => chown(path, Some(65_534), Some(65_534)),
        TamperArg::Mount { path } => Ok(mount(Some("none"), path, Some("tmpfs"), MsFlags::empty(), NOTHING)?),
        TamperArg::Bind { from, to } => Ok(mount(Some(from), to, NOTHING, MsFlags::MS_BIND, NOTHING)?),
        TamperArg::Move { from, to } => Ok(mount(Some(from), to, NOTHING, MsFlags::MS_MOVE, NOTHING)?),
        TamperArg::Unmount { path } => Ok(umount2(path, MntFlags::MNT_DETACH)?),
        TamperArg::UnmountAlone { path } => {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(NOTHING, "/", NOTHING, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NOTHING)?;
            Ok(umount2(path, MntFlags::MNT_DETACH)?)
        }
        TamperArg::LoadModule => {
            let image = [0_u8; 4096];
            // SAFETY: an image of that length and an empty text.
            done(unsafe { libc::syscall(libc::SYS_init_module, image.as_ptr(), image.len(), c"".as_ptr()) })
        }
        TamperArg::LoadModuleFile { path } => {
            let file = File::open(path)?;
            // SAFETY: a descriptor of ours and an empty text.
            done(unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) })
        }
        TamperArg::Kexec => {
            // SAFETY: no segments.
            done(unsafe { libc::syscall(libc::SYS_kexec_load, 0, 0, 0, 0) })
        }
        TamperArg::MoveProcess { pid, procs } => fs::write(procs, pid.to_string()),
        TamperArg::Network { way } => crate::network::attempt(*way),
        TamperArg::RequestKey { description } => {
            let description = CString::new(description.as_str()).map_err(io::Error::other)?;
            let (kind, callout) = (c"user".as_ptr(), c"pp".as_ptr());
            // SAFETY: texts that end in NULs, and no keyring.
            done(unsafe { libc::syscall(libc::SYS_request_key, kind, description.as_ptr(), callout, 0) })
        }
        TamperArg::ReleaseAgent { path } => {
            let options = Some("none,name=pp-e2e,release_agent=/bin/true");
            Ok(mount(Some("none"), path, Some("cgroup"), MsFlags::empty(), options)?)
        }
        TamperArg::Unix { path } => UnixStream::connect(path)?.write_all(b"x"),
        TamperArg::UnixDatagram { path } => UnixDatagram::unbound()?.send_to(b"x", path).map(drop),
    }
}

const ACL: &CStr = c"system.posix_acl_access";
/// Root's to give, on any file system that has attributes at all.
const ATTRIBUTE: &CStr = c"trusted.pp";

/// The owner reads and writes, and so does nobody (65534).
fn access_list() -> Vec<u8> {
    const VERSION: u32 = 2;
    let entry = |(tag, rights, id): (u16, u16, u32)| [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat();
    let entries = [(1, 6, u32::MAX), (2, 6, 65_534), (4, 4, u32::MAX), (0x10, 6, u32::MAX), (0x20, 0, u32::MAX)];
    VERSION.to_le_bytes().into_iter().chain(entries.into_iter().flat_map(entry)).collect()
}

fn set_xattr(path: &Path, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: texts that end in NULs, and bytes of that length.
    done(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }.into())
}

fn remove_xattr(path: &Path, name: &CStr) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: texts that end in NULs.
    done(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }.into())
}

fn done(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn writable(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(path).map(drop)
}

fn bpf(command: i64, attributes: &[u64; 16]) -> io::Result<()> {
    // Some commands answer in them.
    let mut own = *attributes;
    // SAFETY: attributes of that size, valid for the call.
    done(unsafe { libc::syscall(libc::SYS_bpf, command, own.as_mut_ptr(), size_of_val(&own)) })
}

/// Writes what is there already to the start of the process's stack.
fn write_memory(pid: i32) -> io::Result<()> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).and_then(|line| line.split('-').next());
    let base = stack.and_then(|text| usize::from_str_radix(text, 16).ok()).ok_or_else(|| io::Error::other("no stack"))?;
    let remote = [RemoteIoVec { base, len: 1 }];
    process_vm_writev(Pid::from_raw(pid), &[io::IoSlice::new(&[0])], &remote)?;
    Ok(())
}
