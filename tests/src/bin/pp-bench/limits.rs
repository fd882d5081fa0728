//! How much more than an empty program the gate may cost an unmarked caller.

use serde::Serialize;

/// Where an empty program costs next to nothing, this much more is still within the limit, nanoseconds.
const SLACK_NS: f64 = 15.0;

/// Most that the gate may cost over no program at all, as a multiple of what an empty program at the same hooks costs over none.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Limit(pub(crate) f64);

impl Limit {
    /// What the gate may cost over the empty program, nanoseconds, where that costs `empty_ns` over none.
    pub(crate) fn allowance_ns(self, empty_ns: f64) -> f64 {
        ((self.0 - 1.0) * empty_ns.max(0.0)).max(SLACK_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::Limit;

    #[test]
    fn half_as_much_again_is_allowed_where_that_is_more_than_the_slack() {
        assert!((Limit(1.5).allowance_ns(60.0) - 30.0).abs() < 1e-9);
        assert!((Limit(2.0).allowance_ns(24.0) - 24.0).abs() < 1e-9);
    }

    #[test]
    fn a_cheap_hook_is_allowed_the_slack_and_noise_below_zero_takes_none_of_it() {
        assert!((Limit(1.5).allowance_ns(20.0) - 15.0).abs() < 1e-9);
        assert!((Limit(1.5).allowance_ns(-3.0) - 15.0).abs() < 1e-9);
    }
}
