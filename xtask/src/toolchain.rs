//! The eBPF toolchain: a rustc that has `core` for the BPF target, and a bpf-linker built on the same LLVM.
//!
//! It is either Debian's rustc with its LLVM (`rustc-web`), or rustup's nightly with `rust-src`. A complete one is used. Otherwise one of
//! them is installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{packages, paths::Paths, sh};

const BPF_LINKER: &str = "0.13.0";
/// The crates for which stable rustc must allow unstable features: both use `asm_experimental_arch`.
const UNSTABLE_CRATES: &str = "aya_ebpf,pp_ebpf";

/// A complete toolchain.
#[derive(Debug, Clone)]
pub(crate) enum Toolchain {
    /// Debian's rustc with precompiled `core`.
    Debian {
        /// Directory of the bpf-linker to use.
        linker: PathBuf,
    },
    /// rustup's nightly, which compiles `core` itself.
    Nightly {
        /// Directory of the bpf-linker to use.
        linker: PathBuf,
    },
}

impl Toolchain {
    /// `cargo build --release` for the BPF target, ready for more arguments.
    pub(crate) fn cargo_build(&self) -> Command {
        let (mut command, linker) = match self {
            Self::Debian { linker } => {
                let mut command = Command::new("/usr/bin/cargo");
                command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", UNSTABLE_CRATES).arg("build");
                (command, linker)
            }
            Self::Nightly { linker } => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]).env_remove("RUSTC");
                (command, linker)
            }
        };
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", linker.display()));
        command.env("RUSTFLAGS", "-Cdebuginfo=2 -Clink-arg=--btf -Clink-arg=--disable-expand-memcpy-in-order");
        // `cargo xtask` runs with these variables set for another toolchain.
        for name in ["RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH", "CARGO", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_ENCODED_RUSTFLAGS"]
        {
            command.env_remove(name);
        }
        command.args(["--release", "--target", "bpfel-unknown-none"]);
        command
    }

    /// Its name in result lines.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Debian { .. } => "debian",
            Self::Nightly { .. } => "nightly",
        }
    }
}

/// The installed toolchain, if it is complete.
pub(crate) fn find(paths: &Paths) -> Option<Toolchain> {
    let own = paths.cache.join("tools/bin");
    let linker = own.join("bpf-linker").is_file().then_some(own);
    if debian_rustc().is_some()
        && let Some(linker) = &linker
    {
        return Some(Toolchain::Debian { linker: linker.clone() });
    }
    let linker = linker.or_else(|| sh::which("bpf-linker")?.parent().map(Path::to_path_buf))?;
    nightly_llvm().map(|_| Toolchain::Nightly { linker })
}

/// The toolchain. It is installed if it is missing.
pub(crate) fn ensure(paths: &Paths) -> Result<Toolchain> {
    if let Some(found) = find(paths) {
        return Ok(found);
    }
    let llvm = match debian_rustc().or_else(nightly_llvm) {
        Some(llvm) => llvm,
        None => install_rustc()?,
    };
    if sh::which("bpf-linker").is_none() || debian_rustc().is_some() {
        install_linker(paths, &llvm)?;
    }
    find(paths).context("eBPF toolchain: installed, but still not complete; see the messages above")
}

/// The major version of LLVM in Debian's rustc, if that has the BPF target.
fn debian_rustc() -> Option<String> {
    let std = Path::new("/usr/lib/rustlib/bpfel-unknown-none/lib");
    (std.is_dir() && Path::new("/usr/bin/cargo").is_file()).then_some(())?;
    llvm_major(&mut Command::new("/usr/bin/rustc"))
}

/// The major version of LLVM in rustup's nightly, if that has the sources of `core`.
fn nightly_llvm() -> Option<String> {
    let root = sh::run_quiet(&mut sh::cmd("rustup", ["run", "nightly", "rustc", "--print", "sysroot"])).ok()?;
    Path::new(root.trim()).join("lib/rustlib/src/rust/library/core").is_dir().then_some(())?;
    llvm_major(&mut sh::cmd("rustup", ["run", "nightly", "rustc"]))
}

fn llvm_major(rustc: &mut Command) -> Option<String> {
    let text = sh::run_quiet(rustc.arg("-vV")).ok()?;
    let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    Some(version.split('.').next()?.to_owned())
}

/// Installs a rustc that can build for BPF. Returns the major version of its LLVM.
fn install_rustc() -> Result<String> {
    const DEBIAN: &[&str] = &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
    if sh::which("apt-cache").is_some() {
        if !packages::available("libstd-rust-web-dev-bpf") && sh::is_root() {
            sh::step("package lists", || sh::run_with_progress(&mut sh::cmd("apt-get", ["update"])))?;
        }
        if packages::available("libstd-rust-web-dev-bpf") {
            packages::ensure("eBPF toolchain", DEBIAN)?;
            return debian_rustc().context("eBPF toolchain: packages installed, but /usr/bin/rustc has no BPF target");
        }
    }
    if sh::which("rustup").is_some() {
        sh::step("eBPF toolchain: rustup nightly with rust-src", || {
            let args = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
            sh::run_with_progress(&mut sh::cmd("rustup", args))
        })?;
        return nightly_llvm().context("eBPF toolchain: nightly installed, but without rust-src");
    }
    bail!(
        "eBPF toolchain: missing; needs Debian's libstd-rust-web-dev-bpf or rustup's nightly with rust-src, and neither apt nor \
         rustup here offers it"
    )
}

/// Builds bpf-linker with the LLVM of rustc. Other major versions cannot read its bitcode.
fn install_linker(paths: &Paths, llvm: &str) -> Result<()> {
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if !prefix.join("bin/llvm-config").exists() {
        packages::ensure("eBPF toolchain", &[&format!("llvm-{llvm}-dev")])?;
    }
    if sh::which("c++").is_none() {
        packages::ensure("eBPF toolchain", &["g++"])?;
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let root = paths.cache.join("tools");
    fs::create_dir_all(&root)?;
    sh::step(&format!("eBPF toolchain: build bpf-linker {BPF_LINKER} on LLVM {llvm} (about a minute)"), || {
        sh::run_with_progress(
            Command::new(cargo)
                .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--no-default-features"])
                .args(["--features", &format!("llvm-{llvm}")])
                .arg("--root")
                .arg(&root)
                .env("LLVM_PREFIX", &prefix)
                .env("CARGO_TARGET_DIR", root.join("build"))
                .env_remove("RUSTFLAGS"),
        )
    })?;
    fs::remove_dir_all(root.join("build")).context("bpf-linker: build directory not removable")
}
