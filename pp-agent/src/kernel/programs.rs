//! Every program: where it is attached, and which backend it belongs to.

use super::Backend;

/// A hook of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CgroupHook {
    /// Its `BPF_CGROUP_*` number (`linux/bpf.h`).
    pub(super) number: u32,
    /// Its name, as `bpftool cgroup` takes it.
    pub(super) name: &'static str,
}

/// Where a program is attached in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttachTo {
    /// A link at the root of cgroup2, for this hook.
    Cgroup(CgroupHook),
    /// A raw tracepoint of this name.
    Tracepoint(&'static str),
    /// A raw tracepoint of this name, whose arguments the program takes as the types that the kernel says they are.
    TypedTracepoint(&'static str),
    /// An LSM hook of this name; with fmod_ret, the function of the kernel that calls the hook.
    Hook(&'static str),
    /// The entry of a function of the kernel.
    Entry(&'static str),
}

/// One program of the object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) attach_to: AttachTo,
    /// The backends that it is part of; none: every backend.
    parts: &'static [Backend],
    /// Whether its backend is not available on a kernel that refuses it.
    pub(super) needed: bool,
    /// Attached only if the kernel refuses the program of this name, which is tried before.
    pub(super) in_place_of: Option<&'static str>,
    /// Attached only on kernels where the hook of `send(2)` does not see `splice(2)` and `sendfile(2)`.
    pub(super) for_splices: bool,
    /// Not attached on kernels without its hook: there, nothing that the hook sees can be done, or another hook sees it.
    pub(super) where_hooked: bool,
}

impl Program {
    const fn new(name: &'static str, attach_to: AttachTo, parts: &'static [Backend]) -> Self {
        Self { name, attach_to, parts, needed: true, in_place_of: None, for_splices: false, where_hooked: false }
    }

    /// Makes it optional, since some supported kernels refuse it.
    const fn where_it_loads(self) -> Self {
        Self { needed: false, ..self }
    }

    /// Limits it to kernels where the hook of `send(2)` does not see `splice(2)` and `sendfile(2)`.
    const fn for_splices(self) -> Self {
        Self { for_splices: true, ..self }
    }

    /// Limits it to kernels that have its hook.
    const fn where_hooked(self) -> Self {
        Self { where_hooked: true, ..self }
    }

    /// Makes it the replacement of a program that the kernel refuses.
    const fn in_place_of(self, other: &'static str) -> Self {
        Self { in_place_of: Some(other), ..self }
    }

    /// The stem of its pin. The same code can be attached in two ways.
    pub(super) fn stem(&self, backend: Backend) -> String {
        match (self.attach_to, backend) {
            (AttachTo::Hook(_), Backend::FmodRet) => format!("{}_fmod", self.name),
            _ => self.name.to_owned(),
        }
    }

    /// Whether it is part of this backend, and not of every backend.
    pub(super) fn serves(&self, backend: Backend) -> bool {
        self.parts.contains(&backend)
    }
}

const fn tracepoint(name: &'static str, tracepoint: &'static str) -> Program {
    Program::new(name, AttachTo::Tracepoint(tracepoint), &[])
}

const fn cgroup(name: &'static str, number: u32, hook: &'static str) -> Program {
    Program::new(name, AttachTo::Cgroup(CgroupHook { number, name: hook }), &[])
}

/// An LSM program that does not use the marks of sockets. The same code is the fmod_ret program.
const fn both(name: &'static str, hook: &'static str) -> Program {
    Program::new(name, AttachTo::Hook(hook), &[Backend::Lsm, Backend::FmodRet])
}

/// An LSM program that reads or writes the marks of sockets, which fmod_ret programs cannot do.
const fn lsm(name: &'static str, hook: &'static str) -> Program {
    Program::new(name, AttachTo::Hook(hook), &[Backend::Lsm])
}

/// The fmod_ret program that replaces such an LSM program. It refuses without the mark of the socket.
const fn fmod(name: &'static str, hook: &'static str) -> Program {
    Program::new(name, AttachTo::Hook(hook), &[Backend::FmodRet])
}

/// A program that runs before such a fmod_ret program and marks the socket. Kernels before 5.11 do not support it.
const fn entry(name: &'static str, function: &'static str) -> Program {
    Program::new(name, AttachTo::Entry(function), &[Backend::FmodRet]).where_it_loads()
}

/// A program at a tracepoint that marks sockets. Kernels before 5.11 do not support it.
const fn typed_tracepoint(name: &'static str, tracepoint: &'static str) -> Program {
    Program::new(name, AttachTo::TypedTracepoint(tracepoint), &[]).where_it_loads()
}

/// Attached first, in this order. The fork hook is the very first, so that no child of a process that is marked later is missed.
pub(super) const FIRST: [Program; 10] = [
    tracepoint("pp_fork", "sched_process_fork"),
    cgroup("pp_sock_create", 2, "sock_create"),
    cgroup("pp_egress", 1, "egress"),
    cgroup("pp_ingress", 0, "ingress"),
    cgroup("pp_connect4", 10, "connect4"),
    cgroup("pp_connect6", 11, "connect6"),
    cgroup("pp_sendmsg4", 14, "sendmsg4"),
    cgroup("pp_sendmsg6", 15, "sendmsg6"),
    tracepoint("pp_attach", "cgroup_attach_task"),
    typed_tracepoint("pp_listen", "inet_sock_set_state"),
];

/// Programs that refuse before the kernel acts. The backend decides which of them are attached.
pub(super) const REFUSING: [Program; 60] = [
    both("pp_lsm_fork", "task_alloc").where_it_loads(),
    lsm("pp_lsm_connect", "socket_connect"),
    lsm("pp_lsm_sendmsg", "socket_sendmsg"),
    both("pp_lsm_create", "socket_create"),
    lsm("pp_lsm_receive", "file_receive").where_it_loads(),
    lsm("pp_lsm_graft", "sock_graft").where_it_loads(),
    lsm("pp_lsm_write", "file_permission").where_it_loads().for_splices(),
    lsm("pp_lsm_splice", "file_permission").where_it_loads().for_splices().in_place_of("pp_lsm_write"),
    entry("pp_entry_connect", "security_socket_connect"),
    entry("pp_entry_sendmsg", "security_socket_sendmsg"),
    entry("pp_entry_receive", "security_file_receive"),
    entry("pp_entry_graft", "security_sock_graft"),
    entry("pp_entry_write", "security_file_permission").for_splices(),
    fmod("pp_fmod_splice", "file_permission").where_it_loads().for_splices().in_place_of("pp_entry_write"),
    fmod("pp_fmod_connect", "socket_connect"),
    fmod("pp_fmod_sendmsg", "socket_sendmsg"),
    both("pp_lsm_kill", "task_kill").where_it_loads(),
    both("pp_lsm_fcntl", "file_fcntl").where_it_loads(),
    both("pp_lsm_ptrace", "ptrace_access_check").where_it_loads(),
    both("pp_lsm_bpf", "bpf").where_it_loads(),
    both("pp_lsm_umount", "sb_umount").where_it_loads(),
    both("pp_lsm_mount", "sb_mount").where_it_loads(),
    both("pp_lsm_move_mount", "move_mount").where_it_loads(),
    both("pp_lsm_pivot", "sb_pivotroot").where_it_loads(),
    both("pp_lsm_open", "file_open").where_it_loads(),
    both("pp_lsm_follow", "inode_follow_link").where_it_loads(),
    both("pp_lsm_reopen", "file_open").where_it_loads(),
    both("pp_lsm_inode_create", "inode_create").where_it_loads(),
    both("pp_lsm_mkdir", "inode_mkdir").where_it_loads(),
    both("pp_lsm_mknod", "inode_mknod").where_it_loads(),
    both("pp_lsm_symlink", "inode_symlink").where_it_loads(),
    both("pp_lsm_link", "inode_link").where_it_loads(),
    both("pp_lsm_unlink", "inode_unlink").where_it_loads(),
    both("pp_lsm_rmdir", "inode_rmdir").where_it_loads(),
    both("pp_lsm_truncate", "path_truncate").where_it_loads(),
    both("pp_lsm_chmod", "path_chmod").where_it_loads(),
    both("pp_lsm_chown", "path_chown").where_it_loads(),
    // On 5.10 programs cannot take the owner, which is a structure passed by value.
    both("pp_lsm_setattr", "inode_setattr").where_it_loads().in_place_of("pp_lsm_chown"),
    both("pp_lsm_setxattr", "inode_setxattr").where_it_loads(),
    both("pp_lsm_removexattr", "inode_removexattr").where_it_loads(),
    // Since 6.2. Before, access lists pass the hooks of extended attributes.
    both("pp_lsm_set_acl", "inode_set_acl").where_it_loads().where_hooked(),
    both("pp_lsm_remove_acl", "inode_remove_acl").where_it_loads().where_hooked(),
    both("pp_lsm_read_file", "kernel_read_file").where_it_loads(),
    both("pp_lsm_load_data", "kernel_load_data").where_it_loads(),
    both("pp_lsm_ioctl", "file_ioctl").where_it_loads(),
    // Since 6.8, and in later releases of older series.
    both("pp_lsm_ioctl_compat", "file_ioctl_compat").where_it_loads().where_hooked(),
    both("pp_lsm_file_setattr", "inode_file_setattr").where_it_loads().where_hooked(),
    both("pp_lsm_setrlimit", "task_setrlimit").where_it_loads(),
    both("pp_lsm_setnice", "task_setnice").where_it_loads(),
    both("pp_lsm_setioprio", "task_setioprio").where_it_loads(),
    both("pp_lsm_setscheduler", "task_setscheduler").where_it_loads(),
    both("pp_lsm_movememory", "task_movememory").where_it_loads(),
    both("pp_lsm_fs_param", "fs_context_parse_param").where_it_loads(),
    both("pp_lsm_capable", "capable").where_it_loads(),
    both("pp_lsm_netlink", "netlink_send").where_it_loads(),
    both("pp_lsm_setsockopt", "socket_setsockopt").where_it_loads(),
    both("pp_lsm_unix_connect", "unix_stream_connect").where_it_loads(),
    both("pp_lsm_unix_send", "unix_may_send").where_it_loads(),
    lsm("pp_lsm_rename", "inode_rename").where_it_loads(),
    // The function takes one more argument than the hook.
    fmod("pp_fmod_rename", "inode_rename").where_it_loads(),
];

/// Attached last, in this order. From here on processes are marked when they start a session and unmarked when they end. The exec hook is
/// replaced before the exit hook, since that of an earlier build may not write everything that this exit hook clears (`PIDS`).
pub(super) const LAST: [Program; 2] = [tracepoint("pp_exec", "sched_process_exec"), tracepoint("pp_exit", "sched_process_exit")];

/// The programs that replace the program of this name if the kernel refuses it.
pub(super) fn stand_ins(program: &str) -> impl Iterator<Item = &'static Program> {
    REFUSING.iter().filter(move |other| other.in_place_of == Some(program))
}

/// Every program at a hook of a cgroup, with the hook.
pub(super) fn at_cgroup_hooks() -> impl Iterator<Item = (&'static Program, CgroupHook)> {
    all().filter_map(|program| if let AttachTo::Cgroup(hook) = program.attach_to { Some((program, hook)) } else { None })
}

/// The hook of this number, if a program is attached there.
pub(super) fn cgroup_hook(number: u32) -> Option<CgroupHook> {
    at_cgroup_hooks().map(|(_, hook)| hook).find(|hook| hook.number == number)
}

/// Every program.
pub(super) fn all() -> impl Iterator<Item = &'static Program> {
    FIRST.iter().chain(&REFUSING).chain(&LAST)
}

/// Every program of this backend, including the cgroup programs, with the stem of its pin.
pub(super) fn of(backend: Option<Backend>) -> impl Iterator<Item = (&'static Program, String)> {
    let refusing =
        REFUSING.iter().filter_map(move |program| backend.filter(|backend| program.serves(*backend)).map(|with| (program, with)));
    let always = FIRST.iter().chain(&LAST);
    refusing.chain(always.map(|program| (program, Backend::Cgroup))).map(|(program, with)| (program, program.stem(with)))
}
