//! Admits artifacts under the policy of this host, and drafts requests.

use crate::api::Draft;
use crate::config::Config;
use crate::control::ApiError;
use crate::events::Destination;
use crate::events::build::transport_text;
use crate::keyring::Keyring;
use crate::os::accounts;
use crate::policy::{LearnedPlaces, PolicySurface};
use crate::receipt::request::{RequestTarget, credential_scope};
use crate::receipt::revocation::{Revocation, admit_revocation, revoked_id};
use crate::receipt::{AdmitContext, Receipt, Refusal, Request, admit, verify};

/// How long a draft asks for, in seconds, if its author does not say.
const DEFAULT_ACCESS_SECONDS: u32 = 3_600;

/// An admitted artifact.
pub(super) enum Artifact {
    Receipt(Box<Receipt>),
    Revocation(Revocation),
}

/// Verifies an artifact and checks it against policy, as of `now_ms`.
pub(super) fn admit_artifact(
    artifact: &[u8],
    config: &Config,
    keyring: &Keyring,
    learned: &LearnedPlaces,
    now_ms: i64,
) -> Result<Artifact, ApiError> {
    let evidence = verify(artifact, keyring).map_err(Refusal::from)?;
    let surface = PolicySurface { config, learned };
    let context = AdmitContext {
        tenant: configured("tenant", config.tenant.as_deref())?,
        host: configured("host", config.host.as_deref())?,
        authorities: &config.authorities,
        any_user: config.any_user,
        now_ms,
        surface: &surface,
    };
    if revoked_id(&evidence).is_some() {
        return Ok(Artifact::Revocation(admit_revocation(&evidence, &context)?));
    }
    Ok(Artifact::Receipt(Box::new(admit(evidence, &context)?)))
}

/// Verifies a stored receipt and checks it against policy, as of its registration.
pub(super) fn admit_stored(
    artifact: &[u8],
    config: &Config,
    keyring: &Keyring,
    learned: &LearnedPlaces,
    registered_ms: i64,
) -> Result<Receipt, ApiError> {
    match admit_artifact(artifact, config, keyring, learned, registered_ms)? {
        Artifact::Receipt(receipt) => Ok(*receipt),
        Artifact::Revocation(_) => Err(ApiError::Internal("the stored artifact is a revocation".to_owned())),
    }
}

/// The uids that the users of a receipt have on this host now.
pub(super) fn uids_of(receipt: &Receipt) -> Result<Vec<u32>, ApiError> {
    let users = receipt.terms().users.as_deref().unwrap_or_default();
    users
        .iter()
        .map(|user| match accounts::uid_of(user) {
            Ok(Some(uid)) => Ok(uid),
            Ok(None) => Err(Refusal::UserUnknown { user: user.clone() }.into()),
            Err(error) => Err(ApiError::Internal(format!("user {user}: {error}"))),
        })
        .collect()
}

fn configured<'a>(what: &'static str, value: Option<&'a str>) -> Result<&'a str, ApiError> {
    value.ok_or(ApiError::NotConfigured(what))
}

/// Drafts a request for an operator to sign. Its contents are unverified.
pub(super) fn draft(
    config: &Config,
    agent: Option<String>,
    user: String,
    destination: Option<&Destination>,
    draft: &Draft,
) -> Result<Request, ApiError> {
    let mut targets = destination.map(target_of).transpose()?.into_iter().collect::<Vec<_>>();
    for text in &draft.targets {
        targets.push(parse_target(text)?);
    }
    if targets.is_empty() {
        return Err(ApiError::bad_request("request: names no target; give --from-event ID or --target ADDRESS:PORT"));
    }
    let small = |name: &str, value: Option<u64>| {
        value.map(u32::try_from).transpose().map_err(|_| ApiError::bad_request(format!("{name}: too large a number")))
    };
    let request = Request {
        tenant: configured("tenant", config.tenant.as_deref())?.to_owned(),
        agent: agent.ok_or_else(|| ApiError::bad_request("request: names no agent; give --agent NAME"))?,
        agent_run: None,
        targets,
        credential_scope: credential_scope(&draft.accounts, draft.max_attempts),
        users: vec![user],
        hosts: vec![configured("host", config.host.as_deref())?.to_owned()],
        access_seconds: small("access_seconds", draft.access_seconds)?.or(Some(DEFAULT_ACCESS_SECONDS)),
        max_connections: small("max_connections", draft.max_connections)?,
        max_turns: small("max_turns", draft.max_turns)?,
        not_before: None,
        summary: draft.summary.clone().unwrap_or_default(),
    };
    request.terms()?;
    Ok(request)
}

fn target_of(destination: &Destination) -> Result<RequestTarget, ApiError> {
    let port = destination
        .port
        .ok_or_else(|| ApiError::bad_request("request: the refused packet has no port; name the target with --target ADDRESS:PORT"))?;
    Ok(RequestTarget {
        address: destination.address.to_string(),
        transport: transport_text(destination.transport),
        ports: vec![port.to_string()],
    })
}

/// `10.20.4.7:502`, `10.20.4.0/24:500-510/udp`, `[fd00::7]:*`.
fn parse_target(text: &str) -> Result<RequestTarget, ApiError> {
    let form = || {
        ApiError::bad_request(format!("target {text}: not ADDRESS[/LENGTH]:PORTS[/TRANSPORT], such as 10.20.4.7:502 or [fd00::7]:502/udp"))
    };
    let (address, rest) = match text.strip_prefix('[') {
        Some(bracketed) => {
            let (address, rest) = bracketed.split_once(']').ok_or_else(form)?;
            (address, rest.strip_prefix(':').ok_or_else(form)?)
        }
        None => text.split_once(':').ok_or_else(form)?,
    };
    let (ports, transport) = rest.split_once('/').unwrap_or((rest, "tcp"));
    Ok(RequestTarget { address: address.to_owned(), transport: transport.to_owned(), ports: ports.split(',').map(str::to_owned).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let text = "host = \"eng-ws-12\"\ntenant = \"acme\"\n[[zone]]\nname = \"plant-7\"\nnetworks = [\"10.20.0.0/16\"]\n";
        Config::from_sources(vec![crate::config::Source { name: "policy.toml".into(), text: text.into() }]).unwrap()
    }

    #[test]
    fn targets_are_read_with_their_ports_and_transport() {
        let target = parse_target("10.20.4.0/24:500-510,520/udp").unwrap();
        assert_eq!((target.address.as_str(), target.transport.as_str()), ("10.20.4.0/24", "udp"));
        assert_eq!(target.ports, ["500-510", "520"]);
        assert_eq!(parse_target("[fd00::/64]:*").unwrap().address, "fd00::/64");
        assert!(parse_target("10.20.4.7").is_err() && parse_target("[fd00::7").is_err());
    }

    #[test]
    fn draft_from_a_refusal_asks_for_exactly_that_target_host_and_user() {
        let destination = Destination { address: "10.20.4.7".parse().unwrap(), port: Some(502), transport: 6 };
        let request = draft(&config(), Some("codex".into()), "svc-build".into(), Some(&destination), &Draft::default()).unwrap();
        let target = RequestTarget { address: "10.20.4.7".into(), transport: "tcp".into(), ports: vec!["502".into()] };
        assert_eq!(request.targets, [target]);
        assert_eq!((request.hosts, request.users), (vec!["eng-ws-12".to_owned()], vec!["svc-build".to_owned()]));
        assert_eq!(request.credential_scope, serde_json::json!({ "kind": "none" }));
    }

    #[test]
    fn draft_without_agent_or_target_says_what_is_missing() {
        let error = draft(&config(), Some("codex".into()), "u".into(), None, &Draft::default()).unwrap_err();
        assert!(error.to_string().contains("--target"), "{error}");
        let with_target = Draft { targets: vec!["10.20.4.7:502".into()], ..Draft::default() };
        let error = draft(&config(), None, "u".into(), None, &with_target).unwrap_err();
        assert!(error.to_string().contains("--agent"), "{error}");
    }

    #[test]
    fn text_that_is_no_artifact_is_refused_by_name() {
        let error = admit_artifact(b"{}", &config(), &Keyring::default(), &LearnedPlaces::default(), 0).err().unwrap();
        let problem = error.answer().error;
        assert_eq!((problem.status, problem.code.as_str()), (422, "malformed"));
    }
}
