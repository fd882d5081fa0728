//! One attempt to reach a target: its command, and how its answer is read. The ways around the gate are in [`crate::coverage`].

use std::net::SocketAddr;

use anyhow::{Result, bail};
use nix::libc;

use crate::lab::Lab;
use crate::run::Output;

/// A static program whose first instructions are `socket` and `connect` to the PLC.
pub const FIRST_CONNECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pp-first-connect"));

/// What an attempt came to, as the program that made it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It went through.
    Delivered,
    /// The kernel said this error number.
    Refused(i32),
}

/// One attempt: a command and how to read what it came to.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What it is called in messages.
    pub name: String,
    /// The command.
    pub words: Vec<String>,
    /// Where it goes: what must not arrive, and what the event names. Port 0 where the protocol has none.
    pub target: SocketAddr,
    /// Reads the answer.
    pub read: fn(&Output) -> Result<Answer>,
}

/// An attempt by the workload program with these arguments.
#[must_use]
pub fn workload(lab: &Lab, arguments: &[&str], target: SocketAddr) -> Attempt {
    let program = lab.program("pp-workload").display().to_string();
    let words = std::iter::once(program).chain(arguments.iter().map(|word| (*word).to_owned())).collect();
    Attempt { name: arguments.join(" "), words, target, read: read_json }
}

/// A plain TCP connection to the target.
#[must_use]
pub fn tcp(lab: &Lab, target: SocketAddr) -> Attempt {
    workload(lab, &["try", "tcp-connect", &target.to_string()], target)
}

/// An attempt by a real tool, which says in words what the kernel told it.
#[must_use]
pub fn tool(words: &[&str], target: SocketAddr) -> Attempt {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let name = words.first().map_or("", |word| word.rsplit('/').next().unwrap_or(word)).to_owned();
    Attempt { name, words, target, read: read_words }
}

/// Reads the workload's and the Python clients' answer.
fn read_json(output: &Output) -> Result<Answer> {
    let answer = output.json()?;
    if answer["ok"] == true {
        return Ok(Answer::Delivered);
    }
    match answer["errno"].as_i64().and_then(|errno| i32::try_from(errno).ok()) {
        Some(errno) => Ok(Answer::Refused(errno)),
        None => bail!("no error number in the answer: {output}"),
    }
}

/// Reads a tool's answer: exit code 0, or the C library's words for EPERM.
fn read_words(output: &Output) -> Result<Answer> {
    if output.status.success() {
        return Ok(Answer::Delivered);
    }
    if output.both().contains("Operation not permitted") {
        return Ok(Answer::Refused(libc::EPERM));
    }
    bail!("neither done nor refused: {output}")
}

impl Attempt {
    /// The same attempt read as the Python clients answer, in JSON.
    #[must_use]
    pub fn answering_json(mut self) -> Self {
        self.read = read_json;
        self
    }

    /// The same attempt under another name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }
}
