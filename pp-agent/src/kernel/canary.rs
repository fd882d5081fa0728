//! The canary: a marked child in its own network namespace tries what the gate must refuse. Programs can be loaded and attached without
//! enforcing anything, so only a refusal counts as proof.
//!
//! It runs in a cgroup of its own (`canary_cgroup.rs`), since what refuses it in the daemon's cgroup alone proves nothing about the host.
//!
//! The namespace has only a loopback interface, which also has the canary's address. So no packet can reach a real network, even if no hook
//! works.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    mem::{size_of, zeroed},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::{Command, Stdio},
};

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use pp_common::abi::{TASK_CANARY, TASK_ROOT, TaskMark};

use super::{Gap, Gate, canary_cgroup::CanaryCgroup};
use crate::{
    name::{name_id, new_session},
    os::{host, process},
    policy::canary::{ADDRESS, AGENT},
};

const PORT: u16 = 502;
/// The hidden command that runs the child.
pub const COMMAND: &str = "canary-child";
/// The technique that no cgroup program can refuse.
pub(super) const PACKET: &str = "packet";
/// What the parent sends to the child in place of the name of one technique.
const EVERYTHING: &str = "everything";

/// One thing the canary tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What was tried.
    pub(crate) technique: String,
    /// The error it ended in; zero: it went through.
    pub(crate) errno: i32,
}

impl Finding {
    /// Whether the gate refused it.
    #[must_use]
    pub(crate) const fn refused(&self) -> bool {
        self.errno == libc::EPERM
    }
}

/// The targets of the canary on this host. If nothing refuses it, it does no harm to them.
#[derive(Clone, Debug)]
pub(crate) struct Aim {
    /// The directory of the pins. The canary tries to remove a folder in it that is not empty.
    pub(crate) bpffs: PathBuf,
    /// A file of the daemon. The canary tries to open it for writing.
    pub(crate) file: PathBuf,
    /// A socket of the daemon in the table of delegates. The canary tries to connect to it.
    pub(crate) socket: PathBuf,
}

/// Techniques besides [`PACKET`] that no cgroup program refuses, with the gap that each belongs to.
pub(crate) const BEYOND: [(Gap, &str); 6] = [
    (Gap::Unix, "delegate"),
    (Gap::Ptrace, "take-descriptor"),
    (Gap::Tamper, "signal"),
    (Gap::Tamper, "bpf"),
    (Gap::Tamper, "remove-pins"),
    (Gap::Tamper, "write-state"),
];

/// Sends the canary. Blocking, well under a second.
///
/// # Errors
/// The child could not be started or marked, or did not answer.
pub(crate) fn send(gate: &Gate, aim: &Aim) -> io::Result<Vec<Finding>> {
    send_for(gate, EVERYTHING, &[&aim.bpffs, &aim.file, &aim.socket])
}

/// Tries only what no cgroup program can refuse, which works before any tables are in force. Returns the error; zero: it went through.
pub(super) fn probe(gate: &Gate) -> io::Result<i32> {
    let findings = send_for(gate, PACKET, &[])?;
    let found = findings.iter().find(|found| found.technique == PACKET);
    found.map(|found| found.errno).ok_or_else(|| io::Error::other("the canary said nothing"))
}

fn send_for(gate: &Gate, what: &str, aim: &[&PathBuf]) -> io::Result<Vec<Finding>> {
    let cgroup = CanaryCgroup::make(&gate.cgroup)?;
    let mut child = Command::new("/proc/self/exe")
        .arg(COMMAND)
        .args(aim)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let findings = ask_child(gate, &cgroup, &mut child, what);
    if findings.is_err() {
        // It may still be waiting for input.
        if let Err(error) = child.kill() {
            tracing::debug!("canary: {error}");
        }
    }
    let removed = remove_mark(gate, &child);
    child.wait()?;
    removed?;
    findings
}

/// Removes the mark of a child that has ended. The exit hook does that only once it is attached, which comes last. Until the child is
/// waited for, no other process gets its pid.
fn remove_mark(gate: &Gate, child: &std::process::Child) -> io::Result<()> {
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    gate.remove_mark(child.id()).map_err(io::Error::other)
}

fn ask_child(gate: &Gate, cgroup: &CanaryCgroup, child: &mut std::process::Child, what: &str) -> io::Result<Vec<Finding>> {
    let silent = || io::Error::other("the canary said nothing");
    let mut input = child.stdin.take().ok_or_else(silent)?;
    let mut lines = BufReader::new(child.stdout.take().ok_or_else(silent)?).lines();
    let ready = lines.next().ok_or_else(silent)??;
    if ready != "ready" {
        return Err(io::Error::other(ready));
    }
    // Its sockets are made later, so they belong there too.
    cgroup.take(child.id())?;
    let mark = TaskMark {
        session: new_session(),
        agent: name_id(AGENT),
        start_ns: 0,
        session_start_ns: host::boot_ns()?,
        owner: 0,
        flags: TASK_CANARY | TASK_ROOT,
    };
    gate.insert_mark(child.id(), mark).map_err(io::Error::other)?;
    writeln!(input, "{what}")?;
    lines
        .map(|line| {
            let line = line?;
            let (technique, errno) = line.split_once(' ').ok_or_else(silent)?;
            let errno = errno.parse().map_err(io::Error::other)?;
            Ok(Finding { technique: technique.to_owned(), errno })
        })
        .collect()
}

/// The child's side: talks to its parent over standard input and output.
///
/// # Errors
/// The namespace cannot be made, or the parent is gone.
pub fn child(aim: &[PathBuf]) -> io::Result<()> {
    let [bpffs, file, server] = [0, 1, 2].map(|index| aim.get(index).cloned().unwrap_or_default());
    let daemon = nix::unistd::getppid();
    let mut out = io::stdout().lock();
    if let Err(error) = prepare() {
        return writeln!(out, "the canary's network namespace: {error}");
    }
    let unmarked = packet_socket().is_ok();
    writeln!(out, "ready")?;
    out.flush()?;
    let mut wanted = String::new();
    io::stdin().lock().read_line(&mut wanted)?;
    let wanted = wanted.trim();
    let v4 = SocketAddr::V4(SocketAddrV4::new(ADDRESS, PORT));
    let mapped = SocketAddr::V6(SocketAddrV6::new(ADDRESS.to_ipv6_mapped(), PORT, 0, 0));
    let techniques: [(&str, &dyn Fn() -> io::Result<()>); 13] = [
        ("tcp-connect", &|| connect(libc::AF_INET, v4)),
        ("tcp-connect-mapped", &|| connect(libc::AF_INET6, mapped)),
        ("udp-sendto", &|| send_to(libc::AF_INET, libc::SOCK_DGRAM, 0, v4, 0)),
        ("udp-sendto-mapped", &|| send_to(libc::AF_INET6, libc::SOCK_DGRAM, 0, mapped, 0)),
        ("tcp-fastopen", &|| send_to(libc::AF_INET, libc::SOCK_STREAM, 0, v4, libc::MSG_FASTOPEN)),
        ("raw-icmp", &|| send_to(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP, v4, 0)),
        // If an unmarked process cannot make one either, a refusal does not prove the gate.
        (PACKET, &|| if unmarked { packet_socket() } else { Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)) }),
        ("delegate", &|| UnixStream::connect(&server).map(drop)),
        ("take-descriptor", &|| take_descriptor(daemon)),
        // SIGCONT has no effect on a running process.
        ("signal", &|| nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGCONT).map_err(Into::into)),
        ("bpf", &super::sys::next_program),
        ("remove-pins", &|| std::fs::remove_dir(bpffs.join("links"))),
        ("write-state", &|| std::fs::OpenOptions::new().write(true).open(&file).map(drop)),
    ];
    for (technique, attempt) in techniques.iter().filter(|(technique, _)| wanted == EVERYTHING || wanted == *technique) {
        let errno = attempt().map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
        writeln!(out, "{technique} {errno}")?;
    }
    out.flush()
}

fn packet_socket() -> io::Result<()> {
    socket(libc::AF_PACKET, libc::SOCK_RAW, 0).map(drop)
}

/// Tries to copy the standard input of the daemon, which is harmless.
fn take_descriptor(daemon: nix::unistd::Pid) -> io::Result<()> {
    let pidfd = process::pidfd(daemon.as_raw().cast_unsigned())?;
    process::pidfd_getfd(pidfd.as_fd(), 0).map(drop)
}

/// Enters a new network namespace whose loopback interface is up and has the canary's address.
fn prepare() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    let control = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: plain bytes, all zero is a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(io::Error::other)?;
    ioctl(&control, libc::SIOCSIFFLAGS, &request)?;
    // SAFETY: plain bytes, all zero is a value.
    let mut address: libc::sockaddr_in = unsafe { zeroed() };
    address.sin_family = libc::sa_family_t::try_from(libc::AF_INET).map_err(io::Error::other)?;
    address.sin_addr.s_addr = u32::from_ne_bytes(ADDRESS.octets());
    // SAFETY: an IPv4 address is a socket address of the same size.
    request.ifr_ifru.ifru_addr = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    ioctl(&control, libc::SIOCSIFADDR, &request)
}

fn ioctl(control: &OwnedFd, which: libc::c_ulong, request: &libc::ifreq) -> io::Result<()> {
    // SAFETY: both requests read an `ifreq`.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), which, std::ptr::from_ref(request)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn connect(family: i32, to: SocketAddr) -> io::Result<()> {
    let socket = socket(family, libc::SOCK_STREAM, 0)?;
    let (address, length) = raw(to)?;
    // SAFETY: a valid address of that length.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn send_to(family: i32, kind: i32, protocol: i32, to: SocketAddr, flags: i32) -> io::Result<()> {
    let socket = socket(family, kind, protocol)?;
    let (address, length) = raw(to)?;
    // An ICMP echo request. It also serves as a UDP datagram.
    let message = [8u8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    // SAFETY: a valid message and address of those lengths.
    let result =
        unsafe { libc::sendto(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), flags, (&raw const address).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn raw(to: SocketAddr) -> io::Result<(libc::sockaddr_in6, libc::socklen_t)> {
    // SAFETY: plain bytes, all zero is a value.
    let mut v6: libc::sockaddr_in6 = unsafe { zeroed() };
    let length = match to {
        SocketAddr::V4(to) => {
            // SAFETY: an IPv4 address is shorter than an IPv6 one, and plain bytes.
            let v4 = unsafe { &mut *(&raw mut v6).cast::<libc::sockaddr_in>() };
            v4.sin_family = libc::sa_family_t::try_from(libc::AF_INET).map_err(io::Error::other)?;
            v4.sin_port = to.port().to_be();
            v4.sin_addr.s_addr = u32::from_ne_bytes(to.ip().octets());
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(to) => {
            v6.sin6_family = libc::sa_family_t::try_from(libc::AF_INET6).map_err(io::Error::other)?;
            v6.sin6_port = to.port().to_be();
            v6.sin6_addr.s6_addr = to.ip().octets();
            size_of::<libc::sockaddr_in6>()
        }
    };
    Ok((v6, libc::socklen_t::try_from(length).map_err(io::Error::other)?))
}
