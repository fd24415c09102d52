//! The usage file: appended to, renamed when it is large, never left with half a line.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::calendar::rfc3339;
use crate::config::accounting::UsageFileConfig;

/// Where the last line is looked for: far longer than any.
const TAIL_BYTES: u64 = 64 * 1024;

/// An open usage file.
pub(super) struct UsageFile {
    config: UsageFileConfig,
    file: File,
    len: u64,
    /// It was renamed, and the one that is to follow is not open yet.
    is_renamed: bool,
}

impl UsageFile {
    /// Opens or makes the file; gives its last whole line as well.
    pub(super) fn open(config: UsageFileConfig) -> io::Result<(Self, Option<String>)> {
        let mut file = open(&config.path)?;
        let len = file.metadata()?.len();
        let mut tail = Vec::new();
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
        io::Read::by_ref(&mut file).take(len.min(TAIL_BYTES)).read_to_end(&mut tail)?;
        let mut usage = Self { config, file, len, is_renamed: false };
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < tail.len() {
            // The power went while a line was written: what is left of it stays, on a line of its own.
            usage.append(b"\n")?;
        }
        let text = String::from_utf8_lossy(&tail[..whole]);
        let last = text.lines().next_back().map(ToOwned::to_owned);
        Ok((usage, last))
    }

    /// Whether so much more would be too much.
    pub(super) fn is_full(&self, bytes: usize) -> bool {
        self.len > 0 && self.config.rotate_bytes.is_some_and(|max| self.len + bytes as u64 > max)
    }

    /// Appends all or, on an error, nothing.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.file.write_all(bytes) {
            Ok(()) => {
                self.len += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // A part may have been written; readers skip half a line. Only a file can be cut.
                let _ = self.file.set_len(self.len);
                Err(error)
            }
        }
    }

    /// Renames the file to its time, starts a new one and removes the oldest beyond the limit.
    ///
    /// The old file stays open until the new one is: after an error [`UsageFile::append`] goes on writing to it, and the
    /// next call goes on where this one ended.
    pub(super) fn rotate(&mut self, unix: u64) -> io::Result<()> {
        if !self.is_renamed {
            self.file.sync_data()?;
            let stamp: String = rfc3339(unix).chars().filter(|c| !matches!(c, '-' | ':')).collect();
            let mut target = self.beside(&stamp);
            let mut number = 1;
            while target.exists() {
                target = self.beside(&format!("{stamp}-{number:04}"));
                number += 1;
            }
            std::fs::rename(&self.config.path, &target)?;
            self.is_renamed = true;
        }
        self.open_new()?;
        self.remove_oldest()
    }

    /// Somebody else may have renamed the file: writes to the one that has the name now.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        let (ours, now) = (self.file.metadata()?, std::fs::metadata(&self.config.path));
        if now.is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino())) {
            self.len = ours.len();
            return Ok(());
        }
        self.open_new()
    }

    fn open_new(&mut self) -> io::Result<()> {
        let file = open(&self.config.path)?;
        self.len = file.metadata()?.len();
        self.file = file;
        self.is_renamed = false;
        Ok(())
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = OsString::from(self.config.path.as_os_str());
        name.push(".");
        name.push(suffix);
        name.into()
    }

    fn remove_oldest(&self) -> io::Result<()> {
        let Some(count) = self.config.rotate_count else { return Ok(()) };
        let mut rotated = rotated(&self.config.path)?;
        rotated.sort();
        let too_many = rotated.len().saturating_sub(count as usize);
        for path in &rotated[..too_many] {
            std::fs::remove_file(path)?;
            tracing::info!(file = %path.display(), "removed an old usage file");
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)
}

/// Files that this one was renamed to.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let is_ours =
            entry.file_name().to_str().and_then(|file| file.strip_prefix(&name)?.strip_prefix('.').map(is_stamp));
        if is_ours == Some(true) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// `20261121T053012Z`, or that and a number.
fn is_stamp(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 16
        && bytes[8] == b'T'
        && bytes[15] == b'Z'
        && bytes[..15].iter().enumerate().all(|(at, byte)| at == 8 || byte.is_ascii_digit())
        && (bytes.len() == 16 || bytes[16] == b'-' && bytes[17..].iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::usage::tests::Directory;

    fn config(directory: &Directory, rotate_bytes: Option<u64>, rotate_count: Option<u32>) -> UsageFileConfig {
        UsageFileConfig { path: directory.path().join("usage.jsonl"), rotate_bytes, rotate_count }
    }

    // F-B4: the rename succeeds and the open fails: each retry renamed what was gone.
    #[test]
    fn a_rotation_that_stops_halfway_goes_on_where_it_stopped() {
        let directory = Directory::new();
        let config = config(&directory, Some(10), None);
        let (mut file, _) = UsageFile::open(config.clone()).unwrap();
        file.append(b"one\n").unwrap();
        // As after a rename whose open failed; and it fails again, because the name is a directory's now.
        let old = directory.path().join("usage.jsonl.20260101T000000Z");
        std::fs::rename(&config.path, &old).unwrap();
        file.is_renamed = true;
        std::fs::create_dir(&config.path).unwrap();
        for line in ["two\n", "three\n"] {
            file.rotate(100).unwrap_err();
            file.append(line.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "one\ntwo\nthree\n");
        std::fs::remove_dir(&config.path).unwrap();
        file.rotate(100).unwrap();
        file.append(b"four\n").unwrap();
        assert_eq!(std::fs::read_to_string(&config.path).unwrap(), "four\n");
        assert_eq!(rotated(&config.path).unwrap(), [old], "renamed once");
    }

    #[test]
    fn a_full_file_is_renamed_and_the_oldest_go() {
        let directory = Directory::new();
        let config = config(&directory, Some(10), Some(2));
        let (mut file, last) = UsageFile::open(config.clone()).unwrap();
        assert_eq!(last, None);
        std::fs::write(directory.path().join("usage.jsonl.bak"), "mine").unwrap();
        for number in 0..5_u64 {
            assert_eq!(file.is_full(6), number > 0);
            if number > 0 {
                // Two of them within one second.
                file.rotate(1_800_000_000 + number / 2).unwrap();
            }
            file.append(format!("line{number}\n").as_bytes()).unwrap();
        }
        let mut names = rotated(&config.path).unwrap();
        names.sort();
        let texts: Vec<String> = names.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        assert_eq!(texts, ["line2\n", "line3\n"], "{names:?}");
        assert_eq!(std::fs::read_to_string(&config.path).unwrap(), "line4\n");
        assert!(directory.path().join("usage.jsonl.bak").exists(), "what is not ours stays");
    }

    #[test]
    fn half_a_line_gets_an_end_and_the_last_whole_one_is_found() {
        let directory = Directory::new();
        let config = config(&directory, None, None);
        std::fs::write(&config.path, "one\ntwo\nthr").unwrap();
        let (mut file, last) = UsageFile::open(config.clone()).unwrap();
        assert_eq!(last.as_deref(), Some("two"));
        file.append(b"four\n").unwrap();
        assert_eq!(std::fs::read_to_string(&config.path).unwrap(), "one\ntwo\nthr\nfour\n");
        drop(file);
        assert_eq!(UsageFile::open(config).unwrap().1.as_deref(), Some("four"));
    }

    #[test]
    fn a_file_that_another_program_renamed_is_opened_again() {
        let directory = Directory::new();
        let config = config(&directory, None, None);
        let (mut file, _) = UsageFile::open(config.clone()).unwrap();
        file.append(b"one\n").unwrap();
        let moved = directory.path().join("moved");
        std::fs::rename(&config.path, &moved).unwrap();
        file.append(b"two\n").unwrap();
        file.reopen().unwrap();
        file.append(b"three\n").unwrap();
        file.reopen().unwrap();
        file.append(b"four\n").unwrap();
        assert_eq!(std::fs::read_to_string(moved).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(config.path).unwrap(), "three\nfour\n");
    }

    #[test]
    fn a_full_disk_is_an_error_that_leaves_the_file_as_it_was() {
        // Nothing can be written to it, even as root.
        let config = UsageFileConfig { path: "/dev/full".into(), rotate_bytes: None, rotate_count: None };
        let file = open(&config.path).unwrap();
        let mut usage = UsageFile { config, file, len: 0, is_renamed: false };
        assert!(usage.append(b"line\n").is_err());
        assert_eq!(usage.len, 0);
    }
}
