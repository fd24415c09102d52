//! Durations, sizes and port ranges as text. Pure.

use std::ops::RangeInclusive;

use crate::calendar;

/// Seconds from "30s", "10m", "1h" or "2d".
pub(crate) fn duration(text: &str) -> Result<u64, String> {
    let allowed = "a duration is a whole number and s, m, h or d, such as \"30s\", \"10m\", \"1h\" or \"2d\"";
    let (number, unit) = split(text);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "" if !number.is_empty() => {
            return Err(format!("the unit is missing: {allowed}; seconds would be \"{number}s\""));
        }
        _ => return Err(allowed.to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| allowed.to_owned())?;
    number.checked_mul(seconds).ok_or_else(|| "longer than can be counted".to_owned())
}

/// Bytes from "65556B", "64KiB", "1MiB" or "1GiB".
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let allowed = "a size is a whole number and B, KiB, MiB or GiB, such as \"64KiB\"";
    let (number, unit) = split(text);
    let shift = match unit {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "" if !number.is_empty() => {
            return Err(format!("the unit is missing: {allowed}; bytes would be \"{number}B\""));
        }
        _ => return Err(allowed.to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| allowed.to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "larger than can be counted".to_owned())
}

/// Bits per second from "64kbit/s", "3Mbit/s" or "1Gbit/s".
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    let allowed = "a rate is a whole number and bit/s, kbit/s, Mbit/s or Gbit/s, such as \"3Mbit/s\"";
    let (number, unit) = split(text);
    let scale = match unit {
        "bit/s" => 1,
        "kbit/s" => 1_000,
        "Mbit/s" => 1_000_000,
        "Gbit/s" => 1_000_000_000,
        "" if !number.is_empty() => {
            return Err(format!("the unit is missing: {allowed}; bits per second would be \"{number}bit/s\""));
        }
        _ => return Err(allowed.to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| allowed.to_owned())?;
    number.checked_mul(scale).ok_or_else(|| "faster than can be counted".to_owned())
}

/// Bits per second in the form that the configuration takes.
pub(crate) fn show_rate(rate: u64) -> String {
    [(1_000_000_000, "Gbit/s"), (1_000_000, "Mbit/s"), (1_000, "kbit/s")]
        .into_iter()
        .find(|(scale, _)| rate != 0 && rate.is_multiple_of(*scale))
        .map_or_else(|| format!("{rate}bit/s"), |(scale, unit)| format!("{}{unit}", rate / scale))
}

/// Seconds since 1970 of "2026-12-31", at its end, or of "2026-12-31T12:00:00Z" (RFC 3339, any offset).
pub(crate) fn instant(text: &str) -> Option<u64> {
    let parsed: toml::value::Datetime = text.parse().ok()?;
    let date = parsed.date?;
    let days = calendar::days(date.year.into(), date.month.into(), date.day.into())?;
    let seconds = match (parsed.time, parsed.offset) {
        (None, None) => 86_400,
        (Some(time), Some(offset)) => {
            let minutes = match offset {
                toml::value::Offset::Z => 0,
                toml::value::Offset::Custom { minutes } => i64::from(minutes),
            };
            let second = i64::from(time.second.unwrap_or(0));
            i64::from(time.hour) * 3600 + i64::from(time.minute) * 60 + second - minutes * 60
        }
        // Without an offset nobody knows when it is.
        (None, Some(_)) | (Some(_), None) => return None,
    };
    (days * 86_400).checked_add_signed(seconds)
}

fn split(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

/// A range from "49152-65535".
pub(crate) fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let allowed = "a port range is two numbers from 1 to 65535, such as \"49152-65535\"";
    let number = |part: &str| part.trim().parse::<u16>().ok().filter(|port| *port != 0);
    let (first, last) = text.split_once('-').ok_or(allowed)?;
    let (Some(first), Some(last)) = (number(first), number(last)) else { return Err(allowed.to_owned()) };
    if first > last {
        return Err(format!("the first port is above the last; write \"{last}-{first}\""));
    }
    Ok(first..=last)
}

/// Seconds in words, in the form that the configuration takes.
pub(crate) fn show_seconds(seconds: u64) -> String {
    match seconds {
        0 => "0s".to_owned(),
        s if s % 86_400 == 0 => format!("{}d", s / 86_400),
        s if s % 3600 == 0 => format!("{}h", s / 3600),
        s if s % 60 == 0 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

/// Bytes in the form that the configuration takes.
pub(crate) fn show_bytes(bytes: u64) -> String {
    [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| bytes != 0 && bytes.is_multiple_of(1 << shift))
        .map_or_else(|| format!("{bytes}B"), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_units_and_come_back() {
        for (text, bits) in [("1bit/s", 1), ("64kbit/s", 64_000), ("3Mbit/s", 3_000_000), ("10Gbit/s", 10_000_000_000)]
        {
            assert_eq!(rate(text), Ok(bits));
            assert_eq!(show_rate(bits), text);
        }
        for text in ["", "3", "3Mb", "3 Mbit/s", "3MBit/s", "-1bit/s", "1.5Mbit/s", "99999999999999Gbit/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_day_counts_to_its_end_and_a_time_needs_an_offset() {
        for (text, unix) in [
            ("1970-01-01", 86_400),
            ("2026-12-31", 1_798_761_600),
            ("2024-02-29T00:00:00Z", 1_709_164_800),
            ("2026-11-21T12:00:00+01:00", 1_795_258_800),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
        ] {
            assert_eq!(instant(text), Some(unix), "{text}");
        }
        for text in ["", "tomorrow", "2026-13-01", "2026-12-31T12:00:00", "12:00:00", "1969-12-30"] {
            assert_eq!(instant(text), None, "{text}");
        }
    }

    #[test]
    fn durations_need_their_unit() {
        for (text, seconds) in [("0s", 0), ("30s", 30), ("10m", 600), ("1h", 3600), ("2d", 172_800)] {
            assert_eq!(duration(text), Ok(seconds), "{text}");
        }
        assert!(duration("600").unwrap_err().contains("\"600s\""));
        for text in ["", "s", "1 h", "1w", "-1s", "1.5h", "1h30m", "99999999999999999999s", "9999999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_count_in_powers_of_two() {
        for (text, bytes) in [("65556B", 65_556), ("64KiB", 65_536), ("1MiB", 1 << 20), ("2GiB", 2 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
            assert_eq!(show_bytes(bytes), text);
        }
        assert!(size("65556").unwrap_err().contains("\"65556B\""));
        for text in ["", "64KB", "64k", "KiB", "-1B", "99999999999999GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn port_ranges_go_upwards_from_one() {
        assert_eq!(ports("49152-65535"), Ok(49152..=65535));
        assert_eq!(ports("5000-5000"), Ok(5000..=5000));
        assert!(ports("65535-49152").unwrap_err().contains("\"49152-65535\""));
        for text in ["", "5000", "0-5", "1-65536", "a-b", "1-2-3"] {
            assert!(ports(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_show_in_the_largest_unit_that_fits() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (600, "10m"), (3600, "1h"), (172_800, "2d"), (3601, "3601s")] {
            assert_eq!(show_seconds(seconds), text);
        }
    }
}
