//! Adds usage records up: idempotent, so that a record that comes twice counts once, in whatever order they come.
//!
//! Counts in records are of the whole session so far. So of each session only its last record of each day
//! matters: a day's share is what was counted since the last record before. A session without a stop (a crash)
//! counts up to its last interim.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, BufRead};

use serde::Serialize;

use super::chain::{self, Code};
use super::record::{Record, RecordKind};
use crate::credentials::Secret;

/// A line longer than this is no record.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// What is added up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Totals {
    /// Received from clients.
    pub bytes_from_client: i128,
    /// Sent to clients.
    pub bytes_to_client: i128,
    /// Received from peers.
    pub bytes_from_peers: i128,
    /// Sent to peers.
    pub bytes_to_peers: i128,
    /// Sent to clients as bytes of the network, with the heads of IP and UDP.
    pub wire_bytes_to_client: i128,
    /// Sent to peers, likewise.
    pub wire_bytes_to_peers: i128,
    /// Received from clients and peers.
    pub packets_received: i128,
    /// Sent to clients and peers.
    pub packets_sent: i128,
}

impl Totals {
    fn of(record: &Record) -> Self {
        let sum = |a: u64, b: u64| i128::from(a) + i128::from(b);
        Self {
            bytes_from_client: record.bytes_from_client.into(),
            bytes_to_client: record.bytes_to_client.into(),
            bytes_from_peers: record.bytes_from_peers.into(),
            bytes_to_peers: record.bytes_to_peers.into(),
            wire_bytes_to_client: record.wire_bytes_to_client.into(),
            wire_bytes_to_peers: record.wire_bytes_to_peers.into(),
            packets_received: sum(record.packets_from_client, record.packets_from_peers),
            packets_sent: sum(record.packets_to_client, record.packets_to_peers),
        }
    }

    fn map(self, other: Self, with: fn(i128, i128) -> i128) -> Self {
        Self {
            bytes_from_client: with(self.bytes_from_client, other.bytes_from_client),
            bytes_to_client: with(self.bytes_to_client, other.bytes_to_client),
            bytes_from_peers: with(self.bytes_from_peers, other.bytes_from_peers),
            bytes_to_peers: with(self.bytes_to_peers, other.bytes_to_peers),
            wire_bytes_to_client: with(self.wire_bytes_to_client, other.wire_bytes_to_client),
            wire_bytes_to_peers: with(self.wire_bytes_to_peers, other.wire_bytes_to_peers),
            packets_received: with(self.packets_received, other.packets_received),
            packets_sent: with(self.packets_sent, other.packets_sent),
        }
    }

    /// The same as bytes of the network.
    #[must_use]
    pub const fn wire_bytes_sent(&self) -> i128 {
        self.wire_bytes_to_client + self.wire_bytes_to_peers
    }

    /// What the relay sent, to clients and peers: what a price per GB is asked for.
    #[must_use]
    pub const fn bytes_sent(&self) -> i128 {
        self.bytes_to_client + self.bytes_to_peers
    }
}

/// One session's state of knowledge.
struct SessionSoFar {
    user: Box<str>,
    tenant: Option<Box<str>>,
    /// The last record of each day: sequence number and counts.
    days: BTreeMap<Box<str>, (u32, Totals)>,
    /// Sequence numbers that were seen, as ranges in order.
    seen: Vec<(u32, u32)>,
    stopped: bool,
}

impl SessionSoFar {
    /// Notes a sequence number; `false` if it was there already.
    fn see(&mut self, seq: u32) -> bool {
        let at = self.seen.partition_point(|(_, last)| *last < seq);
        if self.seen.get(at).is_some_and(|(first, _)| *first <= seq) {
            return false;
        }
        let after = at.checked_sub(1).is_some_and(|before| self.seen[before].1 + 1 == seq);
        let before = self.seen.get(at).is_some_and(|(first, _)| seq + 1 == *first);
        match (after, before) {
            (true, true) => {
                self.seen[at - 1].1 = self.seen[at].1;
                self.seen.remove(at);
            }
            (true, false) => self.seen[at - 1].1 = seq,
            (false, true) => self.seen[at].0 = seq,
            (false, false) => self.seen.insert(at, (seq, seq)),
        }
        true
    }
}

/// Something that is wrong with a line, or worth knowing about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Remark {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
    /// What is wrong.
    pub message: String,
}

/// Records that never came, of one session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Gap {
    /// The session.
    pub session: String,
    /// The first sequence number that is missing.
    pub first: u32,
    /// The last one.
    pub last: u32,
}

/// By what totals are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct By {
    /// A line per day.
    pub day: bool,
    /// A line per tenant.
    pub tenant: bool,
    /// A line per user.
    pub user: bool,
}

/// A line of the report.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ReportRow {
    /// The date in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub day: Option<String>,
    /// The tenant, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The user id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Sessions that have a part in it.
    pub sessions: u64,
    /// What they relayed.
    #[serde(flatten)]
    pub totals: Totals,
}

/// The whole report.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// In the order of day, tenant and user.
    pub rows: Vec<ReportRow>,
    /// All of them together.
    pub total: ReportRow,
    /// Lines read and counted.
    pub records: u64,
    /// Lines that were there before.
    pub duplicates: u64,
    /// Sessions without a stop: alive, or cut off by a crash; counted up to their last record.
    pub unfinished: u64,
    /// Records that are missing; what they counted is in the ones after them.
    pub gaps: Vec<Gap>,
    /// Lines that were not counted, or that don't follow the line before.
    pub problems: Vec<Remark>,
    /// Lines that a chain begins with, or that follow one that is in none of the files.
    pub notes: Vec<Remark>,
}

/// A file's first line, whose predecessor may be in another file.
struct Beginning {
    file: String,
    line: u64,
    prev: Code,
}

/// Day, tenant and user, as far as lines are told apart by them.
type RecordPlace = (Option<Box<str>>, Option<Box<str>>, Option<Box<str>>);

/// Reads files and adds up.
#[derive(Default)]
pub struct Reader {
    key: Option<Secret>,
    sessions: HashMap<Box<str>, SessionSoFar>,
    records: u64,
    duplicates: u64,
    problems: Vec<Remark>,
    notes: Vec<Remark>,
    beginnings: Vec<Beginning>,
    /// The last code of each file, and of each piece of a chain that broke.
    ends: HashSet<Code>,
}

impl Reader {
    /// With a key every line must be signed with it.
    #[must_use]
    pub fn new(key: Option<Secret>) -> Self {
        Self { key, ..Self::default() }
    }

    /// Reads one file to its end; bad lines are noted and left out.
    ///
    /// # Errors
    /// The file can't be read on.
    pub fn read(&mut self, name: &str, mut from: impl BufRead) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut number = 0;
        let mut last: Option<Code> = None;
        loop {
            bytes.clear();
            if io::Read::take(&mut from, LINE_BYTES_MAX).read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            number += 1;
            let too_long = bytes.len() as u64 == LINE_BYTES_MAX && bytes.last() != Some(&b'\n');
            if too_long {
                skip_line(&mut from)?;
            }
            let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            let found = if too_long {
                Err("longer than any record".to_owned())
            } else {
                self.line(name, number, line, &mut last)
            };
            if let Err(message) = found {
                self.problems.push(Remark { file: name.to_owned(), line: number, message });
            }
        }
        self.ends.extend(last);
        Ok(())
    }

    fn line(&mut self, name: &str, number: u64, line: &[u8], last: &mut Option<Code>) -> Result<(), String> {
        let text = std::str::from_utf8(line).map_err(|_| "is not text".to_owned())?;
        if let Some(key) = &self.key {
            let link = chain::verify(key, text)?;
            match *last {
                // A server that has no usage file begins a chain at each start.
                Some(before) if before != link.prev && link.prev == Code::NONE => {
                    self.ends.insert(before);
                    let message = "a new chain begins, so records before it could be missing".to_owned();
                    self.notes.push(Remark { file: name.to_owned(), line: number, message });
                }
                Some(before) if before != link.prev => {
                    self.ends.insert(before);
                    let message = "does not follow the line before: lines are missing, added or moved".to_owned();
                    self.problems.push(Remark { file: name.to_owned(), line: number, message });
                }
                Some(_) => {}
                None => self.beginnings.push(Beginning { file: name.to_owned(), line: number, prev: link.prev }),
            }
            *last = Some(link.mac);
        }
        let record: Record = serde_json::from_str(text).map_err(|error| {
            // serde's place within the line is of no use here.
            let text = error.to_string();
            format!("is not a usage record: {}", text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what))
        })?;
        self.record(&record)
    }

    fn record(&mut self, record: &Record) -> Result<(), String> {
        if !record.adds_up() {
            return Err("does not add up: received is not sent plus dropped".to_owned());
        }
        let day: Box<str> = record.day().ok_or_else(|| format!("{:?} is not a time", record.time))?.into();
        let session = self.sessions.entry(record.session.as_str().into()).or_insert_with(|| SessionSoFar {
            user: record.user.as_str().into(),
            tenant: record.tenant.as_deref().map(Into::into),
            days: BTreeMap::new(),
            seen: Vec::new(),
            stopped: false,
        });
        if *session.user != *record.user || session.tenant.as_deref() != record.tenant.as_deref() {
            return Err(format!("session {} was {}'s before", record.session, session.user));
        }
        let totals = Totals::of(record);
        if !session.see(record.seq) {
            let differs = session.days.get(&day).is_some_and(|(seq, held)| *seq == record.seq && *held != totals);
            if differs {
                return Err(format!("session {} has another record {} with other counts", record.session, record.seq));
            }
            self.duplicates += 1;
            return Ok(());
        }
        self.records += 1;
        session.stopped |= record.kind == RecordKind::Stop;
        let held = session.days.entry(day).or_insert((record.seq, totals));
        if record.seq > held.0 {
            *held = (record.seq, totals);
        }
        Ok(())
    }

    /// The sums.
    #[must_use]
    pub fn finish(mut self, by: By) -> Report {
        let mut rows: BTreeMap<RecordPlace, (u64, Totals)> = BTreeMap::new();
        let mut total = Totals::default();
        let mut gaps = Vec::new();
        let mut unfinished = 0;
        // Sorted, because the order of a hash map must not decide what the report looks like.
        let mut names: Vec<(Box<str>, SessionSoFar)> = std::mem::take(&mut self.sessions).into_iter().collect();
        names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (name, session) in &names {
            unfinished += u64::from(!session.stopped);
            let mut next = 0;
            for (first, last) in &session.seen {
                if *first > next {
                    gaps.push(Gap { session: name.to_string(), first: next, last: first - 1 });
                }
                next = last + 1;
            }
            let mut before = Totals::default();
            let mut counted = HashSet::new();
            for (day, (_, totals)) in &session.days {
                let key = (
                    by.day.then(|| day.clone()),
                    session.tenant.clone().filter(|_| by.tenant),
                    by.user.then(|| session.user.clone()),
                );
                let row = rows.entry(key.clone()).or_default();
                row.0 += u64::from(counted.insert(key));
                row.1 = row.1.map(totals.map(before, |now, before| now - before), |a, b| a + b);
                before = *totals;
            }
            total = total.map(before, |a, b| a + b);
        }
        let notes = self
            .beginnings
            .iter()
            .filter(|beginning| beginning.prev != Code::NONE && !self.ends.contains(&beginning.prev));
        let mut all_notes = std::mem::take(&mut self.notes);
        all_notes.extend(notes.map(|beginning| Remark {
            file: beginning.file.clone(),
            line: beginning.line,
            message: "the line before this one is in none of these files".to_owned(),
        }));
        let text = |part: Option<Box<str>>| part.map(String::from);
        Report {
            notes: all_notes,
            rows: rows
                .into_iter()
                .map(|((day, tenant, user), (sessions, totals))| ReportRow {
                    day: text(day),
                    tenant: text(tenant),
                    user: text(user),
                    sessions,
                    totals,
                })
                .collect(),
            total: ReportRow { day: None, tenant: None, user: None, sessions: names.len() as u64, totals: total },
            records: self.records,
            duplicates: self.duplicates,
            unfinished,
            gaps,
            problems: self.problems,
        }
    }
}

fn skip_line(from: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = from.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(buffer.len(), |at| at + 1);
        let over = end.is_some() || buffer.is_empty();
        from.consume(used);
        if over {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::rfc3339;
    use crate::ops::usage::chain::Chain;
    use crate::ops::usage::record::tests::record;

    const ALL: By = By { day: true, tenant: true, user: true };

    fn text(records: &[Record]) -> String {
        records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n").collect()
    }

    fn report(text: &str) -> Report {
        let mut reader = Reader::new(None);
        reader.read("u.jsonl", text.as_bytes()).unwrap();
        reader.finish(ALL)
    }

    #[test]
    fn a_record_counts_once_in_whatever_order() {
        let records = [
            record("a", 0, RecordKind::Start, 0),
            record("a", 1, RecordKind::Interim, 300),
            record("a", 2, RecordKind::Stop, 500),
            record("b", 0, RecordKind::Start, 0),
            record("b", 1, RecordKind::Interim, 40),
        ];
        let due = report(&text(&records));
        assert_eq!((due.records, due.duplicates, due.unfinished), (5, 0, 1), "b was cut off and counts to its interim");
        assert_eq!(due.total.totals.bytes_to_client, 540);
        assert_eq!(due.total.totals.bytes_from_peers, 560);
        assert_eq!((due.total.sessions, due.rows.len(), due.rows[0].sessions), (2, 1, 2));
        let mut shuffled = records.clone();
        shuffled.reverse();
        let twice = text(&shuffled) + &text(&records);
        let found = report(&twice);
        assert_eq!((found.records, found.duplicates), (5, 5));
        assert_eq!((found.rows, found.total, found.gaps), (due.rows, due.total, Vec::new()));
    }

    #[test]
    fn a_day_has_what_was_counted_on_it_and_a_gap_is_told() {
        let mut late = record("a", 4, RecordKind::Stop, 900);
        late.time = rfc3339(1_800_000_000 + 86_400);
        let found =
            report(&text(&[record("a", 0, RecordKind::Start, 0), record("a", 1, RecordKind::Interim, 600), late]));
        let days: Vec<_> =
            found.rows.iter().map(|row| (row.day.clone().unwrap(), row.totals.bytes_to_client)).collect();
        assert_eq!(days, [("2027-01-15".to_owned(), 600), ("2027-01-16".to_owned(), 300)]);
        assert_eq!(found.total.totals.bytes_to_client, 900);
        assert_eq!(found.total.sessions, 1);
        assert_eq!(found.gaps, [Gap { session: "a".to_owned(), first: 2, last: 3 }]);
        assert_eq!(found.problems, []);
    }

    #[test]
    fn users_and_tenants_are_told_apart() {
        let mut other = record("b", 0, RecordKind::Stop, 70);
        other.tenant = Some("acme".to_owned());
        other.user = "eve".to_owned();
        let lines = text(&[record("a", 0, RecordKind::Stop, 30), other]);
        let found = report(&lines);
        let rows: Vec<_> = found
            .rows
            .iter()
            .map(|row| (row.tenant.as_deref(), row.user.as_deref(), row.totals.bytes_to_client))
            .collect();
        assert_eq!(rows, [(None, Some("bob"), 30), (Some("acme"), Some("eve"), 70)]);
        let mut reader = Reader::new(None);
        reader.read("u", lines.as_bytes()).unwrap();
        let sum = reader.finish(By { day: false, tenant: false, user: false });
        assert_eq!((sum.rows.len(), sum.rows[0].totals), (1, sum.total.totals));
    }

    #[test]
    fn bad_lines_are_named_and_the_rest_counts() {
        let good = text(&[record("a", 0, RecordKind::Stop, 30)]);
        let mut wrong = record("b", 0, RecordKind::Stop, 30);
        wrong.bytes_to_client += 1;
        let mut other = record("a", 0, RecordKind::Stop, 31);
        other.packets_to_client = 0;
        let mut undated = record("c", 0, RecordKind::Start, 0);
        undated.time = "noon".to_owned();
        let mut thief = record("a", 1, RecordKind::Stop, 30);
        thief.user = "eve".to_owned();
        let long = "x".repeat(200_000);
        let bad = text(&[wrong, other, undated, thief]);
        let found =
            report(&format!("{{\"type\":\"start\"\n{bad}{long}\n\u{0}\n{good}{}", "{\"type\":\"stop\",\"seq\":9"));
        let lines: Vec<u64> = found.problems.iter().map(|problem| problem.line).collect();
        // Line 3 came first, so it is believed, and the ones that contradict it are named.
        assert_eq!(lines, [1, 2, 4, 5, 6, 7, 8, 9], "{:?}", found.problems);
        assert_eq!(found.records, 1, "{found:?}");
        let messages: Vec<&str> = found.problems.iter().map(|problem| &*problem.message).collect();
        let none = "not a usage record";
        let due = [none, "add up", "not a time", "was bob's before", "longer", none, "other counts", none];
        for (message, word) in messages.iter().zip(due) {
            assert!(message.contains(word), "{word}: {messages:?}");
        }
    }

    #[test]
    fn a_signed_file_shows_what_was_done_to_it() {
        let key = || Secret::new(*b"0123456789abcdef");
        let mut chain = Chain::new(key(), Code::NONE);
        let lines: Vec<String> = (0..6)
            .map(|number| {
                let mut line =
                    serde_json::to_string(&record("a", number, RecordKind::Interim, 100 * u64::from(number))).unwrap();
                chain.sign(&mut line);
                line
            })
            .collect();
        let verify = |files: &[&[&String]]| {
            let mut reader = Reader::new(Some(key()));
            for (number, file) in files.iter().enumerate() {
                let text: String = file.iter().map(|line| format!("{line}\n")).collect();
                reader.read(&format!("{number}"), text.as_bytes()).unwrap();
            }
            let report = reader.finish(ALL);
            let problems: Vec<(String, u64)> = report.problems.iter().map(|p| (p.file.clone(), p.line)).collect();
            (problems, report.notes.len(), report.records)
        };
        let l: Vec<&String> = lines.iter().collect();
        assert_eq!(verify(&[&l]), (vec![], 0, 6));
        assert_eq!(verify(&[&l[3..], &l[..3]]), (vec![], 0, 6), "files in any order");
        assert_eq!(verify(&[&l[2..]]), (vec![], 1, 4), "an older file was not given");
        assert_eq!(verify(&[&[l[0], l[1], l[3], l[4]]]), (vec![("0".to_owned(), 3)], 0, 4), "a line is missing");
        assert_eq!(verify(&[&[l[0], l[2], l[1], l[3]]]).0.len(), 3, "two lines changed places");
        let mut first = serde_json::to_string(&record("z", 0, RecordKind::Stop, 0)).unwrap();
        Chain::new(key(), Code::NONE).sign(&mut first);
        assert_eq!(verify(&[&[l[0], l[1], &first]]), (vec![], 1, 3), "a new chain begins");
        let changed = lines[1].replace("bob", "eve");
        assert_eq!(verify(&[&[l[0], &changed, l[2]]]), (vec![("0".to_owned(), 2), ("0".to_owned(), 3)], 0, 2));
        let unsigned = serde_json::to_string(&record("z", 0, RecordKind::Start, 0)).unwrap();
        assert_eq!(verify(&[&[l[0], &unsigned, l[1]]]), (vec![("0".to_owned(), 2)], 0, 2));
    }
}
