//! Every map: who writes it, who reads it, and what happens when it is full.
//!
//! Tables whose key holds a generation are published whole: the daemon writes
//! the next generation beside the current one, switches [`CONTROL`] over, waits
//! until no program can still be reading, and only then removes the old one.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE, bpf_spin_lock},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use pp_common::abi::{
    BudgetValue, COUNTERS, Control, DFA_STATES, DfaClasses, DfaRow, EXEC_PATH_LEN, GatewayPortKey, GrantList, HeardKey, Learned, LinkKey,
    MAX_CGROUPS, MAX_CLAIMED, MAX_DOOMED, MAX_EXEMPT, MAX_GATEWAY_PORTS, MAX_GRANT_PREFIXES, MAX_HEARD, MAX_LINKS, MAX_NEAR, MAX_PLACES,
    MAX_RECEIPTS, MAX_REPEATS, MAX_RULES, MAX_SERVICES, MAX_TASKS, MAX_USER_BITS, MAX_USERS, NameId, NearKey, PID_PAGE, PID_PAGES, Place,
    PrefixKey, RepeatKey, Repeats, RuleTarget, Service, ServiceKey, SockMark, TaskMark, UserKey,
};
use pp_common::behaviour::{self, Attempts, Ground, History, Kept, LoginKey, MAX_GROUNDS, MAX_LOGIN_TARGETS, MAX_OWN, MAX_SESSIONS};
use pp_common::dest::Addr;
use pp_common::tools::{TOOL_ARGV_LEN, TOOL_STATES, ToolEnd};
use pp_common::turns::{LimitKey, Limits, MAX_TURN_LIMITS};
use pp_common::{
    delegate::{DelegateKey, MAX_DELEGATES},
    protect::{Guard, InodeKey, MAX_GUARDED, MAX_GUARDED_NAMES, NameKey, Watch},
};

/// Marked processes by tgid. Written at fork, exec, exit and by the daemon, read by every hook.
/// Full: the fork or exec that finds no room is killed, see `tasks.rs`.
#[btf_map]
pub(crate) static TASKS: HashMap<u32, TaskMark, { MAX_TASKS as usize }> = HashMap::new();

/// Marks of children for which `TASKS` had no room; their parents were killed for it. Written at fork and exit, read while `overflow` is up. Full: cannot be, since
/// each entry costs a process of `TASKS` its place.
#[btf_map]
pub(crate) static DOOMED: HashMap<u32, TaskMark, { MAX_DOOMED as usize }> = HashMap::new();

/// Which pids may be a marked process's: never zero for one that is in `TASKS` or `DOOMED`, or that found no room in either. Written before
/// those are, at fork and exec and by the daemon, which maps it into its memory; cleared when the process's last thread ends. Read by every
/// hook, before them. Cannot fill.
#[btf_map]
pub(crate) static PIDS: Array<[u8; PID_PAGE], { PID_PAGES as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// The mark of sockets. Written by socket, connect and send hooks and by the daemon when it
/// adopts a process, read at egress and ingress. Cannot fill; without memory the caller is refused.
#[unsafe(link_section = ".maps")]
#[unsafe(export_name = "SOCKS")]
pub(crate) static SOCKS: SockStorage = SockStorage::new();

/// Far ends that spoke first to a datagram port of a session, with the interface they came in by. Written at ingress, read at egress and by send
/// hooks. Full: the one that was silent longest is forgotten, and what is sent to it is judged as opened by the session.
#[btf_map]
pub(crate) static HEARD: LruHashMap<HeardKey, u32, { MAX_HEARD as usize }> = LruHashMap::new();

/// Addresses that are not the host's and that sessions send from, with when they last did. Written at egress, read at ingress, cleared of old
/// ones by the daemon. Full: what a session sends from another such address is refused.
#[btf_map]
pub(crate) static CLAIMED: HashMap<Addr, u64, { MAX_CLAIMED as usize }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// What is in force. Written by the daemon; `overflow` also by the fork hook. Read by every hook.
#[btf_map]
pub(crate) static CONTROL: Array<Control, 1> = Array::new();

/// Zones and gateways. Written by the daemon, read by decisions. Full: the policy is refused.
#[btf_map]
pub(crate) static PLACES: LpmTrie<PrefixKey, Place, { MAX_PLACES as usize }> = LpmTrie::new();

/// The place that each link carries. Kept current by the daemon, read by decisions where policy names no place.
/// Full: the daemon says so and leaves out the links found last.
#[btf_map]
pub(crate) static LINKS: HashMap<LinkKey, Place, { MAX_LINKS as usize }> = HashMap::new();

/// Addresses that were learned to belong to a place, and those of this host and its name servers. As `LINKS`.
/// Full: the daemon says so and learns no more.
#[btf_map]
pub(crate) static LEARNED: HashMap<NearKey, Learned, { MAX_NEAR as usize }> = HashMap::new();

/// Ports of gateways. Written by the daemon, read by decisions. Full: the policy is refused.
#[btf_map]
pub(crate) static GATEWAY_PORTS: HashMap<GatewayPortKey, u32, { MAX_GATEWAY_PORTS as usize }> = HashMap::new();

/// Services by port. Written by the daemon, read by decisions. Full: the policy is refused.
#[btf_map]
pub(crate) static SERVICES: HashMap<ServiceKey, Service, { MAX_SERVICES as usize }> = HashMap::new();

/// Networks on which services are not protected. Written by the daemon, read by decisions.
/// Full: the policy is refused.
#[btf_map]
pub(crate) static EXEMPT: LpmTrie<PrefixKey, u32, { MAX_EXEMPT as usize }> = LpmTrie::new();

/// Grants by destination. Written by the daemon, read by decisions. Full: the receipt is refused.
#[btf_map]
pub(crate) static GRANTS: LpmTrie<PrefixKey, GrantList, { MAX_GRANT_PREFIXES as usize }> = LpmTrie::new();

/// The bit that each owner named by a receipt has in its grants. Written by the daemon, read by
/// decisions. Full: the receipt is refused.
#[btf_map]
pub(crate) static USER_BITS: HashMap<UserKey, u64, { 4 * MAX_USER_BITS }> = HashMap::new();

/// What was used of each receipt. Made by the daemon, counted by the cgroup programs. Full: the
/// receipt is refused.
#[btf_map]
pub(crate) static BUDGETS: HashMap<u32, Budget, { MAX_RECEIPTS as usize }> = HashMap::new();

/// How far a flow may go, by gateway and by receipt. Written by the daemon, read at egress and
/// ingress of flows to gateways. Full: the policy or the receipt is refused.
#[btf_map]
pub(crate) static TURN_LIMITS: HashMap<LimitKey, Limits, { MAX_TURN_LIMITS as usize }> = HashMap::new();
/// Files that sessions may not change. Kept current by the daemon, read by `protect.rs`. Full: the
/// daemon reports it and its posture says so.
#[btf_map]
pub(crate) static GUARDED: HashMap<InodeKey, Guard, { MAX_GUARDED as usize }> = HashMap::new();

/// Names that sessions may not make or change in a folder. As `GUARDED`.
#[btf_map]
pub(crate) static NAMES: HashMap<NameKey, u32, { MAX_GUARDED_NAMES as usize }> = HashMap::new();

/// What the programs know of the daemon's place. Written by the daemon, read by `protect.rs`.
#[btf_map]
pub(crate) static WATCH: Array<Watch, 1> = Array::new();

/// Servers that act for their callers. Kept current by the daemon, read by `delegate.rs`. Full:
/// the policy is refused.
#[btf_map]
pub(crate) static DELEGATES: HashMap<DelegateKey, u32, { MAX_DELEGATES as usize }> = HashMap::new();

/// States of the identity automaton, two generations. Written by the daemon, read at exec.
#[btf_map]
pub(crate) static DFA_ROWS: Array<DfaRow, { 2 * DFA_STATES }> = Array::new();

/// Byte classes of the identity automaton, two generations. Written by the daemon, read at exec.
#[btf_map]
pub(crate) static DFA_BYTES: Array<DfaClasses, 2> = Array::new();

/// Agents of the identity rules, two generations. Written by the daemon, read at exec.
#[btf_map]
pub(crate) static RULES: Array<RuleTarget, { 2 * MAX_RULES }> = Array::new();

/// States of the automaton about tools, two generations. Written by the daemon, read at exec.
#[btf_map]
pub(crate) static TOOL_ROWS: Array<DfaRow, { 2 * TOOL_STATES }> = Array::new();

/// Byte classes of the same, two generations. Written by the daemon, read at exec.
#[btf_map]
pub(crate) static TOOL_BYTES: Array<DfaClasses, 2> = Array::new();

/// What its states mean at the end of the input, two generations. Written by the daemon, read at
/// exec.
#[btf_map]
pub(crate) static TOOL_ENDS: Array<ToolEnd, { 2 * TOOL_STATES }> = Array::new();

/// User rules. Written by the daemon, read at exec. Full: the policy is refused.
#[btf_map]
pub(crate) static USERS: HashMap<UserKey, NameId, { MAX_USERS as usize }> = HashMap::new();

/// Cgroup and unit rules, by cgroup id. Kept current by the daemon, read at exec. Full: the
/// daemon reports it and its posture says so.
#[btf_map]
pub(crate) static CGROUPS: HashMap<u64, NameId, { MAX_CGROUPS as usize }> = HashMap::new();

/// What each session reached for lately. Written by the cgroup programs, cleared by the daemon
/// once a session has ended and all of it is over. Full: what a further session does is refused
/// where it would have to be counted. Only what is used takes memory, at most 16,384 times 6 KB.
#[btf_map]
pub(crate) static HISTORIES: HashMap<u64, Tracked, { MAX_SESSIONS as usize }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Connections to login targets, at most `MAX_LOGINS` a session. Written and cleared as
/// `HISTORIES`. Full: a connection to a further login target is refused. At most 32,768 times
/// 700 bytes.
#[btf_map]
pub(crate) static LOGINS: HashMap<LoginKey, Counted, { MAX_LOGIN_TARGETS as usize }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// What the behaviour rules allow, two generations. Written by the daemon, read by the cgroup programs.
#[btf_map]
pub(crate) static LIMITS: Array<behaviour::Limits, 2> = Array::new();

/// Networks that the behaviour rules judge, and exemptions. Written by the daemon, read by the
/// cgroup programs. Full: the policy is refused.
#[btf_map]
pub(crate) static GROUNDS: LpmTrie<PrefixKey, Ground, { MAX_GROUNDS as usize }> = LpmTrie::new();

/// The host's own addresses. Kept current by the daemon, read by the cgroup programs. Full: the
/// daemon logs it, and attempts to the others are counted.
#[btf_map]
pub(crate) static OWN: HashMap<Addr, u32, { MAX_OWN as usize }> = HashMap::new();

/// Zeros, of which new histories are made. Never written.
#[btf_map]
pub(crate) static BLANK: Array<[u64; size_of::<Tracked>() / 8], 1> = Array::new();

/// Repeats of one refusal. Made and counted by every hook that reports, read and removed by the
/// daemon once a pair rests. Full: each attempt of a further pair is written as a record.
#[btf_map]
pub(crate) static REPEATS: HashMap<RepeatKey, Repeats, { MAX_REPEATS as usize }> = HashMap::new();

/// How many of the repeats of an entry the daemon has told, by the entry's id: for the daemon that
/// comes after it. No program reads it.
#[btf_map]
pub(crate) static TOLD: HashMap<u64, u64, { 2 * MAX_REPEATS as usize }> = HashMap::new();

/// Verdicts for the daemon. Full: the attempt is counted in `REPEATS`, or, where it has no entry,
/// as lost; the verdict stands.
#[btf_map]
pub(crate) static EVENTS: RingBuf<u8, { 4 * 1024 * 1024 }> = RingBuf::new();

/// Processes that come, run a program and go, for the daemon. Full: the record is lost and counted.
#[btf_map]
pub(crate) static LIFECYCLE: RingBuf<u8, { 2 * 1024 * 1024 }> = RingBuf::new();

/// Counters by `Counter`. Written by every hook, read by the daemon.
#[btf_map]
pub(crate) static COUNTS: PerCpuArray<u64, { COUNTERS as usize }> = PerCpuArray::new();

/// Room for the path and arguments of the process that execs on this CPU.
#[btf_map]
pub(crate) static EXEC_INPUT: PerCpuArray<ExecInput, 1> = PerCpuArray::new();

/// What the mark of the socket lends to decisions elsewhere, for fmod_ret programs. Per CPU; another
/// program may run in between, which can change a reason that is told and nothing else.
#[btf_map]
pub(crate) static ASIDE: PerCpuArray<Aside, 1> = PerCpuArray::new();

/// A decision's scratch number and its zero.
#[repr(C)]
pub(crate) struct Aside {
    pub(crate) scratch: u32,
    pub(crate) pad: u32,
    /// Zero, always: the programs rely on it.
    pub(crate) zero: u64,
}

/// Path and argument vector of an exec.
#[repr(C)]
pub(crate) struct ExecInput {
    pub(crate) path: [u8; EXEC_PATH_LEN],
    pub(crate) argv: [u8; TOOL_ARGV_LEN],
    /// Length of the path.
    pub(crate) path_len: u64,
    /// Length of the arguments that are in `argv`.
    pub(crate) argv_len: u64,
    /// Not all arguments are in `argv`.
    pub(crate) cut: u32,
    /// This exec began a session.
    pub(crate) begun: u32,
}

/// `pp_common::abi::BudgetValue` with the lock as the kernel knows it. Only the cgroup programs
/// take it: LSM programs cannot on 5.10, and every flow passes a cgroup program.
#[repr(C)]
pub(crate) struct Budget {
    pub(crate) lock: bpf_spin_lock,
    pub(crate) serial: u32,
    pub(crate) connections: u64,
    pub(crate) attempts: u64,
    pub(crate) max_connections: u64,
    pub(crate) max_attempts: u64,
}

/// `Kept<History>` with the lock as the kernel knows it; cgroup programs only, as with [`Budget`].
#[repr(C)]
pub(crate) struct Tracked {
    pub(crate) lock: bpf_spin_lock,
    pub(crate) pad: u32,
    pub(crate) history: History,
}

/// `Kept<Attempts>`, likewise.
#[repr(C)]
pub(crate) struct Counted {
    pub(crate) lock: bpf_spin_lock,
    pub(crate) pad: u32,
    pub(crate) attempts: Attempts,
}

const _: () = assert!(size_of::<Tracked>() == size_of::<Kept<History>>());
const _: () = assert!(size_of::<Counted>() == size_of::<Kept<Attempts>>() && size_of::<Counted>() <= size_of::<Tracked>());
const _: () = assert!(size_of::<Budget>() == size_of::<BudgetValue>());

const BPF_F_CLONE: u32 = 1 << 9;
const SOCK_STORAGE_FLAGS: usize = (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize;

/// Socket storage whose value a listening socket hands to what it accepts.
#[repr(C)]
pub(crate) struct SockStorage {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const SockMark,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; SOCK_STORAGE_FLAGS],
}

// SAFETY: a definition the loader reads; nothing dereferences its pointers.
unsafe impl Sync for SockStorage {}

impl SockStorage {
    const fn new() -> Self {
        use core::ptr::null;
        Self { r#type: null(), key: null(), value: null(), max_entries: null(), map_flags: null() }
    }

    pub(crate) const fn as_ptr(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}
