//! The daemon's side of the rate rules. It writes the host's own addresses, reads what sessions tried to reach, and removes what is too
//! old.

use std::collections::HashSet;
use std::sync::PoisonError;

use aya::maps::lpm_trie::Key;
use nix::ifaddrs::getifaddrs;
use pp_common::{
    abi::{CLAIMED_NS, PREFIX_HEAD_BITS, PrefixKey},
    behaviour::{History, LIMITS_COUNT_OWN, Scope, scope},
    decide::{Attempt, is_login_port},
    dest::Addr,
    maps::{CLAIMED, OWN},
};

use super::{Gate, KernelError};
use crate::os::host;

impl Gate {
    /// Updates the host's own addresses, and returns them if they have changed. Addresses of other network namespaces are not included.
    ///
    /// # Errors
    /// They cannot be read, or the kernel refused an entry.
    pub(crate) fn refresh_own(&self) -> Result<Option<Vec<Addr>>, KernelError> {
        let found = own_addresses()?;
        let mut known = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref() == Some(&found) {
            return Ok(None);
        }
        if found.len() > OWN.room() {
            tracing::warn!("own addresses: {} found, {} fit; attempts to the others are judged", found.len(), OWN.room());
        }
        let wanted: Vec<Addr> = found.iter().copied().take(OWN.room()).collect();
        let over = self.maps.own.keys()?.into_iter().filter(|addr| !wanted.contains(addr));
        over.into_iter().try_for_each(|addr| self.maps.own.remove(&addr))?;
        wanted.iter().try_for_each(|addr| self.maps.own.insert(addr, &1))?;
        *known = Some(found);
        Ok(Some(wanted))
    }

    /// Makes room for addresses that sessions send from and that are not the host's. Once the table is half full, addresses that were not
    /// used for ten minutes are removed.
    ///
    /// RACE: a session may use an address again between the look and the removal. The address would then count as a stranger's, so its
    /// entries in `HEARD` are removed too, now and the next time.
    ///
    /// # Errors
    /// A map cannot be read, or the kernel refused a removal.
    pub(crate) fn expire_claims(&self, now_ns: u64) -> Result<usize, KernelError> {
        let all = self.maps.claimed.entries()?;
        let mut gone = self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut suspects = std::mem::take(&mut *gone);
        if all.len() > CLAIMED.room() / 2 {
            gone.extend(all.iter().filter(|(_, last)| last.saturating_add(CLAIMED_NS) < now_ns).map(|(addr, _)| *addr));
        }
        gone.iter().try_for_each(|addr| self.maps.claimed.remove(addr))?;
        suspects.extend(&*gone);
        if !suspects.is_empty() {
            let spoken = self.maps.heard.keys()?.into_iter().filter(|key| suspects.contains(&key.addr));
            spoken.into_iter().try_for_each(|key| self.maps.heard.remove(&key))?;
        }
        Ok(all.len() - gone.len())
    }

    /// Whether, and how, the rate rules apply to an attempt whose destination nothing protects.
    ///
    /// # Errors
    /// A map cannot be read.
    pub(crate) fn scope(&self, attempt: &Attempt) -> Result<Scope, KernelError> {
        let control = self.maps.control()?;
        let addr = attempt.addr.embedded().unwrap_or(attempt.addr);
        let key = Key::new(PREFIX_HEAD_BITS + 128, PrefixKey { generation: control.generation, pad: 0, addr });
        let network = self.maps.judged_networks.get(&key);
        let login = is_login_port(attempt.transport, attempt.port);
        let found = scope(network.as_ref(), login, attempt.port);
        let limits = self.maps.limits.get(control.generation & 1)?;
        let own = limits.flags & LIMITS_COUNT_OWN == 0 && self.maps.own.lock().get(&addr, 0).is_ok();
        Ok(if own { Scope::Nothing } else { found })
    }

    /// What a session recently tried to reach, if anything.
    #[must_use]
    pub(crate) fn history(&self, session: u64) -> Option<Box<History>> {
        self.maps.histories.lock().get(&session, 0).ok().map(|kept| Box::new(kept.value))
    }

    /// Removes the histories of sessions that have ended and in which nothing counts any more. Returns how many are left.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub(crate) fn expire_histories(&self) -> Result<usize, KernelError> {
        let now_ns = host::boot_ns().unwrap_or(0);
        let over: Vec<u64> =
            self.sessions()?.into_iter().filter(|session| self.history(*session).is_some_and(|history| history.is_over(now_ns))).collect();
        // RACE: a live session whose processes change at the same time may be missed here. Its history is over too, so nothing is lost.
        let alive: HashSet<u64> = self.marks()?.into_iter().map(|(_, mark)| mark.session).collect();
        for session in over.into_iter().filter(|session| !alive.contains(session)) {
            self.maps.histories.remove(&session)?;
        }
        let kept: HashSet<u64> = self.sessions()?.into_iter().collect();
        let over = self.maps.logins.keys()?.into_iter().filter(|key| !kept.contains(&key.session));
        over.into_iter().try_for_each(|key| self.maps.logins.remove(&key))?;
        Ok(kept.len())
    }

    /// Sessions with a history. Only keys are read, since a history is large.
    fn sessions(&self) -> Result<Vec<u64>, KernelError> {
        self.maps.histories.keys()
    }
}

fn own_addresses() -> Result<Vec<Addr>, KernelError> {
    let found = getifaddrs().map_err(|error| KernelError::io("own addresses")(error.into()))?;
    let mut addresses: Vec<Addr> = found
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| Addr::v4(address.ip().octets()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| Addr::v6(address.ip().octets())))
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}
