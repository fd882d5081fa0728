//! The lab's own directory. Other users of the machine enter it and run what is in there.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::sys::stat::{Mode, umask};
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::paths;

/// Makes a directory that was not there, with a name that begins so.
pub(super) fn create(prefix: &str) -> Result<PathBuf> {
    // What the lab writes is for other users too, however careful the shell is that started it.
    let _before = umask(Mode::from_bits_truncate(0o022));
    let candidates = parents();
    let parent = candidates
        .iter()
        .find(|parent| fits(parent))
        .with_context(|| format!("{candidates:?}: closed to other users or mounted noexec, all of them; name another with TMPDIR"))?;
    // Whoever can write there cannot know the name, and a name that is taken is not used.
    let made = tempfile::Builder::new().prefix(prefix).permissions(fs::Permissions::from_mode(0o755)).tempdir_in(parent);
    Ok(made.with_context(|| parent.display().to_string())?.keep())
}

/// Where it may be: with what is temporary, else where set-up put what other users run.
pub(super) fn parents() -> Vec<PathBuf> {
    let mut parents = vec![std::env::temp_dir(), PathBuf::from("/tmp")];
    parents.extend(paths::python().ok().and_then(|python| Some(python.ancestors().nth(3)?.to_path_buf())));
    parents
}

/// Can every user enter it, and may programs in it be run?
fn fits(directory: &Path) -> bool {
    let entered = |place: &Path| fs::metadata(place).is_ok_and(|found| found.is_dir() && found.mode() & 0o001 != 0);
    let Ok(directory) = directory.canonicalize() else { return false };
    directory.ancestors().all(entered) && statvfs(&directory).is_ok_and(|it| !it.flags().contains(FsFlags::ST_NOEXEC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_below_a_closed_one_does_not_fit() {
        let closed = create("pp-test-closed-").expect("made");
        let inner = closed.join("inner");
        fs::create_dir(&inner).expect("made");
        assert!(fits(&inner));
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("our own");
        assert!(!fits(&inner));
        assert!(!fits(&closed.join("nowhere")));
        fs::remove_dir_all(closed).expect("removable");
    }
}
