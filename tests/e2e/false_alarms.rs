//! Ordinary work in the lab under the policy as it is shipped: zero blocks, zero warnings. What each came to is in `docs/false-alarms.md`.
//!
//! `registries` has the package managers, `browser` the browser; `pp_tests::ordinary` says what is shown of each.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use pp_tests::lab::{GIT, GIT_INSIDE, Place, WEB};
use pp_tests::ordinary::{At, Shown, Trip, Work, trips_nothing};
use pp_tests::paths;
use pp_tests::policy::Policy;

use crate::world::{World, tests};

tests![
    clone_with_submodules_from_an_internal_git_server,
    clone_with_submodules_from_an_external_git_server,
    run_over_ssh_hosts_of_one_network_with_one_policy_line,
    page_with_files_from_sixty_hosts,
    crawl_of_three_hundred_addresses,
    names_with_twelve_a_and_twelve_aaaa_records,
    test_suite_of_hundreds_of_loopback_servers,
    multicast_dns,
];

/// Does the work under the shipped policy.
fn done(world: &mut World, work: &Work<'_>) -> Result<()> {
    let shipped = Policy::shipped(world.lab());
    trips_nothing(world.afresh(&shipped)?, &shipped, work)
}

/// A clone with 15 submodules: one connection for each repository, 16 in all, of which a rule allows 20 in a minute.
fn clone(world: &mut World, name: &'static str, repository: &str, server: SocketAddr, trips: Trip) -> Result<()> {
    let url = world.lab().repository_with_submodules(repository, server.ip(), 15)?;
    let ssh = world.lab().ssh_options();
    let script = |_: &Path| {
        format!(
            "export GIT_SSH_COMMAND='ssh {ssh}'
             git clone -q --recurse-submodules --jobs 4 {url} copy
             expect 'submodules with their files' $(ls copy/part-*/README | wc -l) 15"
        )
    };
    done(world, &Work { name, script: &script, at: At::Lab, needs: "", shown: Shown::Trips(trips) })
}

fn clone_with_submodules_from_an_internal_git_server(world: &mut World) -> Result<()> {
    let _server = world.lab().ssh_server("git-inside", Place::Plant, &[GIT_INSIDE])?;
    let trips = Trip { keys: "ssh_per_minute = 15", reason: "spray_target" };
    clone(world, "git clone with 15 submodules over SSH, internal server", "inside", GIT_INSIDE, trips)
}

fn clone_with_submodules_from_an_external_git_server(world: &mut World) -> Result<()> {
    let trips = Trip { keys: "internal = [\"198.51.100.22/32\"]\nssh_per_minute = 15", reason: "spray_target" };
    clone(world, "git clone with 15 submodules over SSH, external server", "outside", GIT, trips)
}

/// As Ansible does it: five hosts at a time, facts, a folder, a module and its run on one shared connection, and then a second play without
/// sharing.
fn run_over_ssh_hosts_of_one_network_with_one_policy_line(world: &mut World) -> Result<()> {
    let addresses: Vec<SocketAddr> = (11..=22).map(|host| SocketAddr::from(([10, 50, 12, host], 22))).collect();
    let _server = world.lab().ssh_server("fleet", Place::Plant, &addresses)?;
    let ssh = world.lab().ssh_options();
    let script = |work: &Path| {
        format!(
            r#"
            echo 'echo changed; uname -n > "$(dirname "$0")/done"' > module.sh
            fleet() {{
                host=root@10.50.12.$1; there={work}/host-$1
                shared="-o ControlMaster=auto -o ControlPersist=60 -o ControlPath={work}/%h"
                ssh {ssh} $shared $host uname -r > facts-$1
                ssh {ssh} $shared $host mkdir $there
                scp -q {ssh} $shared module.sh $host:$there/
                ssh {ssh} $shared $host sh $there/module.sh > result-$1
                ssh {ssh} $shared -O exit $host
                ssh {ssh} $host cat $there/done > done-$1
                ssh {ssh} $host rm -r $there
            }}
            export -f fleet
            seq 11 22 | xargs -P 5 -I NUMBER bash -euc 'fleet NUMBER'
            expect 'hosts with facts' $(cat facts-* | wc -l) 12
            expect 'hosts that were changed' $(cat result-* | grep -c changed) 12
            expect 'hosts read again' $(cat done-* | wc -l) 12
            "#,
            work = work.display()
        )
    };
    let work = Work {
        name: "SSH run over 12 hosts of one network, as Ansible does it",
        script: &script,
        at: At::Lab,
        needs: "exempt = [\"10.50.12.0/24:22\"]",
        shown: Shown::Trips(Trip { keys: "", reason: "spray_hosts" }),
    };
    done(world, &work)
}

fn page_with_files_from_sixty_hosts(world: &mut World) -> Result<()> {
    let script = |_: &Path| {
        "curl -sSf --parallel --parallel-immediate --parallel-max 60 --max-time 100 --create-dirs -o 'files/#1' 'http://h[1-60].lab/picture.gif'
         expect 'files' $(ls files | wc -l) 60"
            .to_owned()
    };
    let work = Work {
        name: "curl, files of 60 hosts at once by name",
        script: &script,
        at: At::Lab,
        needs: "",
        shown: Shown::Both(61, Trip { keys: "internal = [\"203.0.113.0/24\"]", reason: "scan_hosts" }),
    };
    done(world, &work)
}

fn crawl_of_three_hundred_addresses(world: &mut World) -> Result<()> {
    let script = |_: &Path| {
        format!(
            "wget -q --recursive --level 1 --span-hosts --tries 1 --timeout 20 --directory-prefix pages http://{}/crawl
             expect 'hosts with a page' $(ls -d pages/*/ | wc -l) 301",
            WEB.ip()
        )
    };
    let work = Work {
        name: "wget, a crawl of 300 addresses",
        script: &script,
        at: At::Lab,
        needs: "",
        shown: Shown::Both(301, Trip { keys: "internal = [\"203.0.113.0/24\", \"198.51.100.0/24\"]", reason: "scan_hosts" }),
    };
    done(world, &work)
}

/// Resolving connects a UDP socket to each address, which sends nothing; then each address is connected to, 24 of them internal.
fn names_with_twelve_a_and_twelve_aaaa_records(world: &mut World) -> Result<()> {
    let program = world.lab().directory().join("names.py").display().to_string();
    let python = paths::python()?;
    let script = |_: &Path| {
        format!(
            "told=$({} -B {program} many.lab:80 many.inside.lab:8000)
             expect 'addresses' \"$told\" '{{\"many.lab\": [24, 24], \"many.inside.lab\": [24, 24]}}'",
            python.display()
        )
    };
    let work = Work {
        name: "Python, names with 12 A and 12 AAAA records, external and internal",
        script: &script,
        at: At::Lab,
        needs: "",
        shown: Shown::Both(49, Trip { keys: "hosts_per_port = 12", reason: "scan_hosts" }),
    };
    done(world, &work)
}

fn test_suite_of_hundreds_of_loopback_servers(world: &mut World) -> Result<()> {
    let program = world.lab().directory().join("suite.py").display().to_string();
    let python = paths::python()?;
    let script = |_: &Path| {
        format!(
            "{} -B {program} 10.99.0.2 2> told || {{ cat told >&2; exit 1; }}
             expect 'tests' \"$(grep '^Ran ' told | cut -d ' ' -f 2)\" 350",
            python.display()
        )
    };
    let work = Work {
        name: "Python unittest, 350 servers on loopback and the host's own address",
        script: &script,
        at: At::Lab,
        needs: "",
        // Ports that are free may come again.
        shown: Shown::Both(340, Trip { keys: "count_own = true", reason: "scan_ports" }),
    };
    done(world, &work)
}

fn multicast_dns(world: &mut World) -> Result<()> {
    let program = world.lab().directory().join("mdns.py").display().to_string();
    let python = paths::python()?;
    let script = |_: &Path| format!("expect 'questions' \"$({} -B {program} eth0 10.99.0.2)\" '{{\"heard\": 40}}'", python.display());
    let work = Work {
        name: "multicast DNS, 40 questions",
        script: &script,
        at: At::Lab,
        needs: "",
        shown: Shown::Both(2, Trip { keys: "internal = [\"224.0.0.0/24\", \"ff02::/16\"]\nhosts_per_port = 1", reason: "scan_hosts" }),
    };
    done(world, &work)
}
