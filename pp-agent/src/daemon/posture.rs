//! Watches the posture: every [`PERIOD`] it checks and repairs the hooks, and has the canary try the gate again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Daemon, Measured};
use crate::api::{CanaryView, FindingView, HooksView, WatchView};
use crate::clock::{Now, rfc3339};
use crate::events::{Body, PostureChange};
use crate::kernel::canary::Finding;
use crate::kernel::hooks::{Damage, Hooks};
use crate::metrics::Text;
use crate::notify;

/// How long a hook can be gone, replaced or inert before it is noticed.
pub(crate) const PERIOD: Duration = Duration::from_secs(120);

/// The state of the hooks and the findings of the last canary.
#[derive(Default)]
pub(super) struct Watch {
    measured: Mutex<Measured>,
    hooks: Mutex<Option<Hooks>>,
    findings: Mutex<(i64, Vec<Finding>)>,
    runs: AtomicU64,
    mended: AtomicU64,
    beyond_repair: AtomicU64,
    /// Hooks that were not in place at the start although this kernel supports them.
    missing: Mutex<Vec<String>>,
    /// What the last look could not put back.
    unrepaired: Mutex<BTreeSet<String>>,
    /// Whether a canary's refusals were reported. Later ones are not, since there would be too many.
    canary_reported: AtomicBool,
}

impl Daemon {
    /// Reports that the daemon before this one did not end by itself.
    pub(super) fn report_killed(&self) {
        const WHAT: &str =
            "the daemon before this one was killed or crashed; what was enforced stayed in force; its unit's journal says more";
        tracing::warn!("{WHAT}");
        self.reports.publish(self.reports.event(Body::Posture { change: PostureChange::DaemonKilled, hook: None }).detail(WHAT));
    }
}

impl Watch {
    /// What the last canary found.
    pub(super) fn measured(&self) -> Measured {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stores what a canary found. Returns what the previous one found.
    pub(super) fn note(&self, found: Measured) -> Measured {
        std::mem::replace(&mut *self.measured.lock().unwrap_or_else(PoisonError::into_inner), found)
    }

    /// Stores the findings of a canary, technique by technique.
    pub(super) fn canary(&self, findings: &[Finding]) {
        self.runs.fetch_add(1, Ordering::Relaxed);
        *self.findings.lock().unwrap_or_else(PoisonError::into_inner) = (Now::read().wall_ms, findings.to_vec());
    }

    /// Whether the refusals of a canary become events. Only the first canary's do; findings of later ones are in `status` and `/metrics`.
    pub(super) fn reports_canaries(&self) -> bool {
        !self.canary_reported.load(Ordering::Relaxed)
    }

    fn findings(&self) -> (i64, Vec<Finding>) {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn missing(&self) -> Vec<String> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Hooks that were missing from the start and what the last look could not repair, for `status`.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        let missing = self.missing();
        let absent = (!missing.is_empty()).then(|| {
            format!(
                "not in place, though this kernel takes them: {}; restart the daemon, and report it if that changes nothing",
                missing.join(", ")
            )
        });
        absent.into_iter().chain(self.problem())
    }

    fn problem(&self) -> Option<String> {
        let unrepaired = self.unrepaired.lock().unwrap_or_else(PoisonError::into_inner).len();
        (unrepaired > 0).then(|| {
            format!(
                "{unrepaired} hooks and tables are not as they were put in place and could not be put back, see pp-agent events --kind \
                 posture; what has lost its pin lasts until the daemon ends: if the bpffs was unmounted, mount it again before that"
            )
        })
    }

    /// For `status`.
    pub(super) fn status(&self) -> WatchView {
        let (at_ms, findings) = self.findings();
        let view = |found: Finding| FindingView { refused: found.refused(), technique: found.technique, errno: found.errno };
        let hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        WatchView {
            canary: CanaryView {
                time: rfc3339(at_ms),
                runs: self.runs.load(Ordering::Relaxed),
                findings: findings.into_iter().map(view).collect(),
            },
            hooks: HooksView {
                watched: hooks.as_ref().map_or(0, Hooks::count),
                mended: self.mended.load(Ordering::Relaxed),
                missing: self.missing(),
                beyond_repair: self.beyond_repair.load(Ordering::Relaxed),
                foreign: hooks.as_ref().map_or(0, Hooks::foreign_count),
            },
        }
    }

    /// For `/metrics`.
    pub(super) fn metrics(&self, text: &mut Text) {
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        text.counter("pp_canary_runs_total", "times that the canary tried the gate", load(&self.runs));
        let (_, findings) = self.findings();
        let findings: Vec<(String, u64)> =
            findings.into_iter().map(|found| (found.technique.clone(), u64::from(found.refused()))).collect();
        text.gauges("pp_canary_refused", "1 where the last canary was refused", "technique", &findings);
        text.counter("pp_hooks_mended_total", "hooks that were put back", load(&self.mended));
        text.counter("pp_hooks_beyond_repair_total", "hooks that could not be put back", load(&self.beyond_repair));
        let hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        let (watched, foreign) = hooks.as_ref().map_or((0, 0), |hooks| (hooks.count(), hooks.foreign_count()));
        text.gauge("pp_hooks_watched", "hooks that are looked at", watched as u64);
        text.gauge("pp_foreign_programs", "programs of others that run after ours at the root cgroup", foreign as u64);
    }
}

/// Looks every period, until the daemon stops.
pub(super) async fn watch(daemon: Arc<Daemon>) {
    let period = daemon.site.args.watch_period.map_or(PERIOD, Duration::from_secs);
    loop {
        tokio::time::sleep(period).await;
        let working = Arc::clone(&daemon);
        if let Err(error) = tokio::task::spawn_blocking(move || working.look()).await {
            tracing::error!("watching the hooks ended by a panic: {error}");
        }
    }
}

impl Daemon {
    /// Records the hooks as they are now, after the canary has seen them refuse.
    pub(super) fn begin_watch(&self) {
        match Hooks::note(&self.site.args.bpffs, self.site.cgroup_root.as_deref()) {
            Ok(hooks) => {
                let missing: Vec<String> = self.gate.expected_hooks().into_iter().filter(|name| !hooks.has(name)).collect();
                if !missing.is_empty() {
                    tracing::error!("hooks that are not in place: {}", missing.join(", "));
                }
                *self.watch.missing.lock().unwrap_or_else(PoisonError::into_inner) = missing;
                *self.watch.hooks.lock().unwrap_or_else(PoisonError::into_inner) = Some(hooks);
            }
            Err(error) => tracing::error!("hooks: they cannot be watched: {error}"),
        }
        self.watch.canary_reported.store(true, Ordering::Relaxed);
    }

    fn look(&self) {
        self.mend_hooks();
        let before = self.watch.measured();
        let found = self.measure_posture();
        if found != before {
            tracing::warn!("posture: {} ({}), it was {} ({})", found.posture, found.gaps(), before.posture, before.gaps());
            notify::status(&self.status_line());
        }
    }

    fn mend_hooks(&self) {
        let mut watched = self.watch.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(hooks) = watched.as_mut() else { return };
        let repairs = hooks.mend();
        let foreign = hooks.foreign().unwrap_or_else(|error| {
            tracing::error!("programs at the root cgroup: {error}");
            Vec::new()
        });
        drop(watched);
        let failed = repairs.iter().filter(|repair| repair.done.is_err()).map(|repair| repair.hook.clone()).collect();
        let before = std::mem::replace(&mut *self.watch.unrepaired.lock().unwrap_or_else(PoisonError::into_inner), failed);
        for repair in repairs {
            let (counter, outcome) = match &repair.done {
                Ok(()) => (&self.watch.mended, "it was put back".to_owned()),
                // Reported and counted once, not every period.
                Err(_) if before.contains(&repair.hook) => continue,
                Err(error) => (&self.watch.beyond_repair, format!("it could not be put back: {error}")),
            };
            counter.fetch_add(1, Ordering::Relaxed);
            let change = match repair.damage {
                Damage::Detached => PostureChange::HookDetached,
                Damage::Replaced => PostureChange::HookReplaced,
                Damage::Unpinned => PostureChange::HookUnpinned,
                Damage::Unknown => PostureChange::HookUnknown,
            };
            self.report_hook(change, repair.hook, outcome);
        }
        for program in foreign {
            let what = format!("program {} \"{}\" was attached behind it and can undo what it refuses", program.id, program.name);
            self.report_hook(PostureChange::ForeignProgram, program.hook, what);
        }
    }

    fn report_hook(&self, change: PostureChange, hook: String, detail: String) {
        tracing::warn!("hook {hook}: {}: {detail}", change.name());
        self.reports.publish(self.reports.event(Body::Posture { change, hook: Some(hook) }).detail(detail));
    }
}
