//! Seconds since 1970 as dates and back, in UTC and the Gregorian calendar. Pure.
//!
//! Years are taken from March on, so that the leap day is the last of a year, and in cycles of 400, which all
//! have 146,097 days.

const SECONDS_PER_DAY: u64 = 86_400;

/// Days of a cycle of 400 years.
const CYCLE: u64 = 146_097;

/// Days from 0000-03-01 to 1970-01-01.
const BEFORE_1970: u64 = 719_468;

const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// The months as mail writes them.
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// `2026-11-21T05:30:12Z` (RFC 3339).
#[must_use]
pub fn rfc3339(unix: u64) -> String {
    let (year, month, day) = date(unix / SECONDS_PER_DAY);
    format!("{year:04}-{month:02}-{day:02}T{}Z", time_of_day(unix))
}

/// `Sat, 21 Nov 2026 05:30:12 +0000` (RFC 2822).
#[must_use]
pub fn rfc2822(unix: u64) -> String {
    let (year, month, day) = date(unix / SECONDS_PER_DAY);
    let (name, weekday) = (MONTHS[month as usize - 1], DAYS[(unix / SECONDS_PER_DAY % 7) as usize]);
    format!("{weekday}, {day:02} {name} {year:04} {} +0000", time_of_day(unix))
}

fn time_of_day(unix: u64) -> String {
    let second = unix % SECONDS_PER_DAY;
    format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of a day counted from 1970-01-01.
const fn date(days: u64) -> (u64, u64, u64) {
    let since_march = days + BEFORE_1970;
    let (cycle, day) = (since_march / CYCLE, since_march % CYCLE);
    // Leap days that lie before: one in 1,461 days, but not at the end of a century, except the last one.
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // From March on the months have 31, 30, 31, 30, 31 days, and again: 153 in five.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (cycle * 400 + year + next_year, month, day)
}

/// The day counted from 1970-01-01 of a year from 1970 on, a month from 1 to 12 and a day of it.
///
/// A day that its month does not have counts on into the next.
#[must_use]
pub fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if year < 1970 || !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    let years = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    (365 * years + years / 4 - years / 100 + years / 400 + of_year).checked_sub(BEFORE_1970)
}

/// The second of a time as [`rfc3339`] writes it: UTC, with `T` and `Z`, without fractions.
#[must_use]
pub fn unix(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let shape = b"dddd-dd-ddTdd:dd:ddZ";
    let fits = |(byte, of): (&u8, &u8)| if *of == b'd' { byte.is_ascii_digit() } else { byte == of };
    if bytes.len() != shape.len() || !bytes.iter().zip(shape).all(fits) {
        return None;
    }
    let number = |from: usize, to: usize| text[from..to].parse::<u64>().ok();
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let day = number(8, 10).filter(|day| *day <= 31)?;
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = days(number(0, 4)?, number(5, 7)?, day)?;
    Some(days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (unix, iso, mail) in [
            (0, "1970-01-01T00:00:00Z", "Thu, 01 Jan 1970 00:00:00 +0000"),
            (951_782_399, "2000-02-28T23:59:59Z", "Mon, 28 Feb 2000 23:59:59 +0000"),
            (951_782_400, "2000-02-29T00:00:00Z", "Tue, 29 Feb 2000 00:00:00 +0000"),
            (951_827_696, "2000-02-29T12:34:56Z", "Tue, 29 Feb 2000 12:34:56 +0000"),
            (951_868_800, "2000-03-01T00:00:00Z", "Wed, 01 Mar 2000 00:00:00 +0000"),
            (1_700_000_000, "2023-11-14T22:13:20Z", "Tue, 14 Nov 2023 22:13:20 +0000"),
            (1_709_164_800, "2024-02-29T00:00:00Z", "Thu, 29 Feb 2024 00:00:00 +0000"),
            (1_735_689_599, "2024-12-31T23:59:59Z", "Tue, 31 Dec 2024 23:59:59 +0000"),
            (1_795_239_000, "2026-11-21T05:30:00Z", "Sat, 21 Nov 2026 05:30:00 +0000"),
            (4_107_542_400, "2100-03-01T00:00:00Z", "Mon, 01 Mar 2100 00:00:00 +0000"),
        ] {
            assert_eq!(rfc3339(unix), iso);
            assert_eq!(rfc2822(unix), mail);
        }
    }

    #[test]
    fn every_day_for_400_years_is_the_one_after_the_day_before_and_comes_back() {
        let mut before = date(0);
        assert_eq!(days(1970, 1, 1), Some(0));
        for day in 1..CYCLE {
            let (year, month, of_month) = date(day);
            let follows = (year, month, of_month) == (before.0, before.1, before.2 + 1)
                || (year, month, of_month) == (before.0, before.1 + 1, 1)
                || (year, month, of_month) == (before.0 + 1, 1, 1);
            assert!(follows, "{before:?} then {:?}", (year, month, of_month));
            assert_eq!(days(year, month, of_month), Some(day));
            before = (year, month, of_month);
        }
        assert_eq!(before, (2369, 12, 31));
        assert_eq!(
            (days(1969, 12, 31), days(2026, 13, 1), days(2026, 0, 1), days(2026, 1, 0)),
            (None, None, None, None)
        );
    }

    #[test]
    fn a_time_is_read_as_it_is_written_and_nothing_else_is() {
        for seconds in [0, 951_782_399, 951_827_696, 1_735_689_599, 1_800_000_000] {
            assert_eq!(unix(&rfc3339(seconds)), Some(seconds));
        }
        for wrong in [
            "",
            "noon",
            "2026-11-21",
            "2026-11-21T05:30:12",
            "2026-11-21T05:30:12+01:00",
            "2026-11-21t05:30:12Z",
            "2026-13-21T05:30:12Z",
            "2026-11-32T05:30:12Z",
            "2026-11-21T24:30:12Z",
            "2026-11-21T05:60:12Z",
            "1969-11-21T05:30:12Z",
            "2026-11-21T05:30:1\u{e9}",
        ] {
            assert_eq!(unix(wrong), None, "{wrong}");
        }
    }
}
