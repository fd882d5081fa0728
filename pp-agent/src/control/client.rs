//! The client of the control socket that the CLI uses.

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::ApiError;

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("control socket {path}: {source}; is the daemon running (systemctl status pp-agent)")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("control socket {path}: {source}")]
    Http {
        /// The socket.
        path: PathBuf,
        /// What broke.
        source: hyper::Error,
    },
    /// The request cannot be written, or the answer not be read.
    #[error("control socket: {0}")]
    Form(String),
    /// The daemon said no.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

impl ClientError {
    /// Whether nobody answered at all.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Connect { .. })
    }
}

/// A client for one socket. Each call is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// For this socket.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// A call without a body.
    ///
    /// # Errors
    /// When nobody answers, or the answer is no.
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.call(Method::GET, path, Vec::new()).await
    }

    /// A call that deletes.
    ///
    /// # Errors
    /// When nobody answers, or the answer is no.
    pub async fn delete(&self, path: &str) -> Result<Value, ClientError> {
        self.call(Method::DELETE, path, Vec::new()).await
    }

    /// A call with a JSON body.
    ///
    /// # Errors
    /// When nobody answers, or the answer is no.
    pub async fn post(&self, path: &str, body: &impl serde::Serialize) -> Result<Value, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Form(error.to_string()))?;
        self.call(Method::POST, path, body).await
    }

    /// A call whose body is sent as it is.
    ///
    /// # Errors
    /// When nobody answers, or the answer is no.
    pub async fn call(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Value, ClientError> {
        let response = self.send(method, path, body).await?;
        let is_success = response.status().is_success();
        let status = response.status().as_u16();
        let bytes = self.http(response.into_body().collect().await)?.to_bytes();
        if is_success {
            return serde_json::from_slice(&bytes).map_err(|error| ClientError::Form(format!("answer: {error}")));
        }
        Err(refusal(status, &bytes).into())
    }

    /// A call whose answer arrives line by line.
    ///
    /// # Errors
    /// When nobody answers, or the answer is no.
    pub async fn lines(&self, path: &str) -> Result<Lines, ClientError> {
        let response = self.send(Method::GET, path, Vec::new()).await?;
        if response.status().is_success() {
            return Ok(Lines { client: self.clone(), body: response.into_body(), rest: Vec::new() });
        }
        let status = response.status().as_u16();
        let bytes = self.http(response.into_body().collect().await)?.to_bytes();
        Err(refusal(status, &bytes).into())
    }

    fn http<T>(&self, result: Result<T, hyper::Error>) -> Result<T, ClientError> {
        result.map_err(|source| ClientError::Http { path: self.socket.clone(), source })
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, ClientError> {
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|source| ClientError::Connect { path: self.socket.clone(), source })?;
        let (mut sender, connection) = self.http(http1::handshake(TokioIo::new(stream)).await)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("control socket: {error}");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "pp-agent")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ClientError::Form(error.to_string()))?;
        self.http(sender.send_request(request).await)
    }
}

/// Lines of an answer.
#[derive(Debug)]
pub struct Lines {
    client: Client,
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    /// The next line without its end; `None` when the answer is over.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.rest.drain(..=end).collect();
                line.pop();
                return Ok(Some(line));
            }
            let Some(frame) = self.body.frame().await else {
                return Ok((!self.rest.is_empty()).then(|| std::mem::take(&mut self.rest)));
            };
            if let Some(data) = self.client.http(frame)?.data_ref() {
                self.rest.extend_from_slice(data);
            }
        }
    }
}

fn refusal(status: u16, bytes: &[u8]) -> ApiError {
    let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let text = |name: &str| value["error"][name].as_str().map(str::to_owned);
    ApiError {
        status,
        code: text("code").unwrap_or_else(|| "unknown".to_owned()),
        pp_code: text("pp_code"),
        message: text("message").unwrap_or_else(|| format!("the daemon: answered with status {status}")),
    }
}
