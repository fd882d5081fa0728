//! What the daemon does regularly: it watches the clock, cgroups, and the deadlines of receipts. `refusals.rs` has losses and repeats.

use std::sync::Arc;
use std::time::Duration;

use pp_common::abi::{Counter, MAX_CLAIMED};
use pp_common::behaviour::MAX_SESSIONS;
use pp_common::decide::Subject;

use super::refusals::Losses;
use super::writer::Writer;
use super::{Daemon, load};
use crate::clock::{NS_PER_MS, Now};
use crate::events::build::address;
use crate::events::{Attempt, Body, Destination, Process, ReceiptChange, Who, Why};
use crate::flows;
use crate::notify;

/// How far wall time must jump against boot time to be a step of the clock and no drift.
const STEP_MS: i64 = 500;
/// Shortest time between two looks for flows with a refused packet.
const FLOWS_PAUSE: Duration = Duration::from_millis(500);
/// How often to look for guarded files and delegates, in seconds.
const GUARD_EVERY: u64 = 5;
/// How often to publish again what the kernel refused, in seconds.
const PUBLISH_AGAIN_EVERY: u64 = 5;
/// How often to try a state that cannot be opened, in seconds.
const OPEN_STATE_EVERY: u64 = 10;
/// How often to write the highest wall time to disk, in seconds.
const NOTE_WALL_EVERY: u64 = 60;
/// Number of sessions with a history above which the daemon warns.
const HISTORIES_WARN: usize = MAX_SESSIONS as usize / 4 * 3;
/// Number of foreign addresses of sessions above which the daemon warns.
const CLAIMS_WARN: usize = MAX_CLAIMED as usize / 4 * 3;

/// Once a second, until the daemon stops.
pub(super) async fn seconds(daemon: Arc<Daemon>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut offset_ms = Now::read().offset_ms();
    let mut losses = Losses::new(&daemon);
    let mut blocked = 0;
    for second in 1u64.. {
        ticks.tick().await;
        let working = Arc::clone(&daemon);
        let work = move || {
            working.watch_off();
            working.report_losses(&mut losses);
            working.own_cgroup.look();
            working.watch_clock(&mut offset_ms);
            working.refresh_cgroups();
            working.rules.change(Writer::refresh_own);
            working.report_refusals(&mut losses);
            working.end_overflow();
            working.end_left_flows(&mut blocked);
            if second % GUARD_EVERY == 0 {
                working.refresh_guard();
            }
            if second % PUBLISH_AGAIN_EVERY == 0 {
                working.rules.change(Writer::publish_again);
            }
            if second % OPEN_STATE_EVERY == 0 {
                working.open_state_again();
            }
            if second % NOTE_WALL_EVERY == 0 {
                working.note_wall();
                working.expire_histories();
                working.expire_claims();
            }
            (losses, offset_ms, blocked)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(state) => {
                (losses, offset_ms, blocked) = state;
                notify::alive();
            }
            Err(error) => {
                tracing::error!("housekeeping ended by a panic: {error}");
                losses = Losses::new(&daemon);
            }
        }
    }
}

/// Ends open flows at the deadline of their receipt.
pub(super) async fn deadlines(daemon: Arc<Daemon>) {
    // Expiries before this instant are reported.
    let mut reported = Now::read();
    loop {
        let now = Now::read();
        let next_ns = daemon.next_deadline(reported);
        let wait = next_ns.map_or(Duration::from_secs(3_600), |next_ns| {
            // One millisecond later, so that the kernel also sees it as expired.
            Duration::from_nanos(next_ns.saturating_sub(now.boot_ns) + NS_PER_MS)
        });
        // A suspended host sleeps through timers: look again every second.
        tokio::select! {
            () = tokio::time::sleep(wait.min(Duration::from_secs(1))) => {}
            () = daemon.wake.changed.notified() => continue,
        }
        if next_ns.is_some_and(|next_ns| Now::read().boot_ns > next_ns) {
            let ending = Arc::clone(&daemon);
            match tokio::task::spawn_blocking(move || ending.report_expiry(reported)).await {
                Ok(now) => reported = now,
                Err(error) => {
                    tracing::error!("flows: ending them ended by a panic: {error}");
                    reported = Now::read();
                }
            }
        }
    }
}

/// Ends open flows when the kernel has refused a packet of one.
pub(super) async fn refused_flows(daemon: Arc<Daemon>) {
    loop {
        daemon.wake.flow_refused.notified().await;
        let ending = Arc::clone(&daemon);
        if let Err(error) = tokio::task::spawn_blocking(move || ending.end_flows()).await {
            tracing::error!("flows: ending them ended by a panic: {error}");
        }
        // A look goes over every open file of every agent, so it must be rare.
        tokio::time::sleep(FLOWS_PAUSE).await;
    }
}

impl Daemon {
    /// One of the kernel's counters; `None` where they cannot be read.
    pub(super) fn counter(&self, counter: Counter) -> Option<u64> {
        match self.gate.counters() {
            Ok(counters) => counters.get(counter as usize).copied(),
            Err(error) => {
                tracing::error!("{error}");
                None
            }
        }
    }

    /// Detects a step of the clock.
    fn watch_clock(&self, offset_ms: &mut i64) {
        let now = Now::read();
        let step_ms = now.offset_ms() - *offset_ms;
        *offset_ms = now.offset_ms();
        let behind = self.highest.clock_is_behind();
        let caught_up = self.rules.now().withheld && !behind;
        if step_ms.abs() < STEP_MS && !caught_up {
            return;
        }
        tracing::warn!("clock: stepped by {step_ms} ms; deadlines of receipts can only become shorter");
        self.rules.change(Writer::carry_over);
        self.end_flows();
        self.wake.changed.notify_one();
    }

    fn refresh_cgroups(&self) {
        let force = self.rules.now();
        if force.config.cgroup_rules.is_empty() {
            return;
        }
        match load::resolve_cgroups(self.site.cgroup_root.as_deref(), &force.config) {
            Ok(now) if now == force.cgroups => return,
            Ok(_) => {}
            Err(error) => return tracing::error!("{error}; the cgroups known before stay in force"),
        }
        self.rules.change(Writer::refresh_cgroups);
        // A process may have started in a new cgroup before the kernel had its rule.
        self.walk();
        self.end_flows();
    }

    /// Removes histories of ended sessions.
    fn expire_histories(&self) {
        match self.gate.expire_histories() {
            Ok(left) if left > HISTORIES_WARN => tracing::warn!("behaviour rules: {left} sessions have a history, {MAX_SESSIONS} fit"),
            Ok(_) => {}
            Err(error) => tracing::error!("{error}"),
        }
    }

    /// Removes addresses that sessions no longer send from.
    fn expire_claims(&self) {
        match self.gate.expire_claims(Now::read().boot_ns) {
            Ok(left) if left > CLAIMS_WARN => tracing::warn!(
                "sessions send from {left} addresses that are not this host's, {MAX_CLAIMED} fit; what they send from others then is refused"
            ),
            Ok(_) => {}
            Err(error) => tracing::error!("{error}"),
        }
    }

    fn end_overflow(&self) {
        let Ok(control) = self.gate.control() else { return };
        if control.overflow == 0 {
            return;
        }
        let room = usize::try_from(self.rules.now().config.max_tasks).unwrap_or(usize::MAX) / 10 * 9;
        match self.gate.marks() {
            Ok(marks) if marks.len() < room => {
                if let Err(error) = self.rules.change(|writer| writer.publisher.clear_overflow()) {
                    tracing::error!("{error}");
                }
            }
            Ok(_) => {}
            Err(error) => tracing::error!("{error}"),
        }
    }

    /// When the next receipt expires whose expiry is not reported, boot nanoseconds.
    fn next_deadline(&self, reported: Now) -> Option<u64> {
        let force = self.rules.now();
        force
            .receipts
            .iter()
            .filter(|receipt| receipt.stored.ended.is_none() && receipt.admitted.is_ok())
            .map(|receipt| receipt.stored.until_ns)
            .filter(|until_ns| *until_ns >= reported.boot_ns)
            .min()
    }

    /// Reports receipts that expired since `before`, and ends their flows. Returns up to when expiries are reported.
    fn report_expiry(&self, before: Now) -> Now {
        let now = Now::read();
        let over: Vec<String> = self
            .rules
            .now()
            .receipts
            .iter()
            .filter(|receipt| receipt.stored.ended.is_none())
            .filter(|receipt| (before.boot_ns..now.boot_ns).contains(&receipt.stored.until_ns))
            .map(|receipt| receipt.stored.id.clone())
            .collect();
        for id in over {
            self.reports.publish(self.reports.event(Body::Receipt(Some(id), ReceiptChange::Expired)));
        }
        self.end_flows();
        now
    }

    /// Ends every open flow that the tables no longer allow.
    pub(super) fn end_flows(&self) {
        let ended = match flows::end(&self.gate) {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!("open flows: {error}");
                return;
            }
        };
        self.report_ended(ended);
    }

    /// Ends flows that no marked process has open any more, if a packet was refused since the last look.
    fn end_left_flows(&self, blocked: &mut u64) {
        let deserted = match self.gate.look_for_namespaces() {
            Ok(deserted) => deserted,
            Err(error) => {
                tracing::error!("open flows: {error}");
                return;
            }
        };
        let now = self.counter(Counter::Blocked).unwrap_or_default();
        if now != *blocked || deserted {
            *blocked = now;
            self.report_ended(flows::end_marked(&self.gate));
        }
    }

    fn report_ended(&self, ended: Vec<flows::EndedFlow>) {
        for flow in ended {
            let subject = Subject { session: flow.mark.session, agent: flow.mark.agent, owner: flow.mark.owner };
            let nearest = self.gate.nearest_on(flow.link, &subject, &flow.attempt, &flow.decision);
            let mut builder = self.reports.builder();
            let executable = builder.processes.find(flow.pid).map(|process| process.executable);
            let who = Who {
                process: Some(Process { pid: flow.pid, executable, ..Process::default() }),
                backend: Some(builder.backend.clone()),
                ..builder.session(subject.session, subject.agent, subject.owner)
            };
            let to = &flow.attempt;
            let attempt = Attempt {
                verdict: Some(flow.decision.verdict.into()),
                reason: Some(Why::Decided(flow.decision.reason)),
                destination: Some(Destination { address: address(to.addr), port: Some(to.port), transport: to.transport }),
                place: builder.place(flow.decision.zone, flow.decision.gateway, flow.decision.service),
                receipt: nearest.and_then(|serial| builder.names.receipts.get(&serial).cloned()),
                hook: Some("daemon".to_owned()),
                ..Attempt::default()
            };
            drop(builder);
            let detail = match (flow.orphan, flow.notified) {
                (true, _) => "nobody had it open any more; what it had not sent is gone",
                (false, true) => "the program was told",
                (false, false) => "its packets are refused",
            };
            self.reports.publish(self.reports.event(Body::FlowEnded(Box::new(attempt))).about(who).detail(detail));
        }
    }
}
