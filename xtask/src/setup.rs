//! `setup`: prepares a fresh Debian-like machine to build, test and demonstrate everything. It is quick if nothing is missing.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{agents, fetch, initramfs, kernels::Matrix, packages, paths::Paths, sh, shared, toolchain};

/// The parts of the set-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// rustc for BPF, bpf-linker, rustfmt and clippy
    Toolchain,
    /// QEMU and the kernels of tests/kernels.toml
    Kernels,
    /// Servers and attackers of the lab, and its Python environment
    Lab,
    /// Packages of real agents, pinned
    Agents,
    /// Chromium, for `soak`; only when it is named
    Browser,
}

/// Runs one part, or all but the browser.
pub(crate) fn run(paths: &Paths, only: Option<Part>) -> Result<()> {
    let wants = |part| only.is_none_or(|one| one == part);
    if wants(Part::Toolchain) {
        components()?;
        toolchain::ensure(paths)?;
    }
    if wants(Part::Lab) {
        lab(paths)?;
    }
    if wants(Part::Agents) {
        agents::ensure(paths, python)?;
    }
    if only == Some(Part::Browser) {
        packages::ensure("browser", packages::BROWSER)?;
    }
    if wants(Part::Kernels) {
        kernels(paths)?;
    }
    Ok(())
}

/// Sets up what the e2e suite, the demo and the bench need on this machine.
pub(crate) fn native(paths: &Paths) -> Result<()> {
    run(paths, Some(Part::Toolchain))?;
    run(paths, Some(Part::Lab))
}

/// Installs rustfmt and clippy for the current toolchain.
fn components() -> Result<()> {
    for tool in ["fmt", "clippy"] {
        if sh::run_quiet(&mut sh::cmd("cargo", [tool, "--version"])).is_ok() {
            continue;
        }
        let name = if tool == "fmt" { "rustfmt" } else { tool };
        if sh::which("rustup").is_none() {
            bail!("{name}: not installed, and no rustup to install it");
        }
        sh::step(&format!("{name}: install"), || sh::run_with_progress(&mut sh::cmd("rustup", ["component", "add", name])))?;
    }
    Ok(())
}

/// Installs QEMU and the tools that build an initramfs.
pub(crate) fn vm_tools() -> Result<()> {
    packages::ensure("virtual machines", packages::VM)
}

/// Sets up QEMU and every kernel with its initramfs.
fn kernels(paths: &Paths) -> Result<()> {
    vm_tools()?;
    let matrix = Matrix::load(paths)?;
    for kernel in &matrix.kernels {
        let unpacked = fetch::ensure(paths, kernel)?;
        initramfs::ensure(&unpacked, &paths.kernel(&kernel.name))?;
    }
    Ok(())
}

/// Sets up the lab's tools and its Python environment.
fn lab(paths: &Paths) -> Result<()> {
    packages::ensure("lab", packages::LAB)?;
    shared::ensure(paths)?;
    let wanted = fs::read_to_string(paths.root.join("tests/lab/requirements.txt")).context("tests/lab/requirements.txt")?;
    let venv = paths.venv();
    let stamp = venv.join("requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return shared::link(paths, &venv);
    }
    let python = python()?;
    sh::step(&format!("lab: Python environment with {}", python.display()), || {
        if venv.exists() {
            fs::remove_dir_all(&venv)?;
        }
        sh::run_quiet(Command::new(&python).args(["-m", "venv"]).arg(&venv))?;
        sh::run_with_progress(
            Command::new(venv.join("bin/python"))
                .args(["-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "-r"])
                .arg(paths.root.join("tests/lab/requirements.txt")),
        )?;
        let check = "import pymodbus, asyncua, dnslib";
        sh::run_quiet(shared::as_another_user(&venv.join("bin/python")).args(["-c", check])).context("lab: as another user")?;
        fs::write(&stamp, &wanted).context("lab: stamp not writable")
    })?;
    shared::link(paths, &venv)
}

/// A Python that the lab's packages support: 3.11 or newer, the system's own first. Other users run it too, so it cannot be in root's home.
fn python() -> Result<PathBuf> {
    let named = ["python3", "python3.13", "python3.12", "python3.11"];
    let candidates = std::iter::once(PathBuf::from("/usr/bin/python3")).chain(named.iter().filter_map(|name| sh::which(name)));
    for python in candidates {
        let check = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))";
        if sh::run_quiet(shared::as_another_user(&python).args(["-c", check])).is_ok() {
            return Ok(python);
        }
    }
    bail!("Python: none of 3.11 or newer with its venv module here that every user can run; the lab needs one")
}
