//! `CAP_NET_ADMIN` over the host's network is no session's, unless policy says so. Networks of a session's own stay its own.

use anyhow::{Result, ensure};
use nix::libc;
use pp_tests::agent::Daemon;
use pp_tests::attack::Answer;
use pp_tests::harness::{By, Quiet};
use pp_tests::lab::{Place, UDP};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::wait;
use serde_json::Value;

use crate::tamper::{allowed, free, is_stated_gap, refused, tamper};
use crate::world::{World, tests};

tests![
    host_network_cannot_be_changed_by_a_session,
    host_network_cannot_be_changed_by_sockets_that_are_taken_elsewhere,
    packets_are_not_rewritten_behind_the_gate,
    links_are_not_put_into_the_hosts_network,
    networks_that_lead_to_the_host_are_not_a_sessions_own,
    frames_of_another_link_cannot_be_had,
    looking_at_the_hosts_network_is_free,
    networks_of_a_sessions_own_are_its_own,
    policy_may_open_the_hosts_network_with_and_without_events,
];

/// The reason of the event.
const NET_ADMIN: &str = "net_admin";

fn is_hook(event: &Value, hook: &str) -> Result<()> {
    ensure!(event["hook"].as_str().is_some_and(|found| found.ends_with(hook)), "not by {hook}: {event}");
    Ok(())
}

fn host_network_cannot_be_changed_by_a_session(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    allowed(daemon, &["network", "netlink"])?;
    let event = refused(daemon, &["network", "netlink"], NET_ADMIN, None)?;
    is_hook(&event, "capable")?;
    // A route that would send the plant's packets elsewhere, by the tool that people use.
    let route = |what: &str| ["ip", "route", what, "blackhole", "203.0.113.0/24"].map(str::to_owned);
    let done = By::run(AGENT).run_words(daemon, &route("add"))?;
    ensure!(!done.status.success() && done.both().contains("Operation not permitted"), "{done}");
    let control = By::Nobody.run_words(daemon, &route("add"))?;
    ensure!(control.status.success(), "control run: {control}");
    let control = By::Nobody.run_words(daemon, &route("del"))?;
    ensure!(control.status.success(), "control run: {control}");
    Ok(())
}

fn script(text: &str) -> [String; 3] {
    ["/bin/bash", "-c", text].map(str::to_owned)
}

/// An address outside every zone, on the far side of the router, to which datagrams go that are rewritten on their way out.
const ELSEWHERE: &str = "198.51.100.98";
const DEVICE: &str = "d=$(ip -o route get 198.51.100.98 | sed 's/.* dev \\([^ ]*\\).*/\\1/')";

/// Ways to rewrite them so that they go to [`UDP`], and how to end it.
const REWRITING: [(&str, &str); 2] = [
    (
        "nft \"add table netdev pplab; add chain netdev pplab out { type filter hook egress device $d priority 0; }; \
         add rule netdev pplab out ip daddr 198.51.100.98 udp dport 4999 ip daddr set 10.20.4.7 udp dport set 5000\"",
        "nft delete table netdev pplab",
    ),
    (
        "tc qdisc add dev $d clsact && tc filter add dev $d egress protocol ip prio 1 u32 match ip dst 198.51.100.98/32 \
         match ip protocol 17 0xff action pedit ex munge ip dst set 10.20.4.7 munge udp dport set 5000 pipe action csum ip4h udp",
        "tc qdisc del dev $d clsact",
    ),
];

fn packets_are_not_rewritten_behind_the_gate(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let mut shown = 0;
    for (rewrite, end) in REWRITING {
        let attempt =
            |by: &By| by.run_words(daemon, &script(&format!("{DEVICE}; {rewrite}; r=$?; echo x > /dev/udp/{ELSEWHERE}/4999; exit $r")));
        let clear = || By::Nobody.run_words(daemon, &script(&format!("{DEVICE}; {end}")));
        let plant = daemon.lab().plant().from_now();
        let control = attempt(&By::Nobody)?;
        if control.status.success() {
            wait::until_true("the datagram that nobody's program rewrites", wait::SOON, || !plant.packets_to(UDP).is_empty())?;
            shown += 1;
        }
        // Where the kernel has no such rules, part of them may be there.
        let _cleared = clear()?;
        let (quiet, mark) = (Quiet::begin(daemon.lab())?, daemon.events().mark());
        let answer = attempt(&By::run(AGENT))?;
        ensure!(!answer.status.success(), "{rewrite}: {answer}");
        if control.status.success() {
            let _event = daemon.events().wait_since(mark, rewrite, |event| event["reason"] == NET_ADMIN && event["verdict"] == "block")?;
        }
        quiet.assert_nothing_at(UDP)?;
    }
    ensure!(shown > 0, "no way to rewrite packets works on this kernel for anybody");
    Ok(())
}

fn links_are_not_put_into_the_hosts_network(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    // Made in a network of its own, with an end in that of the shell that waits.
    let put = script(
        "unshare -n bash -c \"ip link add pplab0 type veth peer name pplab1 netns $$ && read -t 3 < <(sleep 3)\" & \
         for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.2; ip link show pplab1 && exit 0; done; exit 1",
    );
    let control = By::Nobody.run_words(daemon, &put)?;
    ensure!(control.status.success(), "control run: {control}");
    wait::until_true("the end of that link", wait::SOON, || {
        let left = By::Nobody.run_words(daemon, &["ip", "link", "show", "pplab1"].map(str::to_owned));
        left.is_ok_and(|left| !left.status.success())
    })?;
    let mark = daemon.events().mark();
    let answer = By::run(AGENT).run_words(daemon, &put)?;
    ensure!(!answer.status.success() && answer.both().contains("Operation not permitted"), "{answer}");
    let event = daemon.events().wait_since(mark, "a link in the host's network", |event| event["reason"] == NET_ADMIN)?;
    is_hook(&event, "netlink_send")
}

fn networks_that_lead_to_the_host_are_not_a_sessions_own(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let router = daemon.lab().netns(Place::It).display().to_string();
    let route = |what: &str| ["nsenter", &format!("--net={router}"), "ip", "route", what, "blackhole", "203.0.112.0/24"].map(str::to_owned);
    for what in ["add", "del"] {
        let control = By::Nobody.run_words(daemon, &route(what))?;
        ensure!(control.status.success(), "control run: {control}");
    }
    let mark = daemon.events().mark();
    let answer = By::run(AGENT).run_words(daemon, &route("add"))?;
    ensure!(!answer.status.success() && answer.both().contains("Operation not permitted"), "{answer}");
    let event = daemon.events().wait_since(mark, "a route in the network of a container", |event| event["reason"] == NET_ADMIN)?;
    is_hook(&event, "capable")
}

fn frames_of_another_link_cannot_be_had(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    let _module = By::Nobody.run_words(daemon, &script("modprobe macvtap"))?;
    let devices = std::fs::read_to_string("/proc/devices")?;
    let major = devices.lines().find_map(|line| Some(line.trim().strip_suffix(" macvtap")?.to_owned()));
    // Without the module there are no such devices.
    let Some(major) = major else { return Ok(()) };
    let device = daemon.path("tap");
    let path = device.display().to_string();
    let _made = By::Nobody.run_words(daemon, &["mknod", &path, "c", &major, "77"].map(str::to_owned))?.success()?;
    let answer = By::Nobody.attempt(daemon, &tamper(daemon, &["read", &path]))?;
    ensure!(answer != Answer::Refused(libc::EPERM), "control run: {answer:?}");
    // The daemon finds the module's number within some seconds.
    wait::until_true("the refusal", wait::SOON, || {
        By::LAB_AGENT.attempt(daemon, &tamper(daemon, &["read", &path])).is_ok_and(|answer| answer == Answer::Refused(libc::EPERM))
    })?;
    let _event = refused(daemon, &["read", &path], "tun", Some("tap"))?;
    std::fs::remove_file(&device)?;
    Ok(())
}

/// The kernel asks for the capability in each of these.
fn looking_at_the_hosts_network_is_free(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let mark = daemon.events().mark();
    for look in [
        "ip address && ip route && ip -6 route && ip neighbour && ip -s link",
        "ss -tanmie && ss -uan && ss -xan",
        "ip xfrm state && ip xfrm policy",
        "nft list ruleset",
        "tc qdisc && tc filter show dev lo",
        "cat /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/ip_forward",
        "getent ahosts localhost",
    ] {
        let control = By::Nobody.run_words(daemon, &script(look))?;
        if control.status.success() {
            let looked = By::run(AGENT).run_words(daemon, &script(look))?;
            ensure!(looked.status.success(), "{look}: {looked}");
        }
    }
    free(daemon, &["network", "buffer"])?;
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    nothing_told(world.daemon()?, mark)
}

/// No event is about the host's network. The event of something else comes behind it.
fn nothing_told(daemon: &Daemon, mark: usize) -> Result<()> {
    let _event = refused(daemon, &["bpf", "11"], "bpf", None)?;
    let told: Vec<Value> = daemon.events().of_sessions_since(mark).into_iter().filter(|event| event["reason"] == NET_ADMIN).collect();
    ensure!(told.is_empty(), "{told:?}");
    Ok(())
}

fn host_network_cannot_be_changed_by_sockets_that_are_taken_elsewhere(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let daemon = world.daemon()?;
    for (way, hook) in [("netlink-elsewhere", "netlink_send"), ("number", "netlink_send"), ("device", "file_ioctl")] {
        allowed(daemon, &["network", way])?;
        let event = refused(daemon, &["network", way], NET_ADMIN, None)?;
        is_hook(&event, hook)?;
    }
    // Whether the kernel has such tables is another question: it is asked later.
    let answer = By::Nobody.attempt(daemon, &tamper(daemon, &["network", "option"]))?;
    ensure!(answer != Answer::Refused(libc::EPERM), "control run: {answer:?}");
    let event = refused(daemon, &["network", "option"], NET_ADMIN, None)?;
    is_hook(&event, "socket_setsockopt")
}

fn networks_of_a_sessions_own_are_its_own(world: &mut World) -> Result<()> {
    let is_gap = is_stated_gap(world, "tamper")?;
    let daemon = world.daemon()?;
    let mark = daemon.events().mark();
    // As root, as `crun run` does, by call and by tool; then in a user namespace, as rootless containers do, tun devices included.
    free(daemon, &["network", "netlink-own"])?;
    let workload = daemon.lab().program("pp-workload").display().to_string();
    for words in [&["unshare", "-n", "ip", "link", "set", "lo", "up"][..], &["unshare", "-Urn", "ip", "link", "set", "lo", "up"]] {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let control = By::Nobody.run_words(daemon, &words)?;
        ensure!(control.status.success(), "control run: {control}");
        let output = By::run(AGENT).run_words(daemon, &words)?;
        ensure!(output.status.success(), "{output}");
    }
    if is_gap {
        return Ok(());
    }
    let device = daemon.path("tun-of-its-own").display().to_string();
    let _made = By::Nobody.run_words(daemon, &["mknod", &device, "c", "10", "200"].map(str::to_owned))?.success()?;
    let open = ["unshare", "-Urn", &workload, "tamper", "write", &device].map(str::to_owned);
    let control = By::Nobody.run_words(daemon, &open)?.json()?;
    let answer = By::run(AGENT).run_words(daemon, &open)?.json()?;
    ensure!(answer["ok"] == control["ok"] && answer["errno"] == control["errno"], "a tun device of its own: {answer}, nobody: {control}");
    let told: Vec<Value> = daemon.events().of_sessions_since(mark).into_iter().filter(|event| event["reason"] == "tun").collect();
    ensure!(told.is_empty(), "{told:?}");
    std::fs::remove_file(&device)?;
    nothing_told(daemon, mark)
}

fn policy_may_open_the_hosts_network_with_and_without_events(world: &mut World) -> Result<()> {
    if is_stated_gap(world, "tamper")? {
        return Ok(());
    }
    let policy = |word: &str, world: &World| Policy::standard(world.lab()).with(&format!("[tamper]\nnet_admin = \"{word}\"\n"));
    let observing = policy("observe", world);
    let daemon = world.sharing(&observing)?;
    let mark = daemon.events().mark();
    free(daemon, &["network", "netlink"])?;
    let event = daemon.events().wait_since(mark, "the event of what is observed", |event| event["reason"] == NET_ADMIN)?;
    ensure!(event["verdict"] == "observe" && event["kind"] == "tamper", "{event}");
    let off = daemon.client()?.status()?["off"].to_string();
    ensure!(off.contains("[tamper] net_admin"), "{off}");
    let allowing = policy("allow", world);
    let daemon = world.sharing(&allowing)?;
    let mark = daemon.events().mark();
    free(daemon, &["network", "netlink"])?;
    nothing_told(daemon, mark)?;
    let _restored = world.daemon()?;
    Ok(())
}
