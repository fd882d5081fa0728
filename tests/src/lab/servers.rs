//! The servers of the plant and of the IT side, and the tap in front of the plant.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{
    DNS, DNS_INSIDE, FTP, GATEWAY, GATEWAY_443, GATEWAY_OTHER_PORT, GATEWAY_WEST, GIT, Lab, OPCUA, PLC, PLC_NEIGHBOUR, PLC_OTHER_PORT,
    PLC_V6, Place,
};
use super::{OFFICE_WEB_PORT, SSH, STRAY_MODBUS, STRAY_OTHER, STREAM, UDP, UDP_V6, WEB};
use crate::paths;
use crate::run::Running;

/// One running server; ended when dropped.
pub(super) struct Server {
    name: &'static str,
    running: Running,
}

/// How long all servers together may take to start: Python reads hundreds of files, slowly where the machine is emulated and busy.
const START: Duration = Duration::from_secs(240);

/// The Python servers and clients, by file name.
const SCRIPTS: [(&str, &str); 14] = [
    ("journal.py", include_str!("../../lab/journal.py")),
    ("modbus.py", include_str!("../../lab/modbus.py")),
    ("opcua.py", include_str!("../../lab/opcua.py")),
    ("web.py", include_str!("../../lab/web.py")),
    ("dns.py", include_str!("../../lab/dns.py")),
    ("read_modbus.py", include_str!("../../lab/read_modbus.py")),
    ("spray.py", include_str!("../../lab/spray.py")),
    ("ftp.py", include_str!("../../lab/ftp.py")),
    ("guess.py", include_str!("../../lab/guess.py")),
    ("reach.py", include_str!("../../lab/reach.py")),
    ("read_opcua.py", include_str!("../../lab/read_opcua.py")),
    ("suite.py", include_str!("../../lab/suite.py")),
    ("names.py", include_str!("../../lab/names.py")),
    ("mdns.py", include_str!("../../lab/mdns.py")),
];

/// Starts them all at once, then waits for each.
pub(super) fn start(lab: &Lab) -> Result<Vec<Server>> {
    for (name, text) in SCRIPTS {
        fs::write(lab.directory().join(name), text)?;
    }
    let python = paths::python()?.display().to_string();
    let file = |name: &str| lab.directory().join(name).display().to_string();
    let script = |name: &str, journal: &str, arguments: &[String]| -> Vec<String> {
        [python.clone(), "-B".into(), file(name), file(journal)].into_iter().chain(arguments.iter().cloned()).collect()
    };
    let workload = lab.program("pp-workload").display().to_string();
    let addresses = |list: &[std::net::SocketAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let tap = vec![workload.clone(), "tap".into(), "--log".into(), file("tap.jsonl")];
    let mut sink = vec![
        workload,
        "sink".into(),
        "--log".into(),
        file("servers.jsonl"),
        format!("stream:{STREAM}"),
        format!("tcp:{STRAY_OTHER}"),
        format!("tcp:{GATEWAY_OTHER_PORT}"),
        format!("tcp:0.0.0.0:{}", super::FRESH_PORT),
        format!("tcp:0.0.0.0:{}", super::OTHER_FRESH_PORT),
        format!("tcp:[::]:{}", super::FRESH_PORT_V6),
        format!("tcp:0.0.0.0:{}", super::STRAY_PORT),
        format!("udp:{UDP}"),
        format!("udp:{UDP_V6}"),
    ];
    let modbus = addresses(&[PLC, PLC_OTHER_PORT, PLC_NEIGHBOUR, PLC_V6, STRAY_MODBUS]);
    let gateway = [format!("login={GATEWAY}"), format!("login={GATEWAY_443}"), format!("login={GATEWAY_WEST}")];
    let sites = |port: u16| [format!("site=0.0.0.0:{port}"), format!("site=[::]:{port}")];
    let mut commands = Vec::new();
    if super::is_emulated() {
        sink.push(format!("tcp:{OPCUA}"));
    } else {
        commands.push(("opcua", Place::Plant, script("opcua.py", "servers.jsonl", &addresses(&[OPCUA]))));
    }
    commands.extend([
        ("tap", Place::Plant, tap),
        ("sink", Place::Plant, sink),
        ("modbus", Place::Plant, script("modbus.py", "servers.jsonl", &modbus)),
        ("gateway", Place::Plant, script("web.py", "servers.jsonl", &[&gateway[..], &sites(OFFICE_WEB_PORT)].concat())),
        ("ftp", Place::Plant, script("ftp.py", "servers.jsonl", &addresses(&[FTP]))),
        ("web", Place::It, script("web.py", "it.jsonl", &sites(WEB.port()))),
        ("dns", Place::It, script("dns.py", "it.jsonl", &addresses(&[DNS]))),
        ("dns inside", Place::Plant, script("dns.py", "servers.jsonl", &addresses(&[DNS_INSIDE]))),
    ]);
    let mut servers = Vec::new();
    for (name, place, arguments) in commands {
        let running = Running::start(&mut lab.command(place, &arguments)).context(name)?;
        servers.push(Server { name, running });
    }
    for server in &mut servers {
        let _ready = server.running.line_within("ready", START).context(server.name)?;
    }
    servers.push(git(lab)?);
    servers.push(logins(lab)?);
    Ok(servers)
}

/// An SSH server with one bare repository, and the key that opens it.
fn git(lab: &Lab) -> Result<Server> {
    let directory = lab.directory().join("git");
    fs::create_dir_all(&directory)?;
    let path = |name: &str| directory.join(name).display().to_string();
    succeed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path("user_key")]))?;
    fs::copy(directory.join("user_key.pub"), directory.join("authorized_keys"))?;
    succeed(Command::new("git").args(["init", "-q", "--bare", "--initial-branch=main", &path("project.git")]))?;
    Ok(Server { name: "git", running: ssh_with_key(lab, "git", Place::It, &[GIT])? })
}

/// An SSH server that opens to root with the key of [`git`].
pub(super) fn ssh_with_key(lab: &Lab, name: &str, place: Place, addresses: &[std::net::SocketAddr]) -> Result<Running> {
    let keys = lab.directory().join("git/authorized_keys");
    let listen: String = addresses.iter().map(|address| format!("ListenAddress {address}\n")).collect();
    let more = "PermitRootLogin prohibit-password\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n";
    ssh_server(lab, name, place, &format!("{listen}AuthorizedKeysFile {}\n{more}", keys.display()))
}

/// An SSH server that takes passwords, three on one connection, of which none is right. It penalises nobody: what keeps a tool from guessing
/// on must be the gate.
fn logins(lab: &Lab) -> Result<Server> {
    let configuration = format!("ListenAddress {SSH}\nPermitRootLogin no\nPasswordAuthentication yes\nMaxAuthTries 3\nMaxStartups 1000\n");
    Ok(Server { name: "ssh", running: ssh_server(lab, "ssh", Place::Plant, &configuration)? })
}

/// Starts an SSH server in a folder of its own, and waits until it listens. It logs to `log` in there.
fn ssh_server(lab: &Lab, name: &str, place: Place, configuration: &str) -> Result<Running> {
    let directory = lab.directory().join(name);
    fs::create_dir_all(&directory)?;
    fs::create_dir_all("/run/sshd")?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    let path = |name: &str| directory.join(name).display().to_string();
    succeed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path("host_key")]))?;
    let common = format!("HostKey {}\nStrictModes no\nUsePAM no\nPidFile none\n", path("host_key"));
    let configuration = common + configuration;
    // Newer servers penalise wrong passwords by themselves, unless told otherwise; older ones do not know the word.
    let lenient = configuration.clone() + "PerSourcePenalties no\n";
    fs::write(directory.join("sshd_config"), lenient)?;
    let takes_it = Command::new("/usr/sbin/sshd").args(["-t", "-f", &path("sshd_config")]).output()?.status.success();
    if !takes_it {
        fs::write(directory.join("sshd_config"), configuration)?;
    }
    let arguments = ["/usr/sbin/sshd", "-D", "-E", &path("log"), "-f", &path("sshd_config")];
    let mut running = Running::start(&mut lab.command(place, &arguments)).with_context(|| name.to_owned())?;
    let log = || fs::read_to_string(directory.join("log")).unwrap_or_default();
    crate::wait::until_true("sshd listening", crate::run::PATIENCE, || log().contains("Server listening") || !running.is_running())?;
    ensure!(running.is_running(), "{name}: {}{}", log(), running.stderr());
    Ok(running)
}

/// Runs it; it must end with 0.
pub(super) fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| Path::new(command.get_program()).display().to_string())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
