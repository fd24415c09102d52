//! `usage report`: what usage files add up to, as a table, CSV or JSON.

use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::cli::OPTION_FILE_BYTES_MAX;
use crate::credentials::Secret;
use crate::failure::Failure;
use crate::files;
use crate::ops::usage::report::{By, Reader, Remark, Report, ReportRow, Totals};
use crate::printable::{json_line, printable, printable_lines};

/// What a formula begins with, in any spreadsheet; the last four are what East Asian keyboards give.
const FORMULA: [char; 10] = ['=', '+', '-', '@', '\t', '\r', '＝', '＋', '－', '＠'];

/// So many lines about each kind of thing: a file of something else would fill the terminal.
const REMARKS_MAX: usize = 20;

/// Commands about usage records.
#[derive(Subcommand, Debug)]
pub(super) enum UsageCommand {
    /// Add usage files up: totals per day, tenant and user
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
}

/// Options of `usage report`.
#[derive(Args, Debug)]
pub(super) struct ReportOptions {
    /// Usage files in any order, rotated ones too; - is standard input
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
    /// The server's accounting.sign_key_file: every line must be signed with it
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

fn price(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|price| price.is_finite() && *price >= 0.0)
        .ok_or_else(|| "expected a number such as 0.05".to_owned())
}

pub(super) fn report(options: &ReportOptions) -> Result<(), Failure> {
    let mut reader = Reader::new(options.key_file.as_deref().map(read_key).transpose()?);
    let mut unread = false;
    for path in &options.files {
        let name = path.display().to_string();
        let read = if path == Path::new("-") {
            reader.read("standard input", io::stdin().lock())
        } else {
            files::open(path).and_then(|file| reader.read(&name, BufReader::new(file)))
        };
        if let Err(error) = read {
            eprintln!("{}: can't be read: {error}", printable(&name));
            unread = true;
        }
    }
    let has = |part| options.by.contains(&part);
    let report = reader.finish(By { day: has(Part::Day), tenant: has(Part::Tenant), user: has(Part::User) });
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
    if unread || !report.problems.is_empty() { Err(Failure::Reported(1)) } else { Ok(()) }
}

fn read_key(path: &Path) -> Result<Secret, Failure> {
    let mut key = files::read(path, OPTION_FILE_BYTES_MAX)
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
    few(&mut lines, &report.problems, "lines are wrong", at);
    few(&mut lines, &report.notes, "such notes", |note| format!("note: {}", at(note)));
    few(&mut lines, &report.gaps, "gaps", |gap| {
        let which =
            if gap.first == gap.last { gap.first.to_string() } else { format!("{} to {}", gap.first, gap.last) };
        let session = printable(&gap.session);
        format!("note: session {session}: no record {which}; the one after it counts what was before")
    });
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

fn few<T>(lines: &mut Vec<String>, all: &[T], what: &str, line: impl Fn(&T) -> String) {
    lines.extend(all.iter().take(REMARKS_MAX).map(line));
    if all.len() > REMARKS_MAX {
        lines.push(format!("and {} more {what}; --json shows all of them", all.len() - REMARKS_MAX));
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
    let parts = [(Part::Day, &row.day), (Part::Tenant, &row.tenant), (Part::User, &row.user)];
    let mut cells: Vec<String> =
        parts.into_iter().filter(|(part, _)| by.contains(part)).map(|(_, value)| text(value)).collect();
    cells.push(row.sessions.to_string());
    cells.extend(counts(&row.totals).map(|count| count.to_string()));
    cells
}

fn heads(by: &[Part], price: Option<f64>) -> Vec<&'static str> {
    let parts = [(Part::Day, "day"), (Part::Tenant, "tenant"), (Part::User, "user")];
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
            sessions: 2,
            totals,
        };
        Report {
            rows: vec![row("a,\"b\""), row("ev\u{1b}e")],
            total: ReportRow { day: None, tenant: None, user: None, sessions: 4, totals },
            records: 4,
            duplicates: 0,
            unfinished: 0,
            gaps: vec![],
            problems: vec![],
            notes: vec![],
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
}
