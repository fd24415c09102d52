//! Reads a turnserver.conf and a command line into settings, as coturn would read them.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use crate::config::coturn::{self, CoturnOption, OPTIONS};
use crate::files;
use crate::import::verdict::Place;

/// No file is longer: a turnserver.conf with 40,000 users takes half of it.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// No database is larger: a hundred thousand users take a tenth of it.
const DATABASE_BYTES_MAX: u64 = 256 << 20;

/// What coturn reads of a line; the rest is another line to it.
const LINE_BYTES_MAX: usize = 1023;

/// One option with its value, where it stood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    /// Where it stood.
    pub place: Place,
    /// The name, as it was written but for dashes before it.
    pub name: String,
    /// What follows the name; `None` if nothing does.
    pub value: Option<String>,
    /// What is odd about the line, as the end of a verdict; empty if nothing is.
    pub note: &'static str,
}

/// A line that is no setting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadLine {
    /// Where it stands.
    pub place: Place,
    /// What is wrong with it.
    pub message: String,
}

/// What was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// In their order.
    pub settings: Vec<Setting>,
    /// Lines and arguments that can't be used.
    pub bad: Vec<BadLine>,
    /// The file that `-c` names.
    pub file_named: Option<String>,
}

/// Reads a text file, within bounds.
///
/// # Errors
/// Why it can't be read, in words.
pub fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let bytes = read_ordinary(path, FILE_BYTES_MAX).map_err(|error| format!("{shown}: {error}"))?;
    if bytes.contains(&0) {
        return Err(format!("{shown}: holds NUL bytes, so it is no text file"));
    }
    Ok(bytes)
}

/// Reads standard input, within the same bounds.
///
/// # Errors
/// Why it can't be read, in words.
pub fn read_stdin() -> Result<Vec<u8>, String> {
    let bytes = files::read_from(io::stdin().lock(), FILE_BYTES_MAX)
        .map_err(|error| format!("standard input: {}", why_unread(&error, FILE_BYTES_MAX)))?;
    if bytes.contains(&0) {
        return Err("standard input: holds NUL bytes, so it is no text".to_owned());
    }
    Ok(bytes)
}

/// Reads a database; the message of an error goes on behind its name.
///
/// # Errors
/// Why it can't be read, in words.
pub fn read_database(path: &Path) -> Result<Vec<u8>, String> {
    read_ordinary(path, DATABASE_BYTES_MAX)
}

fn read_ordinary(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    files::read(path, most).map_err(|error| why_unread(&error, most))
}

fn why_unread(error: &io::Error, most: u64) -> String {
    let kind = error.kind();
    if kind == ErrorKind::IsADirectory {
        "is a directory; name a file".to_owned()
    } else if kind == ErrorKind::InvalidInput {
        error.to_string()
    } else if kind == ErrorKind::FileTooLarge {
        format!("is larger than {} MiB, which is more than is read", most >> 20)
    } else {
        format!("can't be read: {error}")
    }
}

/// Reads the lines of a turnserver.conf; `name` stands for the file in verdicts.
#[must_use]
pub fn of_file(name: &str, bytes: &[u8]) -> Settings {
    let name: Arc<str> = name.into();
    let mut read = Settings::default();
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let place = Place::Line(name.clone(), at + 1);
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") || line.starts_with(b";") {
            continue;
        }
        let bad = |message: &str| BadLine { place: place.clone(), message: message.to_owned() };
        if line.len() > LINE_BYTES_MAX {
            read.bad
                .push(bad("is longer than the 1023 bytes that coturn reads of a line, so it never had this meaning"));
            continue;
        }
        let Ok(text) = std::str::from_utf8(line) else {
            read.bad.push(bad("is not UTF-8 text; save the file as UTF-8"));
            continue;
        };
        match of_line(&place, text) {
            Some(setting) => read.settings.push(setting),
            None => {
                read.bad.push(bad("is no option: every line is `name`, `name=value`, or a comment that begins with #"))
            }
        }
    }
    read
}

fn of_line(place: &Place, text: &str) -> Option<Setting> {
    let bare = text.trim_start_matches('-');
    let end = bare.find(['=', ' ', '\t']).unwrap_or(bare.len());
    let (name, rest) = bare.split_at(end);
    if !name.starts_with(|first: char| first.is_ascii_alphanumeric()) || name.len() > 64 {
        return None;
    }
    let value = rest.trim_start_matches(['=', ' ', '\t']);
    let (value, is_quoted) = unquoted(value);
    let value = Some(value.to_owned()).filter(|value| !value.is_empty());
    let has_note = !is_quoted && value.as_deref().is_some_and(|value| value.contains(" #") || value.ends_with(';'));
    let is_single = value.as_deref().is_some_and(|value| value.starts_with('\''));
    let note = if is_single && coturn::find(name).is_some_and(is_text) {
        "coturn takes single quotes as a part of the value"
    } else if has_note && coturn::find(name).is_some_and(is_text) {
        "coturn takes the comment or the semicolon at the end of the line as a part of the value"
    } else if bare.len() < text.len() {
        "coturn ignores a line of a file that begins with dashes, so make sure that this one was in effect"
    } else {
        ""
    };
    Some(Setting { place: place.clone(), name: name.to_owned(), value, note })
}

/// Whether a value counts to its last character, other than that of a number or a flag.
fn is_text(option: &CoturnOption) -> bool {
    ["realm", "static-auth-secret", "user", "cert", "pkey", "userdb", "db"].contains(&option.name)
}

/// A value without the double quotes around it.
fn unquoted(value: &str) -> (&str, bool) {
    match value.strip_prefix('"') {
        Some(inner) => (inner.strip_suffix('"').unwrap_or(inner), true),
        None => (value, false),
    }
}

/// Reads the arguments of a command line; the name of the program may come first.
#[must_use]
pub fn of_arguments(arguments: &[String]) -> Settings {
    let mut read = Settings::default();
    let mut at = usize::from(arguments.first().is_some_and(|first| first.ends_with("turnserver")));
    while let Some(argument) = arguments.get(at) {
        let place = Place::Argument(at + 1);
        at += 1;
        if let Some(long) = argument.strip_prefix("--") {
            if !long.is_empty() {
                at += long_option(&place, long, arguments.get(at), &mut read);
            }
        } else if let Some(letters) = argument.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            at += short_options(&place, letters, arguments.get(at), &mut read);
        } else {
            let message = "is no option; coturn ignores it".to_owned();
            read.bad.push(BadLine { place, message });
        }
    }
    read
}

/// Returns how many arguments behind it belong to it.
fn long_option(place: &Place, text: &str, next: Option<&String>, read: &mut Settings) -> usize {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let takes_next = value.is_none() && coturn::find(name).is_some_and(|option| option.has_value);
    let value = if takes_next { next.map(String::as_str) } else { value };
    let value = value.map(|value| unquoted(value).0.to_owned()).filter(|value| !value.is_empty());
    read.settings.push(Setting { place: place.clone(), name: name.to_owned(), value, note: "" });
    usize::from(takes_next && next.is_some())
}

/// The same for letters, of which the last may have a value.
fn short_options(place: &Place, letters: &str, next: Option<&String>, read: &mut Settings) -> usize {
    let mut rest = letters.chars();
    while let Some(letter) = rest.next() {
        let attached = Some(rest.as_str()).filter(|text| !text.is_empty());
        let value = attached.or(next.map(String::as_str));
        let taken = usize::from(attached.is_none() && next.is_some());
        match letter {
            'n' => {}
            'c' => {
                read.file_named = value.map(ToOwned::to_owned);
                return taken;
            }
            _ => {
                let Some(option) = OPTIONS.iter().find(|option| option.short == Some(letter)) else {
                    let message = format!("-{letter} is no option of turnserver");
                    read.bad.push(BadLine { place: place.clone(), message });
                    return 0;
                };
                let value = value.filter(|_| option.has_value).map(ToOwned::to_owned);
                read.settings.push(Setting { place: place.clone(), name: option.name.to_owned(), value, note: "" });
                if option.has_value {
                    return taken;
                }
            }
        }
    }
    0
}

/// A flag's value as coturn reads it: nothing is true. `None` if it would not start with it.
#[must_use]
pub fn flag(value: Option<&str>) -> Option<bool> {
    let Some(value) = value else { return Some(true) };
    match (value.to_ascii_lowercase().as_str(), value.as_bytes().first()?.to_ascii_lowercase()) {
        ("off", _) | (_, b'0' | b'n' | b'f') => Some(false),
        ("on", _) | (_, b'1'..=b'9' | b'y' | b't') => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(read: &Settings) -> Vec<(&str, Option<&str>)> {
        read.settings.iter().map(|setting| (setting.name.as_str(), setting.value.as_deref())).collect()
    }

    #[test]
    fn a_line_is_read_as_coturn_reads_it() {
        let text =
            b"\xEF\xBB\xBF# comment\n; another\n\nrealm=a.example\r\n  min-port  50000 \nfingerprint\nno-tls=0\n\
            user=bob:a=b\nserver-name=\"quoted name\"\n--verbose\nstatic-auth-secret = x # y\n=\n\xff\n";
        let read = of_file("t.conf", text);
        assert_eq!(
            pairs(&read),
            [
                ("realm", Some("a.example")),
                ("min-port", Some("50000")),
                ("fingerprint", None),
                ("no-tls", Some("0")),
                ("user", Some("bob:a=b")),
                ("server-name", Some("quoted name")),
                ("verbose", None),
                ("static-auth-secret", Some("x # y")),
            ]
        );
        assert_eq!(read.settings[0].place.to_string(), "t.conf:4");
        assert!(read.settings[6].note.contains("dashes") && read.settings[7].note.contains("comment"));
        let bad: Vec<String> = read.bad.iter().map(|bad| bad.place.to_string()).collect();
        assert_eq!(bad, ["t.conf:12", "t.conf:13"]);
    }

    #[test]
    fn a_command_line_is_read_as_getopt_reads_it() {
        let words = |text: &str| text.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>();
        let read = of_arguments(&words(
            "/usr/bin/turnserver -n -afv -p3479 -L 10.0.0.1 --realm=a.example --user bob:pw --no-cli stray -c x.conf -y",
        ));
        assert_eq!(
            pairs(&read),
            [
                ("lt-cred-mech", None),
                ("fingerprint", None),
                ("verbose", None),
                ("listening-port", Some("3479")),
                ("listening-ip", Some("10.0.0.1")),
                ("realm", Some("a.example")),
                ("user", Some("bob:pw")),
                ("no-cli", None),
            ]
        );
        assert_eq!(read.file_named.as_deref(), Some("x.conf"));
        assert_eq!(read.bad.len(), 2, "{:?}", read.bad);
        assert_eq!(read.settings[4].place, Place::Argument(5));
    }

    #[test]
    fn flags_have_the_words_of_coturn() {
        for (value, is_on) in [(None, Some(true)), (Some("0"), Some(false)), (Some("off"), Some(false))] {
            assert_eq!(flag(value), is_on, "{value:?}");
        }
        for (value, is_on) in
            [("No", Some(false)), ("yes", Some(true)), ("on", Some(true)), ("2", Some(true)), ("x", None)]
        {
            assert_eq!(flag(Some(value)), is_on, "{value}");
        }
    }

    #[test]
    fn a_long_line_is_one_bad_line() {
        let mut text = b"realm=".to_vec();
        text.resize(1 << 20, b'a');
        let read = of_file("t.conf", &text);
        assert_eq!((read.settings.len(), read.bad.len()), (0, 1));
    }
}
