//! A client of the control socket: one request, one answer, blocking.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

/// How long an answer may take, emulated machines included.
const ANSWER: Duration = Duration::from_secs(30);

/// One answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body; a string where it is not JSON.
    pub body: Value,
}

impl Answer {
    /// The body of an answer in the 200s.
    ///
    /// # Errors
    /// It is another answer.
    pub fn ok(self) -> Result<Value> {
        ensure!((200..300).contains(&self.status), "the control socket answered {}: {}", self.status, self.body);
        Ok(self.body)
    }
}

/// A client of one control socket.
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// A client of this socket; it connects anew for every request.
    ///
    /// # Errors
    /// The runtime cannot be built.
    pub fn new(socket: &Path) -> Result<Self> {
        Ok(Self { socket: socket.to_path_buf(), runtime: Builder::new_current_thread().enable_all().build()? })
    }

    /// `GET`.
    ///
    /// # Errors
    /// No answer came.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.request(Method::GET, path, Bytes::new())
    }

    /// `POST` of JSON.
    ///
    /// # Errors
    /// No answer came.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.request(Method::POST, path, Bytes::from(body.to_string()))
    }

    /// `POST` of these bytes, declared to be JSON.
    ///
    /// # Errors
    /// No answer came.
    pub fn post_bytes(&self, path: &str, body: Vec<u8>) -> Result<Answer> {
        self.request(Method::POST, path, Bytes::from(body))
    }

    /// `DELETE`.
    ///
    /// # Errors
    /// No answer came.
    pub fn delete(&self, path: &str) -> Result<Answer> {
        self.request(Method::DELETE, path, Bytes::new())
    }

    /// A request and its answer byte for byte: the status, the content type and the body.
    ///
    /// # Errors
    /// No answer came, or it is not text.
    pub fn exchange(&self, method: Method, path: &str, body: &str) -> Result<(u16, String, String)> {
        let what = format!("{method} {path}");
        let whole = async {
            let response = self.send(method, path, Bytes::from(body.to_owned())).await?;
            let status = response.status().as_u16();
            let content = response.headers().get("content-type").map(|value| value.to_str().map(str::to_owned)).transpose()?;
            let bytes = response.into_body().collect().await?.to_bytes();
            anyhow::Ok((status, content.unwrap_or_default(), String::from_utf8(bytes.to_vec())?))
        };
        self.runtime.block_on(async { tokio::time::timeout(ANSWER, whole).await? }).context(what)
    }

    /// The daemon's own account of itself.
    ///
    /// # Errors
    /// No answer came, or not a good one.
    pub fn status(&self) -> Result<Value> {
        self.get("/v1/status")?.ok()
    }

    /// Reads an NDJSON stream line by line until it ends or `go_on` says no, which is asked at every line and every `tick` without one.
    ///
    /// # Errors
    /// The stream cannot be opened.
    pub fn follow(&self, path: &str, tick: Duration, go_on: impl Fn() -> bool, mut each: impl FnMut(Value)) -> Result<()> {
        self.runtime.block_on(async {
            let response = tokio::time::timeout(ANSWER, self.send(Method::GET, path, Bytes::new())).await??;
            ensure!(response.status().is_success(), "{path}: {}", response.status());
            let (mut body, mut pending) = (response.into_body(), Vec::new());
            while go_on() {
                let Ok(frame) = tokio::time::timeout(tick, body.frame()).await else { continue };
                let Some(bytes) = frame.and_then(Result::ok).and_then(|frame| frame.into_data().ok()) else { break };
                pending.extend_from_slice(&bytes);
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    if let Ok(value) = serde_json::from_slice(&line) {
                        each(value);
                    }
                }
            }
            Ok(())
        })
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Answer> {
        let what = format!("{method} {path}");
        self.runtime
            .block_on(async {
                tokio::time::timeout(ANSWER, async {
                    let response = self.send(method, path, body).await?;
                    let status = response.status().as_u16();
                    let bytes = response.into_body().collect().await?.to_bytes();
                    let body =
                        serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
                    Ok::<_, anyhow::Error>(Answer { status, body })
                })
                .await?
            })
            .context(what)
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await.with_context(|| self.socket.display().to_string())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let _driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "pp-agent")
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        Ok(sender.send_request(request).await?)
    }
}
