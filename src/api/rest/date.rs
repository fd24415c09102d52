//! Seconds since 1970 as text. Pure; the civil calendar by counting days from a March.

const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

struct Civil {
    year: u64,
    month: u64,
    day: u64,
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
}

fn civil(unix: u64) -> Civil {
    let (days, seconds) = (unix / 86_400, unix % 86_400);
    // Years that begin in March have their leap day at the end; 719,468 days lie between 0000-03-01 and 1970-01-01.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    Civil {
        year: era * 400 + year_of_era + u64::from(month <= 2),
        month,
        day: of_year - (153 * from_march + 2) / 5 + 1,
        weekday: usize::try_from(days % 7).unwrap_or(0),
        hour: seconds / 3600,
        minute: seconds / 60 % 60,
        second: seconds % 60,
    }
}

/// `2026-11-21T05:28:00Z`.
pub(super) fn iso(unix: u64) -> String {
    let Civil { year, month, day, hour, minute, second, .. } = civil(unix);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `Sat, 21 Nov 2026 05:28:00 +0000` (RFC 2822).
pub(super) fn rfc2822(unix: u64) -> String {
    let Civil { year, month, day, weekday, hour, minute, second } = civil(unix);
    let name = MONTHS[usize::try_from(month - 1).unwrap_or(0)];
    format!("{}, {day:02} {name} {year:04} {hour:02}:{minute:02}:{second:02} +0000", DAYS[weekday])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_agree_with_known_ones() {
        for (unix, iso_text, rfc_text) in [
            (0, "1970-01-01T00:00:00Z", "Thu, 01 Jan 1970 00:00:00 +0000"),
            (951_782_399, "2000-02-28T23:59:59Z", "Mon, 28 Feb 2000 23:59:59 +0000"),
            (951_827_696, "2000-02-29T12:34:56Z", "Tue, 29 Feb 2000 12:34:56 +0000"),
            (1_700_000_000, "2023-11-14T22:13:20Z", "Tue, 14 Nov 2023 22:13:20 +0000"),
            (1_795_239_000, "2026-11-21T05:30:00Z", "Sat, 21 Nov 2026 05:30:00 +0000"),
            (4_107_542_400, "2100-03-01T00:00:00Z", "Mon, 01 Mar 2100 00:00:00 +0000"),
        ] {
            assert_eq!(iso(unix), iso_text);
            assert_eq!(rfc2822(unix), rfc_text);
        }
    }
}
