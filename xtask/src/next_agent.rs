//! The agent of the upgrade test: a copy of the agent with another `ABI_VERSION`. The version is stored in the program after a mark
//! (`pp-agent/src/kernel/version.rs`), so that no second build is necessary.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::paths::Paths;

/// Its version; larger than any real one.
const VERSION: u32 = 4_000_000_000;
/// The bytes before the version in the program.
const MARK: &[u8] = b"pp-agent abi version";

/// Its path.
pub(crate) fn file(paths: &Paths) -> PathBuf {
    paths.cache.join("pp-agent-next")
}

/// Creates it from the agent at `agent`.
///
/// # Errors
///
/// The agent does not contain exactly one version.
pub(crate) fn make(paths: &Paths, agent: &Path) -> Result<()> {
    let mut program = fs::read(agent).with_context(|| agent.display().to_string())?;
    patch(&mut program).with_context(|| agent.display().to_string())?;
    // A new file, because a run may have the old one open or linked.
    let file = file(paths);
    let whole = file.with_extension("part");
    fs::write(&whole, program).with_context(|| whole.display().to_string())?;
    fs::set_permissions(&whole, fs::Permissions::from_mode(0o755)).with_context(|| whole.display().to_string())?;
    fs::rename(&whole, &file).with_context(|| file.display().to_string())
}

fn patch(program: &mut [u8]) -> Result<()> {
    let mut found = program.windows(MARK.len() + 4).enumerate().filter(|(_, bytes)| bytes.starts_with(MARK));
    let (at, bytes) = found.next().context("no version in it")?;
    if found.next().is_some() {
        bail!("more than one version in it");
    }
    let now: [u8; 4] = bytes[MARK.len()..].try_into().context("four bytes")?;
    if !(1..VERSION).contains(&u32::from_le_bytes(now)) {
        bail!("its version is {}", u32::from_le_bytes(now));
    }
    program[at + MARK.len()..at + MARK.len() + 4].copy_from_slice(&VERSION.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(versions: &[u32]) -> Vec<u8> {
        let stamp = |version: &u32| [b"code".as_slice(), MARK, &version.to_le_bytes(), b"code"].concat();
        versions.iter().flat_map(stamp).collect()
    }

    #[test]
    fn the_one_version_of_a_program_becomes_a_later_one() {
        let mut next = program(&[5]);
        patch(&mut next).expect("one version");
        assert_eq!(next, program(&[VERSION]));
    }

    #[test]
    fn a_program_without_a_version_or_with_two_is_refused() {
        assert!(patch(&mut program(&[])).is_err());
        assert!(patch(&mut program(&[5, 5])).is_err());
        assert!(patch(&mut program(&[0])).is_err());
        assert!(patch(&mut program(&[VERSION])).is_err());
        assert!(patch(&mut MARK.to_vec()).is_err());
    }
}
