//! From the ring buffer to events.

use std::sync::Arc;
use std::time::Instant;

use pp_common::abi::Counter;
use pp_common::decide::{Attempt, Kind as AttemptKind, Reason, Subject, Verdict, transport};
use pp_common::record::{Hook, VerdictRecord};
use pp_common::tamper::Tamper;

use super::Daemon;
use crate::clock::Now;
use crate::events::Kind;
use crate::events::behaviour;
use crate::events::record::Record;
use crate::kernel::Records;

/// Reads records until the daemon stops.
pub(super) async fn pump(daemon: Arc<Daemon>, mut records: Records) {
    loop {
        let bytes = records.next(|| daemon.tally.idle(Instant::now(), || daemon.counter(Counter::Written))).await;
        let read = daemon.tally.read();
        let Some(mut record) = Record::from_bytes(&bytes) else {
            tracing::error!("ring buffer: {} bytes that are no record of this build", bytes.len());
            continue;
        };
        if let Record::Verdict(verdict) = &mut record {
            name_nearest(&daemon, verdict);
            if is_refused_flow(verdict) {
                daemon.gate.learn_namespace(verdict.header.tgid);
                daemon.flow_refused.notify_one();
            }
        }
        if let Record::Tamper(tamper) = &record
            && tamper.what == Tamper::CgroupMove as u8
        {
            daemon.home.moved();
        }
        let event = daemon.builder().build(&record, Now::read());
        let Some(mut event) = event.filter(|event| event.kind != Kind::Canary || daemon.watch.tells_canaries()) else {
            if let Some(read) = read {
                daemon.tally.silent(read);
            }
            continue;
        };
        {
            if let Record::Verdict(verdict) = &record {
                event.budget = daemon.usage(verdict.serial);
                if let Some(budget) = &event.budget {
                    event.command_line_account = daemon.builder().account_beyond(verdict.header.tgid, &budget.accounts);
                }
                if verdict.count != 0 {
                    behaviour::describe(&mut event, verdict, daemon.gate.history(verdict.header.session).as_deref());
                }
            }
            daemon.hub.publish_read(event, read);
        }
    }
}

/// A packet of an open TCP flow was refused: unlike a refused `connect`, the
/// program does not hear of that by itself.
fn is_refused_flow(record: &VerdictRecord) -> bool {
    record.verdict == Verdict::Block as u8
        && record.transport == transport::TCP
        && (record.hook == Hook::Egress as u8 || record.hook == Hook::Ingress as u8)
}

/// The kernel names a receipt only where it allows; the one that came nearest
/// is looked up here, as long as the tables still give the same reason.
fn name_nearest(daemon: &Daemon, record: &mut VerdictRecord) {
    let nearest = Reason::ReceiptOtherAgent as u8..=Reason::ReceiptExhausted as u8;
    if record.serial != 0 || !nearest.contains(&record.reason) {
        return;
    }
    let header = &record.header;
    let subject = Subject { session: header.session, agent: header.agent, owner: header.owner };
    let attempt = Attempt { addr: record.addr, port: record.port, transport: record.transport, kind: AttemptKind::Open, counted: 0 };
    let decision = daemon.gate.decide(&subject, &attempt);
    if decision.reason as u8 == record.reason {
        record.serial = daemon.gate.nearest(&subject, &attempt, &decision).unwrap_or(0);
    }
}
