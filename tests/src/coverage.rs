//! The table of ways around the gate, each with its form of address and the test that tries it. The suite, `cargo xtask coverage` and
//! `docs/coverage.md` all come from this one table.
//!
//! A row is *closed* when the attempt was refused, had its event and nothing arrived, and the same attempt by nobody's process did arrive;
//! a *gap* when it arrived and the daemon says of itself that this is open here; *open* when it arrived and the daemon does not say so;
//! *undeliverable* when it does not arrive on this kernel whoever makes it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::report::Entry;

/// The group of the tests that this table makes.
pub const GROUP: &str = "coverage";

/// One way around, with one form of address.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// The way, in words.
    pub technique: &'static str,
    /// The form of the address.
    pub form: &'static str,
    /// How it is tried.
    pub how: How,
    /// The gap that it falls into where no hook can see it.
    pub gap: Option<&'static str>,
    /// The reason of its refusal.
    pub reason: &'static str,
}

/// How a way around is tried.
#[derive(Clone, Copy, Debug)]
pub enum How {
    /// This technique of the workload program, beside all others.
    Try(&'static str, At),
    /// A core of techniques by a process that was made so.
    Process(&'static [&'static str]),
    /// A core of techniques by a process that was moved to, or made in, another cgroup.
    InCgroup(&'static [&'static str]),
    /// A socket that somebody else opened: how it comes, what was done with it before, how it is written to.
    Held(Via, &'static str, &'static str),
    /// Another connect program at the root, attached later: it undoes refusals, or sends connects to another address.
    Override(Rewrite),
    /// A network namespace of its own with the target in it.
    NewNetwork,
    /// A test of another group, by its whole name.
    Test(&'static str),
}

/// Where a technique goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// An address of the zone.
    V4,
    /// An address of the zone, by IPv6.
    V6,
    /// An IPv4 address of the zone in its IPv6-mapped form.
    Mapped,
    /// A protected service outside every zone.
    Service,
    /// The same in its IPv6-mapped form.
    ServiceMapped,
    /// This host, by an address that the kernel takes for it; a zone covers loopback.
    Local(&'static str),
    /// The neighbour by its link-local address; a zone covers those.
    Link,
    /// The directed broadcast of the zone.
    Broadcast,
    /// No address: the attempt itself says whether it arrived.
    Nowhere,
}

/// How a socket comes to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Left open for `pp-agent run`.
    Run,
    /// Left open for a program that a rule names.
    Exec,
    /// `SCM_RIGHTS`.
    Passed,
    /// `pidfd_getfd`.
    Copied,
    /// Not at all: a server over a unix socket acts for whoever asks.
    Relay,
}

/// What another connect program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// Says that the connect is allowed after all.
    Allow,
    /// Writes a protected address over a harmless one.
    Address,
}

const fn line(technique: &'static str, form: &'static str, how: How) -> Line {
    Line { technique, form, how, gap: None, reason: "no_receipt" }
}

const fn sent(technique: &'static str, form: &'static str, name: &'static str, at: At) -> Line {
    line(technique, form, How::Try(name, at))
}

/// Sockets of this kind are refused where a hook sees them made, and a gap elsewhere.
const fn family(technique: &'static str, form: &'static str, name: &'static str, at: At, gap: &'static str) -> Line {
    Line { gap: Some(gap), reason: "socket_family", ..sent(technique, form, name, at) }
}

const fn malformed(technique: &'static str, form: &'static str, name: &'static str, at: At) -> Line {
    Line { reason: "malformed", ..sent(technique, form, name, at) }
}

const fn process(technique: &'static str, words: &'static [&'static str]) -> Line {
    line(technique, "all", How::Process(words))
}

const fn held(technique: &'static str, via: Via, state: &'static str, way: &'static str) -> Line {
    Line { gap: Some("passed"), ..line(technique, "v4", How::Held(via, state, way)) }
}

const fn unconnected(technique: &'static str, via: Via, state: &'static str) -> Line {
    line(technique, "v4", How::Held(via, state, "send"))
}

const fn elsewhere(technique: &'static str, form: &'static str, test: &'static str) -> Line {
    line(technique, form, How::Test(test))
}

/// No address is in it: the way round leads over something else on this host.
const fn beside(technique: &'static str, gap: &'static str, test: &'static str) -> Line {
    Line { gap: Some(gap), ..elsewhere(technique, "-", test) }
}

/// Every way around.
pub static TABLE: &[Line] = &[
    sent("TCP connect", "v4", "tcp-connect", At::V4),
    sent("TCP connect", "v6", "tcp-connect", At::V6),
    sent("TCP connect", "mapped", "tcp-connect", At::Mapped),
    sent("TCP connect", "scope id", "tcp-scoped", At::V6),
    sent("TCP connect", "link-local", "tcp-scoped", At::Link),
    sent("TCP connect", "service", "tcp-connect", At::Service),
    sent("TCP connect", "service, mapped", "tcp-connect", At::ServiceMapped),
    sent("TCP connect", "127.0.0.1", "tcp-connect", At::Local("127.0.0.1")),
    sent("TCP connect", "0.0.0.0", "tcp-connect", At::Local("0.0.0.0")),
    sent("TCP connect", "::", "tcp-connect", At::Local("[::]")),
    sent("TCP connect", "::1", "tcp-connect", At::Local("[::1]")),
    sent("TCP connect", "::ffff:0.0.0.0", "tcp-connect", At::Local("[::ffff:0.0.0.0]")),
    sent("TCP connect", "::ffff:127.0.0.1", "tcp-connect", At::Local("[::ffff:127.0.0.1]")),
    sent("TCP reconnect by AF_UNSPEC", "v4", "tcp-reconnect", At::V4),
    sent("MPTCP connect", "v4", "mptcp", At::V4),
    sent("MPTCP connect", "v6", "mptcp", At::V6),
    sent("MPTCP connect", "mapped", "mptcp", At::Mapped),
    sent("MPTCP connect", "service", "mptcp", At::Service),
    sent("MPTCP sendto MSG_FASTOPEN", "v4", "mptcp-fastopen", At::V4),
    sent("sendto MSG_FASTOPEN", "v4", "fastopen", At::V4),
    sent("sendto MSG_FASTOPEN", "v6", "fastopen", At::V6),
    sent("sendto MSG_FASTOPEN", "mapped", "fastopen", At::Mapped),
    sent("sendto MSG_FASTOPEN", "service", "fastopen", At::Service),
    sent("sendto MSG_FASTOPEN", "0.0.0.0", "fastopen", At::Local("0.0.0.0")),
    sent("sendto MSG_FASTOPEN", "::", "fastopen", At::Local("[::]")),
    sent("sendmsg MSG_FASTOPEN", "v4", "fastopen-sendmsg", At::V4),
    sent("TCP_FASTOPEN_CONNECT, write", "v4", "fastopen-connect", At::V4),
    sent("TCP_FASTOPEN_CONNECT, write", "v6", "fastopen-connect", At::V6),
    sent("TCP_FASTOPEN_CONNECT, write", "mapped", "fastopen-connect", At::Mapped),
    sent("TCP_FASTOPEN_CONNECT, write", "service", "fastopen-connect", At::Service),
    sent("UDP sendto", "v4", "udp-sendto", At::V4),
    sent("UDP sendto", "v6", "udp-sendto", At::V6),
    sent("UDP sendto", "mapped", "udp-sendto", At::Mapped),
    sent("UDP sendto", "AF_UNSPEC", "udp-unspec", At::V4),
    sent("UDP sendto", "AF_INET on a v6 socket", "udp-inet-on-v6", At::V4),
    sent("UDP sendto", "scope id", "udp-scoped", At::V6),
    sent("UDP sendto", "link-local", "udp-scoped", At::Link),
    sent("UDP sendto", "service", "udp-sendto", At::Service),
    sent("UDP sendto", "service, mapped", "udp-sendto", At::ServiceMapped),
    sent("UDP sendto", "127.0.0.1", "udp-sendto", At::Local("127.0.0.1")),
    sent("UDP sendto", "0.0.0.0", "udp-sendto", At::Local("0.0.0.0")),
    sent("UDP sendto", "::", "udp-sendto", At::Local("[::]")),
    sent("UDP sendto", "::ffff:0.0.0.0", "udp-sendto", At::Local("[::ffff:0.0.0.0]")),
    sent("UDP sendto", "directed broadcast", "udp-broadcast", At::Broadcast),
    sent("UDP sendmsg", "v4", "udp-sendmsg", At::V4),
    sent("UDP sendmsg", "v6", "udp-sendmsg", At::V6),
    sent("UDP sendmsg", "mapped", "udp-sendmsg", At::Mapped),
    sent("UDP sendmsg, segmented", "v4", "udp-segmented", At::V4),
    sent("UDP connect, send", "v4", "udp-connect-send", At::V4),
    sent("UDP connect, send", "v6", "udp-connect-send", At::V6),
    sent("UDP connect, send", "mapped", "udp-connect-send", At::Mapped),
    sent("UDP connect, send", "service", "udp-connect-send", At::Service),
    sent("UDP connect, send", "0.0.0.0", "udp-connect-send", At::Local("0.0.0.0")),
    sent("UDP connect, write", "v4", "udp-connect-write", At::V4),
    sent("UDP connected elsewhere, sendto", "v4", "udp-connected-elsewhere", At::V4),
    sent("UDP connected elsewhere, sendto", "mapped", "udp-connected-elsewhere", At::Mapped),
    sent("UDP connected elsewhere, sendto", "service", "udp-connected-elsewhere", At::Service),
    sent("sendmmsg", "v4", "sendmmsg", At::V4),
    sent("sendmmsg", "v6", "sendmmsg", At::V6),
    sent("sendmmsg", "mapped", "sendmmsg", At::Mapped),
    sent("sendmmsg", "service", "sendmmsg", At::Service),
    sent("UDP-Lite connect, send", "v4", "udplite", At::V4),
    sent("UDP-Lite connect, send", "v6", "udplite", At::V6),
    sent("UDP-Lite connect, send", "mapped", "udplite", At::Mapped),
    sent("UDP-Lite sendto", "v4", "udplite-sendto", At::V4),
    sent("SCTP connect", "v4", "sctp", At::V4),
    sent("SCTP connect", "v6", "sctp", At::V6),
    sent("SCTP connect", "mapped", "sctp", At::Mapped),
    sent("SCTP sendto on a one-to-many socket", "v4", "sctp-many", At::V4),
    sent("SCTP connectx", "v4", "sctp-connectx", At::V4),
    sent("DCCP connect", "v4", "dccp", At::V4),
    sent("SMC connect", "v4", "smc", At::V4),
    sent("ping socket", "v4", "ping", At::V4),
    sent("ping socket", "v6", "ping", At::V6),
    malformed("ping socket, source route", "v4", "ping-source-route", At::V4),
    sent("raw socket, ICMP", "v4", "raw-icmp", At::V4),
    sent("raw socket, ICMP", "v6", "raw-icmp", At::V6),
    sent("raw socket, protocol without ports", "v4", "raw-protocol", At::V4),
    sent("raw socket, protocol without ports", "v6", "raw-protocol", At::V6),
    sent("raw socket, forged header", "v4", "raw-hdrincl", At::V4),
    sent("raw socket, forged header", "v6", "raw-hdrincl", At::V6),
    sent("raw socket, forged header", "service", "raw-hdrincl", At::Service),
    malformed("raw socket, forged header with a source route", "v4", "raw-source-route", At::V4),
    sent("io_uring CONNECT", "v4", "uring-connect", At::V4),
    sent("io_uring CONNECT", "v6", "uring-connect", At::V6),
    sent("io_uring CONNECT", "mapped", "uring-connect", At::Mapped),
    sent("io_uring CONNECT", "service", "uring-connect", At::Service),
    sent("io_uring CONNECT by a worker", "v4", "uring-connect-worker", At::V4),
    sent("io_uring CONNECT by a worker", "mapped", "uring-connect-worker", At::Mapped),
    sent("io_uring CONNECT by a worker", "service", "uring-connect-worker", At::Service),
    sent("io_uring CONNECT by the polling thread", "v4", "uring-connect-poll", At::V4),
    sent("io_uring CONNECT by the polling thread", "service", "uring-connect-poll", At::Service),
    sent("io_uring SENDMSG", "v4", "uring-sendmsg", At::V4),
    sent("io_uring SENDMSG", "v6", "uring-sendmsg", At::V6),
    sent("io_uring SENDMSG by a worker", "v4", "uring-sendmsg-worker", At::V4),
    sent("io_uring SENDMSG by a worker", "service", "uring-sendmsg-worker", At::Service),
    sent("io_uring SENDMSG by the polling thread", "mapped", "uring-sendmsg-poll", At::Mapped),
    sent("io_uring SENDMSG by the polling thread", "service", "uring-sendmsg-poll", At::Service),
    family("AF_PACKET", "v4", "packet", At::V4, "packet"),
    family("AF_PACKET by its old name", "v4", "packet-old-name", At::V4, "packet"),
    family("AF_RXRPC", "v4", "rxrpc", At::V4, "packet"),
    family("vsock connect", "-", "vsock", At::Nowhere, "vsock"),
    process("process: fork", &["become", "fork"]),
    process("process: vfork", &["become", "vfork"]),
    process("process: clone3 CLONE_PARENT", &["become", "sibling"]),
    How::cgroup("process: clone3 CLONE_INTO_CGROUP", &["become", "into-cgroup", "--cgroup"]),
    How::cgroup("process: moved to another cgroup", &["in", "--cgroup"]),
    process("process: double fork, setsid", &["become", "double-fork"]),
    process("process: five deep", &["tree", "--depth", "5"]),
    process("process: exec by another thread", &["become", "exec-by-thread"]),
    process("process: thread whose leader has exited", &["leader-gone"]),
    process("process: memfd, execveat", &["become", "memfd"]),
    process("process: ld.so ./program", &["become", "loader"]),
    process("process: script", &["become", "script"]),
    process("process: setuid", &["in", "--uid", "65534"]),
    process("process: new user namespace", &["become", "user-namespace"]),
    process("process: new pid namespace", &["become", "pid-namespace"]),
    process("process: new mount, ipc and uts namespaces", &["become", "mount-and-ipc-namespaces"]),
    process("process: another network namespace and back", &["become", "there-and-back"]),
    line("process: new network namespace", "v4", How::NewNetwork),
    unconnected("inherited by run: TCP, then connect", Via::Run, "tcp"),
    unconnected("inherited by run: UDP, then connect, send", Via::Run, "udp"),
    held("inherited by run: connected TCP, send", Via::Run, "tcp-connected", "send"),
    held("inherited by run: connected TCP, write", Via::Run, "tcp-connected", "write"),
    held("inherited by run: connected TCP, sendfile", Via::Run, "tcp-connected", "sendfile"),
    held("inherited by run: connected TCP, splice", Via::Run, "tcp-connected", "splice"),
    held("inherited by run: connected TCP, io_uring by a worker", Via::Run, "tcp-connected", "uring-worker"),
    held("inherited by run: connected UDP, write", Via::Run, "udp-connected", "write"),
    held("inherited by run: connected UDP, splice", Via::Run, "udp-connected", "splice"),
    unconnected("inherited by a rule's program: TCP, then connect", Via::Exec, "tcp"),
    held("inherited by a rule's program: connected TCP, send", Via::Exec, "tcp-connected", "send"),
    held("inherited by a rule's program: connected TCP, sendfile", Via::Exec, "tcp-connected", "sendfile"),
    held("inherited by a rule's program: connected TCP, splice", Via::Exec, "tcp-connected", "splice"),
    held("inherited by a rule's program: connected UDP, sendfile", Via::Exec, "udp-connected", "sendfile"),
    unconnected("SCM_RIGHTS: TCP, then connect", Via::Passed, "tcp"),
    unconnected("SCM_RIGHTS: UDP, then connect, send", Via::Passed, "udp"),
    held("SCM_RIGHTS: connected TCP, send", Via::Passed, "tcp-connected", "send"),
    held("SCM_RIGHTS: connected TCP, sendfile", Via::Passed, "tcp-connected", "sendfile"),
    held("SCM_RIGHTS: connected TCP, splice", Via::Passed, "tcp-connected", "splice"),
    held("SCM_RIGHTS: connected UDP, io_uring", Via::Passed, "udp-connected", "uring"),
    unconnected("pidfd_getfd: TCP, then connect", Via::Copied, "tcp"),
    held("pidfd_getfd: connected TCP, send", Via::Copied, "tcp-connected", "send"),
    held("pidfd_getfd: connected TCP, sendfile", Via::Copied, "tcp-connected", "sendfile"),
    held("pidfd_getfd: connected UDP, write", Via::Copied, "udp-connected", "write"),
    Line { gap: Some("unix"), ..line("unix stream to a server that acts for the caller", "-", How::Held(Via::Relay, "tcp", "send")) },
    elsewhere("UDP answer to what a device tells everybody", "v4", "peers::device_that_tells_everybody_was_not_asked_by_it"),
    elsewhere("UDP answer to what a device tells everybody", "v6", "peers::device_that_tells_everybody_by_ipv6_was_not_asked_by_it"),
    elsewhere(
        "UDP answer to a forged question, bound to any address",
        "v4",
        "peers::datagram_from_a_socket_bound_to_the_device_is_none_of_its",
    ),
    elsewhere(
        "UDP answer to a forged question, bound to any address",
        "v6",
        "peers::datagram_from_a_socket_bound_to_the_device_is_none_of_its_by_ipv6",
    ),
    elsewhere(
        "UDP answer to a forged question, handed back by the interface",
        "v4",
        "peers::datagram_that_the_interface_hands_back_is_none_of_the_devices",
    ),
    elsewhere(
        "UDP answer to a forged question, handed back by the interface",
        "v6",
        "peers::datagram_that_the_interface_hands_back_is_none_of_the_devices_by_ipv6",
    ),
    elsewhere("UDP answer to a forged question, raw", "v4", "peers::datagram_from_a_raw_socket_is_none_of_the_devices"),
    elsewhere("UDP answer to a forged question, raw", "v6", "peers::datagram_from_a_raw_socket_is_none_of_the_devices_by_ipv6"),
    elsewhere("raw socket that hears what others are sent", "v4", "peers::raw_socket_hears_for_nobody"),
    elsewhere("TCP answer to a forged client", "v4", "peers::client_forged_through_loopback_is_not_answered"),
    elsewhere("MPTCP listener that a device dials", "v4", "sockets::device_that_dials_an_mptcp_listener_gets_nothing"),
    elsewhere("MPTCP listener that a device dials", "v6", "sockets::device_that_dials_an_mptcp_listener_by_ipv6_gets_nothing"),
    elsewhere("MPTCP listener without a bind", "v4", "sockets::device_that_dials_an_mptcp_listener_without_a_bind_gets_nothing"),
    elsewhere("refused write left in a closed socket", "v4", "orphans::write_that_was_refused_is_not_sent_under_a_later_receipt"),
    elsewhere("refused write left in a closed socket", "v6", "orphans::write_that_was_refused_is_not_sent_under_a_later_receipt_by_ipv6"),
    elsewhere("refused write left in a closed socket, lingering", "v4", "orphans::write_that_lingers_is_not_sent_under_a_later_receipt"),
    elsewhere("refused end of a flow left in a closed socket", "v4", "orphans::end_of_a_flow_is_not_sent_under_a_later_receipt"),
    elsewhere(
        "refused write left in a closed socket, MPTCP",
        "v4",
        "orphans::write_that_was_refused_by_mptcp_is_not_sent_under_a_later_receipt",
    ),
    elsewhere(
        "refused write left in a closed socket, hooks removed",
        "v4",
        "orphans::write_that_was_refused_is_not_sent_once_hooks_are_removed",
    ),
    elsewhere("nftables DNAT into the zone", "v4", "sockets::dnat_into_a_zone_is_refused"),
    elsewhere("another address of the same device", "link-local", "neighbours::gateway_is_refused_by_its_link_local_address"),
    elsewhere("another address of the same device", "v4", "neighbours::gateway_is_refused_by_a_further_ipv4_address_of_its_box"),
    elsewhere("another address of the same device", "v6", "neighbours::gateway_is_refused_by_an_ipv6_address_of_its_box"),
    elsewhere(
        "UDP to everybody on a link that carries a zone",
        "limited broadcast",
        "everybody::limited_broadcast_on_a_link_that_carries_a_zone_is_refused",
    ),
    elsewhere(
        "UDP to everybody on a link that carries a zone",
        "directed broadcast",
        "everybody::directed_broadcast_of_a_link_that_carries_a_zone_is_refused",
    ),
    elsewhere(
        "UDP to everybody on a link that carries a zone",
        "224.0.0.1",
        "everybody::group_of_all_hosts_on_a_link_that_carries_a_zone_is_refused",
    ),
    elsewhere(
        "UDP to everybody on a link that carries a zone",
        "ff02::1",
        "everybody::group_of_all_nodes_by_ipv6_on_a_link_that_carries_a_zone_is_refused",
    ),
    line("another connect4 program: bpf_set_retval(0)", "v4", How::Override(Rewrite::Allow)),
    line("another connect4 program: rewrites the address", "v4", How::Override(Rewrite::Address)),
    elsewhere("exec as another agent's name", "v4", "identity::first_mark_wins"),
    elsewhere("pp-agent run inside a session", "v4", "identity::run_inside_a_session_is_refused"),
    elsewhere("first instruction of a static program", "v4", "identity::static_program_whose_first_instruction_connects_never_does"),
    elsewhere("process id that nobody's process had before", "v4", "identity::process_id_that_an_agent_had_makes_nobody_an_agent"),
    elsewhere("process that ran before the daemon", "v4", "identity::process_that_ran_before_the_daemon_is_found_at_its_start"),
    elsewhere("TCP server on this host that acts for the caller", "all", "delegates::ports_of_this_host_are_refused_on_all_its_addresses"),
    beside(
        "socket of a container runtime, also by a link and moved",
        "unix",
        "delegates::socket_at_dockers_path_is_refused_whatever_the_way_to_it",
    ),
    beside(
        "socket that policy names, stream and datagram",
        "unix",
        "delegates::socket_that_policy_names_is_refused_and_one_it_allows_is_not",
    ),
    beside("tmux of the operator", "unix", "delegates::tmux_of_the_operator_is_refused_and_one_of_the_session_is_not"),
    beside(
        "server of the same user that no list names, where policy refuses those",
        "unix",
        "delegates::server_of_the_same_user_that_no_list_names_is_reported_and_refused_where_policy_says_so",
    ),
    beside("system bus, as root", "unix", "delegates::system_bus_is_closed_to_root_alone"),
    beside("taking over a process of nobody's", "ptrace", "tamper::process_of_nobodys_session_cannot_be_taken_over"),
    beside("typing into another's terminal: TIOCSTI, TIOCLINUX, keymaps", "ptrace", "reach::terminal_of_a_person_cannot_be_typed_into"),
    beside("another's pipe by /proc/PID/fd, also by O_PATH", "ptrace", "reach::pipe_of_a_person_cannot_be_written_into"),
    beside("another's memory file by /proc/PID/fd", "ptrace", "reach::memory_file_of_a_person_cannot_be_opened"),
    beside("another's terminal by /proc/PID/fd", "ptrace", "reach::terminal_of_a_person_cannot_be_opened_by_its_link"),
    beside("making a keyboard, writing to an input device", "tamper", "reach::keyboard_cannot_be_made_or_typed_on"),
    beside("signals to the daemon", "tamper", "tamper::daemon_cannot_be_signalled"),
    beside("bpf() on the gate's objects and new programs", "tamper", "tamper::bpf_is_closed"),
    beside("the daemon's limits, priority, processors", "tamper", "reach::daemon_cannot_be_limited_or_starved"),
    beside("freezing or limiting the daemon's cgroup", "tamper", "reach::daemons_cgroup_cannot_be_frozen_or_limited"),
    beside(
        "chattr and other commands of file systems on guarded files",
        "tamper",
        "reach::guarded_file_cannot_be_changed_by_its_file_system",
    ),
    elsewhere("moving the daemon to another cgroup", "-", "moves::daemon_that_a_session_moves_goes_back"),
    beside("removing pins, joining the gate's cgroup", "tamper", "tamper::pins_cannot_be_removed_or_joined"),
    beside("writing policy, keys and state", "tamper", "tamper::policy_keys_and_state_cannot_be_changed"),
    beside("replacing the program and its socket", "tamper", "tamper::program_and_socket_cannot_be_replaced"),
    beside("unmounting, moving and covering bpffs", "tamper", "tamper::bpffs_cannot_be_unmounted_moved_or_covered"),
    beside("loading modules and kernels", "tamper", "tamper::code_cannot_be_loaded_into_the_kernel"),
    beside("memory, disks and tun devices", "tamper", "tamper::memory_disks_and_tun_cannot_be_opened"),
    beside("settings by which the kernel starts programs", "tamper", "tamper::settings_that_start_programs_cannot_be_written"),
    beside("changing the host's network as root", "tamper", "net_admin::host_network_cannot_be_changed_by_a_session"),
    beside(
        "changing it by a socket taken to another network",
        "tamper",
        "net_admin::host_network_cannot_be_changed_by_sockets_that_are_taken_elsewhere",
    ),
    beside("rewriting behind the gate: tc pedit, nftables of a device", "tamper", "net_admin::packets_are_not_rewritten_behind_the_gate"),
    beside("a link of its own network put into the host's", "tamper", "net_admin::links_are_not_put_into_the_hosts_network"),
    beside("frames of another link by /dev/tapN", "tamper", "net_admin::frames_of_another_link_cannot_be_had"),
    beside("access lists of guarded files", "tamper", "tamper::access_lists_and_attributes_of_guarded_files_cannot_be_changed"),
    beside("programs that the kernel runs", "tamper", "tamper::programs_that_the_kernel_runs_cannot_be_made_or_changed"),
    beside("a key that has the kernel run a program", "tamper", "tamper::program_that_the_kernel_runs_for_a_key_cannot_be_a_sessions"),
    beside("a mount that names a program for the kernel", "tamper", "tamper::mount_that_names_a_program_for_the_kernel_is_refused"),
    beside("files that act later: cron, units, keys, udev rules", "tamper", "tamper::files_that_act_later_cannot_be_changed"),
    beside("files that act later: boot, login, package managers", "tamper", "reach::files_of_boot_and_login_cannot_be_changed"),
];

impl How {
    const fn cgroup(technique: &'static str, words: &'static [&'static str]) -> Line {
        line(technique, "all", Self::InCgroup(words))
    }
}

impl Line {
    /// The test's name without its group.
    #[must_use]
    pub fn claim(&self) -> String {
        let words = format!("{} {}", self.technique, if self.form == "-" { "" } else { self.form });
        let words: Vec<String> =
            words.to_lowercase().replace("::", " any ").split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_owned).collect();
        let words: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).collect();
        format!("{}_is_refused", words.join("_"))
    }

    /// The whole name of its test.
    #[must_use]
    pub fn test(&self) -> String {
        match self.how {
            How::Test(name) => name.to_owned(),
            _ => format!("{GROUP}::{}", self.claim()),
        }
    }
}

/// What a row came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Refused, told, and nothing arrived.
    Closed,
    /// It arrived, and the daemon says of itself that it would.
    Gap,
    /// It arrived.
    Open,
    /// It does not arrive whoever makes it.
    Undeliverable,
    /// Its test did not run.
    NotRun,
}

/// One row of the result.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The way, in words.
    pub technique: &'static str,
    /// The form of the address.
    pub address_form: &'static str,
    /// What it came to.
    pub state: State,
    /// The gap that it falls into.
    pub gap: Option<&'static str>,
    /// The test that tried it.
    pub test: String,
}

static STATES: Mutex<BTreeMap<String, State>> = Mutex::new(BTreeMap::new());

/// Notes what a row came to.
pub fn note(line: &Line, state: State) {
    STATES.lock().unwrap_or_else(PoisonError::into_inner).insert(line.test(), state);
}

/// Does something of which nothing shall be noted.
pub fn unnoted<T>(act: impl FnOnce() -> T) -> T {
    let before = STATES.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let done = act();
    *STATES.lock().unwrap_or_else(PoisonError::into_inner) = before;
    done
}

/// The test that runs.
static CURRENT: Mutex<String> = Mutex::new(String::new());

/// Says which test runs from now on.
pub fn begin(test: &str) {
    test.clone_into(&mut CURRENT.lock().unwrap_or_else(PoisonError::into_inner));
}

/// Notes that the test that runs has met a gap of this name, which the daemon states.
pub fn meet(gap: &str) {
    let test = CURRENT.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(line) = TABLE.iter().find(|line| line.gap == Some(gap) && line.test() == test) {
        note(line, State::Gap);
    }
}

/// The rows, given what every test of the run came to.
#[must_use]
pub fn rows(tests: &[Entry]) -> Vec<Row> {
    let noted = STATES.lock().unwrap_or_else(PoisonError::into_inner).clone();
    TABLE.iter().map(|line| row(line, &noted, tests)).collect()
}

fn row(line: &Line, noted: &BTreeMap<String, State>, tests: &[Entry]) -> Row {
    let test = line.test();
    let ran = tests.iter().find(|entry| entry.name == test).map(|entry| entry.state);
    let state = match (ran, noted.get(&test)) {
        (None, _) => State::NotRun,
        // A test that fails shows nothing of its row but that it is not closed.
        (Some("failed"), _) => State::Open,
        (Some("skipped"), _) => State::Undeliverable,
        (Some(_), Some(state)) => *state,
        // Tests of other groups assert the refusal itself.
        (Some(_), None) if matches!(line.how, How::Test(_)) => State::Closed,
        (Some(_), None) => State::Open,
    };
    let gap = if state == State::Gap { line.gap } else { None };
    Row { technique: line.technique, address_form: line.form, state, gap, test }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_row_has_a_test_of_its_own() {
        let names: BTreeSet<String> = TABLE.iter().map(Line::test).collect();
        assert_eq!(names.len(), TABLE.len());
    }

    #[test]
    fn every_way_to_send_is_tried_with_mapped_addresses_or_has_none() {
        let with = |form: &str| -> BTreeSet<&str> { TABLE.iter().filter(|line| line.form == form).map(|line| line.technique).collect() };
        for technique in ["TCP connect", "sendto MSG_FASTOPEN", "UDP sendto", "UDP connect, send", "sendmmsg", "io_uring CONNECT"] {
            for form in ["v4", "v6", "mapped", "service"] {
                assert!(with(form).contains(technique), "{technique}: not tried with {form}");
            }
        }
    }

    #[test]
    fn a_row_whose_test_did_not_run_is_not_closed() {
        let line = &TABLE[0];
        let noted = BTreeMap::from([(line.test(), State::Closed)]);
        assert_eq!(row(line, &noted, &[]).state, State::NotRun);
        let entry = |state| Entry { name: line.test(), state, reason: String::new(), milliseconds: 0 };
        assert_eq!(row(line, &noted, &[entry("failed")]).state, State::Open);
        assert_eq!(row(line, &noted, &[entry("skipped")]).state, State::Undeliverable);
        assert_eq!(row(line, &noted, &[entry("passed")]).state, State::Closed);
        assert_eq!(row(line, &BTreeMap::new(), &[entry("passed")]).state, State::Open);
    }
}
