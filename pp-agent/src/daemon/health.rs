//! The answers of `status` and `/metrics`, and the posture.

use std::collections::HashSet;

use super::in_force::PolicyOrigin;
use super::{Daemon, Measured};
use crate::api::{BackendView, Neighbours, Opening, Posture, Status};
use crate::clock::{Now, rfc3339};
use crate::config::{Config, Mode};
use crate::control::ApiError;
use crate::events::{Body, PostureChange, Who};
use crate::kernel::{Backend, GUARD_PROGRAMS, Gap, Gate, canary, version};
use crate::metrics::Text;
use crate::os::host;

impl Daemon {
    /// `GET /v1/status`.
    pub(super) fn health(&self) -> Result<Status, ApiError> {
        let control = self.gate.control()?;
        let sessions = self.session_count()?;
        let refusals = self.refusals();
        let now = Now::read();
        let behind = self.highest.clock_is_behind();
        let neighbours = Neighbours::List(self.list_neighbours());
        let force = self.rules.now();
        let mut problems = Vec::new();
        if let PolicyOrigin::LastGood(error) = &force.origin {
            problems.push(format!("the policy on disk is refused, the last good one is in force: {error}"));
        }
        if let PolicyOrigin::Fallback(error) = &force.origin {
            problems.push(format!("the policy on disk is refused and no last good one is known, the built-in one is in force: {error}"));
        }
        if force.unpublished {
            problems.push(format!("the kernel still enforces generation {}; newer tables are tried again, see the log", force.generation));
        }
        problems.extend(force.state_problem(&self.state));
        problems.extend(self.reports.hub.problem().map(|problem| format!("events are told and not stored: {problem}")));
        problems.extend(force.keyring_problem.clone());
        problems.extend(task_table_differs(&self.gate, &force.config));
        problems.extend(self.guard.problems());
        problems.extend(self.watch.problems());
        if self.gate.has_too_many_namespaces() {
            problems.push("marked processes are in more network namespaces than are looked after: refused flows that their programs left are not ended there".to_owned());
        }
        problems.extend(self.neighbours.problems());
        if behind || force.withheld {
            problems.push("the clock is behind the highest time seen: no receipt can be registered".to_owned());
        }
        if control.overflow != 0 {
            problems.push("the task table has overflowed; raise max_tasks in the policy".to_owned());
        }
        let Measured { posture: measured, gaps } = self.watch.measured();
        let off = self.off_view();
        let posture = match measured {
            _ if off.is_some() => Posture::Off,
            _ if !problems.is_empty() => Posture::Degraded,
            Posture::Enforcing | Posture::Partial if force.config.mode == Mode::Observe => Posture::Observe,
            measured => measured,
        };
        let backends = self.gate.candidates().iter();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: version::abi(),
            host: force.config.host.clone(),
            kernel: host::kernel_release(),
            backend: self.gate.backend().name().to_owned(),
            backends: backends.map(|tried| BackendView { name: tried.backend.name().to_owned(), found: tried.found.clone() }).collect(),
            posture,
            measured,
            gaps,
            namespaces: self.site.namespaces.iter().map(|kind| kind.name().to_owned()).collect(),
            watch: self.watch.status(),
            neighbours,
            mode: force.config.mode,
            policy: force.origin.name().to_owned(),
            remarks: force.remarks(),
            healthy: problems.is_empty() && off.is_none() && measured.refuses(),
            switched_off: off,
            problems,
            generation: control.generation,
            refusals,
            sessions,
            receipts: force.receipts.iter().filter(|receipt| receipt.stored.is_open(now)).count(),
            started: rfc3339(self.site.started_ms),
            pid: std::process::id(),
        })
    }

    /// `GET /metrics`.
    pub(super) fn metrics_text(&self) -> Result<String, ApiError> {
        let mut text = Text::default();
        text.kernel(&self.gate.counters()?);
        if let Some(counts) = self.refusals() {
            let by_report =
                [("told", counts.told), ("repeats", counts.repeats), ("lost", counts.lost)].map(|(by, count)| (by.to_owned(), count));
            text.counter("pp_refused_total", "attempts refused, of this boot", counts.refused);
            text.counters("pp_refused_told_total", "refused attempts by how events told of them", "by", &by_report);
            text.gauge("pp_refused_untold", "refused attempts that no event has told of yet", counts.untold);
            text.counter("pp_refused_not_stored_total", "refused attempts of which only followers were told", counts.not_stored);
        }
        self.counters.write(&mut text);
        text.gauge("pp_sessions", "sessions that are governed", self.session_count()? as u64);
        text.gauge("pp_marked_processes", "processes that are governed", self.gate.marks()?.len() as u64);
        let now = Now::read();
        let behind = self.highest.clock_is_behind();
        let force = self.rules.now();
        let open = force.receipts.iter().filter(|receipt| receipt.stored.is_open(now)).count();
        text.gauge("pp_receipts_open", "receipts that have not ended", open as u64);
        text.gauge("pp_policy_generation", "generation of the tables in force", u64::from(force.generation));
        let off = self.gate.is_off();
        text.gauge("pp_protection_off", "1 while protection is switched off", u64::from(off));
        let until_ns = self.gate.off_note()?.filter(|_| off).and_then(|note| note.until_ns);
        let left_s = until_ns.map_or(0, |until_ns| until_ns.saturating_sub(now.boot_ns).div_ceil(1_000_000_000));
        text.gauge("pp_protection_off_seconds_left", "seconds until it is on again by itself; 0: it is on, or nobody has said", left_s);
        text.gauge("pp_policy_off", "parts of the shipped protection that policy leaves off", force.config.off.len() as u64);
        text.gauge("pp_policy_not_read", "entries of the folder of drop-ins that are not read", force.config.not_read.len() as u64);
        text.gauge(
            "pp_state_usable",
            "0 while receipts and revocations cannot be kept",
            u64::from(force.state_problem(&self.state).is_none()),
        );
        text.gauge("pp_events_stored", "0 while events are told and not stored", u64::from(self.reports.hub.problem().is_none()));
        text.gauge("pp_clock_behind", "1 while the clock is behind the highest time seen", u64::from(behind));
        let measured = &self.watch.measured();
        text.info(
            "pp_gate_info",
            "backend, posture and policy of the gate",
            &[
                ("version", env!("CARGO_PKG_VERSION")),
                ("backend", self.gate.backend().name()),
                ("posture", &measured.posture.to_string()),
                ("policy", force.origin.name()),
            ],
        );
        let postures = [Posture::Enforcing, Posture::Partial, Posture::Observe, Posture::Open];
        let postures = postures.map(|posture| (posture.to_string(), u64::from(measured.posture == posture)));
        text.gauges("pp_posture", "1 for what the canary found last", "posture", &postures);
        let gaps: Vec<(String, u64)> = measured.gaps.iter().map(|gap| (gap.to_string(), 1)).collect();
        text.gauges("pp_gap", "1 for what is open on this host", "gap", &gaps);
        let namespaces: Vec<(String, u64)> = self.site.namespaces.iter().map(|kind| (kind.name().to_owned(), 1)).collect();
        text.gauges("pp_namespace", "1 for a namespace that is not the host's, as --namespace accepts", "kind", &namespaces);
        self.watch.metrics(&mut text);
        Ok(text.finish())
    }

    /// One line for the service manager.
    pub(super) fn status_line(&self) -> String {
        let force = self.rules.now();
        let line = format!("{} by {}, policy {}", self.watch.measured().posture, self.gate.backend().name(), force.origin.name());
        self.off_view().map_or_else(|| line.clone(), |off| format!("OFF {}; else {line}", off.words()))
    }

    /// Has the canary try the gate, and reports what it found if that has changed.
    pub(super) fn measure_posture(&self) -> Measured {
        let found = self.found_posture();
        self.reports.builder().backend = self.gate.backend().name().to_owned();
        let before = self.watch.note(found.clone());
        if before != found {
            // The canary finds no other posture.
            let change = match found.posture {
                Posture::Enforcing => PostureChange::Enforcing,
                Posture::Partial => PostureChange::Partial,
                Posture::Observe => PostureChange::Observe,
                Posture::Open | Posture::Off | Posture::Degraded | Posture::Unmeasured => PostureChange::Open,
            };
            let who = Who { backend: Some(self.gate.backend().name().to_owned()), ..Who::default() };
            self.reports.publish(self.reports.event(Body::Posture { change, hook: None }).about(who).detail(found.gaps()));
        }
        found
    }

    /// What the canary found: `enforcing`, `partial` with the known gaps of this kernel, or `open` if something got through. The canary's
    /// place always enforces, since observing is a matter of policy and not of the hooks.
    fn found_posture(&self) -> Measured {
        let open = |found: Vec<String>| Measured { posture: Posture::Open, gaps: found.into_iter().map(Opening::Found).collect() };
        let aim = self.guard.decoy.aim(&self.site.args.bpffs, self.site.args.state.join(crate::state::STATE_FILE));
        let findings = match self.gate.send_canary(&aim) {
            Ok(findings) => findings,
            Err(error) => return open(vec![format!("the canary could not be sent: {error}")]),
        };
        self.watch.canary(&findings);
        let gaps = known_gaps(self.gate.backend(), self.gate.sees_passed(), self.gate.sock_diag_problem().is_none(), |program| {
            self.gate.covers(program)
        });
        let through = went_through(&findings, &gaps);
        if !through.is_empty() {
            return open(through);
        }
        let posture = if gaps.is_empty() { Posture::Enforcing } else { Posture::Partial };
        Measured { posture, gaps: gaps.into_iter().map(Opening::Known).collect() }
    }

    fn session_count(&self) -> Result<usize, ApiError> {
        let sessions: HashSet<u64> = self.gate.marks()?.iter().map(|(_, mark)| mark.session).collect();
        Ok(sessions.len())
    }
}

/// Why the task table does not have the size that policy asks for. Programs keep their maps: a table of another size would be empty, and
/// every mark would be lost.
pub(super) fn task_table_differs(gate: &Gate, config: &Config) -> Option<String> {
    let (wanted, found) = (config.max_tasks, gate.max_tasks());
    (wanted != found).then(|| {
        format!(
            "max_tasks = {wanted} is not in force, the task table was made for {found}: it changes when the tables are made anew, \
             at a reboot or, ending enforcement and every session meanwhile, by pp-agent uninstall-hooks and a restart"
        )
    })
}

/// The techniques that went through although no known gap of this kernel and backend explains it.
fn went_through(findings: &[canary::Finding], gaps: &[Gap]) -> Vec<String> {
    let excused = |technique: &str| {
        let beyond = canary::BEYOND.iter().find(|(_, beyond)| *beyond == technique);
        technique == "packet" || beyond.is_some_and(|(gap, _)| gaps.contains(gap))
    };
    findings.iter().filter(|found| !found.refused() && !excused(&found.technique)).map(|found| found.technique.clone()).collect()
}

/// What this backend does not refuse on this kernel. A gap is closed only if all of its programs are attached.
fn known_gaps(backend: Backend, sees_passed: bool, ends_orphans: bool, has: impl Fn(&str) -> bool) -> Vec<Gap> {
    let unix = ["pp_lsm_unix_connect", "pp_lsm_unix_send"];
    // What makes other processes of the same user act.
    let ptrace = ["pp_lsm_ptrace", "pp_lsm_ioctl", "pp_lsm_ioctl_compat", "pp_lsm_follow", "pp_lsm_reopen"];
    // Commands on guarded files are seen by the hooks of commands on terminals.
    let both = ["pp_lsm_ioctl", "pp_lsm_ioctl_compat"];
    let others = |name: &&str| unix.contains(name) || ptrace.contains(name) && !both.contains(name);
    let tamper: Vec<&str> = GUARD_PROGRAMS.into_iter().filter(|name| !others(name)).collect();
    let all = |programs: &[&str]| programs.iter().all(|name| has(name));
    let closed = [
        (Gap::Packet, true),
        (Gap::Vsock, true),
        (Gap::Unix, all(&unix)),
        (Gap::Ptrace, all(&ptrace)),
        (Gap::Passed, sees_passed),
        (Gap::Tamper, all(&tamper)),
    ];
    let open = closed.into_iter().filter(|(_, closed)| backend == Backend::Cgroup || !closed);
    // This gap does not depend on the backend.
    let orphans = (!ends_orphans).then_some(Gap::Orphans);
    open.map(|(gap, _)| gap).chain(orphans).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(technique: &str, errno: i32) -> canary::Finding {
        canary::Finding { technique: technique.into(), errno }
    }

    #[test]
    fn a_gap_is_closed_by_all_of_its_programs_and_nothing_less() {
        assert_eq!(known_gaps(Backend::Lsm, true, true, |_| true), []);
        assert_eq!(known_gaps(Backend::FmodRet, false, true, |_| true), [Gap::Passed]);
        assert_eq!(known_gaps(Backend::Lsm, true, false, |_| true), [Gap::Orphans]);
        for program in GUARD_PROGRAMS {
            assert!(!known_gaps(Backend::Lsm, true, true, |name| name != program).is_empty(), "{program}");
        }
        assert_eq!(
            known_gaps(Backend::Cgroup, false, true, |_| true),
            [Gap::Packet, Gap::Vsock, Gap::Unix, Gap::Ptrace, Gap::Passed, Gap::Tamper]
        );
    }

    #[test]
    fn what_goes_through_is_open_unless_it_is_a_stated_gap() {
        let findings = [finding("tcp-connect", 1), finding("packet", 0), finding("signal", 0), finding("delegate", 1)];
        assert_eq!(went_through(&findings, &[Gap::Tamper]), Vec::<String>::new());
        assert_eq!(went_through(&findings, &[Gap::Unix]), ["signal"]);
        assert_eq!(went_through(&[finding("tcp-connect", 0)], &[Gap::Tamper]), ["tcp-connect"]);
        // Any other error than the gate's is no refusal by the gate.
        assert_eq!(went_through(&[finding("remove-pins", 39)], &[]), ["remove-pins"]);
    }
}
