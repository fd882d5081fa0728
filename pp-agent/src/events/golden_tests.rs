//! Every kind, verdict and reason as one line of JSON and one line for people, compared with `tests/golden/events.txt`.
//!
//! `PP_GOLDEN=write` writes the file again.

use std::fmt::Write as _;

use pp_common::decide::{self, Reason};
use pp_common::dest::Addr;
use pp_common::protect::{GuardRecord, TEXT_LEN, Tamper};
use pp_common::record::{RecordHeader, TaskRecord, VerdictRecord};
use pp_common::tools::{TOOL_OBSERVE, TOOL_OFF, TOOL_REFUSE};

use super::build::Builder;
use super::record::{Exec, Record};
use super::{Event, Kind, NeighbourChange, PolicyChange, PostureChange, ProtectionChange, Verdict, behaviour, journal};
use crate::clock::Now;
use crate::tools::ToolRule;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/events.txt");
/// Greater than any process id.
const TGID: u32 = 0x7fff_fff0;
const NOW: Now = Now { boot_ns: 6_000_000, wall_ms: 1_790_000_000_000 };

/// Events of the daemon itself, in their written form.
const HEAD: &str = r#""time":"2026-09-21T14:13:20.000Z","host":"eng-ws-12""#;
const WHO: &str = r#""session":"0000000000000abc","agent":"codex","owner":{"uid":0,"name":"root"}"#;
const REFUSALS: [&str; 41] = [
    "malformed",
    "payload_hash_mismatch",
    "key_unknown",
    "key_revoked",
    "signature_invalid",
    "canonicalization_unsupported",
    "canonical_mismatch",
    "payload_malformed",
    "not_approved",
    "demo_scope",
    "ids_disagree",
    "copies_disagree",
    "decider_not_a_person",
    "no_authority",
    "decider_not_allowed",
    "wrong_tenant",
    "expired",
    "created_in_future",
    "request_not_canonical",
    "input_hash_mismatch",
    "agent_ids_disagree",
    "other_action",
    "term_not_enforced",
    "missing_term",
    "term_invalid",
    "host_not_named",
    "window_over_max_ttl",
    "window_empty",
    "zone_not_allowed",
    "gateway_not_allowed",
    "service_not_allowed",
    "target_not_protected",
    "target_too_wide",
    "not_a_revocation",
    "user_unknown",
    "redeemed",
    "revoked",
    "idem_key_used",
    "clock_behind",
    "grants_full",
    "state_unavailable",
];

const REQUEST: &str = ",\"request\":\"pp-agent receipt request --from-event 7\"";

fn header(flags: u32) -> RecordHeader {
    RecordHeader { kind: 0, flags, time_ns: 5_000_000, session: 0xabc, agent: 7, owner: 0, tgid: TGID }
}

fn builder(backend: &str) -> Builder {
    let mut builder = Builder::new("eng-ws-12", backend);
    for (id, name) in [(7, "claude-code"), (11, "plant-7"), (12, "n3uron"), (13, "modbus")] {
        builder.names.names.insert(id, name.into());
    }
    builder.names.receipts.insert(5, "r-5".into());
    builder.names.rules = vec!["claude-code exec".into()];
    builder.names.tools = vec![ToolRule { tool: "nmap".into(), shape: Some("-sS".into()), attack: vec!["T1046".into()] }];
    builder
}

fn exec(flags: u32, rule: u32) -> Exec {
    let argv = ["nmap", "-p", "1-99", "--password=x", "a\u{1b}b"].map(str::to_owned).to_vec();
    Exec { header: header(flags), parent_tgid: 0, rule, path: "/usr/bin/nmap".into(), argv }
}

fn attempt(verdict: u8, reason: u8, hook: u8) -> VerdictRecord {
    VerdictRecord {
        header: header(0),
        addr: Addr::v4([10, 20, 4, 7]),
        port: 502,
        transport: 6,
        verdict,
        reason,
        hook,
        repeats: 3,
        ..VerdictRecord::default()
    }
}

fn guard(flags: u32, what: u8, hook: u8, pid: u32, text: &[u8]) -> GuardRecord {
    let mut field = [0; TEXT_LEN];
    field[..text.len()].copy_from_slice(text);
    GuardRecord {
        header: header(flags),
        ino: 9,
        repeats: u64::from(what),
        repeats_id: 0,
        dev: 5,
        target_tgid: pid,
        number: 15,
        what,
        hook,
        verdict: decide::Verdict::Block as u8,
        pad: 0,
        text: field,
    }
}

/// Events of kernel records.
fn of_records() -> Vec<Event> {
    let canary = pp_common::abi::TASK_CANARY;
    let mut plain = builder("lsm");
    let mut events = Vec::new();
    let mut emit = |builder: &mut Builder, record: &Record| events.extend(builder.build(record, NOW));
    for flags in [0, canary] {
        emit(&mut plain, &Record::SessionStart(exec(flags, 1)));
        for code in [0, TOOL_REFUSE, TOOL_OBSERVE, TOOL_REFUSE | 9, TOOL_OFF | 1] {
            emit(&mut plain, &Record::Tool(exec(flags, u32::from(code))));
        }
        emit(&mut plain, &Record::TableFull(TaskRecord { header: header(flags), parent_tgid: 1, pad: 0 }));
        for reason in Reason::ALL {
            for verdict in [decide::Verdict::Allow, decide::Verdict::Block, decide::Verdict::Observe, decide::Verdict::Off] {
                let mut record = attempt(verdict as u8, *reason as u8, 6);
                record.header.flags = flags;
                (record.zone, record.service, record.serial) = (11, 13, 5);
                emit(&mut plain, &Record::Verdict(record));
            }
        }
        for what in Tamper::ALL {
            emit(&mut plain, &Record::Tamper(guard(flags, *what as u8, *what as u8, 77, b"keys.json")));
            emit(&mut plain, &Record::Delegate(guard(flags, *what as u8, 30, 0, b"\0abstract")));
            emit(&mut plain, &Record::Delegate(guard(flags, *what as u8, 31, 77, b"")));
        }
        emit(&mut plain, &Record::Exit(TaskRecord { header: header(flags), parent_tgid: 0, pad: 0 }));
    }
    for backend in ["cgroup", "fmod_ret"] {
        let mut builder = builder(backend);
        for hook in 0..=12 {
            emit(&mut builder, &Record::Verdict(attempt(1, 10, hook)));
        }
        for hook in 0..=32 {
            emit(&mut builder, &Record::Tamper(guard(0, 1, hook, 0, b"")));
        }
    }
    for (transport, port) in [(6, 22), (6, 20_000), (17, 0), (1, 0), (58, 0), (132, 102), (136, 7), (47, 0)] {
        let ports = [Addr::v4([10, 20, 4, 7]), Addr::v6([0xfd; 16])];
        for addr in ports {
            emit(&mut plain, &Record::Verdict(VerdictRecord { addr, transport, port, gateway: 12, ..attempt(1, 17, 1) }));
            emit(&mut plain, &Record::Verdict(VerdictRecord { addr, transport, port, zone: 99, serial: 6, ..attempt(0, 1, 1) }));
            emit(&mut plain, &Record::Verdict(VerdictRecord { addr, transport, port, ..attempt(1, 31, 4) }));
        }
    }
    emit(&mut plain, &Record::Verdict(attempt(77, 99, 200)));
    emit(&mut plain, &Record::Tamper(guard(0, 99, 99, 0, b"")));
    for reason in 50..55 {
        for (verdict, zone) in [(1, 0), (2, 0), (1, 11)] {
            let tripped = VerdictRecord { count: 26, limit: 25, window_s: 300, cool_down_s: 900, zone, ..attempt(verdict, reason, 1) };
            let mut event = plain.build(&Record::Verdict(tripped), NOW).unwrap();
            let (trip, detail) = behaviour::trip(&tripped, None).unwrap();
            event.attempt_mut().trip = Some(trip);
            events.push(event.detail(detail));
        }
    }
    events
}

/// Events of the daemon itself.
fn of_the_daemon() -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |kind: &str, rest: String| lines.push(format!("{{\"id\":7,{HEAD},\"kind\":\"{kind}\",{rest}}}"));
    let to = r#""destination":{"address":"10.20.4.7","port":502,"transport":"tcp"}"#;
    for kind in ["verdict", "canary"] {
        for reason in Reason::ALL {
            let rest = r#""service":"modbus","zone":"plant-7","repeats":7,"detail":"attempts that were counted since the last event of this pair""#;
            add(kind, format!("\"verdict\":\"block\",\"reason\":\"{}\",{WHO},{to},{rest}", reason.name()));
        }
        let nowhere = r#""repeats":7,"detail":"attempts that were counted since the last event of this pair""#;
        add(kind, format!("\"verdict\":\"observe\",\"reason\":\"scan_pairs\",\"session\":\"0000000000000abc\",{nowhere}"));
        add(kind, format!("\"session\":\"0000000000000abc\",{nowhere}"));
    }
    for kind in ["tamper", "verdict", "canary"] {
        for what in Tamper::ALL {
            let rest = r#""hook":"lsm_file_open","repeats":7,"detail":"attempts that were counted since the last event of this kind""#;
            add(kind, format!("\"verdict\":\"block\",\"reason\":\"{}\",{WHO},{rest}", what.name()));
        }
    }
    for reason in Reason::ALL {
        let rest = format!(
            "{WHO},\"pid\":42,\"executable\":\"/usr/bin/curl\",{to},\"gateway\":\"n3uron\",\"hook\":\"daemon\",\"backend\":\"lsm\",\"detail\":\"the program was told\""
        );
        add("flow_ended", format!("\"verdict\":\"block\",\"reason\":\"{}\",\"receipt\":\"r-5\",{rest}", reason.name()));
    }
    let budget = r#""budget":{"connections":3,"max_connections":9,"attempts":1,"max_attempts":4,"accounts":["svc"]}"#;
    let unlimited = r#""budget":{"connections":3,"attempts":0}"#;
    for (verdict, reason, budget) in [("allow", "receipt", unlimited), ("allow", "receipt", budget), ("block", "credential_scope", budget)]
    {
        let process = r#""pid":42,"parents":[{"pid":41,"executable":"/usr/bin/bash"},{"pid":1,"executable":""}],"executable":"/usr/bin/ssh","argv":["ssh","admin@10.20.4.7"],"command_line_account":"admin","cgroup":"/user.slice""#;
        let rest = r#""zone":"plant-7","hook":"connect","backend":"cgroup","attack":["T0886"]"#;
        let request = if verdict == "block" { ",\"request\":\"pp-agent receipt request --from-event 7\"" } else { "" };
        add(
            "verdict",
            format!("\"verdict\":\"{verdict}\",\"reason\":\"{reason}\",\"receipt\":\"r-5\",{budget},{WHO},{process},{to},{rest}{request}"),
        );
    }
    add("session_start", format!("\"rule\":\"found running\",{WHO},\"pid\":42,\"backend\":\"lsm\""));
    add("session_end", format!("\"reason\":\"released\",{WHO}"));
    add("receipt", r#""reason":"registered","receipt":"r-5","agent":"codex""#.to_owned());
    add(
        "receipt",
        r#""reason":"registered","receipt":"r-5","agent":"codx","detail":"agent codx: no rule of identity names it""#.to_owned(),
    );
    add("receipt", r#""reason":"receipt_expired","receipt":"r-5""#.to_owned());
    for code in REFUSALS {
        add("receipt", format!("\"reason\":\"{code}\",\"detail\":\"not registered: receipt r-5: it may not\""));
    }
    add("revocation", r#""reason":"receipt_revoked","receipt":"r-5","detail":"work is done""#.to_owned());
    for posture in ["enforcing", "partial", "observe", "open"] {
        add("posture", format!("\"reason\":\"{posture}\",\"backend\":\"lsm\",\"detail\":\"packet; delegate\""));
    }
    for reason in ["hook_detached", "hook_replaced", "hook_unpinned", "hook_unknown", "foreign_program"] {
        add("posture", format!("\"reason\":\"{reason}\",\"hook\":\"connect4\",\"detail\":\"it was put back\""));
    }
    for reason in ["daemon_killed", "state_unavailable", "state_restored", "state_went_back", "state_accepted"] {
        add("posture", format!("\"reason\":\"{reason}\",\"detail\":\"2 receipts are known again\""));
    }
    for reason in ["files", "built_in", "last_good", "reloaded", "refused"] {
        add("policy", format!("\"reason\":\"{reason}\",\"detail\":\"daemon started\""));
    }
    add("policy", r#""reason":"reloaded""#.to_owned());
    for reason in ["off", "on", "over"] {
        add("protection", format!("\"reason\":\"{reason}\",\"detail\":\"until pp-agent on, since 08:00, by root (uid 0): pump 3\""));
    }
    for reason in ["learned", "expired", "forgotten", "conflict", "full"] {
        let to = r#""destination":{"address":"fe80::7","transport":"any"}"#;
        add(
            "neighbour",
            format!("\"reason\":\"{reason}\",{to},\"zone\":\"plant-7\",\"gateway\":\"n3uron\",\"detail\":\"02:00:00:00:00:07 on eth0\""),
        );
    }
    for head in ["", r#""verdict":"block","#] {
        add("lost", format!("{head}\"count\":9,\"detail\":\"the ring buffer was full\""));
        let not_stored = "\"reason\":\"not_stored\",\"count\":9,\"detail\":\"events that were told but could not be stored\"";
        add("lost", format!("{head}{not_stored}"));
    }
    lines
}

#[test]
fn every_event_is_as_in_the_golden_file() {
    let mut text = String::new();
    let mut emit = |event: &Event| {
        let json = serde_json::to_string(event).unwrap();
        let again: Event = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
        assert_eq!(serde_json::to_string(&again).unwrap(), json, "what was stored is shown differently");
        assert!(again.written.is_none(), "this version does not know all of {json}");
        let level = if journal::is_warning(event) { "warning" } else { "notice" };
        let sentence = journal::sentence(event);
        assert_eq!(journal::sentence(&again), sentence);
        writeln!(text, "{json}\n  {level}: {sentence}\n  request: {}", event.is_requestable()).unwrap();
    };
    for (event, number) in of_records().into_iter().zip(1..) {
        emit(&Event { id: number, ..event });
    }
    for line in of_the_daemon() {
        let event: Event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        // The hub has not numbered it, so most lines have no request.
        let event = Event { written: None, ..event };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(json.replace(REQUEST, ""), line.replace(REQUEST, ""));
        emit(&event);
    }
    let names = |member: &str, names: Vec<&'static str>| {
        for name in names {
            assert!(text.contains(&format!("\"{member}\":\"{name}\"")), "no event has the {member} {name}");
        }
    };
    names("kind", Kind::ALL.iter().map(|one| one.name()).collect());
    names("verdict", Verdict::ALL.iter().map(|one| one.name()).collect());
    names("reason", Reason::ALL.iter().map(|one| one.name()).collect());
    names("reason", Tamper::ALL.iter().map(|one| one.name()).collect());
    names("reason", PolicyChange::ALL.iter().map(|one| one.name()).collect());
    names("reason", PostureChange::ALL.iter().map(|one| one.name()).collect());
    names("reason", ProtectionChange::ALL.iter().map(|one| one.name()).collect());
    names("reason", NeighbourChange::ALL.iter().map(|one| one.name()).collect());
    if std::env::var_os("PP_GOLDEN").is_some_and(|how| how == "write") {
        std::fs::write(FILE, &text).unwrap();
    }
    let golden = std::fs::read_to_string(FILE).unwrap();
    for (number, (now, before)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(now, before, "line {} of {FILE}", number + 1);
    }
    assert_eq!(text.len(), golden.len(), "{FILE}");
}
