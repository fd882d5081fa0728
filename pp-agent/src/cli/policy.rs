//! `policy check`, `suggest`, `show` and `reload`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};

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
                lines.extend(remarks(answer).into_iter().map(|(kind, words)| format!("{kind}: {words}")));
                lines
            })?;
            Ok(DONE)
        }
    }
}

/// What an answer says of a policy beside its being valid, bad news first: what of the shipped protection is off, what
/// is probably not meant, what in the folder of drop-ins is not read, and what else to know.
pub(super) fn remarks(answer: &Value) -> Vec<(&'static str, String)> {
    let texts = |name| list(answer, name).iter().filter_map(Value::as_str).map(str::to_owned);
    let off = list(answer, "off").iter().map(|off| ("off", text(off, "text")));
    let not_read = list(answer, "not_read").iter();
    let not_read = not_read.map(|entry| ("warning", format!("{}: not read, {}", text(entry, "path"), text(entry, "why"))));
    off.chain(texts("warnings").map(|words| ("warning", words)))
        .chain(not_read)
        .chain(texts("notes").map(|words| ("note", words)))
        .collect()
}

/// The same of a policy that was read here, said on standard error.
pub(super) fn tell(config: &Config) {
    remarks(&remarks_of(config)).iter().for_each(|(kind, words)| talk(&format!("{kind}: {words}")));
}

fn remarks_of(config: &Config) -> Value {
    let notes: Vec<&String> = config.notes.iter().chain(&config.adds).collect();
    json!({ "notes": notes, "warnings": config.warnings, "off": config.off, "not_read": config.not_read })
}

fn check(context: &Context, file: &Path, against: Option<&Path>) -> Outcome {
    // A link to nothing is there: reading it says what is wrong.
    if !file.exists() && !file.is_symlink() {
        return Err(CliError::message(format!("{}: no such file", file.display())));
    }
    let paths = Paths::beside(file);
    let config = Config::load(&paths, FileCheck::Anybody).map_err(|error| {
        Config::not_read(&paths).iter().for_each(|entry| talk(&format!("warning: {entry}")));
        CliError::message(error)
    })?;
    tell(&config);
    if let Some(events) = against {
        return policy_events::against(context, &config, events);
    }
    policy::compile(&config, &[], &[], &[]).map_err(CliError::message)?;
    let mut facts = json!({
        "valid": true,
        "files": config.sources.iter().map(|source| source.name.clone()).collect::<Vec<_>>(),
        "zones": config.zones.len(),
        "gateways": config.gateways.len(),
        "services": config.services.enabled.len(),
        "agents": config.agents.len(),
        "authorities": config.authorities.len(),
    });
    facts.as_object_mut().into_iter().for_each(|facts| facts.extend(remarks_of(&config).as_object().cloned().unwrap_or_default()));
    let warnings = config.warnings.len() + config.not_read.len();
    context.out.show(&facts, |facts| {
        let mut line = format!(
            "policy is valid: {} zones, {} gateways, {} services, {} agents, {} authorities",
            facts["zones"], facts["gateways"], facts["services"], facts["agents"], facts["authorities"]
        );
        for (count, one, many) in [
            (warnings, "warning", "warnings"),
            (config.off.len(), "part of the shipped protection is off", "parts of the shipped protection are off"),
        ] {
            if count > 0 {
                line.push_str(&format!("; {count} {}", if count == 1 { one } else { many }));
            }
        }
        vec![line]
    })?;
    Ok(DONE)
}
