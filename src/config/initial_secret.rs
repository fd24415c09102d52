//! The secret of a server without a configuration: kept in the state directory, or shown once.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::auth::{FILE_BYTES_MAX, weakness};
use crate::config::error::{ConfigError, Problem, SourceLocation};
use crate::credentials::{Algorithm, Secret, SharedSecret};
use crate::files;

/// Its name in logs and metrics.
pub const INITIAL_ID: &str = "initial";

/// Where an initial secret is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kept {
    /// In a file that was made just now.
    Made(PathBuf),
    /// In a file that was there before.
    Found(PathBuf),
    /// On the terminal only; a restart makes another one.
    Shown,
}

/// Finds or makes the secret of a server without a configuration.
///
/// `state_directory` is `$STATE_DIRECTORY`, of which systemd may name several; the first counts.
/// `terminal` is where a person reads, if one does.
///
/// # Errors
/// When the file can't be read or made, and when there is neither directory nor terminal.
pub fn initial_secret(
    state_directory: Option<&str>,
    terminal: Option<&mut dyn Write>,
) -> Result<(SharedSecret, Kept), ConfigError> {
    if let Some(path) = path_in(state_directory) {
        return in_file(&path).map_err(|error| {
            Problem::new(
                SourceLocation::WholeFile(path),
                "",
                format!("can't keep the secret here: {error}; check $STATE_DIRECTORY"),
            )
            .into()
        });
    }
    let Some(terminal) = terminal else {
        return Err(Problem::new(
            SourceLocation::Nowhere,
            "auth",
            "no configuration, and nowhere to keep a secret: start with --config FILE, \
             set THROUGHWAY_AUTH__SECRET or THROUGHWAY_AUTH__SECRET_FILE, \
             set STATE_DIRECTORY to a directory of the server's own, or run on a terminal",
        )
        .into());
    };
    let text = random_text();
    writeln!(terminal, "No configuration: this secret mints credentials until the server ends.\n\n  {text}\n")
        .map_err(|error| Problem::new(SourceLocation::Nowhere, "auth", format!("can't show the secret: {error}")))?;
    Ok((shared(text.as_bytes()), Kept::Shown))
}

/// The secret of the state directory if there is one; makes none.
///
/// # Errors
/// When there is none, with the remedy.
pub fn existing_secret(state_directory: Option<&str>) -> Result<SharedSecret, ConfigError> {
    let Some(path) = path_in(state_directory) else {
        return Err(Problem::new(
            SourceLocation::Nowhere,
            "auth",
            "no configuration and no secret: give --config FILE, or set THROUGHWAY_AUTH__SECRET, or set \
             STATE_DIRECTORY to the directory in which the server keeps its secret, such as /var/lib/throughway",
        )
        .into());
    };
    read(&path).map_err(|error| {
        let message =
            format!("can't read the secret: {error}; the server makes it when it starts without a configuration");
        Problem::new(SourceLocation::WholeFile(path), "", message).into()
    })
}

/// The file of the secret in the first of these directories.
fn path_in(state_directory: Option<&str>) -> Option<PathBuf> {
    let directory = state_directory?.split(':').next().filter(|first| !first.is_empty())?;
    Some(Path::new(directory).join("secret"))
}

/// Whether every user of this machine may read a file.
#[must_use]
pub fn is_world_readable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o004 != 0)
}

fn in_file(path: &Path) -> io::Result<(SharedSecret, Kept)> {
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return Ok((found?, Kept::Found(path.to_owned()))),
    }
    // Written aside and linked into place: a reader that finds the name finds the whole secret, and of
    // two processes that start at once one makes it and both use it.
    let aside = path.with_file_name(format!("secret.{}.new", std::process::id()));
    let text = random_text();
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    let linked = file
        .write_all(format!("{text}\n").as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&aside, path));
    fs::remove_file(&aside)?;
    match linked {
        Ok(()) => Ok((shared(text.as_bytes()), Kept::Made(path.to_owned()))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok((read(path)?, Kept::Found(path.to_owned()))),
        Err(error) => Err(error),
    }
}

fn read(path: &Path) -> io::Result<SharedSecret> {
    let bytes = files::read(path, FILE_BYTES_MAX)?;
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    if bytes.is_empty() {
        return Err(io::Error::other("the file is empty; remove it"));
    }
    if let Some(message) = weakness(bytes) {
        return Err(io::Error::other(format!("the file {message}; or remove it, and the server makes one")));
    }
    Ok(shared(bytes))
}

fn shared(bytes: &[u8]) -> SharedSecret {
    SharedSecret::new(INITIAL_ID, Secret::new(bytes), Algorithm::Sha1)
}

/// 256 random bits as text, so that it can be copied into an issuer's settings.
pub(crate) fn random_text() -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("Linux gives random bytes to every process");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("throughway-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn secret_is_made_once_and_only_its_owner_reads_it() {
        let directory = directory("made-once");
        let state = directory.to_str().unwrap();
        let (first, kept) = initial_secret(Some(state), None).unwrap();
        assert_eq!(kept, Kept::Made(directory.join("secret")));
        assert_eq!(fs::metadata(directory.join("secret")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(first.value.expose().len(), 64);
        let (second, kept) = initial_secret(Some(&format!("{state}:/elsewhere")), None).unwrap();
        assert_eq!(kept, Kept::Found(directory.join("secret")));
        assert_eq!(first, second);
        assert_eq!(existing_secret(Some(state)).unwrap(), first);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "nothing stays beside it");
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn empty_secret_file_is_refused() {
        let directory = directory("empty-secret");
        fs::write(directory.join("secret"), "\n").unwrap();
        let error = initial_secret(directory.to_str(), None).unwrap_err();
        assert!(error.to_string().contains("empty"), "{error}");
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn without_a_directory_the_terminal_shows_a_fresh_secret() {
        let mut shown = Vec::new();
        let (secret, kept) = initial_secret(None, Some(&mut shown)).unwrap();
        assert_eq!(kept, Kept::Shown);
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.contains(std::str::from_utf8(secret.value.expose()).unwrap()));
        let (other, _) = initial_secret(Some(""), Some(&mut Vec::new())).unwrap();
        assert_ne!(secret.value, other.value);
    }

    #[test]
    fn without_either_the_server_refuses_and_names_the_remedy() {
        let error = initial_secret(None, None).unwrap_err().to_string();
        for remedy in ["--config", "THROUGHWAY_AUTH__SECRET", "STATE_DIRECTORY", "terminal"] {
            assert!(error.contains(remedy), "{error}");
        }
        assert!(existing_secret(None).unwrap_err().to_string().contains("--config"));
    }
}
