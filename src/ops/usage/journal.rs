//! The journal's own datagram protocol: one record per datagram, the JSON line as MESSAGE.
//!
//! `journalctl -t throughway-usage -o cat` gives the lines back as they were.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use super::record::{Kind, Record};

/// A journal that takes nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(1);

/// The journal's socket.
pub(super) struct Journal {
    path: PathBuf,
    socket: UnixDatagram,
}

impl Journal {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { path, socket })
    }

    /// Hands one line over. The path is looked up anew each time: the journal may have been restarted.
    pub(super) fn write(&self, record: &Record, line: &str) -> io::Result<()> {
        let kind = match record.kind {
            Kind::Start => "start",
            Kind::Interim => "interim",
            Kind::Stop => "stop",
        };
        // Neither a session's name nor JSON on one line holds a line feed.
        let entry = format!(
            "MESSAGE={line}\nPRIORITY=6\nSYSLOG_IDENTIFIER=throughway-usage\nTHROUGHWAY_TYPE={kind}\nTHROUGHWAY_SESSION={}\nTHROUGHWAY_SEQ={}\n",
            record.session, record.seq
        );
        self.socket.send_to(entry.as_bytes(), &self.path).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::usage::record::tests::record;
    use crate::ops::usage::tests::Directory;

    #[test]
    fn a_record_is_one_datagram_of_fields() {
        let directory = Directory::new();
        let path = directory.path().join("socket");
        let journal = Journal::open(path.clone()).unwrap();
        let record = record("abc-1", 3, Kind::Stop, 5);
        assert!(journal.write(&record, "{}").is_err(), "nobody listens yet");
        let socket = UnixDatagram::bind(&path).unwrap();
        journal.write(&record, "{\"seq\":3}").unwrap();
        let mut buffer = [0; 4096];
        let len = socket.recv(&mut buffer).unwrap();
        let text = std::str::from_utf8(&buffer[..len]).unwrap();
        let fields: Vec<&str> = text.lines().collect();
        assert_eq!(fields[0], "MESSAGE={\"seq\":3}");
        assert!(fields.contains(&"SYSLOG_IDENTIFIER=throughway-usage"), "{text}");
        assert!(fields.contains(&"THROUGHWAY_SESSION=abc-1") && fields.contains(&"THROUGHWAY_SEQ=3"), "{text}");
    }
}
