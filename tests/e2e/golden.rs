//! Transcripts: what was asked of a daemon and what it answered, for the golden files of the groups `golden`.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use pp_tests::agent::Daemon;
use pp_tests::golden::{golden, spread};
use pp_tests::harness::By;
use pp_tests::lab::Place;
use pp_tests::normal::Normal;
use pp_tests::run::{self, Output};
use serde_json::Value;

/// An uid that no test's session belongs to.
pub(crate) const OTHER_UID: &str = "9";
/// What stands between two answers that one shell has fetched.
const BETWEEN: &str = "=====";

/// A conversation with one daemon, as text.
pub(crate) struct Transcript<'a> {
    pub(crate) daemon: &'a Daemon,
    literals: Vec<(String, &'static str)>,
    text: String,
    wrong: Vec<String>,
}

impl<'a> Transcript<'a> {
    pub(crate) fn new(daemon: &'a Daemon) -> Self {
        let path = |path: std::path::PathBuf| path.display().to_string();
        let directory = daemon.path("");
        let literals = vec![
            (path(directory).trim_end_matches('/').to_owned(), "daemon"),
            (path(daemon.bpffs().to_path_buf()), "bpffs"),
            (path(daemon.lab().directory().to_path_buf()), "lab"),
            (nix::sys::utsname::uname().map(|it| it.release().display().to_string()).unwrap_or_default(), "kernel"),
        ];
        Self { daemon, literals, text: String::new(), wrong: Vec::new() }
    }

    /// Replaces this text too, wherever it stands.
    pub(crate) fn varies(&mut self, text: &str, name: &'static str) {
        self.literals.push((text.to_owned(), name));
    }

    /// A line that says what comes.
    pub(crate) fn note(&mut self, text: &str) {
        self.text.push_str(&format!("# {text}\n"));
    }

    /// Text as it is.
    pub(crate) fn raw(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Asks as root, and keeps question and answer.
    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<Value> {
        self.ask_for(&format!("{method} {path} {body}"), method, path, body)
    }

    /// The same, the question shown in these words: a signed artifact is other bytes each time.
    pub(crate) fn ask_for(&mut self, shown: &str, method: &str, path: &str, body: &str) -> Result<Value> {
        let (status, content, body) = self.daemon.client()?.exchange(Method::from_bytes(method.as_bytes())?, path, body)?;
        self.answer(shown, status, &content, &body);
        Ok(serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// Asks as root, with a head that announces a body of so many bytes, of which none is sent.
    pub(crate) fn ask_with_length(&mut self, method: &str, path: &str, length: usize) -> Result<()> {
        let mut stream = UnixStream::connect(self.daemon.path("control.sock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let head = format!("{method} {path} HTTP/1.1\r\nhost: pp-agent\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut answer = String::new();
        let _length = stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a head")?;
        let status = head.split(' ').nth(1).context("an answer without a status")?.parse()?;
        let content = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default();
        self.answer(&format!("{method} {path} (content-length: {length})"), status, content, body);
        Ok(())
    }

    fn answer(&mut self, shown: &str, status: u16, content: &str, body: &str) {
        let body = if content == "application/json" { spread(body) } else { body.trim_end().to_owned() };
        self.text.push_str(&format!("> {}\n{status} {content}\n{body}\n\n", shown.trim_end()));
    }

    /// Asks all of it as somebody else, in one shell.
    pub(crate) fn ask_as(&mut self, by: &By, requests: &[(&str, &str, &str)]) -> Result<()> {
        let socket = self.daemon.path("control.sock").display().to_string();
        let mut script = String::new();
        for (method, path, body) in requests {
            let data = if body.is_empty() { String::new() } else { format!("-H 'content-type: application/json' -d '{body}'") };
            let form = format!("-w '\\n%{{http_code}} %{{content_type}}\\n{BETWEEN}\\n'");
            script.push_str(&format!("curl -sS --max-time 20 --unix-socket {socket} -X {method} {data} {form} 'http://pp-agent{path}'\n"));
        }
        let output = by.run_words(self.daemon, &["/bin/bash".into(), "-c".into(), script])?.success()?;
        let answers: Vec<&str> = output.stdout.split_terminator(&format!("{BETWEEN}\n")).collect();
        ensure!(answers.len() == requests.len(), "{} answers to {} questions: {output}", answers.len(), requests.len());
        for ((method, path, body), answer) in requests.iter().zip(answers) {
            let (text, end) = answer.trim_end().rsplit_once('\n').context("an answer without its status")?;
            let (status, content) = end.split_once(' ').context("an answer without its content type")?;
            self.answer(&format!("{method} {path} {body}"), status.parse()?, content, text);
        }
        Ok(())
    }

    /// Runs the command line as root, and keeps what it was given, its exit code and both outputs.
    pub(crate) fn cli(&mut self, words: &[&str]) -> Result<Output> {
        let command = self.daemon.cli_words(words);
        let output = run::run(&mut self.daemon.lab().command(Place::Engineering, &command))?;
        self.said(words, &output);
        Ok(output)
    }

    /// The same as somebody else.
    pub(crate) fn cli_as(&mut self, by: &By, words: &[&str]) -> Result<Output> {
        let output = by.run_words(self.daemon, &self.daemon.cli_words(words))?;
        self.said(words, &output);
        Ok(output)
    }

    fn said(&mut self, words: &[&str], output: &Output) {
        self.text.push_str(&format!("$ pp-agent {}\nexit {}\n", words.join(" "), output.code()));
        for (name, text) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            if !text.is_empty() {
                let end = if text.ends_with('\n') { "" } else { "<no newline>\n" };
                self.text.push_str(&format!("--- {name}\n{text}{end}"));
            }
        }
        self.text.push('\n');
    }

    /// Compares what was said since the last file with the golden file of this name. What differs is told by [`Self::end`].
    pub(crate) fn file(&mut self, name: &str) {
        let text = std::mem::take(&mut self.text);
        self.wrong.extend(golden(name, &Normal::new(&self.literals).apply(&text)).err());
    }

    /// Says which files differ.
    ///
    /// # Errors
    /// One does.
    pub(crate) fn end(self) -> Result<()> {
        ensure!(self.text.is_empty(), "said and not compared: {}", self.text);
        ensure!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
        Ok(())
    }
}

/// The words that run what follows as another user.
pub(crate) fn another_user(daemon: &Daemon) -> By {
    By::Words(vec![daemon.lab().program("pp-workload").display().to_string(), "in".into(), "--uid".into(), OTHER_UID.into(), "--".into()])
}
