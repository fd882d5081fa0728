//! Builds the initramfs of the virtual machines: busybox, the modules for access to the host's file system, and `/init`.
//!
//! The guest's root is the host's root, read-only over 9p, with a tmpfs overlay on top. Software installed on the host is available in the
//! guest, and the guest can write only to `/out` on the host.
//!
//! `/tmp` is a separate file system. Overlayfs keeps the inode numbers of both layers, so a file in `/tmp` could otherwise have the number
//! of a guarded file of the host.
//!
//! The folders that `/out/shares` lists (`vm.rs`) are mounted in the same way, each at its own path, after everything else. Therefore the
//! guest's `/tmp`, `/run` and `/dev/shm` hide none of them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{fetch::Unpacked, sh};

/// First stage: mounts the host's files and switches to them. The parameters of a run are files in `/out`, because a kernel command line
/// cannot contain every character of a path.
const INIT: &str = r#"#!/bin/busybox sh
bb=/bin/busybox
fail() { echo "pp-init: $*"; $bb poweroff -f; }
for d in proc sys dev ro rw newroot; do $bb mkdir -p /$d; done
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
while read -r module; do $bb insmod "$module" || fail "module $module does not load"; done < /modules.list
opts=trans=virtio,version=9p2000.L,msize=512000
$bb mount -t 9p -o "$opts,ro,cache=loose" hostroot /ro || fail "host root does not mount"
$bb mount -t tmpfs -o size=75% tmpfs /rw
$bb mkdir /rw/up /rw/work
$bb mount -t overlay -o lowerdir=/ro,upperdir=/rw/up,workdir=/rw/work overlay /newroot || fail "overlay does not mount"
cd /newroot
$bb mkdir -p out lib/modules/$($bb uname -r)
$bb mount -t 9p -o "$opts,access=any" out /newroot/out || fail "result share does not mount"
IFS= read -r modules < out/modules
$bb mount --bind "/ro$modules" lib/modules/$($bb uname -r)
$bb mount --move /proc /newroot/proc
$bb mount --move /sys /newroot/sys
$bb mount --move /dev /newroot/dev
$bb mount -t tmpfs -o mode=755 tmpfs /newroot/run
$bb mount -t tmpfs -o mode=1777,size=75% tmpfs /newroot/tmp
$bb mkdir -p /newroot/dev/shm
$bb mount -t tmpfs -o mode=1777 tmpfs /newroot/dev/shm
# A line is the tag of a share and its place.
while IFS= read -r line; do
    tag="${line%% *}" place="/newroot${line#* }"
    $bb mkdir -p "/share/$tag" "/rw/$tag/up" "/rw/$tag/work" "$place"
    $bb mount -t 9p -o "$opts,ro,cache=loose" "$tag" "/share/$tag" || fail "share of $place does not mount"
    $bb mount -t overlay -o "lowerdir=/share/$tag,upperdir=/rw/$tag/up,workdir=/rw/$tag/work" overlay "$place" || fail "overlay on $place does not mount"
done < out/shares
exec $bb switch_root /newroot /usr/bin/busybox sh /out/stage2.sh
"#;

/// The initramfs of one kernel, from the cache or newly built.
pub(crate) fn ensure(kernel: &Unpacked, dir: &Path) -> Result<PathBuf> {
    // The name contains a hash of the script, so that different versions of this program use different files.
    let script = hex::encode(&Sha256::digest(INIT)[..6]);
    let archive = dir.join(format!("initramfs-{script}.cpio.gz"));
    if !archive.is_file() {
        sh::step(&format!("initramfs for {}", kernel.release), || build(kernel, dir, &archive))?;
    }
    Ok(archive)
}

/// Creates the archive atomically, since another run may build it at the same time, and each may be stopped.
fn build(kernel: &Unpacked, dir: &Path, archive: &Path) -> Result<()> {
    let stage = dir.join(format!("stage-{}", process::id()));
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    fs::create_dir_all(stage.join("bin"))?;
    fs::create_dir_all(stage.join("modules"))?;
    let busybox = sh::which("busybox").context("busybox: not installed; run cargo xtask setup")?;
    fs::copy(busybox, stage.join("bin/busybox"))?;
    fs::write(stage.join("init"), INIT)?;
    sh::run_quiet(Command::new("chmod").arg("755").arg(stage.join("init")).arg(stage.join("bin/busybox")))?;
    let mut list = String::new();
    for module in needed_modules(kernel)? {
        let name = unpack(&module, &stage.join("modules"))?;
        list.push_str(&format!("/modules/{name}\n"));
    }
    fs::write(stage.join("modules.list"), list)?;
    let script = "find . -print0 | cpio --null --quiet -H newc -o | gzip -1";
    let whole = stage.with_extension("gz");
    let out = fs::File::create(&whole)?;
    sh::run(Command::new("sh").args(["-c", script]).current_dir(&stage).stdout(Stdio::from(out)))?;
    fs::rename(&whole, archive)?;
    fs::remove_dir_all(&stage)?;
    Ok(())
}

/// The modules that the first stage needs, in load order, according to modprobe for that kernel.
fn needed_modules(kernel: &Unpacked) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = Vec::new();
    for wanted in ["virtio_pci", "9pnet_virtio", "9p", "overlay"] {
        let text = sh::run_quiet(
            Command::new(sh::which("modprobe").context("modprobe: not installed; run cargo xtask setup")?)
                .args(["--show-depends", "-S", &kernel.release, "-d"])
                .arg(&kernel.base)
                .arg(wanted),
        )?;
        for file in text.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let file = PathBuf::from(file.trim());
            if !found.contains(&file) {
                found.push(file);
            }
        }
    }
    Ok(found)
}

/// Copies a module uncompressed (busybox loads no compressed ones); its file name.
fn unpack(module: &Path, into: &Path) -> Result<String> {
    let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (plain, tool) = match name.rsplit_once(".ko") {
        Some((stem, ".xz")) => (format!("{stem}.ko"), "xz"),
        Some((stem, ".zst")) => (format!("{stem}.ko"), "zstd"),
        Some((_, "")) => (name.clone(), "cat"),
        _ => bail!("{}: not a kernel module", module.display()),
    };
    let out = fs::File::create(into.join(&plain))?;
    let mut command = Command::new(tool);
    if tool != "cat" {
        command.arg("-dc");
    }
    sh::run(command.arg(module).stdout(Stdio::from(out)))?;
    Ok(plain)
}
