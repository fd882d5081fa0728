//! Servers that a session started and that others use. Such a server carries the session's mark, so that what it does for any caller is
//! judged as the session's. Who asked it is not known to the kernel, but `why` can name the server.

use super::Daemon;
use crate::api::ServerView;
use crate::control::Caller;
use crate::control::access::Standing;
use crate::escape::escape;
use crate::events::Event;
use crate::events::build::session_text;
use crate::os::{listeners, process};
use pp_common::abi::TASK_ROOT;

/// Most ancestors of a caller that are looked at.
const MAX_ANCESTORS: usize = 16;

impl Daemon {
    /// The server that did what this event reports, if a session's server did: the process of the event or an ancestor of it, which
    /// accepts connections and has left the processes of its agent. An agent hears of it only where it runs inside that server, since there
    /// it may be a person.
    pub(super) fn find_server(&self, caller: &Caller, event: &Event) -> Option<ServerView> {
        let session = event.who.session?;
        let process = event.who.process.as_ref()?;
        let pids = std::iter::once(process.pid).chain(process.parents.iter().map(|parent| parent.pid));
        let pid = pids.take_while(|pid| *pid > 1).find(|pid| self.serves(*pid, session))?;
        if matches!(caller.standing, Standing::Agent(_)) && !ancestors(caller.pid).any(|ancestor| ancestor == pid) {
            return None;
        }
        let name = escape(&process::stat(pid).ok()?.comm);
        let agent = event.who.agent.as_deref().map_or_else(|| "an agent".to_owned(), escape);
        let id = session_text(session);
        let words = format!(
            "{name} (pid {pid}) did this: a server that session {id} of {agent} started, so that its work counts as that session's. \
             End it with `kill {pid}` and start it yourself, or have an operator run `pp-agent release {id}`."
        );
        Some(ServerView { pid, name, session: id, words })
    }

    /// Whether the process is a server of this session that runs on its own: it did not begin the session, and its parent is of no session
    /// or another one.
    fn serves(&self, pid: u32, session: u64) -> bool {
        let is_of_it = |pid: u32| self.gate.mark(pid).ok().flatten().filter(|mark| mark.session == session);
        if is_of_it(pid).is_none_or(|mark| mark.flags & TASK_ROOT != 0) {
            return false;
        }
        let Ok(stat) = process::stat(pid) else { return false };
        is_of_it(process::parent(&stat)).is_none() && listeners::accepts(pid)
    }
}

/// A process and those above it.
fn ancestors(pid: u32) -> impl Iterator<Item = u32> {
    let above = |pid: &u32| Some(process::parent(&process::stat(*pid).ok()?)).filter(|parent| *parent > 1);
    std::iter::successors(Some(pid), above).take(MAX_ANCESTORS)
}
