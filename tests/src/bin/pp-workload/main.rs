//! The small programs that the suite runs as an agent, beside an agent, and as the far end of its traffic.
//!
//! Each subcommand does one thing with the network and prints one line of JSON about what the kernel answered: `{"ok":true,"bytes":n}` or
//! `{"ok":false,"errno":1,"error":"..."}`. The exit code is 0 in both cases, since a refusal is a result; it is 2 when the command itself
//! could not be set up.

mod args;
mod batch;
mod calls;
mod child;
mod control;
mod families;
mod fds;
mod flows;
mod hunt;
mod launch;
mod network;
mod outcome;
mod peers;
mod raw;
mod reach;
mod servers;
mod sink;
mod spoil;
mod storms;
mod tamper;
mod tap;
mod techniques;
mod tricks;
mod undo;
mod uring;

use std::process::ExitCode;

use args::{Arguments, Command};
use clap::Parser as _;

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::In(options) => launch::run_in(&options),
        Command::Tree { depth, command } => launch::tree(depth, &command),
        Command::Daemonize { command } => launch::daemonize(&command),
        Command::Repeat { times, command } => launch::repeat(times, &command),
        Command::Try { technique, target } => techniques::attempt(technique, target).print(),
        Command::Child { target, answer, until } => child::run(target, &answer, &until),
        Command::Hold { target, for_ms } => flows::hold(target, for_ms),
        Command::Leave(options) => flows::leave(&options),
        Command::Deaf { listen, until } => flows::deaf(listen, &until),
        Command::Peers(end) => peers::run(&end),
        Command::Spin { target, for_ms, every_ms, until } => flows::spin(target, for_ms, every_ms, until.as_deref()),
        Command::Hunt(options) => hunt::run(&options),
        Command::HuntOnce(options) => hunt::once(&options),
        Command::Storm(storm) => storms::run(&storm),
        Command::Serve(options) => flows::serve(&options),
        Command::Dial { target, source, mptcp } => flows::dial(target, source, mptcp),
        Command::OpenThenExec { target, state, command } => fds::open_then_exec(target, state, &command),
        Command::WriteStdin { to } => fds::write_stdin(to).print(),
        Command::UseStdin(write) => fds::use_stdin(write.way, write.connect).print(),
        Command::PassFd { path, target, state } => fds::pass_fd(&path, target, state),
        Command::RecvFd { path, write } => fds::recv_fd(&path, write.way, write.connect).print(),
        Command::HoldFd { target, state } => fds::hold_fd(target, state),
        Command::TakeFd { pid, fd, write } => fds::take_fd(pid, fd, write.way, write.connect).print(),
        Command::Relay { path, target } => fds::relay(&path, target),
        Command::AskRelay { path } => fds::ask_relay(&path),
        Command::Batch { list, here: true } => batch::run_here(&list),
        Command::Batch { list, here: false } => batch::run(&list),
        Command::LeaderGone { list } => tricks::leader_gone(list),
        Command::Become { trick, cgroup, pid, command } => tricks::run(trick, cgroup.as_deref(), pid, &command),
        Command::NewNetwork { target } => tricks::new_network(target),
        Command::SpoilLog { buffer, times } => spoil::run(&buffer, times),
        Command::HarmLink { pin, how } => undo::harm(&pin, how),
        Command::OverrideConnect { cgroup, only, to } => undo::run(&cgroup, only, to),
        Command::StandAlone { cgroup } => undo::stand_alone(&cgroup),
        Command::RefuseAll { cgroup } => undo::refuse_all(&cgroup),
        Command::PeerFd { socket, request } => control::peer_fd(&socket, &request),
        Command::PeerFdChild { socket } => control::peer_fd_child(&socket),
        Command::FalseServer { socket } => servers::false_server(&socket),
        Command::Crowd { socket, slow, idle, every_ms } => servers::crowd(&socket, slow, idle, std::time::Duration::from_millis(every_ms)),
        Command::Sink { listen, log } => sink::run(&listen, &log),
        Command::Call { call } => calls::attempt(call).print(),
        Command::WithoutFilters { command } => calls::without_filters(&command),
        Command::Tamper(attempt) => tamper::attempt(&attempt).print(),
        Command::Reach(attempt) => reach::attempt(&attempt).print(),
        Command::Tap { log } => tap::run(&log),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pp-workload: {error:#}");
            ExitCode::from(2)
        }
    }
}
