//! The client of the control socket that the CLI uses.

use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::{AnyDelimiterCodec, Decoder as _};

use super::trust::{Doubt, Named, server_of};
use crate::api::{ErrorAnswer, Problem};
use crate::causes::chain;
use crate::escape::one_line;

/// How long a server whose queue is full may take to accept a connection, in seconds.
const CONNECT_TIMEOUT_S: i64 = 10;
/// How long the answer to a question may take to start.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the answer to a change may take to start. A large policy takes most of a minute to compile.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(120);

/// Most bytes in a line of an answer. The longest event, with the longest arguments, has less than half.
const MAX_LINE: usize = 1 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No server answers.
    #[error("control socket {path}: {source}; is the daemon running (systemctl status pp-agent)")]
    Connect {
        /// The socket.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The connection is open but no answer comes. It is unknown whether the daemon does what was asked.
    #[error("control socket {path}: no answer for {seconds} s; the daemon is stopped or very busy: see systemctl status pp-agent")]
    Silent {
        /// The socket.
        path: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The server is not trusted. Nothing was sent to it.
    #[error("control socket {path}: {doubt}")]
    Doubted {
        /// The socket.
        path: String,
        /// Why not.
        doubt: Doubt,
    },
    /// The connection broke.
    #[error(
        "control socket {path}: {}; the connection broke, a change that was asked for may be made or not: see systemctl status pp-agent",
        chain(source)
    )]
    Http {
        /// The socket.
        path: String,
        /// What broke.
        source: hyper::Error,
    },
    /// The request cannot be written, or the answer cannot be read.
    #[error("control socket: {0}")]
    Form(String),
    /// The daemon refused the call.
    #[error(transparent)]
    Refused(#[from] Problem),
}

impl ClientError {
    /// Whether no server answered.
    #[must_use]
    pub(crate) const fn is_absent(&self) -> bool {
        matches!(self, Self::Connect { .. })
    }
}

/// An answer as a type, and, for `--json`, exactly as it was sent, which may have more members in a later version.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    says: T,
    sent: Value,
}

impl<T: DeserializeOwned> Answer<T> {
    fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let sent: Value = serde_json::from_slice(bytes)?;
        Ok(Self { says: T::deserialize(&sent)?, sent })
    }
}

impl<T> Deref for Answer<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.says
    }
}

impl<T> Serialize for Answer<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.sent.serialize(to)
    }
}

/// Called once with the socket and the uid that serves it, before the first call.
pub(crate) type Announce = fn(&Path, u32);

/// A client for one socket. Each call makes a new connection, and checks the server each time.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    named: Named,
    announce: Announce,
    announced: Arc<AtomicBool>,
    /// How long to wait for the answer to a question, and to a change.
    patience: [Duration; 2],
}

impl Client {
    /// A client for this socket. `named` says where its path came from.
    #[must_use]
    pub(crate) fn new(socket: &Path, named: Named) -> Self {
        Self {
            socket: socket.to_owned(),
            named,
            announce: |_, _| {},
            announced: Arc::default(),
            patience: [QUESTION_TIMEOUT, CHANGE_TIMEOUT],
        }
    }

    /// Calls `announce` once, before the first call.
    #[must_use]
    pub(crate) fn with_announce(self, announce: Announce) -> Self {
        Self { announce, ..self }
    }

    /// A call without a body.
    ///
    /// # Errors
    /// No server answers, or it refuses the call.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Answer<T>, ClientError> {
        self.call(Method::GET, path, Vec::new()).await
    }

    /// A call that deletes.
    ///
    /// # Errors
    /// No server answers, or it refuses the call.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<Answer<T>, ClientError> {
        self.call(Method::DELETE, path, Vec::new()).await
    }

    /// A call with a JSON body.
    ///
    /// # Errors
    /// No server answers, or it refuses the call.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<Answer<T>, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Form(error.to_string()))?;
        self.call(Method::POST, path, body).await
    }

    /// A call whose body is sent as it is.
    ///
    /// # Errors
    /// No server answers, or it refuses the call.
    pub(crate) async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Answer<T>, ClientError> {
        let response = self.send(method, path, body).await?;
        let is_success = response.status().is_success();
        let status = response.status().as_u16();
        let bytes = self.http(response.into_body().collect().await)?.to_bytes();
        if is_success {
            return Answer::read(&bytes).map_err(|error| ClientError::Form(format!("answer: {error}")));
        }
        Err(refusal(status, &bytes).into())
    }

    /// A call whose answer arrives line by line.
    ///
    /// # Errors
    /// No server answers, or it refuses the call.
    pub(crate) async fn lines(&self, path: &str) -> Result<Lines, ClientError> {
        let response = self.send(Method::GET, path, Vec::new()).await?;
        if response.status().is_success() {
            return Ok(Lines::new(self.clone(), response.into_body()));
        }
        let status = response.status().as_u16();
        let bytes = self.http(response.into_body().collect().await)?.to_bytes();
        Err(refusal(status, &bytes).into())
    }

    fn http<T>(&self, result: Result<T, hyper::Error>) -> Result<T, ClientError> {
        result.map_err(|source| ClientError::Http { path: one_line(&self.socket), source })
    }

    /// Connects, and waits in the kernel while the server's queue is full. The kernel lets waiting clients in one after the other. Clients
    /// that retry could starve.
    fn connect(&self) -> std::io::Result<UnixStream> {
        let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&stream, sockopt::SendTimeout, &TimeVal::seconds(CONNECT_TIMEOUT_S))?;
        connect(stream.as_raw_fd(), &UnixAddr::new(&self.socket)?)?;
        nonblocking(stream)
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, ClientError> {
        let stream = self.connect().map_err(|source| ClientError::Connect { path: one_line(&self.socket), source })?;
        let uid = server_of(&stream, self.named).map_err(|doubt| ClientError::Doubted { path: one_line(&self.socket), doubt })?;
        if !self.announced.swap(true, Ordering::Relaxed) {
            (self.announce)(&self.socket, uid);
        }
        let (mut sender, connection) = self.http(http1::handshake(TokioIo::new(stream)).await)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("control socket: {error}");
            }
        });
        let [question, change] = self.patience;
        let patience = if method == Method::GET { question } else { change };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "pp-agent")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ClientError::Form(error.to_string()))?;
        match tokio::time::timeout(patience, sender.send_request(request)).await {
            Ok(answer) => self.http(answer),
            Err(_) => Err(ClientError::Silent { path: one_line(&self.socket), seconds: patience.as_secs() }),
        }
    }
}

/// Lines of an answer.
#[derive(Debug)]
pub(crate) struct Lines {
    client: Client,
    body: Incoming,
    codec: AnyDelimiterCodec,
    rest: BytesMut,
}

impl Lines {
    fn new(client: Client, body: Incoming) -> Self {
        let codec = AnyDelimiterCodec::new_with_max_length(b"\n".to_vec(), Vec::new(), MAX_LINE);
        Self { client, body, codec, rest: BytesMut::new() }
    }

    /// The next line without its end; `None` when the answer is over.
    ///
    /// # Errors
    /// The connection broke, or a line is longer than any that the daemon sends.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let too_long = |_| ClientError::Form(format!("answer: a line is longer than {MAX_LINE} bytes"));
        loop {
            if let Some(line) = self.codec.decode(&mut self.rest).map_err(too_long)? {
                return Ok(Some(line));
            }
            let Some(frame) = self.body.frame().await else {
                return self.codec.decode_eof(&mut self.rest).map_err(too_long);
            };
            if let Some(data) = self.client.http(frame)?.data_ref() {
                self.rest.extend_from_slice(data);
            }
        }
    }
}

fn nonblocking(stream: OwnedFd) -> std::io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(stream);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

fn refusal(status: u16, bytes: &[u8]) -> Problem {
    let ErrorAnswer { error } = serde_json::from_slice(bytes).unwrap_or_default();
    let or = |text: String, otherwise: &dyn Fn() -> String| if text.is_empty() { otherwise() } else { text };
    Problem {
        status,
        code: or(error.code, &|| "unknown".to_owned()),
        message: or(error.message, &|| format!("the daemon: answered with status {status}")),
        ..error
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[tokio::test]
    async fn server_that_does_not_answer_is_not_waited_for_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let short = [Duration::from_millis(20), Duration::from_millis(30)];
        let client = Client { patience: short, ..Client::new(&path, Named::OnCommandLine) };
        assert!(matches!(client.get::<Value>("/v1/status").await, Err(ClientError::Silent { .. })));
        assert!(matches!(client.delete::<Value>("/v1/receipts/x").await, Err(ClientError::Silent { .. })));
    }

    #[tokio::test]
    async fn connection_that_breaks_names_its_cause() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let client = Client::new(&path, Named::OnCommandLine);
        // It closes the connection after one byte of the request.
        let leaving = std::thread::spawn(move || listener.accept().unwrap().0.read_exact(&mut [0]).unwrap());
        let error = client.get::<Value>("/v1/status").await.unwrap_err().to_string();
        leaving.join().unwrap();
        assert!(error.contains("Connection reset by peer (os error 104); the connection broke"), "{error}");
    }
}
