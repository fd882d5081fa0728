//! Instants in the form of receipts, `YYYY-MM-DDTHH:mm:ss.sssZ`, as milliseconds since 1970 (wall clock).

use jiff::Timestamp;

/// Milliseconds since 1970 of `text`; `None` unless it is a real date since 1970 in exactly this form.
#[must_use]
pub fn parse(text: &str) -> Option<i64> {
    let timestamp: Timestamp = text.parse().ok()?;
    let ms = timestamp.as_millisecond();
    (ms >= 0 && format(ms) == text).then_some(ms)
}

/// Writes `ms` in that form. A time past the year 9999 is written as the last instant of 9999.
#[must_use]
pub fn format(ms: i64) -> String {
    let timestamp = Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX);
    timestamp.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::{format, parse};

    #[test]
    fn real_dates_round_trip() {
        for (text, ms) in [
            ("1970-01-01T00:00:00.000Z", 0),
            ("2026-09-01T14:28:00.000Z", 1_788_272_880_000),
            ("2024-02-29T23:59:59.999Z", 1_709_251_199_999),
        ] {
            assert_eq!(parse(text), Some(ms));
            assert_eq!(format(ms), text);
        }
    }

    #[test]
    fn other_forms_and_unreal_dates_are_not_instants() {
        for text in [
            "",
            "now",
            "2026-09-01",
            "2026-09-01T14:28:00Z",
            "2026-09-01T14:28:00.00Z",
            "2026-09-01T14:28:00.0000Z",
            "2026-09-01t14:28:00.000z",
            "2026-09-01 14:28:00.000Z",
            "2026-09-01T14:28:00.000+00:00",
            "2026-02-29T00:00:00.000Z",
            "2026-13-01T00:00:00.000Z",
            "2026-09-01T24:00:00.000Z",
            "2026-09-01T14:28:60.000Z",
            "1969-12-31T23:59:59.999Z",
            " 2026-09-01T14:28:00.000Z",
            "2026-09-01T14:28:00.000Z\n",
            "+002026-09-01T14:28:00.000Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
