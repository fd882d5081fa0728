//! What a refusal test must show: the refusal, its event, that nothing arrived, and that the same attempt arrives when nobody refuses it.
//!
//! [`Refusal::of`] yields a test that cannot be run; [`Refusal::with_control`] makes it one that can. So a refusal whose technique never
//! worked in the first place, or whose target was down, fails its test instead of passing it.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use nix::libc;
use serde_json::Value;
use uuid::Uuid;

use crate::agent::Daemon;
use crate::attack::{Answer, Attempt};
use crate::lab::{Journal, Lab, Place};
use crate::run::{self, Output, Running};
use crate::wait;

/// Waits to be adopted, then becomes the command.
const ADOPTED: &str = "until [ -e \"$GO\" ]; do read -t 0.02 <> <(:); done; exec \"$@\"";

/// Who makes an attempt: the processes above the command.
#[derive(Clone, Debug)]
pub enum By {
    /// `pp-agent run --agent NAME -- command`.
    Run(String),
    /// A program of the lab that becomes the command: `lab-claude` and `lab-codex` are agents by their path, `lab-shim` is nobody.
    Program(&'static str),
    /// A process that was started by nobody and adopted by `pp-agent adopt` before it became the command.
    Adopt(String),
    /// These words before the command.
    Words(Vec<String>),
    /// Nobody's session: the same depth of processes as [`By::Run`], none of them marked.
    Nobody,
}

impl By {
    /// An agent by its program's path. It needs no daemon and no call of `pp-agent run`, which takes an emulated processor a second.
    pub const LAB_AGENT: Self = Self::Program("lab-claude");

    /// A session of this agent started by `pp-agent run`.
    #[must_use]
    pub fn run(agent: &str) -> Self {
        Self::Run(agent.to_owned())
    }

    /// The whole command line.
    #[must_use]
    pub fn words(&self, daemon: &Daemon, command: &[String]) -> Vec<String> {
        let lab = daemon.lab();
        let mut words = match self {
            Self::Run(agent) => daemon.cli_words(&["run", "--agent", agent, "--"]),
            Self::Program(name) => vec![lab.program(name).display().to_string()],
            Self::Adopt(_) => vec!["/bin/bash".into(), "-c".into(), ADOPTED.into(), "adopted".into()],
            Self::Words(words) => words.clone(),
            Self::Nobody => vec![lab.program("pp-workload").display().to_string(), "in".into(), "--".into()],
        };
        words.extend(command.iter().cloned());
        words
    }

    /// Runs a command in the engineering network so, to its end.
    ///
    /// # Errors
    /// It did not end.
    pub fn run_words(&self, daemon: &Daemon, command: &[String]) -> Result<Output> {
        let running = self.start_words(daemon, command)?;
        running.finish(run::PATIENCE)
    }

    /// Starts a command in the engineering network so.
    ///
    /// # Errors
    /// It cannot be started, or not be adopted.
    pub fn start_words(&self, daemon: &Daemon, command: &[String]) -> Result<Running> {
        let go = daemon.path(&format!("go-{}", Uuid::new_v4()));
        let running = Running::start(daemon.lab().command(Place::Engineering, &self.words(daemon, command)).env("GO", &go))?;
        if let Self::Adopt(agent) = self {
            let _adopted = daemon.cli(&["adopt", &running.pid().to_string(), "--agent", agent])?.success()?;
            std::fs::write(&go, "")?;
        }
        Ok(running)
    }

    /// Makes an attempt so and reads its answer.
    ///
    /// # Errors
    /// It did not end, or its answer cannot be read.
    pub fn attempt(&self, daemon: &Daemon, attempt: &Attempt) -> Result<Answer> {
        let output = self.run_words(daemon, &attempt.words)?;
        (attempt.read)(&output).with_context(|| attempt.name.clone())
    }
}

/// A refusal without its control run: it cannot be asserted.
pub struct Bare(());
/// A refusal with its control run.
pub struct Controlled(());

/// One refusal to be shown.
pub struct Refusal<State> {
    attempt: Attempt,
    by: By,
    control: By,
    reason: &'static str,
    errors: &'static [i32],
    event: EventAt,
    state: PhantomData<State>,
}

/// What the event of a refusal names.
#[derive(Clone, Copy, Debug)]
enum EventAt {
    /// This destination.
    Destination(SocketAddr),
    /// No destination: a kind of socket was refused.
    Nowhere,
}

impl Refusal<Bare> {
    /// This attempt, made so, is refused with reason `no_receipt` unless said otherwise.
    ///
    /// Without a control run it cannot be asserted:
    ///
    /// ```compile_fail
    /// # use pp_tests::{agent::Daemon, attack::Attempt, harness::{By, Refusal}};
    /// # fn test(attempt: Attempt, daemon: &Daemon) {
    /// let shown = Refusal::of(attempt, By::run("claude-code")).assert(daemon);
    /// # }
    /// ```
    ///
    /// ```
    /// # use pp_tests::{agent::Daemon, attack::Attempt, harness::{By, Refusal}};
    /// # fn test(attempt: Attempt, daemon: &Daemon) {
    /// let shown = Refusal::of(attempt, By::run("claude-code")).with_control(By::Nobody).assert(daemon);
    /// # }
    /// ```
    #[must_use]
    pub const fn of(attempt: Attempt, by: By) -> Self {
        let event = EventAt::Destination(attempt.target);
        Self { attempt, by, control: By::Nobody, reason: "no_receipt", errors: &[libc::EPERM], event, state: PhantomData }
    }

    /// The control run: the same attempt, made so, must be delivered.
    #[must_use]
    pub fn with_control(self, control: By) -> Refusal<Controlled> {
        let Self { attempt, by, reason, errors, event, .. } = self;
        Refusal { attempt, by, control, reason, errors, event, state: PhantomData }
    }
}

impl<State> Refusal<State> {
    /// The reason that its event must give.
    #[must_use]
    pub const fn for_reason(mut self, reason: &'static str) -> Self {
        self.reason = reason;
        self
    }

    /// The destination that its event names, where that is not the one that must not be reached (before DNAT).
    #[must_use]
    pub const fn event_names(mut self, destination: SocketAddr) -> Self {
        self.event = EventAt::Destination(destination);
        self
    }

    /// The event names no destination: the kind of socket is what was refused.
    #[must_use]
    pub const fn of_a_socket(mut self) -> Self {
        self.event = EventAt::Nowhere;
        self
    }

    /// The error numbers that count as refused: egress alone can only end a TCP attempt, which its program hears as `ECONNABORTED`.
    #[must_use]
    pub const fn heard_as(mut self, errors: &'static [i32]) -> Self {
        self.errors = errors;
        self
    }
}

impl Refusal<Controlled> {
    /// Runs the control, then the attempt, and checks all of it. Returns the event.
    ///
    /// # Errors
    /// The control did not arrive, or the attempt was not refused, had no event, or arrived.
    pub fn assert(&self, daemon: &Daemon) -> Result<Value> {
        let what = format!("{} to {}", self.attempt.name, self.attempt.target);
        self.deliver_control(daemon).with_context(|| format!("control run of {what}"))?;
        self.refuse(daemon).with_context(|| what)
    }

    fn deliver_control(&self, daemon: &Daemon) -> Result<()> {
        let plant = daemon.lab().plant().from_now();
        let answer = self.control.attempt(daemon, &self.attempt)?;
        ensure!(answer == Answer::Delivered, "it was {answer:?}");
        wait::until_true("its packets in the plant", wait::SOON, || !plant.packets_to(self.attempt.target).is_empty())
    }

    fn refuse(&self, daemon: &Daemon) -> Result<Value> {
        let lab = daemon.lab();
        let quiet = Quiet::begin(lab)?;
        let mark = daemon.events().mark();
        match self.by.attempt(daemon, &self.attempt)? {
            Answer::Refused(errno) if self.errors.contains(&errno) => {}
            other => bail!("not refused with one of {:?} but {other:?}", self.errors),
        }
        quiet.assert_nothing_at(self.attempt.target)?;
        daemon.events().wait_since(mark, "its event", |event| {
            let there = match self.event {
                EventAt::Destination(destination) => is_block(event, destination),
                EventAt::Nowhere => is_verdict(event, "block") && event.get("destination").is_none(),
            };
            there && event["reason"] == self.reason
        })
    }
}

/// True for the verdict of a session's attempt: the daemon's own canary makes events of another kind.
#[must_use]
pub fn is_verdict(event: &Value, verdict: &str) -> bool {
    event["kind"] == "verdict" && event["verdict"] == verdict
}

/// True for the event of a refusal at this destination; a destination without a port matches any.
#[must_use]
pub fn is_block(event: &Value, destination: SocketAddr) -> bool {
    let named = &event["destination"];
    let address = named["address"].as_str().and_then(|address| address.parse::<std::net::IpAddr>().ok());
    is_verdict(event, "block")
        && address.map(|address| address.to_canonical()) == Some(destination.ip())
        // A raw socket's own call names no port, its packet does.
        && (destination.port() == 0 || named["port"].is_null() || named["port"] == destination.port())
}

/// A stretch of time in which nothing may arrive somewhere. What is left of connections that were made before it does not count: the
/// kernel acknowledges a server's goodbye long after the program that made the connection has ended.
pub struct Quiet {
    lab: Arc<Lab>,
    plant: Journal,
    servers: Journal,
}

impl Quiet {
    /// Begins it: packets that are still on their way count as before it.
    ///
    /// # Errors
    /// The tap does not answer.
    pub fn begin(lab: &Arc<Lab>) -> Result<Self> {
        catch_up(lab)?;
        Ok(Self { lab: Arc::clone(lab), plant: lab.plant().from_now(), servers: lab.servers().from_now() })
    }

    /// Checks that no packet to this address has arrived since, and that no server has seen a connection or a datagram at it.
    ///
    /// # Errors
    /// Something arrived.
    pub fn assert_nothing_at(&self, target: SocketAddr) -> Result<()> {
        catch_up(&self.lab)?;
        let packets = self.plant.new_packets_to(target);
        ensure!(packets.is_empty(), "{} packets arrived at {target}: {packets:?}", packets.len());
        // A busy server writes down late what came long before: the tap, which does not, knows what had begun by then.
        let mut arrivals = self.servers.arrivals_at(target);
        if !arrivals.is_empty() {
            let earlier = self.plant.begun_before();
            arrivals.retain(|line| ends(line).is_none_or(|ends| !earlier.contains(&ends)));
        }
        ensure!(arrivals.is_empty(), "a server was reached at {target}: {arrivals:?}");
        Ok(())
    }
}

/// The two ends of a connection or datagram that a server got, as the tap names them.
fn ends(line: &Value) -> Option<(SocketAddr, SocketAddr)> {
    Some((line["peer"].as_str()?.parse().ok()?, line["local"].as_str()?.parse().ok()?))
}

/// Waits until the tap has logged everything sent before now: a marked datagram comes out behind it.
///
/// # Errors
/// The tap does not answer.
pub fn catch_up(lab: &Lab) -> Result<()> {
    let mark = Uuid::new_v4().to_string();
    let plant = lab.plant().from_now();
    lab.mark(&mark)?;
    let _line = plant.wait_for("a mark in the tap's log", |line| line["text"] == mark.as_str())?;
    Ok(())
}
