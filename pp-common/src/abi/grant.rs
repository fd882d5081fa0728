//! What receipts come to in the maps: grants by prefix, and the budgets they are counted against.

use super::{NameId, Serial};

/// Most grants that can hold for one address.
pub const MAX_GRANTS_PER_PREFIX: usize = 16;

/// One line of a grant: a receipt's port range on the prefix that holds it,
/// with all that is needed to check it but its budget.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The agent.
    pub agent: NameId,
    /// The session it is bound to; zero: any session of the agent.
    pub session: u64,
    /// The owners it names, one bit each; see [`MAX_USER_BITS`].
    pub users: u64,
    /// First instant.
    pub from_ns: u64,
    /// First instant after.
    pub until_ns: u64,
    /// The receipt.
    pub serial: Serial,
    /// First port, inclusive.
    pub port_first: u16,
    /// Last port, inclusive.
    pub port_last: u16,
    /// IP protocol number.
    pub transport: u8,
    /// `GRANT_*` flags.
    pub flags: u8,
    /// Zero.
    pub pad: [u8; 6],
}

/// The receipt was revoked.
pub const GRANT_REVOKED: u8 = 1;
/// The receipt's count was lost with a reboot.
pub const GRANT_EXHAUSTED: u8 = 2;
/// The receipt's credential scope allows logins.
pub const GRANT_LOGIN: u8 = 4;
/// Most owners that all receipts of a generation name together: each has a
/// bit of [`Grant::users`]. All bits set: any owner.
pub const MAX_USER_BITS: usize = 64;

/// Every grant that covers a prefix, those of shorter prefixes included.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantList {
    /// How many of `grants` are set.
    pub len: u32,
    /// Zero.
    pub pad: u32,
    /// The grants.
    pub grants: [Grant; MAX_GRANTS_PER_PREFIX],
}

/// What has been used of a receipt.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// New flows so far.
    pub connections: u64,
    /// New flows to login ports and gateways so far.
    pub attempts: u64,
}

/// A receipt's budget as a decision reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// What has been used.
    pub spent: Spent,
    /// Most new flows; zero: no limit.
    pub max_connections: u64,
    /// Most new flows to login ports and gateways.
    pub max_attempts: u64,
}

/// The same as it lies in its map, with the lock under which it is counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BudgetValue {
    /// A `bpf_spin_lock`.
    pub lock: u32,
    /// Its own key: a recycled map element is not this receipt.
    pub serial: Serial,
    /// See [`Spent`].
    pub connections: u64,
    /// See [`Spent`].
    pub attempts: u64,
    /// See [`Budget`].
    pub max_connections: u64,
    /// See [`Budget`].
    pub max_attempts: u64,
}

const _: () = {
    assert!(size_of::<Grant>() == 5 * 8 + 4 + 2 * 2 + 2 + 6);
    assert!(size_of::<GrantList>() == 8 + MAX_GRANTS_PER_PREFIX * 56);
    assert!(size_of::<BudgetValue>() == 2 * 4 + 4 * 8);
    assert!(size_of::<Spent>() == 2 * 8);
};
