use super::*;
use std::time::Duration;

fn source(name: &str, text: &str) -> Source {
    Source { name: name.to_owned(), text: text.to_owned() }
}

fn load(text: &str) -> Result<Config, ConfigError> {
    Config::from_sources(vec![source("policy.toml", text)])
}

/// The line of the error in a text, and the error.
fn wrong(text: &str) -> (usize, Problem) {
    match load(text) {
        Err(ConfigError::Invalid { at, problem }) => (at.line, *problem),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted: {text}"),
    }
}

fn says(text: &str) -> String {
    load(text).map(|_| String::new()).unwrap_or_else(|error| error.to_string())
}

const FULL: &str = r#"
host = "eng-ws-12"
tenant = "acme-water"
mode = "enforce"
require = "enforcing"
any_user = true
max_tasks = 4096
[[zone]]
name = "plant-7"
networks = ["10.20.0.0/16", "fd00:20::/32"]
approvals = 1
[[zone]]
name = "cell-3"
networks = ["10.20.4.0/24"]
mode = "observe"
[[gateway]]
name = "vnode-east"
address = "10.30.4.9"
ports = [8443, 443, 443]
[services]
enable = ["modbus", "opc-ua"]
exempt = ["127.0.0.0/8"]
replace = true
[[authority]]
key_id = "shift-lead-2026"
decider = "user:shift-lead@acme.example"
zones = ["plant-7"]
gateways = ["vnode-east"]
services = ["modbus"]
max_ttl = "8h"
"#;

#[test]
fn every_key_of_this_build_is_read() {
    let config = load(FULL).unwrap();
    assert_eq!(config.host.as_deref(), Some("eng-ws-12"));
    assert_eq!(config.require, Some(Require::Enforcing));
    assert!(config.any_user);
    assert_eq!(config.max_tasks, 4096);
    assert_eq!(config.zones[1].mode, Mode::Observe);
    assert_eq!(config.gateways[0].ports, [443, 8443]);
    let enabled: Vec<_> = config.services.enabled.iter().map(|row| row.name).collect();
    assert_eq!(enabled, ["modbus", "opc-ua"]);
    let authority = config.authorities.iter().find(|authority| authority.key_id == "shift-lead-2026").unwrap();
    assert_eq!(authority.max_ttl, Duration::from_secs(8 * 3600));
    assert!(config.knows_agent("claude-code"));
    assert!(config.notes.is_empty(), "{:?}", config.notes);
    assert!(config.warnings.is_empty() && config.adds.is_none(), "{:?} {:?}", config.warnings, config.adds);
}

#[test]
fn gateway_limits_its_flows() {
    let gateway = "[[gateway]]\nname = 'g'\naddress = '10.0.0.1'\n";
    assert_eq!(load(gateway).unwrap().gateways[0].limits, Limits::default());
    let own = load(&format!("{gateway}max_turns = 7\nmax_bytes_out = 1000\n")).unwrap();
    assert_eq!(own.gateways[0].limits, Limits { max_turns: 7, max_bytes_out: 1_000, pad: 0 });
    for bad in ["max_turns = 0", "max_turns = -1", "max_turns = 4294967296", "max_bytes_out = 0"] {
        assert!(load(&format!("{gateway}{bad}\n")).is_err(), "{bad}");
    }
}

#[test]
fn what_policy_show_prints_is_the_same_policy() {
    let config = load(FULL).unwrap();
    let text = config.to_toml();
    let again = load(&text).unwrap();
    assert_eq!(again.to_toml(), text);
    assert_eq!(again.zones, config.zones);
    assert_eq!(again.gateways, config.gateways);
    assert_eq!(again.services, config.services);
    assert_eq!(again.authorities, config.authorities);
    assert_eq!(again.agents, config.agents);
    assert_eq!(again.identity, config.identity);
    assert_eq!(again.off, config.off);
}

#[test]
fn shipped_policy_is_the_built_in_one() {
    let shipped = load(include_str!("../../../dist/policy.toml")).unwrap();
    assert_eq!(shipped.to_toml(), Config::builtin().unwrap().to_toml());
}

#[test]
fn empty_policy_enforces_the_shipped_services_and_says_that_it_sets_nothing() {
    let config = load("").unwrap();
    assert_eq!(config.mode, Mode::Enforce);
    assert_eq!(config.services, Services::default());
    assert!(config.notes.iter().any(|note| note.contains("policy.toml is empty")));
    assert_eq!(config.to_toml(), Config::builtin().unwrap().to_toml());
}

#[test]
fn unknown_key_is_named_with_line_and_nearest_key() {
    for (text, line, found, near) in [
        ("host = 'h'\nmods = 'enforce'", 2, "mods", Some("mode")),
        ("[[zone]]\nname = 'a'\nnetwork = ['10.0.0.0/8']", 3, "network", Some("networks")),
        ("[[gateway]]\nadress = '10.0.0.1'", 2, "adress", Some("address")),
        ("[services]\nenabled = []", 2, "enabled", Some("enable")),
        ("[[agent]]\nname = 'a'\n\nexecs = []", 4, "execs", Some("exec")),
        ("[[authority]]\nkeyid = 'k'", 2, "keyid", Some("key_id")),
        ("[zebra]", 1, "zebra", None),
    ] {
        let (at, problem) = wrong(text);
        let Problem::Unknown { what: "key", found: f, nearest, known } = problem else {
            panic!("{text}: {problem}");
        };
        assert_eq!((at, f.as_str(), nearest.as_deref()), (line, found, near), "{text}");
        assert!(!known.is_empty());
    }
    let text = says("[[zone]]\nname = 'a'\nnetwork = ['10.0.0.0/8']");
    assert_eq!(text, "policy.toml:3: unknown key network; did you mean networks?");
}

#[test]
fn unknown_value_service_zone_and_gateway_are_named_with_the_nearest() {
    let authority = |list: &str| {
        format!(
            "[[zone]]\nname = 'plant-7'\nnetworks = ['10.0.0.0/8']\n[[authority]]\nkey_id = 'k'\n\
             decider = 'user:a'\nmax_ttl = '1h'\n{list}"
        )
    };
    for (text, line, nearest) in [
        ("mode = 'enforced'".to_owned(), 1, "enforce"),
        ("[services]\nenable = ['modbus',\n'opcua']".to_owned(), 3, "opc-ua"),
        (authority("zones = ['plant7']"), 8, "plant-7"),
        (authority("services = ['modbuz']"), 8, "modbus"),
    ] {
        let (at, problem) = wrong(&text);
        let Problem::Unknown { nearest: Some(found), .. } = &problem else {
            panic!("{problem}");
        };
        assert_eq!((at, found.as_str()), (line, nearest));
    }
    let (_, problem) = wrong(&authority("gateways = ['nowhere']"));
    assert_eq!(problem.to_string(), "unknown gateway nowhere; known are this-host");
}

#[test]
fn bad_networks_are_refused_with_what_to_write() {
    for (network, advice) in [
        ("10.20.0.0", "write 10.20.0.0/32"),
        ("10.20.4.7/16", "write 10.20.0.0/16"),
        ("fd00:20::1/32", "write fd00:20::/32"),
        ("10.20.0.0/33", "is no network"),
        ("plant", "is no network"),
        ("", "is no network"),
    ] {
        let text = format!("[[zone]]\nname = 'a'\nnetworks = [\n'{network}']");
        let (line, problem) = wrong(&text);
        assert_eq!(line, 4);
        assert!(problem.to_string().contains(advice), "{problem}");
    }
}

#[test]
fn equal_prefixes_in_two_zones_are_an_error_in_whatever_form() {
    for (one, two) in [("10.20.0.0/16", "10.20.0.0/16"), ("10.20.0.0/16", "::ffff:10.20.0.0/112"), ("fd00:20::/32", "fd00:0020:0::/32")] {
        let (line, problem) = wrong(&format!("[[zone]]\nname = 'a'\nnetworks = ['{one}']\n[[zone]]\nname = 'b'\nnetworks = ['{two}']"));
        assert_eq!(line, 6);
        let Problem::NetworkTwice { zone, first, .. } = problem else { panic!("{problem}") };
        assert_eq!((zone.as_str(), first.line), ("a", 3));
    }
}

#[test]
fn two_tables_of_one_name_in_one_file_are_an_error() {
    let zone = "[[zone]]\nname = 'a'\nnetworks = ['10.0.0.0/8']\n";
    let gateway = "[[gateway]]\nname = 'g'\naddress = '10.0.0.1'\n";
    let agent = "[[agent]]\nname = 'x'\nexec = ['x']\n";
    let delegate = "[[delegate]]\nname = 'd'\nport = [1]\naction = 'refuse'\n";
    let authority = "[[authority]]\nkey_id = 'k'\ndecider = 'user:a'\nmax_ttl = '1h'\n";
    for text in [zone, gateway, agent, delegate, authority] {
        let (_, problem) = wrong(&format!("{text}{text}"));
        assert!(matches!(problem, Problem::Duplicate { .. }), "{problem}");
    }
    let (_, problem) = wrong(&format!("{gateway}{}", gateway.replace("'g'", "'h'")));
    assert!(matches!(problem, Problem::AddressTwice { .. }), "{problem}");
    // The authority of a key is written in one place.
    let files = vec![source("policy.toml", authority), source("policy.d/10.toml", authority)];
    let error = Config::from_sources(files).unwrap_err().to_string();
    assert_eq!(error, "policy.d/10.toml:1: authority k: defined twice, first at policy.toml:1; rename one or join them");
}

#[test]
fn a_value_set_in_two_files_names_both() {
    let files = vec![source("policy.toml", "host = 'a'"), source("policy.d/50.toml", "\nhost = 'a'")];
    let error = Config::from_sources(files).unwrap_err().to_string();
    assert_eq!(error, "policy.d/50.toml:2: host: set twice, first at policy.toml:1; keep one of the two");
}

#[test]
fn lists_and_tables_of_drop_ins_are_joined() {
    let files = vec![
        source("policy.toml", "[services]\nenable = ['modbus']\nreplace = true"),
        source("policy.d/a.toml", "[services]\nenable = ['mqtt', 'modbus']\nmode = 'observe'"),
        source("policy.d/b.toml", "[[zone]]\nname = 'a'\nnetworks = ['10.0.0.0/8']"),
    ];
    let config = Config::from_sources(files).unwrap();
    let enabled: Vec<_> = config.services.enabled.iter().map(|row| row.name).collect();
    assert_eq!(enabled, ["modbus", "mqtt"]);
    assert_eq!(config.services.mode, Mode::Observe);
    assert_eq!(config.zones.len(), 1);
}

#[test]
fn what_this_build_does_not_enforce_is_refused_never_ignored() {
    let zone = "[[zone]]\nname = 'a'\nnetworks = ['10.0.0.0/8']\n";
    let authority = "[[authority]]\nkey_id = 'k'\ndecider = 'user:a'\nmax_ttl = '1h'\n";
    for (text, key) in [
        (format!("{zone}approvals = 2"), "approvals"),
        (format!("{authority}issuer = true"), "issuer"),
        (format!("{authority}deciders = ['user:b']"), "deciders"),
        (format!("{authority}methods = ['session_reauth']"), "methods"),
        ("[[agent]]\nname = 'a'\nallow_root = false".to_owned(), "allow_root"),
    ] {
        let (_, problem) = wrong(&text);
        let Problem::NotEnforced { key: found, .. } = problem else { panic!("{problem}") };
        assert_eq!(found, key);
    }
    for absent in ["issuer = false", "deciders = []", "methods = []"] {
        load(&format!("{authority}{absent}")).unwrap();
    }
}

#[test]
fn names_must_be_plain_and_short() {
    let long = "x".repeat(65);
    for name in ["", long.as_str(), "a\\u001bb", "a\\u202eb", " a"] {
        let text = format!("[[zone]]\nname = \"{name}\"\nnetworks = ['10.0.0.0/8']");
        let (line, problem) = wrong(&text);
        assert_eq!(line, 2);
        assert!(matches!(problem, Problem::BadName { .. }), "{problem}");
        assert!(!problem.to_string().contains('\u{1b}'));
    }
    load(&format!("[[zone]]\nname = '{}'\nnetworks = ['10.0.0.0/8']", &long[1..])).unwrap();
}

#[test]
fn values_out_of_range_are_refused() {
    let gateway = "[[gateway]]\nname = 'g'\n";
    let authority = "[[authority]]\nkey_id = 'k'\n";
    for text in [
        format!("{gateway}address = '10.0.0.1'\nports = [0]"),
        format!("{gateway}address = '10.0.0.1'\nports = [65536]"),
        format!("{gateway}address = '10.0.0.0/24'"),
        format!("{gateway}address = '0.0.0.0'"),
        format!("{gateway}address = '224.0.0.1'"),
        format!("{authority}decider = 'shift-lead'\nmax_ttl = '1h'"),
        format!("{authority}decider = 'user:'\nmax_ttl = '1h'"),
        format!("{authority}decider = 'user:a'\nmax_ttl = 'soon'"),
        format!("{authority}decider = 'user:a'\nmax_ttl = '0s'"),
        format!("{authority}decider = 'user:a'\nmax_ttl = '-1h'"),
        "max_tasks = 0".to_owned(),
        "max_tasks = -1".to_owned(),
        "max_tasks = 99999999999".to_owned(),
    ] {
        let (_, problem) = wrong(&text);
        assert!(matches!(problem, Problem::BadValue { .. }), "{problem}");
    }
}

#[test]
fn tables_without_what_they_need_are_refused() {
    for (text, key) in [
        ("[[zone]]\nnetworks = ['10.0.0.0/8']", "name"),
        ("[[zone]]\nname = 'a'", "networks"),
        ("[[zone]]\nname = 'a'\nnetworks = []", "networks"),
        ("[[gateway]]\nname = 'a'", "address"),
        ("[[agent]]\nexec = ['a']", "name"),
        ("[[authority]]\nkey_id = 'a'\nmax_ttl = '1h'", "decider"),
        ("[[authority]]\nkey_id = 'a'\ndecider = 'user:a'", "max_ttl"),
    ] {
        let (line, problem) = wrong(text);
        let Problem::Missing { key: found, .. } = problem else { panic!("{problem}") };
        assert_eq!((line, found), (1, key));
    }
}

#[test]
fn text_that_is_no_toml_is_refused_with_its_line() {
    for (text, line) in [("host = 'a'\nmode = ", 2), ("[[zone", 1), ("\n\nhost = 3", 3)] {
        let (at, problem) = wrong(text);
        assert!(matches!(problem, Problem::Syntax(_)), "{problem}");
        assert_eq!(at, line, "{text}");
    }
    let (_, problem) = wrong("host = 'a'\nhost = 'b'");
    assert_eq!(problem.to_string(), "host: duplicate key");
}

#[test]
fn error_of_the_parser_names_the_key() {
    for (text, line, key) in [
        ("mode = 5", 1, "mode: "),
        ("host = 3", 1, "host: "),
        ("host = 'a'\n\n[services]\nmode = ['enforce']", 4, "services.mode: "),
        ("[[zone]]\nname = 'a'\n[[zone]]\nname = 'b'\nnetworks = [\n  '10.0.0.0/8',\n  7,\n]", 7, "zone.networks: "),
        ("[[zone]]\nname = 'a'\nnetworks = '10.0.0.0/8'", 3, "zone.networks: "),
        ("zone = 1", 1, "zone: "),
        ("[[zone]]\nname = 'a'\nname = 'b'", 3, "name: duplicate key"),
        ("[exec]\n[exec]", 2, "exec: duplicate key"),
        // What is no TOML has no key.
        ("host = 'a'\nmode = ", 2, ""),
    ] {
        let (at, problem) = wrong(text);
        let said = problem.to_string();
        assert!(at == line && said.starts_with(key) && !said.is_empty(), "{text}: {at}: {said}");
    }
}

#[test]
fn enforce_inside_an_observing_host_is_refused_because_it_would_not_hold() {
    let text = "mode = 'observe'\n[[zone]]\nname = 'a'\nnetworks = ['10.0.0.0/8']\nmode = 'enforce'";
    let (line, problem) = wrong(text);
    assert_eq!(line, 5);
    assert!(matches!(problem, Problem::ModeWithoutEffect { .. }), "{problem}");
    let config = load(&text.replace("mode = 'enforce'", "")).unwrap();
    assert_eq!(config.zones[0].mode, Mode::Observe);
}

#[test]
fn rules_that_would_mark_the_host_itself_are_refused_by_name() {
    for (rule, marks) in [
        ("exec = ['sshd']", "sshd"),
        ("exec = ['ss?d']", "sshd"),
        ("exec = ['/usr/sbin/*']", "/usr/sbin/"),
        ("exec = ['*/systemd']", "systemd"),
        ("exec = ['pp-agent']", "pp-agent"),
        ("exec = ['*']", "every program"),
        ("exec = ['*/*']", "every program"),
        ("exec = ['/*']", "every program"),
        ("script = ['*']", "every script"),
        ("module = ['*']", "every script"),
        ("exec = ['bash']", "every script"),
        ("exec = ['/bin/bash']", "every script"),
        ("exec = ['*/zsh']", "every script"),
        ("exec = ['fish']", "every script"),
        ("exec = ['python3']", "every script"),
        ("exec = ['perl*']", "every script"),
        ("user = ['root']", "root"),
        ("user = ['0']", "PID 1"),
        ("cgroup = ['/*']", "/init.scope"),
        ("cgroup = ['/system.slice']", "/system.slice"),
        ("cgroup = ['*/ssh.service']", "ssh.service"),
        ("unit = ['*.service']", "ssh.service"),
        ("unit = ['init.scope']", "/init.scope"),
        ("unit = ['user.slice']", "/user.slice"),
    ] {
        let text = format!("[[agent]]\nname = 'greedy'\n{rule}");
        let (line, problem) = wrong(&text);
        assert_eq!(line, 3);
        assert!(matches!(problem, Problem::Danger { .. }), "{rule}: {problem}");
        let said = problem.to_string();
        assert!(said.contains("greedy") && said.contains(marks), "{rule}: {said}");
    }
}

#[test]
fn rules_that_cannot_be_compiled_are_refused_by_name() {
    for rule in [
        "exec = ['']",
        "exec = ['claude/versions/*']",
        "exec = ['*a*b*c*d*e*f*g*']",
        "exec = [\"a\\u0000b\"]",
        "cgroup = ['agents.slice']",
        "unit = ['a/b.service']",
    ] {
        let (line, problem) = wrong(&format!("[[agent]]\nname = 'broken'\n{rule}"));
        assert_eq!(line, 3);
        assert!(matches!(problem, Problem::Rule(_)), "{rule}: {problem}");
        assert!(problem.to_string().contains("broken"), "{problem}");
    }
    let (_, problem) = wrong("[[agent]]\nname = 'a'\nuser = ['no-such-user-zq7']");
    assert!(problem.to_string().starts_with("user: no-such-user-zq7; no such user"), "{problem}");
}

#[test]
fn every_name_of_policy_has_its_number() {
    let config = load(FULL).unwrap();
    for name in ["plant-7", "vnode-east", "modbus", "mqtt", "claude-code"] {
        assert_eq!(config.identity.name(crate::name::name_id(name)), Some(name));
    }
}

#[test]
fn hardware_addresses_of_places_are_read_one_or_several_and_each_belongs_to_one() {
    let gateway = |mac: &str| format!("[[gateway]]\nname = \"g\"\naddress = \"10.30.4.9\"\nmac = {mac}\n");
    let zone = "[[zone]]\nname = \"z\"\nnetworks = [\"10.20.0.0/16\"]\nmac = [\"00:1d:9c:a1:b2:c3\", \"00-1D-9C-A1-B2-C4\"]\n";
    let config = load(&format!("{}{zone}", gateway("\"00:1d:9c:00:00:01\""))).unwrap();
    assert_eq!((config.gateways[0].macs.len(), config.zones[0].macs.len()), (1, 2));
    let shown = load(&config.to_toml()).unwrap();
    assert_eq!((&shown.gateways, &shown.zones), (&config.gateways, &config.zones));
    for mac in ["\"\"", "\"ff:ff:ff:ff:ff:ff\"", "7", "[7]", "[\"00:1d:9c:00:00\"]"] {
        let (line, problem) = wrong(&gateway(mac));
        assert!(line == 4 && matches!(problem, Problem::BadValue { key: "mac", .. }), "{mac}: {problem}");
    }
    let twice = format!("{}{zone}", gateway("\"00:1d:9c:a1:b2:c3\""));
    assert!(says(&twice).contains("mac 00:1d:9c:a1:b2:c3: belongs to zone z too"), "{}", says(&twice));
}

#[path = "adds_tests.rs"]
mod adds;
#[path = "files_tests.rs"]
mod files;
