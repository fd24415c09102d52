//! Which server a line is from, and its number there, so that who reads the files of many servers sees what is missing.
//!
//! A series begins with line 0 and goes on over restarts, upgrades and rotations for as long as the last line can be read
//! back from `accounting.file`. A server that has no file begins a series at each start.
//! Decision: docs/decisions/0246-usage-over-a-fleet.md.

use super::record::Record;

/// Numbers one line after the other.
pub(super) struct Series {
    server: String,
    id: String,
    next: u64,
}

impl Series {
    /// Goes on after a line of this server, if it is one; begins a series with that name otherwise.
    pub(super) fn after(last: Option<&str>, server: String, new_id: u64) -> Self {
        let last: Option<Record> = last.and_then(|line| serde_json::from_str(line).ok());
        let goes_on = last.filter(|record| record.server.as_deref() == Some(&*server));
        match goes_on.and_then(|record| Some((record.series?, record.line?.checked_add(1)?))) {
            Some((id, next)) => Self { server, id, next },
            None => Self { server, id: format!("{new_id:016x}"), next: 0 },
        }
    }

    /// Gives a record its server, its series and its number there.
    pub(super) fn number(&mut self, record: &mut Record) {
        record.server = Some(self.server.clone());
        record.series = Some(self.id.clone());
        record.line = Some(self.next);
        self.next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::usage::record::RecordKind;
    use crate::ops::usage::record::tests::record;

    fn lines(series: &mut Series, count: u32) -> Vec<String> {
        let numbered = |seq| {
            let mut record = record("a", seq, RecordKind::Interim, 0);
            series.number(&mut record);
            serde_json::to_string(&record).unwrap()
        };
        (0..count).map(numbered).collect()
    }

    fn place(line: &str) -> (String, String, u64) {
        let record: Record = serde_json::from_str(line).unwrap();
        (record.server.unwrap(), record.series.unwrap(), record.line.unwrap())
    }

    #[test]
    fn a_series_goes_on_after_the_last_line_of_this_server() {
        let first = lines(&mut Series::after(None, "turn-1".to_owned(), 0x1f), 3);
        assert_eq!(place(&first[2]), ("turn-1".to_owned(), "000000000000001f".to_owned(), 2));
        let next = lines(&mut Series::after(Some(&first[2]), "turn-1".to_owned(), 0x2f), 1);
        assert_eq!(place(&next[0]), ("turn-1".to_owned(), "000000000000001f".to_owned(), 3));
    }

    #[test]
    fn another_servers_line_or_none_begins_a_series() {
        let other = lines(&mut Series::after(None, "turn-2".to_owned(), 0x1f), 3);
        let unnumbered = serde_json::to_string(&record("a", 0, RecordKind::Start, 0)).unwrap();
        for last in [&*other[2], &unnumbered, "half a li", ""] {
            let line = lines(&mut Series::after(Some(last), "turn-1".to_owned(), 0x2f), 1);
            assert_eq!(place(&line[0]), ("turn-1".to_owned(), "000000000000002f".to_owned(), 0), "{last}");
        }
    }
}
