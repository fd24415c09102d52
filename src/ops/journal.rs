//! The journal's own datagram protocol: one entry per datagram, with fields that `journalctl` can search by.
//!
//! [`Layer`] makes entries of log lines, which the log's thread hands over; usage records go the same way from `ops::usage`.

use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{SockAddr, SockRef};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::Context;

use super::log::output::{LineClass, Queue};
use crate::printable::{is_printable, printable_lines};

/// A journal that takes nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(1);

/// The journal's socket.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    socket: UnixDatagram,
    /// It did not take the last entry: the next one does not wait for it, or each would cost the whole patience.
    is_failing: bool,
}

impl Journal {
    pub(crate) fn new(path: PathBuf) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { path, socket, is_failing: false })
    }

    /// One that somebody listens on: an empty entry, which the journal ignores, arrives.
    pub(crate) fn reach(path: &Path) -> io::Result<Self> {
        let mut journal = Self::new(path.to_owned())?;
        journal.hand_over(&JournalEntry::default())?;
        Ok(journal)
    }

    /// Hands an entry over; blocks for [`PATIENCE`] at most, and not at all after a failure.
    ///
    /// The path is looked up anew each time: the journal may have been restarted.
    pub(crate) fn hand_over(&mut self, entry: &JournalEntry) -> io::Result<()> {
        let result = if self.is_failing {
            let to = SockAddr::unix(&self.path)?;
            SockRef::from(&self.socket).send_to_with_flags(&entry.0, &to, libc::MSG_DONTWAIT).map(drop)
        } else {
            self.socket.send_to(&entry.0, &self.path).map(drop)
        };
        self.is_failing = result.is_err();
        result
    }
}

/// The fields of one entry.
#[derive(Debug, Default)]
pub(crate) struct JournalEntry(Vec<u8>);

impl JournalEntry {
    /// Bytes of the datagram.
    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds a field. A value of several lines goes with its length, so that no value can make a field of its own.
    pub(crate) fn field(&mut self, name: &str, value: &str) {
        self.0.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            self.0.push(b'\n');
            self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }
}

/// Makes an entry of each log line: the text with all its fields as MESSAGE, and each field as one of its own.
pub(crate) struct Layer(&'static Queue);

impl Layer {
    /// Leaves the entries in this queue.
    pub(crate) const fn new(queue: &'static Queue) -> Self {
        Self(queue)
    }
}

impl<S: Subscriber> tracing_subscriber::Layer<S> for Layer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = JournalFields::default();
        event.record(&mut line);
        // Fields stay exact, for those who search; what is shown by itself must show as itself.
        let text = printable_lines(&line.message).into_owned() + &line.shown;
        let mut entry = JournalEntry::default();
        entry.field("MESSAGE", &text);
        entry.field("PRIORITY", priority(*event.metadata().level()));
        entry.field("SYSLOG_IDENTIFIER", "throughway");
        for (name, value) in &line.fields {
            entry.field(&format!("THROUGHWAY_{}", name.to_uppercase()), value);
        }
        let metadata = event.metadata();
        self.0.push_entry(LineClass::of(metadata), entry, format!("{} {text}", metadata.level()));
    }
}

/// As syslog counts.
const fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

/// A log line taken apart.
#[derive(Default)]
struct JournalFields {
    message: String,
    /// The fields as text behind the message.
    shown: String,
    fields: Vec<(&'static str, String)>,
}

impl JournalFields {
    fn take(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
            return;
        }
        let is_plain =
            !value.is_empty() && value.chars().all(|c| c != '"' && c != '\\' && !c.is_whitespace() && is_printable(c));
        // Writing to a string can't fail.
        let _ = if is_plain {
            write!(self.shown, " {}={value}", field.name())
        } else {
            write!(self.shown, " {}={value:?}", field.name())
        };
        self.fields.push((field.name(), value));
    }
}

impl Visit for JournalFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::ops::log::output::Output;
    use crate::ops::usage::tests::Directory;

    /// What the journal makes of a datagram.
    fn parse(mut bytes: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
            let line = std::str::from_utf8(&bytes[..end]).unwrap();
            bytes = &bytes[end + 1..];
            let (name, value) = match line.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => {
                    let (len, rest) = bytes.split_at(8);
                    let (value, rest) = rest.split_at(u64::from_le_bytes(len.try_into().unwrap()) as usize);
                    bytes = rest.strip_prefix(b"\n").unwrap();
                    (line, std::str::from_utf8(value).unwrap().to_owned())
                }
            };
            assert!(fields.insert(name.to_owned(), value).is_none(), "{name} twice");
        }
        fields
    }

    #[test]
    fn a_line_becomes_an_entry_and_no_value_makes_a_field() {
        let directory = Directory::new();
        let path = directory.path().join("socket");
        assert!(Journal::reach(&path).is_err(), "there is no listener yet");
        let socket = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::reach(&path).unwrap();
        let mut buffer = [0; 4096];
        assert_eq!(socket.recv(&mut buffer).unwrap(), 0);
        let queue: &'static Queue = Box::leak(Box::default());
        std::thread::spawn(|| queue.write_to(Output::new(Some(journal), io::sink())));
        let subscriber = tracing_subscriber::registry().with(Layer::new(queue));
        tracing::subscriber::with_default(subscriber, || {
            let user = "bob\nPRIORITY=0\nTHROUGHWAY_CLIENT=forged";
            let none = None::<&str>;
            // Not by the macro of its level: docs/reference/log.md lists what the server says, and it never says this.
            tracing::event!(Level::WARN, client = %"192.0.2.1:5", user, count = 3, empty = "", none, "two\nlines");
            tracing::debug!(error = %"a \"quoted\" thing", "quiet");
        });
        let len = socket.recv(&mut buffer).unwrap();
        let fields = parse(&buffer[..len]);
        let expected = [
            (
                "MESSAGE",
                "two\nlines client=192.0.2.1:5 user=\"bob\\nPRIORITY=0\\nTHROUGHWAY_CLIENT=forged\" count=3 empty=\"\"",
            ),
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "throughway"),
            ("THROUGHWAY_CLIENT", "192.0.2.1:5"),
            ("THROUGHWAY_COUNT", "3"),
            ("THROUGHWAY_EMPTY", ""),
            ("THROUGHWAY_USER", "bob\nPRIORITY=0\nTHROUGHWAY_CLIENT=forged"),
        ];
        assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        let len = socket.recv(&mut buffer).unwrap();
        let fields = parse(&buffer[..len]);
        assert_eq!(fields["MESSAGE"], "quiet error=\"a \\\"quoted\\\" thing\"");
        assert_eq!((&*fields["PRIORITY"], &*fields["THROUGHWAY_ERROR"]), ("7", "a \"quoted\" thing"));
    }
}
