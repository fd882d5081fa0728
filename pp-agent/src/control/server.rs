//! The listener: takes connections within bounds and serves the calls.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::access::Peer;
use super::{Governor, routes};

/// Most connections at once.
const MAX_CONNECTIONS: usize = 256;
/// Of these, kept for root.
const KEPT_FOR_ROOT: usize = 32;
/// Most connections of one user who is not root.
const MAX_PER_USER: usize = 16;
/// For how long a request's head may take, and how long a connection may idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of a request's head.
const MAX_HEAD: usize = 64 * 1024;

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another daemon answers there.
    #[error("control socket {0}: another pp-agent answers on it; stop that one first")]
    InUse(PathBuf),
    /// Something else is in the way.
    #[error("control socket {0}: the path is taken by a file that is not a socket; move it away")]
    NotASocket(PathBuf),
    /// The directory is missing or closed.
    #[error("control socket {path}: {source}; make its directory, or choose another with --socket")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Makes the socket, in place of one that nobody answers on. Everyone may
/// connect: rights are judged by request.
///
/// # Errors
/// When it cannot be made.
pub fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let error = |source| ListenError::Io { path: path.to_owned(), source };
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ListenError::InUse(path.to_owned()));
        }
        std::fs::remove_file(path).map_err(error)?;
    } else if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(error)?;
    }
    let listener = UnixListener::bind(path).map_err(error)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(error)?;
    Ok(listener)
}

/// Serves until `stop` turns true; open connections end with it.
pub async fn serve(listener: UnixListener, governor: Arc<dyn Governor>, stop: watch::Receiver<bool>) {
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
                // Out of descriptors: connections that end give some back.
                tracing::warn!("control: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn take(stream: UnixStream, router: &Router, governor: &Arc<dyn Governor>, seats: &Arc<Seats>, mut stop: watch::Receiver<bool>) {
    let Ok(peer) = Peer::of(&stream) else {
        governor.counters().turned_away();
        return;
    };
    let Some(seat) = Seats::take(seats, peer.uid) else {
        governor.counters().turned_away();
        return;
    };
    governor.counters().connection();
    let counting = Arc::clone(governor);
    let count = axum::middleware::map_request(move |request: axum::extract::Request| {
        counting.counters().request();
        std::future::ready(request)
    });
    let service = TowerToHyperService::new(router.clone().layer(count).layer(Extension(Arc::new(peer))));
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
            _ = stop.wait_for(|stop| *stop) => {}
        }
        drop(seat);
    });
}

/// How many connections are open, and whose.
#[derive(Debug, Default)]
struct Seats(Mutex<HashMap<u32, usize>>);

/// One connection's place; dropping it frees it.
#[derive(Debug)]
struct Seat {
    seats: Arc<Seats>,
    uid: u32,
}

impl Seats {
    fn take(seats: &Arc<Self>, uid: u32) -> Option<Seat> {
        let mut open = seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = open.values().sum();
        let own = open.get(&uid).copied().unwrap_or(0);
        let fits = match uid {
            0 => total < MAX_CONNECTIONS,
            _ => total < MAX_CONNECTIONS - KEPT_FOR_ROOT && own < MAX_PER_USER,
        };
        fits.then(|| {
            open.insert(uid, own + 1);
            Seat { seats: Arc::clone(seats), uid }
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.uid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
