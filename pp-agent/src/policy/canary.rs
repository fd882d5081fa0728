//! The canary's place, which every policy protects: nobody else has a use for it.

use std::net::Ipv4Addr;

/// Its address: of the benchmark range that RFC 2544 keeps off real networks.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 113, 7);
/// What its agent and its zone are called in records.
pub(crate) const AGENT: &str = "pp-agent canary";
