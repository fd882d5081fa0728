//! The name servers of this host, from `/etc/resolv.conf` (resolv.conf(5)).

use std::fs;
use std::net::IpAddr;

/// One name server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolver {
    /// Its address.
    pub(crate) addr: IpAddr,
    /// The link that a link-local address is on, by name or index.
    pub(crate) link: Option<String>,
}

/// Those of this host now; none where the file cannot be read.
#[must_use]
pub(crate) fn resolvers() -> Vec<Resolver> {
    parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

pub(super) fn parse(text: &str) -> Vec<Resolver> {
    let servers = text.lines().filter_map(|line| line.trim_start().strip_prefix("nameserver")?.split_whitespace().next());
    servers
        .filter_map(|server| {
            let (addr, link) = server.split_once('%').map_or((server, None), |(addr, link)| (addr, Some(link.to_owned())));
            Some(Resolver { addr: addr.parse().ok()?, link })
        })
        .collect()
}
