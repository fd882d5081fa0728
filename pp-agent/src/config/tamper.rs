//! `[tamper]`: which of the rules against tampering a policy may turn off.

use super::NetAdmin;
use super::error::ConfigError;
use super::source::Text;
use super::value::word;
use toml::Spanned;

/// Reads `net_admin`.
pub(super) fn net_admin(source: &Text<'_>, written: &Spanned<String>) -> Result<NetAdmin, ConfigError> {
    word(source, written, NetAdmin::ALL, NetAdmin::name)
}

/// What a weaker word than the shipped one turns off.
pub(super) fn off(word: NetAdmin) -> Option<String> {
    let what = match word {
        NetAdmin::Refuse => return None,
        NetAdmin::Observe => "is reported, and not refused",
        NetAdmin::Allow => "is neither refused nor reported",
    };
    let name = word.name();
    Some(format!("[tamper] net_admin = \"{name}\": a root session that changes the host's network, and so where packets go, {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Source};

    fn load(text: &str) -> Result<Config, String> {
        let source = Source { name: "policy.toml".into(), text: text.into() };
        Config::from_sources(vec![source]).map_err(|error| error.to_string())
    }

    #[test]
    fn host_network_is_closed_to_sessions_unless_policy_says_otherwise_and_that_is_named() {
        assert_eq!(load("").unwrap().net_admin, NetAdmin::Refuse);
        for word in NetAdmin::ALL {
            let config = load(&format!("[tamper]\nnet_admin = '{}'", word.name())).unwrap();
            assert_eq!(config.net_admin, *word);
            assert_eq!(load(&config.to_toml()).unwrap().net_admin, *word);
            assert_eq!(config.off.iter().any(|off| off.part == "tamper"), *word != NetAdmin::Refuse, "{:?}", config.off);
        }
        assert!(load("[tamper]\nnet_admin = 'refused'").unwrap_err().contains("did you mean refuse?"));
        assert!(load("[tamper]\nsignals = 'allow'").unwrap_err().contains("unknown key"));
    }
}
