//! Names for the numbers in kernel records.

use super::Config;
use crate::delegates::THIS_HOST;
use crate::name::name_id;
use crate::services::TABLE;
use pp_common::abi::NameId;

pub(super) fn all(config: &Config) -> Vec<(NameId, String)> {
    let agents = config.agents.iter().map(|agent| agent.name.as_str());
    let zones = config.zones.iter().map(|zone| zone.name.as_str());
    let gateways = config.gateways.iter().map(|gateway| gateway.name.as_str());
    let services = TABLE.iter().map(|row| row.name).chain([THIS_HOST]);
    let mut names: Vec<(NameId, String)> =
        agents.chain(zones).chain(gateways).chain(services).map(|name| (name_id(name), name.to_owned())).collect();
    names.sort();
    names.dedup();
    names
}
