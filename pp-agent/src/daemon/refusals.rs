//! Makes sure that every refusal is reported. These are repeats that the kernel counts, records that did not fit, records that a killed
//! daemon had read, and all that are still missing. The arithmetic is in `events/refusals.rs`.

use std::time::{Duration, Instant};

use pp_common::abi::{Counter, REPEAT_WINDOW_NS, RepeatKey, Repeats};
use pp_common::behaviour::Rule;
use pp_common::decide::{Attempt, Kind as AttemptKind, Reason, Subject, Verdict, transport};
use pp_common::protect::Tamper;

use super::Daemon;
use crate::api::RefusalCounts;
use crate::clock::Now;
use crate::events::build::address;
use crate::events::guard::hook_name;
use crate::events::refusals::missing;
use crate::events::{self, Body, Destination, Who, Why};
use crate::kernel::KernelError;

/// How long to wait until the reader has no record left. In a storm it takes longer; the next look is a second later.
const READING: Duration = Duration::from_millis(100);

/// How long reports of repeats may wait for the store, each second.
const STORING: Duration = Duration::from_secs(1);

/// How many of the kernel's losses are reported.
#[derive(Clone, Copy, Debug)]
pub(super) struct Losses {
    /// Records of verdicts that are no refusals.
    records: u64,
    /// Records of processes.
    lifecycle: u64,
    /// Refusals that did not fit. [`Daemon::reconcile`] finds those from before this daemon.
    refusals: u64,
}

impl Losses {
    /// Starts with what earlier daemons reported. The kernel also counts losses while no daemon runs.
    pub(super) fn new(daemon: &Daemon) -> Self {
        let reported = if daemon.gate.fresh() { (0, 0) } else { daemon.state.reported_losses().unwrap_or((0, 0)) };
        Self { records: reported.0, lifecycle: reported.1, refusals: daemon.counter(Counter::LostRefusals).unwrap_or(0) }
    }
}

impl Daemon {
    /// Reports what the kernel, an earlier daemon or the store lost.
    pub(super) fn report_losses(&self, reported: &mut Losses) {
        let now = Now::read();
        let count = |counter, reported| self.counter(counter).unwrap_or(reported);
        let records = count(Counter::LostRecords, reported.records);
        let lifecycle = count(Counter::LostLifecycle, reported.lifecycle);
        let refusals = count(Counter::LostRefusals, reported.refusals);
        if refusals > reported.refusals {
            self.reports.hub.publish_lost_refusals(
                refusals - reported.refusals,
                "the kernel's ring buffer and its table of repeats were full",
                now.wall_ms,
            );
            // The lost records may have been a cause for either.
            self.own_cgroup.moved();
            self.wake.flow_refused.notify_one();
        }
        if records > reported.records {
            self.reports.hub.publish_lost(records - reported.records, "the kernel's ring buffer was full", now.wall_ms, None);
        }
        if lifecycle > reported.lifecycle {
            let detail = "the kernel's ring buffer of processes was full";
            self.reports.hub.publish_lost(lifecycle - reported.lifecycle, detail, now.wall_ms, None);
        }
        if (records > reported.records || lifecycle > reported.lifecycle)
            && let Err(error) = self.state.keep_reported_losses((records, lifecycle))
        {
            tracing::warn!("{error}");
        }
        *reported = Losses { records, lifecycle, refusals };
        if let Some(loss) = self.reports.tally.lost(Instant::now()) {
            let what = "the daemon before this one ended without storing what it had read; records that make no event are among them";
            self.reports.hub.publish_lost(loss.count, what, now.wall_ms, Some(loss.accounted));
        }
        if let Some(accounted) = self.reports.tally.take_silent() {
            self.reports.hub.read(accounted);
        }
        self.reports.hub.report_unstored(now.wall_ms);
    }

    /// Reports repeats, floods, and refusals that nothing else reports.
    pub(super) fn report_refusals(&self, reported: &mut Losses) {
        self.reports.hub.publish_summaries();
        let pending = match self.flush_repeats() {
            Ok(pending) => pending,
            Err(error) => {
                tracing::error!("{error}");
                return;
            }
        };
        let account = self.reports.hub.account();
        let refused = self.counter(Counter::Blocked).unwrap_or(0);
        if account.before.is_none_or(|before| missing(refused, before, pending + account.held, account.refusals.published()) > 0)
            && let Err(error) = self.reconcile(reported)
        {
            tracing::error!("{error}");
        }
    }

    /// Reports the repeats of pairs whose window is over, and removes idle pairs. Returns how many repeats are not reported yet.
    fn flush_repeats(&self) -> Result<u64, KernelError> {
        let pairs = self.gate.repeats()?;
        let now = Now::read();
        let mut pending = 0;
        let mut patience = STORING;
        for (key, repeats) in &pairs {
            let (due, is_new) = self.reports.ledger().due(repeats.id, repeats.count);
            if due > 0 && is_new {
                self.act_without_record(key);
            }
            if now.boot_ns < repeats.written_ns.saturating_add(REPEAT_WINDOW_NS) {
                pending += if is_refusal(key) { due } else { 0 };
                continue;
            }
            if due > 0 {
                self.wait_for_store(&mut patience);
            }
            self.report_due(key, repeats)?;
            if self.gate.remove_repeats(key, repeats)? {
                self.reports.ledger().remove(repeats.id);
            }
        }
        Ok(pending)
    }

    /// Waits for the store, since thousands of pairs may be reported at once. It gives up if the disk hangs.
    fn wait_for_store(&self, patience: &mut Duration) {
        const PAUSE: Duration = Duration::from_millis(5);
        while self.reports.hub.is_behind() && *patience > Duration::ZERO {
            std::thread::sleep(PAUSE);
            *patience = patience.saturating_sub(PAUSE);
        }
    }

    /// Does what a record of this pair would have caused, since there may have been none.
    fn act_without_record(&self, key: &RepeatKey) {
        if key.reason == Reason::Tamper as u8 && key.port == Tamper::CgroupMove as u16 {
            self.own_cgroup.moved();
        }
        if key.packet != 0 && key.transport == transport::TCP && is_refusal(key) {
            self.wake.flow_refused.notify_one();
        }
    }

    /// Reports what the kernel counted for a pair and nothing has reported yet.
    fn report_due(&self, key: &RepeatKey, repeats: &Repeats) -> Result<(), KernelError> {
        // RACE: held until the event is published. So whoever holds the ledger finds repeats either pending or reported.
        let mut ledger = self.reports.ledger();
        let (due, _) = ledger.due(repeats.id, repeats.count);
        if due > 0 {
            self.gate.keep_reported(repeats.id, repeats.count)?;
            ledger.report(repeats.id, repeats.count);
            self.report_repeats(key, due);
        }
        Ok(())
    }

    /// Reports as lost the refusals that have no event and will get none. They were added to an entry while it was removed, a killed daemon
    /// had read them, or no build can read them. Under load it reports too few, never too many. The rest follows in a pause.
    fn reconcile(&self, reported: &mut Losses) -> Result<(), KernelError> {
        let Some(refused) = self.counter(Counter::Blocked) else { return Ok(()) };
        self.gate.grace_periods();
        if !self.reader.is_done(READING) {
            return Ok(());
        }
        let pairs = self.gate.repeats()?;
        let lost = self.counter(Counter::LostRefusals).unwrap_or(reported.refusals);
        let mut ledger = self.reports.ledger();
        let pending: u64 =
            pairs.iter().filter(|(key, _)| is_refusal(key)).map(|(_, repeats)| ledger.due(repeats.id, repeats.count).0).sum();
        let account = self.reports.hub.account();
        let pending = pending + account.held;
        let published = account.refusals.published();
        let Some(before) = account.before else {
            // There is no account: an earlier build kept none, or the store was damaged and replaced. The lock is released before the disk
            // is written, since the number of earlier refusals does not change any more.
            drop(ledger);
            if let Err(error) = self.reports.hub.account_from(missing(refused, 0, pending, published)) {
                tracing::warn!("{error}");
            }
            return Ok(());
        };
        let missing = missing(refused, before, pending, published);
        if missing > 0 {
            let detail = "refusals of which no record is left, or which a daemon that ended had not stored";
            self.reports.hub.publish_lost_refusals(missing, detail, Now::read().wall_ms);
        }
        drop(ledger);
        reported.refusals = lost;
        Ok(())
    }

    /// What `status` and `/metrics` say of refusals; `None` if it is unknown since when they are counted.
    pub(super) fn refusals(&self) -> Option<RefusalCounts> {
        // In this order, refusals in between only add to those that are not reported yet.
        let account = self.reports.hub.account();
        let refused = self.counter(Counter::Blocked)?.saturating_sub(account.before?);
        let refusals = account.refusals;
        Some(RefusalCounts {
            refused,
            told: refusals.with_event,
            repeats: refusals.repeats,
            lost: refusals.lost,
            untold: refused.saturating_sub(refusals.published()),
            not_stored: refusals.not_stored,
        })
    }

    fn report_repeats(&self, key: &RepeatKey, count: u64) {
        if matches!(Reason::from_code(key.reason), Some(Reason::Tamper | Reason::Delegate)) {
            self.report_guard_repeats(key, count);
            return;
        }
        let subject = self.reports.builder().subject_of(key.session);
        // The repeats of a tripped pattern may have had many destinations.
        let reason = Reason::from_code(key.reason);
        let rule = reason.and_then(Rule::of);
        let destination = rule.is_none_or(Rule::names_host).then(|| Destination {
            address: address(key.addr),
            port: rule.is_none_or(Rule::names_port).then_some(key.port),
            transport: key.transport,
        });
        let near = subject.filter(|_| destination.is_some()).map(|subject| {
            let attempt = Attempt { addr: key.addr, port: key.port, transport: key.transport, kind: AttemptKind::Open, counted: 0 };
            self.decide_near(&subject, &attempt)
        });
        let attempt = events::Attempt {
            verdict: Verdict::from_code(key.verdict).map(Into::into),
            reason: reason.map(Why::Decided),
            destination,
            place: near.map(|near| self.reports.builder().place(near.zone, near.gateway, near.service)).unwrap_or_default(),
            repeats: count,
            ..events::Attempt::default()
        };
        self.publish_repeats(
            key,
            Body::Verdict(Box::new(attempt)),
            subject,
            "attempts that were counted since the last event of this pair",
        );
    }

    /// Reports repeats of refusals without an address; see `pp-ebpf/src/gate/guard.rs` for the key.
    fn report_guard_repeats(&self, key: &RepeatKey, count: u64) {
        let attempt = Box::new(events::Attempt {
            verdict: Verdict::from_code(key.verdict).map(Into::into),
            reason: u8::try_from(key.port).ok().and_then(Tamper::from_code).map(Why::from),
            hook: Some(hook_name(key.transport, self.gate.backend().name())),
            repeats: count,
            ..events::Attempt::default()
        });
        let body = if key.reason == Reason::Tamper as u8 { Body::Tamper(attempt) } else { Body::Verdict(attempt) };
        let subject = self.reports.builder().subject_of(key.session);
        self.publish_repeats(key, body, subject, "attempts that were counted since the last event of this kind");
    }

    fn publish_repeats(&self, key: &RepeatKey, body: Body, subject: Option<Subject>, detail: &str) {
        let unknown = Who { session: Some(key.session), ..Who::default() };
        let who = subject.map_or(unknown, |subject| self.reports.builder().session(key.session, subject.agent, subject.owner));
        let mut event = self.reports.event(body).about(who).detail(detail);
        event.canary = key.canary != 0;
        self.reports.hub.publish(event);
    }
}

/// Whether the kernel counts attempts of this pair as refused.
const fn is_refusal(key: &RepeatKey) -> bool {
    key.verdict == Verdict::Block as u8 && key.canary == 0
}
