//! Reads the tables of a SQLite database: the format of its file, as far as rows need it, and nothing else.
//!
//! No SQL, no indexes, no writing. Every number of the file is checked before it is used, every page is visited once at
//! most, and rows have no more bytes than the file, so a damaged or hostile file ends in an error. What stands in a write-ahead log is not seen:
//! the caller looks for one. Decision 0214 tells why this is no library.

use std::collections::BTreeMap;

/// What every such file begins with.
const MAGIC: &[u8] = b"SQLite format 3\0";

/// No row is longer; coturn's have some hundred bytes.
const ROW_BYTES_MAX: usize = 1 << 20;

/// All rows of a table.
const ROWS_MAX: usize = 200_000;

/// The bytes of the head of the file, which the first page begins with.
const HEAD_BYTES: usize = 100;

/// A value of a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cell {
    /// None.
    Null,
    /// A whole number.
    Integer(i64),
    /// Text, or bytes that are text.
    Text(String),
    /// Anything else.
    Other,
}

impl Cell {
    /// The value as text; empty if it is none.
    #[must_use]
    pub fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Integer(number) => number.to_string(),
            Self::Null | Self::Other => String::new(),
        }
    }
}

/// A table that the file has.
struct Table {
    root: usize,
    columns: Vec<String>,
}

/// A row with more than [`ROW_BYTES_MAX`].
struct TooLong;

/// What a table holds.
#[derive(Default)]
pub struct Rows {
    /// The columns that were asked for.
    pub rows: Vec<Vec<String>>,
    /// A sentence for each row that is left out.
    pub skipped: Vec<String>,
}

/// A database as bytes.
pub struct Database<'b> {
    bytes: &'b [u8],
    page_bytes: usize,
    /// Of a page, without what is reserved at its end.
    usable: usize,
    tables: BTreeMap<String, Table>,
}

const DAMAGED: &str = "the database is damaged: copy it with `sqlite3 OLD \".backup NEW\"` and read the copy";

impl<'b> Database<'b> {
    /// Reads the head and the list of tables.
    ///
    /// # Errors
    /// If it is no such database, or damaged.
    pub fn open(bytes: &'b [u8]) -> Result<Self, String> {
        if bytes.len() < HEAD_BYTES || !bytes.starts_with(MAGIC) {
            return Err("is no SQLite database".to_owned());
        }
        let page_bytes = match u16_at(bytes, 16).map(usize::from) {
            Some(1) => 65_536,
            Some(size) if size >= 512 && size.is_power_of_two() => size,
            _ => return Err(DAMAGED.to_owned()),
        };
        let usable = page_bytes - usize::from(bytes[20]);
        if usable < 480 {
            return Err(DAMAGED.to_owned());
        }
        // 1 is UTF-8; an empty database has none yet.
        if u32_at(bytes, 56).is_some_and(|encoding| encoding > 1) {
            return Err("holds text as UTF-16, which is not read here: dump it into one that has UTF-8".to_owned());
        }
        let mut database = Self { bytes, page_bytes, usable, tables: BTreeMap::new() };
        for row in database.walk(1)?.into_iter().flatten() {
            let mut cells = row.into_iter().map(Cell::into_text);
            let (kind, name) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
            let (root, sql) = (cells.nth(1).unwrap_or_default(), cells.next().unwrap_or_default());
            if let (true, Ok(root)) = (kind == "table", root.parse()) {
                database.tables.insert(name, Table { root, columns: columns_of(&sql) });
            }
        }
        Ok(database)
    }

    /// Whether there is a table of this name.
    #[must_use]
    pub fn has(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    /// These columns of each row, in the order of the rows. A row that has no text in one of them, but for the first, is
    /// left out.
    ///
    /// # Errors
    /// If there is no such table or column, or the file is damaged.
    pub fn rows(&self, table: &str, columns: &[&str]) -> Result<Rows, String> {
        let found = self.tables.get(table).ok_or_else(|| format!("has no table {table}"))?;
        let place = |column: &&str| {
            let at = found.columns.iter().position(|name| name.eq_ignore_ascii_case(column));
            at.ok_or_else(|| format!("its table {table} has no column {column}"))
        };
        let places = columns.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        let mut read = Rows::default();
        for (number, row) in self.walk(found.root)?.into_iter().enumerate().map(|(at, row)| (at + 1, row)) {
            let row = match row {
                Ok(row) => row,
                Err(TooLong) => {
                    read.skipped.push(format!("row {number} has more than {} MiB", ROW_BYTES_MAX >> 20));
                    continue;
                }
            };
            let cells: Vec<Cell> = places.iter().map(|at| row.get(*at).cloned().unwrap_or(Cell::Null)).collect();
            // The realm may be missing: it is empty then.
            let is_no_text = |cell: &Cell| matches!(cell, Cell::Null | Cell::Other);
            match cells.iter().skip(1).position(is_no_text) {
                Some(at) => read.skipped.push(format!("row {number} has no text as its {}", columns[at + 1])),
                None => read.rows.push(cells.into_iter().map(Cell::into_text).collect()),
            }
        }
        Ok(read)
    }

    fn page(&self, number: usize) -> Option<&'b [u8]> {
        let start = number.checked_sub(1)?.checked_mul(self.page_bytes)?;
        self.bytes.get(start..start.checked_add(self.page_bytes)?)
    }

    /// The rows of the tree below a page.
    fn walk(&self, root: usize) -> Result<Vec<Result<Vec<Cell>, TooLong>>, String> {
        let damaged = || DAMAGED.to_owned();
        let mut rows = Vec::new();
        let mut left = self.bytes.len() / self.page_bytes;
        // Cells of a hostile file may all lie at one place.
        let mut bytes_left = self.bytes.len();
        // The next page is the last one; children are put there from right to left.
        let mut pages = vec![root];
        while let Some(number) = pages.pop() {
            left = left.checked_sub(1).ok_or_else(damaged)?;
            let page = self.page(number).ok_or_else(damaged)?;
            let head = if number == 1 { HEAD_BYTES } else { 0 };
            let count = usize::from(u16_at(page, head + 3).ok_or_else(damaged)?);
            match page.get(head) {
                Some(0x0D) => {
                    for at in 0..count {
                        let cell = u16_at(page, head + 8 + 2 * at).map(usize::from).ok_or_else(damaged)?;
                        rows.push(self.row(page, cell, &mut bytes_left).ok_or_else(damaged)?);
                        if rows.len() > ROWS_MAX {
                            return Err(format!(
                                "has a table with more than {ROWS_MAX} rows, which are more than is read"
                            ));
                        }
                    }
                }
                Some(0x05) => {
                    pages.push(u32_at(page, head + 8).ok_or_else(damaged)? as usize);
                    for at in (0..count).rev() {
                        let cell = u16_at(page, head + 12 + 2 * at).map(usize::from).ok_or_else(damaged)?;
                        pages.push(u32_at(page, cell).ok_or_else(damaged)? as usize);
                    }
                    if pages.len() > self.bytes.len() / self.page_bytes {
                        return Err(damaged());
                    }
                }
                _ => return Err(damaged()),
            }
        }
        Ok(rows)
    }

    /// The row in a cell of a leaf, which takes from the bytes that rows may have together.
    fn row(&self, page: &[u8], cell: usize, bytes_left: &mut usize) -> Option<Result<Vec<Cell>, TooLong>> {
        let mut at = cell;
        let length = usize::try_from(varint(page, &mut at)?).ok().filter(|length| *length <= self.bytes.len())?;
        if length > ROW_BYTES_MAX {
            return Some(Err(TooLong));
        }
        *bytes_left = bytes_left.checked_sub(length)?;
        varint(page, &mut at)?;
        let record = self.payload(page, at, length)?;
        cells_of(&record).map(Ok)
    }

    /// The bytes of a row: in the cell, and what is too long for it in pages of its own.
    fn payload(&self, page: &[u8], at: usize, length: usize) -> Option<Vec<u8>> {
        let most = self.usable - 35;
        if length <= most {
            return Some(page.get(at..at.checked_add(length)?)?.to_vec());
        }
        let least = (self.usable - 12) * 32 / 255 - 23;
        let odd = least + (length - least) % (self.usable - 4);
        let local = if odd <= most { odd } else { least };
        let mut payload = page.get(at..at.checked_add(local)?)?.to_vec();
        let mut next = u32_at(page, at + local)?;
        while payload.len() < length {
            let page = self.page(usize::try_from(next).ok()?)?;
            let part = (length - payload.len()).min(self.usable - 4);
            payload.extend_from_slice(page.get(4..4 + part)?);
            next = u32_at(page, 0)?;
        }
        Some(payload)
    }
}

/// The values of a record: a head with a number for the type of each, then their bytes.
fn cells_of(record: &[u8]) -> Option<Vec<Cell>> {
    let mut at = 0;
    let head = usize::try_from(varint(record, &mut at)?).ok()?;
    let mut body = head;
    let mut cells = Vec::new();
    while at < head {
        let kind = varint(record, &mut at)?;
        let bytes = match kind {
            0 | 8 | 9 => 0,
            1..=4 => usize::try_from(kind).ok()?,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            _ => usize::try_from((kind - 12) / 2).ok()?,
        };
        let value = record.get(body..body.checked_add(bytes)?)?;
        body += bytes;
        cells.push(match kind {
            0 => Cell::Null,
            8 => Cell::Integer(0),
            9 => Cell::Integer(1),
            1..=6 => Cell::Integer(integer(value)),
            7 => Cell::Other,
            _ => std::str::from_utf8(value).map_or(Cell::Other, |text| Cell::Text(text.to_owned())),
        });
    }
    Some(cells)
}

/// A number of at most eight bytes with a sign, the highest byte first.
fn integer(bytes: &[u8]) -> i64 {
    let start = if bytes.first().is_some_and(|first| first & 0x80 != 0) { -1 } else { 0 };
    bytes.iter().fold(start, |number, byte| number << 8 | i64::from(*byte))
}

/// A number of one to nine bytes; `at` moves behind it.
fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut number = 0_u64;
    for place in 0..9 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if place == 8 {
            return Some(number << 8 | u64::from(byte));
        }
        number = number << 7 | u64::from(byte & 0x7F);
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some(number)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The names of the columns in the text that made a table, in small letters.
fn columns_of(sql: &str) -> Vec<String> {
    let Some((_, inner)) = sql.split_once('(') else { return Vec::new() };
    let inner: Vec<&str> = inner.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    let mut names = Vec::new();
    // The first word of a part is its name; a type may follow, or none.
    let (mut name, mut is_whole, mut is_quoted) = (String::new(), false, false);
    let (mut depth, mut quote) = (0_u32, None);
    for c in inner.join("\n").chars() {
        match (c, quote) {
            (c, Some(end)) if c == end => (quote, is_whole) = (None, true),
            (c, None) if depth == 0 && (c == ',' || c == ')') => {
                names.push((std::mem::take(&mut name), is_quoted));
                (is_whole, is_quoted) = (false, false);
                if c == ')' {
                    break;
                }
            }
            ('"' | '`' | '\'' | '[', None) => {
                is_quoted |= !is_whole;
                quote = Some(if c == '[' { ']' } else { c });
            }
            ('(', None) => (depth, is_whole) = (depth + 1, true),
            (')', None) => depth -= 1,
            (c, None) if c.is_whitespace() => is_whole |= !name.is_empty(),
            (c, _) if !is_whole => name.push(c.to_ascii_lowercase()),
            _ => {}
        }
    }
    let is_column = |(name, is_quoted): &(String, bool)| {
        *is_quoted || !["primary", "unique", "check", "foreign", "constraint"].contains(&name.as_str())
    };
    names.into_iter().filter(is_column).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by SQLite itself, pages of 512 bytes: 200 users, one secret of 3,000 bytes.
    const FILE: &[u8] = include_bytes!("../../tests/import/turndb");

    #[test]
    fn rows_are_read_across_pages() {
        let database = Database::open(FILE).unwrap();
        let users = database.rows("turnusers_lt", &["name", "hmackey", "realm"]).unwrap().rows;
        assert_eq!(users.len(), 201);
        assert_eq!(users[7], ["user7", "00000000000000000000000000000007", "turn.example.org"]);
        let secrets = database.rows("turn_secret", &["value"]).unwrap().rows;
        assert_eq!(secrets.len(), 2);
        assert!(secrets[1][0].len() == 3000 && secrets[1][0].bytes().all(|byte| byte == b'k'));
        assert!(database.has("allowed_peer_ip") && !database.has("nothing"));
        assert!(database.rows("nothing", &["a"]).err().unwrap().contains("no table nothing"));
        assert!(database.rows("turn_secret", &["a"]).err().unwrap().contains("no column a"));
    }

    #[test]
    fn a_damaged_file_is_an_error_and_no_panic() {
        assert!(Database::open(b"").is_err() && Database::open(&[0; 4096]).is_err());
        let mut failures = 0;
        for at in (0..FILE.len()).step_by(29) {
            for value in [0x00, 0x05, 0x0D, 0x7F, 0xFF] {
                let mut bytes = FILE.to_vec();
                bytes[at] = value;
                let read = Database::open(&bytes).and_then(|database| {
                    let rows = ["turnusers_lt", "turn_secret"].map(|table| database.rows(table, &["realm"]));
                    rows.into_iter().collect::<Result<Vec<_>, _>>()
                });
                failures += usize::from(read.is_err());
            }
        }
        assert!(failures > 100, "{failures}");
        for length in (0..FILE.len()).step_by(509) {
            let _ = Database::open(&FILE[..length]).map(|database| database.rows("turnusers_lt", &["name"]).is_ok());
        }
        assert!(Database::open(&FILE[..1024]).is_err());
    }

    /// Each cell of a page names the same row, whose bytes lie on a page of their own.
    #[test]
    fn rows_that_share_their_bytes_are_an_error() {
        let mut bytes = vec![0; 3 * 65_536];
        bytes[..16].copy_from_slice(MAGIC);
        bytes[16..18].copy_from_slice(&1_u16.to_be_bytes());
        bytes[HEAD_BYTES] = 0x0D;
        let cells: u16 = 1_000;
        bytes[HEAD_BYTES + 3..HEAD_BYTES + 5].copy_from_slice(&cells.to_be_bytes());
        for at in 0..usize::from(cells) {
            bytes[HEAD_BYTES + 8 + 2 * at..][..2].copy_from_slice(&4_000_u16.to_be_bytes());
        }
        // 30,000 bytes, row 1; the head of the record has one byte, and its rest says nothing.
        bytes[4_000..4_004].copy_from_slice(&[0x81, 0xEA, 0x30, 1]);
        bytes[4_004] = 1;
        assert_eq!(Database::open(&bytes).map(|_| ()), Err(DAMAGED.to_owned()));
        let one: u16 = 1;
        bytes[HEAD_BYTES + 3..HEAD_BYTES + 5].copy_from_slice(&one.to_be_bytes());
        assert_eq!(Database::open(&bytes).map(|_| ()), Ok(()), "one of them is a row");
    }

    #[test]
    fn numbers_are_read_as_they_are_written() {
        assert_eq!(integer(&[0xFF]), -1);
        assert_eq!(integer(&[0x01, 0x00]), 256);
        assert_eq!((varint(&[0x81, 0x00], &mut 0), varint(&[0xFF; 9], &mut 0)), (Some(128), Some(u64::MAX)));
        assert_eq!(varint(&[0x81], &mut 0), None);
        assert_eq!(
            columns_of("CREATE TABLE t (\n realm varchar(127) default '',\n \"Name\" text, PRIMARY KEY (realm,name))"),
            ["realm", "name"]
        );
        for sql in [
            "create table turn_secret(realm,value)",
            "CREATE TABLE t(\"realm\",[value])",
            "create table t (realm -- of it, or none\n, `value`)",
        ] {
            assert_eq!(columns_of(sql), ["realm", "value"], "{sql}");
        }
        let sql = "CREATE TABLE t (realm varchar(10) CHECK (realm IN ('a,b', ')')), \"a, b)\" text, [primary], UNIQUE(realm))";
        assert_eq!(columns_of(sql), ["realm", "a, b)", "primary"]);
    }

    /// A secret, one of 3 MB, one that is NULL, one of bytes that are no text, and one more.
    #[test]
    fn a_row_that_can_not_be_read_is_left_out_and_told() {
        let bytes = a_file_with_odd_rows();
        let read = Database::open(&bytes).unwrap().rows("turn_secret", &["realm", "value"]).unwrap();
        assert_eq!(read.rows, [["", "north-of-everything"], ["a.example", "south-of-everything"]]);
        assert_eq!(
            read.skipped,
            ["row 2 has more than 1 MiB", "row 3 has no text as its value", "row 4 has no text as its value"]
        );
    }

    /// One page with the table of tables, one with the rows, and the pages that the long one goes on in.
    fn a_file_with_odd_rows() -> Vec<u8> {
        const PAGE: usize = 4096;
        let mut bytes = vec![0; 2 * PAGE];
        bytes[..16].copy_from_slice(MAGIC);
        bytes[16..18].copy_from_slice(&4096_u16.to_be_bytes());
        let put = |page: &mut [u8], head: usize, cells: &[Vec<u8>]| {
            page[head] = 0x0D;
            page[head + 3..head + 5].copy_from_slice(&u16::try_from(cells.len()).unwrap().to_be_bytes());
            let mut end = PAGE;
            for (at, cell) in cells.iter().enumerate() {
                end -= cell.len();
                page[end..end + cell.len()].copy_from_slice(cell);
                page[head + 8 + 2 * at..][..2].copy_from_slice(&u16::try_from(end).unwrap().to_be_bytes());
            }
        };
        // A type of text is 13 and twice its bytes; a type below 128 has one byte.
        let cell = |types: &[u8], body: &[u8]| {
            let record = [&[u8::try_from(types.len() + 1).unwrap()], types, body].concat();
            [&[u8::try_from(record.len()).unwrap(), 1], &*record].concat()
        };
        let sql = b"create table turn_secret(realm,value)";
        let types = [23, 35, 35, 1, u8::try_from(13 + 2 * sql.len()).unwrap()];
        let schema = cell(&types, &[&b"tableturn_secretturn_secret"[..], &[2], sql].concat());
        put(&mut bytes[..PAGE], HEAD_BYTES, &[schema]);
        // 3,000,000 bytes as a number of seven bits a byte; what follows is never looked at.
        let long = vec![0x81, 0xB7, 0x8D, 0x40, 1, 0, 0, 0, 0];
        let rows = [
            cell(&[0, 51], b"north-of-everything"),
            long,
            cell(&[13, 0], b""),
            cell(&[13, 16], &[0xFF, 0xFE]),
            cell(&[31, 51], b"a.examplesouth-of-everything"),
        ];
        put(&mut bytes[PAGE..], 0, &rows);
        bytes.resize(2 * PAGE + 3_100_000_usize.next_multiple_of(PAGE), 0);
        bytes
    }
}
