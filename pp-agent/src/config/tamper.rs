//! `[tamper]`: which of the rules against tampering a policy may turn off.

use super::NetAdmin;
use super::error::ConfigError;
use super::source::Text;
use super::value::word;
use toml::Spanned;

/// What happens to a root session that changes files by which others act later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaterFiles {
    /// It may not.
    Refuse,
    /// It may: package managers do.
    Allow,
}

impl LaterFiles {
    pub(super) const ALL: &'static [Self] = &[Self::Refuse, Self::Allow];
    /// What is shipped.
    pub(super) const SHIPPED: Self = Self::Refuse;

    /// Its word in policy.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Allow => "allow",
        }
    }
}

/// Reads `later_files`.
pub(super) fn later_files(source: &Text<'_>, written: &Spanned<String>) -> Result<LaterFiles, ConfigError> {
    word(source, written, LaterFiles::ALL, LaterFiles::name)
}

/// Reads `net_admin`.
pub(super) fn net_admin(source: &Text<'_>, written: &Spanned<String>) -> Result<NetAdmin, ConfigError> {
    word(source, written, NetAdmin::ALL, NetAdmin::name)
}

/// What weaker words than the shipped ones turn off: the key, and that in words.
pub(super) fn off(net_admin: NetAdmin, later_files: LaterFiles) -> impl Iterator<Item = (&'static str, String)> {
    let what = match net_admin {
        NetAdmin::Refuse => None,
        NetAdmin::Observe => Some("is reported, and not refused"),
        NetAdmin::Allow => Some("is neither refused nor reported"),
    };
    let name = net_admin.name();
    let network = what.map(|what| {
        let text =
            format!("[tamper] net_admin = \"{name}\": a root session that changes the host's network, and so where packets go, {what}");
        ("net_admin", text)
    });
    let files = (later_files == LaterFiles::Allow).then(|| {
        const TEXT: &str =
            "[tamper] later_files = \"allow\": what a root session puts into units, cron, boot and login files runs outside it";
        ("later_files", TEXT.to_owned())
    });
    network.into_iter().chain(files)
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
    fn network_and_files_of_the_host_are_closed_to_sessions_unless_policy_says_otherwise_and_that_is_named() {
        assert_eq!(load("").unwrap().net_admin, NetAdmin::Refuse);
        for word in NetAdmin::ALL {
            let config = load(&format!("[tamper]\nnet_admin = '{}'", word.name())).unwrap();
            assert_eq!(config.net_admin, *word);
            assert_eq!(load(&config.to_toml()).unwrap().net_admin, *word);
            assert_eq!(config.off.iter().any(|off| off.part == "tamper"), *word != NetAdmin::Refuse, "{:?}", config.off);
        }
        assert_eq!(load("").unwrap().later_files, LaterFiles::Refuse);
        for word in LaterFiles::ALL {
            let config = load(&format!("[tamper]\nlater_files = '{}'", word.name())).unwrap();
            assert_eq!((config.later_files, config.net_admin), (*word, NetAdmin::Refuse));
            assert_eq!(load(&config.to_toml()).unwrap().later_files, *word);
            let named = config.off.iter().any(|off| off.part == "tamper" && off.names == ["later_files"]);
            assert_eq!(named, *word == LaterFiles::Allow, "{:?}", config.off);
        }
        assert!(load("[tamper]\nlater_files = 'observe'").unwrap_err().contains("refuse"));
        assert!(load("[tamper]\nnet_admin = 'refused'").unwrap_err().contains("did you mean refuse?"));
        assert!(load("[tamper]\nsignals = 'allow'").unwrap_err().contains("unknown key"));
    }
}
