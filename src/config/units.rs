//! Durations, sizes and port ranges as text. Pure.

use std::ops::RangeInclusive;

use crate::calendar;

/// A whole number with a unit: what it is called, an example, the smallest unit in words, and all units, the largest
/// first.
pub(crate) struct Quantity {
    name: &'static str,
    example: &'static str,
    smallest: &'static str,
    units: &'static [(&'static str, u64)],
}

/// Seconds.
pub(crate) const DURATION: Quantity = Quantity {
    name: "a duration",
    example: "\"30s\", \"10m\", \"1h\" or \"2d\"",
    smallest: "seconds",
    units: &[("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)],
};

/// Bytes.
pub(crate) const SIZE: Quantity = Quantity {
    name: "a size",
    example: "\"64KiB\"",
    smallest: "bytes",
    units: &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)],
};

/// Bits per second.
pub(crate) const RATE: Quantity = Quantity {
    name: "a rate",
    example: "\"3Mbit/s\"",
    smallest: "bits per second",
    units: &[("Gbit/s", 1_000_000_000), ("Mbit/s", 1_000_000), ("kbit/s", 1000), ("bit/s", 1)],
};

impl Quantity {
    /// For "expected ...".
    pub(crate) fn example(&self) -> String {
        format!("{} such as {}", self.name, self.example)
    }

    /// Its units, the largest first, each with what it stands for in the smallest.
    pub(crate) const fn units(&self) -> &'static [(&'static str, u64)] {
        self.units
    }

    /// The number in the smallest unit.
    pub(crate) fn parse(&self, text: &str) -> Result<u64, String> {
        let (number, unit) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
        let names: Vec<&str> = self.units.iter().rev().map(|(name, _)| *name).collect();
        let [names @ .., last] = names.as_slice() else { return Err("has no units".to_owned()) };
        let names = names.join(", ");
        let allowed = format!("{} is a whole number and {names} or {last}, such as {}", self.name, self.example);
        if unit.is_empty() && !number.is_empty() {
            let unit = self.units.last().map_or("", |(unit, _)| unit);
            return Err(format!("the unit is missing: {allowed}; {} would be \"{number}{unit}\"", self.smallest));
        }
        let scale = self.units.iter().find(|(known, _)| *known == unit).map(|(_, scale)| *scale);
        match (number.parse::<u64>(), scale) {
            (Ok(number), Some(scale)) => number.checked_mul(scale).ok_or_else(|| self.too_large()),
            // Digits that are no number are too many of them.
            (Err(_), Some(_)) if !number.is_empty() => Err(self.too_large()),
            (_, _) => Err(allowed),
        }
    }

    fn too_large(&self) -> String {
        let (unit, scale) = self.units.first().copied().unwrap_or(("", 1));
        format!("is too large: {} goes up to {}{unit}", self.name, u64::MAX / scale)
    }

    /// In the largest unit that gives a whole number.
    pub(crate) fn show(&self, value: u64) -> String {
        let fits = |scale: u64| scale == 1 || (value != 0 && value.is_multiple_of(scale));
        let (unit, scale) = self.units.iter().find(|(_, scale)| fits(*scale)).unwrap_or(&("", 1));
        format!("{}{unit}", value / scale)
    }
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
        // Without an offset the time is not known.
        (None, Some(_)) | (Some(_), None) => return None,
    };
    (days * 86_400).checked_add_signed(seconds)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_counted_is_told_with_the_most_that_can() {
        for text in ["18446744074Gbit/s", "99999999999999999999999bit/s"] {
            assert_eq!(RATE.parse(text), Err("is too large: a rate goes up to 18446744073Gbit/s".to_owned()), "{text}");
        }
        assert_eq!(
            DURATION.parse("999999999999999999d"),
            Err("is too large: a duration goes up to 213503982334601d".to_owned())
        );
        assert!(DURATION.parse("d").unwrap_err().starts_with("a duration is a whole number and"));
    }

    #[test]
    fn rates_have_units_and_come_back() {
        for (text, bits) in [("1bit/s", 1), ("64kbit/s", 64_000), ("3Mbit/s", 3_000_000), ("10Gbit/s", 10_000_000_000)]
        {
            assert_eq!(RATE.parse(text), Ok(bits));
            assert_eq!(RATE.show(bits), text);
        }
        for text in ["", "3", "3Mb", "3 Mbit/s", "3MBit/s", "-1bit/s", "1.5Mbit/s", "99999999999999Gbit/s"] {
            assert!(RATE.parse(text).is_err(), "{text}");
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
            assert_eq!(DURATION.parse(text), Ok(seconds), "{text}");
        }
        assert!(DURATION.parse("600").unwrap_err().contains("\"600s\""));
        for text in ["", "s", "1 h", "1w", "-1s", "1.5h", "1h30m", "99999999999999999999s", "9999999999999999999d"] {
            assert!(DURATION.parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_count_in_powers_of_two() {
        for (text, bytes) in [("65556B", 65_556), ("64KiB", 65_536), ("1MiB", 1 << 20), ("2GiB", 2 << 30)] {
            assert_eq!(SIZE.parse(text), Ok(bytes), "{text}");
            assert_eq!(SIZE.show(bytes), text);
        }
        assert!(SIZE.parse("65556").unwrap_err().contains("\"65556B\""));
        for text in ["", "64KB", "64k", "KiB", "-1B", "99999999999999GiB"] {
            assert!(SIZE.parse(text).is_err(), "{text}");
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
            assert_eq!(DURATION.show(seconds), text);
        }
    }
}
