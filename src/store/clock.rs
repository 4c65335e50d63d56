//! The one place that reads the wall clock. Times are kept for people and for clean-up; none enters a key.

use std::time::{SystemTime, UNIX_EPOCH};

/// The time of the wall clock.
#[expect(clippy::disallowed_methods, reason = "run bookkeeping: this is the clock's single home")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}

/// A name for a run that sorts by time: `20261123-152518-3fa9c1`.
pub(crate) fn run_id() -> String {
    let now = now_ns();
    let unique = blake3::hash(format!("{now} {}", std::process::id()).as_bytes()).to_hex();
    format!("{}-{}", utc(now / 1_000_000_000), &unique[..6])
}

/// `20261123-152518` for a time in seconds since 1970.
pub(crate) fn utc(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Counts from 1 March of year 0, so that the leap day ends a year; 146,097 days are 400 years.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let in_year = day - (365 * year + year / 4 - year / 100);
    let march_month = (5 * in_year + 2) / 153;
    let date = in_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}{month:02}{date:02}-{:02}{:02}{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calendar_is_right_at_the_edges() {
        for (seconds, text) in [
            (0, "19700101-000000"),
            (951_782_400, "20000229-000000"),
            (951_868_799, "20000229-235959"),
            (951_868_800, "20000301-000000"),
            (1_735_689_599, "20241231-235959"),
            (4_107_542_400, "21000301-000000"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }

    #[test]
    fn every_day_of_five_centuries_follows_the_one_before() {
        let leap =
            |year: u32| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for count in 0..180_000_i64 {
            let expected = format!("{year:04}{month:02}{day:02}-000000");
            assert_eq!(utc(count * 86_400), expected);
            let length = match month {
                2 if leap(year) => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
        assert!(year > 2460);
    }

    #[test]
    fn runs_have_different_names() {
        assert_ne!(run_id(), run_id());
    }
}
