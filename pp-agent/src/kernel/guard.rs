//! The guarded files and the delegates in the kernel's tables: paths become devices, inodes and names.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    mem::zeroed,
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{MetadataExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
};

use aya::{
    Pod,
    maps::{HashMap, MapData},
};
use pp_common::{
    delegate::{DelegateKey, by},
    maps::{GUARDED, NAMES},
    net_admin::NetAdmin,
    protect::{
        GUARD_FILES, GUARD_LATER, GUARD_MOUNT, GUARD_NAMES, GUARD_PATH, GUARD_SELF, GUARD_TREE, Guard, InodeKey, NameKey, Watch,
        device_number, hash_bound, hash_name,
    },
};

use super::{
    KernelError,
    maps::{Locked, Maps, fits},
};
use crate::{
    delegates::{Delegate, Unknown},
    guarded::{Extent, Target},
    os::mounts::{self, MOUNTS, Mount},
};

/// The guard programs. They need more of the kernel's types than the others.
pub const PROGRAMS: [&str; 44] = [
    "pp_lsm_kill",
    "pp_lsm_fcntl",
    "pp_lsm_ptrace",
    "pp_lsm_bpf",
    "pp_lsm_umount",
    "pp_lsm_mount",
    "pp_lsm_move_mount",
    "pp_lsm_pivot",
    "pp_lsm_open",
    "pp_lsm_follow",
    "pp_lsm_reopen",
    "pp_lsm_inode_create",
    "pp_lsm_mkdir",
    "pp_lsm_mknod",
    "pp_lsm_symlink",
    "pp_lsm_link",
    "pp_lsm_unlink",
    "pp_lsm_rmdir",
    "pp_lsm_rename",
    "pp_fmod_rename",
    "pp_lsm_truncate",
    "pp_lsm_chmod",
    "pp_lsm_chown",
    "pp_lsm_setattr",
    "pp_lsm_setxattr",
    "pp_lsm_removexattr",
    "pp_lsm_set_acl",
    "pp_lsm_remove_acl",
    "pp_lsm_read_file",
    "pp_lsm_load_data",
    "pp_lsm_ioctl",
    "pp_lsm_ioctl_compat",
    "pp_lsm_file_setattr",
    "pp_lsm_setrlimit",
    "pp_lsm_setnice",
    "pp_lsm_setioprio",
    "pp_lsm_setscheduler",
    "pp_lsm_movememory",
    "pp_lsm_fs_param",
    "pp_lsm_capable",
    "pp_lsm_netlink",
    "pp_lsm_setsockopt",
    "pp_lsm_unix_connect",
    "pp_lsm_unix_send",
];

/// What the maps hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    guarded: BTreeMap<InodeKey, (u32, u32)>,
    names: BTreeMap<NameKey, u32>,
    mount_namespace: u32,
    network_namespace: u32,
    net_admin: u32,
    taps: [u32; 2],
}

/// One inode, with the mount it was found on.
struct Found {
    key: InodeKey,
    generation: u32,
    mount: u64,
}

/// Finds what is at these paths now.
pub(super) fn find(targets: &[Target], net_admin: NetAdmin) -> Result<Table, KernelError> {
    let devices = devices().map_err(KernelError::io(MOUNTS))?;
    let mut table = Table {
        mount_namespace: namespace("/proc/1/ns/mnt"),
        network_namespace: namespace("/proc/self/ns/net"),
        net_admin: net_admin as u32,
        taps: taps(&fs::read_to_string(CHARACTER_DEVICES).map_err(KernelError::io(CHARACTER_DEVICES))?),
        ..Table::default()
    };
    for target in targets {
        // Both a link and its target are guarded.
        places(&target.path).iter().for_each(|path| table.add(&devices, target, path));
    }
    fits(&GUARDED, table.guarded.len())?;
    fits(&NAMES, table.names.len())?;
    Ok(table)
}

/// Most links that are followed from a path; the kernel follows no more.
const MAX_LINKS: usize = 40;

/// A path, and where it leads: without links in its folders, and through the links at its end. That works also if there is no file: the first
/// process that makes one there would be the one to guard against.
fn places(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![path.to_path_buf()];
    let mut next = Some(path.to_path_buf());
    for _ in 0..MAX_LINKS {
        let Some(at) = next.map(|path| in_real_folder(&path)) else { break };
        next = fs::read_link(&at).ok().and_then(|to| Some(at.parent()?.join(to)));
        if !all.contains(&at) {
            all.push(at);
        }
    }
    all
}

/// The path with its nearest folder that exists written without links.
fn in_real_folder(path: &Path) -> PathBuf {
    let folders = path.ancestors().skip(1);
    let real = folders.filter_map(|folder| Some(fs::canonicalize(folder).ok()?.join(path.strip_prefix(folder).ok()?)));
    real.into_iter().next().unwrap_or_else(|| path.to_path_buf())
}

impl Table {
    fn add(&mut self, devices: &Devices, target: &Target, path: &Path) {
        let later = if target.later { GUARD_LATER } else { 0 };
        if let Some(found) = inode(devices, path) {
            self.guard(&found, later | flags(target.extent));
        }
        // The name is guarded too, so that a new file at the path is guarded at once.
        let mut child = path;
        while let Some(folder) = child.parent() {
            if let (Some(found), Some(name)) = (inode(devices, folder), child.file_name()) {
                if target.extent != Extent::Files {
                    self.guard(&found, GUARD_NAMES);
                    *self.names.entry(NameKey { dir: found.key, hash: hash_name(name.as_bytes()) }).or_default() |= GUARD_SELF | later;
                }
                break;
            }
            child = folder;
        }
        self.above(devices, child);
    }

    /// Guards the folders above, and the mounts that they are on.
    fn above(&mut self, devices: &Devices, path: &Path) {
        for folder in path.ancestors().skip(1) {
            let Some(found) = inode(devices, folder) else { continue };
            self.guard(&found, GUARD_PATH);
            let below = folder.parent().and_then(|up| inode(devices, up));
            if below.is_none_or(|below| below.mount != found.mount) {
                self.guard(&found, GUARD_MOUNT);
            }
        }
    }

    /// Adds flags to an inode. On overlayfs, files of two layers can have the same number in the kernel. Both are then guarded like the
    /// stricter of them, the gate's own.
    fn guard(&mut self, found: &Found, flags: u32) {
        let is_own = |flags: u32| flags & (GUARD_SELF | GUARD_TREE | GUARD_FILES) != 0 && flags & GUARD_LATER == 0;
        let entry = self.guarded.entry(found.key).or_insert((0, found.generation));
        let own = is_own(entry.0) || is_own(flags);
        entry.0 |= flags;
        if own {
            entry.0 &= !GUARD_LATER;
        }
        if entry.1 != found.generation {
            // Zero matches any generation.
            entry.1 = 0;
        }
    }
}

const fn flags(extent: Extent) -> u32 {
    match extent {
        Extent::File => GUARD_SELF,
        Extent::Tree => GUARD_TREE,
        Extent::Files => GUARD_FILES,
    }
}

/// Updates the maps: adds first, then removes.
pub(super) fn write(maps: &Maps, table: &Table) -> Result<(), KernelError> {
    let Table { mount_namespace, network_namespace, net_admin, taps, .. } = *table;
    let watch = Watch { mount_namespace, network_namespace, net_admin, taps, pad: 0 };
    maps.watch.set(0, watch)?;
    let guarded: BTreeMap<_, _> =
        table.guarded.iter().map(|(key, (flags, generation))| (*key, Guard { flags: *flags, generation: *generation })).collect();
    replace(&maps.guarded, &guarded)?;
    replace(&maps.names, &table.names)
}

/// Updates the table of delegates with the paths that exist now, and with what happens to calls of other servers.
pub(super) fn write_delegates(maps: &Maps, delegates: &[Delegate], unknown: Unknown) -> Result<(), KernelError> {
    let devices = devices().map_err(KernelError::io(MOUNTS))?;
    let mut wanted = BTreeMap::from([(DelegateKey { number: 0, dev: 0, by: by::UNLISTED }, unknown as u32)]);
    for delegate in delegates {
        for key in keys(&devices, delegate) {
            // The first delegate that names a socket decides. Policy comes before the shipped ones.
            wanted.entry(key).or_insert(delegate.action as u32);
        }
    }
    maps.delegates.fits(wanted.len())?;
    replace(&maps.delegates, &wanted)
}

fn keys(devices: &Devices, delegate: &Delegate) -> Vec<DelegateKey> {
    let name = |number| DelegateKey { number, dev: 0, by: by::NAME };
    let mut keys: Vec<_> =
        delegate.listeners.iter().map(|comm| DelegateKey { number: hash_name(comm.as_bytes()), dev: 0, by: by::LISTENER }).collect();
    for pattern in &delegate.paths {
        if let Some(bound) = pattern.strip_prefix('@') {
            let bound: Vec<u8> = std::iter::once(0).chain(bound.bytes()).collect();
            keys.push(name(hash_bound(&bound)));
            continue;
        }
        keys.push(name(hash_bound(pattern.as_bytes())));
        for path in crate::delegates::expand(pattern) {
            keys.push(name(hash_bound(path.as_os_str().as_bytes())));
            let real = fs::canonicalize(&path).unwrap_or(path);
            if let Some(found) = inode(devices, &real) {
                keys.push(DelegateKey { number: found.key.ino, dev: found.key.dev, by: by::INODE });
            }
        }
    }
    keys
}

fn replace<K: Pod + Ord, V: Pod>(map: &Locked<HashMap<MapData, K, V>>, wanted: &BTreeMap<K, V>) -> Result<(), KernelError> {
    wanted.iter().try_for_each(|(key, value)| map.insert(key, value))?;
    let over = map.keys()?.into_iter().filter(|key| !wanted.contains_key(key));
    over.into_iter().try_for_each(|key| map.remove(&key))
}

/// Device numbers of mounts by their id, as the kernel has them. Some file systems report another one to `stat`.
type Devices = BTreeMap<u64, u32>;

fn devices() -> io::Result<Devices> {
    Ok(mounts::mounts()?.into_iter().map(|Mount { id, device: (major, minor), .. }| (id, device_number(major, minor))).collect())
}

/// The inode at a path now; of a link, the link itself.
fn inode(devices: &Devices, path: &Path) -> Option<Found> {
    let name = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: plain numbers, all zero is a value.
    let mut found: libc::statx = unsafe { zeroed() };
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    let mask = libc::STATX_INO | libc::STATX_MNT_ID;
    // SAFETY: a path that ends in NUL, and a structure to write to.
    let result = unsafe { libc::statx(libc::AT_FDCWD, name.as_ptr(), flags, mask, &raw mut found) };
    if result != 0 || found.stx_mask & libc::STATX_MNT_ID == 0 {
        return None;
    }
    let dev = *devices.get(&found.stx_mnt_id)?;
    let is_folder = u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
    let ino = if !is_folder && is_overlay(&name) { kernels_ino(path)? } else { found.stx_ino };
    Some(Found { key: InodeKey { ino, dev, folder: is_folder.into() }, generation: generation(path), mount: found.stx_mnt_id })
}

/// Whether the path is on overlayfs. It reports to `stat` the inode number in the layer of a file. The kernel uses another number, and the
/// two kinds collide.
fn is_overlay(path: &CString) -> bool {
    const OVERLAYFS_SUPER_MAGIC: libc::c_long = 0x794c_7630;
    // SAFETY: plain numbers, all zero is a value.
    let mut system: libc::statfs = unsafe { zeroed() };
    // SAFETY: a path that ends in NUL, and a structure to write to.
    let result = unsafe { libc::statfs(path.as_ptr(), &raw mut system) };
    result == 0 && system.f_type == OVERLAYFS_SUPER_MAGIC
}

/// The inode number that the kernel uses for a file. `None` before 5.14, which does not report it. Such a file is guarded by its name only.
fn kernels_ino(path: &Path) -> Option<u64> {
    let options = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let file = fs::OpenOptions::new().read(true).custom_flags(options).open(path).ok()?;
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("ino:"))?.trim().parse().ok()
}

/// The generation of an inode, if its file system is known to report it; else zero, which matches any.
fn generation(path: &Path) -> u32 {
    const FS_IOC_GETVERSION: libc::c_ulong = 0x8008_7601;
    const WITH_GENERATION: [libc::c_long; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];
    let Ok(kind) = fs::symlink_metadata(path) else { return 0 };
    if !kind.is_file() && !kind.is_dir() {
        return 0;
    }
    let options = libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let Ok(file) = fs::OpenOptions::new().read(true).custom_flags(options).open(path) else { return 0 };
    // SAFETY: plain numbers, all zero is a value.
    let mut system: libc::statfs = unsafe { zeroed() };
    // SAFETY: a descriptor of ours and a structure to write to.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut system) } != 0 || !WITH_GENERATION.contains(&system.f_type) {
        return 0;
    }
    let mut version: [u32; 2] = [0; 2];
    // SAFETY: the request writes at most a `long`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETVERSION, version.as_mut_ptr()) };
    if result == 0 { version[0] } else { 0 }
}

const CHARACTER_DEVICES: &str = "/proc/devices";

/// Major numbers of `/dev/tapN`, which the kernel chooses when the module is loaded.
fn taps(devices: &str) -> [u32; 2] {
    let major = |driver: &str| {
        let of = |line: &str| line.trim().split_once(' ').filter(|(_, name)| *name == driver)?.0.parse().ok();
        devices.lines().find_map(of).unwrap_or(0)
    };
    ["macvtap", "ipvtap"].map(major)
}

/// The number of a namespace; zero: not known. Mounts are guarded in that of PID 1, since the systemd unit gives the daemon another one.
/// The network is the daemon's own.
fn namespace(of: &str) -> u32 {
    fs::metadata(of).ok().and_then(|meta| u32::try_from(meta.ino()).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &Path, extent: Extent) -> Target {
        Target { path: path.to_path_buf(), extent, later: false }
    }

    #[test]
    fn a_file_its_name_and_the_folders_above_it_are_guarded() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.json");
        fs::write(&file, "{}").unwrap();
        let table = find(&[target(&file, Extent::File)], NetAdmin::SHIPPED).unwrap();
        let devices = devices().unwrap();
        let flags = |path: &Path| table.guarded[&inode(&devices, path).unwrap().key].0;
        assert_eq!(flags(&file), GUARD_SELF);
        assert_eq!(flags(folder.path()) & (GUARD_NAMES | GUARD_PATH), GUARD_NAMES | GUARD_PATH);
        assert_eq!(flags(Path::new("/")) & (GUARD_PATH | GUARD_MOUNT), GUARD_PATH | GUARD_MOUNT);
        let dir = inode(&devices, folder.path()).unwrap().key;
        assert_eq!(table.names[&NameKey { dir, hash: hash_name(b"keys.json") }], GUARD_SELF);
    }

    #[test]
    fn file_that_shares_a_number_with_another_is_guarded_as_the_gates_own() {
        let found = |generation| Found { key: InodeKey { ino: 7, dev: 1, folder: 0 }, generation, mount: 1 };
        let flags = [GUARD_SELF, GUARD_SELF | GUARD_LATER];
        for order in [flags, [flags[1], flags[0]]] {
            let mut table = Table::default();
            table.guard(&found(3), order[0]);
            table.guard(&found(4), order[1]);
            table.guard(&found(4), GUARD_PATH);
            assert_eq!(table.guarded[&found(0).key], (GUARD_SELF | GUARD_PATH, 0));
        }
        let mut table = Table::default();
        table.guard(&found(3), GUARD_PATH);
        table.guard(&found(3), flags[1]);
        assert_eq!(table.guarded[&found(0).key], (GUARD_SELF | GUARD_LATER | GUARD_PATH, 3));
    }

    #[test]
    fn the_first_missing_part_of_a_path_is_guarded_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let table = find(&[target(&folder.path().join("a/b/c"), Extent::Tree)], NetAdmin::SHIPPED).unwrap();
        let dir = inode(&devices().unwrap(), folder.path()).unwrap().key;
        assert_eq!(table.names.keys().copied().collect::<Vec<_>>(), [NameKey { dir, hash: hash_name(b"a") }]);
    }

    #[test]
    fn a_link_and_what_it_leads_to_are_both_guarded() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let table = find(&[target(&link, Extent::File)], NetAdmin::SHIPPED).unwrap();
        let devices = devices().unwrap();
        for path in [&file, &link] {
            assert_eq!(table.guarded[&inode(&devices, path).unwrap().key].0, GUARD_SELF, "{}", path.display());
        }
    }

    #[test]
    fn a_missing_file_below_a_link_and_one_behind_a_link_that_leads_nowhere_are_guarded_where_they_would_be() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("usr-sbin");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink("usr-sbin", folder.path().join("sbin")).unwrap();
        std::os::unix::fs::symlink("../missing/helper", real.join("nowhere")).unwrap();
        fs::create_dir(folder.path().join("missing")).unwrap();
        let targets = ["sbin/request-key", "sbin/nowhere"].map(|path| target(&folder.path().join(path), Extent::File));
        let table = find(&targets, NetAdmin::SHIPPED).unwrap();
        let devices = devices().unwrap();
        let name = |folder: &Path, name: &[u8]| NameKey { dir: inode(&devices, folder).unwrap().key, hash: hash_name(name) };
        for key in [name(&real, b"request-key"), name(&real, b"nowhere"), name(&folder.path().join("missing"), b"helper")] {
            assert_eq!(table.names.get(&key), Some(&GUARD_SELF), "{key:?}");
        }
        let round = folder.path().join("round");
        std::os::unix::fs::symlink("round", &round).unwrap();
        assert_eq!(places(&round), [round]);
    }

    #[test]
    fn kernel_gives_its_own_number_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let name = CString::new(file.as_os_str().as_bytes()).unwrap();
        if !is_overlay(&name) && fs::read_to_string("/proc/self/fdinfo/0").unwrap().contains("ino:") {
            assert_eq!(kernels_ino(&file), Some(fs::metadata(&file).unwrap().ino()));
        }
    }

    #[test]
    fn taps_are_found_by_the_name_of_their_driver() {
        let text = "Character devices:\n  1 mem\n108 ppp\n237 macvtap\n238 macvtap2\n\nBlock devices:\n  8 sd\n";
        assert_eq!((taps(text), taps("")), ([237, 0], [0, 0]));
    }

    #[test]
    fn device_numbers_are_the_kernels_own() {
        assert_eq!(device_number(98, 0), 98 << 20);
        // On other file systems `stat` reports the same.
        let root = fs::metadata("/proc").unwrap().dev();
        let number = device_number(libc::major(root), libc::minor(root));
        assert!(devices().unwrap().values().any(|device| *device == number));
    }
}
