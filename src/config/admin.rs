//! Who may look into a running server and change it: the checked form, and how a command finds such a server.

use std::path::{Path, PathBuf};

use crate::config::checked::HttpListen;
use crate::config::environment::Environment;
use crate::config::error::ConfigError;
use crate::config::{Config, DEFAULT_PATH, check};
use crate::credentials::Secret;

/// The part of `[http]` about the admin API, and where revocations are kept. A reload takes the first part over.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AdminConfig {
    /// What is in `http.admin_token_file`, or in the credential that `http.admin_token_credential` names.
    pub token: Option<Secret>,
    /// `http.admin_uids`, besides root and the server's own user.
    pub uids: Vec<u32>,
    /// `auth.revocations_file`.
    pub revocations_file: Option<PathBuf>,
}

/// What a configuration says about reaching its server, for the commands that talk to one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reach {
    /// `http.listen`.
    pub listen: Option<HttpListen>,
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
        let default = Path::new(DEFAULT_PATH);
        match file.or_else(|| default.exists().then_some(default)) {
            Some(path) => {
                let text = Config::read(path)?;
                check::reach(Some((path, &text)), environment)
            }
            None => check::reach(None, environment),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, ConfigError> {
        Config::from_toml("c.toml", &format!("{text}\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north\"\n"))
    }

    #[test]
    fn a_token_is_a_word_that_nobody_guesses() {
        let path = std::env::temp_dir().join(format!("throughway-token-{}", std::process::id()));
        let with = |token: &str| {
            std::fs::write(&path, token).unwrap();
            config(&format!("http.admin_token_file = {path:?}"))
        };
        let good = with("0123456789abcdef0123456789abcdef\n").unwrap();
        assert_eq!(good.admin.token.unwrap().expose(), b"0123456789abcdef0123456789abcdef");
        for (token, why) in [("short\n", "at least 16"), ("0123456789abcdef 0123456789", "blank"), ("", "is empty")] {
            let error = with(token).unwrap_err().to_string();
            assert!(error.contains("http.admin_token_file") && error.contains(why), "{error}");
            assert!(token.is_empty() || !error.contains(token.trim()), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        let error = with_both();
        assert!(error.contains("leave one of them out"), "{error}");
        let error = config("http.admin_token_credential = \"token\"").unwrap_err().to_string();
        assert!(error.contains("LoadCredential=token"), "{error}");
    }

    fn with_both() -> String {
        config("http.admin_token_file = \"a\"\nhttp.admin_token_credential = \"b\"").unwrap_err().to_string()
    }

    #[test]
    fn users_are_numbers() {
        assert_eq!(config("http.admin_uids = [\"33\", \"0\"]").unwrap().admin.uids, [33, 0]);
        let error = config("http.admin_uids = [\"www-data\"]").unwrap_err().to_string();
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
