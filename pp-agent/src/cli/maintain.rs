//! `uninstall-hooks` and `completions`, and the check whether this process belongs to a session.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde::Serialize;

use super::ask::confirm;
use super::output::talk;
use super::{Cli, CliError, Context, DONE, Outcome, wait};
use crate::api::OwnSession;
use crate::escape::escape;
use crate::kernel::{self, BPFFS};
use crate::os::terminal;

/// `uninstall-hooks`.
#[derive(Debug, Args)]
pub(crate) struct UninstallArgs {
    /// Where programs and maps are pinned.
    #[arg(long, value_name = "DIR", default_value = BPFFS)]
    bpffs: PathBuf,
    /// Do not ask; for scripts, which have no terminal.
    #[arg(long)]
    yes: bool,
}

/// `completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// The shell.
    shell: Shell,
}

#[derive(Serialize)]
struct Uninstalled {
    removed: usize,
    flows_ended: usize,
}

/// Removes everything from the kernel, while no daemon answers.
pub(crate) fn uninstall(context: &Context, args: &UninstallArgs) -> Outcome {
    refuse_in_session(context, &args.bpffs, "uninstall-hooks")?;
    if wait(context.client.get::<OwnSession>("/v1/self")).is_ok() {
        return Err(CliError::message(
            "uninstall-hooks: a daemon answers, which would put its hooks back; nothing was removed: stop it first (systemctl stop pp-agent), \
             or let agents through for a while (pp-agent off --for 30m --reason TEXT)",
        ));
    }
    refuse_beside(kernel::pinned_marks(&args.bpffs).map_err(CliError::message)?, "uninstall-hooks")?;
    if !args.yes {
        if !std::io::stdin().is_terminal() {
            return Err(CliError::message(
                "uninstall-hooks: stdin is no terminal to ask on; give --yes if nothing is to be enforced any more",
            ));
        }
        let question = format!("{}: remove every hook and map, so that nothing is enforced on this host?", args.bpffs.display());
        confirm(&escape(&question), "nothing was removed")?;
    }
    let removed = kernel::uninstall(&args.bpffs).map_err(CliError::message)?;
    if let Some(problem) = removed.problem {
        talk(&format!("pp-agent: flows that were refused cannot be ended ({problem}): the kernel may send what their programs wrote"));
    }
    if Path::new("/proc/net/sctp").exists() {
        talk("pp-agent: SCTP associations cannot be ended from outside: the kernel may send what was refused on them; end their programs");
    }
    let report = Uninstalled { removed: removed.pins, flows_ended: removed.flows };
    context.out.show(&report, || {
        let ended = (report.flows_ended > 0).then(|| format!("{} flows ended that had been refused", report.flows_ended));
        ended.into_iter().chain([format!("{} pins removed; nothing is enforced by them any more", report.removed)]).collect()
    })?;
    Ok(DONE)
}

/// Refuses in a terminal in which an agent runs, too: it could have typed the command there, and the answer.
pub(super) fn refuse_beside(marked: impl IntoIterator<Item = u32>, what: &str) -> Result<(), CliError> {
    let companions =
        terminal::companions().map_err(|error| CliError::message(format!("/proc: {error}: who shares this terminal cannot be known")))?;
    match marked.into_iter().find(|pid| companions.contains(pid)) {
        Some(pid) => Err(CliError::message(format!(
            "{what}: refused in this terminal: process {pid} of an agent's session was started in it, and could type here; \
             use a terminal in which no agent runs (ssh in)"
        ))),
        None => Ok(()),
    }
}

/// Writes a completion script.
pub(crate) fn completions(context: &Context, args: &CompletionArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pp-agent", &mut script);
    context.out.raw(&script)?;
    Ok(DONE)
}

/// Refuses if this process belongs to an agent's session. It asks the daemon, or, if none answers, reads the pinned table if possible.
pub(crate) fn refuse_in_session(context: &Context, bpffs: &Path, command: &str) -> Result<(), CliError> {
    let marked = match wait(context.client.get::<OwnSession>("/v1/self")) {
        Ok(own) => own.marked,
        Err(CliError::Client(error)) if error.is_absent() => match kernel::pinned_mark(bpffs, std::process::id()) {
            Ok(mark) => mark.is_some(),
            Err(error) => {
                talk(&format!("pp-agent: whether this is an agent's session cannot be known here ({error}); going on"));
                false
            }
        },
        Err(error) => return Err(error),
    };
    if marked {
        return Err(CliError::message(format!(
            "{command}: refused inside an agent's session; use a shell that no agent started (ssh in, or another terminal)"
        )));
    }
    Ok(())
}
