//! Reads the ring buffer and makes events of its records.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pp_common::abi::Counter;
use pp_common::decide::{Attempt, Kind as AttemptKind, Reason, Subject, Verdict, transport};
use pp_common::record::{Hook, VerdictRecord};
use pp_common::tamper::Tamper;

use super::Daemon;
use crate::clock::Now;
use crate::events::record::Record;
use crate::events::refusals::Ledger;
use crate::events::{Body, behaviour};
use crate::kernel::Records;

/// How long to wait for the store in all, until it has caught up once.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);
/// Records to read before yielding to other tasks, so that a storm of refusals delays no answer.
const STRETCH: u32 = 16;

/// Reads records until the daemon stops.
pub(super) async fn pump(daemon: Arc<Daemon>, mut records: Records) {
    let mut patience = PATIENCE;
    let mut stretch = 0;
    loop {
        stretch += 1;
        if stretch == STRETCH {
            stretch = 0;
            tokio::task::yield_now().await;
        }
        // Waiting is better than losing events: records stay in the ring buffer. But a disk that hangs must not block for ever.
        while daemon.reports.hub.is_behind() && patience > Duration::ZERO {
            tokio::time::sleep(PAUSE).await;
            patience = patience.saturating_sub(PAUSE);
        }
        if !daemon.reports.hub.is_behind() {
            patience = PATIENCE;
        }
        let idle = || daemon.reports.tally.idle(Instant::now(), || daemon.counter(Counter::Written));
        let bytes = records.next(&daemon.reader, idle).await;
        let Some(mut record) = Record::from_bytes(&bytes) else {
            // A record of another build. If it was a refusal, it is reported as lost.
            tracing::error!("ring buffer: {} bytes that are no record of this build", bytes.len());
            let _accounted = daemon.reports.tally.read();
            continue;
        };
        // Refusals have their own account.
        let read = if record.is_refusal() { None } else { daemon.reports.tally.read() };
        // Held until the event is published, as in `refusals.rs`.
        let _ledger = record.repeats_mut().filter(|(repeats, _)| **repeats > 0).map(|(repeats, id)| {
            let mut ledger = daemon.reports.ledger();
            *repeats = report_repeats(&daemon, &mut ledger, id, *repeats);
            ledger
        });
        if let Record::Verdict(verdict) = &mut record {
            name_nearest(&daemon, verdict);
            if is_refused_flow(verdict) {
                daemon.gate.learn_namespace(verdict.header.tgid);
                daemon.wake.flow_refused.notify_one();
            }
        }
        if let Record::Tamper(tamper) = &record
            && tamper.what == Tamper::CgroupMove as u8
        {
            daemon.own_cgroup.moved();
        }
        let event = daemon.reports.builder().build(&record, Now::read());
        let Some(mut event) = event.filter(|event| !event.canary || daemon.watch.reports_canaries()) else {
            if let Some(read) = read {
                daemon.reports.tally.silent(read);
            }
            continue;
        };
        if let (Record::Verdict(verdict), Body::Verdict(attempt)) = (&record, &mut event.body) {
            attempt.budget = daemon.usage(verdict.serial);
            if let Some(budget) = &attempt.budget {
                attempt.command_line_account = daemon.reports.builder().account_beyond(verdict.header.tgid, &budget.accounts);
            }
            if verdict.count != 0
                && let Some((trip, detail)) = behaviour::trip(verdict, daemon.gate.history(verdict.header.session).as_deref())
            {
                attempt.trip = Some(trip);
                event.detail = Some(detail);
            }
        }
        daemon.reports.hub.publish_read(event, read);
    }
}

/// How many of a record's repeats its event reports: those that are not reported yet, or none if that number cannot be kept.
fn report_repeats(daemon: &Daemon, ledger: &mut Ledger, id: u64, count: u64) -> u64 {
    let due = ledger.due_by_record(id, count);
    if due == 0 {
        return 0;
    }
    match daemon.gate.keep_reported(id, count) {
        Ok(()) => {
            ledger.report(id, count);
            due
        }
        Err(error) => {
            tracing::error!("{error}");
            0
        }
    }
}

/// Whether a packet of an open TCP flow was refused. Unlike a refused `connect`, the program gets no error for that.
fn is_refused_flow(record: &VerdictRecord) -> bool {
    record.verdict == Verdict::Block as u8
        && record.transport == transport::TCP
        && (record.hook == Hook::Egress as u8 || record.hook == Hook::Ingress as u8)
}

/// Adds the nearest receipt to a refusal, if the tables still give the same reason. The kernel names a receipt only when it allows.
fn name_nearest(daemon: &Daemon, record: &mut VerdictRecord) {
    let nearest = Reason::ReceiptOtherAgent as u8..=Reason::ReceiptExhausted as u8;
    if record.serial != 0 || !nearest.contains(&record.reason) {
        return;
    }
    let header = &record.header;
    let subject = Subject { session: header.session, agent: header.agent, owner: header.owner };
    let attempt = Attempt { addr: record.addr, port: record.port, transport: record.transport, kind: AttemptKind::Open, counted: 0 };
    let decision = daemon.decide_near(&subject, &attempt);
    if decision.reason as u8 == record.reason {
        record.serial = daemon.gate.nearest(&subject, &attempt, &decision).unwrap_or(0);
    }
}
