//! How the daemon is run.

use std::path::PathBuf;

use clap::Args;

use crate::kernel::BPFFS;
use crate::os::isolation::Kind;

/// How the daemon runs.
#[derive(Clone, Debug, Args)]
pub(crate) struct DaemonArgs {
    /// The policy; drop-ins are read from the folder of its name with `.d`.
    #[arg(long, value_name = "FILE", default_value = "/etc/pp-agent/policy.toml")]
    pub(crate) policy: PathBuf,
    /// The public keys whose receipts count.
    #[arg(long, value_name = "FILE", default_value = "/etc/pp-agent/keys.json")]
    pub(crate) keys: PathBuf,
    /// Where receipts and events are kept.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/pp-agent")]
    pub(crate) state: PathBuf,
    /// Where programs and maps are pinned.
    #[arg(long, value_name = "DIR", default_value = BPFFS)]
    pub(crate) bpffs: PathBuf,
    /// The cgroup2 root, if the mounted one is not to be used.
    #[arg(long, value_name = "DIR")]
    pub(crate) cgroup: Option<PathBuf>,
    /// Start although namespaces of these kinds are not the host's: user, pid, cgroup, mount, network, time.
    #[arg(long, value_name = "KIND", value_delimiter = ',', hide_possible_values = true)]
    pub(crate) namespace: Vec<Kind>,
    /// Seconds between two looks at the hooks, for tests.
    #[arg(long, value_name = "SECONDS", hide = true, value_parser = clap::value_parser!(u64).range(1..=120))]
    pub(crate) watch_period: Option<u64>,
    /// Leave this program out, for tests. Builds for use do not have this option.
    #[cfg(debug_assertions)]
    #[arg(long, value_name = "PROGRAM", hide = true)]
    pub(crate) without_hook: Vec<String>,
}

impl DaemonArgs {
    /// The programs to leave out: none in builds for use, and none where production pins its own.
    #[must_use]
    pub(crate) fn without(&self) -> Vec<String> {
        #[cfg(debug_assertions)]
        if self.bpffs != std::path::Path::new(BPFFS) {
            return self.without_hook.clone();
        }
        Vec::new()
    }
}
