//! That no refusal vanishes untold: repeats that the kernel counts, what it had no room for, what a daemon that was killed took with it,
//! and what is missing after all of these. told + repeats + lost = refused; `events/refusals.rs` has the arithmetic.

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

/// How long the reader of records may take until none is left; a storm takes longer, and the next look comes in a second.
const READING: Duration = Duration::from_millis(100);

/// How long telling repeats may wait for the store, each second.
const STORING: Duration = Duration::from_secs(1);

/// Which of the kernel's losses were told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Losses {
    /// Records of verdicts that are no refusals.
    records: u64,
    /// Records of processes.
    lifecycle: u64,
    /// Refusals that found no room. Those of before this daemon are found by [`Daemon::reconcile`].
    refusals: u64,
}

impl Losses {
    /// The kernel counts on while no daemon runs; what it lost then is told too.
    pub(super) fn new(daemon: &Daemon) -> Self {
        let told = if daemon.gate.fresh() { (0, 0) } else { daemon.state.lost_told().unwrap_or((0, 0)) };
        Self { records: told.0, lifecycle: told.1, refusals: daemon.counter(Counter::LostRefusals).unwrap_or(0) }
    }
}

impl Daemon {
    /// Tells what the kernel, a daemon before this one or the store could not keep.
    pub(super) fn report_losses(&self, told: &mut Losses) {
        let now = Now::read();
        let count = |counter, told| self.counter(counter).unwrap_or(told);
        let records = count(Counter::LostRecords, told.records);
        let lifecycle = count(Counter::LostLifecycle, told.lifecycle);
        let refusals = count(Counter::LostRefusals, told.refusals);
        if refusals > told.refusals {
            self.reports.hub.publish_lost_refusals(
                refusals - told.refusals,
                "the kernel's ring buffer and its table of repeats were full",
                now.wall_ms,
            );
            // The records that were lost may have asked for either.
            self.own_cgroup.moved();
            self.wake.flow_refused.notify_one();
        }
        if records > told.records {
            self.reports.hub.publish_lost(records - told.records, "the kernel's ring buffer was full", now.wall_ms, None);
        }
        if lifecycle > told.lifecycle {
            let detail = "the kernel's ring buffer of processes was full";
            self.reports.hub.publish_lost(lifecycle - told.lifecycle, detail, now.wall_ms, None);
        }
        if (records > told.records || lifecycle > told.lifecycle)
            && let Err(error) = self.state.keep_lost_told((records, lifecycle))
        {
            tracing::warn!("{error}");
        }
        *told = Losses { records, lifecycle, refusals };
        if let Some(loss) = self.reports.tally.lost(Instant::now()) {
            let what = "the daemon before this one ended without storing what it had read; records that make no event are among them";
            self.reports.hub.publish_lost(loss.count, what, now.wall_ms, Some(loss.accounted));
        }
        if let Some(accounted) = self.reports.tally.take_silent() {
            self.reports.hub.read(accounted);
        }
        self.reports.hub.report_unstored(now.wall_ms);
    }

    /// Tells repeats, and refusals of which nothing else tells.
    pub(super) fn report_refusals(&self, told: &mut Losses) {
        let pending = match self.flush_repeats() {
            Ok(pending) => pending,
            Err(error) => {
                tracing::error!("{error}");
                return;
            }
        };
        let account = self.reports.hub.account();
        let refused = self.counter(Counter::Blocked).unwrap_or(0);
        if account.before.is_none_or(|before| missing(refused, before, pending, account.refusals.published()) > 0)
            && let Err(error) = self.reconcile(told)
        {
            tracing::error!("{error}");
        }
    }

    /// Tells the repeats of pairs whose window is over, and forgets pairs that rest. Returns how many wait to be told.
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
                self.reports.ledger().forget(repeats.id);
            }
        }
        Ok(pending)
    }

    /// Thousands of pairs may be told at once: at the pace of the store, unless its disk hangs.
    fn wait_for_store(&self, patience: &mut Duration) {
        const PAUSE: Duration = Duration::from_millis(5);
        while self.reports.hub.is_behind() && *patience > Duration::ZERO {
            std::thread::sleep(PAUSE);
            *patience = patience.saturating_sub(PAUSE);
        }
    }

    /// A pair is counted of which no record may have been written: what a record would have asked for.
    fn act_without_record(&self, key: &RepeatKey) {
        if key.reason == Reason::Tamper as u8 && key.port == Tamper::CgroupMove as u16 {
            self.own_cgroup.moved();
        }
        if key.packet != 0 && key.transport == transport::TCP && is_refusal(key) {
            self.wake.flow_refused.notify_one();
        }
    }

    /// Tells what was counted and not told of a pair.
    fn report_due(&self, key: &RepeatKey, repeats: &Repeats) -> Result<(), KernelError> {
        // Held until it is published: at no moment are repeats neither pending nor told, for whoever holds it.
        let mut ledger = self.reports.ledger();
        let (due, _) = ledger.due(repeats.id, repeats.count);
        if due > 0 {
            self.gate.keep_told(repeats.id, repeats.count)?;
            ledger.report(repeats.id, repeats.count);
            self.report_repeats(key, due);
        }
        Ok(())
    }

    /// Tells as lost what the kernel refused and nothing tells of or ever will: what was added to an entry while it was removed, what a
    /// daemon that was killed had read, a record that no build can read. Under load it tells too few rather than too many, and the rest
    /// when there is a pause.
    fn reconcile(&self, told: &mut Losses) -> Result<(), KernelError> {
        let Some(refused) = self.counter(Counter::Blocked) else { return Ok(()) };
        self.gate.grace_periods();
        if !self.reader.is_done(READING) {
            return Ok(());
        }
        let pairs = self.gate.repeats()?;
        let lost = self.counter(Counter::LostRefusals).unwrap_or(told.refusals);
        let mut ledger = self.reports.ledger();
        let pending = pairs.iter().filter(|(key, _)| is_refusal(key)).map(|(_, repeats)| ledger.due(repeats.id, repeats.count).0).sum();
        let account = self.reports.hub.account();
        let published = account.refusals.published();
        let Some(before) = account.before else {
            // Nobody kept this account: an earlier build, or a store that was set aside. The disk is waited for without the lock: what was
            // refused before stays what it is.
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
        told.refusals = lost;
        Ok(())
    }

    /// What `status` and `/metrics` say of refusals; `None` where it is not known since when they are counted.
    pub(super) fn refusals(&self) -> Option<RefusalCounts> {
        // In this order: what is refused meanwhile only adds to what is not told yet.
        let account = self.reports.hub.account();
        let refused = self.counter(Counter::Blocked)?.saturating_sub(account.before?);
        let refusals = account.refusals;
        Some(RefusalCounts {
            refused,
            told: refusals.told,
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
        // The repeats of a tripped pattern may have gone to many places.
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

    /// The same of refusals that name no address; see `pp-ebpf/src/gate/guard.rs` for the key.
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
