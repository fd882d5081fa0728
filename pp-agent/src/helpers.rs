//! Programs that the kernel itself runs as root, outside every session, when anybody asks it for something, and what those programs obey.
//! A session can ask at any time (`request_key(2)`, a bridge with a spanning tree, a protocol that needs a module, a crash), so that a file
//! of its making there would run as nobody's.
//!
//! The kind: a path that the kernel is built with or that one of its settings names now, whether something is there or not.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::delegates::expand;
use crate::guarded::{Extent, Target};
use crate::os::mounts;

/// Paths in the source of Linux, up to 7.x: `call_usermodehelper` and its callers.
const BUILT_IN: [&str; 16] = [
    "/sbin/request-key",
    "/sbin/bridge-stp",
    "/sbin/modprobe",
    "/sbin/poweroff",
    "/sbin/reboot",
    "/sbin/hotplug",
    "/sbin/usermode-helper",
    "/sbin/nfs_cache_getent",
    "/sbin/nfsdcltrack",
    "/sbin/ocfs2_hb_ctl",
    "/sbin/drbdadm",
    "/sbin/tomoyo-init",
    "/sbin/pnpbios",
    "/sbin/v86d",
    "/sbin/critical_overtemp",
    "/usr/sbin/eppfpga",
];

/// Programs that `mount(8)` and `umount(8)` run as root for a file system, of people who mount and of automounters.
const MOUNT_HELPERS: [&str; 14] = [
    "/sbin/mount.nfs",
    "/sbin/mount.nfs4",
    "/sbin/mount.cifs",
    "/sbin/mount.smb3",
    "/sbin/mount.fuse",
    "/sbin/mount.fuse3",
    "/sbin/mount.ntfs",
    "/sbin/mount.ntfs-3g",
    "/sbin/mount.ceph",
    "/sbin/mount.glusterfs",
    "/sbin/mount.zfs",
    "/sbin/umount.nfs",
    "/sbin/umount.nfs4",
    "/sbin/umount.udisks2",
];

/// Settings of the kernel that name such a program, with its arguments or without.
const SETTINGS: [&str; 7] = [
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/poweroff_cmd",
    "/proc/sys/kernel/hotplug",
    "/sys/kernel/uevent_helper",
    "/sys/module/nfs/parameters/cache_getent",
    "/sys/module/nfsd/parameters/cltrack_prog",
    "/sys/module/drbd/parameters/usermode_helper",
];

/// The setting that names a program only behind a `|`, else a file.
const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// What these programs obey: `request-key` runs what its files say, `modprobe` too, and loads what lies in these folders. Deeper folders are
/// listed by themselves, since the hooks look at few above a file.
const OBEYED: [&str; 8] = [
    "/etc/request-key.d",
    "/usr/lib/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/run/modprobe.d",
    "/lib/modules",
    "/lib/modules/*",
    "/lib/modules/*/kernel",
    "/lib/modules/*/kernel/*",
];

/// The file of the same kind.
const OBEYED_FILE: &str = "/etc/request-key.conf";

/// Every such file and folder of this host now.
#[must_use]
pub(crate) fn targets() -> Vec<Target> {
    let target = |path: PathBuf, extent| Target { path, extent, later: true };
    let files = BUILT_IN.iter().chain(&MOUNT_HELPERS).copied().chain([OBEYED_FILE]).map(PathBuf::from);
    let mut targets: Vec<Target> = files.chain(named()).map(|path| target(path, Extent::File)).collect();
    for pattern in OBEYED {
        let paths = if pattern.contains('*') { expand(pattern) } else { vec![PathBuf::from(pattern)] };
        targets.extend(paths.into_iter().filter(|path| !pattern.contains('*') || path.is_dir()).map(|path| target(path, Extent::Tree)));
    }
    targets
}

/// The programs that settings name now.
fn named() -> Vec<PathBuf> {
    let text = |path: &Path| {
        fs::read_to_string(path).unwrap_or_else(|error| {
            // Kernels without the setting have nothing that it names.
            if error.kind() != ErrorKind::NotFound {
                tracing::error!("{}: {error}; a program that the kernel runs by it is not guarded", path.display());
            }
            String::new()
        })
    };
    let mut found: Vec<PathBuf> = SETTINGS.iter().filter_map(|setting| program(&text(Path::new(setting)))).collect();
    found.extend(text(Path::new(CORE_PATTERN)).strip_prefix('|').and_then(program));
    let mounts = mounts::mounts().unwrap_or_else(|error| {
        tracing::error!("mounts: {error}; programs that cgroups of version 1 name are not guarded");
        Vec::new()
    });
    let agents = mounts.iter().filter(|mount| mount.kind == "cgroup").map(|mount| mount.point.join("release_agent"));
    found.extend(agents.filter_map(|agent| program(&text(&agent))));
    found.sort();
    found.dedup();
    found
}

/// The program of a setting, without its arguments; `None`: it names none by a whole path.
fn program(setting: &str) -> Option<PathBuf> {
    setting.split_whitespace().next().filter(|word| word.starts_with('/') && word.len() > 1).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_of_a_setting_is_its_first_word() {
        for (setting, wanted) in [
            ("/sbin/modprobe\n", Some("/sbin/modprobe")),
            ("/usr/share/apport/apport -p%p %c", Some("/usr/share/apport/apport")),
            ("core", None),
            ("", None),
            ("/", None),
        ] {
            assert_eq!(program(setting).as_deref(), wanted.map(Path::new), "{setting}");
        }
    }

    #[test]
    fn helpers_are_listed_whether_they_are_there_or_not() {
        let targets = targets();
        for path in ["/sbin/request-key", "/sbin/bridge-stp", "/sbin/mount.nfs", "/etc/request-key.conf"] {
            assert!(targets.iter().any(|target| target.path == Path::new(path) && target.extent == Extent::File && target.later), "{path}");
        }
        assert!(targets.iter().any(|target| target.path == Path::new("/lib/modules") && target.extent == Extent::Tree));
    }
}
