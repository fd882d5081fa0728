//! `install` and `uninstall`: the files of a running system, on a machine with the sources.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{e2e, paths::Paths, setup, sh};

const BINARY: &str = "usr/bin/pp-agent";
const POLICY: &str = "etc/pp-agent/policy.toml";
const UNIT: &str = "pp-agent.service";

/// Source in `dist` and path under the root. The tmpfiles entry sets owners and modes of directories.
const FILES: [(&str, &str); 4] = [
    ("pp-agent.service", "etc/systemd/system/pp-agent.service"),
    ("pp-agents.slice", "etc/systemd/system/pp-agents.slice"),
    ("pp-agent.sysusers", "usr/lib/sysusers.d/pp-agent.conf"),
    ("pp-agent.tmpfiles", "usr/lib/tmpfiles.d/pp-agent.conf"),
];

/// Installs everything under `root`. It builds the release binary unless one is given. It neither starts nor restarts anything.
pub(crate) fn install(paths: &Paths, root: &Path, binary: Option<PathBuf>) -> Result<()> {
    need_root("install")?;
    let binary = match binary {
        Some(binary) => binary,
        None => {
            setup::run(paths, Some(setup::Part::Toolchain))?;
            e2e::build_agent(paths)?
        }
    };
    place(&binary, &root.join(BINARY), 0o755)?;
    for (from, to) in FILES {
        place(&paths.root.join("dist").join(from), &root.join(to), 0o644)?;
    }
    let policy = root.join(POLICY);
    if policy.exists() {
        sh::say(format!("{}: kept as it is", policy.display()));
    } else {
        place(&paths.root.join("dist/policy.toml"), &policy, 0o640)?;
    }
    // The group first, because the tmpfiles entry names it.
    for tool in ["systemd-sysusers", "systemd-tmpfiles"] {
        let mut command = Command::new(tool);
        command.arg(format!("--root={}", root.display()));
        if tool == "systemd-tmpfiles" {
            command.arg("--create");
        }
        sh::run_quiet(command.arg("pp-agent.conf"))?;
    }
    if live(root) {
        sh::run(&mut sh::cmd("systemctl", ["daemon-reload"]))?;
        let verb = if active() { "restart" } else { "enable --now" };
        sh::say(format!("installed; next: systemctl {verb} pp-agent"));
    } else {
        sh::say(format!("installed under {}", root.display()));
    }
    Ok(())
}

/// Stops the daemon, removes the hooks from the kernel and deletes the files of [`install`]. With `purge` it also deletes policy, keys,
/// receipts and the operators' group.
pub(crate) fn uninstall(root: &Path, purge: bool) -> Result<()> {
    need_root("uninstall")?;
    let binary = root.join(BINARY);
    // An inactive unit may be enabled, or between two attempts to start.
    if live(root) && root.join(FILES[0].1).is_file() {
        sh::run(&mut sh::cmd("systemctl", ["disable", "--now", UNIT]))?;
    }
    if root == Path::new("/") && binary.is_file() {
        // The hooks continue to enforce after the daemon stops, and only this binary can remove them.
        sh::run(Command::new(&binary).args(["uninstall-hooks", "--yes"]))?;
    }
    for file in FILES.iter().map(|(_, to)| *to).chain([BINARY]) {
        remove(&root.join(file))?;
    }
    if purge {
        for dir in ["etc/pp-agent", "var/lib/pp-agent", "run/pp-agent"] {
            let dir = root.join(dir);
            if dir.exists() {
                fs::remove_dir_all(&dir).with_context(|| format!("{}: not removable", dir.display()))?;
            }
        }
        if sh::run_quiet(&mut sh::cmd("getent", ["group", "pp-operators"])).is_ok() && root == Path::new("/") {
            sh::run(&mut sh::cmd("groupdel", ["pp-operators"]))?;
        }
    } else {
        sh::say("policy, keys and receipts kept in /etc/pp-agent and /var/lib/pp-agent; --purge removes them");
    }
    if live(root) {
        sh::run(&mut sh::cmd("systemctl", ["daemon-reload"]))?;
    }
    Ok(())
}

/// Installs a file atomically, so that a running binary can be replaced and no reader sees a part of it.
fn place(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let dir = to.parent().context("no directory")?;
    fs::create_dir_all(dir).with_context(|| format!("{}: not creatable", dir.display()))?;
    let part = PathBuf::from(format!("{}.new", to.display()));
    fs::copy(from, &part).with_context(|| format!("{}: not copied to {}", from.display(), part.display()))?;
    fs::set_permissions(&part, fs::Permissions::from_mode(mode))?;
    fs::rename(&part, to).with_context(|| format!("{}: not replaced", to.display()))
}

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(err).with_context(|| format!("{}: not removable", file.display())),
        _ => Ok(()),
    }
}

/// Whether `root` is the running system, and under systemd.
fn live(root: &Path) -> bool {
    root == Path::new("/") && Path::new("/run/systemd/system").is_dir()
}

fn active() -> bool {
    sh::run_quiet(&mut sh::cmd("systemctl", ["is-active", UNIT])).is_ok()
}

fn need_root(what: &str) -> Result<()> {
    if !sh::is_root() {
        bail!("{what}: needs root; run: sudo --preserve-env=PATH,HOME cargo xtask {what}");
    }
    Ok(())
}
