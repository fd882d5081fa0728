//! Events in the journal, with their members as structured fields, and the
//! daemon's own log.

use std::io::IsTerminal;

use tracing::Level;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::events::{Event, Kind};

/// The target that events are logged under.
const EVENTS: &str = "pp_agent::event";

/// Starts logging: events to the journal alone; the daemon's own words to the
/// journal when systemd started it, else to stderr. Without a journal events
/// stay on the socket and in the store, and the log says so.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_env("PP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let journal = tracing_journald::layer().map(|layer| {
        layer
            .with_field_prefix(Some("PP".to_owned()))
            .with_syslog_identifier("pp-agent".to_owned())
            .with_filter(filter_fn(move |meta| under_systemd || meta.target() == EVENTS))
    });
    let missing = journal.as_ref().err().map(ToString::to_string);
    let on_stderr = !under_systemd || missing.is_some();
    let stderr = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_filter(filter_fn(move |meta| on_stderr && meta.target() != EVENTS));
    let started = tracing_subscriber::registry().with(filter).with(journal.ok()).with(stderr).try_init();
    if started.is_err() {
        tracing::debug!("log: already started");
    }
    if let Some(error) = missing {
        tracing::warn!("journal: {error}; events go to the control socket and the store only");
    }
}

/// A refusal of whatever kind, but for those that the daemon provokes, and a loss.
pub(crate) fn is_warning(event: &Event) -> bool {
    event.kind == Kind::Lost || event.kind != Kind::Canary && event.verdict.as_deref() == Some("block")
}

/// Logs one event. Warnings are warnings, everything else is information.
pub(crate) fn tell(event: &Event) {
    if is_warning(event) {
        tell_at::<true>(event);
    } else {
        tell_at::<false>(event);
    }
}

macro_rules! event_fields {
    ($level:expr, $event:expr) => {{
        let event = $event;
        let owner = event.owner.as_ref();
        let destination = event.destination.as_ref();
        tracing::event!(
            target: EVENTS,
            $level,
            event_id = event.id,
            event_time = event.time.as_str(),
            host = event.host.as_str(),
            kind = event.kind.name(),
            verdict = event.verdict.as_deref(),
            reason = event.reason.as_deref(),
            rule = event.rule.as_deref(),
            receipt = event.receipt.as_deref(),
            session = event.session.as_deref(),
            agent = event.agent.as_deref(),
            owner_uid = owner.map(|owner| owner.uid),
            owner_name = owner.and_then(|owner| owner.name.as_deref()),
            process = event.pid,
            executable = event.executable.as_deref(),
            command = (!event.argv.is_empty()).then(|| event.argv.join(" ")).as_deref(),
            command_line_account = event.command_line_account.as_deref(),
            cgroup = event.cgroup.as_deref(),
            destination_address = destination.map(|to| to.address.as_str()),
            destination_port = destination.and_then(|to| to.port),
            destination_transport = destination.map(|to| to.transport.as_str()),
            service = event.service.as_deref(),
            zone = event.zone.as_deref(),
            gateway = event.gateway.as_deref(),
            tool = event.tool.as_deref(),
            shape = event.shape.as_deref(),
            object = event.object.as_deref(),
            hook = event.hook.as_deref(),
            repeats = event.repeats,
            lost = event.count,
            attack = (!event.attack.is_empty()).then(|| event.attack.join(",")).as_deref(),
            "{}",
            sentence(event)
        );
    }};
}

fn tell_at<const WARN: bool>(event: &Event) {
    if WARN {
        event_fields!(Level::WARN, event);
    } else {
        event_fields!(Level::INFO, event);
    }
}

/// The event in one line of plain words, not escaped for a terminal.
#[must_use]
pub(crate) fn sentence(event: &Event) -> String {
    let mut line = event.kind.name().to_owned();
    let mut add = |prefix: &str, value: Option<&str>| {
        if let Some(value) = value {
            line.push_str(prefix);
            line.push_str(value);
        }
    };
    add(" ", event.verdict.as_deref());
    let destination = event.destination.as_ref().map(|to| match to.port {
        Some(port) if to.address.contains(':') => format!("[{}]:{port}/{}", to.address, to.transport),
        Some(port) => format!("{}:{port}/{}", to.address, to.transport),
        None => format!("{}/{}", to.address, to.transport),
    });
    add(" ", destination.as_deref());
    add(" ", event.object.as_deref());
    add(" zone ", event.zone.as_deref());
    add(" gateway ", event.gateway.as_deref());
    add(" service ", event.service.as_deref());
    add(": ", event.reason.as_deref());
    add(" receipt ", event.receipt.as_deref());
    add(" agent ", event.agent.as_deref());
    add(" session ", event.session.as_deref());
    add(" pid ", event.pid.map(|pid| pid.to_string()).as_deref());
    add(" ", event.executable.as_deref());
    add(" command line names account ", event.command_line_account.as_deref());
    add(" tool ", event.tool.as_deref());
    add(" with ", event.shape.as_deref());
    add(" rule ", event.rule.as_deref());
    add(" repeats ", (event.repeats > 0).then(|| event.repeats.to_string()).as_deref());
    add(" count ", event.count.map(|count| count.to_string()).as_deref());
    add(": ", event.detail.as_deref());
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Destination;

    #[test]
    fn refusal_reads_as_one_line() {
        let mut event = Event::new(Kind::Verdict, "h", 0);
        event.verdict = Some("block".into());
        event.reason = Some("no_receipt".into());
        event.agent = Some("codex".into());
        event.destination = Some(Destination { address: "10.20.4.7".into(), port: Some(502), transport: "tcp".into() });
        assert_eq!(sentence(&event), "verdict block 10.20.4.7:502/tcp: no_receipt agent codex");
    }

    #[test]
    fn refusals_of_every_kind_and_losses_are_warnings() {
        let event = |kind: Kind, verdict: Option<&str>| {
            let mut event = Event::new(kind, "h", 0);
            event.verdict = verdict.map(str::to_owned);
            event
        };
        for kind in [Kind::Verdict, Kind::Tamper, Kind::Exec] {
            assert!(is_warning(&event(kind, Some("block"))) && !is_warning(&event(kind, Some("observe"))), "{kind:?}");
        }
        assert!(is_warning(&event(Kind::Lost, None)));
        assert!(!is_warning(&event(Kind::Canary, Some("block"))) && !is_warning(&event(Kind::SessionStart, None)));
    }
}
