//! Whether namespaces keep this process apart from the host. A daemon in one of its own enforces, guards or sees only a part of the host.
//!
//! The initial user, pid, cgroup and time namespaces have fixed numbers (`linux/proc_ns.h`). The initial network and mount namespaces have
//! them since 6.18 only (`linux/nsfs.h`). Before, other facts tell:
//!
//! - Network: the kernel shows the settings of its devices in the initial namespace alone ([`INITIAL_ONLY`]).
//! - Mount: a namespace of its own is no problem by itself, since systemd gives one to most services. It must have the host's root
//!   directory, learn of later mounts there, and pin where PID 1 sees the pins. `/proc/1/mountinfo` needs no rights over PID 1.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use clap::ValueEnum;

use super::mounts::{self, Mount};

/// `PROC_USER_INIT_INO`: the number of the initial user namespace.
pub(crate) const INITIAL_USER: u64 = 0xEFFF_FFFD;
/// `PROC_PID_INIT_INO`.
const INITIAL_PID: u64 = 0xEFFF_FFFC;
/// `PROC_CGROUP_INIT_INO`.
const INITIAL_CGROUP: u64 = 0xEFFF_FFFB;
/// `PROC_TIME_INIT_INO`.
const INITIAL_TIME: u64 = 0xEFFF_FFFA;
/// `NET_NS_INIT_INO`, since 6.18. Before, all network namespaces have larger numbers.
const INITIAL_NETWORK: u64 = 0xEFFF_FFF9;
/// `MNT_NS_INIT_INO`, since 6.18. Before, all mount namespaces have larger numbers.
const INITIAL_MOUNT: u64 = 0xEFFF_FFF8;
/// The number of the root of cgroup2. Every other cgroup has a larger one (`fs/kernfs/dir.c`).
const ROOT_CGROUP: u64 = 1;
/// Where the kernel shows settings of a network namespace.
const NETWORK_SETTINGS: &str = "/proc/sys/net/core";
/// A setting that exists in the initial network namespace alone, in every kernel since 2.6 (`net/core/sysctl_net_core.c`).
const INITIAL_ONLY: &str = "netdev_budget";

/// A kind of namespace by which a part of the host can be kept from the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// Users and their capabilities.
    User,
    /// Process numbers.
    Pid,
    /// Cgroups; also a cgroup directory that is not the root.
    Cgroup,
    /// Mounts.
    Mount,
    /// Links, addresses and neighbours.
    Network,
    /// Clocks.
    Time,
}

impl Kind {
    /// Its name, as `--namespace` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Pid => "pid",
            Self::Cgroup => "cgroup",
            Self::Mount => "mount",
            Self::Network => "network",
            Self::Time => "time",
        }
    }

    /// What a daemon does only for such a namespace.
    #[must_use]
    pub(crate) const fn effect(self) -> &'static str {
        match self {
            Self::User => "the kernel takes programs from the initial user namespace only",
            Self::Pid => "agents outside are not found, and processes are taken for others",
            Self::Cgroup => "connections of processes in other cgroups are not judged",
            Self::Mount => "files and sockets of the host are not guarded, and pins may end with the daemon",
            Self::Network => "addresses, links and neighbours of the host are not known",
            Self::Time => "receipts end too early or too late, by the difference of the clocks",
        }
    }

    /// How containers are started without it.
    const fn remedy(self) -> &'static str {
        match self {
            Self::User => "--userns=host",
            Self::Pid => "--pid=host",
            Self::Cgroup => "--cgroupns=host",
            Self::Mount => "-v /sys/fs/bpf:/sys/fs/bpf",
            Self::Network => "--network=host",
            Self::Time => "no time namespace",
        }
    }
}

/// One namespace that is not the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// Which.
    pub kind: Kind,
    /// How that is known.
    pub why: String,
}

impl std::fmt::Display for Isolation {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} namespace: {}, so that {} (containers: {})", self.kind.name(), self.why, self.kind.effect(), self.kind.remedy())
    }
}

/// Finds every namespace of this process that is not the host's. What cannot be read counts as not the host's.
///
/// `cgroup` is the directory that programs are attached to, if it is known, and `pins` the directory that they are pinned in.
#[must_use]
pub fn found(cgroup: Option<&Path>, pins: &Path) -> Vec<Isolation> {
    judge(&Facts::read(cgroup), pins)
}

/// What the kernel says of this process and of PID 1.
struct Facts {
    user: io::Result<u64>,
    pid: io::Result<u64>,
    cgroup: io::Result<u64>,
    /// `None`: this kernel has no time namespaces.
    time: io::Result<Option<u64>>,
    network: io::Result<u64>,
    mount: io::Result<u64>,
    /// The number of the cgroup that programs are attached to. `None`: it is not known yet.
    attached_to: Option<u64>,
    network_settings: Settings,
    mounts: io::Result<Vec<Mount>>,
    /// The mounts of PID 1, as numbered here.
    mounts_of_init: io::Result<Vec<Mount>>,
}

/// What [`NETWORK_SETTINGS`] has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settings {
    /// Also what only the initial namespace has.
    Initial,
    /// Only what each namespace has.
    Other,
    /// Nothing.
    Absent,
}

impl Facts {
    fn read(cgroup: Option<&Path>) -> Self {
        let number = |name: &str| Ok(fs::metadata(format!("/proc/self/ns/{name}"))?.ino());
        let settings = Path::new(NETWORK_SETTINGS);
        Self {
            user: number("user"),
            pid: number("pid"),
            cgroup: number("cgroup"),
            time: match number("time") {
                Ok(number) => Ok(Some(number)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            network: number("net"),
            mount: number("mnt"),
            attached_to: cgroup.and_then(|path| Some(fs::metadata(path).ok()?.ino())),
            network_settings: match (settings.join(INITIAL_ONLY).exists(), settings.exists()) {
                (true, _) => Settings::Initial,
                (false, true) => Settings::Other,
                (false, false) => Settings::Absent,
            },
            mounts: mounts::mounts(),
            mounts_of_init: mounts::mounts_of_init(),
        }
    }
}

fn judge(facts: &Facts, pins: &Path) -> Vec<Isolation> {
    let numbered = |number: &io::Result<u64>, initial: u64| match number {
        Ok(number) if *number == initial => None,
        Ok(number) => Some(format!("this process is in {number}, not in the host's {initial}")),
        Err(error) => Some(unknown(error)),
    };
    let time = match &facts.time {
        Ok(None) => None,
        Ok(Some(number)) => numbered(&Ok(*number), INITIAL_TIME),
        Err(error) => Some(unknown(error)),
    };
    let pid = numbered(&facts.pid, INITIAL_PID);
    let judged = [
        (Kind::User, numbered(&facts.user, INITIAL_USER)),
        (Kind::Cgroup, numbered(&facts.cgroup, INITIAL_CGROUP).or_else(|| part_of_cgroups(facts.attached_to))),
        (Kind::Mount, mount(facts, pid.is_some(), pins)),
        (Kind::Network, network(facts)),
        (Kind::Time, time),
        (Kind::Pid, pid),
    ];
    let mut found: Vec<Isolation> = judged.into_iter().filter_map(|(kind, why)| Some(Isolation { kind, why: why? })).collect();
    found.sort_by_key(|isolation| isolation.kind);
    found
}

fn unknown(error: &io::Error) -> String {
    format!("which one this is cannot be read ({error})")
}

fn part_of_cgroups(attached_to: Option<u64>) -> Option<String> {
    let number = attached_to.filter(|number| *number != ROOT_CGROUP)?;
    Some(format!("the cgroup to attach to is number {number}, not the root"))
}

fn network(facts: &Facts) -> Option<String> {
    match (&facts.network, facts.network_settings) {
        (Ok(INITIAL_NETWORK), _) | (Ok(_), Settings::Initial) => None,
        (Ok(number), Settings::Other) => Some(format!("this process is in {number}, not in the host's")),
        (Ok(number), Settings::Absent) => Some(format!("whether {number} is the host's cannot be known without {NETWORK_SETTINGS}")),
        (Err(error), _) => Some(unknown(error)),
    }
}

fn mount(facts: &Facts, another_pid_1: bool, pins: &Path) -> Option<String> {
    match (&facts.mount, &facts.mounts, &facts.mounts_of_init) {
        (Ok(INITIAL_MOUNT), ..) => None,
        _ if another_pid_1 => Some("whether its mounts are the host's cannot be known without the host's PID 1".to_owned()),
        (_, Ok(own), Ok(of_init)) => mounts_apart(own, of_init, pins),
        (_, Err(error), _) | (_, _, Err(error)) => Some(format!("the mounts of this process and of PID 1 cannot be read ({error})")),
    }
}

/// What of these mounts is not as PID 1 has it, if that matters.
fn mounts_apart(own: &[Mount], of_init: &[Mount], pins: &Path) -> Option<String> {
    // A mount is in one namespace only.
    if own.iter().any(|mount| of_init.iter().any(|other| other.id == mount.id)) {
        return None;
    }
    let ([Some(root), Some(root_of_init)], covering) = ([own, of_init].map(|all| at(all, Path::new("/"))), at(own, pins)) else {
        return Some("its root directory is no mount".to_owned());
    };
    if (root.device, &root.root) != (root_of_init.device, &root_of_init.root) {
        return Some("its root directory is not that of PID 1".to_owned());
    }
    let learns_of_mounts = root_of_init.shared.is_some() && [root.shared, root.master].contains(&root_of_init.shared);
    if !learns_of_mounts {
        return Some("mounts that the host makes later are not seen in it".to_owned());
    }
    let on_hosts_bpffs = covering
        .is_some_and(|mount| mount.kind == "bpf" && of_init.iter().any(|other| other.kind == "bpf" && other.device == mount.device));
    (!on_hosts_bpffs)
        .then(|| format!("{} is on no bpf file system of the host (mount -t bpf bpf /sys/fs/bpf, on the host)", pins.display()))
}

/// The mount that a path is on: the deepest, and of several at one place the last.
fn at<'a>(all: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    all.iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| mount.point.components().count())
}

#[cfg(test)]
mod tests {
    use super::super::mounts::parse_mount;
    use super::*;

    const PINS: &str = "/sys/fs/bpf/pp-agent";
    /// PID 1 of a host with systemd.
    const HOST: [&str; 3] = [
        "28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
        "22 28 0:20 / /sys rw shared:2 - sysfs sysfs rw",
        "35 22 0:31 / /sys/fs/bpf rw shared:9 - bpf bpf rw,mode=700",
    ];
    /// A service of that host with `PrivateTmp=`, `ProtectSystem=` and `ProtectHome=`.
    const SERVICE: [&str; 5] = [
        "310 290 8:1 / / ro,relatime shared:400 master:1 - ext4 /dev/sda1 rw",
        "311 310 0:20 / /sys rw shared:401 master:2 - sysfs sysfs rw",
        "312 311 0:31 / /sys/fs/bpf rw shared:402 master:9 - bpf bpf rw,mode=700",
        "313 310 8:1 /tmp/systemd-private-1/tmp /tmp rw shared:403 master:1 - ext4 /dev/sda1 rw",
        "314 310 0:50 / /home ro shared:404 - tmpfs tmpfs ro",
    ];

    fn mounts(lines: &[&str]) -> Vec<Mount> {
        lines.iter().map(|line| parse_mount(line).unwrap()).collect()
    }

    /// What a daemon on the host itself finds, before 6.18.
    fn on_the_host() -> Facts {
        Facts {
            user: Ok(INITIAL_USER),
            pid: Ok(INITIAL_PID),
            cgroup: Ok(INITIAL_CGROUP),
            time: Ok(Some(INITIAL_TIME)),
            network: Ok(4_026_531_992),
            mount: Ok(4_026_531_840),
            attached_to: Some(ROOT_CGROUP),
            network_settings: Settings::Initial,
            mounts: Ok(mounts(&HOST)),
            mounts_of_init: Ok(mounts(&HOST)),
        }
    }

    fn kinds(facts: &Facts) -> Vec<Kind> {
        judge(facts, Path::new(PINS)).into_iter().map(|isolation| isolation.kind).collect()
    }

    fn mount_problem(own: &[&str]) -> Option<String> {
        mounts_apart(&mounts(own), &mounts(&HOST), Path::new(PINS))
    }

    #[test]
    fn daemon_on_the_host_is_in_no_namespace_of_its_own() {
        assert_eq!(kinds(&on_the_host()), []);
        // Kernels without time namespaces, and those with fixed numbers for all, where nothing else can be read.
        assert_eq!(kinds(&Facts { time: Ok(None), ..on_the_host() }), []);
        let none = || Err(io::ErrorKind::PermissionDenied.into());
        let fixed = Facts { network: Ok(INITIAL_NETWORK), mount: Ok(INITIAL_MOUNT), network_settings: Settings::Absent, ..on_the_host() };
        assert_eq!(kinds(&Facts { mounts: none(), mounts_of_init: none(), ..fixed }), []);
    }

    #[test]
    fn each_namespace_of_its_own_is_found_alone() {
        let own = || Ok(4_026_533_000);
        assert_eq!(kinds(&Facts { user: own(), ..on_the_host() }), [Kind::User]);
        assert_eq!(kinds(&Facts { cgroup: own(), ..on_the_host() }), [Kind::Cgroup]);
        assert_eq!(kinds(&Facts { attached_to: Some(4_711), ..on_the_host() }), [Kind::Cgroup]);
        assert_eq!(kinds(&Facts { time: Ok(Some(4_026_533_000)), ..on_the_host() }), [Kind::Time]);
        assert_eq!(kinds(&Facts { network: own(), network_settings: Settings::Other, ..on_the_host() }), [Kind::Network]);
        // Nothing is known of the host's mounts from there, unless their namespace has a fixed number.
        assert_eq!(kinds(&Facts { pid: own(), ..on_the_host() }), [Kind::Pid, Kind::Mount]);
        assert_eq!(kinds(&Facts { pid: own(), mount: Ok(INITIAL_MOUNT), ..on_the_host() }), [Kind::Pid]);
    }

    #[test]
    fn what_cannot_be_read_counts_as_a_namespace_of_its_own() {
        let none = || Err(io::ErrorKind::PermissionDenied.into());
        assert_eq!(kinds(&Facts { user: none(), ..on_the_host() }), [Kind::User]);
        assert_eq!(kinds(&Facts { time: Err(io::ErrorKind::Other.into()), ..on_the_host() }), [Kind::Time]);
        assert_eq!(kinds(&Facts { network_settings: Settings::Absent, ..on_the_host() }), [Kind::Network]);
        assert_eq!(kinds(&Facts { mounts_of_init: Err(io::ErrorKind::Other.into()), ..on_the_host() }), [Kind::Mount]);
    }

    #[test]
    fn service_with_private_mounts_is_as_good_as_the_host() {
        assert_eq!(mount_problem(&SERVICE), None);
    }

    #[test]
    fn mounts_that_part_from_the_hosts_are_named() {
        let changed = |at: usize, line: &'static str| {
            let mut lines = SERVICE;
            lines[at] = line;
            mount_problem(&lines).unwrap_or_default()
        };
        let root = changed(0, "310 290 0:77 / / rw master:1 - overlay overlay rw");
        assert_eq!(root, "its root directory is not that of PID 1");
        let folder = changed(0, "310 290 8:1 /srv/image / rw shared:400 master:1 - ext4 /dev/sda1 rw");
        assert_eq!(folder, "its root directory is not that of PID 1");
        for private in ["310 290 8:1 / / rw - ext4 /dev/sda1 rw", "310 290 8:1 / / rw shared:400 master:7 - ext4 /dev/sda1 rw"] {
            assert_eq!(changed(0, private), "mounts that the host makes later are not seen in it");
        }
        for pins in ["312 311 0:66 / /sys/fs/bpf rw - bpf bpf rw", "312 311 0:31 / /sys/fs/other rw - bpf bpf rw"] {
            let told = changed(2, pins);
            assert!(told.starts_with("/sys/fs/bpf/pp-agent is on no bpf file system of the host"), "{told}");
        }
    }

    #[test]
    fn mount_on_top_of_another_is_the_one_that_counts() {
        let over = [HOST[0], HOST[2], "40 28 0:80 / /sys/fs/bpf rw - tmpfs tmpfs rw"];
        assert_eq!(at(&mounts(&over), Path::new(PINS)).unwrap().kind, "tmpfs");
    }

    #[test]
    fn message_names_the_namespace_the_effect_and_the_remedy() {
        let isolation = &judge(&Facts { pid: Ok(4_026_533_000), mount: Ok(INITIAL_MOUNT), ..on_the_host() }, Path::new(PINS))[0];
        assert_eq!(
            isolation.to_string(),
            "pid namespace: this process is in 4026533000, not in the host's 4026531836, so that agents outside are not found, and \
             processes are taken for others (containers: --pid=host)"
        );
    }

    #[test]
    fn names_are_those_of_the_option() {
        for kind in Kind::value_variants() {
            assert_eq!(kind.to_possible_value().unwrap().get_name(), kind.name());
        }
    }
}
