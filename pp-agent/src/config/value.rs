//! Single values of a policy file: names, networks, ports, times. Each is checked where it is written, so that its error has a line.

use super::error::{ConfigError, Origin, Problem};
use super::raw::unknown;
use super::source::Text;
use crate::clock::parse_duration;
use crate::net::Mac;
use crate::services::{self, ServiceRow};
use ipnet::IpNet;
use pp_common::abi::MAX_TASKS;
use std::net::IpAddr;
use std::time::Duration;
use toml::Spanned;

/// Most bytes of a name.
const MAX_NAME: usize = 64;
/// Longest `max_ttl` of an authority.
const MAX_TTL: Duration = Duration::from_secs(366 * 86_400);

/// An error at one place.
pub(super) fn invalid(at: Origin, problem: Problem) -> ConfigError {
    ConfigError::Invalid { at, problem: Box::new(problem) }
}

/// Reads one of some words: `all` are its meanings, `name` gives the word of each.
pub(super) fn word<T: Copy>(
    source: &Text<'_>,
    written: &Spanned<String>,
    all: &[T],
    name: impl Fn(T) -> &'static str,
) -> Result<T, ConfigError> {
    let found = written.get_ref().as_str();
    all.iter().copied().find(|known| name(*known) == found).ok_or_else(|| {
        let names = all.iter().map(|known| name(*known).to_owned()).collect();
        invalid(source.at(written.span()), unknown("value", found, names))
    })
}

pub(super) fn max_tasks(slot: Option<(i64, Origin)>) -> Result<u32, ConfigError> {
    let Some((number, at)) = slot else {
        return Ok(MAX_TASKS);
    };
    let fits = u32::try_from(number).ok().filter(|number| (1_024..=4_194_304).contains(number));
    let wanted = "it is a number from 1024 to 4194304, the most processes a kernel has";
    let found = number.to_string();
    fits.ok_or_else(|| invalid(at, Problem::BadValue { key: "max_tasks", found, wanted }))
}

pub(super) fn approvals(source: &Text<'_>, approvals: Option<Spanned<i64>>) -> Result<(), ConfigError> {
    match approvals {
        Some(number) if *number.get_ref() != 1 => {
            let found = number.get_ref().to_string();
            Err(not_enforced(source, &number, "approvals", &found, "write 1 or remove it"))
        }
        _ => Ok(()),
    }
}

pub(super) fn not_enforced<T>(source: &Text<'_>, value: &Spanned<T>, key: &'static str, found: &str, instead: &'static str) -> ConfigError {
    let problem = Problem::NotEnforced { key, found: found.to_owned(), instead };
    invalid(source.at(value.span()), problem)
}

pub(super) fn name(
    source: &Text<'_>,
    at: &Origin,
    what: &'static str,
    key: &'static str,
    name: Option<Spanned<String>>,
) -> Result<String, ConfigError> {
    let Some(name) = name else {
        return Err(invalid(at.clone(), Problem::Missing { what: what.to_owned(), key }));
    };
    check_name(source, key, &name)?;
    Ok(name.into_inner())
}

pub(super) fn check_name(source: &Text<'_>, key: &'static str, name: &Spanned<String>) -> Result<(), ConfigError> {
    let text = name.get_ref();
    let why = if text.is_empty() {
        "is empty; write a name"
    } else if text.len() > MAX_NAME {
        "is longer than 64 bytes; shorten it"
    } else if text.chars().any(unprintable) {
        "has a control or direction character; write plain text"
    } else if text.trim() != text {
        "begins or ends with a space; remove that"
    } else {
        return Ok(());
    };
    Err(invalid(source.at(name.span()), Problem::BadName { key, why }))
}

/// Whether a character controls a terminal or changes how a line reads.
fn unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

pub(super) fn service(source: &Text<'_>, name: &str, at: &Spanned<String>) -> Result<&'static ServiceRow, ConfigError> {
    services::row(name).ok_or_else(|| {
        let known = services::TABLE.iter().map(|row| row.name.to_owned()).collect();
        invalid(source.at(at.span()), unknown("service", name, known))
    })
}

pub(super) fn network(source: &Text<'_>, text: &Spanned<String>) -> Result<IpNet, ConfigError> {
    let written = text.get_ref();
    let bad = |why: String| {
        let problem = Problem::BadNetwork { text: written.clone(), why };
        invalid(source.at(text.span()), problem)
    };
    let network: IpNet = match written.parse() {
        Ok(network) => network,
        Err(_) => {
            return Err(bad(match written.parse::<IpAddr>() {
                Ok(address) => format!("has no length; write {}", IpNet::from(address)),
                Err(_) => "is no network; write address/length, as 10.20.0.0/16".to_owned(),
            }));
        }
    };
    if network.trunc() != network {
        return Err(bad(format!("has bits set beyond its length; write {}", network.trunc())));
    }
    Ok(network)
}

pub(super) fn address(source: &Text<'_>, text: &Spanned<String>) -> Result<IpAddr, ConfigError> {
    let written = text.get_ref();
    let wanted = match written.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(address) if address.is_unspecified() || address.is_multicast() => "a gateway has one address of its own",
        Ok(address) => return Ok(address),
        Err(_) => "write one address, as 10.30.4.9; for a network use a zone",
    };
    let problem = Problem::BadValue { key: "address", found: written.clone(), wanted };
    Err(invalid(source.at(text.span()), problem))
}

/// Reads one hardware address, or a list of them.
pub(super) fn mac_list(source: &Text<'_>, value: &Spanned<toml::Value>) -> Result<Vec<Mac>, ConfigError> {
    let written = match value.get_ref() {
        toml::Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mac = |one: &toml::Value| {
        one.as_str().and_then(Mac::parse).ok_or_else(|| {
            let found = one.as_str().map_or_else(|| one.to_string(), |text| text.escape_debug().to_string());
            let wanted = "write the hardware address of one device, as 00:1d:9c:a1:b2:c3, or a list of some";
            invalid(source.at(value.span()), Problem::BadValue { key: "mac", found, wanted })
        })
    };
    written.iter().map(mac).collect()
}

pub(super) fn decider(source: &Text<'_>, text: Spanned<String>) -> Result<String, ConfigError> {
    let written = text.get_ref();
    let user = written.strip_prefix("user:").is_some_and(|user| !user.trim().is_empty());
    if !user || written.len() > 256 || written.chars().any(unprintable) {
        let found = written.escape_debug().to_string();
        let wanted = "a decider is a person, written user:NAME";
        let problem = Problem::BadValue { key: "decider", found, wanted };
        return Err(invalid(source.at(text.span()), problem));
    }
    Ok(text.into_inner())
}

pub(super) fn max_ttl(source: &Text<'_>, text: &Spanned<String>) -> Result<Duration, ConfigError> {
    let fits = parse_duration(text.get_ref()).filter(|ttl| (Duration::from_secs(1)..=MAX_TTL).contains(ttl));
    fits.ok_or_else(|| {
        let found = text.get_ref().escape_debug().to_string();
        let wanted = "write a time from 1s to 8784h, as 8h or 1h 30m";
        invalid(source.at(text.span()), Problem::BadValue { key: "max_ttl", found, wanted })
    })
}

/// Reads a whole number that is at least 1 and fits its kernel field.
pub(super) fn number<T: TryFrom<i64>>(
    source: &Text<'_>,
    key: &'static str,
    value: Option<Spanned<i64>>,
    wanted: &'static str,
) -> Result<Option<T>, ConfigError> {
    let Some(value) = value else { return Ok(None) };
    match T::try_from(*value.get_ref()) {
        Ok(number) if *value.get_ref() > 0 => Ok(Some(number)),
        _ => {
            let found = value.get_ref().to_string();
            Err(invalid(source.at(value.span()), Problem::BadValue { key, found, wanted }))
        }
    }
}

/// Reads ports, sorted and each once.
pub(super) fn ports(source: &Text<'_>, list: &[Spanned<i64>]) -> Result<Vec<u16>, ConfigError> {
    let mut ports = Vec::new();
    for port in list {
        match u16::try_from(*port.get_ref()) {
            Ok(port) if port != 0 => ports.push(port),
            _ => {
                let found = port.get_ref().to_string();
                let wanted = "a port is a number from 1 to 65535";
                let problem = Problem::BadValue { key: "ports", found, wanted };
                return Err(invalid(source.at(port.span()), problem));
            }
        }
    }
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}
