use super::*;
use crate::config::Config;
use crate::config::Source;

fn load(text: &str) -> Result<Config, ConfigError> {
    Config::from_sources(vec![Source { name: "policy.toml".into(), text: text.into() }])
}

fn says(text: &str) -> String {
    load(text).map(|_| String::new()).unwrap_or_else(|error| error.to_string())
}

#[test]
fn without_a_table_the_rules_are_in_force() {
    let config = load("").unwrap();
    assert_eq!(config.behaviour, Behaviour::default());
    assert_eq!(config.behaviour.mode, Mode::Enforce);
}

#[test]
fn every_key_is_read_and_shown_again() {
    let config = load(
        "[behaviour]\nmode = 'observe'\ninternal = ['192.0.2.0/24']\n\
         exempt = ['10.1.2.0/24:443', '10.9.0.0/16', '[fd00:1::/64]:22', 'fd00:2::/64', '10.1.3.0/24:8000-8100']\n\
         count_own = true\ncool_down = '20m'\ntarget_per_minute = 11\ntarget_per_half_hour = 31\nssh_per_minute = 21\n\
         ssh_per_half_hour = 61\nlogin_hosts = 6\nlogin_targets = 16\nports_per_host = 16\nhosts_per_port = 26\npairs = 101\n",
    )
    .unwrap();
    let rules = &config.behaviour;
    assert_eq!((rules.mode, rules.count_own, rules.internal.len()), (Mode::Observe, true, 1));
    let exempt: Vec<String> = rules.exempt.iter().map(ToString::to_string).collect();
    assert_eq!(exempt, ["10.1.2.0/24:443", "10.9.0.0/16", "[fd00:1::/64]:22", "fd00:2::/64", "10.1.3.0/24:8000-8100"]);
    let wanted = Limits {
        cool_down_ns: 1_200_000_000_000,
        flags: LIMITS_OBSERVE | LIMITS_COUNT_OWN,
        target_short: 11,
        target_long: 31,
        ssh_short: 21,
        ssh_long: 61,
        login_hosts: 6,
        login_targets: 16,
        host_ports: 16,
        port_hosts: 26,
        pairs: 101,
    };
    assert_eq!(rules.limits, wanted);
    assert_eq!(load(&config.to_toml()).unwrap().behaviour, *rules);
}

#[test]
fn rules_of_a_host_that_observes_observe() {
    assert_eq!(load("mode = 'observe'").unwrap().behaviour.limits.flags, LIMITS_OBSERVE);
    assert!(says("mode = 'observe'\n[behaviour]\nmode = 'enforce'").starts_with("policy.toml:3: mode: behaviour says enforce"));
}

#[test]
fn lists_of_drop_ins_are_joined_and_numbers_are_set_once() {
    let file = |name: &str, text: &str| Source { name: name.into(), text: text.into() };
    let a = file("a.toml", "[behaviour]\nexempt = ['10.1.0.0/16']\npairs = 90");
    let b = file("b.toml", "[behaviour]\nexempt = ['10.1.0.0/16', '10.2.0.0/16']");
    assert_eq!(Config::from_sources(vec![a.clone(), b]).unwrap().behaviour.exempt.len(), 2);
    let again = file("b.toml", "[behaviour]\npairs = 91");
    let error = Config::from_sources(vec![a, again]).unwrap_err().to_string();
    assert_eq!(error, "b.toml:2: behaviour.pairs: set twice, first at a.toml:3; keep one of the two");
}

#[test]
fn what_the_kernel_could_not_count_is_refused() {
    for (line, wanted) in [
        ("pairs = 129", "behaviour.pairs: 129; it is a number from 1 to 128"),
        ("pairs = 0", "behaviour.pairs: 0; it is a number from 1 to 128"),
        ("login_hosts = -1", "behaviour.login_hosts: -1;"),
        ("login_targets = 33", "behaviour.login_targets: 33; it is a number from 1 to 32"),
        ("ssh_per_half_hour = 65", "behaviour.ssh_per_half_hour: 65; it is a number from 1 to 64"),
        ("cool_down = '25h'", "behaviour.cool_down: 25h; write a time from 1s to 24h"),
        ("cool_down = '0s'", "behaviour.cool_down: 0s;"),
        ("cool_down = 'later'", "behaviour.cool_down: later;"),
        ("exempt = ['10.1.2.3:443']", "has no length"),
        ("exempt = ['10.1.2.0/24:0']", "names no ports"),
        ("exempt = ['10.1.2.0/24:443-80']", "names no ports"),
        ("exempt = ['10.1.2.0/24:https']", "names no ports"),
        ("exempt = ['[fd00::/64]']", "has a bracket without a port"),
        ("exempt = ['nmap']", "is no network"),
        ("internal = ['10.1.2.3/24']", "has bits set beyond its length"),
        ("pair = 3", "unknown key pair; did you mean pairs?"),
    ] {
        let said = says(&format!("[behaviour]\n{line}"));
        assert!(said.starts_with("policy.toml:2: ") && said.contains(wanted), "{line}: {said}");
    }
}
