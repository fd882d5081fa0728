//! Keys and values of the maps that kernel and daemon share.
//!
//! Integers and byte arrays only, every padding byte is a named field, and the
//! assertions at the end spell each sum, so a layout cannot drift unseen.
//! Integers are in host byte order unless a name ends in `_be`. Times are
//! `CLOCK_BOOTTIME` nanoseconds, which go on counting while the host sleeps.

mod grant;
mod identity;
mod near;
mod off;

pub use grant::*;
pub use identity::*;
pub use near::*;
pub use off::*;

use crate::codes::codes;
use crate::dest::Addr;
use crate::turns::TurnCount;

/// Version of everything in this crate that crosses the kernel boundary. The
/// daemon replaces running programs of another version before it does anything
/// else.
pub const ABI_VERSION: u32 = 5;

/// Identifies an agent, zone, gateway or service by its name: the first eight
/// bytes, little endian, of the name's SHA-256. Zero means none.
pub type NameId = u64;

/// A receipt's number on this host, given at registration, never reused.
pub type Serial = u32;

/// Most processes that can be marked at once; policy `max_tasks` overrides it.
pub const MAX_TASKS: u32 = 65_536;
/// Pids whose bytes stand in one entry of the pid map.
pub const PID_PAGE: usize = 512;
/// Entries of the pid map: together a byte for each pid below 4 Mi, which is the kernel's `PID_MAX_LIMIT` (`include/linux/threads.h`).
pub const PID_PAGES: u32 = 8_192;
/// Most prefixes of zones and gateways, counting two generations.
pub const MAX_PLACES: u32 = 16_384;
/// Most prefixes that grants name, counting two generations.
pub const MAX_GRANT_PREFIXES: u32 = 8_192;
/// Most receipts known to the kernel, ended ones included.
pub const MAX_RECEIPTS: u32 = 4_096;
/// Most (transport, port) pairs of services, counting two generations.
pub const MAX_SERVICES: u32 = 4_096;
/// Most (gateway, transport, port) triples, counting two generations.
pub const MAX_GATEWAY_PORTS: u32 = 8_192;
/// Most exempt networks, counting two generations.
pub const MAX_EXEMPT: u32 = 2_048;
/// Most pairs whose repeats are counted at once.
pub const MAX_REPEATS: u32 = 8_192;

/// The mark of a process, keyed by its tgid.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskMark {
    /// The session it belongs to; random, never zero.
    pub session: u64,
    /// The session's agent.
    pub agent: NameId,
    /// When the process started; zero until the kernel first sees it run.
    pub start_ns: u64,
    /// When the session started.
    pub session_start_ns: u64,
    /// The uid that owned the first process when it was marked.
    pub owner: u32,
    /// `TASK_*` flags.
    pub flags: u32,
}

/// This process is the first of its session.
pub const TASK_ROOT: u32 = 1;
/// This session is the daemon's own canary; its events are of their own kind.
pub const TASK_CANARY: u32 = 2;

/// One flow that a socket has already been counted for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The remote end.
    pub addr: Addr,
    /// The receipt it was counted under; zero means the slot is free.
    pub serial: Serial,
    /// The remote end's port.
    pub port: u16,
    /// IP protocol number.
    pub transport: u8,
    /// Zero.
    pub pad: u8,
}

/// A remote end that spoke first to a datagram port of a session. The value is the number of the interface that its datagram came in by.
///
/// By port and not by socket: a server may answer each client on a socket of its own (`SO_REUSEPORT` and `connect`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeardKey {
    /// The session.
    pub session: u64,
    /// The remote end.
    pub addr: Addr,
    /// The network namespace it was heard in: interfaces of another may have the same numbers, and a session makes such ones.
    pub netns: u32,
    /// Its port.
    pub port: u16,
    /// The session's port.
    pub near_port: u16,
    /// IP protocol number.
    pub transport: u8,
    /// Zero.
    pub pad: [u8; 7],
}

/// Most remote ends that are remembered to have spoken first, of all sockets together.
pub const MAX_HEARD: u32 = 32_768;

/// Most addresses that are not the host's and that sessions send from: those of containers, and forged ones.
pub const MAX_CLAIMED: u32 = 16_384;
/// For how long such an address is kept after it was last used, in nanoseconds: longer than any datagram is on its way.
pub const CLAIMED_NS: u64 = 600_000_000_000;

/// Flows that a socket's mark remembers as counted.
pub const SOCK_FLOWS: usize = 2;

/// The mark of a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SockMark {
    /// The session it belongs to; zero on a socket that was released.
    pub session: u64,
    /// The session's agent.
    pub agent: NameId,
    /// The session's owner.
    pub owner: u32,
    /// `SOCK_*` flags.
    pub flags: u32,
    /// The process that last marked it.
    pub tgid: u32,
    /// Zero.
    pub pad: u32,
    /// Where the next flow goes in `flows`.
    pub next_flow: u32,
    /// A number that decisions about this socket work with.
    pub scratch: u32,
    /// Zero, always: the programs rely on it.
    pub zero: u64,
    /// Unused. Earlier builds kept the socket's cookie here.
    pub spare: u64,
    /// Flows already counted.
    pub flows: [Flow; SOCK_FLOWS],
    /// How far the conversation with a gateway has gone.
    pub turn_count: TurnCount,
}

/// The session opened this flow, it was not accepted: service ports count.
pub const SOCK_OPENED: u32 = 1;
/// A receipt allowed a datagram on this socket: ingress checks services too.
pub const SOCK_GRANTED: u32 = 2;
/// The mark belongs to the daemon's canary.
pub const SOCK_CANARY: u32 = 4;

/// A packet of this socket's one flow was refused: so is every other, whatever is granted later, until the socket connects anew. The daemon
/// ends it.
pub const SOCK_REFUSED: u32 = 8;

/// Most marks of children that found no room in the task table; each cost the
/// parent that forked it its life.
pub const MAX_DOOMED: u32 = 4_096;

/// The one entry of the control map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// The generation of the policy tables that is in force.
    pub generation: u32,
    /// `CONTROL_*` flags.
    pub flags: u32,
    /// The daemon's tgid: never marked.
    pub daemon: u32,
    /// Non-zero while the task table has overflowed: a miss looks at ancestors.
    pub overflow: u32,
}

/// The whole host observes: blocks become observations.
pub const CONTROL_OBSERVE: u32 = 1;
/// A link carries a protected place, or an address was learned: the maps of those are asked.
pub const CONTROL_NEAR: u32 = 2;
/// The daemon logs each attempt that is blocked: the programs write a line for it.
pub const CONTROL_LOG: u32 = 4;
/// Protection is off: what would be refused goes through. Never in the map: whoever reads [`Control`] for a verdict adds it by [`off_flag`].
pub const CONTROL_OFF: u32 = 8;

/// Key of a longest-prefix map: the prefix length counts [`PREFIX_HEAD_BITS`]
/// first. Addresses are 128 bits, IPv4 as `::ffff:a.b.c.d`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixKey {
    /// Generation of the tables this entry belongs to.
    pub generation: u32,
    /// Zero; makes the key as aligned as the values.
    pub pad: u32,
    /// The address, network byte order.
    pub addr: Addr,
}

/// Bits of a [`PrefixKey`] before the address.
pub const PREFIX_HEAD_BITS: u32 = 64;

/// What a protected prefix is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The most specific zone that covers it; zero: none.
    pub zone: NameId,
    /// The gateway whose address this is; zero: none.
    pub gateway: NameId,
    /// `PLACE_*` flags.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

/// Blocks in the zone become observations.
pub const PLACE_ZONE_OBSERVE: u32 = 1;
/// Blocks at the gateway become observations.
pub const PLACE_GATEWAY_OBSERVE: u32 = 2;
/// The gateway lists no ports: each of its ports is protected.
pub const PLACE_GATEWAY_ALL_PORTS: u32 = 4;
/// The gateway is this host itself: what names no port passes.
pub const PLACE_GATEWAY_OWN: u32 = 8;

/// Key of the service table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceKey {
    /// Generation of the tables.
    pub generation: u32,
    /// Destination port.
    pub port: u16,
    /// IP protocol number.
    pub transport: u8,
    /// Zero.
    pub pad: u8,
}

/// A service that is protected on every address that is not exempt.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The service.
    pub service: NameId,
    /// `SERVICE_*` flags.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

/// Blocks by service become observations.
pub const SERVICE_OBSERVE: u32 = 1;

/// Key of the gateway port table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GatewayPortKey {
    /// The gateway.
    pub gateway: NameId,
    /// Generation of the tables.
    pub generation: u32,
    /// Destination port. Gateway ports are protected on every transport.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

/// Key under which repeats of one refusal are counted in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepeatKey {
    /// The session.
    pub session: u64,
    /// The remote end.
    pub addr: Addr,
    /// Its port.
    pub port: u16,
    /// IP protocol number.
    pub transport: u8,
    /// Verdict code.
    pub verdict: u8,
    /// Reason code.
    pub reason: u8,
    /// 1 if a packet was refused, 0 for a call: a packet that follows a refused call means that something undid the refusal.
    pub packet: u8,
    /// 1 for the daemon's canary.
    pub canary: u8,
    /// Zero.
    pub pad: u8,
}

/// Repeats of one refusal.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repeats {
    /// When the last record of this pair was written.
    pub written_ns: u64,
    /// Attempts that wrote none, since there is this entry. It only ever grows: the daemon knows how many of them it has reported.
    pub count: u64,
    /// Random; tells this entry from one that the pair had before.
    pub id: u64,
}

/// For how long repeats of one pair are counted instead of written.
pub const REPEAT_WINDOW_NS: u64 = 10_000_000_000;

/// Offsets of kernel structure members, from the running kernel's BTF, in
/// bytes. Put into the object before it is loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.start_boottime`
    pub task_start_boottime: u32,
    /// `task_struct.group_leader`
    pub task_group_leader: u32,
    /// `task_struct.real_parent`
    pub task_real_parent: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `task_struct.mm`
    pub task_mm: u32,
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// `task_struct.flags`
    pub task_flags: u32,
    /// `signal_struct.live`
    pub signal_live: u32,
    /// `mm_struct.arg_start`
    pub mm_arg_start: u32,
    /// `mm_struct.arg_end`
    pub mm_arg_end: u32,
    /// `linux_binprm.filename`
    pub bprm_filename: u32,
    /// `css_set.dfl_cgrp`
    pub css_set_dfl_cgrp: u32,
    /// `cgroup.kn`
    pub cgroup_kn: u32,
    /// `cgroup.self.parent`
    pub cgroup_parent: u32,
    /// `kernfs_node.id`
    pub kernfs_node_id: u32,
    /// `socket.sk`
    pub socket_sk: u32,
    /// `socket.type`
    pub socket_type: u32,
    /// `sock_common.skc_family`
    pub sk_family: u32,
    /// `sock_common.skc_daddr`
    pub sk_daddr: u32,
    /// `sock_common.skc_dport`
    pub sk_dport_be: u32,
    /// `sock_common.skc_v6_daddr`
    pub sk_v6_daddr: u32,
    /// `sock.sk_protocol`
    pub sk_protocol: u32,
    /// `msghdr.msg_name`
    pub msghdr_name: u32,
    /// `sock_common.skc_state`
    pub sk_state: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `file.private_data`
    pub file_private: u32,
    /// `inode.i_mode`
    pub inode_mode: u32,
    /// `sock_common.skc_net`
    pub sk_net: u32,
    /// `net.ns.inum`
    pub net_inum: u32,
    /// `sock_common.skc_bound_dev_if`
    pub sk_bound_dev_if: u32,
    /// `bpf_sock_addr_kern.uaddr`
    pub sock_addr_uaddr: u32,
    /// `sock_common.skc_num`
    pub sk_num: u32,
}

codes! {
    /// Counters that the programs keep per CPU, by index. The order is that of `/metrics`.
    enum Counter: u32 {
        // Neither in the ring buffer nor as a repeat.
        /// Records of verdicts, but for refusals, that found no room.
        LostRecords = 0, "lost_records";
        // Of those blocked.
        /// Refusals that found no room as a record or a repeat.
        LostRefusals = 10, "lost_refusals";
        /// Records of processes that did not fit into their ring buffer.
        LostLifecycle = 11, "lost_lifecycle";
        /// Attempts of marked tasks and sockets that were judged.
        Judged = 1, "judged";
        // The canary's not among them. Each is a record, a repeat in `REPEATS`, or one of `LostRefusals`.
        /// Attempts refused.
        Blocked = 2, "blocked";
        /// Marks that did not fit into the task table.
        TaskTableFull = 3, "task_table_full";
        /// Sockets that could not be marked.
        SockMarkFull = 4, "socket_mark_full";
        /// Kernel memory that could not be read for a verdict.
        ReadErrors = 5, "read_errors";
        /// Marks dropped because the pid was another process.
        StaleMarks = 6, "stale_marks";
        /// Budgets that could not be counted.
        BudgetErrors = 7, "budget_errors";
        /// Attempts refused for want of room for a history or a login target.
        HistoryFull = 8, "history_full";
        // By this the daemon knows that it has read all there is.
        /// Records that were begun in a ring buffer, but for refusals.
        Written = 9, "written";
    }
}

/// Room for counters.
pub const COUNTERS: u32 = 16;

const _: () = {
    assert!(PID_PAGE * PID_PAGES as usize == 4 << 20);
    assert!(size_of::<TaskMark>() == 4 * 8 + 2 * 4);
    assert!(size_of::<Flow>() == 16 + 4 + 2 + 1 + 1);
    assert!(size_of::<HeardKey>() == 8 + 16 + 4 + 2 + 2 + 1 + 7);
    assert!(size_of::<SockMark>() == 2 * 8 + 6 * 4 + 2 * 8 + SOCK_FLOWS * 24 + 24);
    assert!(size_of::<Control>() == 4 * 4);
    assert!(size_of::<PrefixKey>() == 2 * 4 + 16);
    assert!(size_of::<Place>() == 2 * 8 + 2 * 4);
    assert!(size_of::<ServiceKey>() == 4 + 2 + 1 + 1);
    assert!(size_of::<Service>() == 8 + 2 * 4);
    assert!(size_of::<GatewayPortKey>() == 8 + 4 + 2 + 2);
    assert!(size_of::<RepeatKey>() == 8 + 16 + 2 + 5 + 1);
    assert!(size_of::<Repeats>() == 3 * 8);
    assert!(size_of::<Offsets>() == 33 * 4);
};

#[cfg(feature = "user")]
mod pod {
    use super::*;
    macro_rules! pod {
        ($($t:ty),*) => { $(
            // SAFETY: repr(C) of integers and byte arrays with named padding
            // (the assertions above), so every byte is initialised and every
            // bit pattern is a value.
            unsafe impl aya::Pod for $t {}
        )* };
    }
    pod!(
        TaskMark,
        SockMark,
        Control,
        PrefixKey,
        Place,
        ServiceKey,
        Service,
        GatewayPortKey,
        HeardKey,
        GrantList,
        BudgetValue,
        DfaRow,
        DfaClasses,
        RuleTarget,
        UserKey,
        RepeatKey,
        Repeats,
        Offsets,
        LinkKey,
        NearKey,
        Learned,
        OffNote
    );
}
