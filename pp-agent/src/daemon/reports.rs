//! What the daemon reports: events, the names and processes they need, and the account of what is reported. Its locks are never held during
//! a disk access.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Now;
use crate::events::build::Builder;
use crate::events::hub::Hub;
use crate::events::refusals::Ledger;
use crate::events::tally::Tally;
use crate::events::{Body, Event};

pub(super) struct Reports {
    pub(super) hub: Hub,
    /// Which of the kernel's records are accounted for.
    pub(super) tally: Tally,
    builder: Mutex<Builder>,
    /// How many repeats of each pair are reported.
    ledger: Mutex<Ledger>,
}

impl Reports {
    pub(super) fn new(hub: Hub, tally: Tally, builder: Builder, ledger: Ledger) -> Self {
        Self { hub, tally, builder: Mutex::new(builder), ledger: Mutex::new(ledger) }
    }

    pub(super) fn builder(&self) -> MutexGuard<'_, Builder> {
        self.builder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an event of this host, with the present time.
    pub(super) fn event(&self, body: Body) -> Event {
        Event::new(body, &self.builder().host, Now::read().wall_ms)
    }

    pub(super) fn publish(&self, event: Event) {
        self.hub.publish(event);
    }
}
