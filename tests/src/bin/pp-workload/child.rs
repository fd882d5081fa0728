//! What a real agent is made to start: a program whose answer is read from a file, since its output belongs to the agent, and that stays
//! until it has been looked at.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::args::TechniqueArg;
use crate::techniques;

/// How long it stays at most, should nobody come to end it.
const LONGEST: Duration = Duration::from_secs(300);

/// Connects, writes the answer with its own process id, and waits for the file `until`. An agent may start it again: the first answer stays.
pub(crate) fn run(target: SocketAddr, answer: &Path, until: &Path) -> Result<()> {
    let mut value = techniques::attempt(TechniqueArg::TcpConnect, target).json();
    value["pid"] = json!(std::process::id());
    let whole = answer.with_extension(std::process::id().to_string());
    fs::write(&whole, value.to_string()).with_context(|| whole.display().to_string())?;
    // A link, not a rename: it fails where an answer is already.
    let _first = fs::hard_link(&whole, answer);
    fs::remove_file(&whole)?;
    let end = Instant::now() + LONGEST;
    while !until.exists() {
        if Instant::now() > end {
            bail!("nobody ended this child");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
