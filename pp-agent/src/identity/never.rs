//! Programs that are never marked: those that let people log in or that start everything else. A mark there would make every login a
//! session of an agent.

use super::cgroups;
use super::machine::Machine;
use super::{IdentityError, PatternError};
use crate::matcher::{Step, Walk as _};

/// File names of programs that no rule marks, as globs.
pub(crate) const NEVER: &[&str] = &[
    "pp-agent",
    // PID 1 and the programs that start units.
    "systemd",
    "systemd-executor",
    "systemd-logind",
    "systemd-udevd",
    "init",
    "openrc-init",
    "runit",
    "runsvdir",
    "s6-svscan",
    "dinit",
    // Login servers, and the programs between them and a shell.
    "sshd",
    "sshd-session",
    "sshd-auth",
    "dropbear",
    "login",
    "agetty",
    "getty",
    "mingetty",
    "fgetty",
    "mgetty",
    "in.telnetd",
    "telnetd",
    "xrdp",
    "xrdp-sesman",
    "sulogin",
    "su",
    "sudo",
    "doas",
    "gdm",
    "gdm3",
    "gdm-*",
    "lightdm",
    "sddm",
    "sddm-helper",
    "lxdm",
    "xdm",
    "greetd",
    // Schedulers and the message bus.
    "cron",
    "crond",
    "atd",
    "anacron",
    "dbus-daemon",
    "dbus-broker",
    "dbus-broker-launch",
    "polkitd",
];

/// What a rule would mark.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Danger {
    /// A program of [`NEVER`].
    #[error("it would mark {0}, which is never an agent; write a narrower pattern")]
    Program(String),
    /// Any program at all.
    #[error("it would mark every program; name the agent's own file or folder")]
    Everything,
    /// Every script of an interpreter.
    #[error("it would mark every script of an interpreter; name the agent's own script or module")]
    EveryScript,
    /// A cgroup in which the host itself or its login service runs.
    #[error("it would mark {0}, where the host's own services run; name the agent's own unit or slice")]
    Cgroup(String),
    /// A user that the host itself runs as.
    #[error("it would mark what runs as {0}: PID 1, sshd and login services; use a user of the agent's own")]
    User(String),
}

/// Folders in which the programs of [`NEVER`] are found.
const FOLDERS: [&str; 11] = [
    "/usr/sbin/",
    "/sbin/",
    "/usr/bin/",
    "/bin/",
    "/usr/lib/systemd/",
    "/lib/systemd/",
    "/usr/lib/openssh/",
    "/usr/libexec/",
    "/usr/libexec/openssh/",
    "/usr/local/sbin/",
    "/usr/local/bin/",
];

/// Paths that belong to no program, in unrelated folders.
const ANYTHING: [&str; 4] = ["/usr/bin/zq7", "/opt/zq7/bin/xw-3", "/home/zq7/.local/bin/jk_4", "/proc/self/fd/9"];

/// Scripts and modules that do not exist.
const ANY_SCRIPT: [&[&str]; 4] = [
    &["/usr/bin/node", "node", "/srv/zq7/vx.js"],
    &["/usr/bin/node", "node", "jk4.mjs"],
    &["/usr/bin/python3", "python3", "/home/zq7/xw.py"],
    &["/usr/bin/python3", "python3", "-m", "zq7_xw"],
];

/// Programs that run scripts, at least one of each family of `matcher/interpreter.rs`, and every shell. A rule that marks one of them marks
/// every script that names it, and a shell also people's own.
const INTERPRETERS: [&str; 15] =
    ["node", "bun", "deno", "python3", "pypy3", "ruby", "perl", "php", "sh", "bash", "dash", "zsh", "ksh", "mksh", "fish"];

/// A script that does not exist, for any of them.
const SCRIPT: &str = "./zq7-jk";

/// Checks a rule against everything that it must not match.
pub(super) fn check_machine(machine: &mut Machine) -> Result<(), PatternError> {
    for path in ANYTHING {
        if walk(machine, path, &[path])? {
            return Err(Danger::Everything.into());
        }
    }
    for words in ANY_SCRIPT {
        if walk(machine, words[0], &words[1..])? {
            return Err(Danger::EveryScript.into());
        }
    }
    for name in INTERPRETERS {
        for folder in ["/usr/bin", "/bin", "/usr/local/bin"] {
            if walk(machine, &format!("{folder}/{name}"), &[name, SCRIPT])? {
                return Err(Danger::EveryScript.into());
            }
        }
    }
    for name in NEVER {
        let name = name.replace('*', "session-worker");
        for folder in FOLDERS {
            let path = format!("{folder}{name}");
            if walk(machine, &path, &[&path])? {
                return Err(Danger::Program(path).into());
            }
        }
    }
    Ok(())
}

fn walk(machine: &mut Machine, path: &str, argv: &[&str]) -> Result<bool, IdentityError> {
    let argv: Vec<&[u8]> = argv.iter().map(|arg| arg.as_bytes()).collect();
    let end = machine.follow(&super::kernel_input(path.as_bytes(), &argv))?;
    Ok(matches!(end, Step::Accept(_)))
}

/// Cgroups that no rule may name. The unit of each is its last component.
const CGROUPS: [&str; 14] = [
    "/init.scope",
    "/system.slice",
    "/user.slice",
    "/system.slice/ssh.service",
    "/system.slice/sshd.service",
    "/system.slice/system-sshd.slice/sshd@1.service",
    "/system.slice/pp-agent.service",
    "/system.slice/systemd-logind.service",
    "/system.slice/dbus.service",
    "/system.slice/cron.service",
    "/system.slice/system-getty.slice/getty@tty1.service",
    "/system.slice/gdm.service",
    "/zq7.slice/zq7-xw.service",
    "/machine.slice/jk4.scope",
];

/// Checks that a cgroup pattern covers nothing of the host itself.
///
/// # Errors
/// The danger.
pub(crate) fn check_cgroup(pattern: &str) -> Result<(), Danger> {
    check_tree(|path| cgroups::covers_path(pattern, path))
}

/// Checks that a unit pattern covers nothing of the host itself.
///
/// # Errors
/// The danger.
pub(crate) fn check_unit(pattern: &str) -> Result<(), Danger> {
    check_tree(|path| cgroups::covers_unit(pattern, path))
}

fn check_tree(covers: impl Fn(&str) -> bool) -> Result<(), Danger> {
    match CGROUPS.iter().find(|path| covers(path)) {
        Some(path) => Err(Danger::Cgroup((*path).to_owned())),
        None => Ok(()),
    }
}

/// Checks that the host itself does not run as this user.
///
/// # Errors
/// The danger.
pub(crate) fn check_user(name: &str, uid: u32) -> Result<(), Danger> {
    if uid == 0 || uid == u32::MAX || name == "sshd" {
        return Err(Danger::User(name.to_owned()));
    }
    Ok(())
}
