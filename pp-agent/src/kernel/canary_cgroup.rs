//! The cgroup of a canary. It is made for one canary, directly below the cgroup that programs are attached to, so outside the daemon's own.
//! In the daemon's own, other programs or filters could refuse the canary, and hooks that cover that cgroup alone would pass for the gate.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What its name begins with, before the daemon's pid.
const PREFIX: &str = "pp-agent-canary-";

/// The cgroup. Dropping it removes it, which needs the canary to have ended.
pub(super) struct CanaryCgroup(PathBuf);

impl CanaryCgroup {
    /// Makes it below this cgroup.
    ///
    /// # Errors
    /// The hierarchy is read-only, or takes no more cgroups.
    pub(super) fn make(below: &Path) -> io::Result<Self> {
        let own = Self(below.join(format!("{PREFIX}{}", std::process::id())));
        match fs::create_dir(&own.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(own.error(&error)),
            Ok(()) | Err(_) => Ok(own),
        }
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// The process has ended, or the kernel refuses the move.
    pub(super) fn take(&self, pid: u32) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).map_err(|error| self.error(&error))
    }

    fn error(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("its cgroup {}: {error}", self.0.display()))
    }
}

impl Drop for CanaryCgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            tracing::debug!("cgroup {}: {error}", self.0.display());
        }
    }
}

/// Removes those that daemons left which were killed.
pub(super) fn sweep(below: &Path) {
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
            && let Err(error) = fs::remove_dir(entry.path())
        {
            tracing::debug!("cgroup {}: {error}", entry.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_is_made_for_one_canary_and_is_gone_afterwards() {
        let below = tempfile::tempdir().unwrap();
        let own = below.path().join(format!("{PREFIX}{}", std::process::id()));
        drop(CanaryCgroup::make(below.path()).unwrap());
        assert!(!own.exists());
        // One that an earlier canary left is used again.
        fs::create_dir(&own).unwrap();
        let cgroup = CanaryCgroup::make(below.path()).unwrap();
        assert!(own.exists());
        drop(cgroup);
        assert!(!own.exists());
        let error = CanaryCgroup::make(&below.path().join("none")).err().unwrap();
        assert!(error.to_string().starts_with("its cgroup "), "{error}");
    }

    #[test]
    fn only_cgroups_of_daemons_that_have_ended_are_swept() {
        let below = tempfile::tempdir().unwrap();
        let (dead, own, other) =
            (format!("{PREFIX}4194305"), format!("{PREFIX}{}", std::process::id()), "pp-agent-canary-of-mine".to_owned());
        for name in [&dead, &own, &other] {
            fs::create_dir(below.path().join(name)).unwrap();
        }
        sweep(below.path());
        assert!(!below.path().join(dead).exists());
        assert!(below.path().join(own).exists() && below.path().join(other).exists());
    }
}
