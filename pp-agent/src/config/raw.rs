//! The keys of a policy file and the types of their values.
//!
//! Keys of features that this build lacks are included, so that the message about them can say so. [`super::check`] refuses them.

use super::error::{ConfigError, Problem};
use super::source::Text;
use super::{Mode, Require};
use serde::Deserialize;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    pub(super) host: Option<Spanned<String>>,
    pub(super) tenant: Option<Spanned<String>>,
    pub(super) mode: Option<Spanned<Mode>>,
    pub(super) require: Option<Spanned<Require>>,
    pub(super) any_user: Option<Spanned<bool>>,
    pub(super) max_tasks: Option<Spanned<i64>>,
    #[serde(default)]
    pub(super) zone: Vec<Spanned<Zone>>,
    #[serde(default)]
    pub(super) gateway: Vec<Spanned<Gateway>>,
    pub(super) services: Option<Services>,
    #[serde(default)]
    pub(super) agent: Vec<Spanned<Agent>>,
    #[serde(default)]
    pub(super) authority: Vec<Spanned<Authority>>,
    pub(super) exec: Option<Exec>,
    #[serde(default)]
    pub(super) delegate: Vec<Spanned<Delegate>>,
    pub(super) delegates: Option<Delegates>,
    pub(super) tamper: Option<Tamper>,
    pub(super) behaviour: Option<Behaviour>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Zone {
    pub(super) name: Option<Spanned<String>>,
    pub(super) networks: Option<Vec<Spanned<String>>>,
    /// One text, or a list of texts.
    pub(super) mac: Option<Spanned<toml::Value>>,
    pub(super) mode: Option<Spanned<Mode>>,
    pub(super) approvals: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gateway {
    pub(super) name: Option<Spanned<String>>,
    pub(super) address: Option<Spanned<String>>,
    /// One text, or a list of texts.
    pub(super) mac: Option<Spanned<toml::Value>>,
    #[serde(default)]
    pub(super) ports: Vec<Spanned<i64>>,
    pub(super) max_turns: Option<Spanned<i64>>,
    pub(super) max_bytes_out: Option<Spanned<i64>>,
    pub(super) mode: Option<Spanned<Mode>>,
    pub(super) approvals: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Services {
    pub(super) enable: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    pub(super) disable: Vec<Spanned<String>>,
    pub(super) replace: Option<Spanned<bool>>,
    pub(super) exempt: Option<Vec<Spanned<String>>>,
    pub(super) mode: Option<Spanned<Mode>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Exec {
    pub(super) mode: Option<Spanned<Mode>>,
    #[serde(default)]
    pub(super) allow: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) disable: Vec<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Behaviour {
    pub(super) mode: Option<Spanned<Mode>>,
    pub(super) internal: Option<Vec<Spanned<String>>>,
    pub(super) exempt: Option<Vec<Spanned<String>>>,
    pub(super) count_own: Option<Spanned<bool>>,
    pub(super) cool_down: Option<Spanned<String>>,
    pub(super) target_per_minute: Option<Spanned<i64>>,
    pub(super) target_per_half_hour: Option<Spanned<i64>>,
    pub(super) ssh_per_minute: Option<Spanned<i64>>,
    pub(super) ssh_per_half_hour: Option<Spanned<i64>>,
    pub(super) login_hosts: Option<Spanned<i64>>,
    pub(super) login_targets: Option<Spanned<i64>>,
    pub(super) ports_per_host: Option<Spanned<i64>>,
    pub(super) hosts_per_port: Option<Spanned<i64>>,
    pub(super) pairs: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Agent {
    pub(super) name: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) exec: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) script: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) module: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) user: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) cgroup: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) unit: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) disable: Vec<Spanned<String>>,
    pub(super) replace: Option<Spanned<bool>>,
    pub(super) allow_root: Option<Spanned<bool>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Authority {
    pub(super) key_id: Option<Spanned<String>>,
    pub(super) decider: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) zones: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) gateways: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) services: Vec<Spanned<String>>,
    pub(super) max_ttl: Option<Spanned<String>>,
    pub(super) issuer: Option<Spanned<bool>>,
    pub(super) deciders: Option<Spanned<Vec<String>>>,
    pub(super) methods: Option<Spanned<Vec<String>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Delegate {
    pub(super) name: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) path: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) listener: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) port: Vec<Spanned<i64>>,
    pub(super) action: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) disable: Vec<Spanned<String>>,
    pub(super) replace: Option<Spanned<bool>>,
}

/// What holds for every server that acts for its callers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Delegates {
    pub(super) unknown: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tamper {
    pub(super) net_admin: Option<Spanned<String>>,
    pub(super) later_files: Option<Spanned<String>>,
}

/// Parses one file.
pub(super) fn parse(source: &Text<'_>) -> Result<Policy, ConfigError> {
    let text = &source.source.text;
    toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        let problem = match (problem(error.message()), key_at(text, &span)) {
            (Problem::Syntax(message), Some(key)) => Problem::Syntax(format!("{key}: {message}")),
            (problem, _) => problem,
        };
        ConfigError::Invalid { at: source.at(span), problem: Box::new(problem) }
    })
}

/// The dotted key of the value at a place. If the parser knows none there, as of a key that is written twice, the key itself.
fn key_at(text: &str, place: &Range<usize>) -> Option<String> {
    let table = DeTable::parse(text).ok();
    let found = table.as_ref().and_then(|table| in_table(table.get_ref(), place));
    let is_key = |here: &&str| !here.is_empty() && here.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    found.map(|keys| keys.join(".")).or_else(|| text.get(place.clone()).filter(is_key).map(str::to_owned))
}

fn in_table<'a>(table: &'a DeTable<'_>, place: &Range<usize>) -> Option<Vec<&'a str>> {
    table.iter().find_map(|(key, value)| {
        let mut keys = if holds(&key.span(), place) { Vec::new() } else { in_value(value, place)? };
        keys.insert(0, key.get_ref());
        Some(keys)
    })
}

fn in_value<'a>(value: &'a Spanned<DeValue<'_>>, place: &Range<usize>) -> Option<Vec<&'a str>> {
    let inner = match value.get_ref() {
        DeValue::Table(table) => in_table(table, place),
        DeValue::Array(list) => list.iter().find_map(|one| in_value(one, place)),
        _ => None,
    };
    inner.or_else(|| holds(&value.span(), place).then(Vec::new))
}

const fn holds(span: &Range<usize>, place: &Range<usize>) -> bool {
    span.start <= place.start && place.end <= span.end
}

/// Turns the parser's message about an unknown word into ours, with the most similar of the expected words.
fn problem(message: &str) -> Problem {
    let what = if message.starts_with("unknown field") {
        "key"
    } else if message.starts_with("unknown variant") {
        "value"
    } else {
        return Problem::Syntax(message.replace('\n', "; "));
    };
    let mut words = message.split('`').skip(1).step_by(2).map(str::to_owned);
    let found = words.next().unwrap_or_default();
    let known: Vec<String> = words.collect();
    unknown(what, &found, known)
}

/// The error for an unknown word, with the most similar known one.
pub(super) fn unknown(what: &'static str, found: &str, known: Vec<String>) -> Problem {
    let nearest = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&name.to_lowercase(), &found.to_lowercase()), name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, name)| *distance <= 1 + name.len().min(found.len()) / 3)
        .map(|(_, name)| name.clone());
    Problem::Unknown { what, found: found.to_owned(), nearest, known }
}
