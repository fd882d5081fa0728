//! More than there is room for: processes, refusals, sockets.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use nix::libc;
use nix::poll::{PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{ForkResult, fork, pipe, read};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::outcome;

/// Addresses that `pairs` uses before it goes on to the next port.
const ADDRESSES: u32 = 8_192;
/// Descriptors beside those of `sockets`.
const SPARE: u64 = 64;

/// One kind of too many.
#[derive(Subcommand)]
pub(crate) enum Storm {
    /// Fork until that many children live or no more can be made; each tries the target, writes the answer down and stays
    Forks {
        target: SocketAddr,
        #[arg(long)]
        log: PathBuf,
        #[arg(long)]
        most: u32,
        /// Go on trying so long once no more can be made
        #[arg(long, default_value_t = 2_000)]
        for_ms: u64,
    },
    /// Connect one datagram socket to so many pairs of address and port, counting up from FIRST; count the answers
    Pairs {
        first: SocketAddrV4,
        #[arg(long)]
        count: u32,
    },
    /// Have so many processes make COUNT datagram connects together: each second one to a pair that was not tried before, counting up
    /// from FIRST, the others to a few pairs again and again; count the answers
    Mixed {
        first: SocketAddrV4,
        #[arg(long)]
        count: u32,
        #[arg(long)]
        processes: u32,
    },
    /// Fork so many children, one after the other, that end at once
    Children {
        #[arg(long)]
        count: u32,
    },
    /// Open so many sockets, try the target with each, count the answers, and keep them until a file exists
    Sockets {
        target: SocketAddr,
        #[arg(long)]
        count: u32,
        #[arg(long)]
        until: PathBuf,
    },
}

/// Makes it.
pub(crate) fn run(storm: &Storm) -> Result<()> {
    match storm {
        Storm::Forks { target, log, most, for_ms } => forks(*target, log, *most, *for_ms),
        Storm::Pairs { first, count } => pairs(*first, *count),
        Storm::Mixed { first, count, processes } => mixed(*first, *count, *processes),
        Storm::Children { count } => children(*count),
        Storm::Sockets { target, count, until } => sockets(*target, *count, until),
    }
}

/// The answer of one connect that waits for nothing, 0 for one that began.
fn answer(socket: &Socket, target: SocketAddr) -> i32 {
    match socket.connect(&target.into()) {
        Ok(()) => 0,
        Err(error) => match error.raw_os_error() {
            Some(libc::EINPROGRESS) => 0,
            errno => errno.unwrap_or(-1),
        },
    }
}

/// Forks until `most` children live or no more can be made, and tries on for a while; prints how many were made and how many were not.
/// Each child writes the answer that it got as a line of the log, and lives as long as this process.
fn forks(target: SocketAddr, log: &Path, most: u32, for_ms: u64) -> Result<()> {
    let log = OpenOptions::new().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
    let (lives, alive) = pipe()?;
    let (mut made, mut not_made) = (0_u32, 0_u64);
    let mut end = None;
    while made < most && end.is_none_or(|end| Instant::now() < end) {
        // SAFETY: this program has one thread here.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                drop(alive);
                let socket = Socket::new(Domain::for_address(target), Type::STREAM, None);
                let errno = match &socket {
                    Ok(socket) => socket.set_nonblocking(true).map_or(-1, |()| answer(socket, target)),
                    Err(error) => error.raw_os_error().unwrap_or(-1),
                };
                (&log).write_all(format!("{errno}\n").as_bytes())?;
                // Returns when the parent is gone, which alone has the other end.
                let _end = read(&lives, &mut [0_u8])?;
                return Ok(());
            }
            Ok(ForkResult::Parent { .. }) => made += 1,
            Err(_) => {
                not_made += 1;
                end = end.or_else(|| Some(Instant::now() + Duration::from_millis(for_ms)));
                let _waited = poll(&mut [], PollTimeout::from(1_u8))?;
            }
        }
    }
    outcome::print(&json!({"made": made, "not_made": not_made}))
}

/// Connects one datagram socket to so many pairs of address and port; prints how often each answer came.
fn pairs(first: SocketAddrV4, count: u32) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut answers = BTreeMap::<i32, u64>::new();
    for index in 0..count {
        let address = Ipv4Addr::from_bits(first.ip().to_bits() + index % ADDRESSES);
        let port = first.port() + u16::try_from(index / ADDRESSES)?;
        *answers.entry(answer(&socket, SocketAddrV4::new(address, port).into())).or_default() += 1;
    }
    outcome::print(&json!({"answers": answers}))
}

/// Pairs that each process of `mixed` tries again and again.
const OFTEN: u32 = 8;

/// Forks the processes, which share the pairs that are new among them, and adds up how often each answer came.
fn mixed(first: SocketAddrV4, count: u32, processes: u32) -> Result<()> {
    let (results, result) = pipe()?;
    for process in 0..processes {
        // SAFETY: this program has one thread here.
        if let ForkResult::Child = unsafe { fork() }? {
            let refused = mixed_child(first, count, processes, process)?;
            nix::unistd::write(&result, &refused.to_ne_bytes())?;
            return Ok(());
        }
    }
    drop(result);
    let mut refused = 0_u64;
    for _ in 0..processes {
        let mut bytes = [0_u8; 8];
        let length = read(&results, &mut bytes)?;
        anyhow::ensure!(length == bytes.len(), "a process of the storm ended early");
        refused += u64::from_ne_bytes(bytes);
    }
    outcome::print(&json!({"refused": refused}))
}

/// The share of one process: returns how many of its connects were refused.
fn mixed_child(first: SocketAddrV4, count: u32, processes: u32, process: u32) -> Result<u64> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let pair = |index: u32| -> Result<SocketAddr> {
        let address = Ipv4Addr::from_bits(first.ip().to_bits() + index % ADDRESSES);
        Ok(SocketAddrV4::new(address, first.port() + u16::try_from(index / ADDRESSES)?).into())
    };
    let mut refused = 0;
    for index in (process..count).step_by(usize::try_from(processes)?) {
        let turn = index / processes;
        let target = if turn.is_multiple_of(2) { pair(processes * OFTEN + index / 2)? } else { pair(process * OFTEN + turn / 2 % OFTEN)? };
        refused += u64::from(answer(&socket, target) == libc::EPERM);
    }
    Ok(refused)
}

/// Forks so many children that end at once; prints how many.
fn children(count: u32) -> Result<()> {
    for _ in 0..count {
        // SAFETY: this program has one thread here.
        if let ForkResult::Child = unsafe { fork() }? {
            return Ok(());
        }
        let _ended = nix::sys::wait::wait()?;
    }
    outcome::print(&json!({"made": count}))
}

/// Opens so many sockets and tries the target with each; prints how often each answer came and keeps the sockets until the file exists.
fn sockets(target: SocketAddr, count: u32, until: &Path) -> Result<()> {
    let most = u64::from(count) + SPARE;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut answers = BTreeMap::<i32, u64>::new();
    let mut kept = Vec::new();
    for _ in 0..count {
        let errno = match Socket::new(Domain::for_address(target), Type::STREAM, None) {
            Ok(socket) => {
                socket.set_nonblocking(true)?;
                let errno = answer(&socket, target);
                kept.push(socket);
                errno
            }
            Err(error) => error.raw_os_error().unwrap_or(-1),
        };
        *answers.entry(errno).or_default() += 1;
    }
    outcome::print(&json!({"kept": kept.len(), "answers": answers}))?;
    while !until.exists() {
        let _waited = poll(&mut [], PollTimeout::from(20_u8))?;
    }
    Ok(())
}
