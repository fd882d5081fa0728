//! Which link of which network namespace an attempt means: looked up only where policy names no place.

use core::ffi::c_void;

use pp_common::decide::{LINK_IN, LINK_PACKET, Link};
use pp_common::turns::Direction;

use super::kernel::{offset, read};

/// `sin6_scope_id` in a `sockaddr_in6`.
const SCOPE_ID: usize = 24;

/// What the link of an attempt is found from.
#[derive(Clone, Copy)]
pub(crate) struct Near {
    /// The `struct sock`; zero: there is none.
    pub(crate) sk: u64,
    /// A kernel copy of the address that the call names; zero: none.
    pub(crate) name: u64,
    /// The packet's interface.
    pub(crate) ifindex: u32,
    /// `LINK_*` flags.
    pub(crate) flags: u32,
}

impl Near {
    /// An attempt that goes nowhere.
    pub(crate) const NOWHERE: Self = Self { sk: 0, name: 0, ifindex: 0, flags: 0 };

    /// A call on this socket that names this address, or none.
    #[inline(always)]
    pub(crate) fn call(sk: u64, name: u64) -> Self {
        Self { sk, name, ifindex: 0, flags: 0 }
    }

    /// A packet of this socket, with the `LINK_*` flags that its headers give it.
    #[inline(always)]
    pub(crate) fn packet(sk: u64, ifindex: u32, direction: Direction, flags: u32) -> Self {
        let direction = if direction == Direction::In { LINK_IN } else { 0 };
        Self { sk, name: 0, ifindex, flags: LINK_PACKET | direction | flags }
    }

    /// The link. Its namespace is zero where it cannot be read, which refuses.
    #[inline(always)]
    pub(crate) fn link(&self) -> Link {
        Link { netns: netns(self.sk), ifindex: self.ifindex(), flags: self.flags }
    }

    /// Zero: not known before the packet leaves, and checked then.
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        if self.flags & LINK_PACKET != 0 {
            return self.ifindex;
        }
        if self.name != 0
            && let Some(scope) = read::<u32>(self.name, SCOPE_ID)
            && scope != 0
        {
            return scope;
        }
        match read::<u32>(self.sk, offset!(sk_bound_dev_if)) {
            Some(bound) => bound,
            None => 0,
        }
    }
}

/// Inode number of a socket's network namespace; zero: it cannot be read.
#[inline(always)]
pub(crate) fn netns(sk: u64) -> u32 {
    let number = match read::<u64>(sk, offset!(sk_net)) {
        Some(net) => read::<u32>(net, offset!(net_inum)),
        None => None,
    };
    match number {
        Some(number) => number,
        None => 0,
    }
}

/// A pointer that the verifier knows, as a plain number: it is read back from the stack.
///
/// VERIFIER: "pointer arithmetic on sock_common prohibited" otherwise.
#[inline(always)]
pub(crate) fn number(pointer: *const c_void) -> u64 {
    let slot = pointer;
    match read::<u64>(&raw const slot as u64, 0) {
        Some(number) => number,
        None => 0,
    }
}
