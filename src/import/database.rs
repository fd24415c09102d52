//! What coturn keeps in a database: users, secrets, peers, and options of realms. From a SQLite file, or from the CSV that
//! another database prints.

use crate::import::sqlite;
use crate::import::verdict::Place;

/// The tables that are read, with their columns.
pub const TABLES: &[(&str, &[&str])] = &[
    ("turnusers_lt", &["realm", "name", "hmackey"]),
    ("turn_secret", &["realm", "value"]),
    ("allowed_peer_ip", &["realm", "ip_range"]),
    ("denied_peer_ip", &["realm", "ip_range"]),
    ("turn_realm_option", &["realm", "opt", "value"]),
    ("turn_origin_to_realm", &["realm", "origin"]),
];

/// A row, realm first.
pub type Row = Vec<String>;

/// The rows of one table.
#[derive(Clone, Debug)]
pub struct Table {
    /// The name of its database or file, for verdicts.
    pub source: String,
    /// Its own name.
    pub name: &'static str,
    /// The columns are those of [`TABLES`].
    pub rows: Vec<Row>,
    /// Why a row is not among them, one sentence for each that is left out.
    pub skipped: Vec<String>,
}

impl Table {
    /// The place of its rows.
    #[must_use]
    pub fn place(&self) -> Place {
        Place::File(format!("{}, table {}", self.source, self.name).into())
    }
}

/// Reads every table of a SQLite file that coturn has.
///
/// # Errors
/// If it is none, or damaged.
pub fn of_sqlite(source: &str, bytes: &[u8]) -> Result<Vec<Table>, String> {
    let database = sqlite::Database::open(bytes)?;
    let mut tables = Vec::new();
    for (name, columns) in TABLES {
        if database.has(name) {
            let sqlite::Rows { rows, skipped } = database.rows(name, columns)?;
            tables.push(Table { source: source.to_owned(), name, rows, skipped });
        }
    }
    if tables.is_empty() {
        return Err("has none of coturn's tables: is it another program's database?".to_owned());
    }
    Ok(tables)
}

/// Reads CSV with the names of the columns in its first line.
///
/// # Errors
/// If the table is none of coturn's, or a column is missing.
pub fn of_csv(source: &str, table: &str, text: &str) -> Result<Table, String> {
    let Some((name, columns)) = TABLES.iter().find(|(name, _)| *name == table) else {
        let known: Vec<&str> = TABLES.iter().map(|(name, _)| *name).collect();
        return Err(format!("{table} is none of coturn's tables: {}", known.join(", ")));
    };
    let mut records = records(text).into_iter();
    let head = records.next().unwrap_or_default();
    let place = |column: &&str| {
        let at = head.iter().position(|name| name.trim().eq_ignore_ascii_case(column));
        at.ok_or_else(|| format!("its first line does not name the column {column}; print it with `{}`", select(name)))
    };
    let places = columns.iter().map(place).collect::<Result<Vec<_>, _>>()?;
    let pick = |record: Vec<String>| places.iter().map(|at| record.get(*at).cloned().unwrap_or_default()).collect();
    Ok(Table { source: source.to_owned(), name, rows: records.map(pick).collect(), skipped: Vec::new() })
}

/// The statement that prints a table.
#[must_use]
pub fn select(table: &str) -> String {
    let columns =
        TABLES.iter().find(|(name, _)| *name == table).map_or_else(String::new, |(_, columns)| columns.join(", "));
    format!("SELECT {columns} FROM {table}")
}

/// The records of CSV: fields between commas, in double quotes if they hold one, a quote as two of them.
fn records(text: &str) -> Vec<Vec<String>> {
    let mut records = Vec::new();
    let mut record = Vec::new();
    let mut field = String::new();
    let mut is_quoted = false;
    let mut chars = text.trim_start_matches('\u{FEFF}').chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => record.push(std::mem::take(&mut field)),
            '\r' if !is_quoted => {}
            '\n' if !is_quoted => {
                record.push(std::mem::take(&mut field));
                records.push(std::mem::take(&mut record));
            }
            c => field.push(c),
        }
    }
    if !field.is_empty() || !record.is_empty() {
        record.push(field);
        records.push(record);
    }
    records.retain(|record: &Vec<String>| record.iter().any(|field| !field.is_empty()));
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_is_read_with_its_quotes() {
        let text = "name,realm,hmackey\r\nbob,a.example,00ff\n\"a \"\"b\"\", c\",,\"11\n22\"\n\n";
        let table = of_csv("users.csv", "turnusers_lt", text).unwrap();
        assert_eq!(table.rows, [["a.example", "bob", "00ff"], ["", "a \"b\", c", "11\n22"]]);
        assert!(of_csv("x", "turn_secret", "realm\n").unwrap_err().contains("SELECT realm, value FROM turn_secret"));
        assert!(of_csv("x", "users", "").unwrap_err().contains("turnusers_lt"));
    }
}
