//! The ports that `docs/policy.md` says are protected by default. A unit test of the agent compares that page with its table.

use anyhow::{Context as _, Result, bail, ensure};

/// One port of a service, over one transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The service's name in policy.
    pub service: String,
    /// `tcp` or `udp`.
    pub transport: String,
    /// The port.
    pub port: u16,
}

/// Every port that is protected by default, over each of its transports.
///
/// # Errors
/// The page has another form.
pub fn by_default() -> Result<Vec<ServicePort>> {
    let page = include_str!("../../docs/policy.md");
    let rows = page.lines().skip_while(|line| !line.starts_with("| service |")).skip(2).take_while(|line| line.starts_with('|'));
    let mut all = Vec::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, name, _, ports, default, ..] = cells.as_slice() else { bail!("{row}: not a row of services") };
        if *default != "yes" {
            continue;
        }
        let service = name.trim_matches('`').to_owned();
        for text in ports.split(", ") {
            let (range, transport) = text.split_once('/').with_context(|| row.to_owned())?;
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u16, u16) = (first.parse()?, last.parse()?);
            let port = |port| ServicePort { service: service.clone(), transport: transport.to_owned(), port };
            all.extend((first..=last).map(port));
        }
    }
    ensure!(all.len() > 100, "the page lists {} ports of services", all.len());
    Ok(all)
}
