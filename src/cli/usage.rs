//! `usage report`: what usage files add up to, as a table, CSV or JSON.

mod files;

use std::io::{self, BufReader, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::calendar::{self, rfc3339};
use crate::cli::OPTION_FILE_BYTES_MAX;
use crate::credentials::Secret;
use crate::failure::Failure;
use crate::files as disk;
use crate::ops::usage::report::coverage::Coverage;
use crate::ops::usage::report::{By, Question, Reader, Remark, Report, ReportRow, Totals};
use crate::printable::{json_line, printable, printable_lines};

/// What a formula begins with, in any spreadsheet; the last four are what East Asian keyboards give.
const FORMULA: [char; 10] = ['=', '+', '-', '@', '\t', '\r', '＝', '＋', '－', '＠'];

/// So many lines about each kind of thing: a file of something else would fill the terminal.
const REMARKS_MAX: usize = 20;

/// Commands about usage records.
#[derive(Subcommand, Debug)]
pub(super) enum UsageCommand {
    /// Add usage files of one or many servers up: totals per day, tenant, user and server
    Report(ReportOptions),
}

/// By what the lines of the report are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Part {
    /// The date, in UTC
    Day,
    /// The tenant
    Tenant,
    /// The user id
    User,
    /// The server
    Server,
}

/// Options of `usage report`.
#[derive(Args, Debug)]
pub(super) struct ReportOptions {
    /// Usage files of any servers in any order, rotated ones too; of a directory those named *.jsonl and *.jsonl.*, also in
    /// directories below it; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A line for each of these
    #[arg(long, value_enum, value_delimiter = ',', default_value = "day,tenant,user", value_name = "PARTS")]
    by: Vec<Part>,
    /// Print CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Print JSON, with gaps and problems
    #[arg(long)]
    pub(super) json: bool,
    /// What a GB (10^9 bytes of payload sent to clients and peers) costs
    #[arg(long, value_name = "PRICE", value_parser = price)]
    price_per_gb: Option<f64>,
    /// A server's accounting.sign_key_file: every line must be signed with it, or with that of another --key-file
    #[arg(long, value_name = "FILE")]
    key_file: Vec<PathBuf>,
    /// The first day (UTC) to count, as 2026-11-01
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<u32>,
    /// The last day (UTC) to count
    #[arg(long, value_name = "DAY", value_parser = day)]
    to: Option<u32>,
    /// The servers whose records must be complete: exit code 1 if one of them has none, or if hours or records are missing
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    servers: Vec<String>,
}

/// A day, counted from 1970-01-01.
fn day(text: &str) -> Result<u32, String> {
    let read = || {
        let day = u32::try_from(calendar::unix(&format!("{text}T00:00:00Z"))? / 86_400).ok()?;
        (date(day) == text).then_some(day)
    };
    read().ok_or_else(|| "expected a day such as 2026-11-01".to_owned())
}

fn date(day: u32) -> String {
    rfc3339(u64::from(day) * 86_400)[..10].to_owned()
}

impl ReportOptions {
    fn days(&self) -> Result<Option<RangeInclusive<u32>>, Failure> {
        let (from, to) = (self.from.unwrap_or(0), self.to.unwrap_or(u32::MAX / 2));
        if from > to {
            let message = format!("--from {} is after --to {}: exchange them", date(from), date(to));
            return Err(Failure::Usage(message));
        }
        Ok((self.from.is_some() || self.to.is_some()).then_some(from..=to))
    }

    fn question(&self) -> Result<Question, Failure> {
        let has = |part| self.by.contains(&part);
        let by =
            By { day: has(Part::Day), tenant: has(Part::Tenant), user: has(Part::User), server: has(Part::Server) };
        let keys = self.key_file.iter().map(|path| read_key(path)).collect::<Result<_, _>>()?;
        Ok(Question { by, keys, days: self.days()?, servers: self.servers.iter().cloned().collect() })
    }
}

fn price(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|price| price.is_finite() && *price >= 0.0)
        .ok_or_else(|| "expected a number such as 0.05".to_owned())
}

pub(super) fn report(options: &ReportOptions) -> Result<(), Failure> {
    let mut reader = Reader::new(options.question()?);
    let mut unread = false;
    let mut read = |path: &Path| {
        let name = path.display().to_string();
        let read = if path == Path::new("-") {
            reader.read("standard input", io::stdin().lock())
        } else {
            disk::open(path).and_then(|file| reader.read(&name, BufReader::new(file)))
        };
        if let Err(error) = read {
            eprintln!("{}: can't be read: {error}", printable(&name));
            unread = true;
        }
    };
    let mut lost = Vec::new();
    for path in &options.files {
        match files::of(path) {
            Ok(found) => found.iter().for_each(|path| read(path)),
            Err(message) => lost.push(message),
        }
    }
    lost.iter().for_each(|message| eprintln!("{}", printable(message)));
    let report = reader.finish();
    let mut out = io::stdout().lock();
    if options.json {
        writeln!(out, "{}", json_line(&to_json(&report, options.price_per_gb).to_string()))?;
    } else if options.csv {
        write!(out, "{}", to_csv(&report, &options.by, options.price_per_gb))?;
    } else {
        write!(out, "{}", to_table(&report, &options.by, options.price_per_gb))?;
    }
    out.flush()?;
    remarks(&report).iter().for_each(|line| eprintln!("{line}"));
    let is_short = !options.servers.is_empty() && !report.coverage.is_whole();
    let is_wrong = unread || !lost.is_empty() || !report.problems.is_empty();
    if is_wrong || is_short { Err(Failure::Reported(1)) } else { Ok(()) }
}

fn read_key(path: &Path) -> Result<Secret, Failure> {
    let mut key = disk::read(path, OPTION_FILE_BYTES_MAX)
        .map_err(|error| Failure::Run(format!("--key-file {}: {error}", path.display())))?;
    // As the server reads it: the last newline does not count.
    if key.last() == Some(&b'\n') {
        key.pop();
        if key.last() == Some(&b'\r') {
            key.pop();
        }
    }
    Ok(Secret::new(key))
}

/// What people should know besides the numbers; the first of each kind, and how many more there are.
fn remarks(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    let at =
        |remark: &Remark| format!("{}:{}: {}", printable(&remark.file), remark.line, printable_lines(&remark.message));
    few(&mut lines, &report.problems, report.more_problems, "lines are wrong", at);
    few(&mut lines, &report.notes, 0, "such notes", |note| format!("note: {}", at(note)));
    few(&mut lines, &report.gaps, 0, "gaps", |gap| {
        let which =
            if gap.first == gap.last { gap.first.to_string() } else { format!("{} to {}", gap.first, gap.last) };
        let session = printable(&gap.session);
        format!("note: session {session}: no record {which}; the one after it counts what was before")
    });
    missing(&mut lines, &report.coverage);
    if report.duplicates > 0 {
        lines.push(format!("note: {} duplicate records were counted once", report.duplicates));
    }
    if report.unfinished > 0 {
        lines.push(format!(
            "note: {} sessions have no stop record: they are live or were cut off, and are counted up to their last record",
            report.unfinished
        ));
    }
    lines
}

/// Servers, hours and lines that are missing, and who wrote when.
fn missing(lines: &mut Vec<String>, coverage: &Coverage) {
    let name = |server: &Option<String>| match server {
        Some(server) => format!("server {}", printable(server)),
        None => "records without a server".to_owned(),
    };
    few(lines, &coverage.missing_servers, 0, "servers are missing", |server| {
        format!("missing: server {}: no record", printable(server))
    });
    few(lines, &coverage.missing_hours, 0, "spans of hours are missing", |hours| {
        let (from, until) = (rfc3339(hours.from), rfc3339(hours.until));
        format!("missing: {}: no record from {from} to {until}, although it wrote some", name(&hours.server))
    });
    few(lines, &coverage.missing_lines, 0, "spans of records are missing", |of| {
        let after = of.after.map_or_else(String::new, |after| format!("after {} and ", rfc3339(after)));
        format!(
            "missing: {}: {} records, written {after}before {} (lines {} to {} of series {})",
            name(&of.server),
            u128::from(of.last) + 1 - u128::from(of.first),
            rfc3339(of.before),
            of.first,
            of.last,
            printable(&of.series)
        )
    });
    if coverage.servers.len() > 1 {
        few(lines, &coverage.servers, 0, "servers", |seen| {
            let (first, last) = (rfc3339(seen.first), rfc3339(seen.last));
            format!("note: {}: {} records from {first} to {last}", name(&seen.server), seen.records)
        });
    }
}

/// The first of them, and how many more there are; `beyond` are not even in the report.
fn few<T>(lines: &mut Vec<String>, all: &[T], beyond: u64, what: &str, line: impl Fn(&T) -> String) {
    lines.extend(all.iter().take(REMARKS_MAX).map(line));
    if all.len() > REMARKS_MAX {
        let shown = if beyond == 0 { "all of them".to_owned() } else { format!("the first {}", all.len()) };
        lines.push(format!("and {} more {what}; --json shows {shown}", (all.len() - REMARKS_MAX) as u64 + beyond));
    }
}

fn cost(totals: &Totals, price: f64) -> f64 {
    totals.bytes_sent() as f64 / 1e9 * price
}

const COUNTS: [&str; 6] =
    ["bytes_from_client", "bytes_to_client", "bytes_from_peers", "bytes_to_peers", "bytes_sent", "wire_bytes_sent"];

fn counts(totals: &Totals) -> [i128; 6] {
    [
        totals.bytes_from_client,
        totals.bytes_to_client,
        totals.bytes_from_peers,
        totals.bytes_to_peers,
        totals.bytes_sent(),
        totals.wire_bytes_sent(),
    ]
}

fn cells(row: &ReportRow, by: &[Part]) -> Vec<String> {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let parts =
        [(Part::Day, &row.day), (Part::Tenant, &row.tenant), (Part::User, &row.user), (Part::Server, &row.server)];
    let mut cells: Vec<String> =
        parts.into_iter().filter(|(part, _)| by.contains(part)).map(|(_, value)| text(value)).collect();
    cells.push(row.sessions.to_string());
    cells.extend(counts(&row.totals).map(|count| count.to_string()));
    cells
}

fn heads(by: &[Part], price: Option<f64>) -> Vec<&'static str> {
    let parts = [(Part::Day, "day"), (Part::Tenant, "tenant"), (Part::User, "user"), (Part::Server, "server")];
    let mut heads: Vec<_> = parts.into_iter().filter(|(part, _)| by.contains(part)).map(|(_, name)| name).collect();
    heads.push("sessions");
    heads.extend(COUNTS);
    heads.extend(price.map(|_| "cost"));
    heads
}

/// A name's control characters are escaped as in the table: `cat` shows a CSV file on a terminal.
fn to_csv(report: &Report, by: &[Part], price: Option<f64>) -> String {
    let line =
        |cells: Vec<String>| cells.iter().map(|cell| quoted(&printable(cell))).collect::<Vec<_>>().join(",") + "\r\n";
    let mut text = line(heads(by, price).iter().map(ToString::to_string).collect());
    for row in &report.rows {
        let mut cells = cells(row, by);
        cells.extend(price.map(|price| format!("{:.6}", cost(&row.totals, price))));
        text += &line(cells);
    }
    text
}

/// RFC 4180: a cell with a comma, a quote or a line's end is quoted, and quotes in it are doubled.
///
/// Spreadsheets take a cell that begins with one of [`FORMULA`] for a formula and carry it out. A user chooses names,
/// so
/// such a cell gets an apostrophe before it, which spreadsheets read as "this is text".
fn quoted(cell: &str) -> String {
    let is_number = cell.parse::<f64>().is_ok_and(f64::is_finite);
    if cell.starts_with(FORMULA) && !is_number {
        return format!("\"'{}\"", cell.replace('"', "\"\""));
    }
    if cell.contains([',', '"', '\r', '\n']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

fn to_table(report: &Report, by: &[Part], price: Option<f64>) -> String {
    let mut lines = vec![heads(by, price).iter().map(ToString::to_string).collect::<Vec<_>>()];
    for row in report.rows.iter().chain([&report.total]) {
        let mut cells = cells(row, by);
        cells.extend(price.map(|price| format!("{:.2}", cost(&row.totals, price))));
        // This is read on a terminal, which a user's name must not steer.
        lines.push(cells.iter().map(|cell| printable(cell).into_owned()).collect());
    }
    if let Some(total) = lines.last_mut()
        && !by.is_empty()
    {
        total[0] = "total".to_owned();
    }
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            // Names to the left, numbers to the right.
            if column < by.len() { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn to_json(report: &Report, price: Option<f64>) -> Value {
    let mut value = json!(report);
    let add = |place: &mut Value, totals: &Totals| {
        place["bytes_sent"] = json!(totals.bytes_sent());
        place["wire_bytes_sent"] = json!(totals.wire_bytes_sent());
        if let Some(price) = price {
            place["cost"] = json!((cost(totals, price) * 1e6).round() / 1e6);
        }
    };
    for (at, row) in report.rows.iter().enumerate() {
        add(&mut value["rows"][at], &row.totals);
    }
    add(&mut value["total"], &report.total.totals);
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::usage::report::coverage::{MissingHours, MissingLines};

    fn example() -> Report {
        let totals = Totals {
            bytes_to_client: 1_500_000_000,
            bytes_to_peers: 500_000_000,
            wire_bytes_to_client: 1_550_000_000,
            wire_bytes_to_peers: 550_000_000,
            ..Totals::default()
        };
        let row = |user: &str| ReportRow {
            day: Some("2026-11-21".into()),
            tenant: None,
            user: Some(user.into()),
            server: None,
            sessions: 2,
            totals,
        };
        Report {
            rows: vec![row("a,\"b\""), row("ev\u{1b}e")],
            total: ReportRow { sessions: 4, totals, ..ReportRow::default() },
            records: 4,
            ..Report::default()
        }
    }

    #[test]
    fn csv_quotes_what_needs_it_and_has_the_cost() {
        let text = to_csv(&example(), &[Part::User], Some(0.05));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "user,sessions,bytes_from_client,bytes_to_client,bytes_from_peers,bytes_to_peers,bytes_sent,wire_bytes_sent,cost"
        );
        assert_eq!(lines[1], "\"a,\"\"b\"\"\",2,0,1500000000,0,500000000,2000000000,2100000000,0.100000");
        assert_eq!(lines.len(), 3);
        assert!(lines[2].starts_with("ev\\u{1b}e,2,"), "{text}");
        assert!(text.chars().all(|c| crate::printable::is_printable(c) || "\r\n".contains(c)), "{text:?}");
    }

    #[test]
    fn a_file_of_something_else_gives_twenty_lines_and_a_count() {
        let remark = |line| Remark { file: "x\u{1b}.log".into(), line, message: "is not a usage record".into() };
        let mut report = Report { problems: (1..=20).map(remark).collect(), ..example() };
        assert_eq!(remarks(&report).len(), 20);
        report.problems = (1..=70_000).map(remark).collect();
        report.notes = (1..=30).map(remark).collect();
        let lines = remarks(&report);
        assert_eq!(lines.len(), 42);
        assert_eq!(lines[0], "x\\u{1b}.log:1: is not a usage record");
        assert_eq!(lines[20], "and 69980 more lines are wrong; --json shows all of them");
        assert_eq!(lines[41], "and 10 more such notes; --json shows all of them");
    }

    // F-A15: `=cmd` in a name, as a spreadsheet would carry it out.
    #[test]
    fn no_cell_is_a_formula_and_numbers_stay_numbers() {
        for name in ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "＝1"] {
            assert!(quoted(name).starts_with("\"'"), "{}", quoted(name));
        }
        for plain in ["-5", "0.5", "alice", "a=b", ""] {
            assert_eq!(quoted(plain), plain);
        }
    }

    #[test]
    fn the_table_has_a_total_and_no_control_characters() {
        let text = to_table(&example(), &[Part::Day, Part::User], Some(0.5));
        assert!(text.lines().last().unwrap().starts_with("total"), "{text}");
        assert!(text.contains("ev\\u{1b}e") && !text.contains('\u{1b}'), "{text}");
        assert!(text.lines().next_back().unwrap().ends_with("  1.00"), "{text}");
        let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
    }

    #[test]
    fn json_has_rows_total_and_cost() {
        let value = to_json(&example(), Some(0.05));
        assert_eq!(value["rows"][0]["bytes_sent"], 2_000_000_000_u64);
        assert_eq!(value["total"]["cost"], 0.1);
        assert_eq!(value["rows"][0]["user"], "a,\"b\"");
        assert!(to_json(&example(), None)["total"].get("cost").is_none());
    }

    #[test]
    fn a_price_is_a_number_from_zero_on() {
        assert_eq!(price("0.05"), Ok(0.05));
        for wrong in ["-1", "NaN", "inf", "much"] {
            assert!(price(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_missing_is_named_by_server_hour_and_record() {
        let server = Some("turn\u{1b}-1".to_owned());
        let coverage = Coverage {
            missing_servers: vec!["turn-9".to_owned()],
            missing_hours: vec![MissingHours { server: server.clone(), from: 1_800_003_600, until: 1_800_010_800 }],
            missing_lines: vec![MissingLines {
                server,
                series: "ab".to_owned(),
                first: 4,
                last: 68,
                after: Some(1_800_003_000),
                before: 1_800_011_000,
            }],
            ..Coverage::default()
        };
        let lines = remarks(&Report { coverage, ..example() });
        assert_eq!(
            lines,
            [
                "missing: server turn-9: no record",
                "missing: server turn\\u{1b}-1: no record from 2027-01-15T09:00:00Z to 2027-01-15T11:00:00Z, although it wrote some",
                "missing: server turn\\u{1b}-1: 65 records, written after 2027-01-15T08:50:00Z and before \
                 2027-01-15T11:03:20Z (lines 4 to 68 of series ab)",
            ]
        );
    }

    #[test]
    fn a_day_is_one_of_the_calendar() {
        assert_eq!((day("1970-01-02"), day("2027-01-15")), (Ok(1), Ok(20_833)));
        for wrong in ["2027-02-30", "2027-1-15", "today", "2027-01-15T", ""] {
            assert!(day(wrong).is_err(), "{wrong}");
        }
    }
}
