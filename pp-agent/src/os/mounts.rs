//! Mounts: the root of cgroup2, the cgroups of this process, and device numbers as the kernel has them.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use procfs_core::{
    ProcessCGroup,
    process::{MountInfo, MountOptFields},
};

use super::process;

/// The mounts of this process.
pub(crate) const MOUNTS: &str = "/proc/self/mountinfo";
/// The mounts of PID 1. Everybody may read it.
const MOUNTS_OF_INIT: &str = "/proc/1/mountinfo";

/// One mount, with the members that are needed here.
#[derive(Debug)]
pub(crate) struct Mount {
    /// Its number, unique among present mounts.
    pub(crate) id: u64,
    /// Major and minor number of its device, as the kernel has them. Some file systems report others to `stat`.
    pub(crate) device: (u32, u32),
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// The folder of its file system that is mounted.
    pub(crate) root: String,
    /// Kind of file system.
    pub(crate) kind: String,
    /// The group of mounts that it shares later mounts with.
    pub(crate) shared: Option<u32>,
    /// The group of mounts that it gets later mounts from.
    pub(crate) master: Option<u32>,
    /// Options of the file system; for cgroups version 1, the controllers.
    options: HashMap<String, Option<String>>,
}

impl Mount {
    /// Whether it is the hierarchy with these controllers; none: cgroup2.
    fn holds(&self, controllers: &[String]) -> bool {
        let has = |controller: &String| {
            let (name, value) = controller.split_once('=').map_or((controller.as_str(), None), |(name, value)| (name, Some(value)));
            self.options.get(name).is_some_and(|found| found.as_deref() == value)
        };
        if controllers.is_empty() { self.kind == "cgroup2" } else { self.kind == "cgroup" && controllers.iter().all(has) }
    }
}

/// Checks that a folder is on cgroup2.
///
/// # Errors
/// It is not, or cannot be looked at.
pub(crate) fn ensure_cgroup2(folder: &Path) -> io::Result<()> {
    if statfs(folder)?.filesystem_type() == CGROUP2_SUPER_MAGIC {
        Ok(())
    } else {
        Err(io::Error::other("it is no cgroup2 any more; unmount what covers it"))
    }
}

/// Every mount that this process sees.
///
/// # Errors
/// `/proc` cannot be read.
pub(crate) fn mounts() -> io::Result<Vec<Mount>> {
    read(MOUNTS)
}

/// Every mount that PID 1 sees.
///
/// # Errors
/// `/proc` cannot be read, or does not show PID 1.
pub(super) fn mounts_of_init() -> io::Result<Vec<Mount>> {
    read(MOUNTS_OF_INIT)
}

fn read(file: &str) -> io::Result<Vec<Mount>> {
    Ok(fs::read_to_string(file)?.lines().filter_map(parse_mount).collect())
}

pub(super) fn parse_mount(line: &str) -> Option<Mount> {
    let found = MountInfo::from_line(line).ok()?;
    let (major, minor) = found.majmin.split_once(':')?;
    let group = |wanted: fn(&MountOptFields) -> Option<u32>| found.opt_fields.iter().find_map(wanted);
    Some(Mount {
        id: found.mnt_id.try_into().ok()?,
        device: (major.parse().ok()?, minor.parse().ok()?),
        point: unescape(found.mount_point.to_str()?).into(),
        shared: group(|field| if let MountOptFields::Shared(group) = field { Some(*group) } else { None }),
        master: group(|field| if let MountOptFields::Master(group) = field { Some(*group) } else { None }),
        root: found.root,
        kind: found.fs_type,
        options: found.super_options,
    })
}

/// Undoes the octal escapes of space, tab, newline and backslash (proc(5)).
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Why there is no root of cgroup2.
#[derive(Debug, thiserror::Error)]
pub enum Cgroup2Error {
    /// It is not mounted.
    #[error(
        "no cgroup2 file system is mounted; mount one (mount -t cgroup2 none /sys/fs/cgroup/unified) or boot with systemd's unified hierarchy"
    )]
    NotMounted,
    /// The mounts cannot be read.
    #[error("{MOUNTS}: {0}")]
    Unknown(#[source] io::Error),
}

/// The root of the cgroup2 hierarchy, also if version 1 hierarchies are mounted too.
///
/// # Errors
/// No cgroup2 is mounted.
pub fn cgroup2_root() -> Result<PathBuf, Cgroup2Error> {
    let root = mounts().map_err(Cgroup2Error::Unknown)?.into_iter().find(|mount| mount.kind == "cgroup2" && mount.root == "/");
    root.map(|mount| mount.point).ok_or(Cgroup2Error::NotMounted)
}

/// The `cgroup.procs` files of this process's cgroups, one for each mounted hierarchy.
///
/// # Errors
/// `/proc` cannot be read.
pub fn own_cgroups() -> io::Result<Vec<PathBuf>> {
    let mounts = mounts()?;
    Ok(process::cgroups(None)?.0.iter().filter_map(|cgroup| cgroup_procs(&mounts, cgroup)).collect())
}

/// This process's cgroups of version 1, one for each mounted hierarchy, each with the folder its hierarchy is mounted on.
///
/// # Errors
/// `/proc` cannot be read.
pub(crate) fn own_folders_of_version_1() -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let mounts = mounts()?;
    let cgroups = process::cgroups(None)?.0;
    Ok(cgroups.iter().filter(|cgroup| cgroup.hierarchy != 0).filter_map(|cgroup| cgroup_folder(&mounts, cgroup)).collect())
}

/// `None`: that hierarchy is not mounted here.
fn cgroup_procs(mounts: &[Mount], cgroup: &ProcessCGroup) -> Option<PathBuf> {
    cgroup_folder(mounts, cgroup).map(|(_, folder)| folder.join("cgroup.procs"))
}

/// Where the hierarchy is mounted, and the cgroup's folder there.
fn cgroup_folder(mounts: &[Mount], cgroup: &ProcessCGroup) -> Option<(PathBuf, PathBuf)> {
    let below = |mount: &Mount| {
        let rest = Path::new(&cgroup.pathname).strip_prefix(&mount.root).ok()?;
        Some((mount.point.clone(), mount.point.join(rest)))
    };
    mounts.iter().filter(|mount| mount.holds(&cgroup.controllers)).find_map(below)
}

#[cfg(test)]
mod tests {
    use procfs_core::{FromBufRead as _, ProcessCGroups};

    use super::{cgroup_procs, parse_mount};

    #[test]
    fn mountinfo_lines_of_a_hybrid_layout_are_understood() {
        let line = "34 25 0:29 / /sys/fs/cgroup/my\\040unified rw,relatime shared:9 - cgroup2 cgroup2 rw";
        let mount = parse_mount(line).unwrap();
        assert_eq!(mount.kind, "cgroup2");
        assert_eq!(mount.root, "/");
        assert_eq!((mount.id, mount.device), (34, (0, 29)));
        assert_eq!(mount.point.to_str(), Some("/sys/fs/cgroup/my unified"));
    }

    #[test]
    fn cgroups_of_both_versions_are_found_where_they_are_mounted() {
        let mounts: Vec<_> = [
            "34 25 0:29 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw",
            "35 25 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct",
            "36 25 0:31 /docker/1 /sys/fs/cgroup/memory rw shared:11 - cgroup cgroup rw,memory",
            "37 25 0:32 / /sys/fs/cgroup/systemd rw shared:12 - cgroup cgroup rw,xattr,name=systemd",
        ]
        .into_iter()
        .map(|line| parse_mount(line).unwrap())
        .collect();
        let found = |line: &str| {
            let cgroups = ProcessCGroups::from_buf_read(line.as_bytes()).unwrap();
            cgroup_procs(&mounts, &cgroups.0[0]).map(|path| path.display().to_string())
        };
        assert_eq!(
            found("0::/system.slice/pp-agent.service").unwrap(),
            "/sys/fs/cgroup/unified/system.slice/pp-agent.service/cgroup.procs"
        );
        assert_eq!(found("3:cpu,cpuacct:/").unwrap(), "/sys/fs/cgroup/cpu,cpuacct/cgroup.procs");
        assert_eq!(found("4:memory:/docker/1/a:b").unwrap(), "/sys/fs/cgroup/memory/a:b/cgroup.procs");
        assert_eq!(found("1:name=systemd:/x").unwrap(), "/sys/fs/cgroup/systemd/x/cgroup.procs");
        assert_eq!(found("5:freezer:/"), None);
    }
}
