//! Facts about this host: kernel, mounts, active LSMs, the boot.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::KernelError;

/// One line of `/proc/self/mountinfo`, as far as it matters here.
struct Mount {
    point: PathBuf,
    root: String,
    kind: String,
    /// Options of the file system, for version 1 of cgroups the controllers.
    options: String,
}

fn mounts() -> io::Result<Vec<Mount>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(text.lines().filter_map(parse_mount).collect())
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let root = fields.nth(3)?.to_owned();
    let point = PathBuf::from(unescape(fields.next()?));
    let mut after = after.split(' ');
    let kind = after.next()?.to_owned();
    let options = after.nth(1).unwrap_or_default().to_owned();
    Some(Mount { point, root, kind, options })
}

/// Undoes the octal escapes of space, tab, newline and backslash (proc(5)).
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The root of the cgroup2 hierarchy, wherever it is mounted: also beside
/// version 1 hierarchies.
///
/// # Errors
/// No cgroup2 is mounted.
pub fn cgroup2_root() -> Result<PathBuf, KernelError> {
    let mounts = mounts().map_err(KernelError::io("/proc/self/mountinfo"))?;
    mounts.into_iter().find(|mount| mount.kind == "cgroup2" && mount.root == "/").map(|mount| mount.point).ok_or(KernelError::NoCgroup2)
}

/// The files to write a process id to that would move it where this process is now, one for each hierarchy of cgroups that is
/// mounted here.
///
/// # Errors
/// `/proc` cannot be read.
pub fn own_cgroups() -> io::Result<Vec<PathBuf>> {
    let mounts = mounts()?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    Ok(own.lines().filter_map(|line| cgroup_procs(&mounts, line)).collect())
}

/// From a line of `/proc/PID/cgroup`: number, controllers, path. `None`: that hierarchy is not mounted here.
fn cgroup_procs(mounts: &[Mount], line: &str) -> Option<PathBuf> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let holds = |mount: &&Mount| match controllers {
        "" => mount.kind == "cgroup2",
        some => mount.kind == "cgroup" && some.split(',').all(|one| mount.options.split(',').any(|option| option == one)),
    };
    let below = |mount: &Mount| {
        let rest = Path::new(path).strip_prefix(&mount.root).ok()?;
        Some(mount.point.join(rest).join("cgroup.procs"))
    };
    mounts.iter().filter(holds).find_map(below)
}

/// Makes sure that `dir` is a directory of our own on a bpf file system;
/// mounts one at `/sys/fs/bpf` where none is.
///
/// # Errors
/// It cannot be mounted, or `dir` lies elsewhere.
pub fn pin_directory(dir: &Path) -> Result<(), KernelError> {
    const STANDARD: &str = "/sys/fs/bpf";
    let found = mounts().map_err(KernelError::io("/proc/self/mountinfo"))?;
    let on_bpffs = |path: &Path| found.iter().any(|m| m.kind == "bpf" && path.starts_with(&m.point));
    if !on_bpffs(dir) {
        if !dir.starts_with(STANDARD) {
            return Err(KernelError::NoBpffs {
                path: dir.into(),
                source: io::Error::new(io::ErrorKind::InvalidInput, "not below a bpf file system"),
            });
        }
        nix::mount::mount(
            Some("bpf"),
            STANDARD,
            Some("bpf"),
            nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV | nix::mount::MsFlags::MS_NOEXEC,
            Some("mode=0700"),
        )
        .map_err(|errno| KernelError::NoBpffs { path: STANDARD.into(), source: errno.into() })?;
    }
    fs::create_dir_all(dir).map_err(KernelError::io(dir.display().to_string()))?;
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(dir, private).map_err(KernelError::io(dir.display().to_string()))
}

/// The kernel's release, as `uname -r` prints it.
#[must_use]
pub fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(|_| "unknown".to_owned(), |name| name.release().to_string_lossy().into_owned())
}

/// The active LSMs; `None` where securityfs is not mounted, which means unknown.
#[must_use]
pub fn active_lsms() -> Option<Vec<String>> {
    let text = fs::read_to_string("/sys/kernel/security/lsm").ok()?;
    Some(text.trim().split(',').map(str::to_owned).collect())
}

/// The random id of this boot.
///
/// # Errors
/// `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Whether the kernel command line says `pp_agent=off`.
#[must_use]
pub fn switched_off() -> bool {
    fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.split_whitespace().any(|word| word == "pp_agent=off"))
}

/// Boot time, nanoseconds: the clock of every deadline in the kernel.
///
/// # Errors
/// Never on a kernel this runs on.
pub fn boot_ns() -> io::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
    let seconds = u64::try_from(now.tv_sec()).map_err(io::Error::other)?;
    let nanos = u64::try_from(now.tv_nsec()).map_err(io::Error::other)?;
    Ok(seconds * 1_000_000_000 + nanos)
}

#[cfg(test)]
mod tests {
    use super::{cgroup_procs, parse_mount};

    #[test]
    fn mountinfo_lines_of_a_hybrid_layout_are_understood() {
        let line = "34 25 0:29 / /sys/fs/cgroup/my\\040unified rw,relatime shared:9 - cgroup2 cgroup2 rw";
        let mount = parse_mount(line).unwrap();
        assert_eq!(mount.kind, "cgroup2");
        assert_eq!(mount.root, "/");
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
        let found = |line| cgroup_procs(&mounts, line).map(|path| path.display().to_string());
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
