//! Where the daemon's log and its events go.

use std::io::IsTerminal;

use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::events::journal::TARGET;

/// Starts logging. Events go to the journal only. The daemon's log goes to the journal if systemd started it, else to stderr. Without a
/// journal, events are only on the socket and in the store, and the log says so.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_env("PP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let journal = tracing_journald::layer().map(|layer| {
        layer
            .with_field_prefix(Some("PP".to_owned()))
            .with_syslog_identifier("pp-agent".to_owned())
            .with_filter(filter_fn(move |meta| under_systemd || meta.target() == TARGET))
    });
    let missing = journal.as_ref().err().map(ToString::to_string);
    let on_stderr = !under_systemd || missing.is_some();
    let stderr = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_filter(filter_fn(move |meta| on_stderr && meta.target() != TARGET));
    let started = tracing_subscriber::registry().with(filter).with(journal.ok()).with(stderr).try_init();
    if started.is_err() {
        tracing::debug!("log: already started");
    }
    if let Some(error) = missing {
        tracing::warn!("journal: {error}; events go to the control socket and the store only");
    }
}
