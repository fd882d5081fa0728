//! Medians and quartiles: the machine is disturbed by others, and these do not follow the odd slow sample.

use serde::Serialize;

/// The middle of some numbers and how far they spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// A quarter of them are below.
    pub(crate) low: f64,
    /// Half of them are below.
    pub(crate) median: f64,
    /// Three quarters of them are below.
    pub(crate) high: f64,
}

impl Spread {
    /// Of these numbers; of none: not a number.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Self { low: quantile(&sorted, 1), median: quantile(&sorted, 2), high: quantile(&sorted, 3) }
    }

    /// How far the median itself may be off when there are `count` numbers: the standard error of a median, with the distance of the
    /// quartiles for the spread (1.57 IQR / sqrt n are the notches of a box plot: McGill, Tukey and Larsen 1978).
    pub(crate) fn notch(&self, count: usize) -> f64 {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        1.57 * (self.high - self.low) / f64::from(count).sqrt()
    }
}

/// The `quarter`th quartile of sorted numbers, between two of them where it falls there.
fn quantile(sorted: &[f64], quarter: usize) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let (at, rest) = (last * quarter / 4, last * quarter % 4);
    let next = sorted[(at + 1).min(last)];
    let part = [0.0, 0.25, 0.5, 0.75][rest];
    sorted[at] + (next - sorted[at]) * part
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn quartiles_fall_between_numbers_where_they_must() {
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 2.0]), Spread { low: 1.75, median: 2.5, high: 3.25 });
        assert_eq!(Spread::of([7.0]), Spread { low: 7.0, median: 7.0, high: 7.0 });
    }

    #[test]
    fn one_slow_sample_does_not_move_the_median() {
        assert!((Spread::of([10.0, 11.0, 12.0, 13.0, 90_000.0]).median - 12.0).abs() < f64::EPSILON);
    }

    #[test]
    fn four_times_the_numbers_halve_the_doubt() {
        let spread = Spread::of([1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!((spread.notch(11) - 2.0 * spread.notch(44)).abs() < 1e-9);
    }
}
