//! The small programs that the suite runs as an agent, beside an agent, and as the far end of its traffic.
//!
//! Each subcommand does one thing with the network and prints one line of JSON about what the kernel answered: `{"ok":true,"bytes":n}` or
//! `{"ok":false,"errno":1,"error":"..."}`. The exit code is 0 in both cases, since a refusal is a result; it is 2 when the command itself
//! could not be set up.

mod args;
mod child;
mod control;
mod fds;
mod flows;
mod launch;
mod outcome;
mod raw;
mod sink;
mod tap;
mod techniques;

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
        Command::Spin { target, for_ms, until } => flows::spin(target, for_ms, until.as_deref()),
        Command::Serve { listen, accept } => flows::serve(listen, accept),
        Command::Dial { target, source } => flows::dial(target, source),
        Command::OpenThenExec { target, state, command } => fds::open_then_exec(target, state, &command),
        Command::ConnectStdin { target } => fds::connect_stdin(target).print(),
        Command::WriteStdin => fds::write_stdin().print(),
        Command::PassFd { path, target } => fds::pass_fd(&path, target),
        Command::RecvFd { path } => fds::recv_fd(&path).print(),
        Command::PeerFd { socket, request } => control::peer_fd(&socket, &request),
        Command::PeerFdChild { socket } => control::peer_fd_child(&socket),
        Command::Sink { listen, log } => sink::run(&listen, &log),
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
