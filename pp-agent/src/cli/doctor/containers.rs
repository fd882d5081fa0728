//! Checks whether a rule marks the containers of this host's runtimes, and proposes one.
//!
//! A container is a child of its runtime and not of the session that asked for it. Only its cgroup identifies it. Until a rule names that
//! cgroup, sessions are refused the socket of the runtime.

use std::path::{Path, PathBuf};

use super::Finding;
use crate::config::Config;
use crate::delegates::{self, Action, Delegate};
use crate::name::name_id;

/// Where a runtime puts its containers.
struct Runtime {
    /// Its name in the shipped list of delegates, which knows its sockets.
    name: &'static str,
    /// Units of its containers, on hosts with systemd.
    units: &'static [&'static str],
    /// Cgroups of its containers that are no units.
    cgroups: &'static [&'static str],
    /// Cgroups of some of its containers on hosts with systemd.
    with_systemd: &'static [&'static str],
    without: &'static [&'static str],
}

/// The defaults of the runtimes: manual pages `dockerd(8)` (`--cgroup-parent`), `containers.conf(5)`, `crio.conf(5)`, and containerd's
/// `default` namespace, which `ctr` uses.
const RUNTIMES: [Runtime; 4] = [
    Runtime {
        name: "docker",
        units: &["docker-*.scope"],
        cgroups: &["/docker/*"],
        with_systemd: &["/system.slice/docker-0a1b.scope"],
        without: &["/docker/0a1b"],
    },
    Runtime {
        name: "containerd",
        units: &["cri-containerd-*.scope", "nerdctl-*.scope"],
        cgroups: &["/default/*", "/kubepods/*"],
        with_systemd: &["/kubepods.slice/kubepods-pod1.slice/cri-containerd-0a1b.scope", "/default/0a1b"],
        without: &["/kubepods/pod1/0a1b", "/default/0a1b"],
    },
    Runtime {
        name: "podman",
        units: &["libpod-*.scope"],
        cgroups: &["*/libpod-*"],
        with_systemd: &["/machine.slice/libpod-0a1b.scope", "/user.slice/user-7.slice/user@7.service/user.slice/libpod-0a1b.scope"],
        without: &["/libpod_parent/libpod-0a1b"],
    },
    Runtime {
        name: "crio",
        units: &["crio-*.scope"],
        cgroups: &["*/crio-*"],
        with_systemd: &["/kubepods.slice/kubepods-pod1.slice/crio-0a1b.scope"],
        without: &["/kubepods/pod1/crio-0a1b"],
    },
];

/// One finding for each runtime whose socket exists, below `root` (`/` except in tests).
pub(super) fn findings(root: &Path, config: &Config) -> Vec<Finding> {
    let systemd = root.join("run/systemd/system").is_dir();
    let shipped = delegates::shipped();
    RUNTIMES
        .iter()
        .filter_map(|runtime| {
            let known = shipped.iter().find(|delegate| delegate.name == runtime.name)?;
            let socket = socket(root, known)?;
            let places = if systemd { runtime.with_systemd } else { runtime.without };
            Some(finding(runtime, &socket, action(config, known), marked_by(config, places)))
        })
        .collect()
}

/// The first of its sockets that exists.
fn socket(root: &Path, known: &Delegate) -> Option<PathBuf> {
    known.paths.iter().flat_map(|pattern| delegates::expand(&format!("{}{pattern}", root.display()))).next()
}

/// What happens to a session that calls it. The operator's rows come first.
fn action(config: &Config, known: &Delegate) -> Action {
    let names = |delegate: &&Delegate| delegate.name == known.name || delegate.paths.iter().any(|path| known.paths.contains(path));
    config.delegates.iter().find(names).map_or(known.action, |delegate| delegate.action)
}

/// The agent whose rules name all of these places; `None` if one is missing.
fn marked_by<'a>(config: &'a Config, places: &[&str]) -> Option<&'a str> {
    let mut agents = places.iter().map(|place| config.cgroup_rules.iter().find(|rule| rule.covers(place)).map(|rule| rule.agent));
    let first = agents.next()??;
    if !agents.all(|agent| agent.is_some()) {
        return None;
    }
    config.agents.iter().map(|agent| agent.name.as_str()).find(|name| name_id(name) == first)
}

fn finding(runtime: &Runtime, socket: &Path, action: Action, marked_by: Option<&str>) -> Finding {
    let (name, socket) = (runtime.name, socket.display());
    let (refused, to_whom) = match action {
        Action::Refuse => (true, "sessions"),
        Action::RefuseRoot => (true, "sessions of root"),
        Action::Allow => (false, "sessions"),
    };
    match (marked_by, refused) {
        (None, true) => Finding::note(
            WHAT,
            format!(
                "{name}: no rule marks its containers; till one does, {socket} is refused to {to_whom}, unless the gap unix is listed below"
            ),
            rule(runtime),
        ),
        (None, false) => Finding::bad(
            WHAT,
            format!("{name}: {socket} is allowed to {to_whom}, and no rule marks its containers: an agent's leave its session"),
            rule(runtime),
        ),
        (Some(agent), true) => Finding::note(
            WHAT,
            format!("{name}: agent {agent} marks its containers; {socket} is refused to {to_whom} all the same"),
            format!("to let sessions use it, add to the policy:\n[[delegate]]\nname = \"{name}\"\naction = \"allow\""),
        ),
        (Some(agent), false) => {
            Finding::good(WHAT, format!("{name}: agent {agent} marks its containers; {socket} is allowed to {to_whom}"))
        }
    }
}

const WHAT: &str = "containers";

/// The rule to add, as it is written into the policy.
fn rule(runtime: &Runtime) -> String {
    let list = |words: &[&str]| words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    format!(
        "to govern them, all of them, add to the policy:\n[[agent]]\nname = \"{}-containers\"\nunit = [{}]\ncgroup = [{}]",
        runtime.name,
        list(runtime.units),
        list(runtime.cgroups)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these files in it.
    fn root(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        root
    }

    const SOCKETS: [&str; 4] =
        ["run/docker.sock", "run/containerd/containerd.sock", "run/user/1000/podman/podman.sock", "run/crio/crio.sock"];

    /// The rule that a finding advises.
    fn advised(finding: &Finding) -> String {
        let advice = finding.advice.clone().unwrap();
        advice[advice.find("[[").unwrap()..].to_owned()
    }

    #[test]
    fn hosts_without_a_runtime_have_no_finding() {
        assert!(findings(root(&["run/other.sock"]).path(), &Config::of_text("")).is_empty());
    }

    #[test]
    fn each_runtime_that_is_there_is_refused_to_sessions_and_its_rule_printed() {
        let root = root(&SOCKETS);
        let found = findings(root.path(), &Config::of_text(""));
        let names = ["docker", "containerd", "podman", "crio"];
        assert_eq!(found.len(), names.len());
        for (finding, name) in found.iter().zip(names) {
            assert!(finding.good && finding.found.starts_with(&format!("{name}: no rule marks its containers")), "{}", finding.found);
            assert!(finding.found.contains("is refused to sessions"), "{}", finding.found);
            assert!(advised(finding).starts_with(&format!("[[agent]]\nname = \"{name}-containers\"")));
        }
    }

    #[test]
    fn advised_rules_are_taken_and_mark_the_containers_with_and_without_systemd() {
        for files in [&SOCKETS[..], &[&SOCKETS[..], &["run/systemd/system/any"]].concat()] {
            let root = root(files);
            let rules: Vec<String> = findings(root.path(), &Config::of_text("")).iter().map(advised).collect();
            let found = findings(root.path(), &Config::of_text(&rules.join("\n")));
            assert_eq!(found.len(), SOCKETS.len());
            for finding in &found {
                assert!(finding.good && finding.found.contains("-containers marks its containers"), "{}", finding.found);
                assert!(advised(finding).starts_with("[[delegate]]"));
            }
            // With the advised rules, sessions may use the runtimes and there is no finding left.
            let opened: Vec<String> = rules.into_iter().chain(found.iter().map(advised)).collect();
            for finding in findings(root.path(), &Config::of_text(&opened.join("\n"))) {
                assert!(finding.good && finding.advice.is_none() && finding.found.ends_with("is allowed to sessions"), "{}", finding.found);
            }
        }
    }

    #[test]
    fn rule_for_some_of_the_places_is_not_enough() {
        let root = root(&["run/containerd/containerd.sock"]);
        let found = findings(root.path(), &Config::of_text("[[agent]]\nname = 'some'\ncgroup = ['/default/*']"));
        assert!(found[0].found.starts_with("containerd: no rule"), "{}", found[0].found);
    }

    #[test]
    fn runtime_that_is_allowed_without_a_rule_is_a_fault() {
        let root = root(&["run/docker.sock"]);
        let found = findings(root.path(), &Config::of_text("[[delegate]]\nname = 'docker'\naction = 'allow'"));
        assert!(!found[0].good && advised(&found[0]).starts_with("[[agent]]"), "{}", found[0].found);
    }
}
