//! `off` and `on`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde::Serialize;

use super::maintain::{refuse_beside, refuse_in_session};
use super::receipt_local::parse_duration;
use super::{CliError, Context, DONE, Outcome, wait};
use crate::api::{Sessions, SwitchOff, Switched};
use crate::kernel::{self, BPFFS};

/// `off`.
#[derive(Debug, Args)]
pub(crate) struct OffArgs {
    /// For how long, such as `30m`; at most 24 h. Without it only root may, and it lasts until `on` or a reboot.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    time: Option<Duration>,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// `on`.
#[derive(Debug, Args)]
pub(crate) struct OnArgs {
    /// Where programs and maps are pinned, for when no daemon answers.
    #[arg(long, value_name = "DIR", default_value = BPFFS)]
    bpffs: PathBuf,
}

/// Switches protection off.
pub(crate) fn off(context: &Context, args: &OffArgs) -> Outcome {
    // The daemon refuses sessions. Who shares the terminal with one is known here alone.
    let sessions = wait(context.client.get::<Sessions>("/v1/sessions")).map_err(without_daemon)?;
    refuse_beside(sessions.sessions.iter().flat_map(|session| &session.processes).map(|process| process.pid), "off")?;
    let asked = SwitchOff { seconds: args.time.map(|time| time.as_secs()), reason: args.reason.clone() };
    let answer = wait(context.client.post::<Switched>("/v1/off", &asked)).map_err(without_daemon)?;
    context.out.show(&answer, || {
        let words = answer.off.as_ref().map(|off| format!("protection is off {}", off.words())).unwrap_or_default();
        vec![words, "marks, tamper rules and events go on; pp-agent on ends it".to_owned()]
    })?;
    Ok(DONE)
}

fn without_daemon(error: CliError) -> CliError {
    match error {
        CliError::Client(error) if error.is_absent() => CliError::message(format!(
            "{error}; off needs the daemon, which records it: systemctl start pp-agent; \
             to end enforcement without one, as root: pp-agent uninstall-hooks"
        )),
        error => error,
    }
}

/// Switches protection on, as root also without a daemon.
pub(crate) fn on(context: &Context, args: &OnArgs) -> Outcome {
    match wait(context.client.call::<Switched>(Method::POST, "/v1/on", Vec::new())) {
        Err(CliError::Client(error)) if error.is_absent() => {
            refuse_in_session(context, &args.bpffs, "on")?;
            let was_off = kernel::switch_on_pinned(&args.bpffs).map_err(CliError::message)?;
            show_on(context, &Switched { off: None, was_off }, was_off)
        }
        answer => {
            let answer = answer?;
            show_on(context, &answer, answer.was_off)
        }
    }
}

fn show_on(context: &Context, answer: &impl Serialize, was_off: bool) -> Outcome {
    let words = if was_off { "protection is on again" } else { "protection is on; it was not off" };
    context.out.show(answer, || vec![words.to_owned()])?;
    Ok(DONE)
}
