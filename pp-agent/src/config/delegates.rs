//! `[[delegate]]`: servers that act for their callers.

use super::error::{ConfigError, Origin, Problem};
use super::raw::{self, unknown};
use super::source::Text;
use super::tables::{Away, Table, Tables, add, put};
use super::value::{self, invalid, name, not_enforced, ports};
use crate::delegates::{Action, Delegate, Unknown, shipped};
use toml::Spanned;

/// Longest name that a socket can be bound to, in bytes.
const MAX_PATH: usize = 107;
/// Longest command name in the kernel, in bytes.
const MAX_COMM: usize = 15;

/// One delegate, from all files.
#[derive(Default)]
pub(super) struct Written {
    action: Option<(Action, Origin)>,
    paths: Vec<String>,
    listeners: Vec<String>,
    ports: Vec<u16>,
    away: Away,
}

/// Adds one table of a file. A table with the name of a shipped delegate adds to it, and may set another action.
pub(super) fn delegate(delegates: &mut Tables<Written>, source: &Text<'_>, file: Spanned<raw::Delegate>) -> Result<(), ConfigError> {
    let at = source.at(file.span());
    let file = file.into_inner();
    let name = name(source, &at, "delegate", "name", file.name)?;
    let written = &mut delegates.open("delegate", &name, &at)?.item;
    if let Some(action) = &file.action {
        put(&mut written.action, read_action(source, action)?, source.at(action.span()), "action")?;
    }
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
    let mut said = Away::default();
    said.file(source, file.replace.as_ref(), &file.disable);
    if file.action.is_none() && paths.is_empty() && listeners.is_empty() && ports.is_empty() && said.is_nothing() {
        let instead = "write an action, or a path, listener or port to add";
        return Err(invalid(at, Problem::ChangesNothing { what: format!("delegate {name}"), instead }));
    }
    written.away.file(source, file.replace.as_ref(), &file.disable);
    add(&mut written.paths, paths);
    add(&mut written.listeners, listeners);
    add(&mut written.ports, ports);
    Ok(())
}

/// The operator's delegates, each with the shipped entries of its name that it keeps, then the other shipped ones.
pub(super) fn with_shipped(own: Vec<Table<Written>>) -> Result<Vec<Delegate>, ConfigError> {
    let shipped = shipped();
    let names = || shipped.iter().map(|delegate| delegate.name.clone()).collect::<Vec<_>>();
    let mut all = Vec::new();
    for table in own {
        let at = table.first_at();
        let Table { name, item: Written { action, mut paths, mut listeners, mut ports, away }, .. } = table;
        let base = shipped.iter().find(|delegate| delegate.name == name);
        away.check("shipped delegate", &name, base.map(entries).as_deref(), names)?;
        let is_empty = paths.is_empty() && listeners.is_empty() && ports.is_empty();
        if base.is_none() && is_empty {
            return Err(invalid(at, unknown("delegate without path, listener and port", &name, names())));
        }
        if let Some(base) = base {
            add(&mut paths, base.paths.iter().filter(|path| away.leaves(path)).cloned());
            add(&mut listeners, base.listeners.iter().filter(|comm| away.leaves(comm)).cloned());
            add(&mut ports, base.ports.iter().filter(|port| away.leaves(&port.to_string())).copied());
            ports.sort_unstable();
        }
        let Some(action) = action.map(|(action, _)| action).or_else(|| base.map(|base| base.action)) else {
            return Err(invalid(at, Problem::Missing { what: format!("delegate {name}"), key: "action" }));
        };
        if !ports.is_empty() && action == Action::RefuseRoot {
            let problem =
                Problem::BadValue { key: "action", found: "refuse-root".to_owned(), wanted: "ports are refused to all or to nobody" };
            return Err(invalid(at, problem));
        }
        all.push(Delegate { name, action, paths, listeners, ports });
    }
    let others = shipped.iter().filter(|delegate| all.iter().all(|own| own.name != delegate.name)).cloned().collect::<Vec<_>>();
    all.extend(others);
    Ok(all)
}

/// The tables that add to shipped ones, in words.
pub(super) fn adds(delegates: &[Table<Written>]) -> Vec<String> {
    let shipped = shipped();
    let lists = |own: &Written| !(own.paths.is_empty() && own.listeners.is_empty() && own.ports.is_empty());
    let adds = delegates.iter().filter(|table| table.item.away.is_nothing() && lists(&table.item));
    adds.filter(|table| shipped.iter().any(|row| row.name == table.name)).map(|table| format!("delegate {}", table.name)).collect()
}

/// Every socket, listener and port of a delegate, as `disable` names them.
pub(super) fn entries(delegate: &Delegate) -> Vec<String> {
    let ports = delegate.ports.iter().map(ToString::to_string);
    delegate.paths.iter().chain(&delegate.listeners).cloned().chain(ports).collect()
}

fn read_action(source: &Text<'_>, action: &Spanned<String>) -> Result<Action, ConfigError> {
    let word = action.get_ref().as_str();
    if word == "join" {
        return Err(not_enforced(source, action, "action", word, "write \"refuse\", which is what this build does, or \"allow\""));
    }
    value::word(source, action, Action::ALL, Action::name)
}

/// Reads `[delegates] unknown`.
pub(super) fn read_unknown(source: &Text<'_>, written: &Spanned<String>) -> Result<Unknown, ConfigError> {
    value::word(source, written, Unknown::ALL, Unknown::name)
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Source};
    use crate::delegates::{Action, Unknown};

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
        // Policy comes before the shipped delegates. It is reported which of them that weakens.
        let debugger = load("[[delegate]]\nname = 'debugger'\nport = [9229]\naction = 'allow'").unwrap();
        assert!(!crate::delegates::own_ports(&debugger.delegates).contains(&9229));
        let off = |text: &str| debugger.off.iter().any(|off| off.text.contains(text));
        assert!(off("delegate node-inspector: allowed to sessions by delegate debugger: 9229"), "{:?}", debugger.off);
    }

    #[test]
    fn policy_comes_before_what_is_shipped_and_survives_being_shown() {
        let text = "[[delegate]]\nname = 'builder'\npath = ['/run/builder.sock', '@builder']\nlistener = ['builderd']\naction = 'refuse'";
        let config = load(text).unwrap();
        assert_eq!(config.delegates[0].name, "builder");
        assert_eq!(load(&config.to_toml()).unwrap().delegates, config.delegates);
    }

    #[test]
    fn servers_that_no_list_names_are_reported_unless_policy_says_otherwise() {
        assert_eq!(load("").unwrap().unknown_delegates, Unknown::Report);
        for (word, meant) in [("allow", Unknown::Allow), ("report", Unknown::Report), ("refuse", Unknown::Refuse)] {
            let config = load(&format!("[delegates]\nunknown = '{word}'")).unwrap();
            assert_eq!(config.unknown_delegates, meant);
            assert_eq!(load(&config.to_toml()).unwrap().unknown_delegates, meant);
            let off = config.off.iter().any(|off| off.text.contains("[delegates] unknown = \"allow\""));
            assert_eq!(off, meant == Unknown::Allow, "{:?}", config.off);
        }
        assert!(load("[delegates]\nunknown = 'repord'").unwrap_err().contains("did you mean report?"));
    }

    #[test]
    fn shipped_servers_that_are_harmless_are_allowed_and_nothing_is_off_with_them() {
        let config = load("").unwrap();
        assert!(config.delegates.iter().any(|delegate| delegate.name == "keys" && delegate.action == Action::Allow));
        assert!(config.off.is_empty(), "{:?}", config.off);
        let without = load("[[delegate]]\nname = 'keys'\nreplace = true\naction = 'refuse'\npath = ['/run/keys']").unwrap();
        assert!(without.off.is_empty(), "{:?}", without.off);
    }

    #[test]
    fn what_is_wrong_with_a_delegate_is_said() {
        for (text, said) in [
            ("name = 'x'\naction = 'refuse'", "unknown delegate"),
            ("name = 'x'\naction = 'refuse-root'\nport = [8888]", "to all or to nobody"),
            ("name = 'ssh-server'\naction = 'refuse-root'", "to all or to nobody"),
            ("name = 'x'\naction = 'refuse'\nport = [0]", "from 1 to 65535"),
            ("name = 'tmux'", "changes nothing"),
            ("name = 'notebook'\nport = [8888]", "has no action"),
            ("name = 'dockr'\nreplace = true\naction = 'refuse'\npath = ['/run/d']", "did you mean docker?"),
            ("name = 'docker'\ndisable = ['/run/dokcer.sock']", "did you mean /run/docker.sock?"),
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
