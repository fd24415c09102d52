//! Prometheus' text format, version 0.0.4, written straight from the values of one scrape.
//!
//! A family is named, described and filled in one statement, so none can lack its description or be described twice.

use std::fmt::{Display, Write as _};

/// What `/metrics` answers, as it grows.
#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    pub(super) fn into_string(self) -> String {
        self.0
    }

    /// A number that only rises; its name ends in `_total`.
    pub(super) fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "counter", help)
    }

    /// A number that rises and falls.
    pub(super) fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    /// Counts by size.
    pub(super) fn histogram(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "histogram", help)
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        let text = &mut self.0;
        // Nobody can fail to write to a string.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text, name }
    }
}

/// One metric with all its series.
#[must_use = "a family without a value is only a description"]
pub(super) struct Family<'t> {
    text: &'t mut String,
    name: &'static str,
}

impl Family<'_> {
    /// Its one series, without labels.
    pub(super) fn value(mut self, value: impl Display) {
        self.sample("", &[], value);
    }

    /// A series for each value of one label.
    pub(super) fn each<L: AsRef<str>, V: Display>(mut self, label: &str, series: impl IntoIterator<Item = (L, V)>) {
        for (of_label, value) in series {
            self.sample("", &[(label, of_label.as_ref())], value);
        }
    }

    /// A series for each pair of values of two labels.
    pub(super) fn each_of_two<A: AsRef<str>, B: AsRef<str>, V: Display>(
        mut self,
        labels: [&str; 2],
        series: impl IntoIterator<Item = ([A; 1], [B; 1], V)>,
    ) {
        for ([first], [second], value) in series {
            self.sample("", &[(labels[0], first.as_ref()), (labels[1], second.as_ref())], value);
        }
    }

    /// The series of a histogram for one value of a label: the counts of each bucket alone, and the sum of all that was counted.
    pub(super) fn buckets(
        mut self,
        label: &str,
        series: impl IntoIterator<Item = (&'static str, Vec<(u64, u64)>, u64)>,
    ) {
        for (of_label, buckets, sum) in series {
            let mut count = 0;
            for (largest, in_bucket) in buckets {
                count += in_bucket;
                self.sample("_bucket", &[(label, of_label), ("le", &largest.to_string())], count);
            }
            self.sample("_bucket", &[(label, of_label), ("le", "+Inf")], count);
            self.sample("_sum", &[(label, of_label)], sum);
            self.sample("_count", &[(label, of_label)], count);
        }
    }

    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        for (at, (label, of_label)) in labels.iter().enumerate() {
            self.text.push(if at == 0 { '{' } else { ',' });
            self.text.push_str(label);
            self.text.push_str("=\"");
            for letter in of_label.chars() {
                match letter {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_as_the_format_wants_them() {
        let mut text = Text::default();
        text.gauge("a", "Now").value(1.5);
        text.counter("b_total", "By reason").each("reason", [("x", 1_u64), ("\"\\\n", 2)]);
        text.gauge("c", "By two").each_of_two(["d", "e"], [(["1"], ["2"], -3_i64)]);
        text.histogram("h", "Sizes").buckets("of", [("x", vec![(1, 2), (2, 0), (4, 3)], 13)]);
        let wanted = r#"# HELP a Now
# TYPE a gauge
a 1.5
# HELP b_total By reason
# TYPE b_total counter
b_total{reason="x"} 1
b_total{reason="\"\\\n"} 2
# HELP c By two
# TYPE c gauge
c{d="1",e="2"} -3
# HELP h Sizes
# TYPE h histogram
h_bucket{of="x",le="1"} 2
h_bucket{of="x",le="2"} 2
h_bucket{of="x",le="4"} 5
h_bucket{of="x",le="+Inf"} 5
h_sum{of="x"} 13
h_count{of="x"} 5
"#;
        assert_eq!(text.into_string(), wanted);
    }
}
