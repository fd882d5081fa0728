//! Barriers for the verifier: what it knows of a value ends here, so that the code behind is followed once and not once for each way that
//! leads to it. See `docs/internals/verifier.md`.

use core::hint::black_box;

use pp_common::{
    abi::SockMark,
    decide::{Attempt, Kind},
    dest::Addr,
};

use super::near::Near;

/// A zero in memory that nobody writes: combined with it, a number is unknown to the verifier.
pub(crate) struct Barrier(*const u64);

impl Barrier {
    /// By the zero of this mark.
    #[inline(always)]
    pub(crate) fn of(sock: &SockMark) -> Self {
        Self(&raw const sock.zero)
    }

    /// The number, of which the verifier knows nothing any more. Zero is read anew each time: what
    /// a comparison finds out about one reading is not known of the next.
    #[inline(always)]
    pub(crate) fn opaque(&self, number: u64) -> u64 {
        // SAFETY: a member of a map value, which outlives this program's run.
        black_box(number ^ unsafe { core::ptr::read_volatile(self.0) })
    }

    /// The same of an address.
    #[inline(always)]
    pub(crate) fn addr(&self, addr: &Addr) -> Addr {
        Addr([self.opaque(addr.0[0]), self.opaque(addr.0[1])])
    }

    /// The same of an attempt.
    #[inline(always)]
    pub(crate) fn attempt(&self, attempt: &Attempt) -> Attempt {
        Attempt {
            addr: self.addr(&attempt.addr),
            port: self.opaque(u64::from(attempt.port)) as u16,
            transport: self.opaque(u64::from(attempt.transport)) as u8,
            kind: Kind::or_widest(self.opaque(attempt.kind as u64) as u8),
            counted: 0,
        }
    }
}

/// VERIFIER: combines the attempt with a zero from memory that nobody writes, so that what the
/// paths before knew of it need not be followed through what comes after.
#[inline(always)]
pub(crate) fn hide_attempt(zero: u64, attempt: &mut Attempt) -> u8 {
    attempt.transport = black_box(attempt.transport ^ zero as u8);
    attempt.port = black_box(attempt.port ^ zero as u16);
    attempt.addr.0[0] = black_box(attempt.addr.0[0] ^ zero);
    attempt.addr.0[1] = black_box(attempt.addr.0[1] ^ zero);
    let kind = black_box(attempt.kind as u8 ^ zero as u8);
    attempt.kind = Kind::or_widest(kind);
    kind
}

/// VERIFIER: as `hide_attempt`.
#[inline(always)]
pub(crate) fn hide_link(zero: u64, near: Near) -> Near {
    Near { name: black_box(near.name ^ zero), flags: black_box(near.flags ^ zero as u32), ..near }
}
