//! Adds usage records up: idempotent, so that a record that comes twice counts once, in whatever order they come.
//!
//! Counts in records are of the whole session so far. So of each session only its last record of each day
//! matters: a day's share is what was counted since the last record before. A session without a stop (a crash)
//! counts up to its last interim.
//!
//! The records may be those of many servers. What is held follows sessions, not records, and little of a session once it
//! is whole ([`sessions`]); [`coverage`] says what is missing of which server.
//! Decision: docs/decisions/0246-usage-over-a-fleet.md.

pub mod coverage;
mod sessions;
mod stretches;
mod totals;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{self, BufRead};
use std::ops::RangeInclusive;

use serde::Serialize;

use self::coverage::{Coverage, Servers};
use self::sessions::{DayShare, KnownRecord, Sessions, Taken};
use self::totals::Counts;
pub use self::totals::Totals;
use super::chain::{self, Code, RecordLink};
use super::record::Record;
use crate::calendar::{self, rfc3339};
use crate::credentials::Secret;

/// A line longer than this is no record.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// So many problems are kept; of the others only the number.
const PROBLEMS_MAX: usize = 10_000;

const SECONDS_PER_DAY: u64 = 86_400;

/// How compressed files begin: gzip (RFC 1952), zstd (RFC 8878), xz and bzip2.
const COMPRESSED: [&[u8]; 4] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh"];

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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct By {
    /// A line per day.
    pub day: bool,
    /// A line per tenant.
    pub tenant: bool,
    /// A line per user.
    pub user: bool,
    /// A line per server.
    pub server: bool,
}

/// What is asked for.
#[derive(Default)]
pub struct Question {
    /// How to group.
    pub by: By,
    /// With keys every line must be signed with one of them.
    pub keys: Vec<Secret>,
    /// The first and the last day, counted from 1970-01-01; `None` is every day.
    pub days: Option<RangeInclusive<u32>>,
    /// Servers that must have records.
    pub servers: BTreeSet<String>,
}

/// A line of the report.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
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
    /// The server, where records name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Sessions that have a part in it.
    pub sessions: u64,
    /// What they relayed.
    #[serde(flatten)]
    pub totals: Totals,
}

/// The whole report.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Report {
    /// In the order of day, tenant, user and server.
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
    /// Which servers wrote, and what of theirs is missing.
    #[serde(flatten)]
    pub coverage: Coverage,
    /// Lines that were not counted, or that don't follow the line before: the first 10,000.
    pub problems: Vec<Remark>,
    /// How many more there are.
    pub more_problems: u64,
    /// Lines that a chain begins with, or that follow one that is in none of the files; files that end within a line.
    pub notes: Vec<Remark>,
}

/// A file's first line, whose predecessor may be in another file.
struct Beginning {
    file: String,
    line: u64,
    prev: Code,
}

/// Of a user and a tenant.
type Owner = (Box<str>, Option<Box<str>>);

/// Names as small numbers, in the order in which they came.
struct Numbers<T> {
    by_name: HashMap<T, u32>,
    names: Vec<T>,
}

impl<T: Clone + Eq + std::hash::Hash> Numbers<T> {
    fn of(&mut self, name: T) -> u32 {
        if let Some(number) = self.by_name.get(&name) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.push(name.clone());
        self.by_name.insert(name, number);
        number
    }
}

impl<T> Default for Numbers<T> {
    fn default() -> Self {
        Self { by_name: HashMap::new(), names: Vec::new() }
    }
}

/// By day, tenant, user and server.
type RowKey = (Option<u32>, Option<Box<str>>, Option<Box<str>>, Option<String>);

/// The sums so far.
#[derive(Default)]
struct Sums {
    by: By,
    days: Option<RangeInclusive<u32>>,
    rows: BTreeMap<RowKey, (u64, Totals)>,
    total: Totals,
    sessions: u64,
}

impl Sums {
    /// Adds a session; `false` if none of its days is asked for.
    fn add(&mut self, shares: &[DayShare], owners: &[Owner], servers: &[Option<String>]) -> bool {
        let mut counted: Vec<RowKey> = Vec::new();
        for share in shares {
            if self.days.as_ref().is_some_and(|days| !days.contains(&share.day)) {
                continue;
            }
            let (user, tenant) = &owners[share.owner as usize];
            let key = (
                self.by.day.then_some(share.day),
                tenant.clone().filter(|_| self.by.tenant),
                self.by.user.then(|| user.clone()),
                servers[share.server as usize].clone().filter(|_| self.by.server),
            );
            let row = self.rows.entry(key.clone()).or_default();
            row.1.add(&share.now, &share.before);
            self.total.add(&share.now, &share.before);
            if !counted.contains(&key) {
                row.0 += 1;
                counted.push(key);
            }
        }
        self.sessions += u64::from(!counted.is_empty());
        !counted.is_empty()
    }

    fn rows(&self) -> Vec<ReportRow> {
        let date = |day: u32| rfc3339(u64::from(day) * SECONDS_PER_DAY)[..10].to_owned();
        let row = |((day, tenant, user, server), (sessions, totals)): (&RowKey, &(u64, Totals))| ReportRow {
            day: day.map(date),
            tenant: tenant.as_deref().map(Into::into),
            user: user.as_deref().map(Into::into),
            server: server.clone(),
            sessions: *sessions,
            totals: *totals,
        };
        self.rows.iter().map(row).collect()
    }
}

/// Where the lines of one file stand.
#[derive(Default)]
struct FilePlace<'f> {
    name: &'f str,
    line: u64,
    /// The code of the line before.
    last: Option<Code>,
    /// Which of the keys the line before was signed with.
    key: usize,
}

impl FilePlace<'_> {
    fn remark(&self, message: impl Into<String>) -> Remark {
        Remark { file: self.name.to_owned(), line: self.line, message: message.into() }
    }
}

/// Reads files and adds up.
#[derive(Default)]
pub struct Reader {
    keys: Vec<Secret>,
    wanted: BTreeSet<String>,
    owners: Numbers<Owner>,
    names: Numbers<Option<String>>,
    servers: Servers,
    sessions: Sessions,
    sums: Sums,
    records: u64,
    duplicates: u64,
    problems: Vec<Remark>,
    more_problems: u64,
    notes: Vec<Remark>,
    beginnings: Vec<Beginning>,
    /// The last code of each file, and of each piece of a chain that broke.
    ends: HashSet<Code>,
}

impl Reader {
    /// Has read nothing yet.
    #[must_use]
    pub fn new(question: Question) -> Self {
        let Question { by, keys, days, servers } = question;
        Self { keys, wanted: servers, sums: Sums { by, days, ..Sums::default() }, ..Self::default() }
    }

    /// Reads one file to its end; bad lines are noted and left out.
    ///
    /// A last line without an end is left out with a note: a copy that was made while the server wrote has one.
    ///
    /// # Errors
    /// The file can't be read on, or it is compressed.
    pub fn read(&mut self, name: &str, mut from: impl BufRead) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut place = FilePlace { name, ..FilePlace::default() };
        loop {
            bytes.clear();
            if io::Read::take(&mut from, LINE_BYTES_MAX).read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            place.line += 1;
            if place.line == 1 && COMPRESSED.iter().any(|begin| bytes.starts_with(begin)) {
                let message = "is compressed; give `usage report -` what zcat, zstdcat or xzcat makes of it";
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            let has_end = bytes.last() == Some(&b'\n');
            let too_long = bytes.len() as u64 == LINE_BYTES_MAX && !has_end;
            if too_long {
                skip_line(&mut from)?;
            }
            let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            let found = if too_long { Err("longer than any record".to_owned()) } else { self.line(line, &mut place) };
            match found {
                Ok(()) => {}
                Err(_) if !has_end && !too_long && line.starts_with(b"{") => {
                    self.notes.push(place.remark("the file ends within this line: it was copied while it was written"));
                }
                Err(message) => self.problem(place.remark(message)),
            }
        }
        self.ends.extend(place.last);
        Ok(())
    }

    fn problem(&mut self, problem: Remark) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.more_problems += 1;
        }
    }

    /// Checks a line with the key of the line before, then with the others.
    fn verify(&self, text: &str, place: &mut FilePlace<'_>) -> Result<RecordLink, &'static str> {
        let mut found = chain::verify(&self.keys[place.key], text);
        for (at, key) in self.keys.iter().enumerate() {
            if found.is_ok() {
                break;
            }
            found = chain::verify(key, text);
            place.key = at;
        }
        found
    }

    fn line(&mut self, line: &[u8], place: &mut FilePlace<'_>) -> Result<(), String> {
        let text = std::str::from_utf8(line).map_err(|_| "is not text".to_owned())?;
        if !self.keys.is_empty() {
            let link = self.verify(text, place)?;
            match place.last {
                // A server that has no usage file begins a chain at each start.
                Some(before) if before != link.prev && link.prev == Code::NONE => {
                    self.ends.insert(before);
                    self.notes.push(place.remark("a new chain begins, so records before it could be missing"));
                }
                Some(before) if before != link.prev => {
                    self.ends.insert(before);
                    let message = "does not follow the line before: lines are missing, added or moved";
                    self.problem(place.remark(message));
                }
                Some(_) => {}
                None => {
                    let Remark { file, line, .. } = place.remark("");
                    self.beginnings.push(Beginning { file, line, prev: link.prev });
                }
            }
            place.last = Some(link.mac);
        }
        let record: Record = serde_json::from_str(text).map_err(|error| {
            // serde's place within the line is of no use here.
            let text = error.to_string();
            format!("is not a usage record: {}", text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what))
        })?;
        self.record(&record)
    }

    fn record(&mut self, record: &Record) -> Result<(), String> {
        let time = calendar::unix(&record.time).ok_or_else(|| format!("{:?} is not a time", record.time))?;
        let server = self.names.of(record.server.clone());
        self.servers.see(server, record, time);
        if !record.adds_up() {
            return Err("does not add up: received is not sent plus dropped".to_owned());
        }
        let counts = Counts::of(record).ok_or("counts more packets than there can be")?;
        let owner = self.owners.of((record.user.as_str().into(), record.tenant.as_deref().map(Into::into)));
        let known = KnownRecord { record, counts, owner, server, time };
        let Self { sessions, sums, owners, names, .. } = self;
        let taken = sessions.take(&known, |shares| {
            sums.add(shares, &owners.names, &names.names);
        });
        match taken {
            Taken::New => self.records += 1,
            Taken::Duplicate => self.duplicates += 1,
            Taken::Contradicts => {
                return Err(format!("session {} has another record {} with other counts", record.session, record.seq));
            }
            Taken::AfterStop(last) => {
                return Err(format!("session {} has record {} after its stop, {last}", record.session, record.seq));
            }
            Taken::OtherOwner(owner) => {
                let (user, _) = &owners.names[owner as usize];
                return Err(format!("session {} was {user}'s before", record.session));
            }
        }
        Ok(())
    }

    /// The sums.
    #[must_use]
    pub fn finish(mut self) -> Report {
        let (owners, names) = (&self.owners.names, &self.names.names);
        let sums = &mut self.sums;
        let remaining = self.sessions.finish(|shares| sums.add(shares, owners, names));
        let seconds = |day: u32| u64::from(day) * SECONDS_PER_DAY;
        let days = self.sums.days.as_ref();
        let asked =
            days.map_or(0..=u64::MAX, |days| seconds(*days.start())..=seconds(*days.end()) + SECONDS_PER_DAY - 1);
        let coverage = self.servers.finish(names, &self.wanted, &asked, &remaining.holes);
        let mut notes = std::mem::take(&mut self.notes);
        let is_open = |beginning: &&Beginning| beginning.prev != Code::NONE && !self.ends.contains(&beginning.prev);
        notes.extend(self.beginnings.iter().filter(is_open).map(|beginning| Remark {
            file: beginning.file.clone(),
            line: beginning.line,
            message: "the line before this one is in none of these files".to_owned(),
        }));
        let total = ReportRow { sessions: self.sums.sessions, totals: self.sums.total, ..ReportRow::default() };
        Report {
            rows: self.sums.rows(),
            total,
            records: self.records,
            duplicates: self.duplicates,
            unfinished: remaining.unfinished,
            gaps: remaining.gaps,
            coverage,
            problems: self.problems,
            more_problems: self.more_problems,
            notes,
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
    use crate::ops::usage::chain::Chain;
    use crate::ops::usage::record::RecordKind;
    use crate::ops::usage::record::tests::record;

    const ALL: By = By { day: true, tenant: true, user: true, server: false };

    fn reader(by: By) -> Reader {
        Reader::new(Question { by, ..Question::default() })
    }

    fn text(records: &[Record]) -> String {
        records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n").collect()
    }

    fn report(text: &str) -> Report {
        let mut reader = reader(ALL);
        reader.read("u.jsonl", text.as_bytes()).unwrap();
        reader.finish()
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
        let mut reader = reader(By::default());
        reader.read("u", lines.as_bytes()).unwrap();
        let sum = reader.finish();
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
        assert_eq!(lines, [1, 2, 4, 5, 6, 7, 8], "{:?}", found.problems);
        assert_eq!(found.records, 1, "{found:?}");
        assert_eq!((found.notes.len(), found.notes[0].line), (1, 9), "a copy may end within a line");
        let messages: Vec<&str> = found.problems.iter().map(|problem| &*problem.message).collect();
        let none = "not a usage record";
        let due = [none, "add up", "not a time", "was bob's before", "longer", none, "other counts"];
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
            let keys = vec![Secret::new(*b"another key of a fleet"), key()];
            let mut reader = Reader::new(Question { by: ALL, keys, ..Question::default() });
            for (number, file) in files.iter().enumerate() {
                let text: String = file.iter().map(|line| format!("{line}\n")).collect();
                reader.read(&format!("{number}"), text.as_bytes()).unwrap();
            }
            let report = reader.finish();
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

    /// Lines of a server, numbered as it does; each is a session that is over at once.
    fn numbered(server: &str, lines: std::ops::Range<u64>) -> Vec<String> {
        let line = |line: u64| {
            let mut record = record(&format!("{server}-{line}"), 0, RecordKind::Stop, 100);
            record.time = rfc3339(1_800_000_000 + line * 1800);
            (record.server, record.series, record.line) =
                (Some(server.to_owned()), Some(format!("of {server}")), Some(line));
            serde_json::to_string(&record).unwrap() + "\n"
        };
        lines.map(line).collect()
    }

    #[test]
    fn many_servers_files_add_up_once_and_what_is_missing_is_named() {
        let (one, two) = (numbered("one", 0..40), numbered("two", 0..40));
        let ask = |files: &[String]| {
            let servers = ["one", "two", "three"].map(ToOwned::to_owned).into();
            let by = By { server: true, ..By::default() };
            let mut reader = Reader::new(Question { by, servers, ..Question::default() });
            for (number, file) in files.iter().enumerate() {
                reader.read(&number.to_string(), file.as_bytes()).unwrap();
            }
            reader.finish()
        };
        let whole = ask(&[one.concat(), two.concat()]);
        assert_eq!((whole.total.sessions, whole.total.totals.bytes_to_client), (80, 8000));
        let rows: Vec<_> = whole.rows.iter().map(|row| (row.server.as_deref().unwrap(), row.sessions)).collect();
        assert_eq!(rows, [("one", 40), ("two", 40)]);
        assert_eq!(whole.coverage.missing_servers, ["three"]);
        assert_eq!((whole.coverage.missing_hours.len(), whole.coverage.missing_lines.len()), (0, 0));

        // A copy that was made too early, the files themselves, and pieces of them in another order.
        let early = one[..7].concat() + &one[7][..80];
        let again = ask(&[early, two[20..].concat(), one.concat(), two.concat(), one[10..].concat()]);
        assert_eq!((&again.rows, &again.total, again.records), (&whole.rows, &whole.total, 80));
        assert_eq!((again.duplicates, again.problems.len(), again.notes.len()), (57, 0, 1), "{:?}", again.notes);
        assert_eq!(again.coverage.missing_hours, []);

        let missing = ask(&[one[..10].concat(), one[20..].concat()]);
        assert_eq!(missing.coverage.missing_servers, ["three", "two"]);
        let hours = &missing.coverage.missing_hours;
        assert_eq!(
            (hours.len(), hours[0].server.as_deref(), hours[0].until - hours[0].from),
            (1, Some("one"), 5 * 3600)
        );
        let lines = &missing.coverage.missing_lines;
        assert_eq!((lines.len(), lines[0].first, lines[0].last), (1, 10, 19));
    }

    #[test]
    fn of_a_span_of_days_the_shares_are_counted() {
        let mut records = [0, 300, 500, 900].map(|count| record("a", 0, RecordKind::Interim, count));
        for (seq, record) in (0..).zip(&mut records) {
            record.seq = seq;
            record.time = rfc3339(1_800_000_000 + u64::from(seq) * SECONDS_PER_DAY);
        }
        records[3].kind = RecordKind::Stop;
        let first = 1_800_000_000 / 86_400;
        for (days, sum, sessions) in [(first..=first + 3, 900, 1), (first + 1..=first + 2, 500, 1), (0..=5, 0, 0)] {
            for lines in [&records[..], &records[..3]] {
                let mut reader = Reader::new(Question { by: ALL, days: Some(days.clone()), ..Question::default() });
                reader.read("u", text(lines).as_bytes()).unwrap();
                let report = reader.finish();
                let sum = if sum == 900 && lines.len() == 3 { 500 } else { sum };
                assert_eq!((report.total.totals.bytes_to_client, report.total.sessions), (sum, sessions));
                let is_cut = lines.len() == 3 && sessions == 1;
                assert_eq!(report.unfinished, u64::from(is_cut), "what is not asked for is not reported");
            }
        }
    }

    #[test]
    fn a_compressed_file_is_refused_with_a_remedy() {
        for begin in COMPRESSED {
            let error = reader(ALL).read("u", begin).unwrap_err();
            assert!(error.to_string().contains("zcat"), "{error}");
        }
    }

    #[test]
    fn problems_without_end_take_no_memory_without_end() {
        let mut reader = reader(ALL);
        reader.read("u", "x\n".repeat(PROBLEMS_MAX + 5).as_bytes()).unwrap();
        let report = reader.finish();
        assert_eq!((report.problems.len(), report.more_problems), (PROBLEMS_MAX, 5));
    }
}
