//! Takes hooks and maps away, without a daemon.

use std::{fs, path::Path};

use super::{
    KernelError,
    pin_lock::{self, TAKEOVER},
    pinned,
};

/// Removes every hook and map. It needs no daemon.
///
/// # Errors
/// A daemon works with the pins, also one whose socket is elsewhere, or a pin cannot be removed.
pub(crate) fn uninstall(bpffs: &Path) -> Result<Removed, KernelError> {
    // No daemon starts meanwhile.
    let _lock = pin_lock::of_nobody(bpffs, TAKEOVER)?;
    remove_all(bpffs)
}

/// Removes every hook and map, for the holder of the pins.
///
/// # Errors
/// A pin cannot be removed.
pub(super) fn remove_all(bpffs: &Path) -> Result<Removed, KernelError> {
    let removed = remove_pins(bpffs, &["links", "maps"])?;
    match fs::remove_dir(bpffs) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(KernelError::io(bpffs.display().to_string())(error)),
        Ok(()) | Err(_) => Ok(removed),
    }
}

/// Removes the pins in these folders, the hooks' before those of maps.
pub(super) fn remove_pins(bpffs: &Path, folders: &[&str]) -> Result<Removed, KernelError> {
    let mut removed = Removed { pins: 0, flows: 0, problem: None };
    for dir in folders {
        // Before the hooks are removed, and again afterwards for what they refused in between. An error does not stop the removal, since
        // the operator asked for it.
        match pinned::end_refused(bpffs) {
            Ok(flows) => removed.flows += flows,
            Err(error) => removed.problem = Some(error),
        }
        let dir = bpffs.join(dir);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(KernelError::io(dir.display().to_string())(error)),
        };
        for entry in entries.flatten() {
            let path = entry.path();
            fs::remove_file(&path).map_err(KernelError::io(path.display().to_string()))?;
            removed.pins += 1;
        }
        fs::remove_dir(&dir).map_err(KernelError::io(dir.display().to_string()))?;
    }
    Ok(removed)
}

/// What `uninstall` did.
#[derive(Debug)]
pub(crate) struct Removed {
    /// Pins that were removed.
    pub(crate) pins: usize,
    /// Flows that were ended because the gate had refused one of their packets.
    pub(crate) flows: usize,
    /// Why not all such flows could be ended.
    pub(crate) problem: Option<KernelError>,
}
