//! The directories of the workspace: root, cache and build output.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::shared;

/// The directories that all subcommands use.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// The workspace root.
    pub(crate) root: PathBuf,
    /// What set-up fetched or built and only root uses: kernels, the packages of agents, the eBPF object.
    pub(crate) cache: PathBuf,
    /// The folder of programs that other users run; see `shared.rs`.
    pub(crate) shared: PathBuf,
    /// Cargo's target directory. `CARGO_TARGET_DIR` or cargo's configuration can set it.
    pub(crate) target: PathBuf,
}

/// The path of this program, even if a build has replaced its file.
///
/// # Errors
///
/// There is no file at the path.
pub(crate) fn own_program() -> Result<PathBuf> {
    let link = env::current_exe().context("own executable: not known")?;
    let path = link.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map_or(link.clone(), PathBuf::from);
    anyhow::ensure!(path.is_file(), "{}: this program's file is gone; build it again", path.display());
    Ok(path)
}

impl Paths {
    /// Finds the workspace from the current directory upwards.
    ///
    /// # Errors
    ///
    /// No directory above contains `tests/kernels.toml`.
    pub(crate) fn find() -> Result<Self> {
        let here = env::current_dir().context("current directory is not readable")?;
        let root = here
            .ancestors()
            .find(|dir| dir.join("tests/kernels.toml").is_file())
            .with_context(|| format!("{}: not inside the pp-agent workspace", here.display()))?
            .to_path_buf();
        let built = env::current_exe().ok().and_then(|program| target_of(&program));
        let target = built.unwrap_or_else(|| env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| here.join(dir)));
        let cache = root.join("target/pp-cache");
        Ok(Self { shared: shared::folder(&root, &cache), cache, target, root })
    }

    /// A cargo command in the workspace, with the target directory of this program. A relative one would depend on the current directory.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new("cargo");
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// The eBPF object that the agent's build script embeds.
    pub(crate) fn ebpf_object(&self) -> PathBuf {
        self.cache.join("ebpf/pp-ebpf")
    }

    /// The Python environment of the lab.
    pub(crate) fn venv(&self) -> PathBuf {
        self.shared.join("venv")
    }

    /// The packages of real agents, and the Node that runs them.
    pub(crate) fn agents(&self) -> PathBuf {
        self.cache.join("agents")
    }

    /// Where the unpacked kernel `name` lives.
    pub(crate) fn kernel(&self, name: &str) -> PathBuf {
        self.cache.join("kernels").join(name)
    }
}

/// The target directory that contains this program. `None` if the path is not as cargo builds it.
fn target_of(program: &Path) -> Option<PathBuf> {
    let profile = program.parent()?;
    (program.file_name()? == "xtask" && matches!(profile.file_name()?.to_str()?, "debug" | "release"))
        .then(|| profile.parent())?
        .map(Path::to_path_buf)
}

/// The text of a file. An error contains its path.
pub(crate) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{}: not readable", path.display()))
}

/// Writes `text` if the file differs. Returns whether it wrote.
pub(crate) fn write_if_changed(path: &Path, text: &str) -> Result<bool> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("{}: not creatable", dir.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("{}: not writable", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_directory_is_where_this_program_was_built() {
        assert_eq!(target_of(Path::new("/mnt/out put/debug/xtask")), Some(PathBuf::from("/mnt/out put")));
        assert_eq!(target_of(Path::new("/mnt/out/debug/deps/xtask-0123")), None);
        assert_eq!(target_of(Path::new("/usr/bin/xtask")), None);
    }
}
