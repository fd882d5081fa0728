//! Decides whether a receipt opens anything on *this* host. These are the gate's own conditions, in addition to the signature.
//!
//! [`admit`] is the only place where a [`Receipt`] is made. The store decides what has been redeemed or revoked here.

use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::payload::{Payload, Status};
use super::terms::{PortRange, Target, Terms, Transport};
use super::verify::{Evidence, verify};
use super::{Refusal, instant};
use crate::json;
use crate::keyring::Keyring;
use crate::name::parse_session;

/// How much `createdAt` may be ahead of this host's clock, in milliseconds, since operators' clocks differ.
pub const CREATED_AHEAD_MS: i64 = 120_000;

/// The published key of demonstration receipts. The issuer's key set contains it like any other.
const DEMO_KEY: &str = "pp-demo-k1";

/// What a receipt is checked against on this host.
#[derive(Clone, Copy)]
pub struct AdmitContext<'a> {
    /// `tenant` in policy.
    pub tenant: &'a str,
    /// `host` in policy.
    pub host: &'a str,
    /// Who may sign receipts for what.
    pub authorities: &'a [Authority],
    /// `any_user` in policy: receipts may omit their users.
    pub any_user: bool,
    /// When the receipt is registered (wall clock, ms since 1970). A receipt that is loaded again is checked as of its first registration.
    pub now_ms: i64,
    /// What the host protects.
    pub surface: &'a dyn Surface,
}

/// One `[[authority]]`: a key, the decider it speaks for, and what that decider may open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The key in `keys.json`.
    pub key_id: String,
    /// The one decider, as `user:NAME`.
    pub decider: String,
    /// Zones, by name.
    pub zones: Vec<String>,
    /// Gateways, by name.
    pub gateways: Vec<String>,
    /// Services outside zones and gateways, by name.
    pub services: Vec<String>,
    /// Longest window.
    pub max_ttl: Duration,
}

/// Finds the protected places that a target touches.
pub trait Surface {
    /// `ports` are inclusive ranges in host byte order; at least one.
    fn touches(&self, network: IpNet, transport: Transport, ports: &[PortRange]) -> Touched;
}

/// What one target touches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Names of zones with an address in the target.
    pub zones: Vec<String>,
    /// Names of gateways with an address and a port in the target.
    pub gateways: Vec<String>,
    /// Names of services on the target's ports, for its addresses that are in no zone or gateway.
    pub services_outside: Vec<String>,
    /// Whether some address and port of the target is not protected by any of those.
    pub unprotected_part: bool,
}

/// A verified receipt that this host's policy admits. Only [`admit`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    id: String,
    key_id: String,
    decider: String,
    decider_display: String,
    idem_key: String,
    payload_hash: String,
    summary: Option<String>,
    created_at_ms: i64,
    expires_at_ms: i64,
    session: u64,
    terms: Terms,
    touched: Touched,
}

/// When a receipt is open, wall clock, ms since 1970: from `from_ms` on, until before `until_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First instant that is open.
    pub from_ms: i64,
    /// First instant that is closed again.
    pub until_ms: i64,
}

/// Verifies an artifact and admits it: [`verify`], then [`admit`].
///
/// # Errors
/// The first check or condition that fails.
pub fn check(artifact_bytes: &[u8], keys: &Keyring, context: &AdmitContext<'_>) -> Result<Receipt, Refusal> {
    admit(verify(artifact_bytes, keys)?, context)
}

/// Checks evidence against this host's policy.
///
/// # Errors
/// The first condition that is not met.
pub fn admit(evidence: Evidence, context: &AdmitContext<'_>) -> Result<Receipt, Refusal> {
    let payload = Payload::read(&evidence)?;
    approved(&payload)?;
    genuine(&evidence, &payload)?;
    let authority = authority(&evidence, &payload, context)?;
    same_tenant(&payload.company_id, context)?;
    not_from_the_future(&payload, context)?;
    if context.now_ms >= payload.expires_at_ms {
        return Err(Refusal::Expired { expired_at: instant::format(payload.expires_at_ms) });
    }
    let request = canonical_request(&payload)?;
    let terms = Terms::parse(&request)?;
    same_tenant(&terms.tenant, context)?;
    same_agent(&payload, &terms)?;
    same_input_hash(&payload, request)?;
    if terms.users.is_none() && !context.any_user {
        return Err(Refusal::MissingTerm { what: "users", member: "action.parameters.users" });
    }
    if !terms.hosts.iter().any(|host| host == context.host) {
        return Err(Refusal::HostNotNamed { host: context.host.to_owned() });
    }
    within_max_ttl(&payload, &terms, authority, context)?;
    let touched = within_authority(&terms.targets, authority, context.surface)?;
    Ok(Receipt {
        session: session(&terms)?,
        id: payload.id,
        key_id: evidence.key_id().to_owned(),
        payload_hash: evidence.artifact.signed_payload_hash,
        decider: payload.decider_id,
        decider_display: payload.decider_display,
        idem_key: payload.idem_key,
        summary: payload.summary,
        created_at_ms: payload.created_at_ms,
        expires_at_ms: payload.expires_at_ms,
        terms,
        touched,
    })
}

fn approved(payload: &Payload) -> Result<(), Refusal> {
    let no = |why: &str| Err(Refusal::NotApproved { why: why.to_owned() });
    if payload.status != Status::Approved {
        return no(&format!("its status is {}", payload.status));
    }
    if payload.resolution_type.as_deref() == Some("deny") {
        return no("its resolutionType is deny");
    }
    if payload.risk_tier.as_deref() == Some("D_PROHIBITED") {
        return no("its riskTier is D_PROHIBITED");
    }
    Ok(())
}

/// Checks that the receipt is for production, and that the copies in the envelope agree with what is signed.
pub(super) fn genuine(evidence: &Evidence, payload: &Payload) -> Result<(), Refusal> {
    if payload.scope != "production" {
        return Err(Refusal::DemoScope { why: format!("scope {}", payload.scope) });
    }
    if evidence.key_id() == DEMO_KEY {
        return Err(Refusal::DemoScope { why: format!("key {DEMO_KEY}") });
    }
    if evidence.artifact.receipt_id != payload.id {
        return Err(Refusal::IdsDisagree { member: "id" });
    }
    for (copy, signed) in [
        ("status", "status"),
        ("receipt_version", "receiptVersion"),
        ("canonicalization", "canonicalization"),
        ("issued_at", "createdAt"),
        ("expires_at", "expiresAt"),
        ("company_id", "companyId"),
        ("idem_key", "idemKey"),
        ("input_hash", "inputHash"),
        ("request_json", "requestJson"),
        ("summary", "summary"),
    ] {
        match evidence.artifact.members.get(copy) {
            None | Some(Value::Null) => {}
            value if value == evidence.payload.get(signed) => {}
            Some(_) => return Err(Refusal::CopiesDisagree { member: copy, signed }),
        }
    }
    Ok(())
}

/// Checks that a person decided, and that the key may sign for that person here.
pub(super) fn authority<'a>(evidence: &Evidence, payload: &Payload, context: &AdmitContext<'a>) -> Result<&'a Authority, Refusal> {
    let decider = payload.decider_id.as_str();
    let not_a_person = |how: &str| Err(Refusal::DeciderNotAPerson { decider: format!("{decider}{how}") });
    if decider.strip_prefix("user:").is_none_or(str::is_empty) {
        return not_a_person("");
    }
    if let Some(method @ ("api_key" | "anonymous_demo" | "policy")) = payload.decider_auth_method.as_deref() {
        return not_a_person(&format!(" by {method}"));
    }
    if payload.attribution_confidence == "unattributed" {
        return not_a_person(" (unattributed)");
    }
    let key_id = evidence.key_id();
    let mut of_key = context.authorities.iter().filter(|authority| authority.key_id == key_id).peekable();
    if of_key.peek().is_none() {
        return Err(Refusal::NoAuthority { key_id: key_id.to_owned() });
    }
    of_key
        .find(|authority| authority.decider == decider)
        .ok_or_else(|| Refusal::DeciderNotAllowed { key_id: key_id.to_owned(), decider: decider.to_owned() })
}

pub(super) fn same_tenant(named: &str, context: &AdmitContext<'_>) -> Result<(), Refusal> {
    if named == context.tenant {
        return Ok(());
    }
    Err(Refusal::WrongTenant { named: named.to_owned(), ours: context.tenant.to_owned() })
}

pub(super) fn not_from_the_future(payload: &Payload, context: &AdmitContext<'_>) -> Result<(), Refusal> {
    if payload.created_at_ms > context.now_ms.saturating_add(CREATED_AHEAD_MS) {
        return Err(Refusal::CreatedInFuture { created_at: instant::format(payload.created_at_ms) });
    }
    Ok(())
}

/// The signed request, if its text is canonical.
pub(super) fn canonical_request(payload: &Payload) -> Result<Map<String, Value>, Refusal> {
    let no = |why: String| Refusal::RequestNotCanonical { why };
    let request: Value = json::parse_strict(payload.request_json.as_bytes()).map_err(|_| no("it is not strict JSON".into()))?;
    if json::canonical(&request).as_deref() != Some(payload.request_json.as_str()) {
        return Err(no("its text is not its own canonical text".into()));
    }
    match request {
        Value::Object(request) => Ok(request),
        _ => Err(no("it is not an object".into())),
    }
}

fn same_agent(payload: &Payload, terms: &Terms) -> Result<(), Refusal> {
    if payload.agent_id != terms.agent {
        return Err(Refusal::AgentIdsDisagree { member: "agentId" });
    }
    if payload.run_id != terms.run {
        return Err(Refusal::AgentIdsDisagree { member: "runId" });
    }
    Ok(())
}

pub(super) fn same_input_hash(payload: &Payload, request: Map<String, Value>) -> Result<(), Refusal> {
    let stated = request.get("hashes").and_then(|hashes| hashes.get("inputHash")).and_then(Value::as_str);
    if stated != Some(payload.input_hash.as_str()) {
        return Err(Refusal::InputHashMismatch { which: "inputHash is not requestJson.hashes.inputHash" });
    }
    if input_hash(request).as_deref() != Some(payload.input_hash.as_str()) {
        return Err(Refusal::InputHashMismatch { which: "it does not match when computed again" });
    }
    Ok(())
}

/// `sha256:HEX` over the canonical text of the request without its `hashes` (specification, section 7).
pub(super) fn input_hash(mut request: Map<String, Value>) -> Option<String> {
    request.remove("hashes");
    let text = json::canonical(&Value::Object(request))?;
    Some(format!("sha256:{}", hex::encode(Sha256::digest(text))))
}

/// The one session that it is for; zero: any session of the agent.
fn session(terms: &Terms) -> Result<u64, Refusal> {
    terms.run.as_deref().map_or(Ok(0), |run| {
        parse_session(run)
            .ok_or_else(|| Refusal::TermInvalid { term: "actor.runId".to_owned(), why: "it must be a session's 16 hex digits" })
    })
}

fn within_max_ttl(payload: &Payload, terms: &Terms, authority: &Authority, context: &AdmitContext<'_>) -> Result<(), Refusal> {
    let window = window(terms, payload.expires_at_ms, context.now_ms);
    let length_ms = window.until_ms.saturating_sub(window.from_ms);
    if length_ms <= 0 {
        return Err(Refusal::WindowEmpty { not_before: instant::format(window.from_ms) });
    }
    if u128::from(length_ms.unsigned_abs()) > authority.max_ttl.as_millis() {
        return Err(Refusal::WindowOverMaxTtl {
            seconds: length_ms.saturating_add(999) / 1000,
            max_seconds: authority.max_ttl.as_secs(),
            key_id: authority.key_id.clone(),
        });
    }
    Ok(())
}

fn window(terms: &Terms, expires_at_ms: i64, registered_at_ms: i64) -> Window {
    let from_ms = terms.not_before_ms.map_or(registered_at_ms, |not_before_ms| not_before_ms.max(registered_at_ms));
    let until_ms = match terms.access_seconds {
        Some(seconds) => from_ms.saturating_add(i64::from(seconds) * 1000),
        None => expires_at_ms,
    };
    Window { from_ms, until_ms }
}

/// Checks that every target is wholly protected, and that the authority may open everything that protects it.
fn within_authority(targets: &[Target], authority: &Authority, surface: &dyn Surface) -> Result<Touched, Refusal> {
    let mut all = Touched::default();
    let key_id = || authority.key_id.clone();
    for target in targets {
        let touched = surface.touches(target.network, target.transport, &target.ports);
        let target = target.to_string();
        if touched.zones.is_empty() && touched.gateways.is_empty() && touched.services_outside.is_empty() {
            return Err(Refusal::TargetNotProtected { target });
        }
        if let Some(zone) = first_outside(&touched.zones, &authority.zones) {
            return Err(Refusal::ZoneNotAllowed { target, zone, key_id: key_id() });
        }
        if let Some(gateway) = first_outside(&touched.gateways, &authority.gateways) {
            return Err(Refusal::GatewayNotAllowed { target, gateway, key_id: key_id() });
        }
        if let Some(service) = first_outside(&touched.services_outside, &authority.services) {
            return Err(Refusal::ServiceNotAllowed { target, service, key_id: key_id() });
        }
        if touched.unprotected_part {
            return Err(Refusal::TargetTooWide { target });
        }
        all.merge(touched);
    }
    Ok(all)
}

fn first_outside(touched: &[String], allowed: &[String]) -> Option<String> {
    touched.iter().find(|name| !allowed.contains(name)).cloned()
}

impl Touched {
    fn merge(&mut self, other: Self) {
        for (mine, theirs) in
            [(&mut self.zones, other.zones), (&mut self.gateways, other.gateways), (&mut self.services_outside, other.services_outside)]
        {
            mine.extend(theirs);
            mine.sort();
            mine.dedup();
        }
    }
}

impl Receipt {
    /// Its id, unique for each issuer.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The key that signed it.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Who decided, as `user:NAME`.
    #[must_use]
    pub fn decider(&self) -> &str {
        &self.decider
    }

    /// The display name of the decider; escape before showing.
    #[must_use]
    pub fn decider_display(&self) -> &str {
        &self.decider_display
    }

    /// The tenant. Together with [`Self::idem_key`] it can be redeemed once.
    #[must_use]
    pub fn company_id(&self) -> &str {
        &self.terms.tenant
    }

    /// The idempotency key.
    #[must_use]
    pub fn idem_key(&self) -> &str {
        &self.idem_key
    }

    /// SHA-256 of the signed bytes, lowercase hex.
    #[must_use]
    pub fn payload_hash(&self) -> &str {
        &self.payload_hash
    }

    /// The signer's summary; escape before showing.
    #[must_use]
    pub fn summary(&self) -> Option<&str> {
        self.summary.as_deref()
    }

    /// When it was made (wall clock, ms since 1970).
    #[must_use]
    pub fn created_at_ms(&self) -> i64 {
        self.created_at_ms
    }

    /// Until when it can be registered (wall clock, ms since 1970).
    #[must_use]
    pub fn expires_at_ms(&self) -> i64 {
        self.expires_at_ms
    }

    /// What it opens.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The one session that it is for; zero: any session of the agent.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Which zones, gateways and services of this host's policy it touches.
    #[must_use]
    pub fn touched(&self) -> &Touched {
        &self.touched
    }

    /// When it opens, if it was registered at `registered_at_ms` (wall clock, ms since 1970).
    #[must_use]
    pub fn window(&self, registered_at_ms: i64) -> Window {
        window(&self.terms, self.expires_at_ms, registered_at_ms)
    }
}
