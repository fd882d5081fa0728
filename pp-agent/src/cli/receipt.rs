//! `receipt`: the commands for receipts, on the operator's machine and on the host.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::output::{table, warn};
use super::show::percent;
use super::{Context, DONE, Outcome, wait};
use super::{receipt_local as local, receipt_read as read};
use crate::api::{Because, Draft, ReceiptView, Receipts, RegisterAnswer, Revoked, StateAccepted, TermsView};
use crate::receipt::Request;

/// `receipt`.
#[derive(Debug, Subcommand)]
pub(crate) enum ReceiptCommand {
    /// Make an operator's key: the private half in a file, the key set for the hosts on stdout.
    Keygen(KeygenArgs),
    /// Draft a request for an operator to sign.
    Request(RequestArgs),
    /// Show what a request would allow, and sign it.
    Sign(SignArgs),
    /// Check a receipt's signature, like the reference verifier.
    Verify(VerifyArgs),
    /// Show what a receipt says.
    Inspect(InspectArgs),
    /// Hand a signed receipt, or a signed revocation, to this host.
    Register {
        /// The artifact; `-`: stdin.
        file: PathBuf,
    },
    /// List the receipts of this host.
    List,
    /// Show one receipt with its artifact.
    Show {
        /// Its id.
        id: String,
    },
    /// End a receipt now, and the connections it opened.
    Revoke(RevokeArgs),
    /// Load the receipts of an earlier copy of the state, which the daemon does not do by itself.
    AcceptState {
        /// Why, for the record.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// `receipt keygen`.
#[derive(Debug, Args)]
pub(crate) struct KeygenArgs {
    /// The key's id, as policy and receipts name it.
    #[arg(long, value_name = "ID")]
    pub(super) id: String,
    /// The person it signs as: `user:NAME`.
    #[arg(long, value_name = "user:NAME")]
    pub(super) decider: String,
    /// The new file for the private key; an existing one is never overwritten.
    #[arg(long, value_name = "FILE")]
    pub(super) out: PathBuf,
    #[command(flatten)]
    pub(super) passphrase: PassphraseArgs,
    /// Leave the private key unencrypted.
    #[arg(long, conflicts_with = "passphrase_file")]
    pub(super) unencrypted: bool,
}

/// Where the passphrase comes from.
#[derive(Debug, Args)]
pub(crate) struct PassphraseArgs {
    /// Read the passphrase from the first line of this file; else it is asked for.
    #[arg(long, value_name = "FILE")]
    pub(super) passphrase_file: Option<PathBuf>,
}

/// `receipt request`.
#[derive(Debug, Args)]
pub(crate) struct RequestArgs {
    /// From this refusal: fills agent, user, host and target.
    #[arg(long, value_name = "ID", required_unless_present = "targets")]
    from_event: Option<u64>,
    /// A target: `10.20.4.7:502`, `10.20.4.0/24:500-510/udp`, `[fd00::7]:*`.
    #[arg(long = "target", value_name = "ADDRESS:PORTS[/TRANSPORT]")]
    targets: Vec<String>,
    /// The agent whose sessions it is for.
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// The owner of those sessions.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// For how long, such as `30m` or `2h`.
    #[arg(long = "for", value_name = "TIME", value_parser = local::parse_duration)]
    access: Option<Duration>,
    /// An account the agent will log in with; without any, logins stay closed.
    #[arg(long = "account", value_name = "NAME")]
    accounts: Vec<String>,
    /// Most logins.
    #[arg(long, value_name = "N", requires = "accounts")]
    max_attempts: Option<u64>,
    /// Most new connections.
    #[arg(long, value_name = "N")]
    max_connections: Option<u64>,
    /// Most request/response turns on each connection to a gateway.
    #[arg(long, value_name = "N")]
    max_turns: Option<u64>,
    /// What for, in a sentence.
    #[arg(long, value_name = "TEXT")]
    summary: Option<String>,
}

/// `receipt sign`.
#[derive(Debug, Args)]
pub(crate) struct SignArgs {
    /// The request; `-`: stdin.
    pub(super) request: PathBuf,
    /// The operator's private key.
    #[arg(long, value_name = "FILE")]
    pub(super) key: PathBuf,
    #[command(flatten)]
    pub(super) passphrase: PassphraseArgs,
    /// For how long it can be registered.
    #[arg(long, value_name = "TIME", value_parser = local::parse_duration, default_value = "1h")]
    pub(super) valid_for: Duration,
    /// Do not ask; for scripts that have shown the meaning themselves.
    #[arg(long)]
    pub(super) yes: bool,
}

/// `receipt verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The artifact; `-`: stdin.
    pub(super) file: PathBuf,
    /// The trusted keys.
    #[arg(long, value_name = "FILE", default_value = "/etc/pp-agent/keys.json")]
    pub(super) keys: PathBuf,
}

/// `receipt inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The artifact; `-`: stdin.
    pub(super) file: PathBuf,
    /// The trusted keys.
    #[arg(long, value_name = "FILE", default_value = "/etc/pp-agent/keys.json")]
    pub(super) keys: PathBuf,
}

/// `receipt revoke`.
#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// The receipt.
    pub(super) id: String,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    /// Write a signed revocation that other hosts take, instead of revoking here.
    #[arg(long, requires = "key", requires = "tenant")]
    sign: bool,
    /// The operator's private key, with `--sign`.
    #[arg(long, value_name = "FILE", requires = "sign")]
    pub(super) key: Option<PathBuf>,
    /// The tenant, with `--sign`.
    #[arg(long, value_name = "NAME", requires = "sign")]
    pub(super) tenant: Option<String>,
    #[command(flatten)]
    pub(super) passphrase: PassphraseArgs,
}

/// Runs one of the commands.
pub(crate) fn run(context: &Context, command: ReceiptCommand) -> Outcome {
    match command {
        ReceiptCommand::Keygen(args) => local::keygen(context, &args),
        ReceiptCommand::Request(args) => request(context, args),
        ReceiptCommand::Sign(args) => local::sign(context, &args),
        ReceiptCommand::Verify(args) => read::verify(context, &args),
        ReceiptCommand::Inspect(args) => read::inspect(context, &args),
        ReceiptCommand::Register { file } => register(context, &file),
        ReceiptCommand::List => list_all(context),
        ReceiptCommand::Show { id } => {
            let receipt = wait(context.client.get::<ReceiptView>(&format!("/v1/receipts/{}", percent(&id))))?;
            context.out.value(&receipt)?;
            Ok(DONE)
        }
        ReceiptCommand::AcceptState { reason } => accept_state(context, reason),
        ReceiptCommand::Revoke(args) if args.sign => local::sign_revocation(context, &args),
        ReceiptCommand::Revoke(args) => revoke(context, &args),
    }
}

fn request(context: &Context, args: RequestArgs) -> Outcome {
    let draft = Draft {
        event: args.from_event,
        agent: args.agent,
        user: args.user,
        targets: args.targets,
        access_seconds: args.access.map(|access| access.as_secs()),
        accounts: args.accounts,
        max_attempts: args.max_attempts,
        max_connections: args.max_connections,
        max_turns: args.max_turns,
        summary: args.summary,
    };
    let request = wait(context.client.post::<Request>("/v1/requests", &draft))?;
    context.out.value(&request)?;
    Ok(DONE)
}

fn register(context: &Context, file: &std::path::Path) -> Outcome {
    let artifact = read::artifact(file)?;
    let answer = wait(context.client.call::<RegisterAnswer>(hyper::Method::POST, "/v1/receipts", artifact))?;
    match &*answer {
        RegisterAnswer::Revocation(revoked) => context.out.show(&answer, || vec![format!("receipt {} is revoked", revoked.id)])?,
        RegisterAnswer::Receipt(receipt) => {
            warn(&receipt.warnings);
            context.out.show(&answer, || {
                let again = if receipt.again { " (it was registered before; nothing changed)" } else { "" };
                let TermsView { agent, targets, .. } = receipt.terms.clone().unwrap_or_default();
                vec![
                    format!("receipt {} is {}{again}", receipt.id, receipt.status),
                    format!("agent {agent} may reach {} until {}", targets.join(", "), receipt.until),
                ]
            })?;
        }
    }
    Ok(DONE)
}

fn list_all(context: &Context) -> Outcome {
    let answer = wait(context.client.get::<Receipts>("/v1/receipts"))?;
    context.out.show(&answer, || {
        let mut rows = vec![["RECEIPT", "STATUS", "AGENT", "UNTIL", "DECIDER", "TARGETS"].map(str::to_owned).to_vec()];
        for receipt in &answer.receipts {
            let TermsView { agent, decider, targets, .. } = receipt.terms.clone().unwrap_or_default();
            let (id, status, until) = (receipt.id.clone(), receipt.status.to_string(), receipt.until.clone());
            rows.push(vec![id, status, agent, until, decider, targets.join(", ")]);
        }
        table(&rows)
    })?;
    Ok(DONE)
}

fn accept_state(context: &Context, reason: String) -> Outcome {
    let answer = wait(context.client.post::<StateAccepted>("/v1/state/accept", &Because { reason }))?;
    context.out.show(&answer, || {
        let again = answer.revoked.iter().map(|id| format!("receipt {id} is revoked again, as events tell"));
        again.chain([format!("the state is accepted: {} receipts are known", answer.receipts)]).collect()
    })?;
    Ok(DONE)
}

fn revoke(context: &Context, args: &RevokeArgs) -> Outcome {
    let mut path = format!("/v1/receipts/{}", percent(&args.id));
    if let Some(reason) = &args.reason {
        path.push_str(&format!("?reason={}", percent(reason)));
    }
    let answer = wait(context.client.delete::<Revoked>(&path))?;
    context.out.show(&answer, || {
        let seen = if answer.was_registered { "" } else { " (it was not registered here, and cannot be any more)" };
        vec![format!("receipt {} is revoked{seen}", answer.id)]
    })?;
    Ok(DONE)
}
