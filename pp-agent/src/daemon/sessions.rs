//! Lists sessions, and starts and ends them by hand.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Daemon;
use crate::api::{ProcessView, Released as ReleasedAnswer, SessionView, Sessions, StartSession, Started};
use crate::clock::{Now, rfc3339};
use crate::control::access::Standing;
use crate::control::{ApiError, Caller};
use crate::events::Body;
use crate::events::build::session_text;
use crate::events::mask::mask;
use crate::name::name_id;
use crate::os::process;
use crate::session::{Released, adopt};
use crate::state::State;
use pp_common::abi::{NameId, TASK_CANARY, TaskMark};

/// Longest name of an agent.
const MAX_NAME: usize = 64;

impl Daemon {
    /// Sessions with their processes, of one owner or of all.
    pub(super) fn list_sessions(&self, owner: Option<u32>) -> Result<Sessions, ApiError> {
        let mut sessions: BTreeMap<u64, (TaskMark, Vec<u32>)> = BTreeMap::new();
        for (pid, mark) in self.gate.marks()? {
            if owner.is_none_or(|owner| mark.owner == owner) && mark.flags & TASK_CANARY == 0 {
                sessions.entry(mark.session).or_insert_with(|| (mark, Vec::new())).1.push(pid);
            }
        }
        let now = Now::read();
        let mut builder = self.reports.builder();
        let mut listed = Vec::new();
        for (session, (mark, mut pids)) in sessions {
            pids.sort_unstable();
            let processes = pids.into_iter().map(|pid| {
                let process = builder.processes.find(pid).unwrap_or_default();
                ProcessView { pid, executable: process.executable, argv: mask(&process.argv) }
            });
            listed.push(SessionView {
                processes: processes.collect(),
                session: session_text(session),
                agent: builder.name(mark.agent),
                owner: builder.owner(mark.owner),
                started: rfc3339(now.wall_of(mark.session_start_ns)),
            });
        }
        Ok(Sessions { sessions: listed })
    }

    /// `run` and `adopt`: marks the caller itself, or another process of its user.
    pub(super) fn begin_session(&self, caller: &Caller, start: &StartSession) -> Result<Started, ApiError> {
        if !is_agent_name(&start.agent) {
            return Err(ApiError::bad_request("agent: a name has 1 to 64 letters, digits, dots, dashes and underscores"));
        }
        let pid = start.pid.unwrap_or(caller.pid);
        let owner = owner_of(pid).ok_or_else(|| ApiError::not_found(format!("process {pid}: does not exist; look for it with pgrep")))?;
        if let Standing::User(uid) = caller.standing
            && owner != Some(uid)
        {
            return Err(ApiError::NoRights(format!("process {pid}: is not yours; root may adopt any")));
        }
        let owner = owner.unwrap_or(caller.uid);
        let agent = name_id(&start.agent);
        self.keep_name(agent, &start.agent);
        let session = adopt::adopt(&self.gate, pid, agent, owner)?;
        self.govern_again(pid);
        self.report_session_start(pid, session, if start.pid.is_some() { "adopt" } else { "run" });
        // It may have connections open that agents may not have.
        self.end_flows();
        // An unknown name is allowed. A name that is similar to a known one gets a warning, since receipts for the known agent do not match
        // it.
        let unknown = self.rules.now().config.unknown_agent(&start.agent).filter(|unknown| unknown.nearest.is_some());
        let warnings = unknown.iter().map(ToString::to_string).collect();
        Ok(Started { session: session_text(session), agent: start.agent.clone(), pid, warnings })
    }

    /// Ends a session by hand.
    pub(super) fn end_session(&self, session: u64) -> Result<ReleasedAnswer, ApiError> {
        let marks = self.gate.marks()?;
        let Some((_, mark)) = marks.iter().find(|(_, mark)| mark.session == session) else {
            return Err(ApiError::not_found("session: none of this id has a process; see pp-agent sessions"));
        };
        let members: Vec<u32> = marks.iter().filter(|(_, mark)| mark.session == session).map(|(pid, _)| *pid).collect();
        // RACE: one job of the owner, so that no walk marks the processes again in between. The list is stored before the marks are
        // removed, for a daemon that starts in between. It is stored again afterwards, for processes that were forked in between.
        let (gate, state) = (Arc::clone(&self.gate), Arc::clone(&self.state));
        let release = move |held: &mut Released| -> Result<usize, ApiError> {
            keep_released(&state, held, members)?;
            let released = adopt::release(&gate, session)?;
            let processes = released.len();
            keep_released(&state, held, released)?;
            Ok(processes)
        };
        let processes = self.released.ask(release)?;
        let who = self.reports.builder().session(session, mark.agent, mark.owner);
        self.reports.publish(self.reports.event(Body::SessionEnd { released: true }).about(who));
        Ok(ReleasedAnswer { session: Some(session_text(session)), processes })
    }

    /// Stores a new name, so that marks keep their name after policy has lost it. A known name needs no disk access.
    fn keep_name(&self, agent: NameId, name: &str) {
        let before = self.reports.builder().names.names.insert(agent, name.to_owned());
        if before.is_none()
            && let Err(error) = self.state.keep_names(&HashMap::from([(agent, name.to_owned())]))
        {
            tracing::warn!("{error}");
        }
    }

    /// Removes a process from those released, since a session was started with it by hand.
    fn govern_again(&self, pid: u32) {
        let state = Arc::clone(&self.state);
        self.released.ask(move |released| {
            if released.is_empty() {
                return;
            }
            released.remove(pid);
            if let Err(error) = state.keep_released(released) {
                tracing::error!("{error}");
            }
        });
    }

    /// Reports the start of a session that has no record from the kernel.
    pub(super) fn report_session_start(&self, pid: u32, session: u64, rule: &str) {
        let mark = match self.gate.mark(pid) {
            Ok(Some(mark)) => mark,
            Ok(None) => return,
            Err(error) => {
                tracing::error!("{error}");
                return;
            }
        };
        let mut builder = self.reports.builder();
        let is_new = builder.processes.members(session) == 0;
        builder.processes.adopt(pid, session);
        if !is_new {
            return;
        }
        let header = pp_common::record::RecordHeader {
            kind: pp_common::record::kind::SESSION_START,
            flags: mark.flags,
            time_ns: Now::read().boot_ns,
            session,
            agent: mark.agent,
            owner: mark.owner,
            tgid: pid,
        };
        let event = builder.subject(&header, Body::SessionStart(Some(rule.to_owned())), Now::read());
        drop(builder);
        self.reports.publish(event);
    }
}

/// Adds processes to those released, on the disk and then in memory.
fn keep_released(state: &State, held: &mut Released, pids: impl IntoIterator<Item = u32>) -> Result<(), ApiError> {
    let mut released = held.clone();
    released.add(pids);
    state.keep_released(&released)?;
    *held = released;
    Ok(())
}

fn is_agent_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The uid of a process. `Some(Some(uid))`: real, effective, saved and file system uid are the same. `Some(None)`: they differ, as in a
/// setuid program. `None`: there is no such process.
#[expect(clippy::option_option, reason = "three answers, each with a meaning of its own")]
fn owner_of(pid: u32) -> Option<Option<u32>> {
    let status = process::status(pid).ok()?;
    Some([status.euid, status.suid, status.fuid].iter().all(|uid| *uid == status.ruid).then_some(status.ruid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_names_are_plain_words() {
        assert!(is_agent_name("claude-code") && is_agent_name("a.b_c"));
        assert!(!is_agent_name("") && !is_agent_name("a b") && !is_agent_name("a\u{202e}b"));
        assert!(!is_agent_name(&"a".repeat(65)));
    }

    #[test]
    fn own_process_is_its_users() {
        assert_eq!(owner_of(std::process::id()), Some(Some(nix::unistd::getuid().as_raw())));
        assert_eq!(owner_of(4_194_304_000), None);
    }
}
