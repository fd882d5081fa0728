//! `[behaviour]`: the rate rules, which limit how much of the network an agent may reach.

use super::Mode;
use super::error::{ConfigError, Origin, Problem};
use super::raw;
use super::source::Text;
use super::tables::{add, set};
use super::value::{invalid, network};
use crate::clock::parse_duration;
use ipnet::IpNet;
use pp_common::behaviour::{LIMITS_COUNT_OWN, LIMITS_OBSERVE, Limits, MAX_ATTEMPTS, MAX_COOL_DOWN_NS, MAX_LOGINS, MAX_PAIRS};
use std::fmt;
use toml::Spanned;

/// The rate rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Behaviour {
    /// Their mode; the host's if that observes.
    pub(crate) mode: Mode,
    /// Networks that are judged in addition to the private ones.
    pub(crate) internal: Vec<IpNet>,
    /// Networks and ports that the rules do not apply to.
    pub(crate) exempt: Vec<Exemption>,
    /// Whether the rules also apply to loopback and the host's own addresses.
    pub(crate) count_own: bool,
    /// The limits, in the kernel's form.
    pub(crate) limits: Limits,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { mode: Mode::Enforce, internal: Vec::new(), exempt: Vec::new(), count_own: false, limits: Limits::DEFAULT }
    }
}

/// A network, or some of its ports, that the rules do not apply to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Exemption {
    /// The network.
    pub(crate) network: IpNet,
    /// The first and the last port; `None`: every port.
    pub(crate) ports: Option<(u16, u16)>,
}

impl fmt::Display for Exemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.network, self.ports) {
            (network, None) => write!(f, "{network}"),
            (IpNet::V6(network), Some(ports)) => write!(f, "[{network}]:{}", Range(ports)),
            (network, Some(ports)) => write!(f, "{network}:{}", Range(ports)),
        }
    }
}

struct Range((u16, u16));

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self((first, last)) = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

/// A number that policy may change: its key, its maximum, and its field.
struct Number {
    key: &'static str,
    most: usize,
    of: fn(&mut Limits) -> &mut u32,
}

/// The numbers. Above these maxima the kernel's history would be too short to be exact.
const NUMBERS: [Number; 9] = [
    Number { key: "behaviour.target_per_minute", most: MAX_ATTEMPTS, of: |limits| &mut limits.target_short },
    Number { key: "behaviour.target_per_half_hour", most: MAX_ATTEMPTS, of: |limits| &mut limits.target_long },
    Number { key: "behaviour.ssh_per_minute", most: MAX_ATTEMPTS, of: |limits| &mut limits.ssh_short },
    Number { key: "behaviour.ssh_per_half_hour", most: MAX_ATTEMPTS, of: |limits| &mut limits.ssh_long },
    Number { key: "behaviour.login_hosts", most: MAX_PAIRS, of: |limits| &mut limits.login_hosts },
    Number { key: "behaviour.login_targets", most: MAX_LOGINS, of: |limits| &mut limits.login_targets },
    Number { key: "behaviour.ports_per_host", most: MAX_PAIRS, of: |limits| &mut limits.host_ports },
    Number { key: "behaviour.hosts_per_port", most: MAX_PAIRS, of: |limits| &mut limits.port_hosts },
    Number { key: "behaviour.pairs", most: MAX_PAIRS, of: |limits| &mut limits.pairs },
];

/// What the files have set.
#[derive(Default)]
pub(super) struct Written {
    mode: Option<(Mode, Origin)>,
    count_own: Option<(bool, Origin)>,
    cool_down: Option<(String, Origin)>,
    numbers: [Option<(i64, Origin)>; NUMBERS.len()],
    internal: Vec<IpNet>,
    exempt: Vec<Exemption>,
}

impl Written {
    /// Adds the table of one file.
    pub(super) fn file(&mut self, source: &Text<'_>, table: raw::Behaviour) -> Result<(), ConfigError> {
        set(&mut self.mode, table.mode, "behaviour.mode", source)?;
        set(&mut self.count_own, table.count_own, "behaviour.count_own", source)?;
        set(&mut self.cool_down, table.cool_down, "behaviour.cool_down", source)?;
        let values = [
            table.target_per_minute,
            table.target_per_half_hour,
            table.ssh_per_minute,
            table.ssh_per_half_hour,
            table.login_hosts,
            table.login_targets,
            table.ports_per_host,
            table.hosts_per_port,
            table.pairs,
        ];
        for ((slot, value), number) in self.numbers.iter_mut().zip(values).zip(&NUMBERS) {
            set(slot, value, number.key, source)?;
        }
        add(&mut self.internal, table.internal.iter().flatten().map(|text| network(source, text)).collect::<Result<Vec<_>, _>>()?);
        add(&mut self.exempt, table.exempt.iter().flatten().map(|text| exemption(source, text)).collect::<Result<Vec<_>, _>>()?);
        Ok(())
    }

    /// Every network that is named.
    pub(super) fn networks(&self) -> impl Iterator<Item = &IpNet> {
        self.internal.iter().chain(self.exempt.iter().map(|exemption| &exemption.network))
    }

    /// Where the mode is set.
    pub(super) fn mode_at(&self) -> Option<Origin> {
        self.mode.as_ref().map(|(_, at)| at.clone())
    }

    /// The rules, on a host of this mode.
    pub(super) fn finish(self, host: Mode) -> Result<Behaviour, ConfigError> {
        let mut limits = Limits::DEFAULT;
        for (written, number) in self.numbers.into_iter().zip(&NUMBERS) {
            let Some((found, at)) = written else { continue };
            let fits = u32::try_from(found).ok().filter(|found| (1..=number.most).contains(&usize::try_from(*found).unwrap_or(usize::MAX)));
            let wanted = match number.most {
                MAX_PAIRS => "it is a number from 1 to 128, as many as the kernel remembers",
                MAX_ATTEMPTS => "it is a number from 1 to 64, as many as the kernel remembers",
                _ => "it is a number from 1 to 32, as many as the kernel remembers",
            };
            let problem = || Problem::BadValue { key: number.key, found: found.to_string(), wanted };
            *(number.of)(&mut limits) = fits.ok_or_else(|| invalid(at, problem()))?;
        }
        if let Some((text, at)) = self.cool_down {
            limits.cool_down_ns = cool_down(&text).ok_or_else(|| {
                let found = text.escape_debug().to_string();
                let wanted = "write a time from 1s to 24h, as 15m";
                invalid(at, Problem::BadValue { key: "behaviour.cool_down", found, wanted })
            })?;
        }
        let mode = self.mode.map_or(host, |(mode, _)| mode);
        let count_own = self.count_own.is_some_and(|(count_own, _)| count_own);
        if mode == Mode::Observe {
            limits.flags |= LIMITS_OBSERVE;
        }
        if count_own {
            limits.flags |= LIMITS_COUNT_OWN;
        }
        Ok(Behaviour { mode, internal: self.internal, exempt: self.exempt, count_own, limits })
    }
}

/// The keys whose limits allow more than the shipped ones, with both values in words.
pub(super) fn weaker(own: &Limits, shipped: &Limits) -> Vec<(&'static str, String, String)> {
    let (mut own, mut shipped) = (*own, *shipped);
    let mut weaker = Vec::new();
    for number in &NUMBERS {
        let (mine, theirs) = (*(number.of)(&mut own), *(number.of)(&mut shipped));
        if mine > theirs {
            weaker.push((number.key, mine.to_string(), theirs.to_string()));
        }
    }
    if own.cool_down_ns < shipped.cool_down_ns {
        let seconds = |ns: u64| format!("{}s", ns / 1_000_000_000);
        weaker.push(("behaviour.cool_down", seconds(own.cool_down_ns), seconds(shipped.cool_down_ns)));
    }
    weaker
}

fn cool_down(text: &str) -> Option<u64> {
    let ns = u64::try_from(parse_duration(text)?.as_nanos()).ok()?;
    (1_000_000_000..=MAX_COOL_DOWN_NS).contains(&ns).then_some(ns)
}

/// Reads `NETWORK`, `NETWORK:PORT` or `NETWORK:FIRST-LAST`. With ports, an IPv6 network is in brackets.
fn exemption(source: &Text<'_>, text: &Spanned<String>) -> Result<Exemption, ConfigError> {
    let written = text.get_ref();
    let (net, ports) = match written.strip_prefix('[') {
        Some(rest) => match rest.split_once("]:") {
            Some((net, ports)) => (net, Some(ports)),
            None => return Err(bad(source, text, "has a bracket without a port behind it; write [fd00:1::/64]:22")),
        },
        None if written.matches(':').count() == 1 => match written.split_once(':') {
            Some((net, ports)) => (net, Some(ports)),
            None => (written.as_str(), None),
        },
        None => (written.as_str(), None),
    };
    let ports = match ports {
        None => None,
        Some(ports) => {
            Some(range(ports).ok_or_else(|| bad(source, text, "names no ports; write 10.1.2.0/24:443 or 10.1.2.0/24:8000-8100"))?)
        }
    };
    Ok(Exemption { network: network(source, &Spanned::new(text.span(), net.to_owned()))?, ports })
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first != 0 && first <= last).then_some((first, last))
}

fn bad(source: &Text<'_>, text: &Spanned<String>, why: &str) -> ConfigError {
    let problem = Problem::BadNetwork { text: text.get_ref().escape_debug().to_string(), why: why.to_owned() };
    invalid(source.at(text.span()), problem)
}

#[cfg(test)]
#[path = "behaviour_tests.rs"]
mod tests;
