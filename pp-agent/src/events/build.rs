//! Makes an [`Event`] of a kernel record: resolves names, users, the process and its ancestors.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use pp_common::abi::{NameId, Serial, TASK_CANARY};
use pp_common::behaviour::has_ports;
use pp_common::decide::{Reason, Subject, is_login_port, transport};
use pp_common::dest::Addr;
use pp_common::record::{Hook, RecordHeader, VerdictRecord};
use pp_common::tools::{TOOL_OBSERVE, TOOL_OFF, TOOL_REFUSE, rule_of};

use super::procs::{Change, Processes};
use super::record::{Exec, Record};
use super::{Attempt, Body, Destination, Event, Loss, Owner, Place, Process, Tool, Verdict, Who, Why, account, guard, mask};
use crate::clock::Now;
use crate::kernel::Backend;
pub(crate) use crate::name::{parse_session, session_text};
use crate::os::accounts;
use crate::tools::ToolRule;

/// Sessions whose agent and owner are remembered.
const MAX_SESSIONS: usize = 8_192;

/// Names for the numbers in records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// Agents, zones, gateways and services.
    pub(crate) names: HashMap<NameId, String>,
    /// Receipt ids.
    pub(crate) receipts: HashMap<Serial, String>,
    /// Identity rules in the order of their indices, as policy writes them.
    pub(crate) rules: Vec<String>,
    /// Rules about tools in the order of their indices.
    pub(crate) tools: Vec<ToolRule>,
}

/// Builds events, and remembers what records said about processes and sessions.
#[derive(Debug)]
pub(crate) struct Builder {
    /// The name of this host in policy.
    pub(crate) host: String,
    /// The backend that decides.
    pub(crate) backend: String,
    /// Names for numbers.
    pub(crate) names: Names,
    /// What processes run.
    pub(crate) processes: Processes,
    users: HashMap<u32, Option<String>>,
    sessions: HashMap<u64, (NameId, u32)>,
    oldest: VecDeque<u64>,
}

impl Builder {
    /// A builder that knows no names yet.
    #[must_use]
    pub(crate) fn new(host: &str, backend: &str) -> Self {
        Self {
            host: host.to_owned(),
            backend: backend.to_owned(),
            names: Names::default(),
            processes: Processes::default(),
            users: HashMap::new(),
            sessions: HashMap::new(),
            oldest: VecDeque::new(),
        }
    }

    /// The event of a record, if it makes one.
    pub(crate) fn build(&mut self, record: &Record, now: Now) -> Option<Event> {
        self.remember(record.header());
        let change = self.processes.learn(record);
        let body = match record {
            Record::Verdict(verdict) => self.verdict(verdict),
            Record::SessionStart(exec) => self.session_start(exec),
            Record::Exit(_) if change != Change::None => Body::SessionEnd { released: false },
            Record::TableFull(_) => Body::Lost(Loss { count: 1, refusals: false, not_stored: false }),
            Record::Tool(exec) => self.tool(exec),
            Record::Tamper(record) => Body::Tamper(guard::attempt(record, &self.backend)),
            Record::Delegate(record) => Body::Verdict(guard::attempt(record, &self.backend)),
            Record::Exec(_) | Record::Fork(_) | Record::Exit(_) => return None,
        };
        let event = self.subject(record.header(), body, now);
        Some(match record {
            Record::Verdict(verdict) => Event { detail: about_no_address(verdict), ..event },
            Record::Tamper(record) | Record::Delegate(record) => event.detail(guard::words(record)),
            // It is reported even if it was the canary's child.
            Record::TableFull(_) => Event { canary: false, ..event }
                .detail("the task table is full: a child could not be marked; raise max_tasks in the policy"),
            _ => event,
        })
    }

    /// Agent and owner of a session, also for some time after its end.
    #[must_use]
    pub(crate) fn subject_of(&self, session: u64) -> Option<Subject> {
        self.sessions.get(&session).map(|(agent, owner)| Subject { session, agent: *agent, owner: *owner })
    }

    fn remember(&mut self, header: &RecordHeader) {
        if self.sessions.insert(header.session, (header.agent, header.owner)).is_some() {
            return;
        }
        self.oldest.push_back(header.session);
        if self.oldest.len() > MAX_SESSIONS
            && let Some(session) = self.oldest.pop_front()
        {
            self.sessions.remove(&session);
        }
    }

    /// The name of a number; its hex digits if the name is unknown.
    #[must_use]
    pub(crate) fn name(&self, id: NameId) -> Option<String> {
        (id != 0).then(|| self.names.names.get(&id).cloned().unwrap_or_else(|| format!("{id:016x}")))
    }

    /// A user with its name.
    pub(crate) fn owner(&mut self, uid: u32) -> Owner {
        let name = self.users.entry(uid).or_insert_with(|| accounts::user_name(uid).ok().flatten());
        Owner { uid, name: name.clone() }
    }

    /// An account that the command line of the process names and that is not `allowed`, if any.
    #[must_use]
    pub(crate) fn account_beyond(&self, tgid: u32, allowed: &[String]) -> Option<String> {
        self.processes.find(tgid).and_then(|process| account::beyond(&process.argv, allowed))
    }

    /// The names of a place and a service.
    #[must_use]
    pub(crate) fn place(&self, zone: NameId, gateway: NameId, service: NameId) -> Place {
        Place { zone: self.name(zone), gateway: self.name(gateway), service: self.name(service) }
    }

    fn session_start(&self, exec: &Exec) -> Body {
        let index = exec.rule.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        Body::SessionStart(index.and_then(|index| self.names.rules.get(index).cloned()))
    }

    fn tool(&self, exec: &Exec) -> Body {
        let code = u16::try_from(exec.rule).unwrap_or_default();
        let verdict = match (code & TOOL_REFUSE != 0, code & TOOL_OBSERVE != 0) {
            (true, _) => Verdict::Block,
            _ if code & TOOL_OFF != 0 => Verdict::Off,
            (false, true) => Verdict::Observe,
            (false, false) => Verdict::Report,
        };
        let rule = rule_of(code).and_then(|rule| self.names.tools.get(rule));
        Body::Exec(Tool {
            verdict,
            tool: rule.map(|rule| rule.tool.clone()),
            shape: rule.and_then(|rule| rule.shape.clone()),
            attack: rule.map(|rule| rule.attack.clone()).unwrap_or_default(),
            repeats: 0,
        })
    }

    fn verdict(&self, record: &VerdictRecord) -> Body {
        let place = self.place(record.zone, record.gateway, record.service);
        let service = place.service.or_else(|| named_service(record));
        let receipt = self.names.receipts.get(&record.serial).cloned().unwrap_or_else(|| format!("#{}", record.serial));
        let has_address = about_no_address(record).is_none();
        Body::Verdict(Box::new(Attempt {
            verdict: Some(Verdict::of_code(record.verdict)),
            reason: Some(Why::of_code(record.reason)),
            destination: has_address.then(|| destination(record)),
            place: Place { service, ..place },
            receipt: (record.serial != 0).then_some(receipt),
            hook: Some(hook_name(record.hook, &self.backend)),
            repeats: record.repeats,
            attack: techniques(record).iter().filter(|_| has_address).map(|id| (*id).to_owned()).collect(),
            ..Attempt::default()
        }))
    }

    /// A session with its agent and owner.
    pub(crate) fn session(&mut self, session: u64, agent: NameId, owner: u32) -> Who {
        Who { session: Some(session), agent: self.name(agent), owner: Some(self.owner(owner)), ..Who::default() }
    }

    /// An event about a marked process, with its session and what it runs.
    pub(crate) fn subject(&mut self, header: &RecordHeader, body: Body, now: Now) -> Event {
        let process = match self.processes.find(header.tgid) {
            Some(found) => Process {
                pid: header.tgid,
                parents: self.processes.parents(&found),
                executable: (!found.executable.is_empty()).then_some(found.executable),
                argv: mask::mask(&found.argv),
                cgroup: found.cgroup,
            },
            None => Process { pid: header.tgid, ..Process::default() },
        };
        let backend = Some(self.backend.clone());
        let who = Who { process: Some(process), backend, ..self.session(header.session, header.agent, header.owner) };
        let event = Event::new(body, &self.host, now.wall_of(header.time_ns)).about(who);
        Event { canary: header.flags & TASK_CANARY != 0, ..event }
    }
}

/// The name of an IP protocol number.
#[must_use]
pub(crate) fn transport_text(number: u8) -> String {
    transport::name(number).map_or_else(|| number.to_string(), str::to_owned)
}

/// The number of an IP protocol's name, as [`transport_text`] writes it.
#[must_use]
pub(crate) fn transport_number(text: &str) -> Option<u8> {
    transport::from_name(text).or_else(|| text.parse().ok())
}

/// The kernel's form of an address.
#[must_use]
pub(crate) fn addr_of(address: IpAddr) -> Addr {
    match address {
        IpAddr::V4(v4) => Addr::v4(v4.octets()),
        IpAddr::V6(v6) => Addr::v6(v6.octets()),
    }
}

/// An address in the kernel's form; IPv4 becomes an IPv4 address.
#[must_use]
pub(crate) fn address(addr: Addr) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(addr.octets())).to_canonical()
}

/// What an attempt was about, if it had no address.
fn about_no_address(record: &VerdictRecord) -> Option<String> {
    match Reason::from_code(record.reason)? {
        Reason::SocketFamily => Some(format!("address family {}", record.port)),
        Reason::Malformed => Some("a packet that asks to go on elsewhere, or whose headers cannot be read".to_owned()),
        _ => None,
    }
}

fn hook_name(code: u8, backend: &str) -> String {
    at_backend(Hook::from_code(code).map_or("unknown", Hook::name), backend)
}

/// The name of a hook at a backend. The programs of LSM hooks are also attached to the functions that call the hooks, and write the same
/// records there.
pub(super) fn at_backend(name: &str, backend: &str) -> String {
    match name.strip_prefix("lsm_") {
        Some(function) if backend == Backend::FmodRet.name() => format!("{backend}_{function}"),
        _ => name.to_owned(),
    }
}

fn destination(record: &VerdictRecord) -> Destination {
    Destination { address: address(record.addr), port: has_ports(record.transport).then_some(record.port), transport: record.transport }
}

/// The service that usually listens on the port, if a zone or gateway protects it.
fn named_service(record: &VerdictRecord) -> Option<String> {
    let protected = record.zone != 0 || record.gateway != 0;
    let name = crate::services::service_name(record.transport, record.port);
    name.filter(|_| protected && record.reason != Reason::SocketFamily as u8).map(str::to_owned)
}

/// ATT&CK for ICS techniques that one refused attempt shows by itself. It shows a remote service of OT (T0886) if it went to an OT service,
/// a gateway or a login port. It shows use of accounts (T0859) only if the receipt did not cover the login. One attempt shows no scan.
fn techniques(record: &VerdictRecord) -> &'static [&'static str] {
    if record.verdict == pp_common::decide::Verdict::Allow as u8 {
        return &[];
    }
    if let Some(rule) = super::behaviour::rule_of(record) {
        return super::behaviour::techniques(rule);
    }
    if record.reason == Reason::CredentialScope as u8 {
        return &["T0886", "T0859"];
    }
    let login = is_login_port(record.transport, record.port);
    if record.service != 0 || record.gateway != 0 || login || named_service(record).is_some() { &["T0886"] } else { &[] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::record::tests::verdict_bytes;

    fn built(verdict: u8, reason: u8) -> Event {
        let mut builder = Builder::new("eng-ws-12", "cgroup");
        builder.names.names.insert(7, "claude-code".into());
        builder.names.names.insert(11, "plant-7".into());
        let record = Record::from_bytes(&verdict_bytes(verdict, reason)).unwrap();
        builder.build(&record, Now { boot_ns: 6_000_000, wall_ms: 1_000 }).unwrap()
    }

    #[test]
    fn refusal_names_session_agent_destination_and_place() {
        let event = built(1, 10);
        assert_eq!(event.time_ms, 999);
        assert_eq!((event.who.session, event.who.agent.as_deref()), (Some(0xabc), Some("claude-code")));
        let attempt = event.attempt().unwrap();
        assert_eq!((attempt.place.zone.as_deref(), attempt.place.service.as_deref()), (Some("plant-7"), Some("000000000000000d")));
        assert_eq!(attempt.destination.unwrap().to_string(), "10.20.4.7:502/tcp");
        assert_eq!((attempt.verdict, attempt.reason), (Some(Verdict::Block), Some(Why::Decided(Reason::NoReceipt))));
        assert_eq!(attempt.attack, ["T0886"]);
    }

    #[test]
    fn unknown_codes_are_reported_as_unknown() {
        let event = built(77, 99);
        let attempt = event.attempt().unwrap();
        assert_eq!((attempt.verdict, attempt.reason), (Some(Verdict::Unknown), Some(Why::Unknown)));
    }

    #[test]
    fn allowed_attempt_names_no_technique_and_no_request() {
        let event = built(0, 1);
        assert!(event.attempt().unwrap().attack.is_empty() && !event.is_requestable());
    }

    #[test]
    fn every_transport_is_read_as_it_is_written() {
        for number in 0..=u8::MAX {
            assert_eq!(transport_number(&transport_text(number)), Some(number));
        }
        assert_eq!(transport_number("quic"), None);
    }
}
