//! Arithmetic in place of branches, for the verifier's sake.

use core::hint::black_box;

/// Comparisons whose answer is a number, one or zero, without a branch.
#[derive(Clone, Copy)]
pub(super) struct Branchless {
    /// 63, which the compiler must not know: it would make branches of what it recognises.
    sign: u32,
}

impl Branchless {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { sign: black_box(63) }
    }

    /// Whether they are the same.
    #[inline(always)]
    pub(super) const fn same(self, a: u64, b: u64) -> u64 {
        let difference = a ^ b;
        (difference | difference.wrapping_neg()).wrapping_shr(self.sign) ^ 1
    }

    /// Whether `a` is less than `b`; both are below 2^63.
    #[inline(always)]
    pub(super) const fn less(self, a: u64, b: u64) -> u64 {
        a.wrapping_sub(b).wrapping_shr(self.sign)
    }

    /// The greater of the two; both are below 2^63.
    #[inline(always)]
    pub(super) const fn later(self, a: u64, b: u64) -> u64 {
        b ^ ((a ^ b) & self.less(b, a).wrapping_neg())
    }
}
