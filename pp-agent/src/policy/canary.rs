//! The canary's place. Every policy protects it, and nothing else uses its address.

use std::net::Ipv4Addr;

/// Its address: of the benchmark range that RFC 2544 keeps off real networks.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 113, 7);
/// The name of its agent and of its zone in records.
pub(crate) const AGENT: &str = "pp-agent canary";
