//! Where things are: the workspace, the cache of what set-up fetched, and the build output.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The directories every subcommand works with.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// The workspace root.
    pub(crate) root: PathBuf,
    /// What set-up fetched or built once: kernels, the Python environment, the eBPF object.
    pub(crate) cache: PathBuf,
    /// Cargo's target directory, `CARGO_TARGET_DIR` respected.
    pub(crate) target: PathBuf,
}

impl Paths {
    /// Finds the workspace from the current directory upwards.
    ///
    /// # Errors
    ///
    /// When no directory above holds `tests/kernels.toml`.
    pub(crate) fn find() -> Result<Self> {
        let here = env::current_dir().context("current directory is not readable")?;
        let root = here
            .ancestors()
            .find(|dir| dir.join("tests/kernels.toml").is_file())
            .with_context(|| format!("{}: not inside the pp-agent workspace", here.display()))?
            .to_path_buf();
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| here.join(dir));
        Ok(Self { cache: root.join("target/pp-cache"), target, root })
    }

    /// The eBPF object that the agent's build script embeds.
    pub(crate) fn ebpf_object(&self) -> PathBuf {
        self.cache.join("ebpf/pp-ebpf")
    }

    /// The Python environment of the lab.
    pub(crate) fn venv(&self) -> PathBuf {
        self.cache.join("venv")
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

/// The file's text, or an error that names the file.
pub(crate) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{}: not readable", path.display()))
}

/// Writes `text` where it differs from what is there; true when it wrote.
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
