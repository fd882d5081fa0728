//! The folder of programs that other users run: the lab's Python, which tests start as unprivileged users. These users may be unable to
//! read the checkout, for example below `/root`.
//!
//! It is in [`BASE`], one folder per checkout. Only root can write it and the folders above. `venv` in the checkout's cache is a link into
//! it. Set-up removes the folders of checkouts that no longer exist.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::{paths::Paths, sh};

/// The parent of the folders. `/run` does not do, because some systems mount it `noexec`, and neither does a folder that everybody can
/// write.
pub(crate) const BASE: &str = "/var/cache/pp-lab";
/// The file in each folder that contains the path of its checkout.
const OWNER: &str = "checkout";

/// The folder of a checkout, which need not exist. Without root nothing runs as another user, and the folder is the cache.
pub(crate) fn folder(root: &Path, cache: &Path) -> PathBuf {
    if sh::is_root() { Path::new(BASE).join(key(root)) } else { cache.to_path_buf() }
}

/// A stable name for a checkout.
fn key(root: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    hex::encode(&Sha256::digest(root.as_os_str().as_bytes())[..6])
}

/// Creates the folder, and removes those of checkouts that are gone.
///
/// # Errors
///
/// A folder of that name belongs to another user, or others can write it.
pub(crate) fn ensure(paths: &Paths) -> Result<()> {
    if paths.shared == paths.cache {
        return Ok(());
    }
    let base = Path::new(BASE);
    ours(base)?;
    for gone in gone(base)? {
        sh::say(format!("{}: its checkout is gone, removed", gone.display()));
        fs::remove_dir_all(&gone).with_context(|| format!("{}: not removable", gone.display()))?;
    }
    ours(&paths.shared)?;
    let root = paths.root.to_str().with_context(|| format!("{}: not UTF-8; use another folder", paths.root.display()))?;
    fs::write(paths.shared.join(OWNER), root).with_context(|| format!("{}: not writable", paths.shared.display()))
}

/// Creates a folder that only we can write and everybody can enter, or checks an existing one.
fn ours(folder: &Path) -> Result<()> {
    match fs::create_dir(folder) {
        Ok(()) => fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).with_context(|| folder.display().to_string())?,
        Err(err) if err.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(err) => return Err(err).with_context(|| format!("{}: not creatable", folder.display())),
    }
    // The entry itself: a link may lead anywhere.
    let found = fs::symlink_metadata(folder).with_context(|| folder.display().to_string())?;
    let mine = fs::metadata("/proc/self").context("/proc/self")?.uid();
    ensure!(found.is_dir(), "{}: not a directory; remove it", folder.display());
    ensure!(found.uid() == mine, "{}: belongs to uid {}; remove it", folder.display(), found.uid());
    let mode = found.mode() & 0o7777;
    ensure!(mode & 0o022 == 0, "{}: mode {mode:04o}, others can write; remove it", folder.display());
    ensure!(mode & 0o055 == 0o055, "{}: mode {mode:04o}, others cannot enter; run: chmod 755 {0}", folder.display());
    Ok(())
}

/// Folders whose checkout no longer exists. A folder that names no checkout stays, since another process may be creating it.
fn gone(base: &Path) -> Result<Vec<PathBuf>> {
    let mut gone = Vec::new();
    for entry in fs::read_dir(base).with_context(|| format!("{}: not readable", base.display()))? {
        let folder = entry?.path();
        let Ok(root) = fs::read_to_string(folder.join(OWNER)) else { continue };
        if !Path::new(&root).join("tests/kernels.toml").is_file() {
            gone.push(folder);
        }
    }
    Ok(gone)
}

/// Links `what` into the cache under the same name, for programs that know only the checkout.
pub(crate) fn link(paths: &Paths, what: &Path) -> Result<()> {
    let link = paths.cache.join(what.file_name().context("a name")?);
    if link == what || fs::read_link(&link).is_ok_and(|to| to == what) {
        return Ok(());
    }
    match fs::symlink_metadata(&link) {
        // An earlier set-up created it.
        Ok(found) if found.is_dir() => fs::remove_dir_all(&link).with_context(|| format!("{}: not removable", link.display()))?,
        Ok(_) => fs::remove_file(&link).with_context(|| format!("{}: not removable", link.display()))?,
        Err(_) => fs::create_dir_all(&paths.cache).with_context(|| format!("{}: not creatable", paths.cache.display()))?,
    }
    symlink(what, &link).with_context(|| format!("{}: not creatable", link.display()))
}

/// A command that runs the program as an unprivileged user, or as the current user without root.
pub(crate) fn as_another_user(program: &Path) -> Command {
    let mut command = Command::new(program);
    if sh::is_root() {
        command = sh::cmd("setpriv", ["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(program);
    }
    // That user may be unable to enter the current directory.
    command.current_dir("/");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A temporary directory that is removed on drop.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("pp-xtask-{}-{name}", std::process::id()));
            fs::create_dir(&path).expect("a new directory");
            chmod(&path, 0o755);
            Self(path)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).expect("removable");
        }
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own");
    }

    #[test]
    fn two_checkouts_have_two_folders_and_each_has_one() {
        assert_ne!(key(Path::new("/root/a")), key(Path::new("/root/b")));
        assert_eq!(key(Path::new("/root/a b")), key(Path::new("/root/a b")));
        assert!(key(Path::new("/root/a b")).chars().all(|c| c.is_ascii_hexdigit()));
    }

    #[test]
    fn a_folder_that_others_can_write_or_that_is_a_link_is_refused() {
        let place = Place::new("ours");
        let fresh = place.0.join("fresh");
        ours(&fresh).expect("made");
        ours(&fresh).expect("found");
        for mode in [0o775, 0o757, 0o1777, 0o700] {
            chmod(&fresh, mode);
            assert!(ours(&fresh).is_err(), "{mode:o}");
        }
        chmod(&fresh, 0o755);
        let link = place.0.join("link");
        symlink(&fresh, &link).expect("a link");
        assert!(ours(&link).is_err());
        let dangling = place.0.join("dangling");
        symlink(place.0.join("nowhere"), &dangling).expect("a link");
        assert!(ours(&dangling).is_err());
        assert!(!place.0.join("nowhere").exists());
    }

    #[test]
    fn only_folders_of_checkouts_that_are_gone_are_gone() {
        let place = Place::new("gone");
        let (here, dead, nameless) = (place.0.join("here"), place.0.join("dead"), place.0.join("nameless"));
        for folder in [&here, &dead, &nameless] {
            fs::create_dir(folder).expect("a new directory");
        }
        let root = Paths::find().expect("the workspace").root;
        fs::write(here.join(OWNER), root.to_str().expect("UTF-8")).expect("written");
        fs::write(dead.join(OWNER), "/nowhere/pp-agent").expect("written");
        assert_eq!(gone(&place.0).expect("readable"), [dead]);
    }
}
