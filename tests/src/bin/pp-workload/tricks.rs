//! Ways to become another process, all of which must stay in the session: each runs the command it is given in the process it makes.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::libc;
use nix::poll::{PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, execveat, fork, setsid};
use serde_json::json;

use crate::args::Trick;
use crate::{batch, launch, outcome};

/// `CLONE_INTO_CGROUP` of `linux/sched.h`.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// The loader of every program that is linked dynamically on x86-64.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// Becomes the command in that way. Returns only where the command is a child that has ended.
pub(crate) fn run(trick: Trick, cgroup: Option<&Path>, pid: Option<i32>, command: &[String]) -> Result<()> {
    match trick {
        Trick::Fork => in_child(forked()?, command),
        Trick::Numbered => in_child(clone3(0, libc::SIGCHLD, None, Some(pid.context("no process id given")?))?, command),
        Trick::Vfork => vfork(command),
        Trick::IntoCgroup => {
            let cgroup = File::open(cgroup.context("no cgroup given")?)?;
            in_child(clone3(CLONE_INTO_CGROUP, libc::SIGCHLD, Some(&cgroup), None)?, command)
        }
        // Nobody waits for a sibling: its answer is read from its output.
        Trick::Sibling => match clone3(libc::CLONE_PARENT as u64, 0, None, None)? {
            None => launch::exec(command),
            Some(_) => Ok(()),
        },
        Trick::DoubleFork => double_fork(command),
        Trick::ExecByThread => exec_by_thread(command),
        Trick::Memfd => by_memfd(command),
        Trick::Loader => {
            let mut words = vec![LOADER.to_owned()];
            words.extend_from_slice(command);
            launch::exec(&words)
        }
        Trick::Script => by_script(command),
        Trick::UserNamespace => {
            unshare(CloneFlags::CLONE_NEWUSER)?;
            launch::exec(command)
        }
        Trick::PidNamespace => {
            unshare(CloneFlags::CLONE_NEWPID)?;
            in_child(forked()?, command)
        }
        Trick::MountAndIpcNamespaces => {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)?;
            launch::exec(command)
        }
        Trick::ThereAndBack => {
            let here = File::open("/proc/self/ns/net")?;
            unshare(CloneFlags::CLONE_NEWNET)?;
            setns(here, CloneFlags::CLONE_NEWNET)?;
            launch::exec(command)
        }
    }
}

fn forked() -> Result<Option<Pid>> {
    // SAFETY: this program has one thread here.
    Ok(match unsafe { fork() }? {
        ForkResult::Child => None,
        ForkResult::Parent { child } => Some(child),
    })
}

/// The child becomes the command; the parent waits and passes its exit code on.
fn in_child(child: Option<Pid>, command: &[String]) -> Result<()> {
    let Some(child) = child else { return launch::exec(command) };
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        other => bail!("the child ended: {other:?}"),
    }
}

/// The standard library starts a plain command by `posix_spawn`, which the C library does with `CLONE_VFORK | CLONE_VM`.
fn vfork(command: &[String]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command given")?;
    let status = Command::new(program).args(arguments).status()?;
    ensure!(status.success(), "the child ended: {status}");
    Ok(())
}

/// A child by `clone3`, with this process id where one is given; `None` in it.
pub(crate) fn clone3(flags: u64, exit_signal: i32, cgroup: Option<&File>, pid: Option<i32>) -> Result<Option<Pid>> {
    // SAFETY: plain numbers, all zero is a value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    arguments.exit_signal = u64::try_from(exit_signal)?;
    if let Some(cgroup) = cgroup {
        arguments.cgroup = u64::try_from(cgroup.as_raw_fd())?;
    }
    if let Some(pid) = &pid {
        arguments.set_tid = std::ptr::from_ref(pid) as u64;
        arguments.set_tid_size = 1;
    }
    // SAFETY: a valid structure of that size, what it points to outlives the call; without CLONE_VM the child has a copy of everything, as after fork.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match pid {
        0 => Ok(None),
        pid if pid < 0 => Err(std::io::Error::last_os_error()).context("clone3"),
        pid => Ok(Some(Pid::from_raw(i32::try_from(pid)?))),
    }
}

/// A process whose parent and grandparent are gone, in a session of its own.
fn double_fork(command: &[String]) -> Result<()> {
    if forked()?.is_some() {
        return Ok(());
    }
    setsid()?;
    if forked()?.is_some() {
        return Ok(());
    }
    launch::exec(command)
}

/// A thread that is not the first one becomes the command: the process keeps its id and loses its first thread.
fn exec_by_thread(command: &[String]) -> Result<()> {
    let command = command.to_vec();
    let thread = std::thread::spawn(move || launch::exec(&command));
    thread.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
}

fn c_strings(command: &[String]) -> Result<Vec<CString>> {
    command.iter().map(|word| CString::new(word.as_str()).map_err(Into::into)).collect()
}

/// The program's bytes in memory, executed from there: there is no file of its name.
fn by_memfd(command: &[String]) -> Result<()> {
    let program = command.first().context("no command given")?;
    let mut memory = File::from(memfd_create("innocent", MFdFlags::empty())?);
    memory.write_all(&fs::read(program)?)?;
    let descriptor = OwnedFd::from(memory);
    let environment: Vec<CString> = Vec::new();
    execveat(&descriptor, c"", &c_strings(command)?, &environment, nix::fcntl::AtFlags::AT_EMPTY_PATH)?;
    Ok(())
}

fn by_script(command: &[String]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = std::env::temp_dir().join(format!("pp-script-{}", std::process::id()));
    fs::write(&path, "#!/bin/sh\nrm -f \"$0\"\n\"$@\"\n")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Err(Command::new(&path).args(command).exec()).with_context(|| path.display().to_string())
}

/// Makes the attempts of the list in a thread of a process whose first thread has exited.
pub(crate) fn leader_gone(list: PathBuf) -> Result<()> {
    let leader = std::process::id();
    let _thread = std::thread::spawn(move || {
        let done = until_zombie(leader).and_then(|()| batch::run_here(&list));
        if let Err(error) = &done {
            eprintln!("pp-workload: {error:#}");
        }
        std::process::exit(if done.is_ok() { 0 } else { 2 });
    });
    // SAFETY: ends this thread alone; the other one needs nothing of it.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    bail!("the first thread did not end")
}

fn until_zombie(tid: u32) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let status = fs::read_to_string(format!("/proc/self/task/{tid}/status"))?;
        if status.lines().any(|line| line.starts_with("State:") && line.contains('Z')) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "the first thread does not end");
        let _waited = poll(&mut [], PollTimeout::from(5_u8))?;
    }
}

/// Makes a network namespace in which the target is an address of its own, and connects to it there.
pub(crate) fn new_network(target: std::net::SocketAddr) -> Result<()> {
    let user = nix::unistd::getuid();
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    let address = format!("{}/32", target.ip());
    for words in [["link", "set", "lo", "up"].as_slice(), &["address", "add", &address, "dev", "lo"]] {
        let status = Command::new("ip").args(words).status()?;
        ensure!(status.success(), "ip {}: {status}", words.join(" "));
    }
    let listener = std::net::TcpListener::bind(target)?;
    let outcome = outcome::Outcome(crate::techniques::connect(target, None));
    listener.set_nonblocking(true)?;
    let mut answer = outcome.json();
    answer["arrived"] = json!(listener.accept().is_ok());
    outcome::print(&answer)
}
