//! Which servers wrote records, and what of theirs is missing.
//!
//! A quiet server writes nothing, so silence proves nothing. What proves that something is missing are numbers: a line of
//! a server's series, or a record of a session, that is in no file though a later one is. An hour is missing if such
//! numbers belong into it and not one record of that server and that hour was read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use serde::{Serialize, Serializer};

use super::sessions::SessionHole;
use super::stretches::{Hole, Stretches};
use crate::calendar::rfc3339;
use crate::ops::usage::record::Record;

const SECONDS_PER_HOUR: u64 = 3600;

fn as_time<S: Serializer>(unix: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*unix))
}

fn as_time_if_known<S: Serializer>(unix: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match unix {
        Some(unix) => as_time(unix, serializer),
        None => serializer.serialize_none(),
    }
}

/// A server of which records were read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ServerSeen {
    /// Its name; `None` for records without one, which may be of several servers.
    pub server: Option<String>,
    /// Records, those that came twice once more.
    pub records: u64,
    /// The time of the earliest, in seconds since 1970; RFC 3339 in JSON.
    #[serde(serialize_with = "as_time")]
    pub first: u64,
    /// The time of the latest.
    #[serde(serialize_with = "as_time")]
    pub last: u64,
}

/// Lines of a server that are in none of the files.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MissingLines {
    /// The server.
    pub server: Option<String>,
    /// Its series of lines.
    pub series: String,
    /// The first line that is missing.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// They were written after this time, in seconds since 1970; `None` if nothing earlier of the server was read.
    #[serde(serialize_with = "as_time_if_known")]
    pub after: Option<u64>,
    /// And before this one.
    #[serde(serialize_with = "as_time")]
    pub before: u64,
}

/// Whole hours of which there is no record, though the server wrote some.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MissingHours {
    /// The server.
    pub server: Option<String>,
    /// Where the first of them begins, in seconds since 1970.
    #[serde(serialize_with = "as_time")]
    pub from: u64,
    /// Where the last of them ends.
    #[serde(serialize_with = "as_time")]
    pub until: u64,
}

/// What of servers was read, and what is missing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Coverage {
    /// Each server with records, by name.
    pub servers: Vec<ServerSeen>,
    /// Servers that were asked for and have no record.
    pub missing_servers: Vec<String>,
    /// Hours without a record, though there were some.
    pub missing_hours: Vec<MissingHours>,
    /// Lines that are missing within a series.
    pub missing_lines: Vec<MissingLines>,
}

impl Coverage {
    /// Whether nothing that was asked for is missing, as far as numbers show it.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.missing_servers.is_empty() && self.missing_hours.is_empty() && self.missing_lines.is_empty()
    }
}

/// What is known of one server.
#[derive(Default)]
struct ServerSoFar {
    records: u64,
    first: u64,
    last: u64,
    /// Hours since 1970 with a record.
    hours: BTreeSet<u64>,
    series: BTreeMap<Box<str>, Stretches>,
}

/// All servers, by their number in the reader.
#[derive(Default)]
pub(super) struct Servers(Vec<ServerSoFar>);

impl Servers {
    /// Notes a record.
    pub(super) fn see(&mut self, server: u32, record: &Record, time: u64) {
        let at = server as usize;
        if self.0.len() <= at {
            self.0.resize_with(at + 1, ServerSoFar::default);
        }
        let server = &mut self.0[at];
        server.first = if server.records == 0 { time } else { server.first.min(time) };
        server.last = server.last.max(time);
        server.records += 1;
        server.hours.insert(time / SECONDS_PER_HOUR);
        if let (Some(series), Some(line)) = (&record.series, record.line) {
            match server.series.get_mut(&**series) {
                Some(stretches) => stretches.see(line, time),
                None => server.series.entry(series.as_str().into()).or_default().see(line, time),
            };
        }
    }

    /// What is missing within a span of seconds; `names` in the order of the servers' numbers.
    pub(super) fn finish(
        &self,
        names: &[Option<String>],
        wanted: &BTreeSet<String>,
        asked: &RangeInclusive<u64>,
        holes: &[SessionHole],
    ) -> Coverage {
        let mut coverage = Coverage::default();
        let mut order: Vec<usize> = (0..self.0.len()).collect();
        order.sort_by_key(|at| &names[*at]);
        for at in order {
            let (server, name) = (&self.0[at], &names[at]);
            let of_sessions = holes.iter().filter(|of| of.server as usize == at).map(|of| of.hole);
            let mut spans: Vec<(u64, u64)> = of_sessions.filter_map(|hole| Some((hole.after?, hole.before))).collect();
            for (series, hole) in server.holes() {
                if hole.before < *asked.start() || hole.after.is_some_and(|after| after > *asked.end()) {
                    continue;
                }
                spans.extend(hole.after.map(|after| (after, hole.before)));
                let Hole { first, last, after, before } = hole;
                let (server, series) = (name.clone(), series.to_owned());
                coverage.missing_lines.push(MissingLines { server, series, first, last, after, before });
            }
            for (from, until) in server.missing_hours(spans, asked) {
                coverage.missing_hours.push(MissingHours { server: name.clone(), from, until });
            }
            let hours = asked.start() / SECONDS_PER_HOUR..=asked.end() / SECONDS_PER_HOUR;
            if server.hours.range(hours).next().is_some() {
                let (records, first, last) = (server.records, server.first, server.last);
                coverage.servers.push(ServerSeen { server: name.clone(), records, first, last });
            }
        }
        let is_there = |name: &&String| coverage.servers.iter().any(|seen| seen.server.as_ref() == Some(*name));
        coverage.missing_servers = wanted.iter().filter(|name| !is_there(name)).cloned().collect();
        coverage
    }
}

impl ServerSoFar {
    /// The holes of all series; what is missing before a series is after all that was written before it.
    fn holes(&self) -> impl Iterator<Item = (&str, Hole)> {
        self.series.iter().flat_map(move |(name, stretches)| {
            stretches.holes().map(move |hole| {
                let others = self.series.iter().filter(move |(other, _)| *other != name);
                let ends = others.flat_map(|(_, stretches)| stretches.all()).map(|stretch| stretch.until);
                let earlier = || ends.filter(|until| *until <= hole.before).max();
                (&**name, Hole { after: hole.after.or_else(earlier), ..hole })
            })
        })
    }

    /// Hours within these spans that have no record, as spans of seconds. Costs what there are of spans and of hours with
    /// a record, whatever the clock said.
    fn missing_hours(&self, mut spans: Vec<(u64, u64)>, asked: &RangeInclusive<u64>) -> Vec<(u64, u64)> {
        spans.sort_unstable();
        let mut missing: Vec<(u64, u64)> = Vec::new();
        let mut next = asked.start().div_ceil(SECONDS_PER_HOUR);
        for (after, before) in spans {
            // The hour of a record is there; those between are what could be missing.
            let end = (before / SECONDS_PER_HOUR).min(asked.end().saturating_add(1) / SECONDS_PER_HOUR);
            next = next.max(after / SECONDS_PER_HOUR + 1);
            while next < end {
                let seen = self.hours.range(next..end).next().copied().unwrap_or(end);
                if seen > next {
                    missing.push((next * SECONDS_PER_HOUR, seen * SECONDS_PER_HOUR));
                }
                next = seen + 1;
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::usage::record::RecordKind;
    use crate::ops::usage::record::tests::record;

    const ALL: RangeInclusive<u64> = 0..=u64::MAX;
    /// An hour's begin.
    const BEGIN: u64 = 500_000 * SECONDS_PER_HOUR;

    fn servers(lines: &[(u32, &str, u64, u64)]) -> Servers {
        let mut servers = Servers::default();
        for (server, series, line, minute) in lines {
            let mut record = record("a", 0, RecordKind::Interim, 0);
            (record.series, record.line) = (Some((*series).to_owned()), Some(*line));
            servers.see(*server, &record, BEGIN + minute * 60);
        }
        servers
    }

    fn names() -> Vec<Option<String>> {
        ["one", "two"].map(|name| Some(name.to_owned())).to_vec()
    }

    fn hours(coverage: &Coverage) -> Vec<(&str, u64, u64)> {
        let hours = coverage.missing_hours.iter();
        let since = |time: u64| (time - BEGIN) / SECONDS_PER_HOUR;
        hours.map(|of| (of.server.as_deref().unwrap(), since(of.from), since(of.until))).collect()
    }

    #[test]
    fn silence_is_no_proof_and_a_number_is() {
        let quiet = servers(&[(0, "a", 0, 5), (0, "a", 1, 600), (1, "b", 0, 5)]);
        let coverage = quiet.finish(&names(), &BTreeSet::new(), &ALL, &[]);
        assert!(coverage.is_whole(), "{coverage:?}");
        assert_eq!(coverage.servers.len(), 2);

        let lost = servers(&[(0, "a", 0, 5), (0, "a", 9, 320), (0, "a", 4, 125), (1, "b", 0, 130)]);
        let coverage = lost.finish(&names(), &BTreeSet::new(), &ALL, &[]);
        let lines: Vec<_> = coverage.missing_lines.iter().map(|of| (of.first, of.last)).collect();
        assert_eq!(lines, [(1, 3), (5, 8)]);
        assert_eq!(hours(&coverage), [("one", 1, 2), ("one", 3, 5)], "the hour in which line 4 was written is there");
    }

    #[test]
    fn what_lacks_at_the_begin_of_a_series_was_written_after_the_series_before() {
        let lost = servers(&[(0, "b", 0, 5), (0, "a", 7, 190)]);
        let coverage = lost.finish(&names(), &BTreeSet::new(), &ALL, &[]);
        assert_eq!(hours(&coverage), [("one", 1, 3)]);
        let first = servers(&[(0, "a", 7, 190)]);
        let coverage = first.finish(&names(), &BTreeSet::new(), &ALL, &[]);
        assert_eq!((coverage.missing_lines[0].after, coverage.missing_hours.len()), (None, 0));
    }

    #[test]
    fn only_what_is_asked_for_is_missing() {
        let lost = servers(&[(0, "a", 0, 5), (0, "a", 9, 320), (1, "b", 0, 5)]);
        let hour = |number: u64| BEGIN + number * SECONDS_PER_HOUR;
        let coverage = lost.finish(&names(), &BTreeSet::new(), &(hour(2)..=hour(4) - 1), &[]);
        assert_eq!(
            (hours(&coverage), coverage.servers.len()),
            (vec![("one", 2, 4)], 0),
            "nothing of these hours was read"
        );
        let wanted = BTreeSet::from(["two".to_owned(), "three".to_owned()]);
        let coverage = lost.finish(&names(), &wanted, &(hour(6)..=hour(9)), &[]);
        assert_eq!(coverage.missing_servers, ["three", "two"], "two wrote nothing then");
        assert_eq!((coverage.missing_lines.len(), coverage.missing_hours.len()), (0, 0));
        let coverage = lost.finish(&names(), &wanted, &ALL, &[]);
        assert_eq!(coverage.missing_servers, ["three"]);
    }

    #[test]
    fn records_without_a_line_tell_by_their_session() {
        let mut servers = Servers::default();
        for minute in [5, 70, 310] {
            servers.see(0, &record("a", 0, RecordKind::Interim, 0), BEGIN + minute * 60);
        }
        let hole = Hole { first: 3, last: 9, after: Some(BEGIN + 300), before: BEGIN + 310 * 60 };
        let coverage = servers.finish(&names(), &BTreeSet::new(), &ALL, &[SessionHole { server: 0, hole }]);
        assert_eq!(hours(&coverage), [("one", 2, 5)]);
        assert_eq!(coverage.missing_lines, []);
    }

    #[test]
    fn a_clock_of_any_year_costs_no_time() {
        let mut far = servers(&[(0, "a", 0, 5)]);
        let mut record = record("a", 0, RecordKind::Interim, 0);
        (record.series, record.line) = (Some("a".to_owned()), Some(u64::MAX));
        far.see(0, &record, 253_402_300_799);
        let coverage = far.finish(&names(), &BTreeSet::new(), &ALL, &[]);
        assert_eq!(coverage.missing_hours.len(), 1);
    }
}
