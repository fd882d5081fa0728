//! `[[delegate]]`: servers that act for their callers.

use super::error::{ConfigError, Origin, Problem};
use super::raw::{self, unknown};
use super::source::Source;
use super::value::{invalid, name, not_enforced, ports};
use crate::delegates::{ACTIONS, Action, Delegate, shipped};
use toml::Spanned;

/// Longest bound name that the kernel knows.
const MAX_PATH: usize = 107;
/// Longest command name that the kernel knows.
const MAX_COMM: usize = 15;

/// One table of a policy file. Without paths, listeners and ports it gives a shipped delegate another action.
pub(super) fn delegate(source: &Source, at: &Origin, file: raw::Delegate) -> Result<Delegate, ConfigError> {
    let name = name(source, at, "delegate", "name", file.name)?;
    let what = format!("delegate {name}");
    let Some(action) = file.action else {
        return Err(invalid(at.clone(), Problem::Missing { what, key: "action" }));
    };
    let action = read_action(source, &action)?;
    let texts = |list: &[Spanned<String>], key, most, wanted| {
        list.iter()
            .map(|text| match text.get_ref() {
                word if word.is_empty() || word.len() > most || word.contains('\0') => {
                    let found = word.clone();
                    Err(invalid(source.at(text.span()), Problem::BadValue { key, found, wanted }))
                }
                word => Ok(word.clone()),
            })
            .collect::<Result<Vec<_>, _>>()
    };
    let paths = texts(&file.path, "path", MAX_PATH, "it is a path or @NAME of at most 107 bytes")?;
    for (path, text) in paths.iter().zip(&file.path) {
        if !path.starts_with(['/', '@']) {
            let wanted = "it begins with / or, for an abstract name, with @";
            return Err(invalid(source.at(text.span()), Problem::BadValue { key: "path", found: path.clone(), wanted }));
        }
    }
    let listeners = texts(&file.listener, "listener", MAX_COMM, "it is a command name of at most 15 bytes, as ps -o comm shows it")?;
    let ports = ports(source, &file.port)?;
    if !ports.is_empty() && action == Action::RefuseRoot {
        let problem = Problem::BadValue { key: "action", found: "refuse-root".to_owned(), wanted: "ports are refused to all or to nobody" };
        return Err(invalid(at.clone(), problem));
    }
    if !paths.is_empty() || !listeners.is_empty() || !ports.is_empty() {
        return Ok(Delegate { name, action, paths, listeners, ports });
    }
    let known = shipped();
    match known.iter().find(|delegate| delegate.name == name) {
        Some(delegate) if action == Action::RefuseRoot && !delegate.ports.is_empty() => {
            let problem =
                Problem::BadValue { key: "action", found: "refuse-root".to_owned(), wanted: "ports are refused to all or to nobody" };
            Err(invalid(at.clone(), problem))
        }
        Some(delegate) => Ok(Delegate { action, ..delegate.clone() }),
        None => {
            let names = known.into_iter().map(|delegate| delegate.name).collect();
            Err(invalid(at.clone(), unknown("delegate without path, listener and port", &name, names)))
        }
    }
}

fn read_action(source: &Source, action: &Spanned<String>) -> Result<Action, ConfigError> {
    let word = action.get_ref().as_str();
    if word == "join" {
        return Err(not_enforced(source, action, "action", word, "write \"refuse\", which is what this build does, or \"allow\""));
    }
    ACTIONS.iter().find(|(name, _)| *name == word).map(|(_, action)| *action).ok_or_else(|| {
        let names = ACTIONS.iter().map(|(name, _)| (*name).to_owned()).collect();
        invalid(source.at(action.span()), unknown("value", word, names))
    })
}

/// Those of policy, then the shipped ones that these do not replace.
pub(super) fn with_shipped(own: Vec<Delegate>) -> Vec<Delegate> {
    let mut all = own;
    for delegate in shipped() {
        if all.iter().all(|other| other.name != delegate.name) {
            all.push(delegate);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Source};
    use crate::delegates::Action;

    fn load(text: &str) -> Result<Config, String> {
        let source = Source { name: "policy.toml".into(), text: text.into() };
        Config::from_sources(vec![source]).map_err(|error| error.to_string())
    }

    #[test]
    fn a_shipped_delegate_is_given_another_action_by_its_name() {
        let config = load("[[delegate]]\nname = 'tmux'\naction = 'allow'").unwrap();
        let tmux: Vec<_> = config.delegates.iter().filter(|delegate| delegate.name == "tmux").collect();
        assert_eq!(tmux.len(), 1);
        assert_eq!(tmux[0].action, Action::Allow);
        assert!(!tmux[0].listeners.is_empty());
        assert!(config.delegates.iter().any(|delegate| delegate.name == "docker"));
    }

    #[test]
    fn ports_of_this_host_are_those_of_delegates_that_are_not_allowed() {
        let ports = |text: &str| crate::delegates::own_ports(&load(text).unwrap().delegates);
        assert!(ports("").contains(&22) && ports("").contains(&10250));
        assert!(!ports("[[delegate]]\nname = 'ssh-server'\naction = 'allow'").contains(&22));
        assert!(ports("[[delegate]]\nname = 'notebook'\nport = [8888]\naction = 'refuse'").contains(&8888));
    }

    #[test]
    fn policy_comes_before_what_is_shipped_and_survives_being_shown() {
        let text = "[[delegate]]\nname = 'builder'\npath = ['/run/builder.sock', '@builder']\nlistener = ['builderd']\naction = 'refuse'";
        let config = load(text).unwrap();
        assert_eq!(config.delegates[0].name, "builder");
        assert_eq!(load(&config.to_toml()).unwrap().delegates, config.delegates);
    }

    #[test]
    fn what_is_wrong_with_a_delegate_is_said() {
        for (text, said) in [
            ("name = 'x'\naction = 'refuse'", "unknown delegate"),
            ("name = 'x'\naction = 'refuse-root'\nport = [8888]", "to all or to nobody"),
            ("name = 'ssh-server'\naction = 'refuse-root'", "to all or to nobody"),
            ("name = 'x'\naction = 'refuse'\nport = [0]", "from 1 to 65535"),
            ("name = 'tmux'", "action"),
            ("name = 'tmux'\naction = 'join'", "join"),
            ("name = 'tmux'\naction = 'deny'", "refuse"),
            ("name = 'a'\naction = 'allow'\npath = ['relative']", "begins with /"),
            ("name = 'a'\naction = 'allow'\nlistener = ['longer-than-fifteen']", "15 bytes"),
        ] {
            let error = load(&format!("[[delegate]]\n{text}")).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
