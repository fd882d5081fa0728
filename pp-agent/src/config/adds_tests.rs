//! Policy adds to what is shipped. Only explicit keys remove something, and what they remove is reported.

use super::*;
use crate::delegates::Action;
use crate::name::name_id;

/// The policy of these files.
fn files(texts: &[&str]) -> Result<Config, ConfigError> {
    let sources = texts.iter().enumerate().map(|(number, text)| source(&format!("policy.d/{number}0.toml"), text));
    Config::from_sources(sources.collect())
}

fn off(config: &Config) -> Vec<&str> {
    config.off.iter().map(|off| off.text.as_str()).collect()
}

fn marks(config: &Config, path: &str) -> Option<&'static str> {
    let found = config.identity.matches(path.as_bytes(), &[b"x"])?;
    ["claude-code", "codex", "house-bot"].into_iter().find(|name| name_id(name) == found)
}

#[test]
fn nothing_is_off_as_shipped() {
    for config in [Config::builtin().unwrap(), load(include_str!("../../../dist/policy.toml")).unwrap()] {
        assert!(config.off.is_empty() && config.warnings.is_empty() && config.adds.is_none(), "{:?} {:?}", config.off, config.adds);
    }
}

#[test]
fn table_of_a_shipped_agent_adds_to_its_rules() {
    let config = load("[[agent]]\nname = 'claude-code'\nunit = ['claude-bg.service']\nexec = ['my-claude']").unwrap();
    assert_eq!(config.agents.iter().filter(|agent| agent.name == "claude-code").count(), 1);
    assert_eq!(marks(&config, "/usr/bin/claude"), Some("claude-code"));
    assert_eq!(marks(&config, "/usr/bin/my-claude"), Some("claude-code"));
    assert!(config.cgroup_rules.iter().any(|rule| rule.agent == name_id("claude-code")), "the unit is not governed");
    assert!(config.off.is_empty(), "{:?}", config.off);
    let adds = config.adds.unwrap();
    assert_eq!(adds, "agent claude-code add to what is shipped; replace = true in a table makes what it lists stand alone");
}

#[test]
fn shipped_rules_of_an_agent_go_where_that_is_written_and_are_named() {
    let config = load("[[agent]]\nname = 'codex'\nexec = ['my-codex']\nreplace = true").unwrap();
    assert_eq!((marks(&config, "/usr/bin/codex"), marks(&config, "/usr/bin/my-codex")), (None, Some("codex")));
    assert_eq!(off(&config), ["agent codex: none of its shipped rules holds; a start of it is governed by yours alone"]);
    assert_eq!(config.off[0].names, ["codex"]);
    // The agent has no rules left, but its name is known.
    let config = load("[[agent]]\nname = 'codex'\nreplace = true").unwrap();
    assert!(config.knows_agent("codex") && marks(&config, "/usr/bin/codex").is_none());
    assert_eq!(off(&config), ["agent codex: none of its shipped rules holds, and no other does: only pp-agent run and adopt govern it"]);
    let config = load("[[agent]]\nname = 'claude-code'\ndisable = ['*/claude/versions/*']").unwrap();
    assert_eq!(marks(&config, "/usr/bin/claude"), Some("claude-code"));
    assert_eq!(off(&config), ["agent claude-code: these shipped rules of it do not hold: exec */claude/versions/*"]);
    let (line, problem) = wrong("[[agent]]\nname = 'claude-code'\ndisable = ['claud']");
    assert_eq!((line, problem.to_string().as_str()), (3, "unknown shipped entry claud; did you mean claude?"));
}

#[test]
fn another_file_goes_on_adding_where_one_replaces() {
    let config = files(&[
        "[[agent]]\nname = 'codex'\nexec = ['my-codex']\nreplace = true\n[services]\nenable = ['modbus']\nreplace = true",
        "[[agent]]\nname = 'codex'\nexec = ['our-codex']\n[services]\nenable = ['mqtt']\nexempt = ['10.9.0.0/16']",
    ])
    .unwrap();
    assert_eq!(
        (marks(&config, "/b/codex"), marks(&config, "/b/my-codex"), marks(&config, "/b/our-codex")),
        (None, Some("codex"), Some("codex"))
    );
    let enabled: Vec<_> = config.services.enabled.iter().map(|row| row.name).collect();
    assert_eq!(enabled, ["modbus", "mqtt"]);
    assert_eq!(config.services.exempt.len(), 3);
    // The other way round too: a list that replaces does not remove what another file adds.
    let config = files(&["[services]\nenable = ['mqtt']", "[services]\nexempt = []\nreplace = true"]).unwrap();
    assert!(config.services.on(6, 502).is_some() && config.services.on(6, 1883).is_some() && config.services.exempt.is_empty());
}

#[test]
fn services_add_and_are_taken_away_by_name() {
    let has = |text: &str, port| load(text).unwrap().services.on(6, port).map(|row| row.name);
    assert_eq!(has("", 1883), None);
    for text in ["enable = ['mqtt']", "enable = ['default', 'mqtt']", "enable = ['mqtt']\ndisable = ['dnp3']"] {
        let text = format!("[services]\n{text}");
        assert_eq!((has(&text, 1883), has(&text, 502)), (Some("mqtt"), Some("modbus")), "{text}");
    }
    assert_eq!(has("[services]\nenable = []", 502), Some("modbus"));
    assert_eq!(has("[services]\nenable = ['*']", 10001), Some("genisys"));
    let config = load("[services]\nenable = ['*']\ndisable = ['dnp3', 'bacnet', 'mqtt']").unwrap();
    assert_eq!(config.services.on(6, 20000), None);
    assert_eq!(off(&config), ["services dnp3, bacnet: not protected outside zones ([services])"]);
    let config = load("[services]\nenable = []\nreplace = true").unwrap();
    assert_eq!(config.off[0].names.len(), Services::default().enabled.len());
    assert_eq!(load(&config.to_toml()).unwrap().services, config.services);
}

#[test]
fn exempt_networks_add_to_loopback_and_are_named() {
    let config = load("[services]\nexempt = ['10.40.0.0/16']").unwrap();
    let exempt: Vec<String> = config.services.exempt.iter().map(ToString::to_string).collect();
    assert_eq!(exempt, ["127.0.0.0/8", "::1/128", "10.40.0.0/16"]);
    assert_eq!(off(&config), ["[services] exempt: no service is protected in 10.40.0.0/16"]);
    let config = load("[services]\nexempt = []\nreplace = true").unwrap();
    assert!(config.services.exempt.is_empty() && config.off.is_empty());
    assert_eq!(load(&config.to_toml()).unwrap().services, config.services);
}

#[test]
fn what_a_list_adds_to_is_said_once_where_it_was_written_to_narrow() {
    let adds = |text: &str| load(text).unwrap().adds;
    let said =
        adds("[services]\nenable = ['modbus']\nexempt = ['10.0.0.0/8']\n[[delegate]]\nname = 'docker'\npath = ['/run/d.sock']").unwrap();
    assert!(said.starts_with("[services] enable, [services] exempt, delegate docker add to what is shipped; replace = true"), "{said}");
    for text in [
        "[services]\nenable = ['default', 'mqtt']",
        "[services]\nenable = ['modbus']\nreplace = true",
        "[[agent]]\nname = 'x'\nexec = ['x']",
        "[[delegate]]\nname = 'tmux'\naction = 'allow'",
    ] {
        assert_eq!(adds(text), None, "{text}");
    }
}

#[test]
fn delegates_add_to_the_shipped_rows_and_every_weaker_one_is_named() {
    let find = |config: &Config, name: &str| config.delegates.iter().find(|delegate| delegate.name == name).unwrap().clone();
    let config = load("[[delegate]]\nname = 'docker'\npath = ['/run/mine.sock']").unwrap();
    let docker = find(&config, "docker");
    assert_eq!(docker.action, Action::Refuse);
    assert!(docker.paths.contains(&"/run/mine.sock".to_owned()) && docker.paths.contains(&"/run/docker.sock".to_owned()));
    assert!(config.off.is_empty(), "{:?}", config.off);
    for (text, said) in [
        ("name = 'tmux'\naction = 'allow'", "delegate tmux: allowed to sessions ([[delegate]] action)"),
        ("name = 'docker'\naction = 'refuse-root'", "delegate docker: refused to sessions of root alone ([[delegate]] action)"),
        ("name = 'docker-tcp'\ndisable = ['2376']", "delegate docker-tcp: not refused by 2376"),
        ("name = 'screen'\nreplace = true\nlistener = ['screen']", "delegate screen: not refused by SCREEN"),
        (
            "name = 'ours'\npath = ['/run/docker.sock']\naction = 'allow'",
            "delegate docker: allowed to sessions by delegate ours: /run/docker.sock",
        ),
        (
            "name = 'ours'\npath = ['/run/*/docker.sock', '/run/d*']\naction = 'allow'",
            "delegate docker: allowed to sessions by delegate ours: /run/docker.sock",
        ),
        (
            "name = 'ours'\npath = ['/run/user/*/dock*']\naction = 'refuse-root'",
            "delegate docker: refused to sessions of root alone by delegate ours: /run/user/*/docker.sock",
        ),
        // Another path of the same socket. Only the host knows that it is the same.
        (
            "name = 'ours'\npath = ['/proc/1/root/run/docker.sock']\naction = 'allow'",
            "delegate ours: allowed to sessions: /proc/1/root/run/docker.sock",
        ),
        (
            "name = 'ours'\nlistener = ['tmux: server']\naction = 'refuse-root'",
            "delegate tmux: refused to sessions of root alone by delegate ours: tmux: server",
        ),
    ] {
        let config = load(&format!("[[delegate]]\n{text}")).unwrap();
        assert_eq!(off(&config).first(), Some(&said), "{text}");
        assert_eq!(load(&config.to_toml()).unwrap().delegates, config.delegates, "{text}");
    }
    for text in ["name = 'ours'\npath = ['/run/docker.sock']\naction = 'refuse'", "name = 'system-bus'\naction = 'refuse'"] {
        assert!(load(&format!("[[delegate]]\n{text}")).unwrap().off.is_empty(), "{text}");
    }
}

#[test]
fn everything_else_that_weakens_what_is_shipped_is_named() {
    let zone = "[[zone]]\nname = 'cell'\nnetworks = ['10.20.4.0/24']\n";
    let gateway = "[[gateway]]\nname = 'g'\naddress = '10.30.4.9'\n";
    for (text, said) in [
        ("mode = 'observe'".to_owned(), "mode = \"observe\": nothing is refused but tampering"),
        ("any_user = true".to_owned(), "any_user = true: receipts need not name the users they hold for"),
        ("[services]\nmode = 'observe'".to_owned(), "[services] mode = \"observe\": no connection is refused for its service"),
        ("[exec]\nmode = 'observe'".to_owned(), "[exec] mode = \"observe\": no tool is refused"),
        (
            "[exec]\nallow = ['nmap ** localhost']".to_owned(),
            "tool nmap: neither refused nor reported as `nmap ** localhost` ([exec] allow)",
        ),
        ("[exec]\nallow = ['nmap']".to_owned(), "tool nmap: neither refused nor reported, whatever its arguments ([exec])"),
        ("[exec]\ndisable = ['nmap']".to_owned(), "tool nmap: neither refused nor reported, whatever its arguments ([exec])"),
        ("[behaviour]\nmode = 'observe'".to_owned(), "[behaviour] mode = \"observe\": no scan and no credential spray is refused"),
        ("[behaviour]\npairs = 101".to_owned(), "behaviour.pairs = 101: shipped is 100"),
        ("[behaviour]\ncool_down = '1m'".to_owned(), "behaviour.cool_down = 60s: shipped is 900s"),
        ("[behaviour]\nexempt = ['10.1.2.0/24:22']".to_owned(), "[behaviour] exempt: scans and logins are not judged at 10.1.2.0/24:22"),
        (format!("{zone}mode = 'observe'"), "zone cell only observes: shipped services are not refused in 10.20.4.0/24 either"),
        (format!("{gateway}mode = 'observe'"), "gateway g only observes: connections to 10.30.4.9 are not refused"),
        (format!("{gateway}max_turns = 301"), "gateway g: max_turns = 301, shipped is 300"),
    ] {
        let config = load(&text).unwrap();
        assert_eq!(off(&config), [said], "{text}");
    }
    for text in ["[behaviour]\npairs = 99\ncool_down = '1h'\ninternal = ['192.0.2.0/24']\ncount_own = true", zone, gateway] {
        assert!(load(text).unwrap().off.is_empty(), "{text}");
    }
}

#[test]
fn pattern_that_can_match_nothing_is_a_warning_with_its_line() {
    let warnings = |rule: &str| load(&format!("[[agent]]\nname = 'house-bot'\n{rule}")).unwrap().warnings;
    for (rule, said) in [
        ("cgroup = ['/']", "cgroup \"/\" marks nothing: the root has every process of the host"),
        ("cgroup = ['/bots/']", "cgroup \"/bots/\" marks nothing: the path of a cgroup ends without a /"),
        ("unit = ['foo']", "unit \"foo\" marks nothing: the name of a unit ends in .service, .scope or .slice"),
        ("unit = ['foo@*.timer']", "unit \"foo@*.timer\" marks nothing: "),
        ("unit = ['ervice']", "unit \"ervice\" marks nothing: "),
    ] {
        let found = warnings(rule);
        assert!(found.len() == 1 && found[0].starts_with(&format!("policy.toml:3: agent house-bot: {said}")), "{rule}: {found:?}");
    }
    for rule in ["cgroup = ['/bots', '/bots/*', '*/bots.slice']", "unit = ['foo.service', 'foo@*', 'foo*ice', 'foo.scop?', 'foo.slice']"] {
        assert_eq!(warnings(rule), Vec::<String>::new(), "{rule}");
    }
}

#[test]
fn agent_without_a_rule_is_a_note() {
    let notes = |text: &str| -> Vec<String> { load(text).unwrap().notes.into_iter().filter(|note| note.contains("agent ")).collect() };
    for rules in ["", "exec = []"] {
        let said = "policy.toml:1: agent house-bot: no rule marks it; only pp-agent run and adopt make its sessions";
        assert_eq!(notes(&format!("[[agent]]\nname = 'house-bot'\n{rules}")), [said]);
    }
    for rules in ["name = 'house-bot'\nexec = ['bot']", "name = 'house-bot'\nuser = ['9']", "name = 'codex'\nunit = ['c.service']"] {
        assert_eq!(notes(&format!("[[agent]]\n{rules}")), Vec::<String>::new(), "{rules}");
    }
}

#[test]
fn name_close_to_a_shipped_agents_is_a_warning_with_that_name() {
    let warnings = |name: &str| load(&format!("\n[[agent]]\nname = '{name}'\nexec = ['x']")).unwrap().warnings;
    for (name, near) in [
        ("claude_code", "claude-code"),
        ("cluade-code", "claude-code"),
        ("Claude-Code", "claude-code"),
        ("claudecode", "claude-code"),
        ("claude", "claude-code"),
        ("gemini", "gemini-cli"),
        ("aidre", "aider"),
    ] {
        let said = format!("policy.toml:2: agent {name}: is another agent than the shipped {near}; write {near} if that one is meant");
        assert_eq!(warnings(name), [said], "{name}");
    }
    for name in ["house-bot", "docker-containers", "plant-assistant", "codex", "claude-code", "editor", "tap", "pip", "app"] {
        assert_eq!(warnings(name), Vec::<String>::new(), "{name}");
    }
    // Errors about the name also have the nearest one.
    let (_, problem) = wrong("[[agent]]\nname = 'claude_code'\nexec = ['x']\nreplace = true");
    assert_eq!(problem.to_string(), "unknown shipped agent claude_code; did you mean claude-code?");
}

#[test]
fn agent_of_a_receipt_that_policy_does_not_know_is_reported_with_the_nearest() {
    let config = load("[[agent]]\nname = 'plant-assistant'\nexec = ['x']").unwrap();
    let says = |name: &str| config.unknown_agent(name).map(|unknown| unknown.to_string());
    assert_eq!(says("plant-assistant"), None);
    assert_eq!(says("codex"), None);
    assert_eq!(says("claude_code").unwrap(), "agent claude_code: no agent of the policy has this name; did you mean claude-code?");
    assert_eq!(
        says("plant_assistent").unwrap(),
        "agent plant_assistent: no agent of the policy has this name; did you mean plant-assistant?"
    );
    assert!(says("zebra").unwrap().ends_with("only pp-agent run and adopt with this --agent make such sessions"));
}

#[test]
fn table_that_changes_nothing_is_an_error() {
    let zone = "[[zone]]\nname = 'a'\nnetworks = ['10.0.0.0/8']";
    let gateway = "[[gateway]]\nname = 'g'\naddress = '10.0.0.1'";
    let agent = "[[agent]]\nname = 'x'\nexec = ['x']";
    let cases: [&[&str]; 9] = [
        &["[[agent]]\nname = 'claude-code'"],
        &["[[agent]]\nname = 'claude-code'\nreplace = false"],
        &["[[agent]]\nname = 'claude-code'\nexec = []\nunit = []"],
        &["[[delegate]]\nname = 'docker'"],
        &["[services]\nreplace = true"],
        &[agent, "[[agent]]\nname = 'x'"],
        &[zone, "[[zone]]\nname = 'a'"],
        &[gateway, "[[gateway]]\nname = 'g'"],
        &[gateway, "[[gateway]]\nname = 'g'\nports = []"],
    ];
    for texts in cases {
        match files(texts) {
            Err(ConfigError::Invalid { problem, .. }) => {
                assert!(matches!(*problem, Problem::ChangesNothing { .. }), "{texts:?}: {problem}")
            }
            Err(other) => panic!("{texts:?}: {other}"),
            Ok(_) => panic!("{texts:?}: accepted"),
        }
    }
    // A new name alone has an effect, since `run --agent` can use it.
    assert!(load("[[agent]]\nname = 'house-bot'").unwrap().knows_agent("house-bot"));
    let (_, problem) = wrong("[services]\nenable = ['mqtt']\ndisable = ['mqtt']");
    assert_eq!(problem.to_string(), "service mqtt: is enabled at policy.toml:2 and disabled here; keep one of the two");
}

#[test]
fn tables_of_one_name_in_several_files_are_joined_in_whatever_order() {
    let zone = "[[zone]]\nname = 'plant'\nnetworks = ['10.20.0.0/16']";
    let more = "[[zone]]\nname = 'plant'\nnetworks = ['10.21.0.0/16', '10.20.0.0/16']\nmode = 'observe'";
    let gateway = "[[gateway]]\nname = 'g'\naddress = '10.30.4.9'\nports = [443]";
    let ports = "[[gateway]]\nname = 'g'\nports = [8443]\nmax_turns = 7";
    for texts in [[zone, more, gateway, ports], [more, zone, ports, gateway]] {
        let config = files(&texts).unwrap();
        let (zone, gateway) = (&config.zones[0], &config.gateways[0]);
        assert_eq!((config.zones.len(), zone.networks.len(), zone.mode), (1, 2, Mode::Observe));
        assert_eq!((config.gateways.len(), gateway.ports.as_slice(), gateway.limits.max_turns), (1, [443, 8443].as_slice(), 7));
        assert_eq!(load(&config.to_toml()).unwrap().gateways, config.gateways);
    }
    // A list of ports adds to every port, and does not narrow it.
    assert!(files(&["[[gateway]]\nname = 'g'\naddress = '10.30.4.9'", ports]).unwrap().gateways[0].ports.is_empty());
    let agents = files(&["[[agent]]\nname = 'house-bot'\nexec = ['house-bot']", "[[agent]]\nname = 'house-bot'\nunit = ['bot.service']"]);
    let agents = agents.unwrap();
    assert_eq!((marks(&agents, "/b/house-bot"), agents.cgroup_rules.len()), (Some("house-bot"), 1));
}

#[test]
fn single_values_of_a_table_in_two_files_are_an_error_that_names_both() {
    let delegate = |action: &str| format!("[[delegate]]\nname = 'tmux'\naction = '{action}'");
    let cases = [
        [
            "[[zone]]\nname = 'a'\nnetworks = ['10.0.0.0/8']\nmode = 'observe'".to_owned(),
            "[[zone]]\nname = 'a'\nmode = 'enforce'".to_owned(),
        ],
        ["[[gateway]]\nname = 'g'\naddress = '10.0.0.1'".to_owned(), "[[gateway]]\nname = 'g'\naddress = '10.0.0.2'".to_owned()],
        [delegate("allow"), delegate("refuse")],
    ];
    for [one, two] in cases {
        let error = files(&[&one, &two]).unwrap_err().to_string();
        assert!(error.contains("policy.d/10.toml:3") && error.contains("set twice, first at policy.d/00.toml:"), "{error}");
    }
}
