//! The command line: stdout is for data, stderr for messages.
//!
//! Exit codes: 0 done or would be allowed, 1 would be refused, 2 error;
//! `receipt verify` has those of the reference verifier. A broken pipe is success, since the reader has read enough.

mod ask;
mod check;
mod doctor;
mod maintain;
mod neighbours;
mod output;
mod policy;
mod policy_events;
mod receipt;
mod receipt_local;
mod receipt_read;
mod session;
mod show;
mod switch;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::control::client::{Announce, Client, ClientError};
use crate::control::trust::Named;
use crate::daemon::DaemonArgs;
use crate::escape::one_line;
use crate::kernel::canary;
pub(crate) use output::Output;

/// Where the daemon listens by default.
const SOCKET: &str = "/run/pp-agent/control.sock";
/// The environment variable that names another socket, whose server must run as root.
const SOCKET_VARIABLE: &str = "PP_AGENT_SOCKET";

/// Refuses AI agents' connections to industrial equipment until a person has signed a receipt.
#[derive(Debug, Parser)]
#[command(name = "pp-agent", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// The daemon's control socket [default: that of the variable PP_AGENT_SOCKET, else /run/pp-agent/control.sock].
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// JSON on stdout instead of text for people.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gate (systemd starts this).
    Daemon(DaemonArgs),
    /// Start a command as an agent's session.
    Run(session::RunArgs),
    /// Make a running process, and what it starts, an agent's session.
    Adopt(session::AdoptArgs),
    /// End a session: its processes are no longer governed.
    Release(session::ReleaseArgs),
    /// Show what the gate enforces right now.
    Status(show::StatusArgs),
    /// Say what this kernel can and cannot enforce, why, and what to change.
    Doctor(doctor::DoctorArgs),
    /// Say whether a connection would be allowed, and by which receipt.
    Check(check::CheckArgs),
    /// Explain the last refusals, with the request to hand to a person.
    Why(show::WhyArgs),
    /// Show events, stored and new.
    Events(show::EventsArgs),
    /// List the sessions that are governed.
    Sessions,
    /// Show which links carry a protected place and which addresses were learned; forget one.
    Neighbours(neighbours::NeighboursArgs),
    /// Make, sign, read and register receipts.
    #[command(subcommand)]
    Receipt(receipt::ReceiptCommand),
    /// Check, propose, show and reload the policy.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Let through what would be refused, for a time; marks, tamper rules and events go on.
    Off(switch::OffArgs),
    /// End `off`: refuse again, and close what was opened meanwhile.
    On(switch::OnArgs),
    /// Take every program out of the kernel; nothing is enforced afterwards.
    UninstallHooks(maintain::UninstallArgs),
    /// Write a completion script for a shell.
    Completions(maintain::CompletionArgs),
    /// The child that the daemon's canary runs in.
    #[command(name = canary::COMMAND, hide = true)]
    CanaryChild {
        /// What it reaches for.
        aim: Vec<PathBuf>,
    },
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The reader of stdout has closed it.
    #[error("stdout: closed")]
    Closed,
    /// The daemon did not answer, or refused the call.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Anything else, in a sentence.
    #[error("{0}")]
    Message(String),
}

impl CliError {
    pub(crate) fn message(text: impl std::fmt::Display) -> Self {
        Self::Message(text.to_string())
    }
}

pub(crate) type Outcome = Result<u8, CliError>;

/// Done, or would be allowed.
pub(crate) const DONE: u8 = 0;
/// Would be refused.
pub(crate) const REFUSED: u8 = 1;
/// An error.
pub(crate) const ERROR: u8 = 2;

/// What every command gets.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) out: Output,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let (socket, named, announce) = choose_socket(cli.socket.clone(), std::env::var_os(SOCKET_VARIABLE));
    let context = Context { client: Client::new(&socket, named).with_announce(announce), out: Output::new(cli.json) };
    match dispatch(cli, &socket, context) {
        Ok(code) => ExitCode::from(code),
        Err(CliError::Closed) => ExitCode::SUCCESS,
        Err(error) => {
            output::talk(&format!("pp-agent: {error}"));
            ExitCode::from(ERROR)
        }
    }
}

fn usage(error: &clap::Error) -> ExitCode {
    let code = if error.use_stderr() { ERROR } else { DONE };
    match error.print() {
        Ok(()) => ExitCode::from(code),
        Err(closed) if closed.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(ERROR),
    }
}

fn dispatch(cli: Cli, socket: &Path, context: Context) -> Outcome {
    match cli.command {
        Command::Daemon(args) => crate::daemon::run(&args, socket).map(|()| DONE).map_err(CliError::message),
        Command::Run(args) => session::run(&context, &args),
        Command::Adopt(args) => session::adopt(&context, &args),
        Command::Release(args) => session::release(&context, &args),
        Command::Status(args) => show::status(&context, &args),
        Command::Doctor(args) => doctor::doctor(&context, &args),
        Command::Check(args) => check::check(&context, &args),
        Command::Why(args) => show::why(&context, &args),
        Command::Events(args) => show::events(&context, &args),
        Command::Sessions => show::sessions(&context),
        Command::Neighbours(args) => neighbours::run(&context, &args),
        Command::Receipt(command) => receipt::run(&context, command),
        Command::Policy(command) => policy::run(&context, &command),
        Command::Off(args) => switch::off(&context, &args),
        Command::On(args) => switch::on(&context, &args),
        Command::UninstallHooks(args) => maintain::uninstall(&context, &args),
        Command::Completions(args) => maintain::completions(&context, &args),
        Command::CanaryChild { aim } => canary::child(&aim).map(|()| DONE).map_err(CliError::message),
    }
}

/// The socket to use, where its path comes from, and how to announce it.
fn choose_socket(option: Option<PathBuf>, variable: Option<OsString>) -> (PathBuf, Named, Announce) {
    if let Some(socket) = option {
        return (socket, Named::OnCommandLine, announce_option);
    }
    match variable.filter(|socket| !socket.is_empty() && socket != SOCKET) {
        Some(socket) => (socket.into(), Named::Elsewhere, announce_variable),
        None => (SOCKET.into(), Named::Elsewhere, |_, _| {}),
    }
}

fn announce_option(socket: &Path, uid: u32) {
    if uid != 0 {
        let socket = one_line(socket);
        output::talk(&format!("pp-agent: control socket {socket}: uid {uid} serves it, not root; believed because --socket names it here"));
    } else if socket != Path::new(SOCKET) {
        output::talk(&format!("pp-agent: control socket {} (--socket)", one_line(socket)));
    }
}

fn announce_variable(socket: &Path, _root: u32) {
    output::talk(&format!("pp-agent: control socket {} ({SOCKET_VARIABLE})", one_line(socket)));
}

/// Waits for one call on a new runtime.
pub(crate) fn wait<T>(call: impl Future<Output = Result<T, ClientError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::message(format!("runtime: {error}")))?;
    Ok(runtime.block_on(call)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn json_and_socket_go_before_and_after_the_command() {
        let cli = Cli::try_parse_from(["pp-agent", "status", "--json", "--socket", "/x"]).unwrap();
        assert!(cli.json && cli.socket.as_deref() == Some(Path::new("/x")));
    }

    #[test]
    fn only_the_command_line_can_name_a_socket_that_is_not_roots() {
        let chosen = |option: Option<&str>, variable: Option<&str>| {
            let (socket, named, _) = choose_socket(option.map(PathBuf::from), variable.map(OsString::from));
            (socket.display().to_string(), named)
        };
        assert_eq!(chosen(None, None), (SOCKET.to_owned(), Named::Elsewhere));
        assert_eq!(chosen(None, Some("/tmp/x")), ("/tmp/x".to_owned(), Named::Elsewhere));
        assert_eq!(chosen(None, Some("")), (SOCKET.to_owned(), Named::Elsewhere));
        assert_eq!(chosen(Some("/y"), Some("/tmp/x")), ("/y".to_owned(), Named::OnCommandLine));
    }

    #[test]
    fn files_are_kept_for_confined_commands_alone_and_standard_ones_need_no_word() {
        let run = |options: &[&str]| Cli::try_parse_from([&["pp-agent", "run"], options, &["--", "true"]].concat()).is_ok();
        assert!(run(&["--confine", "--keep-fd", "3", "--keep-fd", "9"]));
        assert!(!run(&["--keep-fd", "3"]));
        assert!(!run(&["--confine", "--keep-fd", "2"]) && !run(&["--confine", "--keep-fd", "-1"]));
    }

    #[test]
    fn what_follows_two_dashes_belongs_to_the_command_that_is_run() {
        let cli = Cli::try_parse_from(["pp-agent", "run", "--", "sh", "-c", "true", "--json"]).unwrap();
        assert!(!cli.json && matches!(cli.command, Command::Run(_)));
    }
}
