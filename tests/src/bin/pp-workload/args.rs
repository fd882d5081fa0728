//! The command line of the workload program.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::calls::CallArg;
use crate::flows::{LeaveOptions, ServeOptions};
use crate::hunt::{HuntOptions, OnceOptions};
use crate::peers::Peers;
use crate::reach::ReachArg;
use crate::storms::Storm;

/// Everything the program is told.
#[derive(Parser)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One workload.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Enter a namespace, a user, a cgroup, then exec the command
    In(LaunchOptions),
    /// Run the command below a chain of processes of that depth
    Tree {
        #[arg(long, default_value_t = 3)]
        depth: u32,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run the command in a session of its own whose parent has exited
    Daemonize {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run the command that many times and count its exit codes
    Repeat {
        #[arg(long)]
        times: u32,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Make one attempt with one technique
    Try { technique: TechniqueArg, target: SocketAddr },
    /// Be the child of a real agent: connect, put the answer into a file, and stay until another file exists
    Child {
        target: SocketAddr,
        #[arg(long)]
        answer: PathBuf,
        #[arg(long)]
        until: PathBuf,
    },
    /// Open a flow, send and receive without end, and say when each direction stopped
    Hold {
        target: SocketAddr,
        #[arg(long, default_value_t = 20_000)]
        for_ms: u64,
    },
    /// Open a flow, write on it once a file exists, close it and exit
    Leave(LeaveOptions),
    /// Accept one connection and read nothing of it until the file exists
    Deaf { listen: SocketAddr, until: PathBuf },
    /// Connect in a loop and count the answers by error number
    Spin {
        target: SocketAddr,
        #[arg(long, default_value_t = 2_000)]
        for_ms: u64,
        /// Pause so long after each; 0 is full speed
        #[arg(long, default_value_t = 0)]
        every_ms: u16,
        /// Stop as soon as this file exists
        #[arg(long)]
        until: Option<PathBuf>,
    },
    /// Race calls against whatever is done to the gate meanwhile, and write each down
    Hunt(HuntOptions),
    /// One call of a hunt
    HuntOnce(OnceOptions),
    /// More than there is room for
    #[command(subcommand)]
    Storm(Storm),
    /// One end of a conversation over UDP
    #[command(subcommand)]
    Peers(Peers),
    /// Serve a fixed answer to that many clients
    Serve(ServeOptions),
    /// Connect from a given source and read the answer
    Dial {
        target: SocketAddr,
        #[arg(long)]
        source: SocketAddr,
        /// By MPTCP
        #[arg(long)]
        mptcp: bool,
    },
    /// Open a socket, make it standard input, exec the command
    OpenThenExec {
        target: SocketAddr,
        #[arg(long)]
        state: SocketState,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Write to the connected socket that is standard input, giving an address that a connected stream ignores
    WriteStdin {
        #[arg(long)]
        to: SocketAddr,
    },
    /// Write to the socket that is standard input
    UseStdin(WriteOptions),
    /// Open a socket, then pass it to whoever connects to PATH
    PassFd {
        path: PathBuf,
        target: SocketAddr,
        #[arg(long, default_value = "tcp-connected")]
        state: SocketState,
    },
    /// Receive a socket from PATH and write to it
    RecvFd {
        path: PathBuf,
        #[command(flatten)]
        write: WriteOptions,
    },
    /// Open a socket, say where it is, and hold it
    HoldFd {
        target: SocketAddr,
        #[arg(long)]
        state: SocketState,
    },
    /// Copy a socket out of another process and write to it
    TakeFd {
        pid: i32,
        fd: i32,
        #[command(flatten)]
        write: WriteOptions,
    },
    /// Connect to the target for whoever asks at PATH
    Relay { path: PathBuf, target: SocketAddr },
    /// Ask the server at PATH
    AskRelay { path: PathBuf },
    /// Make every attempt of a list, a line each: technique and target
    Batch {
        list: PathBuf,
        /// In this very process, not in children
        #[arg(long)]
        here: bool,
    },
    /// The same in a thread whose process has lost its first one
    LeaderGone { list: PathBuf },
    /// Become the command in another process
    Become {
        trick: Trick,
        #[arg(long)]
        cgroup: Option<PathBuf>,
        /// The process id that `numbered` takes
        #[arg(long)]
        pid: Option<i32>,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Connect to the target in a network namespace that has it as an address of its own
    NewNetwork { target: SocketAddr },
    /// Write so many times what is no line to a pinned buffer of lines for the log
    SpoilLog { buffer: PathBuf, times: u32 },
    /// Take a pinned link from its hook, or give it a program that refuses nothing
    HarmLink { pin: PathBuf, how: Harm },
    /// Attach a program at a cgroup that undoes refusals of connects, or sends them elsewhere, until killed
    OverrideConnect {
        #[arg(long)]
        cgroup: PathBuf,
        /// Only connects to this address
        #[arg(long)]
        only: std::net::Ipv4Addr,
        /// Write this address into the connect
        #[arg(long)]
        to: Option<std::net::Ipv4Addr>,
    },
    /// Attach a program at a cgroup's connect4 hook that lets no other be attached; the cgroup keeps it when this is killed
    StandAlone {
        #[arg(long)]
        cgroup: PathBuf,
    },
    /// Refuse connects and packets of every process in a cgroup, until killed
    RefuseAll {
        #[arg(long)]
        cgroup: PathBuf,
    },
    /// Let a child connect to a unix socket, take its socket after it has exited, and send REQUEST through it
    PeerFd { socket: PathBuf, request: String },
    /// The child of peer-fd
    PeerFdChild { socket: PathBuf },
    /// Serve a unix socket and answer every request with 200
    FalseServer { socket: PathBuf },
    /// Keep slow and idle connections to a control socket open
    Crowd {
        socket: PathBuf,
        #[arg(long, default_value_t = 0)]
        slow: usize,
        #[arg(long, default_value_t = 0)]
        idle: usize,
        /// Look so often for what was closed, and open it anew
        #[arg(long, default_value_t = 200)]
        every_ms: u64,
    },
    /// Accept and count everything on these addresses (`tcp:ADDR`, `stream:ADDR` or `udp:ADDR`)
    Sink {
        #[arg(long)]
        log: PathBuf,
        listen: Vec<String>,
    },
    /// Reach for something on this host that is not a network
    #[command(subcommand)]
    Tamper(TamperArg),
    /// Reach for another process
    #[command(subcommand)]
    Reach(ReachArg),
    /// Make one system call
    Call { call: CallArg },
    /// Become the command where no filter of system calls can be set up
    WithoutFilters {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Log every IP packet that arrives in this network namespace
    Tap {
        #[arg(long)]
        log: PathBuf,
    },
}

/// Where and as whom a command runs.
#[derive(Args)]
pub(crate) struct LaunchOptions {
    /// Network namespace to enter
    #[arg(long)]
    pub(crate) netns: Option<PathBuf>,
    /// cgroup directory to move to
    #[arg(long)]
    pub(crate) cgroup: Option<PathBuf>,
    /// User to become
    #[arg(long)]
    pub(crate) uid: Option<u32>,
    /// Be killed when the parent dies
    #[arg(long)]
    pub(crate) with_parent: bool,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// How a socket that came from elsewhere is written to.
#[derive(Args)]
pub(crate) struct WriteOptions {
    #[arg(long, default_value = "send")]
    pub(crate) way: WriteBy,
    /// Connect it first
    #[arg(long)]
    pub(crate) connect: Option<SocketAddr>,
}

/// One way to write.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum WriteBy {
    Send,
    Write,
    Sendfile,
    Splice,
    Uring,
    UringWorker,
}

/// What root can do to a link.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Harm {
    Detach,
    Replace,
}

/// One way to become another process.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Trick {
    Fork,
    Numbered,
    Vfork,
    IntoCgroup,
    Sibling,
    DoubleFork,
    ExecByThread,
    Memfd,
    Loader,
    Script,
    UserNamespace,
    PidNamespace,
    MountAndIpcNamespaces,
    ThereAndBack,
}

/// What `open-then-exec` does with the socket before it execs.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum SocketState {
    /// A TCP socket, only created
    Tcp,
    /// A UDP socket, only created
    Udp,
    /// A TCP socket, connected
    TcpConnected,
    /// A UDP socket, connected
    UdpConnected,
}

/// One thing to reach for.
#[derive(Subcommand)]
pub(crate) enum TamperArg {
    /// Send a signal
    Signal { pid: i32, signal: i32 },
    /// Have the kernel send a signal for a file: become able to choose which
    FileSignal { signal: i32 },
    /// Stop a process as a debugger
    Seize { pid: i32 },
    /// Copy a descriptor out of a process
    TakeDescriptor { pid: i32 },
    /// Write into a process's memory
    WriteMemory { pid: i32 },
    /// Open `/proc/PID/mem` for writing
    OpenMemory { pid: i32 },
    /// Call `bpf(2)` with a command and attributes of zeros
    Bpf { command: i64 },
    /// Open a pinned object
    BpfGet { path: PathBuf },
    /// Open for writing
    Write { path: PathBuf },
    /// Open for reading
    Read { path: PathBuf },
    /// Truncate by name
    Truncate { path: PathBuf },
    /// Make a file that is not there
    Create { path: PathBuf },
    /// Make a folder
    Mkdir { path: PathBuf },
    /// Remove a file
    Unlink { path: PathBuf },
    /// Remove a folder
    Rmdir { path: PathBuf },
    /// Rename
    Rename { from: PathBuf, to: PathBuf },
    /// Exchange two names
    Exchange { from: PathBuf, to: PathBuf },
    /// Give another name
    Link { from: PathBuf, to: PathBuf },
    /// Make a symbolic link
    Symlink { to: PathBuf, path: PathBuf },
    /// Change rights to 0777
    Chmod { path: PathBuf },
    /// Give an access list
    SetAcl { path: PathBuf },
    /// Take the access list away
    RemoveAcl { path: PathBuf },
    /// Give an extended attribute
    SetXattr { path: PathBuf },
    /// Take that away
    RemoveXattr { path: PathBuf },
    /// Give to nobody
    Chown { path: PathBuf },
    /// Mount a tmpfs
    Mount { path: PathBuf },
    /// Mount a folder on another
    Bind { from: PathBuf, to: PathBuf },
    /// Move a mount
    Move { from: PathBuf, to: PathBuf },
    /// Unmount lazily
    Unmount { path: PathBuf },
    /// Do the same in a mount namespace of its own that nobody else sees
    UnmountAlone { path: PathBuf },
    /// Load a module of zeros from memory
    LoadModule,
    /// Load a module from a file
    LoadModuleFile { path: PathBuf },
    /// Take the next kernel away: `kexec_load` without segments
    Kexec,
    /// Move a process to a cgroup, by its `cgroup.procs`
    MoveProcess { pid: i32, procs: PathBuf },
    /// Ask for a key that nobody has, so that the kernel runs `/sbin/request-key`
    RequestKey { description: String },
    /// Mount cgroup version 1 with a program for empty cgroups
    ReleaseAgent { path: PathBuf },
    /// Change the network of here, or of here from a network namespace of its own
    Network { way: NetworkArg },
    /// Connect to a unix socket and send a byte
    Unix { path: PathBuf },
    /// Send a datagram to a unix socket
    UnixDatagram { path: PathBuf },
}

/// One way to reach an address.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum TechniqueArg {
    TcpConnect,
    TcpScoped,
    TcpReconnect,
    Mptcp,
    MptcpFastopen,
    Fastopen,
    FastopenSendmsg,
    FastopenConnect,
    UdpSendto,
    UdpScoped,
    UdpSendmsg,
    UdpSegmented,
    UdpConnectSend,
    UdpConnectWrite,
    UdpUnspec,
    UdpInetOnV6,
    UdpConnectedElsewhere,
    UdpBroadcast,
    Sendmmsg,
    Udplite,
    UdpliteSendto,
    Ping,
    PingSourceRoute,
    RawIcmp,
    RawProtocol,
    RawHdrincl,
    RawSourceRoute,
    Packet,
    PacketOldName,
    Vsock,
    Sctp,
    SctpMany,
    SctpConnectx,
    Dccp,
    Smc,
    Rxrpc,
    UringConnect,
    UringConnectWorker,
    UringConnectPoll,
    UringSendmsg,
    UringSendmsgWorker,
    UringSendmsgPoll,
}

/// One way to change a network.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum NetworkArg {
    /// A message that changes nothing about the loopback interface
    Netlink,
    /// The same by a socket of here, from a network of its own
    NetlinkElsewhere,
    /// The same in a network of its own, by a socket of that
    NetlinkOwn,
    /// A number for the network of here, in one of its own
    Number,
    /// The flags of the loopback interface of here, from a network of its own
    Device,
    /// A table of netfilter of here, from a network of its own
    Option,
    /// Nothing: a larger buffer of a socket, for which the kernel asks who may change networks
    Buffer,
}
