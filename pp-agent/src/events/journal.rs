//! Writes events to the journal: as structured fields, and as one line for people.

use tracing::Level;

use super::{Body, Event, Members, ProtectionChange, Verdict};

/// The target that events are logged under.
pub(crate) const TARGET: &str = "pp_agent::event";

/// Whether the event is a loss, the end of protection, or a refusal that the canary did not cause.
pub(super) fn is_warning(event: &Event) -> bool {
    matches!(event.body, Body::Lost(_) | Body::Protection(ProtectionChange::Off))
        || !event.canary && event.verdict() == Some(Verdict::Block)
}

/// Logs one event, as a warning or as information.
pub(super) fn log(event: &Event) {
    if is_warning(event) {
        log_at::<true>(event);
    } else {
        log_at::<false>(event);
    }
}

macro_rules! event_fields {
    ($level:expr, $event:expr) => {{
        let event = Members::from($event);
        let owner = event.owner.as_ref();
        let destination = event.destination.as_ref();
        tracing::event!(
            target: TARGET,
            $level,
            event_id = event.id,
            event_time = &*event.time,
            host = &*event.host,
            kind = &*event.kind,
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
            event.sentence()
        );
    }};
}

fn log_at<const WARN: bool>(event: &Event) {
    if WARN {
        event_fields!(Level::WARN, event);
    } else {
        event_fields!(Level::INFO, event);
    }
}

/// The event as one line for people, not escaped for a terminal.
#[must_use]
pub(crate) fn sentence(event: &Event) -> String {
    Members::from(event).sentence()
}

impl Members<'_> {
    fn sentence(&self) -> String {
        let pid = self.pid.map(|pid| pid.to_string());
        let repeats = (self.repeats > 0).then(|| self.repeats.to_string());
        let count = self.count.map(|count| count.to_string());
        let destination = self.destination.as_ref().map(|to| match to.port {
            Some(port) if to.address.contains(':') => format!("[{}]:{port}/{}", to.address, to.transport),
            Some(port) => format!("{}:{port}/{}", to.address, to.transport),
            None => format!("{}/{}", to.address, to.transport),
        });
        let parts = [
            (" ", self.verdict.as_deref()),
            (" ", destination.as_deref()),
            (" ", self.object.as_deref()),
            (" zone ", self.zone.as_deref()),
            (" gateway ", self.gateway.as_deref()),
            (" service ", self.service.as_deref()),
            (": ", self.reason.as_deref()),
            (" receipt ", self.receipt.as_deref()),
            (" agent ", self.agent.as_deref()),
            (" session ", self.session.as_deref()),
            (" pid ", pid.as_deref()),
            (" ", self.executable.as_deref()),
            (" command line names account ", self.command_line_account.as_deref()),
            (" tool ", self.tool.as_deref()),
            (" with ", self.shape.as_deref()),
            (" rule ", self.rule.as_deref()),
            (" repeats ", repeats.as_deref()),
            (" count ", count.as_deref()),
            (": ", self.detail.as_deref()),
        ]
        .into_iter()
        .filter_map(|(prefix, value)| value.map(|value| [prefix, value]));
        std::iter::once(&*self.kind).chain(parts.flatten()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Loss, Tool};

    #[test]
    fn refusal_reads_as_one_line() {
        let event = Event::of_attempt("block", "no_receipt", "10.20.4.7", 502);
        let wanted = "verdict block 10.20.4.7:502/tcp: no_receipt agent claude-code session 0000000000000abc pid 42";
        assert_eq!(sentence(&event), wanted);
    }

    #[test]
    fn refusals_of_every_kind_and_losses_are_warnings() {
        for verdict in [Verdict::Block, Verdict::Observe] {
            let is_block = verdict == Verdict::Block;
            let attempt = Event::of_attempt(verdict.name(), "no_receipt", "10.20.4.7", 502);
            let tamper = Body::Tamper(Box::new(attempt.attempt().unwrap().clone()));
            let tool = Body::Exec(Tool { verdict, tool: None, shape: None, attack: Vec::new(), repeats: 0 });
            let canary = Event { canary: true, ..attempt.clone() };
            for event in [attempt, Event::new(tamper, "h", 0), Event::new(tool, "h", 0)] {
                assert_eq!(is_warning(&event), is_block, "{event:?}");
            }
            assert!(!is_warning(&canary));
        }
        assert!(is_warning(&Event::new(Body::Lost(Loss { count: 1, refusals: false, not_stored: false }), "h", 0)));
        assert!(!is_warning(&Event::new(Body::SessionStart(None), "h", 0)));
    }
}
