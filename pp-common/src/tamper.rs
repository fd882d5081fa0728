//! What a session is refused beside connections, and which hook refused it: the codes of records and their names in events.

use crate::codes::codes;

codes! {
    /// What was tried.
    enum Tamper: u8 {
        /// A signal to the daemon, directly or through the kernel.
        Signal = 1, "signal";
        /// Access to a process outside the session.
        Trace = 2, "ptrace";
        /// `bpf(2)`.
        Bpf = 3, "bpf";
        /// Unmounting the gate's files.
        Unmount = 4, "unmount";
        /// Moving or covering the gate's files.
        Mount = 5, "mount";
        /// Changing pins, policy, keys, state, socket, program or unit.
        OwnFile = 6, "own_file";
        /// Changing a file by which others act later.
        LaterFile = 7, "later_file";
        /// Loading a module or another kernel.
        KernelCode = 8, "kernel_code";
        /// Opening the host's memory or ports as a device.
        KernelMemory = 9, "kernel_memory";
        /// Opening a disk as a device.
        RawDisk = 10, "raw_disk";
        /// Opening a tun device.
        Tun = 11, "tun";
        /// A kernel setting that starts programs or disables hooks.
        KernelSetting = 12, "kernel_setting";
        /// The daemon's files in `/proc` or its cgroups.
        DaemonFile = 13, "daemon_file";
        /// Moving the daemon to another cgroup: the process was killed, and the daemon returns.
        CgroupMove = 14, "cgroup_move";
        /// A server that acts for whoever asks it.
        Delegate = 20, "delegate";
        /// Typing in a person's place: into a terminal's input, or on a keyboard.
        Terminal = 21, "terminal";
        /// The daemon's limits, priority, processors or memory nodes.
        Limits = 22, "limits";
        /// Opening a pipe, terminal or memory file that a process outside the session has open, by its link in `/proc`.
        Reopen = 23, "reopen";
        /// A unix server of the same user, outside sessions, that is on no list.
        UnknownDelegate = 24, "unknown_delegate";
        /// `CAP_NET_ADMIN` over the host's network.
        NetAdmin = 25, "net_admin";
        /// Any of these where kernel structures were unreadable.
        Unreadable = 30, "unreadable";
    }
}

codes! {
    /// The hook that refused.
    enum GuardHook: u8 {
        /// A signal.
        Kill = 1, "lsm_task_kill";
        /// Access to another process.
        Trace = 2, "lsm_ptrace_access_check";
        /// `bpf(2)`.
        Bpf = 3, "lsm_bpf";
        /// Unmounting.
        Unmount = 4, "lsm_sb_umount";
        /// Mounting by `mount(2)`.
        Mount = 5, "lsm_sb_mount";
        /// Mounting by the newer calls, or moving a mount.
        MoveMount = 6, "lsm_move_mount";
        /// `pivot_root(2)`.
        Pivot = 7, "lsm_sb_pivotroot";
        /// Opening a file.
        Open = 8, "lsm_file_open";
        /// Making a file.
        Create = 9, "lsm_inode_create";
        /// Removing a file.
        Unlink = 10, "lsm_inode_unlink";
        /// Removing a folder.
        Rmdir = 11, "lsm_inode_rmdir";
        /// Making a folder.
        Mkdir = 12, "lsm_inode_mkdir";
        /// Making a device, pipe or socket.
        Mknod = 13, "lsm_inode_mknod";
        /// Another name for a file.
        Link = 14, "lsm_inode_link";
        /// Making a symbolic link.
        Symlink = 15, "lsm_inode_symlink";
        /// Renaming.
        Rename = 16, "lsm_inode_rename";
        /// Truncating a file.
        Truncate = 17, "lsm_path_truncate";
        /// Changing the rights of a file.
        Chmod = 18, "lsm_path_chmod";
        /// Changing the owner of a file.
        Chown = 19, "lsm_path_chown";
        /// Code or rules that the kernel reads from a file.
        ReadFile = 20, "lsm_kernel_read_file";
        /// Code or rules that the kernel takes from memory.
        LoadData = 21, "lsm_kernel_load_data";
        /// `fcntl(2)`: whom a file signals.
        Fcntl = 22, "lsm_file_fcntl";
        /// A move to another cgroup, after it was made.
        Attach = 23, "cgroup_attach_task";
        /// An option of a file system that is mounted.
        FsParam = 24, "lsm_fs_context_parse_param";
        /// A connect to a unix stream socket.
        UnixConnect = 30, "lsm_unix_stream_connect";
        /// A datagram to a unix socket.
        UnixSend = 31, "lsm_unix_may_send";
        /// `ioctl(2)`.
        Ioctl = 40, "lsm_file_ioctl";
        /// `ioctl(2)` of a 32-bit program.
        IoctlCompat = 41, "lsm_file_ioctl_compat";
        /// Limiting what a process may use.
        Rlimit = 42, "lsm_task_setrlimit";
        /// `nice` of a process.
        Nice = 43, "lsm_task_setnice";
        /// The priority of a process at disks.
        Ioprio = 44, "lsm_task_setioprio";
        /// The scheduler of a process, or the processors it may run on.
        Scheduler = 45, "lsm_task_setscheduler";
        /// Moving the memory of a process to other nodes.
        MoveMemory = 46, "lsm_task_movememory";
        /// Changing the flags of a file by `file_setattr(2)`.
        FileSetattr = 47, "lsm_inode_file_setattr";
        /// A capability.
        Capable = 48, "lsm_capable";
        /// A message to the kernel's network.
        Netlink = 49, "lsm_netlink_send";
        /// An option of a socket.
        SocketOption = 50, "lsm_socket_setsockopt";
        /// Giving a file an extended attribute.
        SetXattr = 51, "lsm_inode_setxattr";
        /// Taking one from it.
        RemoveXattr = 52, "lsm_inode_removexattr";
        /// Giving a file an access list.
        SetAcl = 53, "lsm_inode_set_acl";
        /// Taking it away.
        RemoveAcl = 54, "lsm_inode_remove_acl";
    }
}
