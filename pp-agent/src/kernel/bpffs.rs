//! The bpf file system that the gate's maps, programs and links are pinned in.

use std::{fs, io, path::Path};

use super::KernelError;
use crate::os::mounts::{self, MOUNTS};

/// The directory that the daemon of this host pins in.
pub(crate) const BPFFS: &str = "/sys/fs/bpf/pp-agent";

/// Makes sure that `dir` is a private directory on a bpf file system. Mounts one at `/sys/fs/bpf` if there is none.
///
/// # Errors
/// It cannot be mounted, or `dir` is somewhere else.
pub(super) fn pin_directory(dir: &Path) -> Result<(), KernelError> {
    const STANDARD: &str = "/sys/fs/bpf";
    let found = mounts::mounts().map_err(KernelError::io(MOUNTS))?;
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
