//! `policy check`, `suggest`, `show` and `reload`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;

use super::output::talk;
use super::{CliError, Context, DONE, Outcome, policy_events, wait};
use crate::api::{PolicyView, Reloaded, Remarks};
use crate::config::{Config, FileCheck, Paths};
use crate::policy;

/// `policy`.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Judge a policy file and its drop-ins; nothing is put in force.
    Check {
        /// The file.
        #[arg(default_value = "/etc/pp-agent/policy.toml")]
        file: PathBuf,
        /// Say what it would have changed of what these events tell (`pp-agent events --json`; `-`: standard input).
        #[arg(long, value_name = "EVENTS")]
        against: Option<PathBuf>,
    },
    /// Propose zones, gateways and exemptions from events, as a drop-in; nothing is put in force.
    Suggest {
        /// Events, one a line, as `pp-agent events --json` writes them; `-`: standard input.
        #[arg(long, value_name = "EVENTS")]
        from: PathBuf,
        /// The policy that it is to be put beside.
        #[arg(default_value = "/etc/pp-agent/policy.toml")]
        file: PathBuf,
    },
    /// Show the policy that is in force.
    Show,
    /// Put the policy on disk in force, all or nothing.
    Reload,
}

/// The empty body of a call.
#[derive(Serialize)]
struct Empty {}

/// Runs one of the commands.
pub(crate) fn run(context: &Context, command: &PolicyCommand) -> Outcome {
    match command {
        PolicyCommand::Check { file, against } => check(context, file, against.as_deref()),
        PolicyCommand::Suggest { from, file } => policy_events::suggest(context, file, from),
        PolicyCommand::Show => {
            let policy = wait(context.client.get::<PolicyView>("/v1/policy"))?;
            context.out.show(&policy, || policy.toml.lines().map(str::to_owned).collect())?;
            Ok(DONE)
        }
        PolicyCommand::Reload => {
            let answer = wait(context.client.post::<Reloaded>("/v1/policy/reload", &Empty {}))?;
            context.out.show(&answer, || {
                let mut lines = vec![format!("policy reloaded: generation {}", answer.generation)];
                lines.extend(remarks(&answer.remarks).into_iter().map(|(kind, words)| format!("{kind}: {words}")));
                lines
            })?;
            Ok(DONE)
        }
    }
}

/// The remarks on a valid policy, the most serious first. They say what of the shipped protection is off, what is probably a mistake, and
/// which drop-ins are not read.
pub(super) fn remarks(of: &Remarks) -> Vec<(&'static str, String)> {
    let off = of.off.iter().map(|off| ("off", off.text.clone()));
    let warnings = of.warnings.iter().map(|words| ("warning", words.clone()));
    let not_read = of.not_read.iter().map(|entry| ("warning", entry.to_string()));
    let notes = of.notes.iter().map(|words| ("note", words.clone()));
    off.chain(warnings).chain(not_read).chain(notes).collect()
}

/// Prints the remarks on a policy that was read here to standard error.
pub(super) fn print_remarks(config: &Config) {
    remarks(&remarks_of(config)).iter().for_each(|(kind, words)| talk(&format!("{kind}: {words}")));
}

fn remarks_of(config: &Config) -> Remarks {
    Remarks {
        off: config.off.clone(),
        warnings: config.warnings.clone(),
        not_read: config.not_read.clone(),
        notes: config.notes.iter().chain(&config.adds).cloned().collect(),
    }
}

/// The files that a policy was read from.
pub(super) fn files(config: &Config) -> Vec<String> {
    config.sources.iter().map(|source| source.name.clone()).collect()
}

/// Facts about a valid policy.
#[derive(Serialize)]
struct Facts {
    valid: bool,
    files: Vec<String>,
    zones: usize,
    gateways: usize,
    services: usize,
    agents: usize,
    authorities: usize,
    #[serde(flatten)]
    remarks: Remarks,
}

fn check(context: &Context, file: &Path, against: Option<&Path>) -> Outcome {
    // A broken link counts as a file, so that reading it gives the error.
    if !file.exists() && !file.is_symlink() {
        return Err(CliError::message(format!("{}: no such file", file.display())));
    }
    let paths = Paths::beside(file);
    let config = Config::load(&paths, FileCheck::Anybody).map_err(|error| {
        Config::not_read(&paths).iter().for_each(|entry| talk(&format!("warning: {entry}")));
        CliError::message(error)
    })?;
    print_remarks(&config);
    if let Some(events) = against {
        return policy_events::against(context, &config, events);
    }
    policy::compile(&config, &[], &[], &[]).map_err(CliError::message)?;
    let facts = Facts {
        valid: true,
        files: files(&config),
        zones: config.zones.len(),
        gateways: config.gateways.len(),
        services: config.services.enabled.len(),
        agents: config.agents.len(),
        authorities: config.authorities.len(),
        remarks: remarks_of(&config),
    };
    context.out.show(&facts, || {
        let Facts { zones, gateways, services, agents, authorities, remarks, .. } = &facts;
        let mut line =
            format!("policy is valid: {zones} zones, {gateways} gateways, {services} services, {agents} agents, {authorities} authorities");
        for (count, one, many) in [
            (remarks.warnings.len() + remarks.not_read.len(), "warning", "warnings"),
            (remarks.off.len(), "part of the shipped protection is off", "parts of the shipped protection are off"),
        ] {
            if count > 0 {
                line.push_str(&format!("; {count} {}", if count == 1 { one } else { many }));
            }
        }
        vec![line]
    })?;
    Ok(DONE)
}
