//! Who is at the other end of a connection, and what it may do *now*.
//!
//! A process that has ended may have passed its connection to any other. A process whose mark cannot be read may be an agent. Both get an
//! agent's rights.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{ApiError, Governor};
use crate::os::peer::peer_groups;

/// The process that connected.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its uid when it connected.
    pub(crate) uid: u32,
    /// Its pid, valid only while it lives.
    pub(crate) pid: u32,
    groups: Vec<u32>,
    pidfd: Option<OwnedFd>,
}

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// An agent, or a caller that may be one. The session, if known.
    Agent(Option<u64>),
    /// A user of this host.
    User(u32),
    /// Root or a member of the operators' group, not marked.
    Operator,
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    SelfInfo,
    RegisterReceipt,
    DraftRequest,
    Why,
    Status,
    ListSessions,
    ReadEvents,
    StartSession,
    ReleaseSession,
    ReadReceipts,
    RevokeReceipt,
    Check,
    ReadPolicy,
    ReloadPolicy,
    Metrics,
    ReadNeighbours,
    ForgetNeighbour,
    AcceptState,
    SwitchOff,
    SwitchOn,
}

impl Standing {
    /// The rights table of the control socket.
    #[must_use]
    pub(crate) const fn may(self, action: Action) -> bool {
        match action {
            Action::SelfInfo | Action::RegisterReceipt | Action::DraftRequest | Action::Why => true,
            Action::Status | Action::ListSessions | Action::ReadEvents | Action::StartSession => {
                matches!(self, Self::User(_) | Self::Operator)
            }
            Action::ReleaseSession
            | Action::ReadReceipts
            | Action::RevokeReceipt
            | Action::Check
            | Action::ReadPolicy
            | Action::ReloadPolicy
            | Action::Metrics
            | Action::ReadNeighbours
            | Action::ForgetNeighbour
            | Action::AcceptState
            | Action::SwitchOff
            | Action::SwitchOn => matches!(self, Self::Operator),
        }
    }

    /// Whose sessions and events it may see: `None` all, `Some(uid)` those of one owner.
    #[must_use]
    pub(crate) const fn sees_owner(self) -> Option<u32> {
        match self {
            Self::User(uid) => Some(uid),
            Self::Agent(_) | Self::Operator => None,
        }
    }
}

impl Peer {
    /// Asks the kernel who connected.
    ///
    /// # Errors
    /// The kernel does not say.
    pub(crate) fn of(socket: &impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(socket, sockopt::PeerCredentials)?;
        let pid = u32::try_from(credentials.pid()).unwrap_or(0);
        let pidfd = getsockopt(socket, sockopt::PeerPidfd).ok().or_else(|| {
            let pid = Pid::from_raw(credentials.pid())?;
            pidfd_open(pid, PidfdFlags::empty()).ok()
        });
        let mut groups = peer_groups(socket.as_fd()).unwrap_or_default();
        groups.push(credentials.gid());
        Ok(Self { uid: credentials.uid(), pid, groups, pidfd })
    }

    /// Its rights at this moment.
    #[must_use]
    pub(crate) fn standing(&self, governor: &dyn Governor) -> Standing {
        let session = governor.session_of(self.pid);
        // RACE: the mark is read first. If the peer is still alive afterwards, its pid was not reused, and the mark was its own.
        if !self.is_alive() {
            return Standing::Agent(None);
        }
        match session {
            Err(_) => Standing::Agent(None),
            Ok(Some(session)) => Standing::Agent(Some(session)),
            Ok(None) if self.uid == 0 => Standing::Operator,
            Ok(None) => self.unmarked(governor.operators()),
        }
    }

    fn unmarked(&self, operators: Option<u32>) -> Standing {
        let is_operator = operators.is_some_and(|gid| self.groups.contains(&gid));
        if is_operator { Standing::Operator } else { Standing::User(self.uid) }
    }

    fn is_alive(&self) -> bool {
        let Some(pidfd) = &self.pidfd else { return false };
        // A pidfd becomes readable when its process has ended.
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
    }
}

/// How often a refused call is logged. The others are only counted.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Logs a refused call, at most one line a second for all callers.
fn log_refusal(peer: &Peer, action: Action) {
    static LAST: Mutex<(Option<Instant>, u64)> = Mutex::new((None, 0));
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let (at, silent) = &mut *last;
    if at.is_some_and(|at| at.elapsed() < LOG_EVERY) {
        *silent += 1;
        return;
    }
    let others = if *silent > 0 { format!(", and {silent} calls before it") } else { String::new() };
    tracing::warn!("control: pid {} uid {} refused: {action:?} needs other rights{others}", peer.pid, peer.uid);
    (*at, *silent) = (Some(Instant::now()), 0);
}

/// The peer's standing, if it may do this.
///
/// # Errors
/// 403 `no_rights` if it may not.
pub(crate) fn authorize(governor: &dyn Governor, peer: &Peer, action: Action) -> Result<Standing, ApiError> {
    let standing = peer.standing(governor);
    if standing.may(action) {
        return Ok(standing);
    }
    governor.counters().refused();
    log_refusal(peer, action);
    let message = match standing {
        Standing::Agent(_) => "this call: an agent may register a signed receipt, draft a request and ask why; ask a person for the rest",
        Standing::User(_) | Standing::Operator => "this call: only root and group pp-operators may make it",
    };
    Err(ApiError::NoRights(message.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    const ALL: [Action; 18] = [
        Action::SelfInfo,
        Action::RegisterReceipt,
        Action::DraftRequest,
        Action::Why,
        Action::Status,
        Action::ListSessions,
        Action::ReadEvents,
        Action::StartSession,
        Action::ReleaseSession,
        Action::ReadReceipts,
        Action::RevokeReceipt,
        Action::Check,
        Action::ReadPolicy,
        Action::ReloadPolicy,
        Action::Metrics,
        Action::AcceptState,
        Action::SwitchOff,
        Action::SwitchOn,
    ];

    fn allowed(standing: Standing) -> Vec<Action> {
        ALL.into_iter().filter(|action| standing.may(*action)).collect()
    }

    #[test]
    fn agent_may_register_draft_ask_why_and_nothing_else() {
        let rights = [Action::SelfInfo, Action::RegisterReceipt, Action::DraftRequest, Action::Why];
        assert_eq!(allowed(Standing::Agent(Some(1))), rights);
        assert_eq!(allowed(Standing::Agent(None)), rights);
    }

    #[test]
    fn user_may_not_check_revoke_release_or_read_the_policy() {
        let user = Standing::User(1000);
        for action in [
            Action::Check,
            Action::RevokeReceipt,
            Action::ReleaseSession,
            Action::ReadPolicy,
            Action::ReadReceipts,
            Action::Metrics,
            Action::SwitchOff,
            Action::SwitchOn,
        ] {
            assert!(!user.may(action), "{action:?}");
        }
        assert!(user.may(Action::ListSessions) && user.sees_owner() == Some(1000));
    }

    #[test]
    fn operator_may_everything() {
        assert_eq!(allowed(Standing::Operator), ALL);
    }

    #[test]
    fn peer_of_a_pair_is_this_process_and_lives() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!((peer.pid, peer.uid), (std::process::id(), nix::unistd::getuid().as_raw()));
        assert!(peer.is_alive());
    }

    #[test]
    fn operators_are_known_by_their_group() {
        let peer = Peer { uid: 1000, pid: 1, groups: vec![5, 77], pidfd: None };
        assert_eq!(peer.unmarked(Some(77)), Standing::Operator);
        assert_eq!(peer.unmarked(Some(78)), Standing::User(1000));
        assert_eq!(peer.unmarked(None), Standing::User(1000));
    }
}
