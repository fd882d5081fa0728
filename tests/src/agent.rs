//! The daemon under test: started in the lab with directories of its own, stopped, killed, restarted, and its hooks removed at the end.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pp_agent::os::isolation;
use serde_json::Value;

use crate::client::Client;
use crate::events::EventLog;
use crate::forge::Operator;
use crate::lab::{Lab, PINS, Place};
use crate::policy::Policy;
use crate::run::{self, Output, Running};
use crate::wait;

/// Where the kernel keeps pins.
pub const BPFFS: &str = "/sys/fs/bpf";
/// How long the daemon may take to report READY, emulated machines included.
const READY: Duration = Duration::from_secs(600);

static COUNT: AtomicU32 = AtomicU32::new(0);
static LEFT_BEHIND: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The daemon, its directories and what the test may do to it. Dropping it ends the daemon and removes its hooks.
pub struct Daemon {
    lab: Arc<Lab>,
    directory: PathBuf,
    bpffs: PathBuf,
    operator: Operator,
    running: Option<Running>,
    events: Option<EventLog>,
    programs: BTreeSet<u32>,
    binary: PathBuf,
    arguments: Vec<String>,
    /// The namespaces that it accepts although they are not the host's.
    namespaces: BTreeSet<String>,
    /// The command that it is started through.
    through: Vec<String>,
    log_level: Option<String>,
    log: String,
}

impl Daemon {
    /// Starts a daemon with this policy and waits until it is ready.
    ///
    /// # Errors
    /// It ended or did not become ready; the error shows its log.
    pub fn start(lab: &Arc<Lab>, policy: &Policy) -> Result<Self> {
        let mut daemon = Self::prepare(lab, policy)?;
        daemon.spawn()?;
        let status = daemon.client()?.status()?;
        ensure!(status["posture"] != "degraded", "the daemon did not take this policy: {status}\n{}", daemon.log());
        Ok(daemon)
    }

    /// Makes the directories and files of a daemon without starting it.
    ///
    /// # Errors
    /// A file cannot be written, or there is no bpffs.
    pub fn prepare(lab: &Arc<Lab>, policy: &Policy) -> Result<Self> {
        let name = format!("{PINS}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = lab.directory().join(&name);
        fs::create_dir_all(directory.join("state"))?;
        // As a host has them that ran these rules before: compiling them takes an emulated processor seconds at each start.
        let compiled = lab.directory().join("compiled");
        fs::create_dir_all(&compiled)?;
        std::os::unix::fs::symlink(compiled, directory.join("state/compiled"))?;
        ensure_bpffs()?;
        let operator = Operator::new(crate::policy::KEY, crate::policy::DECIDER);
        fs::write(directory.join("keys.json"), crate::forge::key_set(&[(&operator, "active")]).to_string())?;
        policy.write(&directory.join("policy.toml"))?;
        let bpffs = Path::new(BPFFS).join(name);
        Ok(Self {
            lab: Arc::clone(lab),
            namespaces: namespaces_of_the_lab(&bpffs),
            bpffs,
            directory,
            operator,
            running: None,
            events: None,
            programs: BTreeSet::new(),
            binary: lab.program("pp-agent"),
            arguments: Vec::new(),
            through: Vec::new(),
            log_level: None,
            log: String::new(),
        })
    }

    /// The operator whose key the policy trusts.
    #[must_use]
    pub const fn operator(&self) -> &Operator {
        &self.operator
    }

    /// A file of this daemon: `policy.toml`, `keys.json`, `control.sock`, `state`.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The directory of its pins.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The lab it runs in.
    #[must_use]
    pub const fn lab(&self) -> &Arc<Lab> {
        &self.lab
    }

    /// Takes another program for the next start: an upgrade.
    pub fn set_binary(&mut self, binary: PathBuf) {
        self.binary = binary;
    }

    /// Adds arguments to its command line, for the next start.
    pub fn add_arguments(&mut self, arguments: &[&str]) {
        self.arguments.extend(arguments.iter().map(|word| (*word).to_owned()));
    }

    /// Has it accept one more kind of namespace of its own, for the next start.
    pub fn accept_namespace(&mut self, kind: &str) {
        self.namespaces.insert(kind.to_owned());
    }

    /// Has it accept no namespace of its own, not even the lab's network, for the next start.
    pub fn accept_no_namespace(&mut self) {
        self.namespaces.clear();
    }

    /// Starts it through this command, which becomes it; without words: directly.
    pub fn start_through(&mut self, words: &[&str]) {
        self.through = words.iter().map(|word| (*word).to_owned()).collect();
    }

    /// Sets what it logs (`PP_LOG`), for the next start; `None`: as this process has it.
    pub fn set_log_level(&mut self, level: Option<&str>) {
        self.log_level = level.map(str::to_owned);
    }

    /// The daemon's command line, for tests of a start that must fail.
    #[must_use]
    pub fn command(&self) -> Command {
        self.command_on(&self.bpffs)
    }

    /// The same with another directory of pins.
    #[must_use]
    pub fn command_on(&self, bpffs: &Path) -> Command {
        let text = |path: PathBuf| path.display().to_string();
        let mut arguments = self.through.clone();
        arguments.extend([
            text(self.binary.clone()),
            "daemon".into(),
            "--policy".into(),
            text(self.path("policy.toml")),
            "--keys".into(),
            text(self.path("keys.json")),
            "--state".into(),
            text(self.path("state")),
            "--socket".into(),
            text(self.path("control.sock")),
            "--bpffs".into(),
            text(bpffs.to_owned()),
        ]);
        if !self.namespaces.is_empty() {
            arguments.extend(["--namespace".to_owned(), self.namespaces.iter().cloned().collect::<Vec<_>>().join(",")]);
        }
        arguments.extend(self.arguments.iter().cloned());
        let mut command = self.lab.command(Place::Engineering, &arguments);
        command.envs(self.log_level.iter().map(|level| ("PP_LOG", level)));
        command
    }

    /// Starts the prepared or ended daemon and waits until it is ready.
    ///
    /// # Errors
    /// It ended or did not become ready; the error shows its log.
    pub fn spawn(&mut self) -> Result<()> {
        let notify = self.path("notify.sock");
        if notify.exists() {
            fs::remove_file(&notify)?;
        }
        let socket = UnixDatagram::bind(&notify)?;
        socket.set_nonblocking(true)?;
        let mut running = Running::start(self.command().env("NOTIFY_SOCKET", &notify))?;
        let mut buffer = [0_u8; 4096];
        let ready = wait::until("READY=1 from the daemon", READY, || match socket.recv(&mut buffer) {
            Ok(length) if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == "READY=1") => Some(true),
            Ok(_) => None,
            Err(_) => (!running.is_running()).then_some(false),
        });
        let log = format!("the daemon's log:\n{}{}", running.stdout(), running.stderr());
        match ready {
            Ok(true) => {}
            Ok(false) => bail!("the daemon ended before it was ready\n{log}"),
            Err(error) => return Err(error.context(log)),
        }
        self.programs.extend(programs_of(running.pid()));
        self.running = Some(running);
        if self.events.is_none() {
            self.events = Some(EventLog::follow(&self.path("control.sock"))?);
        }
        Ok(())
    }

    /// Starts the daemon and kills it so long after, wherever it has got to by then; true if it was ready before.
    ///
    /// # Errors
    /// It cannot be started, or ended by itself.
    pub fn spawn_and_crash(&mut self, after: Duration) -> Result<bool> {
        let notify = self.path("notify.sock");
        if notify.exists() {
            fs::remove_file(&notify)?;
        }
        let socket = UnixDatagram::bind(&notify)?;
        socket.set_nonblocking(true)?;
        let mut running = Running::start(self.command().env("NOTIFY_SOCKET", &notify))?;
        let mut buffer = [0_u8; 4096];
        let mut ended = false;
        // Not to be ready by then is no error: most are not.
        let ready = wait::until_true("READY=1 from the daemon", after, || {
            ended |= !running.is_running();
            ended
                || socket
                    .recv(&mut buffer)
                    .is_ok_and(|length| String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == "READY=1"))
        });
        ensure!(!ended, "the daemon ended by itself\n{}{}", running.stdout(), running.stderr());
        self.running = Some(running);
        self.crash()?;
        Ok(ready.is_ok())
    }

    /// The process id of the running daemon.
    ///
    /// # Errors
    /// None is running.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.running.as_ref().context("no daemon is running")?.pid())
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// None is running.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.pid()?)?), signal)?;
        Ok(())
    }

    /// Kills the daemon as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// None is running.
    pub fn crash(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.reap()
    }

    /// Ends the daemon as `systemctl stop` does, and waits until it is gone.
    ///
    /// # Errors
    /// None is running, or it did not end.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.reap()
    }

    fn reap(&mut self) -> Result<()> {
        let running = self.running.take().context("no daemon is running")?;
        let output = running.finish(run::PATIENCE)?;
        self.log.push_str(&output.both());
        Ok(())
    }

    /// What every run of this daemon has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        let now = self.running.as_ref().map(|running| format!("{}{}", running.stdout(), running.stderr()));
        format!("{}{}", self.log, now.unwrap_or_default())
    }

    /// A client of its control socket that is not agent-owned.
    ///
    /// # Errors
    /// No client can be built.
    pub fn client(&self) -> Result<Client> {
        Client::new(&self.path("control.sock"))
    }

    /// Its events since it was first ready.
    ///
    /// # Panics
    /// It has never been ready.
    #[must_use]
    pub fn events(&self) -> &EventLog {
        self.events.as_ref().expect("the daemon was started")
    }

    /// The backend that its canary found: `lsm`, `fmod_ret` or `cgroup`.
    ///
    /// # Errors
    /// No answer came.
    pub fn backend(&self) -> Result<String> {
        Ok(self.client()?.status()?["backend"].as_str().unwrap_or_default().to_owned())
    }

    /// The words before a command that runs as the CLI of this daemon: `pp-agent <subcommand> --socket ...`.
    #[must_use]
    pub fn cli_words(&self, arguments: &[&str]) -> Vec<String> {
        let mut words = vec![self.lab.program("pp-agent").display().to_string()];
        words.extend(["--socket".to_owned(), self.path("control.sock").display().to_string()]);
        words.extend(arguments.iter().map(|word| (*word).to_owned()));
        words
    }

    /// Runs the CLI in the engineering network, as root, not agent-owned.
    ///
    /// # Errors
    /// It did not end.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        run::run(&mut self.lab.command(Place::Engineering, &self.cli_words(arguments)))
    }

    /// Writes a policy and has the daemon take it.
    ///
    /// # Errors
    /// The daemon refused it.
    pub fn reload(&self, policy: &Policy) -> Result<()> {
        policy.write(&self.path("policy.toml"))?;
        let _done = self.cli(&["policy", "reload"])?.success()?;
        Ok(())
    }

    /// Registers a receipt over the control socket.
    ///
    /// # Errors
    /// It was refused.
    pub fn register(&self, receipt: &Value) -> Result<Value> {
        self.client()?.post("/v1/receipts", receipt)?.ok()
    }

    fn remove_hooks(&mut self) -> Result<()> {
        let bpffs = self.bpffs.display().to_string();
        // A suite that is run in a terminal has agents in it.
        let mut words = vec!["setsid".to_owned(), "--wait".to_owned()];
        words.extend(self.cli_words(&["uninstall-hooks", "--yes", "--bpffs", &bpffs]));
        let removed = run::run(&mut self.lab.command(Place::Engineering, &words))?;
        ensure!(removed.status.success(), "uninstall-hooks: {removed}");
        let left = || -> Vec<u32> {
            let loaded = aya::programs::loaded_programs().filter_map(Result::ok).map(|program| program.id());
            loaded.filter(|id| self.programs.contains(id)).collect()
        };
        // The kernel frees programs a grace period after their last link.
        wait::until_true("the end of every program of this daemon", wait::SOON, || left().is_empty())
            .with_context(|| format!("still loaded after uninstall-hooks: {:?}", left()))?;
        ensure!(!self.bpffs.exists(), "{}: left behind by uninstall-hooks", self.bpffs.display());
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.events = None;
        if self.running.is_some() {
            // A stopped process cannot act on SIGTERM.
            let ended = self.signal(Signal::SIGCONT).and_then(|()| self.stop());
            if let Err(error) = ended {
                eprintln!("the daemon did not stop: {error:#}");
            }
        }
        self.running = None;
        if std::env::var_os("PP_LAB_LOG").is_some() {
            eprintln!("{}", self.log);
        }
        if self.bpffs.exists()
            && let Err(error) = self.remove_hooks()
        {
            LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}"));
        }
    }
}

/// What ended daemons could not take out of the kernel since the last call. It fails the test that left it, not a later one.
#[must_use]
pub fn left_behind() -> Vec<String> {
    std::mem::take(&mut LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The lab's network, and what is not the host's where this suite runs, such as a container.
fn namespaces_of_the_lab(bpffs: &Path) -> BTreeSet<String> {
    let root = crate::paths::cgroup2().ok();
    let found = isolation::found(root.as_deref(), bpffs);
    found.iter().map(|isolation| isolation.kind).chain([isolation::Kind::Network]).map(|kind| kind.name().to_owned()).collect()
}

fn ensure_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    if !mounts.lines().any(|line| line.contains(&format!(" {BPFFS} ")) && line.contains(" - bpf ")) {
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).context("a bpffs could not be mounted")?;
    }
    Ok(())
}

/// Ids of the kernel programs that a process holds, itself or by a link, as its descriptors say.
fn programs_of(pid: u32) -> BTreeSet<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let ids = texts.flat_map(|text| {
        let lines = text.lines().filter_map(|line| line.strip_prefix("prog_id:")).map(str::trim).map(str::to_owned);
        lines.collect::<Vec<_>>()
    });
    ids.filter_map(|id| id.parse().ok()).collect()
}
