//! Records the programs write into the ring buffer.
//!
//! Each begins with [`RecordHeader`]. User space reads them with
//! [`VerdictRecord::from_bytes`] and its siblings, which check the length; a
//! code that is unknown stays a number until `from_code` has checked it.

use crate::{abi::NameId, codes::codes, dest::Addr};

codes! {
    /// Which record follows.
    mod kind: u32 {
        /// A [`super::VerdictRecord`].
        VERDICT = 1, "verdict";
        /// A [`super::ExecRecord`]: a marked process runs another program.
        EXEC = 2, "exec";
        /// A [`super::ExecRecord`] whose process begins a session.
        SESSION_START = 3, "session_start";
        /// A [`super::TaskRecord`]: a marked process forked.
        FORK = 4, "fork";
        /// A [`super::TaskRecord`]: a marked process ended.
        EXIT = 5, "exit";
        /// A [`super::TaskRecord`]: a mark did not fit; what was done is in `flags`.
        TABLE_FULL = 6, "table_full";
        /// A [`super::ExecRecord`]: a marked process runs a program that a rule is
        /// about; `rule` is its code, see [`crate::tools`].
        TOOL = 16, "tool";
        /// A [`crate::protect::GuardRecord`]: a session reached for its own gate.
        TAMPER = 40, "tamper";
        /// A [`crate::protect::GuardRecord`]: a session called a delegate.
        DELEGATE = 41, "delegate";
    }
}

codes! {
    /// Which hook wrote a verdict.
    enum Hook: u8 {
        /// `connect(2)`: `cgroup/connect4` and `connect6`.
        Connect = 1, "connect";
        /// A datagram with an address: `cgroup/sendmsg4` and `sendmsg6`.
        Sendmsg = 2, "sendmsg";
        /// A new socket: `cgroup/sock_create`.
        SockCreate = 3, "sock_create";
        /// A packet out: `cgroup_skb/egress`.
        Egress = 4, "egress";
        /// A packet in: `cgroup_skb/ingress`.
        Ingress = 5, "ingress";
        /// `connect(2)` on a socket of any family.
        LsmConnect = 6, "lsm_socket_connect";
        /// A message or write on a socket of any family.
        LsmSendmsg = 7, "lsm_socket_sendmsg";
        /// A new socket of any family.
        LsmCreate = 8, "lsm_socket_create";
        /// A socket that is handed over.
        LsmReceive = 9, "lsm_file_receive";
        /// The daemon, which found an open flow whose receipt had ended.
        Daemon = 10, "daemon";
        /// `sendfile`, `splice` or `write` on a connected socket (5.10).
        LsmWrite = 11, "lsm_file_permission";
    }
}

/// What every record begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordHeader {
    /// A constant of [`kind`].
    pub kind: u32,
    /// `TASK_*` flags of the mark.
    pub flags: u32,
    /// When, boot time.
    pub time_ns: u64,
    /// The session.
    pub session: u64,
    /// Its agent.
    pub agent: NameId,
    /// Its owner's uid.
    pub owner: u32,
    /// The process.
    pub tgid: u32,
}

/// A verdict that is worth reporting.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerdictRecord {
    /// The header.
    pub header: RecordHeader,
    /// The remote end.
    pub addr: Addr,
    /// Zone, zero: none.
    pub zone: NameId,
    /// Gateway, zero: none.
    pub gateway: NameId,
    /// Service, zero: none.
    pub service: NameId,
    /// Attempts of the pair that wrote no record, since its entry `repeats_id` was made.
    pub repeats: u64,
    /// The [`crate::abi::Repeats::id`] of the entry; zero: the pair has none.
    pub repeats_id: u64,
    /// Receipt, zero: none.
    pub serial: u32,
    /// Generation of the tables it was decided by.
    pub generation: u32,
    /// The remote end's port; for `socket_family` the address family.
    pub port: u16,
    /// IP protocol number.
    pub transport: u8,
    /// Verdict code.
    pub verdict: u8,
    /// Reason code.
    pub reason: u8,
    /// Hook code.
    pub hook: u8,
    /// Zero.
    pub pad: [u8; 2],
    /// Where a rate rule tripped just now: how many there would have been;
    /// else zero.
    pub count: u32,
    /// How many the rule allows ...
    pub limit: u32,
    /// ... within this time.
    pub window_s: u32,
    /// For how long the pattern is blocked.
    pub cool_down_s: u32,
}

/// A marked process ran a program, or a session began with one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecRecord {
    /// The header.
    pub header: RecordHeader,
    /// The parent.
    pub parent_tgid: u32,
    /// Length of the path, which may be more than `path` holds.
    pub path_len: u32,
    /// Length of the argument vector, each argument with its NUL, which may be
    /// more than `argv` holds.
    pub argv_len: u32,
    /// Index of the rule that matched plus one, at the start of a session; the
    /// code of a rule about tools.
    pub rule: u32,
    /// The path given to `execve`.
    pub path: [u8; EXEC_RECORD_PATH],
    /// The argument vector.
    pub argv: [u8; EXEC_RECORD_ARGV],
}

/// Bytes of a path that an [`ExecRecord`] carries.
pub const EXEC_RECORD_PATH: usize = 256;
/// Bytes of an argument vector that an [`ExecRecord`] carries.
pub const EXEC_RECORD_ARGV: usize = 512;

/// A marked process came, went or found no room.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskRecord {
    /// The header; `tgid` is the child's for a fork.
    pub header: RecordHeader,
    /// The parent.
    pub parent_tgid: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = {
    assert!(size_of::<RecordHeader>() == 2 * 4 + 3 * 8 + 2 * 4);
    assert!(size_of::<VerdictRecord>() == 40 + 16 + 5 * 8 + 2 * 4 + 2 + 6 + 4 * 4);
    assert!(size_of::<ExecRecord>() == 40 + 4 * 4 + EXEC_RECORD_PATH + EXEC_RECORD_ARGV);
    assert!(size_of::<TaskRecord>() == 40 + 2 * 4);
};
