//! How much more than an empty program the gate may cost an unmarked caller, and counting a marked one.

use serde::Serialize;

/// Where an empty program costs next to nothing, this much more is still within the limit, nanoseconds.
const SLACK_NS: f64 = 15.0;

/// Most that the gate may cost over the call it is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Limit {
    /// Over no program at all, as a multiple of what an empty program at the same hooks costs over none.
    Times(f64),
    /// Nanoseconds more.
    Nanoseconds(f64),
}

impl Limit {
    /// What the gate may cost over the call it is compared with, nanoseconds, where that costs `empty_ns` over no program.
    pub(crate) fn allowance_ns(self, empty_ns: f64) -> f64 {
        match self {
            Self::Times(times) => ((times - 1.0) * empty_ns.max(0.0)).max(SLACK_NS),
            Self::Nanoseconds(most) => most,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Limit;

    #[test]
    fn half_as_much_again_is_allowed_where_that_is_more_than_the_slack() {
        assert!((Limit::Times(1.5).allowance_ns(60.0) - 30.0).abs() < 1e-9);
        assert!((Limit::Times(2.0).allowance_ns(24.0) - 24.0).abs() < 1e-9);
    }

    #[test]
    fn a_cheap_hook_is_allowed_the_slack_and_noise_below_zero_takes_none_of_it() {
        assert!((Limit::Times(1.5).allowance_ns(20.0) - 15.0).abs() < 1e-9);
        assert!((Limit::Times(1.5).allowance_ns(-3.0) - 15.0).abs() < 1e-9);
    }
}
