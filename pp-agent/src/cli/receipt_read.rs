//! `receipt verify` and `receipt inspect`, and reading artifacts.

use std::io::Read;
use std::path::Path;

use serde::Serialize;

use super::output::talk;
use super::receipt::{InspectArgs, VerifyArgs};
use super::{CliError, Context, DONE, Outcome};
use crate::clock::Now;
use crate::config::{Config, Paths};
use crate::control::routes::MAX_BODY;
use crate::keyring::Keyring;
use crate::receipt::revocation::revoked_id;
use crate::receipt::{Evidence, meaning, verify as verify_artifact};
use crate::trusted::FileCheck;

/// `receipt verify`: a file that cannot be read (EX_IOERR, sysexits.h).
const UNREADABLE: u8 = 74;

/// `receipt verify --json`.
#[derive(Serialize)]
struct Verified<'a> {
    verified: bool,
    id: &'a str,
    status: Option<&'a str>,
    decider: Option<&'a str>,
    expires: Option<&'a str>,
    key: &'a str,
}

/// `receipt inspect --json`.
#[derive(Serialize)]
struct Inspected {
    verified: bool,
    text: String,
}

/// Reads a file, or stdin for `-`, up to the size that a host accepts.
pub(crate) fn artifact(file: &Path) -> Result<Vec<u8>, CliError> {
    let failed = |error: std::io::Error| CliError::message(format!("{}: {error}", file.display()));
    let mut bytes = Vec::new();
    let limit = MAX_BODY as u64 + 1;
    if file.as_os_str() == "-" {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        std::fs::File::open(file).map_err(failed)?.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    }
    if bytes.len() > MAX_BODY {
        return Err(CliError::message(format!("{}: larger than {MAX_BODY} bytes; no receipt is", file.display())));
    }
    Ok(bytes)
}

/// Verifies an artifact, with the output and exit codes of the reference verifier.
pub(crate) fn verify(context: &Context, args: &VerifyArgs) -> Outcome {
    let artifact = match artifact(&args.file) {
        Ok(artifact) => artifact,
        Err(error) => return unreadable(&error),
    };
    let keys = match Keyring::load(&args.keys, FileCheck::Anybody) {
        Ok(keys) => keys,
        Err(error) => return unreadable(&error),
    };
    let now_ms = Now::read().wall_ms;
    match verify_artifact(&artifact, &keys) {
        Ok(evidence) if context.out.json => {
            warn_of_agent(&evidence, &args.keys);
            context.out.value(&Verified {
                verified: true,
                id: evidence.id(),
                status: evidence.text("status"),
                decider: evidence.text("deciderId"),
                expires: evidence.text("expiresAt"),
                key: evidence.key_id(),
            })?;
            Ok(DONE)
        }
        Ok(evidence) => {
            warn_of_agent(&evidence, &args.keys);
            context.out.raw(evidence.verified_text(now_ms).as_bytes())?;
            Ok(DONE)
        }
        Err(error) => {
            talk(&format!("FAILED {}: {error}", error.code()));
            Ok(error.exit_code())
        }
    }
}

/// Warns if the policy next to the keys does not know the agent of the receipt.
fn warn_of_agent(evidence: &Evidence, keys: &Path) {
    let policy = keys.with_file_name("policy.toml");
    let (Some(agent), None) = (evidence.text("agentId"), revoked_id(evidence)) else { return };
    if !policy.exists() {
        return;
    }
    // `policy check` reports a policy that is refused or not readable for this user.
    if let Ok(config) = Config::load(&Paths::beside(&policy), FileCheck::Anybody)
        && let Some(unknown) = config.unknown_agent(agent)
    {
        talk(&format!("warning: {unknown}"));
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> Outcome {
    talk(&format!("pp-agent: {error}"));
    Ok(UNREADABLE)
}

/// Shows what an artifact says, whether or not it verifies.
pub(crate) fn inspect(context: &Context, args: &InspectArgs) -> Outcome {
    let artifact = artifact(&args.file)?;
    let keys =
        if args.keys.exists() { Keyring::load(&args.keys, FileCheck::Anybody).map_err(CliError::message)? } else { Keyring::default() };
    let outcome = verify_artifact(&artifact, &keys);
    let text = meaning::inspect(&outcome, Now::read().wall_ms);
    if let Ok(evidence) = &outcome {
        warn_of_agent(evidence, &args.keys);
    }
    if context.out.json {
        context.out.value(&Inspected { verified: outcome.is_ok(), text })?;
    } else {
        context.out.raw(text.as_bytes())?;
    }
    Ok(if outcome.is_ok() { DONE } else { super::ERROR })
}
