//! Where measuring happens: one CPU, a network namespace with nothing but loopback, and a cgroup of its own below the root of cgroup2,
//! which is removed again however the run ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use pp_agent::os::mounts::cgroup2_root;
use pp_tests::lab::leave_the_network;

const NAME: &str = "pp-bench-";

/// The place of one run; dropping it leaves the host as it was.
pub(crate) struct Place {
    cgroup: PathBuf,
    home: PathBuf,
    signals: SignalFd,
}

impl Place {
    /// Moves this process there.
    ///
    /// # Errors
    /// Not root, no cgroup2, or no `ip` program.
    pub(crate) fn enter() -> Result<Self> {
        // A signal is asked for between samples, so that an interrupted run cleans up too.
        let mut signals = SigSet::empty();
        signals.extend([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        signals.thread_block()?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let _outside = leave_the_network()?;
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("ip: did not start; install iproute2")?;
        ensure!(up.success(), "ip link set lo up: {up}");
        let root = cgroup2_root()?;
        sweep(&root);
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("/proc/self/cgroup: no line of cgroup2")?;
        let place = Self { cgroup: root.join(format!("{NAME}{}", process::id())), home: root.join(own), signals };
        fs::create_dir(&place.cgroup).with_context(|| format!("{}: cannot be made", place.cgroup.display()))?;
        move_to(&place.cgroup)?;
        stay_on_this_cpu()?;
        Ok(place)
    }

    /// The cgroup, opened to attach programs to.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn open_cgroup(&self) -> Result<fs::File> {
        fs::File::open(&self.cgroup).with_context(|| format!("{}: not there any more", self.cgroup.display()))
    }

    /// Says when somebody wants the run to end.
    ///
    /// # Errors
    /// They do.
    pub(crate) fn go_on(&self) -> Result<()> {
        match self.signals.read_signal()? {
            None => Ok(()),
            Some(signal) => bail!("stopped by signal {}", signal.ssi_signo),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let left = move_to(&self.home).and_then(|()| Ok(fs::remove_dir(&self.cgroup)?));
        if let Err(error) = left {
            eprintln!("pp-bench: {}: still there: {error:#}", self.cgroup.display());
        }
    }
}

fn move_to(cgroup: &Path) -> Result<()> {
    let file = cgroup.join("cgroup.procs");
    fs::write(&file, process::id().to_string()).with_context(|| format!("{}: cannot be joined", file.display()))
}

/// Removes cgroups of runs that were killed. One that is in use cannot be removed and stays.
fn sweep(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(NAME) && fs::remove_dir(entry.path()).is_ok() {
            eprintln!("pp-bench: {}: removed, a killed run left it", entry.path().display());
        }
    }
}

/// A move to another CPU in the middle of a sample would cost more than the hooks. The last allowed CPU is the one that a quiet host
/// interrupts least.
fn stay_on_this_cpu() -> Result<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false)).context("no CPU is allowed")?;
    let mut one = CpuSet::new();
    one.set(last)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &one)?)
}
