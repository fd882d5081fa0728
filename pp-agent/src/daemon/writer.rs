//! The thread that changes what is in force: on the disk, in the kernel and for readers, in this order. It runs one job after another, and
//! never waits for another owner, so that there is no deadlock.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Notify;

use super::in_force::{InForce, Shown};
use super::neighbours::Neighbours;
use super::owner::Owner;
use super::reports::Reports;
use super::wall::HighestWall;
use super::{load, receipts::no_room};
use crate::clock::Now;
use crate::control::ApiError;
use crate::kernel::{Gate, Publisher};
use crate::state::State;

/// What is in force: everybody reads it, and the writer changes it.
pub(super) struct Rules {
    shown: Arc<Shown>,
    writer: Owner<Writer>,
}

impl Rules {
    /// # Errors
    /// The system has no room for a thread.
    pub(super) fn begin(writer: Writer) -> io::Result<Self> {
        Ok(Self { shown: Arc::clone(&writer.shown), writer: Owner::begin("rules", writer)? })
    }

    /// What is in force now.
    pub(super) fn now(&self) -> Arc<InForce> {
        self.shown.now()
    }

    /// A handle to read it later.
    pub(super) fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.shown)
    }

    /// Has the writer run a change after those it already has. When this returns, everybody reads the new version.
    pub(super) fn change<R: Send + 'static>(&self, change: impl FnOnce(&mut Writer) -> R + Send + 'static) -> R {
        self.writer.ask(move |writer| {
            let answer = change(writer);
            writer.note_state_version();
            writer.show();
            answer
        })
    }
}

/// Notifications that tasks wait for.
#[derive(Default)]
pub(super) struct Wake {
    /// A deadline or a table changed: look again.
    pub(super) changed: Notify,
    /// A packet of an open TCP flow was refused, so its program should be notified.
    pub(super) flow_refused: Notify,
}

/// Where policy and keys are read from.
pub(super) struct Sources {
    pub(super) policy: PathBuf,
    pub(super) keys: PathBuf,
    pub(super) cgroup_root: Option<PathBuf>,
}

/// Owns what is in force.
pub(super) struct Writer {
    pub(super) force: InForce,
    pub(super) publisher: Publisher,
    pub(super) gate: Arc<Gate>,
    pub(super) state: Arc<State>,
    pub(super) reports: Arc<Reports>,
    pub(super) neighbours: Arc<Neighbours>,
    pub(super) highest: Arc<HighestWall>,
    pub(super) wake: Arc<Wake>,
    pub(super) sources: Sources,
    pub(super) boot_id: String,
    pub(super) shown: Arc<Shown>,
}

impl Writer {
    fn show(&self) {
        self.shown.show(&self.force);
    }

    /// Compiles and publishes what is in force. It is shown to readers first, so that they find the receipt for everything that the kernel
    /// allows.
    ///
    /// # Errors
    /// The kernel enforces what it did before. [`Writer::publish_again`] tries again.
    pub(super) fn publish(&mut self) -> Result<(), ApiError> {
        self.force.unpublished = true;
        self.show();
        self.force.generation = self.publisher.apply(&self.force.tables().map_err(no_room)?)?;
        self.force.unpublished = false;
        Ok(())
    }

    /// Publishes what could not be published before, if anything.
    pub(super) fn publish_again(&mut self) {
        if !self.force.unpublished {
            return;
        }
        match self.publish() {
            Ok(()) => tracing::warn!("the kernel enforces what is in force again, as generation {}", self.force.generation),
            Err(error) => tracing::error!("the kernel still enforces older tables: {error}"),
        }
    }

    /// Deadlines only shrink when the clock steps.
    pub(super) fn carry_over(&mut self) {
        let now = Now::read();
        self.force.withheld = self.force.withheld && self.highest.clock_is_behind();
        let boot_id = &self.boot_id;
        if let Err(error) = self.force.receipts.change(&self.state, |stored| stored.carry_over(now, boot_id, false)) {
            tracing::error!("{error}");
        }
        if let Err(error) = self.publish() {
            tracing::error!("deadlines: {error}");
        }
    }

    /// Records the wall time on disk and removes expired receipts, on the disk and in memory as of the same instant.
    pub(super) fn note_wall(&mut self) {
        let now = Now::read();
        self.highest.note(now.wall_ms);
        match self.force.receipts.remove_expired(&self.state, now) {
            Ok(0) => {}
            Ok(_) => {
                if let Err(error) = self.publish() {
                    tracing::error!("receipts that ran out: {error}");
                }
            }
            Err(error) => tracing::error!("{error}"),
        }
    }

    /// Updates cgroup and unit rules with the cgroups that exist now.
    pub(super) fn refresh_cgroups(&mut self) {
        let set = load::resolve_cgroups(self.sources.cgroup_root.as_deref(), &self.force.config).and_then(|cgroups| {
            self.publisher.set_cgroups(&cgroups).map_err(|error| error.to_string())?;
            self.force.cgroups = cgroups;
            Ok(())
        });
        if let Err(error) = set {
            tracing::error!("{error}");
        }
    }

    /// Updates the host's own addresses.
    pub(super) fn refresh_own(&mut self) {
        match self.gate.refresh_own() {
            Ok(None) => {}
            Ok(Some(own)) => {
                self.force.own = own;
                if let Err(error) = self.publish() {
                    tracing::error!("own addresses: {error}");
                }
            }
            Err(error) => tracing::error!("{error}"),
        }
    }
}
