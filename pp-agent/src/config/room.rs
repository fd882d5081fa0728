//! How many networks a policy may have: as many as fit into the kernel's tables, of which each holds two generations.

use super::error::ConfigError;
use pp_common::behaviour::MAX_OWN;
use pp_common::maps;

/// Networks of policy that go into one table.
pub(super) struct Room {
    /// The networks, as errors name them.
    networks: &'static str,
    /// How many fit.
    most: usize,
    /// What to do if there are more.
    remedy: &'static str,
}

const JOIN: &str = "write one wider network instead of many small ones";

/// Both loopback networks.
const LOOPBACK: usize = 2;
/// The destination of the canary.
const CANARY: usize = 1;
/// Private networks that the rate rules judge without being named.
const PRIVATE: usize = 6;

/// Zones and gateways. The host's own addresses need places too, and may come later.
pub(super) const PLACES: Room = Room {
    networks: "networks of zones and gateways",
    most: maps::PLACES.room() - MAX_OWN as usize - LOOPBACK - CANARY,
    remedy: "write one wider network instead of many small ones, or one zone instead of many gateways",
};
/// Networks in which services are not protected.
pub(super) const EXEMPT: Room = Room { networks: "networks of [services] exempt", most: maps::EXEMPT.room(), remedy: JOIN };
/// Networks that the rate rules judge or exempt, gateways among them.
pub(super) const JUDGED: Room =
    Room { networks: "networks of [behaviour] and gateways", most: maps::GROUNDS.room() - PRIVATE - LOOPBACK, remedy: JOIN };

impl Room {
    /// Checks that so many networks fit.
    pub(super) const fn check(&self, need: usize) -> Result<(), ConfigError> {
        let Self { networks, most, remedy } = *self;
        if need > most { Err(ConfigError::TooMany { networks, need, most, remedy }) } else { Ok(()) }
    }
}
