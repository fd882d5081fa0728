//! What the tests share: the lab, and one daemon with the standard policy for every test that leaves it as it was.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow, ensure};
use pp_tests::agent::{Daemon, left_behind};
use pp_tests::lab::{Lab, Outside};
use pp_tests::policy::Policy;

/// One test: a claim and what shows it.
pub(crate) struct Test {
    /// The claim.
    pub(crate) name: &'static str,
    /// What shows it.
    pub(crate) run: fn(&mut World) -> Result<()>,
}

/// The list of a group's tests, each named as its function.
macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        pub(crate) const TESTS: &[crate::world::Test] = &[$(crate::world::Test { name: stringify!($name), run: $name }),+];
    };
}
pub(crate) use tests;

/// A test that this kernel cannot show, and why.
#[derive(Debug)]
pub(crate) struct Skip(pub(crate) String);

impl std::fmt::Display for Skip {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skip {}

/// The error that skips a test.
pub(crate) fn skip(reason: &str) -> anyhow::Error {
    anyhow!(Skip(reason.to_owned()))
}

/// What the tests share.
pub(crate) struct World {
    lab: Arc<Lab>,
    outside: Arc<Outside>,
    /// With the text of its policy.
    shared: Option<(String, Daemon)>,
    backend: Option<String>,
    /// What the techniques of the coverage table came to, tried all at once.
    pub(crate) sweep: Option<std::sync::Arc<crate::coverage_sweep::Sweep>>,
    /// True for runs that take their time.
    pub(crate) soak: bool,
    /// What the concurrency hunts start from.
    pub(crate) hunts: Hunts,
    /// The program that daemons leave out.
    without: Option<&'static str>,
}

/// What the concurrency hunts start from.
#[derive(Clone, Copy, Default)]
pub(crate) struct Hunts {
    /// The first seed; a new one each time where none is given.
    pub(crate) seed: Option<u64>,
    /// How many seeds, and how many seconds for each, in runs that take their time.
    pub(crate) seeds: Option<u64>,
    pub(crate) seconds: Option<u64>,
}

static WORLD: Mutex<Option<World>> = Mutex::new(None);

impl World {
    /// Builds the lab; `outside` is the network that this program left for it.
    pub(crate) fn build(soak: bool, hunts: Hunts, outside: Outside) -> Result<()> {
        let lab = Arc::new(Lab::start()?);
        let world = Self { lab, outside: Arc::new(outside), shared: None, backend: None, sweep: None, soak, hunts, without: None };
        *WORLD.lock().unwrap_or_else(PoisonError::into_inner) = Some(world);
        Ok(())
    }

    /// Runs one test in it.
    pub(crate) fn with(test: &dyn Fn(&mut Self) -> Result<()>) -> Result<()> {
        let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
        let world = world.as_mut().context("the lab is not built")?;
        let done = test(world);
        if done.as_ref().is_err_and(|error| error.downcast_ref::<Skip>().is_none()) {
            // What a failed test left in the shared daemon is unknown.
            world.shared = None;
        }
        let left = left_behind();
        match done {
            Ok(()) => {
                ensure!(left.is_empty(), "left in the kernel: {}", left.join("; "));
                Ok(())
            }
            Err(error) if left.is_empty() => Err(error),
            Err(error) => Err(error.context(format!("left in the kernel: {}", left.join("; ")))),
        }
    }

    /// Takes everything down; returns the backend that the daemons of this run found.
    pub(crate) fn take_down() -> String {
        let world = WORLD.lock().unwrap_or_else(PoisonError::into_inner).take();
        world.and_then(|world| world.backend).unwrap_or_default()
    }

    /// The lab.
    pub(crate) const fn lab(&self) -> &Arc<Lab> {
        &self.lab
    }

    /// The machine's own network, for what cannot be had in the lab.
    pub(crate) fn outside(&self) -> Arc<Outside> {
        Arc::clone(&self.outside)
    }

    /// The daemon that tests share: the standard policy, no receipts. A test revokes what it registers.
    pub(crate) fn daemon(&mut self) -> Result<&Daemon> {
        self.sharing(&Policy::standard(&self.lab))
    }

    /// The same with another policy, taken in by a reload: a start takes a test machine a quarter of a minute, most of it in the verifier.
    pub(crate) fn sharing(&mut self, policy: &Policy) -> Result<&Daemon> {
        let text = policy.text();
        match &mut self.shared {
            Some((with, _)) if *with == text => {}
            Some((with, daemon)) => {
                daemon.reload(policy)?;
                *with = text;
            }
            None => {
                let daemon = self.started(policy)?;
                self.backend = Some(daemon.backend()?);
                self.shared = Some((text, daemon));
            }
        }
        self.shared.as_ref().map(|(_, daemon)| daemon).context("no shared daemon")
    }

    /// The same for tests that hear everything: one with another policy is started anew, and has nothing left to report of what came before.
    pub(crate) fn afresh(&mut self, policy: &Policy) -> Result<&Daemon> {
        if self.shared.as_ref().is_some_and(|(with, _)| *with != policy.text()) {
            // The last one ends first, since both would judge the same agents.
            self.shared = None;
        }
        self.sharing(policy)
    }

    /// A daemon of the test's own; the shared one ends first, since both would judge the same agents.
    pub(crate) fn own(&mut self, policy: &Policy) -> Result<Daemon> {
        self.shared = None;
        let daemon = self.started(policy)?;
        self.backend = Some(daemon.backend()?);
        Ok(daemon)
    }

    /// The shared daemon, from now on the test's own.
    pub(crate) fn taken(&mut self) -> Result<Daemon> {
        let _started = self.daemon()?;
        self.shared.take().map(|(_, daemon)| daemon).context("no shared daemon")
    }

    /// A daemon of the test's own that is not started yet.
    pub(crate) fn prepared(&mut self, policy: &Policy) -> Result<Daemon> {
        self.shared = None;
        let mut daemon = Daemon::prepare(&self.lab, policy)?;
        if let Some(program) = self.without {
            daemon.add_arguments(&["--without-hook", program]);
        }
        Ok(daemon)
    }

    fn started(&mut self, policy: &Policy) -> Result<Daemon> {
        if self.without.is_none() {
            return Daemon::start(&self.lab, policy);
        }
        // It says of itself that it is degraded, which is not what the tests are asked about here.
        let mut daemon = self.prepared(policy)?;
        daemon.spawn()?;
        Ok(daemon)
    }

    /// From now on daemons leave this program out, or none. What was found with the last one is forgotten.
    pub(crate) fn leave_out(&mut self, program: Option<&'static str>) {
        self.shared = None;
        self.sweep = None;
        self.without = program;
    }

    /// The backend that the canary found on this kernel.
    pub(crate) fn backend(&mut self) -> Result<String> {
        if self.backend.is_none() {
            let _daemon = self.daemon()?;
        }
        self.backend.clone().context("no backend")
    }
}
