//! Who may look into a running server and change it: the checked form, and how a command finds such a server.

use std::path::{Path, PathBuf};

use crate::config::check::Check;
use crate::config::environment::Environment;
use crate::config::error::ConfigError;
use crate::config::http::HttpListen;
use crate::config::{self, Config, check, keys};
use crate::credentials::Secret;

/// Its name in the runtime directory.
const ADMIN_SOCKET: &str = "admin.sock";

/// Where the unit has it.
const DEFAULT_ADMIN_SOCKET: &str = "/run/throughway/admin.sock";

const TOKEN_FILE: &str = "http.admin_token_file";
const TOKEN_CREDENTIAL: &str = "http.admin_token_credential";
const SOCKET: &str = "http.admin_socket";

/// The part of `[http]` about the admin API, and where that which operators change at run time is kept. A reload takes the first part over.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AdminConfig {
    /// What is in `http.admin_token_file`, or in the credential that `http.admin_token_credential` names.
    pub token: Option<Secret>,
    /// `http.admin_uids`, besides root and the server's own user.
    pub uids: Vec<u32>,
    /// `auth.revocations_file`.
    pub revocations_file: Option<PathBuf>,
    /// `limits.file`.
    pub limits_file: Option<PathBuf>,
}

/// Where a unix socket of the admin API may be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AdminSocket {
    /// Where the configuration says.
    Configured(PathBuf),
    /// Where the unit has it; there may be none.
    Default(PathBuf),
}

/// What a configuration says about reaching its server, for the commands that talk to one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reach {
    /// `http.listen`.
    pub listen: Option<HttpListen>,
    /// `http.admin_socket`.
    pub admin_socket: Option<AdminSocket>,
    /// The file that holds the token, readable or not.
    pub token_file: Option<PathBuf>,
    /// Where this was read, for messages.
    pub source: String,
}

impl Reach {
    /// From this file, else the default one if it exists, else the defaults; the environment is laid over it.
    ///
    /// Nothing but these keys is looked at: a command must find its server also when it can't read the server's
    /// secrets, or when another key of the file is wrong.
    ///
    /// # Errors
    /// A file that can't be read or is no TOML, or a mistake in one of these keys.
    pub fn find(file: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        match config::named_or_default(file)? {
            Some(path) => {
                let text = Config::read(path)?;
                check::reach(Some((path, &text)), environment)
            }
            None => check::reach(None, environment),
        }
    }
}

// No message here shows a token.
impl Check {
    pub(crate) fn admin(&mut self) -> AdminConfig {
        let (revocations, limits) = (self.path_of("auth.revocations_file"), self.path_of("limits.file"));
        if let Some((_, node)) = self.text_of("limits.file").filter(|_| limits == revocations) {
            self.wrong(
                &node,
                "is the file of auth.revocations_file, and each would overwrite the other; name another one",
            );
        }
        AdminConfig {
            token: self.admin_token(),
            uids: self.uids("http.admin_uids"),
            revocations_file: revocations,
            limits_file: limits,
        }
    }

    fn admin_token(&mut self) -> Option<Secret> {
        let (node, token) = match (self.text_of(TOKEN_FILE), self.text_of(TOKEN_CREDENTIAL)) {
            (None, None) => return None,
            (Some(_), Some((_, node))) => {
                self.wrong(&node, format!("{TOKEN_FILE} names a token already; leave one of them out"));
                return None;
            }
            (Some((path, node)), None) => {
                let token = self.secret_file(&node, &path)?;
                (node, token)
            }
            (None, Some((_, node))) => {
                let token = self.credential(&node)?;
                (node, token)
            }
        };
        let token = self.unguessable(&node, token)?;
        let is_printable = token.expose().iter().all(u8::is_ascii_graphic);
        let message = "holds a blank, a second line or a letter that is not ASCII, which no header can carry; \
             `openssl rand -hex 32` makes a good one";
        self.ok(&node, is_printable.then_some(token).ok_or(message))
    }

    /// `http.admin_socket`: a path, "none", or by itself where systemd gives the server a directory for sockets.
    pub(crate) fn admin_socket(&mut self) -> Option<PathBuf> {
        match self.text_of(SOCKET) {
            None => self.runtime_directory.as_ref().map(|directory| directory.join(ADMIN_SOCKET)),
            Some((text, _)) if text == "none" => None,
            Some((text, node)) => {
                let path = PathBuf::from(text.strip_prefix("unix:").unwrap_or(&text));
                let is_good = path.is_absolute() && path.file_name().is_some();
                let message = "expected an absolute path, such as \"/run/throughway/admin.sock\", or \"none\"";
                self.ok(&node, is_good.then_some(path).ok_or(message))
            }
        }
    }

    /// What `Reach::find` gives.
    pub(crate) fn reach(mut self, environment: &Environment, source: String) -> Result<Reach, ConfigError> {
        for path in ["http.listen", SOCKET, TOKEN_FILE, TOKEN_CREDENTIAL] {
            keys::find(path).into_iter().for_each(|key| self.check_key(key));
        }
        let listen = self.http_listen(&[]);
        let admin_socket = match self.text_of(SOCKET) {
            // The server's environment is not the command's: it may have a runtime directory, and then this is the one.
            None => {
                let path = self.admin_socket().unwrap_or_else(|| PathBuf::from(DEFAULT_ADMIN_SOCKET));
                Some(AdminSocket::Default(path))
            }
            Some(_) => self.admin_socket().map(AdminSocket::Configured),
        };
        let credential = self.text_of(TOKEN_CREDENTIAL).map(|(name, _)| name);
        let directory = environment.credentials_directory();
        let token_file = self.path_of(TOKEN_FILE).or_else(|| Some(PathBuf::from(directory?).join(credential?)));
        if self.problems.is_empty() {
            Ok(Reach { listen, admin_socket, token_file, source })
        } else {
            Err(ConfigError { problems: self.problems })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_word_that_can_t_be_guessed() {
        let path = std::env::temp_dir().join(format!("throughway-token-{}", std::process::id()));
        let with = |token: &str| {
            std::fs::write(&path, token).unwrap();
            Config::with_a_secret(&format!("http.admin_token_file = {path:?}"))
        };
        let good = with("0123456789abcdef-0123456789abcde\n").unwrap();
        assert_eq!(good.admin.token.unwrap().expose(), b"0123456789abcdef-0123456789abcde");
        for (token, why) in [("short\n", "at least 16"), ("0123456789abcdef 0123456789", "blank"), ("", "is empty")] {
            let error = with(token).unwrap_err().to_string();
            assert!(error.contains("http.admin_token_file") && error.contains(why), "{error}");
            assert!(token.is_empty() || !error.contains(token.trim()), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        let error = with_both();
        assert!(error.contains("leave one of them out"), "{error}");
        let error = Config::with_a_secret("http.admin_token_credential = \"token\"").unwrap_err().to_string();
        assert!(error.contains("LoadCredential=token"), "{error}");
    }

    fn with_both() -> String {
        Config::with_a_secret("http.admin_token_file = \"a\"\nhttp.admin_token_credential = \"b\"")
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn limits_and_revocations_have_a_file_each() {
        let with = |limits: &str| {
            Config::with_a_secret(&format!("auth.revocations_file = \"/a/b\"\nlimits.file = \"{limits}\""))
        };
        assert_eq!(with("/a/c").unwrap().admin.limits_file, Some("/a/c".into()));
        let error = with("/a/b").unwrap_err().to_string();
        assert!(error.contains("limits.file") && error.contains("name another one"), "{error}");
    }

    #[test]
    fn users_are_numbers() {
        assert_eq!(Config::with_a_secret("http.admin_uids = [\"33\", \"0\"]").unwrap().admin.uids, [33, 0]);
        let error = Config::with_a_secret("http.admin_uids = [\"www-data\"]").unwrap_err().to_string();
        assert!(error.contains("http.admin_uids") && error.contains("id -u NAME"), "{error}");
    }

    #[test]
    fn a_server_is_found_though_other_keys_are_wrong() {
        let text = "realm = 5\n[http]\nlisten = \"unix:/run/t.sock\"\nadmin_token_file = \"token\"\n";
        let reach = check::reach(Some((Path::new("/etc/t/c.toml"), text)), &Environment::default()).unwrap();
        assert_eq!(reach.listen, Some(HttpListen::Unix("/run/t.sock".into())));
        assert_eq!(reach.token_file, Some("/etc/t/token".into()));
        let variables = [("THROUGHWAY_HTTP__LISTEN", "[::1]:99"), ("CREDENTIALS_DIRECTORY", "/run/credentials/t")];
        let environment: Environment = variables.into_iter().collect();
        let text = "http.admin_token_credential = \"admin\"";
        let reach = check::reach(Some((Path::new("c.toml"), text)), &environment).unwrap();
        assert_eq!(reach.listen, Some(HttpListen::Tcp("[::1]:99".parse().unwrap())));
        assert_eq!(reach.token_file, Some("/run/credentials/t/admin".into()));
        let wrong = check::reach(Some((Path::new("c.toml"), "http.listen = 5")), &environment.clone());
        assert!(wrong.is_ok(), "the variable wins");
        let wrong = check::reach(Some((Path::new("c.toml"), "http.listen = 5")), &Environment::default());
        assert!(wrong.unwrap_err().to_string().contains("c.toml:1"));
        let none = check::reach(None, &Environment::default()).unwrap();
        assert_eq!(none.listen, Some(HttpListen::Tcp("127.0.0.1:8080".parse().unwrap())));
    }
}
