//! What the operator says: the file, the environment, the defaults.
//!
//! `keys` has a row for every key: its type, range, default and meaning. `document` reads TOML and remembers where each
//! value stands, `environment` lays variables over it, `check` turns the whole into a [`Config`] or into every error at
//! once; each section of it has a file of its own.

pub mod accounting;
pub mod acme;
pub mod admin;
mod alternates;
pub mod checked;
pub mod coturn;
pub mod describe;
pub mod diff;
pub mod drain;
pub mod environment;
pub mod error;
pub mod external;
pub mod initial_secret;
pub mod issuing;
pub mod keys;
pub mod schema;
pub mod upgrade;

mod auth;
mod binding;
mod check;
mod document;
mod explain;
mod general;
mod http;
mod limits;
mod network;
mod shared;
mod tenancy;
mod tls;
mod units;

use std::io::ErrorKind;
use std::path::Path;

pub use checked::Config;
pub use environment::Environment;
pub use error::ConfigError;
pub use keys::KEYS;

pub(crate) use auth::{PASSWORD_BYTES_MIN, SECRETS_MAX, weakness};
pub(crate) use document::{nearest, quote};
pub(crate) use units::{DURATION, RATE, SIZE, instant as parse_instant};

use crate::config::error::{Problem, SourceLocation};
use crate::credentials::SharedSecret;
use crate::files;

/// Where `serve` looks when it is not told.
pub const DEFAULT_PATH: &str = "/etc/throughway/config.toml";

/// No configuration file is longer: 10,000 users take a tenth of it.
const FILE_BYTES_MAX: u64 = 16 << 20;

impl Config {
    /// Checks a text, without any environment; `name` stands for the file in errors.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_toml(name: &str, text: &str) -> Result<Self, ConfigError> {
        check::check(Some((Path::new(name), text)), &Environment::default(), None)
    }

    /// Checks these lines, with a secret below them.
    #[cfg(test)]
    pub(crate) fn with_a_secret(lines: &str) -> Result<Self, ConfigError> {
        let secret = "[[auth.secrets]]\nid = \"s\"\nvalue = \"north-of-everything\"\n";
        Self::from_toml("c.toml", &format!("{lines}\n{secret}"))
    }

    /// Reads and checks a file with the environment laid over it.
    ///
    /// # Errors
    /// Every mistake in either.
    pub fn load(path: &Path, environment: &Environment) -> Result<Self, ConfigError> {
        Self::of_text(path, &Self::read(path)?, environment)
    }

    /// Checks what was read of a file, with the environment laid over it.
    ///
    /// # Errors
    /// Every mistake in either.
    pub(crate) fn of_text(path: &Path, text: &str, environment: &Environment) -> Result<Self, ConfigError> {
        let mut config = check::check(Some((path, text)), environment, None)?;
        if config.source.holds_secrets && initial_secret::is_world_readable(path) {
            config.warnings.push(Problem::new(
                SourceLocation::WholeFile(path.to_owned()),
                "",
                "holds secrets and every user of this machine can read it; chmod 0640 it and give it the server's group",
            ));
        }
        Ok(config)
    }

    /// Reads a configuration file, and checks nothing.
    ///
    /// # Errors
    /// When it can't be read.
    pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
        let message = match files::read(path, FILE_BYTES_MAX).and_then(files::text) {
            Ok(text) => return Ok(text),
            Err(error) if error.kind() == ErrorKind::FileTooLarge => {
                format!("is larger than {} MiB, so it is no configuration file", FILE_BYTES_MAX >> 20)
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => "is not UTF-8 text; save it as UTF-8".to_owned(),
            Err(error) => {
                let remedy = match (error.kind(), files::dangling(path)) {
                    (_, Some(target)) => {
                        format!(": it is a link to {}; make that file, or remove the link", target.display())
                    }
                    (ErrorKind::PermissionDenied, None) => {
                        let uid = rustix::process::geteuid().as_raw();
                        format!("; this runs as the user with id {uid}, which must be allowed to read it")
                    }
                    (_, None) => String::new(),
                };
                format!("can't read the configuration: {error}{remedy}")
            }
        };
        Err(Problem::new(SourceLocation::WholeFile(path.to_owned()), "", message).into())
    }

    /// The defaults with the environment laid over them, for a server without a file.
    ///
    /// `initial` makes or finds a secret; it is asked only if the environment has none.
    ///
    /// # Errors
    /// Every mistake in the environment, or what `initial` says.
    pub fn without_file(
        environment: &Environment,
        initial: impl FnOnce() -> Result<SharedSecret, ConfigError>,
    ) -> Result<Self, ConfigError> {
        let secret = if environment.has_secret() { None } else { Some(initial()?) };
        check::check(None, environment, secret)
    }

    /// What this text says in place of the file, and files that it names as they are now.
    ///
    /// # Errors
    /// Every mistake.
    pub(crate) fn with_text(&self, text: &str, environment: &Environment) -> Result<Self, ConfigError> {
        match &self.source.file {
            Some(path) => Self::of_text(path, text, environment),
            None => Ok(self.clone()),
        }
    }

    /// Reads everything again: the same file, or the defaults with the initial secret.
    ///
    /// # Errors
    /// Every mistake, and a file at the default path that was not there at the start: with it the secret would change, and
    /// much that waits for a restart. The running configuration then stays as it is.
    pub fn reload(&self, environment: &Environment) -> Result<Self, ConfigError> {
        self.reload_or(Path::new(DEFAULT_PATH), environment)
    }

    fn reload_or(&self, default: &Path, environment: &Environment) -> Result<Self, ConfigError> {
        match (&self.source.file, if_there(default)) {
            (Some(path), _) => Self::load(path, environment),
            (None, Ok(None)) => check::check(None, environment, self.source.initial_secret.clone()),
            (None, Err(error)) => Err(error),
            (None, Ok(Some(path))) => {
                let message = "is there now, but the server was started without a file: `throughway upgrade` or a restart \
                               makes it read this one, and its secrets then take the place of the one in the state directory";
                Err(Problem::new(SourceLocation::WholeFile(path.to_owned()), "", message).into())
            }
        }
    }
}

/// The file that is named, else the one at the default path, if there is one.
///
/// # Errors
/// When the system does not tell whether there is one. A server must not take that for "none": it would start with the
/// defaults and a new secret.
pub(crate) fn named_or_default(file: Option<&Path>) -> Result<Option<&Path>, ConfigError> {
    file.map_or_else(|| if_there(Path::new(DEFAULT_PATH)), |file| Ok(Some(file)))
}

fn if_there(path: &Path) -> Result<Option<&Path>, ConfigError> {
    files::is_there(path).map(|is_there| is_there.then_some(path)).map_err(|error| {
        let remedy = if error.kind() == ErrorKind::PermissionDenied {
            let uid = rustix::process::geteuid().as_raw();
            let directory = path.parent().unwrap_or(path).display();
            format!("this runs as the user with id {uid}, which must be allowed to enter {directory}: chmod 0755 it")
        } else {
            "mend its directory, or name another file with --config".to_owned()
        };
        let message = format!("can't tell whether there is a configuration: {error}; {remedy}");
        Problem::new(SourceLocation::WholeFile(path.to_owned()), "", message).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::settings::Limits;

    const LEAST: &str = "[[auth.secrets]]\nid = \"a\"\nvalue = \"north-of-everything\"\n";

    #[test]
    fn defaults_are_those_that_the_core_states_too() {
        let config = Config::from_toml("c.toml", LEAST).unwrap();
        assert_eq!(config.limits.tables, Limits::default());
        assert_eq!(config.limits.tcp_queue, Some(256 * 1024));
        assert_eq!((config.lifetimes.default, config.lifetimes.max), (600, 3600));
        assert_eq!(config.challenge_bytes(), 72);
        assert_eq!(config.listen.len(), 4);
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    }

    #[test]
    fn writing_every_default_out_changes_nothing() {
        let mut text = String::new();
        for key in KEYS.iter().filter(|key| !key.value_type.is_tables()) {
            text += &format!("{} = {}\n", key.path, key.default);
        }
        let mut written = Config::from_toml("c.toml", &(text + LEAST)).unwrap();
        let absent = Config::from_toml("c.toml", LEAST).unwrap();
        // But for this: a listener that is written down is wanted.
        assert!(written.listen.iter().all(|listen| !listen.is_default));
        written.listen.iter_mut().for_each(|listen| listen.is_default = true);
        assert_eq!(format!("{written:?}"), format!("{absent:?}"));
    }

    #[test]
    fn keys_of_later_versions_are_accepted_when_off_and_refused_otherwise() {
        for (path, off) in keys::LATER {
            let wrong = Config::from_toml("c.toml", &format!("{path} = \"x\"\n{LEAST}")).unwrap_err();
            assert!(wrong.to_string().contains("not in this version"), "{path}: {wrong}");
            assert_eq!(wrong.problems.len(), 1, "{wrong}");
            Config::from_toml("c.toml", &format!("{path} = {off}\n{LEAST}")).unwrap();
        }
    }

    #[test]
    fn reload_keeps_the_initial_secret_and_refuses_a_file_that_is_there_now() {
        let directory = std::env::temp_dir().join(format!("throughway-default-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("config.toml");
        let secret = || Ok(SharedSecret::new("initial", crate::credentials::Secret::new(*b"s"), Default::default()));
        let config = Config::without_file(&Environment::default(), secret).unwrap();
        let reload = || config.reload_or(&path, &Environment::default());
        let again = reload().unwrap();
        assert_eq!(again.auth.secrets, config.auth.secrets);
        assert!(config.needs_restart(&again).is_empty());
        // Right or wrong, or a link to nothing: it is there.
        for text in [LEAST, "nonsense"] {
            std::fs::write(&path, text).unwrap();
            let error = reload().unwrap_err().to_string();
            assert!(error.contains("config.toml") && error.contains("started without a file"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert!(reload().unwrap_err().to_string().contains("started without a file"));
        let error = Config::load(&path, &Environment::default()).unwrap_err().to_string();
        assert!(error.contains("a link to nowhere") && error.contains("remove the link"), "{error}");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_configuration_that_can_not_be_seen_is_not_none() {
        let directory = std::env::temp_dir().join(format!("throughway-unseen-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        assert_eq!(if_there(&directory.join("config.toml")), Ok(None));
        std::os::unix::fs::symlink("nowhere", directory.join("etc")).unwrap();
        std::fs::write(directory.join("file"), "").unwrap();
        for (unseen, says) in [("etc/config.toml", "a link to nowhere"), ("file/config.toml", "Not a directory")] {
            let error = if_there(&directory.join(unseen)).unwrap_err().to_string();
            assert!(error.contains(unseen) && error.contains(says) && error.contains("--config"), "{error}");
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
