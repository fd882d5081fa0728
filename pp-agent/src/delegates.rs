//! Delegates: servers of this host that act for their callers. The build ships a list, which policy changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub(crate) use pp_common::delegate::{Action, Unknown};

/// One server, or several of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delegate {
    /// Its name.
    pub(crate) name: String,
    /// What happens to a session that calls it.
    pub(crate) action: Action,
    /// Paths of its sockets. A `*` stands for one part of a path, or for a piece of it. A leading `@` marks an abstract name.
    pub(crate) paths: Vec<String>,
    /// Command names of the processes that listen, as `ps -o comm` shows them.
    pub(crate) listeners: Vec<String>,
    /// TCP ports it listens on; a session is refused these on loopback and on the host's own addresses.
    pub(crate) ports: Vec<u16>,
}

/// The name of this host as a gateway, in events, `check` and authorities. Its ports are those of the delegates.
pub(crate) const THIS_HOST: &str = "this-host";

/// The ports that sessions are refused on the host's own addresses. If two delegates have the same port, the first decides.
#[must_use]
pub(crate) fn own_ports(delegates: &[Delegate]) -> BTreeSet<u16> {
    let mut actions: BTreeMap<u16, Action> = BTreeMap::new();
    for delegate in delegates {
        for port in &delegate.ports {
            let _first = actions.entry(*port).or_insert(delegate.action);
        }
    }
    actions.into_iter().filter(|(_, action)| *action != Action::Allow).map(|(port, _)| port).collect()
}

impl Delegate {
    /// The word for its action.
    #[must_use]
    pub(crate) fn action_name(&self) -> &'static str {
        self.action.name()
    }
}

/// A row of the shipped list.
struct Shipped {
    name: &'static str,
    action: Action,
    paths: &'static [&'static str],
    listeners: &'static [&'static str],
    ports: &'static [u16],
}

/// The shipped list: servers that act for their callers, then servers that do not, which every desktop and many programs call. A server
/// that a session has started itself is never a delegate for that session.
const SHIPPED: [Shipped; 33] = [
    row(
        "docker",
        Action::Refuse,
        &[
            "/run/docker.sock",
            "/var/run/docker.sock",
            "/run/user/*/docker.sock",
            "/home/*/.docker/run/docker.sock",
            "/home/*/.docker/desktop/docker.sock",
            "/home/*/.colima/*/docker.sock",
        ],
        &["dockerd"],
    ),
    row("containerd", Action::Refuse, &["/run/containerd/containerd.sock"], &["containerd"]),
    row("podman", Action::Refuse, &["/run/podman/podman.sock", "/run/user/*/podman/podman.sock"], &["podman"]),
    row("crio", Action::Refuse, &["/run/crio/crio.sock"], &["crio"]),
    row("buildkit", Action::Refuse, &["/run/buildkit/buildkitd.sock"], &["buildkitd"]),
    row(
        "libvirt",
        Action::Refuse,
        &["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock", "/run/libvirt/virtlxcd-sock"],
        &["libvirtd", "virtqemud", "virtlxcd"],
    ),
    row("incus", Action::Refuse, &["/var/lib/incus/unix.socket", "/run/incus/unix.socket"], &["incusd"]),
    row("lxd", Action::Refuse, &["/var/lib/lxd/unix.socket", "/var/snap/lxd/common/lxd/unix.socket"], &["lxd"]),
    row("ssh-master", Action::Refuse, &[], &["ssh"]),
    row("tmux", Action::Refuse, &["/tmp/tmux-*/default"], &["tmux: server"]),
    row("screen", Action::Refuse, &[], &["screen", "SCREEN"]),
    row("user-manager", Action::Refuse, &["/run/user/*/systemd/private", "/run/user/*/bus"], &[]),
    row("system-bus", Action::RefuseRoot, &["/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket"], &[]),
    row("system-manager", Action::RefuseRoot, &["/run/systemd/private"], &[]),
    // What systemd's generator has sshd listen on.
    row("ssh-unix-local", Action::Refuse, &["/run/ssh-unix-local/socket"], &[]),
    // Editors run what they are sent.
    row("neovim", Action::Refuse, &["/run/user/*/nvim.*", "/tmp/nvim.*/*/nvim.*"], &["nvim"]),
    row(
        "emacs",
        Action::Refuse,
        &["/run/user/*/emacs/*", "/tmp/emacs*/*"],
        &["emacs", "emacs-gtk", "emacs-nox", "emacs-lucid", "emacs-pgtk"],
    ),
    // What holds terminals takes keys for them.
    row("dtach", Action::Refuse, &[], &["dtach", "abduco"]),
    row("zellij", Action::Refuse, &["/run/user/*/zellij/*/*", "/tmp/zellij-*/*/*"], &["zellij"]),
    row("terminals", Action::Refuse, &["/run/user/*/wezterm/*"], &["kitty", "wezterm-gui", "wezterm-mux-ser"]),
    // What watches files or processes runs commands when they change.
    row("watchman", Action::Refuse, &["/usr/local/var/run/watchman/*/sock", "/var/run/watchman/*/sock"], &["watchman"]),
    row(
        "process-managers",
        Action::Refuse,
        &["/run/supervisor.sock", "/run/supervisor/supervisor.sock", "/home/*/.pm2/rpc.sock"],
        &["pueued"],
    ),
    tcp("ssh-server", &[22]),
    tcp("docker-tcp", &[2375, 2376]),
    tcp("kubernetes-api", &[6443]),
    tcp("node-inspector", &[9229]),
    tcp("kubelet", &[10250]),
    row(
        "names",
        Action::Allow,
        &[
            "/run/systemd/resolve/*",
            "/run/systemd/userdb/*",
            "/run/systemd/notify",
            "/run/systemd/journal/*",
            "/run/nscd/socket",
            "/var/run/nscd/socket",
            "/var/lib/sss/pipes/*",
            "/run/avahi-daemon/socket",
        ],
        &["nscd", "nslcd", "sssd_nss"],
    ),
    row(
        "keys",
        Action::Allow,
        &[
            "/run/user/*/keyring/*",
            "/run/user/*/gcr/ssh",
            "/run/user/*/gnupg/S.*",
            "/home/*/.gnupg/S.*",
            "/run/user/*/ssh-agent*",
            "/run/user/*/openssh_agent",
            "/tmp/ssh-*/agent.*",
            "/home/*/.cache/git/credential/socket",
        ],
        &["ssh-agent", "gpg-agent", "keyboxd", "dirmngr", "scdaemon", "gnome-keyring-d", "gcr-ssh-agent"],
    ),
    row(
        "display",
        Action::Allow,
        &["/tmp/.X11-unix/*", "/run/user/*/wayland-*"],
        &["Xorg", "Xwayland", "Xvfb", "gnome-shell", "kwin_wayland", "sway", "weston", "ibus-daemon", "fcitx5"],
    ),
    row(
        "sound",
        Action::Allow,
        &["/run/user/*/pulse/*", "/run/user/*/pipewire-*"],
        &["pipewire", "pipewire-pulse", "pulseaudio", "wireplumber"],
    ),
    row("accessibility", Action::Allow, &["/run/user/*/at-spi/*"], &[]),
    // Its watcher of a work tree says which files have changed.
    row("git", Action::Allow, &[], &["git"]),
];

const fn row(name: &'static str, action: Action, paths: &'static [&'static str], listeners: &'static [&'static str]) -> Shipped {
    Shipped { name, action, paths, listeners, ports: &[] }
}

const fn tcp(name: &'static str, ports: &'static [u16]) -> Shipped {
    Shipped { name, action: Action::Refuse, paths: &[], listeners: &[], ports }
}

/// The shipped list.
#[must_use]
pub(crate) fn shipped() -> Vec<Delegate> {
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    SHIPPED
        .iter()
        .map(|row| Delegate {
            name: row.name.to_owned(),
            action: row.action,
            paths: texts(row.paths),
            listeners: texts(row.listeners),
            ports: row.ports.to_vec(),
        })
        .collect()
}

/// The existing paths that match a pattern. A `*` stands for one part of a path, or for a piece of it.
#[must_use]
pub(crate) fn expand(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        found = match part.split_once('*') {
            None => found.into_iter().map(|folder| folder.join(part)).collect(),
            Some((before, after)) => found.iter().flat_map(|folder| matching(folder, before, after)).collect(),
        };
    }
    found.retain(|path| path.symlink_metadata().is_ok());
    found
}

fn matching(folder: &Path, before: &str, after: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let fits = |name: &str| name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after);
    entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(fits)).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_one_part_of_a_path() {
        let folder = tempfile::tempdir().unwrap();
        for user in ["1000", "1001"] {
            std::fs::create_dir(folder.path().join(user)).unwrap();
            std::fs::write(folder.path().join(user).join("bus"), "").unwrap();
        }
        std::fs::create_dir(folder.path().join("1002")).unwrap();
        let pattern = format!("{}/*/bus", folder.path().display());
        assert_eq!(expand(&pattern).len(), 2);
        assert_eq!(expand("/no/such/*/path"), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_desktops_and_names_need_is_not_on_the_list() {
        let never = ["/run/systemd/journal/socket", "/run/systemd/notify", "/run/nscd/socket", "/tmp/.X11-unix/X0", "/run/systemd/userdb"];
        let refused = shipped().into_iter().filter(|delegate| delegate.action != Action::Allow);
        for path in refused.flat_map(|delegate| delegate.paths) {
            assert!(!never.iter().any(|kept| path.starts_with(kept)), "{path}");
        }
    }
}
