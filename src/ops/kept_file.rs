//! A set that an operator changes while the server runs, kept in a file over restarts: revocations, and limits that were
//! set at run time.
//!
//! One line for each entry, as JSON, below a line that says what the file is. It is written whole: a new file beside the old
//! one, synced and renamed over it, so that a crash leaves the one or the other. What the entries are and who asks them is
//! the business of the modules that use it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files;

/// The longest line: a user of 508 bytes of a tenant of as many, each escaped.
const LINE_BYTES_MAX: u64 = 16 * 1024;

/// What a kept set is, for its file and for messages.
pub struct KeptKind {
    /// The configuration key that names the file.
    pub key: &'static str,
    /// The file's name in the state directory.
    pub file_name: &'static str,
    /// The first line of the file.
    pub head: &'static str,
    /// One entry, with its article, such as "a revocation".
    pub entry: &'static str,
    /// Many of them, such as "revocations".
    pub entries: &'static str,
    /// What an operator reaches by moving the file away, such as "remove all blocks".
    pub without: &'static str,
    /// The most entries.
    pub entries_max: usize,
    /// Changes that could not be written.
    pub write_failures: AtomicU64,
}

/// A change holds, but not beyond the end of this process.
#[derive(Debug, thiserror::Error)]
#[error("it is in effect, but can't be written to {path}, so a restart undoes it: {cause}")]
pub struct NotSaved {
    /// Where to.
    pub path: PathBuf,
    /// The system's word.
    pub cause: io::Error,
}

impl KeptKind {
    /// How many changes could not be written.
    #[must_use]
    pub fn write_failures(&self) -> u64 {
        self.write_failures.load(Ordering::Relaxed)
    }

    /// Where the file is: the configured path, else one in the first state directory, else nowhere.
    #[must_use]
    pub fn path_of(&self, configured: Option<&Path>, state_directory: Option<&str>) -> Option<PathBuf> {
        configured.map(Path::to_owned).or_else(|| {
            let first = state_directory?.split(':').next().filter(|first| !first.is_empty())?;
            Some(Path::new(first).join(self.file_name))
        })
    }

    /// Opens the file; nothing if there is none.
    fn open(&self, path: &Path) -> Result<Option<File>, String> {
        let Self { key, entries, without, .. } = self;
        if let Some(target) = files::dangling(path) {
            return Err(format!(
                "{key}: {} is a link to {}, which is not there; make that file reachable, or remove the link to {without}",
                path.display(),
                target.display()
            ));
        }
        match files::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let directory = directory_of(path);
                if directory.is_dir() {
                    return Ok(None);
                }
                Err(format!(
                    "{key}: there is no directory {}, so {entries} could not be kept; make it, or name another file",
                    directory.display()
                ))
            }
            Err(error) => Err(format!(
                "{key}: can't read {}: {error}; give the server's user the right to read and write it",
                path.display()
            )),
        }
    }

    /// Every entry of the file, in its order; none if there is no file. `check` says what is wrong with an entry that can be
    /// read.
    ///
    /// # Errors
    /// Key, file, line and remedy, when it can't be read or is not what [`KeptFile::save`] wrote.
    pub fn read<T: DeserializeOwned>(
        &self,
        path: &Path,
        check: impl Fn(&T) -> Result<(), String>,
    ) -> Result<Vec<T>, String> {
        let wrong = |line: usize, what: &str| {
            format!(
                "{}: {}:{line}: {what}; correct or remove that line, or move the file away to {}",
                self.key,
                path.display(),
                self.without
            )
        };
        let Some(file) = self.open(path)? else { return Ok(Vec::new()) };
        let mut lines = BufReader::new(file);
        let mut all = Vec::new();
        let mut bytes = Vec::new();
        for number in 1.. {
            bytes.clear();
            let count = io::Read::by_ref(&mut lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes);
            if count.map_err(|error| wrong(number, &format!("can't be read: {error}")))? == 0 {
                if number == 1 {
                    return Err(wrong(1, "the file is empty"));
                }
                break;
            }
            let Some(text) = bytes.strip_suffix(b"\n") else {
                return Err(wrong(number, "the line is cut off, or far too long"));
            };
            if number == 1 {
                if text != self.head.as_bytes() {
                    return Err(wrong(1, &format!("expected \"{}\"", self.head)));
                }
                continue;
            }
            if all.len() >= self.entries_max {
                return Err(wrong(number, &format!("is more than {} {}", self.entries_max, self.entries)));
            }
            let entry: Result<T, String> = serde_json::from_slice(text).map_err(|error| error.to_string());
            let entry = entry.and_then(|entry| check(&entry).map(|()| entry));
            all.push(entry.map_err(|why| wrong(number, &format!("is not {} ({why})", self.entry)))?);
        }
        Ok(all)
    }

    /// Replaces the file by one with these entries.
    fn write<T: Serialize>(&self, path: &Path, all: &[T]) -> io::Result<()> {
        // A link stays one.
        let path = &files::behind_links(path)?;
        let beside = beside(path);
        let result = self.write_to(&beside, all).and_then(|()| fs::rename(&beside, path));
        if result.is_err() {
            // Half a file is of no use; if it can't be removed, the next write replaces it.
            let _ = fs::remove_file(&beside);
            return result;
        }
        // The new name must last as well.
        File::open(directory_of(path))?.sync_all()
    }

    fn write_to<T: Serialize>(&self, path: &Path, all: &[T]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut out = BufWriter::new(file);
        writeln!(out, "{}", self.head)?;
        for entry in all {
            serde_json::to_writer(&mut out, entry)?;
            out.write_all(b"\n")?;
        }
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

/// Why changes could not be kept in this file: found before the first one, which would hold until the next start only.
///
/// # Errors
/// What the system says; a full disk is no mistake of the configuration.
pub fn probe(path: &Path) -> io::Result<()> {
    files::probe(&beside(&files::behind_links(path)?))
}

fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    PathBuf::from(beside)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The file of a set that is changed while the server runs.
pub struct KeptFile {
    kind: &'static KeptKind,
    path: Option<PathBuf>,
    /// The number of the last change that the file has.
    written: Mutex<u64>,
}

impl KeptFile {
    /// At this path; without one nothing is kept.
    #[must_use]
    pub const fn new(kind: &'static KeptKind, path: Option<PathBuf>) -> Self {
        Self { kind, path, written: Mutex::new(0) }
    }

    /// Where the entries are kept; nowhere if they are lost with the process.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Writes the set, unless somebody else has done that since this change. `all` gives it as it is, with the number of its last
    /// change. Blocks while the file is written.
    ///
    /// # Errors
    /// [`NotSaved`]: the change holds nevertheless.
    pub fn save<T: Serialize>(&self, change: u64, all: impl FnOnce() -> (Vec<T>, u64)) -> Result<(), NotSaved> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if *written >= change {
            return Ok(());
        }
        let (all, changes) = all();
        match self.kind.write(path, &all) {
            Ok(()) => {
                *written = changes;
                Ok(())
            }
            Err(cause) => {
                self.kind.write_failures.fetch_add(1, Ordering::Relaxed);
                Err(NotSaved { path: path.clone(), cause })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::usage::tests::Directory;

    static KIND: KeptKind = KeptKind {
        key: "some.file",
        file_name: "names",
        head: "names 1",
        entry: "a name",
        entries: "names",
        without: "forget all names",
        entries_max: 3,
        write_failures: AtomicU64::new(0),
    };

    fn read(path: &Path) -> Result<Vec<String>, String> {
        let check = |name: &String| if name == "x" { Err("x is none".to_owned()) } else { Ok(()) };
        KIND.read(path, check)
    }

    #[test]
    fn a_link_stays_a_link_and_one_to_nothing_is_not_an_empty_set() {
        let directory = Directory::new();
        let (path, target) = (directory.path().join("names"), directory.path().join("elsewhere"));
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.contains("is a link to elsewhere") && error.contains("some.file"), "{error}");
        KIND.write(&path, &["a"]).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink() && target.is_file());
        assert_eq!(read(&path).unwrap(), ["a"]);
        probe(&path).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        assert!(probe(Path::new("/proc/x")).is_err());
    }

    #[test]
    fn a_file_that_is_not_ours_is_named_with_line_and_remedy() {
        let directory = Directory::new();
        let path = directory.path().join("names");
        for (text, line, why) in [
            (String::new(), 1, "is empty"),
            ("nonsense\n".to_owned(), 1, "expected \"names 1\""),
            ("names 1".to_owned(), 1, "cut off"),
            ("names 1\n\"a\"\n\"b".to_owned(), 3, "cut off"),
            ("names 1\n\"a\"\n\n".to_owned(), 3, "is not a name (EOF"),
            ("names 1\n\"x\"\n".to_owned(), 2, "is not a name (x is none)"),
            (format!("names 1\n{}\n", "x".repeat(20_000)), 2, "far too long"),
            ("names 1\n\"a\"\n\"b\"\n\"c\"\n\"d\"\n".to_owned(), 5, "is more than 3 names"),
        ] {
            fs::write(&path, &text).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.contains(&format!("names:{line}: ")), "{error}");
            assert!(error.contains(why) && error.contains("move the file away to forget all names"), "{error}");
        }
        let nowhere = directory.path().join("no").join("names");
        assert!(read(&nowhere).unwrap_err().contains("there is no directory"));
        assert!(read(directory.path()).unwrap_err().contains("can't read"));
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_is_counted() {
        let directory = Directory::new();
        let path = directory.path().join("names");
        let file = KeptFile::new(&KIND, Some(path.clone()));
        file.save(1, || (vec!["a"], 2)).unwrap();
        file.save(2, || -> (Vec<&str>, u64) { panic!("the second change is in the file") }).unwrap();
        // What is to be written first can't be: its name is taken by a directory.
        fs::create_dir(directory.path().join("names.new")).unwrap();
        let before = KIND.write_failures();
        let error = file.save(3, || (vec!["b"], 3)).unwrap_err();
        assert!(error.to_string().contains("is in effect") && KIND.write_failures() > before, "{error}");
        assert_eq!(read(&path).unwrap(), ["a"]);
        fs::remove_dir(directory.path().join("names.new")).unwrap();
        file.save(3, || (vec!["b"], 3)).unwrap();
        assert_eq!((read(&path).unwrap(), fs::read_dir(directory.path()).unwrap().count()), (vec!["b".to_owned()], 1));
        assert!(KeptFile::new(&KIND, None).save(1, || (vec!["a"], 1)).is_ok(), "there is nothing to be kept");
    }

    #[test]
    fn the_file_is_the_configured_one_or_in_the_state_directory() {
        let path = |configured: Option<&str>, state| KIND.path_of(configured.map(Path::new), state);
        assert_eq!(path(Some("/a/b"), Some("/s")), Some("/a/b".into()));
        assert_eq!(path(None, Some("/s:/t")), Some("/s/names".into()));
        assert_eq!((path(None, Some("")), path(None, None)), (None, None));
    }
}
