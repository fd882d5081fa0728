//! The listener: accepts connections within bounds, and serves the calls.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::watch;

use super::access::Peer;
use super::seats::{Class, Seat, Seats};
use super::{ApiError, Governor, routes};

/// How long the head of a request may take, and how long a connection may be idle. On a busy host the CLI may need seconds between
/// connecting and asking. A caller that is slow on purpose only harms itself, see [`Seats`].
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections that wait to be accepted. The kernel allows fewer if `net.core.somaxconn` is smaller.
const BACKLOG: u32 = 1_024;
/// Most bytes of a request's head.
const MAX_HEAD: usize = 64 * 1024;

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// Another daemon answers there.
    #[error("control socket {0}: another pp-agent answers on it; stop that one first")]
    InUse(PathBuf),
    /// The path is another kind of file.
    #[error("control socket {0}: the path is taken by a file that is not a socket; move it away")]
    NotASocket(PathBuf),
    /// The directory is missing or not accessible.
    #[error("control socket {path}: {source}; make its directory, or choose another with --socket")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The socket at its path. Until [`Self::listen`], callers hear that no daemon answers.
#[derive(Debug)]
pub(crate) struct Bound {
    socket: UnixSocket,
    path: PathBuf,
    /// A daemon that did not end by itself had left its socket there.
    pub(crate) left_behind: bool,
}

/// Makes the socket, and replaces one that no daemon answers on. Everyone may connect, since rights are checked for each request.
///
/// # Errors
/// It cannot be made.
pub(crate) fn bind(path: &Path) -> Result<Bound, ListenError> {
    let error = |source| ListenError::Io { path: path.to_owned(), source };
    check_free(path)?;
    let left_behind = match std::fs::remove_file(path) {
        Ok(()) => true,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
            path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(error)?;
            false
        }
        Err(source) => return Err(error(source)),
    };
    let socket = UnixSocket::new_stream().map_err(error)?;
    socket.bind(path).map_err(error)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(error)?;
    Ok(Bound { socket, path: path.to_owned(), left_behind })
}

/// Checks that no daemon answers on the socket, and that nothing else is at its path.
///
/// # Errors
/// It is taken.
pub(crate) fn check_free(path: &Path) -> Result<(), ListenError> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    let error = |errno: Errno| ListenError::Io { path: path.to_owned(), source: errno.into() };
    // One that is stopped accepts nothing, and a caller that waits would wait for ever once its queue is full.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(error)?;
    match connect(socket.as_raw_fd(), &UnixAddr::new(path).map_err(error)?) {
        Ok(()) | Err(Errno::EAGAIN) => Err(ListenError::InUse(path.to_owned())),
        Err(_) => Ok(()),
    }
}

impl Bound {
    /// Accepts connections from now on.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(crate) fn listen(self) -> Result<UnixListener, ListenError> {
        let Self { socket, path, .. } = self;
        socket.listen(BACKLOG).map_err(|source| ListenError::Io { path, source })
    }
}

/// The caller: what a handler gets of its connection.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) peer: Arc<Peer>,
    pub(super) seat: Arc<Seat>,
}

/// Serves until `stop` is true. Open connections end then too.
pub(crate) async fn serve(listener: UnixListener, governor: Arc<dyn Governor>, stop: watch::Receiver<bool>) {
    let router = routes::router(Arc::clone(&governor));
    let seats = Arc::new(Seats::default());
    let mut stopping = stop.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, _)) => take(stream, &router, &governor, &seats, stop.clone()),
            Err(error) => {
                // Probably out of descriptors. Connections that end free some.
                tracing::warn!("control: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn take(stream: UnixStream, router: &Router, governor: &Arc<dyn Governor>, seats: &Arc<Seats>, mut stop: watch::Receiver<bool>) {
    let Ok(peer) = Peer::of(&stream) else {
        governor.counters().turned_away(Class::Agents);
        return;
    };
    // This standing only decides about the seat. Rights are checked for each request.
    let standing = peer.standing(governor.as_ref());
    let Some(seat) = seats.take(standing, peer.uid, governor.counters()) else {
        turn_away(&stream, Class::of(standing));
        return;
    };
    let seat = Arc::new(seat);
    let guest = Guest { peer: Arc::new(peer), seat: Arc::clone(&seat) };
    let (calls, counting) = (TowerToHyperService::new(router.clone()), Arc::clone(governor));
    let service = service_fn(move |mut request: Request<Incoming>| {
        counting.counters().request();
        request.extensions_mut().insert(guest.clone());
        calls.call(request)
    });
    tokio::spawn(async move {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            result = connection => if let Err(error) = result {
                tracing::debug!("control: {error}");
            },
            () = seat.closed() => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    });
}

/// Sends the reason before the connection closes, if the peer's buffer has room for it.
fn turn_away(stream: &UnixStream, class: Class) {
    let body = serde_json::to_string(&ApiError::Busy(class).answer()).unwrap_or_default();
    let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close";
    let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    if let Err(error) = stream.try_write(answer.as_bytes()) {
        tracing::debug!("control: {error}");
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
