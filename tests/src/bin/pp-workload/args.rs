//! The command line of the workload program.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    /// Connect in a loop at full speed and count the answers by error number
    Spin {
        target: SocketAddr,
        #[arg(long, default_value_t = 2_000)]
        for_ms: u64,
        /// Stop as soon as this file exists
        #[arg(long)]
        until: Option<PathBuf>,
    },
    /// Serve a fixed answer to that many clients
    Serve {
        listen: SocketAddr,
        #[arg(long, default_value_t = 1)]
        accept: u32,
    },
    /// Connect from a given source and read the answer
    Dial {
        target: SocketAddr,
        #[arg(long)]
        source: SocketAddr,
    },
    /// Open a socket, make it standard input, exec the command
    OpenThenExec {
        target: SocketAddr,
        #[arg(long)]
        state: SocketState,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Connect the socket that is standard input
    ConnectStdin { target: SocketAddr },
    /// Write to the connected socket that is standard input
    WriteStdin,
    /// Connect, then pass the socket to whoever connects to PATH
    PassFd { path: PathBuf, target: SocketAddr },
    /// Receive a socket from PATH and write to it
    RecvFd { path: PathBuf },
    /// Let a child connect to a unix socket, take its socket after it has exited, and send REQUEST through it
    PeerFd { socket: PathBuf, request: String },
    /// The child of peer-fd
    PeerFdChild { socket: PathBuf },
    /// Accept and count everything on these addresses (`tcp:ADDR`, `stream:ADDR` or `udp:ADDR`)
    Sink {
        #[arg(long)]
        log: PathBuf,
        listen: Vec<String>,
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

/// One way to reach an address.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum TechniqueArg {
    TcpConnect,
    TcpMapped,
    Mptcp,
    Fastopen,
    FastopenMapped,
    FastopenConnect,
    UdpSendto,
    UdpMapped,
    UdpConnectSend,
    UdpUnspec,
    UdpConnectedElsewhere,
    Sendmmsg,
    Udplite,
    RawIcmp,
    RawHdrincl,
    Packet,
}
