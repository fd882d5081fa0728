//! The commands that use a private key, on the operator's machine: `keygen`, `sign`, `revoke --sign`. All refuse inside an agent's session.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use zeroize::Zeroizing;

use super::ask::{confirm, say};
use super::maintain::refuse_in_session;
use super::output::talk;
use super::receipt::{KeygenArgs, PassphraseArgs, RevokeArgs, SignArgs};
use super::receipt_read::artifact;
use super::{CliError, Context, DONE, Outcome};
use crate::clock::{self, Now};
use crate::kernel::BPFFS;
use crate::receipt::Request;
use crate::receipt::key::OperatorKey;
use crate::receipt::{revocation, sign as signing};

/// Reads a duration in whole seconds: `90s`, `1h 30m`, `1d`, or a number of seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let time = if is_number { text.parse().map(Duration::from_secs).ok() } else { clock::parse_duration(text) };
    time.filter(|time| !time.is_zero() && time.subsec_nanos() == 0).ok_or_else(|| "not a time such as 90s, 30m, 2h or 1d".to_owned())
}

/// Makes a key.
pub(crate) fn keygen(context: &Context, args: &KeygenArgs) -> Outcome {
    refuse_in_session(context, Path::new(BPFFS), "receipt keygen")?;
    let key = OperatorKey::generate(&args.id, &args.decider).map_err(CliError::message)?;
    let passphrase = if args.unencrypted {
        talk("pp-agent: the private key is left unencrypted: whoever reads the file can sign");
        None
    } else {
        Some(new_passphrase(&args.passphrase)?)
    };
    key.write_new(&args.out, passphrase.as_ref().map(|text| text.as_str())).map_err(CliError::message)?;
    context.out.raw(key.key_set_json(Now::read().wall_ms).as_bytes())?;
    talk(&format!("pp-agent: private key written to {}; keep it off the hosts that agents run on", args.out.display()));
    Ok(DONE)
}

/// Shows what a request would allow, asks, and signs.
pub(crate) fn sign(context: &Context, args: &SignArgs) -> Outcome {
    refuse_in_session(context, Path::new(BPFFS), "receipt sign")?;
    let request = Request::parse(&artifact(&args.request)?).map_err(CliError::message)?;
    let key = load_key(&args.key, &args.passphrase)?;
    let now_ms = Now::read().wall_ms;
    let meaning = signing::preview(&request, &key, now_ms, args.valid_for).map_err(CliError::message)?;
    say(&meaning)?;
    if !args.yes {
        ask(&args.request)?;
    }
    let signed = signing::sign(&request, &key, now_ms, args.valid_for).map_err(CliError::message)?;
    context.out.raw(signed.artifact.as_bytes())?;
    Ok(DONE)
}

/// Signs a revocation for other hosts.
pub(crate) fn sign_revocation(context: &Context, args: &RevokeArgs) -> Outcome {
    refuse_in_session(context, Path::new(BPFFS), "receipt revoke --sign")?;
    let (Some(key), Some(tenant)) = (&args.key, &args.tenant) else {
        return Err(CliError::message("receipt revoke --sign: needs --key and --tenant"));
    };
    let key = load_key(key, &args.passphrase)?;
    let reason = args.reason.as_deref().unwrap_or("revoked by its operator");
    let signed = revocation::revoke(&args.id, tenant, reason, &key, Now::read().wall_ms).map_err(CliError::message)?;
    context.out.raw(signed.artifact.as_bytes())?;
    Ok(DONE)
}

fn ask(request: &Path) -> Result<(), CliError> {
    if request.as_os_str() == "-" || !std::io::stdin().is_terminal() {
        return Err(CliError::message("stdin is no terminal to ask on; read the meaning above and give --yes to sign"));
    }
    confirm("sign this?", "nothing was signed")
}

fn load_key(file: &Path, passphrase: &PassphraseArgs) -> Result<OperatorKey, CliError> {
    let mut problem = None;
    let key = OperatorKey::load(file, || match read_passphrase(passphrase, "passphrase: ") {
        Ok(text) => Some(text),
        Err(error) => {
            problem = Some(error);
            None
        }
    });
    match problem {
        Some(problem) => Err(problem),
        None => key.map_err(CliError::message),
    }
}

fn new_passphrase(args: &PassphraseArgs) -> Result<Zeroizing<String>, CliError> {
    let first = read_passphrase(args, "new passphrase: ")?;
    if args.passphrase_file.is_none() && *read_passphrase(args, "once more: ")? != *first {
        return Err(CliError::message("the passphrases differ; nothing was written"));
    }
    Ok(first)
}

fn read_passphrase(args: &PassphraseArgs, prompt: &str) -> Result<Zeroizing<String>, CliError> {
    match &args.passphrase_file {
        None => rpassword::prompt_password(prompt)
            .map(Zeroizing::new)
            .map_err(|error| CliError::message(format!("passphrase: {error}; give --passphrase-file where there is no terminal"))),
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .map(Zeroizing::new)
                .map_err(|error| CliError::message(format!("{}: {error}", file.display())))?;
            Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(parse_duration("30m"), Ok(Duration::from_secs(1_800)));
        assert_eq!(parse_duration("8h"), Ok(Duration::from_secs(28_800)));
        assert_eq!(parse_duration("45"), Ok(Duration::from_secs(45)));
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("1d"), Ok(Duration::from_secs(86_400)));
        for bad in ["", "0", "0s", "1500ms", "h", "+5", "-1h", "99999999999999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
