//! Where the programs under test and the lab's tools are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The top of the work tree.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// A program built with the workspace: beside the running one, else in the work tree's target directory.
///
/// # Errors
/// It is in neither place.
pub fn binary(name: &str) -> Result<PathBuf> {
    let beside = env::current_exe()?.parent().map(|directory| directory.join(name));
    let built = ["release", "debug"].map(|profile| repository().join("target").join(profile).join(name));
    beside
        .into_iter()
        .chain(built)
        .find(|path| path.is_file())
        .with_context(|| format!("{name}: not beside this program and not in target; build the workspace first"))
}

/// The agent under test: `PP_AGENT_BIN`, else as [`binary`] finds it.
///
/// # Errors
/// It is in none of the places.
pub fn agent_binary() -> Result<PathBuf> {
    match env::var_os("PP_AGENT_BIN") {
        Some(path) => Ok(PathBuf::from(path)),
        None => binary("pp-agent"),
    }
}

/// The Python of the lab's virtual environment: `PP_VENV`, else `target/pp-cache/venv`. Set-up makes that a link to a folder that every user of
/// the machine can enter, and the path returned is of that: tests start it as other users, and the checkout may be closed to these.
///
/// # Errors
/// There is none.
pub fn python() -> Result<PathBuf> {
    let venv = env::var_os("PP_VENV").map_or_else(|| repository().join("target/pp-cache/venv"), PathBuf::from);
    let python = venv.join("bin/python");
    if !python.is_file() {
        bail!("{}: no such file; `cargo xtask setup` makes the lab's Python environment, PP_VENV names another", python.display());
    }
    // Python's own link is left as it is: it knows its environment by its place.
    Ok(venv.canonicalize().with_context(|| venv.display().to_string())?.join("bin/python"))
}

/// The directory of the real agents' packages: `PP_AGENTS`, else `target/pp-cache/agents`.
///
/// # Errors
/// They are not installed.
pub fn agents() -> Result<PathBuf> {
    let directory = env::var_os("PP_AGENTS").map_or_else(|| repository().join("target/pp-cache/agents"), PathBuf::from);
    if !directory.join("installed").is_file() {
        bail!("{}: not installed whole; `cargo xtask setup --only agents` does it, PP_AGENTS names another place", directory.display());
    }
    Ok(std::path::absolute(directory)?)
}

/// The root of cgroup2, wherever this host has mounted it.
///
/// # Errors
/// It is mounted nowhere.
pub fn cgroup2() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).context("cgroup2 is mounted nowhere")?;
    Ok(PathBuf::from(line.split(' ').nth(4).context("a line of mountinfo without a mount point")?))
}
