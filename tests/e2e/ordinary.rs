//! Ordinary work of an agent: it works, and it makes no event. And everybody else's work, which is nobody's business here.

use anyhow::{Result, ensure};
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::harness::By;
use pp_tests::lab::{DNS, GIT, OPCUA, PLC, PLC_V6, WEB};
use pp_tests::paths;
use pp_tests::policy::AGENT;

use crate::world::{World, tests};

tests![
    web_pages_load,
    git_clones_and_pushes_over_ssh,
    names_with_many_addresses_resolve,
    names_resolve_with_the_port_of_a_service_too,
    loopback_servers_are_reached,
    programs_that_are_nobodys_reach_the_plant,
];

/// Runs a shell script as the agent; it must succeed without any verdict.
fn undisturbed(daemon: &Daemon, script: &str) -> Result<String> {
    undisturbed_by(daemon, &By::run(AGENT), script)
}

/// The same by an agent that was started so.
pub(crate) fn undisturbed_by(daemon: &Daemon, by: &By, script: &str) -> Result<String> {
    let mark = daemon.events().mark();
    let output = by.run_words(daemon, &["/bin/bash".into(), "-euc".into(), script.into()])?.success()?;
    // The event of a session that began later would come behind any verdict of this one.
    let _later = By::run(AGENT).run_words(daemon, &["/bin/true".into()])?.success()?;
    let told: Vec<_> = daemon.events().of_sessions_since(mark).into_iter().filter(|event| event["kind"] == "verdict").collect();
    ensure!(told.is_empty(), "ordinary work made events: {told:?}");
    Ok(output.stdout)
}

fn web_pages_load(world: &mut World) -> Result<()> {
    let page = undisturbed(world.daemon()?, &page_load())?;
    ensure!(page.contains(PAGE), "{page}");
    Ok(())
}

/// What is on the page that [`page_load`] gets.
pub(crate) const PAGE: &str = "Gateway manual";

/// A script that gets a page of the web site.
pub(crate) fn page_load() -> String {
    format!("curl -sSf --max-time 10 http://{WEB}/manual")
}

fn git_clones_and_pushes_over_ssh(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    undisturbed(daemon, &git_work(daemon, "clone")).map(drop)
}

/// A script that clones over SSH to this folder of the daemon's, commits and pushes.
pub(crate) fn git_work(daemon: &Daemon, folder: &str) -> String {
    let git = daemon.lab().directory().join("git");
    let (git, copy) = (git.display(), daemon.path(folder));
    let copy = copy.display();
    format!(
        "export GIT_SSH_COMMAND='ssh -i {git}/user_key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=20'
         git clone -q ssh://root@{}{git}/project.git {copy}
         cd {copy}; echo {folder} > note.txt; git add note.txt
         git -c user.name=lab -c user.email=lab@example.invalid commit -qm 'a note'
         git push -q origin HEAD:main",
        GIT.ip()
    )
}

/// A script that looks up a name with 24 addresses and prints how many it got.
fn look_up(daemon: &Daemon, port: u16) -> Result<String> {
    let resolver = daemon.path("resolv.conf");
    std::fs::write(&resolver, format!("nameserver {}\noptions timeout:5 attempts:2\n", DNS.ip()))?;
    let python = paths::python()?;
    let program = format!("import socket; print(len({{r[4][0] for r in socket.getaddrinfo('many.lab', {port})}}))");
    // The resolver file is exchanged in a mount namespace of the script's own.
    let inner = format!("mount --bind {} /etc/resolv.conf && {} -c \"{program}\"", resolver.display(), python.display());
    Ok(format!("unshare --mount --propagation private sh -c '{}'", inner.replace('\'', "'\\''")))
}

fn names_with_many_addresses_resolve(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let found = undisturbed(daemon, &look_up(daemon, 443)?)?;
    ensure!(found.trim() == "24", "{found} addresses instead of 12 and 12");
    Ok(())
}

/// The C library sorts addresses by connecting a UDP socket to each, with the port that was asked for.
fn names_resolve_with_the_port_of_a_service_too(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let mark = daemon.events().mark();
    let script = look_up(daemon, 502)?;
    let found = By::run(AGENT).run_words(daemon, &["/bin/bash".into(), "-euc".into(), script])?.success()?.stdout;
    ensure!(found.trim() == "24", "{found} addresses instead of 12 and 12");
    let _later = By::run(AGENT).run_words(daemon, &["/bin/true".into()])?.success()?;
    let told: Vec<_> = daemon.events().of_sessions_since(mark).into_iter().filter(|event| event["kind"] == "verdict").collect();
    let is_of_udp = |event: &serde_json::Value| event["destination"]["transport"] == "udp" && event["destination"]["port"] == 502;
    ensure!(!told.is_empty() && told.iter().all(is_of_udp), "{told:?}");
    Ok(())
}

fn loopback_servers_are_reached(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let workload = daemon.lab().program("pp-workload");
    let workload = workload.display();
    // A Modbus simulator on the developer's own machine is not the plant's.
    let script = format!(
        "{workload} serve 127.0.0.1:502 > {0} & until grep -q ready {0}; do :; done; {workload} try tcp-connect 127.0.0.1:502; wait",
        daemon.path("loopback.out").display()
    );
    let answer = undisturbed(daemon, &script)?;
    ensure!(answer.contains("\"ok\":true"), "{answer}");
    Ok(())
}

fn programs_that_are_nobodys_reach_the_plant(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    for target in [PLC, PLC_V6, OPCUA] {
        let answer = By::Nobody.attempt(daemon, &attack::tcp(daemon.lab(), target))?;
        ensure!(answer == Answer::Delivered, "{target}: {answer:?}");
    }
    let address = PLC.ip().to_string();
    let read = attack::tool(&["mbpoll", "-1", "-t", "4", "-r", "1", "-c", "4", &address], PLC);
    ensure!(By::Nobody.attempt(daemon, &read)? == Answer::Delivered, "mbpoll of nobody's was refused");
    Ok(())
}
