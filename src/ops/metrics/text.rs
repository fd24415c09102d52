//! Prometheus' text format, version 0.0.4, from the values of one scrape.
//!
//! A family is named, described and filled in one statement, so none can lack its description or be described twice.
//! An exporter made for this scrape renders them; what it can't take (histograms that were counted already, counters
//! of fractions) is written here.

use std::fmt::{Display, Write as _};

use metrics::{Label, counter, describe_counter, describe_gauge, gauge, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

/// What `/metrics` answers, as it grows.
pub struct Text {
    exporter: PrometheusRecorder,
    by_hand: String,
}

impl Default for Text {
    fn default() -> Self {
        Self { exporter: PrometheusBuilder::new().build_recorder(), by_hand: String::new() }
    }
}

/// A value of one series.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum MetricValue {
    /// A whole number.
    Whole(u64),
    /// One with fractions.
    Real(f64),
}

macro_rules! values {
    ($($kind:ty => $value:ident $with:expr),+ $(,)?) => {
        $(impl From<$kind> for MetricValue {
            fn from(value: $kind) -> Self {
                Self::$value($with(value))
            }
        })+
    };
}

values! {
    u8 => Whole u64::from,
    i32 => Real f64::from,
    &u64 => Whole |value: &u64| *value,
    u32 => Whole u64::from,
    u64 => Whole std::convert::identity,
    usize => Whole |value| value as u64,
    i64 => Real |value| value as f64,
    f64 => Real std::convert::identity,
}

impl MetricValue {
    const fn real(self) -> f64 {
        match self {
            Self::Whole(value) => value as f64,
            Self::Real(value) => value,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum MetricKind {
    Counter,
    Gauge,
}

impl Text {
    pub(in crate::ops) fn into_string(self) -> String {
        // An empty line between families is of no use to anybody.
        self.exporter.handle().render().replace("\n\n", "\n") + &self.by_hand
    }

    /// A whole number that only rises; its name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> MetricFamily<'_> {
        with_local_recorder(&self.exporter, || describe_counter!(name, help));
        MetricFamily { exporter: &self.exporter, kind: MetricKind::Counter, name }
    }

    /// A number that rises and falls.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> MetricFamily<'_> {
        with_local_recorder(&self.exporter, || describe_gauge!(name, help));
        MetricFamily { exporter: &self.exporter, kind: MetricKind::Gauge, name }
    }

    /// A number with fractions that only rises; its name ends in `_total`.
    pub fn real_counter(&mut self, name: &'static str, help: &str) -> ByHand<'_> {
        self.by_hand(name, "counter", help)
    }

    /// Counts by size.
    pub fn histogram(&mut self, name: &'static str, help: &str) -> ByHand<'_> {
        self.by_hand(name, "histogram", help)
    }

    fn by_hand(&mut self, name: &'static str, kind: &str, help: &str) -> ByHand<'_> {
        let text = &mut self.by_hand;
        // Writing to a string can't fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        ByHand { text, name }
    }
}

/// One metric with all its series.
#[must_use = "a family without a value is only a description"]
pub struct MetricFamily<'t> {
    exporter: &'t PrometheusRecorder,
    kind: MetricKind,
    name: &'static str,
}

impl MetricFamily<'_> {
    /// Its one series, without labels.
    pub fn value(self, value: impl Into<MetricValue>) {
        self.sample(Vec::new(), value.into());
    }

    /// A series for each value of one label.
    pub fn each<L: AsRef<str>, V: Into<MetricValue>>(
        self,
        label: &'static str,
        series: impl IntoIterator<Item = (L, V)>,
    ) {
        for (of_label, value) in series {
            self.sample(vec![Label::new(label, of_label.as_ref().to_owned())], value.into());
        }
    }

    /// A series for each pair of values of two labels.
    pub fn each_of_two<A: AsRef<str>, B: AsRef<str>, V: Into<MetricValue>>(
        self,
        labels: [&'static str; 2],
        series: impl IntoIterator<Item = ([A; 1], [B; 1], V)>,
    ) {
        for ([first], [second], value) in series {
            let labels = vec![
                Label::new(labels[0], first.as_ref().to_owned()),
                Label::new(labels[1], second.as_ref().to_owned()),
            ];
            self.sample(labels, value.into());
        }
    }

    /// A series for each three values of three labels.
    pub fn each_of_three<V: Into<MetricValue>>(
        self,
        labels: [&'static str; 3],
        series: impl IntoIterator<Item = ([String; 3], V)>,
    ) {
        for (values, value) in series {
            let labels = labels.into_iter().zip(values).map(|(label, value)| Label::new(label, value));
            self.sample(labels.collect(), value.into());
        }
    }

    fn sample(&self, labels: Vec<Label>, value: MetricValue) {
        with_local_recorder(self.exporter, || match (self.kind, value) {
            (MetricKind::Counter, MetricValue::Whole(value)) => counter!(self.name, labels).absolute(value),
            (MetricKind::Counter, MetricValue::Real(value)) => {
                unreachable!("{} = {value} belongs to real_counter", self.name)
            }
            (MetricKind::Gauge, value) => gauge!(self.name, labels).set(value.real()),
        });
    }
}

/// One metric that the exporter can't take.
#[must_use = "a family without a value is only a description"]
pub struct ByHand<'t> {
    text: &'t mut String,
    name: &'static str,
}

impl ByHand<'_> {
    /// Its one series, without labels.
    pub fn value(mut self, value: f64) {
        self.sample("", &[], value);
    }

    /// A series for each value of one label.
    pub fn each<L: AsRef<str>>(mut self, label: &str, series: impl IntoIterator<Item = (L, f64)>) {
        for (of_label, value) in series {
            self.sample("", &[(label, of_label.as_ref())], value);
        }
    }

    /// The series of a histogram for one value of a label: the counts of each bucket alone, and the sum of all that was counted.
    pub fn buckets(mut self, label: &str, series: impl IntoIterator<Item = (&'static str, Vec<(u64, u64)>, u64)>) {
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

    /// A histogram without further labels: upper bounds, the counts of each bucket alone, and the sum.
    pub fn plain_buckets(mut self, buckets: impl IntoIterator<Item = (i64, u64)>, beyond: u64, sum: i64) {
        let mut count = 0;
        for (largest, in_bucket) in buckets {
            count += in_bucket;
            self.sample("_bucket", &[("le", &largest.to_string())], count);
        }
        count += beyond;
        self.sample("_bucket", &[("le", "+Inf")], count);
        self.sample("_sum", &[], sum);
        self.sample("_count", &[], count);
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
        text.counter("b_total", "By reason").each("reason", [("x", 1_u64), ("\"", 2)]);
        text.gauge("c", "By two").each_of_two(["d", "e"], [(["1"], ["2"], -3_i64)]);
        text.real_counter("s_total", "Seconds").each("of", [("\"\\\n", 0.25)]);
        text.histogram("h", "Sizes").buckets("of", [("x", vec![(1, 2), (2, 0), (4, 3)], 13)]);
        text.histogram("p", "Left").plain_buckets([(0, 1), (60, 2)], 4, -7);
        let text = text.into_string();
        for line in [
            "# HELP a Now\n# TYPE a gauge\na 1.5\n",
            "# HELP b_total By reason\n# TYPE b_total counter\n",
            "b_total{reason=\"x\"} 1\n",
            "b_total{reason=\"\\\"\"} 2\n",
            "c{d=\"1\",e=\"2\"} -3\n",
            "# TYPE s_total counter\ns_total{of=\"\\\"\\\\\\n\"} 0.25\n",
            "# TYPE h histogram\nh_bucket{of=\"x\",le=\"1\"} 2\nh_bucket{of=\"x\",le=\"2\"} 2\nh_bucket{of=\"x\",le=\"4\"} 5\n",
            "h_bucket{of=\"x\",le=\"+Inf\"} 5\nh_sum{of=\"x\"} 13\nh_count{of=\"x\"} 5\n",
            "p_bucket{le=\"0\"} 1\np_bucket{le=\"60\"} 3\np_bucket{le=\"+Inf\"} 7\np_sum -7\np_count 7\n",
        ] {
            assert!(text.contains(line), "{line}\nis not in\n{text}");
        }
    }
}
