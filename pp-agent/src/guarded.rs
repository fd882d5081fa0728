//! Files that sessions may not change: the gate's own, and those that make other programs act for a session later. Pure; `kernel/guard.rs`
//! finds what is at these paths.

use std::path::{Path, PathBuf};

use crate::os::accounts::GETENT;

/// How much is guarded at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// The file, its name and its permissions.
    File,
    /// Everything in and below the folder.
    Tree,
    /// Writing to files directly in the folder, which is a cgroup.
    Files,
}

/// One guarded path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The path.
    pub(crate) path: PathBuf,
    /// How much is guarded there.
    pub(crate) extent: Extent,
    /// Whether it is not the gate's own, but something that other programs act on later.
    pub(crate) later: bool,
}

/// The gate's own files.
#[derive(Clone, Debug)]
pub(crate) struct Own<'a> {
    /// The policy.
    pub(crate) policy: &'a Path,
    /// The public keys.
    pub(crate) keys: &'a Path,
    /// Receipts and events.
    pub(crate) state: &'a Path,
    /// Pins.
    pub(crate) bpffs: &'a Path,
    /// The control socket.
    pub(crate) socket: &'a Path,
    /// What the canary tries to reach.
    pub(crate) decoys: [&'a Path; 2],
    /// The running program.
    pub(crate) program: Option<PathBuf>,
    /// The cgroup directories it is in, each below the root of its hierarchy.
    pub(crate) cgroups: Vec<(PathBuf, PathBuf)>,
}

/// Folders whose contents other programs run or obey.
const LATER_TREES: [&str; 34] = [
    "/etc/cron.d",
    "/etc/cron.hourly",
    "/etc/cron.daily",
    "/etc/cron.weekly",
    "/etc/cron.monthly",
    "/var/spool/cron",
    "/var/spool/at",
    "/var/spool/anacron",
    "/etc/systemd/system",
    "/etc/systemd/user",
    "/etc/systemd/system-generators",
    "/etc/systemd/user-generators",
    "/usr/local/lib/systemd",
    "/usr/lib/systemd/system",
    "/usr/lib/systemd/user",
    "/usr/lib/systemd/system-generators",
    "/usr/lib/systemd/user-generators",
    "/run/systemd/system",
    "/run/systemd/transient",
    "/run/systemd/user",
    "/run/systemd/generator",
    "/run/systemd/system-generators",
    "/etc/init.d",
    "/etc/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/run/udev/rules.d",
    "/etc/pam.d",
    "/usr/lib/pam.d",
    "/etc/sudoers.d",
    "/etc/modprobe.d",
    "/etc/modules-load.d",
    "/etc/ld.so.conf.d",
    "/etc/tmpfiles.d",
    "/etc/binfmt.d",
];

/// Files of the same kind.
const LATER_FILES: [&str; 8] = [
    "/etc/crontab",
    "/etc/anacrontab",
    "/etc/ld.so.preload",
    "/etc/ld.so.conf",
    "/etc/pam.conf",
    "/etc/sudoers",
    "/etc/rc.local",
    // Run by the daemon, whenever a session is of a user that is not in `/etc/passwd`.
    GETENT,
];

/// More folders of that kind, on the way of a boot, a login or a package manager's run. They are guarded where they are: what would read them
/// is not installed where they are missing, and packages share the folders above.
const LATER_TREES_WHERE_FOUND: [&str; 33] = [
    "/boot",
    "/etc/grub.d",
    "/etc/kernel",
    "/etc/initramfs-tools",
    "/usr/share/initramfs-tools",
    "/usr/lib/dracut",
    "/usr/lib/modules",
    "/usr/lib/modprobe.d",
    "/usr/lib/systemd",
    "/etc/sysctl.d",
    "/usr/lib/sysctl.d",
    "/usr/lib/tmpfiles.d",
    "/usr/lib/sysusers.d",
    "/etc/profile.d",
    "/etc/update-motd.d",
    "/etc/X11/Xsession.d",
    "/etc/ssh/sshd_config.d",
    "/usr/lib/security",
    "/usr/lib64/security",
    "/usr/lib/x86_64-linux-gnu/security",
    "/usr/lib/aarch64-linux-gnu/security",
    "/etc/logrotate.d",
    "/etc/rsyslog.d",
    "/etc/apt/apt.conf.d",
    "/etc/NetworkManager",
    "/usr/lib/NetworkManager",
    "/etc/network",
    "/etc/dhcp",
    "/etc/polkit-1",
    "/usr/share/polkit-1/rules.d",
    "/usr/share/dbus-1/system-services",
    "/usr/share/dbus-1/system.d",
    "/etc/dbus-1/system.d",
];

/// Files of that kind, guarded by name where their folder is.
const LATER_FILES_WHERE_FOUND: [&str; 15] = [
    "/etc/default/grub",
    "/etc/sysctl.conf",
    "/etc/profile",
    "/etc/bash.bashrc",
    "/etc/bashrc",
    "/etc/environment",
    "/etc/passwd",
    "/etc/shadow",
    "/etc/group",
    "/etc/gshadow",
    "/etc/ssh/sshd_config",
    "/etc/logrotate.conf",
    "/etc/rsyslog.conf",
    "/usr/bin/kmod",
    "/usr/sbin/modprobe",
];

/// Folders in a home directory whose contents the user's service manager runs.
const LATER_IN_HOMES: [&str; 2] = [".config/systemd", ".local/share/systemd"];

/// Every guarded path of this host, given which folders are there.
#[must_use]
pub(crate) fn targets(own: &Own<'_>, homes: &[PathBuf], is_there: impl Fn(&Path) -> bool) -> Vec<Target> {
    let target = |path: &Path, extent, later| Target { path: path.to_path_buf(), extent, later };
    let mut targets = vec![
        target(own.policy, Extent::File, false),
        target(&own.policy.with_extension("d"), Extent::Tree, false),
        target(own.keys, Extent::File, false),
        target(own.state, Extent::Tree, false),
        target(own.bpffs, Extent::Tree, false),
        target(own.socket, Extent::File, false),
    ];
    targets.extend(own.decoys.map(|path| target(path, Extent::File, false)));
    targets.extend(own.program.as_deref().map(|path| target(path, Extent::File, false)));
    for folder in ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system"] {
        for unit in ["pp-agent.service", "pp-agents.slice"] {
            targets.push(target(&Path::new(folder).join(unit), Extent::File, false));
        }
    }
    for (root, cgroup) in &own.cgroups {
        let folders = cgroup.ancestors().take_while(|folder| folder.starts_with(root));
        targets.extend(folders.map(|folder| target(folder, Extent::Files, false)));
    }
    targets.extend(LATER_TREES.iter().map(|path| target(Path::new(path), Extent::Tree, true)));
    targets.extend(LATER_FILES.iter().map(|path| target(Path::new(path), Extent::File, true)));
    let trees = LATER_TREES_WHERE_FOUND.iter().map(Path::new).filter(|path| is_there(path));
    targets.extend(trees.map(|path| target(path, Extent::Tree, true)));
    let files = LATER_FILES_WHERE_FOUND.iter().map(Path::new).filter(|path| path.parent().is_some_and(&is_there));
    targets.extend(files.map(|path| target(path, Extent::File, true)));
    for home in homes {
        targets.extend(LATER_IN_HOMES.iter().map(|path| target(&home.join(path), Extent::Tree, true)));
    }
    targets
}

/// The home directories of people and of root, from the text of `/etc/passwd`.
#[must_use]
pub(crate) fn homes(passwd: &str) -> Vec<PathBuf> {
    /// The first uid that distributions use for people. Smaller uids are services.
    const PEOPLE: u32 = 1_000;
    let mut homes: Vec<PathBuf> = passwd
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let uid: u32 = fields.get(2)?.parse().ok()?;
            let home = fields.get(5)?;
            ((uid == 0 || uid >= PEOPLE) && home.len() > 1 && home.starts_with('/') && *home != "/nonexistent").then(|| PathBuf::from(home))
        })
        .collect();
    homes.sort();
    homes.dedup();
    homes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Own<'static> {
        Own {
            policy: Path::new("/etc/pp-agent/policy.toml"),
            keys: Path::new("/etc/pp-agent/keys.json"),
            state: Path::new("/var/lib/pp-agent"),
            bpffs: Path::new("/sys/fs/bpf/pp-agent"),
            socket: Path::new("/run/pp-agent/control.sock"),
            decoys: [Path::new("/var/lib/pp-agent/canary.sock"), Path::new("/run/pp-agent/canary")],
            program: Some("/usr/bin/pp-agent".into()),
            cgroups: ["system.slice/pp-agent.service", "memory/system.slice"]
                .map(|folder| ("/sys/fs/cgroup".into(), Path::new("/sys/fs/cgroup").join(folder)))
                .to_vec(),
        }
    }

    fn has(targets: &[Target], path: &str, extent: Extent) -> bool {
        targets.iter().any(|target| target.path == Path::new(path) && target.extent == extent)
    }

    #[test]
    fn everything_of_the_gates_own_is_guarded() {
        let targets = targets(&own(), &[], |_| true);
        for file in [
            "/etc/pp-agent/policy.toml",
            "/etc/pp-agent/keys.json",
            "/usr/bin/pp-agent",
            "/run/pp-agent/control.sock",
            "/run/pp-agent/canary",
        ] {
            assert!(has(&targets, file, Extent::File), "{file}");
        }
        for tree in ["/etc/pp-agent/policy.d", "/var/lib/pp-agent", "/sys/fs/bpf/pp-agent"] {
            assert!(has(&targets, tree, Extent::Tree), "{tree}");
        }
        for cgroup in [
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/system.slice",
            "/sys/fs/cgroup/system.slice/pp-agent.service",
            "/sys/fs/cgroup/memory/system.slice",
        ] {
            assert!(has(&targets, cgroup, Extent::Files), "{cgroup}");
        }
        assert!(!has(&targets, "/sys/fs", Extent::Files));
    }

    #[test]
    fn homes_are_those_of_people_and_root() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbin:x:2:2::/bin:/sbin/nologin\nann:x:1000:1000::/home/ann:/bin/sh\n\
                      nobody:x:65534:65534::/nonexistent:/x\nbroken\n";
        assert_eq!(homes(passwd), [PathBuf::from("/home/ann"), PathBuf::from("/root")]);
        let targets = targets(&own(), &homes(passwd), |_| true);
        assert!(has(&targets, "/home/ann/.config/systemd", Extent::Tree));
    }

    #[test]
    fn what_no_package_here_reads_is_left_to_packages() {
        let found = |there: &'static [&'static str]| targets(&own(), &[], move |path| there.iter().any(|found| path == Path::new(found)));
        let minimal = found(&["/etc", "/etc/profile.d"]);
        assert!(has(&minimal, "/etc/profile.d", Extent::Tree) && has(&minimal, "/etc/shadow", Extent::File));
        assert!(!has(&minimal, "/etc/ssh/sshd_config", Extent::File) && !has(&minimal, "/usr/share/polkit-1/rules.d", Extent::Tree));
        assert!(has(&found(&["/etc/ssh"]), "/etc/ssh/sshd_config", Extent::File));
        // Every package with a library has it written anew.
        assert!(!has(&found(&["/etc"]), "/etc/ld.so.cache", Extent::File));
    }
}
