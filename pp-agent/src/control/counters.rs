//! What the control socket counts about itself.

use std::sync::atomic::{AtomicU64, Ordering};

use super::seats::Class;
use crate::metrics::Text;

/// What the control socket counts about itself.
#[derive(Debug, Default)]
pub(crate) struct ControlCounters {
    connections: AtomicU64,
    turned_away: [AtomicU64; 3],
    closed_early: [AtomicU64; 3],
    requests: AtomicU64,
    refused: AtomicU64,
}

impl ControlCounters {
    /// Counts a connection that was accepted.
    pub(crate) fn connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that was closed at once, because every seat of its standing was in a call.
    pub(crate) fn turned_away(&self, class: Class) {
        self.turned_away[class as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an idle connection that was closed for another of its standing.
    pub(crate) fn closed_early(&self, class: Class) {
        self.closed_early[class as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request.
    pub(crate) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that its caller may not make.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes the counters.
    pub(crate) fn write(&self, text: &mut Text) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let by_standing = |counters: &[AtomicU64; 3]| Class::ALL.map(|class| (class.name().to_owned(), read(&counters[class as usize])));
        text.counter("pp_control_connections_total", "connections taken", read(&self.connections));
        let turned_away = by_standing(&self.turned_away);
        text.counters("pp_control_turned_away_total", "connections that found no seat", "standing", &turned_away);
        let closed_early = by_standing(&self.closed_early);
        text.counters("pp_control_closed_early_total", "connections closed for others of their standing", "standing", &closed_early);
        text.counter("pp_control_requests_total", "requests", read(&self.requests));
        text.counter("pp_control_refused_total", "requests refused for want of rights", read(&self.refused));
    }
}
