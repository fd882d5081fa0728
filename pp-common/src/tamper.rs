//! What a session is refused beside connections, and which hook refused it: the codes of records and their names in events.

macro_rules! codes {
    ($(#[$outer:meta])* $type:ident { $($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal;)* }) => {
        $(#[$outer])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type { $($(#[$doc])* $variant = $code,)* }
        impl $type {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// From its code in a record.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
            /// Its name in events.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

codes! {
    /// What was tried.
    Tamper {
        /// A signal to the daemon.
        Signal = 1, "signal";
        /// Taking over a process of another session or of none.
        Trace = 2, "ptrace";
        /// `bpf(2)`.
        Bpf = 3, "bpf";
        /// Unmounting what holds pins, policy or state.
        Unmount = 4, "unmount";
        /// Mounting over such a place, or moving it away.
        Mount = 5, "mount";
        /// Changing pins, policy, keys, state, socket, program or unit.
        OwnFile = 6, "own_file";
        /// Changing a file by which others act later.
        LaterFile = 7, "later_file";
        /// Loading a module or another kernel.
        KernelCode = 8, "kernel_code";
        /// The host's memory or ports as a device.
        KernelMemory = 9, "kernel_memory";
        /// A disk as a device.
        RawDisk = 10, "raw_disk";
        /// A tun device.
        Tun = 11, "tun";
        /// A setting of the kernel that starts programs or turns hooks off.
        KernelSetting = 12, "kernel_setting";
        /// The daemon's files in `/proc`, its cgroups.
        DaemonFile = 13, "daemon_file";
        /// Moving the daemon to another cgroup.
        CgroupMove = 14, "cgroup_move";
        /// A server that acts for whoever asks it.
        Delegate = 20, "delegate";
        /// The kernel's own structures could not be read.
        Unreadable = 30, "unreadable";
    }
}

codes! {
    /// The hook that refused.
    GuardHook {
        /// `task_kill`
        Kill = 1, "lsm_task_kill";
        /// `ptrace_access_check`
        Trace = 2, "lsm_ptrace_access_check";
        /// `bpf`
        Bpf = 3, "lsm_bpf";
        /// `sb_umount`
        Unmount = 4, "lsm_sb_umount";
        /// `sb_mount`
        Mount = 5, "lsm_sb_mount";
        /// `move_mount`
        MoveMount = 6, "lsm_move_mount";
        /// `sb_pivotroot`
        Pivot = 7, "lsm_sb_pivotroot";
        /// `file_open`
        Open = 8, "lsm_file_open";
        /// `inode_create`
        Create = 9, "lsm_inode_create";
        /// `inode_unlink`
        Unlink = 10, "lsm_inode_unlink";
        /// `inode_rmdir`
        Rmdir = 11, "lsm_inode_rmdir";
        /// `inode_mkdir`
        Mkdir = 12, "lsm_inode_mkdir";
        /// `inode_mknod`
        Mknod = 13, "lsm_inode_mknod";
        /// `inode_link`
        Link = 14, "lsm_inode_link";
        /// `inode_symlink`
        Symlink = 15, "lsm_inode_symlink";
        /// `inode_rename`
        Rename = 16, "lsm_inode_rename";
        /// `path_truncate`
        Truncate = 17, "lsm_path_truncate";
        /// `path_chmod`
        Chmod = 18, "lsm_path_chmod";
        /// `path_chown`
        Chown = 19, "lsm_path_chown";
        /// `kernel_read_file`
        ReadFile = 20, "lsm_kernel_read_file";
        /// `kernel_load_data`
        LoadData = 21, "lsm_kernel_load_data";
        /// `file_fcntl`
        Fcntl = 22, "lsm_file_fcntl";
        /// The tracepoint after a move to another cgroup.
        Attach = 23, "cgroup_attach_task";
        /// `unix_stream_connect`
        UnixConnect = 30, "lsm_unix_stream_connect";
        /// `unix_may_send`
        UnixSend = 31, "lsm_unix_may_send";
    }
}
