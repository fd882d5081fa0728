//! The table of maps: what each holds, how large it is, who writes and reads it, and what happens when it is full.
//!
//! From [`maps!`](crate::maps!) the programs define their maps, the daemon opens, pins, sweeps and bounds them, and
//! `docs/internals/maps.md` is written (`tests/pages.rs`). A map is named here and where it is used, nowhere else.

#![expect(clippy::cast_possible_truncation, reason = "sizes are constants far below 2^32")]

use crate::abi::{
    COUNTERS, DFA_STATES, MAX_CGROUPS, MAX_CLAIMED, MAX_DOOMED, MAX_EXEMPT, MAX_GATEWAY_PORTS, MAX_GRANT_PREFIXES, MAX_HEARD, MAX_LINKS,
    MAX_NEAR, MAX_PLACES, MAX_RECEIPTS, MAX_REPEATS, MAX_RULES, MAX_SERVICES, MAX_TASKS, MAX_USER_BITS, MAX_USERS, PID_PAGES,
};
use crate::behaviour::{MAX_JUDGED_NETWORKS, MAX_LOGIN_TARGETS, MAX_OWN, MAX_SESSIONS};
use crate::delegate::MAX_DELEGATES;
use crate::net_admin::MAX_LOOKED;
use crate::protect::{MAX_FOLLOWED, MAX_GUARDED, MAX_GUARDED_NAMES};
use crate::tools::TOOL_STATES;
use crate::trouble::TROUBLES;
use crate::turns::MAX_TURN_LIMITS;

/// Calls a macro with the rows of the table.
///
/// A row is `NAME @ layout field: Kind[key => value; size]`. `NAME` is the map in the object, `NAME@layout` its pin, `field` its member in the
/// daemon. A build that changes a layout raises its number and brings the old map's content along, or says why not. Sizes are entries, of
/// [`Kind::Ring`] bytes, of kinds with two generations those of both. The names of types are those in scope where the macro is called.
#[macro_export]
macro_rules! maps {
    ($with:ident) => {
        $with! {
            // What the daemon reads or writes entry by entry.
            tables {
                /// Marked processes, by tgid.
                TASKS @ 1 tasks: Hash[u32 => TaskMark; MAX_TASKS],
                    written "at fork, exec and exit; by the daemon",
                    read "every hook",
                    full "the fork or exec that finds no room is killed, see `DOOMED`; with lsm and fmod_ret, forks of sessions are refused meanwhile";
                /// Marks of children for which `TASKS` had no room. Their parents were killed for it.
                DOOMED @ 1 doomed: Hash[u32 => TaskMark; MAX_DOOMED],
                    written "at fork and exit; removed by the daemon where it marks the process itself",
                    read "every hook, while `overflow` is up",
                    full "counted; the child's hooks find the mark of one of 8 ancestors";
                // Layout 1 had no `TurnCount`, layout 2 other ends that spoke first: `kernel/earlier.rs`.
                /// Marks of sockets.
                SOCKS @ 3 socks: SkStorage[i32 => SockMark; 0],
                    written "by socket, connect and send hooks; by the daemon when it adopts a process",
                    read "connect, send, egress and ingress hooks; `sock_diag`, for the daemon",
                    full "cannot fill; without memory for a mark the caller is refused";
                // Layout 1 had no network namespace. Who has spoken first has to speak once more.
                /// Remote ends that spoke first to a datagram port of a session, with the interface they came in by.
                HEARD @ 2 heard: LruHash[HeardKey => u32; MAX_HEARD],
                    written "at ingress; removed by the daemon with an address of `CLAIMED`",
                    read "egress and send hooks",
                    full "the one that was silent longest is forgotten; what is sent to it is judged as opened by the session";
                /// Addresses that are not the host's and that sessions send from, with when they last did.
                CLAIMED @ 1 claimed: HashLazy[Addr => u64; MAX_CLAIMED],
                    written "at egress; old ones cleared by the daemon, once it is half full",
                    read "ingress",
                    full "what a session sends from another such address is refused; the daemon logs it before";
                /// What is in force: generation, flags, the daemon's tgid, overflow.
                CONTROL @ 1 control: Array[u32 => Control; 1],
                    written "by the daemon; `overflow` also at fork",
                    read "every hook",
                    full "one entry";
                /// Zones and gateways.
                PLACES @ 1 places: PrefixGen[PrefixKey => Place; MAX_PLACES],
                    written "by the daemon",
                    read "decisions",
                    full "the policy is refused; room for the host's own addresses is kept";
                /// The place that each link carries.
                LINKS @ 1 links: Hash[LinkKey => Place; MAX_LINKS],
                    written "by the daemon, as links change",
                    read "decisions, where policy names no place",
                    full "the daemon logs it; link-local addresses on the links found last are open";
                /// Addresses that were learned to belong to a place, and those of this host and its name servers.
                LEARNED @ 1 learned: Hash[NearKey => Learned; MAX_NEAR],
                    written "by the daemon, as neighbours change",
                    read "decisions, where policy names no place",
                    full "no more than 1,024 are learned, and an event of kind `neighbour` tells it; of the others those that fit are entered";
                /// Ports of gateways.
                GATEWAY_PORTS @ 1 gateway_ports: HashGen[GatewayPortKey => u32; MAX_GATEWAY_PORTS],
                    written "by the daemon",
                    read "decisions",
                    full "the policy is refused";
                /// Services, by port.
                SERVICES @ 1 services: HashGen[ServiceKey => Service; MAX_SERVICES],
                    written "by the daemon",
                    read "decisions",
                    full "the policy is refused";
                /// Networks in which services are not protected.
                EXEMPT @ 1 exempt: PrefixGen[PrefixKey => u32; MAX_EXEMPT],
                    written "by the daemon",
                    read "decisions",
                    full "the policy is refused";
                /// Grants, by destination.
                GRANTS @ 1 grants: PrefixGen[PrefixKey => GrantList; MAX_GRANT_PREFIXES],
                    written "by the daemon",
                    read "decisions",
                    full "the receipt is refused";
                /// The bit that each owner named by a receipt has in its grants.
                USER_BITS @ 1 user_bits: HashGen[UserKey => u64; 4 * MAX_USER_BITS as u32],
                    written "by the daemon",
                    read "decisions",
                    full "cannot fill; receipts that name more than 64 owners together are refused";
                /// What was used of each receipt.
                BUDGETS @ 1 budgets: Hash[u32 => BudgetValue; MAX_RECEIPTS],
                    written "made by the daemon, counted by cgroup programs",
                    read "decisions",
                    full "the receipt is refused";
                /// How far a flow may go, by gateway and by receipt.
                TURN_LIMITS @ 1 turn_limits: HashGen[LimitKey => turns::Limits; MAX_TURN_LIMITS],
                    written "by the daemon",
                    read "egress and ingress, of flows to gateways",
                    full "the policy is refused; room for every receipt is kept";
                /// Files that sessions may not change.
                GUARDED @ 1 guarded: Hash[InodeKey => Guard; MAX_GUARDED],
                    written "by the daemon, at start, at reload and every 5 s",
                    read "tamper hooks",
                    full "what was guarded before stays so, and no more; logged, and `status` says so";
                /// Names that sessions may not make or change in a folder.
                NAMES @ 1 names: Hash[NameKey => u32; MAX_GUARDED_NAMES],
                    written "as `GUARDED`",
                    read "tamper hooks",
                    full "as `GUARDED`";
                // Layout 1 had the mount namespace alone.
                /// The host's namespaces, and what happens to who administers its network.
                WATCH @ 2 watch: Array[u32 => Watch; 1],
                    written "by the daemon",
                    read "tamper hooks",
                    full "one entry";
                /// Servers that act for their callers.
                DELEGATES @ 1 delegates: Hash[DelegateKey => u32; MAX_DELEGATES],
                    written "by the daemon, at start, at reload and every 5 s",
                    read "hooks of unix sockets",
                    full "those that were known before stay so, and no more; logged, and `status` says so";
                /// States of the identity automaton.
                DFA_ROWS @ 1 dfa_rows: ArrayGen[u32 => DfaRow; 2 * DFA_STATES as u32],
                    written "by the daemon",
                    read "exec",
                    full "the policy is refused";
                /// Byte classes of the identity automaton.
                DFA_BYTES @ 1 dfa_bytes: ArrayGen[u32 => DfaClasses; 2],
                    written "by the daemon",
                    read "exec",
                    full "one entry a generation";
                /// Agents of the identity rules.
                RULES @ 1 rules: ArrayGen[u32 => RuleTarget; 2 * MAX_RULES as u32],
                    written "by the daemon",
                    read "exec",
                    full "the policy is refused";
                /// States of the automaton about tools.
                TOOL_ROWS @ 1 tool_rows: ArrayGen[u32 => DfaRow; 2 * TOOL_STATES as u32],
                    written "by the daemon",
                    read "exec",
                    full "the policy is refused";
                /// Byte classes of the automaton about tools.
                TOOL_BYTES @ 1 tool_bytes: ArrayGen[u32 => DfaClasses; 2],
                    written "by the daemon",
                    read "exec",
                    full "one entry a generation";
                /// What the states of the automaton about tools mean at the end of the input.
                TOOL_ENDS @ 1 tool_ends: ArrayGen[u32 => ToolEnd; 2 * TOOL_STATES as u32],
                    written "by the daemon",
                    read "exec",
                    full "as `TOOL_ROWS`";
                /// User rules.
                USERS @ 1 users: HashGen[UserKey => NameId; MAX_USERS],
                    written "by the daemon",
                    read "exec",
                    full "the policy is refused";
                /// Cgroup and unit rules, by cgroup id.
                CGROUPS @ 1 cgroups: Hash[u64 => NameId; MAX_CGROUPS],
                    written "by the daemon, at start, at reload and every second",
                    read "exec",
                    full "the policy is refused; of cgroups that come later as many as fit are entered, and the daemon logs it each second";
                /// What each session reached for lately.
                HISTORIES @ 1 histories: HashLazy[u64 => KeptHistory; MAX_SESSIONS],
                    written "by cgroup programs; cleared by the daemon once a session has ended and all of it is over",
                    read "rate rules; the daemon",
                    full "what a further session does is refused where it would have to be counted. Only what is used takes memory, 6 KB an entry";
                /// Connections to login targets, at most 32 a session.
                LOGINS @ 1 logins: HashLazy[LoginKey => KeptAttempts; MAX_LOGIN_TARGETS],
                    written "as `HISTORIES`",
                    read "rate rules",
                    full "a connection to a further login target is refused. Only what is used takes memory, 700 bytes an entry";
                /// What the rate rules allow.
                LIMITS @ 1 limits: ArrayGen[u32 => behaviour::Limits; 2],
                    written "by the daemon",
                    read "rate rules",
                    full "one entry a generation";
                /// Networks that the rate rules check, and exemptions.
                GROUNDS @ 1 judged_networks: PrefixGen[PrefixKey => JudgedNetwork; MAX_JUDGED_NETWORKS],
                    written "by the daemon",
                    read "rate rules",
                    full "the policy is refused";
                /// The host's own addresses.
                OWN @ 1 own: Hash[Addr => u32; MAX_OWN],
                    written "by the daemon, every second",
                    read "rate rules, egress and ingress",
                    full "the daemon logs it; attempts to the others are judged";
                // Layout 1 counted the repeats since the last record, this one all of them.
                /// Repeats of one refusal.
                REPEATS @ 2 repeats: Hash[RepeatKey => Repeats; MAX_REPEATS],
                    written "made and counted by every hook that reports; removed by the daemon once a pair rests",
                    read "the daemon",
                    full "each attempt of a further pair is a record";
                /// How many of the repeats of an entry the daemon has reported, by the entry's id: for the daemon that comes after it.
                TOLD @ 1 reported: Hash[u64 => u64; 2 * MAX_REPEATS],
                    written "by the daemon",
                    read "the next daemon",
                    full "twice the size of `REPEATS`, whose entries they go with; what cannot be kept is logged";
                /// The newest version of the state that was on the disk in this boot. A state with a lower one is an earlier copy.
                STATE_SEEN @ 1 state_seen: Array[u32 => u64; 1],
                    written "by the daemon, once the disk has a change of receipts",
                    read "the next daemon",
                    full "one entry";
                /// Until when protection is off, boot time in nanoseconds. Zero: it is on.
                OFF @ 1 off: Array[u32 => u64; 1],
                    written "by the daemon; by `pp-agent on`, while no daemon runs",
                    read "every hook that sees a destination; exec, for rules about tools",
                    full "one entry";
                /// Who switched protection off, when and why, until its end is reported.
                OFF_NOTE @ 1 off_note: Array[u32 => OffNote; 1],
                    written "by the daemon",
                    read "the daemon, also the next one",
                    full "one entry";
                /// The counters of [`Counter`](crate::abi::Counter), for each CPU.
                COUNTS @ 1 counts: PerCpuArray[u32 => u64; COUNTERS],
                    written "by every hook",
                    read "the daemon",
                    full "fixed";
            }
            // What it reads as a stream or as memory, or not at all.
            others {
                /// A byte for each pid: may it be a marked process's? Never zero for one that is in `TASKS` or `DOOMED`, or that found no room
                /// in either. Written before those are. After an upgrade all are one: other builds may have marked without them.
                PIDS @ 1: ArrayMmap[u32 => [u8; PID_PAGE]; PID_PAGES],
                    written "at fork, exec and the end of the last thread; by the daemon, through its memory",
                    read "every hook, before `TASKS`",
                    full "a byte for each pid there can be";
                /// The last link of a process in `/proc` that each thread of a session has followed, by pid and tgid.
                FOLLOWED @ 1: LruHash[u64 => FollowedLink; MAX_FOLLOWED],
                    written "when a session follows such a link",
                    read "opening of files",
                    full "the one that was noted longest ago is forgotten; if its thread still opens a pipe or memory file by it, that is refused";
                /// Threads whose last message to the kernel's network only looks, by pid and tgid.
                LOOKED @ 1: LruHash[u64 => u32; MAX_LOOKED],
                    written "when a session that may administer a network sends",
                    read "the hook of capabilities",
                    full "the one that was noted longest ago is forgotten; what it asks for is refused if the kernel asks for the capability";
                /// Zeros, of which new histories are made.
                BLANK @ 1: Array[u32 => [u64; BLANK_WORDS]; 1],
                    written "never",
                    read "rate rules",
                    full "one entry";
                /// Verdicts, for the daemon.
                EVENTS @ 1: Ring[() => u8; 4 * 1024 * 1024],
                    written "by every hook that reports",
                    read "the daemon",
                    full "the attempt is counted in `REPEATS`, or, where it has no entry, as lost; the verdict stands";
                /// Processes that come, run a program and go, for the daemon.
                LIFECYCLE @ 1: Ring[() => u8; 2 * 1024 * 1024],
                    written "at fork, exec and exit",
                    read "the daemon",
                    full "the record is lost and counted";
                // The name is aya-log's. Lines of one build are read by another: `line_tests.rs` has those of this layout.
                /// Lines of the programs, for the daemon's log.
                AYA_LOGS @ 1: Ring[() => u8; 128 * 1024],
                    written "by every hook: warnings, and at debug what it blocks",
                    read "the daemon",
                    full "the line is lost; the verdict stands";
                /// When a warning of each kind was last written, so that there is at most one a second.
                WARNED @ UNPINNED: Array[u32 => u64; TROUBLES],
                    written "by every hook, with a warning",
                    read "the same",
                    full "one entry for each kind";
                /// Room for the path and arguments of the process that execs on this CPU.
                EXEC_INPUT @ UNPINNED: PerCpuArray[u32 => ExecInput; 1],
                    written "at exec",
                    read "exec",
                    full "one entry for each CPU";
                /// What the mark of the socket lends to decisions elsewhere, for fmod_ret programs. Another program may run in between, which
                /// can change a reason that is reported and nothing else.
                SCRATCH @ UNPINNED: PerCpuArray[u32 => Scratch; 1],
                    written "by fmod_ret programs",
                    read "the same",
                    full "one entry for each CPU";
            }
        }
    };
}

/// What kind of map it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A hash map.
    Hash,
    /// A hash map whose entries take memory only once they are made.
    HashLazy,
    /// A hash map whose keys begin with a generation.
    HashGen,
    /// A hash map that forgets what was used least lately.
    LruHash,
    /// A longest-prefix map whose keys begin with a generation.
    PrefixGen,
    /// An array.
    Array,
    /// An array of two halves, one for each generation.
    ArrayGen,
    /// An array that the daemon maps into its memory.
    ArrayMmap,
    /// An array with values for each CPU.
    PerCpuArray,
    /// A ring buffer.
    Ring,
    /// Values that hang at sockets.
    SkStorage,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Map {
    /// Its name in the object.
    pub name: &'static str,
    /// Number of its layout; [`UNPINNED`]: it is not pinned.
    pub layout: u32,
    /// What kind it is.
    pub kind: Kind,
    /// The type of its keys.
    pub key: &'static str,
    /// The type of its values.
    pub value: &'static str,
    /// Most entries; of a ring buffer its bytes.
    pub size: u32,
    /// What it holds.
    pub what: &'static str,
    /// Who writes it, and when.
    pub written: &'static str,
    /// Who reads it.
    pub read: &'static str,
    /// What happens when it is full.
    pub full: &'static str,
}

/// The layout of a map that is made anew at each start.
pub const UNPINNED: u32 = 0;

impl Map {
    /// Whether it outlives the daemon.
    #[must_use]
    pub const fn is_pinned(&self) -> bool {
        self.layout != UNPINNED
    }

    /// Whether two generations lie in it at once.
    #[must_use]
    pub const fn has_generations(&self) -> bool {
        matches!(self.kind, Kind::HashGen | Kind::PrefixGen | Kind::ArrayGen)
    }

    /// How many entries it has room for; of a map with generations, in one of them.
    #[must_use]
    pub const fn room(&self) -> usize {
        if self.has_generations() { self.size as usize / 2 } else { self.size as usize }
    }
}

macro_rules! rows {
    (@row $name:ident $layout:tt $kind:ident $key:ty, $value:ty, $size:expr, [$($text:literal)+] $written:literal $read:literal $full:literal) => {
        $(#[doc = $text])+
        pub const $name: Map = Map {
            name: stringify!($name),
            layout: $layout,
            kind: Kind::$kind,
            key: stringify!($key),
            value: stringify!($value),
            size: $size,
            what: concat!($($text),+).trim_ascii(),
            written: $written,
            read: $read,
            full: $full,
        };
    };
    (
        tables { $(
            $(#[doc = $text:literal])+
            $name:ident @ $layout:tt $field:ident: $kind:ident[$key:ty => $value:ty; $size:expr],
            written $written:literal, read $read:literal, full $full:literal;
        )+ }
        others { $(
            $(#[doc = $other_text:literal])+
            $other:ident @ $other_layout:tt: $other_kind:ident[$other_key:ty => $other_value:ty; $other_size:expr],
            written $other_written:literal, read $other_read:literal, full $other_full:literal;
        )+ }
    ) => {
        $(rows! { @row $name $layout $kind $key, $value, $size, [$($text)+] $written $read $full })+
        $(rows! { @row $other $other_layout $other_kind $other_key, $other_value, $other_size, [$($other_text)+] $other_written $other_read $other_full })+
        /// Every map.
        pub const ALL: &[Map] = &[$($name,)+ $($other,)+];
    };
}
maps!(rows);
