//! Why a receipt is refused here: one name for each condition, with what to do.

use super::conditions::CREATED_AHEAD_MS;
use super::verify::{Malformed, VerifyError};
use crate::escape::escape;

/// The first condition that a receipt does not meet.
///
/// `Display` names the fact and what to do; values from the receipt are escaped. [`Refusal::code`] is stable.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// The artifact does not verify: its form, key or signature is wrong.
    #[error("receipt does not verify: {0}; get the artifact again from the operator who signed it, unchanged")]
    Unverified(#[from] VerifyError),
    /// The signed payload is not what the schema of `jcs_v2` allows.
    #[error("receipt payload: {member} is not as the format has it: {why}; ask the operator for a new receipt")]
    PayloadMalformed {
        /// The payload's member.
        member: &'static str,
        /// What it must be.
        why: &'static str,
    },
    /// The decision is no, or contradicts itself.
    #[error("receipt is not an approval: {why}; ask the operator for a decision that approves")]
    NotApproved {
        /// What says so.
        why: String,
    },
    /// A demonstration receipt.
    #[error("receipt is for demonstration ({}); only scope production under a production key opens anything", escape(.why))]
    DemoScope {
        /// The scope or the key.
        why: String,
    },
    /// The envelope is of another receipt than the payload.
    #[error("receipt ids disagree: {member} outside is not {member} in the signed payload; get the artifact again, unchanged")]
    IdsDisagree {
        /// The envelope's member.
        member: &'static str,
    },
    /// An unsigned copy in the envelope differs from the signed value.
    #[error("receipt copies disagree: artifact.{member} is not the signed {signed}; get the artifact again, unchanged")]
    CopiesDisagree {
        /// The envelope's member.
        member: &'static str,
        /// The payload's member.
        signed: &'static str,
    },
    /// The decider is a role, a service or a policy, or is missing.
    #[error("receipt was decided by {}, which is not a person; ask an operator to decide", escape(.decider))]
    DeciderNotAPerson {
        /// `deciderId`, and the method or confidence where those say so.
        decider: String,
    },
    /// The key is trusted, but may sign for no decider here.
    #[error("key {} has no [[authority]] in this host's policy; add one, or have the receipt signed with a key that has", escape(.key_id))]
    NoAuthority {
        /// The signing key.
        key_id: String,
    },
    /// The key signed for a decider that it may not sign for.
    #[error("key {} may not speak for {}; the receipt must name the decider of that key's [[authority]]", escape(.key_id), escape(.decider))]
    DeciderNotAllowed {
        /// The signing key.
        key_id: String,
        /// `deciderId`.
        decider: String,
    },
    /// The receipt is for another tenant.
    #[error("receipt is for tenant {}, not for {}; ask for one that names this tenant", escape(.named), escape(.ours))]
    WrongTenant {
        /// The tenant the receipt names.
        named: String,
        /// The tenant in policy.
        ours: String,
    },
    /// It is too late to register the receipt.
    #[error("receipt could be registered until {expired_at}; ask the operator for a new one")]
    Expired {
        /// `expiresAt`.
        expired_at: String,
    },
    /// The receipt was created in the future, by the clock of this host.
    #[error("receipt was created at {created_at}, more than {} s ahead of this host's clock; check both clocks", CREATED_AHEAD_MS / 1000)]
    CreatedInFuture {
        /// `createdAt`.
        created_at: String,
    },
    /// The signed request is not in its own canonical form, so two readers could read it differently.
    #[error("receipt request is not canonical: {why}; sign with a tool that writes RFC 8785 JSON")]
    RequestNotCanonical {
        /// What is wrong with the text.
        why: String,
    },
    /// The hash in the receipt is not the request's.
    #[error("receipt input hash is not that of its request ({which}); ask the operator for a new receipt")]
    InputHashMismatch {
        /// Which two values differ.
        which: &'static str,
    },
    /// The agent, or its run, is not the same in the payload and in the request.
    #[error("receipt agent ids disagree: {member} differs between the payload and its request; ask the operator for a new receipt")]
    AgentIdsDisagree {
        /// `agentId` or `runId`.
        member: &'static str,
    },
    /// The approved action is not a network connection.
    #[error("receipt approves {}:{}, not network:connect; it opens nothing here", escape(.tool), escape(.operation))]
    OtherAction {
        /// `action.tool`.
        tool: String,
        /// `action.operation`.
        operation: String,
    },
    /// A signed restriction, or anything unknown, that this build does not enforce. It is never dropped.
    #[error("receipt term {} is not enforced by this build; ask for a receipt without it", escape(.term))]
    TermNotEnforced {
        /// Its path in the request.
        term: String,
    },
    /// A required term is absent. The first three name the target surface, the credential scope and the operator.
    #[error("receipt names no {what} ({member}); ask the operator for one that does")]
    MissingTerm {
        /// Its name, in the operator's words.
        what: &'static str,
        /// The member that is missing.
        member: &'static str,
    },
    /// A term is not valid.
    #[error("receipt term {} is not valid: {why}; ask the operator for a new receipt", escape(.term))]
    TermInvalid {
        /// Its path in the request.
        term: String,
        /// What it must be.
        why: &'static str,
    },
    /// The receipt is for other hosts.
    #[error("receipt does not name host {}; ask for one whose hosts include it", escape(.host))]
    HostNotNamed {
        /// `host` in policy.
        host: String,
    },
    /// The window is longer than the authority may grant.
    #[error("receipt opens for {seconds} s, but key {} may open for at most {max_seconds} s; ask for a shorter one", escape(.key_id))]
    WindowOverMaxTtl {
        /// The window's length in seconds, rounded up.
        seconds: i64,
        /// `max_ttl` in seconds.
        max_seconds: u64,
        /// The signing key.
        key_id: String,
    },
    /// The window would end before it starts.
    #[error("receipt opens nothing: notBefore {not_before} is not before expiresAt and accessSeconds is absent; ask for a new one")]
    WindowEmpty {
        /// `notBefore`.
        not_before: String,
    },
    /// A target touches a zone the authority may not open.
    #[error("target {target} touches zone {zone}, which key {} may not open; ask an operator who may", escape(.key_id))]
    ZoneNotAllowed {
        /// The target.
        target: String,
        /// The first zone that is not in the authority's list.
        zone: String,
        /// The signing key.
        key_id: String,
    },
    /// A target touches a gateway the authority may not open.
    #[error("target {target} touches gateway {gateway}, which key {} may not open; ask an operator who may", escape(.key_id))]
    GatewayNotAllowed {
        /// The target.
        target: String,
        /// The first gateway that is not in the authority's list.
        gateway: String,
        /// The signing key.
        key_id: String,
    },
    /// A target touches a service, outside all zones and gateways, that the authority may not open.
    #[error("target {target} touches service {service}, which key {} may not open; ask an operator who may", escape(.key_id))]
    ServiceNotAllowed {
        /// The target.
        target: String,
        /// The first service that is not in the authority's list.
        service: String,
        /// The signing key.
        key_id: String,
    },
    /// Nothing in a target is protected. It needs no receipt, or is a mistake.
    #[error("target {target} touches no zone, gateway or service of this host's policy; check its address and ports")]
    TargetNotProtected {
        /// The target.
        target: String,
    },
    /// A part of a target is not protected, so the authority may not open all of it.
    #[error("target {target} reaches beyond the zones, gateways and services of this host's policy; name only what is protected")]
    TargetTooWide {
        /// The target.
        target: String,
    },
    /// A revocation was expected and this is none, or it names nothing.
    #[error("artifact is not a signed revocation: {why}; make one with pp-agent receipt revoke --sign")]
    NotARevocation {
        /// What is missing.
        why: &'static str,
    },
    /// A user of the receipt does not exist on this host.
    #[error("user {} does not exist on this host; ask for a receipt that names users of this host", escape(.user))]
    UserUnknown {
        /// The name in the receipt.
        user: String,
    },
    /// The receipt was registered here before.
    #[error("receipt {} was redeemed here before; ask the operator for a new one", escape(.id))]
    Redeemed {
        /// The receipt.
        id: String,
    },
    /// The receipt was revoked here, maybe before it was registered.
    #[error("receipt {} is revoked; ask the operator for a new one", escape(.id))]
    Revoked {
        /// The receipt.
        id: String,
    },
    /// Another receipt was redeemed for the same request.
    #[error("idempotency key {} was redeemed here by receipt {}; ask the operator for a new one", escape(.idem_key), escape(.by))]
    IdemKeyUsed {
        /// `idemKey`.
        idem_key: String,
        /// The receipt that used it.
        by: String,
    },
    /// The wall clock is behind the highest time seen here.
    #[error("clock is behind {highest}, the latest time seen here; set it right, then register again")]
    ClockBehind {
        /// The highest wall time seen.
        highest: String,
    },
    /// No room in the tables.
    #[error("grants: no room for another receipt; revoke receipts that are no longer needed")]
    GrantsFull,
}

impl Refusal {
    /// The condition's stable name.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unverified(error) => match error {
                VerifyError::Malformed(_) => "malformed",
                VerifyError::PayloadHashMismatch => "payload_hash_mismatch",
                VerifyError::KeyNotFound(_) | VerifyError::KeyNotEd25519(_) => "key_unknown",
                VerifyError::KeyRevoked(_) => "key_revoked",
                VerifyError::SignatureInvalid => "signature_invalid",
                VerifyError::CanonicalizationUnsupported(_) => "canonicalization_unsupported",
                VerifyError::CanonicalMismatch => "canonical_mismatch",
            },
            Self::PayloadMalformed { .. } => "payload_malformed",
            Self::NotApproved { .. } => "not_approved",
            Self::DemoScope { .. } => "demo_scope",
            Self::IdsDisagree { .. } => "ids_disagree",
            Self::CopiesDisagree { .. } => "copies_disagree",
            Self::DeciderNotAPerson { .. } => "decider_not_a_person",
            Self::NoAuthority { .. } => "no_authority",
            Self::DeciderNotAllowed { .. } => "decider_not_allowed",
            Self::WrongTenant { .. } => "wrong_tenant",
            Self::Expired { .. } => "expired",
            Self::CreatedInFuture { .. } => "created_in_future",
            Self::RequestNotCanonical { .. } => "request_not_canonical",
            Self::InputHashMismatch { .. } => "input_hash_mismatch",
            Self::AgentIdsDisagree { .. } => "agent_ids_disagree",
            Self::OtherAction { .. } => "other_action",
            Self::TermNotEnforced { .. } => "term_not_enforced",
            Self::MissingTerm { .. } => "missing_term",
            Self::TermInvalid { .. } => "term_invalid",
            Self::HostNotNamed { .. } => "host_not_named",
            Self::WindowOverMaxTtl { .. } => "window_over_max_ttl",
            Self::WindowEmpty { .. } => "window_empty",
            Self::ZoneNotAllowed { .. } => "zone_not_allowed",
            Self::GatewayNotAllowed { .. } => "gateway_not_allowed",
            Self::ServiceNotAllowed { .. } => "service_not_allowed",
            Self::TargetNotProtected { .. } => "target_not_protected",
            Self::TargetTooWide { .. } => "target_too_wide",
            Self::NotARevocation { .. } => "not_a_revocation",
            Self::UserUnknown { .. } => "user_unknown",
            Self::Redeemed { .. } => "redeemed",
            Self::Revoked { .. } => "revoked",
            Self::IdemKeyUsed { .. } => "idem_key_used",
            Self::ClockBehind { .. } => "clock_behind",
            Self::GrantsFull => "grants_full",
        }
    }

    /// The code of Permission Protocol, if it has one.
    #[must_use]
    pub fn pp_code(&self) -> Option<&'static str> {
        match self {
            Self::Unverified(VerifyError::Malformed(Malformed::Missing("signature_b64"))) => Some("PP_UNSIGNED_RECEIPT"),
            Self::Unverified(VerifyError::Malformed(_) | VerifyError::CanonicalizationUnsupported(_)) => None,
            Self::Unverified(_) => Some("PP_INVALID_SIGNATURE"),
            Self::Expired { .. } => Some("PP_EXPIRED"),
            Self::Redeemed { .. } | Self::IdemKeyUsed { .. } => Some("PP_REDEEMED"),
            Self::DemoScope { .. }
            | Self::NoAuthority { .. }
            | Self::DeciderNotAllowed { .. }
            | Self::WrongTenant { .. }
            | Self::OtherAction { .. }
            | Self::HostNotNamed { .. }
            | Self::WindowOverMaxTtl { .. }
            | Self::ZoneNotAllowed { .. }
            | Self::GatewayNotAllowed { .. }
            | Self::ServiceNotAllowed { .. }
            | Self::TargetNotProtected { .. }
            | Self::TargetTooWide { .. }
            | Self::UserUnknown { .. } => Some("PP_SCOPE_MISMATCH"),
            _ => None,
        }
    }
}
