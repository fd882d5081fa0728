//! Servers on this host that act for whoever asks them. Docker itself is not to be had here: a plain listener at its path stands in for it.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::attack::{Answer, workload};
use pp_tests::coverage;
use pp_tests::harness::By;
use pp_tests::lab::{ENGINEERING, Journal, PLC, Place};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run::{self, Running};
use pp_tests::wait;
use serde_json::Value;

use crate::world::{World, skip, tests};

tests![
    socket_at_dockers_path_is_refused_whatever_the_way_to_it,
    socket_that_policy_names_is_refused_and_one_it_allows_is_not,
    tmux_of_the_operator_is_refused_and_one_of_the_session_is_not,
    system_bus_is_closed_to_root_alone,
    sockets_that_every_program_needs_are_never_touched,
    ports_of_this_host_are_refused_on_all_its_addresses,
    port_of_this_host_that_policy_allows_is_reached,
];

pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}

pub(crate) fn call(daemon: &Daemon, by: &By, words: &[&str]) -> Result<Answer> {
    let arguments: Vec<&str> = std::iter::once("tamper").chain(words.iter().copied()).collect();
    by.attempt(daemon, &workload(daemon.lab(), &arguments, PLC))
}

pub(crate) fn is_gap(world: &mut World) -> Result<bool> {
    let cgroup = world.backend()? == "cgroup";
    let status = world.daemon()?.client()?.status()?;
    let named = status["gaps"].as_array().is_some_and(|gaps| gaps.iter().any(|gap| gap == "unix"));
    ensure!(named == cgroup, "{status}");
    if named {
        coverage::meet("unix");
    }
    Ok(named)
}

/// A program of nobody's that listens where the daemon and the agents are.
struct Served {
    _sink: Running,
    journal: Journal,
}

impl Served {
    fn at(daemon: &Daemon, addresses: &[SocketAddr]) -> Result<Self> {
        let log = daemon.path("own-ports.jsonl");
        let listen: Vec<String> = addresses.iter().map(|address| format!("tcp:{address}")).collect();
        let words: Vec<&str> =
            ["sink", "--log"].into_iter().chain([log.to_str().unwrap_or_default()]).chain(listen.iter().map(String::as_str)).collect();
        let sink = workload(daemon.lab(), &words, PLC);
        let mut sink = Running::start(&mut daemon.lab().command(Place::Engineering, &sink.words))?;
        let _ready = sink.line_with("ready")?;
        Ok(Self { _sink: sink, journal: Journal::new(log) })
    }

    fn connect(&self, daemon: &Daemon, by: &By, dialled: SocketAddr) -> Result<Answer> {
        by.attempt(daemon, &workload(daemon.lab(), &["try", "tcp-connect", &dialled.to_string()], dialled))
    }

    /// Nobody is served, a session is refused and told so, and nothing of it arrives.
    fn refuses(&self, daemon: &Daemon, dialled: SocketAddr, at: SocketAddr) -> Result<()> {
        let before = self.journal.arrivals_at(at).len();
        ensure!(self.connect(daemon, &By::Nobody, dialled)? == Answer::Delivered, "control run at {dialled}");
        let mark = daemon.events().mark();
        let answer = self.connect(daemon, &By::LAB_AGENT, dialled)?;
        ensure!(answer == Answer::Refused(libc::EPERM), "{dialled} by a session: {answer:?}");
        let _event = daemon.events().wait_since(mark, &format!("the event of {dialled}"), |event| {
            event["kind"] == "verdict"
                && event["verdict"] == "block"
                && event["gateway"] == "this-host"
                && event["destination"]["port"] == at.port()
        })?;
        // Connections are accepted in order: behind one more of nobody's, the refused one would have been seen.
        ensure!(self.connect(daemon, &By::Nobody, dialled)? == Answer::Delivered, "control run at {dialled} after it");
        wait::until_true("the control runs' connections", wait::SOON, || self.journal.arrivals_at(at).len() >= before + 2)?;
        ensure!(self.journal.arrivals_at(at).len() == before + 2, "the refused connection to {dialled} arrived");
        Ok(())
    }
}

/// An address of the host's own that is not loopback.
fn own_address(port: u16) -> SocketAddr {
    SocketAddr::new(ENGINEERING, port)
}

/// Nobody is served, a session is refused, and the event names the socket.
fn refused(daemon: &Daemon, words: &[&str], object: &str) -> Result<Value> {
    let answer = call(daemon, &By::Nobody, words)?;
    ensure!(answer == Answer::Delivered, "control run of {words:?}: {answer:?}");
    let mark = daemon.events().mark();
    let answer = call(daemon, &By::LAB_AGENT, words)?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{words:?} by a session: {answer:?}");
    daemon.events().wait_since(mark, &format!("the event of {words:?}"), |event| {
        event["kind"] == "verdict" && event["verdict"] == "block" && event["reason"] == "delegate" && event["object"] == object
    })
}

fn served(daemon: &Daemon, by: &By, words: &[&str]) -> Result<()> {
    let answer = call(daemon, by, words)?;
    ensure!(answer == Answer::Delivered, "{words:?}: {answer:?}");
    Ok(())
}

/// A socket at a path that is free, removed when dropped.
pub(crate) struct Bound {
    path: PathBuf,
    listener: UnixListener,
}

impl Bound {
    pub(crate) fn at(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(Self { path: path.to_path_buf(), listener: UnixListener::bind(path)? })
    }

    /// How many have connected since the last look.
    pub(crate) fn arrivals(&self) -> Result<usize> {
        self.listener.set_nonblocking(true)?;
        let mut count = 0;
        while self.listener.accept().is_ok() {
            count += 1;
        }
        Ok(count)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.path);
    }
}

fn socket_at_dockers_path_is_refused_whatever_the_way_to_it(world: &mut World) -> Result<()> {
    if is_gap(world)? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let path = Path::new("/run/docker.sock");
    if path.exists() {
        return Err(skip("this machine has a docker of its own"));
    }
    let bound = Bound::at(path)?;
    let _event = refused(daemon, &["unix", "/run/docker.sock"], "/run/docker.sock")?;
    ensure!(bound.arrivals()? == 1, "a session's connection arrived");
    let link = daemon.path("link.sock");
    std::os::unix::fs::symlink(path, &link)?;
    let _event = refused(daemon, &["unix", &text(&link)], "/run/docker.sock")?;
    // Bound by another name, and moved to the path: its inode is found at the next look.
    let moved = Path::new("/run/pp-e2e-moved.sock").to_path_buf();
    drop(bound);
    let listener = Bound::at(&moved)?;
    fs::rename(&moved, path)?;
    let _taken = daemon.cli(&["policy", "reload"])?.success()?;
    let _event = refused(daemon, &["unix", "/run/docker.sock"], &text(&moved))?;
    ensure!(listener.arrivals()? == 1, "a session's connection arrived");
    fs::remove_file(path)?;
    fs::remove_file(link)?;
    Ok(())
}

fn socket_that_policy_names_is_refused_and_one_it_allows_is_not(world: &mut World) -> Result<()> {
    if is_gap(world)? {
        return Ok(());
    }
    let directory = world.lab().directory().to_path_buf();
    let (closed, open, datagram) = (directory.join("closed.sock"), directory.join("open.sock"), directory.join("datagram.sock"));
    let policy = Policy::standard(world.lab()).with(&format!(
        "[[delegate]]\nname = \"builder\"\npath = [\"{}\", \"{}\"]\naction = \"refuse\"\n\n\
         [[delegate]]\nname = \"ours\"\npath = [\"{}\"]\naction = \"allow\"\n",
        closed.display(),
        datagram.display(),
        open.display()
    ));
    let daemon = world.sharing(&policy)?;
    let (_closed, _open) = (Bound::at(&closed)?, Bound::at(&open)?);
    let _datagram = UnixDatagram::bind(&datagram)?;
    let _event = refused(daemon, &["unix", &text(&closed)], &text(&closed))?;
    let _event = refused(daemon, &["unix-datagram", &text(&datagram)], &text(&datagram))?;
    served(daemon, &By::run(AGENT), &["unix", &text(&open)])?;
    fs::remove_file(&datagram)?;
    Ok(())
}

fn tmux_of_the_operator_is_refused_and_one_of_the_session_is_not(world: &mut World) -> Result<()> {
    if is_gap(world)? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let (theirs, own) = (text(&daemon.path("tmux-operator")), text(&daemon.path("tmux-session")));
    let tmux = |words: &[&str]| -> Vec<String> { words.iter().map(|word| (*word).to_owned()).collect() };
    let start = ["tmux", "-f", "/dev/null", "-S", &theirs, "new-session", "-d", "sleep 1000"];
    let _started = run::run(&mut daemon.lab().command(Place::Engineering, &start))?.success()?;
    let ask = tmux(&["tmux", "-S", &theirs, "list-sessions"]);
    let control = By::Nobody.run_words(daemon, &ask)?;
    let shown = (|| {
        let _control = control.success()?;
        let mark = daemon.events().mark();
        let output = By::run(AGENT).run_words(daemon, &ask)?;
        ensure!(!output.status.success(), "a session was served by the operator's tmux: {output}");
        daemon.events().wait_since(mark, "its event", |event| event["reason"] == "delegate" && event["object"] == theirs.as_str())
    })();
    let _ended = By::Nobody.run_words(daemon, &tmux(&["tmux", "-S", &theirs, "kill-server"]))?;
    let _event = shown?;
    let script =
        format!("tmux -f /dev/null -S {own} new-session -d 'sleep 1000' && tmux -S {own} list-sessions && tmux -S {own} kill-server");
    let _own = By::run(AGENT).run_words(daemon, &["/bin/bash".into(), "-c".into(), script])?.success()?;
    Ok(())
}

fn system_bus_is_closed_to_root_alone(world: &mut World) -> Result<()> {
    if is_gap(world)? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let path = Path::new("/run/dbus/system_bus_socket");
    if path.exists() {
        return Err(skip("this machine has a system bus of its own"));
    }
    let _bound = Bound::at(path)?;
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    }
    let _event = refused(daemon, &["unix", "/run/dbus/system_bus_socket"], "/run/dbus/system_bus_socket")?;
    let workload = daemon.lab().program("pp-workload").display().to_string();
    let mut words = daemon.cli_words(&["run", "--agent", AGENT, "--"]);
    words.extend([workload, "in".into(), "--uid".into(), "65534".into(), "--".into()]);
    served(daemon, &By::Words(words), &["unix", "/run/dbus/system_bus_socket"])
}

fn sockets_that_every_program_needs_are_never_touched(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let mark = daemon.events().mark();
    for path in [
        "/run/systemd/journal/stdout",
        "/run/systemd/resolve/io.systemd.Resolve",
        "/run/systemd/userdb/io.systemd.Multiplexer",
        "/run/nscd/socket",
        "/tmp/.X11-unix/X93",
        "/run/user/65533/wayland-0",
        "/run/user/65533/keyring/control",
    ] {
        let path = Path::new(path);
        if path.exists() {
            continue;
        }
        let bound = Bound::at(path)?;
        served(daemon, &By::run(AGENT), &["unix", &text(path)])?;
        ensure!(bound.arrivals()? == 1, "{}: nothing arrived", path.display());
    }
    for path in ["/run/systemd/notify", "/run/systemd/journal/socket", "/run/systemd/journal/dev-log"] {
        if Path::new(path).exists() {
            continue;
        }
        let socket = UnixDatagram::bind(path)?;
        let shown = served(daemon, &By::run(AGENT), &["unix-datagram", path]);
        drop(socket);
        fs::remove_file(path)?;
        shown?;
    }
    // A real agent for keys, started by nobody.
    let keys = text(&daemon.path("agent.sock"));
    let mut agent = Running::start(&mut daemon.lab().command(Place::Engineering, &["ssh-agent", "-D", "-a", &keys]))?;
    wait::until_true("the socket of ssh-agent", wait::SOON, || Path::new(&keys).exists() || !agent.is_running())?;
    let script = format!("SSH_AUTH_SOCK={keys} ssh-add -l; [ $? -eq 1 ]");
    let _listed = By::run(AGENT).run_words(daemon, &["/bin/bash".into(), "-c".into(), script])?.success()?;
    let told: Vec<Value> = daemon.events().of_sessions_since(mark).into_iter().filter(|event| event["reason"] == "delegate").collect();
    ensure!(told.is_empty(), "{told:?}");
    Ok(())
}

fn ports_of_this_host_are_refused_on_all_its_addresses(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let (ssh, docker, inspector) = (local(22), own_address(2375), SocketAddr::from((Ipv6Addr::LOCALHOST, 9229)));
    let ordinary = local(5556);
    let served = Served::at(daemon, &[ssh, docker, inspector, ordinary])?;
    served.refuses(daemon, ssh, ssh)?;
    served.refuses(daemon, SocketAddr::from(([0, 0, 0, 0], 22)), ssh)?;
    served.refuses(daemon, docker, docker)?;
    served.refuses(daemon, inspector, inspector)?;
    let checked = daemon.cli(&["check", "127.0.0.1:22", "--agent", AGENT, "--user", "root"])?;
    ensure!(checked.status.code() == Some(1) && checked.stdout.contains("this-host"), "{checked}");
    // Other ports, and what names none, are nobody's business.
    let mark = daemon.events().mark();
    ensure!(served.connect(daemon, &By::run(AGENT), ordinary)? == Answer::Delivered, "an ordinary port of this host");
    let ping = workload(daemon.lab(), &["try", "ping", "127.0.0.1:0"], local(0));
    ensure!(By::run(AGENT).attempt(daemon, &ping)? == Answer::Delivered, "a ping of this host");
    let told = daemon.events().of_sessions_since(mark).into_iter().filter(|event| event["kind"] == "verdict").count();
    ensure!(told == 0, "ordinary traffic within this host made {told} events");
    Ok(())
}

fn port_of_this_host_that_policy_allows_is_reached(world: &mut World) -> Result<()> {
    let policy = Policy::standard(world.lab()).with(
        "[[delegate]]\nname = \"ssh-server\"\naction = \"allow\"\n\n[[delegate]]\nname = \"notebook\"\nport = [8888]\naction = \"refuse\"\n",
    );
    let daemon = world.sharing(&policy)?;
    let (ssh, notebook) = (SocketAddr::from(([127, 0, 0, 1], 22)), own_address(8888));
    let served = Served::at(daemon, &[ssh, notebook])?;
    served.refuses(daemon, notebook, notebook)?;
    ensure!(served.connect(daemon, &By::run(AGENT), ssh)? == Answer::Delivered, "a port that policy allows");
    Ok(())
}
