//! Counters that go on where another process stopped: they never fall, whichever process serves the scrape.
//!
//! What the core counts comes with its state. All else is counted anew in a process that took over, and shown as that
//! and what the old process showed last.

use std::collections::HashMap;

/// What is added to each series, by its name and labels.
#[derive(Debug, Default)]
pub(super) struct Inherited(HashMap<String, Number>);

/// A sample's value: whole where it is written so.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Number {
    Whole(u64),
    Real(f64),
}

impl Number {
    fn parse(text: &str) -> Option<Self> {
        text.parse().map(Self::Whole).or_else(|_| text.parse().map(Self::Real)).ok()
    }

    const fn real(self) -> f64 {
        match self {
            Self::Whole(value) => value as f64,
            Self::Real(value) => value,
        }
    }

    /// How much more the first is; nothing if it is not more.
    fn beyond(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Whole(one), Self::Whole(other)) => one.checked_sub(other).filter(|more| *more > 0).map(Self::Whole),
            (one, other) => Some(one.real() - other.real()).filter(|more| *more > 0.0).map(Self::Real),
        }
    }

    fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Whole(one), Self::Whole(other)) => Self::Whole(one.saturating_add(other)),
            (one, other) => Self::Real(one.real() + other.real()),
        }
    }
}

/// Every sample of a counter or a histogram: its series and its value.
fn rising(text: &str) -> impl Iterator<Item = (&str, Number)> {
    let mut rises = false;
    text.lines().filter_map(move |line| {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            rises = kind.ends_with(" counter") || kind.ends_with(" histogram");
        }
        sample(line).filter(|_| rises)
    })
}

fn sample(line: &str) -> Option<(&str, Number)> {
    if line.starts_with('#') {
        return None;
    }
    let (series, value) = line.rsplit_once(' ')?;
    Some((series, Number::parse(value)?))
}

impl Inherited {
    /// From the last text of the old process, and the first one of this.
    pub(super) fn new(old: &str, own: &str) -> Self {
        let own: HashMap<&str, Number> = rising(own).collect();
        let more = |(series, value): (&str, Number)| {
            let before = own.get(series).copied().unwrap_or(Number::Whole(0));
            Some((series.to_owned(), value.beyond(before)?))
        };
        Self(rising(old).filter_map(more).collect())
    }

    /// A text of this process with what came before added.
    pub(super) fn add_to(&self, text: &str) -> String {
        let mut sum = String::with_capacity(text.len() + text.len() / 8);
        for line in text.lines() {
            match sample(line).and_then(|(series, value)| Some((series, value.plus(*self.0.get(series)?)))) {
                Some((series, Number::Whole(value))) => sum.push_str(&format!("{series} {value}")),
                Some((series, Number::Real(value))) => sum.push_str(&format!("{series} {value}")),
                None => sum.push_str(line),
            }
            sum.push('\n');
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_histograms_go_on_and_gauges_do_not() {
        let old = "# TYPE a_total counter\na_total{x=\"1 2\"} 7\na_total{x=\"3\"} 5\n# TYPE g gauge\ng 9\n\
                   # TYPE s_total counter\ns_total 1.5\n# TYPE h histogram\nh_bucket{le=\"1\"} 3\nh_sum 2.5\nh_count 3\n";
        let own = "# HELP a_total words\n# TYPE a_total counter\na_total{x=\"1 2\"} 2\na_total{x=\"3\"} 5\n# TYPE g gauge\ng 1\n\
                   # TYPE s_total counter\ns_total 0.25\n# TYPE h histogram\nh_bucket{le=\"1\"} 0\nh_sum 0\nh_count 0\n";
        let inherited = Inherited::new(old, own);
        let now = own.replace("a_total{x=\"1 2\"} 2", "a_total{x=\"1 2\"} 4").replace("x=\"3\"} 5", "x=\"3\"} 6");
        let text = inherited.add_to(&now);
        for line in [
            "# HELP a_total words",
            "a_total{x=\"1 2\"} 9",
            "a_total{x=\"3\"} 6",
            "g 1",
            "s_total 1.5",
            "h_bucket{le=\"1\"} 3",
            "h_sum 2.5",
            "h_count 3",
        ] {
            assert!(text.lines().any(|of| of == line), "{line}:\n{text}");
        }
        assert_eq!(text.lines().count(), own.lines().count());
        assert_eq!(Inherited::new("", own).add_to(own), own, "nothing came before");
    }
}
