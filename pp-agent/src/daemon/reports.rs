//! What the daemon reports: events, the names and processes they need, and the account of what is reported. Its locks are never held during
//! a disk access.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Now;
use crate::control::{ApiError, Caller};
use crate::events::build::Builder;
use crate::events::hub::Hub;
use crate::events::refusals::Ledger;
use crate::events::tally::Tally;
use crate::events::{Body, Event};
use crate::os::accounts;

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

/// Most characters of the reason that an operator gives.
pub(super) const MAX_REASON: usize = 200;

/// The reason that an operator gives for a decision, for the record.
///
/// # Errors
/// There is none, or it does not fit into a line.
pub(super) fn reason(text: &str) -> Result<&str, ApiError> {
    let text = text.trim();
    if text.is_empty() || text.len() > MAX_REASON || text.chars().any(char::is_control) {
        return Err(ApiError::bad_request(format!("reason: 1 to {MAX_REASON} printable bytes; it is for the record")));
    }
    Ok(text)
}

/// A caller of the control socket, as events name it.
pub(super) fn caller(caller: &Caller) -> String {
    user(caller.uid)
}

/// A user, as events name one who decided something.
pub(super) fn user(uid: u32) -> String {
    let name = accounts::user_name(uid).ok().flatten();
    name.map_or_else(|| format!("uid {uid}"), |name| format!("{name} (uid {uid})"))
}
