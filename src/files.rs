//! Files that an operator names: whether they are there, and reading them whole and within bounds.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fcntl_setfl};

/// Where a process finds what its parent opened for it: a pipe there is meant, such as that of `<(...)` in a shell.
const PASSED: [&str; 3] = ["/dev/stdin", "/dev/fd/", "/proc/self/fd/"];

/// Links that lead to each other are followed so often, as the system does.
const LINKS_MAX: usize = 40;

/// Whether something has this name, be it a link to nothing. Only the system's word that there is none counts as no.
///
/// # Errors
/// What the system says when it does not tell, as of a directory that may not be entered, and a directory that is a link
/// to nothing.
pub fn is_there(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for directory in path.ancestors().skip(1).filter(|directory| !directory.as_os_str().is_empty()) {
        match (fs::symlink_metadata(directory), dangling(directory)) {
            (Ok(_), Some(target)) => {
                let (link, target) = (directory.display(), target.display());
                return Err(io::Error::other(format!("{link} is a link to {target}, which is not there")));
            }
            (Ok(_), None) => return Ok(false),
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {}
            (Err(error), _) => return Err(error),
        }
    }
    Ok(false)
}

/// Where a link leads, if nothing is there.
#[must_use]
pub fn dangling(path: &Path) -> Option<PathBuf> {
    let missing = fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    if missing { fs::read_link(path).ok() } else { None }
}

/// The file behind a link, which need not be there; the path itself if it is no link.
///
/// # Errors
/// What the system says, as of links that lead to each other.
pub fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&path) {
            // An absolute target replaces the whole.
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            // Not a link, or nothing at all.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {
                return Ok(path);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from(rustix::io::Errno::LOOP))
}

/// Whether a path means something that this process was started with, such as standard input.
#[must_use]
pub fn is_passed(path: &Path) -> bool {
    PASSED.iter().any(|start| path.to_string_lossy().starts_with(start))
}

/// Opens an ordinary file to be read. A pipe without a writer would hang, and a device has no end.
///
/// # Errors
/// What the system says, and [`io::ErrorKind::InvalidInput`] for what is neither a file nor a pipe that was passed to this
/// process.
pub fn open(path: &Path) -> io::Result<File> {
    let may_read = |of: &fs::Metadata| {
        if of.is_dir() {
            return Err(io::Error::from(rustix::io::Errno::ISDIR));
        }
        if of.is_file() || (is_passed(path) && of.file_type().is_fifo()) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "is no ordinary file; name one"))
    };
    // To open a device may do something already.
    may_read(&fs::metadata(path)?)?;
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    // It may be another one by now.
    let of = file.metadata()?;
    may_read(&of)?;
    if !of.is_file() {
        // Its writer may need time.
        fcntl_setfl(&file, OFlags::empty())?;
    }
    Ok(file)
}

/// Reads an ordinary file whole.
///
/// # Errors
/// As of [`open`] and [`read_from`].
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_from(open(path)?, bytes_max)
}

/// Reads to the end.
///
/// # Errors
/// What the system says, and [`io::ErrorKind::FileTooLarge`] if there is more.
pub fn read_from(from: impl Read, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// What was read as text.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if it is no UTF-8.
pub fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is not UTF-8 text"))
}

/// Whether a file of this process's own can be written in a directory: one is, and removed again.
///
/// # Errors
/// What the system says.
pub fn probe(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let written = file.write_all(b"#");
    fs::remove_file(path)?;
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("throughway-files-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn only_what_is_surely_not_there_is_not_there() {
        let scratch = Scratch::new("there");
        let path = |name: &str| scratch.0.join(name);
        assert!(!is_there(&path("none")).unwrap() && !is_there(&path("none/none")).unwrap());
        fs::write(path("file"), "").unwrap();
        symlink("nowhere", path("link")).unwrap();
        assert!(is_there(&path("file")).unwrap() && is_there(&path("link")).unwrap());
        assert_eq!(dangling(&path("link")), Some("nowhere".into()));
        assert_eq!((dangling(&path("file")), dangling(&path("none"))), (None, None));
        // A directory that is a link to nothing, and a file in place of a directory.
        assert!(is_there(&path("link/config.toml")).unwrap_err().to_string().contains("link to nowhere"));
        assert_eq!(is_there(&path("file/config.toml")).unwrap_err().kind(), io::ErrorKind::NotADirectory);
        fs::create_dir(path("closed")).unwrap();
        fs::set_permissions(path("closed"), fs::Permissions::from_mode(0o000)).unwrap();
        if rustix::process::geteuid().as_raw() != 0 {
            assert_eq!(is_there(&path("closed/c")).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        fs::set_permissions(path("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn links_are_followed_to_what_need_not_be_there() {
        let scratch = Scratch::new("links");
        let path = |name: &str| scratch.0.join(name);
        symlink("two", path("one")).unwrap();
        symlink(path("three"), path("two")).unwrap();
        assert_eq!(behind_links(&path("one")).unwrap(), path("three"));
        assert_eq!(behind_links(&path("none")).unwrap(), path("none"));
        symlink("self", path("self")).unwrap();
        assert!(behind_links(&path("self")).is_err());
    }

    #[test]
    fn only_ordinary_files_are_read_and_only_so_much_of_them() {
        let scratch = Scratch::new("read");
        let path = |name: &str| scratch.0.join(name);
        fs::write(path("file"), "12345").unwrap();
        symlink("file", path("link")).unwrap();
        assert_eq!(read(&path("link"), 5).unwrap(), b"12345");
        assert_eq!(read(&path("file"), 4).unwrap_err().to_string(), "longer than 4 bytes");
        assert_eq!(read(&scratch.0, 5).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(read(&path("none"), 5).unwrap_err().kind(), io::ErrorKind::NotFound);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for hangs in [path("pipe"), "/dev/zero".into(), "/dev/null".into()] {
            let error = read(&hangs, 5).unwrap_err();
            assert!(error.to_string().contains("is no ordinary file"), "{}: {error}", hangs.display());
        }
    }

    #[test]
    fn a_pipe_that_a_shell_passes_is_read_to_its_end() {
        use std::os::fd::AsRawFd as _;
        let (reader, mut writer) = io::pipe().unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
        let opened = open(&path).unwrap();
        let writing = std::thread::spawn(move || writer.write_all(b"from a shell"));
        assert_eq!(read_from(opened, 100).unwrap(), b"from a shell");
        writing.join().unwrap().unwrap();
    }

    #[test]
    fn a_probe_leaves_nothing() {
        let scratch = Scratch::new("probe");
        probe(&scratch.0.join("x")).unwrap();
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 0);
        assert!(probe(Path::new("/proc/x")).is_err());
    }
}
