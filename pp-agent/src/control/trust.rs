//! Whether the server of a control socket can be trusted.
//!
//! An agent can serve its own socket and name it in the environment of the person it works for. An ordinary user cannot get uid 0 in the
//! initial user namespace, so only a server with that uid is trusted.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use nix::sys::socket::{getsockopt, sockopt};

use crate::os::isolation::INITIAL_USER;

const NAMESPACE: &str = "/proc/self/ns/user";

/// How the socket was named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// By default, or in the environment. Its server must run as root.
    Elsewhere,
    /// On this command line. Any server is trusted.
    OnCommandLine,
}

/// Why a server is not trusted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Doubt {
    /// Any user can be uid 0 in this user namespace.
    #[error("not believed, since this process is in a user namespace of its own, where anybody can be uid 0; run pp-agent outside of it")]
    Namespace,
    /// An ordinary user's server.
    #[error(
        "not believed, since uid {0} serves it and not root; unset PP_AGENT_SOCKET, or name the socket with --socket if it is the right one"
    )]
    NotRoot(u32),
    /// The kernel does not say.
    #[error("not believed, since {what} cannot be known: {source}")]
    Unknown {
        /// What was asked for.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The uid of the server of this connected socket, if it can be trusted.
///
/// # Errors
/// It cannot.
pub(crate) fn server_of(socket: &impl AsFd, named: Named) -> Result<u32, Doubt> {
    let namespace = std::fs::metadata(NAMESPACE).map(|file| file.ino());
    let credentials = getsockopt(socket, sockopt::PeerCredentials).map_err(io::Error::from);
    decide(namespace, credentials.map(|credentials| credentials.uid()), named)
}

fn decide(namespace: io::Result<u64>, uid: io::Result<u32>, named: Named) -> Result<u32, Doubt> {
    let namespace = namespace.map_err(|source| Doubt::Unknown { what: NAMESPACE, source })?;
    if namespace != INITIAL_USER {
        return Err(Doubt::Namespace);
    }
    let uid = uid.map_err(|source| Doubt::Unknown { what: "its server", source })?;
    match named {
        Named::Elsewhere if uid != 0 => Err(Doubt::NotRoot(uid)),
        Named::Elsewhere | Named::OnCommandLine => Ok(uid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_is_trusted_unless_the_command_line_names_the_socket() {
        assert_eq!(decide(Ok(INITIAL_USER), Ok(0), Named::Elsewhere).unwrap(), 0);
        assert!(matches!(decide(Ok(INITIAL_USER), Ok(1000), Named::Elsewhere), Err(Doubt::NotRoot(1000))));
        // The uid of a user that is not mapped into the namespace.
        assert!(matches!(decide(Ok(INITIAL_USER), Ok(65534), Named::Elsewhere), Err(Doubt::NotRoot(65534))));
        assert_eq!(decide(Ok(INITIAL_USER), Ok(1000), Named::OnCommandLine).unwrap(), 1000);
    }

    #[test]
    fn in_another_user_namespace_no_server_is_trusted() {
        for named in [Named::Elsewhere, Named::OnCommandLine] {
            assert!(matches!(decide(Ok(4_026_532_000), Ok(0), named), Err(Doubt::Namespace)));
            assert!(matches!(decide(Err(io::ErrorKind::NotFound.into()), Ok(0), named), Err(Doubt::Unknown { .. })));
        }
        assert!(matches!(decide(Ok(INITIAL_USER), Err(io::ErrorKind::Other.into()), Named::OnCommandLine), Err(Doubt::Unknown { .. })));
    }
}
