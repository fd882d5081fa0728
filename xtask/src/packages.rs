//! Finds and installs missing Debian packages.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// The packages of the virtual machines.
pub(crate) const VM: &[&str] = &["qemu-system-x86", "busybox-static", "cpio", "xz-utils", "zstd", "gzip", "kmod", "util-linux", "systemd"];

/// The packages of the lab.
pub(crate) const LAB: &[&str] = &[
    "iproute2",
    "nftables",
    "curl",
    "wget",
    "mbpoll",
    "nmap",
    "hydra",
    "medusa",
    "ncrack",
    "masscan",
    "patator",
    "openssh-server",
    "openssh-client",
    "git",
    "socat",
    "python3",
    "python3-venv",
    "procps",
    "tcpdump",
];

/// A browser that can run without a window. About 150 MB to fetch and 500 MB on disk with its dependencies.
pub(crate) const BROWSER: &[&str] = &["chromium"];

/// The packages of `wanted` that are not installed.
pub(crate) fn missing(wanted: &[&str]) -> Result<Vec<String>> {
    if sh::which("dpkg-query").is_none() {
        bail!("dpkg: not on this machine; set-up knows Debian and its relatives. Install by hand: {}", wanted.join(" "));
    }
    // dpkg-query fails for unknown names, but its output is still right.
    let out = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(wanted)
        .output()
        .context("dpkg-query: did not start")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let there = |name: &str| text.lines().any(|line| line == format!("{name} installed"));
    Ok(wanted.iter().filter(|name| !there(name)).map(|name| (*name).to_owned()).collect())
}

/// Installs the missing packages of `wanted`. It neither starts nor enables their services.
pub(crate) fn ensure(what: &str, wanted: &[&str]) -> Result<()> {
    let missing = missing(wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !sh::is_root() {
        bail!("{what}: {names} not installed and this is not root; run: sudo apt-get install --no-install-recommends {names}");
    }
    sh::step(&format!("{what}: install {names}"), || {
        let no_start = NoStart::hold()?;
        let done = install(&missing).or_else(|_| {
            // Old lists may name versions that the mirror no longer has.
            sh::run_with_progress(&mut sh::cmd("apt-get", ["update"]))?;
            install(&missing)
        });
        drop(no_start);
        done
    })?;
    if missing.iter().any(|name| name == "openssh-server") && sh::which("systemctl").is_some() {
        // The lab starts its own server in a network namespace. This machine needs none.
        sh::run_quiet(&mut sh::cmd("systemctl", ["disable", "ssh.service", "ssh.socket"]))?;
    }
    Ok(())
}

fn install(names: &[String]) -> Result<()> {
    sh::run_with_progress(
        Command::new("apt-get")
            .args(["install", "-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0"])
            .args(names)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// Whether apt knows a package.
pub(crate) fn available(name: &str) -> bool {
    sh::run_quiet(&mut sh::cmd("apt-cache", ["policy", name]))
        .is_ok_and(|text| text.lines().any(|line| line.trim().starts_with("Candidate:") && !line.contains("(none)")))
}

/// While it exists, package scripts start no services. An existing local policy is not changed.
struct NoStart {
    ours: bool,
}

impl NoStart {
    const FILE: &'static str = "/usr/sbin/policy-rc.d";

    fn hold() -> Result<Self> {
        let ours = !Path::new(Self::FILE).exists();
        if ours {
            fs::write(Self::FILE, "#!/bin/sh\nexit 101\n").with_context(|| format!("{}: not writable", Self::FILE))?;
            sh::run_quiet(&mut sh::cmd("chmod", ["755", Self::FILE]))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoStart {
    fn drop(&mut self) {
        if self.ours
            && let Err(err) = fs::remove_file(Self::FILE)
        {
            sh::say(format!("{}: not removed ({err}); remove it by hand", Self::FILE));
        }
    }
}
