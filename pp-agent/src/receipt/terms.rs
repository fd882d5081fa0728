//! What a receipt allows: the signed `requestJson`, read strictly.
//!
//! The grammar is `parameters.schema.json`. A term that is not in it, or that this build cannot enforce, refuses the whole receipt. A
//! signed restriction is never dropped.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::{Refusal, instant};

/// Longest user, host, agent and account name, in bytes. No system allows longer ones.
const MAX_NAME_BYTES: usize = 256;
/// Longest account name, in characters (the grammar's limit).
const MAX_ACCOUNT_CHARS: usize = 128;
/// Longest free text of a request, in bytes.
const MAX_TEXT_BYTES: usize = 4096;

/// What a receipt opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The tenant it is for (`tenantId`).
    pub tenant: String,
    /// The agent whose sessions it is for (`actor.agentId`).
    pub agent: String,
    /// The one session it is for (`actor.runId`); absent: any session of the agent.
    pub run: Option<String>,
    /// The targets; at least one.
    pub targets: Vec<Target>,
    /// Whether it allows logins.
    pub credential_scope: CredentialScope,
    /// Owners of the sessions it is for, by name; absent only if policy says `any_user`.
    pub users: Option<Vec<String>>,
    /// Hosts it may be registered on.
    pub hosts: Vec<String>,
    /// Length of the window from max(registration, `not_before_ms`); without it the window ends at `expiresAt`.
    pub access_seconds: Option<u32>,
    /// Most new flows, per host.
    pub max_connections: Option<u32>,
    /// Most request/response turns on each connection to a gateway.
    pub max_turns: Option<u32>,
    /// Opens nothing before this (wall clock, ms since 1970).
    pub not_before_ms: Option<i64>,
    /// `intent.summary`: the text of who asks. It is unverified; escape before showing.
    pub asker_text: String,
}

/// One network, transport and set of ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Addresses, host bits zero. Never a v4-mapped network: those are written as IPv4.
    pub network: IpNet,
    /// Transport.
    pub transport: Transport,
    /// Ports, at least one range.
    pub ports: Vec<PortRange>,
}

/// Transport protocol of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP, MPTCP included.
    Tcp,
    /// UDP.
    Udp,
    /// UDP-Lite.
    UdpLite,
    /// SCTP.
    Sctp,
}

/// Ports from `first` to `last`, both included, host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl CredentialScope {
    /// Most new connections to login ports and gateways, per host; zero: those stay closed.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        match self {
            Self::None => 0,
            Self::Accounts { max_attempts, .. } => *max_attempts,
        }
    }

    /// The accounts it names; empty without logins.
    #[must_use]
    pub fn accounts(&self) -> &[String] {
        match self {
            Self::None => &[],
            Self::Accounts { accounts, .. } => accounts,
        }
    }
}

/// Whether logins are allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialScope {
    /// Login ports and gateways stay closed, even inside the targets.
    None,
    /// At most `max_attempts` connections to login ports and gateways.
    Accounts {
        /// For the record: the kernel cannot see which account is used.
        accounts: Vec<String>,
        /// Most new connections to login ports and gateways, per host.
        max_attempts: u32,
    },
}

impl Terms {
    /// Reads a request.
    ///
    /// # Errors
    /// `OtherAction`, `TermNotEnforced`, `MissingTerm` or `TermInvalid` for the first member that is not as the grammar has it.
    pub fn parse(request: &Map<String, Value>) -> Result<Self, Refusal> {
        known("", request, &["action", "actor", "context", "hashes", "intent", "tenantId"])?;
        let action = object("action", request)?;
        known("action.", action, &["operation", "parameters", "tool"])?;
        let (tool, operation) = (name("action.", action, "tool")?, name("action.", action, "operation")?);
        if (tool.as_str(), operation.as_str()) != ("network", "connect") {
            return Err(Refusal::OtherAction { tool, operation });
        }
        let actor = object("actor", request)?;
        known("actor.", actor, &["agentId", "runId"])?;
        let context = object("context", request)?;
        known("context.", context, &["environment", "reversibility"])?;
        // An approval for another environment must not open anything here.
        if name("context.", context, "environment")? != "production" {
            return Err(not_enforced("context.environment"));
        }
        if !["REVERSIBLE", "PARTIALLY_REVERSIBLE", "IRREVERSIBLE"].contains(&name("context.", context, "reversibility")?.as_str()) {
            return Err(invalid("context.reversibility", "it is not in the schema"));
        }
        let intent = object("intent", request)?;
        known("intent.", intent, &["category", "name", "summary"])?;
        name("intent.", intent, "category")?;
        name("intent.", intent, "name")?;
        known("hashes.", object("hashes", request)?, &["inputHash"])?;
        let parameters = match action.get("parameters") {
            Some(Value::Object(parameters)) => parameters,
            None => return Err(Refusal::MissingTerm { what: "target surface", member: "action.parameters.targets" }),
            Some(_) => return Err(invalid("action.parameters", "it must be an object")),
        };
        Self {
            tenant: name("", request, "tenantId")?,
            agent: name("actor.", actor, "agentId")?,
            run: actor.contains_key("runId").then(|| name("actor.", actor, "runId")).transpose()?,
            targets: Vec::new(),
            credential_scope: CredentialScope::None,
            users: None,
            hosts: Vec::new(),
            access_seconds: None,
            max_connections: None,
            max_turns: None,
            not_before_ms: None,
            asker_text: free_text(intent)?,
        }
        .with_parameters(parameters)
    }

    fn with_parameters(mut self, parameters: &Map<String, Value>) -> Result<Self, Refusal> {
        const AT: &str = "action.parameters.";
        known(
            AT,
            parameters,
            &["targets", "credentialScope", "users", "hosts", "notBefore", "accessSeconds", "maxConnections", "maxTurns"],
        )?;
        let missing = |what, member| Refusal::MissingTerm { what, member };
        let targets = parameters.get("targets").ok_or_else(|| missing("target surface", "action.parameters.targets"))?;
        let targets = array("action.parameters.targets", targets, 64)?;
        if targets.is_empty() {
            return Err(missing("target surface", "action.parameters.targets"));
        }
        let at = |position| format!("{AT}targets[{position}]");
        self.targets = targets.iter().enumerate().map(|(n, value)| Target::parse(&at(n), value)).collect::<Result<_, _>>()?;
        let scope = parameters.get("credentialScope");
        let scope = scope.ok_or_else(|| missing("credential scope", "action.parameters.credentialScope"))?;
        self.credential_scope = CredentialScope::parse(scope)?;
        self.users = parameters.get("users").map(|users| names("action.parameters.users", users, 16)).transpose()?;
        let hosts = parameters.get("hosts").ok_or_else(|| missing("hosts", "action.parameters.hosts"))?;
        self.hosts = names("action.parameters.hosts", hosts, 256)?;
        self.access_seconds = count(AT, parameters, "accessSeconds", 604_800)?;
        self.max_connections = count(AT, parameters, "maxConnections", u32::MAX)?;
        self.max_turns = count(AT, parameters, "maxTurns", u32::MAX)?;
        self.not_before_ms = parameters
            .get("notBefore")
            .map(|value| {
                let real = value.as_str().and_then(instant::parse);
                real.ok_or_else(|| invalid("action.parameters.notBefore", "it must be a real date as YYYY-MM-DDTHH:mm:ss.sssZ"))
            })
            .transpose()?;
        Ok(self)
    }
}

impl Target {
    fn parse(at: &str, value: &Value) -> Result<Self, Refusal> {
        let Value::Object(members) = value else { return Err(invalid(at, "it must be an object")) };
        let prefix = format!("{at}.");
        known(&prefix, members, &["address", "transport", "ports"])?;
        let address = name(&prefix, members, "address")?;
        let network = cidr(&address).ok_or_else(|| invalid(&format!("{at}.address"), "it must be one CIDR such as 10.20.4.7/32"))?;
        if network.trunc() != network {
            return Err(invalid(&format!("{at}.address"), "its host bits must be zero"));
        }
        if let IpNet::V6(v6) = network
            && v6.prefix_len() >= 96
            && v6.addr().to_ipv4_mapped().is_some()
        {
            return Err(invalid(&format!("{at}.address"), "a v4-mapped network must be written as IPv4"));
        }
        let transport = Transport::parse(&name(&prefix, members, "transport")?).ok_or_else(|| not_enforced(&format!("{at}.transport")))?;
        let ports_at = format!("{at}.ports");
        let ports = members.get("ports").ok_or_else(|| invalid(&ports_at, "it is required"))?;
        let ports = names(&ports_at, ports, 16)?;
        let ports = ports
            .iter()
            .map(|text| PortRange::parse(text).ok_or_else(|| invalid(&ports_at, "each must be a port, a range such as 500-510, or *")))
            .collect::<Result<_, _>>()?;
        Ok(Self { network, transport, ports })
    }
}

impl Transport {
    /// Reads the name used in receipts.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            "udplite" => Some(Self::UdpLite),
            "sctp" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The transport of an IP protocol number (IANA).
    #[must_use]
    pub fn of_protocol(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::UdpLite, Self::Sctp].into_iter().find(|transport| transport.protocol() == number)
    }

    /// The IP protocol number (IANA).
    #[must_use]
    pub fn protocol(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::UdpLite => 136,
        }
    }
}

impl PortRange {
    /// Every port.
    pub const ANY: Self = Self { first: 0, last: u16::MAX };

    /// Reads `502`, `500-510` or `*`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::ANY);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        (first <= last).then_some(Self { first, last })
    }
}

/// A port from 1, in digits only and without leading zeros.
fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port: &u16| *port > 0 && port.to_string() == text)
}

/// Reads one CIDR. Unlike `ipnet`, it refuses leading zeros, which some programs read as octal.
fn cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let length: u8 = length.parse().ok().filter(|number: &u8| number.to_string() == length)?;
    IpNet::new(address, length).ok()
}

impl CredentialScope {
    fn parse(value: &Value) -> Result<Self, Refusal> {
        const AT: &str = "action.parameters.credentialScope.";
        let Value::Object(members) = value else { return Err(invalid("action.parameters.credentialScope", "it must be an object")) };
        match members.get("kind").and_then(Value::as_str) {
            Some("none") => {
                known(AT, members, &["kind"])?;
                Ok(Self::None)
            }
            Some("accounts") => {
                known(AT, members, &["kind", "accounts", "maxAttempts"])?;
                let accounts = members.get("accounts").ok_or_else(|| invalid(&format!("{AT}accounts"), "it is required"))?;
                let accounts = names(&format!("{AT}accounts"), accounts, 16)?;
                if accounts.iter().any(|account| account.chars().count() > MAX_ACCOUNT_CHARS) {
                    return Err(invalid(&format!("{AT}accounts"), "each must have at most 128 characters"));
                }
                let max_attempts = count(AT, members, "maxAttempts", 10_000)?;
                Ok(Self::Accounts {
                    accounts,
                    max_attempts: max_attempts.ok_or_else(|| invalid(&format!("{AT}maxAttempts"), "it is required"))?,
                })
            }
            Some(_) => Err(not_enforced(&format!("{AT}kind"))),
            None => Err(invalid(&format!("{AT}kind"), "it must be none or accounts")),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::UdpLite => "udplite",
            Self::Sctp => "sctp",
        })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (*self, self.first == self.last) {
            (Self::ANY, _) => formatter.write_str("*"),
            (_, true) => write!(formatter, "{}", self.first),
            (_, false) => write!(formatter, "{}-{}", self.first, self.last),
        }
    }
}

/// `10.20.4.7/32 tcp 502,510-515`.
impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} ", self.network, self.transport)?;
        for (position, range) in self.ports.iter().enumerate() {
            write!(formatter, "{}{range}", if position == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

fn invalid(term: &str, why: &'static str) -> Refusal {
    Refusal::TermInvalid { term: term.to_owned(), why }
}

fn not_enforced(term: &str) -> Refusal {
    Refusal::TermNotEnforced { term: term.to_owned() }
}

/// Refuses members that are not in `names`; `at` is the path before them.
fn known(at: &str, members: &Map<String, Value>, names: &[&str]) -> Result<(), Refusal> {
    match members.keys().find(|name| !names.contains(&name.as_str())) {
        Some(unknown) => Err(not_enforced(&format!("{at}{unknown}"))),
        None => Ok(()),
    }
}

fn object<'a>(member: &'static str, request: &'a Map<String, Value>) -> Result<&'a Map<String, Value>, Refusal> {
    request.get(member).and_then(Value::as_object).ok_or_else(|| invalid(member, "it must be an object"))
}

fn array<'a>(at: &str, value: &'a Value, most: usize) -> Result<&'a [Value], Refusal> {
    match value {
        Value::Array(items) if items.len() <= most => Ok(items),
        Value::Array(_) => Err(invalid(at, "it has too many items")),
        _ => Err(invalid(at, "it must be an array")),
    }
}

fn name(at: &str, members: &Map<String, Value>, member: &str) -> Result<String, Refusal> {
    match members.get(member).map(one_name) {
        Some(Some(text)) => Ok(text),
        _ => Err(invalid(&format!("{at}{member}"), "it must be a text of 1 to 256 bytes")),
    }
}

fn names(at: &str, value: &Value, most: usize) -> Result<Vec<String>, Refusal> {
    let items = array(at, value, most)?;
    if items.is_empty() {
        return Err(invalid(at, "it must not be empty"));
    }
    items.iter().map(|item| one_name(item).ok_or_else(|| invalid(at, "each must be a text of 1 to 256 bytes"))).collect()
}

fn one_name(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty() && text.len() <= MAX_NAME_BYTES).map(str::to_owned)
}

fn free_text(intent: &Map<String, Value>) -> Result<String, Refusal> {
    match intent.get("summary").and_then(Value::as_str) {
        Some(text) if text.len() <= MAX_TEXT_BYTES => Ok(text.to_owned()),
        _ => Err(invalid("intent.summary", "it must be a text of at most 4096 bytes")),
    }
}

fn count(at: &str, members: &Map<String, Value>, member: &str, most: u32) -> Result<Option<u32>, Refusal> {
    let Some(value) = members.get(member) else { return Ok(None) };
    match value.as_u64().and_then(|count| u32::try_from(count).ok()) {
        Some(count) if (1..=most).contains(&count) => Ok(Some(count)),
        _ => Err(invalid(&format!("{at}{member}"), "it must be a whole number within the limits of the grammar")),
    }
}
