//! `policy check`, `suggest`, `show` and `reload`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::output::{list, talk, text};
use super::{CliError, Context, DONE, Outcome, policy_events, wait};
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

/// Runs one of them.
pub(crate) fn run(context: &Context, command: &PolicyCommand) -> Outcome {
    match command {
        PolicyCommand::Check { file, against } => check(context, file, against.as_deref()),
        PolicyCommand::Suggest { from, file } => policy_events::suggest(context, file, from),
        PolicyCommand::Show => {
            let policy = wait(context.client.get("/v1/policy"))?;
            if context.out.json {
                context.out.value(&policy)?;
            } else {
                text(&policy, "toml").lines().try_for_each(|line| context.out.line(line))?;
            }
            Ok(DONE)
        }
        PolicyCommand::Reload => {
            let answer = wait(context.client.post("/v1/policy/reload", &json!({})))?;
            context.out.show(&answer, |answer| {
                let mut lines = vec![format!("policy reloaded: generation {}", text(answer, "generation"))];
                lines.extend(list(answer, "notes").iter().filter_map(|note| note.as_str()).map(|note| format!("note: {note}")));
                lines
            })?;
            Ok(DONE)
        }
    }
}

fn check(context: &Context, file: &Path, against: Option<&Path>) -> Outcome {
    if !file.exists() {
        return Err(CliError::message(format!("{}: no such file", file.display())));
    }
    let config = Config::load(&Paths::beside(file), FileCheck::Anybody).map_err(CliError::message)?;
    config.notes.iter().for_each(|note| talk(&format!("note: {note}")));
    if let Some(events) = against {
        return policy_events::against(context, &config, events);
    }
    policy::compile(&config, &[], &[], &[]).map_err(CliError::message)?;
    let facts = json!({
        "valid": true,
        "files": config.sources.iter().map(|source| source.name.clone()).collect::<Vec<_>>(),
        "zones": config.zones.len(),
        "gateways": config.gateways.len(),
        "services": config.services.enabled.len(),
        "agents": config.agents.len(),
        "authorities": config.authorities.len(),
        "notes": config.notes,
    });
    context.out.show(&facts, |facts| {
        vec![format!(
            "policy is valid: {} zones, {} gateways, {} services, {} agents, {} authorities",
            facts["zones"], facts["gateways"], facts["services"], facts["agents"], facts["authorities"]
        )]
    })?;
    Ok(DONE)
}
