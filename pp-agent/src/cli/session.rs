//! `run`, `adopt` and `release`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::maintain::refuse_in_session;
use super::output::{talk, warn};
use super::{CliError, Context, DONE, Outcome, wait};
use crate::api::{Released as ReleasedAnswer, StartSession, Started};
use crate::clock::boot_id;
use crate::confine::{Confinement, FIRST_OWN, STOPS};
use crate::events::build::parse_session;
use crate::kernel::BPFFS;
use crate::probe;
use crate::session::Released;
use crate::state::{STATE_FILE, State};

/// `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The agent it is; by default the command's file name.
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Also take from it what a launcher can: privileges, namespaces, mounts, debugging, io_uring, raw and unusual sockets.
    #[arg(long)]
    confine: bool,
    /// A file descriptor that a confined command is to have beside 0, 1 and 2.
    #[arg(long, value_name = "FD", requires = "confine", value_parser = clap::value_parser!(i32).range(i64::from(FIRST_OWN)..))]
    keep_fd: Vec<i32>,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// `adopt`.
#[derive(Debug, Args)]
pub(crate) struct AdoptArgs {
    /// The process.
    pid: u32,
    /// The agent it is; by default the program's file name.
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
}

/// `release`.
#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    /// The session, as `pp-agent sessions` lists it.
    session: String,
    /// Where programs and maps are pinned, for when no daemon answers.
    #[arg(long, value_name = "DIR", default_value = BPFFS)]
    bpffs: PathBuf,
    /// Where receipts and events are kept, for the same.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/pp-agent")]
    state: PathBuf,
}

/// Marks this process, verifies the mark, confines the process if asked to, and executes the command.
pub(crate) fn run(context: &Context, args: &RunArgs) -> Outcome {
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(CliError::message("run: no command given"));
    };
    let agent = args.agent.clone().unwrap_or_else(|| file_name(Path::new(program)));
    let confinement = args.confine.then(|| Confinement::prepare(&args.keep_fd)).transpose().map_err(CliError::message)?;
    let before = refused_as_marked()?;
    let started = wait(context.client.post::<Started>("/v1/sessions", &StartSession { agent: agent.clone(), pid: None }))?;
    prove_mark(before, refused_as_marked()?)?;
    talk(&format!("pp-agent: session {} of agent {agent}", started.session));
    warn(&started.warnings);
    if let Some(confinement) = confinement {
        confinement.enter().map_err(CliError::message)?;
        talk(&format!("pp-agent: confined: {STOPS}"));
        if nix::unistd::geteuid().is_root() {
            talk("pp-agent: confined as root: files and processes of root stay within its reach; start agents as users of their own");
        }
    }
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(CliError::message(format!("{}: {error}", program.to_string_lossy())))
}

fn refused_as_marked() -> Result<bool, CliError> {
    probe::is_refused().map_err(|error| {
        CliError::message(format!("run: no socket to find out with whether this process is marked: {error}; nothing was started"))
    })
}

/// Checks that the process is marked. The answer of a server is no proof: the kernel must now refuse what it allowed before.
fn prove_mark(before: bool, after: bool) -> Result<(), CliError> {
    match (before, after) {
        (false, true) => Ok(()),
        (_, false) => Err(CliError::message(
            "run: the control socket answered, but the kernel does not treat this process as marked; nothing was started: \
             see pp-agent status and pp-agent doctor, as root and with the same socket",
        )),
        (true, true) => Err(CliError::message(
            "run: the probe for the mark was refused before this process was marked, so it proves nothing; nothing was started: \
             something other than the gate refuses connects here, a seccomp filter perhaps",
        )),
    }
}

/// Marks another process.
pub(crate) fn adopt(context: &Context, args: &AdoptArgs) -> Outcome {
    let agent = match &args.agent {
        Some(agent) => agent.clone(),
        None => std::fs::read_link(format!("/proc/{}/exe", args.pid))
            .map(|path| file_name(&path))
            .map_err(|error| CliError::message(format!("process {}: {error}; name its agent with --agent", args.pid)))?,
    };
    let started = wait(context.client.post::<Started>("/v1/sessions", &StartSession { agent, pid: Some(args.pid) }))?;
    warn(&started.warnings);
    context.out.show(&started, || vec![started.session.clone()])?;
    Ok(DONE)
}

/// Unmarks a session.
pub(crate) fn release(context: &Context, args: &ReleaseArgs) -> Outcome {
    let Some(session) = parse_session(&args.session) else {
        return Err(CliError::message("session: an id has 16 hex digits; see pp-agent sessions"));
    };
    match wait(context.client.delete::<ReleasedAnswer>(&format!("/v1/sessions/{}", args.session))) {
        Err(CliError::Client(error)) if error.is_absent() => {
            refuse_in_session(context, &args.bpffs, "release")?;
            let released = crate::kernel::release_pinned(&args.bpffs, session).map_err(CliError::message)?;
            let processes = released.len();
            if let Err(error) = keep_released(&args.state, released) {
                talk(&format!("pp-agent: {error}; a daemon that starts takes those that a rule names for agents again"));
            }
            show_released(context, args, processes, &ReleasedAnswer { session: None, processes })
        }
        answer => {
            let answer = answer?;
            show_released(context, args, answer.processes, &answer)
        }
    }
}

fn show_released(context: &Context, args: &ReleaseArgs, processes: usize, answer: &impl Serialize) -> Outcome {
    context.out.show(answer, || vec![format!("session {} released: {processes} processes are no longer governed", args.session)])?;
    Ok(DONE)
}

/// Stores in the daemon's state, while no daemon runs, that these processes were released.
fn keep_released(state: &Path, processes: impl IntoIterator<Item = u32>) -> Result<(), crate::state::StateError> {
    let state = State::open(&state.join(STATE_FILE))?;
    let mut released = Released::of_boot(state.released()?, &boot_id());
    released.add(processes);
    state.keep_released(&released)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_is_proven_only_by_a_refusal_that_was_not_there_before() {
        assert!(prove_mark(false, true).is_ok());
        assert!(prove_mark(false, false).is_err() && prove_mark(true, true).is_err() && prove_mark(true, false).is_err());
    }
}
