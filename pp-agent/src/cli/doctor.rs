//! `doctor`: what this kernel can and cannot enforce, and what to change.

mod containers;

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::{Context, DONE, ERROR, Outcome, wait};
use crate::api::{Neighbours, Opening, Status};
use crate::config::{Config, ConfigError, Paths};
use crate::kernel::{BPFFS, Gap};
use crate::keyring::Keyring;
use crate::os::{host, mounts};
use crate::receipt::key::OperatorKey;
use crate::trusted::FileCheck;

/// `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Where programs and maps are pinned.
    #[arg(long, value_name = "DIR", default_value = BPFFS)]
    bpffs: PathBuf,
    /// The policy.
    #[arg(long, value_name = "FILE", default_value = "/etc/pp-agent/policy.toml")]
    policy: PathBuf,
    /// The public keys whose receipts count.
    #[arg(long, value_name = "FILE", default_value = "/etc/pp-agent/keys.json")]
    keys: PathBuf,
}

/// All findings.
#[derive(Serialize)]
struct Report {
    healthy: bool,
    findings: Vec<Finding>,
}

/// One finding.
#[derive(Serialize)]
struct Finding {
    what: &'static str,
    good: bool,
    found: String,
    advice: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self::note(what, found, None)
    }

    fn bad(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, good: false, found: found.into(), advice: Some(advice.into()) }
    }

    /// A finding that is no problem but good to know.
    fn note(what: &'static str, found: impl Into<String>, advice: impl Into<Option<String>>) -> Self {
        Self { what, good: true, found: found.into(), advice: advice.into() }
    }
}

/// Checks everything. Exits with an error code if something keeps the gate from enforcing.
pub(crate) fn doctor(context: &Context, args: &DoctorArgs) -> Outcome {
    let loaded = Config::load(&Paths::beside(&args.policy), FileCheck::ROOT);
    let mut findings = vec![kernel(), btf(), cgroup2(), lsm(), command_line(), pins(&args.bpffs), policy(&args.policy, &loaded)];
    // A refused policy is not in force, and the one in force is unknown here.
    if let Ok(config) = &loaded {
        findings.extend(containers::findings(Path::new("/"), config));
    }
    findings.extend(private_keys(&args.keys));
    findings.extend(daemon(context));
    let healthy = findings.iter().all(|finding| finding.good);
    let report = Report { healthy, findings };
    context.out.show(&report, || {
        let mut lines = Vec::new();
        for finding in &report.findings {
            let mark = if finding.good { "ok " } else { "!! " };
            lines.push(format!("{mark} {:12} {}", finding.what, finding.found));
            let advice = finding.advice.iter().flat_map(|advice| advice.lines());
            lines.extend(advice.map(|line| format!("                 {line}")));
        }
        lines
    })?;
    Ok(if healthy { DONE } else { ERROR })
}

fn kernel() -> Finding {
    let release = host::kernel_release();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 10) {
        Finding::good("kernel", release)
    } else {
        Finding::bad("kernel", release, "this kernel is older than 5.10; boot a newer one")
    }
}

fn btf() -> Finding {
    let path = "/sys/kernel/btf/vmlinux";
    if Path::new(path).exists() {
        Finding::good("btf", path)
    } else {
        Finding::bad("btf", format!("{path} is missing"), "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y")
    }
}

fn cgroup2() -> Finding {
    match mounts::cgroup2_root() {
        Ok(root) => Finding::good("cgroup2", root.display().to_string()),
        Err(error) => Finding::bad("cgroup2", "not mounted", error.to_string()),
    }
}

fn lsm() -> Finding {
    match host::active_lsms() {
        None => {
            let advice = "mount securityfs: mount -t securityfs none /sys/kernel/security".to_owned();
            Finding::note("lsm", "the list of active LSMs cannot be read", advice)
        }
        Some(active) if active.iter().any(|name| name == "bpf") => Finding::good("lsm", active.join(",")),
        Some(active) => {
            let found = format!("{} (bpf is not active: the backend is fmod_ret, or else cgroup)", active.join(","));
            let others: Vec<String> = active.into_iter().filter(|name| name != "capability").collect();
            Finding::note("lsm", found, format!("for the backend lsm, add bpf to the kernel command line: lsm={},bpf", others.join(",")))
        }
    }
}

fn command_line() -> Finding {
    if host::switched_off() {
        Finding::bad("switch", "pp_agent=off on the kernel command line", "remove it and reboot to be protected")
    } else {
        Finding::good("switch", "not switched off on the kernel command line")
    }
}

fn pins(bpffs: &Path) -> Finding {
    match bpffs.try_exists() {
        Ok(true) => Finding::good("pins", bpffs.display().to_string()),
        Ok(false) => Finding::bad(
            "pins",
            format!("{} is not there: nothing is installed in the kernel", bpffs.display()),
            "start the daemon: systemctl start pp-agent",
        ),
        Err(error) => Finding::note("pins", format!("{}: {error}", bpffs.display()), "run doctor as root to see them".to_owned()),
    }
}

fn policy(file: &Path, loaded: &Result<Config, ConfigError>) -> Finding {
    match loaded {
        Ok(config) if config.sources.is_empty() => {
            let found = "none: the built-in services are protected, there are no zones and no receipts";
            Finding::note("policy", found, format!("write {} and check it with pp-agent policy check", file.display()))
        }
        Ok(config) => {
            let remarks = config.off.len() + config.warnings.len() + config.not_read.len();
            let advice = format!("pp-agent policy check {} says what is off, probably not meant or not read", file.display());
            Finding::note("policy", file.display().to_string(), (remarks > 0).then_some(advice))
        }
        Err(error) => Finding::bad("policy", "refused", error.to_string()),
    }
}

/// How to close the gaps of the cgroup backend.
const CLOSED_BY: &str = "closed by the backends lsm and fmod_ret, where the kernel has the hook: see backend above";

/// What an agent can do through a gap.
fn gap_words(gap: Gap) -> &'static str {
    match gap {
        Gap::Packet => "AF_PACKET and AF_XDP sockets can be made, by those with the capability, and send raw frames",
        Gap::Vsock => "vsock sockets can be made: they reach the hypervisor and other virtual machines",
        Gap::Unix => "another process can be asked over a unix socket to connect on the agent's behalf",
        Gap::Ptrace => "another process of the same user can be driven through a debugger's calls",
        Gap::Passed => "a connected socket handed in by another process can be used until its first packet is judged",
        Gap::Orphans => {
            "a refused flow that its program closed cannot be ended (the kernel has no sock_diag that destroys TCP sockets): its packets are refused until hooks are removed"
        }
        Gap::Tamper => "an agent that runs as root can take programs out of the kernel",
    }
}

/// Looks for readable private halves of trusted keys. Everybody who can read one can sign for its owner.
fn private_keys(keys: &Path) -> Vec<Finding> {
    let Ok(keyring) = Keyring::load(keys, FileCheck::Anybody) else { return Vec::new() };
    let mut folders = vec![PathBuf::from("/etc/pp-agent"), PathBuf::from("/root"), PathBuf::from(".")];
    folders.extend(entries(Path::new("/home")));
    let files = folders.iter().flat_map(|folder| entries(folder)).filter(|file| file.extension().is_some_and(|kind| kind == "pem"));
    files
        .filter_map(|file| {
            let id = trusted_private_key(&file, &keyring)?;
            Some(Finding::bad(
                "private key",
                format!("{} is the private half of the trusted key {id}", file.display()),
                "move it to the operator's own machine: an agent on this host that reads it can sign receipts",
            ))
        })
        .collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).map_or(Vec::new(), |entries| entries.flatten().map(|entry| entry.path()).collect())
}

/// The trusted key whose private half is in the file: found by its id, or, if it is not encrypted, by the key itself.
fn trusted_private_key(file: &Path, keyring: &Keyring) -> Option<String> {
    if let Ok(key) = OperatorKey::load(file, || None) {
        return keyring.find_public(&key.public()).map(|trusted| trusted.id().to_owned());
    }
    let text = std::fs::read_to_string(file).ok().filter(|text| text.contains("PRIVATE KEY"))?;
    let id = text.lines().find_map(|line| line.strip_prefix("key-id:"))?.trim().to_owned();
    keyring.find(&id).is_some().then_some(id)
}

fn daemon(context: &Context) -> Vec<Finding> {
    let status = match wait(context.client.get::<Status>("/v1/status")) {
        Ok(status) => status,
        Err(error) => return vec![Finding::bad("daemon", "does not answer", error.to_string())],
    };
    let posture = format!("{}, backend {}", status.posture, status.backend);
    let mut findings = vec![Finding { good: status.posture.refuses(), ..Finding::good("posture", posture) }];
    findings.extend(
        status.switched_off.iter().map(|off| Finding::bad("protection", format!("off {}", off.words()), "switch it on: pp-agent on")),
    );
    findings.extend(status.backends.iter().map(|backend| Finding::good("backend", format!("{}: {}", backend.name, backend.found))));
    findings.extend(status.gaps.iter().map(|gap| {
        let (words, closed) = match gap {
            Opening::Known(gap) => (gap_words(*gap), matches!(gap, Gap::Packet | Gap::Vsock | Gap::Passed)),
            Opening::Found(_) => ("not refused by this build on this kernel", false),
        };
        Finding::note("gap", format!("{gap}: {words}"), closed.then(|| CLOSED_BY.to_owned()))
    }));
    findings.extend(status.namespaces.iter().map(|name| Finding::note("namespace", super::show::namespace(name), ON_THE_HOST.to_owned())));
    if let Neighbours::List(list) = &status.neighbours {
        findings.extend(list.unnamed_networks.iter().map(|unnamed| {
            let found = format!("{} on {}, which carries a protected place: no zone names it", unnamed.network, unnamed.link);
            Finding::note("network", found, UNNAMED.to_owned())
        }));
    }
    findings.extend(status.problems.iter().map(|problem| Finding { good: false, ..Finding::good("problem", problem) }));
    findings
}

/// How to cover the whole host.
const ON_THE_HOST: &str = "to cover the whole host, start the daemon on the host itself without --namespace: systemctl start pp-agent";

/// What a network without a zone may mean, and what to do about it.
const UNNAMED: &str = "a protected device may have an address in it that is open until its first answer is seen, up to 1 s later;\n\
    name the network in a zone, or give the device's mac in policy";
