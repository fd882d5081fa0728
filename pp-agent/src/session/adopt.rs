//! Marks processes that already run: for `run` and `adopt`, and at the first start, since the kernel did not see those processes start.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pp_common::abi::{NameId, SOCK_OPENED, SockMark, TASK_ROOT, TaskMark};

use super::Released;
use crate::{
    identity::IdentityTables,
    kernel::{Gate, KernelError},
    name::new_session,
    os::{
        host, mounts,
        process::{self, pidfd},
        sockets,
    },
};

/// Why a process cannot be marked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    /// It is gone.
    #[error("process {0} does not exist; look for it with pgrep")]
    NoProcess(u32),
    /// It belongs to a session.
    #[error("process {0} already belongs to a session; the first mark wins")]
    AlreadyMarked(u32),
    /// PID 1, a kernel thread or the daemon.
    #[error("process {0} can never be marked: it is PID 1, a kernel thread or the daemon itself")]
    Never(u32),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// What the walk over `/proc` found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Processes marked, with their session.
    pub(crate) marked: Vec<(u32, u64)>,
    /// Processes that could not be read, and why. It is unknown whether they are agents.
    pub(crate) undecided: Vec<(u32, String)>,
}

/// Starts a session with a running process and all its descendants.
///
/// # Errors
/// It is gone, already marked, never markable, or the table is full.
pub(crate) fn adopt(gate: &Gate, pid: u32, agent: NameId, owner: u32) -> Result<u64, AdoptError> {
    if pid <= 1 || pid == std::process::id() || is_kernel_thread(pid) {
        return Err(AdoptError::Never(pid));
    }
    let process = Handle::of(pid).ok_or(AdoptError::NoProcess(pid))?;
    let now = host::boot_ns().map_err(|source| KernelError::Io { what: "boot time".into(), source })?;
    let mark = TaskMark { session: new_session(), agent, start_ns: 0, session_start_ns: now, owner, flags: TASK_ROOT };
    match process.mark(gate, mark)? {
        Marking::Done => {}
        Marking::Already => return Err(AdoptError::AlreadyMarked(pid)),
        Marking::Gone => return Err(AdoptError::NoProcess(pid)),
    }
    tag_sockets(gate, pid, &mark);
    spread(gate, &mut Report::default())?;
    Ok(mark.session)
}

/// Removes the marks of a session from its processes and their sockets. Returns the processes.
///
/// # Errors
/// The kernel refused.
pub(crate) fn release(gate: &Gate, session: u64) -> Result<HashSet<u32>, KernelError> {
    let mut released = HashSet::new();
    // RACE: repeated until nothing is left, since a process may fork at the same time.
    loop {
        let members: Vec<_> = gate.marks()?.into_iter().filter(|(_, mark)| mark.session == session).collect();
        if members.is_empty() {
            return Ok(released);
        }
        for (pid, _) in members {
            gate.remove_mark(pid)?;
            for socket in sockets::of_process(pid).unwrap_or_default() {
                if let Some(mark) = gate.sock_mark(socket.as_fd())?.filter(|mark| mark.session == session) {
                    sockets::end_if_refused(&socket, &mark);
                    gate.set_sock_mark(socket.as_fd(), SockMark::default())?;
                }
            }
            released.insert(pid);
        }
    }
}

/// Marks running processes by the rules, until nothing new appears. Released processes stay unmarked.
///
/// # Errors
/// The kernel refused.
pub(crate) fn walk(gate: &Gate, identity: &IdentityTables, released: &Released) -> Result<Report, KernelError> {
    let mut report = Report::default();
    let marked: HashSet<u32> = gate.marks()?.into_iter().map(|(pid, _)| pid).collect();
    for process in processes(&mut report) {
        if marked.contains(&process.pid) || process.pid <= 1 || process.kernel_thread {
            continue;
        }
        let uid = process::status(process.pid).map(|status| status.ruid);
        let Some(uid) = known(process.pid, uid, &mut report) else { continue };
        let Some(agent) = recognise(identity, process.pid, uid) else { continue };
        if released.covers(process.pid) {
            continue;
        }
        match adopt(gate, process.pid, agent, uid) {
            Ok(session) => report.marked.push((process.pid, session)),
            Err(AdoptError::NoProcess(_) | AdoptError::AlreadyMarked(_) | AdoptError::Never(_)) => {}
            Err(AdoptError::Kernel(error)) => return Err(error),
        }
    }
    spread(gate, &mut report)?;
    Ok(report)
}

/// Gives every unmarked child of a marked process its parent's mark, until nothing new appears. The fork hook marks new children.
fn spread(gate: &Gate, report: &mut Report) -> Result<(), KernelError> {
    loop {
        let marks: HashMap<u32, TaskMark> = gate.marks()?.into_iter().collect();
        let mut found = 0;
        let descendants = descendants(&processes(report), &marks);
        // If the table is full before all of them are in it, hooks find the others by their ancestors.
        descendants.iter().for_each(|(pid, _)| gate.expect_mark(*pid));
        for (pid, parent) in descendants {
            let Some(process) = Handle::of(pid) else { continue };
            // RACE: by now the pid may belong to another process, or the process may have another parent.
            let Ok(Some(from)) = read_process(pid).map(|now| (now.parent == parent).then(|| marks.get(&parent)).flatten()) else {
                continue;
            };
            let mark = TaskMark { start_ns: 0, flags: from.flags & !TASK_ROOT, ..*from };
            if process.mark(gate, mark)? == Marking::Done {
                tag_sockets(gate, pid, &mark);
                report.marked.push((pid, mark.session));
                found += 1;
            }
        }
        if found == 0 {
            return Ok(());
        }
    }
}

/// Marks the sockets that a process had open before it was marked.
pub(crate) fn tag_sockets(gate: &Gate, pid: u32, mark: &TaskMark) {
    let sockets = match sockets::of_process(pid) {
        Ok(sockets) => sockets,
        Err(error) => {
            tracing::warn!("process {pid}: its open sockets cannot be marked: {error}");
            return;
        }
    };
    let listening: HashSet<_> =
        sockets.iter().filter(|socket| socket.listening).filter_map(|socket| socket.local.map(|local| local.port())).collect();
    for socket in &sockets {
        let accepted = socket.local.is_some_and(|local| listening.contains(&local.port()));
        let opened = socket.peer.is_some() && !accepted;
        let tag = SockMark {
            session: mark.session,
            agent: mark.agent,
            owner: mark.owner,
            flags: if opened { SOCK_OPENED } else { 0 },
            tgid: pid,
            ..SockMark::default()
        };
        let marked = gate.sock_mark(socket.as_fd());
        if matches!(marked, Ok(Some(found)) if found.session != 0) {
            continue;
        }
        if let Err(error) = gate.set_sock_mark(socket.as_fd(), tag) {
            tracing::warn!("process {pid}: an open socket cannot be marked: {error}");
        }
    }
}

/// Marks the open sockets of every marked process again, after an upgrade to another layout. A socket keeps its old mark if it had one.
///
/// # Errors
/// The kernel's tables cannot be read.
pub(crate) fn mark_sockets_again(gate: &Gate) -> Result<(), KernelError> {
    for (pid, mark) in gate.marks()? {
        // A process that is gone has no sockets.
        for socket in sockets::of_process(pid).unwrap_or_default() {
            let there = gate.sock_mark(socket.as_fd())?.is_some_and(|found| found.session != 0);
            if !there && let Err(error) = gate.carry_sock_mark(socket.as_fd()) {
                tracing::warn!("process {pid}: a socket's mark cannot be carried over: {error}");
            }
        }
        tag_sockets(gate, pid, &mark);
    }
    Ok(())
}

/// The unmarked descendants of marked processes, each with its parent and listed after it.
fn descendants(processes: &[Process], marks: &HashMap<u32, TaskMark>) -> Vec<(u32, u32)> {
    let mut found: Vec<(u32, u32)> = Vec::new();
    let mut known: HashSet<u32> = marks.keys().copied().collect();
    loop {
        let before = found.len();
        for process in processes {
            if known.contains(&process.parent) && known.insert(process.pid) {
                found.push((process.pid, process.parent));
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// The result of marking a running process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Marking {
    Done,
    /// It has a mark.
    Already,
    /// It has ended, or is about to.
    Gone,
}

/// A handle on one process, which stays valid if another process gets its pid.
struct Handle {
    pid: u32,
    pidfd: OwnedFd,
}

impl Handle {
    fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, pidfd: pidfd(pid).ok()? })
    }

    /// Marks the process if it is still running. A mark that is set after its end would belong to the next process with this pid.
    fn mark(&self, gate: &Gate, mark: TaskMark) -> Result<Marking, KernelError> {
        if !gate.insert_mark(self.pid, mark)? {
            return Ok(Marking::Already);
        }
        if self.is_running() {
            return Ok(Marking::Done);
        }
        // RACE: by now the kernel may have marked the next process with this pid. Such a mark has a start time.
        if gate.mark(self.pid)?.is_some_and(|found| found.session == mark.session && found.start_ns == 0) {
            gate.remove_mark(self.pid)?;
        }
        Ok(Marking::Gone)
    }

    /// Whether some thread of it is not exiting yet. If so, its exit hook will find a mark that is set by now.
    fn is_running(&self) -> bool {
        let ended = PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN);
        poll(&mut [ended], PollTimeout::ZERO) == Ok(0) && process::has_a_thread(self.pid)
    }
}

/// What `/proc` says of a process.
struct Process {
    pid: u32,
    parent: u32,
    kernel_thread: bool,
}

/// What was read of a process. `None`: it has ended, or the report says why it cannot be read.
fn known<T>(pid: u32, found: io::Result<T>, report: &mut Report) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH) => None,
        Err(error) => {
            report.undecided.push((pid, error.to_string()));
            None
        }
    }
}

fn processes(report: &mut Report) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids.into_iter().filter_map(|pid| known(pid, read_process(pid), report)).collect()
}

fn read_process(pid: u32) -> io::Result<Process> {
    let stat = process::stat(pid)?;
    Ok(Process { pid, parent: process::parent(&stat), kernel_thread: process::is_kernel_thread(&stat) })
}

fn is_kernel_thread(pid: u32) -> bool {
    read_process(pid).is_ok_and(|process| process.kernel_thread)
}

/// The agent that the rules recognise a running process as.
fn recognise(identity: &IdentityTables, pid: u32, uid: u32) -> Option<NameId> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok();
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let argv: Vec<&[u8]> = cmdline.strip_suffix(b"\0").unwrap_or(&cmdline).split(|byte| *byte == 0).collect();
    let exe = exe.as_ref().map(|path| std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
    let program =
        exe.and_then(|path| identity.matches(path, &argv)).or_else(|| identity.matches(argv.first().copied().unwrap_or_default(), &argv));
    program
        .or_else(|| script(identity, exe, &argv))
        .or_else(|| identity.uids.iter().find(|(of, _)| *of == uid).map(|(_, a)| *a))
        .or_else(|| cgroup_rule(identity, pid))
        .filter(|agent| *agent != 0)
}

/// The agent that the rules recognise the script of an interpreter as, by the path of the script. When a `#!` file is started, the kernel
/// sees that path first.
fn script(identity: &IdentityTables, exe: Option<&[u8]>, argv: &[&[u8]]) -> Option<NameId> {
    const INTERPRETERS: [&[u8]; 14] =
        [b"sh", b"bash", b"dash", b"zsh", b"ksh", b"busybox", b"node", b"nodejs", b"bun", b"deno", b"perl", b"ruby", b"php", b"env"];
    let name = exe?.rsplit(|byte| *byte == b'/').next()?;
    if !INTERPRETERS.contains(&name) && !name.starts_with(b"python") && !name.starts_with(b"pypy") {
        return None;
    }
    let at = argv.iter().skip(1).position(|word| !word.starts_with(b"-"))? + 1;
    identity.matches(argv[at], &argv[at..])
}

fn cgroup_rule(identity: &IdentityTables, pid: u32) -> Option<NameId> {
    use std::os::unix::fs::MetadataExt as _;
    let path = process::cgroup2(Some(pid))?;
    let root = mounts::cgroup2_root().ok()?;
    let leaf = root.join(path.trim_start_matches('/'));
    leaf.ancestors().take_while(|dir| dir.starts_with(&root)).find_map(|dir| {
        let id = fs::metadata(dir).ok()?.ino();
        identity.cgroups.iter().find(|(cgroup, _)| *cgroup == id).map(|(_, agent)| *agent)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_that_has_ended_is_not_running() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let process = Handle::of(child.id()).unwrap();
        // Not waited for yet: a zombie, which keeps its pid.
        let mut ended = [PollFd::new(process.pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut ended, 10_000u16), Ok(1));
        assert!(!process.is_running());
        child.wait().unwrap();
        assert!(Handle::of(std::process::id()).unwrap().is_running());
    }

    #[test]
    fn descendants_come_after_their_parents() {
        let process = |pid, parent| Process { pid, parent, kernel_thread: false };
        let all = [process(10, 20), process(20, 30), process(30, 1), process(40, 1), process(50, 40)];
        let marks = HashMap::from([(30, TaskMark::default())]);
        assert_eq!(descendants(&all, &marks), [(20, 30), (10, 20)]);
    }
}
