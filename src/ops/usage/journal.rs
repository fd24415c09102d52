//! Usage records in the journal: the JSON line as MESSAGE.
//!
//! `journalctl -t throughway-usage -o cat` gives the lines back as they were.

use std::io;

use super::record::{Record, RecordKind};
use crate::ops::journal::{Journal, JournalEntry};

/// Hands one line over.
pub(super) fn write(journal: &mut Journal, record: &Record, line: &str) -> io::Result<()> {
    let kind = match record.kind {
        RecordKind::Start => "start",
        RecordKind::Interim => "interim",
        RecordKind::Stop => "stop",
    };
    let mut entry = JournalEntry::default();
    entry.field("MESSAGE", line);
    entry.field("PRIORITY", "6");
    entry.field("SYSLOG_IDENTIFIER", "throughway-usage");
    entry.field("THROUGHWAY_TYPE", kind);
    entry.field("THROUGHWAY_SESSION", &record.session);
    entry.field("THROUGHWAY_SEQ", &record.seq.to_string());
    journal.hand_over(&entry)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::ops::usage::record::tests::record;
    use crate::ops::usage::tests::Directory;

    #[test]
    fn a_record_is_one_datagram_of_fields() {
        let directory = Directory::new();
        let path = directory.path().join("socket");
        let mut journal = Journal::new(path.clone()).unwrap();
        let record = record("abc-1", 3, RecordKind::Stop, 5);
        assert!(write(&mut journal, &record, "{}").is_err(), "there is no listener yet");
        let socket = UnixDatagram::bind(&path).unwrap();
        write(&mut journal, &record, "{\"seq\":3}").unwrap();
        let mut buffer = [0; 4096];
        let len = socket.recv(&mut buffer).unwrap();
        let text = std::str::from_utf8(&buffer[..len]).unwrap();
        let fields: Vec<&str> = text.lines().collect();
        assert_eq!(fields[0], "MESSAGE={\"seq\":3}");
        assert!(fields.contains(&"SYSLOG_IDENTIFIER=throughway-usage"), "{text}");
        assert!(fields.contains(&"THROUGHWAY_SESSION=abc-1") && fields.contains(&"THROUGHWAY_SEQ=3"), "{text}");
    }
}
