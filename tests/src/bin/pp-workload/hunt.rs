//! Threads and processes that race calls against whatever is done to the gate meanwhile. Each call is written down with the boot time of
//! its beginning and its end; `pp_tests::hunt` judges them.
//!
//! Lines: `{"begin_ns","end_ns","how","to","udp","errno","pid"}`. They are made without memory of the heap: children that were forked from
//! a process with threads write them too.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use clap::{Args, ValueEnum};
use nix::libc;
use nix::poll::{PollTimeout, poll};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use pp_tests::hunt::boot_ns;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::techniques::PAYLOAD;
use crate::{outcome, tricks};

/// How long a connect may wait for its far end.
const CONNECT: Duration = Duration::from_secs(2);
/// Longest pause between two calls of a thread, in milliseconds.
const PAUSE_MS: u8 = 4;
/// Between the seeds of two threads: an odd number of many bits.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

/// What is raced, and for how long.
#[derive(Args)]
pub(crate) struct HuntOptions {
    /// What every choice follows from
    #[arg(long)]
    pub(crate) seed: u64,
    /// Longest time
    #[arg(long)]
    pub(crate) for_ms: u64,
    /// Stop as soon as this file exists
    #[arg(long)]
    pub(crate) until: PathBuf,
    #[arg(long)]
    pub(crate) log: PathBuf,
    #[arg(long, default_value_t = 4)]
    pub(crate) threads: u64,
    /// Addresses to connect to
    #[arg(long, value_delimiter = ',', required = true)]
    pub(crate) tcp: Vec<SocketAddr>,
    /// Addresses to send datagrams to, by IPv4
    #[arg(long, value_delimiter = ',', required = true)]
    pub(crate) udp: Vec<SocketAddr>,
}

/// One call of a hunt.
#[derive(Args)]
pub(crate) struct OnceOptions {
    pub(crate) target: SocketAddr,
    #[arg(long)]
    pub(crate) udp: bool,
    #[arg(long)]
    pub(crate) log: PathBuf,
    #[arg(long)]
    pub(crate) by: Maker,
}

/// Who made the process of a call.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Maker {
    Exec,
    Become,
}

/// Where a call goes.
#[derive(Clone, Copy)]
struct Aim {
    to: SocketAddr,
    udp: bool,
}

/// One way to make a call.
#[derive(Clone, Copy)]
enum Way {
    /// Connect and wait, or send a datagram.
    Plain,
    /// Begin a connect and close the socket.
    Begin,
    /// One datagram socket, connected to one address after the other, a datagram to each.
    Again,
    /// A datagram socket of the whole process, which other threads connect elsewhere meanwhile.
    Shared,
    /// The first thing that a new thread does.
    Thread,
    /// The first thing that a forked child does.
    Fork,
    /// The same, made by `clone3`.
    Clone3,
    /// The first thing that a new program does.
    Exec,
    /// The same in a process made by one of the ways that have a name.
    Become,
}

const WAYS: [Way; 12] = [
    Way::Plain,
    Way::Plain,
    Way::Begin,
    Way::Begin,
    Way::Again,
    Way::Shared,
    Way::Shared,
    Way::Thread,
    Way::Fork,
    Way::Clone3,
    Way::Exec,
    Way::Become,
];
const TRICKS: [&str; 4] = ["fork", "vfork", "double-fork", "exec-by-thread"];

struct Hunt<'a> {
    options: &'a HuntOptions,
    aims: Vec<Aim>,
    log: File,
    shared: [Socket; 2],
    calls: AtomicU64,
}

/// Races until the time is over or the file is there; prints how many calls were made.
pub(crate) fn run(options: &HuntOptions) -> Result<()> {
    let aim = |udp: bool| move |to: &SocketAddr| Aim { to: *to, udp };
    let aims: Vec<Aim> = options.tcp.iter().map(aim(false)).chain(options.udp.iter().map(aim(true))).collect();
    let datagrams = || Socket::new(Domain::IPV4, Type::DGRAM, None);
    let hunt = Hunt { options, aims, log: open(&options.log)?, shared: [datagrams()?, datagrams()?], calls: AtomicU64::new(0) };
    let end = Instant::now() + Duration::from_millis(options.for_ms);
    let race = |index: u64| hunt.race(SmallRng::seed_from_u64(options.seed.wrapping_add(index.wrapping_mul(STRIDE))), end);
    let race = &race;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads).map(|index| scope.spawn(move || race(index))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    outcome::print(&json!({"done": true, "calls": hunt.calls.load(Ordering::Relaxed)}))
}

/// Makes one call, writes it down and ends.
pub(crate) fn once(options: &OnceOptions) -> Result<()> {
    let log = open(&options.log)?;
    let how = match options.by {
        Maker::Exec => "exec",
        Maker::Become => "become",
    };
    plain(&log, how, Aim { to: options.target, udp: options.udp })
}

fn open(log: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(log).with_context(|| log.display().to_string())
}

impl Hunt<'_> {
    fn race(&self, mut rng: SmallRng, end: Instant) -> Result<()> {
        while Instant::now() < end && !self.options.until.exists() {
            let way = WAYS[rng.random_range(0..WAYS.len())];
            let aim = self.aims[rng.random_range(0..self.aims.len())];
            self.make(way, aim, &mut rng)?;
            self.calls.fetch_add(1, Ordering::Relaxed);
            let _waited = poll(&mut [], PollTimeout::from(rng.random_range(0..=PAUSE_MS)));
        }
        Ok(())
    }

    fn make(&self, way: Way, aim: Aim, rng: &mut SmallRng) -> Result<()> {
        match way {
            Way::Plain => plain(&self.log, "plain", aim),
            Way::Begin => begin(&self.log, "begin", aim),
            Way::Again => self.again(rng),
            Way::Shared => self.shared(rng),
            Way::Thread => {
                thread::scope(|scope| scope.spawn(|| plain(&self.log, "thread", aim)).join()).map_err(|_| anyhow!("a thread panicked"))?
            }
            Way::Fork => {
                // SAFETY: the child makes system calls only, and ends without running anything of this process.
                match unsafe { fork() }? {
                    ForkResult::Child => self.child("fork", aim),
                    ForkResult::Parent { child } => waitpid(child, None).map(drop).map_err(Into::into),
                }
            }
            Way::Clone3 => match tricks::clone3(0, libc::SIGCHLD, None, None)? {
                None => self.child("clone3", aim),
                Some(child) => waitpid(child, None).map(drop).map_err(Into::into),
            },
            Way::Exec => self.program("exec", &[], aim),
            Way::Become => {
                let trick = TRICKS[rng.random_range(0..TRICKS.len())];
                self.program("become", &["become", trick, "--", "/proc/self/exe"], aim)
            }
        }
    }

    /// In a child that has a copy of one thread alone.
    fn child(&self, how: &'static str, aim: Aim) -> ! {
        let code = i32::from(begin(&self.log, how, aim).is_err());
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(code) }
    }

    fn program(&self, by: &str, before: &[&str], aim: Aim) -> Result<()> {
        let mut command = Command::new("/proc/self/exe");
        command.args(before).args(["hunt-once", "--by", by, "--log"]).arg(&self.options.log).arg(aim.to.to_string());
        if aim.udp {
            command.arg("--udp");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).status().context(by.to_owned()).map(drop)
    }

    fn again(&self, rng: &mut SmallRng) -> Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        for _ in 0..3 {
            let aim = self.datagram_aim(rng);
            note(&self.log, "again: connect", aim, || socket.connect(&aim.to.into()))?;
            // Where the connect was refused this is the address before, whose own calls are judged; a packet that arrives is, too.
            let _sent = socket.send(PAYLOAD);
        }
        Ok(())
    }

    /// Connects a shared socket, or sends by it to whatever it is connected to now: what arrives is judged by its packet.
    fn shared(&self, rng: &mut SmallRng) -> Result<()> {
        let socket = &self.shared[rng.random_range(0..self.shared.len())];
        if rng.random_bool(0.5) {
            let _sent = socket.send(PAYLOAD);
            return Ok(());
        }
        let aim = self.datagram_aim(rng);
        note(&self.log, "shared: connect", aim, || socket.connect(&aim.to.into()))
    }

    fn datagram_aim(&self, rng: &mut SmallRng) -> Aim {
        Aim { to: self.options.udp[rng.random_range(0..self.options.udp.len())], udp: true }
    }
}

/// One call with a socket of its own.
fn plain(log: &File, how: &'static str, aim: Aim) -> Result<()> {
    let socket = Socket::new(Domain::for_address(aim.to), if aim.udp { Type::DGRAM } else { Type::STREAM }, None)?;
    if aim.udp {
        return note(log, how, aim, || socket.send_to(PAYLOAD, &aim.to.into()).map(drop));
    }
    note(log, how, aim, || socket.connect_timeout(&aim.to.into(), CONNECT))
}

/// A call that waits for nothing.
fn begin(log: &File, how: &'static str, aim: Aim) -> Result<()> {
    let socket = Socket::new(Domain::for_address(aim.to), if aim.udp { Type::DGRAM } else { Type::STREAM }, None)?;
    socket.set_nonblocking(true)?;
    note(log, how, aim, || socket.connect(&aim.to.into()))
}

/// Makes the call and writes it down.
fn note(log: &File, how: &'static str, aim: Aim, call: impl FnOnce() -> io::Result<()>) -> Result<()> {
    let begin_ns = boot_ns();
    let answer = call();
    let end_ns = boot_ns();
    let errno = match answer {
        Ok(()) => 0,
        // The wait for the far end has no number of the kernel's.
        Err(error) => error.raw_os_error().unwrap_or(libc::ETIMEDOUT),
    };
    // SAFETY: no arguments, cannot fail; the standard library keeps the number of a process that was cloned behind its back.
    let pid = unsafe { libc::getpid() };
    let mut line = [0_u8; 512];
    let mut rest = &mut line[..];
    writeln!(
        rest,
        "{{\"begin_ns\":{begin_ns},\"end_ns\":{end_ns},\"how\":\"{how}\",\"to\":\"{}\",\"udp\":{},\"errno\":{errno},\"pid\":{pid}}}",
        aim.to, aim.udp
    )?;
    let left = rest.len();
    // In one call: many write to this file.
    let written = line.len() - left;
    let mut out = log;
    out.write_all(&line[..written])?;
    Ok(())
}
