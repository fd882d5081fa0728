//! What dead runs left behind: their namespaces, pins and directories carry the process id of the run, and go when that process is gone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::netns;

/// What names of the lab's namespaces and directories begin with, before the process id.
pub(super) const PREFIX: &str = "pplab-";
/// The same for the directories of pins.
pub(crate) const PINS: &str = "pp-test-";

/// Removes the leftovers of runs whose process is gone.
///
/// # Errors
/// A directory cannot be read.
pub fn sweep() -> Result<()> {
    let names = |directory: &Path| -> Vec<String> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_left_over(name)).collect()
    };
    for namespace in names(Path::new("/run/netns")) {
        netns::remove(&namespace);
    }
    // With nobody holding a link, its pin is what keeps a program attached.
    for parent in super::folder::parents().into_iter().chain([PathBuf::from(crate::agent::BPFFS)]) {
        for directory in names(&parent) {
            // In a test machine another run's directory may be seen through an overlay that cannot remove it.
            if let Err(error) = fs::remove_dir_all(parent.join(&directory)) {
                eprintln!("{}: left behind by an earlier run: {error}", parent.join(&directory).display());
            }
        }
    }
    Ok(())
}

fn is_left_over(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX).or_else(|| name.strip_prefix(PINS)) else { return false };
    let pid: String = rest.chars().take_while(char::is_ascii_digit).collect();
    !pid.is_empty() && !Path::new("/proc").join(pid).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_runs_are_left_over() {
        assert!(is_left_over("pplab-4194305-eng"));
        assert!(!is_left_over(&format!("pplab-{}-eng", std::process::id())));
        assert!(is_left_over("pp-test-4194305-0"));
        assert!(!is_left_over("pplab-venv"));
        assert!(!is_left_over("other"));
    }
}
