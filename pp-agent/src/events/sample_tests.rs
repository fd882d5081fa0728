//! Events that take several records: a session with what it runs, and tripped behaviour rules with what the session did before, against
//! `tests/golden/events`. And that the golden files leave no kind and no member of events out.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::path::Path;

use pp_common::abi::TASK_CANARY;
use pp_common::behaviour::{History, Pair, Rule, what};
use pp_common::decide::{Reason, Verdict, transport};
use pp_common::dest::Addr;
use pp_common::record::{Hook, RecordHeader, TaskRecord, VerdictRecord, kind};
use pp_common::tools::{TOOL_OBSERVE, TOOL_REFUSE};
use serde_json::Value;

use super::build::Builder;
use super::journal::sentence;
use super::record::{Exec, Record};
use super::{Event, Kind, behaviour};
use crate::clock::Now;
use crate::golden::golden;
use crate::tools::ToolRule;

/// Greater than any pid of a kernel (`PID_MAX_LIMIT` is 2^22), so that nothing is found out from this machine's `/proc`.
const PID: u32 = 5_000_001;
/// No user has this uid.
const NOBODYS_UID: u32 = 4_000_000_123;
/// Names for numbers.
const AGENT: u64 = 7;
const ZONE: u64 = 11;
const NOW: Now = Now { boot_ns: 6_000_000, wall_ms: 1_795_000_000_000 };

fn builder(backend: &str) -> Builder {
    let mut builder = Builder::new("eng-ws-12", backend);
    builder.names.names.extend([(AGENT, "claude-code"), (ZONE, "plant-7")].map(|(id, name)| (id, name.to_owned())));
    builder.names.rules = vec!["claude-code exec".to_owned()];
    let tool = |tool: &str, shape: Option<&str>, attack: &str| ToolRule {
        tool: tool.to_owned(),
        shape: shape.map(str::to_owned),
        attack: vec![attack.to_owned()],
    };
    builder.names.tools = vec![tool("nmap", None, "T1046"), tool("hydra", Some("-P"), "T1110")];
    builder
}

fn header(kind: u32, flags: u32) -> RecordHeader {
    RecordHeader { kind, flags, time_ns: 5_000_000, session: 0xabc, agent: AGENT, owner: 0, tgid: PID }
}

/// An attempt at the PLC's Modbus port.
fn verdict(verdict: Verdict, reason: Reason) -> VerdictRecord {
    VerdictRecord {
        header: header(kind::VERDICT, 0),
        addr: Addr::v4([10, 20, 4, 7]),
        zone: ZONE,
        generation: 2,
        port: 502,
        transport: transport::TCP,
        verdict: verdict as u8,
        reason: reason as u8,
        hook: Hook::Connect as u8,
        ..VerdictRecord::default()
    }
}

fn exec(kind: u32, rule: u32, path: &str, argv: &[&str]) -> Exec {
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    Exec { header: header(kind, 0), parent_tgid: PID + 1, rule, path: path.to_owned(), argv }
}

/// A session from its first program to its end, with a child that runs another one; a canary's; a task that found no room.
fn sessions() -> Vec<Record> {
    let command = ["claude", "mysql", "--password=secret", "https://me:secret@10.20.4.7/"];
    let start = exec(kind::SESSION_START, 1, "/usr/local/bin/claude", &command);
    let without_rule = Exec { rule: 0, header: RecordHeader { owner: NOBODYS_UID, ..start.header }, ..start.clone() };
    let canary = Exec { header: header(kind::SESSION_START, TASK_CANARY), ..start.clone() };
    let child = RecordHeader { tgid: PID + 2, ..header(kind::FORK, 0) };
    let of = |header: RecordHeader, kind: u32| TaskRecord { header: RecordHeader { kind, ..header }, parent_tgid: PID, pad: 0 };
    vec![
        Record::SessionStart(start),
        Record::SessionStart(without_rule),
        Record::SessionStart(canary),
        Record::Fork(of(child, kind::FORK)),
        Record::Exec(Exec { header: child, ..exec(kind::EXEC, 0, "/usr/bin/python3", &["python3", "poll.py", ""]) }),
        Record::Verdict(VerdictRecord {
            header: RecordHeader { kind: kind::VERDICT, ..child },
            ..verdict(Verdict::Block, Reason::NoReceipt)
        }),
        Record::Exit(of(header(kind::EXIT, 0), kind::EXIT)),
        Record::Exit(of(child, kind::EXIT)),
        Record::TableFull(of(header(kind::TABLE_FULL, 0), kind::TABLE_FULL)),
    ]
}

fn tools() -> Vec<Record> {
    let tool = |rule: u32| Record::Tool(exec(kind::TOOL, rule, "/usr/bin/nmap", &["nmap", "-sS", "10.20.0.0/16"]));
    let canary = Exec { header: header(kind::TOOL, TASK_CANARY), ..exec(kind::TOOL, 1, "/usr/bin/nmap", &["nmap"]) };
    let (refuse, observe) = (u32::from(TOOL_REFUSE), u32::from(TOOL_OBSERVE));
    vec![tool(1), tool(observe | 1), tool(refuse | 1), tool(refuse | 2), tool(refuse | 3), Record::Tool(canary)]
}

/// What the first refusal of every behaviour rule says, refused and let through, with and without what the session did before.
fn rules() -> Vec<Event> {
    let reasons = Reason::ALL.iter().filter(|reason| Rule::of(**reason).is_some());
    let mut events = Vec::new();
    for reason in reasons {
        for code in [Verdict::Block, Verdict::Observe] {
            let tripped = VerdictRecord {
                addr: Addr::v4([10, 50, 3, 9]),
                zone: 0,
                port: 22,
                count: 21,
                limit: 20,
                window_s: 60,
                cool_down_s: 600,
                ..verdict(code, *reason)
            };
            let wide =
                VerdictRecord { addr: Addr::v6(Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, 9).octets()), transport: 1, port: 0, ..tripped };
            let in_zone = VerdictRecord { zone: ZONE, ..tripped };
            events.extend([(tripped, true), (tripped, false), (wide, true), (in_zone, true)].map(|(record, known)| {
                let mut event = builder("cgroup").build(&Record::Verdict(record), NOW).unwrap();
                let (trip, detail) = behaviour::trip(&record, known.then(history).as_deref()).unwrap();
                event.attempt_mut().trip = Some(trip);
                event.detail(detail)
            }));
        }
    }
    events
}

/// A session that reached for hosts of a network one after the other, and for one host's ports.
fn history() -> Box<History> {
    let mut history = Box::new(History::EMPTY);
    let hosts = (1..=12_u8).map(|host| (Addr::v4([10, 50, 3, host]), 22_u16));
    let ports = (20..=30_u16).map(|port| (Addr::v4([10, 50, 3, 9]), port));
    for (pair, (index, (addr, port))) in history.pairs.iter_mut().zip((1..).zip(hosts.chain(ports))) {
        *pair = Pair { addr, seen_ns: index, what: what(transport::TCP, port), pad: 0 };
        history.used += 1;
    }
    history
}

/// As they are before the hub numbers them, one a line with a number put in, and below each what it says to people.
fn text(events: impl IntoIterator<Item = Event>) -> String {
    let line = |(id, event): (u64, Event)| {
        let json = serde_json::to_string(&event).unwrap().replacen("\"id\":0,", &format!("\"id\":{id},"), 1);
        format!("{json}\n  {}\n", sentence(&event))
    };
    (1..).zip(events).map(line).collect()
}

#[test]
fn events_of_a_session_and_what_it_runs_are_as_the_golden_file_has_them() {
    let mut builder = builder("lsm");
    let records = [sessions(), tools()].concat();
    let events: Vec<Event> = records.iter().filter_map(|record| builder.build(record, NOW)).collect();
    golden("events/sessions.txt", &text(events)).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn tripped_rate_rules_are_as_in_the_golden_file() {
    golden("events/behaviour.txt", &text(rules())).unwrap_or_else(|error| panic!("{error}"));
}

/// The members of events in all golden files, with the kinds.
fn members() -> (BTreeSet<String>, BTreeSet<String>) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = [
        top.join("tests/golden/events.txt"),
        top.join("../tests/golden/events/sessions.txt"),
        top.join("../tests/golden/events/behaviour.txt"),
    ];
    let (mut kinds, mut members) = (BTreeSet::new(), BTreeSet::new());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for line in text.lines().filter(|line| line.starts_with('{')) {
            let event: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
            kinds.insert(event["kind"].as_str().unwrap().to_owned());
            members.extend(event.into_iter().map(|(name, _)| name));
        }
    }
    (kinds, members)
}

/// The kind that comes after this one. A new one does not compile without a place here, and then fails without a sample.
const fn next(kind: Kind) -> Option<Kind> {
    match kind {
        Kind::Verdict => Some(Kind::SessionStart),
        Kind::SessionStart => Some(Kind::SessionEnd),
        Kind::SessionEnd => Some(Kind::Receipt),
        Kind::Receipt => Some(Kind::Revocation),
        Kind::Revocation => Some(Kind::Lost),
        Kind::Lost => Some(Kind::Posture),
        Kind::Posture => Some(Kind::Policy),
        Kind::Policy => Some(Kind::Protection),
        Kind::Protection => Some(Kind::Canary),
        Kind::Canary => Some(Kind::FlowEnded),
        Kind::FlowEnded => Some(Kind::Exec),
        Kind::Exec => Some(Kind::Tamper),
        Kind::Tamper => Some(Kind::Neighbour),
        Kind::Neighbour => None,
    }
}

#[test]
fn every_kind_of_event_has_a_sample() {
    let kinds: BTreeSet<String> =
        std::iter::successors(Some(Kind::Verdict), |kind| next(*kind)).map(|kind| kind.name().to_owned()).collect();
    assert_eq!(members().0, kinds);
}

/// The members of events, in alphabetical order.
const MEMBERS: [&str; 37] = [
    "agent",
    "argv",
    "attack",
    "backend",
    "budget",
    "cgroup",
    "command_line_account",
    "cool_down_s",
    "count",
    "destination",
    "detail",
    "executable",
    "exempt",
    "gateway",
    "hook",
    "host",
    "id",
    "kind",
    "limit",
    "object",
    "owner",
    "parents",
    "pid",
    "reason",
    "receipt",
    "repeats",
    "request",
    "rule",
    "service",
    "session",
    "shape",
    "targets",
    "time",
    "tool",
    "verdict",
    "window_s",
    "zone",
];

#[test]
fn every_member_of_an_event_has_a_sample() {
    let found = members().1;
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), MEMBERS);
}
